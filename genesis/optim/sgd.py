"""Stochastic gradient descent."""

from __future__ import annotations

from .. import hyper
from .pieces import L2
from .rule import rule


def _check(momentum, dampening, nesterov):
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")


def _leaves_rows(momentum, weight_decay):
    """Whether rows without a gradient stay as they are."""
    return momentum == 0 and weight_decay == 0


@rule(check=_check, sparse=_leaves_rows, counted=False, averages={"momentum_buffer": "signed"})
def SGD(
    param,
    grad,
    momentum_buffer,
    *,
    lr=hyper.rate(),
    momentum=hyper.non_negative(0, "momentum factor", switch=True),
    dampening=hyper.non_negative(0, "how much less than fully a gradient enters the momentum"),
    weight_decay=L2,
    nesterov=hyper.flag(False, "use Nesterov momentum; needs momentum and no dampening"),
    first,
):
    r"""Stochastic gradient descent, optionally with momentum.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, momentum
    :math:`\mu`, dampening :math:`\tau` and weight decay :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b \leftarrow g \text{ at the first update}) \\
        \theta &\leftarrow \theta - \gamma \, b
        \qquad (\theta - \gamma (g + \mu b) \text{ with nesterov})

    and :math:`\theta \leftarrow \theta - \gamma g` without momentum, which keeps no state.

    State of a parameter, with momentum: "momentum_buffer".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.SGD([p], lr=0.1, momentum=0.9)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x
        array([ 0.062, -0.124])

    References:
        Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
        learning. ICML 2013, http://proceedings.mlr.press/v28/sutskever13.html
    """
    grad = grad + weight_decay * param
    if momentum:
        # The first gradient enters the empty buffer whole, whatever the dampening.
        share = 1 if first else 1 - dampening
        momentum_buffer = momentum_buffer * momentum + share * grad
        grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * grad, momentum_buffer
