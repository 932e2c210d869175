"""Schedules that are a function of the user's, one for all groups or one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from types import FunctionType, MethodType
from typing import Any, ClassVar

from ... import checks
from .. import schedules
from ..schedules import Schedule
from .base import AnyOptimizer, LRScheduler, documented, is_optimizer


def function_state(function: Callable | None) -> dict[str, Any] | None:
    """What a snapshot keeps of a callable: an object's attributes; of a function nothing."""
    if isinstance(function, Schedule):
        return {
            name: function_state(value)
            if callable(value)
            else (list(value) if isinstance(value, tuple) else value)
            for name, value in vars(function).items()
        }
    attributes = getattr(function, "__dict__", None)
    if isinstance(function, (FunctionType, MethodType)) or not isinstance(attributes, dict):
        return None
    return deepcopy(attributes)


def with_state(function: Callable, state: dict[str, Any] | None) -> Callable:
    """`function` with the attributes of a snapshot: a schedule is another one then."""
    if not state:
        return function
    if not isinstance(function, Schedule):
        vars(function).update(state)
        return function
    return function.replace(
        **{
            name: with_state(own, state[name]) if callable(own) else state[name]
            for name, own in vars(function).items()
            if name in state
        }
    )


class FunctionLR(LRScheduler):
    """A function of the epoch for each group."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"lr_lambdas"}
    _per_group: ClassVar = {"lr_lambda": "lr_lambdas"}

    def __init__(
        self,
        optimizer: AnyOptimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self.optimizer = is_optimizer(optimizer)
        self.lr_lambdas = self._one_per_group("lr_lambda", lr_lambda, checks.function)
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        states = [function_state(function) for function in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": states}

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = super()._checked(state_dict)
        self._grow_lists()
        saved = len(state["lr_lambdas"])
        if saved > len(self.lr_lambdas):
            raise ValueError(f"state_dict has {saved} lr_lambdas, but {len(self.lr_lambdas)} exist")
        return state

    def _take_over(self, state: dict[str, Any]) -> None:
        saved, functions = state.pop("lr_lambdas"), list(self.lr_lambdas)
        # Schedules go first: one may refuse what it gets, and nothing has changed then.
        for i in sorted(range(len(saved)), key=lambda i: not isinstance(functions[i], Schedule)):
            functions[i] = with_state(functions[i], saved[i])
        self.lr_lambdas = functions
        super()._take_over(state)


@documented()
class LambdaLR(FunctionLR):
    """The initial learning rate times a function of the epoch.

        lr(t) = initial_lr * lr_lambda(t)

    Args:
        lr_lambda: a function from epoch (int) to factor, for example one of
            `genesis.optim.schedules`, or a list of one for each group. One function serves groups
            added later too; a list does not: append to `lr_lambdas`.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
        >>> for epoch in range(3):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.333]
        >>> from genesis.optim.schedules import cosine, warmup
        >>> scheduler = LambdaLR(optimizer, warmup(4, cosine(96), start_factor=0.25))
        >>> scheduler.get_last_lr()
        [0.25]

    Source: `torch.optim.lr_scheduler.LambdaLR`.
    """

    def _next_lrs(self) -> list[float]:
        t = self.last_epoch
        return [lr * float(function(t)) for lr, function in zip(self.base_lrs, self.lr_lambdas)]


@documented()
class MultiplicativeLR(FunctionLR):
    """The learning rate times a function of the epoch, at every epoch after the first.

        lr(t) = lr(t - 1) * lr_lambda(t)

    Args:
        lr_lambda: a function from epoch (int) to factor, or a list of one for each group. One
            function serves groups added later too; a list does not: append to `lr_lambdas`.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = MultiplicativeLR(optimizer, lambda t: 0.5)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.25]

    Source: `torch.optim.lr_scheduler.MultiplicativeLR`.
    """

    def _next_lrs(self) -> list[float]:
        lrs = self._current_lrs()
        if self._is_initial:
            return lrs
        t = self.last_epoch
        return [lr * float(function(t)) for lr, function in zip(lrs, self.lr_lambdas)]


def get_cosine_schedule_with_warmup(
    optimizer: AnyOptimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Linear warm-up from 0 to the initial learning rate, then a cosine down to 0.

        lr(t) = initial_lr * t / W                                       for t < W
        lr(t) = initial_lr * (1 + cos(2 pi num_cycles (t - W) / (T - W))) / 2  from then on

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: W, length of the warm-up in steps; 0 for none.
        num_training_steps: T, all steps, the warm-up included.
        num_cycles: waves of the cosine after the warm-up; 0.5 goes down once. Default: 0.5.
        last_epoch: index of the last step done. Default: -1.

    Returns:
        A `LambdaLR` of `schedules.warmup_cosine`; step it after each batch.

    Raises:
        TypeError, ValueError: an argument is no number, or negative, or the steps are not whole.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = get_cosine_schedule_with_warmup(optimizer, 2, 6)
        >>> for step in range(4):
        ...     print(step, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [0.0]
        1 [0.5]
        2 [1.0]
        3 [0.854]

    Source: `transformers.get_cosine_schedule_with_warmup` of Hugging Face.
    """
    factor = schedules.warmup_cosine(num_warmup_steps, num_training_steps, num_cycles)
    return LambdaLR(optimizer, factor, last_epoch)
