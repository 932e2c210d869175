"""Between memory and arithmetic: typed reads and writes at an address, for four storage types.

Arithmetic is float32 for float32, float16 and bfloat16, and float64 for float64. A kernel knows its
tensors as a tuple of addresses, one a column (gradient, parameter, state...); `reader` and `writer`
make the two functions that take element `i` of all columns to arithmetic and back. On a GPU
`lane_updater` does the same for several neighbouring elements in loads and stores of 16 bytes.

They are written as LLVM code rather than in Python because Numba has no 16-bit floats on the CPU,
and because its uint32 arithmetic widens to 64 bits, which halves the speed of vector code. Between
float16 and float32 a processor with F16C and a GPU convert by one instruction; elsewhere LLVM's own
`half` crashes, and integers do the same.
"""

from __future__ import annotations

from functools import lru_cache

from llvmlite import binding, ir
from numba import config
from numba.core import types
from numba.extending import intrinsic

VECTOR = 16
"""Bytes in the widest load and store of a GPU."""

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

SIZES = {**BYTES, "uint16": 2, "int8": 1, "uint8": 1}
"""The bytes of an element, also of what is packed, see `genesis.packing`."""


def _has_f16c() -> bool:
    """Whether the processor for which Numba compiles converts float16 itself."""
    if config.CPU_FEATURES is not None:
        return "+f16c" in config.CPU_FEATURES.split(",")
    return bool(binding.get_host_cpu_features().get("f16c"))


HAS_F16C = _has_f16c()

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_IN_MEMORY = {
    "float64": ir.DoubleType(),
    "float32": ir.FloatType(),
    "float16": _I16,
    "bfloat16": _I16,
}


def variant() -> str:
    """What distinguishes code made on this machine, for the names of kernels."""
    return "" if HAS_F16C else "_without_f16c"


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
def row(columns: int):
    """A function `(address of a table's row)` -> its first `columns` addresses as a tuple."""

    @intrinsic
    def read_row(typing_context, row):
        def generate(context, builder, signature, arguments):
            data = builder.inttoptr(arguments[0], _I64.as_pointer())
            values = [builder.load(builder.gep(data, [_I64(k)])) for k in range(columns)]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(types.int64, columns)(types.int64), generate

    return read_row


def _numbers(number: types.Float, count: int) -> types.Type:
    """So many numbers of a type, as a tuple; there may be none."""
    return types.UniTuple(number, count) if count else types.Tuple(())


@lru_cache(maxsize=None)
def scalars(count: int, number: types.Float, space: int = 0):
    """A function `(address)` -> the `count` numbers there as a tuple, to be kept in registers."""

    @intrinsic
    def read_scalars(typing_context, address):
        def generate(context, builder, signature, arguments):
            kind = context.get_value_type(number)
            data = builder.inttoptr(arguments[0], kind.as_pointer(space))
            values = [builder.load(builder.gep(data, [_I64(k)])) for k in range(count)]
            return context.make_tuple(builder, signature.return_type, values)

        return _numbers(number, count)(types.int64), generate

    return read_scalars


@lru_cache(maxsize=None)
def numbers_writer(count: int, number: types.Float, space: int = 0):
    """A function `(address, values)` that stores `count` float64 there as numbers of a type."""

    @intrinsic
    def write_numbers(typing_context, address, values):
        def generate(context, builder, signature, arguments):
            kind = context.get_value_type(number)
            data = builder.inttoptr(arguments[0], kind.as_pointer(space))
            for k in range(count):
                value = builder.extract_value(arguments[1], k)
                value = context.cast(builder, value, types.float64, number)
                builder.store(value, builder.gep(data, [_I64(k)]))
            return context.get_dummy_value()

        return types.void(types.int64, values), generate

    return write_numbers


@lru_cache(maxsize=None)
def part(count: int, number: types.Float):
    """A function `(array, i)` -> part `i` of an array, of `count` numbers, as a tuple."""

    @intrinsic
    def read_part(typing_context, array, i):
        def generate(context, builder, signature, arguments):
            found = context.make_array(signature.args[0])(context, builder, arguments[0])
            first = builder.mul(arguments[1], _I64(count))
            places = [builder.add(first, _I64(k)) for k in range(count)]
            values = [builder.load(builder.gep(found.data, [place])) for place in places]
            return context.make_tuple(builder, signature.return_type, values)

        return _numbers(number, count)(array, types.int64), generate

    return read_part


