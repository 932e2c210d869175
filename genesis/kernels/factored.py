"""Adafactor's passes over memory: sums over rows and columns, sums of the update, and the update.

An update of a matrix needs the mean squares of its gradient's rows and columns, then the size of the
update that these give, and only then can be made. So a step reads the gradient three times, and the
parameter twice. All tensors go through each of these passes in one launch, cut into tiles of a fixed
size, whose sums are put together in a fixed order: neither the number of threads nor the company of
other tensors changes a bit of the result. Nothing but sums is kept between the passes, and only the
last one writes what others can see.

With `r` and `c` the averages for row and column, the root of the estimate `r * c / mean(r)` is a
product of two numbers, one for the row and one for the column; so there is neither a root nor a
division for each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types

from .. import buffers
from ..commit import assign, commit
from . import pointers, storage
from .compiling import once
from .cpu import INNER, Bound, keep_number, no_chunk, work
from .memory import put_float
from .specialise import compile_function, specialised

TILE = 65536
"""About how many elements a tile has."""

TILE_ROWS, TILE_COLUMNS = 64, 8192
"""The least rows of a tile, if there are as many, so that the sums of its columns are few beside its
elements, and its most columns, so that these sums stay in the first cache."""

# A row of the table: addresses, then sizes. What is summed is in the arithmetic of the parameter.
(
    GRADIENT,
    PARAMETER,
    ROW_STATE,  # of a vector: its averages, an element each
    COLUMN_STATE,
    NUMBERS,
    ROWS_SUMMED,  # for each row, sums over the columns of tiles; the first becomes the new average
    COLUMNS_SUMMED,  # for each column, sums over the rows of tiles; the first becomes its factor
    COLUMNS,  # new averages
    MEANS,  # of the new averages of rows, for each matrix
    PARAMETER_SQUARES,  # for each tile, float64
    UPDATE_SQUARES,
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
    COLUMN_COUNT,
) = range(22)

# A tensor's numbers, float64; the last two are for the kernel to write.
(
    SCALE,
    LIMIT,
    WEIGHT,
    RELATIVE,
    EPSILON_1,
    EPSILON_2,
    THRESHOLD,
    KEPT,
    LENGTH,
    MOVED,
    NUMBER_COUNT,
) = range(11)

# The passes, in order.
SUM, AVERAGE, MEASURE, SETTLE, MOVE = range(5)

# These names stand for what `_compiled` puts in their place, for some storage types.
narrow = NARROW_BYTES = read_gradient = read_parameter = read_state = read = read_double = None
write_parameter = write_state = write = read_row = read_numbers = None


def clipped_gradient(gradient, i, scale, limit):
    """An element of the gradient, multiplied by the scale and clipped; NaN stays."""
    grad = read_gradient((gradient,), i)[0] * scale
    return limit if grad > limit else (-limit if grad < -limit else grad)


def lerp(start, end, weight, rest):
    """From `start` (weight 0) to `end` (weight 1), computed from the nearer one; rest is weight - 1."""
    change = end - start
    return start + change * weight if abs(weight) < 0.5 else end + change * rest


def sum_row(gradient, parameter, columns, start, count, scale, limit):
    """Add the squares of a row's piece to those of its columns; their sum, and the parameter's."""
    total = narrow(0.0)
    size = narrow(0.0)
    for j in range(count):
        grad = clipped_gradient(gradient, start + j, scale, limit)
        square = grad * grad
        total += square
        write((columns,), j, (read((columns,), j)[0] + square,))
        value = read_parameter((parameter,), start + j)[0]
        size += value * value
    return total, size


def sum_squares(parameter, start, count):
    """The sum of squares of a piece of a parameter."""
    size = narrow(0.0)
    for i in range(start, start + count):
        value = read_parameter((parameter,), i)[0]
        size += value * value
    return size


def averaged(row, numbers):
    """From sums to averages of rows and columns, and what the update's length is at most."""
    height, width, matrices = row[HEIGHT], row[WIDTH], row[MATRICES]
    size = 0.0
    for tile in range(row[TILES]):
        size += read_double((row[PARAMETER_SQUARES],), tile)[0]
    size = math.sqrt(size / (matrices * height * width))
    least = numbers[EPSILON_2]
    length = (size if size > least else least) * numbers[RELATIVE]
    put_float(row[NUMBERS] + 8 * LENGTH, length)
    if row[IS_VECTOR]:
        return
    weight = narrow(numbers[WEIGHT])
    rest = narrow(numbers[WEIGHT] - 1.0)
    smallest = narrow(numbers[EPSILON_1])
    across, down = row[ACROSS], row[DOWN]
    rows, columns = (row[ROWS_SUMMED],), (row[COLUMNS_SUMMED],)
    row_state, column_state = (row[ROW_STATE],), (row[COLUMN_STATE],)
    for matrix in range(matrices):
        whole = 0.0
        for i in range(matrix * height, (matrix + 1) * height):
            total = 0.0
            for k in range(i * across, (i + 1) * across):
                total += read(rows, k)[0]
            new = lerp(read_state(row_state, i)[0], narrow(total / width), weight, rest)
            write(rows, i * across, (new,))
            whole += new
        mean = narrow(whole / height)
        write((row[MEANS],), matrix, (smallest if mean < smallest else mean,))
        sums = matrix * down * width
        for j in range(width):
            total = 0.0
            for k in range(down):
                total += read(columns, sums + k * width + j)[0]
            i = matrix * width + j
            new = lerp(read_state(column_state, i)[0], narrow(total / height), weight, rest)
            write((row[COLUMNS],), i, (new,))
            write(columns, sums + j, (narrow(1.0 / math.sqrt(new)),))


