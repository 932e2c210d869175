"""Work on columns that are packed: piece by piece they are unpacked into the first cache, worked on
there as any float32, and packed again.

What is packed how, `genesis.packing` tells. Behind the columns of its table, a row has the addresses of
the scales of each column of codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ...packing import BLOCK, FIRST, FIRST_BITS, SHIFT, UNITS
from .. import lanes, storage
from ..specialise import specialised
from .working import callable_

CODES = "int8", "uint8"
"""The storage types of codes."""

LOWER = "uint16"
"""The storage type of the lower halves of masters, whose upper halves are the parameters."""

PIECE = 1024
"""How many elements are unpacked at once: a few blocks, so that what surrounds them costs little, and
little enough for the first cache."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()

# These names stand for functions and numbers that are put in their place (see `specialise`).
reserve = unpack = unpacked = process = put_together = pack = one = others = None
decode = encode = read_scale = write_scale = put = get = larger = as_float = join = divide = None
salt_of = largest = None
COLUMN = SCALES = PLACE = NOTHING = UPPER = UNIT = None


# ---- what a kernel sees ----


def seen(storages: tuple[str, ...]) -> tuple[str, ...]:
    """The storage types of columns where packed ones are unpacked."""
    found = ["float32" if name in CODES else name for name in storages]
    if storages[-1] == LOWER:
        found[1] = "float32"
        found.pop()
    return tuple(found)


def scales(storages: tuple[str, ...]) -> int:
    """How many of the columns have scales."""
    return sum(name in CODES for name in storages)


def in_pieces(tensors, start, stop, hyper, moment):
    """Do with a chunk what `process` does, on columns unpacked piece by piece."""
    scratch = reserve()
    total = NOTHING
    first = start
    while first < stop:
        last = min(first + PIECE, stop)
        unpack(tensors, scratch, first, last)
        found = process(unpacked(tensors, scratch, first), first, last, hyper, moment)
        total = put_together(total, found)
        pack(tensors, scratch, first, last, moment)
        first = last
    return total


def latest(total, found):
    """What a chunk comes to where nobody asks for it."""
    return found


# ---- several columns ----


def unpack_all(tensors, scratch, first, last):
    """Unpack one column, and others."""
    one(tensors, scratch, first, last)
    others(tensors, scratch, first, last)


def pack_all(tensors, scratch, first, last, moment):
    """Pack one column, and others."""
    one(tensors, scratch, first, last, moment)
    others(tensors, scratch, first, last, moment)


def nothing_to_unpack(tensors, scratch, first, last):
    """Where there is no further column."""


def nothing_to_pack(tensors, scratch, first, last, moment):
    """Where there is no further column, or where nothing has been changed."""


# ---- codes ----


