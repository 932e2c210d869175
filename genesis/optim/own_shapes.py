"""What per-tensor optimizers share whose state has shapes of its own: by rows, by blocks, projected."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .. import buffers
from ..parameter import Parameter
from .per_tensor import PerTensor, arithmetic


class OwnShapes(PerTensor):
    """Base of those whose buffers have shapes that follow from a parameter and its group's settings.

    A subclass says in `_shapes` which buffers a parameter has, and of what shapes. Only those named in
    `_like_parameter` begin in the parameter's data type; the others, which are small or are divided by,
    do in the type of its arithmetic.
    """

    _like_parameter: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def _state_type(self, name: str, shape: tuple[int, ...], parameter: Parameter) -> np.dtype:
        dtype = parameter._view.dtype
        return dtype if name in self._like_parameter else arithmetic(dtype)

    # What is loaded is checked by the settings of the groups that are loaded with it.

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        groups, owner = super()._loaded_groups(saved_groups)
        self._group_of = {p: group for group in groups for p in group["params"]}
        return groups, owner

    def _state_shape(self, name: str, parameter: Parameter) -> tuple[int, ...]:
        return self._shapes(self._group_of[parameter], parameter).get(name, parameter.shape)

    def _loaded_state(
        self, what: str, parameter: Parameter, entries: dict, block: buffers.Block | None = None
    ) -> dict[str, Any]:
        loaded = super()._loaded_state(what, parameter, entries, block)
        expected = {"step", *self._shapes(self._group_of[parameter], parameter)}
        if loaded and loaded.keys() != expected:
            raise ValueError(
                f"loaded state of {what} has {sorted(loaded)}, but a parameter of shape "
                f"{parameter.shape} keeps {sorted(expected)} with the settings of its group"
            )
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_group_of": {}}
