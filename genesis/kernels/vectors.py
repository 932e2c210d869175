"""Sums over long vectors, and the two loops of L-BFGS, in as few passes over memory as there can be.

Each step of the loops adds a multiple of one vector and then needs the product with another, from which
the next multiple follows. Both are one pass here, which reads the vector that is worked on once, and two
of the history, which come from memory side by side. Products are summed by chunks of a fixed size, and
those in their order, so they do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import types

from ..commit import commit
from . import cpu, pointers, storage
from .compiling import once
from .cpu.working import INNER, Bound, compiled_worker
from .specialise import specialised
from .table import cut

ADD, MULTIPLY, BOTH = range(3)

# These names stand for what `_compiled` puts in their place.
read = write = narrow = None


def sum_of(vector, other, i, factor):
    """An element of a vector, plus a multiple of another's."""
    return read((vector,), i)[0] + read((other,), i)[0] * factor


def added(vector, other, start, stop, factor):
    """Add a multiple of another vector to a piece of one."""
    for i in range(start, stop):
        write((vector,), i, (sum_of(vector, other, i, factor),))


def multiplied(vector, other, start, stop):
    """The product of pieces of two vectors."""
    total = narrow(0.0)
    for i in range(start, stop):
        total += read((vector,), i)[0] * read((other,), i)[0]
    return total


def added_and_multiplied(vector, other, another, start, stop, factor):
    """Both, with one more vector for the product."""
    total = narrow(0.0)
    for i in range(start, stop):
        value = sum_of(vector, other, i, factor)
        write((vector,), i, (value,))
        total += value * read((another,), i)[0]
    return total


def one_piece(vectors, start, stop, hyper, moment):
    """What a chunk consists of: a piece of the vectors."""
    if moment == ADD:
        added(vectors[0], vectors[1], start, stop, hyper[0])
        return 0.0
    if moment == MULTIPLY:
        return np.float64(multiplied(vectors[0], vectors[2], start, stop))
    return np.float64(
        added_and_multiplied(vectors[0], vectors[1], vectors[2], start, stop, hyper[0])
    )


class Working:
    """A vector that multiples of others are added to, and that is multiplied by others.

    Args:
        vector: float32 or float64, contiguous, as all others.
    """

    def __init__(self, vector: np.ndarray):
        self._held = vector  # kernels see addresses only
        self.addresses = np.zeros((1, 3), np.int64)
        self.addresses[0, 0] = pointers.addresses([vector])[0]
        self.chunks = cut([vector.size], cpu.CHUNK)
        self._scalars = np.zeros(1, vector.dtype)
        self._moments = np.zeros(1, np.int64)
        self._results = np.zeros(len(self.chunks))
        kernel = _compiled(vector.dtype.name)
        self._bound = [
            Bound(kernel, self, self._scalars, passes * vector.nbytes, self._moments, self._results)
            for passes in (3, 2, 4)
        ]

    def add(self, factor: float, other: np.ndarray) -> None:
        """Add a multiple of another vector."""
        self._run(ADD, factor, other, other)

    def times(self, other: np.ndarray) -> float:
        """The product with another vector."""
        return self._run(MULTIPLY, 0.0, other, other)

    def add_and_multiply(self, factor: float, other: np.ndarray, another: np.ndarray) -> float:
        """Add a multiple of another vector; the product with one more."""
        return self._run(BOTH, factor, other, another)

    def _run(self, moment: int, factor: float, other: np.ndarray, another: np.ndarray) -> float:
        self.addresses[0, 1:] = pointers.addresses((other, another))
        self._moments[0] = moment
        self._scalars[0] = factor
        commit(self._bound[moment].actions())
        return float(sum(self._results.tolist()))


@once
def _compiled(name: str) -> Callable:
    """The kernel for vectors of a data type."""
    number = getattr(types, name)
    names: dict[str, Any] = {
        "narrow": getattr(np, name),
        "read": storage.reader((name,), number),
        "write": storage.writer((name,), number),
    }

    def add(*functions: Callable, **options: Any) -> None:
        for function in functions:
            named = specialised(function, f"{function.__name__}_{name}", names)
            names[function.__name__] = numba.njit(error_model="numpy", **options, **INNER)(named)

    add(sum_of, added)
    add(multiplied, added_and_multiplied, fastmath={"reassoc", "contract"})
    add(one_piece)
    what = f"L-BFGS' sums of {name}"
    scalars_of = storage.scalars(1, number)
    return compiled_worker(f"vectors_{name}", what, names["one_piece"], storage.row(3), scalars_of)
