"""Kron: PSGD with a Kronecker product of triangular matrices as its preconditioner."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import checks, hyper
from . import spelling
from .per_tensor import Work, arithmetic
from .preconditioned import ANEW, Preconditioned, along, finite, gradient_of, gram, kept

BALANCED_EVERY = 100
LARGEST_RMS = 1.1
MODES = ("one_diag", "smart_one_diag", "all_diag")
BLOCK = 256
"""Rows of a triangular matrix that are multiplied at a time, without what is zero beside them."""
SOLVED = 128
"""Columns that are solved for at a time; all else that solving takes is products."""


class Kron(Preconditioned):
    r"""PSGD Kron: a preconditioner that makes gradients white, fitted by gradient descent of its own.

    With gradient :math:`G`, a matrix, parameter :math:`\Theta`, learning rate :math:`\gamma`, weight
    decay :math:`\lambda`, `b1` :math:`\beta`, `precond_lr` :math:`\mu`, update number :math:`t`, and
    :math:`V` a matrix of normal random numbers:

    .. math::
        M &\leftarrow \beta M + (1 - \beta) \, G, \qquad \hat M = M / (1 - \beta^t) \\
        A &= Q_0 \, (\hat M + \delta \operatorname{mean} \lvert \hat M \rvert \, V) \, Q_1^\top,
            \qquad B = Q_0^{-\top} V \, Q_1^{-1} \\
        Q_0 &\leftarrow Q_0 - \mu \, \frac{\operatorname{triu}(A A^\top - B B^\top)}
            {\lVert A A^\top + B B^\top \rVert} \, Q_0, \qquad
        Q_1 \leftarrow Q_1 - \mu \, \frac{\operatorname{triu}(A^\top A - B^\top B)}
            {\lVert A^\top A + B^\top B \rVert} \, Q_1 \\
        P &= Q_0^\top Q_0 \, \hat M \, Q_1^\top Q_1 \\
        \Theta &\leftarrow \Theta - \gamma \, \Big(P \cdot
            \min\big(1, \tfrac{1.1}{\operatorname{RMS}(P)}\big) + \lambda \Theta \Big)

    where the norm is a lower bound of the spectral norm, and :math:`\delta` is the root of the spacing
    of float32 at 1. :math:`Q_i` are updated with a probability that `preconditioner_update_probability`
    gives: not by lot, but as soon as the last update is 1 / probability steps ago. Weight decay concerns
    parameters with two axes or more.

    An axis has a diagonal :math:`Q_i`, kept as a vector, if it is of length 1 or longer than
    `max_size_triangular`, if the tensor has fewer axes than `min_ndim_triangular`, or if
    `memory_save_mode` says so: "one_diag", the longest axis; "smart_one_diag", the longest if it is
    longer than all others; "all_diag", all. With `merge_dims`, tensors of more than two axes are
    matrices, cut where they are more nearly square.

    Random numbers follow from `seed`, the parameter's number in the optimizer and the number of its
    update, from nothing else (by NumPy's Philox): runs can be repeated, and resumed to the last bit.
    Each parameter counts its own steps.

    It follows kron-torch but for this. The package uses the noise in :math:`A` for :math:`P`, too, by
    writing it into :math:`\hat M`; it counts the steps of all parameters as one; it evens out the sizes
    of :math:`Q_i` (which changes nothing but rounding) by lot in one of a hundred updates, where it is
    done in each hundredth step; and it merges axes at the last one, nearly always.

    Products are computed in the parameter's arithmetic, float64 or float32, by BLAS, which has threads
    of its own. While a step lasts it takes memory for one more copy of all parameters and their
    state: they are written together at its end.

    Args:
        params: a tree of arrays, or an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of
            group dicts, on the CPU.
        lr: learning rate, at least 0. Default: 3e-4.
        b1: decay rate of the average, in [0, 1). Default: 0.9.
        weight_decay: decoupled weight decay, at least 0. Default: 0.
        preconditioner_update_probability: above 0 and at most 1, or a function of the step, from 0.
            Default: None, 1 for 500 steps, and then less by a factor of `exp(-0.001)` a step until it
            is 0.03.
        max_size_triangular: the longest axis with a triangular :math:`Q_i`, at least 0. Default: 8192.
        min_ndim_triangular: how many axes a tensor needs for one, at least 0. Default: 2.
        memory_save_mode: None or as above. Default: None, as many triangular matrices as there may be.
        momentum_into_precond_update: False, :math:`A` is made of :math:`G`. Default: True.
        precond_lr: :math:`\mu`, in [0, 1). Default: 0.1.
        precond_init_scale: what the product of all :math:`Q_i` begins with, times the identity, above
            0. Default: 1.0.
        merge_dims: work on tensors as matrices. Default: True.
        seed: of the random numbers, at least 0. Default: 0.
        maximize: go up the gradient instead of down. Default: False.

    Raises:
        TypeError: a hyper-parameter or `params` of a wrong type, or a sparse gradient.
        ValueError: an impossible hyper-parameter, or, in a step, a parameter on a GPU, a gradient with
            inf or NaN, a :math:`Q_i` that becomes singular or not finite, or settings under which the
            state that there is would have other matrices. Nothing has been written.

    State of a parameter: "step", "since_update" (steps since its preconditioner was updated),
    "momentum_buffer" (:math:`M`), and "Q_0" ... (:math:`Q_i`), in float32 or float64.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([[1.0, -2.0], [0.5, 4.0]])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Kron([p], lr=0.1)
        >>> for _ in range(5):
        ...     p.grad = 2 * x  # the gradient of (x * x).sum()
        ...     _ = opt.step()
        >>> x.round(1)
        array([[ 0.5, -1.5],
               [ 0.3,  3.2]])

    References:
        Li: Preconditioned stochastic gradient descent. IEEE Transactions on Neural Networks and
        Learning Systems 29, 2018, https://arxiv.org/abs/1512.04202. Pooladzandi, Li: Curvature-informed
        SGD via general purpose Lie-group preconditioners. 2024, https://arxiv.org/abs/2402.04553.
        kron-torch: https://github.com/evanatyourservice/kron_torch
    """

    _always = ("momentum_buffer",)
    _numbers = ("step", "since_update")
    _kinds = ("Q",)
    _hypers: ClassVar = {
        "lr": hyper.rate(),
        "b1": hyper.decay(),
        "weight_decay": hyper.non_negative(),
        "preconditioner_update_probability": hyper.Number(
            hyper.REQUIRED,
            interval=checks.Interval.read("(0, 1]"),
            unset=True,
            scheduled=True,
        ),
        "max_size_triangular": hyper.count(least=0),
        "min_ndim_triangular": hyper.count(least=0),
        "memory_save_mode": hyper.word(MODES),
        "momentum_into_precond_update": hyper.flag(),
        "precond_lr": hyper.decay(),
        "precond_init_scale": hyper.number(above=0),
        "merge_dims": hyper.flag(),
        "seed": hyper.count(least=0, most=2**32 - 1),
        "maximize": hyper.flag(),
    }

    @spelling.explained
    def __init__(
        self,
        params: Iterable,
        lr: float = 3e-4,
        b1: float = 0.9,
        weight_decay: float = 0.0,
        preconditioner_update_probability: Any = None,
        max_size_triangular: int = 8192,
        min_ndim_triangular: int = 2,
        memory_save_mode: str | None = None,
        momentum_into_precond_update: bool = True,
        precond_lr: float = 0.1,
        precond_init_scale: float = 1.0,
        merge_dims: bool = True,
        *,
        seed: int = 0,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "b1": b1,
            "weight_decay": weight_decay,
            "preconditioner_update_probability": preconditioner_update_probability,
            "max_size_triangular": max_size_triangular,
            "min_ndim_triangular": min_ndim_triangular,
            "memory_save_mode": memory_save_mode,
            "momentum_into_precond_update": momentum_into_precond_update,
            "precond_lr": precond_lr,
            "precond_init_scale": precond_init_scale,
            "merge_dims": merge_dims,
            "seed": seed,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _matrices(self, group: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple]:
        working = working_shape(group, shape)
        diagonal = diagonal_axes(group, working)
        return {
            f"Q_{axis}": (size,) if is_diagonal else (size, size)
            for axis, (size, is_diagonal) in enumerate(zip(working, diagonal))
        }

    def _writes(self, work: Work, factor: float, clip_value: float | None) -> list[partial]:
        probability = work.group["preconditioner_update_probability"]
        if probability is None:
            probability = min(1.0, max(0.03, math.exp(-0.001 * (work.state["step"] - 1 - 500))))
        if work.state["since_update"] >= 1 / probability:
            work.state["since_update"] = 0
        return super()._writes(work, factor, clip_value)

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        number = arithmetic(parameter.dtype)
        working = working_shape(group, parameter.shape)
        step, beta = state["step"], group["b1"]
        grad = gradient_of(gradient, scale, number)
        momentum = beta * kept(state["momentum_buffer"], number) + (1 - beta) * grad
        average = (momentum / (1 - beta**step)).reshape(working)

        factors = [kept(state[f"Q_{axis}"], number) for axis in range(len(working))]
        if step == 1:
            size = group["precond_init_scale"] ** (1 / len(working))
            factors = [
                np.full_like(q, size) if q.ndim == 1 else size * np.eye(len(q), dtype=number)
                for q in factors
            ]
        if step % BALANCED_EVERY == 0 and len(working) > 1:
            factors = balanced(factors)
        if state["since_update"] == 0:
            noise = normal_numbers(group["seed"], group["number"], step, working, number)
            seen = average if group["momentum_into_precond_update"] else grad.reshape(working)
            factors = fitted(factors, seen, noise, group["precond_lr"])

        update = average
        for axis, q in enumerate(factors):
            finite(q, f"state 'Q_{axis}'", ANEW)
            if q.ndim == 1:
                update = update * lengthwise(q * q, axis, update.ndim)
            else:
                update = turned(q, turned(q, update, axis), axis, transposed=True)
        rms = float(np.sqrt(np.mean(np.square(update))))
        update = (update * min(1.0, LARGEST_RMS / (rms + 1e-12))).reshape(parameter.shape)
        value = parameter.astype(number)
        if parameter.ndim >= 2:
            update += group["weight_decay"] * value
        found = {f"Q_{axis}": q for axis, q in enumerate(factors)}
        return value - group["lr"] * update, {"momentum_buffer": momentum, **found}


# ---- which axes, which numbers ----


def working_shape(group: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which a tensor is worked on: of one axis at least, merged of two at most."""
    if len(shape) < 3 or not group["merge_dims"]:
        return shape or (1,)
    last = (math.prod(shape[:-1]), shape[-1])
    first = (shape[0], math.prod(shape[1:]))
    return min(last, first, key=max)


def diagonal_axes(group: dict[str, Any], shape: tuple[int, ...]) -> list[bool]:
    """For each axis whether its factor is diagonal."""
    mode = group["memory_save_mode"]
    # Of several longest ones it is the last.
    longest = max(range(len(shape)), key=lambda axis: (shape[axis], axis))
    stands_out = len(shape) > 1 and shape.count(shape[longest]) == 1
    return [
        size == 1
        or size > group["max_size_triangular"]
        or len(shape) < group["min_ndim_triangular"]
        or mode == "all_diag"
        or (axis == longest and (mode == "one_diag" or (mode == "smart_one_diag" and stands_out)))
        for axis, size in enumerate(shape)
    ]


def normal_numbers(
    seed: int, parameter: int, step: int, shape: tuple[int, ...], number: np.dtype
) -> np.ndarray:
    """Normal random numbers for the update of this number of the parameter of this number."""
    # The generator counts in the first of four words, and the last is the step: streams never meet.
    bits = np.random.Philox(
        key=np.array([seed, parameter], np.uint64), counter=np.array([0, 0, 0, step], np.uint64)
    )
    return np.random.Generator(bits).standard_normal(shape, number.type)


# ---- the preconditioner ----


def balanced(factors: list[np.ndarray]) -> list[np.ndarray]:
    """The factors of the same product whose largest elements are alike."""
    sizes = np.array([np.abs(q).max() for q in factors], np.float64)
    common = np.exp(np.mean(np.log(sizes)))
    return [q * q.dtype.type(common / size) for q, size in zip(factors, sizes)]


def fitted(
    factors: list[np.ndarray], grad: np.ndarray, noise: np.ndarray, lr: float
) -> list[np.ndarray]:
    """The factors after one step towards the product that makes gradients like this one white."""
    number = grad.dtype.type
    damping = math.sqrt(np.finfo(np.float32).eps) * float(np.mean(np.abs(grad)))
    whitened, inverse = grad + number(damping) * noise, noise
    for axis, q in enumerate(factors):
        if q.ndim == 1:
            whitened = whitened * lengthwise(q, axis, grad.ndim)
            inverse = inverse / lengthwise(q, axis, grad.ndim)
        else:
            whitened = turned(q, whitened, axis)
            inverse = solved(q, inverse, axis)
    least = np.finfo(number).tiny
    following = []
    for axis, q in enumerate(factors):
        if q.ndim == 1:
            others = tuple(i for i in range(grad.ndim) if i != axis)
            first, second = (np.sum(each * each, axis=others) for each in (whitened, inverse))
            size = max(np.abs(first + second).max(), least)
            following.append(q - lr * (first - second) * (q / size))
        else:
            first, second = gram(whitened, axis), gram(inverse, axis)
            difference = np.triu(first - second)
            difference *= number(lr)
            difference /= max(spectral_bound(first + second), least)
            following.append(q - turned(difference, q, 0, square=True))
    return following


def spectral_bound(matrix: np.ndarray) -> float:
    """A lower bound of the spectral norm of a symmetric matrix, from its largest column."""
    largest = np.abs(matrix).max()
    if not largest > 0:
        return float(largest)
    matrix = matrix / largest
    column = matrix[:, np.argmax(np.einsum("ij,ij->j", matrix, matrix))]
    image = column @ matrix
    return float(np.linalg.norm(matrix @ (image / np.linalg.norm(image))) * largest)


def lengthwise(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """A vector that stands along an axis of a tensor."""
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def turned(
    q: np.ndarray, tensor: np.ndarray, axis: int, *, transposed: bool = False, square: bool = False
) -> np.ndarray:
    """The product of an upper triangular matrix, or of what it is `transposed`, with lines of a tensor.

    The lines are those along an axis; the tensor itself may be triangular and `square`, as the product
    then is.
    """
    size = len(q)
    if size <= BLOCK:
        return along(q.T if transposed else q, tensor, axis)
    is_last = axis == tensor.ndim - 1
    folded = tensor.reshape((-1, size) if is_last else (math.prod(tensor.shape[:axis]), size, -1))
    product = np.zeros_like(folded)
    for start in range(0, size, BLOCK):
        rows = slice(start, min(start + BLOCK, size))
        used = slice(0, rows.stop) if transposed else slice(start, size)
        part = q[used, rows].T if transposed else q[rows, used]
        if is_last:
            product[:, rows] = folded[:, used] @ part.T
        elif square:
            product[0, rows, start:] = part @ folded[0, used, start:]
        else:
            product[:, rows] = np.matmul(part, folded[:, used])
    return product.reshape(tensor.shape)


def solved(q: np.ndarray, tensor: np.ndarray, axis: int) -> np.ndarray:
    """The lines of a tensor along an axis times the inverse of an upper triangular matrix."""
    size = len(q)
    lines = np.moveaxis(tensor, axis, -1).reshape(-1, size)
    found = np.empty(lines.shape, tensor.dtype)
    for start in range(0, size, SOLVED):
        place = slice(start, min(start + SOLVED, size))
        rest = lines[:, place] - found[:, :start] @ q[:start, place]
        found[:, place] = np.linalg.solve(q[place, place].T, rest.T).T
    shape = np.moveaxis(tensor, axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(found.reshape(shape), -1, axis))
