"""Adagrad."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import L2
from .rule import rule


def _leaves_rows(weight_decay):
    """Whether rows without a gradient stay as they are."""
    return weight_decay == 0


@rule(sparse=_leaves_rows)
def Adagrad(
    param,
    grad,
    sum="initial_accumulator_value",
    *,
    lr=1e-2,
    lr_decay=hyper.non_negative(0, "how fast the learning rate falls, per update"),
    weight_decay=L2,
    initial_accumulator_value=hyper.non_negative(
        0, "where the sum begins; read when a parameter gets its state, at its first update"
    ),
    eps=1e-10,
    step,
):
    r"""Adagrad: gradients divided by the root of the sum of all squares so far.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, its decay
    :math:`\eta`, weight decay :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        s &\leftarrow s + g^2 \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 + (t - 1) \eta} \,
            \frac{g}{\sqrt{s} + \epsilon}

    State of a parameter: "step", "sum" (:math:`s`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adagrad([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.78 , -1.776])

    References:
        Duchi, Hazan, Singer: Adaptive subgradient methods for online learning and stochastic
        optimization. JMLR 12, 2011, http://jmlr.org/papers/v12/duchi11a.html
    """
    grad = grad + weight_decay * param
    sum = sum + grad * grad
    rate = lr / (1 + (step - 1) * lr_decay)
    return param - rate * grad / (math.sqrt(sum) + eps), sum
