"""What HIPS autograd must know of `Parameter`: that it is differentiated like the array it holds.

Autograd wraps each value that it follows in a *box*, whose class it finds by the value's exact type,
and takes the shape and type of its gradient from a *vector space*, found in the same way. So a class
of parameters is registered for both. Genesis does not import autograd: nothing is done until it has
been imported by somebody else.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

known: set[type] = set()
"""The classes that autograd knows."""


def register(kind: type) -> None:
    """Make autograd take objects of this class for arrays; while it is still loading, do nothing."""
    box = getattr(sys.modules.get("autograd.numpy.numpy_boxes"), "ArrayBox", None)
    space = getattr(sys.modules.get("autograd.numpy.numpy_vspaces"), "ArrayVSpace", None)
    if box is not None and space is not None:
        box.register(kind)
        space.register(kind)
        known.add(kind)


def among(operands: tuple) -> bool:
    """Whether an operand is a box."""
    box = sys.modules["autograd.tracer"].Box
    return any(isinstance(operand, box) for operand in operands)


def call(ufunc: np.ufunc, operands: tuple, kwargs: dict[str, Any]) -> Any:
    """What autograd makes of a ufunc, boxes being among the operands."""
    # Before version 1.8 a box has no `__array_ufunc__`: NumPy would make an object array of it.
    traced = getattr(sys.modules["autograd.numpy"], ufunc.__name__, None)
    return NotImplemented if traced is None else traced(*operands, **kwargs)
