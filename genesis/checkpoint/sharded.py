"""Checkpoints of which several processes have written a part each.

A save has a number of its own. Each process writes one file, a shard; when all are on the disk, one of
them replaces the index, which names them. Until then the old index stands, and the shards that it names.
Index and shards are files as `save` writes them:

    NAME                           {"genesis sharded": 1, "save": id, "shards": [...], "values": {...}}
    NAME.<16 hex digits>-R-of-N    {"genesis shard": 1, "save": id, "rank": R, "values": {...},
                                    "pieces": {...}}

Of what is sharded, the index holds what is the same for all, such as the groups of an optimizer, and
each shard its pieces. Everything else is among the values of the first shard.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

INDEX, SHARD = "genesis sharded", "genesis shard"
VERSION = 1


class ShardError(ValueError):
    """Files do not belong together, or one is missing."""


class Piece(NamedTuple):
    """The state of some elements of a parameter.

    Attributes:
        parameter: its number among all.
        shape: its shape.
        start, stop: the first element, and one past the last.
        entries: numbers, and arrays: of just these elements, or of whatever shape if the piece is all of
            the parameter.
    """

    parameter: int
    shape: tuple[int, ...]
    start: int
    stop: int
    entries: dict[str, Any]


class Cover:
    """The state of some elements of a parameter, put together from pieces that overlap them.

    Args:
        what: what messages call the parameter.
        shape: the parameter's shape.
        start, stop: the first element, and one past the last.
    """

    def __init__(self, what: str, shape: tuple[int, ...], start: int, stop: int):
        self._what, self._shape, self._start, self._stop = what, tuple(shape), start, stop
        self._size = int(np.prod(shape, dtype=np.int64))
        self._whole = stop - start == self._size
        self._found: dict[str, Any] = {}
        self._covered: dict[str, int] = {}

    def add(self, piece: Piece) -> None:
        """Take what a piece has of these elements.

        Raises:
            ValueError: the piece is of a parameter of another shape.
        """
        if tuple(piece.shape) != self._shape:
            raise ValueError(
                f"the state of {self._what} was saved of shape {tuple(piece.shape)}, but the parameter "
                f"has {self._shape}"
            )
        is_all = piece.stop - piece.start == self._size
        begin, end = max(self._start, piece.start), min(self._stop, piece.stop)
        if begin >= end and not (is_all and self._whole):
            return
        for name, value in piece.entries.items():
            if not isinstance(value, np.ndarray) or (is_all and self._whole):
                self._found[name] = value
                continue
            if value.size != piece.stop - piece.start:
                raise ValueError(
                    f"state {name!r} of {self._what} has shape {value.shape}, which cannot be divided "
                    "among ranks"
                )
            if name not in self._found:
                self._found[name] = np.empty(self._stop - self._start, value.dtype)
            source = value.reshape(-1)[begin - piece.start : end - piece.start]
            self._found[name][begin - self._start : end - self._start] = source
            self._covered[name] = self._covered.get(name, 0) + end - begin

    def entries(self) -> dict[str, Any]:
        """What was found; nothing, if there was nothing.

        Raises:
            ValueError: pieces are missing.
        """
        for name, covered in self._covered.items():
            if covered != self._stop - self._start:
                raise ValueError(
                    f"state {name!r} of {self._what} is there for {covered} of "
                    f"{self._stop - self._start} elements: pieces of it are missing"
                )
            if self._whole:
                self._found[name] = self._found[name].reshape(self._shape)
        return self._found


def whole(pieces: Iterable[Piece]) -> dict[int, dict[str, Any]]:
    """The state of each parameter that has any, from all its pieces."""
    covers: dict[int, Cover] = {}
    for piece in pieces:
        if piece.parameter not in covers:
            size = int(np.prod(piece.shape, dtype=np.int64))
            covers[piece.parameter] = Cover(f"parameter {piece.parameter}", piece.shape, 0, size)
        covers[piece.parameter].add(piece)
    return {number: covers[number].entries() for number in sorted(covers)}


def shard_name(path: str, save: str, rank: int, ranks: int) -> str:
    """The name of the file that a rank writes."""
    return f"{os.path.basename(path)}.{save}-{rank}-of-{ranks}"


def index(save: str, shards: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """What the index holds."""
    return {INDEX: VERSION, "save": save, "shards": shards, "values": values}


def shard(save: str, rank: int, values: dict[str, Any], pieces: dict[str, Any]) -> dict[str, Any]:
    """What a rank's file holds; `pieces` are its own of each sharded value."""
    told = {name: [piece._asdict() for piece in each] for name, each in pieces.items()}
    return {SHARD: VERSION, "save": save, "rank": rank, "values": values, "pieces": told}


def is_index(loaded: Any) -> bool:
    """Whether what a file held is an index of shards."""
    return type(loaded) is dict and INDEX in loaded


def shards(path: str, loaded: dict[str, Any], load: Any) -> Iterator[dict[str, Any]]:
    """What the shards of an index hold, one after the other.

    Args:
        path: of the index.
        loaded: what it holds.
        load: what loads a file.

    Raises:
        ShardError: a shard is missing or belongs to another save; names it. What is wrong with a
            damaged one, `load` says.
    """
    names = loaded.get("shards")
    if (
        loaded[INDEX] != VERSION
        or type(names) is not list
        or type(loaded.get("values")) is not dict
    ):
        raise ShardError("it is an index of shards, but not one that this version reads")
    for rank, name in enumerate(names):
        if name != shard_name(path, str(loaded.get("save")), rank, len(names)):
            raise ShardError(
                f"it names {name!r} as a shard, which belongs to another file: index and shards are "
                "moved together, and keep their names"
            )
        file = os.path.join(os.path.dirname(path), name)
        try:
            found = load(file)
        except FileNotFoundError:
            raise ShardError(f"its shard {name!r} is missing") from None
        if (
            type(found) is not dict
            or found.get(SHARD) != VERSION
            or found.get("save") != loaded.get("save")
            or found.get("rank") != rank
        ):
            raise ShardError(f"its shard {name!r} was not written with it, but by another save")
        yield found


def pieces(found: dict[str, Any], name: str) -> Iterator[Piece]:
    """The pieces of one value in what a shard holds."""
    for told in found["pieces"].get(name, ()):
        yield Piece(**told)


def assembled(path: str, loaded: dict[str, Any], load: Any) -> dict[str, Any]:
    """The values of a checkpoint as one process has them, see `shards`."""
    values = dict(loaded["values"]) if type(loaded.get("values")) is dict else {}
    plain: dict[str, Any] = {}
    every: dict[str, list[Piece]] = {name: [] for name in values}
    for found in shards(path, loaded, load):
        plain.update(found["values"])
        for name, each in every.items():
            each += pieces(found, name)
    return {**plain, **{name: {"state": whole(every[name]), **values[name]} for name in values}}


def sweep(path: str, save: str) -> None:
    """Remove the shards of other saves to the same path, which no index names any more."""
    directory, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.([0-9a-f]{16})-\d+-of-\d+")
    with suppress(OSError):
        for entry in os.listdir(directory or "."):
            match = pattern.fullmatch(entry)
            if match and match[1] != save:
                with suppress(OSError):
                    os.unlink(os.path.join(directory, entry))
