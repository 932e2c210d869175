"""Adafactor's passes over memory: sums over rows and columns, sums of the update, and the update.

An update of a matrix needs the mean squares of its gradient's rows and columns, then the size of the
update that these give, and only then can be made. So a step reads the gradient three times, and the
parameter twice. How tensors are cut, and what is kept between the passes, is in `tiles`.

With `r` and `c` the averages for row and column, the root of the estimate `r * c / mean(r)` is a
product of two numbers, one for the row and one for the column; so there is neither a root nor a
division for each element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .compiling import once
from .memory import put_float
from .tiles import (
    ACROSS,
    COLUMNS_SUMMED,
    DOWN,
    FACTORS,
    GRADIENT,
    HEIGHT,
    IS_VECTOR,
    NUMBERS,
    OWN,
    PARAMETER,
    ROW_STATE,
    ROWS_SUMMED,
    WIDTH,
    Passes,
    averaged,
    clipped_gradient,
    compiled,
    factor_of_row,
    keep_averages,
    lerp,
    measure_row,
    piece,
    place,
    root_mean_square,
)

# A row of the table has, behind what all have, what goes with its averages of rows and columns (of a
# vector: its averages, an element each), and for each tile two sums of squares, float64.
AVERAGES = OWN
PARAMETER_SQUARES, UPDATE_SQUARES, COLUMN_COUNT = range(OWN + FACTORS, OWN + FACTORS + 3)

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

# These names stand for what `tiles.compiled` puts in their place, for some storage types.
narrow = NARROW_BYTES = read_parameter = read_state = read = write_parameter = write_state = None
write = read_row = read_factors = read_numbers = None


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


def lengths(tensor, row, numbers):
    """Find the averages of rows and columns, and what the update's length is at most."""
    size = root_mean_square(row, row[PARAMETER_SQUARES])
    least = numbers[EPSILON_2]
    length = (size if size > least else least) * numbers[RELATIVE]
    put_float(row[NUMBERS] + 8 * LENGTH, length)
    if row[IS_VECTOR]:
        return
    weight, rest = narrow(numbers[WEIGHT]), narrow(numbers[WEIGHT] - 1.0)
    smallest = narrow(numbers[EPSILON_1])
    averaged(row, read_factors(tensor + 8 * AVERAGES), weight, rest, smallest, 0.0)


def settled(row, numbers):
    """What the update is to be multiplied by."""
    times = root_mean_square(row, row[UPDATE_SQUARES]) / numbers[THRESHOLD]
    length = numbers[LENGTH]
    put_float(row[NUMBERS] + 8 * MOVED, -length / (times if times > 1.0 else 1.0))


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


def over_vector(tensor, row, numbers, tile, moment):
    """One pass over a tile of a vector, which is a piece of it."""
    gradient, parameter = row[GRADIENT], row[PARAMETER]
    averages = read_factors(tensor + 8 * AVERAGES)[ROW_STATE]
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    weight, rest = narrow(numbers[WEIGHT]), narrow(numbers[WEIGHT] - 1.0)
    least = narrow(numbers[EPSILON_1] * numbers[EPSILON_1])
    kept, length = narrow(numbers[KEPT]), narrow(numbers[MOVED])
    start, count = piece(row, tile)
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


def over_matrices(tensor, row, numbers, tile, moment):
    """One pass over a tile, which is a part of a matrix or several matrices."""
    gradient, parameter = row[GRADIENT], row[PARAMETER]
    factors = read_factors(tensor + 8 * AVERAGES)
    rows, columns = factors[ROWS_SUMMED], factors[COLUMNS_SUMMED]
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    most = narrow(1.0 / numbers[EPSILON_1])
    kept, length = narrow(numbers[KEPT]), narrow(numbers[MOVED])
    height, width, across, down = row[HEIGHT], row[WIDTH], row[ACROSS], row[DOWN]
    column, below, first, last, top, bottom, left, count = place(row, tile)
    whole = 0.0
    for matrix in range(first, last):
        # Sums over the rows of this tile, or where all passes after the first find what a column
        # contributes to the inverse root of the estimate.
        part = matrix * down + (below if moment == SUM else 0)
        sums = columns + NARROW_BYTES * (part * width + left)
        if moment == SUM:
            for j in range(count):
                write((sums,), j, (narrow(0.0),))
        for line in range(matrix * height + top, matrix * height + bottom):
            start = line * width + left
            if moment == SUM:
                total, size = sum_row(gradient, parameter, sums, start, count, scale, limit)
                write((rows,), line * across + column, (total,))
                whole += size
                continue
            of_row = narrow(factor_of_row(row, factors, line, matrix))
            if moment == MEASURE:
                whole += measure_row(gradient, sums, start, count, of_row, most, scale, limit)
            else:
                move_row(
                    gradient, parameter, sums, start, count, of_row, most, scale, limit, kept, length
                )  # fmt: skip
    if moment == MOVE and tile == 0:
        keep_averages(row, factors)
    return whole


def one_pass(tensor, start, stop, hyper, moment):
    """The part of a pass that one chunk is: a tile, or all sums of a tensor."""
    row = read_row(tensor)
    numbers = read_numbers(row[NUMBERS])
    if moment == AVERAGE:
        lengths(tensor, row, numbers)
        return 0.0
    if moment == SETTLE:
        settled(row, numbers)
        return 0.0
    if row[IS_VECTOR]:
        return over_vector(tensor, row, numbers, start, moment)
    return over_matrices(tensor, row, numbers, start, moment)


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


class Factored(Passes):
    """Adafactor's passes; its updates are of the kind above."""

    column_count, number_count = COLUMN_COUNT, NUMBER_COUNT
    narrow_state = 2
    sequence = (
        (SUM, True, PARAMETER_SQUARES),
        (AVERAGE, False, None),
        (MEASURE, True, UPDATE_SQUARES),
        (SETTLE, False, None),
        (MOVE, True, None),
    )

    @staticmethod
    @once
    def compiled(gradient: str, parameter: str, state: str) -> Callable:
        return compiled(
            "Adafactor",
            COLUMN_COUNT,
            NUMBER_COUNT,
            (gradient, parameter, state),
            averages=state,
            moving=(vector_update, move_row, move_vector),
            summing=(sum_row, sum_squares, measure_vector),
            passes=(lengths, settled, over_vector, over_matrices, one_pass),
        )

    def lying(self, update: Update) -> tuple[int, int, int, bool]:
        if len(update.state) == 1:
            return 1, 1, update.parameter.size, True
        *batch, height, width = update.parameter.shape
        return math.prod(batch), height, width, False

    def arrays(self, row: np.ndarray, update: Update) -> dict[int, np.ndarray]:
        if len(update.state) == 1:
            return {AVERAGES + ROW_STATE: update.state[0]}
        return self.averaging(row, AVERAGES, update.state)

    def values(self, update: Update) -> tuple[float, ...]:
        return (
            update.scale, update.limit, update.weight, update.relative, update.epsilon_1,
            update.epsilon_2, update.threshold, update.kept,
        )  # fmt: skip

    def traffic(self, gradients: int, parameters: int, state: int) -> dict[int, int]:
        vectors = sum(each.parameter.size for each in self.updates if len(each.state) == 1)
        averages = state * vectors // max(1, sum(each.parameter.size for each in self.updates))
        return {
            SUM: gradients + parameters,
            MEASURE: gradients + averages,
            MOVE: gradients + 2 * (parameters + averages),
        }
