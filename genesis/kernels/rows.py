"""The rows that a sparse gradient names: which there are, and where they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import pointers
from .compiling import once
from .words import compile_words, function

_DIGIT = 11
"""Bits by which indices are sorted at a time."""

# The places of numbers in what `rows_found` is told; the pattern comes behind them.
INDICES, COUNT, LARGEST, SIZE, COLUMNS, HEAD = range(6)


@function
def rows_found(code, told, found, scratch):
    """Fill a table with the different rows that indices name; see `find_rows`.

    Args:
        told: where the numbers named above are, and then the pattern.
        found: where the addresses, the chunks, the rows and the places are to be put, one after another.
        scratch: memory for four numbers an index, and one for each value of a digit.

    Returns:
        How many rows there are.
    """
    size, columns, count = told[8 * SIZE], told[8 * COLUMNS], told[8 * COUNT]
    # A radix sort, digit by digit from the lowest: equal indices keep their order, and random ones
    # take a tenth of the time that comparisons would.
    keys, other_keys, order, other_order = (
        code.variable(scratch + 8 * count * part) for part in range(4)
    )
    ends = scratch + 32 * count
    indices = told[8 * INDICES]
    with code.each(count) as i:
        keys.value[8 * i] = indices[8 * i]
        order.value[8 * i] = i
    shift = code.variable(0)
    with code.repeat(lambda: told[8 * LARGEST] >> shift.value > 0):
        now = shift.value
        before, after = keys.value, other_keys.value
        order_before, order_after = order.value, other_order.value

        def end_of(key):
            return ends + 8 * (key >> now & (1 << _DIGIT) - 1)

        with code.each(1 << _DIGIT) as value:
            ends[8 * value] = 0
        with code.each(count) as i:
            end = end_of(before[8 * i])
            end[0] = end[0] + 1
        total = code.variable(0)
        with code.each(1 << _DIGIT) as value:
            total.value += ends[8 * value]
            ends[8 * value] = total.value
        with code.each(count) as i:
            last = 8 * (count - 1 - i)
            end = end_of(before[last])
            place = end[0] - 1
            end[0] = place
            after[8 * place] = before[last]
            order_after[8 * place] = order_before[last]
        keys.value, other_keys.value = after, before
        order.value, other_order.value = order_after, order_before
        shift.value = now + _DIGIT
    sorted_keys, sorted_order = keys.value, order.value
    origins = told + 8 * HEAD
    strides = origins + 8 * columns
    alone = strides + 8 * columns
    chunks = found + 8 * columns * count
    rows = chunks + 24 * count
    places = rows + 8 * count
    last_index, number = code.variable(-1), code.variable(0)
    with code.each(count) as i:
        index, given = sorted_keys[8 * i], sorted_order[8 * i]
        with code.when(index != last_index.value):
            last_index.value = index
            row = number.value
            with code.each(columns) as column:
                its = code.choice(column == 0, given, index)
                its = code.choice(alone[8 * column] != 0, row, its)
                address = origins[8 * column] + its * strides[8 * column]
                found[8 * (row * columns + column)] = address
            chunk = chunks + 24 * row
            chunk[0], chunk[8], chunk[16] = row, 0, size
            rows[8 * row] = index
            number.value = row + 1
        places[8 * i] = given
        places[8 * (count + i)] = number.value - 1
    code.give(number.value)


def find_rows(
    indices: np.ndarray, largest: int, pattern: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The different rows that indices name, as a table.

    Args:
        indices: int64, none larger than `largest`.
        pattern: three rows of int64: for each column where the rows of a tensor begin, how far apart
            they are, and whether the tensor holds just these rows. The first is that of the gradients.
        size: how many elements a row has.

    Returns:
        For each row its addresses; for each a chunk; the numbers of the rows, in ascending order; and an
        order that sorts the indices with, for each index in this order, its place among the rows.
    """
    count, columns = len(indices), pattern.shape[1]
    told = np.array([0, count, largest, size, columns, *pattern.ravel()], np.int64)
    found = np.empty(count * (columns + 6), np.int64)
    scratch = np.empty(4 * count + (1 << _DIGIT), np.int64)
    told[INDICES], *others = pointers.addresses((indices, told, found, scratch)).tolist()
    number = _compiled()(*others)
    ends = np.cumsum([columns, 3, 1]) * count
    addresses, chunks, rows, places = np.split(found, ends)
    return (
        addresses.reshape(count, columns)[:number],
        chunks.reshape(count, 3)[:number],
        rows[:number],
        places.reshape(2, count),
    )


@once
def _compiled() -> Callable:
    return compile_words(rows_found, "rows of sparse gradients", nogil=True)
