"""Rules that clip each element of the gradient before they use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .specialise import specialised

rule: Any = None


def _and_clip(param, grad, state, hyper):
    """The rule, for a gradient within the last scalar of zero; NaN, which compares to nothing, stays."""
    largest = hyper[-1]
    if grad > largest:
        grad = largest
    if grad < -largest:
        grad = -largest
    return rule(param, grad, state, hyper[:-1])


def clipped(function: Any, compiled: Callable) -> Any:
    """A rule that clips the elements of the gradient, after scaling, to a last scalar of its own.

    Args:
        function: the rule.
        compiled: what makes a function callable from a kernel.
    """
    return specialised(_and_clip, f"{function.__name__}_and_clip", {"rule": compiled(function)})
