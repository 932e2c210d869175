"""What `storage` makes, in plain Python, for numba's CUDA simulator.

The simulator runs kernels as Python functions, so it cannot run LLVM code. The functions here have
the same names and do the same things at the same addresses; alignment is respected, so that the
simulator takes the same path through a kernel as a GPU.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import lru_cache
from types import FunctionType

import ml_dtypes
import numpy as np

from . import functions
from .storage import BYTES, GLOBAL, VECTOR, arithmetic, lanes

__all__ = [
    "BYTES", "GLOBAL", "VECTOR", "adder", "addresses", "arithmetic", "device_function", "edited",
    "first_aligned", "lane_updater", "lanes", "numbers_writer", "part", "reader", "scalars",
    "share_arrays", "writer",
]  # fmt: skip

_TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


# What rules find in `math`: where Python raises an error, a GPU gives NaN or infinity.
_MATH = functions.like_math()


@lru_cache(maxsize=None)
def device_function(function):
    """The function with a GPU's arithmetic: in the type of its arguments, and without errors."""
    names = {**function.__globals__, "math": _MATH}
    quiet = FunctionType(function.__code__, names, function.__name__, None, function.__closure__)

    def call(*arguments):
        with np.errstate(all="ignore"):
            return quiet(*arguments)

    return call


_allocating = threading.Lock()


def _shared_array(self, shape, dtype):
    """The array that the threads of a block share, by the line that asks for it."""
    caller = sys._getframe(1)
    line = caller.f_code.co_filename, caller.f_lineno
    with _allocating:
        found = self._allocations.get(line)
        if found is None:
            found = self._allocations[line] = np.empty(shape, dtype.name)
    return found


def share_arrays():
    """Have the simulator give the threads of a block one and the same shared array.

    Its own looks for an array and makes a missing one in two steps, between which another thread can
    do so too: then each has its own, and a sum over both counts what nobody wrote.
    """
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    FakeCUDAShared.array = _shared_array  # type: ignore[method-assign]


def _memory(address, i, dtype, count=1):
    found = _TYPES.get(dtype) or np.dtype(dtype)
    data = (ctypes.c_char * (count * found.itemsize)).from_address(
        int(address) + int(i) * found.itemsize
    )
    return np.frombuffer(data, found)


@lru_cache(maxsize=None)
def addresses(columns):
    return lambda table, row: tuple(int(table[row, column]) for column in range(columns))


@lru_cache(maxsize=None)
def scalars(count, number, space=GLOBAL):
    return lambda address: tuple(_memory(address, 0, number.name, count).tolist())


@lru_cache(maxsize=None)
def numbers_writer(count, number, space=GLOBAL):
    def write_numbers(address, values):
        with np.errstate(all="ignore"):
            _memory(address, 0, number.name, count)[:] = values

    return write_numbers


@lru_cache(maxsize=None)
def part(count, number):
    return lambda array, i: tuple(array[i * count + k] for k in range(count))


@lru_cache(maxsize=None)
def adder(count, number, total, flags=()):
    kind = np.dtype(total.name).type
    return lambda totals, values: tuple(t + kind(v) for t, v in zip(totals, values))


@lru_cache(maxsize=None)
def reader(dtypes, number, space=GLOBAL):
    kind = np.dtype(number.name).type

    def read(tensors, i):
        return tuple(kind(_memory(address, i, dtype)[0]) for address, dtype in zip(tensors, dtypes))

    return read


@lru_cache(maxsize=None)
def writer(dtypes, number, space=GLOBAL):
    def write(tensors, i, values):
        with np.errstate(all="ignore"):
            for address, dtype, value in zip(tensors, dtypes, values):
                _memory(address, i, dtype)[0] = value

    return write


@lru_cache(maxsize=None)
def edited(dtype, at_random, space=GLOBAL):
    kind = _TYPES.get(dtype) or np.dtype(dtype)

    def differs(number, stored):
        with np.errstate(all="ignore"):
            kept = np.float32(kind.type(number))
        return kept.view(np.uint32) != np.float32(stored).view(np.uint32)

    return differs


@lru_cache(maxsize=None)
def first_aligned(dtypes):
    def find(tensors, start, stop):
        for first in range(start, min(start + VECTOR, stop)):
            fits = all(
                (address + first * BYTES[dtype]) % VECTOR == 0
                for address, dtype in zip(tensors, dtypes)
            )
            if fits and first + lanes(dtypes) <= stop:
                return first
        return stop

    return find


@lru_cache(maxsize=None)
def lane_updater(rule, dtypes, number, space=GLOBAL, measures=False):
    width = lanes(dtypes)
    kind = np.dtype(number.name).type

    def update_lanes(tensors, i, scale, hyper):
        for address, dtype in zip(tensors, dtypes):
            if (address + i * BYTES[dtype]) % VECTOR:
                raise RuntimeError("a vector of elements that is not aligned")
        columns = [_memory(a, i, dtype, width) for a, dtype in zip(tensors, dtypes)]
        sums = kind(0), kind(0)
        with np.errstate(all="ignore"):
            for lane in range(width):
                grad, param, *state = (kind(column[lane]) for column in columns)
                param, state = rule(param, grad * scale, tuple(state), hyper)
                before = kind(columns[1][lane])
                for column, value in zip(columns[1:], (param, *state)):
                    column[lane] = value
                change = kind(columns[1][lane]) - before
                sums = sums[0] + change * change, sums[1] + before * before
        return sums if measures else None

    return update_lanes
