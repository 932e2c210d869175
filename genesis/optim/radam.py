"""RAdam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..kernels import rules
from . import checks
from .optimizer import Optimizer
from .plan import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .precision import Options


class RAdam(Optimizer):
    r"""RAdam: Adam that goes without its denominator until that can be trusted.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, update number :math:`t` and :math:`\rho_\infty = 2 / (1 - \beta_2) - 1`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \rho &= \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        \theta &\leftarrow \theta - \gamma \, \frac{m}{1 - \beta_1^t} \, \begin{cases}
            1 & \rho \le 5 \\
            \sqrt{\frac{(\rho - 4) (\rho - 2) \rho_\infty}{(\rho_\infty - 4) (\rho_\infty - 2) \rho}}
            \; \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v} + \epsilon} & \rho > 5
        \end{cases}

    With the default betas the first five updates are those of momentum without a denominator.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-3.
        betas: decay rates of the two averages, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        decoupled_weight_decay: let weight decay shrink the parameter by `lr * weight_decay` of
            itself instead, as in AdamW. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.RAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.462, -0.925])

    References:
        Liu, Jiang, He, Chen, Liu, Gao, Han: On the variance of the adaptive learning rate and
        beyond. ICLR 2020, https://arxiv.org/abs/1908.03265. Loshchilov, Hutter: Decoupled weight
        decay regularization. ICLR 2019, https://arxiv.org/abs/1711.05101 (decoupled_weight_decay)
    """

    _always = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.betas(group)
        checks.flags(group, "decoupled_weight_decay", "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        decoupled = group["decoupled_weight_decay"]
        return rules.radam_decoupled if decoupled else rules.radam, ("exp_avg", "exp_avg_sq")

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        lr, decay, step = group["lr"], group["weight_decay"], numbers["step"]
        beta1, beta2 = group["betas"]
        correction2 = 1 - beta2**step
        step_size, fixed = lr / (1 - beta1**step), 1.0  # the denominator is 1 ...
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction2
        if length > 5:
            step_size *= correction2**0.5 * _rectification(length, longest)
            fixed = 0.0  # ... or, from here on, none that is fixed
        decay = 1 - lr * decay if group["decoupled_weight_decay"] else decay
        return step_size, decay, beta1, 1 - beta1, beta2, 1 - beta2, fixed, group["eps"]


def _rectification(length: float, longest: float) -> float:
    now, finally_ = ((n - 4) * (n - 2) / n for n in (length, longest))
    return (now / finally_) ** 0.5
