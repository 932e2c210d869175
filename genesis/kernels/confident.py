"""CAME's passes over memory: a factored estimate of squares, and one of how far updates stray.

An update of a matrix needs the mean squares of its gradient's rows and columns, from these the size of
the update, from this the momentum and how far the update lies from it, of which the mean squares of
rows and columns again are needed. So a step reads the gradient four times and the momentum twice; the
parameter only when both are written, in the last pass. How tensors are cut, and what is kept between
the passes, is in `tiles`; that the root of an estimate is a product of two numbers, in `factored`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import storage
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

# A row of the table has, behind what all have, the momentum, what goes with the averages of squares
# (of a vector: its averages, an element each) and with those of residuals, and for each tile a sum of
# squares, float64.
MOMENTUM, SQUARES = OWN, OWN + 1
RESIDUALS = SQUARES + FACTORS
UPDATE_SQUARES, COLUMN_COUNT = range(RESIDUALS + FACTORS, RESIDUALS + FACTORS + 2)

# A tensor's numbers, float64; the last is for the kernel to write.
(
    SCALE,
    LIMIT,
    WEIGHT_1,
    WEIGHT_2,
    WEIGHT_3,
    EPSILON_1,
    EPSILON_2,
    THRESHOLD,
    KEPT,
    LENGTH,
    SHRINK,
    NUMBER_COUNT,
) = range(12)

# The passes, in order.
SUM, AVERAGE, MEASURE, SETTLE, DOUBT, WEIGH, MOVE = range(7)

# These names stand for what `tiles.compiled` puts in their place, for some storage types.
narrow = NARROW_BYTES = read_parameter = read_state = read = write_parameter = write_state = None
write = read_row = read_factors = read_numbers = read_average = write_average = None


def sum_row(gradient, columns, start, count, scale, limit):
    """Add the squares of a row's piece to those of its columns; their sum."""
    total = narrow(0.0)
    for j in range(count):
        grad = clipped_gradient(gradient, start + j, scale, limit)
        square = grad * grad
        total += square
        write((columns,), j, (read((columns,), j)[0] + square,))
    return total


def doubt_row(
    gradient, momentum, factors, columns, start, count, of_row, weight, rest, scale, limit
):  # fmt: skip
    """As `sum_row`, of what updates differ by from the momentum that they become part of."""
    total = narrow(0.0)
    for j in range(count):
        inverse = of_row * read((factors,), j)[0]
        update = clipped_gradient(gradient, start + j, scale, limit) * inverse
        average = lerp(read_state((momentum,), start + j)[0], update, weight, rest)
        residual = update - average
        square = residual * residual
        total += square
        write((columns,), j, (read((columns,), j)[0] + square,))
    return total


def move_row(
    gradient, parameter, momentum, factors, doubts, start, count, of_row, doubt_of_row, weight, rest,
    scale, limit, kept, length,
):  # fmt: skip
    """Update parameter and momentum in a row's piece."""
    for j in range(count):
        inverse = of_row * read((factors,), j)[0]
        update = clipped_gradient(gradient, start + j, scale, limit) * inverse
        average = lerp(read_state((momentum,), start + j)[0], update, weight, rest)
        trusted = average * (doubt_of_row * read((doubts,), j)[0])
        value = read_parameter((parameter,), start + j)[0] * kept + trusted * length
        write_parameter((parameter,), start + j, (value,))
        write_state((momentum,), start + j, (average,))


def vector_update(gradient, averages, i, weight, rest, added, scale, limit):
    """The update of an element of a vector before it is shrunk, and its new average of squares."""
    grad = clipped_gradient(gradient, i, scale, limit)
    average = lerp(read_average((averages,), i)[0], grad * grad + added, weight, rest)
    return grad / math.sqrt(average), average


def measure_vector(gradient, averages, start, count, weight, rest, added, scale, limit):
    """The sum of squares of the update in a piece of a vector."""
    total = narrow(0.0)
    for i in range(start, start + count):
        update, _ = vector_update(gradient, averages, i, weight, rest, added, scale, limit)
        total += update * update
    return total


