"""Which rank updates what, and in which buckets it travels.

Parameters are put into buckets in the order in which a backward pass comes to them, the last first.
Elements of a bucket are divided among ranks: evenly, so that a tensor may be cut, or by whole tensors
where an update has to see a tensor as one. In a bucket the elements of each owner lie together.

A tensor is cut only where a kernel begins another chunk of it. So sums over chunks, of which a norm is
made, are the same whoever owns them: a norm does not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LARGE = 1 << 14
"""From how many elements on a segment is a message of its own. To copy so many takes longer than what a
message costs beside its bytes."""


class Tensor(NamedTuple):
    """A parameter as it is divided.

    Attributes:
        number: its number among all.
        size: how many elements it has.
        dtype: of the parameter.
        can_be_cut: whether it lies flat, so that a part of it is an array.
    """

    number: int
    size: int
    dtype: np.dtype
    can_be_cut: bool


class Segment(NamedTuple):
    """Elements of one parameter that one rank owns.

    Attributes:
        parameter: the number of the parameter.
        start, stop: the first element, and one past the last.
        owner: the rank that updates them.
        at: where they lie in their bucket.
        whole: whether these are all elements of the parameter.
    """

    parameter: int
    start: int
    stop: int
    owner: int
    at: int
    whole: bool

    @property
    def size(self) -> int:
        return self.stop - self.start


class Run(NamedTuple):
    """Neighbours in a bucket, of one owner, that travel as one message.

    Attributes:
        owner: the rank that updates them.
        start, stop: where they lie in the bucket.
        segments: what they are.
    """

    owner: int
    start: int
    stop: int
    segments: tuple[Segment, ...]


class Bucket(NamedTuple):
    """What travels at once.

    Attributes:
        dtype: of the parameters.
        segments: what is in it, in order.
        starts: where the elements of each rank begin, and their end as the last one.
        runs: the same as messages: large segments by themselves, since these need no copy, and small
            ones together.
        place: where the bucket begins among all elements of this type.
        parameters: the numbers of the parameters of which something is in it.
    """

    dtype: np.dtype
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    runs: tuple[Run, ...]
    place: int
    parameters: frozenset[int]

    @property
    def size(self) -> int:
        return self.starts[-1]

    @property
    def arithmetic(self) -> np.dtype:
        return arithmetic(self.dtype)

    def own(self, rank: int) -> slice:
        """Where the elements of a rank lie in it."""
        return slice(self.starts[rank], self.starts[rank + 1])


def arithmetic(dtype: np.dtype) -> np.dtype:
    """The type in which gradients of such parameters are summed up."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


