"""Adam-mini: AdamW with one second moment for each block of a parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import checks, hyper, kernels
from ..parameter import Parameter
from . import members, spelling
from .own_shapes import OwnShapes
from .per_tensor import Work


@dataclass(frozen=True)
class Partition(hyper.Hyper):
    """How parameters are cut into blocks: "row", "tensor", or a number of blocks."""

    range = '"row", "tensor" or a whole number of at least 1'  # type: ignore[assignment]
    annotation = "str | int"  # type: ignore[assignment]

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, str):
            if value not in ("row", "tensor"):
                self._refuse(ValueError, name, value)
        elif not checks.is_number(value) or not isinstance(value, (int, np.integer)):
            self._refuse(TypeError, name, value)
        elif value < 1:
            self._refuse(ValueError, name, value)


class AdamMini(OwnShapes):
    r"""Adam-mini: AdamW with one second moment a block, so with half of its memory.

    With gradient :math:`g`, parameter :math:`\theta`, learning rate :math:`\gamma`, weight decay
    :math:`\lambda` and update number :math:`t`; for each block :math:`b`:

    .. math::
        \theta &\leftarrow (1 - \gamma \lambda) \, \theta \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v_b &\leftarrow \beta_2 v_b + (1 - \beta_2) \operatorname{mean}_{i \in b} g_i^2 \\
        \theta_i &\leftarrow \theta_i - \gamma \, \frac{m_i / (1 - \beta_1^t)}
            {\sqrt{v_b / (1 - \beta_2^t)} + \epsilon}

    The paper wants blocks within which the Hessian is dense: one for each token (a row of an embedding
    or of the output layer), for each head of queries and keys, and for each output neuron of all other
    matrices; anything else is one block. Arrays do not say which they are, so it is the setting `blocks`
    of a group that does, and it cuts along the first axis:

    - "row": one block for each index of the first axis of a parameter with two axes or more. That is
      one a token of an embedding, and one an output neuron where weights are stored as (outputs,
      inputs), as torch's layers do, or as convolutions' (outputs, inputs, ...). A parameter with fewer
      axes (biases, weights of norms) is one block.
    - a number: so many blocks of equal size along the first axis; for queries and keys the number of
      heads.
    - "tensor": each parameter is one block. So the packages treat all but transformers.

    Weights stored as (inputs, outputs) have a neuron in a column, which is no piece of memory:
    "row" gives a block an input then, which is finer than "tensor" and has not been studied.

    Of parameters with names, those of queries and keys are found by these::

        heads = lambda name: 12 if "q_proj" in name or "k_proj" in name else "row"
        groups = [{"params": [pair], "blocks": heads(pair[0])} for pair in params]

    `pytorch_optimizer.AdamMini` goes by names that it knows; it gives embeddings and the output layer
    Adam's moments, one a number, as an earlier version of the paper did, and all other parameters one
    block each. Its averages are float32 whatever the parameter.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 1e-3. AdamW's suits.
        betas: decay rates of the averages of gradients and of squares, each in [0, 1).
            Default: (0.9, 0.999).
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: decoupled weight decay, at least 0. Default: 0.
        blocks: "row", "tensor" or a number of blocks that divides the first axis of each parameter, see
            above. Default: "row".
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, a first axis that `blocks` does not divide, or, in a
            step, a parameter on a GPU.

    State of a parameter: "step", "exp_avg" (:math:`m`), and "exp_avg_sq" (:math:`v`, one number a block,
    float32 for a 16-bit parameter).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.AdamMini([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(3)
        array([[ 0.811, -1.622],
               [ 0.447,  3.58 ]])
        >>> opt.state[p]["exp_avg_sq"].shape
        (2,)

    References:
        Zhang, Chen, Li, Ding, Wu, Kingma, Ye, Luo, Sun: Adam-mini: use fewer learning rates to gain
        more. ICLR 2025, https://arxiv.org/abs/2406.16793
    """

    _always = ("exp_avg", "exp_avg_sq")
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "betas": hyper.betas(0.9, 0.999),
        "eps": hyper.epsilon(),
        "weight_decay": hyper.non_negative(),
        "blocks": Partition("row"),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        blocks: str | int = "row",
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "blocks": blocks,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        blocks = group["blocks"]
        if isinstance(blocks, str):
            return
        parameters = group.get("params", ())
        for parameter, name in zip(parameters, members.names(group, parameters)):
            if parameter.ndim == 0 or parameter.shape[0] % blocks:
                raise ValueError(
                    f"Invalid blocks: {blocks} blocks of equal size along the first axis cannot be cut "
                    f"from a parameter of shape {parameter.shape}"
                    f"{'' if name is None else f' ({name!r})'}, expected a number that divides it: put "
                    'the parameter into a group of its own, for example with blocks="tensor"'
                )

    def _shapes(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        blocks, shape = group["blocks"], parameter.shape
        if blocks == "tensor":
            blocks = 1
        elif blocks == "row":
            blocks = shape[0] if len(shape) > 1 else 1
        return {"exp_avg": shape, "exp_avg_sq": (int(blocks),)}

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        updates = []
        for each in work:
            group, step = each.group, each.state["step"]
            beta1, beta2 = group["betas"]
            updates.append(
                {
                    "gradient": each.gradient.view(np.ndarray),
                    "parameter": each.parameter._view.view(np.ndarray),
                    "state": tuple(each.state[name].view(np.ndarray) for name in self._always),
                    "scale": -factor if group["maximize"] else factor,
                    "limit": math.inf if clip_value is None else clip_value,
                    "weights": (1 - beta1, 1 - beta2),
                    "correction": 1 / math.sqrt(1 - beta2**step),
                    "epsilon": group["eps"],
                    "kept": 1 - group["lr"] * group["weight_decay"],
                    "length": -group["lr"] / (1 - beta1**step),
                }
            )
        return kernels.block_updates(updates)
