"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from .. import hyper
from . import spelling
from .per_tensor import arithmetic, lerp
from .preconditioned import ANEW, Preconditioned, along, finite, gradient_of, gram, kept


class SOAP(Preconditioned):
    r"""SOAP: Adam on gradients that are turned into the eigenbasis of Shampoo's preconditioners.

    With gradient :math:`G`, a matrix, parameter :math:`\Theta`, learning rate :math:`\gamma`, weight
    decay :math:`\lambda`, update number :math:`t` (the first gradient does not count),
    :math:`\epsilon`, and `shampoo_beta` :math:`\beta_s`:

    .. math::
        G' &= Q_0^\top G \, Q_1 \\
        M' &\leftarrow \beta_1 M' + (1 - \beta_1) \, G' \\
        V &\leftarrow \beta_2 V + (1 - \beta_2) \, G' \circ G' \\
        N &= Q_0 \, \frac{M'}{\sqrt V + \epsilon} \, Q_1^\top \\
        \Theta &\leftarrow (1 - \gamma \lambda) \, \Theta
            - \gamma \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \, N \\
        L_0 &\leftarrow \beta_s L_0 + (1 - \beta_s) \, G G^\top, \qquad
        L_1 \leftarrow \beta_s L_1 + (1 - \beta_s) \, G^\top G \\
        Q_i &\leftarrow \operatorname{qr}(L_i Q_i) \qquad (\text{every precondition\_frequency updates})

    before which the columns of :math:`Q_i`, and :math:`V` with them, are sorted by their estimates
    :math:`q^\top L_i q`, and after which :math:`M'` is turned into the new basis. As in the authors'
    code the first gradient moves nothing: :math:`L_i` and their eigenvectors :math:`Q_i` begin with
    it, so that no gradient is seen in a basis of its own making.

    Which axes have a basis: all of those longer than 1 and no longer than `max_precond_dim`, also of
    tensors with more than two axes; the only axis of a vector with `precondition_1d` alone. With none
    it is Adam. `merge_dims` first takes neighbouring axes together as long as their product is no more
    than `max_precond_dim`.

    The authors (and `pytorch_optimizer.SOAP`) shrink the parameter after the update, here it is done
    before, as AdamW does. They keep :math:`M` itself and turn it at each step; the same is had here
    with a third less to multiply. `pytorch_optimizer.SOAP` computes :math:`\operatorname{qr}` in
    float32 always, and cannot merge all axes to one.

    Products and factorizations are done in the parameter's arithmetic, float64 or float32, by BLAS and
    LAPACK, which have threads of their own. While a step lasts it takes memory for one more copy of all
    parameters and their state: they are written together at its end.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 3e-3.
        betas: decay rates of the averages, each in [0, 1). Default: (0.95, 0.95).
        shampoo_beta: decay rate of :math:`L_i`, in [0, 1). Default: None, the second of `betas`.
        eps: added to the denominator, at least 0. Default: 1e-8.
        weight_decay: decoupled weight decay, at least 0. Default: 0.01.
        precondition_frequency: updates from one basis to the next, at least 1. Default: 10.
        max_precond_dim: the longest axis that has a basis, at least 1. Default: 10000.
        merge_dims: take neighbouring axes together. Default: False.
        precondition_1d: give vectors a basis, too. Default: False.
        normalize_grads: divide :math:`N` by its root mean square. Default: False.
        correct_bias: the fraction before :math:`N`; False, 1. Default: True.
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU, a gradient with
            inf or NaN or whose products overflow, or settings under which the state that there is
            would have other matrices. Nothing has been written.

    State of a parameter: "step" (gradients, with the first), "exp_avg" (:math:`M'`), "exp_avg_sq"
    (:math:`V`), and for each axis with a basis "GG_0" ... (:math:`L_i`) and "Q_0" ... (:math:`Q_i`), in
    float32 or float64.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.SOAP([p], lr=0.1, weight_decay=0)
        >>> for _ in range(6):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(2)
        array([[ 0.55, -1.77],
               [ 0.28,  3.56]])

    References:
        Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson, Kakade: SOAP: improving and
        stabilizing Shampoo using Adam. ICLR 2025, https://arxiv.org/abs/2409.11321
    """

    _always = ("exp_avg", "exp_avg_sq")
    _kinds = ("GG", "Q")
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "betas": hyper.betas(0.95, 0.95),
        "shampoo_beta": dataclasses.replace(hyper.decay(), unset=True),
        "eps": hyper.epsilon(),
        "weight_decay": hyper.non_negative(),
        "precondition_frequency": hyper.count(),
        "max_precond_dim": hyper.count(),
        "merge_dims": hyper.flag(),
        "precondition_1d": hyper.flag(),
        "normalize_grads": hyper.flag(),
        "correct_bias": hyper.flag(),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        merge_dims: bool = False,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        *,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_precond_dim": max_precond_dim,
            "merge_dims": merge_dims,
            "precondition_1d": precondition_1d,
            "normalize_grads": normalize_grads,
            "correct_bias": correct_bias,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _matrices(self, group: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple]:
        found = {}
        working = working_shape(group, shape)
        for axis in turned_axes(group, shape):
            for kind in self._kinds:
                found[f"{kind}_{axis}"] = (working[axis], working[axis])
        return found

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        number = arithmetic(parameter.dtype)
        beta1, beta2 = group["betas"]
        beta = beta2 if group["shampoo_beta"] is None else group["shampoo_beta"]
        axes = turned_axes(group, parameter.shape)
        grad = gradient_of(gradient, scale, number).reshape(working_shape(group, parameter.shape))
        grams = {}
        for axis in axes:
            following = lerp(kept(state[f"GG_{axis}"], number), gram(grad, axis), 1 - beta)
            grams[axis] = finite(following, "the product of its gradient with itself")
        found = {f"GG_{axis}": matrix for axis, matrix in grams.items()}
        updates = state["step"] - 1
        if updates == 0:
            return parameter, {**found, **{f"Q_{i}": eigenbasis(grams[i]) for i in axes}}

        bases = {}
        for axis in axes:
            name = f"Q_{axis}"
            bases[axis] = finite(kept(state[name], number), f"state {name!r}", ANEW)
        for axis, basis in bases.items():
            grad = along(basis.T, grad, axis)
        average = lerp(kept(state["exp_avg"], number).reshape(grad.shape), grad, 1 - beta1)
        grad *= grad
        squares = lerp(kept(state["exp_avg_sq"], number).reshape(grad.shape), grad, 1 - beta2)
        update = np.sqrt(squares, out=grad)
        update += group["eps"]
        np.divide(average, update, out=update)
        for axis, basis in bases.items():
            update = along(basis, update, axis)
        if group["normalize_grads"]:
            update /= np.sqrt(np.mean(np.square(update))) + 1e-30

        lr = group["lr"]
        if group["correct_bias"]:
            lr *= math.sqrt(1 - beta2**updates) / (1 - beta1**updates)
        update *= -lr
        update = update.reshape(parameter.shape)
        update += parameter.astype(number) * number.type(1 - group["lr"] * group["weight_decay"])
        if updates % group["precondition_frequency"] == 0:
            for axis, basis in bases.items():
                following, order = next_basis(grams[axis], basis)
                squares = squares.take(order, axis)
                average = along(following.T, along(basis, average, axis), axis)
                found[f"Q_{axis}"] = following
        found["exp_avg"] = average.reshape(parameter.shape)
        found["exp_avg_sq"] = squares.reshape(parameter.shape)
        return update, found


