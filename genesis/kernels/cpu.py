"""Compile a rule for the CPU and launch it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..commit import assign, commit
from . import lanes, reductions, storage, threads
from .averaging import averaged
from .clipping import clipped
from .compiling import Kept
from .copies import with_copy
from .memory import counted, fetch_add, prefetch, put_float, word
from .specialise import anew, compile_function, described, specialised, title
from .summing import of_columns, whole, within

if TYPE_CHECKING:
    from .combining import OfAll
    from .sums import Summing, Sums
    from .table import Table

CHUNK = 16384
"""Elements in a chunk. At 28 bytes an element a chunk is 10 to 25 microseconds of work: little enough
to share out evenly, enough to make the cost of claiming it vanish."""


_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


@intrinsic
def _yield(typing_context):
    """Let another thread have this core, if one waits for it."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), generate


# These names stand in the code below for functions that `_compiled` puts in their place, once per
# rule and storage types (see `specialise`).
rule = row_of = scalars_of = read = write = process = announce_chunk = sizes = keep = None
given = add = clip = totals_of = numbers_of = write_numbers = None
begin = finish = carry = kept_of = all_of = write_kept = write_totals = None
reserve = needed = start_lanes = fold = get = put = LANES = None
stored = read_back = add_short = SHORT_ZEROS = None
wipe = write_zero = NOTHING = None
TOTALS = NUMBERS = STATES = COUNT = ZEROS = SLOTS = KEPT = NOW = None

_SHORT = 512
"""How many elements are measured in the update's own arithmetic before their sum is made a float64: each
of the processor's lanes sees a few of them, and none of these lanes is lost to wider numbers."""

_AHEAD = 4
_AT_ONCE, _SHARES = 8, 16
_PATIENCE = 1000

# A kernel gets the address of a record of numbers and nothing else, since a call from Python takes
# 0.05 us more for each array among its arguments. These are the places of numbers in it.
(
    ADDRESSES,  # where the table has its rows
    ROW_SIZE,  # how many bytes a row takes
    CHUNKS,  # where its chunks are, of which each is a tensor, a start and a stop
    CHUNK_COUNT,
    SCALARS,
    MOMENT,  # where the number of the update is
    RESULTS,  # where to put what each chunk came to, a float64; 0: nobody asks
    CLAIMS,  # where counters are of chunks claimed, of chunks done, and whether the caller is at work;
    # 0: there is one thread and all chunks are its own
    FIRST_CLAIM,  # these counters, in the record of a launch that several threads share
    SECOND_CLAIM,
    THIRD_CLAIM,
    NUMBERS_AT,  # where the numbers of rows are to be put
    ROWS,  # how many rows there are
    SIZES,  # where their numbers of elements are
    KEPT_AT,  # where the numbers kept for rows are
    OF_ALL,  # where the numbers of all tensors are
    RECORD_SIZE,
) = range(17)

_Record = ctypes.c_int64 * RECORD_SIZE  # its address is found in a tenth of the time of an array's


@numba.njit
def row_address(record, row):
    """Where a row of the table is: it may be longer than what a kernel reads of it."""
    return word(record + 8 * ADDRESSES) + row * word(record + 8 * ROW_SIZE)


