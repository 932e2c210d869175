"""What several optimizers share: pieces of formulas, and declarations of hyper-parameters."""

from __future__ import annotations

from dataclasses import replace

from .. import hyper

L2 = hyper.non_negative(0, "L2 penalty, added to the gradient")
DECOUPLED = hyper.non_negative(
    1e-2, "decoupled weight decay; a step shrinks the parameter by `lr * weight_decay` of itself"
)
SHRINKS = replace(DECOUPLED, default=0)
DECAY = hyper.non_negative(0, "weight decay")
DECOUPLES = hyper.flag(
    False,
    "let weight decay shrink the parameter by `lr * weight_decay` of itself instead, as in AdamW",
)
IS_DECOUPLED = hyper.flag(
    True,
    "let weight decay shrink the parameter by `lr * weight_decay` of itself, as in AdamW; if False, it "
    "is an L2 penalty, added to the gradient",
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


def sign(value):
    """-1, 0 or 1. A NaN, which is neither above nor below 0, stays NaN: an optimizer that reads signs
    must not hide it."""
    return 1 if value > 0 else -1 if value < 0 else value


def bounded(value, least, most):
    """The number of this range that is nearest to a value; NaN of NaN."""
    return least if value < least else most if value > most else value
