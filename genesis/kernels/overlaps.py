"""Which tensors share memory, answered for many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .compiling import module_named


def apart(views: Sequence[np.ndarray]) -> bool:
    """Whether no two tensors can share memory, since their ranges of bytes do not meet.

    Where ranges meet, tensors may still share no element: `buffers.overlapping` tells. That looks
    at each in Python; this takes 0.3 us a tensor.

    Args:
        views: the tensors' views (see `buffers.view`).
    """
    starts = module_named("pointers").addresses(views)
    ends = starts + np.fromiter((view.nbytes for view in views), np.int64, len(views))
    bounds = getattr(np.lib, "array_utils", np).byte_bounds
    for i, view in enumerate(views):
        if not view.flags.forc:
            starts[i], ends[i] = bounds(view)
    order = starts.argsort()
    return bool((starts[order[1:]] >= ends[order[:-1]]).all())
