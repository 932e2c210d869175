"""Sums over a tensor, or over all, for rules that need to know them, and what becomes of them.

A pass sums up chunk by chunk, a function of each tensor makes numbers of what its chunks came to, and
the update finds these behind the tensor's row.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numba.core import types

from .. import lanes, reductions, storage
from ..compiling import Kept
from ..memory import word
from ..specialise import anew, compile_function, described, specialised, title
from ..summing import of_columns, whole, within
from . import packed
from .updating import given_for
from .working import (
    CHUNK_COUNT,
    CHUNKS,
    KEPT_AT,
    NUMBERS_AT,
    OF_ALL,
    RESULTS,
    ROWS,
    SCALARS,
    SIZES,
    Bound,
    Record,
    callable_,
    kernel,
)

if TYPE_CHECKING:
    from ..sums import Summing
    from ..table import Table

# These names stand in the code below for functions and numbers that are put in their place (see
# `specialise`).
rule = read = given = add = clip = scalars_of = totals_of = write_numbers = None
begin = finish = carry = kept_of = all_of = write_kept = write_totals = None
reserve = needed = start_lanes = fold = None
TOTALS = NUMBERS = ZEROS = SLOTS = KEPT = NOW = LANES = None


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
        record = Record()
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


@Kept
def _summand(
    function: Callable, states: int, scalars: int, master: str | None, at_random: bool
) -> Callable:
    edited = None if master is None else storage.edited(master, at_random)
    return of_columns(anew(function, callable_), states, scalars, edited, callable_)


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
    seen = packed.seen(storages)
    names = {
        "rule": callable_(anew(summand, callable_)),
        "read": storage.reader(seen, number),
        "add": lanes.adder(totals, number),
        "totals_of": lanes.found(totals),
        "clip": callable_(within if clips else whole),
        "given": given_for(early, number, len(seen)),
        **lanes.functions(totals, reductions.added, callable_),
    }
    name = described(summand, storages) + storage.variant() + "_clipped" * clips
    columns = len(storages) + packed.scales(storages) + (early > 0)
    what = f"sums of {title(summand, storages)}"
    process = sum_up
    if seen != storages:
        inner = callable_(specialised(sum_up, f"sum_up_{name}", names))
        together = storage.adder(totals, types.float64)
        nothing = (0.0,) * totals
        names = packed.around(inner, storages, columns, nothing, together, changes=False)
        process = packed.in_pieces
    return kernel(process, name, what, names, storages, columns, scalars, number, False, totals)


@Kept
def _beginning(
    begin: Callable, arithmetic: str, shape: tuple[int, ...], known_of_all: int, kept_of_all: int
) -> Callable:
    """The function that finds, for each row, the numbers that what is summed makes use of."""
    scalars, _, _, numbers, early, kept = shape
    number = getattr(types, arithmetic)
    names = {
        "begin": callable_(anew(begin, callable_)),
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
        "finish": callable_(anew(finish, callable_)),
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
def combining(carry: Callable, totals: int, kept: int, scalars: int) -> Callable:
    """The function that puts together sums over all tensors."""
    known = totals + 1 + kept
    names = {
        "carry": callable_(anew(carry, callable_)),
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
