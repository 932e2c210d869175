"""Whether lists and dicts hold the objects that they did, compared in compiled passes.

A list is read as CPython lays it out, which `headers` probes; dicts are asked by CPython's stable
interface for C. A pass holds the interpreter's lock, and none of it runs Python code: names are strings,
whose hashes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import ids
from .compiling import once
from .headers import ITEMS, LENGTH, TYPE, probe
from .memory import put, word
from .specialise import compile_function, specialised

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def entry(typing_context, dictionary, name):
    """The address of what a dict has under a name; 0 if it has no such name."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I64, [_I64, _I64])
        function = cgutils.get_or_insert_function(builder.module, kind, "PyDict_GetItem")
        return builder.call(function, arguments)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def following(typing_context, dictionary, cursor):
    """Go on to the next item of a dict: a cursor is its position, its key and its value.

    Returns 0 if there is none.
    """

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I32, [_I64] * 4)
        function = cgutils.get_or_insert_function(builder.module, kind, "PyDict_Next")
        dictionary, cursor = arguments
        places = [builder.add(cursor, _I64(8 * i)) for i in range(3)]
        return builder.sext(builder.call(function, [dictionary, *places]), _I64)

    return types.int64(types.int64, types.int64), generate


def same_items(things, objects):
    """Whether a list, at an address, has these objects."""
    if word(things + LENGTH) != len(objects):
        return False
    items = word(things + ITEMS)
    for i in range(len(objects)):  # noqa: SIM110, what Numba compiles well
        if word(items + 8 * i) != objects[i]:
            return False
    return True


def same_dict(dictionary, cursor, keys, values):
    """Whether a dict, at an address, has these items in this order.

    `cursor` is the address of memory for three numbers.
    """
    put(cursor, 0)
    for i in range(len(keys)):
        if following(dictionary, cursor) == 0:
            return False
        if word(cursor + 8) != keys[i] or word(cursor + 16) != values[i]:
            return False
    return following(dictionary, cursor) == 0


def same_entries(dictionaries, names, objects):
    """Whether each dict has these objects under these names."""
    for row in range(len(dictionaries)):
        for column in range(len(names)):
            if entry(dictionaries[row], names[column]) != objects[row, column]:
                return False
    return True


def gather(things, rows, kinds, objects):
    """Put the addresses of a list's items into a first column; whether all are of these classes."""
    items = word(things + ITEMS)
    for i in range(len(rows)):
        if rows[i] >= word(things + LENGTH):
            return False
        found = word(items + 8 * rows[i])
        kind = word(found + TYPE)
        known = False
        for k in range(len(kinds)):
            known = known or kinds[k] == kind
        if not known:
            return False
        objects[i, 0] = found
    return True


_NUMBER, _FLAG = types.int64, types.boolean
_VECTOR, _MATRIX = types.Array(_NUMBER, 1, "C"), types.Array(_NUMBER, 2, "C")
_SIGNATURES: dict[Callable, tuple] = {
    same_items: (_NUMBER, _VECTOR),
    same_dict: (_NUMBER, _NUMBER, _VECTOR, _VECTOR),
    same_entries: (_VECTOR, _VECTOR, _MATRIX),
    gather: (_NUMBER, _VECTOR, _VECTOR, _MATRIX),
}


@once
def _compiled(function: Any) -> Any:
    probe()
    template = specialised(function, function.__name__, {})
    signature = _FLAG(*_SIGNATURES[function])
    return compile_function(
        template, signature, nogil=False, what=f"{function.__name__} of every step"
    )


class KeptList:
    """What a list held."""

    def __init__(self, things: Sequence[Any]):
        self._things = list(things)  # alive, for only then do addresses say who they are
        self._objects = ids(self._things)
        self._compare = _compiled(same_items)

    def is_same(self, things: Any) -> bool:
        """Whether a list holds the same objects in the same order."""
        return type(things) is list and self._compare(id(things), self._objects)


class KeptDict:
    """What a dict held."""

    def __init__(self, dictionary: dict):
        self._things = list(dictionary), list(dictionary.values())
        self._objects = list(map(ids, self._things))
        self._cursor = np.zeros(3, np.int64)
        self._compare = _compiled(same_dict)

    def is_same(self, dictionary: Any) -> bool:
        """Whether a dict holds the same objects under the same keys in the same order."""
        place = self._cursor.ctypes.data
        return isinstance(dictionary, dict) and self._compare(id(dictionary), place, *self._objects)


class KeptEntries:
    """What some dicts are to hold under some names.

    Args:
        dictionaries: the dicts, of no subclass.
        names: the names.
        objects: for each dict and name the object.
    """

    def __init__(
        self, dictionaries: Sequence[dict], names: Sequence[str], objects: Sequence[Sequence[Any]]
    ):
        self._things = list(dictionaries), list(names), list(objects)
        flat = [thing for row in objects for thing in row]
        self._arguments = ids(dictionaries), ids(self._things[1]), ids(flat).reshape(-1, len(names))
        self._compare = _compiled(same_entries)

    def are_same(self) -> bool:
        """Whether they do."""
        return self._compare(*self._arguments)


class Gatherer:
    """Where some items of lists go, as addresses, if they are of certain classes.

    Args:
        rows: the positions of the items.
        kinds: the classes, exactly.
        objects: a table whose first column is filled.
    """

    def __init__(self, rows: Sequence[int], kinds: Sequence[type], objects: np.ndarray):
        self._kinds = list(kinds)
        self._arguments = np.array(rows, np.int64), ids(self._kinds), objects
        self._gather = _compiled(gather)

    def gather(self, things: list) -> bool:
        """Fill the table from a list; whether all items are of the classes."""
        return self._gather(id(things), *self._arguments)
