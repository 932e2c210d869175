"""Where arrays have their data, looked up for many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numba.core import types

from . import ids
from .compiling import once
from .memory import word
from .specialise import compile_function, specialised

DATA = object.__basicsize__
"""Where an ndarray object has its data pointer: it is the first field after the object's header."""


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The address of each array's first element, int64; on a GPU too, given the arrays' views.

    NumPy's own ways to ask for it take 1 us an array, this one 0.05 us.
    """
    places = ids(arrays)
    _compiled_data_pointers()(places)
    return places


def data_pointers(places):
    """Put where they have their data in the place of the `id`s of arrays."""
    for i in range(len(places)):
        places[i] = word(places[i] + DATA)


@once
def _compiled_data_pointers() -> Callable:
    signature = types.void(types.Array(types.int64, 1, "C"))
    compiled = compile_function(specialised(data_pointers, "data_pointers", {}), signature)
    probe = np.zeros(1)
    places = np.array([id(probe)])
    compiled(places)
    if places[0] != probe.ctypes.data:
        raise RuntimeError(
            f"NumPy {np.__version__} keeps an array's data pointer where genesis does not look "
            "for it: please report this, with your versions of Python and NumPy"
        )
    return compiled
