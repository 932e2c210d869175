"""The norm of tensors in several tables, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import reductions
from .launch import Launch, OverTable

Together = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""What makes of the numbers that are known here those that are known anywhere."""


def _all_here(numbers: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """For tables that are all there is."""
    return numbers


def norm(tables: Sequence[OverTable], norm_type: float) -> float:
    """The norm of all first columns together, with the exponent `norm_type`."""
    if norm_type == 2:
        return norm_and_finite(tables)[0]
    reduced = [table.reduce(norm_type) for table in tables]
    return reductions.norm(norm_type, [r for r, _ in reduced], [o for _, o in reduced])


def norm_and_finite(
    tables: Sequence[OverTable], factor: float = 1.0, together: Together = _all_here
) -> tuple[float, bool]:
    """The norm of all first columns together, and whether all their elements are finite.

    One pass tells both, unless squares overflow; then another one does, in which they cannot.

    Args:
        tables: launches or batches.
        factor: what the elements are multiplied by. Default: 1.0.
        together: where other processes have tables, too, what exchanges numbers with them; it is then
            called the same number of times in each, and all of them get one result. Default: there are
            no others.

    Returns:
        The norm of the elements times `factor`, and whether neither they nor the products are inf or
        NaN. The norm of finite numbers is inf only beyond the largest float64.
    """
    sums = [table.reduce(2.0)[0] for table in tables]
    norm = factor * reductions.norm(2.0, together(sums), ())
    if math.isfinite(norm):
        return norm, True
    # Sums that overflowed in another way than by squares are inf or NaN whatever is done.
    scaled = [
        (each, 1.0)
        if each.sum() < reductions.LARGE or not table.squares_may_overflow
        else table.reduce_small()
        for table, each in zip(tables, sums)
    ]
    scales = together([np.array([1.0, *(scale for _, scale in scaled)])])
    scale = min(float(each.min()) for each in scales)
    common = [each * (scale / own) * (scale / own) for each, own in scaled]
    root = reductions.norm(2.0, together(common), ())
    if not math.isfinite(root):
        return norm, False
    norm = root * (factor / scale)
    return norm, math.isfinite(norm) or factor <= 1


def clip(
    launches: Sequence[Launch], max_norm: float | None, inverse_scale: float | None = None
) -> tuple[float | Callable[[], float], bool]:
    """Let the next `run` of all launches unscale gradients and clip their common norm.

    No gradient is written: the factor goes into the update.

    Args:
        launches: the launches whose gradients belong together.
        max_norm: the norm that unscaled gradients may have at most; None, any.
        inverse_scale: what gradients are to be multiplied by before anything else. Default: None,
            they are not scaled.

    Returns:
        The norm of the unscaled gradients before clipping, and whether all of them are finite.
        Where everything happens on one GPU, a function that waits for the norm, since nothing here
        does, and True, since nobody looks; there the norm is inf if squares overflow, and clips to 0.
    """
    if launches and max_norm is not None and inverse_scale is None:
        norm = launches[0].clip_on_device(launches[1:], max_norm)
        if norm is not None:
            return norm, True
    factor = 1.0 if inverse_scale is None else inverse_scale
    total, finite = norm_and_finite(launches, factor)
    if max_norm is not None:
        factor *= reductions.clip_factor(max_norm, total)
    for launch in launches:
        launch.multiply_gradients(factor)
    return total, finite
