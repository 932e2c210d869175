"""CAME: Adafactor's memory with momentum, and steps that trust it where updates agree with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import hyper, kernels
from ..parameter import Parameter
from . import spelling
from .own_shapes import OwnShapes
from .per_tensor import Work


class CAME(OwnShapes):
    r"""CAME: factored second moments as Adafactor's, momentum, and a factored measure of confidence.

    With gradient :math:`G`, parameter :math:`\Theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`; for each matrix, that is over the last two axes:

    .. math::
        r_i &\leftarrow \beta_2 r_i + (1 - \beta_2) \operatorname{mean}_j (G_{ij}^2 + \epsilon_1), \qquad
        c_j \leftarrow \beta_2 c_j + (1 - \beta_2) \operatorname{mean}_i (G_{ij}^2 + \epsilon_1) \\
        U_{ij} &= G_{ij} / \sqrt{r_i c_j / \operatorname{mean} r} \\
        U &\leftarrow U / \max(1, \operatorname{RMS}(U) / d) \\
        M &\leftarrow \beta_1 M + (1 - \beta_1) U \\
        R_i &\leftarrow \beta_3 R_i + (1 - \beta_3) \operatorname{mean}_j ((U - M)_{ij}^2 + \epsilon_2),
        \qquad
        C_j \leftarrow \beta_3 C_j + (1 - \beta_3) \operatorname{mean}_i ((U - M)_{ij}^2 + \epsilon_2) \\
        \Theta_{ij} &\leftarrow (1 - \gamma \lambda) \, \Theta_{ij}
            - \gamma \, M_{ij} / \sqrt{R_i C_j / \operatorname{mean} R}

    RMS is over the whole tensor. A parameter with fewer than two axes keeps the average of
    :math:`G^2 + \epsilon_1` itself and moves by :math:`\gamma M`: of it the paper says nothing, and this
    is what the authors' package does. Averages are not corrected for their beginning at zero, in the
    paper and here.

    A step reads gradients four times and writes everything together at its end, so that one which fails
    or is interrupted has changed nothing. While it lasts it takes memory for sums over rows and columns,
    and for a copy of what does not lie flat in C order.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 2e-4, with which the paper trains BERT.
        eps: (:math:`\epsilon_1`, :math:`\epsilon_2`), both at least 0. Default: (1e-30, 1e-16).
        clip_threshold: :math:`d`, the largest root mean square of an update before it enters the
            momentum, above 0; inf for any. Default: 1.0.
        betas: decay rates of the averages of updates, of squares and of residuals, each in [0, 1).
            Default: (0.9, 0.999, 0.9999).
        weight_decay: decoupled weight decay, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU.

    State of a parameter: "step", "exp_avg" (:math:`M`), and "exp_avg_sq_row" (:math:`r`),
    "exp_avg_sq_col" (:math:`c`), "exp_avg_res_row" (:math:`R`) and "exp_avg_res_col" (:math:`C`), or
    "exp_avg_sq". Only "exp_avg" has the data type of a 16-bit parameter; the others are float32.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.CAME([p], lr=0.01)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(3)
        array([[ 0.492, -1.645],
               [ 0.251,  3.306]])

    References:
        Luo, Ren, Zheng, Jiang, Jiang, You: CAME: confidence-guided adaptive memory efficient
        optimization. ACL 2023, https://arxiv.org/abs/2307.02047
    """

    _always = ("exp_avg",)
    _sometimes = (
        "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col", "exp_avg_sq",
    )  # fmt: skip
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "eps": hyper.several(hyper.number(low=0), hyper.number(low=0), title="epsilon value"),
        "clip_threshold": hyper.number(above=0, infinite=True),
        "betas": hyper.betas(0.9, 0.999, 0.9999),
        "weight_decay": hyper.non_negative(),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 2e-4,
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _shapes(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        shape = parameter.shape
        if len(shape) < 2:
            return {"exp_avg": shape, "exp_avg_sq": shape}
        rows, columns = shape[:-1], (*shape[:-2], shape[-1])
        return {
            "exp_avg": shape,
            "exp_avg_sq_row": rows,
            "exp_avg_sq_col": columns,
            "exp_avg_res_row": rows,
            "exp_avg_res_col": columns,
        }

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        updates = []
        for each in work:
            group = each.group
            names = self._shapes(each.group, each.parameter)
            updates.append(
                {
                    "gradient": each.gradient.view(np.ndarray),
                    "parameter": each.parameter._view.view(np.ndarray),
                    "state": tuple(each.state[name].view(np.ndarray) for name in names),
                    "scale": -factor if group["maximize"] else factor,
                    "limit": math.inf if clip_value is None else clip_value,
                    "weights": tuple(1 - beta for beta in group["betas"]),
                    "epsilons": tuple(group["eps"]),
                    "threshold": group["clip_threshold"],
                    "kept": 1 - group["lr"] * group["weight_decay"],
                    "length": -group["lr"],
                }
            )
        return kernels.confident_updates(updates)
