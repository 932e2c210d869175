"""Sums over all tensors of an optimizer, put together from several tables, and numbers kept for all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import buffers
from . import compiling

if TYPE_CHECKING:
    from .launch import Launch
    from .sums import Sums


class OfAll:
    """The numbers of all tensors, in memory of their device.

    These are the sums, the number of all elements, the numbers kept as they were before the last update,
    and as they are now: all float64.

    Args:
        sums: what they are.
        kept: the numbers kept, as they are now.
        device, stream: where they are.

    Attributes:
        memory, address: where they lie.
        now: how many bytes behind the address the numbers kept lie, as they are now.
        likeness: equal for two that can stand for one another.
    """

    def __init__(self, sums: Sums, kept: Sequence[float], device: str, stream: Any):
        self.likeness = likeness(sums, device, stream)
        self.device, self.stream = device, stream
        self._first = sums.known_of_all
        numbers = np.zeros((1, self._first + sums.kept_of_all))
        numbers[0, self._first :] = kept
        self.memory, self.address = compiling.target_named(device).numbers(numbers, device, stream)
        self.now = 8 * self._first

    def kept(self) -> np.ndarray:
        """The numbers kept, as they are now; on a GPU this waits for it."""
        return buffers.host_copy(self.memory).ravel()[self._first :]


def likeness(sums: Sums, device: str, stream: Any) -> tuple:
    """What two `OfAll` must have in common to stand for one another."""
    return sums.totals_of_all, sums.kept_of_all, device, stream


class Combination:
    """What puts together the sums of launches, and says what becomes of the numbers kept for all.

    Its call comes between the passes that sum up and those that update.

    Args:
        launches: the launches, with one `of_all` in common.
        rows: for each row of each launch its place in the order in which tensors are added.
        sums: what is summed.
        of_all: where the results go.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        rows: Sequence[Sequence[int]],
        sums: Sums,
        of_all: OfAll,
    ):
        pieces = np.concatenate([launch.pieces() for launch in launches])
        order = np.argsort(np.concatenate([np.asarray(each, np.int64) for each in rows]))
        elements = sum(launch.elements for launch in launches)
        self._scalars = np.zeros(1 + sums.scalars_of_all)
        self._scalars[0] = elements  # the first scalar, before those of `carry`
        target = compiling.target_named(of_all.device)
        self._combine = target.bind_combination(
            np.ascontiguousarray(pieces[order]), sums, of_all, self._scalars
        )
        # The sums lie in memory of the launches.
        self._launches = launches

    def set_scalars(self, hyper: Sequence[float]) -> None:
        """Set the scalars of `carry`."""
        self._scalars[1:] = hyper

    def actions(self) -> list[partial]:
        """The calls, for `commit`."""
        return [self._combine]
