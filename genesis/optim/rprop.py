"""Resilient backpropagation."""

from __future__ import annotations

from .. import hyper
from .rule import rule


def _check(step_sizes):
    smallest, largest = step_sizes
    if smallest > largest:
        raise ValueError(f"Invalid step sizes: {smallest} is larger than {largest}")


@rule(check=_check)
def Rprop(
    param,
    grad,
    prev,
    step_size="lr",
    *,
    lr=hyper.rate(
        1e-2, "the first step size; read when a parameter gets its state, at its first update"
    ),
    etas=hyper.several(
        hyper.number(0.5, above=0, below=1),
        hyper.number(1.2, above=1),
        text="factors by which a step size shrinks and grows",
        title="eta value",
    ),
    step_sizes=hyper.several(
        hyper.number(1e-6, low=0),
        hyper.number(50, low=0, infinite=True),
        text="the smallest and the largest step size",
        title="step size",
    ),
):
    r"""Rprop: a step size for each element, which grows while its gradient keeps its sign.

    Only the sign of the gradient :math:`g` counts. With the gradient before, :math:`h`, the step
    size :math:`s`, which begins as `lr`, parameter :math:`\theta`, and `etas`
    :math:`(\eta^-, \eta^+)`:

    .. math::
        s &\leftarrow \begin{cases}
            \eta^+ s & g h > 0 \\ \eta^- s & g h < 0 \\ s & \text{else}
        \end{cases} \quad \text{and no less or more than step\_sizes} \\
        g &\leftarrow 0 \quad \text{if } g h < 0 \\
        \theta &\leftarrow \theta - s \, \operatorname{sign}(g) \\
        h &\leftarrow g

    As the sign of a NaN is taken as 0, an element whose gradient is NaN stays where it is.

    State of a parameter: "step", "prev" (:math:`h`), "step_size" (:math:`s`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Rprop([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x
        array([ 0.636, -1.636])

    References:
        Riedmiller, Braun: A direct adaptive method for faster backpropagation learning: the RPROP
        algorithm. IEEE International Conference on Neural Networks, 1993,
        https://doi.org/10.1109/ICNN.1993.298623
    """
    agreement = grad * prev
    if agreement < 0:
        grad, factor = 0, etas[0]  # after a sign change, one update of rest
    else:
        factor = etas[1] if agreement > 0 else 1
    step_size = min(max(step_size * factor, step_sizes[0]), step_sizes[1])
    move = step_size if grad > 0 else -step_size if grad < 0 else 0
    return param - move, grad, step_size
