"""`Group`: a parameter group whose settings are checked when they are set.

A step checks its groups, too: plain dicts may stand among `param_groups`, and settings that are
possible one by one may not be together, which cannot be asked before both of them are set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import buffers

if TYPE_CHECKING:
    from .optimizer import Optimizer


class Group(dict):
    """A dict that refuses impossible settings, and misspelt ones, of an optimizer class.

    Args:
        kind: the class.
        settings: what the group begins with; checked by who makes it.

    Example:
        >>> import numpy as np, genesis
        >>> opt = genesis.optim.SGD([genesis.Parameter(np.ones(3))], lr=0.1)
        >>> opt.param_groups[0]["lr"] = -0.1  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Invalid learning rate: -0.1, expected a finite number of at least 0, or a function...
        >>> opt.param_groups[0]["lr"]
        0.1
    """

    __slots__ = ("_kind",)

    def __init__(self, kind: type[Optimizer], settings: Mapping[Any, Any] | None = None):
        super().__init__({} if settings is None else settings)
        self._kind = kind

    def __setitem__(self, name: Any, value: Any) -> None:
        if name not in self:
            self._kind._check_key(name)
        self._kind._check_setting(name, value)
        dict.__setitem__(self, name, value)

    def setdefault(self, name: Any, default: Any = None) -> Any:
        """As a dict's; what is new is checked."""
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **settings: Any) -> None:
        """As a dict's, but either all settings are possible or nothing changes."""
        given = dict(*args, **settings)
        for name, value in given.items():
            if name not in self:
                self._kind._check_key(name)
            self._kind._check_setting(name, value)
        super().update(given)

    def __ior__(self, other: Any) -> Group:  # type: ignore[override, misc]
        self.update(other)
        return self

    # Copies and pickles hold what the original held, whatever a check would say to it.

    def __reduce__(self) -> tuple:
        return Group, (self._kind,), dict(self)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return self.__reduce__()

    def __setstate__(self, settings: dict[Any, Any]) -> None:
        super().update(settings)


def put(group: dict[str, Any], name: str, value: Any) -> None:
    """Set in a group, of whatever kind, what has been checked already."""
    if type(group) is Group:
        dict.__setitem__(group, name, value)
    elif buffers.is_torchs(group.get(name)):
        # A step that torch has compiled or captured reads the tensor, not the group.
        group[name].fill_(value)
    else:
        group[name] = value


def set_rate(group: dict[str, Any], lr: float) -> None:
    """Set a group's learning rate; the group checks it, if it does."""
    if type(group) is Group:
        group["lr"] = lr
    else:
        put(group, "lr", lr)


class Misplaced:
    """A hyper-parameter's name as an attribute of optimizers, which refuses to be one.

    Without it `optimizer.lr = 0.1` would make an attribute of which nobody takes notice. It has no
    docstring of its own where it stands, so that documentation does not list it.
    """

    def __init__(self, name: str):
        self._name = name
        self.__doc__ = None

    def __get__(self, optimizer: Any, kind: type | None = None) -> Any:
        raise AttributeError(self._said(kind or type(optimizer), "read"))

    def __set__(self, optimizer: Any, value: Any) -> None:
        raise AttributeError(self._said(type(optimizer), "set"))

    def __delete__(self, optimizer: Any) -> None:
        raise AttributeError(self._said(type(optimizer), "delete"))

    def _said(self, kind: type, doing: str) -> str:
        place = f"group[{self._name!r}]"
        done = {"set": f"{place} = ...", "read": f"print({place})", "delete": f"del {place}"}
        return (
            f"{kind.__name__} has no attribute {self._name!r}: each of its groups has a value. To "
            f"{doing} it, write `for group in optimizer.param_groups: {done[doing]}`"
        )


def misplace(kind: type[Optimizer]) -> None:
    """Let a class's hyper-parameters refuse to be attributes, but for names that it uses otherwise."""
    for name in (*kind._hypers, *kind._options):
        if not any(name in vars(base) for base in kind.__mro__):
            setattr(kind, name, Misplaced(name))
