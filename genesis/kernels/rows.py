"""The rows that a sparse gradient names: which there are, and where they lie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.core import types

from .compiling import once
from .specialise import compile_function, specialised


def rows_found(indices, largest, pattern, size, addresses, chunks, rows, places):
    """Fill a table with the different rows that `indices` names, none larger than `largest`.

    Each column of `pattern` says where the rows of a tensor begin, how far apart they are, and
    whether the tensor holds just these rows. The first is that of the gradients. `rows` is filled
    with the numbers of the rows in ascending order, `places` with an order that sorts the indices
    and, for each index in this order, its place among the rows. Returns how many rows there are.
    """
    # A radix sort, digit by digit from the lowest: equal indices keep their order, and random ones
    # take a tenth of the time that comparisons would.
    digit = 11
    keys, other_keys = indices.copy(), np.empty_like(indices)
    order, other_order = np.arange(len(indices)), np.empty_like(indices)
    ends = np.empty(1 << digit, np.int64)
    shift = 0
    while largest >> shift > 0:
        ends[:] = 0
        for i in range(len(keys)):
            ends[keys[i] >> shift & (1 << digit) - 1] += 1
        total = 0
        for value in range(len(ends)):
            total += ends[value]
            ends[value] = total
        for i in range(len(keys) - 1, -1, -1):
            value = keys[i] >> shift & (1 << digit) - 1
            ends[value] -= 1
            other_keys[ends[value]] = keys[i]
            other_order[ends[value]] = order[i]
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
        shift += digit
    places[0] = order
    last = -1
    count = 0
    for i in range(len(keys)):
        index = keys[i]
        if index != last:
            last = index
            for column in range(pattern.shape[1]):
                number = count if pattern[2, column] else index if column else order[i]
                addresses[count, column] = pattern[0, column] + number * pattern[1, column]
            chunks[count, 0] = count
            chunks[count, 1] = 0
            chunks[count, 2] = size
            rows[count] = index
            count += 1
        places[1, i] = count - 1
    return count


def find_rows(*arguments) -> int:
    """See `rows_found`."""
    return _compiled_rows_found()(*arguments)


@once
def _compiled_rows_found() -> Callable:
    number = types.int64
    vector, matrix = types.Array(number, 1, "C"), types.Array(number, 2, "C")
    read_only = types.Array(number, 1, "C", readonly=True)
    signature = number(read_only, number, matrix, number, matrix, matrix, vector, matrix)
    return compile_function(specialised(rows_found, "rows_found", {}), signature)
