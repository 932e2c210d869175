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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import checks

REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
"""The default of a hyper-parameter that has none: the constructor asks for it."""

EVERYTHING = checks.Interval()
NON_NEGATIVE = checks.Interval.read("[0, inf]")
POSITIVE = checks.Interval.read("(0, inf]")
DECAY = checks.Interval.read("[0, 1)")


@dataclass(frozen=True)
class Hyper:
    """What a hyper-parameter may be.

    Args:
        default: its value where none is given, or `REQUIRED`.
        text: one line of documentation.
        title: what messages call it. Default: "", a number its name and "value", all else its name.
    """

    default: Any
    text: str = ""
    title: str = ""

    @property
    def range(self) -> str:
        """The allowed values, in words."""
        raise NotImplementedError

    @property
    def annotation(self) -> str:
        """Its type, as an annotation."""
        raise NotImplementedError

    @property
    def switches(self) -> bool:
        """Whether each of its two states, 0 (or False) and any other, is a kernel of its own."""
        return False

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError unless `value` is possible."""
        raise NotImplementedError

    def is_usual(self, value: Any) -> bool:
        """Whether `check` need not be asked: a quick answer, False where there is none."""
        return False

    def _refuse(self, error: type, name: str, value: Any) -> None:
        raise error(f"Invalid {name}: {value!r}, expected {self.range}")

    @property
    def entry(self) -> str:
        """What documentation says of it after its name."""
        default = "Required" if self.default is REQUIRED else f"Default: {self.default!r}"
        about = self.text if isinstance(self, Flag) else f"{self.text}, {self.range}"
        about = about.removeprefix(", ") or self.range
        return f"{about}. {default}."


@dataclass(frozen=True)
class Number(Hyper):
    """A number in a range.

    Args:
        interval: the range.
        infinite: infinity makes sense, too. Default: False.
        whole: it is an int. Default: False.
        switch: for 0 there is another kernel, which is compiled without it. Default: False.
        unset: None makes sense, too. Default: False.
        scheduled: so does a function of the step, counted from 0, that gives such a number.
            Default: False.
    """

    interval: checks.Interval = EVERYTHING
    infinite: bool = False
    whole: bool = False
    switch: bool = False
    unset: bool = False
    scheduled: bool = False

    @property
    def switches(self) -> bool:
        return self.switch

    @property
    def range(self) -> str:
        return self.ranges(1)

    def ranges(self, count: int) -> str:
        """The allowed values of one such number, or of several, in words."""
        low, high = (math.isfinite(end) for end in self.interval[:2])
        kind = "whole number" if self.whole else "number"
        if not self.infinite and not self.whole and not (low and high):
            kind = f"finite {kind}"
        word = f"a {kind}" if count == 1 else f"{count} {kind}s"
        ends = ""
        if low and high:
            ends = f" in {self.interval}"
        elif low:
            ends = (
                f" {'of at least' if self.interval.low_closed else 'above'} {self.interval.low:g}"
            )
        elif high:
            ends = (
                f" {'of at most' if self.interval.high_closed else 'below'} {self.interval.high:g}"
            )
        others = ", or None" * self.unset + ", or a function of the step" * self.scheduled
        return f"{word}{ends}{others}"

    @property
    def annotation(self) -> str:
        kind = "int" if self.whole else "float"
        return kind + " | None" * self.unset + " | Callable[[int], float]" * self.scheduled

    def check(self, name: str, value: Any) -> None:
        if self.is_usual(value):
            return
        title = self.title or f"{name} value"
        if not (self.scheduled and is_function(value)):
            self.check_titled(title, value)
        elif getattr(value, "makes_schedules", False):
            made = f"schedules.{value.__name__}"
            raise TypeError(
                f"Invalid {title}: {made}, which makes a schedule: call it, {made}(...)"
            )

    def is_usual(self, value: Any) -> bool:
        # Nearly always so, and schedulers ask at each step.
        low, high, _, _ = self.interval
        return type(value) is float and low < value < high and not self.whole

    def check_titled(self, title: str, value: Any) -> None:
        """As `check`, with what messages call it."""
        if value is None and self.unset:
            return
        if not checks.is_number(value) or (self.whole and not isinstance(value, (int, np.integer))):
            self._refuse(TypeError, title, value)
        sensible = checks.is_finite(value) or (self.infinite and value in (math.inf, -math.inf))
        if not (sensible and self.interval.holds(value)):
            self._refuse(ValueError, title, value)


@dataclass(frozen=True)
class Flag(Hyper):
    """True or False.

    Args:
        further: it is not among what other packages' optimizers of the same name take: it is given by
            name only, and a saved group may lack it. Default: False.
    """

    further: bool = False
    range = "True or False"  # type: ignore[assignment]
    annotation = "bool"  # type: ignore[assignment]
    switches = True  # type: ignore[assignment]

    def check(self, name: str, value: Any) -> None:
        if not checks.is_flag(value):
            self._refuse(TypeError, name, value)


@dataclass(frozen=True)
class Choice(Hyper):
    """None or one of some words."""

    words: tuple[str, ...] = ()
    annotation = "str | None"  # type: ignore[assignment]

    @property
    def range(self) -> str:
        return f"None or one of {', '.join(map(repr, self.words))}"

    def check(self, name: str, value: Any) -> None:
        if value is not None and not (isinstance(value, str) and value in self.words):
            self._refuse(ValueError, name, value)


@dataclass(frozen=True)
class FlagOrWord(Hyper):
    """True, False or one of some words."""

    words: tuple[str, ...] = ()
    annotation = "bool | str"  # type: ignore[assignment]

    @property
    def range(self) -> str:
        return f"True, False or {' or '.join(map(repr, self.words))}"

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, str) and value not in self.words:
            self._refuse(ValueError, name, value)
        if not (isinstance(value, str) or checks.is_flag(value)):
            self._refuse(TypeError, name, value)


@dataclass(frozen=True)
class Several(Hyper):
    """A tuple or list of numbers, each with a declaration, whose default does not count.

    `title` is what messages call one of them.
    """

    parts: tuple[Number, ...] = ()

    @property
    def range(self) -> str:
        first, *others = self.parts
        if all(replace(other, default=first.default) == first for other in others):
            return first.ranges(len(self.parts))
        return f"{len(self.parts)} numbers ({'; '.join(part.range for part in self.parts)})"

    @property
    def annotation(self) -> str:
        return f"tuple[{', '.join(part.annotation for part in self.parts)}]"

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != len(self.parts):
            self._refuse(ValueError, name, value)
        for i, (part, number) in enumerate(zip(self.parts, value)):
            if not part.is_usual(number):
                part.check_titled(f"{self.title or name} at index {i}", number)


# ---- ready-made ----


def number(
    default: Any = REQUIRED,
    text: str = "",
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    infinite: bool = False,
    switch: bool = False,
    unset: bool = False,
) -> Number:
    """A number of at least `low`, above `above`, less than `below`, at most `most`.

    Args:
        default: its default. Default: `REQUIRED`, it must be given.
        text: one line of documentation. Default: "".
        low: what it must at least be. Default: none.
        above: what it must be above. Default: none.
        below: what it must be below. Default: none.
        most: what it may be at most. Default: none.
        infinite: infinity makes sense, too. Default: False, the number is finite.
        switch: for 0 there is another kernel, which is compiled without it, as if `if number:` in a
            formula asked a flag; needs a `low` of at least 0. Default: False.
        unset: None makes sense, too. Default: False.
    """
    interval = checks.Interval(
        max(low, above), min(below, most), above == -math.inf, below == math.inf
    )
    if switch and interval.low < 0:
        raise ValueError(f"a number in {interval} cannot be a switch: it must be at least 0")
    return Number(default, text, "", interval, infinite, switch=switch, unset=unset)


def rate(default: Any = REQUIRED, text: str = "learning rate", *, scheduled: bool = True) -> Number:
    """A rate: a finite number of at least 0, or, if it may be `scheduled`, a function of the step.

    Such a function takes the number of updates that a parameter has had, from 0, and gives the rate of
    the next one, as those of `genesis.optim.schedules` do.
    """
    return Number(default, text, "learning rate", NON_NEGATIVE, scheduled=scheduled)


def non_negative(default: Any = REQUIRED, text: str = "", *, switch: bool = False) -> Number:
    """A finite number of at least 0. For `switch` see `number`."""
    return Number(default, text, "", NON_NEGATIVE, switch=switch)


def epsilon(
    default: Any = REQUIRED, text: str = "added to the denominator", *, positive: bool = False
) -> Number:
    """A small number: finite, and at least 0, or if `positive` above 0."""
    return Number(default, text, "epsilon value", POSITIVE if positive else NON_NEGATIVE)


def count(
    default: Any = REQUIRED, text: str = "", *, least: int = 1, most: float = math.inf
) -> Number:
    """An int of at least `least` and at most `most`."""
    return Number(default, text, "", checks.Interval(least, most), whole=True)


def decay(default: Any = REQUIRED, text: str = "decay rate of an average") -> Number:
    """How much of an average is kept from step to step: a number in [0, 1)."""
    return Number(default, text, "", DECAY)


def betas(*defaults: float, text: str = "decay rates of the averages") -> Several:
    """Two decay rates, or three as in Adan, given one by one: each in [0, 1)."""
    parts = tuple(Number(default, interval=DECAY) for default in defaults)
    return Several(defaults, text, "beta parameter", parts)


def several(*parts: Number, text: str = "", title: str = "") -> Several:
    """A tuple of numbers, each declared on its own; its default is theirs.

    Messages call one of them its `title`. Default: "", the name of the tuple.
    """
    return Several(tuple(part.default for part in parts), text, title, parts)


def flag(default: Any = REQUIRED, text: str = "", *, further: bool = False) -> Flag:
    """True or False, decided before compilation: each choice is a kernel of its own.

    A `further` one is given by name only, and keeps its value where a saved group lacks it.
    """
    return Flag(default, text, further=further)


def word(words: Sequence[str], text: str = "") -> Choice:
    """None, the default, or one of these words. For optimizers that are no rule."""
    return Choice(None, text, "", tuple(words))


def flag_or_word(default: bool, words: Sequence[str], text: str = "") -> FlagOrWord:
    """True or False, or one of these words. For optimizers that are no rule."""
    return FlagOrWord(default, text, "", tuple(words))


def is_function(value: Any) -> bool:
    """Whether a hyper-parameter is given as a function of the step."""
    return callable(value) and not isinstance(value, type)


def scheduled(hypers: Mapping[str, Hyper], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of hyper-parameters that are functions of the step in these settings."""
    return tuple(
        name
        for name, declared in hypers.items()
        if getattr(declared, "scheduled", False) and is_function(settings[name])
    )