@lru_cache(maxsize=None)
def adder(
    count: int,
    number: types.Float,
    total: types.Float = types.float64,
    flags: tuple[str, ...] = (),
):
    """A function `(totals, values)` -> the sums of `count` totals of a type and numbers of another.

    `flags` are LLVM's, for a sum over a loop whose additions may be reordered.
    """

    @intrinsic
    def add(typing_context, totals, values):
        def generate(context, builder, signature, arguments):
            sums = []
            for k in range(count):
                value = builder.extract_value(arguments[1], k)
                value = context.cast(builder, value, number, total)
                before = builder.extract_value(arguments[0], k)
                sums.append(builder.fadd(before, value, flags=flags))
            return context.make_tuple(builder, signature.return_type, sums)

        return _numbers(total, count)(totals, values), generate

    return add


@lru_cache(maxsize=None)
def reader(dtypes: tuple[str, ...], number: types.Float, space: int = 0):
    """A function `(addresses, i)` -> element `i` of every column, as arithmetic numbers.

    `space` is LLVM's number for the kind of memory: 0 on the CPU, `GLOBAL` on a GPU.
    """

    @intrinsic
    def read(typing_context, tensors, i):
        def generate(context, builder, signature, arguments):
            values = []
            for column, dtype in enumerate(dtypes):
                address = builder.extract_value(arguments[0], column)
                stored = builder.load(_pointer(builder, address, arguments[1], dtype, space))
                values.append(_widened(builder, stored, dtype, number, space))
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(number, len(dtypes))(tensors, i), generate

    return read


@lru_cache(maxsize=None)
def writer(dtypes: tuple[str, ...], number: types.Float, space: int = 0):
    """A function `(addresses, i, values)` that stores one value in element `i` of each column."""

    @intrinsic
    def write(typing_context, tensors, i, values):
        def generate(context, builder, signature, arguments):
            for column, dtype in enumerate(dtypes):
                address = builder.extract_value(arguments[0], column)
                value = builder.extract_value(arguments[2], column)
                stored = _narrowed(builder, value, dtype, number, space)
                builder.store(stored, _pointer(builder, address, arguments[1], dtype, space))
            return context.get_dummy_value()

        return types.void(tensors, i, values), generate

    return write


@lru_cache(maxsize=None)
def random_writer(dtypes: tuple[str, ...], number: types.Float, space: int = 0):
    """As `writer`, but what goes to bfloat16 is rounded up or down at random.

    The function takes two more numbers, a key and a moment, from which with `i` and the column the
    random bits follow: the same ones whoever computes them, and whenever.
    """

    @intrinsic
    def write(typing_context, tensors, i, values, key, moment):
        def generate(context, builder, signature, arguments):
            tensors, i, values, key, moment = arguments
            for column, dtype in enumerate(dtypes):
                address = builder.extract_value(tensors, column)
                bits = _random_bits(builder, _salt(builder, key, moment, column), i)
                value = builder.extract_value(values, column)
                stored = _narrowed(builder, value, dtype, number, space, bits)
                builder.store(stored, _pointer(builder, address, i, dtype, space))
            return context.get_dummy_value()

        return types.void(tensors, i, values, types.int64, types.int64), generate

    return write


@lru_cache(maxsize=None)
def edited(dtype: str, at_random: bool, space: int = 0):
    """A function `(number, stored)` -> whether `stored` is not what storing `number` may have given.

    Both are float32; `stored` was read from this storage type. Where bfloat16 is rounded at random,
    both of its neighbours may have come of a number.
    """

    @intrinsic
    def differs(typing_context, number, stored):
        def generate(context, builder, signature, arguments):
            number, stored = arguments
            narrow = _narrowed(builder, number, dtype, types.float32, space)
            wide = _widened(builder, narrow, dtype, types.float32, space)
            found = builder.icmp_unsigned("!=", _bits(builder, wide), _bits(builder, stored))
            if at_random and dtype == "bfloat16":
                below = builder.and_(_bits(builder, number), _I32(0xFFFF0000))
                above = builder.add(below, _I32(1 << 16))
                for neighbour in (below, above):
                    other = builder.icmp_unsigned("!=", neighbour, _bits(builder, stored))
                    found = builder.and_(found, other)
            return found

        return types.boolean(number, stored), generate

    return differs


GLOBAL = 1
"""LLVM's number for a GPU's global memory; only there do loads become `ld.global`."""


def lanes(dtypes: tuple[str, ...]) -> int:
    """How many elements make at least one load of 16 bytes in every column."""
    return VECTOR // min(BYTES[dtype] for dtype in dtypes)


