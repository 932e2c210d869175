"""RMSprop."""

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


class RMSprop(Optimizer):
    r"""RMSprop: gradients divided by a running average of their size.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and momentum :math:`\mu`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        v &\leftarrow \alpha v + (1 - \alpha) g^2 \\
        a &\leftarrow \alpha a + (1 - \alpha) g \qquad (\text{only if centered}) \\
        b &\leftarrow \mu b + g / (\sqrt{v - a^2} + \epsilon) \qquad (a = 0 \text{ otherwise}) \\
        \theta &\leftarrow \theta - \gamma \, b

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-2.
        alpha: decay rate of the averages, in [0, 1]. Default: 0.99.
        eps: added to the denominator, outside the root, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        momentum: momentum factor, at least 0. Default: 0.
        centered: divide by the standard deviation instead of the root mean square. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "square_avg" (:math:`v`), with momentum "momentum_buffer"
    (:math:`b`), centered "grad_avg" (:math:`a`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.RMSprop([p], lr=0.01)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.78 , -1.775])

    References:
        Tieleman, Hinton: Lecture 6.5, RMSprop. COURSERA: Neural networks for machine learning, 2012,
        https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf. Graves: Generating
        sequences with recurrent neural networks, 2013, https://arxiv.org/abs/1308.0850 (centered)
    """

    _always = ("square_avg",)
    _sometimes = ("momentum_buffer", "grad_avg")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.number(group, "alpha", most=1)
        checks.number(group, "momentum")
        checks.flags(group, "centered", "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        if group["momentum"] > 0 and group["centered"]:
            return rules.rmsprop_centered_momentum, ("square_avg", "momentum_buffer", "grad_avg")
        if group["momentum"] > 0:
            return rules.rmsprop_momentum, ("square_avg", "momentum_buffer")
        if group["centered"]:
            return rules.rmsprop_centered, ("square_avg", "grad_avg")
        return rules.rmsprop, ("square_avg",)

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        alpha, momentum = group["alpha"], group["momentum"]
        scalars = group["lr"], group["weight_decay"], alpha, 1 - alpha, group["eps"]
        return (*scalars, momentum) if momentum > 0 else scalars
