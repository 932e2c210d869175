"""AdEMAMix."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import (
    CAUTIOUS,
    CAUTIOUS_DECAY,
    SHRINKS,
    average,
    average_of_squares,
    cautiously,
    shrunk,
)
from .rule import rule


def _inverse_of_log(decay):
    """1 / log(decay), minus the time in which an average forgets all but 1/e of what it holds."""
    return 1 / math.log(decay) if decay > 0 else 0.0


def _numbers(step, *, betas, alpha, beta3_warmup, alpha_warmup):
    """What the slow average counts for in this update, and its decay rate."""
    slow_decay = betas[2]
    if beta3_warmup and step < beta3_warmup:
        # The time in which it forgets rises evenly, from that of the fast one.
        part = step / beta3_warmup
        inverse = (1 - part) * _inverse_of_log(betas[0]) + part * _inverse_of_log(slow_decay)
        slow_decay = min(math.exp(1 / inverse) if inverse else 0.0, slow_decay)
    if alpha_warmup and step < alpha_warmup:
        alpha *= step / alpha_warmup
    return {"slow_size": alpha, "slow_decay": slow_decay}


@rule(
    numbers=_numbers,
    averages={"exp_avg": "signed", "exp_avg_slow": "signed", "exp_avg_sq": "positive"},
)
def AdEMAMix(
    param,
    grad,
    exp_avg,
    exp_avg_slow,
    exp_avg_sq,
    *,
    lr=1e-3,
    betas=hyper.betas(
        0.9, 0.999, 0.9999, text="decay rates of the fast average, of squares, of the slow average"
    ),
    alpha=hyper.non_negative(5.0, "what the slow average counts for beside the fast one"),
    beta3_warmup=hyper.number(
        None, "updates in which the slow average's decay rate rises; None: none", low=0, unset=True
    ),
    alpha_warmup=hyper.number(
        None, "updates in which alpha rises from 0; None: none", low=0, unset=True
    ),
    eps=1e-8,
    weight_decay=SHRINKS,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    slow_size,
    slow_decay,
    step,
):
    r"""AdEMAMix: AdamW with a second, slow average of gradients, which remembers thousands of updates.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        s &\leftarrow \beta_3^{(t)} s + (1 - \beta_3^{(t)}) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t) + \alpha^{(t)} s}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    The slow average is not corrected for its start at 0. `betas` are
    :math:`(\beta_1, \beta_2, \beta_3)`. With warm-ups over :math:`T` updates, usually all of a run's:

    .. math::
        \alpha^{(t)} = \min(t / T, 1) \, \alpha, \qquad
        \frac{1}{\ln \beta_3^{(t)}} = \frac{1 - t / T}{\ln \beta_1} + \frac{t / T}{\ln \beta_3}
        \quad \text{until } t = T \text{, and no more than } \beta_3

    Names are those of the authors' code, whose default `alpha` is 2, while other packages have 5. The
    paper trains with warm-ups, without which a large `alpha` may diverge early on. `cautious` is about
    both averages together; in `pytorch_optimizer` it leaves out the slow one.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_slow" (:math:`s`), "exp_avg_sq"
    (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdEMAMix([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.701, -1.7  ])

    References:
        Pagliardini, Ablin, Grangier: The AdEMAMix optimizer: better, faster, older. ICLR 2025,
        https://arxiv.org/abs/2409.03137
    """
    beta1, beta2, _ = betas
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_slow = average(exp_avg_slow, grad, slow_decay)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    mixed = 1 / (1 - beta1**step) * exp_avg + slow_size * exp_avg_slow
    change = lr * mixed / denom
    param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        change = cautiously(change, grad)
    return param - change, exp_avg, exp_avg_slow, exp_avg_sq
