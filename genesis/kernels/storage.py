"""Between memory and arithmetic: typed reads and writes at an address, for four storage types.

Arithmetic is float32 for float32, float16 and bfloat16, and float64 for float64. A kernel knows its
tensors as a tuple of addresses, one a column (gradient, parameter, state...); `reader` and `writer`
make the two functions that take element `i` of all columns to arithmetic and back.

They are written as LLVM code rather than in Python because Numba has no 16-bit floats on the CPU,
and because its uint32 arithmetic widens to 64 bits, which halves the speed of vector code. The
16-bit conversions use integers only: LLVM's own `half` crashes on a processor without F16C.
"""

from __future__ import annotations

from functools import lru_cache

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_IN_MEMORY = {
    "float64": ir.DoubleType(),
    "float32": ir.FloatType(),
    "float16": _I16,
    "bfloat16": _I16,
}


def arithmetic(parameter_dtype: str) -> types.Float:
    """The type in which a parameter of this storage type is updated."""
    return types.float64 if parameter_dtype == "float64" else types.float32


@lru_cache(maxsize=None)
def addresses(columns: int):
    """A function `(table, row)` -> the row's addresses as a tuple."""

    @intrinsic
    def read_row(typing_context, table, row):
        def generate(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            first = builder.mul(arguments[1], builder.extract_value(array.shape, 1))
            values = [
                builder.load(builder.gep(array.data, [builder.add(first, _I64(column))]))
                for column in range(columns)
            ]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(types.int64, columns)(table, row), generate

    return read_row


@lru_cache(maxsize=None)
def scalars(count: int):
    """A function `(array)` -> its `count` elements as a tuple, to be kept in registers."""

    @intrinsic
    def read_scalars(typing_context, array):
        def generate(context, builder, signature, arguments):
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            values = [builder.load(builder.gep(data, [_I64(k)])) for k in range(count)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(array.dtype, count)(array), generate

    return read_scalars


@lru_cache(maxsize=None)
def reader(dtypes: tuple[str, ...], number: types.Float):
    """A function `(addresses, i)` -> element `i` of every column, as arithmetic numbers."""

    @intrinsic
    def read(typing_context, tensors, i):
        def generate(context, builder, signature, arguments):
            values = []
            for column, dtype in enumerate(dtypes):
                stored = builder.load(_element(builder, arguments, column, dtype))
                values.append(_widened(builder, stored, dtype, number))
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(number, len(dtypes))(tensors, i), generate

    return read


@lru_cache(maxsize=None)
def writer(dtypes: tuple[str, ...], number: types.Float):
    """A function `(addresses, i, values)` that stores one value in element `i` of each column."""

    @intrinsic
    def write(typing_context, tensors, i, values):
        def generate(context, builder, signature, arguments):
            for column, dtype in enumerate(dtypes):
                value = builder.extract_value(arguments[2], column)
                stored = _narrowed(builder, value, dtype, number)
                builder.store(stored, _element(builder, arguments, column, dtype))
            return context.get_dummy_value()

        return types.void(tensors, i, values), generate

    return write


def _element(builder, arguments, column, dtype):
    tensors, i = arguments[:2]
    address = builder.extract_value(tensors, column)
    return builder.gep(builder.inttoptr(address, _IN_MEMORY[dtype].as_pointer()), [i])


def _widened(builder, stored, dtype, number):
    if dtype == "float64":
        return stored if number is types.float64 else builder.fptrunc(stored, ir.FloatType())
    if dtype == "float16":
        stored = _from_float16(builder, stored)
    elif dtype == "bfloat16":
        stored = _float(builder, builder.shl(builder.zext(stored, _I32), _I32(16)))
    return stored if number is types.float32 else builder.fpext(stored, ir.DoubleType())


def _narrowed(builder, value, dtype, number):
    if dtype == "float64":
        return value if number is types.float64 else builder.fpext(value, ir.DoubleType())
    if number is types.float64:
        value = builder.fptrunc(value, ir.FloatType())
    if dtype == "float16":
        return _to_float16(builder, value)
    if dtype == "bfloat16":
        return _to_bfloat16(builder, value)
    return value


def _bits(builder, value):
    return builder.bitcast(value, _I32)


def _float(builder, bits):
    return builder.bitcast(bits, ir.FloatType())


# float32 has 8 bits of exponent (bias 127) over 23 of mantissa, float16 5 (bias 15) over 10. Moving
# a float16 13 bits up puts its mantissa in place and leaves its exponent 112 too small.
_BIAS_STEP = 127 - 15 << 23


def _from_float16(builder, half):
    half = builder.zext(half, _I32)
    sign = builder.shl(builder.and_(half, _I32(0x8000)), _I32(16))
    magnitude = builder.and_(half, _I32(0x7FFF))
    shifted = builder.shl(magnitude, _I32(13))
    normal = builder.add(shifted, _I32(_BIAS_STEP))
    infinite = builder.add(normal, _I32(_BIAS_STEP))  # exponent 31 + 112 + 112 = 255
    # A subnormal has no hidden one: give it one at 2**-14, where its mantissa counts, and take the
    # one away again. Both values are exact, so the difference is.
    lifted = _float(builder, builder.add(normal, _I32(1 << 23)))
    subnormal = _bits(builder, builder.fsub(lifted, _float(builder, _I32(127 - 14 << 23))))
    is_infinite = builder.icmp_unsigned(">=", magnitude, _I32(0x7C00))
    is_subnormal = builder.icmp_unsigned("<", magnitude, _I32(0x0400))
    bits = builder.select(is_infinite, infinite, builder.select(is_subnormal, subnormal, normal))
    return _float(builder, builder.or_(bits, sign))


def _to_float16(builder, value):
    bits = _bits(builder, value)
    sign = builder.lshr(builder.and_(bits, _I32(0x80000000)), _I32(16))
    magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
    # Round to nearest even: add just under half of the last kept bit, and that bit itself.
    odd = builder.and_(builder.lshr(magnitude, _I32(13)), _I32(1))
    rounded = builder.add(builder.add(magnitude, _I32(0xFFF)), odd)
    normal = builder.lshr(builder.sub(rounded, _I32(_BIAS_STEP)), _I32(13))
    # Below 2**-14 the last bit is worth 2**-24, as it is in a float32 just above 0.5: adding 0.5
    # lets the processor do the rounding.
    half = builder.fadd(_float(builder, magnitude), ir.Constant(ir.FloatType(), 0.5))
    subnormal = builder.sub(_bits(builder, half), _I32(126 << 23))
    is_nan = builder.icmp_unsigned(">", magnitude, _I32(0x7F800000))
    too_large = builder.icmp_unsigned(">=", magnitude, _I32(127 + 16 << 23))
    is_subnormal = builder.icmp_unsigned("<", magnitude, _I32(127 - 14 << 23))
    small = builder.select(is_subnormal, subnormal, normal)
    large = builder.select(is_nan, _I32(0x7E00), _I32(0x7C00))
    return builder.trunc(builder.or_(builder.select(too_large, large, small), sign), _I16)


def _to_bfloat16(builder, value):
    bits = _bits(builder, value)
    upper = builder.lshr(bits, _I32(16))
    odd = builder.and_(upper, _I32(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
    quiet = builder.or_(upper, _I32(0x0040))
    magnitude = builder.and_(bits, _I32(0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, _I32(0x7F800000))
    return builder.trunc(builder.select(is_nan, quiet, rounded), _I16)
