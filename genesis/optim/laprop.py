"""LaProp."""

from __future__ import annotations

import math

from .pieces import (
    CAUTIOUS,
    CAUTIOUS_DECAY,
    DECAY,
    IS_DECOUPLED,
    average,
    average_of_squares,
    cautiously,
    check_cautious_decay,
    shrunk,
)
from .rule import rule


@rule(check=check_cautious_decay, averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def LaProp(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=4e-4,
    betas=(0.9, 0.999),
    eps=1e-15,
    weight_decay=DECAY,
    decoupled_weight_decay=IS_DECOUPLED,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    step,
):
    r"""LaProp: Adam whose gradients are divided before they are averaged.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta
        \qquad (g \leftarrow g + \lambda \theta \text{ if not decoupled}) \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        m &\leftarrow \beta_1 m + (1 - \beta_1)
            \frac{g}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} \\
        \theta &\leftarrow \theta - \gamma \, \frac{m}{1 - \beta_1^t}

    As momentum holds steps, each measured by the gradients of its own time, the two betas may be chosen
    freely, where Adam's :math:`\beta_1` must not be too far above :math:`\beta_2`.

    The authors' code and `pytorch_optimizer.LaProp` average the steps,
    :math:`\gamma g / (\sqrt{v} + \epsilon)`, which is the same for a constant learning rate; with a
    schedule, old gradients keep the rate of their time. Weight decay is as in AdamW; they apply it after
    the update. (The package's L2 penalty does nothing, as it is added to a gradient that has been used;
    it also adds 1e-15 under the root, and divides :math:`\epsilon` by :math:`\sqrt{1 - \beta_2^t}`.)

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.LaProp([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.709, -1.704])

    References:
        Ziyin, Wang, Ueda: LaProp: separating momentum and adaptivity in Adam. 2020,
        https://arxiv.org/abs/2002.04839
    """
    beta1, beta2 = betas
    if not decoupled_weight_decay:
        grad = grad + weight_decay * param
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    exp_avg = average(exp_avg, grad / denom, beta1)
    change = lr / (1 - beta1**step) * exp_avg
    if decoupled_weight_decay:
        param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        change = cautiously(change, grad)
    return param - change, exp_avg, exp_avg_sq
