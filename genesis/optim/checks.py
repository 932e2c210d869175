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
from ..sparse import RowsView


def number(
    group: Any,
    name: Any,
    title: str = "",
    *,
    least: float = 0,
    below: float = math.inf,
    most: float = math.inf,
    positive: bool = False,
    infinite: bool = False,
) -> None:
    """Raise unless `group[name]` is a number in the range, and finite.

    A number is a Python or NumPy scalar, not True or False, and no array.

    Args:
        group: the group's dict, or a pair in it.
        name: the key, or the index in the pair.
        title: what a message calls it. Default: "", "`name` value".
        least: what it must be at least, 0 or -inf. Default: 0.
        below: what it must be less than. Default: anything.
        most: what it may be at most. Default: anything.
        positive: 0 is not allowed either. Default: False.
        infinite: inf makes sense, too. Default: False.
    """
    value = entry(group, name)
    title = title or f"{name} value"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(
            f"Invalid {title}: {value!r}, expected a number"
            + (": take array.item()" if isinstance(value, np.ndarray) and value.size == 1 else "")
        )
    sensible = _is_finite(value) or (infinite and value == math.inf)
    high_enough = value > 0 if positive else value >= least
    low_enough = value <= most and (below == math.inf or value < below)
    if not (sensible and high_enough and low_enough):
        expected = "more than 0" if positive else "at least 0"
        if least < 0:
            expected = "one that is finite"
        elif below < math.inf:
            expected = f"in [0, {below:g})"
        elif most < math.inf:
            expected = f"in [0, {most:g}]"
        elif not infinite:
            expected += " and finite"
        raise ValueError(f"Invalid {title}: {value}, expected {expected}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an int that no float can hold
        return False


def entry(group: Any, name: Any) -> Any:
    """`group[name]`; ValueError if a group has no such entry."""
    try:
        return group[name]
    except KeyError:
        raise ValueError(f"Invalid group: it has no {name!r}, set group[{name!r}]") from None


def lr(group: dict[str, Any]) -> None:
    """Raise unless the group's learning rate is a number of at least 0."""
    number(group, "lr", "learning rate")


def common(group: dict[str, Any]) -> None:
    """Raise unless the group's learning rate and weight decay are numbers of at least 0."""
    lr(group)
    number(group, "weight_decay")


def eps(group: dict[str, Any], *, positive: bool = False) -> None:
    """Raise unless `group["eps"]` is a number of at least 0, or if `positive` of more than 0."""
    number(group, "eps", "epsilon value", positive=positive)


def pair(
    group: dict[str, Any],
    name: str,
    title: str,
    *,
    below: float = math.inf,
    infinite: bool = False,
) -> None:
    """Raise unless `group[name]` is a pair, a tuple or list, of numbers as `number` wants them."""
    value = entry(group, name)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"Invalid {name}: {value!r}, expected a pair of numbers")
    for i in range(2):
        number(value, i, f"{title} at index {i}", below=below, infinite=infinite)


def betas(group: dict[str, Any]) -> None:
    """Raise unless `group["betas"]` is a pair of numbers in [0, 1)."""
    pair(group, "betas", "beta parameter", below=1)


def count(group: dict[str, Any], name: str, *, least: int, most: int | None = None) -> None:
    """Raise unless `group[name]` is an int, not True or False, in the range."""
    value = entry(group, name)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"Invalid {name} value: {value!r}, expected an int")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"Invalid {name} value: {value}, expected {expected}")


def flags(group: dict[str, Any], *names: str) -> None:
    """Raise unless each of the group's named entries is True or False."""
    for name in names:
        value = entry(group, name)
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"Invalid {name}: {value!r}, expected True or False")


def choice(group: dict[str, Any], name: str, known: tuple[str, ...]) -> None:
    """Raise unless `group[name]` is None or one of the strings in `known`."""
    value = entry(group, name)
    if value is not None and not (isinstance(value, str) and value in known):
        names = ", ".join(map(repr, known))
        raise ValueError(f"Invalid {name}: {value!r}, expected None or one of {names}")


# ---- what has changed since the last check ----


def snapshot(group: dict[str, Any]) -> dict[str, Any]:
    """A group as it is now, for `same`, and for the host's arithmetic.

    Of pairs in lists, which can be edited, it has copies, and Python's numbers in place of NumPy's,
    whose types may be narrower than float64.
    """
    return {name: value if name == "params" else plain(value) for name, value in group.items()}


def plain(value: Any) -> Any:
    """A hyper-parameter with Python's numbers in it, in place of NumPy's."""
    if isinstance(value, (np.floating, np.integer, np.bool_)):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def same(settings: dict[str, Any] | None, group: dict[str, Any]) -> bool:
    """Whether a group is as it was when the snapshot was taken."""
    try:
        return settings == group
    except (TypeError, ValueError):  # a user's own entries may be arrays, which have no one truth
        return False


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
        first, second = (label(i, parameters[i]) for i in pair)
        raise ValueError(
            f"{first} and {second} share memory, so that an update of one would change the other: "
            "give each an array of its own, or give the shared Parameter once"
        )


