"""RAdam."""

from __future__ import annotations

import math

from .pieces import DECOUPLES, L2, average, average_of_squares
from .rule import rule


def _numbers(step, *, lr, betas):
    """The step size, and whether the denominator can be trusted yet."""
    beta1, beta2 = betas
    correction = 1 - beta2**step
    step_size = lr / (1 - beta1**step)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    trusted = length > 5
    if trusted:
        now, finally_ = ((n - 4) * (n - 2) / n for n in (length, longest))
        step_size *= correction**0.5 * (now / finally_) ** 0.5
    return {"step_size": step_size, "trusted": trusted}


@rule(numbers=_numbers, averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def RAdam(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=L2,
    decoupled_weight_decay=DECOUPLES,
    step_size,
    trusted,
):
    r"""RAdam: Adam that goes without its denominator until that can be trusted.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, update number :math:`t` and :math:`\rho_\infty = 2 / (1 - \beta_2) - 1`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho &= \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        \theta &\leftarrow \theta - \gamma \, \frac{m}{1 - \beta_1^t} \, \begin{cases}
            1 & \rho \le 5 \\
            \sqrt{\frac{(\rho - 4) (\rho - 2) \rho_\infty}{(\rho_\infty - 4) (\rho_\infty - 2) \rho}}
            \; \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v} + \epsilon} & \rho > 5
        \end{cases}

    With the default betas the first five updates are those of momentum without a denominator.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.RAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.462, -0.925])

    References:
        Liu, Jiang, He, Chen, Liu, Gao, Han: On the variance of the adaptive learning rate and
        beyond. ICLR 2020, https://arxiv.org/abs/1908.03265. Loshchilov, Hutter: Decoupled weight
        decay regularization. ICLR 2019, https://arxiv.org/abs/1711.05101 (decoupled_weight_decay)
    """
    if decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, betas[0])
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, betas[1])
    denom = math.sqrt(exp_avg_sq) + eps if trusted else 1
    return param - step_size * exp_avg / denom, exp_avg, exp_avg_sq
