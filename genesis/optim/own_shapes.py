"""What per-tensor optimizers share whose state has shapes of its own: by rows, by blocks, projected."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..parameter import Parameter
from .gradients import Views
from .per_tensor import PerTensor, Work, arithmetic


class OwnShapes(PerTensor):
    """Base of those whose buffers have shapes that follow from a parameter and its group's settings.

    A subclass says in `_kept` which buffers a parameter has, and of what shapes. Only those named in
    `_like_parameter` begin in the parameter's data type; the others, which are small or are divided by,
    do in the type of its arithmetic.
    """

    _like_parameter: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def _kept(self, group: dict[str, Any], parameter: Parameter) -> dict[str, tuple[int, ...]]:
        """The shapes of a parameter's state buffers, by their names."""
        raise NotImplementedError(f"{type(self).__name__} must define _kept")

    # Groups are looked up by parameter, since only a step and the loading of a state dict, which has
    # groups of its own, know which count.

    def _work(self, given: list[Views] | None) -> list[Work]:
        self._set_groups(self.param_groups)
        return super()._work(given)

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        groups, owner = super()._loaded_groups(saved_groups)
        self._set_groups(groups)
        return groups, owner

    def _set_groups(self, groups: list[dict[str, Any]]) -> None:
        self._group_of = {p: group for group in groups for p in group["params"]}

    def _names(self, parameter: Parameter) -> tuple[str, ...]:
        return tuple(self._kept(self._group_of[parameter], parameter))

    def _state_shape(self, name: str, parameter: Parameter) -> tuple[int, ...]:
        kept = self._kept(self._group_of[parameter], parameter)
        return kept.get(name, parameter.shape)

    def _complete(
        self, parameter: Parameter, state: dict[str, Any], counted: tuple[str, ...]
    ) -> None:
        number = arithmetic(parameter._view.dtype)
        for name, shape in self._kept(self._group_of[parameter], parameter).items():
            if name not in state and name not in self._like_parameter:
                state[name] = np.zeros(shape, number)
        super()._complete(parameter, state, counted)

    def _loaded_state(self, what: str, parameter: Parameter, entries: dict) -> dict[str, Any]:
        loaded = super()._loaded_state(what, parameter, entries)
        expected = {"step", *self._names(parameter)}
        if loaded and loaded.keys() != expected:
            raise ValueError(
                f"loaded state of {what} has {sorted(loaded)}, but a parameter of shape "
                f"{parameter.shape} keeps {sorted(expected)} with the settings of its group"
            )
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_group_of": {}}
