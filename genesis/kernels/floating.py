"""How the processor computes with floating-point numbers, a setting that each thread has for itself.

On x86-64 it is the register MXCSR. What other processors have in place of it is left alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import once
from .specialise import compile_function, specialised

KNOWN = platform.machine().lower() in ("x86_64", "amd64")
"""Whether the setting can be read and changed."""

FLUSHES = 0x8000 | 0x0040
"""The bits of MXCSR that let denormal results become zeros, and denormal operands count as such."""

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _at(builder, name, place):
    """Call one of the two instructions, which take the address of the setting."""
    pointer = builder.bitcast(place, _I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type])
    builder.call(builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind), [pointer])


@intrinsic
def floating_mode(typing_context):
    """This thread's setting, as a number."""

    def generate(context, builder, signature, arguments):
        if not KNOWN:
            return _I64(0)
        place = cgutils.alloca_once(builder, _I32)
        _at(builder, "stmxcsr", place)
        return builder.zext(builder.load(place), _I64)

    return types.int64(), generate


@intrinsic
def set_floating_mode(typing_context, mode):
    """Let this thread compute with a setting from `floating_mode`."""

    def generate(context, builder, signature, arguments):
        if KNOWN:
            place = cgutils.alloca_once(builder, _I32)
            builder.store(builder.trunc(arguments[0], _I32), place)
            _at(builder, "ldmxcsr", place)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def changed(cleared, raised):
    """Clear some bits of this thread's setting and set others; returns what it was before."""
    before = floating_mode()
    set_floating_mode(before & ~cleared | raised)
    return before


@once
def change() -> Callable[[int, int], int]:
    """`changed`, compiled."""
    signature = types.int64(types.int64, types.int64)
    return compile_function(specialised(changed, "floating_mode_changed", {}), signature)
