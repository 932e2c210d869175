"""Adam, and AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

import math

from .pieces import (
    AMSGRAD,
    CAUTIOUS,
    CAUTIOUS_DECAY,
    DECOUPLED,
    L2,
    average,
    average_of_squares,
    cautiously,
    larger,
    shrunk,
)
from .rule import rule

AVERAGES = {"exp_avg": "signed", "exp_avg_sq": "positive", "max_exp_avg_sq": "positive"}


def _change(grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step):
    """What a step subtracts, whatever becomes of weight decay, and the state after it."""
    beta1, beta2 = betas
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    if amsgrad:
        max_exp_avg_sq = larger(exp_avg_sq, max_exp_avg_sq)
    # torch divides by the root's correction. A division less is a quarter of the time where data is in
    # the cache, for at most one more rounding.
    denom = math.sqrt(max_exp_avg_sq if amsgrad else exp_avg_sq)
    denom = denom * (1 / (1 - beta2**step) ** 0.5) + eps
    return lr / (1 - beta1**step) * exp_avg / denom, exp_avg, exp_avg_sq, max_exp_avg_sq


@rule(averages=AVERAGES)
def Adam(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=L2,
    amsgrad=AMSGRAD,
    cautious=CAUTIOUS,
    step,
):
    r"""Adam: steps scaled by running averages of the gradient and of its square.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad` the largest :math:`v` so far takes the place of :math:`v` in the last line.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`) and with amsgrad
    "max_exp_avg_sq".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.702, -1.701])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015,
        https://arxiv.org/abs/1412.6980. Reddi, Kale, Kumar: On the convergence of Adam and beyond.
        ICLR 2018, https://openreview.net/forum?id=ryQu7f-RZ (amsgrad)
    """
    grad = grad + weight_decay * param
    change, exp_avg, exp_avg_sq, max_exp_avg_sq = _change(
        grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step
    )
    if cautious:
        change = cautiously(change, grad)
    return param - change, exp_avg, exp_avg_sq, max_exp_avg_sq


@rule(averages=AVERAGES)
def AdamW(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=DECOUPLED,
    amsgrad=AMSGRAD,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    step,
):
    r"""AdamW: Adam whose weight decay shrinks the parameter instead of entering the gradient.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad` the largest :math:`v` so far takes the place of :math:`v` in the last line. With
    `cautious`, elements of the subtracted term whose sign is not that of :math:`g` stay away, and the
    others are longer for it; with `cautious_weight_decay`, elements do not shrink that the term lets
    grow: see "Caution" in the guide to choosing an optimizer.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`) and with amsgrad
    "max_exp_avg_sq".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdamW([p], lr=0.1, weight_decay=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.675, -1.644])

    References:
        Loshchilov, Hutter: Decoupled weight decay regularization. ICLR 2019,
        https://arxiv.org/abs/1711.05101. Liang, Chen, Liu, Liu: Cautious optimizers: improving training
        with one line of code. 2024, https://arxiv.org/abs/2411.16085 (cautious). Chen, Li, Liang, Su,
        Xie, Pierse, Liang, Lao, Liu: Cautious weight decay. 2025, https://arxiv.org/abs/2510.12402
        (cautious_weight_decay)
    """
    change, exp_avg, exp_avg_sq, max_exp_avg_sq = _change(
        grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step
    )
    param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        change = cautiously(change, grad)
    return param - change, exp_avg, exp_avg_sq, max_exp_avg_sq