def move_vector(
    gradient, parameter, momentum, averages, start, count, weight_1, rest_1, weight_2, rest_2, added,
    shrink, scale, limit, kept, length,
):  # fmt: skip
    """Update a piece of a vector, its momentum and its averages of squares."""
    for i in range(start, start + count):
        update, square = vector_update(
            gradient, averages, i, weight_2, rest_2, added, scale, limit
        )  # fmt: skip
        average = lerp(read_state((momentum,), i)[0], update * shrink, weight_1, rest_1)
        value = read_parameter((parameter,), i)[0] * kept + average * length
        write_parameter((parameter,), i, (value,))
        write_state((momentum,), i, (average,))
        write_average((averages,), i, (square,))


def settled(row, numbers):
    """What updates are to be multiplied by, so that they are not too large."""
    times = root_mean_square(row, row[UPDATE_SQUARES]) / numbers[THRESHOLD]
    put_float(row[NUMBERS] + 8 * SHRINK, 1.0 / (times if times > 1.0 else 1.0))


def over_vector(tensor, row, numbers, tile, moment):
    """One pass over a tile of a vector, which is a piece of it."""
    gradient, averages = row[GRADIENT], read_factors(tensor + 8 * SQUARES)[ROW_STATE]
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    weight, rest = narrow(numbers[WEIGHT_2]), narrow(numbers[WEIGHT_2] - 1.0)
    added = narrow(numbers[EPSILON_1])
    start, count = piece(row, tile)
    if moment == MEASURE:
        return np.float64(
            measure_vector(gradient, averages, start, count, weight, rest, added, scale, limit)
        )
    if moment == MOVE:
        move_vector(
            gradient, row[PARAMETER], row[MOMENTUM], averages, start, count,
            narrow(numbers[WEIGHT_1]), narrow(numbers[WEIGHT_1] - 1.0), weight, rest, added,
            narrow(numbers[SHRINK]), scale, limit, narrow(numbers[KEPT]), narrow(numbers[LENGTH]),
        )  # fmt: skip
    return 0.0


def over_matrices(tensor, row, numbers, tile, moment):
    """One pass over a tile, which is a part of a matrix or several matrices."""
    gradient, parameter, momentum = row[GRADIENT], row[PARAMETER], row[MOMENTUM]
    squares, residuals = read_factors(tensor + 8 * SQUARES), read_factors(tensor + 8 * RESIDUALS)
    scale, limit = narrow(numbers[SCALE]), narrow(numbers[LIMIT])
    weight, rest = narrow(numbers[WEIGHT_1]), narrow(numbers[WEIGHT_1] - 1.0)
    kept, length = narrow(numbers[KEPT]), narrow(numbers[LENGTH])
    shrink, most = numbers[SHRINK], narrow(np.inf)
    height, width, across, down = row[HEIGHT], row[WIDTH], row[ACROSS], row[DOWN]
    column, below, first, last, top, bottom, left, count = place(row, tile)
    whole = 0.0
    for matrix in range(first, last):
        # What columns contribute to the inverse root of an estimate is found where its first sums
        # were; sums over the rows of this tile have a place of their own.
        front = NARROW_BYTES * (matrix * down * width + left)
        own = NARROW_BYTES * ((matrix * down + below) * width + left)
        factors, doubts = squares[COLUMNS_SUMMED] + front, residuals[COLUMNS_SUMMED] + front
        sums = squares[COLUMNS_SUMMED] + own if moment == SUM else residuals[COLUMNS_SUMMED] + own
        if moment in (SUM, DOUBT):
            for j in range(count):
                write((sums,), j, (narrow(0.0),))
        for line in range(matrix * height + top, matrix * height + bottom):
            start = line * width + left
            if moment == SUM:
                total = sum_row(gradient, sums, start, count, scale, limit)
                write((squares[ROWS_SUMMED],), line * across + column, (total,))
                continue
            factor = factor_of_row(row, squares, line, matrix)
            if moment == MEASURE:
                of_row = narrow(factor)
                whole += measure_row(gradient, factors, start, count, of_row, most, scale, limit)
            elif moment == DOUBT:
                of_row = narrow(factor * shrink)
                total = doubt_row(
                    gradient, momentum, factors, sums, start, count, of_row, weight, rest, scale, limit
                )  # fmt: skip
                write((residuals[ROWS_SUMMED],), line * across + column, (total,))
            else:
                move_row(
                    gradient, parameter, momentum, factors, doubts, start, count,
                    narrow(factor * shrink), narrow(factor_of_row(row, residuals, line, matrix)),
                    weight, rest, scale, limit, kept, length,
                )  # fmt: skip
    if moment == MOVE and tile == 0:
        keep_averages(row, squares)
        keep_averages(row, residuals)
    return whole


