"""SignSGD, and with momentum Signum."""

from __future__ import annotations

from .. import hyper
from .pieces import SHRINKS, average, sign
from .rule import rule


def _leaves_rows(momentum, weight_decay):
    """Whether rows without a gradient stay as they are."""
    return momentum == 0 and weight_decay == 0


@rule(sparse=_leaves_rows, counted=False, averages={"momentum_buffer": "signed"})
def SignSGD(
    param,
    grad,
    momentum_buffer,
    *,
    lr=1e-3,
    momentum=hyper.number(
        0.9, "decay rate of the gradients' average; 0, there is none", low=0, below=1, switch=True
    ),
    weight_decay=SHRINKS,
):
    r"""Signum: the sign of the gradients' average; without momentum SignSGD, the gradient's own sign.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, momentum
    :math:`\mu` and weight decay :math:`\lambda`:

    .. math::
        b &\leftarrow \mu b + (1 - \mu) g \\
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta - \gamma \operatorname{sign}(b)

    and :math:`\operatorname{sign}(g)` with a momentum of 0, which keeps no state. Where that of which it
    is the sign is 0, the element stays; where it is NaN, so is the element. `momentum` is an average's
    decay rate here: a gradient enters by :math:`1 - \mu`, not whole as in `SGD`.

    State of a parameter, with momentum: "momentum_buffer" (:math:`b`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.SignSGD([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.7, -1.7])

    References:
        Bernstein, Wang, Azizzadenesheli, Anandkumar: signSGD: compressed optimisation for non-convex
        problems. ICML 2018, https://arxiv.org/abs/1802.04434
    """
    if momentum:
        momentum_buffer = average(momentum_buffer, grad, momentum)
        update = sign(momentum_buffer)
    else:
        update = sign(grad)
    return param * (1 - lr * weight_decay) - lr * update, momentum_buffer
