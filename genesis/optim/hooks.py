"""Functions that users hang into an optimizer's step, state_dict and load_state_dict."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

_numbers = itertools.count()


class RemovableHandle:
    """What registering a hook returns: `remove()` takes the hook out again.

    It is a context manager too, which removes the hook at the end of the block.
    """

    def __init__(self, hooks: HookList):
        self._hooks = hooks
        self.id = next(_numbers)

    def remove(self) -> None:
        """Take the hook out; a second call does nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class HookList(dict):
    """Hooks by number, in the order in which they are called."""

    def add(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Register a hook after those that are there, or with `prepend` before them."""
        if not callable(hook):
            raise TypeError(f"a hook must be callable, but got {type(hook).__name__}")
        handle = RemovableHandle(self)
        others = dict(self)
        self[handle.id] = hook
        if prepend:
            for number in others:
                self[number] = self.pop(number)
        return handle


class Hooks:
    """The hooks of one optimizer."""

    def __init__(self) -> None:
        self.step_pre = HookList()
        self.step_post = HookList()
        self.state_dict_pre = HookList()
        self.state_dict_post = HookList()
        self.load_pre = HookList()
        self.load_post = HookList()


every_step_pre = HookList()
every_step_post = HookList()


def concern(optimizer: Any) -> bool:
    """Whether there may be hooks for this optimizer's steps."""
    return optimizer._hooks is not None or bool(every_step_pre) or bool(every_step_post)


def call(step: Callable, args: tuple, kwargs: dict[str, Any], *, within: bool = False) -> Any:
    """`step(*args, **kwargs)` with hooks; the first of `args` is the optimizer.

    After a step that was left out no hook is called. A step `within` one of another optimizer, which
    wraps this one, has the optimizer's own hooks only.
    """
    optimizer = args[0]
    own = optimizer._hooks or Hooks()
    every_pre, every_post = ({}, {}) if within else (every_step_pre, every_step_post)
    for hook in [*every_pre.values(), *own.step_pre.values()]:
        changed = hook(optimizer, args, kwargs)
        if changed is None:
            continue
        if not isinstance(changed, tuple) or len(changed) != 2:
            raise RuntimeError(
                f"a step hook must return None or a tuple of (new_args, new_kwargs), but got "
                f"{changed!r}"
            )
        args, kwargs = changed
    result = step(*args, **kwargs)
    if not optimizer.step_skipped:
        for hook in [*own.step_post.values(), *every_post.values()]:
            hook(optimizer, args, kwargs)
    return result


_Step = TypeVar("_Step", bound=Callable)


def around(step: _Step) -> _Step:
    """The method `step` with hooks, which see its arguments just as they were given, but for Nones.

    Without hooks it is the method `_step`, called directly since that is most of all calls. Usual
    arguments are named here: to pack and unpack them costs as much as half of a small step.
    """

    @functools.wraps(step)
    def hooked(
        self: Any,
        *args: Any,
        grads: Any = None,
        max_norm: Any = None,
        clip_value: Any = None,
        **others: Any,
    ) -> Any:
        if not (args or others or self._hooks is not None or every_step_pre or every_step_post):
            if grads is None and max_norm is None and clip_value is None:
                return self._step()
            if clip_value is None:
                return self._step(grads=grads, max_norm=max_norm)
        named = {"grads": grads, "max_norm": max_norm, "clip_value": clip_value}
        kwargs = {**others, **{name: value for name, value in named.items() if value is not None}}
        if self._hooks is not None or every_step_pre or every_step_post:
            return call(step, (self, *args), kwargs)
        return self._step(*args, **kwargs)

    return cast(_Step, hooked)


def register_optimizer_step_pre_hook(hook: Callable[[Any, tuple, dict], Any]) -> RemovableHandle:
    """Call `hook` before every step of every optimizer, before the optimizer's own hooks.

    Args:
        hook: a function `(optimizer, args, kwargs)`; it may return other `(args, kwargs)`. The
            first of `args` is the optimizer.

    Returns:
        A handle whose `remove()` takes the hook out again.

    Example:
        >>> import numpy as np, genesis
        >>> hook = lambda optimizer, args, kwargs: print(type(optimizer).__name__)
        >>> handle = genesis.optim.register_optimizer_step_pre_hook(hook)
        >>> _ = genesis.optim.SGD([np.ones(3)], lr=0.1).step(grads=[np.ones(3)])
        SGD
        >>> handle.remove()
    """
    return every_step_pre.add(hook)


def register_optimizer_step_post_hook(hook: Callable[[Any, tuple, dict], Any]) -> RemovableHandle:
    """Call `hook` after every step of every optimizer, after the optimizer's own hooks.

    Args:
        hook: a function `(optimizer, args, kwargs)`; what it returns is not used.

    Returns:
        A handle whose `remove()` takes the hook out again.

    Example:
        >>> import numpy as np, genesis
        >>> hook = lambda optimizer, args, kwargs: print("stepped")
        >>> with genesis.optim.register_optimizer_step_post_hook(hook):
        ...     _ = genesis.optim.SGD([np.ones(3)], lr=0.1).step(grads=[np.ones(3)])
        stepped
    """
    return every_step_post.add(hook)
