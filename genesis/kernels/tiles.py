"""Passes over tensors for optimizers that need sums over rows and columns before they can move.

Such a step reads gradients several times: for sums, for sums of what follows from these, and for the
update. All tensors go through each pass in one launch, cut into tiles of a fixed size, whose sums are
put together in a fixed order: neither the number of threads nor the company of other tensors changes a
bit of the result. Nothing but sums is kept between the passes, and only the last one writes what others
can see.

An optimizer has a module of its own with its arithmetic (`factored`, `confident`, `blocks`): functions
for a row's piece, and what becomes of sums between the passes. What they share is here: where a tile
lies, averages of rows and columns, and the way from arrays to calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from .. import buffers
from ..commit import assign, commit
from . import pointers, storage
from .cpu.working import INNER, Bound, compiled_worker
from .specialise import specialised

TILE = 65536
"""About how many elements a tile has."""

TILE_ROWS, TILE_COLUMNS = 64, 8192
"""The least rows of a tile, if there are as many, so that the sums of its columns are few beside its
elements, and its most columns, so that these sums stay in the first cache."""

# A row of the table: addresses, then sizes, then what the optimizer adds. A vector is one row.
(
    GRADIENT,
    PARAMETER,
    NUMBERS,
    MATRICES,
    HEIGHT,
    WIDTH,
    DEEP,  # how many matrices a tile has
    HIGH,
    WIDE,
    ACROSS,  # how many tiles lie beside each other, and how many below
    DOWN,
    TILES,
    IS_VECTOR,
    OWN,
) = range(14)

# What goes with averages of rows and columns, side by side in a row of the table. What is summed is in
# the arithmetic of the parameter.
(
    ROW_STATE,
    COLUMN_STATE,
    ROWS_SUMMED,  # for each row, sums over the columns of tiles; the first becomes the new average
    COLUMNS_SUMMED,  # for each column, sums over the rows of tiles; the first becomes its factor
    COLUMNS,  # new averages
    MEANS,  # of the new averages of rows, for each matrix
    FACTORS,
) = range(7)

# These names stand for what `compiled` puts in their place, for some storage types.
narrow = read_gradient = read_average = write_average = read = write = read_double = None


def clipped_gradient(gradient, i, scale, limit):
    """An element of the gradient, multiplied by the scale and clipped; NaN stays."""
    grad = read_gradient((gradient,), i)[0] * scale
    return limit if grad > limit else (-limit if grad < -limit else grad)


def lerp(start, end, weight, rest):
    """From `start` (weight 0) to `end` (weight 1), computed from the nearer one; rest is weight - 1."""
    change = end - start
    return start + change * weight if abs(weight) < 0.5 else end + change * rest


def place(row, tile):
    """Where a tile lies: its column and row among tiles, its matrices, its rows, its columns."""
    across, down = row[ACROSS], row[DOWN]
    column = tile % across
    below = tile // across % down
    first = tile // (across * down) * row[DEEP]
    top, left = below * row[HIGH], column * row[WIDE]
    last = min(first + row[DEEP], row[MATRICES])
    bottom, count = min(top + row[HIGH], row[HEIGHT]), min(row[WIDE], row[WIDTH] - left)
    return column, below, first, last, top, bottom, left, count


def piece(row, tile):
    """Where a tile of a vector begins, and how many elements it has."""
    start = tile * row[WIDE]
    return start, min(row[WIDE], row[WIDTH] - start)


def root_mean_square(row, squares):
    """Of a tensor, given the sums of squares of its tiles."""
    size = 0.0
    for tile in range(row[TILES]):
        size += read_double((squares,), tile)[0]
    return math.sqrt(size / (row[MATRICES] * row[HEIGHT] * row[WIDTH]))


def averaged(row, factors, weight, rest, smallest, added):
    """From sums to averages of rows and columns, into which `added` goes besides.

    The mean of the averages of rows is taken to be `smallest` at least.
    """
    height, width = row[HEIGHT], row[WIDTH]
    across, down = row[ACROSS], row[DOWN]
    rows, columns = (factors[ROWS_SUMMED],), (factors[COLUMNS_SUMMED],)
    row_state, column_state = (factors[ROW_STATE],), (factors[COLUMN_STATE],)
    for matrix in range(row[MATRICES]):
        whole = 0.0
        for i in range(matrix * height, (matrix + 1) * height):
            total = 0.0
            for k in range(i * across, (i + 1) * across):
                total += read(rows, k)[0]
            new = lerp(read_average(row_state, i)[0], narrow(total / width + added), weight, rest)
            write(rows, i * across, (new,))
            whole += new
        mean = narrow(whole / height)
        write((factors[MEANS],), matrix, (smallest if mean < smallest else mean,))
        sums = matrix * down * width
        for j in range(width):
            total = 0.0
            for k in range(down):
                total += read(columns, sums + k * width + j)[0]
            i = matrix * width + j
            end = narrow(total / height + added)
            new = lerp(read_average(column_state, i)[0], end, weight, rest)
            write((factors[COLUMNS],), i, (new,))
            write(columns, sums + j, (narrow(1.0 / math.sqrt(new)),))


def factor_of_row(row, factors, line, matrix):
    """What a row contributes to the inverse root of the estimate, as float64; columns have theirs."""
    average = np.float64(read((factors[ROWS_SUMMED],), line * row[ACROSS])[0])
    return 1.0 / math.sqrt(average / np.float64(read((factors[MEANS],), matrix)[0]))


def keep_averages(row, factors):
    """Write the new averages of rows and columns."""
    for i in range(row[MATRICES] * row[HEIGHT]):
        write_average(
            (factors[ROW_STATE],), i, read((factors[ROWS_SUMMED],), i * row[ACROSS])
        )  # fmt: skip
    for i in range(row[MATRICES] * row[WIDTH]):
        write_average((factors[COLUMN_STATE],), i, read((factors[COLUMNS],), i))


def measure_row(gradient, factors, start, count, of_row, most, scale, limit):
    """The sum of squares, in a row's piece, of the gradient over the root of the estimate."""
    total = narrow(0.0)
    for j in range(count):
        inverse = of_row * read((factors,), j)[0]
        inverse = most if inverse > most else inverse
        update = clipped_gradient(gradient, start + j, scale, limit) * inverse
        total += update * update
    return total