def working_shape(group: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a tensor is worked on: neighbouring axes are one, if they may be merged."""
    if not group["merge_dims"] or len(shape) < 2:
        return shape
    merged: list[int] = []
    product = 1
    for size in shape:
        if product * size <= group["max_precond_dim"]:
            product *= size
            continue
        if product > 1:
            merged.append(product)
        product = size
    return (*merged, product)


def turned_axes(group: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes, of the shape in which a tensor is worked on, that have a basis."""
    if len(shape) == 1 and not group["precondition_1d"]:
        return ()
    working = working_shape(group, shape)
    return tuple(i for i, size in enumerate(working) if 1 < size <= group["max_precond_dim"])


def eigenbasis(matrix: np.ndarray) -> np.ndarray:
    """The eigenvectors of a symmetric matrix as columns, the one of the largest eigenvalue first."""
    try:
        vectors = np.linalg.eigh(matrix)[1]
    except np.linalg.LinAlgError:  # which float64 may still converge
        vectors = np.linalg.eigh(matrix.astype(np.float64))[1].astype(matrix.dtype)
    return np.ascontiguousarray(vectors[:, ::-1])


def next_basis(matrix: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthogonal basis nearer to a matrix' eigenvectors, and the order of the last one's columns.

    It is one step of power iteration from the columns in that order.
    """
    product = matrix @ basis
    order = np.argsort(-np.einsum("ij,ij->j", basis, product), kind="stable")
    return np.linalg.qr(product[:, order])[0], order
