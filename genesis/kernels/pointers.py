"""Where arrays have their data, looked up for many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba.core import types

from .compiling import once
from .memory import word
from .specialise import compile_function, specialised

DATA = object.__basicsize__
"""Where an ndarray object has its data pointer: it is the first field after the object's header."""


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The address of each array's first element, int64; on a GPU too, given the arrays' views.

    NumPy's own ways to ask for it take 1 us an array, this one 0.05 us.
    """
    found = np.empty(len(arrays), np.int64)
    objects = np.fromiter(map(id, arrays), np.int64, len(arrays))
    _compiled_data_pointers()(objects, found)
    return found


def data_pointers(objects, found):
    """Look up where the arrays with these `id`s have their data."""
    for i in range(len(objects)):
        found[i] = word(objects[i] + DATA)


@once
def _compiled_data_pointers() -> Callable:
    vector = types.Array(types.int64, 1, "C")
    template = specialised(data_pointers, "data_pointers", {})
    compiled = compile_function(template, types.void(vector, vector))
    probe = np.zeros(1)
    found = np.empty(1, np.int64)
    compiled(np.array([id(probe)]), found)
    if found[0] != probe.ctypes.data:
        raise RuntimeError(
            f"NumPy {np.__version__} keeps an array's data pointer where genesis does not look "
            "for it: please report this, with your versions of Python and NumPy"
        )
    return compiled
