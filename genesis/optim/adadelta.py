"""Adadelta."""

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


class Adadelta(Optimizer):
    r"""Adadelta: steps as large as the steps before, so that they carry the parameter's unit.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \rho v + (1 - \rho) g^2 \\
        d &\leftarrow \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}} \, g \\
        u &\leftarrow \rho u + (1 - \rho) d^2 \\
        \theta &\leftarrow \theta - \gamma \, d

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: factor on the step, at least 0. Default: 1.
        rho: decay rate of both averages, in [0, 1]. Default: 0.9.
        eps: added under both roots, at least 0; the first steps are of the size of its root.
            Default: 1e-6.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "square_avg" (:math:`v`), "acc_delta" (:math:`u`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adadelta([p])
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.99, -1.99])

    References:
        Zeiler: ADADELTA: an adaptive learning rate method. 2012, https://arxiv.org/abs/1212.5701
    """

    _always = ("square_avg", "acc_delta")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.number(group, "rho", most=1)
        checks.flags(group, "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.adadelta, ("square_avg", "acc_delta")

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        rho = group["rho"]
        return group["lr"], group["weight_decay"], rho, 1 - rho, group["eps"]
