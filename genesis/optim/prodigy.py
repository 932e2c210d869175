"""Prodigy and DAdaptAdam: Adam that finds its learning rate."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import overall, total
from .pieces import DECAY
from .rule import rule

_LR = hyper.rate(1.0, "factor on the learning rate that is found; schedules go here")
_D0 = hyper.number(1e-6, "the learning rate to begin with, which is to be too small", above=0)
_GROWTH = hyper.number(
    math.inf,
    "the learning rate grows by this factor at most from step to step",
    low=1,
    infinite=True,
)
_CORRECTS = hyper.flag(False, "correct the bias of Adam's averages")
_DECOUPLES = (
    "let weight decay shrink the parameter, as in AdamW; if False, it is added to the gradient"
)


def _numbers(step, *, betas, beta3, use_bias_correction):
    beta1, beta2 = betas
    corrects = use_bias_correction
    return {
        "decay": beta2**0.5 if beta3 is None else beta3,
        "correction": (1 - beta2**step) ** 0.5 / (1 - beta1**step) if corrects else 1.0,
    }


@rule(numbers=_numbers)
def Prodigy(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    s,
    p0,
    d=overall("d0"),
    d_max=overall("d0"),
    d_numerator=overall(),
    *,
    lr=_LR,
    betas=(0.9, 0.999),
    beta3=hyper.number(
        None,
        "decay rate of the averages that find the learning rate; None: the root of the second",
        low=0,
        below=1,
        unset=True,
    ),
    eps=1e-8,
    weight_decay=DECAY,
    decouple=hyper.flag(True, _DECOUPLES),
    use_bias_correction=_CORRECTS,
    safeguard_warmup=hyper.flag(
        False, "let a warm-up of `lr` not count in the estimate's denominator"
    ),
    d0=_D0,
    d_coef=hyper.number(1.0, "factor on the estimate; the way to tune it", above=0),
    growth_rate=_GROWTH,
    decay,
    correction,
    first,
):
    r"""Prodigy: Adam whose learning rate is estimated from how far gradients say the solution is.

    Leave `lr` at 1, and give it a schedule (a cosine, without a warm-up). With gradient :math:`g`,
    parameters :math:`x` that began at :math:`x_0`, and sums and norms over the parameters of all groups:

    .. math::
        r &\leftarrow \beta_3 r + \gamma d^2 \langle g, x_0 - x \rangle / d_0 \\
        s &\leftarrow \beta_3 s + \gamma d^2 g / d_0 \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) d g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2 \\
        \hat{d} &= d_c \, r / \lVert s \rVert_1 \\
        x &\leftarrow x - \gamma d \left( \frac{m}{\sqrt{v} + d' \epsilon} + \lambda x \right), \qquad
            d' = \max(d, \hat{d})

    where :math:`d'` is the next :math:`d`. So `prodigyopt` has it, the authors' package, as well; its
    `growth_rate` bounds :math:`d'` by that factor of :math:`d`, `safeguard_warmup` leaves :math:`\gamma`
    out of :math:`s`, and `use_bias_correction` multiplies :math:`\gamma` by Adam's correction. These are
    not in the paper's algorithm, and off by default.

    One :math:`d` serves all groups, so that `d0`, `d_coef`, `growth_rate`, `betas` and `beta3` must
    be the same in all; the package takes those of the first. Where groups have other `lr`, each
    counts in the sums with its own, where the package refuses all but 0, for which it leaves the
    state of the group as it is. Only tensors with a gradient count. `slice_p` is not there: the
    state of an element has the shape of the parameter.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`), "s", "p0"
    (:math:`x_0`), and "d", "d_max" (the largest :math:`\hat{d}`) and "d_numerator" (:math:`r`), floats,
    the same for all. `opt.state[p]["d"] * lr` is the learning rate.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Prodigy([p], d0=0.1)
        >>> for _ in range(10):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> opt.state[p]["d"] > 0.1
        True

    References:
        Mishchenko, Defazio: Prodigy: an expeditiously adaptive parameter-free learner. ICML 2024,
        https://arxiv.org/abs/2306.06101
    """
    beta1, beta2 = betas
    p0 = param if first else p0
    rate = lr * correction
    if not decouple:
        grad = grad + weight_decay * param
    scale = d / d0 * d
    along = total(rate * grad * (p0 - param), over="all")
    d_numerator = decay * d_numerator + scale * along
    s = decay * s + scale * (1 if safeguard_warmup else rate) * grad
    exp_avg = beta1 * exp_avg + d * (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + d * d * (1 - beta2) * grad * grad
    size = total(abs(s), over="all")
    d_hat = d_coef * d_numerator / size if size > 0 else d
    grown = max(d, d_hat) if d == d0 else d
    d_max = max(d_max, d_hat)
    after = min(d_max, grown * growth_rate)
    update = d * rate * exp_avg / (math.sqrt(exp_avg_sq) + after * eps)
    if decouple:
        param = param - d * rate * weight_decay * param
    return param - update, exp_avg, exp_avg_sq, s, p0, after, d_max, d_numerator


def _dadapt_numbers(step, *, betas, use_bias_correction):
    beta1, beta2 = betas
    corrects = use_bias_correction
    return {
        "decay": beta2**0.5,
        "correction": (1 - beta2**step) ** 0.5 / (1 - beta1**step) if corrects else 1.0,
    }


@rule(numbers=_dadapt_numbers)
def DAdaptAdam(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    s,
    d=overall("d0"),
    numerator_weighted=overall(),
    *,
    lr=_LR,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=DECAY,
    decouple=hyper.flag(False, _DECOUPLES),
    use_bias_correction=_CORRECTS,
    d0=_D0,
    growth_rate=_GROWTH,
    layer_scale=hyper.number(1.0, "factor on the learning rate of a group", above=0),
    decay,
    correction,
):
    r"""DAdaptAdam: Adam whose learning rate is a lower bound on the distance to the solution.

    Leave `lr` at 1, and give it a schedule. With gradient :math:`g`, parameters :math:`x`, and sums and
    norms over the parameters of all groups:

    .. math::
        r &\leftarrow \sqrt{\beta_2} r + (1 - \sqrt{\beta_2}) \gamma d
            \left\langle g, \frac{s}{\sqrt{v} + \epsilon} \right\rangle \\
        s &\leftarrow \sqrt{\beta_2} s + (1 - \sqrt{\beta_2}) \gamma d g \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) \gamma d g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \hat{d} &= \frac{r}{(1 - \sqrt{\beta_2}) \lVert s \rVert_1}, \qquad
            d \leftarrow \max(d, \hat{d}) \\
        x &\leftarrow x - \frac{m}{\sqrt{v} + \epsilon}

    In the inner product :math:`v` is the average before this gradient, as in `dadaptation`, the authors'
    package, of which these are the names. `growth_rate`, `use_bias_correction` and `layer_scale` are the
    package's, too, and off by default; the last multiplies :math:`\gamma` of a group in its sums and in
    :math:`m`, but not in :math:`s`.

    One :math:`d` serves all groups, so that `d0`, `growth_rate` and `betas` must be the same in
    all; the package takes those of the first. Where groups have other `lr`, each counts in the sums
    with its own, where the package refuses all but 0. Only tensors with a gradient count. `Prodigy`
    is its successor.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`), "s", and "d" and
    "numerator_weighted" (:math:`r`), floats, the same for all. `opt.state[p]["d"] * lr` is the learning
    rate.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.DAdaptAdam([p], d0=0.1)
        >>> for _ in range(10):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> opt.state[p]["d"] > 0.1
        True

    References:
        Defazio, Mishchenko: Learning-rate-free learning by D-Adaptation. ICML 2023,
        https://arxiv.org/abs/2301.07733
    """
    beta1, beta2 = betas
    rate = lr * correction
    if not decouple:
        grad = grad + weight_decay * param
    inner = total(layer_scale * rate * grad * s / (math.sqrt(exp_avg_sq) + eps), over="all")
    numerator_weighted = decay * numerator_weighted + (1 - decay) * d * inner
    exp_avg = beta1 * exp_avg + d * (layer_scale * rate * (1 - beta1)) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    s = decay * s + d * (rate * (1 - decay)) * grad
    size = total(layer_scale * abs(s), over="all")
    d_hat = numerator_weighted / ((1 - decay) * size) if size > 0 else d
    update = exp_avg / (math.sqrt(exp_avg_sq) + eps)
    if decouple:
        param = param - d * (rate * weight_decay) * param
    d = max(d, min(d_hat, d * growth_rate))
    return param - update, exp_avg, exp_avg_sq, s, d, numerator_weighted
