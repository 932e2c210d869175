"""What a pass over a table sums up, as functions that its kernel calls; see `sums`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .specialise import specialised

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
