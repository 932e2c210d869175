"""What a rank updates, and the optimizer by which it does.

Where a tensor may be cut, that is another optimizer of the same class, over parts of the parameters'
arrays: what it writes are the users' arrays. Its groups follow those of the one that users have. Where
tensors stay whole, it is the users' own, which finds no gradient for what other ranks own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from .. import buffers, kernels
from ..checkpoint.sharded import Cover, Piece
from ..optim import gradients, options
from ..optim.gradient_optimizer import GradientOptimizer
from ..optim.rule_optimizer import RuleOptimizer
from ..optim.schedule_free import ScheduleFree
from ..optim.state import State
from ..parameter import Parameter
from . import alike
from .shards import Bucket, Segment

_NOT_SETTINGS = "params", "param_names"


class Owned(NamedTuple):
    """What this rank updates of a parameter.

    Attributes:
        segment: which elements.
        piece: the parameter itself, or a part of it.
        sum: where the mean of gradients is once all parts were added.
    """

    segment: Segment
    piece: Parameter
    sum: np.ndarray


class Share:
    """A rank's share of an optimizer's work and state, or all of it.

    Args:
        inner: the optimizer, as users have it.
        rank: the rank.
        divides: whether ranks share the work.
        cuts: whether they share tensors by elements, see `can_cut`.

    Attributes:
        local: the optimizer that does this rank's update.
        owned: what it updates.
    """

    def __init__(self, inner: GradientOptimizer, rank: int, divides: bool, cuts: bool):
        self.inner, self._rank, self._divides = inner, rank, divides
        self.local = _empty_like(inner) if cuts else inner
        self.local._said_no_gradients = True  # who distributes it says so, of all ranks
        self.owned: list[Owned] = []
        self._arrays: list[Any] = []
        self._batches: tuple[bytes, list[kernels.Batch]] = b"", []

    # ---- what it consists of ----

    def add(self, first: int, buckets: Sequence[Bucket], sums: Sequence[np.ndarray]) -> None:
        """Own what is this rank's of some buckets, and of the parameters from `first` on.

        Args:
            first: the number of the first parameter that is new.
            buckets: those in which the new parameters are.
            sums: for each of them the memory of its sums.
        """
        everyone = self.inner._parameters()
        found = [
            each
            for bucket, sum_ in zip(buckets, sums)
            for each in (self._own if self._divides else _all)(bucket, sum_)
        ]
        if self._rank == 0 or not self._divides:  # what has no elements travels in no bucket
            found += [
                (Segment(number, 0, 0, 0, 0, True), np.empty(0, np.float32))
                for number in range(first, len(everyone))
                if not everyone[number].size
            ]
        if self.local is not self.inner:
            for group in self.inner.param_groups[len(self.local.param_groups) :]:
                self.local.param_groups.append({**group, "params": [], "param_names": []})
        for segment, sum_ in sorted(found, key=lambda each: each[0][:2]):
            piece = everyone[segment.parameter]
            if self.local is not self.inner:
                piece = self._piece(segment, piece)
            self.owned.append(Owned(segment, piece, sum_.reshape(piece.shape)))
        self._arrays = [parameter._view for parameter in everyone]
        self._batches = b"", []

    def _own(self, bucket: Bucket, sums: np.ndarray) -> list[tuple[Segment, np.ndarray]]:
        """What is owned here of a bucket, given its sums."""
        begin = bucket.starts[self._rank]
        return [
            (each, sums[each.at - begin : each.at - begin + each.size])
            for each in bucket.segments
            if each.owner == self._rank
        ]

    def _piece(self, segment: Segment, parameter: Parameter) -> Parameter:
        """A segment of a parameter as one of its own, in the local optimizer's groups."""
        number = segment.parameter
        ends = np.cumsum([len(group["params"]) for group in self.inner.param_groups])
        group = self.local.param_groups[int(np.searchsorted(ends, number, "right"))]
        name = alike.names(self.inner)[number] or f"parameter {number}"
        piece = parameter
        if not segment.whole:
            name += f"[{segment.start}:{segment.stop}]"
            piece = Parameter(parameter._view.reshape(-1)[segment.start : segment.stop], name=name)
        group["params"].append(piece)
        group["param_names"].append(name)
        return piece

    @property
    def count(self) -> int:
        """How many parameters are divided, of which some are this rank's."""
        return len(self._arrays)

    # ---- what it is to update ----

    def follow(self) -> None:
        """Have the groups' settings, and the arrays that parameters have now.

        Raises:
            ValueError: parameters were added or removed otherwise than by `add_param_group`, an array
                does not lie in memory as it did, or a group needs whole tensors now.
        """
        everyone = self.inner._parameters()
        if len(everyone) != len(self._arrays):
            raise ValueError(
                f"the groups have {len(everyone)} parameters, but {len(self._arrays)} are divided among "
                "ranks: add parameters by add_param_group"
            )
        views = [parameter._view for parameter in everyone]
        if self.local is not self.inner:
            self._follow_arrays(views)
            self._follow_settings()
        self._arrays = views

    def _follow_arrays(self, views: Sequence[Any]) -> None:
        moved = [view is not before for view, before in zip(views, self._arrays)]
        if not any(moved):
            return
        for segment, piece, _ in self.owned:
            view = views[segment.parameter]
            if moved[segment.parameter] and not segment.whole:
                if not view.flags.c_contiguous:
                    raise ValueError(
                        f"{alike.labels(self.inner)[segment.parameter]} has another array now, which is "
                        "not C-contiguous, but is divided among ranks: give np.ascontiguousarray(array)"
                    )
                piece._view = view.reshape(-1)[segment.start : segment.stop]

    def _follow_settings(self) -> None:
        for i, (mine, theirs) in enumerate(zip(self.local.param_groups, self.inner.param_groups)):
            settings = {name: value for name, value in theirs.items() if name not in _NOT_SETTINGS}
            if settings == {
                name: value for name, value in mine.items() if name not in _NOT_SETTINGS
            }:
                continue
            if not can_cut(self.inner):
                raise ValueError(
                    f"with the settings of group {i}, an update has to see whole tensors, but they are "
                    "divided by elements: set them before the optimizer is distributed"
                )
            dict.update(mine, settings)

    def sums(self, given: np.ndarray) -> list[gradients.Views]:
        """For each group of the local optimizer the means of gradients, or None.

        Args:
            given: for each parameter of the inner optimizer whether it has a gradient.
        """
        found = {each.piece: each.sum for each in self.owned if given[each.segment.parameter]}
        return [[found.get(p) for p in group["params"]] for group in self.local.param_groups]

    def batches(self, given: np.ndarray) -> list[kernels.Batch]:
        """The means of gradients as they are summed up for a norm; see `sums`."""
        key = given.tobytes()
        if key != self._batches[0]:
            by_type: dict[np.dtype, list[np.ndarray]] = {}
            for each in self.owned:
                if given[each.segment.parameter] and each.sum.size:
                    by_type.setdefault(each.sum.dtype, []).append(each.sum)
            self._batches = key, [kernels.Batch(arrays) for arrays in by_type.values()]
        return self._batches[1]

    # ---- its state, in pieces ----

    def pieces(self) -> list[Piece]:
        """Copies of the state."""
        everyone, state = self.inner._parameters(), self.local.state
        pieces = []
        for segment, piece, _ in self.owned:
            entries = {
                name: buffers.host_copy(value) if buffers.is_array(value) else value
                for name, value in (state.get(piece) or {}).items()
            }
            if entries:
                shape = everyone[segment.parameter].shape
                pieces.append(Piece(segment.parameter, shape, segment.start, segment.stop, entries))
        return pieces

    def taking_over(self, saved: dict[str, Any], pieces: Iterable[Piece]) -> list[partial]:
        """The calls, for `commit`, that take over this share of what was saved.

        Args:
            saved: of a state dict the "param_groups".
            pieces: the state, in pieces of whatever sizes; one after the other is looked at.

        Raises:
            TypeError, ValueError: it does not fit, or pieces are missing.
        """
        inner, local = self.inner, self.local
        everyone, called = inner._parameters(), alike.labels(inner)
        groups, owner = inner._loaded_groups(saved["param_groups"])
        numbers = {parameter: number for number, parameter in enumerate(everyone)}
        places = {number: numbers[parameter] for number, parameter in owner.items()}
        covers: dict[int, list[tuple[Parameter, Cover]]] = {}
        for (number, start, stop, *_), piece, _ in self.owned:
            cover = Cover(called[number], everyone[number].shape, start, stop)
            covers.setdefault(number, []).append((piece, cover))
        for each in pieces:
            if each.parameter not in places:
                raise ValueError(
                    f"loaded state dict has state for {each.parameter!r}, which no group names"
                )
            for _, cover in covers.get(places[each.parameter], ()):
                cover.add(each)
        state: dict[Any, Any] = {}
        for saved_number, number in places.items():
            for piece, cover in covers.get(number, ()):
                entries = cover.entries()
                if entries and local is inner:
                    state[saved_number] = entries
                elif entries:
                    state[piece] = local._loaded_state(called[number], piece, entries)
        if local is inner:
            return inner._taking_over({**saved, "state": state})
        return [
            partial(setattr, inner, "param_groups", groups),
            partial(setattr, local, "_state", State(state)),
        ]