@intrinsic
def itself(typing_context, address):
    """Where a tensor's row of the table is, is all that a pass is given."""
    return address(address), lambda context, builder, signature, arguments: arguments[0]


def updating(kind: type[Passes], updates: Sequence[Any]) -> list[partial]:
    """Do all passes but the last, which writes, and give the calls that this one is, for `commit`.

    Tensors that do not lie flat, or whose state is of another type than usual, are worked on as
    copies, and the calls that are left copy these back.

    Args:
        kind: the passes of an optimizer.
        updates: what there is to be done, as `kind` takes it: with `gradient` and `parameter`, of one
            shape and with elements, and a tuple of buffers `state`.
    """
    buckets: dict[tuple[tuple[str, ...], bool], list[Any]] = {}
    for update in updates:
        stored = [buffers.layout(array).dtype for array in (update.gradient, update.parameter)]
        number = storage.arithmetic(stored[1]).name
        usual = [update.parameter.dtype] * kind.narrow_state
        usual += [np.dtype(number)] * (len(update.state) - len(usual))
        in_place = _lies_flat(update.parameter) and all(
            _lies_flat(array) and array.dtype == dtype for array, dtype in zip(update.state, usual)
        )
        state = stored[1] if in_place else number
        buckets.setdefault(((*stored, state), in_place), []).append(update)
    calls: list[partial] = []
    for (storages, in_place), some in buckets.items():
        passes = kind([each if in_place else _copied(each) for each in some], storages)
        if in_place:
            calls += passes.writing()
            continue
        commit(passes.writing())
        for each, copy in zip(some, passes.updates):
            written = zip((each.parameter, *each.state), (copy.parameter, *copy.state))
            calls += [assign(array, copied) for array, copied in written]
    return calls


def _copied(update: Any) -> Any:
    """The same with flat copies of all that is written, state in the type of the arithmetic."""
    number = storage.arithmetic(buffers.layout(update.parameter).dtype).name
    return update._replace(
        parameter=update.parameter.copy(order="C"),
        state=tuple(np.array(array, number, order="C") for array in update.state),
    )


