"""Kernels that let threads share out the chunks of a table, and what launches them.

What is done with a chunk is a function of its own (`process`), compiled into the kernel.
"""

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

from .. import storage, threads
from ..floating import floating_mode, set_floating_mode
from ..memory import counted, fetch_add, prefetch, put, put_float, word
from ..specialise import compile_function, specialised

if TYPE_CHECKING:
    from ..table import Table

_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


@intrinsic
def _yield(typing_context):
    """Let another thread have this core, if one waits for it."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), generate


# These names stand in the code below for functions that `kernel` puts in their place, once per rule and
# storage types (see `specialise`).
row_of = scalars_of = process = announce_chunk = sizes = keep = write_numbers = None
TOTALS = None

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
    MODE,  # how the calling thread computes, see `floating`: helpers are to do as it does
    RECORD_SIZE,
) = range(18)


Record = ctypes.c_int64 * RECORD_SIZE  # its address is found in a tenth of the time of an array's


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
    own_mode = 0
    if helping:
        patience = _PATIENCE
        while counted(claims + 16) == 0:  # the caller is about to begin, or was interrupted
            patience -= 1
            if patience == 0:
                return 0
            _yield()
        own_mode = floating_mode()
        set_floating_mode(word(record + 8 * MODE))
    elif claims != 0:
        put(record + 8 * MODE, floating_mode())
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
    if helping:
        set_floating_mode(own_mode)
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
        self._record = Record()
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
        record = Record.from_buffer_copy(self._record)
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


INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options for what only kernels call: entry points for others would be a part of each compilation."""


def callable_(function: Callable, like: Any = None) -> Callable:
    """A function as kernels can call it; a copy of a jitted one is compiled as that was."""
    if like is None:
        return numba.njit(error_model="numpy", **INNER)(function)
    return type(like)(function, like.locals, like.targetoptions)


def kernel(
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
        "process": callable_(specialised(process, f"{process.__name__}_{name}", names)),
        "row_of": storage.row(columns),
        "scalars_of": storage.scalars(scalars, number),
        "keep": callable_(keep),
        "sizes": tuple(storage.BYTES[name] for name in storages),
    }
    coming = coming_chunk if scattered else no_chunk
    name = f"{coming.__name__}_{name}"
    names["announce_chunk"] = callable_(specialised(coming, name, names))
    function = specialised(work, f"{process.__name__}_{name}", names)
    signature = types.int64(types.int64, types.boolean)
    return compile_function(function, signature, what=what)
