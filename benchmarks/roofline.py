"""The physical limit: how fast this machine moves the streams that an update must move.

The kernels here do next to nothing with the numbers, but read and write as many streams as a rule
does. They share no code with genesis: Numba's own `prange` cuts the work.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

_OPTIONS = {"parallel": True, "error_model": "numpy", "cache": True}


@numba.njit(**_OPTIONS)
def _one(g, p):
    for i in numba.prange(len(g)):
        p[i] += g[i]


@numba.njit(**_OPTIONS)
def _two(g, p, a):
    for i in numba.prange(len(g)):
        a[i] += g[i]
        p[i] += a[i]


@numba.njit(**_OPTIONS)
def _three(g, p, a, b):
    for i in numba.prange(len(g)):
        a[i] += g[i]
        b[i] += g[i]
        p[i] += a[i] + b[i]


@numba.njit(**_OPTIONS)
def _four(g, p, a, b, c):
    for i in numba.prange(len(g)):
        a[i] += g[i]
        b[i] += g[i]
        c[i] += g[i]
        p[i] += a[i] + b[i] + c[i]


_KERNELS = [_one, _two, _three, _four]


def roofline(elements: int, state_buffers: int) -> Callable[[], None]:
    """A function that reads a gradient, and reads and writes a parameter and its state, float32.

    Args:
        elements: the number of parameters.
        state_buffers: how many state buffers the rule keeps for each, 0 to 3.
    """
    kernel = _KERNELS[state_buffers]
    arrays = [np.full(elements, 1e-3, np.float32) for _ in range(2 + state_buffers)]
    return lambda: kernel(*arrays)
