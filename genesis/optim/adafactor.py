"""Adafactor: squares of gradients remembered by row and column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from .. import hyper
from ..parameter import Parameter
from . import spelling, torch_flags
from .per_tensor import PerTensor, arithmetic, lerp

BLOCK = 16384
"""Elements that are worked on at a time, so that what lies between passes stays in the cache."""


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

    While a step lasts it takes memory for one more copy of all parameters that it updates: they are
    written together at its end, so that a step which fails or is interrupted has changed nothing.

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

    def _loaded_state(self, what: str, parameter: Parameter, entries: dict) -> dict[str, Any]:
        loaded = super()._loaded_state(what, parameter, entries)
        if loaded and loaded.keys() != {"step", *self._names(parameter)}:
            raise ValueError(
                f"loaded state of {what} has {sorted(loaded)}, but a parameter of shape "
                f"{parameter.shape} keeps {sorted(('step', *self._names(parameter)))}"
            )
        return loaded

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        step = state["step"]
        number = arithmetic(parameter.dtype)
        eps1, eps2 = group["eps"]
        if eps1 is None:
            eps1 = float(ml_dtypes.finfo(parameter.dtype).eps)
        tensor = _Blocks(parameter, gradient, scale, number)
        weight = step ** group["beta2_decay"]
        relative = min(group["lr"], 1 / math.sqrt(step))
        length = max(eps2, tensor.root_mean_square()) * relative

        if parameter.ndim > 1:
            row_mean, column_mean = tensor.means_of_squares()
            row = lerp(state["row_var"].astype(number).reshape(row_mean.shape), row_mean, weight)
            column = lerp(
                state["col_var"].astype(number).reshape(column_mean.shape), column_mean, weight
            )
            mean = np.maximum(row.mean(axis=-2, keepdims=True), number.type(eps1))
            averages = {
                "row_var": row.reshape(state["row_var"].shape),
                "col_var": column.reshape(state["col_var"].shape),
            }
            estimate: Any = _Factored(row, column, mean)
        else:
            grad = np.multiply(gradient, scale, dtype=number)
            variance = lerp(state["variance"].astype(number), grad * grad, weight)
            averages = {"variance": variance}
            estimate = variance.reshape(1, 1, -1)
        # The square of eps1, since the root is taken afterwards.
        least = number.type(eps1 * eps1)
        size = tensor.root_mean_square_of_update(estimate, least)
        kept = 1 - group["lr"] * group["weight_decay"]
        return tensor.moved(estimate, least, -length / max(1.0, size / group["d"]), kept), averages


class _Factored:
    """The array `row * column / mean`, made block by block."""

    def __init__(self, row: np.ndarray, column: np.ndarray, mean: np.ndarray):
        self._row, self._column, self._mean = row, column, mean

    def __getitem__(self, block: tuple[slice, slice, slice]) -> np.ndarray:
        batch, rows, columns = block
        found = self._row[batch, rows] * self._column[batch, :, columns]
        found /= self._mean[batch]
        return found


class _Blocks:
    """A parameter and its gradient as stacks of matrices, worked through block by block.

    Blocks have a fixed size, so sums over them are always taken in the same order.
    """

    def __init__(self, parameter: np.ndarray, gradient: np.ndarray, scale: float, number: np.dtype):
        self._original_shape = parameter.shape
        self._shape = (math.prod(parameter.shape[:-2]), *((1, 1) + parameter.shape)[-2:])
        self._parameter = parameter.reshape(self._shape)
        self._gradient = gradient.reshape(self._shape)
        self._scale = number.type(scale)
        self._number = number

    def _blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        batch, rows, columns = self._shape
        wide = min(columns, BLOCK)
        high = min(rows, max(1, BLOCK // wide))
        deep = max(1, BLOCK // (wide * high))
        for i in range(0, batch, deep):
            for j in range(0, rows, high):
                for k in range(0, columns, wide):
                    yield slice(i, i + deep), slice(j, j + high), slice(k, k + wide)

    def _grad(self, block: tuple[slice, slice, slice]) -> np.ndarray:
        return np.multiply(self._gradient[block], self._scale, dtype=self._number)

    def root_mean_square(self) -> float:
        """Of the parameter."""
        total = 0.0
        for block in self._blocks():
            values = self._parameter[block].astype(self._number, copy=False)
            total += float((values * values).sum())
        return math.sqrt(total / self._parameter.size)

    def means_of_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the gradient, over each row and over each column."""
        batch, rows, columns = self._shape
        row = np.zeros((batch, rows, 1), self._number)
        column = np.zeros((batch, 1, columns), self._number)
        for block in self._blocks():
            i, j, k = block
            squares = self._grad(block)
            squares *= squares
            row[i, j] += squares.sum(axis=-1, keepdims=True)
            column[i, :, k] += squares.sum(axis=-2, keepdims=True)
        row /= columns
        column /= rows
        return row, column

    def _update(
        self, estimate: Any, least: np.floating, block: tuple[slice, slice, slice]
    ) -> np.ndarray:
        denominator = np.maximum(estimate[block], least)
        np.sqrt(denominator, out=denominator)
        update = self._grad(block)
        update /= denominator
        return update

    def root_mean_square_of_update(self, estimate: Any, least: np.floating) -> float:
        """Of the gradient over the root of the estimate of its square, which is at least `least`."""
        total = 0.0
        for block in self._blocks():
            update = self._update(estimate, least, block)
            update *= update
            total += float(update.sum())
        return math.sqrt(total / self._parameter.size)

    def moved(self, estimate: Any, least: np.floating, length: float, kept: float) -> np.ndarray:
        """The parameter, shrunk to `kept` of itself, plus the update times `length`."""
        moved = np.empty_like(self._parameter)
        for block in self._blocks():
            update = self._update(estimate, least, block)
            update *= self._number.type(length)
            values = self._parameter[block].astype(self._number)
            if kept != 1:
                values *= self._number.type(kept)
            values += update
            moved[block] = values
        return moved.reshape(self._original_shape)
