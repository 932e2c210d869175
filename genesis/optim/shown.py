"""One line about an optimizer, a scheduler or an average, for people: `repr` of these.

A notebook prints it after a cell that ends in `opt.step()`. It says what the thing is, what differs
from the defaults, and where it stands. It never raises, whatever has been edited or is not made yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np

_SHOWN = 4
"""How many of several values are listed."""
_LONG = 60
"""How many characters of a value are."""
_ELSEWHERE = {"optimizer", "last_epoch", "current_epoch"}
"""Arguments of schedulers that `repr` does not show among them."""


def never_failing(describe: Callable[[Any], str]) -> Callable[[Any], str]:
    """A method that gives what `describe` does, or where that fails at least the class's name."""

    def described(self: Any) -> str:
        try:
            return describe(self)
        except Exception:
            return f"<{type(self).__name__}, of which something is missing or damaged>"

    described.__doc__ = describe.__doc__
    return described


# ---- optimizers ----


def optimizer(self: Any) -> str:
    """An optimizer in one line: settings that are not the defaults, what it updates, steps done."""
    groups = self.param_groups
    usual = _defaults(type(self))
    settings = []
    for name, declared in {**self._hypers, **self._options}.items():
        values = [group[name] for group in groups if name in group]
        default = self._usual(name, usual.get(name, declared.default))
        if values and (name == "lr" or not all(equal(each, default) for each in values)):
            settings.append(f"{name}={several(values)}")
    if len(groups) != 1:
        settings.insert(0, f"{len(groups)} groups")
    parameters = [parameter for group in groups for parameter in group["params"]]
    state = [self._state.get(parameter) or {} for parameter in parameters]
    counts = [entries["step"] for entries in state if type(entries.get("step")) is int]
    return ", ".join(
        [
            f"{type(self).__name__}({', '.join(settings)}): {size(parameters)}",
            count(max([self._step_count, *counts]), "step"),
        ]
    )


def groups(self: Any) -> str:
    """All settings of all groups, in lines, as torch shows them."""
    lines = [f"{type(self).__name__} ("]
    for i, group in enumerate(self.param_groups):
        lines.append(f"Parameter Group {i}")
        lines += [
            f"    {name}: {group[name]}" for name in sorted(group, key=str) if name != "params"
        ]
    return "\n".join([*lines, ")"])


# ---- schedulers ----


def scheduler(self: Any) -> str:
    """A scheduler in one line: its arguments that are not the defaults, epoch and learning rates."""
    rates = [group["lr"] for group in self.optimizer.param_groups]
    return f"{call(self)}: epoch {self.last_epoch}, lr {several(rates)}"


def call(self: Any) -> str:
    """A scheduler's class and arguments."""
    given = {}
    for name in (name for name in _defaults(type(self)) if name not in _ELSEWHERE):
        # What is kept in another form, or not at all, is not shown.
        with suppress(AttributeError, LookupError, TypeError):
            given[name] = self._argument(name)
    return called(type(self), given)


def called(kind: type, given: dict[str, Any]) -> str:
    """A class's name with the arguments that are not its defaults."""
    defaults = _defaults(kind)
    shown = [
        f"{name}={value(each)}" for name, each in given.items() if not equal(each, defaults[name])
    ]
    return f"{kind.__name__}({', '.join(shown)})"


# ---- words ----


def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a class's constructor; `inspect.Parameter.empty` for arguments without one."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values()}


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal; arrays, which have no one truth, are if they are the same."""
    try:
        return bool(one == other)
    except Exception:
        return one is other


def several(values: Iterable[Any]) -> str:
    """Values of several groups: one if all are the same."""
    values = [*values]
    if values and all(equal(each, values[0]) for each in values):
        return value(values[0])
    more = [] if len(values) <= _SHOWN else ["..."]
    return " / ".join([*map(value, values[:_SHOWN]), *more])


def value(given: Any) -> str:
    """A value in few characters."""
    text = _text(given)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _text(given: Any) -> str:
    if isinstance(given, (float, np.floating)):
        return f"{float(given):.6g}"
    if isinstance(given, (np.integer, np.bool_)):
        return repr(given.item())
    if type(given) in (list, tuple):
        inner = ", ".join(map(_text, given))
        return f"[{inner}]" if type(given) is list else f"({inner})"
    if hasattr(given, "_argument"):
        return call(given)
    named = callable(given) and hasattr(given, "__name__")
    return " ".join((given.__name__ if named else repr(given)).split())


def count(number: int, word: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def size(parameters: list[Any]) -> str:
    """How many parameters and elements, of which types, and where unless on the CPU."""
    elements = count(sum(parameter.size for parameter in parameters), "element")
    types = sorted({str(parameter.dtype) for parameter in parameters})
    devices = sorted({parameter.device for parameter in parameters} - {"cpu"})
    parts = [count(len(parameters), "parameter"), elements, *types, *devices]
    return ", ".join(parts)