def unpack_codes(tensors, scratch, first, last):
    """Unpack a piece of a column of codes."""
    codes = tensors[COLUMN]
    values = scratch + PLACE - 4 * first
    start = first
    while start < last:
        stop = min(start + BLOCK, last)
        scale = read_scale((tensors[SCALES],), start // BLOCK)[0]
        for i in range(start, stop):
            put((values,), i, (decode(codes, i, scale),))
        start = stop


def pack_codes(tensors, scratch, first, last, moment):
    """Pack a piece of a column of codes, with scales that are the largest magnitudes of blocks."""
    codes = tensors[COLUMN]
    values = scratch + PLACE - 4 * first
    salt = salt_of(moment)
    start = first
    while start < last:
        stop = min(start + BLOCK, last)
        scale = largest(values, start, stop) * UNIT
        write_scale((tensors[SCALES],), start // BLOCK, (scale,))
        factor = divide(scale)
        for i in range(start, stop):
            encode(codes, i, get((values,), i)[0] * factor, salt)
        start = stop


_ZERO_BITS = np.int32(0)


def largest_magnitude(values, start, stop):
    """The largest magnitude of a block; NaN if there is one. Of bits, since these make vectors."""
    found = _ZERO_BITS
    for i in range(start, stop):
        found = larger(found, values, i)
    return as_float(found)


_ONE, _MOST = np.float32(1), np.float32(2.0**127)


def reciprocal(scale):
    """What divides by a scale where it is multiplied; of 0, and of what is nearly so, a number, too."""
    found = _ONE / scale
    return _MOST if found > _MOST else found


# ---- halves ----


def unpack_halves(tensors, scratch, first, last):
    """Put together a piece of the masters."""
    values = scratch + PLACE - 4 * first
    for i in range(first, last):
        put((values,), i, (join(tensors[COLUMN], tensors[UPPER], i),))


def pack_halves(tensors, scratch, first, last, moment):
    """Take a piece of the masters apart."""
    values = scratch + PLACE - 4 * first
    for i in range(first, last):
        divide(tensors[COLUMN], tensors[UPPER], i, get((values,), i)[0])


# ---- in LLVM's terms ----


def _at(builder, address, i, kind):
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [i])


def _number(value: float) -> ir.Constant:
    return ir.Constant(_F32, float(np.float32(value)))


def _float(builder, bits):
    return builder.bitcast(bits, _F32)


def _bits(builder, value):
    return builder.bitcast(value, _I32)


def _magnitude(builder, value):
    return _float(builder, builder.and_(_bits(builder, value), _I32(0x7FFFFFFF)))


def _root(builder, value):
    function = builder.module.declare_intrinsic("llvm.sqrt", [_F32])
    return builder.call(function, [value])


def _decoder(name: str):
    """A function `(codes, i, scale)` -> what code `i` stands for."""

    @intrinsic
    def decode(typing_context, codes, i, scale):
        def generate(context, builder, signature, arguments):
            codes, i, scale = arguments
            code = builder.load(_at(builder, codes, i, _I8))
            if name == "int8":
                code = builder.sext(code, _I32)
                below = builder.ashr(code, _I32(31))
                size = builder.sub(builder.xor(code, below), below)
                bits = builder.add(builder.shl(size, _I32(SHIFT)), _I32(FIRST_BITS))
                part = builder.fsub(_float(builder, bits), _number(FIRST))
                part = builder.fmul(scale, part)
                sign = builder.and_(below, _I32(0x80000000))
                return _float(builder, builder.or_(_bits(builder, part), sign))
            part = builder.sitofp(builder.zext(code, _I32), _F32)
            part = builder.fmul(part, _number(1 / 255))
            part = builder.fmul(part, part)
            return builder.fmul(scale, builder.fmul(part, part))

        return types.float32(types.int64, types.int64, types.float32), generate

    return decode


# Multiples of odd numbers, as whole numbers that overflow, go evenly through all of them. These are the
# fractions of the golden ratio and of its like for two dimensions.
_OF_ELEMENT, _OF_MOMENT, _OF_COLUMN = 0x9E3779B1, 0xC13FA9A9, 0x91E10DA5


def _salter(column: int):
    """A function `(moment)` -> where the sequence of an update's choices begins in this column."""

    @intrinsic
    def salt_of(typing_context, moment):
        def generate(context, builder, signature, arguments):
            now = builder.trunc(arguments[0], _I32)
            begin = _I32(column * _OF_COLUMN & 0xFFFFFFFF)
            return builder.add(builder.mul(now, _I32(_OF_MOMENT)), begin)

        return types.int32(types.int64), generate

    return salt_of


def _encoder(name: str):
    """A function `(codes, i, part, salt)` that stores in code `i` a part of its block's scale.

    It finds the place among codes with bits below the point, and adds bits that come of the element and
    the update: the code is the one below or above, the nearer the more often. Of a NaN, which the scale
    of its block is then, too, it is any.
    """

    @intrinsic
    def encode(typing_context, codes, i, part, salt):
        def generate(context, builder, signature, arguments):
            codes, i, part, salt = arguments
            bits = _bits(builder, part)
            if name == "int8":
                below = SHIFT
                size = builder.fadd(_magnitude(builder, part), _number(FIRST))
                place = builder.sub(_bits(builder, size), _I32(FIRST_BITS))
            else:
                below = 15  # from 256 to 511 that many bits of a float32 are below the point
                root = _root(builder, _root(builder, part))
                root = builder.fadd(builder.fmul(root, _number(255)), _number(256))
                place = builder.sub(_bits(builder, root), _I32(0x43800000))
                least = _smaller(builder, bits, _I32(1 << below))  # 1 where there is anything
                place = builder.select(builder.icmp_signed(">", place, least), place, least)
            choice = builder.mul(builder.trunc(i, _I32), _I32(_OF_ELEMENT))
            choice = builder.lshr(builder.add(choice, salt), _I32(32 - below))
            code = builder.lshr(builder.add(place, choice), _I32(below))
            if name == "int8":
                sign = builder.ashr(bits, _I32(31))
                code = builder.sub(builder.xor(code, sign), sign)
            builder.store(builder.trunc(code, _I8), _at(builder, codes, i, _I8))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int32), generate

    return encode


