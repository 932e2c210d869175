"""Adam, and AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

import math

from .pieces import AMSGRAD, DECOUPLED, L2, average, average_of_squares, larger
from .rule import rule


def _moved(
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step
):  # fmt: skip
    """The parameter and its state after a step, whatever became of weight decay."""
    beta1, beta2 = betas
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    if amsgrad:
        max_exp_avg_sq = larger(exp_avg_sq, max_exp_avg_sq)
    # torch divides by the root's correction. A division less is a quarter of the time where data is in
    # the cache, for at most one more rounding.
    denom = math.sqrt(max_exp_avg_sq if amsgrad else exp_avg_sq)
    denom = denom * (1 / (1 - beta2**step) ** 0.5) + eps
    param = param - lr / (1 - beta1**step) * exp_avg / denom
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq


@rule
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
    return _moved(
        param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step
    )  # fmt: skip


@rule
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

    With `amsgrad` the largest :math:`v` so far takes the place of :math:`v` in the last line.

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
        https://arxiv.org/abs/1711.05101
    """
    param = param * (1 - lr * weight_decay)
    return _moved(
        param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, amsgrad, step
    )  # fmt: skip