def parameters(groups: list[list[Parameter]]) -> None:
    """Raise ValueError if a parameter is in the groups twice, or two share memory."""
    everyone = [parameter for group in groups for parameter in group]
    places: dict[Parameter, int] = {}
    for i, parameter in enumerate(everyone):
        if places.setdefault(parameter, i) != i:
            raise ValueError(
                "some parameters appear in more than one parameter group, or twice in one: "
                f"{label(places[parameter], parameter)} is parameter {i} too; keep it in one place"
            )
    memory(everyone)


# ---- arrays, before a step uses them ----


def label(i: int, parameter: Parameter) -> str:
    """What messages call the `i`-th parameter of an optimizer."""
    return f"parameter {i}" if parameter.name is None else f"parameter {i} ({parameter.name!r})"


def array(view: np.ndarray, what: str) -> None:
    """Raise unless a view is one of floats, every element of which can be written."""
    buffers.check(view, what)
    layout = buffers.layout(view)
    if layout.order is None or not layout.writable:
        buffers.check_writable(view, what)


def gradient(view: np.ndarray, parameter: np.ndarray, what: str) -> None:
    """Raise unless a gradient fits its parameter, as they are now; both are views."""
    if isinstance(view, RowsView):
        if view.shape[1:] != parameter.shape[1:] or not view.largest < len(parameter):
            raise ValueError(
                f"the SparseGrad of {what} has values of shape {view.shape} and rows up to "
                f"{view.largest}, but the parameter's array has shape {parameter.shape} now: assign "
                "a gradient that fits"
            )
        return
    buffers.check(view, f"the gradient of {what}")
    if view.shape != parameter.shape:
        raise ValueError(
            f"the gradient of {what} has shape {view.shape}, but the parameter's array has shape "
            f"{parameter.shape}: assign a gradient of that shape"
        )
    if buffers.device_of(view) != buffers.device_of(parameter):
        raise ValueError(
            f"the gradient of {what} is on {buffers.device_of(view)}, but the parameter is on "
            f"{buffers.device_of(parameter)}: move one of them"
        )


def buffer(value: Any, name: str, what: str, parameter: np.ndarray) -> np.ndarray:
    """The view of a state buffer; raises unless it fits its parameter and can be written."""
    what = f"state {name!r} of {what}"
    if not buffers.is_array(value):
        raise TypeError(f"{what} must be an array, but is a {type(value).__name__}")
    view = buffers.view(value)
    array(view, what)
    if view.shape != parameter.shape:
        raise ValueError(
            f"{what} has shape {view.shape}, but the parameter's array has shape {parameter.shape}: "
            "delete the entry, which then begins anew, or put in an array of that shape"
        )
    if buffers.device_of(view) != buffers.device_of(parameter):
        raise ValueError(
            f"{what} is on {buffers.device_of(view)}, but the parameter is on "
            f"{buffers.device_of(parameter)}: move one of them"
        )
    return view


def state_number(value: Any, name: str, what: str) -> Any:
    """A number in a parameter's state; raises for what is none. "step" is a count."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"state {name!r} of {what} must be a number, but is {value!r}")
    if name == "step":
        if not (value >= 0 and float(value).is_integer()):
            raise ValueError(f"state 'step' of {what} must be a count of updates, but is {value!r}")
        return int(value)
    return float(value)


def apart(arrays: list[np.ndarray], whose: list[tuple[str, str]]) -> None:
    """Raise ValueError if two arrays that a step writes share memory.

    `whose` has the parameter that each belongs to and the name of the state it is, if it is not the
    parameter's own array.
    """
    pair = buffers.overlapping(arrays)
    if pair:
        first, second = (_described(*whose[i]) for i in pair)
        raise ValueError(
            f"{first} and {second} share memory, and a step would write both: give each an array of "
            "its own"
        )


def outside(
    gradients: list[Any],
    parameters: list[Parameter],
    first: int,
    arrays: list[np.ndarray],
    whose: list[tuple[str, str]],
) -> None:
    """Raise ValueError if a gradient shares memory with an array that a step writes.

    `first` is the number of the first parameter among all of the optimizer's.
    """
    for i, view in enumerate(gradients):
        if view is None:
            continue
        for array, (what, name) in zip(arrays, whose):
            if np.may_share_memory(view, array) and np.shares_memory(view, array):
                raise ValueError(
                    f"the gradient of {label(first + i, parameters[i])} shares memory with "
                    f"{_described(what, name)}, which the step changes: assign a copy of it"
                )


def _described(what: str, name: str) -> str:
    return f"state {name!r} of {what}" if name else f"the array of {what}"


# ---- arrays, where they are looked at one by one ----


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
