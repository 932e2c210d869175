"""Adagrad."""

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


class Adagrad(Optimizer):
    r"""Adagrad: gradients divided by the root of the sum of all squares so far.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, its decay
    :math:`\eta`, weight decay :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        s &\leftarrow s + g^2 \\
        \theta &\leftarrow \theta - \frac{\gamma}{1 + (t - 1) \eta} \,
            \frac{g}{\sqrt{s} + \epsilon}

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-2.
        lr_decay: how fast the learning rate falls, per update, at least 0. Default: 0.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        initial_accumulator_value: where the sum begins, at least 0; read when a parameter gets its
            state, at its first update. Default: 0.
        eps: added to the denominator, outside the root, at least 0. Default: 1e-10.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "sum" (:math:`s`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adagrad([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.78 , -1.776])

    References:
        Duchi, Hazan, Singer: Adaptive subgradient methods for online learning and stochastic
        optimization. JMLR 12, 2011, http://jmlr.org/papers/v12/duchi11a.html
    """

    _always = ("sum",)

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.number(group, "lr_decay")
        checks.number(group, "initial_accumulator_value")
        checks.flags(group, "maximize")

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        if group["weight_decay"] != 0:  # it changes rows without gradient
            super()._check_gradient(group, parameter)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.adagrad, ("sum",)

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": 0, "sum": float(group["initial_accumulator_value"])}

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        lr = group["lr"] / (1 + (numbers["step"] - 1) * group["lr_decay"])
        return lr, group["weight_decay"], group["eps"]
