"""NAdam."""

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


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov momentum, which rises from half its strength.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, momentum decay :math:`\psi` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta
        \qquad (\theta \leftarrow (1 - \gamma \lambda) \, \theta \text{ if decoupled}) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \mu_t &= \beta_1 (1 - 0.96^{t \psi} / 2), \qquad \pi_t = \mu_1 \mu_2 \cdots \mu_t \\
        \theta &\leftarrow \theta - \gamma \, \frac{
            g \, (1 - \mu_t) / (1 - \pi_t) + m \, \mu_{t+1} / (1 - \pi_{t+1})
        }{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 2e-3.
        betas: decay rates of the two averages, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        momentum_decay: how fast the momentum rises to its full strength, at least 0. Default: 4e-3.
        decoupled_weight_decay: let weight decay shrink the parameter by `lr * weight_decay` of
            itself instead, as in AdamW. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", the number "mu_product" (:math:`\pi_t`), "exp_avg" (:math:`m`),
    "exp_avg_sq" (:math:`v`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.NAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.753, -1.748])

    References:
        Dozat: Incorporating Nesterov momentum into Adam. ICLR 2016 workshop,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Loshchilov, Hutter: Decoupled weight
        decay regularization. ICLR 2019, https://arxiv.org/abs/1711.05101 (decoupled_weight_decay)
    """

    _always = ("exp_avg", "exp_avg_sq")
    _numbers = ("step", "mu_product")

    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
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
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.betas(group)
        checks.number(group, "momentum_decay")
        checks.flags(group, "decoupled_weight_decay", "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        decoupled = group["decoupled_weight_decay"]
        return rules.nadam_decoupled if decoupled else rules.nadam, ("exp_avg", "exp_avg_sq")

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": 0, "mu_product": 1.0}

    def _next(self, group: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
        step = numbers["step"] + 1
        return {"step": step, "mu_product": numbers["mu_product"] * self._momentum(group, step)}

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        lr, decay, step, product = (
            group["lr"],
            group["weight_decay"],
            numbers["step"],
            numbers["mu_product"],
        )
        beta1, beta2 = group["betas"]
        momentum, later = self._momentum(group, step), self._momentum(group, step + 1)
        return (
            lr * (1 - momentum) / (1 - product),
            lr * later / (1 - product * later),
            1 - lr * decay if group["decoupled_weight_decay"] else decay,
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            1 - beta2**step,
            group["eps"],
        )

    def _momentum(self, group: dict[str, Any], step: int) -> float:
        return group["betas"][0] * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"]))
