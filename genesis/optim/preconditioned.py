"""What optimizers share that multiply a gradient, along each of its axes, by a matrix of its own."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import buffers
from ..parameter import Parameter
from . import members
from .per_tensor import PerTensor, Work, arithmetic
from .state import State


class UnusableError(Exception):
    """What a preconditioner cannot be computed from; its text goes on where a title has begun."""


class Preconditioned(PerTensor):
    """Base of optimizers whose state holds matrices, which ones being said by the group's settings.

    A subclass names the kinds of its matrices (`_kinds`) and says in `_matrices` which of them a
    parameter has: their names are a kind, an underscore and numbers. They are kept in the type of the
    arithmetic, since 16 bits hold no orthogonal matrix. What has the parameter's shape (`_like`) is
    kept in its type.

    Which matrices a parameter has is settled when its state begins.
    """

    _kinds: ClassVar[tuple[str, ...]] = ()

    def _matrices(self, group: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple]:
        """The names of the matrices of a parameter of this shape, and their shapes."""
        raise NotImplementedError(f"{type(self).__name__} must define _matrices")

    def _like(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the buffers that have the parameter's shape."""
        return self._always

    def _shapes(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        like = dict.fromkeys(self._like(group), parameter.shape)
        return {**like, **self._matrices(group, parameter.shape)}

    def _state_type(self, name: str, shape: tuple[int, ...], parameter: Parameter) -> np.dtype:
        dtype = parameter._view.dtype
        return arithmetic(dtype) if self._is_matrix(name) else dtype

    def _is_matrix(self, name: str) -> bool:
        return name.partition("_")[0] in self._kinds

    def _complete(
        self, title: str, parameter: Parameter, state: dict[str, Any], counted: tuple[str, ...],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        self._check_matrices(title, state, shapes)
        super()._complete(title, parameter, state, counted, shapes)

    def _check_matrices(
        self, title: str, state: dict[str, Any], shapes: dict[str, tuple[int, ...]]
    ) -> None:
        """Raise ValueError if state has begun, with other matrices than those that there are to be."""
        if not any(buffers.is_array(value) for value in state.values()):
            return
        found, expected = ({*filter(self._is_matrix, names)} for names in (state, shapes))
        if found != expected:
            raise ValueError(
                f"the state of {title} has the matrices {sorted(found)}, but with the settings of its "
                f"group {type(self).__name__} keeps {sorted(expected)}: set the group as it was when "
                "the state began, or begin anew with optimizer.state.pop(parameter)"
            )

    # ---- loading ----

    def _loaded_state(
        self, what: str, parameter: Parameter, entries: dict, block: buffers.Block | None = None
    ) -> dict[str, Any]:
        matrices = {name: value for name, value in entries.items() if self._is_matrix(name)}
        others = {name: value for name, value in entries.items() if name not in matrices}
        loaded = super()._loaded_state(what, parameter, others, block)
        for name, value in matrices.items():
            array = buffers.as_host(value, f"loaded state {name!r} of {what}")
            loaded[name] = buffers.copy_beside(array, parameter._view, block)
        return loaded

    def _read(self, state_dict: dict[str, Any]) -> tuple[list[dict], State]:
        groups, state = super()._read(state_dict)
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        for group in groups:
            for parameter in group["params"]:
                entries = dict(state.get(parameter) or {})
                shapes = self._shapes(group, parameter)
                title = members.label(number[parameter], parameter.name)
                self._check_matrices(f"{title} in the loaded state dict", entries, shapes)
                for name, shape in shapes.items():
                    if name in entries and entries[name].shape != shape:
                        raise ValueError(
                            f"loaded state {name!r} of {title} has shape {entries[name].shape}, but "
                            f"its place has shape {shape}"
                        )
        return groups, state

    # ---- the step ----

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        calls: list[partial] = []
        for each in work:
            # The parameter's number, from which random numbers may follow.
            numbered = each._replace(group={**each.group, "number": number[each.parameter]})
            try:
                calls += self._writes(numbered, factor, clip_value)
            except (UnusableError, np.linalg.LinAlgError) as error:
                title = members.label(number[each.parameter], each.parameter.name)
                raise ValueError(f"{type(self).__name__} cannot update {title}: {error}") from None
        return calls


KEEPS = (
    "which the preconditioner would keep for good. Leave such a step out, as genesis.amp.GradScaler "
    "does, or scale gradients that are too large or too small"
)
ANEW = "mend the state, or begin anew with optimizer.state.pop(parameter)"


def finite(array: np.ndarray, what: str, mend: str = KEEPS) -> np.ndarray:
    """The array; UnusableError if it holds inf or NaN, with what to do about it."""
    # A sum is finite only if all that it sums is; if it overflows, each element is asked.
    if not (math.isfinite(float(array.sum())) or np.isfinite(array).all()):
        raise UnusableError(f"{what} holds inf or NaN, {mend}")
    return array


def gradient_of(gradient: np.ndarray, scale: float, number: np.dtype) -> np.ndarray:
    """The gradient times a scale in the type of the arithmetic, in C order.

    UnusableError if it is not finite.
    """
    scaled = np.empty(gradient.shape, number)
    np.multiply(gradient, scale, out=scaled, casting="unsafe")
    return finite(scaled, "its gradient")


def kept(array: np.ndarray, number: np.dtype) -> np.ndarray:
    """A state buffer in the type of the arithmetic and in C order, not to be written."""
    return np.ascontiguousarray(array, number).reshape(array.shape)


def gram(tensor: np.ndarray, axis: int) -> np.ndarray:
    """The matrix of the products of a tensor's slices along an axis with each other."""
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    return unfolded @ unfolded.T  # NumPy sees the symmetry, and does half of the work


def along(matrix: np.ndarray, tensor: np.ndarray, axis: int) -> np.ndarray:
    """The product of a matrix with each line of a tensor along an axis, in C order."""
    size = tensor.shape[axis]
    if axis == tensor.ndim - 1:
        return (tensor.reshape(-1, size) @ matrix.T).reshape(tensor.shape)
    before = math.prod(tensor.shape[:axis])
    folded = tensor.reshape(before, size, -1)
    product = matrix @ folded[0] if before == 1 else np.matmul(matrix, folded)
    return product.reshape(tensor.shape)
