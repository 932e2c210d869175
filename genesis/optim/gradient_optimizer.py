"""What optimizers share that update from the gradients that are there: closure, clipping, unscaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .. import checks
from ..nn.utils.clip_grad import norm_and_finite
from . import hooks
from .optimizer import Optimizer


class GradientOptimizer(Optimizer):
    """Base of optimizers whose step is one update, computed from the gradients that parameters have.

    A subclass defines `_apply`. For all else see `Optimizer`.
    """

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        super().__init__(params, defaults)
        self._grad_norm: float | Callable[[], float] | None = None

    @hooks.around
    def step(
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None
    ) -> Any:
        """Update every parameter that has a gradient.

        The step looks at every array that it is to use, and either does all that it has to do or
        raises and has done nothing, also if a signal handler raises (Ctrl-C).

        With `max_norm` the gradients of all groups are clipped by their common norm, as
        `clip_grad_norm_` does, but without being written: one pass reads them for the norm, and
        the update applies the factor. `optimizer.grad_norm` is then the norm before clipping.

        Args:
            closure: a function that computes the gradients anew and returns the loss; called once,
                before the update. Default: None, the gradients are there already.
            max_norm: the norm that the gradients may have at most, at least 0. Default: None, no
                clipping.

        Returns:
            The closure's loss, or without a closure the optimizer itself, so that
            `opt.step().clear_grad()` works.

        Raises:
            TypeError, ValueError: `max_norm` or a number in a group is impossible; a parameter, a
                gradient or a state buffer does not fit the others any more, cannot be written, or
                shares memory with what the step writes. Nothing has been written.
        """
        return self._step(closure, max_norm)

    def scaled_step(self, inverse_scale: float, *, max_norm: float | None = None) -> Any:
        """Update with gradients multiplied by `inverse_scale`, unless one of them is inf or NaN.

        This is what a loss scaler calls (`genesis.amp.GradScaler.step`). One pass reads the
        gradients, for the check and the norm; the update multiplies them; they are not written.

        Args:
            inverse_scale: 1 / the scale of the loss.
            max_norm: the norm that unscaled gradients may have at most. Default: None, any.

        Returns:
            The optimizer itself; None if the step was left out. `step_skipped` then says so, and
            nothing has changed: no parameter, no state, no step count.
        """
        if not hooks.concern(self):
            self._step(None, max_norm, inverse_scale)
        elif norm_and_finite(self._gradients(), inverse_scale)[1]:

            def step(_: Optimizer, *, max_norm: float | None = None) -> Any:
                return self._step(None, max_norm, inverse_scale)

            hooks.call(step, (self,), {} if max_norm is None else {"max_norm": max_norm})
        else:
            self.step_skipped = True
        return None if self.step_skipped else self

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        max_norm: float | None = None,
        inverse_scale: float | None = None,
    ) -> Any:
        self.step_skipped = False
        if max_norm is not None:
            max_norm = checks.max_norm(max_norm)
        if closure is None:
            self._apply(max_norm, inverse_scale)
            return self
        loss = closure()
        self._apply(max_norm, inverse_scale)
        return loss

    def _apply(self, max_norm: float | None, inverse_scale: float | None) -> None:
        """Update every parameter that has a gradient, or raise and have done nothing.

        With `inverse_scale` the gradients are multiplied by it first, and if any of them is inf or
        NaN nothing at all is done, which `step_skipped` then says.
        """
        raise NotImplementedError(f"{type(self).__name__} must define _apply")

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last `step(max_norm=...)`, before clipping, else None.

        On a GPU, where `step` itself waits for nothing, asking for it waits for the step.
        """
        if callable(self._grad_norm):
            self._grad_norm = self._grad_norm()
        return self._grad_norm

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_grad_norm": self.grad_norm}
