"""SparseAdam: Adam for the rows that a sparse gradient has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..kernels import rules
from ..parameter import Parameter
from ..sparse import SparseGrad
from . import checks
from .optimizer import Optimizer
from .plan import Rule
from .precision import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SparseAdam(Optimizer):
    r"""Adam that reads and writes only those rows of a parameter which have a gradient.

    For each row :math:`r` of a `SparseGrad`, with its gradient :math:`g` (the sum over all entries
    of the row), parameter :math:`\theta`, learning rate :math:`\gamma` and update number :math:`t` of
    the whole parameter:

    .. math::
        m_r &\leftarrow \beta_1 m_r + (1 - \beta_1) g_r \\
        v_r &\leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2 \\
        \theta_r &\leftarrow \theta_r - \gamma \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \,
            \frac{m_r}{\sqrt{v_r} + \epsilon}

    All other rows stay as they are: their averages do not decay, as they would in `Adam`. The time
    for a step depends on the number of rows in the gradient, not on the size of the parameter.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: learning rate, at least 0: a schedule may end there, though torch refuses to begin with it.
            Default: 1e-3.
        betas: decay rates of the two averages, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, before the corrections, more than 0. Default: 1e-8.
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above. `step` raises
            TypeError for a gradient that is no `SparseGrad`, before anything is written.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`), of the parameter's
    full size; memory for rows that are never used is not taken until they are.

    Example:
        >>> import numpy as np, genesis
        >>> table = np.ones((1000, 2))
        >>> p = genesis.Parameter(table)
        >>> opt = genesis.optim.SparseAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = genesis.SparseGrad([7, 2], 2 * table[[7, 2]])
        ...     _ = opt.step()
        >>> table[[2, 3, 7]].round(3)
        array([[0.702, 0.702],
               [1.   , 1.   ],
               [0.702, 0.702]])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015,
        https://arxiv.org/abs/1412.6980
    """

    _always = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize}
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.number(group, "lr", "learning rate")
        checks.eps(group, positive=True)
        checks.betas(group)
        checks.flags(group, "maximize")

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        if not isinstance(parameter.grad, SparseGrad):
            raise TypeError(
                "SparseAdam does not support dense gradients, please consider Adam instead, or "
                "assign genesis.SparseGrad(indices, values)"
            )

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.adam, self._always

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        step = numbers["step"]
        beta1, beta2 = group["betas"]
        # torch scales the step here rather than the root, so that eps counts for more at first.
        step_size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        return step_size, 0.0, beta1, 1 - beta1, beta2, 1 - beta2, 1.0, group["eps"]
