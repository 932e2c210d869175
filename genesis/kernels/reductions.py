"""Norms over a table: one scalar function each, and how the results of chunks become one number.

A reduction takes the total so far, one element and an exponent, and returns the new total. Each chunk
is reduced by itself, in a fixed order, and the results are put together in a way that does not depend
on their order: so a norm is the same for any number of threads and any grouping of tensors.

As in `rules`, no numbers are written here; a total begins with what `START` says.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np


def squares(total, value, exponent):
    return total + value * value


def small_squares(total, value, scale):
    part = value * scale
    return total + part * part


def magnitudes(total, value, exponent):
    return total + abs(value)


def powers(total, value, exponent):
    return total + abs(value) ** exponent


def largest(total, value, exponent):
    size = abs(value)
    return total if size <= total or total != total else size  # so written, NaN stays


def smallest(total, value, exponent):
    size = abs(value)
    return total if size >= total or total != total else size


def root(total):
    return math.sqrt(total)


def added(total, other, exponent):
    return total + other


START = {smallest: math.inf}
"""What a total begins with, where that is not 0."""

SMALL = {"float32": 2.0**-75, "float64": 2.0**-600}
"""For each arithmetic what numbers are multiplied by so that no sum of their squares overflows. Any sum
that overflows without is so large that nothing that counts is lost in the other direction."""

LARGE = 2.0**1000
"""Sums of squares below this can be added up without a thought of overflow."""

COMBINED = {largest: largest, smallest: smallest}
"""How two totals become one, where they are not added."""


def reduction_for(norm_type: float) -> Callable:
    """The reduction that a norm needs; the 0-"norm" asks only whether the largest is 0."""
    special = {2: squares, 1: magnitudes, math.inf: largest, -math.inf: smallest, 0: largest}
    return special.get(norm_type, powers)


def norm(norm_type: float, results: Sequence[np.ndarray], owners: Sequence[np.ndarray]) -> float:
    """One norm from the results of all chunks.

    Args:
        norm_type: the exponent p; inf, -inf and 0 as in torch: the largest and smallest magnitude,
            and the number of tensors that are not all zeros.
        results: for each table the results of its chunks.
        owners: for each table the tensor that each chunk belongs to.
    """
    every = np.concatenate(results) if results else np.empty(0)
    if not every.size:
        return 0.0
    if norm_type == math.inf:
        return float(every.max())  # NaN stays
    if norm_type == -math.inf:
        return float(every.min())
    if norm_type == 0:
        return float(
            sum(len(np.unique(owner[result != 0])) for result, owner in zip(results, owners))
        )
    every.sort()  # the smallest first, and in whatever order they came
    total = float(every.sum())
    if norm_type == 2:
        return math.sqrt(total)
    if norm_type == 1:
        return total
    with np.errstate(divide="ignore"):
        return float(np.float64(total) ** (1 / norm_type))


def not_finite(norm_type: float) -> RuntimeError:
    """What is raised for a norm that is inf or NaN, where it must not be."""
    return RuntimeError(
        f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
        "so it cannot be clipped. To disable this error and scale the gradients by the "
        "non-finite norm anyway, set `error_if_nonfinite=False`"
    )


EPSILON = 1e-6


def clip_factor(max_norm: float, total_norm: float) -> float:
    """What gradients of norm `total_norm` are multiplied by: at most 1, and NaN for NaN.

    The small number beside the norm is torch's, which avoids a division by 0 with it.
    """
    factor = max_norm / (total_norm + EPSILON)
    return 1.0 if factor > 1 else factor
