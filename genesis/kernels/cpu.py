"""Compile a rule for the CPU and launch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import event, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from . import storage, threads
from .cache import keep_code
from .compiling import Kept, once
from .specialise import anew, announce, described, specialised, with_copy

if TYPE_CHECKING:
    from .table import Table

CHUNK = 16384
"""Elements in a chunk. At 28 bytes an element a chunk is 10 to 25 microseconds of work: little enough
to share out evenly, enough to make the cost of claiming it vanish."""


@intrinsic
def _fetch_add(typing_context, counters, index, amount):
    """Add to a counter that other threads add to as well; returns what it was before."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.atomic_rmw("add", place, arguments[2], "acq_rel")

    return types.int64(counters, index, amount), generate


@intrinsic
def _data_pointer(typing_context, array_object):
    """The data pointer in an ndarray object: its first field after the object's header."""

    def generate(context, builder, signature, arguments):
        field = builder.add(arguments[0], ir.Constant(ir.IntType(64), object.__basicsize__))
        return builder.load(builder.inttoptr(field, ir.IntType(64).as_pointer()))

    return types.int64(array_object), generate


@intrinsic
def _prefetch(typing_context, address):
    """Ask for the cache line at an address, without waiting for it."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        # not for writing alone, to be kept in all caches, data
        builder.call(function, [pointer, flag(1), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# These names stand in the code below for functions that `_compiled` puts in their place, once per
# rule and storage types (see `specialise`).
rule = row_of = scalars_of = read = write = process = announce_chunk = sizes = None

_AHEAD = 4
_AT_ONCE, _SHARES = 8, 16


def work(addresses, chunks, scalars, results, claims):
    """Process all chunks that this thread can claim.

    `claims` counts chunks claimed and chunks done by all threads of this launch; empty, there is
    one thread and all chunks are its own. `results` takes what each chunk came to; empty, nobody
    asks. Returns the number of chunks done by all threads so far if this one did any, else 0.
    """
    hyper = scalars_of(scalars)
    alone = len(claims) == 0
    done = 0
    first = 0
    last = len(chunks)
    while True:
        if not alone:
            # Several at once while many are left, since the counter's way from core to core takes as
            # long as a small chunk does; one by one in the end, so that all end together.
            amount = max(1, min(_AT_ONCE, (len(chunks) - claims[0]) // _SHARES))
            first = _fetch_add(claims, 0, amount)
            last = min(first + amount, len(chunks))
        for chunk in range(first, last):
            announce_chunk(addresses, chunks, chunk + _AHEAD)
            tensors = row_of(addresses, chunks[chunk, 0])
            result = process(tensors, chunks[chunk, 1], chunks[chunk, 2], hyper)
            if len(results) > 0:
                results[chunk] = result
            done += 1
        if alone or first >= len(chunks):
            break
    if alone or done == 0:
        return done
    return _fetch_add(claims, 1, done) + done


def no_chunk(addresses, chunks, chunk):
    """For tables in which what comes next in a chunk comes next in memory."""


def coming_chunk(addresses, chunks, chunk):
    """Fetch into the cache the beginning of a chunk whose turn is soon.

    Where each chunk is a short row somewhere in a large tensor, waiting for memory is most of the
    work, and the processor does not look far enough ahead.
    """
    if chunk < len(chunks):
        tensors = row_of(addresses, chunks[chunk, 0])
        start = chunks[chunk, 1]
        count = min(chunks[chunk, 2] - start, 128)
        for column in range(len(sizes)):
            first = tensors[column] + start * sizes[column]
            for address in range(first, first + count * sizes[column], 64):
                _prefetch(address)


def update(tensors, start, stop, hyper):
    """Apply a rule to a chunk: read gradient, parameter and state, write parameter and state."""
    for i in range(start, stop):
        values = read(tensors, i)
        param, state = rule(values[1], values[0] * hyper[0], values[2:], hyper[1:])
        write(tensors[1:], i, (param,) + state)
    return hyper[0]


def update_at_random(tensors, start, stop, hyper):
    """As `update`, but bfloat16 is rounded at random; the tensors' last number is their key."""
    key = tensors[len(tensors) - 1]
    moment = int(hyper[1])
    for i in range(start, stop):
        values = read(tensors[:-1], i)
        param, state = rule(values[1], values[0] * hyper[0], values[2:], hyper[2:])
        write(tensors[1:-1], i, (param,) + state, key, moment)
    return hyper[0]


