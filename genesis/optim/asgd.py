"""Averaged stochastic gradient descent."""

from __future__ import annotations

from .. import hyper
from .pieces import L2
from .rule import rule


def _numbers(step, eta=0.0, mu=1.0, *, lr, lambd, alpha, t0):
    """The step size and the average's weight: those of this update, and the next one's to carry."""
    return {
        "step_size": lr if step == 1 else eta,
        "weight": mu,
        "eta": lr / (1 + lambd * lr * step) ** alpha,
        "mu": 1 / max(1, step - t0),
    }


@rule(numbers=_numbers)
def ASGD(
    param,
    grad,
    ax,
    *,
    lr=1e-2,
    lambd=hyper.non_negative(1e-4, "decay of the parameter, and of the learning rate"),
    alpha=hyper.non_negative(0.75, "power with which the learning rate falls"),
    t0=hyper.number(
        1e6, "number of updates before averaging starts; inf, it never does", low=0, infinite=True
    ),
    weight_decay=L2,
    step_size,
    weight,
):
    r"""Averaged stochastic gradient descent: the average of the parameter's path comes with it.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`, from :math:`\eta = \gamma, \mu = 1`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        \theta &\leftarrow (1 - \Lambda \eta) \, \theta - \eta \, g \\
        a &\leftarrow a + \mu \, (\theta - a) \\
        \eta &\leftarrow \gamma / (1 + \Lambda \gamma t)^\alpha, \qquad
        \mu \leftarrow 1 / \max(1, t - t_0)

    where :math:`\Lambda` is `lambd`. The average :math:`a` is the parameter itself until :math:`t_0`.
    As in torch, :math:`\eta` is one update behind: a changed `lr` counts from the second update on.

    State of a parameter: "step", the numbers "eta" and "mu" for the next update, and the average
    "ax" (:math:`a`), which is the result: copy it into the parameter when training is over.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ASGD([p], lr=0.1, t0=0)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3), opt.state[p]["ax"].round(3)
        (array([ 0.512, -1.024]), array([ 0.576, -1.152]))

    References:
        Polyak, Juditsky: Acceleration of stochastic approximation by averaging. SIAM Journal on
        Control and Optimization 30, 1992, https://doi.org/10.1137/0330046
    """
    grad = grad + weight_decay * param
    param = param * (1 - lambd * step_size) - step_size * grad
    ax = param if weight == 1 else ax + weight * (param - ax)
    return param, ax
