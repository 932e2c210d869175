"""Adamax."""

from __future__ import annotations

from .. import hyper
from .pieces import L2, average, larger
from .rule import rule


@rule(averages={"exp_avg": "signed", "exp_inf": "positive"})
def Adamax(
    param,
    grad,
    exp_avg,
    exp_inf,
    *,
    lr=2e-3,
    betas=hyper.betas(0.9, 0.999, text="decay rates of the average and of the maximum"),
    eps=hyper.epsilon(1e-8, "added to the gradient's size"),
    weight_decay=L2,
    step,
):
    r"""Adamax: Adam with a decaying maximum of the gradient's size in place of the root mean square.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 - \beta_1^t} \, \frac{m}{u}

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_inf" (:math:`u`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adamax([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.715, -1.708])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015, section 7.1,
        https://arxiv.org/abs/1412.6980
    """
    beta1, beta2 = betas
    grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, beta1)
    exp_inf = larger(abs(grad) + eps, exp_inf * beta2)
    return param - lr / (1 - beta1**step) * exp_avg / exp_inf, exp_avg, exp_inf
