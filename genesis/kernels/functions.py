"""The functions of `math` that rules may use, and what each gives for one number.

All of them compile for every target. `evaluate` gives what the CPU's kernels give, bit for bit: square
roots, signs and tests are the same wherever they are computed; for the rest the very function is
called that a kernel calls. A GPU's may differ in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

_EVERYWHERE: dict[str, Callable] = {
    "sqrt": np.sqrt,
    "fabs": np.fabs,
    "copysign": np.copysign,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
}
TESTS = ("isnan", "isinf", "isfinite")
"""Those that give true or false."""

ARGUMENTS = {
    **{name: function.nin for name, function in _EVERYWHERE.items()},  # type: ignore[attr-defined]
    **dict.fromkeys("exp expm1 log log1p sin cos tan asin acos atan sinh cosh tanh erf".split(), 1),
    **dict.fromkeys(("pow", "atan2"), 2),
}
"""How many arguments each function takes."""


def evaluate(name: str, *numbers: Any) -> Any:
    """A function's value for NumPy scalars of one floating type; NaN and infinity, never an error."""
    with np.errstate(all="ignore"):
        found = _EVERYWHERE.get(name) or _compiled(name)
        return type(numbers[0])(found(*numbers)) if name not in TESTS else bool(found(*numbers))


@lru_cache(maxsize=None)
def _compiled(name: str) -> Callable:
    import numba

    function = getattr(math, name)
    if ARGUMENTS[name] == 1:
        return numba.njit(error_model="numpy")(lambda x: function(x))
    return numba.njit(error_model="numpy")(lambda x, y: function(x, y))


def like_math() -> SimpleNamespace:
    """What stands for `math` where rules run as Python: the arithmetic of a kernel, no errors."""

    def named(name: str) -> Callable:
        return lambda *numbers: evaluate(name, *numbers)

    return SimpleNamespace(**{name: named(name) for name in ARGUMENTS})
