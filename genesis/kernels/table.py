"""Many tensors as one table of addresses, cut into chunks: what one launch works through.

Row `t` of `addresses` holds where tensor `t` keeps its gradient, its parameter and each of its state
buffers. Row `c` of `chunks` is a piece of work: (tensor, first element, one past the last). Chunks
have a fixed size, so that neither the number of threads nor the size of a tensor decides how work is
cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import buffers
from ..commit import commit
from ..sparse import RowsView
from . import pointers, rules, storage
from .rows import find_rows
from .target import Target


class _Rows:
    """What tables have in common: columns of numbers behind the addresses of each row.

    Attributes:
        numbers: on the table's device, the numbers of each row, in the type of the arithmetic; None,
            there are none.
    """

    addresses: np.ndarray
    arithmetic: str
    device: str
    stream: Any
    _target: Target

    def _append_numbers(self, count: int) -> Any:
        """Let each row have so many numbers, and their address behind its own."""
        if not count:
            return None
        zeros = np.zeros((len(self.addresses), count), self.arithmetic)
        numbers, address = self._target.numbers(zeros, self.device, self.stream)
        places = address + np.arange(len(zeros)) * zeros.strides[0]
        self.addresses = np.column_stack([self.addresses, places])
        return numbers

    def _append_keys(self, keys: Sequence[int] | None) -> None:
        """Let each row have a key behind all else."""
        if keys is not None:
            self.addresses = np.column_stack([self.addresses, np.array(keys, np.int64)])


class Table(_Rows):
    """The tensors of one launch, by column: gradients, then parameters, then state buffers, if any.

    A kernel walks memory from the first byte to the last, so a row's arrays must all lie flat in one
    order. One that does not (strided, unaligned, or ordered unlike its parameter) is represented by
    a flat copy, filled before a launch and written back after it.

    Args:
        columns: for each column the views (see `buffers.view`) of all rows' arrays; arrays of one
            column have one data type, arrays of one row have one shape. Gradients are only read
            if there are other columns.
        target: what compiles and launches for the device where the arrays lie.
        stream: the stream on which the target works; None on the CPU.
        keys: a number for each row, which a kernel finds behind its addresses. Default: None, none.
        numbers: how many numbers there are for each row, whose address a kernel finds behind those.
            Default: 0, none.
        zeroes: whether gradients are written, too. Default: False.
        scales: for each column of codes (see `genesis.packing`) the scales of all rows, which lie flat;
            a kernel finds their addresses behind those of the columns. Default: none.

    Attributes:
        device, stream: where the arrays lie, and the stream on which the target works.
        storages: the storage type of each column.
        arithmetic: the name of the type in which parameters are updated.
        addresses, chunks: see above.
        bytes_of_column, bytes_moved: the size of each column, and what an update reads and writes.
        streams: the streams on which producers of the arrays say that they work.
        on_change: called, if set, with the rows whose addresses have changed.
        mirror: the target's copy of the table, if it keeps one.
        scattered: whether chunks are short pieces of memory far from each other.
    """

    scattered = False

    def __init__(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        target: Target,
        stream: Any = None,
        keys: Sequence[int] | None = None,
        numbers: int = 0,
        zeroes: bool = False,
        scales: Sequence[Sequence[np.ndarray]] = (),
    ):
        self._target = target
        self.stream = stream
        self._streams: list[set[Any]] = [set() for _ in columns]
        self.on_change: Callable[[np.ndarray], None] | None = None
        self.mirror: Any = None
        first = min(1, len(columns) - 1)
        self._first_written = 0 if zeroes else first
        # Kernels see addresses only, so the arrays must live as long as the table; gradients, which
        # come and go, as long as their parameters hold them.
        self._held = [*columns[first:], *scales]
        parameters = columns[first]
        self.device = buffers.layout(parameters[0]).device
        self.storages = tuple(buffers.layout(column[0]).dtype for column in columns)
        # Blocks with a scale are of neighbours in C order.
        self.orders = ["C" if scales else buffers.flat_order(each) for each in parameters]
        self.arithmetic = storage.arithmetic(self.storages[first]).name
        self.addresses = np.empty((len(parameters), len(columns)), np.int64)
        if scales:
            beside = [pointers.addresses(column) for column in scales]
            self.addresses = np.column_stack([self.addresses, *beside])
        self.numbers = self._append_numbers(numbers)
        self._append_keys(keys)
        self.chunks = cut([p.size for p in parameters], target.CHUNK)
        self.sizes = [p.size for p in parameters]
        self.elements = sum(self.sizes)
        self.bytes_of_column = [self.elements * storage.SIZES[name] for name in self.storages]
        # Everything is read, and all but the gradients written.
        self.bytes_moved = 2 * sum(self.bytes_of_column) - self.bytes_of_column[0]
        self._copies: dict[tuple[int, int], tuple[Any, np.ndarray]] = {}
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

    def cells(self) -> np.ndarray:
        """For each row the address of the number that says where its gradient lies.

        Whoever sees gradients move may write there. 0 where that is not enough: a copy stands for the
        gradient, or a device has to be told.
        """
        step = self.addresses.strides[0]
        cells = self.addresses.ctypes.data + step * np.arange(len(self.addresses))
        cells[[row for row, column in self._copies if column == 0]] = 0
        return cells if self.device == "cpu" else np.zeros_like(cells)

    def set_sources(self, gradients: Sequence[np.ndarray | None]) -> None:
        """Say which gradients, of the layouts of those before them, `gather` is to copy from."""
        for (row, column), (_, copy) in self._copies.items():
            if column == 0:
                self._copies[row, 0] = gradients[row], copy

    def refresh(self, column: int, arrays: Sequence[np.ndarray]) -> None:
        """Take in the arrays that a column now consists of, laid out as those before them."""
        flat = list(arrays)
        for (row, copied), (_, copy) in self._copies.items():
            if copied == column:
                self._copies[row, column] = arrays[row], copy
                flat[row] = copy
        if self.device != "cpu":
            self._streams[column] = {getattr(array, "stream", None) for array in arrays} - {None}
        addresses = pointers.addresses(flat)
        changed = self.addresses[:, column] != addresses
        self.addresses[:, column] = addresses
        if self.on_change is not None:
            self.on_change(np.flatnonzero(changed))

    def gather(self) -> None:
        """Before a launch: bring the copies of arrays that do not lie flat up to date."""
        for call in self.gathering():
            call()

    def gathering(self) -> list[partial]:
        """The calls that `gather` makes, where what they read is yet to be written."""
        return [
            self._target.copying(copy, array, self.stream) for array, copy in self._copies.values()
        ]

    def scatter(self) -> list[partial]:
        """For after a launch: the calls that write copies back to where they came from."""
        return [
            self._target.copying(array, copy, self.stream)
            for (_, column), (array, copy) in self._copies.items()
            if column >= self._first_written
        ]


class AddressTable(_Rows):
    """Flat pieces of memory as a table, given their addresses.

    Args:
        addresses, chunks: see above.
        storages: the storage type of each column.
        elements: the number of elements in all rows.

    Attributes:
        see `Table`.
    """

    device = "cpu"
    stream = None
    numbers: Any = None
    scattered = True
    has_copies = False

    def gather(self) -> None:
        """Nothing lies elsewhere than where the addresses say."""

    def __init__(
        self, addresses: np.ndarray, chunks: np.ndarray, storages: tuple[str, ...], elements: int
    ):
        self.addresses = addresses
        self.chunks = chunks
        self.storages = storages
        self.arithmetic = storage.arithmetic(storages[min(1, len(storages) - 1)]).name
        self.bytes_of_column = [elements * storage.SIZES[name] for name in storages]
        self.bytes_moved = 2 * sum(self.bytes_of_column) - self.bytes_of_column[0]


class FlatTable(AddressTable):
    """Flat tensors of another library, whose addresses it has from whoever asks that library.

    On a GPU `follow` tells the device where they are now.

    Args:
        sizes: the number of elements of each row.
        storages: the storage type of each column.
        target: what compiles and launches for the device.
        device, stream: where they lie, and the stream on which the target works. Default: on the CPU.
        keys, numbers: see `Table`. Default: none.
    """

    scattered = False
    streams: frozenset = frozenset()
    """What the library's producers wait for, it sees to."""

    def __init__(
        self,
        sizes: Sequence[int],
        storages: Sequence[str],
        target: Target,
        device: str = "cpu",
        stream: Any = None,
        keys: Sequence[int] | None = None,
        numbers: int = 0,
    ):
        self._target, self.device, self.stream = target, device, stream
        self.on_change: Callable[[np.ndarray], None] | None = None
        self.mirror: Any = None
        self.sizes = list(sizes)
        addresses = np.zeros((len(sizes), len(storages)), np.int64)
        super().__init__(addresses, cut(sizes, target.CHUNK), tuple(storages), sum(sizes))
        self.numbers = self._append_numbers(numbers)
        self._append_keys(keys)
        self._told = self.addresses.copy()

    def follow(self) -> None:
        """Take over what has been written into `addresses`."""
        if self.on_change is not None:
            changed = np.flatnonzero((self.addresses != self._told).any(axis=1))
            if len(changed):
                self.on_change(changed)
                np.copyto(self._told, self.addresses)


