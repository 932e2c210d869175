"""NovoGrad."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import per_tensor, total
from .pieces import average
from .rule import rule


@rule(averages={"exp_avg": "signed"})
def NovoGrad(
    param,
    grad,
    exp_avg,
    exp_avg_sq=per_tensor(),
    *,
    lr=1e-3,
    betas=(0.95, 0.98),
    eps=1e-8,
    weight_decay=hyper.non_negative(0, "weight decay, a part of the update that is averaged"),
    grad_averaging=hyper.flag(False, "let new updates enter with a weight of `1 - beta1`"),
    first,
):
    r"""NovoGrad: momentum of gradients that each tensor's own norm normalizes.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, and a norm over the whole tensor:

    .. math::
        v &\leftarrow \beta_2 v + (1 - \beta_2) \lVert g \rVert^2 \\
        m &\leftarrow \beta_1 m + \left( \frac{g}{\sqrt{v} + \epsilon} + \lambda \theta \right) \\
        \theta &\leftarrow \theta - \gamma m

    At the first update :math:`v = \lVert g \rVert^2`, and :math:`m` is what enters it. It is the
    paper's algorithm, and `pytorch_optimizer.NovoGrad`'s with its defaults. The second moment is
    one number for each tensor, so that the state is half of Adam's.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`, a float).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.NovoGrad([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 2.658, -3.543])
        >>> round(opt.state[p]["exp_avg_sq"], 3)
        99.695

    References:
        Ginsburg, Castonguay, Hrinchuk, Kuchaiev, Lavrukhin, Leary, Li, Nguyen, Zhang, Cohen: Stochastic
        gradient methods with layer-wise adaptive moments for training of deep networks. 2019,
        https://arxiv.org/abs/1905.11286
    """
    beta1, beta2 = betas
    square = total(grad * grad)
    exp_avg_sq = square if first else average(exp_avg_sq, square, beta2)
    update = grad / (math.sqrt(exp_avg_sq) + eps) + weight_decay * param
    if first:
        exp_avg = update
    elif grad_averaging:
        exp_avg = beta1 * exp_avg + (1 - beta1) * update
    else:
        exp_avg = beta1 * exp_avg + update
    return param - lr * exp_avg, exp_avg, exp_avg_sq