def _smaller(builder, one, other):
    return builder.select(builder.icmp_signed("<", one, other), one, other)


@intrinsic
def _larger(typing_context, found, values, i):
    """The larger of a magnitude's bits and those of number `i`; those of NaN are the largest."""

    def generate(context, builder, signature, arguments):
        found, values, i = arguments
        bits = builder.load(_at(builder, values, i, _I32))
        bits = builder.and_(bits, _I32(0x7FFFFFFF))
        return builder.select(builder.icmp_signed(">", bits, found), bits, found)

    return types.int32(types.int32, types.int64, types.int64), generate


@intrinsic
def _as_float(typing_context, bits):
    """The number that has these bits."""

    def generate(context, builder, signature, arguments):
        return _float(builder, arguments[0])

    return types.float32(types.int32), generate


@intrinsic
def _join(typing_context, lower, upper, i):
    """Master `i` of its halves.

    The upper half is rounded, so the lower one is what has to be added, with a sign. Where somebody has
    edited the parameter, that may make no sense: with 0 or infinity it gives NaN. It then counts as 0.
    """

    def generate(context, builder, signature, arguments):
        lower, upper, i = arguments
        low = builder.sext(builder.load(_at(builder, lower, i, _I16)), _I32)
        high = builder.zext(builder.load(_at(builder, upper, i, _I16)), _I32)
        high = builder.shl(high, _I32(16))
        whole = _float(builder, builder.add(high, low))
        is_nan = builder.fcmp_unordered("uno", whole, whole)
        return builder.select(is_nan, _float(builder, high), whole)

    return types.float32(types.int64, types.int64, types.int64), generate


@intrinsic
def _part(typing_context, lower, upper, i, value):
    """Store master `i` in its halves; of a NaN the upper one is NaN, too."""

    def generate(context, builder, signature, arguments):
        lower, upper, i, value = arguments
        bits = _bits(builder, value)
        quiet = builder.and_(builder.or_(bits, _I32(0x00400000)), _I32(0xFFFF0000))
        bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, bits)
        high = builder.lshr(builder.add(bits, _I32(0x8000)), _I32(16))
        builder.store(builder.trunc(high, _I16), _at(builder, upper, i, _I16))
        builder.store(builder.trunc(bits, _I16), _at(builder, lower, i, _I16))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


def _seeing(storages: tuple[str, ...], places: dict[int, int], columns: int):
    """A function `(tensors, scratch, first)` -> the addresses where a process sees its columns.

    Elements keep their numbers, so that what follows from these does: unpacked columns begin as far
    before the scratch memory as the piece's `first` element is from the tensor's.
    """
    scaled = scales(storages)
    kept = [*range(len(seen(storages))), *range(len(storages) + scaled, columns)]

    @intrinsic
    def find(typing_context, tensors, scratch, first):
        def generate(context, builder, signature, arguments):
            tensors, scratch, first = arguments
            before = builder.mul(first, _I64(4))
            found = []
            for column in kept:
                if column in places:
                    place = builder.add(scratch, _I64(places[column]))
                    found.append(builder.sub(place, before))
                else:
                    found.append(builder.extract_value(tensors, column))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(types.int64, len(kept))(tensors, types.int64, types.int64), generate

    return find


