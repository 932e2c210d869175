"""Schedules that end at a given learning rate: along a cosine, again and again, or from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from ...checks import choice, integer, number
from ..schedules import half_cosine, restarts
from .base import AnyOptimizer, LRScheduler, documented, is_optimizer


@documented()
class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial learning rate to `eta_min`, and, if stepped on, up again.

        lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi t / T_max)) / 2

    Args:
        T_max: epochs from the highest to the lowest point, at least 1.
        eta_min: lowest learning rate, at least 0. Default: 0.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = CosineAnnealingLR(optimizer, T_max=4)
        >>> for epoch in range(5):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.854]
        2 [0.5]
        3 [0.146]
        4 [0.0]

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", without
    the restarts, https://arxiv.org/abs/1608.03983.
    """

    def __init__(
        self, optimizer: AnyOptimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        self.T_max = integer("T_max", T_max, 1)
        self.eta_min = number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    def _next_lrs(self) -> list[float]:
        t, T, low = self.last_epoch, self.T_max, self.eta_min
        lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        if self._is_initial:
            return lrs
        if (t - 1 - T) % (2 * T) == 0:  # at the lowest point there is no ratio: the first step up
            rise = 1 - math.cos(math.pi / T)
            return [lr + (base - low) * rise / 2 for lr, base in zip(lrs, self.base_lrs)]
        ratio = (1 + math.cos(math.pi * t / T)) / (1 + math.cos(math.pi * (t - 1) / T))
        return [ratio * (lr - low) + low for lr in lrs]

    def _get_closed_form_lr(self) -> list[float]:
        low, factor = self.eta_min, half_cosine(self.last_epoch, self.T_max)
        return [low + (lr - low) * factor for lr in self.base_lrs]


@documented()
class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from the initial learning rate to `eta_min`, started again and again.

        lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi T_cur / T_i)) / 2

    `T_cur` counts epochs since the last restart, `T_i` is the length of the current period.

    Args:
        T_0: length of the first period in epochs, at least 1.
        T_mult: how many times as long as the one before each period is, at least 1. Default: 1.
        eta_min: lowest learning rate, at least 0. Default: 0.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
        >>> for epoch in range(5):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [1.0]
        3 [0.854]
        4 [0.5]

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    https://arxiv.org/abs/1608.03983.
    """

    def __init__(
        self,
        optimizer: AnyOptimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        self.T_0 = integer("T_0", T_0, 1)
        self.T_i: float = self.T_0
        self.T_mult = integer("T_mult", T_mult, 1)
        self.eta_min = number("eta_min", eta_min)
        self.T_cur: float = integer("last_epoch", last_epoch, -1)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Go to the next epoch, or to `epoch`.

        Args:
            epoch: where to go, at least 0. It may be a fraction, for a step after each batch:
                `scheduler.step(epoch + batch / batches)`. Default: None, the next epoch.

        Raises:
            TypeError, ValueError: `epoch` is no number, or negative.
        """
        if self._steps_before is not None:
            self._check_order()
        self._advance(None if epoch is None else number("epoch", epoch))

    def _advance(self, epoch: float | None = None, counted: bool = True) -> None:
        before = self.T_cur, self.T_i
        if epoch is None and self.last_epoch >= 0:
            self.T_cur += 1
        else:
            self.T_cur, self.T_i = epoch or 0, self.T_0
        if self.T_cur >= self.T_i:
            self.T_cur, self.T_i = restarts(self.T_cur, self.T_i, self.T_mult)
        try:
            super()._advance(None if epoch is None else math.floor(epoch), counted)
        except BaseException:
            self.T_cur, self.T_i = before
            raise

    def _next_lrs(self) -> list[float]:
        low, factor = self.eta_min, half_cosine(self.T_cur, self.T_i)
        return [low + (lr - low) * factor for lr in self.base_lrs]


@documented()
class SWALR(LRScheduler):
    """Anneal to a constant learning rate, for stochastic weight averaging, and stay there.

        lr(t) = (1 - a) * lr(0) + a * swa_lr
        a = (1 - cos(pi s)) / 2  or  a = s,  s = min(t / anneal_epochs, 1)

    Each group gets "swa_lr". `lr(0)` is what the other schedulers would have given: the recursion
    works it out from the current learning rate, so this one may follow any other.

    Args:
        swa_lr: the learning rate to reach, at least 0, or a list of one for each group. One value
            serves groups added later too; after a list, a new group has to bring its "swa_lr".
        anneal_epochs: length of the way there in epochs; 0 goes at once. Default: 10.
        anneal_strategy: "cos" or "linear". Default: "cos".

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = SWALR(optimizer, 0.5, anneal_epochs=2, anneal_strategy="linear")
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.75]
        2 [0.5]
        3 [0.5]

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    https://arxiv.org/abs/1803.05407.
    """

    _per_group: ClassVar = {"swa_lr": None}

    def __init__(
        self,
        optimizer: AnyOptimizer,
        swa_lr: float | Sequence[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ):
        self.optimizer = is_optimizer(optimizer)
        self._anneal_strategy = choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.anneal_epochs = integer("anneal_epochs", anneal_epochs, 0)
        last_epoch = integer("last_epoch", last_epoch, -1)
        for group, value in zip(optimizer.param_groups, self._one_per_group("swa_lr", swa_lr)):
            group["swa_lr"] = value
        super().__init__(optimizer, last_epoch)

    def _weight(self, step: int) -> float:
        """The weight of `swa_lr` after `step` steps."""
        part = max(0.0, min(1.0, step / max(1, self.anneal_epochs)))
        return part if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * part)) / 2

    def _next_lrs(self) -> list[float]:
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._weight(step - 1), self._weight(step)
        lrs = []
        for group in self.optimizer.param_groups:
            if "swa_lr" not in group:
                self._grow_lists()
            lr, target = float(group["lr"]), group["swa_lr"]
            start = target if before == 1 else (lr - before * target) / (1 - before)
            lrs.append(target * now + start * (1 - now))
        return lrs

    def _sizes(self) -> list[float]:
        groups = self.optimizer.param_groups
        return [max(lr, group["swa_lr"]) for lr, group in zip(self.base_lrs, groups)]
