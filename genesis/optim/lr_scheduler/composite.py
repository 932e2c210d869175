"""Schedulers made of schedulers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from ... import checks
from ..group import set_rate
from .base import AnyOptimizer, LRScheduler, is_optimizer
from .plateau import ReduceLROnPlateau


class CompositeLR(LRScheduler):
    """Steps other schedulers. What these do to a group is theirs; here is only what holds them."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"_schedulers", "_known_groups"}
    _known_groups = 0

    def _hold(self, optimizer: AnyOptimizer | None, schedulers: Iterable[LRScheduler]) -> None:
        """Check the schedulers, and whether they schedule one optimizer."""
        kind = type(self).__name__
        if isinstance(schedulers, LRScheduler) or not isinstance(schedulers, Iterable):
            raise TypeError(
                f"schedulers must be a list of schedulers, but got {type(schedulers).__name__}"
            )
        self._schedulers = list(schedulers)
        if not self._schedulers:
            raise ValueError(f"{kind} expects at least one scheduler, but got none")
        for i, scheduler in enumerate(self._schedulers):
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"schedulers[{i}] must be a scheduler, but got {type(scheduler).__name__}"
                )
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    f"{kind} does not support ReduceLROnPlateau, whose step() needs a metric, "
                    f"but schedulers[{i}] is one: step it on its own"
                )
            optimizer = scheduler.optimizer if optimizer is None else optimizer
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    f"{kind} expects all schedulers to belong to the same optimizer, "
                    f"but schedulers[{i}] belongs to another one"
                )
        self.optimizer = is_optimizer(optimizer)

    def _watch_order(self) -> None:
        """From now on the order warning is this scheduler's, not each part's own."""
        self._do_not_watch_order()
        super()._watch_order()

    def _do_not_watch_order(self) -> None:
        super()._do_not_watch_order()
        for scheduler in self._schedulers:
            scheduler._do_not_watch_order()

    def _leaves(self) -> Iterator[LRScheduler]:
        for scheduler in self._schedulers:
            yield from scheduler._leaves()

    def _reset_lrs(self) -> None:
        for group in self.optimizer.param_groups:
            set_rate(group, float(group["initial_lr"]))

    def _restart(self) -> None:
        for scheduler in self._leaves():
            scheduler.last_epoch = -1
        self._reset_lrs()
        self._initial_step()
        self._do_not_watch_order()

    def _take_in_new_groups(self) -> None:
        """Also where it is not a part's turn, as its turn may begin with the next step."""
        for scheduler in self._schedulers:
            scheduler._take_in_new_groups()
        self._known_groups = len(self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        parts = [scheduler.state_dict() for scheduler in self._schedulers]
        return {**super().state_dict(), "_schedulers": parts}

    def _take_over(self, state: dict[str, Any]) -> None:
        parts = state.pop("_schedulers")
        if len(parts) != len(self._schedulers):
            raise ValueError(
                f"state_dict is for {len(parts)} schedulers, not for {len(self._schedulers)}"
            )
        before = [scheduler.state_dict() for scheduler in self._schedulers]
        try:
            for scheduler, part in zip(self._schedulers, parts):
                scheduler.load_state_dict(part)
        except Exception:
            for scheduler, part in zip(self._schedulers, before):
                scheduler.load_state_dict(part)
            raise
        self._known_groups = 0  # those of the saved run may have been fewer
        super()._take_over(state)


class ChainedScheduler(CompositeLR):
    """All of its schedulers at once: each changes what the one before left.

        lr(t) = initial_lr * factor_1(t) * factor_2(t) * ...

    That holds for recursive schedules. One in closed form, `LambdaLR` for example, takes no notice
    of the others and has to come first.

    Args:
        schedulers: the schedulers, in the order in which they were constructed.
        optimizer: the optimizer that all of them schedule. Default: None, the first one's.

    Raises:
        TypeError: something in `schedulers` is no scheduler.
        ValueError: there is none, or a `ReduceLROnPlateau`, or they are for different optimizers.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.lr_scheduler import ConstantLR, ExponentialLR
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> warmup = ConstantLR(optimizer, factor=0.5, total_iters=2)
        >>> scheduler = ChainedScheduler([warmup, ExponentialLR(optimizer, gamma=0.5)])
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [0.5]
        1 [0.25]
        2 [0.25]
        3 [0.125]

    Source: `torch.optim.lr_scheduler.ChainedScheduler`.
    """

    def __init__(self, schedulers: Iterable[LRScheduler], optimizer: AnyOptimizer | None = None):
        self._hold(optimizer, schedulers)
        self._last_lr = self._current_lrs()
        self._watch_order()

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """The epoch of the first scheduler."""
        return self._schedulers[0].last_epoch

    def _initial_step(self) -> None:
        for scheduler in self._schedulers:
            scheduler._initial_step()
        self._last_lr = self._current_lrs()

    def step(self) -> None:  # type: ignore[override]
        """Step every scheduler, in order."""
        if self._steps_before is not None:
            self._check_order()
        if len(self.optimizer.param_groups) != self._known_groups:
            self._take_in_new_groups()
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = self._current_lrs()


class SequentialLR(CompositeLR):
    """One scheduler after the other, each from its own epoch 0: a warm-up and what follows.

        lr(t) = lr_i(t - milestone_i)  for milestone_i <= t < milestone_(i + 1)

    Args:
        optimizer: the optimizer to schedule; its learning rates are set back to `initial_lr`.
        schedulers: the schedulers, in order.
        milestones: the epochs at which the second, third, ... scheduler begins, increasing.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError: something in `schedulers` is no scheduler, or a milestone no number.
        ValueError: there is no scheduler, or a `ReduceLROnPlateau`, or they are for different
            optimizers, or there is not one milestone less than schedulers.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.lr_scheduler import ExponentialLR, LinearLR
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> warmup = LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = ExponentialLR(optimizer, gamma=0.5)
        >>> scheduler = SequentialLR(optimizer, [warmup, decay], milestones=[2])
        >>> for epoch in range(5):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [0.5]
        1 [0.75]
        2 [1.0]
        3 [0.5]
        4 [0.25]

    Source: `torch.optim.lr_scheduler.SequentialLR`.
    """

    def __init__(
        self,
        optimizer: AnyOptimizer,
        schedulers: Iterable[LRScheduler],
        milestones: Iterable[int],
        last_epoch: int = -1,
    ):
        self._hold(is_optimizer(optimizer), schedulers)
        self._milestones = list(checks.milestones("milestones", milestones))
        if len(self._milestones) != len(self._schedulers) - 1:
            raise ValueError(
                "milestones must be one less than schedulers, but got "
                f"{len(self._milestones)} milestones and {len(self._schedulers)} schedulers"
            )
        self.last_epoch = checks.integer("last_epoch", last_epoch, -1) + 1
        # Each scheduler took its step 0 when it was constructed. Undo them all, then let only the
        # first one take it.
        self._reset_lrs()
        for scheduler in self._leaves():
            scheduler.last_epoch -= 1
        self._start()
        self._watch_order()

    def _start(self) -> None:
        first = self._schedulers[bisect_right(self._milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def _initial_step(self) -> None:
        self.last_epoch = 0
        self._start()

    def step(self) -> None:  # type: ignore[override]
        """Step the scheduler whose turn it is."""
        if self._steps_before is not None:
            self._check_order()
        if len(self.optimizer.param_groups) != self._known_groups:
            self._take_in_new_groups()
        epoch = self.last_epoch + 1
        index = bisect_right(self._milestones, epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == epoch:
            scheduler._restart()
        else:
            scheduler.step()
        self.last_epoch = epoch
        self._last_lr = scheduler._last_lr