def _lies_flat(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.flags.aligned


class Passes:
    """The passes over tensors that share storage types, which lie flat but for their gradients.

    Attributes, as `cpu.working.Bound` takes them from a table:
        addresses: a row for each tensor, see above.
        chunks: what the pass at hand consists of.
    """

    column_count: ClassVar[int]
    number_count: ClassVar[int]
    narrow_state: ClassVar[int]
    """How many of the first buffers of state have the parameter's type, not that of its arithmetic."""
    sums_columns: ClassVar[bool] = True
    """Whether there are sums of columns, which a tile has few of then."""
    sequence: ClassVar[tuple[tuple[int, bool, int | None], ...]]
    """The passes: the number of each, whether it goes over tiles (or whole tensors), and the column
    in which it has an address for a number for each tile, if any. The last one writes."""

    def __init__(self, updates: Sequence[Any], storages: tuple[str, ...]):
        count = len(updates)
        self.updates = updates
        self._kernel = self.compiled(*storages)
        self._number = np.dtype(storage.arithmetic(storages[1]).name)
        self._held: list[np.ndarray] = []
        self._numbers = np.zeros((count, self.number_count))
        self.addresses = np.zeros((count, self.column_count), np.int64)
        self.addresses[:, NUMBERS] = self._numbers.ctypes.data + 8 * self.number_count * np.arange(
            count
        )
        for row, numbers, update in zip(self.addresses, self._numbers, updates):
            self._cut(row, *self.lying(update))
            gradient = update.gradient
            arrays = {
                GRADIENT: gradient if _lies_flat(gradient) else gradient.copy(order="C"),
                PARAMETER: update.parameter,
                **self.arrays(row, update),
            }
            self._held += arrays.values()
            row[list(arrays)] = pointers.addresses(list(arrays.values()))
            values = self.values(update)
            numbers[: len(values)] = values
        tiles = self.addresses[:, TILES]
        self._tiles, self._tensors = _pieces(tiles), _pieces(np.ones(count, np.int64))
        self._first = np.cumsum(tiles) - tiles
        elements = sum(update.parameter.size for update in updates)
        self._sizes = [storage.BYTES[name] * elements for name in storages]

    @staticmethod
    def compiled(gradient: str, parameter: str, state: str) -> Callable:
        """The kernel for gradients, parameters and narrow state of these storage types."""
        raise NotImplementedError

    def lying(self, update: Any) -> tuple[int, int, int, bool]:
        """As how many matrices, of what height and width, a tensor is taken; whether it is a vector."""
        raise NotImplementedError

    def arrays(self, row: np.ndarray, update: Any) -> dict[int, np.ndarray]:
        """What the optimizer's own columns are the addresses of, but for numbers of tiles."""
        raise NotImplementedError

    def values(self, update: Any) -> tuple[float, ...]:
        """The first of a tensor's numbers."""
        raise NotImplementedError

    def traffic(self, gradients: int, parameters: int, state: int) -> dict[int, int]:
        """About how many bytes passes over tiles move, given those of three columns."""
        raise NotImplementedError

    def _cut(
        self, row: np.ndarray, matrices: int, height: int, width: int, is_vector: bool
    ) -> None:
        """Fill in how a tensor is cut into tiles."""
        deep = high = 1
        if is_vector:
            wide = min(width, TILE)
        else:
            wide = min(width, TILE_COLUMNS if self.sums_columns else TILE)
            high = min(height, max(TILE_ROWS, TILE // wide))
            if (high, wide) == (height, width):
                deep = min(matrices, max(1, TILE // (high * wide)))
        across, down = -(-width // wide), -(-height // high)
        tiles = across * down * -(-matrices // deep)
        row[MATRICES:OWN] = (
            matrices, height, width, deep, high, wide, across, down, tiles, is_vector,
        )  # fmt: skip

    def averaging(self, row: np.ndarray, first: int, state: Sequence[np.ndarray]) -> dict:
        """The arrays that go with averages of rows and columns, from a column of the table on."""
        matrices, height, width = (int(size) for size in row[[MATRICES, HEIGHT, WIDTH]])
        sizes = {
            ROWS_SUMMED: matrices * height * int(row[ACROSS]),
            COLUMNS_SUMMED: matrices * int(row[DOWN]) * width,
            COLUMNS: matrices * width,
            MEANS: matrices,
        }
        found = {first + column: np.empty(size, self._number) for column, size in sizes.items()}
        return {first + ROW_STATE: state[0], first + COLUMN_STATE: state[1], **found}

    def _actions(self, moment: int, over_tiles: bool, column: int | None) -> list[partial]:
        self.chunks = self._tiles if over_tiles else self._tensors
        results = None
        if column is not None:
            results = np.empty(len(self._tiles))
            self._held.append(results)
            self.addresses[:, column] = results.ctypes.data + 8 * self._first
        traffic = self.traffic(*self._sizes).get(moment, 0)
        return Bound(
            self._kernel, self, np.ones(1), traffic, np.array([moment]), results
        ).actions()  # fmt: skip

    def writing(self) -> list[partial]:
        """Do all passes but the last; the calls that do that one."""
        *before, last = self.sequence
        for each in before:
            commit(self._actions(*each))
        calls = self._actions(*last)
        calls[-1].held = self  # type: ignore[attr-defined]
        return calls


def _pieces(counts: np.ndarray) -> np.ndarray:
    """The chunks of a pass: of each tensor so many pieces, one after the other."""
    tensor = np.repeat(np.arange(len(counts)), counts)
    piece = np.arange(len(tensor)) - (np.cumsum(counts) - counts)[tensor]
    return np.stack([tensor, piece, piece + 1], axis=1)


SHARED = (
    clipped_gradient, lerp, place, piece, root_mean_square, averaged, factor_of_row, keep_averages,
)  # fmt: skip
"""Functions that every optimizer's may call; `measure_row`, which is one that sums, besides."""


def compiled(
    what: str,
    columns: int,
    numbers: int,
    storages: tuple[str, str, str],
    *,
    averages: str,
    moving: Sequence[Callable],
    summing: Sequence[Callable],
    passes: Sequence[Callable],
) -> Callable:
    """The kernel of an optimizer.

    Args:
        what: its name, for messages and for the kernel.
        columns, numbers: how many a row of its table, and a tensor, have.
        storages: of gradients, parameters and narrow state.
        averages: the storage type of averages of rows and columns.
        moving: functions over elements that write them, in order of need.
        summing: those that sum, and may do so in any order that is fixed once they are compiled.
        passes: what calls them; the last is given a row, what chunk of it, and the pass.
    """
    gradient, parameter, state = storages
    number = storage.arithmetic(parameter)
    names: dict[str, Any] = {
        "narrow": getattr(np, number.name),
        "NARROW_BYTES": storage.BYTES[number.name],
        "read_gradient": storage.reader((gradient,), number),
        "read_parameter": storage.reader((parameter,), number),
        "write_parameter": storage.writer((parameter,), number),
        "read_state": storage.reader((state,), number),
        "write_state": storage.writer((state,), number),
        "read_average": storage.reader((averages,), number),
        "write_average": storage.writer((averages,), number),
        "read": storage.reader((number.name,), number),
        "write": storage.writer((number.name,), number),
        "read_row": storage.row(columns),
        "read_factors": storage.row(FACTORS),
        "read_numbers": storage.scalars(numbers, types.float64),
        "read_double": storage.reader(("float64",), types.float64),
    }
    name = "_".join((what, *storages)) + storage.variant()

    def add(*functions: Callable, **options: Any) -> None:
        for function in functions:
            named = specialised(function, f"{function.__name__}_{name}", names)
            names[function.__name__] = numba.njit(error_model="numpy", **options, **INNER)(named)

    add(*SHARED, *moving)
    add(measure_row, *summing, fastmath={"reassoc", "contract"})
    add(*passes)
    title = f"{what} for {', '.join(dict.fromkeys(storages))}"
    scalars_of = storage.scalars(1, types.float64)
    return compiled_worker(name, title, names[passes[-1].__name__], itself, scalars_of)