def _all(bucket: Bucket, sums: np.ndarray) -> list[tuple[Segment, np.ndarray]]:
    """All parameters of a bucket, none of which is cut into several buckets, given their sums."""
    sizes: dict[int, int] = {}
    for each in bucket.segments:
        sizes[each.parameter] = sizes.get(each.parameter, 0) + each.size
    return [
        (each._replace(stop=size, whole=True), sums[each.at : each.at + size])
        for each in bucket.segments
        if each.start == 0
        for size in [sizes[each.parameter]]
    ]


def can_cut(optimizer: GradientOptimizer) -> bool:
    """Whether an update of a part of a tensor needs nothing but that part.

    So it is if the class is what a formula of one element makes, and neither sums nor random numbers,
    which follow from an element's place in its tensor, are in it.
    """
    kind = type(optimizer)
    return (
        isinstance(optimizer, RuleOptimizer)
        and kind._apply is RuleOptimizer._apply
        and kind._step is RuleOptimizer._step
        and not any(
            optimizer._recipe.written_for(group).numbers or options.of(group).stochastic_rounding
            for group in optimizer.param_groups
        )
    )


def why_not_divided(optimizer: GradientOptimizer) -> str | None:
    """Why ranks cannot share an optimizer's work and state, by whole tensors either; None, they can."""
    if isinstance(optimizer, ScheduleFree):
        return "lets parameters show averages, for which each rank needs all of the state"
    asked = [options.of(group) for group in optimizer.param_groups]
    if any(each.packs or each.splits for each in asked):
        return "packs state by its place in a tensor (state_dtype='8bit', master_weights='split')"
    if isinstance(optimizer, RuleOptimizer) and any(
        optimizer._recipe.written_for(group).concerns_all for group in optimizer.param_groups
    ):
        return "sums over all tensors, of which a rank would see its own only"
    return None


def _empty_like(optimizer: GradientOptimizer) -> GradientOptimizer:
    """An optimizer of the same class, with neither parameters nor state."""
    made = object.__new__(type(optimizer))
    made.__dict__.update({**optimizer.__getstate__(), "_state": State(), "param_groups": []})
    return cast(GradientOptimizer, made)