class RowTable(AddressTable):
    """The rows of a parameter and its state that a sparse gradient has, as a table.

    Addresses are computed, not looked up, so that rows cost no Python objects. A tensor whose rows
    do not lie flat in C order is represented by a copy of just these rows, and rows of the gradient
    that are there several times by their sum.

    Args:
        gradient: the view of the gradient's values.
        tensors: the views of the parameter and each of its state buffers.
        target: what compiles and launches for the CPU.
        key: with it each row gets a number of its own behind its addresses. Default: None, none.
    """

    def __init__(
        self,
        gradient: RowsView,
        tensors: Sequence[np.ndarray],
        target: Target,
        key: int | None = None,
    ):
        values, indices = gradient.view(np.ndarray), gradient.indices
        self._before: list[Callable[[], object]] = []
        if not _has_flat_rows(values):
            flat = np.empty(values.shape, values.dtype)
            self._before.append(partial(np.copyto, flat, values))
            values = flat
        columns = [values, *tensors]
        copied = [not _has_flat_rows(array) for array in columns]
        for column in np.flatnonzero(copied):
            columns[column] = np.empty((len(indices), *values.shape[1:]), columns[column].dtype)
        origins = pointers.addresses(columns).tolist()
        strides = [array.strides[0] for array in columns]
        if key is not None:  # as if it were an address: a number that grows from row to row
            origins.append(key)
            strides.append(1 << 32)
            copied.append(False)
        size = math.prod(values.shape[1:])
        pattern = np.array([origins, strides, copied])
        addresses, chunks, rows, places = find_rows(indices, gradient.largest, pattern, size)
        count = len(rows)
        if not 0 < size <= target.CHUNK:
            chunks = cut(np.full(count, size), target.CHUNK)
        storages = tuple(buffers.layout(array).dtype for array in columns)
        if count < len(indices):
            number = storage.arithmetic(storages[0]).name
            place = places[1]
            # One column has one type: where sums have that of the values, only rows need one that
            # are there several times.
            summed = np.bincount(place, minlength=count) > (1 if number == storages[0] else 0)
            slots = np.cumsum(summed) - 1
            needed = summed[place]
            places = np.stack([places[0, needed], slots[place[needed]]], axis=1)
            sums = np.empty((slots[-1] + 1, *values.shape[1:]), number)
            self._before.append(_summing(values, sums, places, target))
            storages = number, *storages[1:]
            (first,) = pointers.addresses([sums])
            addresses[summed, 0] = first + np.arange(len(sums)) * sums.strides[0]
            columns.append(sums)
        super().__init__(addresses, chunks, storages, count * size)
        self._columns = columns  # addresses alone keep no memory alive
        self._copies = [
            (original, rows, copy[:count])
            for original, copy, is_copy in zip(tensors, columns[1:], copied[1 : len(tensors) + 1])
            if is_copy
        ]
        self.has_copies = bool(self._copies or self._before)

    def gather(self) -> None:
        """Before a launch: make the gradients, and bring the copies of rows up to date."""
        for prepare in self._before:
            prepare()
        for array, rows, copy in self._copies:
            copy[...] = array[rows]

    def scatter(self) -> list[partial]:
        """For after a launch: the calls that write copies of rows back to where they came from."""
        return [partial(np.ndarray.__setitem__, *copied) for copied in self._copies]