def settled(row, numbers):
    """What the update is to be multiplied by."""
    size = 0.0
    for tile in range(row[TILES]):
        size += read_double((row[UPDATE_SQUARES],), tile)[0]
    size = math.sqrt(size / (row[MATRICES] * row[HEIGHT] * row[WIDTH]))
    times = size / numbers[THRESHOLD]
    length = numbers[LENGTH]
    put_float(row[NUMBERS] + 8 * MOVED, -length / (times if times > 1.0 else 1.0))


def measure_row(gradient, factors, start, count, of_row, most, scale, limit):
    """The sum of squares of the update in a row's piece."""
    total = narrow(0.0)
    for j in range(count):
        inverse = of_row * read((factors,), j)[0]
        inverse = most if inverse > most else inverse
        update = clipped_gradient(gradient, start + j, scale, limit) * inverse
        total += update * update
    return total


def move_row(
    gradient, parameter, factors, start, count, of_row, most, scale, limit, kept, length
):  # fmt: skip
    """Update the parameter in a row's piece."""
    for j in range(count):
        inverse = of_row * read((factors,), j)[0]
        inverse = most if inverse > most else inverse
        update = clipped_gradient(gradient, start + j, scale, limit) * inverse
        value = read_parameter((parameter,), start + j)[0] * kept + update * length
        write_parameter((parameter,), start + j, (value,))


def vector_update(gradient, averages, i, weight, rest, least, scale, limit):
    """The update of an element of a vector before its length, and its new average."""
    grad = clipped_gradient(gradient, i, scale, limit)
    average = lerp(read_state((averages,), i)[0], grad * grad, weight, rest)
    return grad / math.sqrt(least if average < least else average), average


def measure_vector(gradient, averages, start, count, weight, rest, least, scale, limit):
    """The sum of squares of the update in a piece of a vector."""
    total = narrow(0.0)
    for i in range(start, start + count):
        update, _ = vector_update(gradient, averages, i, weight, rest, least, scale, limit)
        total += update * update
    return total


def move_vector(
    gradient, parameter, averages, start, count, weight, rest, least, scale, limit, kept, length
):  # fmt: skip
    """Update a piece of a vector, and its averages."""
    for i in range(start, start + count):
        update, average = vector_update(gradient, averages, i, weight, rest, least, scale, limit)
        value = read_parameter((parameter,), i)[0] * kept + update * length
        write_parameter((parameter,), i, (value,))
        write_state((averages,), i, (average,))


