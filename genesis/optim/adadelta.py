"""Adadelta."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import L2, average_of_squares
from .rule import rule


@rule(averages={"square_avg": "positive", "acc_delta": "positive"})
def Adadelta(
    param,
    grad,
    square_avg,
    acc_delta,
    *,
    lr=hyper.rate(1.0, "factor on the step"),
    rho=hyper.number(0.9, "decay rate of both averages", low=0, most=1),
    eps=hyper.epsilon(1e-6, "added under both roots; the first steps are of the size of its root"),
    weight_decay=L2,
):
    r"""Adadelta: steps as large as the steps before, so that they carry the parameter's unit.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \rho v + (1 - \rho) g^2 \\
        d &\leftarrow \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}} \, g \\
        u &\leftarrow \rho u + (1 - \rho) d^2 \\
        \theta &\leftarrow \theta - \gamma \, d

    State of a parameter: "step", "square_avg" (:math:`v`), "acc_delta" (:math:`u`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adadelta([p])
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.99, -1.99])

    References:
        Zeiler: ADADELTA: an adaptive learning rate method. 2012, https://arxiv.org/abs/1212.5701
    """
    grad = grad + weight_decay * param
    square_avg = average_of_squares(square_avg, grad, rho)
    delta = math.sqrt(acc_delta + eps) / math.sqrt(square_avg + eps) * grad
    acc_delta = average_of_squares(acc_delta, delta, rho)
    return param - lr * delta, square_avg, acc_delta
