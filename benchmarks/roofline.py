"""The physical limit: how fast this machine moves the streams that an update must move.

Kernels that read a gradient, and read and write a parameter and its state, and do next to nothing
with the numbers. Two of them, and the faster one of a run is the limit:

- `prange`: Numba's own parallel loop over flat arrays of its own. It shares no code with genesis, and
  suffers no borders between tensors.
- `table`: a rule of one multiplication a number, which leaves all as it is, launched as genesis
  launches any rule, on the very arrays that the optimizer works on. So pages, caches and alignment
  are the same, and a start-up that suits short runs better than OpenMP's does not push genesis
  beyond "the limit".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numba
import numpy as np

from genesis import kernels

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


@numba.njit(**_OPTIONS)
def _five(g, p, a, b, c, d):
    for i in numba.prange(len(g)):
        a[i] += g[i]
        b[i] += g[i]
        c[i] += g[i]
        d[i] += g[i]
        p[i] += a[i] + b[i] + c[i] + d[i]


@numba.njit(**{**_OPTIONS, "fastmath": {"reassoc", "contract"}})
def _norm(g):
    total = np.float32(0)
    for i in numba.prange(len(g)):
        total += g[i] * g[i]
    return total


@numba.njit(**_OPTIONS)
def _scale(g, factor):
    for i in numba.prange(len(g)):
        g[i] *= factor


@numba.njit(**_OPTIONS)
def _zero(g):
    for i in numba.prange(len(g)):
        g[i] = 0


@numba.njit(**_OPTIONS)
def _three_and_zero(g, p, a, b):
    for i in numba.prange(len(g)):
        a[i] += g[i]
        b[i] += g[i]
        p[i] += a[i] + b[i]
        g[i] = 0


_STEPS = [_one, _two, _three, _four, _five]
_ERASING = {2: _three_and_zero}
# With a factor that compilers do not know: to multiply by 1 they would leave out.
_PASSES = {"norm": _norm, "scale": lambda g: _scale(g, np.float32(1.0)), "zero": _zero}


def prange(
    elements: int, state_buffers: int, passes: Sequence[str] = ("step",)
) -> Callable[[], None]:
    """A function that moves the streams of a float32 rule, on arrays of its own.

    Args:
        elements: the number of parameters.
        state_buffers: how many state buffers the rule keeps for each, 0 to 4.
        passes: which passes over memory the work takes: "step", or "step, zero" for one that writes
            gradients as well (with 2 state buffers), and over gradients "norm" (read), "scale" (read
            and write) and "zero" (write).
    """
    steps = {"step": _STEPS[state_buffers], "step, zero": _ERASING.get(state_buffers)}
    columns = 2 + state_buffers if steps.keys() & set(passes) else 1
    arrays = [np.full(elements, 1e-9, np.float32) for _ in range(columns)]

    def run() -> None:
        for name in passes:
            if name in steps:
                steps[name](*arrays)
            else:
                _PASSES[name](arrays[0])

    return run


# Rules that leave everything as it is, given 1 and 0.


def _unchanged_0(param, grad, state, hyper):
    one, zero = hyper
    return param * one + grad * zero, state


def _unchanged_1(param, grad, state, hyper):
    (a,) = state
    one, zero = hyper
    return param * one + grad * zero, (a * one,)


def _unchanged_2(param, grad, state, hyper):
    a, b = state
    one, zero = hyper
    return param * one + grad * zero, (a * one, b * one)


def _unchanged_3(param, grad, state, hyper):
    a, b, c = state
    one, zero = hyper
    return param * one + grad * zero, (a * one, b * one, c * one)


def _unchanged_4(param, grad, state, hyper):
    a, b, c, d = state
    one, zero = hyper
    return param * one + grad * zero, (a * one, b * one, c * one, d * one)


_RULES = [_unchanged_0, _unchanged_1, _unchanged_2, _unchanged_3, _unchanged_4]


def table(columns: Sequence[Sequence[np.ndarray]]) -> Callable[[], object]:
    """A function that moves the streams of a rule, on the rule's own arrays, which stay as they are.

    Args:
        columns: gradients, parameters, and each of up to 4 state buffers.
    """
    launch = kernels.prepare(_RULES[len(columns) - 2], columns, 2)
    launch.set_scalars(1.0, (1.0, 0.0))

    def run(kept: object = columns) -> None:  # a launch holds addresses, not the arrays
        launch.run()

    return run
