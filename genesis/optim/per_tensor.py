"""What optimizers share whose update of an element depends on the whole of its tensor."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import buffers, hyper
from ..commit import assign, prepared
from ..kernels import reductions
from ..nn.utils.clip_grad import norm_and_finite
from ..parameter import Parameter
from . import arrays, members, options
from .gradient_optimizer import Ending, GradientOptimizer
from .gradients import Views


class PerTensor(GradientOptimizer):
    """Base of optimizers that work tensor by tensor, in NumPy, where others see one element.

    A subclass names a parameter's state buffers (`_names`) and their shapes (`_state_shape`), or both
    where they depend on the group's settings (`_shapes`). They begin as zeros of the parameter's data
    type. And it defines `_update`.

    A step is complete or has not begun: all that can be wrong with arrays and numbers is found first,
    then what parameters and state are to hold is computed into new arrays, for all tensors of all
    groups, and the last thing to happen is that all of it is written at once. This costs the memory
    of one more copy of parameters and state while a step lasts; a subclass whose kernels can do
    without defines `_updates` instead of `_update`.
    """

    _options = {"skip_nonfinite": options.HYPERS["skip_nonfinite"]}  # noqa: RUF012

    def _names(self, parameter: Parameter) -> tuple[str, ...]:
        """The names of the state buffers of a parameter."""
        return self._always

    def _shapes(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        """The names of the state buffers of a parameter, and their shapes."""
        return {name: self._state_shape(name, parameter) for name in self._names(parameter)}

    def _update(
        self, group: dict[str, Any], parameter: np.ndarray, gradient: np.ndarray, scale: float,
        state: dict[str, Any],
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
        """What a parameter that has elements, and its buffers, hold after an update.

        Args:
            group: the hyper-parameters.
            parameter, gradient: the arrays, of any strides and float types; not to be written.
            scale: what the gradient is to be multiplied by.
            state: the buffers by name, not to be written, and the numbers as they are after this
                update.

        Returns:
            A new array for the parameter and one for each of its buffers, of their shapes and any
            float type.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _update")

    def _apply(
        self,
        given: list[Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
        zeroes: bool = False,
    ) -> None:
        for number, group in enumerate(self.param_groups):
            self._check_group(group, number)
        work = self._work(given, zeroes)
        if not work and self._parameters():
            self._say_no_gradients()
        if max_norm is not None or inverse_scale is not None:
            factor *= inverse_scale or 1.0
            norm, finite = norm_and_finite([each.gradient for each in work], factor)
            self._grad_norm = norm
            if inverse_scale is not None and not finite:
                self.step_skipped = True
                return
            if max_norm is not None:
                factor *= reductions.clip_factor(max_norm, norm)
        for each in work:
            for name in each.counted:
                each.state[name] += 1
            each.parameter.changed()
        writes = self._updates([each for each in work if each.parameter.size], factor, clip_value)
        actions = [
            self.state.updating({each.parameter: each.state for each in work}),
            *writes,
            *(arrays.erasing(each.gradient) for each in work if zeroes),
            partial(setattr, self, "_step_count", self._step_count + 1),
        ]
        prepared(actions)() if ending is None else ending(actions)

    def _work(self, given: list[Views] | None, zeroes: bool = False) -> list[Work]:
        """What there is to do for the parameters that have gradients, every array verified.

        With `zeroes` gradients must be such that they can be set to zero.
        """
        work: list[Work] = []
        written: list[arrays.Used] = []
        others: list[arrays.Used] = []
        erased: list[tuple[str, np.ndarray]] = []
        everyone: list[tuple[dict[str, Any], Parameter, Any, str | None]] = []
        for i, group in enumerate(self.param_groups):
            parameters = list(group["params"])
            members.check_parameters(parameters)
            views = [p._grad_view for p in parameters] if given is None else given[i]
            called = members.names(group, parameters)
            everyone += [(group, *each) for each in zip(parameters, views, called)]
        for number, (group, parameter, gradient, name) in enumerate(everyone):
            title, shape = members.label(number, name), parameter.shape
            if gradient is not None:
                self._check_gradient(group, gradient)
                if parameter.device != "cpu":
                    raise ValueError(
                        f"{type(self).__name__} works on the CPU, but {title} is on "
                        f'{parameter.device}: move them with optimizer.to("cpu")'
                    )
                others.append(arrays.Used(f"the gradient of {title}", gradient, shape))
                if zeroes:
                    arrays.erasable(gradient, title)
                    erased.append((title, gradient))
            # A parameter without gradient stays as it is, as does its state: nothing may lie there.
            used = others if gradient is None else written
            used.append(arrays.Used(title, parameter._view, shape, parameter.device))
            state = dict(self.state.get(parameter) or {})
            shapes = self._shapes(group, parameter)
            for name, expected in shapes.items():
                if name in state:
                    what = f"state {name!r} of {title}"
                    used.append(arrays.Used(what, state[name], expected, parameter.device))
            if gradient is not None:
                scheduled = hyper.scheduled(self._hypers, group)
                counted = self._numbers or (("step",) if scheduled else ())
                self._complete(title, parameter, state, counted, shapes)
                settings = hyper.at(self._hypers, group, scheduled, state.get("step", 0))
                work.append(Work(settings, parameter, gradient, state, counted))
        arrays.usable(written, others)
        arrays.apart_if_erased(erased)
        return work

    def _complete(
        self, title: str, parameter: Parameter, state: dict[str, Any], counted: tuple[str, ...],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:  # fmt: skip
        """Begin what the state of the parameter of this title does not hold yet."""
        for name in counted:
            state.setdefault(name, 0)
        for name, shape in shapes.items():
            if name not in state:
                state[name] = np.zeros(shape, self._state_type(name, shape, parameter))

    def _state_type(self, name: str, shape: tuple[int, ...], parameter: Parameter) -> np.dtype:
        """The data type in which a state buffer begins."""
        return parameter._view.dtype

    def _updates(self, work: list[Work], factor: float, clip_value: float | None) -> list[partial]:
        """The calls, for `commit`, that write parameters and their buffers, all of which have elements.

        Args:
            work: what there is to do; not to be written before.
            factor: what gradients are multiplied by.
            clip_value: the largest magnitude that their elements may then have; None, any.
        """
        return [call for each in work for call in self._writes(each, factor, clip_value)]

    def _writes(self, work: Work, factor: float, clip_value: float | None) -> list[partial]:
        """The calls that write one parameter and its buffers."""
        array, gradient = work.parameter._view.view(np.ndarray), work.gradient.view(np.ndarray)
        if clip_value is not None:
            kind = arithmetic(array.dtype).type
            with np.errstate(all="ignore"):
                scaled = gradient.astype(kind) * kind(factor)
                gradient, factor = np.clip(scaled, -kind(clip_value), kind(clip_value)), 1.0
        state = {
            name: value.view(np.ndarray) if buffers.is_array(value) else value
            for name, value in work.state.items()
        }
        scale = -factor if work.group.get("maximize") else factor
        with np.errstate(all="ignore"):
            following, buffers_ = self._update(work.group, array, gradient, scale, state)
            return [
                assign(array, following),
                *(assign(state[name], buffer) for name, buffer in buffers_.items()),
            ]


class Work(NamedTuple):
    """One parameter's update: the settings for it, its gradient, and its state as it is to become."""

    group: dict[str, Any]
    parameter: Parameter
    gradient: np.ndarray
    state: dict[str, Any]
    counted: tuple[str, ...]


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
