"""Sums over each tensor, of which its update makes use.

A first pass over the same table sums up, chunk by chunk. The sums of a tensor's chunks are added in
their order, as float64, and a function of these gives numbers that the update then finds for each
tensor. So nothing depends on how chunks are shared out, nor on which other tensors there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Sums(NamedTuple):
    """What an update needs to know of each tensor as a whole.

    Attributes:
        summand: what is summed, `(param, grad, state, hyper) -> ...`, a tuple.
        finish: what the update makes use of, `(totals, count, hyper) -> ...`, a tuple; `count` is the
            number of elements. The rule finds these numbers before its scalars.
        totals: how many sums there are.
        numbers: how many numbers the update makes use of.
        states: how many state buffers the rule has.
        scalars: how many scalars, which `hyper` has here as well.
    """

    summand: Callable
    finish: Callable
    totals: int
    numbers: int
    states: int
    scalars: int
