"""Many tensors as one table of addresses, cut into chunks: what one launch works through.

Row `t` of `addresses` holds where tensor `t` keeps its gradient, its parameter and each of its state
buffers. Row `c` of `chunks` is a piece of work: (tensor, first element, one past the last). Chunks
have a fixed size, so that neither the number of threads nor the size of a tensor decides how work is
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .. import buffers
from . import storage


class Table:
    """The tensors of one launch, by column: gradients, then parameters, then state buffers, if any.

    A kernel walks memory from the first byte to the last, so a row's arrays must all lie flat in one
    order. One that does not (strided, unaligned, or ordered unlike its parameter) is represented by
    a flat copy, filled before a launch and written back after it.

    Args:
        columns: for each column the views (see `buffers.view`) of all rows' arrays; arrays of one column have one data type,
            arrays of one row have one shape. Gradients are only read if there are other columns.
        target: the module that compiles and launches for the device where the arrays lie.
        stream: the stream on which the target works; None on the CPU.

    Attributes:
        device: where the arrays lie.
        storages: the storage type of each column.
        arithmetic: the name of the type in which parameters are updated.
        addresses, chunks: see above.
        bytes_of_column, bytes_moved: the size of each column, and what an update reads and writes.
        streams: the streams on which producers of the arrays say that they work.
        on_change: called, if set, with the rows whose addresses are about to change.
    """

    def __init__(
        self, columns: Sequence[Sequence[np.ndarray]], target: ModuleType, stream: Any = None
    ):
        self._target = target
        self._stream = stream
        self._streams: list[set[int]] = [set() for _ in columns]
        self.on_change: Callable[[np.ndarray], None] | None = None
        self._first_written = min(1, len(columns) - 1)
        parameters = columns[self._first_written]
        self.device = buffers.layout(parameters[0]).device
        self.storages = tuple(buffers.layout(column[0]).dtype for column in columns)
        self.orders = [buffers.flat_order(parameter) for parameter in parameters]
        self.addresses = np.empty((len(parameters), len(columns)), np.int64)
        self.chunks = cut([p.size for p in parameters], target.CHUNK)
        self.elements = sum(p.size for p in parameters)
        self.arithmetic = storage.arithmetic(self.storages[self._first_written]).name
        self.bytes_of_column = [self.elements * storage.BYTES[name] for name in self.storages]
        # Everything is read, and all but the gradients written.
        self.bytes_moved = 2 * sum(self.bytes_of_column) - self.bytes_of_column[0]
        self._copies: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for column, arrays in enumerate(columns):
            for row, array in enumerate(arrays):
                if buffers.layout(array).order not in (self.orders[row], "any"):
                    copy = buffers.empty(array.shape, array, self.orders[row])
                    self._copies[row, column] = array, buffers.view(copy)
            self.refresh(column, arrays)

    @property
    def streams(self) -> set[int]:
        return set().union(*self._streams)

    @property
    def has_copies(self) -> bool:
        """Whether `gather` and `scatter` have anything to do."""
        return bool(self._copies)

    def refresh(self, column: int, arrays: Sequence[np.ndarray]) -> None:
        """Take in the arrays that a column now consists of, laid out as those before them."""
        flat = list(arrays)
        for (row, copied), (_, copy) in self._copies.items():
            if copied == column:
                self._copies[row, column] = arrays[row], copy
                flat[row] = copy
        if self.device != "cpu":
            self._streams[column] = {s for array in arrays if (s := array.stream) is not None}
        addresses = self._target.addresses(flat)
        if self.on_change is not None:
            self.on_change(np.flatnonzero(self.addresses[:, column] != addresses))
        self.addresses[:, column] = addresses

    def gather(self) -> None:
        """Before a launch: bring the copies of arrays that do not lie flat up to date."""
        for array, copy in self._copies.values():
            self._target.copy(copy, array, self._stream)

    def scatter(self) -> None:
        """After a launch: write the copies of updated arrays back to where they came from."""
        for (_, column), (array, copy) in self._copies.items():
            if column >= self._first_written:
                self._target.copy(array, copy, self._stream)


def cut(sizes: Sequence[int], chunk: int) -> np.ndarray:
    """Cut tensors of the given sizes into chunks: an int64 array of (tensor, start, stop) rows."""
    size = np.asarray(sizes, np.int64)
    counts = -(-size // chunk)
    tensor = np.repeat(np.arange(len(size)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(tensor)) - first[tensor]) * chunk
    return np.stack([tensor, start, np.minimum(start + chunk, size[tensor])], axis=1)
