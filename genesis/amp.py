"""Automatic mixed precision: `autocast`, `cast` and the loss scaler.

float16 has few exponents: gradients below 6e-8 become 0 and above 65504 infinite. So the loss is
multiplied by a scale before the backward pass, and gradients are divided by it before they are used;
a step whose gradients overflowed is left out, and the scale lowered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import buffers, tree
from .nn.utils.clip_grad import norm_and_finite, scale_gradients
from .optim import shown
from .optim.optimizer import Optimizer
from .regions import autocast, checked_type

__all__ = ["GradScaler", "autocast", "cast"]


def cast(nested: Any, dtype: Any) -> Any:
    """Convert the float arrays in a tree, such as nested lists, tuples and dicts.

    Args:
        nested: a tree (see `genesis.tree`); anything but float arrays in it stays as it is.
        dtype: "bfloat16", "float16", or the NumPy type; also "float32" and "float64".

    Returns:
        The same structure with float arrays of that type; an array that has it is not copied.

    Raises:
        ValueError: another dtype.

    Example:
        >>> import numpy as np, genesis
        >>> batch = {"x": np.ones(2), "y": np.array([0, 1])}
        >>> {name: array.dtype for name, array in genesis.amp.cast(batch, "float16").items()}
        {'x': dtype('float16'), 'y': dtype('int64')}
    """
    wide = [t for t in buffers.FLOAT_TYPES if dtype in (t, t.type, t.name)]
    kind = wide[0] if wide else checked_type(dtype)

    def converted(leaf: Any) -> Any:
        is_float = isinstance(leaf, np.ndarray) and leaf.dtype in buffers.FLOAT_TYPES
        return leaf.astype(kind, copy=False) if is_float else leaf

    return tree.map(converted, nested)


_LARGEST = float(np.finfo(np.float32).max)  # gradients may be float32
_READY, _UNSCALED, _STEPPED = "ready", "unscaled", "stepped"


class _Progress(NamedTuple):
    """How far an optimizer is in this update, and whether it found inf.

    The optimizer is held, not named by its id, which a new one may get when it is gone.
    """

    optimizer: Any
    stage: str
    found_inf: bool


class GradScaler:
    r"""Scales the loss so that 16-bit gradients neither vanish nor overflow, and adapts the scale.

    After `growth_interval` updates without inf or NaN the scale is multiplied by `growth_factor`;
    after one with, by `backoff_factor`. `step` gives the optimizer the inverse of the scale to use in
    its own pass: one reduction reads the gradients, for the check and the norm together, and the
    update multiplies them; they are not rewritten unless `unscale_` is called.

    Args:
        init_scale: the scale to begin with, above 0. Default: 65536.
        growth_factor: above 1. Default: 2.
        backoff_factor: between 0 and 1. Default: 0.5.
        growth_interval: a number of updates, at least 1. Default: 2000.
        enabled: False makes everything here do what it would do without a scaler. Default: True.

    Raises:
        ValueError: arguments that are not as above.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2, np.float32))
        >>> opt = genesis.optim.SGD([p], lr=0.1)
        >>> scaler = genesis.amp.GradScaler(init_scale=8.0)
        >>> loss = scaler.scale(1.5)  # its gradient is 8 times too large, too
        >>> p.grad = np.array([8.0, 16.0], np.float16)
        >>> _ = scaler.step(opt)
        >>> scaler.update()
        >>> p.data
        array([0.9, 0.8], dtype=float32)

    References:
        Micikevicius et al.: Mixed precision training. ICLR 2018, https://arxiv.org/abs/1710.03740
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        if enabled:
            _check_scaler(init_scale, growth_factor, backoff_factor, growth_interval)
        self._scale = float(init_scale)
        self._growth_factor = float(growth_factor)
        self._backoff_factor = float(backoff_factor)
        self._growth_interval = growth_interval
        self._growth_tracker = 0
        self._enabled = bool(enabled)
        self._progress: list[_Progress] = []

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss, or a tree of losses, by the scale.

        Args:
            outputs: a number or an array, or a tree of them, such as a list.

        Returns:
            The same structure, scaled. What is float16 or bfloat16 becomes float32, since 65536, the
            default scale, is no float16; float64, float32 and Python numbers stay what they are.

        Example:
            >>> import numpy as np, genesis
            >>> loss = genesis.amp.GradScaler().scale(np.float16(1.5))
            >>> loss.dtype, float(loss)
            (dtype('float32'), 98304.0)
        """
        if not self._enabled:
            return outputs
        return tree.map(self._scaled, outputs)

    def _scaled(self, outputs: Any) -> Any:
        is_numpys = isinstance(outputs, (np.ndarray, np.generic))
        if not is_numpys or outputs.dtype not in buffers.FLOAT_TYPES:
            return outputs * self._scale
        wide = np.dtype(np.float64 if outputs.dtype == np.float64 else np.float32)
        return outputs.astype(wide, copy=False) * wide.type(self._scale)

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place.

        Needed only by code that looks at gradients between backward pass and step.

        Args:
            optimizer: the optimizer.

        Raises:
            RuntimeError: called twice since the last `update`, or after `step`; `LBFGS`.
            TypeError: `optimizer` is none of genesis.
            ValueError: a gradient is float16, in which small values would be lost.
        """
        if not self._enabled:
            return
        stage = self._progress_of(optimizer).stage
        if stage == _UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if stage == _STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(p.grad is not None and p._grad_view.dtype == np.float16 for p in parameters):
            raise ValueError("Attempting to unscale FP16 gradients.")
        gradients = [p.grad for p in parameters if p.grad is not None]
        _, finite = norm_and_finite(gradients, 1 / self._scale)
        scale_gradients(parameters, 1 / self._scale)
        self._note(optimizer, _UNSCALED, not optimizer._finite_everywhere(finite))

    def step(
        self,
        optimizer: Any,
        closure: Callable[[], Any] | None = None,
        *,
        grads: Any = None,
        max_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> Any:
        """Take a step with unscaled gradients, unless one of them is inf or NaN.

        Args:
            optimizer: the optimizer.
            closure: not possible with a scaler that is enabled, as in torch. Default: None.
            grads: the gradients of the scaled loss, as for `optimizer.step`. Default: None, those that
                the parameters hold.
            max_norm, clip_value: clip the common norm, or each element, of the unscaled gradients, as
                `optimizer.step` does. Default: None.
            zero_grad: set the gradients to zero in the same pass, as `optimizer.step` does, also if
                one is inf or NaN. Default: False.

        Returns:
            What `optimizer.step()` returns; None if the step was left out, which
            `optimizer.step_skipped` says too. Then nothing has changed, not even a step count.

        Raises:
            RuntimeError: called twice since the last `update`, or with a closure, or with `grads` after
                `unscale_`; `LBFGS`.
            TypeError: `optimizer` is none of genesis.
        """
        asked = {"grads": grads, "max_norm": max_norm, "clip_value": clip_value}
        asked = {name: value for name, value in asked.items() if value is not None}
        if zero_grad:
            asked["zero_grad"] = True
        if not self._enabled:
            return optimizer.step(closure, **asked)
        progress = self._progress_of(optimizer)
        if closure is not None:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        if progress.stage == _STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if progress.stage == _UNSCALED:
            if grads is not None:
                raise RuntimeError(
                    "unscale_() has unscaled what parameters hold in grad, but step() was given other "
                    "gradients: give them without unscale_(), and max_norm= to clip"
                )
            optimizer.step_skipped = progress.found_inf
            result = None if progress.found_inf else optimizer.step(**asked)
            if progress.found_inf and zero_grad:
                optimizer.zero_grad(set_to_none=False)
        else:
            result = optimizer.scaled_step(1 / self._scale, **asked)
        self._note(optimizer, _STEPPED, optimizer.step_skipped)
        return result

    def _progress_of(self, optimizer: Any) -> _Progress:
        """How far an optimizer is; RuntimeError or TypeError for one that cannot be scaled."""
        scales = hasattr(optimizer, "scaled_step")
        if isinstance(optimizer, Optimizer) and not scales:
            raise RuntimeError(
                f"GradScaler does not support {type(optimizer).__name__}: its search for a step "
                "compares losses and gradients as they are, several times. Call step(closure) with a "
                "closure that does not scale the loss, and compute it in float32 or bfloat16"
            )
        if isinstance(optimizer, type) or not scales:
            raise TypeError(
                "GradScaler needs an optimizer of genesis.optim, but got "
                f"{type(optimizer).__name__}"
            )
        for progress in self._progress:
            if progress.optimizer is optimizer:
                return progress
        return _Progress(optimizer, _READY, False)

    def _note(self, optimizer: Any, stage: str, found_inf: bool) -> None:
        others = [each for each in self._progress if each.optimizer is not optimizer]
        self._progress = [*others, _Progress(optimizer, stage, found_inf)]

    def update(self, new_scale: float | None = None) -> None:
        """Adapt the scale after the steps of all optimizers.

        Args:
            new_scale: set the scale to this instead. Default: None.

        Raises:
            RuntimeError: no optimizer has taken a step or been unscaled since the last `update`.
            ValueError: `new_scale` is not above 0.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            if not 0 < new_scale < np.inf:
                raise ValueError(f"new_scale must be above 0 and finite, but got {new_scale}")
            self._scale = float(new_scale)
        elif not self._progress:
            raise RuntimeError("No inf checks were recorded prior to update.")
        elif any(progress.found_inf for progress in self._progress):
            self._scale *= self._backoff_factor
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self._growth_interval:
                grown = self._scale * self._growth_factor
                if grown <= _LARGEST:
                    self._scale = grown
                self._growth_tracker = 0
        self._progress = []

    def get_scale(self) -> float:
        """The scale; 1.0 if the scaler is not enabled."""
        return self._scale if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether the scaler is enabled."""
        return self._enabled

    def _described(self) -> str:
        if not self._enabled:
            return f"{type(self).__name__}(enabled=False)"
        names = "growth_factor", "backoff_factor", "growth_interval"
        called = shown.called(type(self), {name: getattr(self, f"_{name}") for name in names})
        updates = shown.count(self._growth_tracker, "update")
        return f"{called}: scale {self._scale}, {updates} since it changed"

    __repr__ = shown.never_failing(_described)

    def state_dict(self) -> dict[str, Any]:
        """The scale and what it depends on, with torch's names; empty if not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned.

        Raises:
            RuntimeError: `state_dict` is empty: it comes from a scaler that was not enabled.
            ValueError: entries are missing or impossible. The scaler is as it was.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved "
                "from a disabled instance of GradScaler."
            )
        missing = self.state_dict().keys() - state_dict.keys()
        if missing:
            raise ValueError(f"the state dict of a GradScaler needs {sorted(missing)}")
        names = "scale", "growth_factor", "backoff_factor", "growth_interval"
        values = [state_dict[name] for name in names]
        _check_scaler(*values)
        self._scale, self._growth_factor, self._backoff_factor = map(float, values[:3])
        self._growth_interval = int(values[3])
        self._growth_tracker = int(state_dict["_growth_tracker"])


def _check_scaler(
    init_scale: float, growth_factor: float, backoff_factor: float, growth_interval: int
) -> None:
    if not 0 < init_scale < np.inf:
        raise ValueError(f"init_scale must be above 0 and finite, but got {init_scale}")
    if not growth_factor > 1.0:
        raise ValueError(f"The growth factor must be > 1.0, but got {growth_factor}")
    if not 0 < backoff_factor < 1.0:
        raise ValueError(f"The backoff factor must be between 0 and 1.0, but got {backoff_factor}")
    if isinstance(growth_interval, bool) or int(growth_interval) != growth_interval:
        raise ValueError(f"growth_interval must be a whole number, but got {growth_interval!r}")
    if growth_interval < 1:
        raise ValueError(f"growth_interval must be at least 1, but got {growth_interval}")
