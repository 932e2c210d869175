"""LAMB."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import total
from .pieces import average, average_of_squares
from .rule import rule


@rule(averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def LAMB(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=hyper.non_negative(1e-2, "weight decay, a part of the update that is scaled"),
    bias_correction=hyper.flag(True, "divide the averages by what they lack at first"),
    adapt=hyper.flag(True, "scale each tensor's update to its own norm; False: it is as Adam's"),
    step,
):
    r"""LAMB: Adam's update, scaled so that each tensor moves by a share of its own norm.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, update number :math:`t`, and norms over the whole tensor:

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda \theta \\
        \theta &\leftarrow \theta - \gamma \, \frac{\lVert \theta \rVert}{\lVert u \rVert} \, u

    The ratio is 1 where either norm is 0. It is the algorithm of the paper as published at ICLR, with
    its bias correction, and with the identity for the function that may bound
    :math:`\lVert \theta \rVert`. `pytorch_optimizer.Lamb` follows an earlier version: it has no bias
    correction in :math:`u` (`bias_correction=False` here), but divides :math:`\gamma` by
    :math:`1 - \beta_1^t`; it bounds the norm by 10, adds :math:`\epsilon` to
    :math:`\lVert u \rVert`, and by default decays weights before, as AdamW. NVIDIA's FusedLAMB clips
    the norm of all gradients first: `step(max_norm=1.0)`.

    Biases and the weights of norms are commonly left as Adam's, in a group of their own with
    `adapt=False` and `weight_decay=0`.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.LAMB([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 2.046, -3.035])

    References:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh: Large batch optimization
        for deep learning: training BERT in 76 minutes. ICLR 2020, https://arxiv.org/abs/1904.00962
    """
    beta1, beta2 = betas
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    if bias_correction:
        denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
        update = exp_avg * (1 / (1 - beta1**step)) / denom
    else:
        update = exp_avg / (math.sqrt(exp_avg_sq) + eps)
    update = update + weight_decay * param
    if adapt:
        size, change = math.sqrt(total(param * param)), math.sqrt(total(update * update))
        ratio = size / change if size > 0 and change > 0 else 1
    else:
        ratio = 1
    return param - lr * ratio * update, exp_avg, exp_avg_sq
