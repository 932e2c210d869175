"""Muon: momentum, made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from .. import hyper
from . import members, spelling
from .per_tensor import PerTensor, arithmetic, lerp


class Muon(PerTensor):
    r"""Muon: steps along the orthogonal matrix nearest to the momentum. For matrices only.

    With gradient :math:`G`, parameter :math:`\Theta` of shape :math:`A \times B`, learning rate
    :math:`\gamma`, weight decay :math:`\lambda`, momentum :math:`\mu` and :math:`\epsilon`:

    .. math::
        M &\leftarrow \mu M + (1 - \mu) G \\
        X &\leftarrow (1 - \mu) G + \mu M \qquad (M \text{ without nesterov}) \\
        X &\leftarrow X / \max(\lVert X \rVert_F, \epsilon) \\
        X &\leftarrow a X + (b X X^\top + c (X X^\top)^2) X \qquad (\text{ns\_steps times}) \\
        \Theta &\leftarrow (1 - \gamma \lambda) \Theta - \gamma \sqrt{\max(1, A / B)} \, X

    with :math:`0.2 \sqrt{\max(A, B)}` for the root if `adjust_lr_fn` is "match_rms_adamw". The
    iteration (Newton-Schulz, on :math:`X^\top` if :math:`A > B`) takes all singular values to between
    0.7 and 1.2. It is done in the parameter's arithmetic, float64 or float32, by BLAS (which has
    threads of its own); torch does it in bfloat16, so that updates differ by 1 or 2 percent.

    While a step lasts it takes memory for one more copy of all parameters and momenta that it updates:
    they are written together at its end, so that a step which fails or is interrupted has changed
    nothing.

    Meant for the hidden matrices of a network; biases, norms, embeddings and the output layer
    belong to an `AdamW` of their own.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, all parameters 2-D and on the CPU.
        lr: learning rate, at least 0. Default: 1e-3.
        weight_decay: decoupled weight decay, at least 0; a step shrinks the parameter by
            `lr * weight_decay` of itself. Default: 0.1.
        momentum: decay rate of the average of gradients, at least 0. Default: 0.95.
        nesterov: look ahead by one gradient. Default: True.
        ns_coefficients: the polynomial's (a, b, c). Default: (3.4445, -4.775, 2.0315).
        eps: the least norm to divide by, at least 0. Default: 1e-7.
        ns_steps: iterations, 0 to 99. Default: 5.
        adjust_lr_fn: "original" or "match_rms_adamw", how the learning rate depends on the shape.
            Default: None, "original".

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, a parameter that is not 2-D, or one on a GPU.

    State of a parameter: "momentum_buffer" (:math:`M`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.eye(2)
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Muon([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(2)
        array([[0.64, 0.  ],
               [0.  , 0.64]])

    References:
        Jordan et al.: Muon: an optimizer for hidden layers in neural networks. 2024,
        https://kellerjordan.github.io/posts/muon/. Liu et al.: Muon is scalable for LLM training.
        2025, https://arxiv.org/abs/2502.16982 (match_rms_adamw)
    """

    _always = ("momentum_buffer",)
    _numbers = ()
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "weight_decay": hyper.non_negative(),
        "momentum": hyper.non_negative(),
        "nesterov": hyper.flag(),
        "ns_coefficients": hyper.several(hyper.number(), hyper.number(), hyper.number()),
        "eps": hyper.epsilon(),
        "ns_steps": hyper.count(least=0, most=99),
        "adjust_lr_fn": hyper.word(("original", "match_rms_adamw")),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ):
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        parameters = group.get("params", ())
        for parameter, name in zip(parameters, members.names(group, parameters)):
            if parameter.ndim != 2:
                raise ValueError(
                    "Muon only supports 2D parameters whereas we found a parameter with size: "
                    f"{parameter.shape}{'' if name is None else f' ({name!r})'}; give it to an "
                    "optimizer of its own, for example AdamW"
                )

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        number = arithmetic(parameter.dtype)
        momentum = group["momentum"]
        grad = np.multiply(gradient, scale, dtype=number)
        average = lerp(state["momentum_buffer"].astype(number), grad, 1 - momentum)
        update = lerp(grad, average, momentum) if group["nesterov"] else average
        update = orthogonalized(update, group["ns_coefficients"], group["ns_steps"], group["eps"])

        rows, columns = parameter.shape
        if group["adjust_lr_fn"] == "match_rms_adamw":
            lr = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
        else:
            lr = group["lr"] * math.sqrt(max(1, rows / columns))
        update *= -lr
        update += parameter.astype(number) * number.type(1 - group["lr"] * group["weight_decay"])
        return update, {"momentum_buffer": average}


def orthogonalized(
    matrix: np.ndarray, coefficients: tuple[float, float, float], steps: int, eps: float
) -> np.ndarray:
    """A new matrix with the singular vectors of `matrix` and singular values near 1."""
    a, b, c = map(matrix.dtype.type, coefficients)
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = np.array(matrix.T if is_tall else matrix, order="C")
    found /= found.dtype.type(max(float(np.linalg.norm(found)), eps))
    following = np.empty_like(found)
    gram, polynomial = np.empty((2, len(found), len(found)), found.dtype)
    for _ in range(steps):
        # NumPy sees the symmetry of both products, and does half of the work.
        np.matmul(found, found.T, out=gram)
        np.matmul(gram, gram.T, out=polynomial)
        polynomial *= c
        gram *= b
        polynomial += gram
        # `a X + P X` as one product: P has the room for it.
        polynomial.ravel()[:: len(found) + 1] += a
        np.matmul(polynomial, found, out=following)
        found, following = following, found
    return found.T.copy() if is_tall else found
