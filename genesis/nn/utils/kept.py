"""Tables of arrays that are clipped or measured, kept for the next call with arrays like them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ... import buffers, kernels
from ...commit import commit
from ...kernels import overlaps

_Key = tuple[int, tuple[int, ...], tuple[int, ...]]


class _Place:
    """Stands where a parameter would that has the array for its gradient, see `kernels.watch`."""

    __slots__ = ("array", "copy", "gradient")


@lru_cache(maxsize=None)
def _slots() -> tuple[int, ...]:
    return tuple(kernels.slot_offset(_Place, name) for name in _Place.__slots__)


class Tables:
    """Tables of NumPy arrays that lie flat, one for each data type.

    They hold no array between `take` and `release`, and know none by its address without having
    looked at it in the same call.

    Args:
        views: the arrays that they are made for.

    Attributes:
        batches: what reduces and transforms those that have elements.
        writable: whether they can be written.
    """

    def __init__(self, views: list[np.ndarray]):
        self.batches: list[kernels.FlatBatch] = []
        self.writable = all(view.flags.writeable for view in views)
        self._views: list[np.ndarray] = []
        self._apart = False
        by_type: dict[str, list[int]] = {}
        for row, view in enumerate(views):
            by_type.setdefault(buffers.layout(view).dtype, []).append(row)
        # Where the last look found each array; where empty ones lie is of no use to anybody.
        self._nowhere = np.zeros(1, np.int64)
        cells = np.full(len(views), self._nowhere.ctypes.data)
        for storage, rows in by_type.items():
            filled = [row for row in rows if views[row].size]
            if filled:
                batch = kernels.FlatBatch([views[row].size for row in filled], storage)
                step = batch.addresses.strides[0]
                cells[filled] = batch.addresses.ctypes.data + step * np.arange(len(filled))
                self.batches.append(batch)
        self._places = [_Place() for _ in views]
        for place in self._places:
            place.array = place.copy = place.gradient = None  # type: ignore[attr-defined]
        nothing = [None] * len(views)
        # Arrays of such shapes, in which no element has memory of its own.
        patterns = [np.broadcast_to(np.zeros((), view.dtype), view.shape) for view in views]
        self._watch = kernels.watch(
            self._places, _slots(), (nothing, nothing), views, range(len(views)), cells, patterns
        )

    def take(self, views: list[np.ndarray]) -> bool:
        """Look at arrays, and hold them if they are like those that the tables were made for."""
        moved = self._watch.compare(id(self._places), id(views))
        if moved == kernels.CHANGED:
            self.release()
            return False
        self._views = views
        self._apart = self._apart and not moved
        return True

    def apart(self) -> bool:
        """Whether no two arrays can share memory."""
        self._apart = self._apart or overlaps.apart(self._views)
        return self._apart

    def norm(self, norm_type: float) -> float:
        """The norm of all arrays together."""
        return kernels.norm(self.batches, norm_type)

    def transform(self, function: Callable, scalars: Sequence[float]) -> None:
        """Replace every element `x` by `function(x, scalars)`, see `kernels.transforms`."""
        commit([call for each in self.batches for call in each.transforming(function, scalars)])

    def release(self) -> None:
        """Hold no arrays any more."""
        self._views = []
        self._watch.release()


_KEPT: dict[_Key, Tables] = {}
"""Tables that are not in use, the last one last."""

_MOST_KEPT = 16


class Tabled:
    """Arrays in tables, while they are worked on; None in place of those if there can be none.

        with Tabled(views, writing=True) as tables:
            if tables is not None: ...

    Args:
        views: the arrays; or None, they are not known.
        writing: whether they are changed.

    There are tables for NumPy arrays of floats that lie flat, and for writing if none is read-only or
    may share memory with another.
    """

    def __init__(self, views: list[Any] | None, *, writing: bool):
        self._views, self._writing = views, writing
        self._tables: Tables | None = None

    def __enter__(self) -> Tables | None:
        views = self._views
        if not views or set(map(type, views)) != {np.ndarray}:
            return None
        tables = _KEPT.pop(_key(views), None)
        if tables is None or not tables.take(views):
            if not all(view.dtype in buffers.FLOAT_TYPES for view in views):
                return None
            if any(buffers.layout(view).order is None for view in views):
                return None
            tables = Tables(views)
            if not tables.take(views):  # another thread has changed one meanwhile
                return None
        self._tables = tables
        return tables if not self._writing or (tables.writable and tables.apart()) else None

    def __exit__(self, *raised: object) -> None:
        if self._tables is not None:
            assert self._views is not None
            self._tables.release()
            _KEPT[_key(self._views)] = self._tables
            for key in list(_KEPT)[:-_MOST_KEPT]:
                _KEPT.pop(key, None)


def _key(views: list[np.ndarray]) -> _Key:
    """What is the same for arrays like these; it may be so for others, too."""
    return len(views), views[0].shape, views[-1].shape
