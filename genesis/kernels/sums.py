"""Sums over each tensor, of which its update makes use.

A first pass over the same table sums up, chunk by chunk. The sums of a tensor's chunks are added in
their order, as float64, and a function of these gives numbers that the update then finds for each
tensor. So nothing depends on how chunks are shared out, nor on which other tensors there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .specialise import specialised


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


# These names stand for functions and numbers that `of_columns` puts in their place (see `specialise`).
summand: Any = None
edited: Any = None
STATES: Any = None
SCALARS: Any = None


def _of_columns(param, grad, state, hyper):
    """What is summed, given all columns and scalars of a table, of which the rule's own come first."""
    return summand(param, grad, state[:STATES], hyper[:SCALARS])


def _of_master(param, grad, state, hyper):
    """As `_of_columns`, but an element that somebody has edited in the copy counts as the parameter."""
    shown = state[-1]
    if edited(param, shown):
        param = shown
    return summand(param, grad, state[:STATES], hyper[:SCALARS])


def of_columns(
    function: Callable, states: int, scalars: int, edit: Callable | None, compiled: Callable
) -> Any:
    """What is summed, as a function of whatever columns and scalars a table has.

    Args:
        function, states, scalars: the rule's, see `Sums`.
        edit: where the parameters are masters, see `copies.with_copy`; else None.
        compiled: what makes a function callable from a kernel.
    """
    names: dict[str, Any] = {
        "summand": compiled(function),
        "STATES": states,
        "SCALARS": scalars,
    }
    if edit is None:
        template = _of_columns
    else:
        template, names["edited"] = _of_master, edit
    return specialised(template, f"{function.__name__}_of_columns", names)


def whole(gradient, hyper):
    """A gradient as it is."""
    return gradient


def within(gradient, hyper):
    """A gradient within the last scalar of zero; NaN, which compares to nothing, stays."""
    largest = hyper[-1]
    if gradient > largest:
        gradient = largest
    if gradient < -largest:
        gradient = -largest
    return gradient
