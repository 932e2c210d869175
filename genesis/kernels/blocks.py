"""Adam-mini's passes over memory: mean squares of the gradient's blocks, and the update.

A block is a piece of the parameter in C order, and all blocks of a tensor have one size: they are the
rows of a matrix, of which only sums over rows are needed. How tensors are cut, and what is kept between
the passes, is in `tiles`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import storage
from .compiling import once
from .tiles import (
    ACROSS,
    GRADIENT,
    HEIGHT,
    NUMBERS,
    OWN,
    PARAMETER,
    WIDTH,
    Passes,
    clipped_gradient,
    compiled,
    lerp,
    place,
)

# A row of the table has, behind what all have, the average of gradients, the averages of squares of
# blocks, their sums over the columns of tiles, their new averages, and the factors of their updates.
MOMENTUM, AVERAGES, SUMMED, NEW, FACTORS, COLUMN_COUNT = range(OWN, OWN + 6)

# A tensor's numbers, float64.
SCALE, LIMIT, WEIGHT_1, WEIGHT_2, CORRECTION, EPSILON, KEPT, LENGTH, NUMBER_COUNT = range(9)

# The passes, in order.
SUM, AVERAGE, MOVE = range(3)

# These names stand for what `tiles.compiled` puts in their place, for some storage types.
narrow = read_parameter = read_state = read = write_parameter = write_state = None
write = read_row = read_numbers = read_average = write_average = None


def sum_piece(gradient, start, count, scale, limit):
    """The sum of squares of a piece of the gradient."""
    total = narrow(0.0)
    for i in range(start, start + count):
        grad = clipped_gradient(gradient, i, scale, limit)
        total += grad * grad
    return total


def move_piece(
    gradient, parameter, momentum, start, count, weight, rest, factor, scale, limit, kept
):  # fmt: skip
    """Update parameter and average in a piece of a block."""
    for i in range(start, start + count):
        grad = clipped_gradient(gradient, i, scale, limit)
        average = lerp(read_state((momentum,), i)[0], grad, weight, rest)
        value = read_parameter((parameter,), i)[0] * kept + average * factor
        write_parameter((parameter,), i, (value,))
        write_state((momentum,), i, (average,))


def averages(row, numbers):
    """From sums to the averages of blocks, and what their updates are to be multiplied by."""
    across, width = row[ACROSS], row[WIDTH]
    weight, rest = narrow(numbers[WEIGHT_2]), narrow(numbers[WEIGHT_2] - 1.0)
    for block in range(row[HEIGHT]):
        total = 0.0
        for k in range(block * across, (block + 1) * across):
            total += read((row[SUMMED],), k)[0]
        new = lerp(
            read_average((row[AVERAGES],), block)[0], narrow(total / width), weight, rest
        )  # fmt: skip
        write((row[NEW],), block, (new,))
        root = math.sqrt(np.float64(new)) * numbers[CORRECTION] + numbers[EPSILON]
        write((row[FACTORS],), block, (narrow(numbers[LENGTH] / root),))


def over_blocks(row, numbers, tile, moment):
    """One pass over a tile, which is a part of a block or of several."""
    gradient, parameter, momentum = row[GRADIENT], row[PARAMETER], row[MOMENTUM]
    scale, limit, kept = narrow(numbers[SCALE]), narrow(numbers[LIMIT]), narrow(numbers[KEPT])
    weight, rest = narrow(numbers[WEIGHT_1]), narrow(numbers[WEIGHT_1] - 1.0)
    column, _, _, _, top, bottom, left, count = place(row, tile)
    for block in range(top, bottom):
        start = block * row[WIDTH] + left
        if moment == SUM:
            total = sum_piece(gradient, start, count, scale, limit)
            write((row[SUMMED],), block * row[ACROSS] + column, (total,))
        else:
            factor = read((row[FACTORS],), block)[0]
            move_piece(
                gradient, parameter, momentum, start, count, weight, rest, factor, scale, limit, kept
            )  # fmt: skip
            if column == 0:
                write_average((row[AVERAGES],), block, read((row[NEW],), block))


def one_pass(tensor, start, stop, hyper, moment):
    """The part of a pass that one chunk is: a tile, or all sums of a tensor."""
    row = read_row(tensor)
    numbers = read_numbers(row[NUMBERS])
    if moment == AVERAGE:
        averages(row, numbers)
    else:
        over_blocks(row, numbers, start, moment)
    return 0.0


class Update(NamedTuple):
    """What there is to be done with one tensor.

    Attributes:
        gradient, parameter: the arrays, of one shape and with elements, of any strides.
        state: (the average of gradients, averages of squares, one a block).
        scale: what the gradient is multiplied by, and then `limit` the largest magnitude of its
            elements, inf for any.
        weights: how much of each average what is new becomes: of gradients, and of squares.
        correction: what the root of an average of squares is multiplied by, before `epsilon` is added.
        kept: what remains of the parameter after weight decay.
        length: what the average over the root is multiplied by before it is added.
    """

    gradient: np.ndarray
    parameter: np.ndarray
    state: tuple[np.ndarray, np.ndarray]
    scale: float
    limit: float
    weights: tuple[float, float]
    correction: float
    epsilon: float
    kept: float
    length: float


class Blocks(Passes):
    """Adam-mini's passes; its updates are of the kind above."""

    column_count, number_count = COLUMN_COUNT, NUMBER_COUNT
    narrow_state = 1
    sums_columns = False
    sequence = ((SUM, True, None), (AVERAGE, False, None), (MOVE, True, None))

    @staticmethod
    @once
    def compiled(gradient: str, parameter: str, state: str) -> Callable:
        return compiled(
            "Adam_mini",
            COLUMN_COUNT,
            NUMBER_COUNT,
            (gradient, parameter, state),
            averages=storage.arithmetic(parameter).name,
            moving=(move_piece,),
            summing=(sum_piece,),
            passes=(averages, over_blocks, one_pass),
        )

    def lying(self, update: Update) -> tuple[int, int, int, bool]:
        blocks = update.state[1].size
        return 1, blocks, update.parameter.size // blocks, False

    def arrays(self, row: np.ndarray, update: Update) -> dict[int, np.ndarray]:
        blocks, across = int(row[HEIGHT]), int(row[ACROSS])
        return {
            MOMENTUM: update.state[0],
            AVERAGES: update.state[1],
            SUMMED: np.empty(blocks * across, self._number),
            NEW: np.empty(blocks, self._number),
            FACTORS: np.empty(blocks, self._number),
        }

    def values(self, update: Update) -> tuple[float, ...]:
        return (
            update.scale, update.limit, *update.weights, update.correction, update.epsilon,
            update.kept, update.length,
        )  # fmt: skip

    def traffic(self, gradients: int, parameters: int, state: int) -> dict[int, int]:
        return {SUM: gradients, MOVE: gradients + 2 * (parameters + state)}
