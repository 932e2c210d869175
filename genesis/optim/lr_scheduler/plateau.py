"""A rule that watches a metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

from ...checks import choice, integer, number
from ..group import set_rate
from .base import EPOCH_DEPRECATION_WARNING, AnyOptimizer, LRScheduler, is_optimizer


class ReduceLROnPlateau(LRScheduler):
    """Multiply the learning rate by `factor` when a metric has stopped improving.

        lr <- max(lr * factor, min_lr)  after more than `patience` epochs without improvement

    An improvement is a metric below `best * (1 - threshold)` ("min", "rel"), below
    `best - threshold` ("min", "abs"), above `best * (1 + threshold)` ("max", "rel") or above
    `best + threshold` ("max", "abs"). NaN never is one.

    Args:
        optimizer: the optimizer to schedule.
        mode: "min" if less is better, "max" if more is. Default: "min".
        factor: in [0, 1). Default: 0.1.
        patience: epochs without improvement to let pass, at least 0. Default: 10.
        threshold: what counts as an improvement, at least 0. Default: 1e-4.
        threshold_mode: "rel", a part of the best metric, or "abs", in its unit. Default: "rel".
        cooldown: epochs after a reduction in which none is counted as bad. Default: 0.
        min_lr: lower bound, at least 0, or a list of one for each group. After a list, append to
            `min_lrs` for a group added later. Default: 0.
        eps: a change of at most this is not made. Default: 1e-8.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range, or not one `min_lr`
            for each group.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        >>> for epoch, loss in enumerate([2.0, 1.0, 1.0, 1.0]):
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step(loss)
        ...     print(epoch, scheduler.get_last_lr())
        0 [1.0]
        1 [1.0]
        2 [1.0]
        3 [0.5]

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """

    _per_group: ClassVar = {"min_lr": "min_lrs"}

    def __init__(
        self,
        optimizer: AnyOptimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ):
        # No super().__init__(): there is no step 0 without a metric, and no initial learning rate.
        self.optimizer = is_optimizer(optimizer)
        self.mode = choice("mode", mode, ("min", "max"))
        self.factor = number("factor", factor, "[0, 1)")
        self.patience = integer("patience", patience, 0)
        self.threshold = number("threshold", threshold)
        self.threshold_mode = choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = integer("cooldown", cooldown, 0)
        self.min_lrs = self._one_per_group("min_lr", min_lr)
        self.default_min_lr = None if self._given_as_list["min_lr"] else self.min_lrs[0]
        self.eps = number("eps", eps)
        self.mode_worse = math.inf if mode == "min" else -math.inf
        self.last_epoch = 0
        self._last_lr = self._current_lrs()
        self._reset()

    def _reset(self) -> None:
        """Forget the best metric and all counts."""
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def step(  # type: ignore[override]
        self, metrics: Any, epoch: float | None = None
    ) -> None:
        """Take in the epoch's metric, and reduce the learning rates if it is time.

        Args:
            metrics: the metric, a number or an array with one element.
            epoch: the epoch's number. Deprecated, as in torch. Default: None, the next one.

        Raises:
            TypeError: `metrics` is nothing like a number.
            TypeError, ValueError: `epoch` is no number, or negative, or a group added later lacks a
                value. Nothing has changed then.
        """
        current = metrics if type(metrics) is float else _metric(metrics)
        if len(self.min_lrs) < len(self.optimizer.param_groups):
            self._grow_lists()
        if epoch is not None:
            number("epoch", epoch)
            warnings.warn(EPOCH_DEPRECATION_WARNING, stacklevel=2)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch  # type: ignore[assignment]
        if self._is_better(current, self.best):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def in_cooldown(self) -> bool:
        """Whether bad epochs are not counted now."""
        return self.cooldown_counter > 0

    def _is_better(self, current: float, best: float) -> bool:
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "rel":
            goal = best * (1.0 + sign * self.threshold)
        else:
            goal = best + sign * self.threshold
        return current < goal if self.mode == "min" else current > goal

    def _reduce_lr(self) -> None:
        for group, least in zip(self.optimizer.param_groups, self.min_lrs):
            lr = float(group["lr"])
            reduced = max(lr * self.factor, least)
            if lr - reduced > self.eps:
                set_rate(group, reduced)


def _metric(metrics: Any) -> float:
    try:
        value = metrics.item() if hasattr(metrics, "item") else metrics
    except ValueError:
        value = None
    if not isinstance(value, Real):
        raise TypeError(
            f"metrics must be a number or an array with one element, but got {metrics!r}"
        )
    return float(value)
