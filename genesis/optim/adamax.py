"""Adamax."""

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


class Adamax(Optimizer):
    r"""Adamax: Adam with a decaying maximum of the gradient's size in place of the root mean square.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        u &\leftarrow \max(\beta_2 u, |g| + \epsilon) \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 - \beta_1^t} \, \frac{m}{u}

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 2e-3.
        betas: decay rates of the average and of the maximum, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the gradient's size, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_inf" (:math:`u`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adamax([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.715, -1.708])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015, section 7.1,
        https://arxiv.org/abs/1412.6980
    """

    _always = ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.betas(group)
        checks.flags(group, "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.adamax, ("exp_avg", "exp_inf")

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1 ** numbers["step"])
        return step_size, group["weight_decay"], beta1, 1 - beta1, beta2, group["eps"]