@lru_cache(maxsize=None)
def first_aligned(dtypes: tuple[str, ...]):
    """A function `(addresses, start, stop)` -> the first element from which vectors may go.

    That is where every column's element lies on a multiple of 16 bytes; `stop` if there is none.
    """
    width = lanes(dtypes)
    narrowest = min(range(len(dtypes)), key=lambda column: BYTES[dtypes[column]])
    size = BYTES[dtypes[narrowest]]

    @intrinsic
    def find(typing_context, tensors, start, stop):
        def generate(context, builder, signature, arguments):
            addresses, start, stop = arguments
            address = builder.extract_value(addresses, narrowest)
            # The element of the narrowest column on the next multiple of 16 bytes; then others fit or
            # nowhere do.
            position = builder.add(address, builder.mul(start, _I64(size)))
            missing = builder.and_(builder.neg(position), _I64(VECTOR - 1))
            first = builder.add(start, builder.udiv(missing, _I64(size)))
            off = _I64(0)
            for column, dtype in enumerate(dtypes):
                address = builder.extract_value(addresses, column)
                position = builder.add(address, builder.mul(first, _I64(BYTES[dtype])))
                off = builder.or_(off, builder.and_(position, _I64(VECTOR - 1)))
            fits = builder.and_(
                builder.icmp_signed("==", off, _I64(0)),
                builder.icmp_signed("<=", builder.add(first, _I64(width)), stop),
            )
            return builder.select(fits, first, stop)

        return types.int64(tensors, start, stop), generate

    return find


@lru_cache(maxsize=None)
def lane_updater(
    rule, dtypes: tuple[str, ...], number: types.Float, space: int = GLOBAL, measures: bool = False
):
    """A function `(addresses, i, scale, hyper)` that updates elements `i` to `i + lanes(dtypes)`.

    All columns are loaded before the rule is applied and stored after it, each in pieces of 16
    bytes; element `i` must be aligned (see `first_aligned`).

    Args:
        rule: the rule as the target compiles it, callable from a kernel.
        dtypes: the storage types of the columns; the first, the gradient, is not stored.
        measures: whether the function returns the squares of how far the parameters moved, as they are
            stored, and of what they were, each summed up. Default: False.
    """
    width = lanes(dtypes)

    @intrinsic
    def update_lanes(typing_context, tensors, i, scale, hyper):
        rule_type = typing_context.resolve_value_type(rule)
        state = types.UniTuple(number, len(dtypes) - 2)
        rule_signature = rule_type.get_call_type(typing_context, (number, number, state, hyper), {})

        def generate(context, builder, signature, arguments):
            tensors, i, scale, hyper = arguments
            call = context.get_function(rule_type, rule_signature)
            context.add_linking_libs(getattr(call, "libs", ()))
            vectors = []
            for column, dtype in enumerate(dtypes):
                address = builder.extract_value(tensors, column)
                pieces = _load_pieces(builder, address, i, dtype, width, space)
                vectors.append(
                    [_widened(builder, stored, dtype, number, space) for stored in pieces]
                )
            updated = [[] for _ in dtypes[1:]]
            for grad, param, *states in zip(*vectors):
                grad = builder.fmul(grad, scale)
                before = context.make_tuple(builder, state, states)
                result = call(builder, (param, grad, before, hyper))
                updated[0].append(builder.extract_value(result, 0))
                for k in range(len(states)):
                    updated[1 + k].append(builder.extract_value(result, [1, k]))
            for column, (dtype, values) in enumerate(zip(dtypes[1:], updated), start=1):
                address = builder.extract_value(tensors, column)
                stored = [_narrowed(builder, value, dtype, number, space) for value in values]
                _store_pieces(builder, address, i, dtype, stored, space)
                if column == 1 and BYTES[dtype] == 2:
                    values[:] = [_widened(builder, s, dtype, number, space) for s in stored]
            if not measures:
                return context.get_dummy_value()
            changes = [builder.fsub(a, b) for a, b in zip(updated[0], vectors[1])]
            sums = [_sum_of_squares(builder, each) for each in (changes, vectors[1])]
            return context.make_tuple(builder, signature.return_type, sums)

        returned = types.UniTuple(number, 2) if measures else types.void
        return returned(tensors, i, scale, hyper), generate

    return update_lanes


def _sum_of_squares(builder, values):
    first, *others = (builder.fmul(value, value) for value in values)
    for square in others:
        first = builder.fadd(first, square)
    return first


def _pointer(builder, address, i, dtype, space):
    return builder.gep(builder.inttoptr(address, _IN_MEMORY[dtype].as_pointer(space)), [i])