def at(
    hypers: Mapping[str, Hyper], settings: dict[str, Any], names: tuple[str, ...], step: int
) -> dict[str, Any]:
    """Settings in which the named hyper-parameters, functions of the step, are numbers.

    Raises:
        TypeError, ValueError: a function gives an impossible value.
    """
    if not names:
        return settings
    found = dict(settings)
    for name in names:
        found[name] = checks.plain(settings[name](step))
        try:
            replace(hypers[name], scheduled=False).check(name, found[name])  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (from {settings[name]!r} at step {step})") from None
    return found


def declared(name: str, default: Any) -> Hyper:
    """The declaration of a hyper-parameter that has none, by its name and default.

    `lr` is a rate; `eps`, `weight_decay` and `momentum` are at least 0; what begins with "beta" is a
    decay rate, or several; True and False are flags; anything else is a finite number or some.

    Raises:
        TypeError: the default is no number.
    """
    if isinstance(default, Hyper):
        return default
    if checks.is_flag(default):
        return flag(bool(default))
    like = _KNOWN.get("beta" if name.startswith("beta") else name, Number(default))
    if isinstance(default, tuple):
        if like is _KNOWN["beta"]:
            return betas(*default)
        found: Hyper = several(*(replace(like, default=value) for value in default), text=like.text)
    else:
        found = replace(like, default=default)
    if default is not REQUIRED:
        try:
            found.check(name, default)
        except ValueError as error:
            raise TypeError(str(error)) from None
    return found


_KNOWN: dict[str, Number] = {
    "lr": rate(),
    "beta": decay(),
    "eps": epsilon(),
    "weight_decay": non_negative(text="weight decay"),
    "momentum": non_negative(text="momentum factor"),
}
