"""What optimizers share whose update of an element depends on the whole of its tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import reductions
from ..nn.utils.clip_grad import check_max_norm, norm_and_finite
from ..parameter import Parameter
from . import precision
from .optimizer import Optimizer


class PerTensor(Optimizer):
    """Base of optimizers that work tensor by tensor, in NumPy, where others see one element.

    A subclass names a parameter's state buffers (`_names`) and their shapes (`_state_shape`), which
    begin as zeros of the parameter's data type, and defines `_update`. All that can be wrong is found
    before anything is written.
    """

    def _names(self, parameter: Parameter) -> tuple[str, ...]:
        """The names of the state buffers of a parameter."""
        return self._always

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> None:  # fmt: skip
        """Update a parameter that has elements, and its buffers, in place.

        Args:
            group: the hyper-parameters.
            parameter, gradient: the arrays, of any strides and float types.
            scale: what the gradient is to be multiplied by.
            state: the buffers by name, and the numbers as they are after this update.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _update")

    def _check_all(self, group: dict[str, Any]) -> None:
        refuse_options(self, group)
        super()._check_all(group)

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        super()._check_gradient(group, parameter)
        if parameter.device != "cpu":
            raise ValueError(
                f"{type(self).__name__} works on the CPU, but a parameter is on {parameter.device}: "
                'move them with optimizer.to("cpu")'
            )

    def _step(
        self,
        closure: Callable[[], Any] | None,
        max_norm: float | None,
        inverse_scale: float | None = None,
    ) -> Any:
        self.step_skipped = False
        if max_norm is not None:
            max_norm = check_max_norm(max_norm)
        loss = None if closure is None else closure()
        result = self if closure is None else loss
        work: list[tuple[dict[str, Any], Parameter, np.ndarray, dict[str, Any]]] = []
        for group in self.param_groups:
            self._check_all(group)
            for parameter in group["params"]:
                gradient = parameter._grad_view
                if gradient is not None:
                    self._check_gradient(group, parameter)
                    work.append((group, parameter, gradient, self._completed_state(parameter)))
        factor = 1.0
        if max_norm is not None or inverse_scale is not None:
            factor = inverse_scale or 1.0
            norm, finite = norm_and_finite([gradient for _, _, gradient, _ in work], factor)
            self._grad_norm = norm
            if inverse_scale is not None and not finite:
                self.step_skipped = True
                return result
            if max_norm is not None:
                factor *= reductions.clip_factor(max_norm, norm)
        for group, parameter, gradient, state in work:
            for name in self._numbers:
                state[name] += 1
            if parameter.size:
                scale = -factor if group.get("maximize") else factor
                with np.errstate(all="ignore"):
                    self._update(group, *_plain(parameter._view, gradient, scale, state))
                parameter.changed()
            self.state[parameter] = state
        self._step_count += 1
        return result

    def _completed_state(self, parameter: Parameter) -> dict[str, Any]:
        state = dict(self.state.get(parameter) or {})
        for name in self._numbers:
            state.setdefault(name, 0)
        for name in self._names(parameter):
            if name not in state:
                state[name] = np.zeros(self._state_shape(name, parameter), parameter._view.dtype)
        return state


def _plain(
    parameter: np.ndarray, gradient: np.ndarray, scale: float, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, float, dict[str, Any]]:
    """The same with views in place of arrays of a subclass, such as np.matrix, whose `*` is another."""
    buffers_ = {
        name: np.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in state.items()
    }
    return np.asarray(parameter), np.asarray(gradient), scale, buffers_


def refuse_options(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Raise TypeError if a group sets one of `precision.Options`, which rules alone follow."""
    for name in precision.Options.__annotations__:
        if group.get(name):
            raise TypeError(f"{type(optimizer).__name__} does not support {name}")


def arithmetic(dtype: np.dtype) -> np.dtype:
    """The type of arithmetic on parameters of this type."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def lerp(start: np.ndarray, end: np.ndarray, weight: float) -> np.ndarray:
    """A new array between `start` (weight 0) and `end` (weight 1), rounded as torch does."""
    difference = end - start
    if abs(weight) < 0.5:
        difference *= weight
        difference += start
    else:
        difference *= weight - 1
        difference += end
    return difference
