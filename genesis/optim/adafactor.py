"""Adafactor: squares of gradients remembered by row and column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from .. import buffers, hyper, kernels
from ..parameter import Parameter
from . import spelling, torch_flags
from .per_tensor import PerTensor, Work


class Adafactor(PerTensor):
    r"""Adafactor: the memory of Adam's second average, reduced to one number a row and a column.

    With gradient :math:`G`, parameter :math:`\Theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda`, update number :math:`t`, :math:`\hat\beta = 1 - t^\tau` and
    :math:`\rho = \min(\gamma, 1 / \sqrt t)`; for each matrix, that is over the last two axes:

    .. math::
        \alpha &= \max(\epsilon_2, \operatorname{RMS}(\Theta)) \, \rho \\
        \Theta &\leftarrow (1 - \gamma \lambda) \, \Theta \\
        r_i &\leftarrow \hat\beta r_i + (1 - \hat\beta) \operatorname{mean}_j G_{ij}^2, \qquad
        c_j \leftarrow \hat\beta c_j + (1 - \hat\beta) \operatorname{mean}_i G_{ij}^2 \\
        V_{ij} &= r_i c_j / \max(\operatorname{mean} r, \epsilon_1) \\
        U &= G / \max(\sqrt V, \epsilon_1) \\
        \Theta &\leftarrow \Theta - \alpha \, U / \max(1, \operatorname{RMS}(U) / d)

    RMS is over the whole tensor. A parameter with fewer than two axes keeps the average :math:`V` of
    :math:`G^2` itself.

    A step reads gradients three times and parameters twice, and writes all parameters together at its
    end, so that one which fails or is interrupted has changed nothing. While it lasts it takes memory
    for sums over rows and columns, and for a copy of what does not lie flat in C order.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: the largest relative step, and the factor of weight decay, at least 0. Default: 1e-2.
        beta2_decay: :math:`\tau`, at most 0; how fast the average comes to forget less.
            Default: -0.8.
        eps: (:math:`\epsilon_1`, :math:`\epsilon_2`), both at least 0; None stands for the spacing of
            the parameter's data type at 1. Default: (None, 1e-3).
        d: the largest root mean square of an update before its step length, at least 1.
            Default: 1.0.
        weight_decay: decoupled weight decay, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.
        foreach: torch's, which chooses among its implementations: accepted so that its code runs, and
            ignored.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU.

    State of a parameter: "step", "row_var" (:math:`r`) and "col_var" (:math:`c`), or "variance"
    (:math:`V`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Adafactor([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(3)
        array([[ 0.14 , -1.459],
               [ 0.212,  3.402]])

    References:
        Shazeer, Stern: Adafactor: adaptive learning rates with sublinear memory cost. ICML 2018,
        https://arxiv.org/abs/1804.04235 (with torch's use of the learning rate and of epsilon)
    """

    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "beta2_decay": hyper.number(most=0),
        "eps": hyper.several(
            hyper.number(low=0, unset=True), hyper.number(low=0), title="epsilon value"
        ),
        "d": hyper.number(low=1, infinite=True),
        "weight_decay": hyper.non_negative(),
        "maximize": hyper.flag(),
    }
    _sometimes = ("row_var", "col_var", "variance")

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ):
        torch_flags.ignore(type(self).__name__, {} if foreach is None else {"foreach": foreach})
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _names(self, parameter: Parameter) -> tuple[str, ...]:
        return ("row_var", "col_var") if parameter.ndim > 1 else ("variance",)

    def _state_shape(self, name: str, parameter: Parameter) -> tuple[int, ...]:
        if name == "variance":
            return parameter.shape
        *batch, rows, columns = parameter.shape
        return (*batch, rows, 1) if name == "row_var" else (*batch, 1, columns)

    def _loaded_state(
        self, what: str, parameter: Parameter, entries: dict, block: buffers.Block | None = None
    ) -> dict[str, Any]:
        loaded = super()._loaded_state(what, parameter, entries, block)
        if loaded and loaded.keys() != {"step", *self._names(parameter)}:
            raise ValueError(
                f"loaded state of {what} has {sorted(loaded)}, but a parameter of shape "
                f"{parameter.shape} keeps {sorted(('step', *self._names(parameter)))}"
            )
        return loaded

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        updates = []
        for each in work:
            group, parameter = each.group, each.parameter._view.view(np.ndarray)
            state = (each.state[name].view(np.ndarray) for name in self._names(each.parameter))
            step = each.state["step"]
            eps1, eps2 = group["eps"]
            if eps1 is None:
                eps1 = float(ml_dtypes.finfo(parameter.dtype).eps)
            updates.append(
                {
                    "gradient": each.gradient.view(np.ndarray),
                    "parameter": parameter,
                    "state": tuple(state),
                    "scale": -factor if group["maximize"] else factor,
                    "limit": math.inf if clip_value is None else clip_value,
                    "weight": step ** group["beta2_decay"],
                    "relative": min(group["lr"], 1 / math.sqrt(step)),
                    "epsilon_1": eps1,
                    "epsilon_2": eps2,
                    "threshold": group["d"],
                    "kept": 1 - group["lr"] * group["weight_decay"],
                }
            )
        return kernels.factored_updates(updates)
