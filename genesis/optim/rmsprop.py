"""RMSprop."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import L2, average, average_of_squares
from .rule import rule


@rule(averages={"square_avg": "positive", "momentum_buffer": "signed", "grad_avg": "signed"})
def RMSprop(
    param,
    grad,
    square_avg,
    momentum_buffer,
    grad_avg,
    *,
    lr=1e-2,
    alpha=hyper.number(0.99, "decay rate of the averages", low=0, most=1),
    eps=1e-8,
    weight_decay=L2,
    momentum=hyper.non_negative(0, "momentum factor", switch=True),
    centered=hyper.flag(False, "divide by the standard deviation instead of the root mean square"),
):
    r"""RMSprop: gradients divided by a running average of their size.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and momentum :math:`\mu`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        a &\leftarrow \alpha a + (1 - \alpha) g \qquad (\text{only if centered}) \\
        b &\leftarrow \mu b + g / (\sqrt{v - a^2} + \epsilon) \qquad (a = 0 \text{ otherwise}) \\
        \theta &\leftarrow \theta - \gamma \, b

    State of a parameter: "step", "square_avg" (:math:`v`), with momentum "momentum_buffer"
    (:math:`b`), centered "grad_avg" (:math:`a`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.RMSprop([p], lr=0.01)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.78 , -1.775])

    References:
        Tieleman, Hinton: Lecture 6.5, RMSprop. COURSERA: Neural networks for machine learning, 2012,
        https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf. Graves: Generating
        sequences with recurrent neural networks, 2013, https://arxiv.org/abs/1308.0850 (centered)
    """
    grad = grad + weight_decay * param
    variance = square_avg = average_of_squares(square_avg, grad, alpha)
    if centered:
        grad_avg = average(grad_avg, grad, alpha)
        variance = square_avg - grad_avg * grad_avg
    denom = math.sqrt(variance) + eps
    if momentum:
        momentum_buffer = momentum_buffer * momentum + grad / denom
        param = param - lr * momentum_buffer
    else:
        param = param - lr * grad / denom
    return param, square_avg, momentum_buffer, grad_avg
