"""What optimizers share that update from the gradients that are there: closure, clipping, unscaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import checks, hyper
from ..nn.utils.clip_grad import norm_and_finite
from . import gradients, hooks, measured, options
from .optimizer import Optimizer

Ending = Callable[[Iterable[partial]], object]
"""What makes the calls that do a step: all that can fail has not, and nothing has been written yet."""


ZERO_GRAD = hyper.flag(False)


class GradientOptimizer(Optimizer):
    """Base of optimizers whose step is one update, computed from the gradients that parameters have.

    A subclass defines `_apply`. For all else see `Optimizer`.
    """

    skipped_steps = 0
    """How many steps were left out, by `skip_nonfinite` or `scaled_step`; not kept in state dicts."""

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        super().__init__(params, defaults)
        self._grad_norm: float | Callable[[], float] | None = None

    @hooks.around
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grads: Any = None,
        max_norm: float | None = None,
        clip_value: float | None = None,
        skip_nonfinite: bool | None = None,
        zero_grad: bool = False,
    ) -> Any:
        """Update every parameter that has a gradient.

        The step looks at every array that it is to use, and either does all that it has to do or
        raises and has done nothing, also if a signal handler raises (Ctrl-C).

        With `max_norm` the gradients of all groups are clipped by their common norm, as
        `clip_grad_norm_` does, but without being written: one pass reads them for the norm, and
        the update applies the factor. `optimizer.grad_norm` is then the norm before clipping.

        Args:
            closure: a function that computes the gradients anew; called once, before the update. It
                returns the loss, if it has assigned the gradients, or `(loss, grads)`. Default: None,
                the gradients are there already.
            grads: the gradients, a tree like the parameters: the same keys, in any order, and None for
                what is to stay as it is. Its leaves are arrays that can be read where they lie (NumPy
                arrays, CPU tensors of torch, JAX arrays, anything with DLPack), read-only or not,
                numbers for shape (), or `SparseGrad`s. They count for this step only, which neither
                reads nor changes what parameters hold in `grad`. Default: None, it is these that count.
            max_norm: the norm that the gradients may have at most, at least 0. Default: None, no
                clipping.
            clip_value: the magnitude that an element of a gradient may have at most, at least 0, as
                `clip_grad_value_` does, but without writing gradients. Default: None, no clipping.
            skip_nonfinite: if a gradient has an inf or a NaN in it, leave the step out, whole:
                parameters, state, step counts and averages stay as they are, `step_skipped` is True,
                and no hook is called afterwards. The closure has been called; gradients stay, so that
                accumulated ones have to be cleared. Leave the schedule's step out, too. Default: None,
                as the groups' option of this name says.
            zero_grad: set the gradients that parameters hold to zero, as `zero_grad(set_to_none=False)`
                does after the step, but where it can be in the pass that reads them, which saves one;
                after a step that is left out as well. They must be writable and dense, each in memory
                of its own, and there is no `grads` then. Default: False.

        Returns:
            The closure's loss, or without a closure the optimizer itself, so that
            `opt.step().clear_grad()` works.

        Raises:
            TypeError, ValueError: `grads` does not fit the parameters; both `grads` and a closure, or
                both `max_norm` and `clip_value`, or a number in a group is impossible; a parameter, a
                gradient or a state buffer does not fit the others any more, cannot be written, or
                shares memory with what the step writes; `zero_grad` with `grads`, or for gradients that
                cannot be set to zero. Nothing has been written.

        Example:
            >>> import numpy as np, genesis
            >>> params = {"W": np.ones((2, 2)), "b": np.zeros(2)}
            >>> opt = genesis.optim.SGD(params, lr=0.5)
            >>> _ = opt.step(grads={"b": np.ones(2), "W": np.ones((2, 2))})
            >>> params["b"]
            array([-0.5, -0.5])
        """
        return self._step(
            closure,
            grads=grads,
            max_norm=max_norm,
            clip_value=clip_value,
            skip_nonfinite=skip_nonfinite,
            zero_grad=zero_grad,
        )

    def scaled_step(
        self,
        inverse_scale: float,
        *,
        grads: Any = None,
        max_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> Any:
        """Update with gradients multiplied by `inverse_scale`, unless one of them is inf or NaN.

        This is what a loss scaler calls (`genesis.amp.GradScaler.step`). One pass reads the
        gradients, for the check and the norm; the update multiplies them; they are not written.

        Args:
            inverse_scale: 1 / the scale of the loss.
            grads: the gradients, as for `step`. Default: None, those that parameters hold.
            max_norm, clip_value: the norm, and the magnitude of an element, that unscaled gradients
                may have at most. Default: None, any.
            zero_grad: set the gradients to zero, as `step` does, also if one is inf or NaN.
                Default: False.

        Returns:
            The optimizer itself; None if the step was left out. `step_skipped` then says so, and
            nothing has changed: no parameter, no state, no step count.
        """
        if not hooks.concern(self):
            self._step(
                grads=grads,
                max_norm=max_norm,
                clip_value=clip_value,
                zero_grad=zero_grad,
                _inverse_scale=inverse_scale,
            )
        elif self._finite_everywhere(norm_and_finite(self._views(grads), inverse_scale)[1]):

            def step(_: Optimizer, **kwargs: Any) -> Any:
                return self._step(**kwargs, _inverse_scale=inverse_scale)

            asked = {"grads": grads, "max_norm": max_norm, "clip_value": clip_value}
            given = {name: value for name, value in asked.items() if value is not None}
            if zero_grad:
                given["zero_grad"] = True
            hooks.call(step, (self,), given)
        else:
            self.leave_out(zero_grad)
        return None if self.step_skipped else self

    def leave_out(self, zero_grad: bool = False) -> None:
        """Count a step as left out, and set the gradients to zero if that was asked for."""
        self.step_skipped = True
        self.skipped_steps += 1
        if zero_grad:
            self.zero_grad(set_to_none=False)

    def _finite_everywhere(self, finite: bool) -> bool:
        """Whether gradients are finite, given whether those of this process are."""
        return finite

    def _views(self, grads: Any) -> list[np.ndarray]:
        """The views of all gradients that there are."""
        given = (
            [[p._grad_view for p in self._parameters()]] if grads is None else self._given(grads)
        )
        return [view for views in given for view in views if view is not None]

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grads: Any = None,
        max_norm: float | None = None,
        clip_value: float | None = None,
        skip_nonfinite: bool | None = None,
        zero_grad: bool = False,
        _inverse_scale: float | None = None,
        _ending: Ending | None = None,
    ) -> Any:
        self.step_skipped = False
        if zero_grad is not False:
            ZERO_GRAD.check("zero_grad", zero_grad)
        if max_norm is not None:
            max_norm = checks.limit("max_norm", max_norm)
        if clip_value is not None:
            clip_value = checks.limit("clip_value", clip_value)
            if max_norm is not None:
                raise ValueError(
                    f"give max_norm or clip_value, but not both: got max_norm={max_norm} and "
                    f"clip_value={clip_value}"
                )
        if skip_nonfinite is not None:
            options.HYPERS["skip_nonfinite"].check("skip_nonfinite", skip_nonfinite)
        result: Any = self
        if closure is not None:
            if not callable(closure):
                raise TypeError(
                    "the closure of step must be a function that computes the gradients, but got "
                    f"{type(closure).__name__}: gradients go in grads=, step(grads=gradients)"
                )
            if grads is not None:
                raise ValueError(
                    "give grads= or a closure, but not both: a closure may return (loss, grads)"
                )
            result, grads = gradients.of_closure(closure())
        if zero_grad and grads is not None:
            raise ValueError(
                "zero_grad=True sets the gradients that parameters hold to zero, but this step was "
                "given others: fill those yourself, array.fill(0)"
            )
        given = None if grads is None else self._given(grads)
        if _inverse_scale is None and self._skips(skip_nonfinite):
            _inverse_scale = 1.0  # what is done for a loss scaler
        self._apply(given, max_norm, clip_value, _inverse_scale, _ending, zeroes=zero_grad)
        if self.step_skipped:
            self.leave_out(zero_grad)
        return result

    def _skips(self, skip_nonfinite: bool | None) -> bool:
        """Whether a step with this argument is left out if a gradient is not finite."""
        return options.skips(self.param_groups) if skip_nonfinite is None else skip_nonfinite

    def _apply(
        self,
        given: list[gradients.Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
        zeroes: bool = False,
    ) -> None:
        """Update every parameter that has a gradient, or raise and have done nothing.

        Args:
            given: for each group the views of its gradients; None, those that parameters hold.
            max_norm, clip_value: see `step`; not both.
            inverse_scale: gradients are multiplied by it first, and if any of them is inf or NaN
                nothing at all is done, which `step_skipped` then says. None: nothing of that.
            ending: makes the calls that do the step, and further ones with them, or raises. Default:
                None, `commit`.
            factor: gradients are multiplied by it. Default: 1.
            zeroes: gradients are set to zero; but not in a step that is left out. Default: False.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _apply")

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last `step(max_norm=...)`, before clipping, else None.

        A step that looks whether gradients are finite knows it, too; where they are not, it is inf or
        NaN. On a GPU, where `step` itself waits for nothing, asking for it waits for the step.
        """
        if callable(self._grad_norm):
            self._grad_norm = self._grad_norm()
        return self._grad_norm

    @property
    def update_norm(self) -> float | None:
        """The norm of the last step's change of all parameters in groups with `measure_updates`.

        That is of what they are after the step minus what they were before, as they are stored, or of
        their masters. 0 after a step that was left out; None if no group measures. No bit depends on
        threads or grouping. On a GPU, where `step` waits for nothing, asking for it waits for the step.

        Example:
            >>> import numpy as np, genesis
            >>> params = {"x": np.array([3.0, 4.0])}
            >>> opt = genesis.optim.SGD(params, lr=0.5, measure_updates=True)
            >>> opt.step(grads={"x": np.array([3.0, 4.0])}).update_norm
            2.5
            >>> opt.update_ratios
            [0.5]
        """
        changes = self._changes()
        return None if changes is None else measured.norm(changes)

    @property
    def update_ratios(self) -> list[float | None] | None:
        """For each group the norm of the last step's change over that of its parameters before it.

        It is inf where all parameters were 0 and some moved, None for a group without
        `measure_updates`. See `update_norm`. About 1e-3 is usual in training; far less is slow.
        """
        changes = self._changes()
        return None if changes is None else measured.ratios(changes)

    def _changes(self) -> measured.Changes | None:
        """What each group has noted in the last step, see `measured`; None if none has."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grad_norm": self.grad_norm}
