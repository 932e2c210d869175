"""How far the last step moved parameters, from what its kernels have noted.

Of each group there is an array with two numbers for each piece of a tensor: the squares of the changes,
and those of the parameters before, summed up. None stands for a group that measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..kernels import Launch, reductions

Changes = Sequence["np.ndarray | None"]

NOTHING = np.zeros((0, 2))
"""What a group has moved in a step that was left out."""


def of_launches(groups: Sequence[Sequence[Launch] | None]) -> Changes:
    """What the launches of each group have noted."""
    return [
        None
        if launches is None
        else np.concatenate([NOTHING, *(each.measured() for each in launches)])
        for launches in groups
    ]


def norm(changes: Changes) -> float:
    """The norm of the changes of all groups. No bit of it depends on how parameters are grouped."""
    return reductions.norm(2.0, [each[:, 0] for each in changes if each is not None], [])


def ratios(changes: Changes) -> list[float | None]:
    """For each group the norm of its change beside that of what its parameters were."""
    return [None if each is None else _ratio(each) for each in changes]


def _ratio(change: np.ndarray) -> float:
    moved, size = (reductions.norm(2.0, [change[:, k]], []) for k in range(2))
    return moved / size if size else math.inf if moved else 0.0
