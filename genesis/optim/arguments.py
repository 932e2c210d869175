"""Checks of single arguments: each returns the plain Python value, or says what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def number(name: str, value: Any, interval: str = "[0, inf)") -> float:
    """`value` as a float, if it is a real number in `interval`, written as in the message."""
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    inside = low < value < high
    inside |= value == low and interval[0] == "["
    inside |= value == high and interval[-1] == "]"
    if not inside:
        raise ValueError(f"{name} must be in {interval}, but got {value}")
    return float(value)


def integer(name: str, value: Any, minimum: int) -> int:
    """`value` as an int, if it is a whole number of at least `minimum`."""
    if not _is_number(value):
        raise TypeError(f"{name} must be an integer, but got {type(value).__name__}")
    if not (minimum <= value < math.inf and value == int(value)):
        raise ValueError(f"{name} must be an integer of at least {minimum}, but got {value}")
    return int(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, if it is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}"
        )
    return value


def function(name: str, value: Any) -> Callable:
    """`value`, if it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, but got {type(value).__name__}")
    return value


def milestones(name: str, value: Any) -> tuple[int, ...]:
    """`value` as a tuple of ints, if it is a list of epochs in increasing order."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of epochs, but got {type(value).__name__}")
    epochs = [integer(f"{name}[{i}]", epoch, 0) for i, epoch in enumerate(value)]
    if epochs != sorted(epochs):
        raise ValueError(f"{name} must be in increasing order, but got {epochs}")
    return tuple(epochs)
