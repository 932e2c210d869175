"""AdaBelief."""

from __future__ import annotations

import math

from .. import hyper
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


@rule(check=check_cautious_decay, averages={"exp_avg": "signed", "exp_avg_var": "positive"})
def AdaBelief(
    param,
    grad,
    exp_avg,
    exp_avg_var,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=hyper.epsilon(1e-16, "added to the variance in each update, and to the denominator"),
    weight_decay=DECAY,
    decoupled_weight_decay=IS_DECOUPLED,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
    step,
):
    r"""AdaBelief: Adam that divides by how far gradients are from their average, not by their size.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta
        \qquad (g \leftarrow g + \lambda \theta \text{ if not decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        s &\leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{s / (1 - \beta_2^t)} + \epsilon}

    Steps are long where the gradient is what its average foretold. As :math:`\epsilon` is added in each
    update, :math:`s` comes to hold it :math:`1 / (1 - \beta_2)` times: with 1e-8 in place of the default
    1e-16, that is 1e-5.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_var" (:math:`s`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdaBelief([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.652, -1.651])

    References:
        Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris, Duncan: AdaBelief optimizer: adapting
        stepsizes by the belief in observed gradients. NeurIPS 2020, https://arxiv.org/abs/2010.07468
    """
    beta1, beta2 = betas
    if not decoupled_weight_decay:
        grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_var = average_of_squares(exp_avg_var, grad - exp_avg, beta2) + eps
    denom = math.sqrt(exp_avg_var) * (1 / (1 - beta2**step) ** 0.5) + eps
    change = lr / (1 - beta1**step) * exp_avg / denom
    if decoupled_weight_decay:
        param = shrunk(param, lr * weight_decay, change, cautious_weight_decay)
    if cautious:
        change = cautiously(change, grad)
    return param - change, exp_avg, exp_avg_var
