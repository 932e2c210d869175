"""Checks of values that users give: each returns the plain Python value, or says what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A range of numbers; one that is not `closed` on a side does not hold its end there."""

    low: float = -math.inf
    high: float = math.inf
    low_closed: bool = True
    high_closed: bool = True

    @classmethod
    def read(cls, text: str) -> Interval:
        """The interval that is written as in mathematics: "[0, 1)"."""
        low, high = map(float, text[1:-1].split(","))
        return cls(low, high, text[0] == "[", text[-1] == "]")

    def holds(self, value: float) -> bool:
        """Whether a number is in the interval; NaN never is."""
        above = self.low < value or (self.low_closed and value == self.low)
        return above and (value < self.high or (self.high_closed and value == self.high))

    def __str__(self) -> str:
        left, right = "(["[self.low_closed], ")]"[self.high_closed]
        return f"{left}{self.low:g}, {self.high:g}{right}"


def is_number(value: Any) -> bool:
    """Whether this is a real number of Python's or NumPy's: not True or False, and no array."""
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a number is one that a float can hold, and finite."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def is_flag(value: Any) -> bool:
    """Whether this is True or False, of Python's or NumPy's."""
    return isinstance(value, (bool, np.bool_))


def number(name: str, value: Any, interval: str = "[0, inf)") -> float:
    """`value` as a float, if it is a real number in `interval`, written as in the message."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}")
    if not Interval.read(interval).holds(value):
        raise ValueError(f"{name} must be in {interval}, but got {value}")
    return float(value)


def integer(name: str, value: Any, minimum: int) -> int:
    """`value` as an int, if it is a whole number of at least `minimum`."""
    if not is_number(value):
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


def limit(name: str, value: Any) -> float:
    """What gradients may be at most, as a float, if it is a number of at least 0, or inf."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, but got {value}")
    return float(value)


def plain(value: Any) -> Any:
    """A value with Python's numbers in it in place of NumPy's, whose arithmetic may be narrower."""
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value
