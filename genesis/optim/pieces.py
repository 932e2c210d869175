"""What several optimizers share: pieces of formulas, and declarations of hyper-parameters."""

from __future__ import annotations

from .. import hyper

L2 = hyper.non_negative(0, "L2 penalty, added to the gradient")
DECOUPLED = hyper.non_negative(
    1e-2, "decoupled weight decay; a step shrinks the parameter by `lr * weight_decay` of itself"
)
DECOUPLES = hyper.flag(
    False,
    "let weight decay shrink the parameter by `lr * weight_decay` of itself instead, as in AdamW",
)
AMSGRAD = hyper.flag(False, "divide by the largest average so far")


def average(kept, new, decay):
    """A running average after one more value.

    It is torch's `lerp`: it starts from the end to which it comes closer, so that a decay rate of 0
    gives the new value itself.
    """
    change = new - kept
    return kept + (1 - decay) * change if 1 - decay < decay else new - decay * change


def average_of_squares(kept, new, decay):
    """A running average of squares after one more value."""
    return kept * decay + (1 - decay) * new * new


def larger(size, other):
    """The larger of two sizes; NaN if either is: so written, it passes through from both."""
    return size if not size <= other else other
