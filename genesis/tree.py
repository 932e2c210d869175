"""Trees: arrays in nested dicts, lists, tuples, namedtuples and dataclasses, as programs keep them.

A tree's *leaves* are what is in none of these: arrays, `Parameter`s, numbers. None is no leaf but an
empty place. Each leaf has a *path*, the keys that lead to it joined by points: `layers.0.W`. Keys of
mappings are gone through in sorted order, whatever order they were put in, so that equal trees are equal
lists. Types that were registered as nodes with JAX, or with optree in its global namespace, are nodes
here, too, once the program has imported that library.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, MappingView, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import numpy as np

__all__ = ["flatten_with_path", "map"]


def flatten_with_path(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree, each with its path.

    Args:
        tree: nested dicts (any mapping), lists, tuples, namedtuples, dataclasses and registered
            nodes of anything.

    Returns:
        `(path, leaf)` pairs, mappings in the sorted order of their keys, without those that are None.
        The path of a tree that is a leaf itself is "".

    Raises:
        ValueError: the tree contains itself.

    Example:
        >>> import genesis
        >>> genesis.tree.flatten_with_path({"layers": [{"b": 1, "W": 2}], "scale": 3, "none": None})
        [('layers.0.W', 2), ('layers.0.b', 1), ('scale', 3)]
    """
    return [(path, leaf) for path, leaf in leaves(tree) if leaf is not None]


def map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """A tree of what a function makes of each leaf.

    Args:
        function: called with a leaf, and the leaves of `others` in the same place.
        tree: the tree, as for `flatten_with_path`.
        others: trees of the same structure; the order of keys in mappings does not matter.

    Returns:
        A tree of the same types and keys. None stays None.

    Raises:
        ValueError: another tree has other keys, another length, or a node in place of a leaf; names
            the path.

    Example:
        >>> import numpy as np, genesis
        >>> params = {"W": np.ones((2, 2)), "b": np.zeros(2)}
        >>> grads = {"b": np.ones(2), "W": np.ones((2, 2))}
        >>> genesis.tree.map(lambda p, g: p - 0.5 * g, params, grads)["b"]
        array([-0.5, -0.5])
    """
    return _mapped(function, tree, others, ())


def _mapped(function: Callable, tree: Any, others: Sequence[Any], path: tuple) -> Any:
    node = opened(tree)
    if node is None:
        return None if tree is None else function(tree, *others)
    columns = []
    for other in others:
        against = opened(other)
        if against is None or not _same_keys(node.keys, against.keys):
            found = type(other).__name__ if against is None else f"keys {list(against.keys)}"
            raise ValueError(
                f"trees differ at {joined(path) or 'the top'}: the first has the keys "
                f"{list(node.keys)}, another has {found}"
            )
        places = dict(zip(against.keys, against.children))
        columns.append([places[key] for key in node.keys])
    return node.rebuild(
        [
            _mapped(function, child, [column[i] for column in columns], (*path, key))
            for i, (key, child) in enumerate(zip(node.keys, node.children))
        ]
    )


