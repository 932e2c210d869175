"""Kernels that let threads share out the chunks of a table, and what launches them.

What is done with a chunk is a function of its own (`process`), compiled into the kernel by Numba. All
around it is written in words, see `words`.
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
from ..memory import put_float
from ..specialise import compile_function, specialised
from ..words import I32, I64, Code, Condition, Word, calling

if TYPE_CHECKING:
    from ..table import Table

_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


_AHEAD = 4
_AT_ONCE, _SHARES = 8, 4  # at most so many chunks, and of those left at most one in 2 ** 4
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


def _counted(code, counter):
    """What a counter is now, and with it all that other threads did before they counted."""
    return Word(code, code.builder.load_atomic(counter.pointer(I64), "acquire", 8))


def _count(code, counter, amount):
    """Add to a counter that other threads add to as well; returns what it was."""
    amount = code.word(amount).ir
    return Word(code, code.builder.atomic_rmw("add", counter.pointer(I64), amount, "acq_rel"))


def _yield(code):
    """Let another thread have this core, if one waits for it."""
    kind = ir.FunctionType(I32, [])
    code.builder.call(cgutils.get_or_insert_function(code.builder.module, kind, _YIELD), [])


def _row_address(record, row):
    """Where a row of the table is: it may be longer than what a kernel reads of it."""
    return record[8 * ADDRESSES] + row * record[8 * ROW_SIZE]


def _fetch(code, record, chunk, sizes):
    """Fetch into the cache the beginning of a chunk whose turn is soon.

    Where each chunk is a short row somewhere in a large tensor, waiting for memory is most of the
    work, and the processor does not look far enough ahead.
    """
    with code.when(chunk < record[8 * CHUNK_COUNT]):
        place = record[8 * CHUNKS] + 24 * chunk
        row, start = _row_address(record, place[0]), place[8]
        length = code.smaller(place[16] - start, 128)
        for column, size in enumerate(sizes):
            first = row[8 * column] + start * size
            with code.each(first + length * size, start=first, step=64) as address:
                code.prefetch(address)


def worker(
    process: Callable,
    row_of: Callable,
    scalars_of: Callable,
    totals: int = 0,
    sizes: tuple[int, ...] = (),
) -> Callable:
    """A function `(record, helping)` -> how many chunks this thread has done, for templates to call.

    It processes all chunks that this thread can claim, and then waits for those of other threads. Only
    while the calling thread is in there do helpers find chunks: they never write when it has left, and
    it cannot be made to leave before all chunks are done.

    Args:
        process: what is done with a chunk, `(tensors, start, stop, scalars, moment)` -> what it came to.
        row_of: from the address of a row of the table to the tensors.
        scalars_of: from the address of the scalars to these.
        totals: how many sums a chunk comes to. Default: 0, it comes to one number.
        sizes: bytes of an element of each column, where chunks are short and far from each other.
            Default: none, what comes next in a chunk comes next in memory.
    """
    keep = storage.numbers_writer(totals, types.float64) if totals else put_float

    @intrinsic
    def work(typing_context, record, helping):
        number = types.int64
        rows, tensors_of = calling(typing_context, row_of, number)
        scalars, read_scalars = calling(typing_context, scalars_of, number)
        found, call = calling(typing_context, process, rows, number, number, scalars, number)
        _, store = calling(typing_context, keep, number, found)
        mode, own_mode_of = calling(typing_context, floating_mode)
        _, set_mode = calling(typing_context, set_floating_mode, mode)

        def generate(context, builder, signature, arguments):
            code = Code(builder)
            record, helping = Word(code, arguments[0]), Condition(code, arguments[1])
            chunks, count = record[8 * CHUNKS], record[8 * CHUNK_COUNT]
            results, claims = record[8 * RESULTS], record[8 * CLAIMS]
            done, own_mode, ready = code.variable(0), code.variable(0), code.variable(1)
            with code.when(helping):
                # The caller is about to begin, or was interrupted.
                patience = code.variable(_PATIENCE)
                with code.repeat(lambda: (_counted(code, claims + 16) == 0) & (patience.value > 0)):
                    patience.value -= 1
                    _yield(code)
                ready.value = patience.value > 0
                with code.when(patience.value > 0):
                    own_mode.value = Word(code, own_mode_of(context, builder))
                    set_mode(context, builder, record[8 * MODE].ir)
            with code.unless(code.word(helping)), code.when(claims):
                record[8 * MODE] = Word(code, own_mode_of(context, builder))
                _count(code, claims + 16, 1)
            with code.when(ready.value):
                hyper = read_scalars(context, builder, record[8 * SCALARS].ir)
                moment = record[8 * MOMENT][0]
                first, last = code.variable(0), code.variable(count)
                more = code.variable(1)
                with code.repeat(lambda: more.value != 0):
                    with code.when(claims):
                        # Several at once while many are left, since the counter's way from core to core
                        # takes as long as a small chunk does; one by one in the end, so that all end
                        # together.
                        share = (count - _counted(code, claims)) >> _SHARES
                        amount = code.larger(code.smaller(share, _AT_ONCE), 1)
                        first.value = _count(code, claims, amount)
                        last.value = code.smaller(first.value + amount, count)
                    with code.each(last.value, start=first.value) as chunk:
                        place = chunks + 24 * chunk
                        if sizes:
                            _fetch(code, record, chunk + _AHEAD, sizes)
                        tensors = tensors_of(context, builder, _row_address(record, place[0]).ir)
                        extent = place[8].ir, place[16].ir
                        result = call(context, builder, tensors, *extent, hyper, moment.ir)
                        with code.when(results):
                            at = results + 8 * max(1, totals) * chunk
                            store(context, builder, at.ir, result)
                        done.value += 1
                    more.value = (claims != 0) & (first.value < count)
                with code.when(claims):
                    _count(code, claims + 8, done.value)
                    awaited = code.choice(helping, 0, count)
                    with code.repeat(lambda: _counted(code, claims + 8) < awaited):
                        _yield(code)
                with code.when(helping):
                    set_mode(context, builder, own_mode.value.ir)
            return done.value.ir

        return number(number, types.boolean), generate

    return work


work: Any = None  # stands in the code below for what `worker` makes


def _worked(record, helping):
    return work(record, helping)


def compiled_worker(name: str, what: str, process: Callable, *others: Any) -> Callable:
    """A kernel that lets threads share out chunks, see `worker`; `what` it is, for people."""
    function = specialised(_worked, name, {"work": worker(process, *others)})
    return compile_function(function, types.int64(types.int64, types.boolean), what=what)


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
    process_name = f"{process.__name__}_{name}"
    sizes = tuple(storage.SIZES[name] for name in storages) if scattered else ()
    row_of, scalars_of = storage.row(columns), storage.scalars(scalars, number)
    process = callable_(specialised(process, process_name, names))
    return compiled_worker(process_name, what, process, row_of, scalars_of, totals, sizes)
