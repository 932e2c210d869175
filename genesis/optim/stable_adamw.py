"""StableAdamW."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import mean
from .pieces import DECOUPLED
from .rule import rule


@rule(averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def StableAdamW(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=1e-3,
    betas=hyper.betas(0.9, 0.99),
    eps=1e-8,
    weight_decay=DECOUPLED,
    step,
):
    r"""StableAdamW: AdamW, slowed down for a tensor whose gradient is larger than it remembers.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, update number :math:`t`, and the mean over the whole tensor:

    .. math::
        \hat\beta_i &= \beta_i \frac{1 - \beta_i^{t-1}}{1 - \beta_i^t} \\
        m &\leftarrow \hat\beta_1 m + (1 - \hat\beta_1) g \\
        v &\leftarrow \hat\beta_2 v + (1 - \hat\beta_2) g^2 \\
        \gamma_t &= \gamma \, / \max\Big(1, \sqrt{\operatorname{mean}\big(g^2 / \max(v,
            \epsilon^2)\big)}\Big) \\
        \theta &\leftarrow (1 - \gamma_t \lambda) \, \theta - \gamma_t \, \frac{m}{\sqrt{v} + \epsilon}

    This is AdaFactor's clipping of updates in AdamW: where a batch suddenly has gradients far beyond
    the average :math:`v`, the step is shortened as if the update had a root mean square of 1, and
    clipping gradients by their norm becomes unnecessary.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.StableAdamW([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.699, -1.695])

    References:
        Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt: Stable and low-precision training for
        large-scale vision-language models. NeurIPS 2023, https://arxiv.org/abs/2304.13013
    """
    beta1, beta2 = betas
    beta1 = beta1 * (1 - beta1 ** (step - 1)) / (1 - beta1**step)
    beta2 = beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    size = math.sqrt(mean(grad * grad / max(exp_avg_sq, eps * eps)))
    rate = lr / max(1, size)
    param = param * (1 - rate * weight_decay)
    return param - rate * exp_avg / (math.sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq
