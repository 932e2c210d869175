"""Sums of a chunk in lanes: as fast as vectors are, and the same bits on every processor.

Element `i` of a chunk counts in lane `i % LANES`. Lanes do not depend on each other, so compilers make
vectors of them, of whatever width a processor has, without changing the order of any addition. In the
end they are folded in halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import storage
from .specialise import specialised

LANES = 128
"""With so many no lane waits for itself, and no compiler unrolls them before it makes vectors."""

_I64, _DOUBLE = ir.IntType(64), ir.DoubleType()

# These names stand for functions and numbers that `functions` puts in their place (see `specialise`).
get = put = combined = None
TOTALS = None


def needed(count):
    """How many lanes a chunk of so many elements has use for, a power of 2."""
    width = 1
    while width < count and width < LANES:
        width *= 2
    return width


def start(lanes, width, begin):
    """Let so many lanes of each total begin with a number."""
    for total in range(TOTALS):
        for lane in range(total * LANES, total * LANES + width):
            put((lanes,), lane, (begin,))


def fold(lanes, width, exponent):
    """Put together so many lanes of each total, in its first."""
    for total in range(TOTALS):
        first = total * LANES
        half = width
        while half > 1:
            half //= 2
            for lane in range(first, first + half):
                one, other = get((lanes,), lane)[0], get((lanes,), lane + half)[0]
                put((lanes,), lane, (combined(one, other, exponent),))


def functions(totals: int, combine: Callable, compiled: Callable) -> dict[str, Any]:
    """What kernels need for so many totals, by the names that they have in kernels.

    Args:
        totals: how many sums there are.
        combine: how two lanes become one, `(total, other, exponent) -> total`.
        compiled: what makes a function callable from a kernel.
    """
    number = types.float64
    names = {
        "get": storage.reader(("float64",), number),
        "put": storage.writer(("float64",), number),
        "combined": compiled(combine),
        "TOTALS": totals,
        "LANES": LANES,
    }
    name = f"{totals}_totals_{combine.__name__}"
    return {
        "LANES": LANES,
        "get": names["get"],
        "put": names["put"],
        "reserve": stack(totals * LANES),
        "needed": compiled(needed),
        "start_lanes": compiled(specialised(start, f"start_{name}", names)),
        "fold": compiled(specialised(fold, f"fold_{name}", names)),
    }


def stack(count: int):
    """A function `()` -> the address of `count` float64 that last until its caller returns."""

    @intrinsic
    def reserve(typing_context):
        def generate(context, builder, signature, arguments):
            with builder.goto_entry_block():
                place = builder.alloca(_DOUBLE, count)
            place.align = 64
            return builder.ptrtoint(place, _I64)

        return types.int64(), generate

    return reserve


def adder(totals: int, number: types.Float):
    """A function `(lanes, lane, values)` that adds a number to this lane of each total."""

    @intrinsic
    def add(typing_context, lanes, lane, values):
        def generate(context, builder, signature, arguments):
            lanes, lane, values = arguments
            data = builder.inttoptr(lanes, _DOUBLE.as_pointer())
            for total in range(totals):
                value = builder.extract_value(values, total)
                value = context.cast(builder, value, number, types.float64)
                place = builder.gep(data, [builder.add(lane, _I64(total * LANES))])
                builder.store(builder.fadd(builder.load(place), value), place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, values), generate

    return add


def found(totals: int):
    """A function `(lanes)` -> the totals, once they are folded, as a tuple."""

    @intrinsic
    def read(typing_context, lanes):
        def generate(context, builder, signature, arguments):
            data = builder.inttoptr(arguments[0], _DOUBLE.as_pointer())
            values = [
                builder.load(builder.gep(data, [_I64(total * LANES)])) for total in range(totals)
            ]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(types.float64, totals)(types.int64), generate

    return read
