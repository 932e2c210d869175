"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..kernels import rules
from ..parameter import Parameter
from . import checks
from .optimizer import Optimizer
from .plan import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .precision import Options


class SGD(Optimizer):
    r"""Stochastic gradient descent, optionally with momentum.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, momentum
    :math:`\mu`, dampening :math:`\tau` and weight decay :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b \leftarrow g \text{ at the first update}) \\
        \theta &\leftarrow \theta - \gamma \, b
        \qquad (\theta - \gamma (g + \mu b) \text{ with nesterov})

    and :math:`\theta \leftarrow \theta - \gamma g` without momentum, which keeps no state.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Required.
        momentum: momentum factor, at least 0. Default: 0.
        dampening: how much less than fully a gradient enters the momentum, at least 0. Default: 0.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        nesterov: use Nesterov momentum; needs momentum and no dampening. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter, with momentum: "momentum_buffer".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.SGD([p], lr=0.1, momentum=0.9)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x
        array([ 0.062, -0.124])

    References:
        Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
        learning. ICML 2013, http://proceedings.mlr.press/v28/sutskever13.html
    """

    _sometimes = ("momentum_buffer",)
    _numbers = ()

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.number(group, "momentum")
        checks.number(group, "dampening")
        checks.flags(group, "nesterov", "maximize")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        if (
            group["momentum"] != 0 or group["weight_decay"] != 0
        ):  # both change rows without gradient
            super()._check_gradient(group, parameter)

    def _rule(self, group: dict[str, Any]) -> Rule:
        if group["momentum"] == 0:
            return rules.sgd, ()
        rule = rules.sgd_nesterov if group["nesterov"] else rules.sgd_momentum
        return rule, ("momentum_buffer",)

    def _scalars_between(
        self, group: dict[str, Any], before: dict[str, Any], after: dict[str, Any], first: bool
    ) -> tuple[float, ...]:
        momentum = group["momentum"]
        if momentum == 0:
            return group["lr"], group["weight_decay"]
        # The first gradient enters the empty buffer whole, whatever the dampening.
        undamped = 1.0 if first else 1 - group["dampening"]
        return group["lr"], group["weight_decay"], momentum, undamped
