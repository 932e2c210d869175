"""Adan."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import CAUTIOUS, average, average_of_squares, cautiously
from .rule import rule


@rule
def Adan(
    param,
    grad,
    exp_avg,
    exp_avg_diff,
    exp_avg_sq,
    pre_grad,
    *,
    lr=1e-3,
    betas=hyper.betas(
        0.98, 0.92, 0.99, text="decay rates of the averages of gradients, differences, and squares"
    ),
    eps=1e-8,
    weight_decay=hyper.non_negative(
        0, "decoupled weight decay; a step divides the parameter by `1 + lr * weight_decay`"
    ),
    no_prox=hyper.flag(
        False,
        "shrink the parameter by `lr * weight_decay` of itself before the update, as AdamW does",
    ),
    cautious=CAUTIOUS,
    step,
    first,
):
    r"""Adan: Nesterov momentum from the difference of two gradients, divided as in Adam.

    With gradient :math:`g`, the gradient before :math:`h`, parameter :math:`\theta`, learning rate
    :math:`\gamma`, weight decay :math:`\lambda` and update number :math:`t`:

    .. math::
        d &= g - h \qquad (0 \text{ at the first update}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \beta_2 u + (1 - \beta_2) d \\
        v &\leftarrow \beta_3 v + (1 - \beta_3) (g + \beta_2 d)^2 \\
        \theta &\leftarrow \left( \theta - \gamma \, \frac{
            m / (1 - \beta_1^t) + \beta_2 u / (1 - \beta_2^t)
        }{\sqrt{v / (1 - \beta_3^t)} + \epsilon} \right) / \, (1 + \gamma \lambda)

    With `no_prox` weight decay is AdamW's: :math:`\theta \leftarrow (1 - \gamma \lambda) \, \theta`
    before the update. Averages begin with 0 and are corrected for it, as in the authors' code, whose
    `betas`, too, say what is kept, where the paper writes :math:`1 - \beta`. (The package adan-pytorch
    writes them as the paper, and leaves the first gradient out of all averages and of the update.
    `pytorch_optimizer.Adan` does as here, but with `maximize` begins with a difference of :math:`2 g`.)

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_diff" (:math:`u`), "exp_avg_sq"
    (:math:`v`), "pre_grad" (:math:`h`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adan([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.702, -1.701])

    References:
        Xie, Zhou, Li, Lin, Yan: Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
        models. IEEE TPAMI, 2024, https://arxiv.org/abs/2208.06677
    """
    beta1, beta2, beta3 = betas
    difference = 0 if first else grad - pre_grad
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_diff = average(exp_avg_diff, difference, beta2)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad + beta2 * difference, beta3)
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta3**step) ** 0.5) + eps
    ahead = lr / (1 - beta1**step) * exp_avg + lr * beta2 / (1 - beta2**step) * exp_avg_diff
    change = ahead / denom
    if cautious:
        change = cautiously(change, grad)
    if no_prox:
        param = param * (1 - lr * weight_decay) - change
    else:
        param = (param - change) * (1 / (1 + lr * weight_decay))
    return param, exp_avg, exp_avg_diff, exp_avg_sq, grad
