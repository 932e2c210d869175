"""NAdam."""

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
    cautiously,
    check_cautious_decay,
    shrunk,
)
from .rule import rule


def _numbers(step, mu_product=1.0, *, lr, betas, momentum_decay):
    """The momentum of this update and the next, and what gradient and average count for."""
    mu = betas[0] * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    later = betas[0] * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    mu_product *= mu
    return {
        "mu_product": mu_product,
        "grad_size": lr * (1 - mu) / (1 - mu_product),
        "avg_size": lr * later / (1 - mu_product * later),
    }


@rule(
    numbers=_numbers,
    check=check_cautious_decay,
    averages={"exp_avg": "signed", "exp_avg_sq": "positive"},
)
def NAdam(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=L2,
    momentum_decay=hyper.non_negative(4e-3, "how fast the momentum rises to its full strength"),
    decoupled_weight_decay=DECOUPLES,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    grad_size,
    avg_size,
    step,
):
    r"""NAdam: Adam with Nesterov momentum, which rises from half its strength.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, momentum decay :math:`\psi` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \mu_t &= \beta_1 (1 - 0.96^{t \psi} / 2), \qquad \pi_t = \mu_1 \mu_2 \cdots \mu_t \\
        \theta &\leftarrow \theta - \gamma \, \frac{
            g \, (1 - \mu_t) / (1 - \pi_t) + m \, \mu_{t+1} / (1 - \pi_{t+1})
        }{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    State of a parameter: "step", the number "mu_product" (:math:`\pi_t`), "exp_avg" (:math:`m`),
    "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.NAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.753, -1.748])

    References:
        Dozat: Incorporating Nesterov momentum into Adam. ICLR 2016 workshop,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Loshchilov, Hutter: Decoupled weight
        decay regularization. ICLR 2019, https://arxiv.org/abs/1711.05101 (decoupled_weight_decay)
    """
    if not decoupled_weight_decay:
        grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, betas[0])
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, betas[1])
    denom = math.sqrt(exp_avg_sq / (1 - betas[1] ** step)) + eps
    by_grad, by_average = grad_size * grad / denom, avg_size * exp_avg / denom
    change = by_grad + by_average
    if decoupled_weight_decay:
        param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        return param - cautiously(change, grad), exp_avg, exp_avg_sq
    return param - by_grad - by_average, exp_avg, exp_avg_sq
