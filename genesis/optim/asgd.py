"""Averaged stochastic gradient descent."""

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


class ASGD(Optimizer):
    r"""Averaged stochastic gradient descent: the average of the parameter's path comes with it.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`, from :math:`\eta = \gamma, \mu = 1`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        \theta &\leftarrow (1 - \Lambda \eta) \, \theta - \eta \, g \\
        a &\leftarrow a + \mu \, (\theta - a) \\
        \eta &\leftarrow \gamma / (1 + \Lambda \gamma t)^\alpha, \qquad
        \mu \leftarrow 1 / \max(1, t - t_0)

    where :math:`\Lambda` is `lambd`. The average :math:`a` is the parameter itself until :math:`t_0`.
    As in torch, :math:`\eta` is one update behind: a changed `lr` counts from the second update on.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-2.
        lambd: decay of the parameter, and of the learning rate, at least 0. Default: 1e-4.
        alpha: power with which the learning rate falls, at least 0. Default: 0.75.
        t0: number of updates before averaging starts, at least 0; inf, it never does. Default: 1e6.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", the numbers "eta" and "mu" for the next update, and the average
    "ax" (:math:`a`), which is the result: copy it into the parameter when training is over.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.ASGD([p], lr=0.1, t0=0)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3), opt.state[p]["ax"].round(3)
        (array([ 0.512, -1.024]), array([ 0.576, -1.152]))

    References:
        Polyak, Juditsky: Acceleration of stochastic approximation by averaging. SIAM Journal on
        Control and Optimization 30, 1992, https://doi.org/10.1137/0330046
    """

    _always = ("ax",)
    _numbers = ("step", "eta", "mu")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.number(group, "lambd")
        checks.number(group, "alpha")
        checks.number(group, "t0", infinite=True)
        checks.flags(group, "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.asgd, ("ax",)

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": 0, "eta": float(group["lr"]), "mu": 1.0}

    def _next(self, group: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
        step, lr = numbers["step"] + 1, group["lr"]
        eta = lr / (1 + group["lambd"] * lr * step) ** group["alpha"]
        return {"step": step, "eta": eta, "mu": 1 / max(1, step - group["t0"])}

    def _scalars_between(
        self, group: dict[str, Any], before: dict[str, Any], after: dict[str, Any], first: bool
    ) -> tuple[float, ...]:
        eta, mu = before["eta"], before["mu"]
        return eta, group["weight_decay"], 1 - group["lambd"] * eta, mu, float(mu != 1)
