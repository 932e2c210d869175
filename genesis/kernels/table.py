"""Many tensors as one table of addresses, cut into chunks: what one launch works through.

Row `t` of `addresses` holds where tensor `t` keeps its gradient, its parameter and each of its state
buffers. Row `c` of `chunks` is a piece of work: (tensor, first element, one past the last). Chunks
have a fixed size, so that neither the number of threads nor the size of a tensor decides how work is
cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from .. import buffers
from ..sparse import RowsView, sorted_rows
from . import rules, storage


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
        keys: a number for each row, which a kernel finds behind its addresses. Default: None, none.

    Attributes:
        device: where the arrays lie.
        storages: the storage type of each column.
        arithmetic: the name of the type in which parameters are updated.
        addresses, chunks: see above.
        bytes_of_column, bytes_moved: the size of each column, and what an update reads and writes.
        streams: the streams on which producers of the arrays say that they work.
        on_change: called, if set, with the rows whose addresses have changed.
    """

    def __init__(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        target: ModuleType,
        stream: Any = None,
        keys: Sequence[int] | None = None,
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
        self.addresses = np.empty((len(parameters), len(columns) + (keys is not None)), np.int64)
        if keys is not None:
            self.addresses[:, -1] = keys
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
        changed = np.flatnonzero(self.addresses[:, column] != addresses)
        self.addresses[:, column] = addresses
        if self.on_change is not None:
            self.on_change(changed)

    def gather(self) -> None:
        """Before a launch: bring the copies of arrays that do not lie flat up to date."""
        for array, copy in self._copies.values():
            self._target.copy(copy, array, self._stream)

    def scatter(self) -> None:
        """After a launch: write the copies of updated arrays back to where they came from."""
        for (_, column), (array, copy) in self._copies.items():
            if column >= self._first_written:
                self._target.copy(array, copy, self._stream)


class RowTable:
    """Rows of a few tensors as a table: each row of `addresses` is one row of every tensor.

    Addresses are computed, not looked up, so that rows cost no Python objects. A tensor whose rows
    do not lie flat in C order is represented by a copy of just these rows.

    Args:
        columns: for each column its tensor's view and which rows of it, int64; as many in each column,
            all of one shape. As in `Table`, the first column is only read.
        target: the module that compiles and launches for the CPU.
        key: with it each row gets a number of its own behind its addresses. Default: None, none.
        before: called before each launch, to make what the first column holds. Default: None.

    Attributes:
        see `Table`.
    """

    device = "cpu"

    def __init__(
        self,
        columns: Sequence[tuple[np.ndarray, np.ndarray]],
        target: ModuleType,
        key: int | None = None,
        before: Callable[[], None] | None = None,
    ):
        parameter, rows = columns[1]
        size = math.prod(parameter.shape[1:])
        self.storages = tuple(buffers.layout(array).dtype for array, _ in columns)
        self.arithmetic = storage.arithmetic(self.storages[1]).name
        self.addresses = np.empty((len(rows), len(columns) + (key is not None)), np.int64)
        if key is not None:
            self.addresses[:, -1] = key + ((rows + 1) << 32)
        self.chunks = cut(np.full(len(rows), size), target.CHUNK)
        self.elements = len(rows) * size
        self.bytes_of_column = [self.elements * storage.BYTES[name] for name in self.storages]
        self.bytes_moved = 2 * sum(self.bytes_of_column) - self.bytes_of_column[0]
        self._before = before
        self._copies: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool]] = []
        for column, (array, chosen) in enumerate(columns):
            if not (array[:1].flags.c_contiguous and array.flags.aligned):
                copy = np.empty((len(chosen), *array.shape[1:]), array.dtype)
                self._copies.append((array, chosen, copy, column > 0))
                array, chosen = copy, np.arange(len(chosen))
            (first,) = target.addresses([array])
            self.addresses[:, column] = first + chosen * array.strides[0]
        # Addresses alone keep no memory alive.
        self._columns = columns

    @property
    def has_copies(self) -> bool:
        """Whether `gather` and `scatter` have anything to do."""
        return bool(self._copies) or self._before is not None

    def gather(self) -> None:
        """Before a launch: make the gradients, and bring the copies of rows up to date."""
        if self._before is not None:
            self._before()
        for array, rows, copy, _ in self._copies:
            copy[...] = array[rows]

    def scatter(self) -> None:
        """After a launch: write the copies of updated rows back to where they came from."""
        for array, rows, copy, written in self._copies:
            if written:
                array[rows] = copy


def rows_of(
    gradient: RowsView, tensors: Sequence[np.ndarray], target: ModuleType, key: int | None = None
) -> RowTable:
    """The table of the rows that a sparse gradient has.

    Args:
        gradient: the view of its values.
        tensors: the views of the parameter and each of its state buffers.
        target, key: see `RowTable`.
    """
    order, first = sorted_rows(gradient.indices)
    rows = gradient.indices[order[first]]
    values = gradient.view(np.ndarray)
    if len(rows) == len(order):
        return RowTable([(values, order), *((tensor, rows) for tensor in tensors)], target, key)
    # Repeated rows are summed first, in the type of arithmetic and in the order in which they came.
    number = storage.arithmetic(buffers.layout(values).dtype).name
    sums = np.empty((len(rows), *values.shape[1:]), number)
    places = np.repeat(np.arange(len(rows)), np.diff(first, append=len(order)))
    summing = RowTable([(values, order), (sums, places)], target)
    summing.bytes_moved = 0  # several rows go to one place: this is for one thread
    add = target.bind(rules.accumulate, summing, np.ones(1, number))

    def sum_up() -> None:
        sums.fill(0)
        summing.gather()
        add()

    columns = [(sums, np.arange(len(rows))), *((tensor, rows) for tensor in tensors)]
    return RowTable(columns, target, key, sum_up)


def cut(sizes: Sequence[int] | np.ndarray, chunk: int) -> np.ndarray:
    """Cut tensors of the given sizes into chunks: an int64 array of (tensor, start, stop) rows."""
    size = np.asarray(sizes, np.int64)
    counts = -(-size // chunk)
    tensor = np.repeat(np.arange(len(size)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(tensor)) - first[tensor]) * chunk
    return np.stack([tensor, start, np.minimum(start + chunk, size[tensor])], axis=1)