def over_vector(row, numbers, tile, moment):
    """One pass over a tile of a vector, which is a piece of it."""
    gradient, parameter = row[GRADIENT], row[PARAMETER]
    averages = row[ROW_STATE]
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    weight = narrow(numbers[WEIGHT])
    rest = narrow(numbers[WEIGHT] - 1.0)
    least = narrow(numbers[EPSILON_1] * numbers[EPSILON_1])
    kept, length = narrow(numbers[KEPT]), narrow(numbers[MOVED])
    start = tile * row[WIDE]
    count = min(row[WIDE], row[WIDTH] - start)
    if moment == SUM:
        return np.float64(sum_squares(parameter, start, count))
    if moment == MEASURE:
        return np.float64(
            measure_vector(gradient, averages, start, count, weight, rest, least, scale, limit)
        )
    move_vector(
        gradient, parameter, averages, start, count, weight, rest, least, scale, limit, kept, length
    )
    return 0.0


def over_matrices(row, numbers, tile, moment):
    """One pass over a tile, which is a part of a matrix or several matrices."""
    gradient, parameter = row[GRADIENT], row[PARAMETER]
    rows, columns = row[ROWS_SUMMED], row[COLUMNS_SUMMED]
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    most = narrow(1.0 / numbers[EPSILON_1])
    kept, length = narrow(numbers[KEPT]), narrow(numbers[MOVED])
    height, width = row[HEIGHT], row[WIDTH]
    across, down = row[ACROSS], row[DOWN]
    column = tile % across
    below = tile // across % down
    first = tile // (across * down) * row[DEEP]
    top, left = below * row[HIGH], column * row[WIDE]
    bottom, count = min(top + row[HIGH], height), min(row[WIDE], width - left)
    whole = 0.0
    for matrix in range(first, min(first + row[DEEP], row[MATRICES])):
        # Sums over the rows of this tile, or where all passes after the first find what a column
        # contributes to the inverse root of the estimate.
        place = matrix * down + (below if moment == SUM else 0)
        sums = columns + NARROW_BYTES * (place * width + left)
        if moment == SUM:
            for j in range(count):
                write((sums,), j, (narrow(0.0),))
        mean = np.float64(read((row[MEANS],), matrix)[0])
        for line in range(matrix * height + top, matrix * height + bottom):
            start = line * width + left
            if moment == SUM:
                total, size = sum_row(gradient, parameter, sums, start, count, scale, limit)
                write((rows,), line * across + column, (total,))
                whole += size
                continue
            average = np.float64(read((rows,), line * across)[0])
            of_row = narrow(1.0 / math.sqrt(average / mean))
            if moment == MEASURE:
                whole += measure_row(gradient, sums, start, count, of_row, most, scale, limit)
            else:
                move_row(
                    gradient, parameter, sums, start, count, of_row, most, scale, limit, kept, length
                )  # fmt: skip
    if moment == MOVE and tile == 0:
        for i in range(row[MATRICES] * height):
            write_state((row[ROW_STATE],), i, read((rows,), i * across))
        for i in range(row[MATRICES] * width):
            write_state((row[COLUMN_STATE],), i, read((row[COLUMNS],), i))
    return whole


def one_pass(tensor, start, stop, hyper, moment):
    """The part of a pass that one chunk is: a tile, or all sums of a tensor."""
    row = read_row(tensor)
    numbers = read_numbers(row[NUMBERS])
    if moment == AVERAGE:
        averaged(row, numbers)
        return 0.0
    if moment == SETTLE:
        settled(row, numbers)
        return 0.0
    if row[IS_VECTOR]:
        return over_vector(row, numbers, start, moment)
    return over_matrices(row, numbers, start, moment)


def itself(address):
    """Where a tensor's row of the table is, is all that a pass is given."""
    return address


