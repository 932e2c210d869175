"""Averages in 8 bits, and float32 masters in two halves: what these arrays hold, in terms of NumPy.

An average in 8 bits is two arrays: codes, one a byte, in the shape of its parameter, and scales,
float32, one for each block of 256 elements, in C order; the last block may be shorter. The largest
magnitude in a block always has the largest code. What a code :math:`c` of a block with scale :math:`s`
stands for:

- of an average that is never negative, uint8: :math:`s y^4` with :math:`y = c / 255`;
- of a signed one, int8: :math:`\\pm s (y - y_0)`, with the sign of :math:`c`, where
  :math:`y_0 = 17 / 4096` and :math:`y` is the float32 whose bits are those of :math:`y_0`, as a whole
  number, and :math:`2^{19} |c|`: at first in steps of 1/4096, which double after each 16 codes, up to 1.

Between two codes the choice follows the number of the update and the place of the element, so that in
time each comes as often as it is near: an average that changes less in a step than its codes are apart
would otherwise stand still, and averages of squares would grow. Of these, what is not 0 never gets the
code of 0, since updates divide by them.

A master in two halves is a bfloat16 parameter, and beside it the 16 lower bits of a float32 of which the
parameter is the nearest bfloat16; of two that are equally near, the larger in magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 256
"""How many elements have a scale in common."""

LARGEST = {np.dtype(np.int8): 127, np.dtype(np.uint8): 255}
"""The data types of codes, and the largest magnitude of each."""

SHIFT = 19
"""How many bits of a float32 lie below those that change from a signed code to the next."""

FIRST_BITS = 0x3F800000 - (127 << SHIFT)
FIRST = float(np.array(FIRST_BITS, np.uint32).view(np.float32))
""":math:`y_0`, from which signed codes go up to 1."""

UNITS = {"int8": 1 / (1 - FIRST), "uint8": 1.0}
"""What the largest magnitude of a block is multiplied by to be its scale."""

EIGHT_BITS = "8bit"
"""What `state_dtype` calls such averages."""

SPLIT = "split"
"""What `master_weights` calls a master in two halves."""

SCALE = "_scale"
"""What the name of an average ends with in that of its scales."""

LOWER = "master_low"
"""What the state calls the lower half of a master."""

KINDS = {"signed": np.dtype(np.int8), "positive": np.dtype(np.uint8)}
"""What an average may be, and the data type of its codes."""


def is_packed(array: Any) -> bool:
    """Whether something is an array of codes."""
    dtype = getattr(array, "dtype", None)
    return isinstance(dtype, np.dtype) and dtype in LARGEST


def blocks(size: int) -> int:
    """How many scales so many elements have."""
    return -(-size // BLOCK)


def full(
    value: float, shape: tuple[int, ...], kind: str, zeros: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of an average, every element of which is `value`, in memory as of `np.zeros`."""
    dtype = KINDS[kind]
    codes = zeros(shape, dtype, order="C")
    scales = zeros((blocks(codes.size),), np.dtype(np.float32), order="C")
    if value:
        codes.fill(np.copysign(LARGEST[dtype], value))
        scales.fill(np.float32(abs(value)) * np.float32(UNITS[dtype.name]))
    return codes, scales
