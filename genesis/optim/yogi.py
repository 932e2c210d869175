"""Yogi."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import DECOUPLES, L2, average, sign
from .rule import rule


@rule(averages={"exp_avg": "signed", "exp_avg_sq": "positive"})
def Yogi(
    param,
    grad,
    exp_avg,
    exp_avg_sq="initial_accumulator_value",
    *,
    lr=1e-2,
    betas=(0.9, 0.999),
    eps=1e-3,
    weight_decay=L2,
    decoupled_weight_decay=DECOUPLES,
    initial_accumulator_value=hyper.non_negative(
        1e-6, "where the squares begin; read when a parameter gets its state, at its first update"
    ),
    bias_correction=hyper.flag(
        False, "correct the averages as Adam does for beginning with 0, as packages do"
    ),
    step,
):
    r"""Yogi: Adam whose squares change by the size of the newest, whatever they are themselves.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow v - (1 - \beta_2) \operatorname{sign}(v - g^2) \, g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m}{\sqrt{v} + \epsilon}

    So :math:`v` falls slowly after large gradients, where Adam's falls by a share of itself, and step
    sizes cannot jump. :math:`v` begins as `initial_accumulator_value`.

    The paper's algorithm corrects no bias, so that the first steps are up to three times as long as
    :math:`\gamma`, until :math:`v` has grown. Packages (optax, pytorch_optimizer, TensorFlow Addons) do
    as Adam does, for which there is `bias_correction`: :math:`m / (1 - \beta_1^t)` and
    :math:`v / (1 - \beta_2^t)` in the last line. The first two also begin :math:`m` as the initial value
    of :math:`v`, in place of 0.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Yogi([p], lr=0.01)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.878, -1.877])

    References:
        Zaheer, Reddi, Sachan, Kale, Kumar: Adaptive methods for nonconvex optimization. NeurIPS 2018,
        https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization
    """
    beta1, beta2 = betas
    if decoupled_weight_decay:
        param = param * (1 - lr * weight_decay)
    else:
        grad = grad + weight_decay * param
    exp_avg = average(exp_avg, grad, beta1)
    square = grad * grad
    exp_avg_sq = exp_avg_sq - (1 - beta2) * sign(exp_avg_sq - square) * square
    if bias_correction:
        denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
        param = param - lr / (1 - beta1**step) * exp_avg / denom
    else:
        param = param - lr * exp_avg / (math.sqrt(exp_avg_sq) + eps)
    return param, exp_avg, exp_avg_sq