# ---- all of it ----

_FLOAT32 = {
    "put": storage.writer(("float32",), types.float32),
    "get": storage.reader(("float32",), types.float32),
}


def _of_codes(name: str, column: int, scale: int, place: int) -> tuple[Callable, Callable]:
    """What unpacks and what packs a column of codes."""
    largest = {"larger": _larger, "as_float": _as_float}
    names: dict[str, Any] = {
        **_FLOAT32,
        "COLUMN": column,
        "SCALES": scale,
        "PLACE": place,
        "decode": _decoder(name),
        "encode": _encoder(name),
        "salt_of": _salter(column),
        "read_scale": _FLOAT32["get"],
        "write_scale": _FLOAT32["put"],
        "largest": callable_(specialised(largest_magnitude, "largest_magnitude", largest)),
        "divide": callable_(reciprocal),
        "UNIT": np.float32(UNITS[name]),
    }
    described = f"{name}_{column}_{scale}_{place}"
    return (
        callable_(specialised(unpack_codes, f"unpack_{described}", names)),
        callable_(specialised(pack_codes, f"pack_{described}", names)),
    )


def _of_halves(column: int, place: int) -> tuple[Callable, Callable]:
    """What puts together masters, and what takes them apart."""
    names: dict[str, Any] = {
        **_FLOAT32,
        "COLUMN": column,
        "UPPER": 1,
        "PLACE": place,
        "join": _join,
        "divide": _part,
    }
    described = f"halves_{column}_{place}"
    return (
        callable_(specialised(unpack_halves, f"unpack_{described}", names)),
        callable_(specialised(pack_halves, f"pack_{described}", names)),
    )


def _in_a_row(functions: list[Callable], template: Callable, end: Callable, name: str) -> Callable:
    """One function that calls several."""
    found = callable_(end)
    for place, function in enumerate(reversed(functions)):
        names = {"one": function, "others": found}
        found = callable_(specialised(template, f"{template.__name__}_{place}_{name}", names))
    return found


def around(
    process: Callable,
    storages: tuple[str, ...],
    columns: int,
    nothing: Any,
    together: Callable,
    changes: bool = True,
) -> dict[str, Any]:
    """What `in_pieces` needs for a process, by the names that it has there.

    Args:
        process: the process, callable from a kernel, for the storage types that `seen` gives.
        storages: the storage types of the table's columns.
        columns: how many numbers of a row a kernel reads.
        nothing, together: what a chunk comes to before its first piece, and a function that adds one.
        changes: whether the process changes what it works on. Default: True.
    """
    packed = [column for column, name in enumerate(storages) if name in CODES]
    places = {column: 4 * PIECE * i for i, column in enumerate(packed)}
    made = [
        _of_codes(storages[column], column, len(storages) + i, places[column])
        for i, column in enumerate(packed)
    ]
    if storages[-1] == LOWER:
        places[1] = 4 * PIECE * len(packed)
        made.append(_of_halves(len(storages) - 1, places[1]))
    name = "_".join(storages)
    unpacking = [unpack for unpack, _ in made]
    packing = [pack for _, pack in made] if changes else []
    return {
        "process": process,
        "reserve": lanes.stack(PIECE * len(made) // 2),
        "unpacked": _seeing(storages, places, columns),
        "unpack": _in_a_row(unpacking, unpack_all, nothing_to_unpack, name),
        "pack": _in_a_row(packing, pack_all, nothing_to_pack, name),
        "put_together": together,
        "NOTHING": nothing,
    }
