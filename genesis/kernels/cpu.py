"""Compile a rule for the CPU and launch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numba
import numpy as np
from llvmlite import ir
from numba.core import event, types
from numba.extending import intrinsic

from . import storage, threads
from .specialise import announce, described, keeps_code, specialised

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


# `update` is compiled once per rule and storage types. These names stand in its code for functions
# that `_compiled` puts in their place (see `specialise`).
rule = row_of = scalars_of = read = write = None


def update(addresses, chunks, scalars, claims):
    """Apply the rule to every element of the chunks that this thread can claim.

    `claims` counts chunks claimed and chunks done by all threads of this launch; empty, there is
    one thread and all chunks are its own. Returns the number done by all threads so far if this
    one did any, else 0.
    """
    hyper = scalars_of(scalars)
    alone = len(claims) == 0
    done = 0
    chunk = -1
    while True:
        chunk = chunk + 1 if alone else _fetch_add(claims, 0, 1)
        if chunk >= len(chunks):
            break
        tensors = row_of(addresses, chunks[chunk, 0])
        for i in range(chunks[chunk, 1], chunks[chunk, 2]):
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * hyper[0], values[2:], hyper[1:])
            write(tensors[1:], i, (param,) + state)
        done += 1
    if alone or done == 0:
        return done
    return _fetch_add(claims, 1, done) + done


def data_pointers(objects, addresses):
    """Look up where the arrays with these `id`s have their data."""
    for i in range(len(objects)):
        addresses[i] = _data_pointer(objects[i])


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The address of each array's first element, int64.

    NumPy's own ways to ask for it take 1 us an array, this one 0.05 us.
    """
    found = np.empty(len(arrays), np.int64)
    objects = np.fromiter(map(id, arrays), np.int64, len(arrays))
    _compiled_data_pointers()(objects, found)
    return found


def bind(
    rule: Callable, table: Table, scalars: np.ndarray, stream: None = None
) -> Callable[[], object]:
    """A function of no arguments that applies `rule` to a table, with the scalars then in force."""
    kernel = _compiled(rule, table.storages, len(scalars))
    arguments = table.addresses, table.chunks, scalars
    if table.bytes_moved < threads.MINIMUM_BYTES:
        return partial(kernel, *arguments, np.empty(0, np.int64))
    return partial(threads.run, kernel, arguments, len(table.chunks), table.bytes_moved)


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


@lru_cache(maxsize=None)
def _compiled(rule: Callable, storages: tuple[str, ...], scalars: int) -> Callable:
    number = storage.arithmetic(storages[1])
    names = {
        "rule": numba.njit(error_model="numpy")(rule),
        "row_of": storage.addresses(len(storages)),
        "scalars_of": storage.scalars(scalars),
        "read": storage.reader(storages, number),
        "write": storage.writer(storages[1:], number),
    }
    vector = types.Array(number, 1, "C")
    signature = types.int64(_int64_matrix, _int64_matrix, vector, _int64_vector)
    return _compile(specialised(update, described(rule, storages), names, rule), signature)


@lru_cache(maxsize=None)
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


def _compile(function: Callable, signature: types.Type) -> Callable:
    dispatcher = numba.njit(nogil=True, error_model="numpy", cache=keeps_code())(function)
    with event.install_listener("numba:compile", _Announcer()):
        # The entry point for this one signature: calling it spares the look at argument types.
        return dispatcher.compile(signature)
