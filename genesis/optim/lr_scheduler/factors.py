"""Schedules that are one factor, the same for all groups.

Each has torch's two forms: `lr(t) = lr(t - 1) * ratio(t)` for `step()`, which leaves room for other
schedulers and for changes by hand, and `initial_lr * factor(t)`, the schedule of the same name in
`genesis.optim.schedules`. The ratio is written out, and not computed as `factor(t) / factor(t - 1)`,
as it is to be torch's to the last bit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .. import schedules
from .base import AnyOptimizer, LRScheduler, documented, is_optimizer


class FactorLR(LRScheduler):
    """A schedule in both forms, which agree as long as nobody else changes the learning rate."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"_schedule"}

    def __init__(
        self,
        optimizer: AnyOptimizer,
        schedule: schedules.Schedule,
        last_epoch: int = -1,
        *,
        current_epoch: int | None = None,
    ):
        is_optimizer(optimizer)
        self._schedule = schedule
        for name, value in vars(schedule).items():
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        super().__init__(optimizer, last_epoch, current_epoch=current_epoch)

    def _ratio(self, t: int) -> float:
        """`lr(t) / lr(t - 1)`."""
        raise NotImplementedError

    def _next_lrs(self) -> list[float]:
        ratio = self._ratio(self.last_epoch)
        return [float(group["lr"]) * ratio for group in self.optimizer.param_groups]

    def _get_closed_form_lr(self) -> list[float]:
        # The attributes count: a snapshot or the user may have changed them.
        given = {name: getattr(self, name) for name in vars(self._schedule)}
        factor = self._schedule.replace(**given)(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]


@documented(schedules.exponential)
class ExponentialLR(FactorLR):
    """Decay by `gamma` at every epoch.

        lr(t) = initial_lr * gamma^t

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = ExponentialLR(optimizer, gamma=0.5)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.25]

    Source: `torch.optim.lr_scheduler.ExponentialLR`.
    """

    gamma: float

    def __init__(self, optimizer: AnyOptimizer, gamma: float, last_epoch: int = -1):
        super().__init__(optimizer, schedules.exponential(gamma), last_epoch)

    def _ratio(self, t: int) -> float:
        return 1.0 if self._is_initial else self.gamma


@documented(schedules.step)
class StepLR(FactorLR):
    """Decay by `gamma` every `step_size` epochs.

        lr(t) = initial_lr * gamma^floor(t / step_size)

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [1.0]
        2 [0.5]

    Source: `torch.optim.lr_scheduler.StepLR`.
    """

    step_size: int
    gamma: float

    def __init__(
        self, optimizer: AnyOptimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        super().__init__(optimizer, schedules.step(step_size, gamma), last_epoch)

    def _ratio(self, t: int) -> float:
        return self.gamma if t and t % self.step_size == 0 else 1.0


@documented(schedules.multistep)
class MultiStepLR(FactorLR):
    """Decay by `gamma` at each milestone.

        lr(t) = initial_lr * gamma^(number of milestones <= t)

    Args:
        current_epoch: MegEngine's name for `last_epoch`. Default: None.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = MultiStepLR(optimizer, [1, 3], gamma=0.5)
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.5]
        3 [0.25]

    Source: `torch.optim.lr_scheduler.MultiStepLR`, `megengine.optimizer.MultiStepLR`.
    """

    milestones: list[int]
    gamma: float

    def __init__(
        self,
        optimizer: AnyOptimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        current_epoch: int | None = None,
    ):
        schedule = schedules.multistep(milestones, gamma)
        super().__init__(optimizer, schedule, last_epoch, current_epoch=current_epoch)

    def _ratio(self, t: int) -> float:
        passed = bisect_right(self.milestones, t)
        return self.gamma ** (passed - bisect_left(self.milestones, t, 0, passed))

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        # torch saves how often each milestone comes; a list survives JSON, an int as key does not.
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get("milestones"), Mapping):
            counts = state_dict["milestones"].items()
            milestones = sorted(int(epoch) for epoch, n in counts for _ in range(n))
            state_dict = {**state_dict, "milestones": milestones}
        return super()._checked(state_dict)


@documented(schedules.constant)
class ConstantLR(FactorLR):
    """A smaller learning rate for the first `total_iters` epochs.

        lr(t) = initial_lr * (factor if t < total_iters else 1)

    A group added before `total_iters` has its own learning rate divided by `factor` there, as every
    group has. With `total_iters=0` there is no epoch at which `step()` could do so: as in torch,
    the factor, applied at epoch 0, stays; only `step(epoch)` follows the formula then.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = ConstantLR(optimizer, 0.5, total_iters=2)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [0.5]
        1 [0.5]
        2 [1.0]

    Source: `torch.optim.lr_scheduler.ConstantLR`.
    """

    factor: float
    total_iters: int

    def __init__(
        self,
        optimizer: AnyOptimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        super().__init__(optimizer, schedules.constant(factor, total_iters), last_epoch)

    def _ratio(self, t: int) -> float:
        if t == 0:
            return self.factor
        return 1.0 / self.factor if t == self.total_iters else 1.0

    def _next_lrs(self) -> list[float]:
        if self.factor == 0 and self.last_epoch == self.total_iters > 0:
            return list(self.base_lrs)  # no ratio leads away from 0
        return super()._next_lrs()


@documented(schedules.linear)
class LinearLR(FactorLR):
    """A line from `start_factor` to `end_factor` over `total_iters` epochs: the usual warm-up.

        lr(t) = initial_lr * (start_factor + (end_factor - start_factor) * min(t / total_iters, 1))

    A group added during a warm-up grows by the same ratios from the learning rate that it has, and
    so ends above it: give it the learning rate of its place in the warm-up.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = LinearLR(optimizer, 0.5, total_iters=2)
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [0.5]
        1 [0.75]
        2 [1.0]
        3 [1.0]

    Source: `torch.optim.lr_scheduler.LinearLR`.
    """

    start_factor: float
    end_factor: float
    total_iters: int

    def __init__(
        self,
        optimizer: AnyOptimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        schedule = schedules.linear(start_factor, end_factor, total_iters)
        super().__init__(optimizer, schedule, last_epoch)

    def _ratio(self, t: int) -> float:
        if t == 0:
            return self.start_factor
        if self._is_initial or t > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (t - 1) * rise)


@documented(schedules.polynomial)
class PolynomialLR(FactorLR):
    """Decay to 0 along a power of the remaining time.

        lr(t) = initial_lr * (1 - min(t / total_iters, 1))^power

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = PolynomialLR(optimizer, 2, power=2)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.25]
        2 [0.0]

    Source: `torch.optim.lr_scheduler.PolynomialLR`.
    """

    total_iters: int
    power: float

    def __init__(
        self,
        optimizer: AnyOptimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
    ):
        super().__init__(optimizer, schedules.polynomial(total_iters, power), last_epoch)

    def _ratio(self, t: int) -> float:
        if self._is_initial or t > self.total_iters:
            return 1.0
        left = 1.0 - t / self.total_iters
        return (left / (1.0 - (t - 1) / self.total_iters)) ** self.power
