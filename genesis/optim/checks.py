"""Checks of what users hand to an optimizer, each with an error that says how to mend it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from .. import buffers
from ..parameter import Parameter


def number(
    group: Any, name: Any, title: str = "", *, below: float = math.inf, most: float = math.inf
) -> None:
    """Raise unless `group[name]` is a number of at least 0, less than `below` and at most `most`."""
    value = group[name]
    title = title or f"{name} value"
    if not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"Invalid {title}: {value!r}, expected a number")
    if not 0 <= value <= most or below <= value < math.inf:
        expected = "at least 0"
        if math.isfinite(below):
            expected = f"in [0, {below:g})"
        elif math.isfinite(most):
            expected = f"in [0, {most:g}]"
        raise ValueError(f"Invalid {title}: {value}, expected {expected}")


def common(group: dict[str, Any]) -> None:
    """Raise unless the group's learning rate, weight decay and eps, where it has one, are valid."""
    number(group, "lr", "learning rate")
    number(group, "weight_decay")
    if "eps" in group:
        number(group, "eps", "epsilon value")


def pair(group: dict[str, Any], name: str, title: str, *, below: float = math.inf) -> None:
    """Raise unless `group[name]` is a pair of numbers of at least 0 and less than `below`."""
    value = group[name]
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value!r}, expected a pair of numbers")
    for i in range(2):
        number(value, i, f"{title} at index {i}", below=below)


def betas(group: dict[str, Any]) -> None:
    """Raise unless `group["betas"]` is a pair of numbers in [0, 1)."""
    pair(group, "betas", "beta parameter", below=1)


def flags(group: dict[str, Any], *names: str) -> None:
    """Raise unless each of the group's named entries is True or False."""
    for name in names:
        if not isinstance(group[name], (bool, np.bool_)):
            raise TypeError(f"Invalid {name}: {group[name]!r}, expected True or False")


def warn(message: str) -> None:
    """Warn the user: the warning names the line that called into genesis."""
    frame: FrameType | None = sys._getframe()
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("genesis."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


_UNORDERED = (
    "optimizer parameters need to be organized in ordered collections, but the ordering of "
    "parameters in sets will change between runs. Please use a list instead."
)


def groups(params: Any) -> list[dict[str, Any]]:
    """An optimizer's `params` as a list of groups; TypeError or ValueError where it is none."""
    if isinstance(params, Parameter):
        raise TypeError(
            "params must be an iterable of Parameters or dicts, but got a single Parameter: "
            "put it in a list, [parameter]"
        )
    if hasattr(params, "__array__"):
        raise TypeError(
            "params must be an iterable of Parameters or dicts, but got a single "
            f"{type(params).__name__}: wrap it, [genesis.Parameter(array)]"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, dict) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be an iterable of Parameters or dicts, but got a {type(params).__name__}: "
            "give a list, for example [parameter], [group] or params.items()"
        )
    entries = list(params)
    if not entries:
        raise ValueError("optimizer got an empty parameter list")
    return entries if isinstance(entries[0], dict) else [{"params": entries}]


def members(params: Any) -> tuple[list[Parameter], list[str] | None]:
    """A group's "params" as a list, each parameter once, and their names if they have any."""
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, Parameter):
        params = [params]
    elif hasattr(params, "__array__") or not isinstance(params, Iterable):
        raise TypeError(
            f"a group's params must be Parameters, but got a {type(params).__name__}: "
            "wrap arrays, [genesis.Parameter(array)]"
        )
    named = [entry if isinstance(entry, tuple) else (None, entry) for entry in params]
    for _, parameter in named:
        if not isinstance(parameter, Parameter):
            raise TypeError(
                "optimizer can only optimize Parameters, but one of the params is "
                f"{type(parameter).__name__}: wrap arrays in genesis.Parameter(array)"
            )
    once: dict[Parameter, str | None] = {}
    for name, parameter in named:
        once.setdefault(parameter, name)
    if len(once) < len(named):
        warn("optimizer contains a parameter group with duplicate parameters; each is kept once")
    names = [name for name in once.values() if name is not None]
    if 0 < len(names) < len(once):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    return list(once), names or None


def memory(parameters: list[Parameter]) -> None:
    """Raise ValueError if two parameters share memory."""
    pair = buffers.overlapping([p._view for p in parameters])
    if pair:
        first, second = (
            f"parameter {i}{'' if parameters[i].name is None else ' ' + repr(parameters[i].name)}"
            for i in pair
        )
        raise ValueError(
            f"{first} and {second} share memory, so that an update of one would change the other: "
            "give each an array of its own, or give the shared Parameter once"
        )


class Used(NamedTuple):
    """An array that a step uses, as it should be.

    Attributes:
        what: what messages call it.
        array: the array, or whatever somebody put in its place.
        shape: the shape that it must have.
        device: where it must be.
    """

    what: str
    array: Any
    shape: tuple[int, ...]
    device: str = "cpu"


def title(number: int, parameter: Parameter) -> str:
    """What messages call a parameter: its number among all of the optimizer's, and its name."""
    return f"parameter {number}" + ("" if parameter.name is None else f" ({parameter.name!r})")


def arrays(written: list[Used], others: list[Used]) -> None:
    """Raise TypeError or ValueError unless a step can use these arrays as they are now.

    Args:
        written: what the step changes: writable, and each in memory of its own.
        others: what it reads, or must leave as it is: in memory that it does not change.
    """
    views = []
    for used in (*written, *others):
        view = buffers.check(used.array, used.what)
        if view.shape != used.shape:
            raise ValueError(
                f"{used.what} has shape {view.shape}, but must have {used.shape}: give it that shape "
                "again, or put another array in its place"
            )
        device = buffers.layout(view).device
        if device != used.device:
            raise ValueError(
                f"{used.what} is on {device}, but must be on {used.device}: move all of an "
                f"optimizer's arrays with optimizer.to({used.device!r})"
            )
        views.append(view)
    for used, view in zip(written, views):
        buffers.check_writable(view, used.what)
    pair = buffers.overlapping(views[: len(written)], views[len(written) :])
    if pair is None:
        return
    first, second = ((*written, *others)[i].what for i in pair)
    if pair[1] < len(written):
        raise ValueError(f"{first} and {second} share memory: give each an array of its own")
    raise ValueError(f"{second} shares memory with {first}, which the step changes: assign a copy")
