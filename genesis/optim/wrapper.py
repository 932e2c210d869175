"""What optimizers share that work through another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

from ..parameter import Parameter
from . import hooks, measured, shown
from .gradient_optimizer import Ending, GradientOptimizer
from .state import State


class Wrapper(GradientOptimizer):
    """Base of optimizers that work through another one, whose contract they keep.

    Groups, state, defaults and devices are the inner optimizer's, so that schedulers, loss scaling and
    edits of groups work as if it were alone. Hooks of the wrapper are called around its step, those of
    the inner optimizer around the step that this makes of it, and hooks for every optimizer once.

    A state dict is the inner optimizer's, with one more entry under the wrapper's name. So the inner
    optimizer can load it by itself, and wrappers can be wrapped.

    A subclass defines `_step` by `_inner_step`, and its own part of state dicts.

    Args:
        optimizer: the inner optimizer, of `genesis.optim` or made by `genesis.rule`, or a wrapper.

    Attributes:
        optimizer: as given. Its own `step` goes past the wrapper.

    Raises:
        TypeError: `optimizer` is no such optimizer, or one that evaluates the loss itself (`LBFGS`).
    """

    _key: ClassVar[str]
    """The name of the wrapper's own entry in state dicts."""

    def __init__(self, optimizer: GradientOptimizer):
        title = type(self).__name__
        if not isinstance(optimizer, GradientOptimizer):
            hint = (
                "make it first, for example genesis.optim.AdamW(params, lr=1e-3)"
                if isinstance(optimizer, type) or not hasattr(optimizer, "step")
                else "one whose step is a single update from gradients is needed"
            )
            raise TypeError(
                f"{title} works through an optimizer of genesis.optim, but got "
                f"{optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__}: "
                f"{hint}"
            )
        if any(type(each) is type(self) for each in _through(optimizer)):
            raise TypeError(f"{title} works through a {title} already: once will do")
        self.optimizer = optimizer
        self._hooks = None
        self._matching = None
        self._take_declarations()

    def _take_declarations(self) -> None:
        """Let schedulers find what the inner optimizer declares."""
        self._hypers = self.optimizer._hypers  # type: ignore[misc]
        self._options = self.optimizer._options  # type: ignore[misc]

    # ---- what is the inner optimizer's ----

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The inner optimizer's groups."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The inner optimizer's defaults."""
        return self.optimizer.defaults

    @property
    def state(self) -> State:
        """The inner optimizer's state."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Mapping[Parameter, Mapping[str, Any]]) -> None:
        self.optimizer.state = state  # type: ignore[assignment]

    @property
    def _state(self) -> State:  # type: ignore[override]
        return self.optimizer._state

    @property
    def _step_count(self) -> int:  # type: ignore[override]
        return self.optimizer._step_count

    @property
    def grad_norm(self) -> float | None:
        """The norm of gradients at the inner optimizer's last `step(max_norm=...)`, else None."""
        return self.optimizer.grad_norm

    @property
    def skipped_steps(self) -> int:  # type: ignore[override]
        """How many steps the inner optimizer has left out, see `GradientOptimizer`."""
        return self.optimizer.skipped_steps

    @skipped_steps.setter
    def skipped_steps(self, count: int) -> None:
        self.optimizer.skipped_steps = count

    def _changes(self) -> measured.Changes | None:
        return self.optimizer._changes()

    def _finite_everywhere(self, finite: bool) -> bool:
        return self.optimizer._finite_everywhere(finite)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    add_param_group.__doc__ = GradientOptimizer.add_param_group.__doc__

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    zero_grad.__doc__ = GradientOptimizer.zero_grad.__doc__

    def to(self, device: str) -> Wrapper:
        self.optimizer.to(device)
        return self

    to.__doc__ = GradientOptimizer.to.__doc__

    # ---- the step ----

    def _inner_step(
        self, closure: Callable[[], Any] | None, ending: Ending | None, **given: Any
    ) -> Any:
        """A step of the inner optimizer, with its own hooks; what it returns, or this optimizer.

        Args:
            closure, given: as for `_step`.
            ending: see `_apply`.
        """
        inner = self.optimizer
        scale = given.pop("_inverse_scale", None)
        if given.get("zero_grad") is False:
            del given["zero_grad"]  # hooks see what was asked for

        def step(_: Any, *args: Any, **kwargs: Any) -> Any:
            return inner._step(*args, **kwargs, _inverse_scale=scale, _ending=ending)

        asked = {name: value for name, value in given.items() if value is not None}
        arguments = (inner,) if closure is None else (inner, closure)
        result = hooks.call(step, arguments, asked, within=True)
        self.step_skipped = inner.step_skipped
        return self if result is inner else result

    # ---- snapshots ----

    def _snapshot(self) -> dict[str, Any]:
        snapshot = self.optimizer.state_dict()
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        return {**snapshot, self._key: self._own_snapshot(number)}

    def _own_snapshot(self, number: dict[Parameter, int]) -> dict[str, Any]:
        """The wrapper's own entry of a state dict, in which parameters go by these numbers."""
        raise NotImplementedError(f"{type(self).__name__} must define _own_snapshot")

    def _taking_over(self, state_dict: dict[str, Any]) -> list[partial]:
        own = state_dict.get(self._key)
        if not isinstance(own, dict):
            raise ValueError(
                f"loaded state dict has no {self._key!r}: was it saved by another optimizer than "
                f"{type(self).__name__}? To go on from one of {type(self.optimizer).__name__}, load it "
                "into that before it is wrapped"
            )
        inner = {name: value for name, value in state_dict.items() if name != self._key}
        actions = self.optimizer._loading(inner)
        _, owner = self._loaded_groups(inner["param_groups"])
        return [*actions, *self._taking_over_own(own, owner)]

    def _taking_over_own(self, own: dict[str, Any], owner: dict[Any, Parameter]) -> list[partial]:
        """The calls, for `commit`, that take over the wrapper's own entry of a state dict."""
        raise NotImplementedError(f"{type(self).__name__} must define _taking_over_own")

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        return self.optimizer._loaded_groups(saved_groups)

    def _loaded(self) -> None:
        self.optimizer._loaded()
        super()._loaded()

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_hypers", "_options")}
        return {**kept, "_hooks": None, "_matching": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_declarations()

    def _shown(self) -> str:
        """The wrapper in one line: its own settings, and the optimizer that it works through."""
        settings = "".join(f", {name}={shown.value(value)}" for name, value in self._settings())
        return f"{type(self).__name__}({self.optimizer!r}{settings})"

    def _settings(self) -> Iterable[tuple[str, Any]]:
        """The wrapper's own settings, by name."""
        return ()

    __repr__ = shown.never_failing(_shown)


def _through(optimizer: Any) -> Iterable[Any]:
    """An optimizer, and those through which it works."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)
