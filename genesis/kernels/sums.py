"""Sums over each tensor, or over all of them, of which updates make use, and numbers that follow.

A first pass over the same table sums up, chunk by chunk. The sums of a tensor's chunks are added in
their order, as float64, and a function of these gives numbers that the update then finds for each
tensor. So nothing depends on how chunks are shared out, nor on which other tensors there are. Sums over
all tensors, which may be those of several tables, are put together in between (`combining`): tensor by
tensor, and these in an order that is not the tables'.

Such functions may also make use of numbers that are kept from update to update, for each tensor or for
all, as float64, and say what becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Sums(NamedTuple):
    """What an update needs to know of each tensor as a whole, and of all tensors.

    Attributes:
        summand: what is summed, `(param, grad, state, hyper) -> ...`, a tuple: over the tensor, then
            over all.
        finish: what the update makes use of, `(known, count, hyper) -> ...`, a tuple; `count` is the
            number of elements. The rule finds these numbers before its scalars. Behind them is what
            becomes of the numbers that are kept for the tensor. `known` are the tensor's sums, the
            numbers kept for it, and what `of_all` has.
        totals: how many sums over the tensor there are.
        numbers: how many numbers the update makes use of, at least one.
        states: how many state buffers the rule has.
        scalars: how many scalars, which `hyper` has here as well.
        begin: what the summand makes use of, before its scalars: `(known, count, hyper) -> ...`, of the
            numbers kept for the tensor and for all; None, of nothing.
        early: how many numbers that are.
        kept: how many numbers are kept for each tensor.
        carry: what becomes of the numbers kept for all, `(known, hyper) -> ...`; None, there are none.
            `known` is what `of_all` has.
        concerns_all: whether there is an `of_all`: sums over all tensors, the number of all elements,
            and the numbers kept for all, as they were before.
        totals_of_all, kept_of_all: how many sums and kept numbers there are in it.
        scalars_of_all: how many scalars `carry` takes.
    """

    summand: Callable
    finish: Callable
    totals: int
    numbers: int
    states: int
    scalars: int
    begin: Callable | None
    early: int
    kept: int
    carry: Callable | None
    concerns_all: bool
    totals_of_all: int
    kept_of_all: int
    scalars_of_all: int

    @property
    def summed(self) -> int:
        """How many sums a pass over the table finds."""
        return self.totals + self.totals_of_all

    @property
    def slots(self) -> int:
        """For how many numbers each row has a place."""
        return max(self.numbers, self.early)

    @property
    def known_of_all(self) -> int:
        """How many numbers `finish` and `carry` know of all tensors."""
        return self.totals_of_all + 1 + self.kept_of_all if self.concerns_all else 0


class Summing(NamedTuple):
    """Sums, and where they find what else they need.

    Attributes:
        sums: what is summed.
        scalars: the scalars of a launch as float64, behind one that is not looked at.
        kept: the numbers kept for each row, and their address.
        of_all: where the numbers of all tensors are (see `combining.OfAll`); None, there are none.
    """

    sums: Sums
    scalars: Any
    kept: tuple[Any, int]
    of_all: Any