def averages(tensor, row, numbers, moment):
    """From sums to averages: those of squares, or of residuals."""
    weight = numbers[WEIGHT_2] if moment == AVERAGE else numbers[WEIGHT_3]
    added = numbers[EPSILON_1] if moment == AVERAGE else numbers[EPSILON_2]
    weight, rest, smallest = narrow(weight), narrow(weight - 1.0), narrow(0.0)
    if moment == AVERAGE:
        averaged(row, read_factors(tensor + 8 * SQUARES), weight, rest, smallest, added)
    else:
        averaged(row, read_factors(tensor + 8 * RESIDUALS), weight, rest, smallest, added)


def one_pass(tensor, start, stop, hyper, moment):
    """The part of a pass that one chunk is: a tile, or all sums of a tensor."""
    row = read_row(tensor)
    numbers = read_numbers(row[NUMBERS])
    if moment == SETTLE:
        settled(row, numbers)
        return 0.0
    if moment in (AVERAGE, WEIGH):
        if not row[IS_VECTOR]:
            averages(tensor, row, numbers, moment)
        return 0.0
    if row[IS_VECTOR]:
        return over_vector(tensor, row, numbers, start, moment)
    return over_matrices(tensor, row, numbers, start, moment)


class Update(NamedTuple):
    """What there is to be done with one tensor.

    Attributes:
        gradient, parameter: the arrays, of one shape and with elements, of any strides.
        state: (momentum, averages of squares of rows and of columns, those of residuals), or of a
            vector (momentum, averages of squares).
        scale: what the gradient is multiplied by, and then `limit` the largest magnitude of its
            elements, inf for any.
        weights: how much of each average what is new becomes: of momentum, squares and residuals.
        epsilons: what is added to squares, and to residuals.
        threshold: the largest root mean square of an update.
        kept: what remains of the parameter after weight decay.
        length: what the update is multiplied by before it is added.
    """

    gradient: np.ndarray
    parameter: np.ndarray
    state: tuple[np.ndarray, ...]
    scale: float
    limit: float
    weights: tuple[float, float, float]
    epsilons: tuple[float, float]
    threshold: float
    kept: float
    length: float


class Confident(Passes):
    """CAME's passes; its updates are of the kind above."""

    column_count, number_count = COLUMN_COUNT, NUMBER_COUNT
    narrow_state = 1
    sequence = (
        (SUM, True, None),
        (AVERAGE, False, None),
        (MEASURE, True, UPDATE_SQUARES),
        (SETTLE, False, None),
        (DOUBT, True, None),
        (WEIGH, False, None),
        (MOVE, True, None),
    )

    @staticmethod
    @once
    def compiled(gradient: str, parameter: str, state: str) -> Callable:
        return compiled(
            "CAME",
            COLUMN_COUNT,
            NUMBER_COUNT,
            (gradient, parameter, state),
            averages=storage.arithmetic(parameter).name,
            moving=(vector_update, move_row, move_vector),
            summing=(sum_row, doubt_row, measure_vector),
            passes=(settled, over_vector, over_matrices, averages, one_pass),
        )

    def lying(self, update: Update) -> tuple[int, int, int, bool]:
        if len(update.state) == 2:
            return 1, 1, update.parameter.size, True
        *batch, height, width = update.parameter.shape
        return math.prod(batch), height, width, False

    def arrays(self, row: np.ndarray, update: Update) -> dict[int, np.ndarray]:
        momentum, *others = update.state
        if len(others) == 1:
            return {MOMENTUM: momentum, SQUARES + ROW_STATE: others[0]}
        return {
            MOMENTUM: momentum,
            **self.averaging(row, SQUARES, others[:2]),
            **self.averaging(row, RESIDUALS, others[2:]),
        }

    def values(self, update: Update) -> tuple[float, ...]:
        return (
            update.scale, update.limit, *update.weights, *update.epsilons, update.threshold,
            update.kept, update.length,
        )  # fmt: skip

    def traffic(self, gradients: int, parameters: int, state: int) -> dict[int, int]:
        return {
            SUM: gradients,
            MEASURE: gradients,
            DOUBT: gradients + state,
            MOVE: gradients + 2 * (parameters + state),
        }
