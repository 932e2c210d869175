"""LARS."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import total
from .pieces import DECAY
from .rule import rule


@rule(averages={"momentum_buffer": "signed"})
def LARS(
    param,
    grad,
    momentum_buffer,
    *,
    lr=1.0,
    momentum=hyper.non_negative(0.9, "momentum factor"),
    weight_decay=DECAY,
    trust_coefficient=hyper.non_negative(1e-3, "the share of its norm by which a tensor may move"),
    adapt=hyper.flag(True, "scale each tensor's rate by its norms; False: it is SGD with momentum"),
):
    r"""LARS: SGD with momentum, whose rate for each tensor follows from its norms.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, momentum
    :math:`\mu`, weight decay :math:`\lambda`, trust coefficient :math:`\eta`, and norms over the whole
    tensor:

    .. math::
        r &= \eta \, \frac{\lVert \theta \rVert}
            {\lVert g \rVert + \lambda \lVert \theta \rVert} \\
        b &\leftarrow \mu b + \gamma \, r \, (g + \lambda \theta) \\
        \theta &\leftarrow \theta - b

    :math:`r` is 1 where a norm is 0. The learning rate is within the momentum, as in the paper; torch's
    SGD and `pytorch_optimizer.LARS` have it outside, which differs while a schedule changes it. That
    package also leaves tensors with less than two axes to SGD: here, give biases and the weights of
    norms a group of their own with `adapt=False` and `weight_decay=0`.

    State of a parameter: "momentum_buffer" (:math:`b`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.LARS([p], lr=10.0, trust_coefficient=0.01)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 1.458, -1.944])

    References:
        You, Gitman, Ginsburg: Large batch training of convolutional networks. 2017,
        https://arxiv.org/abs/1708.03888
    """
    update = grad + weight_decay * param
    if adapt:
        size, slope = math.sqrt(total(param * param)), math.sqrt(total(grad * grad))
        rate = (
            trust_coefficient * size / (slope + weight_decay * size)
            if size > 0 and slope > 0
            else 1
        )
    else:
        rate = 1
    momentum_buffer = momentum * momentum_buffer + lr * rate * update
    return param - momentum_buffer, momentum_buffer