class Update(NamedTuple):
    """What there is to be done with one tensor.

    Attributes:
        gradient, parameter: the arrays, of one shape and with elements, of any strides.
        state: (averages of rows, averages of columns), or of a vector its averages alone.
        scale: what the gradient is multiplied by, and then `limit` the largest magnitude of its
            elements, inf for any.
        weight: how much of an average the new mean is.
        relative: the step's length, as a part of the parameter's size.
        epsilon_1, epsilon_2, threshold: see `optim.Adafactor`; the threshold is its `d`.
        kept: what remains of the parameter after weight decay.
    """

    gradient: np.ndarray
    parameter: np.ndarray
    state: tuple[np.ndarray, ...]
    scale: float
    limit: float
    weight: float
    relative: float
    epsilon_1: float
    epsilon_2: float
    threshold: float
    kept: float


def updating(updates: Sequence[Update]) -> list[partial]:
    """Do all passes but the last, which writes, and give the calls that this one is, for `commit`.

    Tensors that do not lie flat, or whose state is of another type than they are, are worked on as
    copies, and the calls that are left copy these back.
    """
    buckets: dict[tuple[tuple[str, ...], bool], list[Update]] = {}
    for update in updates:
        stored = [buffers.layout(array).dtype for array in (update.gradient, update.parameter)]
        in_place = all(
            _lies_flat(array) and array.dtype == update.parameter.dtype
            for array in (update.parameter, *update.state)
        )
        state = stored[1] if in_place else storage.arithmetic(stored[1]).name
        buckets.setdefault(((*stored, state), in_place), []).append(update)
    calls: list[partial] = []
    for (storages, in_place), some in buckets.items():
        passes = _Passes([each if in_place else _copied(each) for each in some], storages)
        if in_place:
            calls += passes.writing()
            continue
        commit(passes.writing())
        for each, copy in zip(some, passes.updates):
            written = zip((each.parameter, *each.state), (copy.parameter, *copy.state))
            calls += [assign(array, copied) for array, copied in written]
    return calls


def _copied(update: Update) -> Update:
    """The same with flat copies of all that is written, state in the type of the arithmetic."""
    number = storage.arithmetic(buffers.layout(update.parameter).dtype).name
    return update._replace(
        parameter=update.parameter.copy(order="C"),
        state=tuple(np.array(array, number, order="C") for array in update.state),
    )


