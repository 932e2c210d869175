"""What is done with the elements of a chunk, and the kernels that do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from .. import lanes, memory, reductions, storage
from ..averaging import averaged
from ..clipping import clipped
from ..compiling import Kept
from ..copies import with_copy
from ..specialise import anew, described, specialised, title
from . import packed
from .working import callable_, kernel

# These names stand in the code below for functions and numbers that `compiled` puts in their place, once
# per rule and storage types (see `specialise`).
rule = read = write = given = numbers_of = add = add_short = stored = read_back = None
wipe = write_zero = reserve = needed = start_lanes = fold = get = put = None
put_line = settle = None
LANES = COUNT = ZEROS = SHORT_ZEROS = NOTHING = SIZE = LINE = None

_SHORT = 512
"""How many elements are measured in the update's own arithmetic before their sum is made a float64: each
of the processor's lanes sees a few of them, and none of these lanes is lost to wider numbers."""


@intrinsic
def scalars_alone(typing_context, tensors, hyper):
    """What a rule takes besides elements: its scalars, which come behind the factor on gradients."""
    rest = types.Tuple((hyper.dtype,) * (hyper.count - 1))

    def generate(context, builder, signature, arguments):
        values = [builder.extract_value(arguments[1], k) for k in range(1, hyper.count)]
        return context.make_tuple(builder, signature.return_type, values)

    return rest(tensors, hyper), generate


def numbers_and_scalars(tensors, hyper):
    """As `scalars_alone`, with the numbers of the tensor before, whose address is behind its own."""
    return numbers_of(tensors[COUNT]) + hyper[1:]


def update(tensors, start, stop, hyper, moment):
    """Apply a rule to a chunk: read gradient, parameter and state, write parameter and state."""
    own = given(tensors, hyper)
    for i in range(start, stop):
        values = read(tensors, i)
        param, state = rule(values[1], values[0] * hyper[0], values[2:], own)
        write(tensors[1:], i, (param,) + state)
        wipe(tensors, i)
    return hyper[0]


def update_at_random(tensors, start, stop, hyper, moment):
    """As `update`, but bfloat16 is rounded at random; the tensors' last number is their key."""
    key = tensors[len(tensors) - 1]
    own = given(tensors, hyper)
    for i in range(start, stop):
        values = read(tensors, i)
        param, state = rule(values[1], values[0] * hyper[0], values[2:], own)
        write(tensors[1:], i, (param,) + state, key, moment)
        wipe(tensors, i)
    return hyper[0]


def update_and_measure(tensors, start, stop, hyper, moment):
    """As `update`; gives the squares of how far parameters moved and of what they were, summed up."""
    own = given(tensors, hyper)
    totals = ZEROS
    first = start
    while first < stop:
        last = min(first + _SHORT, stop)
        short = SHORT_ZEROS
        for i in range(first, last):
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * hyper[0], values[2:], own)
            write(tensors[1:], i, (param,) + state)
            wipe(tensors, i)
            change = stored(tensors, i, param) - values[1]
            short = add_short(short, (change * change, values[1] * values[1]))
        totals = add(totals, short)
        first = last
    return totals


def update_at_random_and_measure(tensors, start, stop, hyper, moment):
    """As `update_at_random`, and as `update_and_measure`."""
    key = tensors[len(tensors) - 1]
    own = given(tensors, hyper)
    totals = ZEROS
    first = start
    while first < stop:
        last = min(first + _SHORT, stop)
        short = SHORT_ZEROS
        for i in range(first, last):
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * hyper[0], values[2:], own)
            write(tensors[1:], i, (param,) + state, key, moment)
            wipe(tensors, i)
            change = stored(tensors, i, param) - values[1]
            short = add_short(short, (change * change, values[1] * values[1]))
        totals = add(totals, short)
        first = last
    return totals


_MEASURING = {update: update_and_measure, update_at_random: update_at_random_and_measure}


@intrinsic
def no_wiping(typing_context, tensors, i):
    """For gradients that stay as they are."""

    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(tensors, i), generate


def wiping(tensors, i):
    """Set an element of the gradient to zero."""
    write_zero(tensors, i, NOTHING)


def as_computed(tensors, i, param):
    """What a parameter is after an update that stores it as it was computed."""
    return param


def as_stored(tensors, i, param):
    """What a parameter is after an update, where it was rounded when it was stored."""
    return read_back(tensors[1:2], i)[0]


def transform(tensors, start, stop, hyper, moment):
    """Replace each element of the first column by what a function of it and the scalars gives."""
    for i in range(start, stop):
        write(tensors, i, (rule(read(tensors, i)[0], hyper),))
    return hyper[0]


def stream_zeros(tensors, start, stop, hyper, moment):
    """Fill the first column with zeros past the cache: memory is then written without being read."""
    first = start
    while first < stop and (tensors[0] + first * SIZE) % LINE != 0:
        write(tensors, first, NOTHING)
        first += 1
    last = first + (stop - first) * SIZE // LINE * LINE // SIZE
    for address in range(tensors[0] + first * SIZE, tensors[0] + last * SIZE, LINE):
        put_line(address)
    for i in range(last, stop):
        write(tensors, i, NOTHING)
    settle()
    return hyper[0]