def work(record, helping):
    """Process all chunks that this thread can claim, and then wait for those of other threads.

    Only while the calling thread is in here do helpers find chunks: they never write when it has
    left, and it cannot be made to leave before all chunks are done.

    Returns the number of chunks that this thread has done.
    """
    chunks = word(record + 8 * CHUNKS)
    count = word(record + 8 * CHUNK_COUNT)
    results = word(record + 8 * RESULTS)
    claims = word(record + 8 * CLAIMS)
    if helping:
        patience = _PATIENCE
        while counted(claims + 16) == 0:  # the caller is about to begin, or was interrupted
            patience -= 1
            if patience == 0:
                return 0
            _yield()
    elif claims != 0:
        fetch_add(claims + 16, 1)
    hyper = scalars_of(word(record + 8 * SCALARS))
    moment = word(word(record + 8 * MOMENT))
    done = 0
    first = 0
    last = count
    while True:
        if claims != 0:
            # Several at once while many are left, since the counter's way from core to core takes as
            # long as a small chunk does; one by one in the end, so that all end together.
            amount = max(1, min(_AT_ONCE, (count - counted(claims)) // _SHARES))
            first = fetch_add(claims, amount)
            last = min(first + amount, count)
        for chunk in range(first, last):
            place = chunks + 24 * chunk
            announce_chunk(record, chunk + _AHEAD)
            tensors = row_of(row_address(record, word(place)))
            result = process(tensors, word(place + 8), word(place + 16), hyper, moment)
            if results != 0:
                keep(results, chunk, result)
            done += 1
        if claims == 0 or first >= count:
            break
    if claims != 0:
        fetch_add(claims + 8, done)
        while not helping and counted(claims + 8) < count:
            _yield()
    return done


def keep_number(results, chunk, result):
    """Keep what a chunk came to."""
    put_float(results + 8 * chunk, result)


def keep_totals(results, chunk, result):
    """Keep the sums of a chunk."""
    write_numbers(results + 8 * TOTALS * chunk, result)


def no_chunk(record, chunk):
    """For tables in which what comes next in a chunk comes next in memory."""


def coming_chunk(record, chunk):
    """Fetch into the cache the beginning of a chunk whose turn is soon.

    Where each chunk is a short row somewhere in a large tensor, waiting for memory is most of the
    work, and the processor does not look far enough ahead.
    """
    if chunk < word(record + 8 * CHUNK_COUNT):
        place = word(record + 8 * CHUNKS) + 24 * chunk
        tensors = row_of(row_address(record, word(place)))
        start = word(place + 8)
        length = min(word(place + 16) - start, 128)
        for column in range(len(sizes)):
            first = tensors[column] + start * sizes[column]
            for address in range(first, first + length * sizes[column], 64):
                prefetch(address)


def scalars_alone(tensors, hyper):
    """What a rule takes besides elements: its scalars, which come behind the factor on gradients."""
    return hyper[1:]


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


def no_wiping(tensors, i):
    """For gradients that stay as they are."""


def wiping(tensors, i):
    """Set an element of the gradient to zero."""
    write_zero(tensors, i, NOTHING)


def as_computed(tensors, i, param):
    """What a parameter is after an update that stores it as it was computed."""
    return param


def as_stored(tensors, i, param):
    """What a parameter is after an update, where it was rounded when it was stored."""
    return read_back(tensors[1:2], i)[0]


def sum_up(tensors, start, stop, hyper, moment):
    """Sum up, over a chunk, what a rule needs to know of its tensor, and of all, in lanes."""
    own = given(tensors, hyper)
    lanes = reserve()
    width = needed(stop - start)
    start_lanes(lanes, width, 0.0)
    last = stop - (stop - start) % LANES
    for first in range(start, last, LANES):
        for lane in range(LANES):
            values = read(tensors, first + lane)
            gradient = clip(values[0] * hyper[0], hyper)
            add(lanes, lane, rule(values[1], gradient, values[2:], own))
    for lane in range(stop - last):
        values = read(tensors, last + lane)
        gradient = clip(values[0] * hyper[0], hyper)
        add(lanes, lane, rule(values[1], gradient, values[2:], own))
    fold(lanes, width, 0.0)
    return totals_of(lanes)


def begin_rows(record):
    """For each row find the numbers that what is summed makes use of.

    `record` is as for `finish_rows`.
    """
    numbers, kept = word(record + 8 * NUMBERS_AT), word(record + 8 * KEPT_AT)
    hyper = scalars_of(word(record + 8 * SCALARS))[1:]
    now = all_of(word(record + 8 * OF_ALL) + NOW)
    for row in range(word(record + 8 * ROWS)):
        size = float(word(word(record + 8 * SIZES) + 8 * row))
        known = kept_of(kept + row * KEPT) + now
        write_numbers(numbers + row * SLOTS, begin(known, size, hyper))
    return 0


def finish_rows(record):
    """For each row put together what its chunks came to, and find the numbers for its update.

    `record` is as that of the pass that has summed up, with wide scalars and with more at its end.
    """
    chunks, count = word(record + 8 * CHUNKS), word(record + 8 * CHUNK_COUNT)
    results, numbers = word(record + 8 * RESULTS), word(record + 8 * NUMBERS_AT)
    kept = word(record + 8 * KEPT_AT)
    hyper = scalars_of(word(record + 8 * SCALARS))[1:]
    of_all = all_of(word(record + 8 * OF_ALL))
    chunk = 0
    for row in range(word(record + 8 * ROWS)):
        totals = ZEROS
        while chunk < count and word(chunks + 24 * chunk) == row:
            totals = add(totals, totals_of(results + 8 * TOTALS * chunk))
            chunk += 1
        size = float(word(word(record + 8 * SIZES) + 8 * row))
        known = totals + kept_of(kept + row * KEPT) + of_all
        found = finish(known, size, hyper)
        write_numbers(numbers + row * SLOTS, found[:NUMBERS])
        write_kept(kept + row * KEPT, found[NUMBERS:])
    return 0


def combine(pieces, count, of_all, scalars):
    """Put together sums over all tensors, and find what becomes of the numbers that are kept for all.

    Args:
        pieces, count: where the sums of each tensor are, see `target.SummedUpdate.pieces`, and how many
            tensors there are.
        of_all: where the numbers of all are, see `combining.OfAll`.
        scalars: where the number of all elements is, and the scalars of `carry`.
    """
    totals = ZEROS
    for i in range(count):
        own = ZEROS
        address = word(pieces + 32 * i)
        for _ in range(word(pieces + 32 * i + 8)):
            own = add(own, totals_of(address))
            address += word(pieces + 32 * i + 16)
        totals = add(totals, own)
    hyper = scalars_of(scalars)
    before = kept_of(of_all + NOW)
    write_totals(of_all, totals + hyper[:1] + before)
    write_kept(of_all + NOW, carry(totals + hyper[:1] + before, hyper[1:]))
    return 0


def nothing_to_carry(known, hyper):
    """Where no numbers are kept for all."""
    return ()


def transform(tensors, start, stop, hyper, moment):
    """Replace each element of the first column by what a function of it and the scalars gives."""
    for i in range(start, stop):
        write(tensors, i, (rule(read(tensors, i)[0], hyper),))
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


class Bound:
    """A kernel and what it works on, with the scalars that are in force when it is called."""

    def __init__(
        self,
        kernel: Callable,
        table: Table,
        scalars: np.ndarray,
        bytes_moved: int,
        moments: np.ndarray | None = None,
        results: np.ndarray | None = None,
    ):
        self._kernel = kernel
        self._chunks, self._bytes_moved = len(table.chunks), bytes_moved
        moments = np.zeros(1, np.int64) if moments is None else moments
        self._kept = table.addresses, table.chunks, scalars, moments, results
        self._record = _Record()
        self._record[CHUNK_COUNT] = len(table.chunks)
        self._record[ROW_SIZE] = table.addresses.strides[0]
        for place, array in zip((ADDRESSES, CHUNKS, SCALARS, MOMENT, RESULTS), self._kept):
            if array is not None:
                self._record[place] = array.ctypes.data
        self._alone = [self._call(self._record)]

    @property
    def steady(self) -> bool:
        """Whether the calls are always the same: those of larger work count who helps."""
        return self._bytes_moved < threads.MINIMUM_BYTES

    def actions(self) -> list[partial]:
        """The calls that do the work, to be made one after another, without Python between them."""
        if self._bytes_moved < threads.MINIMUM_BYTES:
            return self._alone
        helpers = threads.helpers(self._chunks, self._bytes_moved)
        if not helpers:
            return self._alone
        # A record of its own for each launch, since a helper that comes late still looks at it.
        record = _Record.from_buffer_copy(self._record)
        record[CLAIMS] = ctypes.addressof(record) + 8 * FIRST_CLAIM
        job = self._call(record, helping=True)
        return [*threads.calls(job, helpers), self._call(record)]

    def measured(self) -> np.ndarray:
        """See `target.Update`."""
        results = self._kept[-1]
        assert results is not None
        return results

    def _call(self, record: ctypes.Array, *, helping: bool = False) -> partial:
        """A call of the kernel, which keeps alive what the kernel knows by its address alone."""
        call = partial(self._kernel, ctypes.addressof(record), helping)
        call.kept = record, self._kept  # type: ignore[attr-defined]
        return call


class Summed:
    """A rule that needs to know sums: a pass that finds them, and then the update."""

    def __init__(
        self,
        summing: Summing,
        table: Table,
        scalars: np.ndarray,
        has_masters: bool,
        at_random: bool,
        clips: bool,
        update: Bound,
    ):
        sums = summing.sums
        arithmetic, count = scalars.dtype.name, len(scalars)
        master = table.storages[-1] if has_masters else None
        self._results = results = np.zeros((len(table.chunks), max(1, sums.summed)))
        read = sum(table.bytes_of_column[: 2 + sums.states])
        self._sum_up: Bound | None = None
        if sums.summed:
            own = sums.states, sums.early + sums.scalars
            summand = _summand(sums.summand, *own, master, at_random)
            kernel = _summing(
                summand, table.storages, arithmetic, count, sums.summed, clips, sums.early
            )
            self._sum_up = Bound(kernel, table, scalars, read, results=results)
        self._update, self._sums = update, sums
        self._rows = np.searchsorted(table.chunks[:, 0], np.arange(len(table.sizes) + 1))
        # A record as that of the pass, with what else there is to know of its table.
        record = _Record()
        sizes = np.array(table.sizes, np.int64)
        kept, record[KEPT_AT] = summing.kept
        record[CHUNKS], record[CHUNK_COUNT] = table.chunks.ctypes.data, len(table.chunks)
        record[RESULTS], record[SCALARS] = results.ctypes.data, summing.scalars.ctypes.data
        record[NUMBERS_AT], record[ROWS] = table.numbers.ctypes.data, len(sizes)
        record[SIZES] = sizes.ctypes.data
        if summing.of_all is not None:
            record[OF_ALL] = summing.of_all.address
        held = record, table, sizes, kept, summing
        self._begin = None if sums.begin is None else self._call(_beginning, sums.begin, held)
        self._finish = self._call(_finishing, sums.finish, held)

    def _call(self, compiled: Callable, function: Callable, held: tuple) -> partial:
        """The call that goes through the rows, with all that it knows by its address."""
        table, sums = held[1], self._sums
        shape = sums.scalars, sums.summed, sums.totals, sums.numbers, sums.early, sums.kept
        call = partial(
            compiled(
                function,
                table.arithmetic,
                shape,
                sums.known_of_all,
                sums.kept_of_all,
            ),
            ctypes.addressof(held[0]),
        )
        call.kept = held  # type: ignore[attr-defined]
        return call

    @property
    def steady(self) -> bool:
        return self._update.steady and (self._sum_up is None or self._sum_up.steady)

    def pieces(self) -> np.ndarray:
        """See `target.SummedUpdate`."""
        stride = self._results.strides[0]
        found = np.empty((len(self._rows) - 1, 4), np.int64)
        found[:, 0] = self._results.ctypes.data + self._rows[:-1] * stride + 8 * self._sums.totals
        found[:, 1] = np.diff(self._rows)
        found[:, 2:] = stride, 8
        return found

    def summing(self) -> list[partial]:
        calls = [] if self._begin is None else [self._begin]
        return calls if self._sum_up is None else [*calls, *self._sum_up.actions()]

    def updating(self) -> list[partial]:
        return [self._finish, *self._update.actions()]

    def actions(self) -> list[partial]:
        """The calls that do the work, see `Bound`."""
        return [*self.summing(), *self.updating()]

    def measured(self) -> np.ndarray:
        """See `target.Update`."""
        return self._update.measured()


def bind(
    rule: Callable,
    table: Table,
    scalars: np.ndarray,
    *,
    copy: str | None = None,
    averages: bool = False,
    clips: bool = False,
    moments: np.ndarray | None = None,
    sums: Summing | None = None,
    measures: bool = False,
    zeroes: bool = False,
) -> Bound | Summed:
    """See `target.Target`, as for the functions below."""
    if averages:
        rule = _averaged(rule)
    if clips:
        rule = _clipped(rule)
    if copy:
        rule = _with_copy(rule, copy, table.storages[-1], moments is not None)
    process = update if moments is None else update_at_random
    arithmetic, count = scalars.dtype.name, len(scalars)
    numbers = 0 if sums is None else sums.sums.numbers
    kernel = _compiled(
        rule, process, table.storages, arithmetic, count, table.scattered, numbers, measures, zeroes
    )
    results = np.zeros((len(table.chunks), 2)) if measures else None
    moved = table.bytes_moved + table.bytes_of_column[0] * zeroes
    bound = Bound(kernel, table, scalars, moved, moments, results)
    if sums is None:
        return bound
    return Summed(sums, table, scalars, copy == "master", moments is not None, clips, bound)


def bind_combination(pieces: np.ndarray, sums: Sums, of_all: OfAll, scalars: np.ndarray) -> partial:
    carry = nothing_to_carry if sums.carry is None else sums.carry
    shape = sums.totals_of_all, sums.kept_of_all, sums.scalars_of_all
    addresses = pieces.ctypes.data, len(pieces), of_all.address, scalars.ctypes.data
    call = partial(_combining(carry, *shape), *addresses)
    call.kept = pieces, of_all, scalars  # type: ignore[attr-defined]
    return call


def numbers(values: np.ndarray, device: str, stream: Any) -> tuple[Any, int]:
    found = values.copy()
    return found, found.ctypes.data


def bind_transform(
    function: Callable, table: Table, scalars: np.ndarray
) -> Callable[[], list[partial]]:
    kernel = _compiled(function, transform, table.storages, scalars.dtype.name, len(scalars))
    return Bound(kernel, table, scalars, 2 * table.bytes_of_column[0]).actions


def bind_reduction(
    reduction: Callable, table: Table, start: float, exponent: float
) -> Callable[[], np.ndarray]:
    results = np.empty(len(table.chunks))
    kernel = _compiled(reduction, reduce, table.storages, "float64", 2)
    scalars = np.array([start, exponent])
    bound = Bound(kernel, table, scalars, table.bytes_of_column[0], results=results)

    def reduced() -> np.ndarray:
        commit(bound.actions())
        return results

    return reduced


bind_clip = None  # sums are in the memory of the host, which finds the factor in no time


def stream_numbered(number: int) -> None:
    return None


def copying(target: np.ndarray, source: np.ndarray, stream: None = None) -> partial:
    return assign(target, source)


INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options for what only kernels call: entry points for others would be a part of each compilation."""


def _callable(function: Callable, like: Any = None) -> Callable:
    """A function as kernels can call it; a copy of a jitted one is compiled as that was."""
    if like is None:
        return numba.njit(error_model="numpy", **INNER)(function)
    return type(like)(function, like.locals, like.targetoptions)


@Kept
def _averaged(rule: Callable) -> Callable:
    return averaged(anew(rule, _callable), _callable)


@Kept
def _clipped(rule: Callable) -> Callable:
    return clipped(anew(rule, _callable), _callable)


@Kept
def _with_copy(rule: Callable, copy: str, storage_type: str, at_random: bool) -> Callable:
    edited = storage.edited(storage_type, at_random)
    return with_copy(anew(rule, _callable), copy, edited, _callable)


@Kept
def _compiled(
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
    number = getattr(types, arithmetic)
    columns = len(storages) + (numbers > 0) + (process is update_at_random)
    if process is update_at_random:
        write = storage.random_writer(storages[1:], number)
    else:
        write = storage.writer(storages[1:] if process is update else storages[:1], number)
    names = {
        "rule": _callable(anew(rule, _callable)),
        "read": storage.reader(storages, number),
        "write": write,
        "wipe": _wiping(storages[0], arithmetic) if zeroes else _callable(no_wiping),
        "given": _given(numbers, number, len(storages)),
    }
    if process is reduce:
        names |= lanes.functions(1, reductions.COMBINED.get(rule, reductions.added), _callable)
    name = described(rule, storages) + f"_{numbers}_numbers" * (numbers > 0) + storage.variant()
    name += "_zeroing" * zeroes
    what = title(rule, storages)
    totals = 0
    if measures:
        process, totals = _MEASURING[process], 2
        kept: Any = as_computed
        if storages[1] != arithmetic:
            back = {"read_back": storage.reader(storages[1:2], number)}
            kept = specialised(as_stored, f"stored_as_{storages[1]}", back)
        names["stored"] = _callable(kept)
        names["add"] = storage.adder(2, number)
        names["add_short"] = storage.adder(2, number, number, flags=("reassoc",))
        names["ZEROS"] = (0.0, 0.0)
        names["SHORT_ZEROS"] = (np.dtype(arithmetic).type(0),) * 2
    return _working(
        process, name, what, names, storages, columns, scalars, number, scattered, totals
    )


def _wiping(storage_type: str, arithmetic: str) -> Callable:
    """What sets an element of a gradient to zero."""
    names = {
        "write_zero": storage.writer((storage_type,), getattr(types, arithmetic)),
        "NOTHING": (np.dtype(arithmetic).type(0),),
    }
    return _callable(specialised(wiping, f"wiping_{storage_type}", names))


@Kept
def _summand(
    function: Callable, states: int, scalars: int, master: str | None, at_random: bool
) -> Callable:
    edited = None if master is None else storage.edited(master, at_random)
    return of_columns(anew(function, _callable), states, scalars, edited, _callable)


@Kept
def _summing(
    summand: Callable,
    storages: tuple[str, ...],
    arithmetic: str,
    scalars: int,
    totals: int,
    clips: bool,
    early: int,
) -> Callable:
    """The kernel that sums up, with `summand` as `of_columns` makes it, which takes `early` numbers."""
    number = getattr(types, arithmetic)
    names = {
        "rule": _callable(anew(summand, _callable)),
        "read": storage.reader(storages, number),
        "add": lanes.adder(totals, number),
        "totals_of": lanes.found(totals),
        "clip": _callable(within if clips else whole),
        "given": _given(early, number, len(storages)),
        **lanes.functions(totals, reductions.added, _callable),
    }
    name = described(summand, storages) + storage.variant() + "_clipped" * clips
    columns = len(storages) + (early > 0)
    what = f"sums of {title(summand, storages)}"
    return _working(sum_up, name, what, names, storages, columns, scalars, number, False, totals)


@Kept
def _beginning(
    begin: Callable, arithmetic: str, shape: tuple[int, ...], known_of_all: int, kept_of_all: int
) -> Callable:
    """The function that finds, for each row, the numbers that what is summed makes use of."""
    scalars, _, _, numbers, early, kept = shape
    number = getattr(types, arithmetic)
    names = {
        "begin": _callable(anew(begin, _callable)),
        "scalars_of": storage.scalars(1 + scalars, types.float64),
        "kept_of": storage.scalars(kept, types.float64),
        "all_of": storage.scalars(kept_of_all, types.float64),
        "write_numbers": storage.numbers_writer(early, number),
        "SLOTS": max(numbers, early) * np.dtype(arithmetic).itemsize,
        "KEPT": 8 * kept,
        "NOW": 8 * known_of_all,
    }
    name = f"{begin.__name__}_{arithmetic}_before_{numbers}"
    function = specialised(begin_rows, name, names)
    what = f"{begin.__name__}, tensor by tensor, before sums"
    return compile_function(function, types.int64(types.int64), what=what)


@Kept
def _finishing(
    finish: Callable, arithmetic: str, shape: tuple[int, ...], known_of_all: int, kept_of_all: int
) -> Callable:
    """The function that makes numbers of each row of what has been summed up."""
    scalars, summed, totals, numbers, early, kept = shape
    number = getattr(types, arithmetic)
    names = {
        "finish": _callable(anew(finish, _callable)),
        "scalars_of": storage.scalars(1 + scalars, types.float64),
        "totals_of": storage.scalars(totals, types.float64),
        "kept_of": storage.scalars(kept, types.float64),
        "all_of": storage.scalars(known_of_all, types.float64),
        "add": storage.adder(totals, types.float64),
        "write_numbers": storage.numbers_writer(numbers, number),
        "write_kept": storage.numbers_writer(kept, types.float64),
        "ZEROS": (0.0,) * totals,
        "TOTALS": max(1, summed),
        "NUMBERS": numbers,
        "SLOTS": max(numbers, early) * np.dtype(arithmetic).itemsize,
        "KEPT": 8 * kept,
    }
    name = f"{finish.__name__}_{arithmetic}_of_{summed}_to_{numbers}"
    function = specialised(finish_rows, name, names)
    what = f"{finish.__name__}, tensor by tensor"
    return compile_function(function, types.int64(types.int64), what=what)


@Kept
def _combining(carry: Callable, totals: int, kept: int, scalars: int) -> Callable:
    """The function that puts together sums over all tensors."""
    known = totals + 1 + kept
    names = {
        "carry": _callable(anew(carry, _callable)),
        "totals_of": storage.scalars(totals, types.float64),
        # Without flags: pieces lie closer to each other or farther, and this must not tell in the bits.
        "add": storage.adder(totals, types.float64),
        "kept_of": storage.scalars(kept, types.float64),
        "scalars_of": storage.scalars(1 + scalars, types.float64),
        "write_totals": storage.numbers_writer(known, types.float64),
        "write_kept": storage.numbers_writer(kept, types.float64),
        "ZEROS": (0.0,) * totals,
        "NOW": 8 * known,
    }
    function = specialised(combine, f"{carry.__name__}_of_{totals}_and_{kept}", names)
    what = f"{carry.__name__}, of all tensors"
    return compile_function(function, types.int64(*[types.int64] * 4), what=what)


def _given(numbers: int, number: Any, columns: int) -> Callable:
    """What a rule takes besides elements, with so many numbers of its tensor behind the columns."""
    if not numbers:
        return _callable(scalars_alone)
    own = {"numbers_of": storage.scalars(numbers, number), "COUNT": columns}
    return _callable(specialised(numbers_and_scalars, f"{numbers}_numbers_after_{columns}", own))


def _working(
    process: Callable,
    name: str,
    what: str,
    names: dict[str, Any],
    storages: tuple[str, ...],
    columns: int,
    scalars: int,
    number: Any,
    scattered: bool,
    totals: int = 0,
) -> Callable:
    """A kernel that lets threads `process` chunks, with what stands for `names` in that."""
    keep = keep_number
    if totals:
        stored = {"write_numbers": storage.numbers_writer(totals, types.float64), "TOTALS": totals}
        keep = specialised(keep_totals, f"keep_{totals}_totals", stored)
    names = {
        "process": _callable(specialised(process, f"{process.__name__}_{name}", names)),
        "row_of": storage.row(columns),
        "scalars_of": storage.scalars(scalars, number),
        "keep": _callable(keep),
        "sizes": tuple(storage.BYTES[name] for name in storages),
    }
    coming = coming_chunk if scattered else no_chunk
    name = f"{coming.__name__}_{name}"
    names["announce_chunk"] = _callable(specialised(coming, name, names))
    function = specialised(work, f"{process.__name__}_{name}", names)
    signature = types.int64(types.int64, types.boolean)
    return compile_function(function, signature, what=what)