def _same_keys(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and set(some) == set(others)


# ---- what a node is ----


class Node(NamedTuple):
    """A node of a tree, one level of it."""

    keys: Sequence[Any]
    """What leads to each child, in the order of paths."""
    children: Sequence[Any]
    get: Callable[[Any], Sequence[Any]]
    """Takes the same children out of another node of the same type, keys and length."""
    rebuild: Callable[[list], Any]
    """Makes a node like it of other children."""


def opened(tree: Any) -> Node | None:
    """The node that a tree is at its top; None for a leaf, and for None."""
    kind = type(tree)
    if tree is None or kind is np.ndarray or isinstance(tree, (Iterator, MappingView)):
        return None
    if kind in (list, tuple):
        return Node(range(len(tree)), tree, _itself, kind)
    if isinstance(tree, Mapping):
        keys = _in_order(tree)
        get = _items(keys)
        if hasattr(kind, "__missing__"):  # a defaultdict would make up what it has not
            get = partial(_items_there, get, frozenset(keys))
        return Node(keys, get(tree), get, lambda children: _mapping(tree, keys, children))
    if isinstance(tree, tuple) and hasattr(kind, "_fields"):
        return Node(kind._fields, tree, _itself, lambda children: kind(*children))
    registered = _registered(tree)
    if registered is not None:
        return registered
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        get = _attributes(names)
        return Node(names, get(tree), get, lambda children: _dataclass(tree, names, children))
    if isinstance(tree, (list, tuple)):
        return Node(range(len(tree)), tree, _itself, kind)
    return None


def _itself(node: Any) -> Any:
    return node


def _in_order(mapping: Mapping) -> list[Any]:
    try:
        return sorted(mapping)
    except TypeError:  # keys that cannot be compared
        return sorted(mapping, key=lambda key: (type(key).__qualname__, str(key)))


def _items(keys: list[Any]) -> Callable[[Any], Sequence[Any]]:
    if len(keys) == 1:
        (key,) = keys
        return lambda node: (node[key],)
    return itemgetter(*keys) if keys else lambda node: ()


def _items_there(get: Callable, keys: frozenset, node: Any) -> Sequence[Any]:
    if node.keys() != keys:
        raise KeyError(keys)
    return get(node)


def _attributes(names: list[str]) -> Callable[[Any], Sequence[Any]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda node: [getattr(node, name) for name in names]


def _mapping(like: Any, keys: list[Any], children: list[Any]) -> Any:
    items = dict(zip(keys, children))
    in_place = {key: items[key] for key in like}
    if type(like) is dict:
        return in_place
    if not isinstance(like, dict):
        return type(like)(in_place)
    result = copy.copy(like)  # a defaultdict has more to it than its items
    result.update(in_place)
    return result


def _dataclass(like: Any, names: list[str], children: list[Any]) -> Any:
    result = copy.copy(like)
    for name, child in zip(names, children):
        object.__setattr__(result, name, child)  # also if it is frozen
    return result


def _registered(tree: Any) -> Node | None:
    """The node that somebody has told JAX or optree about, if the program uses one of them."""
    for library, needed, flatten in (
        ("jax", "tree_util", _flattened_by_jax),
        ("optree", "tree_flatten_with_path", _flattened_by_optree),
    ):
        module = sys.modules.get(library)
        if hasattr(module, needed):  # else it is not imported, or just being so
            found = flatten(module, tree)
            if found is not None:
                keys, children, rebuild = found
                return Node(keys, children, partial(_children_of, flatten, module, keys), rebuild)
    return None


def _children_of(flatten: Callable, module: Any, keys: list[str], node: Any) -> Sequence[Any]:
    """The children of another registered node; KeyError if it has other keys."""
    found = flatten(module, node)
    if found is None or found[0] != keys:
        raise KeyError(keys)
    return found[1]


_Flattened = tuple[list[str], list[Any], Callable[[list], Any]]


def _flattened_by_jax(jax: Any, tree: Any) -> _Flattened | None:
    pairs, definition = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda below: below is not tree
    )
    if len(pairs) == 1 and not pairs[0][0]:
        return None
    keys = [_name(path[0]) for path, _ in pairs]
    return keys, [child for _, child in pairs], definition.unflatten


def _flattened_by_optree(optree: Any, tree: Any) -> _Flattened | None:
    paths, children, definition = optree.tree_flatten_with_path(
        tree, is_leaf=lambda below: below is not tree, none_is_leaf=True
    )
    if paths == [()]:
        return None
    return [str(path[0]) for path in paths], children, definition.unflatten


def _name(key: Any) -> str:
    """What JAX's kinds of keys hold."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


# ---- paths ----


def joined(path: Sequence[Any]) -> str:
    """A path as messages and state dicts have it."""
    return ".".join(str(key) for key in path)


def leaves(tree: Any) -> list[tuple[str, Any]]:
    """As `flatten_with_path`, with the places that are None."""
    structure = Structure(tree)
    return list(zip(structure.paths, structure.leaves(tree) or ()))


# ---- the same tree again and again ----


class Structure:
    """What a tree is like, by which the leaves of others like it are taken in a few calls.

    Args:
        tree: a tree.

    Attributes:
        paths: the paths of its leaves and of places that are None, in order.
    """

    def __init__(self, tree: Any):
        self.paths: list[str] = []
        self._root = root = self._branch(tree, (), [])
        self._flat = None if root is None or not root.flat else (root.kind, root.size, root.get)

    def _branch(self, tree: Any, path: tuple, within: list[int]) -> _Branch | None:
        node = opened(tree)
        if node is None:
            self.paths.append(joined(path))
            return None
        if id(tree) in within:
            raise ValueError(f"the tree contains itself, at {joined(path)}")
        within.append(id(tree))
        below = [
            self._branch(child, (*path, key), within)
            for key, child in zip(node.keys, node.children)
        ]
        within.pop()
        return _Branch.of(tree, node, below)

    def leaves(self, tree: Any) -> list[Any] | None:
        """The leaves of another tree, in the order of `paths`; None if it is not like the first.

        What is a leaf in the first may be anything there, a node or None too.
        """
        try:
            if self._flat is not None:  # most trees
                kind, size, get = self._flat
                if type(tree) is not kind or (size >= 0 and len(tree) != size):  # type: ignore[arg-type]
                    return None
                return list(get(tree))
            found: list[Any] = []
            return found if _taken(self._root, tree, found) else None
        except (KeyError, AttributeError):  # another key in place of one
            return None


class _Branch(NamedTuple):
    """A node of a structure."""

    kind: type
    keys: tuple
    size: int
    """How many children another node must have; -1 if `get` sees to that."""
    get: Callable[[Any], Sequence[Any]]
    below: list[_Branch | None]
    flat: bool
    """Whether there are leaves only below it."""
    alike: bool
    """Whether there are only nodes of one kind below it, with the same keys and leaves only."""

    @classmethod
    def of(cls, tree: Any, node: Node, below: list[_Branch | None]) -> _Branch:
        flat = all(branch is None for branch in below)
        kinds = {
            (branch.kind, branch.keys) if branch is not None and branch.flat else None
            for branch in below
        }
        alike = len(kinds) == 1 and None not in kinds
        keys = tuple(node.keys)
        size = len(keys) if isinstance(tree, (Mapping, list, tuple)) else -1
        return cls(type(tree), keys, size, node.get, below, flat, alike)


def _taken(branch: _Branch | None, tree: Any, found: list[Any]) -> bool:
    """Put the leaves of a tree into `found`; whether the tree is as the branch says."""
    if branch is None:
        found.append(tree)
        return True
    if type(tree) is not branch.kind:
        return False
    if branch.size >= 0 and len(tree) != branch.size:  # type: ignore[arg-type]
        return False
    children = branch.get(tree)
    if branch.flat:
        found.extend(children)
        return True
    if branch.alike:  # layer after layer: at the speed of C, not of Python
        first = branch.below[0]
        assert first is not None
        if set(builtins.map(type, children)) != {first.kind}:
            return False
        if first.size >= 0 and set(builtins.map(len, children)) != {first.size}:
            return False
        found.extend(chain.from_iterable(builtins.map(first.get, children)))
        return True
    for below, child in zip(branch.below, children):
        if below is None:
            found.append(child)
        elif not _taken(below, child, found):
            return False
    return True
