"""The mappings in which an optimizer keeps its state.

They are used like dicts, and `dict(...)` makes dicts of them. Between steps an optimizer keeps plans
that were made for certain state buffers, so every edit is counted, and a plan holds for one count
only. All parameters that one launch updates have the same numbers in their state ("step" above all),
so these are kept once and looked up when somebody reads them: to write them into each parameter's
dict would cost more than a small step does.

They are no subclasses of dict: C code reads and writes a dict's own table past all methods, and an
edit that is not counted would leave a plan in force that does not hold. So `isinstance(state, dict)`
is False; `isinstance(state, collections.abc.MutableMapping)` is what to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any


class Count:
    """A number that several objects share."""

    __slots__ = ("value",)

    def __init__(self, value: int = 0):
        self.value = value


class KeptNumbers(Mapping):
    """The numbers in one parameter's state: those that it shares with others, and those of kernels.

    The latter are read when they are asked for: on a GPU this waits for the device.

    Args:
        shared: numbers by name.
        places: for each number that kernels keep a function that reads several, and which of them it is.
    """

    __slots__ = ("_places", "_shared")

    def __init__(
        self, shared: Mapping[str, Any], places: Mapping[str, tuple[Callable[[], Any], Any]]
    ):
        self._shared, self._places = shared, places

    def __getitem__(self, name: str) -> Any:
        if name in self._places:
            read, place = self._places[name]
            return float(read()[place])
        return self._shared[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._shared
        yield from (name for name in self._places if name not in self._shared)

    def __len__(self) -> int:
        return len({*self._shared, *self._places})

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._shared


class _Dictlike(MutableMapping):
    """What dicts have besides the methods of a mapping."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(dict(self))

    def copy(self) -> dict:
        return dict(self)

    def __or__(self, other: Mapping) -> dict:
        return {**self, **other}

    def __ror__(self, other: Mapping) -> dict:
        return {**other, **self}

    def __ior__(self, other: Mapping) -> Any:
        self.update(other)
        return self


class Entries(_Dictlike):
    """One parameter's state: buffers and numbers by name."""

    __slots__ = ("_edits", "_numbers", "_own")

    def __init__(self, entries: Mapping[str, Any], edits: Count, numbers: Mapping | None = None):
        self._own = dict(entries)
        self._edits = edits
        self._numbers: Mapping[str, Any] = numbers or {}

    def share(self, numbers: Mapping[str, Any]) -> None:
        """Let these entries have what `numbers` holds when they are read, until the next edit."""
        self._numbers = numbers

    @property
    def shared(self) -> Mapping[str, Any]:
        """What they share."""
        return self._numbers

    def _all(self) -> dict[str, Any]:
        return {**self._numbers, **self._own, **self._numbers}

    def _edited(self) -> dict[str, Any]:
        """All entries as a dict of their own, which is about to be edited."""
        self._edits.value += 1
        if self._numbers:
            self._own = self._all()
            self._numbers = {}
        return self._own

    def __getitem__(self, name: str) -> Any:
        return self._numbers[name] if name in self._numbers else self._own[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._edited()[name] = value
        self._edits.value += 1  # again, for a plan that another thread made in between

    def __delitem__(self, name: str) -> None:
        del self._edited()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._numbers or name in self._own

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class State(_Dictlike):
    """`optimizer.state`: the state of each parameter.

    As in torch, asking for a parameter that has none yet gives an empty mapping.
    """

    __slots__ = ("_edits", "_entries")

    def __init__(self, state: Mapping[Any, Mapping[str, Any]] | None = None):
        self._edits = Count()
        self._entries: dict[Any, Entries] = {}
        self.update(state or {})

    @property
    def edits(self) -> int:
        """A number that grows with every edit of this mapping and of those in it."""
        return self._edits.value

    def updating(
        self,
        state: Mapping[Any, Mapping[str, Any]],
        numbers: Mapping[Any, Mapping[str, Any]] | None = None,
    ) -> partial:
        """The call, for `commit`, by which parameters get these entries.

        It counts as an edit here and now.

        Args:
            state: the entries of each parameter.
            numbers: for each parameter the mapping that its entries are to share (see
                `Entries.share`). Default: None, none.
        """
        self._edits.value += 1
        shared = numbers or {}
        made = {
            parameter: Entries(entries, self._edits, shared.get(parameter))
            for parameter, entries in state.items()
        }
        # Another dict rather than an edit of this one, for which memory might be missing by then.
        return partial(setattr, self, "_entries", {**self._entries, **made})

    def __getitem__(self, parameter: Any) -> Entries:
        if parameter not in self._entries:
            self[parameter] = {}
        return self._entries[parameter]

    def __setitem__(self, parameter: Any, entries: Mapping[str, Any]) -> None:
        self._edits.value += 1
        self._entries[parameter] = Entries(entries, self._edits)
        self._edits.value += 1  # again, for a plan that another thread made in between

    def __delitem__(self, parameter: Any) -> None:
        self._edits.value += 1
        del self._entries[parameter]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._entries

    def get(self, parameter: Any, default: Any = None) -> Any:
        return self._entries.get(parameter, default)

    def pop(self, parameter: Any, *default: Any) -> Any:
        self._edits.value += 1
        return self._entries.pop(parameter, *default)

    def setdefault(self, parameter: Any, default: Mapping[str, Any] | None = None) -> Entries:
        if parameter not in self._entries:
            self[parameter] = default or {}
        return self._entries[parameter]

    def __reduce__(self) -> tuple:
        return State, (dict(self),)
