"""Gradients that a step is given, or that its closure returns: which leaf is whose.

They belong to that step alone: what parameters hold in `grad` is neither read nor changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from operator import itemgetter
from typing import Any

import numpy as np

from .. import buffers, tree
from ..parameter import Parameter
from ..sparse import SparseGrad
from .members import label, names

_AS_THEY_ARE = {np.ndarray, type(None)}
"""Types of leaves that are their own views."""

Views = list[Any]
"""For each parameter of a group the view of its gradient, or None."""


def of_closure(result: Any) -> tuple[Any, Any]:
    """What a closure has returned as the loss and the tree of gradients, or None in its place."""
    if type(result) is tuple and len(result) == 2 and tree.opened(result[1]) is not None:
        return result
    return result, None


class Matching:
    """Which leaf of a tree of gradients belongs to which parameter, found once for all trees like it.

    Parameters are found by their names. Those of an optimizer without names count as one list; where
    there are several groups, the tree may also be a list with a tree for each.

    Args:
        groups: the optimizer's groups.
        grads: a tree of gradients.

    Raises:
        TypeError: `grads` is no tree.
        ValueError: a parameter has no leaf, or a leaf no parameter; names its path.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], grads: Any):
        if tree.opened(grads) is None:
            hint = "list(grads)" if isinstance(grads, Iterable) else "[gradient]"
            raise TypeError(
                "grads must be a tree like the parameters, a dict or a list of arrays, but got "
                f"{type(grads).__name__}: write {hint if np.ndim(grads) == 0 else '[gradient]'}"
            )
        self._called = [(copy(group.get("param_names")), len(group["params"])) for group in groups]
        self._numbered = tuple(enumerate(self._called))
        self._structure = tree.Structure(grads)
        places: dict[str, int] = {}
        for place, path in enumerate(self._structure.paths):
            if places.setdefault(path, place) != place:
                raise ValueError(f"grads has two leaves at {path!r}: give one of them another key")
        self._nowhere = len(places)
        leaves = self._structure.leaves(grads)
        assert leaves is not None
        empty = {path: place for path, place in places.items() if leaves[place] is None}
        wanted = _wanted(self._called)
        found = self._found(wanted, places, empty)
        is_list = isinstance(grads, (list, tuple)) and len(grads) == len(groups) > 1
        if isinstance(found, str) and is_list:
            alone = [_wanted([called])[0] for called in self._called]
            by_group = [[f"{i}.{name}" for name in each] for i, each in enumerate(alone)]
            again = self._found(by_group, places, empty)
            found = found if isinstance(again, str) else again
        if isinstance(found, str):
            raise ValueError(found)
        self._places, self._takes = found, [_taking(each) for each in found]
        self._whole = len(found) == 1 and found[0] == list(range(len(places)))

    def _found(
        self, wanted: list[list[str]], places: dict[str, int], empty: dict[str, int]
    ) -> list[list[int]] | str:
        """The place of each parameter's gradient among the leaves; or what is wrong, as a message."""
        every = [name for each in wanted for name in each]
        if len(set(every)) < len(every):
            twice = next(name for i, name in enumerate(every) if name in every[:i])
            return (
                f"two parameters are called {twice!r}, so that grads cannot say whose a gradient is: "
                "give a list with the gradients of each group, or the groups names of their own, "
                "{'params': {'encoder': tree}}"
            )
        found: dict[str, int] = {}
        self._empty: set[int] = set()
        for i, name in enumerate(every):
            if name in places:
                found[name] = places[name]
                continue
            parts = name.split(".")
            above = [".".join(parts[:n]) for n in range(len(parts))]
            nothing = next((empty[path] for path in above if path in empty), None)
            if nothing is None:
                known = set(every)
                others = [path for path in places if path not in known]
                return f"grads has no {name!r}, the gradient of {label(i, name)}{_instead(name, others)}"
            self._empty.add(nothing)
            found[name] = self._nowhere
        for path, place in places.items():
            if path in found:
                continue
            if path in empty:
                self._empty.add(place)
            else:
                return (
                    f"grads has {path!r}, but the optimizer has no such parameter: take it out"
                    + _like(path, every)
                )
        return [[found[name] for name in each] for each in wanted]

    def views(self, groups: Sequence[Mapping[str, Any]], grads: Any) -> list[Views] | None:
        """For each group the views of its gradients, of which a step will see whether they fit.

        None if groups or tree are not as they were.

        Raises:
            TypeError: a leaf is no array that can be read where it lies.
            ValueError: a `SparseGrad` does not fit its parameter.
        """
        if len(groups) != len(self._called):
            return None
        for i, (given, count) in self._numbered:
            group = groups[i]
            if group.get("param_names") != given or len(group["params"]) != count:
                return None
        leaves = self._structure.leaves(grads)
        if leaves is None or (self._empty and self._is_filled(leaves)):
            return None
        if not _AS_THEY_ARE.issuperset(map(type, leaves)) and not self._convert(groups, leaves):
            return None
        if self._whole:
            return [leaves]
        leaves.append(None)
        return [take(leaves) for take in self._takes]

    def _is_filled(self, leaves: list[Any]) -> bool:
        """Whether something is where None stood for more than one parameter, or for none."""
        return any(leaves[place] is not None for place in self._empty)

    def _convert(self, groups: Sequence[Mapping[str, Any]], leaves: list[Any]) -> bool:
        """Put the views of arrays of other kinds in their place; False if a node stands there now."""
        first = 0
        for group, places in zip(groups, self._places):
            parameters = group["params"]
            called = names(group, parameters)
            for i, (parameter, name, place) in enumerate(zip(parameters, called, places)):
                if place == self._nowhere or type(leaves[place]) in _AS_THEY_ARE:
                    continue
                if tree.opened(leaves[place]) is not None:
                    return False
                leaves[place] = _view(leaves[place], parameter, label(first + i, name))
            first += len(parameters)
        return True


def _wanted(called: list[tuple[Any, int]]) -> list[list[str]]:
    """What a tree must call the gradients of each group: by name, or else by number."""
    wanted: list[list[str]] = []
    first = 0
    for given, count in called:
        has_names = isinstance(given, (list, tuple)) and len(given) == count
        wanted.append(list(given) if has_names else [str(first + i) for i in range(count)])
        first += count
    return wanted


def _instead(name: str, others: list[str]) -> str:
    """What to do about a gradient that is missing, where these leaves have no parameter."""
    within = next((path for path in others if path.startswith(f"{name}.")), None)
    if within is not None:
        return (
            f", but something nested there, with a leaf at {within!r}: give one array, as "
            "numpy.asarray(...) makes of a list of numbers"
        )
    like = _like(name, others)
    if others and not like:
        like = f". It has {others[0]!r}, which no parameter is called"
    return f": give an array, or None to leave that parameter as it is{like}"


def _like(name: str, others: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(others), 1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _taking(places: list[int]) -> Callable[[list[Any]], list[Any]]:
    if len(places) < 2:
        return lambda leaves: [leaves[place] for place in places]
    get = itemgetter(*places)
    return lambda leaves: list(get(leaves))


def _view(leaf: Any, parameter: Parameter, what: str) -> np.ndarray:
    if isinstance(leaf, SparseGrad):
        return leaf.view_for(parameter.shape, parameter.device, f" of {what}")
    if isinstance(leaf, Parameter):
        raise TypeError(f"the gradient of {what} is a Parameter: give the gradient, parameter.grad")
    return buffers.readable(leaf, f"the gradient of {what}")
