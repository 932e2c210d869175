"""Memory at an address, for compiled code that is given no array.

A call from Python costs 0.05 us for each array among its arguments, a third of a small step for six of
them; an address costs nothing.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_I32, _I64, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.DoubleType()


@intrinsic
def word(typing_context, address):
    """The 64-bit number at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], _I64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def half(typing_context, address):
    """The 32-bit number at an address."""

    def generate(context, builder, signature, arguments):
        value = builder.load(builder.inttoptr(arguments[0], _I32.as_pointer()))
        return builder.sext(value, _I64)

    return types.int64(types.int64), generate


@intrinsic
def put(typing_context, address, value):
    """Store a 64-bit number at an address."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def put_half(typing_context, address, value):
    """Store the lower half of a 64-bit number at an address."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _I32.as_pointer())
        builder.store(builder.trunc(arguments[1], _I32), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def put_float(typing_context, address, value):
    """Store a float64 at an address."""

    def generate(context, builder, signature, arguments):
        number = context.cast(builder, arguments[1], signature.args[1], types.float64)
        builder.store(number, builder.inttoptr(arguments[0], _DOUBLE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


LINE = 64
"""The bytes of a line of the cache, and of what is streamed at once."""

_PIECE = ir.VectorType(ir.FloatType(), 8)


@intrinsic
def stream_line_of_zeros(typing_context, address):
    """Write a line of zeros past the cache, at an address that is a multiple of its size."""

    def generate(context, builder, signature, arguments):
        hint = builder.module.add_metadata([_I32(1)])
        for offset in (0, LINE // 2):
            place = builder.add(arguments[0], _I64(offset))
            pointer = builder.inttoptr(place, _PIECE.as_pointer())
            store = builder.store(ir.Constant(_PIECE, [0.0] * 8), pointer, align=LINE // 2)
            store.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
def settle_streams(typing_context):
    """Let what was streamed be seen before all that this thread writes from now on."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
