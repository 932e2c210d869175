"""Shampoo: gradients multiplied by inverse roots of what gradients were like along each axis."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from .. import hyper
from . import spelling
from .per_tensor import arithmetic, lerp
from .preconditioned import Preconditioned, along, finite, gradient_of, gram, kept

SINGULAR = "which is the root of a matrix that is singular, as good as: take a larger eps"
GRAFTS = ("sgd", "adagrad", "rmsprop", "adam")


class Shampoo(Preconditioned):
    r"""Shampoo, with the blocks, grafting and defaults of Distributed Shampoo.

    With gradient :math:`G`, a matrix, parameter :math:`\Theta`, learning rate :math:`\gamma`, weight
    decay :math:`\lambda`, momentum :math:`\mu`, dampening :math:`\tau`, update number :math:`t`,
    :math:`\beta_1, \beta_2` and :math:`\epsilon`:

    .. math::
        L_0 &\leftarrow \beta_2 L_0 + (1 - \beta_2) \, G G^\top, \qquad
        L_1 \leftarrow \beta_2 L_1 + (1 - \beta_2) \, G^\top G \\
        R_i &\leftarrow \Big(\frac{L_i}{1 - \beta_2^t} + \epsilon I \Big)^{-1/4}
            \qquad (\text{every precondition\_frequency updates}) \\
        M &\leftarrow \beta_1 M + (1 - \beta_1) \, G, \qquad \hat M = M / (1 - \beta_1^t) \\
        P &= R_0 \hat M R_1 \cdot \frac{\lVert \hat M / D \rVert}{\lVert R_0 \hat M R_1 \rVert} \\
        P &\leftarrow P + \lambda \Theta \\
        B &\leftarrow \mu B + (1 - \tau) \, P \\
        \Theta &\leftarrow \Theta - \gamma B \qquad
            \big(\Theta - \gamma \, ((1 - \tau) P + \mu B) \text{ with nesterov}\big)

    where :math:`L_i` are plain sums if :math:`\beta_2 = 1`, the default; the exponent is
    :math:`-1 / (2k)` for a tensor with :math:`k` axes. :math:`\hat M / D` is the step of the method that
    is *grafted*: its length counts for each block, its direction does not. :math:`D` is 1 for "sgd", and
    :math:`\sqrt V + \epsilon_g` for the others, where :math:`V` is the sum of :math:`G \circ G`
    ("adagrad"), their average ("rmsprop"), or that divided by :math:`1 - \beta_g^t` ("adam"). Before
    update `start_preconditioning_step` it is that method alone. Without grafting there is no quotient
    of norms, and before that update :math:`P = \hat M`. Coupled weight decay is added to
    :math:`G`, at the beginning.

    With `use_merge_dims`, axes of length 1 are left out, and neighbouring ones are one as long as their
    product is no more than `max_preconditioner_dim`. Axes that are longer are cut in blocks of that
    length, each of which is updated as a tensor of its own; a vector is a tensor with one axis, and
    a number a vector of one element.

    To take the place of AdamW: its `lr`, `betas=(0.9, 0.999)`, its `weight_decay`, and
    `grafting="adam"`.

    It follows Distributed Shampoo but for this: without grafting that does not move before the first
    roots are there. `pytorch_optimizer.ScalableShampoo` differs in more: no average of gradients, one
    graft for all blocks, :math:`\epsilon` added once, where it decays, and vectors are left to the
    graft.

    :math:`R_i` is computed by a symmetric eigendecomposition in float64 for all types, in which the
    small eigenvalues of float32 matrices are not lost; eigenvalues below 0, which only rounding makes,
    are all raised until the least is 0. All else is done in the parameter's arithmetic, by BLAS, which
    has threads of its own. While a step lasts it takes memory for one more copy of all parameters and
    their state: they are written together at its end.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 1e-2.
        betas: :math:`\beta_1`, in [0, 1), and :math:`\beta_2`, above 0 and at most 1.
            Default: (0.9, 1.0).
        eps: added to the eigenvalues, at least 0. Default: 1e-12.
        momentum: :math:`\mu`, in [0, 1). Default: 0.
        dampening: :math:`\tau`, in [0, 1). Default: 0.
        weight_decay: weight decay, at least 0. Default: 0.
        max_preconditioner_dim: the length of blocks, at least 1. Default: 1024.
        precondition_frequency: updates from one computation of roots to the next, at least 1.
            Default: 1.
        start_preconditioning_step: the update at which roots are first computed and used, at least 1.
            Default: None, `precondition_frequency`.
        exponent_override: the exponent in place of :math:`1 / (2k)`, above 0. Default: None.
        use_nesterov: look ahead by one update. Default: False.
        use_bias_correction: divide by :math:`1 - \beta^t`; False, by 1. Default: True.
        use_decoupled_weight_decay: False, weight decay is added to the gradient. Default: True.
        grafting: "sgd", "adagrad", "rmsprop", "adam" or None. Default: None, no grafting.
        grafting_beta2: :math:`\beta_g`, of "rmsprop" and "adam", in [0, 1). Default: 0.999.
        grafting_eps: :math:`\epsilon_g`, at least 0. Default: 1e-8.
        use_merge_dims: take neighbouring axes together. Default: True.
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU, a gradient with
            inf or NaN, roots that are not finite (with `eps=0`, those of a singular matrix), or
            settings under which the state that there is would have other matrices. Nothing has been
            written.

    State of a parameter: "step", "exp_avg" (:math:`M`) if :math:`\beta_1 > 0`, "momentum_buffer"
    (:math:`B`) if `momentum > 0`, "graft_sq" (:math:`V`) if it is needed, and for each block and axis
    "factor_0_0" ... (:math:`L_i`) and "root_0_0" ... (:math:`R_i`), in float32 or float64.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> scales = np.array([[1.0, 4.0], [2.0, 0.5]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Shampoo([p], lr=0.1, betas=(0.9, 0.999), grafting="adam")
        >>> for _ in range(5):
        ...     p.grad = scales * x  # the gradient of (scales * x * x).sum() / 2
        ...     _ = opt.step()
        >>> x.round(2)
        array([[ 0.83, -1.12],
               [ 0.36,  3.61]])

    References:
        Gupta, Koren, Singer: Shampoo: preconditioned stochastic tensor optimization. ICML 2018,
        https://arxiv.org/abs/1802.09568. Anil et al.: Scalable second order optimization for deep
        learning. 2020, https://arxiv.org/abs/2002.09018. Shi et al.: A distributed data-parallel
        PyTorch implementation of the distributed Shampoo optimizer for training neural networks at
        scale. 2023, https://arxiv.org/abs/2309.06497
    """

    _kinds = ("factor", "root")
    _sometimes = ("exp_avg", "momentum_buffer", "graft_sq")
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "betas": hyper.several(
            hyper.decay(), hyper.number(above=0, most=1), title="beta parameter"
        ),
        "eps": hyper.epsilon(),
        "momentum": hyper.decay(),
        "dampening": hyper.decay(),
        "weight_decay": hyper.non_negative(),
        "max_preconditioner_dim": hyper.count(),
        "precondition_frequency": hyper.count(),
        "start_preconditioning_step": dataclasses.replace(hyper.count(), unset=True),
        "exponent_override": hyper.number(above=0, unset=True),
        "use_nesterov": hyper.flag(),
        "use_bias_correction": hyper.flag(),
        "use_decoupled_weight_decay": hyper.flag(),
        "grafting": hyper.word(GRAFTS),
        "grafting_beta2": hyper.decay(),
        "grafting_eps": hyper.epsilon(),
        "use_merge_dims": hyper.flag(),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 1.0),
        eps: float = 1e-12,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        max_preconditioner_dim: int = 1024,
        precondition_frequency: int = 1,
        start_preconditioning_step: int | None = None,
        exponent_override: float | None = None,
        use_nesterov: bool = False,
        use_bias_correction: bool = True,
        use_decoupled_weight_decay: bool = True,
        grafting: str | None = None,
        grafting_beta2: float = 0.999,
        grafting_eps: float = 1e-8,
        use_merge_dims: bool = True,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "max_preconditioner_dim": max_preconditioner_dim,
            "precondition_frequency": precondition_frequency,
            "start_preconditioning_step": start_preconditioning_step,
            "exponent_override": exponent_override,
            "use_nesterov": use_nesterov,
            "use_bias_correction": use_bias_correction,
            "use_decoupled_weight_decay": use_decoupled_weight_decay,
            "grafting": grafting,
            "grafting_beta2": grafting_beta2,
            "grafting_eps": grafting_eps,
            "use_merge_dims": use_merge_dims,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        if group["use_nesterov"] and group["momentum"] == 0:
            raise ValueError("Invalid use_nesterov: True, expected False where momentum is 0")

    def _like(self, group: dict[str, Any]) -> tuple[str, ...]:
        wanted = (
            group["betas"][0] > 0,
            group["momentum"] > 0,
            group["grafting"] in ("adagrad", "rmsprop", "adam"),
        )
        return tuple(itertools.compress(self._sometimes, wanted))

    def _matrices(self, group: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple]:
        found = {}
        working = working_shape(group, shape)
        for block, place in enumerate(blocks(group, working)):
            for axis, (part, size) in enumerate(zip(place, working)):
                length = len(range(*part.indices(size)))
                for kind in self._kinds:
                    found[f"{kind}_{block}_{axis}"] = (length, length)
        return found

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        number = arithmetic(parameter.dtype)
        step, decay = state["step"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        corrects = group["use_bias_correction"]
        value = np.array(parameter, number, order="C")
        grad = gradient_of(gradient, scale, number)
        if decay and not group["use_decoupled_weight_decay"]:
            grad += decay * value
        found: dict[str, np.ndarray] = {}
        average = grad
        if beta1 > 0:
            found["exp_avg"] = lerp(kept(state["exp_avg"], number), grad, 1 - beta1)
            average = found["exp_avg"] / (1 - beta1**step) if corrects else found["exp_avg"]
        graft = self._graft(group, grad, average, step, state, found)

        working = working_shape(group, parameter.shape)
        grad, average, graft = (each.reshape(working) for each in (grad, average, graft))
        update = np.empty(working, number)
        begins = group["start_preconditioning_step"] or group["precondition_frequency"]
        correction = 1 - beta2**step if corrects and beta2 < 1 else 1.0
        exponent = group["exponent_override"] or 1 / (2 * len(working))
        for block, place in enumerate(blocks(group, working)):
            piece, direction = np.ascontiguousarray(grad[place]), average[place]
            for axis in range(len(working)):
                name = f"factor_{block}_{axis}"
                factor, product = kept(state[name], number), gram(piece, axis)
                factor = factor * beta2 + product * (1 - beta2 if beta2 < 1 else 1.0)
                found[name] = finite(factor, "the product of its gradient with itself")
                if step < begins:
                    continue
                root = kept(state[f"root_{block}_{axis}"], number)
                is_due = step == begins or step % group["precondition_frequency"] == 0
                # Roots have a positive diagonal once they are there.
                if is_due or not root[0, 0]:
                    root = inverse_root(factor / correction, exponent, group["eps"])
                    found[f"root_{block}_{axis}"] = root
                finite(root, f"state 'root_{block}_{axis}'", SINGULAR)
                direction = along(root, np.ascontiguousarray(direction), axis)
            if group["grafting"] is not None:
                length = np.linalg.norm(graft[place])
                if step < begins:
                    direction = graft[place]
                else:
                    direction *= length / (np.linalg.norm(direction) + 1e-16)
            update[place] = direction

        update = update.reshape(parameter.shape)
        if decay and group["use_decoupled_weight_decay"]:
            update += decay * value
        if group["momentum"] > 0:
            fresh = (1 - group["dampening"]) * update
            buffer = group["momentum"] * kept(state["momentum_buffer"], number) + fresh
            found["momentum_buffer"] = buffer
            update = fresh + group["momentum"] * buffer if group["use_nesterov"] else buffer
        return value - group["lr"] * update, found

    def _graft(
        self, group: dict[str, Any], grad: np.ndarray, average: np.ndarray, step: int,
        state: dict[str, Any], found: dict[str, np.ndarray],
    ) -> np.ndarray:  # fmt: skip
        """The step of the method that is grafted; what it remembers goes to `found`."""
        kind, beta = group["grafting"], group["grafting_beta2"]
        if kind in (None, "sgd"):
            return average
        squares = kept(state["graft_sq"], average.dtype)
        if kind == "adagrad":
            squares = squares + grad * grad
        else:
            squares = beta * squares + (1 - beta) * grad * grad
        found["graft_sq"] = squares
        if kind == "adam":
            squares = squares / (1 - beta**step)
        return average / (np.sqrt(squares) + group["grafting_eps"])


def working_shape(group: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a tensor is worked on, of one axis at least: axes are one, if they may be."""
    if not group["use_merge_dims"]:
        return shape or (1,)
    merged = [1]
    for size in shape:
        if merged[-1] == 1 or size == 1 or merged[-1] * size <= group["max_preconditioner_dim"]:
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(merged)


def blocks(group: dict[str, Any], shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The places of the blocks in a tensor of this shape."""
    length = group["max_preconditioner_dim"]
    cuts = [
        [slice(start, min(start + length, size)) for start in range(0, size, length)]
        for size in shape
    ]
    return list(itertools.product(*cuts))


def inverse_root(matrix: np.ndarray, exponent: float, eps: float) -> np.ndarray:
    """`(matrix + eps I) ** -exponent`, of a symmetric matrix, in its own type."""
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    values += eps - min(float(values[0]), 0.0)
    half = vectors * values ** (-exponent / 2)
    return (half @ half.T).astype(matrix.dtype)