class Division:
    """All buckets, and who owns what in them.

    Args:
        ranks: how many there are.
        bucket_bytes: how much gradient a bucket holds at most, unless one tensor that stays whole has
            more.
        unit: a tensor is cut at multiples of it only, counted from its beginning.
        whole: whether an owner has whole tensors.
        across: whether a tensor larger than a bucket is cut into several.

    Attributes:
        buckets: in the order in which they travel.
        loads: how many elements each rank owns.
    """

    def __init__(self, ranks: int, bucket_bytes: int, unit: int, whole: bool, across: bool):
        self.ranks, self.bucket_bytes, self.unit = ranks, bucket_bytes, unit
        self.whole, self.across = whole, across
        self.buckets: list[Bucket] = []
        self.loads = [0] * ranks

    def add(self, tensors: Sequence[Tensor]) -> list[Bucket]:
        """Divide further tensors; who owns those before stays as it is. Returns their buckets."""
        owners = self._owners(tensors) if self.whole else {}
        made: list[Bucket] = []
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            place = sum(bucket.size for bucket in self.buckets if bucket.dtype == dtype)
            for parts in self._filled([t for t in reversed(tensors) if t.dtype == dtype]):
                cut = self._by_tensor(parts, owners) if self.whole else self._evenly(parts)
                bucket = self._bucket(dtype, cut, place)
                place += bucket.size
                made.append(bucket)
        self.buckets += made
        return made

    def _filled(self, tensors: Sequence[Tensor]) -> list[list[tuple[Tensor, int, int]]]:
        """The elements of each bucket, as parts of tensors."""
        filled: list[list[tuple[Tensor, int, int]]] = []
        room = 0
        for tensor in tensors:
            if not tensor.size:
                continue
            most = max(1, self.bucket_bytes // arithmetic(tensor.dtype).itemsize)
            start = 0
            if self.across and tensor.can_be_cut and tensor.size > most:
                piece = max(1, most // self.unit) * self.unit
                while tensor.size - start > piece:
                    filled.append([(tensor, start, start + piece)])
                    start += piece
                room = 0
            size = tensor.size - start
            if size > room:
                filled.append([])
                room = most
            filled[-1].append((tensor, start, tensor.size))
            room -= size
        return filled

    def _evenly(
        self, parts: Sequence[tuple[Tensor, int, int]]
    ) -> list[tuple[Tensor, int, int, int]]:
        """The parts of a bucket with their owners, so that all own about as much, so far."""
        size = sum(stop - start for _, start, stop in parts)
        total, before = sum(self.loads) + size, 0
        ends = []
        for rank in range(self.ranks - 1):
            before += self.loads[rank]
            ends.append(self._nearest(parts, total * (rank + 1) // self.ranks - before))
        ends = [*np.maximum.accumulate([0, *ends])[1:].tolist(), size]
        cut, at, owner = [], 0, 0
        for tensor, start, stop in parts:
            while start < stop:
                while ends[owner] <= at:
                    owner += 1
                end = min(stop, start + ends[owner] - at)
                cut.append((tensor, start, end, owner))
                self.loads[owner] += end - start
                at += end - start
                start = end
        return cut

    def _nearest(self, parts: Sequence[tuple[Tensor, int, int]], wanted: int) -> int:
        """The place in a bucket nearest to the one wanted at which it may be cut."""
        begin = 0
        for tensor, start, stop in parts:
            end = begin + stop - start
            if wanted < end:
                unit = self.unit if tensor.can_be_cut else stop - start
                down = max(0, wanted - begin) // unit * unit + begin
                up = min(down + unit, end)
                return down if wanted - down <= up - wanted else up
            begin = end
        return begin

    def _owners(self, tensors: Sequence[Tensor]) -> dict[int, int]:
        """For each tensor the rank that owns it: the largest first, to who has least so far."""
        owners = {}
        for tensor in sorted(tensors, key=lambda each: (-each.size, each.number)):
            owner = min(range(self.ranks), key=lambda rank: (self.loads[rank], rank))
            owners[tensor.number] = owner
            self.loads[owner] += tensor.size
        return owners

    def _by_tensor(
        self, parts: Sequence[tuple[Tensor, int, int]], owners: dict[int, int]
    ) -> list[tuple[Tensor, int, int, int]]:
        """The parts of a bucket with their owners, those of each owner together."""
        owned = [(tensor, start, stop, owners[tensor.number]) for tensor, start, stop in parts]
        return sorted(owned, key=lambda part: part[3])  # keeps the order otherwise

    def _bucket(
        self, dtype: np.dtype, cut: Sequence[tuple[Tensor, int, int, int]], place: int
    ) -> Bucket:
        segments, counts, at = [], [0] * self.ranks, 0
        for tensor, start, stop, owner in cut:
            whole = stop - start == tensor.size
            segments.append(Segment(tensor.number, start, stop, owner, at, whole))
            at += stop - start
            counts[owner] += stop - start
        starts = (0, *np.cumsum(counts).tolist())
        parameters = frozenset(tensor.number for tensor, *_ in cut)
        return Bucket(dtype, tuple(segments), starts, _runs(segments), place, parameters)


def _runs(segments: Sequence[Segment]) -> tuple[Run, ...]:
    """The segments of a bucket as messages."""
    runs: list[list[Segment]] = []
    for segment in segments:
        last = runs[-1][-1] if runs else None
        alone = segment.size >= LARGE or last is None or last.size >= LARGE
        if alone or last.owner != segment.owner:  # type: ignore[union-attr]
            runs.append([])
        runs[-1].append(segment)
    return tuple(
        Run(run[0].owner, run[0].at, run[-1].at + run[-1].size, tuple(run)) for run in runs
    )
