"""Resilient backpropagation."""

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


class Rprop(Optimizer):
    r"""Rprop: a step size for each element, which grows while its gradient keeps its sign.

    Only the sign of the gradient :math:`g` counts. With the gradient before, :math:`h`, the step
    size :math:`s`, which begins as `lr`, parameter :math:`\theta`, and `etas`
    :math:`(\eta^-, \eta^+)`:

    .. math::
        s &\leftarrow \begin{cases}
            \eta^+ s & g h > 0 \\ \eta^- s & g h < 0 \\ s & \text{else}
        \end{cases} \quad \text{and no less or more than step\_sizes} \\
        g &\leftarrow 0 \quad \text{if } g h < 0 \\
        \theta &\leftarrow \theta - s \, \operatorname{sign}(g) \\
        h &\leftarrow g

    As the sign of a NaN is taken as 0, an element whose gradient is NaN stays where it is.

    Args:
        params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts.
        lr: the first step size, at least 0; read when a parameter gets its state, at its first
            update. Default: 1e-2.
        etas: factors by which a step size shrinks and grows, `0 < etas[0] < 1 < etas[1]`.
            Default: (0.5, 1.2).
        step_sizes: the smallest and the largest step size, `0 <= step_sizes[0] <= step_sizes[1]`;
            the largest may be inf. Default: (1e-6, 50).
        maximize: go up the gradient instead of down. Default: False.
        options: how state is kept and rounded: `master_weights`, `state_dtype` and
            `stochastic_rounding`, see `genesis.optim.precision.Options`.

    Raises:
        TypeError, ValueError: a hyper-parameter or `params` that is not as above.

    State of a parameter: "step", "prev" (:math:`h`), "step_size" (:math:`s`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Rprop([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x
        array([ 0.636, -1.636])

    References:
        Riedmiller, Braun: A direct adaptive method for faster backpropagation learning: the RPROP
        algorithm. IEEE International Conference on Neural Networks, 1993,
        https://doi.org/10.1109/ICNN.1993.298623
    """

    _always = ("prev", "step_size")

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        maximize: bool = False,
        **options: Unpack[Options],
    ):
        defaults = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "maximize": maximize}
        super().__init__(params, defaults, **options)

    def _check(self, group: dict[str, Any]) -> None:
        checks.number(group, "lr", "learning rate")
        checks.pair(group, "etas", "eta value")
        checks.pair(group, "step_sizes", "step size", infinite=True)
        checks.number(group["step_sizes"], 0, "step size at index 0")
        (shrink, grow), (smallest, largest) = group["etas"], group["step_sizes"]
        if not 0 < shrink < 1 < grow:
            raise ValueError(
                f"Invalid eta values: {shrink}, {grow}, expected 0 < first < 1 < second"
            )
        if smallest > largest:
            raise ValueError(f"Invalid step sizes: {smallest} is larger than {largest}")
        checks.flags(group, "maximize")

    def _rule(self, group: dict[str, Any]) -> Rule:
        return rules.rprop, ("prev", "step_size")

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": 0, "step_size": float(group["lr"])}

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        return *group["etas"], *group["step_sizes"], 1.0, 0.0
