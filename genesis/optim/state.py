"""The dicts in which an optimizer keeps its state.

They look and behave like dicts. But between steps an optimizer keeps the addresses of state buffers,
so they tell it when somebody edits them; and all parameters that one launch updates have the same
numbers in their state ("step" above all), so these are kept once and looked up when somebody reads
them. Both would cost more than a small step does, if it had to look at each parameter's dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any


class Count:
    """A number that several objects share."""

    __slots__ = ("value",)

    def __init__(self, value: int = 0):
        self.value = value


class Entries(dict):
    """One parameter's state: buffers and numbers by name."""

    __slots__ = ("_edits", "_numbers")

    def __init__(self, entries: Mapping[str, Any], edits: Count):
        super().__init__(entries)
        self._edits = edits
        self._numbers: Mapping[str, Any] | None = None

    def share(self, numbers: Mapping[str, Any]) -> None:
        """Let these entries be what `numbers` holds when they are read, until the next edit."""
        self._numbers = numbers

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)

    def copy(self) -> dict:
        return dict(self)


def _reading(method: Callable) -> Callable:
    def read(self: Entries, *args: Any) -> Any:
        if self._numbers is not None:
            dict.update(self, self._numbers)
        return method(self, *args)

    return read


def _editing(method: Callable) -> Callable:
    def edit(self: Entries, *args: Any, **kwargs: Any) -> Any:
        if self._numbers is not None:
            dict.update(self, self._numbers)
            self._numbers = None
        self._edits.value += 1
        return method(self, *args, **kwargs)

    return edit


# `__iter__` is here because dict(entries) and {**entries} ask for items one by one only of a class
# that has an __iter__ of its own.
for _name in "__getitem__ __iter__ __eq__ __ne__ __or__ __ror__ __repr__ get items values".split():
    setattr(Entries, _name, _reading(getattr(dict, _name)))
for _name in "__setitem__ __delitem__ __ior__ update setdefault pop popitem clear".split():
    setattr(Entries, _name, _editing(getattr(dict, _name)))


class State(dict):
    """`optimizer.state`: the state of each parameter.

    As in torch, asking for a parameter that has none yet gives an empty dict.
    """

    __slots__ = ("_edits",)

    def __init__(self, state: Mapping[Any, Mapping[str, Any]] | None = None):
        super().__init__()
        self._edits = Count()
        self.update(state or {})

    @property
    def edits(self) -> int:
        """A number that grows with every edit of this dict and of those in it."""
        return self._edits.value

    def __setitem__(self, parameter: Any, entries: Mapping[str, Any]) -> None:
        self._edits.value += 1
        super().__setitem__(parameter, Entries(entries, self._edits))

    def __missing__(self, parameter: Any) -> Entries:
        self[parameter] = {}
        return self[parameter]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for parameter, entries in dict(*args, **kwargs).items():
            self[parameter] = entries

    def updating(self, state: Mapping[Any, Mapping[str, Any]]) -> partial:
        """The call that makes these the entries of these parameters, for `commit`."""
        self._edits.value += 1
        built = {parameter: Entries(entries, self._edits) for parameter, entries in state.items()}
        return partial(dict.update, self, built)

    def setdefault(self, parameter: Any, entries: Mapping[str, Any] | None = None) -> Entries:
        if parameter not in self:
            self[parameter] = entries or {}
        return self[parameter]

    def __ior__(self, other: Any) -> State:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __reduce__(self) -> tuple:
        return State, (dict(self),)

    def copy(self) -> dict:
        return dict(self)


def _removing(method: Callable) -> Callable:
    def remove(self: State, *args: Any) -> Any:
        self._edits.value += 1
        return method(self, *args)

    return remove


for _name in "__delitem__ pop popitem clear".split():
    setattr(State, _name, _removing(getattr(dict, _name)))