def _lies_flat(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.flags.aligned


class _Passes:
    """The passes over tensors that share storage types, which lie flat but for their gradients.

    Attributes, as `cpu.Bound` takes them from a table:
        addresses: a row for each tensor, see above.
        chunks: what the pass at hand consists of.
    """

    def __init__(self, updates: Sequence[Update], storages: tuple[str, ...]):
        count = len(updates)
        self.updates = updates
        self._kernel = _compiled(storages)
        self._number = np.dtype(storage.arithmetic(storages[1]).name)
        self._held: list[np.ndarray] = []
        self._numbers = np.zeros((count, NUMBER_COUNT))
        self.addresses = np.zeros((count, COLUMN_COUNT), np.int64)
        self.addresses[:, NUMBERS] = self._numbers.ctypes.data + 8 * NUMBER_COUNT * np.arange(count)
        for row, numbers, update in zip(self.addresses, self._numbers, updates):
            self._enter(row, numbers, update)
        self._tiles = _pieces(self.addresses[:, TILES])
        self._tensors = _pieces(np.ones(count, np.int64))
        self._squares = np.empty((2, len(self._tiles)))
        first = np.cumsum(self.addresses[:, TILES]) - self.addresses[:, TILES]
        for column, squares in zip((PARAMETER_SQUARES, UPDATE_SQUARES), self._squares):
            self.addresses[:, column] = squares.ctypes.data + 8 * first
        gradients, parameters, averages = (storage.BYTES[name] for name in storages)
        elements = sum(update.parameter.size for update in updates)
        gradients, parameters = gradients * elements, parameters * elements
        averages *= sum(each.parameter.size for each in updates if len(each.state) == 1)
        self._traffic = {
            SUM: gradients + parameters,
            MEASURE: gradients + averages,
            MOVE: gradients + 2 * (parameters + averages),
        }

    def _enter(self, row: np.ndarray, numbers: np.ndarray, update: Update) -> None:
        """Fill the row of a tensor, but for the places of its tiles' squares."""
        parameter = update.parameter
        is_vector = len(update.state) == 1
        if is_vector:
            matrices, height, width = deep, high, wide = 1, 1, parameter.size
            wide = min(width, TILE)
        else:
            *batch, height, width = parameter.shape
            matrices, deep = math.prod(batch), 1
            wide = min(width, TILE_COLUMNS)
            high = min(height, max(TILE_ROWS, TILE // wide))
            if (high, wide) == (height, width):
                deep = min(matrices, max(1, TILE // (high * wide)))
        across, down = -(-width // wide), -(-height // high)
        gradient = update.gradient
        arrays: dict[int, np.ndarray] = {
            GRADIENT: gradient if _lies_flat(gradient) else gradient.copy(order="C"),
            PARAMETER: parameter,
            **dict(zip((ROW_STATE, COLUMN_STATE), update.state)),
        }
        if not is_vector:
            sizes = {
                ROWS_SUMMED: matrices * height * across,
                COLUMNS_SUMMED: matrices * down * width,
                COLUMNS: matrices * width,
                MEANS: matrices,
            }
            arrays.update((column, np.empty(size, self._number)) for column, size in sizes.items())
        self._held += arrays.values()
        row[list(arrays)] = pointers.addresses(list(arrays.values()))
        tiles = across * down * -(-matrices // deep)
        row[MATRICES:] = matrices, height, width, deep, high, wide, across, down, tiles, is_vector
        numbers[:LENGTH] = (
            update.scale, update.limit, update.weight, update.relative, update.epsilon_1,
            update.epsilon_2, update.threshold, update.kept,
        )  # fmt: skip

    def _actions(self, moment: int, chunks: np.ndarray, results: Any = None) -> list[partial]:
        self.chunks = chunks
        moments = np.array([moment])
        traffic = self._traffic.get(moment, 0)
        return Bound(self._kernel, self, np.ones(1), traffic, moments, results).actions()

    def writing(self) -> list[partial]:
        """Do all passes but the last; the calls that do that one."""
        parameters, updates = self._squares
        commit(self._actions(SUM, self._tiles, parameters))
        commit(self._actions(AVERAGE, self._tensors))
        commit(self._actions(MEASURE, self._tiles, updates))
        commit(self._actions(SETTLE, self._tensors))
        calls = self._actions(MOVE, self._tiles)
        calls[-1].held = self  # type: ignore[attr-defined]
        return calls


def _pieces(counts: np.ndarray) -> np.ndarray:
    """The chunks of a pass: of each tensor so many pieces, one after the other."""
    tensor = np.repeat(np.arange(len(counts)), counts)
    piece = np.arange(len(tensor)) - (np.cumsum(counts) - counts)[tensor]
    return np.stack([tensor, piece, piece + 1], axis=1)


@once
def _compiled(storages: tuple[str, str, str]) -> Callable:
    """The kernel for gradients, parameters and state of these storage types."""
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
        "read": storage.reader((number.name,), number),
        "write": storage.writer((number.name,), number),
        "read_row": storage.row(COLUMN_COUNT),
        "read_numbers": storage.scalars(NUMBER_COUNT, types.float64),
        "read_double": storage.reader(("float64",), types.float64),
    }
    name = "_".join(("factored", *storages)) + storage.variant()

    def add(*functions: Callable, **options: Any) -> None:
        for function in functions:
            named = specialised(function, f"{function.__name__}_{name}", names)
            names[function.__name__] = numba.njit(error_model="numpy", **options, **INNER)(named)

    add(clipped_gradient, lerp, vector_update, move_row, move_vector)
    add(sum_row, sum_squares, measure_row, measure_vector, fastmath={"reassoc", "contract"})
    add(averaged, settled, over_vector, over_matrices, one_pass, itself, no_chunk, keep_number)
    names["process"], names["row_of"] = names["one_pass"], names["itself"]
    names["scalars_of"] = storage.scalars(1, types.float64)
    names["announce_chunk"], names["keep"] = names["no_chunk"], names["keep_number"]
    signature = types.int64(types.int64, types.boolean)
    what = f"Adafactor for {', '.join(dict.fromkeys(storages))}"
    return compile_function(specialised(work, name, names), signature, what=what)