# A GPU has no vector of eight 16-bit numbers: two of them travel in one of four 32-bit words.
_WORDS = ir.VectorType(_I32, VECTOR // 4)


def _load_pieces(builder, address, i, dtype, width, space):
    count = VECTOR // BYTES[dtype]
    piece = _WORDS if BYTES[dtype] == 2 else ir.VectorType(_IN_MEMORY[dtype], count)
    elements = []
    for first in range(0, width, count):
        pointer = _pointer(builder, address, builder.add(i, _I64(first)), dtype, space)
        vector = builder.load(builder.bitcast(pointer, piece.as_pointer(space)), align=VECTOR)
        parts = [builder.extract_element(vector, _I32(k)) for k in range(piece.count)]
        if piece is _WORDS:
            halves = [(word, builder.lshr(word, _I32(16))) for word in parts]
            parts = [builder.trunc(half, _I16) for pair in halves for half in pair]
        elements += parts
    return elements


def _store_pieces(builder, address, i, dtype, elements, space):
    count = VECTOR // BYTES[dtype]
    piece = _WORDS if BYTES[dtype] == 2 else ir.VectorType(_IN_MEMORY[dtype], count)
    for first in range(0, len(elements), count):
        parts = elements[first : first + count]
        if piece is _WORDS:
            halves = [builder.zext(half, _I32) for half in parts]
            parts = [
                builder.or_(low, builder.shl(high, _I32(16)))
                for low, high in zip(halves[::2], halves[1::2])
            ]
        vector = ir.Constant(piece, ir.Undefined)
        for k, part in enumerate(parts):
            vector = builder.insert_element(vector, part, _I32(k))
        pointer = _pointer(builder, address, builder.add(i, _I64(first)), dtype, space)
        builder.store(vector, builder.bitcast(pointer, piece.as_pointer(space)), align=VECTOR)


def _widened(builder, stored, dtype, number, space):
    if dtype == "float64":
        return stored if number is types.float64 else builder.fptrunc(stored, ir.FloatType())
    if dtype == "float16":
        stored = _from_float16(builder, stored, space)
    elif dtype == "bfloat16":
        stored = _float(builder, builder.shl(builder.zext(stored, _I32), _I32(16)))
    return stored if number is types.float32 else builder.fpext(stored, ir.DoubleType())


def _narrowed(builder, value, dtype, number, space, random_bits=None):
    if dtype == "float64":
        return value if number is types.float64 else builder.fpext(value, ir.DoubleType())
    if number is types.float64:
        value = builder.fptrunc(value, ir.FloatType())
    if dtype == "float16":
        return _to_float16(builder, value, space)
    if dtype == "bfloat16":
        return _to_bfloat16(builder, value, random_bits)
    return value


def _bits(builder, value):
    return builder.bitcast(value, _I32)


def _float(builder, bits):
    return builder.bitcast(bits, ir.FloatType())


# float32 has 8 bits of exponent (bias 127) over 23 of mantissa, float16 5 (bias 15) over 10. Moving
# a float16 13 bits up puts its mantissa in place and leaves its exponent 112 too small.
_BIAS_STEP = 127 - 15 << 23


def _from_float16(builder, half, space):
    if HAS_F16C or space == GLOBAL:
        return builder.fpext(builder.bitcast(half, ir.HalfType()), ir.FloatType())
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


def _to_float16(builder, value, space):
    if HAS_F16C or space == GLOBAL:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _I16)
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


def _to_bfloat16(builder, value, random_bits=None):
    bits = _bits(builder, value)
    upper = builder.lshr(bits, _I32(16))
    if random_bits is None:  # to the nearest, and of two that are equally near to the even one
        added = builder.add(_I32(0x7FFF), builder.and_(upper, _I32(1)))
    else:  # up as often as the 16 bits that go are large
        added = builder.and_(random_bits, _I32(0xFFFF))
    rounded = builder.lshr(builder.add(bits, added), _I32(16))
    quiet = builder.or_(upper, _I32(0x0040))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), _I16)


# Random bits from a counter: two well-known mixing functions, SplitMix64's for what is the same for
# a whole tensor, MurmurHash3's for each element.
_GOLDEN = 0x9E3779B97F4A7C15


def _salt(builder, key, moment, column):
    mixed = builder.add(builder.mul(key, _I64(_GOLDEN)), _I64(column))
    mixed = builder.add(builder.mul(mixed, _I64(_GOLDEN)), moment)
    mixed = builder.mul(mixed, _I64(_GOLDEN))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = builder.mul(builder.xor(mixed, builder.lshr(mixed, _I64(shift))), _I64(factor))
    return builder.xor(mixed, builder.lshr(mixed, _I64(31)))


def _random_bits(builder, salt, i):
    low, high = builder.trunc(salt, _I32), builder.trunc(builder.lshr(salt, _I64(32)), _I32)
    bits = builder.xor(builder.trunc(i, _I32), low)
    bits = builder.add(bits, builder.xor(builder.trunc(builder.lshr(i, _I64(32)), _I32), high))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = builder.mul(builder.xor(bits, builder.lshr(bits, _I32(shift))), _I32(factor))
    return builder.xor(bits, builder.lshr(bits, _I32(16)))
