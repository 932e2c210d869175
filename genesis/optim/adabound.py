"""AdaBound, and with the largest average AMSBound."""

from __future__ import annotations

import math

from .. import hyper
from .adam import AVERAGES
from .pieces import DECOUPLES, L2, average, average_of_squares, bounded, larger
from .rule import rule


def _numbers(step, base_lr=0.0, *, lr, final_lr, gamma):
    """Between what an element's learning rate has to be in this update."""
    base_lr = max(base_lr, lr)
    final_lr = final_lr * lr / base_lr if base_lr else 0.0
    return {
        "base_lr": base_lr,
        "least": final_lr * (1 - 1 / (gamma * step + 1)),
        "most": final_lr * (1 + 1 / (gamma * step)),
    }


@rule(numbers=_numbers, averages=AVERAGES)
def AdaBound(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    final_lr=hyper.non_negative(0.1, "the learning rate of SGD that it comes to in the end"),
    gamma=hyper.number(1e-3, "how fast the bounds close in, per update", above=0, below=1),
    eps=1e-8,
    weight_decay=L2,
    decoupled_weight_decay=DECOUPLES,
    amsbound=hyper.flag(False, "divide by the largest average so far: AMSBound"),
    least,
    most,
    step,
):
    r"""AdaBound: Adam whose learning rates are bounded ever closer, until it is SGD with momentum.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\alpha`, that of the end
    :math:`\alpha^*`, weight decay :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \alpha \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \eta &= \frac{\alpha \sqrt{1 - \beta_2^t}}{(1 - \beta_1^t) (\sqrt{v} + \epsilon)},
        \quad \text{but no less than } \alpha^* \left( 1 - \frac{1}{\gamma t + 1} \right),
        \text{ no more than } \alpha^* \left( 1 + \frac{1}{\gamma t} \right) \\
        \theta &\leftarrow \theta - \eta \, m

    With `amsbound` the largest :math:`v` so far takes the place of :math:`v`.
    (`pytorch_optimizer.AdaBound` adds 1e-15 to it, and decouples weight decay by default.)

    This is the authors' code, with which the paper's experiments were made. The paper's algorithm
    corrects no bias, and divides :math:`\eta` by :math:`\sqrt{t}`, which the proof needs: give `lr` as
    `lambda t: 1e-3 / (t + 1) ** 0.5` for that.

    A schedule of :math:`\alpha` scales :math:`\alpha^*`, too, as otherwise it would do nothing in the
    end: by :math:`\alpha` over the largest that it has been. (The authors divide by what it was when
    the optimizer was made. While it rises in a warm-up, their bounds rise with it, and these do not;
    from then on, and without one, they are the same.)

    State of a parameter: "step", the number "base_lr" (the largest :math:`\alpha` so far), "exp_avg"
    (:math:`m`), "exp_avg_sq" (:math:`v`) and with amsbound "max_exp_avg_sq".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdaBound([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.702, -1.701])

    References:
        Luo, Xiong, Liu, Sun: Adaptive gradient methods with dynamic bound of learning rate. ICLR 2019,
        https://openreview.net/forum?id=Bkg3g2R9FX
    """
    beta1, beta2 = betas
    if decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    if amsbound:
        max_exp_avg_sq = larger(exp_avg_sq, max_exp_avg_sq)
    denom = math.sqrt(max_exp_avg_sq if amsbound else exp_avg_sq) + eps
    rate = bounded(lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step) / denom, least, most)
    return param - rate * exp_avg, exp_avg, exp_avg_sq, max_exp_avg_sq
