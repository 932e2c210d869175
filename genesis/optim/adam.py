"""Adam, and AdamW: Adam with decoupled weight decay."""

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


class Adam(Optimizer):
    r"""Adam: steps scaled by running averages of the gradient and of its square.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        g &\leftarrow g + \lambda \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad` the largest :math:`v` so far takes the place of :math:`v` in the last line.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-3.
        betas: decay rates of the two averages, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: L2 penalty, added to the gradient, at least 0. Default: 0.
        amsgrad: divide by the largest average so far. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`) and with amsgrad
    "max_exp_avg_sq".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.702, -1.701])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015,
        https://arxiv.org/abs/1412.6980. Reddi, Kale, Kumar: On the convergence of Adam and beyond.
        ICLR 2018, https://openreview.net/forum?id=ryQu7f-RZ (amsgrad)
    """

    _always = ("exp_avg", "exp_avg_sq")
    _sometimes = ("max_exp_avg_sq",)
    _rules = rules.adam, rules.adam_amsgrad
    _decoupled = False

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.common(group)
        checks.eps(group)
        checks.betas(group)
        checks.flags(group, "amsgrad", "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        plain, amsgrad = self._rules
        if group["amsgrad"]:
            return amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return plain, ("exp_avg", "exp_avg_sq")

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        step = numbers["step"]
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1**step)
        per_root = 1 / (1 - beta2**step) ** 0.5
        decay, eps = group["weight_decay"], group["eps"]
        if self._decoupled:
            decay = 1 - group["lr"] * decay
        return step_size, decay, beta1, 1 - beta1, beta2, 1 - beta2, per_root, eps


class AdamW(Adam):
    r"""AdamW: Adam whose weight decay shrinks the parameter instead of entering the gradient.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \theta &\leftarrow \theta - \gamma \, \frac{m / (1 - \beta_1^t)}
            {\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad` the largest :math:`v` so far takes the place of :math:`v` in the last line.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0. Default: 1e-3.
        betas: decay rates of the two averages, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: decoupled weight decay, at least 0; a step shrinks the parameter by
            `lr * weight_decay` of itself. Default: 0.01.
        amsgrad: divide by the largest average so far. Default: False.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`) and with amsgrad
    "max_exp_avg_sq".

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdamW([p], lr=0.1, weight_decay=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.675, -1.644])

    References:
        Loshchilov, Hutter: Decoupled weight decay regularization. ICLR 2019,
        https://arxiv.org/abs/1711.05101
    """

    _rules = rules.adamw, rules.adamw_amsgrad
    _decoupled = True

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, **options
        )