def reduce(tensors, start, stop, hyper, moment):
    """Reduce the first column of a chunk to one number, in lanes."""
    begin, exponent = hyper
    lanes = reserve()
    width = needed(stop - start)
    start_lanes(lanes, width, begin)
    last = stop - (stop - start) % LANES
    for first in range(start, last, LANES):
        for lane in range(LANES):
            total = get((lanes,), lane)[0]
            put((lanes,), lane, (rule(total, read(tensors, first + lane)[0], exponent),))
    for lane in range(stop - last):
        total = get((lanes,), lane)[0]
        put((lanes,), lane, (rule(total, read(tensors, last + lane)[0], exponent),))
    fold(lanes, width, exponent)
    return get((lanes,), 0)[0]


@Kept
def averaging(rule: Callable) -> Callable:
    """A rule that keeps an average of the parameter, see `averaging.averaged`."""
    return averaged(anew(rule, callable_), callable_)


@Kept
def clipping(rule: Callable) -> Callable:
    """A rule that clips elements of the gradient, see `clipping.clipped`."""
    return clipped(anew(rule, callable_), callable_)


@Kept
def copying(rule: Callable, copy: str, storage_type: str, at_random: bool) -> Callable:
    """A rule that keeps a copy of the parameter in another type, see `copies.with_copy`."""
    edited = storage.edited(storage_type, at_random)
    return with_copy(anew(rule, callable_), copy, edited, callable_)


@Kept
def compiled(
    rule: Callable,
    process: Callable,
    storages: tuple[str, ...],
    arithmetic: str,
    scalars: int,
    scattered: bool = False,
    numbers: int = 0,
    measures: bool = False,
    zeroes: bool = False,
) -> Callable:
    """The kernel that does one of `update`, `update_at_random`, `transform` and `reduce` with a rule.

    Args:
        rule, process: the rule, and which of them.
        storages: the storage type of each column.
        arithmetic: the name of the type in which the rule computes.
        scalars: how many scalars there are, with the factor on gradients.
        scattered, measures, zeroes: see `target.Target.bind`, and `table.Table`.
        numbers: how many numbers of its tensor an update finds behind the columns.
    """
    number = getattr(types, arithmetic)
    columns = len(storages) + packed.scales(storages) + (numbers > 0)
    columns += process is update_at_random
    seen = packed.seen(storages)
    if process is update_at_random:
        write = storage.random_writer(seen[1:], number)
    else:
        write = storage.writer(seen[1:] if process is update else seen[:1], number)
    names = {
        "rule": callable_(anew(rule, callable_)),
        "read": storage.reader(seen, number),
        "write": write,
        "wipe": _wiping(storages[0], arithmetic) if zeroes else no_wiping,
        "given": given_for(numbers, number, len(seen)),
    }
    if process is reduce:
        names |= lanes.functions(1, reductions.COMBINED.get(rule, reductions.added), callable_)
    name = described(rule, storages) + f"_{numbers}_numbers" * (numbers > 0) + storage.variant()
    name += "_zeroing" * zeroes
    what = title(rule, storages)
    totals = 0
    if measures:
        process, totals = _MEASURING[process], 2
        kept: Any = as_computed
        if seen[1] != arithmetic:
            back = {"read_back": storage.reader(seen[1:2], number)}
            kept = specialised(as_stored, f"stored_as_{seen[1]}", back)
        names["stored"] = callable_(kept)
        names["add"] = storage.adder(2, number)
        names["add_short"] = storage.adder(2, number, number, flags=("reassoc",))
        names["ZEROS"] = (0.0, 0.0)
        names["SHORT_ZEROS"] = (np.dtype(arithmetic).type(0),) * 2
    if seen != storages:
        inner = callable_(specialised(process, f"{process.__name__}_{name}", names))
        nothing = names["ZEROS"] if measures else np.dtype(arithmetic).type(0)
        adder = storage.adder(2, types.float64)
        together = adder if measures else callable_(packed.latest)
        names = packed.around(inner, storages, columns, nothing, together)
        name = f"{process.__name__}_{name}"
        process = packed.in_pieces
    return kernel(process, name, what, names, storages, columns, scalars, number, scattered, totals)


def streaming(storage_type: str, arithmetic: str) -> Callable:
    """The kernel that fills a first column with zeros past the cache."""
    number = getattr(types, arithmetic)
    names = {
        "write": storage.writer((storage_type,), number),
        "NOTHING": (np.dtype(arithmetic).type(0),),
        "SIZE": storage.BYTES[storage_type],
        "LINE": memory.LINE,
        "put_line": memory.stream_line_of_zeros,
        "settle": memory.settle_streams,
    }
    what = f"zeros for {storage_type}"
    storages = (storage_type,)
    return kernel(stream_zeros, storage_type, what, names, storages, 1, 1, number, False)


def _wiping(storage_type: str, arithmetic: str) -> Callable:
    """What sets an element of a gradient to zero."""
    names = {
        "write_zero": storage.writer((storage_type,), getattr(types, arithmetic)),
        "NOTHING": (np.dtype(arithmetic).type(0),),
    }
    return callable_(specialised(wiping, f"wiping_{storage_type}", names))


def given_for(numbers: int, number: Any, columns: int) -> Callable:
    """What a rule takes besides elements, with so many numbers of its tensor behind the columns."""
    if not numbers:
        return scalars_alone
    own = {"numbers_of": storage.scalars(numbers, number), "COUNT": columns}
    return callable_(specialised(numbers_and_scalars, f"{numbers}_numbers_after_{columns}", own))