def _has_flat_rows(array: np.ndarray) -> bool:
    return array[:1].flags.c_contiguous and array.flags.aligned


def _summing(
    values: np.ndarray, sums: np.ndarray, places: np.ndarray, target: Target
) -> Callable[[], None]:
    """A function that adds up rows: `places` has pairs of a row of `values` and one of `sums`."""
    size = math.prod(values.shape[1:])
    origins = pointers.addresses([values, sums])
    strides = values.strides[0], sums.strides[0]
    addresses = origins + places * strides
    if 0 < size <= target.CHUNK:
        chunks = np.zeros((len(addresses), 3), np.int64)
        chunks[:, 0] = np.arange(len(addresses))
        chunks[:, 2] = size
    else:
        chunks = cut(np.full(len(addresses), size), target.CHUNK)
    storages = buffers.layout(values).dtype, buffers.layout(sums).dtype
    table = AddressTable(addresses, chunks, storages, len(addresses) * size)
    table.bytes_moved = 0  # several rows go to one place: this is for one thread
    add = target.bind(rules.accumulate, table, np.ones(1, sums.dtype))

    def sum_up() -> None:
        sums.fill(0)
        commit(add.actions())

    return sum_up


def cut(sizes: Sequence[int] | np.ndarray, chunk: int) -> np.ndarray:
    """Cut tensors of the given sizes into chunks: an int64 array of (tensor, start, stop) rows."""
    size = np.asarray(sizes, np.int64)
    counts = -(-size // chunk)
    tensor = np.repeat(np.arange(len(size)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(tensor)) - first[tensor]) * chunk
    return np.stack([tensor, start, np.minimum(start + chunk, size[tensor])], axis=1)
