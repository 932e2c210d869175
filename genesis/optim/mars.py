"""MARS."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import total
from .pieces import SHRINKS, average, average_of_squares
from .rule import rule


@rule
def MARS(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    last_grad,
    *,
    lr=3e-3,
    betas=hyper.betas(0.95, 0.99),
    eps=1e-8,
    weight_decay=SHRINKS,
    gamma=hyper.non_negative(0.025, "what the change of the gradient counts for"),
    step,
    first,
):
    r"""MARS-AdamW in its approximate form: AdamW for gradients corrected by how they changed.

    With gradient :math:`g`, the gradient before :math:`h`, parameter :math:`\theta`, learning rate
    :math:`\eta`, weight decay :math:`\lambda` and update number :math:`t`:

    .. math::
        c &= g + \gamma \frac{\beta_1}{1 - \beta_1} (g - h)
        \qquad (g \text{ at the first update}) \\
        c &\leftarrow c \, / \max(1, \lVert c \rVert)
        \qquad (\text{the norm over the whole tensor}) \\
        \theta &\leftarrow (1 - \eta \lambda) \, \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) c \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) c^2 \\
        \theta &\leftarrow \theta - \eta \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    It is *approximate*: :math:`h` is the last batch's gradient at the last parameter. The exact form
    takes this batch's gradient at the last parameter, which costs a second pass through the model.

    The authors' code and `pytorch_optimizer.MARS` take :math:`h` as 0 at the first update, where the
    paper has no change yet; and they leave vectors to AdamW with other `betas`: here, give these a
    group of their own, with `gamma=0`. (The package also adds 1e-15 under the root,
    and divides :math:`\epsilon` by :math:`\sqrt{1 - \beta_2^t}`.)

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`), "last_grad"
    (:math:`h`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.MARS([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.7, -1.7])

    References:
        Yuan, Liu, Wu, Zhou, Gu: MARS: unleashing the power of variance reduction for training large
        models. ICML 2025, https://arxiv.org/abs/2411.10438
    """
    beta1, beta2 = betas
    if not first:
        grad, last_grad = grad + gamma * beta1 / (1 - beta1) * (grad - last_grad), grad
    else:
        last_grad = grad
    grad = grad / max(1, math.sqrt(total(grad * grad)))
    param = param * (1 - lr * weight_decay)
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    return param - lr / (1 - beta1**step) * exp_avg / denom, exp_avg, exp_avg_sq, last_grad