def transform(tensors, start, stop, hyper):
    """Replace each element of the first column by what a function of it and the scalars gives."""
    for i in range(start, stop):
        write(tensors, i, (rule(read(tensors, i)[0], hyper),))
    return hyper[0]


def reduce(tensors, start, stop, hyper):
    """Reduce the first column of a chunk to one number."""
    total, exponent = hyper
    for i in range(start, stop):
        total = rule(total, read(tensors, i)[0], exponent)
    return total


def data_pointers(objects, addresses):
    """Look up where the arrays with these `id`s have their data."""
    for i in range(len(objects)):
        addresses[i] = _data_pointer(objects[i])


def rows_found(indices, largest, pattern, size, addresses, chunks, rows, places):
    """Fill a table with the different rows that `indices` names, none larger than `largest`.

    Each column of `pattern` says where the rows of a tensor begin, how far apart they are, and
    whether the tensor holds just these rows. The first is that of the gradients. `rows` is filled
    with the numbers of the rows in ascending order, `places` with an order that sorts the indices
    and, for each index in this order, its place among the rows. Returns how many rows there are.
    """
    # A radix sort, digit by digit from the lowest: equal indices keep their order, and random ones
    # take a tenth of the time that comparisons would.
    digit = 11
    keys, other_keys = indices.copy(), np.empty_like(indices)
    order, other_order = np.arange(len(indices)), np.empty_like(indices)
    ends = np.empty(1 << digit, np.int64)
    shift = 0
    while largest >> shift > 0:
        ends[:] = 0
        for i in range(len(keys)):
            ends[keys[i] >> shift & (1 << digit) - 1] += 1
        total = 0
        for value in range(len(ends)):
            total += ends[value]
            ends[value] = total
        for i in range(len(keys) - 1, -1, -1):
            value = keys[i] >> shift & (1 << digit) - 1
            ends[value] -= 1
            other_keys[ends[value]] = keys[i]
            other_order[ends[value]] = order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
        shift += digit
    places[0] = order
    last = -1
    count = 0
    for i in range(len(keys)):
        index = keys[i]
        if index != last:
            last = index
            for column in range(pattern.shape[1]):
                number = count if pattern[2, column] else index if column else order[i]
                addresses[count, column] = pattern[0, column] + number * pattern[1, column]
            chunks[count, 0] = count
            chunks[count, 1] = 0
            chunks[count, 2] = size
            rows[count] = index
            count += 1
        places[1, i] = count - 1
    return count


def find_rows(*arguments) -> int:
    """See `rows_found`."""
    return _compiled_rows_found()(*arguments)


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The address of each array's first element, int64.

    NumPy's own ways to ask for it take 1 us an array, this one 0.05 us.
    """
    found = np.empty(len(arrays), np.int64)
    objects = np.fromiter(map(id, arrays), np.int64, len(arrays))
    _compiled_data_pointers()(objects, found)
    return found


def bind(
    rule: Callable,
    table: Table,
    scalars: np.ndarray,
    stream: None = None,
    *,
    with_copy: bool = False,
    at_random: bool = False,
) -> Callable[[], object]:
    """A function of no arguments that applies `rule` to a table, with the scalars then in force.

    Args:
        rule: the rule.
        table: the table; with `at_random` it has keys.
        scalars: the factor on gradients, with `at_random` the number of the update, and the rule's
            scalars.
        stream: None, since there are no streams here.
        with_copy: the table's last column is to hold a copy of the parameter.
        at_random: round what is stored as bfloat16 at random.
    """
    if with_copy:
        rule = _with_copy(rule)
    process = update_at_random if at_random else update
    arithmetic, count = scalars.dtype.name, len(scalars)
    kernel = _compiled(rule, process, table.storages, arithmetic, count, table.scattered)
    return _call(kernel, table, scalars, np.empty(0), table.bytes_moved)


def bind_transform(
    function: Callable, table: Table, scalars: np.ndarray, stream: None = None
) -> Callable[[], object]:
    """A function of no arguments that replaces each element `x` by `function(x, scalars)`."""
    kernel = _compiled(function, transform, table.storages, scalars.dtype.name, len(scalars))
    return _call(kernel, table, scalars, np.empty(0), 2 * table.bytes_of_column[0])


def bind_reduction(
    reduction: Callable, table: Table, start: float, exponent: float, stream: None = None
) -> Callable[[], np.ndarray]:
    """A function of no arguments that reduces a table's first column, chunk by chunk, to float64."""
    results = np.empty(len(table.chunks))
    kernel = _compiled(reduction, reduce, table.storages, "float64", 2)
    call = _call(kernel, table, np.array([start, exponent]), results, table.bytes_of_column[0])

    def reduced() -> np.ndarray:
        call()
        return results

    return reduced


