"""Gradients on their way to the ranks that own them, and parameters on their way back.

A round takes one part of the global batch from each rank: part `r` of the round is rank `r`'s. Buckets
travel one after the other, in the same order in each rank. What is owned here of a bucket comes in from
all ranks and is added to the sum so far in the order of the parts. So the sum of all parts is

    ((part 0 + part 1) + part 2) + ...

for whatever number of ranks there is, to the last bit.

Not more than one bucket is on its way at a time: it takes the memory of less than one bucket to receive
what is owned of it, and of one at most to send what does not lie in memory as it is sent. Large arrays
do: they are sent from where they are, and parameters received where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .required import mpi
from .shards import Bucket, Division, Run, Segment

BLOCK = 1 << 14
"""How many elements of a sum are added up at once: little enough to stay in a core's own cache."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

View = Any
"""An array's view, see `genesis.buffers.view`; or None."""


class Flight(NamedTuple):
    """A bucket on its way.

    Attributes:
        number: which one.
        requests: what MPI has been asked for.
        rows: what is owned here of it, piece by piece: where it lies among what is owned, and from each
            part of the round the array, once the requests are done.
    """

    number: int
    requests: list[Any]
    rows: list[tuple[slice, list[np.ndarray]]]


class Exchange:
    """The buckets of a division, between the ranks of a communicator.

    Args:
        comm: an intracommunicator of mpi4py; on it nothing else must be sent.
        division: what is owned by whom; may grow between steps.
        parts: into how many parts the global batch is divided.
        deterministic: sum up in the order of parts; else as MPI's own reduction does.
        bfloat16: whether what is sent of gradients is rounded to bfloat16.
        everything: whether each rank gets the sums of all elements, and not only of those it owns.

    Attributes:
        rounds: how many rounds make a step.
        sums: for each bucket the mean of all parts after the last round, of what is owned here, or of
            everything.
    """

    def __init__(
        self,
        comm: Any,
        division: Division,
        parts: int,
        deterministic: bool,
        bfloat16: bool,
        everything: bool,
    ):
        self.comm, self.division, self.parts = comm, division, parts
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.rounds = -(-parts // self.size)
        self.sums: list[np.ndarray] = []
        self._deterministic, self._bfloat16, self._everything = deterministic, bfloat16, everything
        self._flat: dict[np.dtype, np.ndarray] = {}
        self._outgoing = self._incoming = np.empty(0, np.uint8)
        self._next, self._round = 0, 0
        self._flight: Flight | None = None
        self.follow()

    def follow(self) -> None:
        """Make room for the sums of buckets that are new in the division."""
        for bucket in self.division.buckets[len(self.sums) :]:
            own = bucket.own(self.rank)
            size = bucket.size if self._everything else own.stop - own.start
            self.sums.append(np.empty(size, bucket.arithmetic))

    def contributors(self, round_: int) -> int:
        """How many ranks, the first ones, have a part in a round."""
        return min(self.size, self.parts - round_ * self.size)

    @property
    def started(self) -> int:
        """How many buckets of this round are on their way or have arrived."""
        return self._next

    # ---- gradients ----

    def begin(self, round_: int) -> None:
        """Get ready for a round."""
        self._round, self._next = round_, 0

    def go_on(self, views: Sequence[View], ready: Sequence[bool]) -> None:
        """Do what can be done without waiting for other ranks.

        Args:
            views: for each parameter its gradient in this rank's part.
            ready: whether it is there.
        """
        MPI = mpi()
        while True:
            if self._flight is not None:
                if not MPI.Request.Testall(self._flight.requests):
                    return
                self._arrived()
            if self._next == len(self.division.buckets):
                return
            bucket = self.division.buckets[self._next]
            if not all(ready[parameter] for parameter in bucket.parameters):
                return
            self._start(views)

    def finish(self, views: Sequence[View], wanted: Callable[[Bucket], bool]) -> None:
        """Send what was not sent yet, wait for all buckets of the round, and sum up.

        Args:
            views: for each parameter its gradient in this rank's part. None: zeros.
            wanted: whether a bucket is to travel; the same in all ranks.
        """
        while True:
            self._wait()
            if self._next == len(self.division.buckets):
                return
            if wanted(self.division.buckets[self._next]):
                self._start(views)
            else:
                self._next += 1

    def drain(self, until: int, nothing: Sequence[None]) -> None:
        """Let buckets that other ranks have sent arrive, since there will be no step.

        Args:
            until: how many buckets some rank has started.
            nothing: None for each parameter, as what is in them does not count.
        """
        self._wait()
        while self._next < until:
            self._start(nothing)
            self._wait()

    def _wait(self) -> None:
        if self._flight is not None:
            mpi().Request.Waitall(self._flight.requests)
            self._arrived()

    def _start(self, views: Sequence[View]) -> None:
        """Send the next bucket, and ask for what is owned here of it."""
        number, bucket = self._next, self.division.buckets[self._next]
        wire = BFLOAT16 if self._bfloat16 else bucket.arithmetic
        own = bucket.own(self.rank)
        if self._deterministic:
            requests, rows = self._exchanged(number, views, wire)
        else:
            sent = self._box(bucket.size, wire)
            contributes = self.rank < self.contributors(self._round)
            for segment in bucket.segments:
                place = sent[segment.at : segment.at + segment.size]
                fill(place, segment, views[segment.parameter] if contributes else None)
            self._incoming = _room(self._incoming, (own.stop - own.start) * wire.itemsize)
            received = self._incoming[: (own.stop - own.start) * wire.itemsize].view(wire)
            counts = np.diff(bucket.starts).tolist()
            requests = [self.comm.Ireduce_scatter(sent, received, counts)]
            rows = [(slice(0, own.stop - own.start), [received])]
        self._flight = Flight(number, requests, rows)
        self._next += 1

    def _exchanged(
        self, number: int, views: Sequence[View], wire: np.dtype
    ) -> tuple[list[Any], list[tuple[slice, list[np.ndarray]]]]:
        """Send a bucket to its owners; what MPI was asked for, and what there is to be added up then."""
        bucket, tag = self.division.buckets[number], number % 32768
        count = self.contributors(self._round)
        contributes = self.rank < count
        own = bucket.own(self.rank)
        length = own.stop - own.start
        others = [r for r in range(count) if r != self.rank]
        self._incoming = _room(self._incoming, len(others) * length * wire.itemsize)
        received = self._incoming[: len(others) * length * wire.itemsize].view(wire)
        boxes = dict(zip(others, received.reshape(len(others), length)))
        mine: list[Any] = [None] * len(bucket.runs)
        if contributes:
            mine = [pack(*each, views) for each in self._laid_out(bucket.runs, views, wire)]
        requests, rows = [], []
        for run, array in zip(bucket.runs, mine):
            if run.owner != self.rank:
                if contributes:
                    requests.append(self.comm.Isend(_bytes(array), run.owner, tag))
                continue
            place = slice(run.start - own.start, run.stop - own.start)
            parts = {other: box[place] for other, box in boxes.items()}
            requests += [self.comm.Irecv(_bytes(part), r, tag) for r, part in parts.items()]
            if contributes:
                parts[self.rank] = array
            rows.append((place, [parts[rank] for rank in sorted(parts)]))
        return requests, rows

    def _laid_out(
        self, runs: Sequence[Run], views: Sequence[View], kind: np.dtype
    ) -> list[tuple[Run, np.ndarray, bool]]:
        """For each run the memory from which, or into which, it travels, and whether it is a copy's."""
        arrays = [flat(run, views, kind) for run in runs]
        copied = sum(run.stop - run.start for run, array in zip(runs, arrays) if array is None)
        box, at = self._box(copied, kind), 0
        found = []
        for run, array in zip(runs, arrays):
            if array is not None:
                found.append((run, array, False))
                continue
            found.append((run, box[at : at + run.stop - run.start], True))
            at += run.stop - run.start
        return found

    def _box(self, size: int, kind: np.dtype) -> np.ndarray:
        """Memory for what is on its way out, or in; its contents are nothing yet."""
        self._outgoing = _room(self._outgoing, size * kind.itemsize)
        return self._outgoing[: size * kind.itemsize].view(kind)

    def _arrived(self) -> None:
        """Add what has come in to the sums."""
        assert self._flight is not None
        number, _, rows = self._flight
        self._flight = None
        bucket, total = self.division.buckets[number], self.sums[number]
        if self._everything:
            total = total[bucket.own(self.rank)]
        last = self._round == self.rounds - 1
        for place, parts in rows:
            add_up(total[place], parts, self._round == 0, 1 / self.parts if last else 1.0)

    # ---- back to all ranks ----

    def share_sums(self, wanted: Callable[[Bucket], bool]) -> None:
        """Let all ranks have the sums of everything."""
        for bucket, total in zip(self.division.buckets, self.sums):
            if wanted(bucket):
                counts = np.diff(bucket.starts) * total.itemsize
                places = np.array(bucket.starts[:-1]) * total.itemsize
                box = [_bytes(total), counts.tolist(), places.tolist(), mpi().BYTE]
                self.comm.Allgatherv(mpi().IN_PLACE, box)

    def share_parameters(self, views: Sequence[View], wanted: Callable[[Bucket], bool]) -> None:
        """Let all ranks have the parameters as their owners have them.

        Args:
            views: the parameters' arrays.
            wanted: whether something in a bucket has changed; the same in all ranks.
        """
        if self.size == 1:
            return
        for bucket in self.division.buckets:
            if not wanted(bucket):
                continue
            requests, arriving = [], []
            for owner, array, run in self._places(bucket, views):
                if owner == self.rank:
                    others = (r for r in range(self.size) if r != self.rank)
                    requests += [self.comm.Isend(_bytes(array), r) for r in others]
                else:
                    requests.append(self.comm.Irecv(_bytes(array), owner))
                    arriving += [] if run is None else [(array, run)]
            mpi().Request.Waitall(requests)
            for array, run in arriving:
                spread(array, run, views)

    def _places(
        self, bucket: Bucket, views: Sequence[View]
    ) -> Iterator[tuple[int, np.ndarray, Run | None]]:
        """Of parameters in a bucket the messages: their owners, where they lie, and what is a copy."""
        memory = self._flat.get(bucket.dtype)
        if memory is not None and bucket.place < memory.size:
            for rank in range(self.size):
                if bucket.starts[rank] < bucket.starts[rank + 1]:
                    yield rank, memory[bucket.place :][bucket.own(rank)], None
            return
        for run, array, is_copy in self._laid_out(bucket.runs, views, bucket.dtype):
            if run.owner == self.rank:
                yield run.owner, pack(run, array, is_copy, views), None
            else:
                yield run.owner, array, run if is_copy else None

    def broadcast(self, views: Sequence[View], root: int) -> None:
        """Let all ranks have the parameters as `root` has them."""
        for bucket in self.division.buckets:
            box = self._box(bucket.size, bucket.dtype)
            for segment in bucket.segments if self.rank == root else ():
                place = box[segment.at : segment.at + segment.size]
                fill(place, segment, views[segment.parameter])
            self.comm.Bcast(_bytes(box), root)
            for run in bucket.runs:
                spread(box[run.start : run.stop], run, views)

    # ---- parameters in one piece of memory ----

    def flatten(self, views: Sequence[View], buckets: Sequence[Bucket]) -> dict[int, np.ndarray]:
        """Arrays in one piece of memory for each data type, which hold what parameters do.

        Args:
            views: the parameters' arrays.
            buckets: all buckets; none may have been added since.

        Returns:
            For each parameter that has elements its new array.
        """
        made: dict[int, np.ndarray] = {}
        for kind in dict.fromkeys(bucket.dtype for bucket in buckets):
            same = [bucket for bucket in buckets if bucket.dtype == kind]
            flat = np.empty(sum(bucket.size for bucket in same), kind)
            self._flat[kind] = flat
            for bucket in same:
                for segment in bucket.segments:
                    place = bucket.place + segment.at
                    fill(flat[place : place + segment.size], segment, views[segment.parameter])
                    if segment.start == 0:
                        view = views[segment.parameter]
                        whole = flat[place : place + view.size].reshape(view.shape)
                        made[segment.parameter] = whole
        return made


def fill(box: np.ndarray, segment: Segment, view: View) -> None:
    """Copy a segment of an array into a box of its size, converted; zeros if there is no array."""
    if view is None:
        box[...] = 0
        return
    with np.errstate(all="ignore"):  # infinities and NaNs travel as they are
        if segment.whole:
            np.copyto(box.reshape(view.shape), view, casting="unsafe")
        else:
            np.copyto(box, view.reshape(-1)[segment.start : segment.stop], casting="unsafe")


def spread(box: np.ndarray, run: Run, views: Sequence[View]) -> None:
    """Copy a run from a box into arrays of its type."""
    for segment in run.segments:
        at = segment.at - run.start
        part, view = box[at : at + segment.size], views[segment.parameter]
        if segment.whole:
            np.copyto(view, part.reshape(view.shape))
        else:
            np.copyto(view.reshape(-1)[segment.start : segment.stop], part)


def flat(run: Run, views: Sequence[View], kind: np.dtype) -> np.ndarray | None:
    """A run where it lies, if it lies in one piece and has this type; else None."""
    first = run.segments[0]
    view = views[first.parameter]
    if len(run.segments) > 1 or view is None or view.dtype != kind or not view.flags.c_contiguous:
        return None
    return view.reshape(-1)[first.start : first.stop]


def pack(run: Run, array: np.ndarray, is_copy: bool, views: Sequence[View]) -> np.ndarray:
    """The memory from which a run is sent, filled if it is a copy's."""
    for segment in run.segments if is_copy else ():
        at = segment.at - run.start
        fill(array[at : at + segment.size], segment, views[segment.parameter])
    return array


def add_up(total: np.ndarray, rows: Sequence[np.ndarray], begins: bool, factor: float) -> None:
    """Add rows to a total, one after the other, and multiply what comes of it by a factor.

    Args:
        total: the sum so far, which is replaced.
        rows: arrays of its shape, of its type or a narrower one.
        begins: whether there is no sum so far.
        factor: see above.
    """
    times = total.dtype.type(factor)
    with np.errstate(all="ignore"):
        for start in range(0, total.size, BLOCK):
            sum_ = total[start : start + BLOCK]
            block = [row[start : start + BLOCK].astype(total.dtype, copy=False) for row in rows]
            if begins and block:
                np.copyto(sum_, block.pop(0))
            for each in block:
                np.add(sum_, each, out=sum_)
            if factor != 1:
                np.multiply(sum_, times, out=sum_)


def _room(memory: np.ndarray, size: int) -> np.ndarray:
    """Memory of at least so many bytes."""
    return memory if memory.size >= size else np.empty(size, np.uint8)


def _bytes(array: np.ndarray) -> np.ndarray:
    """An array as MPI takes it that knows no bfloat16."""
    return array.view(np.uint8)
