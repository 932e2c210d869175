"""ADOPT."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import (
    CAUTIOUS,
    CAUTIOUS_DECAY,
    DECOUPLES,
    L2,
    average,
    average_of_squares,
    bounded,
    cautiously,
    check_cautious_decay,
    larger,
    shrunk,
)
from .rule import rule


def _numbers(step, *, clip_exp):
    """Whether this is the update that looks only, and how long an element's gradient may be."""
    starts = step == 1
    return {
        "starts": starts,
        "longest": math.inf if starts or clip_exp is None else (step - 1) ** clip_exp,
    }


@rule(
    numbers=_numbers,
    check=check_cautious_decay,
    averages={"exp_avg": "signed", "exp_avg_sq": "positive"},
)
def ADOPT(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=1e-3,
    betas=hyper.betas(0.9, 0.9999),
    eps=hyper.epsilon(1e-6, "the least denominator"),
    weight_decay=L2,
    decoupled_weight_decay=DECOUPLES,
    clip_exp=hyper.number(
        0.25,
        "the power of the update number at which normalized gradients are clipped; None: they are not",
        low=0,
        unset=True,
    ),
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    longest,
    starts,
):
    r"""ADOPT: Adam whose gradients are divided before they are averaged, by what was known before them.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        c &= (t - 1)^{1/4} \\
        n &= \min(\max(g / \max(\sqrt{v}, \epsilon), -c), c) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) n \\
        \theta &\leftarrow \theta - \gamma \, m \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2

    The first update is :math:`v \leftarrow g^2` and nothing else: the parameter stays. As :math:`v` does
    not hold the gradient that it divides, it converges with any :math:`\beta_2`. The power 1/4 is
    `clip_exp`; the paper's first version did not clip.

    The paper counts from the second gradient on, so that the first one that moves the parameter is
    clipped at 1. `pytorch_optimizer.ADOPT` counts the first too, and clips that one at
    :math:`2^{1/4}`, and it applies decoupled weight decay in the first update.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ADOPT([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.971, -1.971])

    References:
        Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa, Matsuo: ADOPT:
        modified Adam can converge with any beta2 with the optimal rate. NeurIPS 2024,
        https://arxiv.org/abs/2411.02853
    """
    if not decoupled_weight_decay:
        grad = grad + weight_decay * param
    if starts:
        return param, exp_avg, grad * grad
    normed = bounded(grad / larger(math.sqrt(exp_avg_sq), eps), -longest, longest)
    exp_avg = average(exp_avg, normed, betas[0])
    change = lr * exp_avg
    if decoupled_weight_decay:
        param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        change = cautiously(change, normed)
    return param - change, exp_avg, average_of_squares(exp_avg_sq, grad, betas[1])
