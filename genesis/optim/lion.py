"""Lion."""

from __future__ import annotations

from .. import hyper
from .pieces import CAUTIOUS, CAUTIOUS_DECAY, SHRINKS, average, cautiously, shrunk, sign
from .rule import rule


@rule(counted=False, averages={"exp_avg": "signed"})
def Lion(
    param,
    grad,
    exp_avg,
    *,
    lr=1e-4,
    betas=hyper.betas(
        0.9, 0.99, text="how much the average counts for in an update, and its own decay rate"
    ),
    weight_decay=SHRINKS,
    cautious=CAUTIOUS,
    cautious_weight_decay=CAUTIOUS_DECAY,
):
    r"""Lion: the sign of a momentum in which the newest gradient counts for more.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta
            - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Every element moves by :math:`\gamma`, so that the learning rate is a third to a tenth of AdamW's,
    and the weight decay larger by as much. Where the sum is 0, the element stays; where it is NaN, so is
    the element. (torch's sign of NaN is 0: in packages on it such an element stays from then on.)

    State of a parameter: "exp_avg" (:math:`m`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Lion([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.7, -1.7])

    References:
        Chen, Liang, Huang, Real, Wang, Pham, Dong, Luong, Hsieh, Lu, Le: Symbolic discovery of
        optimization algorithms. NeurIPS 2023, https://arxiv.org/abs/2302.06675
    """
    update = sign(average(exp_avg, grad, betas[0]))
    param = shrunk(param, lr * weight_decay, update, cautious_weight_decay)
    if cautious:
        update = cautiously(update, grad)
    return param - lr * update, average(exp_avg, grad, betas[1])
