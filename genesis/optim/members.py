"""What an optimizer is given: groups, the parameters in them, and what these are called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from types import FrameType
from typing import Any

from .. import buffers, tree
from ..parameter import Parameter


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
            "params must be a tree of arrays, or an iterable of Parameters or dicts, but got a single "
            "Parameter: put it in a list, [parameter]"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if tree.opened(params) is None:
        if buffers.is_arraylike(params) or not isinstance(params, Iterable):
            raise TypeError(
                "params must be a tree of arrays, or an iterable of Parameters or dicts, but got a "
                f"single {type(params).__name__}: put it in a list, [array]"
            )
        params = list(params)
    if isinstance(params, Sized) and not len(params):
        raise ValueError("optimizer got an empty parameter list")
    if isinstance(params, (list, tuple)) and any(map(_is_group, params)):
        return list(params)
    is_dict = isinstance(params, dict) and "params" in params
    if is_dict and not all(map(_may_hold_arrays, params.values())):
        raise TypeError(
            f"params is a single dict with {list(params)}: as a group of parameters it goes in a list, "
            "[group]; a tree has arrays alone"
        )
    return [{"params": params}]


def _is_group(entry: Any) -> bool:
    """Whether an entry of a list is meant as a group, and not as a part of a tree."""
    if not isinstance(entry, dict):
        return False
    return "params" in entry or not any(map(_may_hold_arrays, entry.values()))


def _may_hold_arrays(value: Any) -> bool:
    return value is None or buffers.is_arraylike(value) or tree.opened(value) is not None


def of_group(params: Any) -> tuple[list[Parameter], list[str] | None]:
    """A group's "params" as a list, each parameter once, and their names if they have any.

    Arrays in a tree become parameters that share them, named by their paths.
    """
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, Parameter):
        return [params], None
    if tree.opened(params) is None:
        if buffers.is_arraylike(params):
            return [_parameter("", params)], None
        if not isinstance(params, Iterable) or isinstance(params, str):
            raise TypeError(
                f"a group's params must be a tree of arrays or Parameters, but got a "
                f"{type(params).__name__}"
            )
        params = list(params)
    if isinstance(params, (list, tuple)) and not hasattr(params, "_fields"):
        pairs = [entry for entry in params if _is_pair(entry)]
        plain = [entry for entry in params if isinstance(entry, Parameter)]
        if len(plain) == len(params):
            once = list(dict.fromkeys(plain))
            _say_duplicates(len(once) < len(plain))
            return once, None
        if pairs and len(pairs) + len(plain) == len(params):
            return _of_pairs(pairs, len(params))
    return _of_tree(tree.flatten_with_path(params))


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def are_pairs(params: Any) -> bool:
    """Whether these are (name, ...) pairs."""
    return isinstance(params, (list, tuple)) and len(params) > 0 and all(map(_is_pair, params))


def _of_pairs(pairs: list[tuple[str, Any]], count: int) -> tuple[list[Parameter], list[str]]:
    """The parameters that (name, Parameter) pairs name, or (name, tree)."""
    if len(pairs) < count:
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    if not all(isinstance(entry, Parameter) for _, entry in pairs):
        return _of_tree(named(pairs))
    once: dict[Parameter, str] = {}
    for name, parameter in pairs:
        once.setdefault(parameter, name)
    _say_duplicates(len(once) < len(pairs))
    return list(once), list(once.values())


def _say_duplicates(there_are: bool) -> None:
    if there_are:
        warn("optimizer contains a parameter group with duplicate parameters; each is kept once")


def listed(params: Any) -> Any:
    """What an iterator gives, as a list; all else as it is."""
    is_tree = tree.opened(params) is not None or buffers.is_arraylike(params)
    return list(params) if isinstance(params, Iterable) and not is_tree else params


def named(params: Any) -> list[tuple[str, Any]]:
    """The parameters of a tree, or of (name, Parameter) pairs or (name, tree), with their names."""
    params = listed(params)
    if not are_pairs(params):
        return tree.flatten_with_path(params)
    return [
        (tree.joined([name, path]) if path else name, leaf)
        for name, below in params
        for path, leaf in tree.flatten_with_path(below)
    ]


def _of_tree(leaves: list[tuple[str, Any]]) -> tuple[list[Parameter], list[str]]:
    parameters: list[Parameter] = []
    paths: dict[Parameter, str] = {}
    for path, leaf in leaves:
        parameter = _parameter(path, leaf)
        if parameter in paths:
            raise ValueError(
                f"one Parameter is at {paths[parameter]!r} and at {path!r}: each would have a gradient; "
                "keep it in one place, with the sum of its gradients"
            )
        paths[parameter] = path
        parameters.append(parameter)
    names = list(paths.values())
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two parameters have the path {twice!r}: give one of them another key")
    return parameters, names


def _parameter(path: str, leaf: Any) -> Parameter:
    """The parameter at a place of a tree: what is there, or a new one that shares the array there."""
    if isinstance(leaf, Parameter):
        return leaf
    what = f"parameter {path!r}" if path else "a parameter"
    if not buffers.is_arraylike(leaf):
        raise TypeError(
            f"optimizer can only optimize arrays and Parameters, but {what} is "
            f"{_short(leaf)}: give an array of {buffers.ACCEPTED}, or leave it out of params"
        )
    return Parameter(buffers.given(buffers.adopted(leaf, what)), name=path or None)


def _short(value: Any) -> str:
    shown = repr(value)
    kind = type(value).__name__
    return f"a {kind}" if len(shown) > 40 else f"a {kind}, {shown}"


def check_parameters(parameters: Sequence[Any]) -> None:
    """Raise TypeError if something else is among a group's parameters, as after somebody's edit."""
    for entry in parameters:
        if not isinstance(entry, Parameter):
            raise TypeError(
                "optimizer can only optimize Parameters, but one of the params of a group is "
                f"{_short(entry)}: add arrays with optimizer.add_param_group"
            )


Members = tuple[Sequence[Parameter], Sequence[str | None]]
"""The parameters of a group, and what each is called."""


def names(group: Mapping[str, Any], parameters: Sequence[Parameter]) -> list[str | None]:
    """What the parameters of a group are called: by its names, or else by their own."""
    given = group.get("param_names")
    if isinstance(given, (list, tuple)) and len(given) == len(parameters):
        return list(given)
    return [parameter.name for parameter in parameters]


def distinct(groups: Sequence[Members]) -> None:
    """Raise ValueError if a parameter is in the groups twice, or two share memory."""
    everyone = [parameter for parameters, _ in groups for parameter in parameters]
    called = [name for _, names in groups for name in names]
    places: dict[Parameter, int] = {}
    for i, parameter in enumerate(everyone):
        first = places.setdefault(parameter, i)
        if first != i:
            raise ValueError(
                "some parameters appear in more than one parameter group, or twice in one: "
                f"{label(first, called[first])} is parameter {i} too; keep it in one place"
            )
    pair = buffers.overlapping([p._view for p in everyone])
    if pair:
        one, another = (label(i, called[i]) for i in pair)
        raise ValueError(
            f"{one} and {another} share memory, so that an update of one would change the other: "
            "give each an array of its own, or give the shared Parameter once"
        )


def labels(param_groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """What messages call each parameter of an optimizer with these groups."""
    called = [name for group in param_groups for name in names(group, group["params"])]
    return [label(i, name) for i, name in enumerate(called)]


def label(i: int, name: str | None) -> str:
    """What messages call the `i`-th parameter of an optimizer."""
    return f"parameter {i}" if name is None else f"parameter {i} ({name!r})"