def _call(
    kernel: Callable, table: Table, scalars: np.ndarray, results: np.ndarray, bytes_moved: int
) -> Callable[[], object]:
    arguments = table.addresses, table.chunks, scalars, results
    if bytes_moved < threads.MINIMUM_BYTES:
        return partial(kernel, *arguments, np.empty(0, np.int64))
    return partial(threads.run, kernel, arguments, len(table.chunks), bytes_moved)


def copy(target: np.ndarray, source: np.ndarray, stream: None = None) -> None:
    """Copy between arrays of any strides."""
    np.copyto(target, source)


class _Announcer(event.Listener):
    def on_start(self, _) -> None:
        announce()

    def on_end(self, _) -> None:
        pass


_int64_vector = types.Array(types.int64, 1, "C")
_int64_matrix = types.Array(types.int64, 2, "C")


# What a kernel does with a chunk, and whether a float may be reordered while it is done: only a sum
# gains from that, and its order is fixed all the same once it is compiled.
_FASTMATH = {
    update: False,
    update_at_random: False,
    transform: False,
    reduce: {"reassoc", "contract"},
}


def _callable(function: Callable, like: Any = None, **options: Any) -> Callable:
    """A function as kernels can call it; a copy of a jitted one is compiled as that was."""
    if like is None:
        return numba.njit(**{"error_model": "numpy", **options})(function)
    return type(like)(function, like.locals, like.targetoptions)


@Kept
def _with_copy(rule: Callable) -> Callable:
    return with_copy(anew(rule, _callable), _callable)


@Kept
def _compiled(
    rule: Callable,
    process: Callable,
    storages: tuple[str, ...],
    arithmetic: str,
    scalars: int,
    scattered: bool = False,
) -> Callable:
    number = getattr(types, arithmetic)
    options = {"error_model": "numpy", "fastmath": _FASTMATH[process]}
    columns = len(storages) + (process is update_at_random)
    if process is update_at_random:
        write = storage.random_writer(storages[1:], number)
    else:
        write = storage.writer(storages[1:] if process is update else storages[:1], number)
    names = {
        "rule": numba.njit(**options)(anew(rule, partial(_callable, **options))),
        "read": storage.reader(storages, number),
        "write": write,
    }
    name = described(rule, storages) + storage.variant()
    names = {
        "process": numba.njit(**options)(specialised(process, f"{process.__name__}_{name}", names)),
        "row_of": storage.addresses(columns),
        "scalars_of": storage.scalars(scalars),
        "sizes": tuple(storage.BYTES[name] for name in storages),
    }
    coming = coming_chunk if scattered else no_chunk
    name = f"{coming.__name__}_{name}"
    names["announce_chunk"] = numba.njit(**options)(specialised(coming, name, names))
    vector = types.Array(number, 1, "C")
    results = types.Array(types.float64, 1, "C")
    signature = types.int64(_int64_matrix, _int64_matrix, vector, results, _int64_vector)
    function = specialised(work, f"{process.__name__}_{name}", names)
    return _compile(function, signature)


@once
def _compiled_data_pointers() -> Callable:
    signature = types.void(_int64_vector, _int64_vector)
    compiled = _compile(specialised(data_pointers, "data_pointers", {}), signature)
    probe = np.zeros(1)
    found = np.empty(1, np.int64)
    compiled(np.array([id(probe)]), found)
    if found[0] != probe.ctypes.data:
        raise RuntimeError(
            f"NumPy {np.__version__} keeps an array's data pointer where genesis does not look "
            "for it: please report this, with your versions of Python and NumPy"
        )
    return compiled


@once
def _compiled_rows_found() -> Callable:
    vector, matrix, number = _int64_vector, _int64_matrix, types.int64
    read_only = types.Array(number, 1, "C", readonly=True)
    signature = number(read_only, number, matrix, number, matrix, matrix, vector, matrix)
    return _compile(specialised(rows_found, "rows_found", {}), signature)


def _compile(function: Callable, signature: Any) -> Callable:
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    keep_code(dispatcher, FunctionCache)
    with event.install_listener("numba:compile", _Announcer()):
        # The entry point for this one signature: calling it spares the look at argument types.
        return dispatcher.compile(signature)
