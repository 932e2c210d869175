"""Parts for `genesis.chain`, each a formula of one element.

Call one for another default, `scale_by_adam(eps=1e-6)`; see `genesis.transform` for how to write one.
"""

from __future__ import annotations

import math

from . import hyper
from .formulas import transform

_LIMIT = hyper.number(1.0, "largest size of an element", low=0, infinite=True)

__all__ = [
    "add_decayed_weights",
    "cautious",
    "clip_value",
    "momentum",
    "nesterov",
    "scale_by_adam",
    "scale_by_lr",
    "scale_by_rms",
    "sign",
]


@transform(averages={"momentum_buffer": "signed"})
def momentum(update, param, momentum_buffer, *, momentum=0.9):
    """A running sum of updates: `buffer = momentum * buffer + update`, which is the new update."""
    momentum_buffer = momentum_buffer * momentum + update
    return momentum_buffer, momentum_buffer


@transform(averages={"momentum_buffer": "signed"})
def nesterov(update, param, momentum_buffer, *, momentum=0.9):
    """As `momentum`, but looking ahead: the new update is `update + momentum * buffer`."""
    momentum_buffer = momentum_buffer * momentum + update
    return update + momentum * momentum_buffer, momentum_buffer


@transform(averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def scale_by_adam(
    update, param, exp_avg, exp_avg_sq, *, betas=(0.9, 0.999), eps=1e-8, step
):  # fmt: skip
    """Adam's: an average of updates over the root of an average of their squares, unbiased."""
    beta1, beta2 = betas
    exp_avg = exp_avg + (1 - beta1) * (update - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + (1 - beta2) * update * update
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    return exp_avg * (1 / (1 - beta1**step)) / denom, exp_avg, exp_avg_sq


@transform(averages={"square_avg": "positive"})
def scale_by_rms(
    update,
    param,
    square_avg,
    *,
    alpha=hyper.decay(0.99, "decay rate of the average of squares"),
    eps=1e-8,
):
    """RMSprop's: the update over the root of an average of squares."""
    square_avg = square_avg * alpha + (1 - alpha) * update * update
    return update / (math.sqrt(square_avg) + eps), square_avg


@transform
def sign(update, param):
    """The sign of the update: 1, -1 or 0; NaN of NaN."""
    return 1 if update > 0 else -1 if update < 0 else 0 * update


@transform
def clip_value(update, param, *, limit=_LIMIT):
    """The update, no element of it larger than `limit`."""
    return min(max(update, -limit), limit)


@transform
def add_decayed_weights(update, param, *, weight_decay=1e-2):
    """The update and `weight_decay` times the parameter. Before `scale_by_lr`: decoupled, as AdamW."""
    return update + weight_decay * param


@transform
def cautious(update, param, grad):
    """Only those elements of the update that agree in sign with the gradient; the others are 0.

    Without the rescaling by the share of elements that are left, which is no formula of one element.

    References:
        Liang, Chen, Liu, Liu: Cautious optimizers. 2024, https://arxiv.org/abs/2411.16085
    """
    return update if update * grad > 0 else 0


@transform
def scale_by_lr(update, param, *, lr=1e-3):
    """The update times the learning rate."""
    return update * lr
