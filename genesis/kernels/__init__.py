"""Kernels: rules, and what it takes to run one over many tensors in one launch.

Nothing here knows what an optimizer is. `prepare` is the way in: it picks the target by the device on
which the tensors lie. Numba is imported when the first launch is prepared, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .combining import Combination, OfAll, likeness
from .compiling import module_named, target_named
from .launch import Batch, Copy, FlatBatch, FlatLaunch, Launch, prepare, prepare_flat
from .norms import clip, norm, norm_and_finite

__all__ = [
    "Batch", "CHANGED", "Combination", "Copy", "FITS", "FlatBatch", "FlatLaunch", "Launch",
    "MAY_OVERLAP", "MOVED", "OfAll", "block_updates", "cells", "chunk_length", "clip",
    "confident_updates", "factored_updates", "gatherer", "ids", "kept_dict", "kept_entries",
    "kept_list", "likeness", "norm", "norm_and_finite", "prepare", "prepare_flat", "question",
    "regions", "slot_offset", "staying", "watch", "working",
]  # fmt: skip

CHANGED, MAY_OVERLAP = -1, -2
"""What a comparison with a record says, see `headers.look`."""

FITS, OTHER_ORDER, CHANGED_TENSOR = range(3)
"""What is said of another library's tensor: it can be used where it lies; it could, but lies in another
order than the one it belongs to; it is none of what is expected. See `handles.look`."""

MOVED, MEETS = 1, 2
"""What is said of a table that does not fit any more: it writes elsewhere than it did, or a gradient
lies where it writes. See `handles.stays`."""


def chunk_length() -> int:
    """How many elements of a tensor a kernel for the CPU works on at once, and sums up by themselves."""
    return target_named("cpu").CHUNK


def ids(things: Sequence[Any]) -> np.ndarray:
    """The address of each object."""
    return np.fromiter(map(id, things), np.int64, len(things))


def slot_offset(kind: type, name: str) -> int:
    """Where a class keeps a slot, see `headers.slot_offset`."""
    return module_named("headers").slot_offset(kind, name)


def watch(*arguments: Any) -> Any:
    """A record of what parameters, gradients and arrays are like, see `headers.Watch`."""
    return module_named("headers").Watch(*arguments)


def regions(bounds: Sequence[np.ndarray]) -> Any:
    """The memory that a step writes, see `headers.Regions`."""
    return module_named("headers").Regions(bounds)


def question(*arguments: Any) -> Any:
    """What there is to ask about another library's tensors, see `handles.Question`."""
    return module_named("handles").Question(*arguments)


def staying(*arguments: Any) -> Any:
    """A function that compares a table with what it was, see `handles.staying`."""
    return module_named("handles").staying(*arguments)


def cells(*arguments: Any) -> Any:
    """A number that such tensors hold, see `handles.Cells`."""
    return module_named("handles").Cells(*arguments)


def kept_list(*arguments: Any) -> Any:
    """What a list held, see `containers.KeptList`."""
    return module_named("containers").KeptList(*arguments)


def kept_dict(*arguments: Any) -> Any:
    """What a dict held, see `containers.KeptDict`."""
    return module_named("containers").KeptDict(*arguments)


def kept_entries(*arguments: Any) -> Any:
    """What dicts are to hold under some names, see `containers.KeptEntries`."""
    return module_named("containers").KeptEntries(*arguments)


def gatherer(*arguments: Any) -> Any:
    """Where some items of lists go, see `containers.Gatherer`."""
    return module_named("containers").Gatherer(*arguments)


def factored_updates(updates: Sequence[dict[str, Any]]) -> Any:
    """The calls that make Adafactor's updates, see `tiles.updating` and `factored.Update`."""
    module = module_named("factored")
    return _in_tiles(module.Factored, module.Update, updates)


def confident_updates(updates: Sequence[dict[str, Any]]) -> Any:
    """The calls that make CAME's updates, see `tiles.updating` and `confident.Update`."""
    module = module_named("confident")
    return _in_tiles(module.Confident, module.Update, updates)


def block_updates(updates: Sequence[dict[str, Any]]) -> Any:
    """The calls that make Adam-mini's updates, see `tiles.updating` and `blocks.Update`."""
    module = module_named("blocks")
    return _in_tiles(module.Blocks, module.Update, updates)


def _in_tiles(kind: Any, entry: Any, updates: Sequence[dict[str, Any]]) -> Any:
    tiles = module_named("tiles")
    return tiles.updating(kind, [entry(**update) for update in updates])


def working(vector: np.ndarray) -> Any:
    """A vector that others are added to and multiplied by, see `vectors.Working`."""
    return module_named("vectors").Working(vector)
