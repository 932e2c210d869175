"""Declarations of hyper-parameters: default, allowed range and a line of documentation, in one place.

A declaration stands where a default would, among a rule's keywords:

    @genesis.rule
    def Signed(param, grad, *, lr=hyper.rate(1e-3), least=hyper.number(0.0, low=0, most=1)):
        ...

The constructor, its checks, those of a group that is changed later, and the text on arguments in
`help` follow from it. A default without a declaration gets one by its name, see `declared`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
"""The default of a hyper-parameter that has none: the constructor asks for it."""


@dataclass(frozen=True)
class Hyper:
    """What a hyper-parameter may be.

    Args:
        default: its value where none is given, or `REQUIRED`.
        text: one line of documentation.
        low: the least value. Default: -inf.
        below: what it must be less than. Default: inf.
        most: the largest value. Default: inf.
        count: for a tuple, the number of its elements. Default: 0, it is one number.
        is_flag: it is True or False. Default: False.
        infinite: infinity makes sense, too. Default: False.
    """

    default: Any
    text: str = ""
    low: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    count: int = 0
    is_flag: bool = False
    infinite: bool = False

    @property
    def range(self) -> str:
        """The allowed values, in words."""
        if self.is_flag:
            return "True or False"
        limits = [math.isfinite(limit) for limit in (self.low, self.below, self.most)]
        is_open = not limits[0] or not (limits[1] or limits[2])
        word = "a finite number" if is_open and not self.infinite else "a number"
        if self.count:
            word = f"{self.count} {word.split(' ', 1)[1]}s"
        if limits[0] and limits[1]:
            return f"{word} in [{self.low:g}, {self.below:g})"
        if limits[0] and limits[2]:
            return f"{word} in [{self.low:g}, {self.most:g}]"
        bounds = ("of at least", self.low), ("less than", self.below), ("at most", self.most)
        said = [f"{how} {bound:g}" for (how, bound), limited in zip(bounds, limits) if limited]
        return " ".join([word, *said])

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError unless `value` is possible."""
        if self.is_flag:
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"Invalid {name}: {value!r}, expected True or False")
        elif self.count:
            if not isinstance(value, (tuple, list)) or len(value) != self.count:
                raise ValueError(f"Invalid {name}: {value!r}, expected {self.range}")
            for number in value:
                self._check_number(name, number, value)
        else:
            self._check_number(name, value, value)

    def _check_number(self, name: str, number: Any, shown: Any) -> None:
        if isinstance(number, bool) or not isinstance(
            number, (int, float, np.floating, np.integer)
        ):
            raise TypeError(f"Invalid {name}: {shown!r}, expected {self.range}")
        try:
            number = float(number)
        except OverflowError:  # an int that no float can hold
            number = math.nan
        sensible = math.isfinite(number) or (self.infinite and number == math.inf)
        in_range = self.low <= number <= self.most
        if not (sensible and in_range and (number < self.below or self.below == math.inf)):
            raise ValueError(f"Invalid {name}: {shown!r}, expected {self.range}")

    @property
    def entry(self) -> str:
        """What documentation says of it after its name."""
        default = "Required" if self.default is REQUIRED else f"Default: {self.default!r}"
        about = f"{self.text}, {self.range}" if self.text else self.range
        return f"{about}. {default}."


def rate(default: Any = REQUIRED, text: str = "learning rate") -> Hyper:
    """A rate: a finite number of at least 0."""
    return Hyper(default, text, low=0)


def non_negative(default: Any = REQUIRED, text: str = "") -> Hyper:
    """A finite number of at least 0."""
    return Hyper(default, text, low=0)


def decay(default: Any = REQUIRED, text: str = "decay rate of an average") -> Hyper:
    """How much of an average is kept from step to step: a number in [0, 1)."""
    return Hyper(default, text, low=0, below=1)


def betas(*defaults: float, text: str = "decay rates of the averages") -> Hyper:
    """Two decay rates, or three as in Adan, given one by one: each in [0, 1)."""
    return Hyper(tuple(defaults), text, low=0, below=1, count=len(defaults))


def number(
    default: Any = REQUIRED,
    text: str = "",
    *,
    low: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    infinite: bool = False,
) -> Hyper:
    """A number of at least `low`, less than `below`, at most `most`; finite unless `infinite`."""
    return Hyper(default, text, low, below, most, infinite=infinite)


def flag(default: bool, text: str = "") -> Hyper:
    """True or False, decided before compilation: each choice is a kernel of its own."""
    return Hyper(default, text, is_flag=True)


def declared(name: str, default: Any) -> Hyper:
    """The declaration of a hyper-parameter that has none, by its name and default.

    `lr` is a rate; `eps`, `weight_decay` and `momentum` are at least 0; what begins with "beta" is a
    decay rate, or several; True and False are flags; anything else is a finite number or some.

    Raises:
        TypeError: the default is no number.
    """
    if isinstance(default, Hyper):
        return default
    if isinstance(default, (bool, np.bool_)):
        return flag(bool(default))
    count = len(default) if isinstance(default, tuple) else 0
    if name.startswith("beta"):
        return Hyper(default, betas().text if count else decay().text, low=0, below=1, count=count)
    if name in _KNOWN:
        return Hyper(default, _KNOWN[name], low=0, count=count)
    found = Hyper(default, count=count)
    if default is not REQUIRED:
        try:
            found.check(name, default)
        except ValueError as error:
            raise TypeError(str(error)) from None
    return found


_KNOWN = {
    "lr": rate().text,
    "eps": "added to the denominator",
    "weight_decay": "weight decay",
    "momentum": "momentum factor",
}
