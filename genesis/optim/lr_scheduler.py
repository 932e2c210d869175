"""Learning-rate schedulers: what `group["lr"]` is at each epoch, with the contract of torch.

A scheduler is stepped once an epoch (or once a batch; an "epoch" is whatever you count), after the
optimizer::

    for epoch in range(epochs):
        train(...)              # optimizer.step() for each batch
        scheduler.step()

Most schedules can be written in two ways: in closed form, from a group's initial learning rate,
and recursively, from the learning rate that is in the group now. As in torch, `step()` uses the
recursive form where there is one, so that schedulers can be chained and a change by hand lasts.

The file goes from simple to complex: one function, one factor, one cosine, cycles, a rule that
watches a metric, and schedulers made of schedulers.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from numbers import Real
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, ClassVar

from .optimizer import Optimizer

__all__ = [
    "LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "get_cosine_schedule_with_warmup",
    "ExponentialLR",
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "PolynomialLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "SWALR",
    "CyclicLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "ChainedScheduler",
    "SequentialLR",
]

EPOCH_DEPRECATION_WARNING = (
    "`scheduler.step(epoch)` is deprecated and kept for old code: call `scheduler.step()` once an "
    "epoch. With an epoch, the closed form of the schedule is used where it has one."
)


# ---- checks of arguments: each returns the plain Python value, or says what was expected ----


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(name: str, value: Any, interval: str = "[0, inf)") -> float:
    """`value` as a float, if it is a real number in `interval`, written as in the message."""
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, but got {type(value).__name__}")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    inside = low < value < high
    inside |= value == low and interval[0] == "["
    inside |= value == high and interval[-1] == "]"
    if not inside:
        raise ValueError(f"{name} must be in {interval}, but got {value}")
    return float(value)


def _integer(name: str, value: Any, minimum: int) -> int:
    """`value` as an int, if it is a whole number of at least `minimum`."""
    if not _is_number(value):
        raise TypeError(f"{name} must be an integer, but got {type(value).__name__}")
    if not (minimum <= value < math.inf and value == int(value)):
        raise ValueError(f"{name} must be an integer of at least {minimum}, but got {value}")
    return int(value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}"
        )
    return value


def _function(name: str, value: Any) -> Callable:
    if not callable(value):
        raise TypeError(f"{name} must be a function, but got {type(value).__name__}")
    return value


def _milestones(milestones: Any) -> list[int]:
    if isinstance(milestones, str) or not isinstance(milestones, Iterable):
        raise TypeError(f"milestones must be a list of epochs, but got {type(milestones).__name__}")
    epochs = [_integer(f"milestones[{i}]", epoch, 0) for i, epoch in enumerate(milestones)]
    if epochs != sorted(epochs):
        raise ValueError(f"milestones must be in increasing order, but got {epochs}")
    return epochs


def _is_optimizer(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
    return optimizer


# ---- callables in snapshots ----


def _function_state(function: Callable | None) -> dict[str, Any] | None:
    """What a snapshot keeps of a callable: an object's attributes; of a function nothing."""
    attributes = getattr(function, "__dict__", None)
    if isinstance(function, (FunctionType, MethodType)) or not isinstance(attributes, dict):
        return None
    return deepcopy(attributes)


def _restore_function(function: Callable | None, attributes: dict[str, Any] | None) -> None:
    if attributes:
        vars(function).update(attributes)


class LRScheduler:
    """Base class of all schedulers; it keeps `initial_lr` in each group and counts epochs.

    A subclass defines `get_lr()`, which returns the learning rate of each group at `last_epoch`.
    Constructing a scheduler takes step 0 and so may change `group["lr"]`.

    To resume a run, build the optimizer and the scheduler as at the start and then load both their
    snapshots; the sequence goes on bit for bit.

    A group that `optimizer.add_param_group` adds later joins at the next `step()`: the learning
    rate it has then is its `initial_lr`, and it is treated like the others from there on. Recursive
    schedules go on from that learning rate, closed forms take the group to its place in the
    schedule. An argument given as one value holds for the new group too; one given as a list has no
    value for it, and `step()` raises a ValueError that says where to add it.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        last_epoch: index of the last epoch done, in epochs; -1 starts anew, another value needs
            "initial_lr" in every group. Default: -1.
        current_epoch: MegEngine's name for `last_epoch`. Default: None.

    Attributes:
        last_epoch: the epoch that the current learning rates are for (also `current_epoch`).
        base_lrs: the initial learning rate of each group.

    Raises:
        TypeError: `optimizer` is not an Optimizer, or `last_epoch` is no number.
        ValueError: `last_epoch` is below -1.
        KeyError: `last_epoch` is not -1 and a group has no "initial_lr".

    Example:
        >>> import numpy as np, genesis
        >>> class Halving(genesis.optim.lr_scheduler.LRScheduler):
        ...     def get_lr(self):
        ...         return [lr * 0.5 ** self.last_epoch for lr in self.base_lrs]
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = Halving(optimizer)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.25]
    """

    # The optimizer saves itself; the other attributes mean something only in this process.
    _unsaved: ClassVar[frozenset[str]] = frozenset(
        (
            "optimizer",
            "_given_as_list",
            "_steps_before",
            "_is_initial",
            "_get_lr_called_within_step",
        )
    )
    # Arguments with a value for each group, and the attribute that lists these; None where the
    # groups themselves hold them, under the argument's name.
    _per_group: ClassVar[dict[str, str | None]] = {}
    _given_as_list: Mapping[str, bool] = MappingProxyType({})
    _steps_before: int | None = None
    _is_initial = False
    _get_lr_called_within_step = False

    def __init__(
        self, optimizer: Optimizer, last_epoch: int = -1, *, current_epoch: int | None = None
    ):
        self.optimizer = _is_optimizer(optimizer)
        if current_epoch is not None:
            if last_epoch != -1:
                raise TypeError("last_epoch and current_epoch are the same: give one of them")
            last_epoch = current_epoch
        self.last_epoch = _integer("last_epoch", last_epoch, -1)
        for i, group in enumerate(optimizer.param_groups):
            if self.last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    "scheduler with last_epoch >= 0: load the optimizer's snapshot first"
                )
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self._initial_step()

    # ---- what a subclass defines ----

    def get_lr(self) -> list[float]:
        """The learning rate of each group at `last_epoch`, for `step()`.

        To read the current ones, use `get_last_lr()`: a recursive schedule gives the *next* ones.
        """
        if not self._get_lr_called_within_step:
            warnings.warn(
                "get_lr() computes the next learning rates, for step(): "
                "to read the current ones, please use `get_last_lr()`",
                stacklevel=2,
            )
        return self._next_lrs()

    def _next_lrs(self) -> list[float]:
        """`get_lr()` of the schedulers in this file, without the warning."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_lr")

    # ---- the step ----

    @property
    def current_epoch(self) -> int:
        """MegEngine's name for `last_epoch`."""
        return self.last_epoch

    @current_epoch.setter
    def current_epoch(self, epoch: int) -> None:
        self.last_epoch = epoch

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group as the last step left it."""
        return list(self._last_lr)

    def step(self, epoch: float | None = None) -> None:
        """Go to the next epoch and set the learning rates; call it after `optimizer.step()`.

        Args:
            epoch: go to this epoch instead, in closed form where there is one. Deprecated, as in
                torch. Default: None, the next one.

        Raises:
            TypeError, ValueError: `epoch` is no number, or is negative, or a group added later
                lacks a value, or the schedule gives no finite number. Nothing has changed then.
        """
        self._check_order()
        if epoch is not None:
            _number("epoch", epoch)
            warnings.warn(EPOCH_DEPRECATION_WARNING, stacklevel=2)
        self._advance(epoch)

    def _check_order(self) -> None:
        """Warn, once, if no optimizer step came before the first scheduler step."""
        before, self._steps_before = self._steps_before, None
        if before == self.optimizer._step_count and not getattr(
            self.optimizer, "step_skipped", False
        ):
            warnings.warn(
                "`lr_scheduler.step()` was called before `optimizer.step()`, so the first learning "
                "rate of the schedule is never used: call `optimizer.step()` first. See "
                "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
                stacklevel=3,
            )

    def _do_not_watch_order(self) -> None:
        self._steps_before = None

    def _advance(self, epoch: float | None = None, counted: bool = True) -> None:
        self._take_in_new_groups()
        before = dict(vars(self))
        try:
            self._step_count += counted
            self._move_to(epoch)
            lrs = self._lrs_at(epoch)
        except BaseException:
            vars(self).update(before)
            raise
        self._write(lrs)

    def _move_to(self, epoch: Any) -> None:
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

    def _lrs_at(self, epoch: float | None) -> list[float]:
        closed_form = getattr(self, "_get_closed_form_lr", None)
        self._get_lr_called_within_step = True
        try:
            lrs = self.get_lr() if epoch is None or closed_form is None else closed_form()
        finally:
            self._get_lr_called_within_step = False
        lrs = [float(lr) for lr in lrs]
        if len(lrs) != len(self.optimizer.param_groups):
            raise ValueError(
                f"{type(self).__name__} has {len(lrs)} learning rates for "
                f"{len(self.optimizer.param_groups)} parameter groups"
            )
        if not all(map(math.isfinite, lrs)):
            raise ValueError(
                f"{type(self).__name__} gives learning rates {lrs} at epoch {self.last_epoch}"
            )
        return lrs

    def _write(self, lrs: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, lrs):
            group["lr"] = lr
        self._last_lr = lrs

    def _current_lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    # ---- starting, and starting again inside of a SequentialLR ----

    def _initial_step(self) -> None:
        """Step 0, which a constructor takes. Nobody can have stepped the optimizer before it."""
        self._step_count = 0
        self._do_not_watch_order()
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False
        self._steps_before = self.optimizer._step_count

    def _restart(self) -> None:
        """Go back to epoch 0, as torch does at a milestone: no step of its own is counted."""
        self._advance(0, counted=False)

    def _leaves(self) -> Iterator[LRScheduler]:
        yield self

    # ---- arguments with one value for each group ----

    def _one_per_group(self, name: str, value: Any, check: Callable = _number) -> list:
        """A checked value for each group, from one value for all or a list of them."""
        count = len(self.optimizer.param_groups)
        is_list = isinstance(value, (list, tuple))
        if is_list and len(value) != count:
            raise ValueError(
                f"{name} must have the same length as optimizer.param_groups: "
                f"expected {count} values, but got {len(value)}"
            )
        self._given_as_list = {**self._given_as_list, name: is_list}
        if is_list:
            return [check(f"{name}[{i}]", entry) for i, entry in enumerate(value)]
        return [check(name, value)] * count

    def _grow_lists(self) -> None:
        """Give groups added since the last step the values that all others share."""
        groups = self.optimizer.param_groups
        shared = {}
        for name, attribute in self._per_group.items():
            if name not in self._given_as_list:
                continue
            if attribute is None:
                values = [group[name] for group in groups if name in group]
            else:
                values = getattr(self, attribute)
            if not values:
                raise KeyError(f"param {name!r} is not specified in param_groups[0]")
            differ = values.count(values[0]) < len(values)
            if len(values) < len(groups) and (differ or self._given_as_list[name]):
                where = f"append it to scheduler.{attribute}"
                raise ValueError(
                    f"{name} was given for each parameter group and has {len(values)} values, but "
                    f"the optimizer has {len(groups)} groups by now: before scheduler.step(), "
                    f"{where if attribute else f'set group[{name!r}]'} for each new group"
                )
            shared[name] = values[0]
        for name, value in shared.items():
            attribute = self._per_group[name]
            if attribute is None:
                for group in groups:
                    group.setdefault(name, value)
            else:
                values = getattr(self, attribute)
                values.extend([value] * (len(groups) - len(values)))

    def _take_in_new_groups(self) -> None:
        self._grow_lists()
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            group.setdefault("initial_lr", float(group["lr"]))
            self.base_lrs.append(float(group["initial_lr"]))

    # ---- snapshots ----

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: plain numbers, strings, lists and dicts, in torch's layout.

        It does not hold the optimizer, nor functions: of a callable object the attributes are
        saved, a plain function has to be given to the constructor again.
        """
        return deepcopy(
            {name: value for name, value in vars(self).items() if name not in self._unsaved}
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` saved, the schedule's parameters included.

        The learning rates themselves are the optimizer's: load its snapshot as well, after both
        have been constructed. The dict may come from the torch scheduler of the same name.

        Args:
            state_dict: what `state_dict()` returned for a scheduler of this class.

        Raises:
            TypeError: it is not a dict.
            KeyError: something is missing in it.
            ValueError: it has entries that this scheduler does not know or that do not fit.
                Whatever is raised, the scheduler is as it was.
        """
        self._take_over(self._checked(state_dict))

    def _take_over(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._do_not_watch_order()

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state_dict`, if it can be one of this scheduler."""
        kind = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, but got {type(state_dict).__name__}")
        # torch saves two flags that are only set during a step.
        state = {name: deepcopy(value) for name, value in state_dict.items() if name not in _FLAGS}
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing:
            raise KeyError(f"state_dict lacks {missing}: it was not saved by this kind of {kind}")
        if unknown:
            raise ValueError(
                f"state_dict has {unknown}, unknown here: it was not saved by this kind of {kind}"
            )
        for name, value in state.items():
            if _shape_of(value) != _shape_of(own[name]) and None not in (value, own[name]):
                raise ValueError(
                    f"{name!r} in state_dict must be {_shape_of(own[name])}, but is {value!r}"
                )
        saved, count = len(state["_last_lr"]), len(self.optimizer.param_groups)
        if saved > count:
            raise ValueError(
                f"state_dict is for {saved} parameter groups, but the optimizer has {count}: "
                "add the groups that were added to the saved one first"
            )
        return state


_FLAGS = ("_is_initial", "_get_lr_called_within_step")


def _shape_of(value: Any) -> str:
    """How a saved value is built, in words."""
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Real):
        return "a number"
    return "a string" if isinstance(value, str) else "plain data"


# ---- one function ----


class _FunctionLR(LRScheduler):
    """A function of the epoch for each group."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"lr_lambdas"}
    _per_group: ClassVar = {"lr_lambda": "lr_lambdas"}

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        self.optimizer = _is_optimizer(optimizer)
        self.lr_lambdas = self._one_per_group("lr_lambda", lr_lambda, _function)
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "lr_lambdas": [_function_state(function) for function in self.lr_lambdas],
        }

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = super()._checked(state_dict)
        self._grow_lists()
        saved = len(state["lr_lambdas"])
        if saved > len(self.lr_lambdas):
            raise ValueError(f"state_dict has {saved} lr_lambdas, but {len(self.lr_lambdas)} exist")
        return state

    def _take_over(self, state: dict[str, Any]) -> None:
        for function, attributes in zip(self.lr_lambdas, state.pop("lr_lambdas")):
            _restore_function(function, attributes)
        super()._take_over(state)


class LambdaLR(_FunctionLR):
    """The initial learning rate times a function of the epoch.

        lr(t) = initial_lr * lr_lambda(t)

    Args:
        optimizer: the optimizer to schedule.
        lr_lambda: a function from epoch (int) to factor, or a list of one for each group. One
            function serves groups added later too; a list does not: append to `lr_lambdas`.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError: `lr_lambda` is not callable.
        ValueError: not one function for each group.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
        >>> for epoch in range(3):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.333]

    Source: `torch.optim.lr_scheduler.LambdaLR`.
    """

    def _next_lrs(self) -> list[float]:
        t = self.last_epoch
        return [lr * float(function(t)) for lr, function in zip(self.base_lrs, self.lr_lambdas)]


class MultiplicativeLR(_FunctionLR):
    """The learning rate times a function of the epoch, at every epoch after the first.

        lr(t) = lr(t - 1) * lr_lambda(t)

    Args:
        optimizer: the optimizer to schedule.
        lr_lambda: a function from epoch (int) to factor, or a list of one for each group. One
            function serves groups added later too; a list does not: append to `lr_lambdas`.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError: `lr_lambda` is not callable.
        ValueError: not one function for each group.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda t: 0.5)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
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
        return [lr * float(f(self.last_epoch)) for lr, f in zip(lrs, self.lr_lambdas)]


class _WarmupCosine:
    """The factor of `get_cosine_schedule_with_warmup`; an object, so that snapshots keep it."""

    def __init__(self, num_warmup_steps: int, num_training_steps: int, num_cycles: float):
        self.num_warmup_steps = num_warmup_steps
        self.num_training_steps = num_training_steps
        self.num_cycles = num_cycles

    def __call__(self, t: int) -> float:
        if t < self.num_warmup_steps:
            return t / self.num_warmup_steps
        done = t - self.num_warmup_steps
        progress = done / max(1, self.num_training_steps - self.num_warmup_steps)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * self.num_cycles * 2.0 * progress)))


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
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
        A `LambdaLR`; step it after each batch.

    Raises:
        TypeError, ValueError: an argument is no number, or negative, or the steps are not whole.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.lr_scheduler import get_cosine_schedule_with_warmup
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = get_cosine_schedule_with_warmup(optimizer, 2, 6)
        >>> for step in range(5):
        ...     print(step, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [0.0]
        1 [0.5]
        2 [1.0]
        3 [0.854]
        4 [0.5]

    Source: `transformers.get_cosine_schedule_with_warmup` of Hugging Face.
    """
    factor = _WarmupCosine(
        _integer("num_warmup_steps", num_warmup_steps, 0),
        _integer("num_training_steps", num_training_steps, 0),
        _number("num_cycles", num_cycles),
    )
    return LambdaLR(optimizer, factor, last_epoch)


# ---- one factor, the same for all groups ----


class _FactorLR(LRScheduler):
    """A schedule in both forms: `lr(t) = lr(t - 1) * _ratio()` and `initial_lr * _factor()`.

    The two agree as long as nobody else changes the learning rate.
    """

    def _ratio(self) -> float:
        raise NotImplementedError

    def _factor(self) -> float:
        raise NotImplementedError

    def _next_lrs(self) -> list[float]:
        ratio = self._ratio()
        return [lr * ratio for lr in self._current_lrs()]

    def _get_closed_form_lr(self) -> list[float]:
        factor = self._factor()
        return [lr * factor for lr in self.base_lrs]


class ExponentialLR(_FactorLR):
    """Decay by `gamma` at every epoch.

        lr(t) = initial_lr * gamma^t

    Args:
        optimizer: the optimizer to schedule.
        gamma: factor of an epoch, at least 0.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: `gamma` is no number, or negative, infinite or NaN.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.25]

    Source: `torch.optim.lr_scheduler.ExponentialLR`.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = _number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _ratio(self) -> float:
        return 1.0 if self._is_initial else self.gamma

    def _factor(self) -> float:
        return self.gamma**self.last_epoch


class StepLR(_FactorLR):
    """Decay by `gamma` every `step_size` epochs.

        lr(t) = initial_lr * gamma^floor(t / step_size)

    Args:
        optimizer: the optimizer to schedule.
        step_size: epochs between two decays, at least 1.
        gamma: factor of a decay, at least 0. Default: 0.1.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [1.0]
        2 [0.5]
        3 [0.5]

    Source: `torch.optim.lr_scheduler.StepLR`.
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ):
        self.step_size = _integer("step_size", step_size, 1)
        self.gamma = _number("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def _ratio(self) -> float:
        return self.gamma if self.last_epoch and self.last_epoch % self.step_size == 0 else 1.0

    def _factor(self) -> float:
        return self.gamma ** (self.last_epoch // self.step_size)


class MultiStepLR(_FactorLR):
    """Decay by `gamma` at each milestone.

        lr(t) = initial_lr * gamma^(number of milestones <= t)

    Args:
        optimizer: the optimizer to schedule.
        milestones: increasing epochs; one that comes twice decays twice.
        gamma: factor of a decay, at least 0. Default: 0.1.
        last_epoch: index of the last epoch done. Default: -1.
        current_epoch: MegEngine's name for `last_epoch`. Default: None.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range, or the milestones are
            not in order.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.5)
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.5]
        3 [0.25]

    Source: `torch.optim.lr_scheduler.MultiStepLR`, `megengine.optimizer.MultiStepLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        current_epoch: int | None = None,
    ):
        self.milestones = _milestones(milestones)
        self.gamma = _number("gamma", gamma)
        super().__init__(optimizer, last_epoch, current_epoch=current_epoch)

    def _ratio(self) -> float:
        return self.gamma ** self.milestones.count(self.last_epoch)

    def _factor(self) -> float:
        return self.gamma ** bisect_right(self.milestones, self.last_epoch)

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        # torch saves how often each milestone comes; a list survives JSON, an int as key does not.
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get("milestones"), Mapping):
            counts = state_dict["milestones"].items()
            milestones = sorted(int(epoch) for epoch, n in counts for _ in range(n))
            state_dict = {**state_dict, "milestones": milestones}
        return super()._checked(state_dict)


class ConstantLR(_FactorLR):
    """A smaller learning rate for the first `total_iters` epochs.

        lr(t) = initial_lr * (factor if t < total_iters else 1)

    A group added before `total_iters` has its own learning rate divided by `factor` there, as every
    group has.

    Args:
        optimizer: the optimizer to schedule.
        factor: in [0, 1]; 0 keeps the parameters still until `total_iters`. Default: 1/3.
        total_iters: length in epochs, at least 1. Default: 5.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=2)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [0.5]
        1 [0.5]
        2 [1.0]

    Source: `torch.optim.lr_scheduler.ConstantLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        self.factor = _number("factor", factor, "[0, 1]")
        self.total_iters = _integer("total_iters", total_iters, 1)
        super().__init__(optimizer, last_epoch)

    def _ratio(self) -> float:
        if self.last_epoch == 0:
            return self.factor
        return 1.0 / self.factor if self.last_epoch == self.total_iters else 1.0

    def _factor(self) -> float:
        return self.factor + (self.last_epoch >= self.total_iters) * (1.0 - self.factor)

    def _next_lrs(self) -> list[float]:
        if self.factor == 0 and self.last_epoch == self.total_iters:
            return list(self.base_lrs)  # no ratio leads away from 0
        return super()._next_lrs()


class LinearLR(_FactorLR):
    """A line from `start_factor` to `end_factor` over `total_iters` epochs: the usual warm-up.

        lr(t) = initial_lr * (start_factor + (end_factor - start_factor) * min(t / total_iters, 1))

    A group added during a warm-up grows by the same ratios from the learning rate that it has, and
    so ends above it: give it the learning rate of its place in the warm-up.

    Args:
        optimizer: the optimizer to schedule.
        start_factor: factor at epoch 0, in (0, 1]. Default: 1/3.
        end_factor: factor from `total_iters` on, in [0, 1]. Default: 1.
        total_iters: length in epochs, at least 1. Default: 5.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [0.5]
        1 [0.75]
        2 [1.0]
        3 [1.0]

    Source: `torch.optim.lr_scheduler.LinearLR`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        self.start_factor = _number("start_factor", start_factor, "(0, 1]")
        self.end_factor = _number("end_factor", end_factor, "[0, 1]")
        self.total_iters = _integer("total_iters", total_iters, 1)
        super().__init__(optimizer, last_epoch)

    def _ratio(self) -> float:
        if self.last_epoch == 0:
            return self.start_factor
        if self._is_initial or self.last_epoch > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise)

    def _factor(self) -> float:
        rise = self.end_factor - self.start_factor
        return self.start_factor + rise * min(self.total_iters, self.last_epoch) / self.total_iters


class PolynomialLR(_FactorLR):
    """Decay to 0 along a power of the remaining time.

        lr(t) = initial_lr * (1 - min(t / total_iters, 1))^power

    Args:
        optimizer: the optimizer to schedule.
        total_iters: length in epochs, at least 1. Default: 5.
        power: exponent, at least 0; 1 is a line. Default: 1.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.PolynomialLR(optimizer, 2, power=2)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0]
        1 [0.25]
        2 [0.0]

    Source: `torch.optim.lr_scheduler.PolynomialLR`.
    """

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ):
        self.total_iters = _integer("total_iters", total_iters, 1)
        self.power = _number("power", power)
        super().__init__(optimizer, last_epoch)

    def _ratio(self) -> float:
        if self._is_initial or self.last_epoch > self.total_iters:
            return 1.0
        left = 1.0 - self.last_epoch / self.total_iters
        return (left / (1.0 - (self.last_epoch - 1) / self.total_iters)) ** self.power

    def _factor(self) -> float:
        return (1.0 - min(self.total_iters, self.last_epoch) / self.total_iters) ** self.power


# ---- one cosine ----


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the initial learning rate to `eta_min`, and, if stepped on, up again.

        lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi t / T_max)) / 2

    Args:
        optimizer: the optimizer to schedule.
        T_max: epochs from the highest to the lowest point, at least 1.
        eta_min: lowest learning rate, at least 0. Default: 0.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        >>> for epoch in range(5):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     optimizer.step().clear_grad()
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
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ):
        self.T_max = _integer("T_max", T_max, 1)
        self.eta_min = _number("eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    def _next_lrs(self) -> list[float]:
        t, T, low = self.last_epoch, self.T_max, self.eta_min
        lrs = self._current_lrs()
        if self._is_initial:
            return lrs
        if (t - 1 - T) % (2 * T) == 0:  # at the lowest point there is no ratio: the first step up
            rise = 1 - math.cos(math.pi / T)
            return [lr + (base - low) * rise / 2 for lr, base in zip(lrs, self.base_lrs)]
        ratio = (1 + math.cos(math.pi * t / T)) / (1 + math.cos(math.pi * (t - 1) / T))
        return [ratio * (lr - low) + low for lr in lrs]

    def _get_closed_form_lr(self) -> list[float]:
        return _cosine(self.base_lrs, self.eta_min, math.pi * self.last_epoch / self.T_max)


def _cosine(highs: list[float], low: float, angle: float) -> list[float]:
    """From each of `highs`, at angle 0, to `low`, at angle pi."""
    factor = 1 + math.cos(angle)
    return [low + (high - low) * factor / 2 for high in highs]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from the initial learning rate to `eta_min`, started again and again.

        lr(t) = eta_min + (initial_lr - eta_min) * (1 + cos(pi T_cur / T_i)) / 2

    `T_cur` counts epochs since the last restart, `T_i` is the length of the current period.

    Args:
        optimizer: the optimizer to schedule.
        T_0: length of the first period in epochs, at least 1.
        T_mult: how many times as long as the one before each period is, at least 1. Default: 1.
        eta_min: lowest learning rate, at least 0. Default: 0.
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.lr_scheduler import CosineAnnealingWarmRestarts
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2)
        >>> for epoch in range(5):
        ...     print(epoch, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     optimizer.step().clear_grad()
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
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ):
        self.T_0 = self.T_i = _integer("T_0", T_0, 1)
        self.T_mult = _integer("T_mult", T_mult, 1)
        self.eta_min = _number("eta_min", eta_min)
        self.T_cur: float = _integer("last_epoch", last_epoch, -1)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Go to the next epoch, or to `epoch`.

        Args:
            epoch: where to go, at least 0. It may be a fraction, for a step after each batch:
                `scheduler.step(epoch + batch / batches)`. Default: None, the next epoch.

        Raises:
            TypeError, ValueError: `epoch` is no number, or negative.
        """
        self._check_order()
        self._advance(None if epoch is None else _number("epoch", epoch))

    def _move_to(self, epoch: float | None) -> None:
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch += 1
            self.T_cur += 1
        else:
            self.T_cur = epoch or 0
            self.T_i = self.T_0
            self.last_epoch = math.floor(self.T_cur)
        if self.T_mult == 1:
            self.T_cur %= self.T_i
        while self.T_cur >= self.T_i:
            self.T_cur -= self.T_i
            self.T_i *= self.T_mult

    def _next_lrs(self) -> list[float]:
        return _cosine(self.base_lrs, self.eta_min, math.pi * self.T_cur / self.T_i)


class SWALR(LRScheduler):
    """Anneal to a constant learning rate, for stochastic weight averaging, and stay there.

        lr(t) = (1 - a) * lr(0) + a * swa_lr
        a = (1 - cos(pi s)) / 2  or  a = s,  s = min(t / anneal_epochs, 1)

    `lr(0)` is what the other schedulers would have given: the recursion works it out from the
    current learning rate, so this one may follow any other.

    Args:
        optimizer: the optimizer to schedule; each group gets "swa_lr".
        swa_lr: the learning rate to reach, at least 0, or a list of one for each group. One value
            serves groups added later too; after a list, a new group has to bring its "swa_lr".
        anneal_epochs: length of the way there in epochs; 0 goes at once. Default: 10.
        anneal_strategy: "cos" or "linear". Default: "cos".
        last_epoch: index of the last epoch done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range, or not one `swa_lr`
            for each group.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.SWALR(
        ...     optimizer, swa_lr=0.5, anneal_epochs=2, anneal_strategy="linear")
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
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
        optimizer: Optimizer,
        swa_lr: float | Sequence[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ):
        self.optimizer = _is_optimizer(optimizer)
        self._anneal_strategy = _choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.anneal_epochs = _integer("anneal_epochs", anneal_epochs, 0)
        last_epoch = _integer("last_epoch", last_epoch, -1)
        for group, value in zip(optimizer.param_groups, self._one_per_group("swa_lr", swa_lr)):
            group["swa_lr"] = value
        super().__init__(optimizer, last_epoch)

    def _weight(self, step: int) -> float:
        """The weight of `swa_lr` after `step` steps."""
        part = max(0, min(1, step / max(1, self.anneal_epochs)))
        return part if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * part)) / 2

    def _next_lrs(self) -> list[float]:
        step = self._step_count - 1
        if self.anneal_epochs == 0:
            step = max(1, step)
        before, now = self._weight(step - 1), self._weight(step)
        lrs = []
        for group, lr in zip(self.optimizer.param_groups, self._current_lrs()):
            target = group["swa_lr"]
            start = target if before == 1 else (lr - before * target) / (1 - before)
            lrs.append(target * now + start * (1 - now))
        return lrs


# ---- cycles, which move the momentum against the learning rate ----


class _MomentumLR(LRScheduler):
    """Sets "momentum", or the first of "betas", with each learning rate."""

    cycle_momentum: bool

    def _use_momentum(
        self,
        cycle_momentum: bool,
        base_momentum: float | Sequence[float],
        max_momentum: float | Sequence[float],
    ) -> tuple[list[float], list[float]]:
        """Check the arguments; the lowest and the highest momentum of each group."""
        self.cycle_momentum = bool(cycle_momentum)
        if not cycle_momentum:
            return [], []
        defaults = self.optimizer.defaults
        if "momentum" not in defaults and "betas" not in defaults:
            raise ValueError(
                "cycle_momentum needs an optimizer with momentum or betas, but "
                f"{type(self.optimizer).__name__} has neither: give cycle_momentum=False"
            )
        self.use_beta1 = "betas" in defaults
        return (
            self._one_per_group("base_momentum", base_momentum),
            self._one_per_group("max_momentum", max_momentum),
        )

    def _next_momenta(self) -> list[float]:
        raise NotImplementedError

    def _write(self, lrs: list[float]) -> None:
        momenta = self._next_momenta() if self.cycle_momentum else []
        super()._write(lrs)
        for group, momentum in zip(self.optimizer.param_groups, momenta):
            if self.use_beta1:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class CyclicLR(_MomentumLR):
    """Up and down between two learning rates, again and again, in steps (batches).

        lr(t) = base_lr + (max_lr - base_lr) * h(t) * scale
        momentum(t) = max_momentum - (max_momentum - base_momentum) * h(t) * scale

    h rises from 0 to 1 in `step_size_up` steps and falls to 0 in `step_size_down`. The scale is 1
    ("triangular"), 1 / 2^(cycle - 1) ("triangular2") or gamma^t ("exp_range").

    Args:
        optimizer: the optimizer to schedule.
        base_lr: lowest learning rate, at least 0, or a list of one for each group. It replaces the
            groups' own. After a list, a group added later keeps its own as the lowest.
        max_lr: highest learning rate, or a list; after a list, append to `max_lrs` for a new group.
        step_size_up: steps of a rise, more than 0. Default: 2000.
        step_size_down: steps of a fall, at least 0. Default: None, as many as of a rise.
        mode: "triangular", "triangular2" or "exp_range". Default: "triangular".
        gamma: base of "exp_range", at least 0. Default: 1.
        scale_fn: a function that gives the scale, in place of `mode`. Default: None.
        scale_mode: what `scale_fn` is called with: "cycle", the cycle's number from 1, or
            "iterations", the step's from 0. Default: "cycle".
        cycle_momentum: whether to move the momentum too (Adam's: its first beta). Default: True.
        base_momentum: lowest momentum, or a list (to extend: `base_momentums`). Default: 0.8.
        max_momentum: highest momentum, or a list (to extend: `max_momentums`). Default: 0.9.
        last_epoch: index of the last step done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range, or not one value for
            each group; or `cycle_momentum` with an optimizer that has no momentum.

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = genesis.optim.lr_scheduler.CyclicLR(
        ...     optimizer, 1.0, 3.0, step_size_up=2, base_momentum=0.5, max_momentum=0.75)
        >>> for step in range(5):
        ...     print(step, scheduler.get_last_lr(), optimizer.param_groups[0]["momentum"])
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [1.0] 0.75
        1 [2.0] 0.625
        2 [3.0] 0.5
        3 [2.0] 0.625
        4 [1.0] 0.75

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks",
    https://arxiv.org/abs/1506.01186.
    """

    _unsaved: ClassVar = LRScheduler._unsaved | {"_scale_fn_custom"}
    _per_group: ClassVar = {
        "max_lr": "max_lrs",
        "base_momentum": "base_momentums",
        "max_momentum": "max_momentums",
    }

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: float = 2000,
        step_size_down: float | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ):
        self.optimizer = _is_optimizer(optimizer)
        last_epoch = _integer("last_epoch", last_epoch, -1)
        base_lrs = self._one_per_group("base_lr", base_lr)
        self.max_lrs = self._one_per_group("max_lr", max_lr)
        up = down = _number("step_size_up", step_size_up, "(0, inf)")
        if step_size_down is not None:
            down = _number("step_size_down", step_size_down)
        self.total_size = up + down
        self.step_ratio = up / self.total_size
        self.gamma = _number("gamma", gamma)
        self._scale_fn_custom = None if scale_fn is None else _function("scale_fn", scale_fn)
        self.scale_mode = _choice("scale_mode", scale_mode, ("cycle", "iterations"))
        self.mode = mode
        if scale_fn is None:
            _choice("mode", mode, ("triangular", "triangular2", "exp_range"))
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        lows, highs = self._use_momentum(cycle_momentum, base_momentum, max_momentum)
        if self.cycle_momentum:
            self.base_momentums, self.max_momentums = lows, highs
        if last_epoch == -1:
            for i, group in enumerate(optimizer.param_groups):
                group["lr"] = base_lrs[i]
                if self.cycle_momentum:
                    group["base_momentum"], group["max_momentum"] = lows[i], highs[i]
        super().__init__(optimizer, last_epoch)
        # An "initial_lr" that another scheduler left is not where a cycle begins.
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """The scale of the cycle number or step `x`, whichever `scale_mode` says."""
        if self._scale_fn_custom is not None:
            return float(self._scale_fn_custom(x))
        if self.mode == "exp_range":
            return self.gamma**x
        return 1.0 if self.mode == "triangular" else 1 / (2.0 ** (x - 1))

    def _between(self, starts: list[float], ends: list[float]) -> list[float]:
        cycle = math.floor(1 + self.last_epoch / self.total_size)
        part = 1.0 + self.last_epoch / self.total_size - cycle
        if part <= self.step_ratio:
            height = part / self.step_ratio
        else:
            height = (part - 1) / (self.step_ratio - 1)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else self.last_epoch)
        return [start + (end - start) * height * scale for start, end in zip(starts, ends)]

    def _next_lrs(self) -> list[float]:
        return self._between(self.base_lrs, self.max_lrs)

    def _next_momenta(self) -> list[float]:
        return self._between(self.max_momentums, self.base_momentums)

    def _take_in_new_groups(self) -> None:
        known = len(self.base_lrs)
        super()._take_in_new_groups()
        for i, group in enumerate(self.optimizer.param_groups[known:], known):
            self.base_lrs[i] = float(group["lr"])
            if not self._given_as_list["base_lr"]:
                self.base_lrs[i] = self.base_lrs[0]
            if self.cycle_momentum:
                group["base_momentum"] = self.base_momentums[i]
                group["max_momentum"] = self.max_momentums[i]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_scale_fn_custom": _function_state(self._scale_fn_custom)}

    def _take_over(self, state: dict[str, Any]) -> None:
        _restore_function(self._scale_fn_custom, state.pop("_scale_fn_custom"))
        super()._take_over(state)


class OneCycleLR(_MomentumLR):
    """One rise to a large learning rate and one fall to a tiny one, in steps (batches).

        initial_lr = max_lr / div_factor,  min_lr = initial_lr / final_div_factor
        initial_lr -> max_lr -> min_lr                in two phases
        initial_lr -> max_lr -> initial_lr -> min_lr  in three

    The rise ends at step pct_start * total_steps - 1, the last phase at total_steps - 1. Momentum
    goes from `max_momentum` to `base_momentum` and back.

    Args:
        optimizer: the optimizer to schedule; "initial_lr", "max_lr", "min_lr", "base_momentum" and
            "max_momentum" are put into its groups.
        max_lr: highest learning rate, at least 0, or a list of one for each group. It replaces the
            groups' own, also of groups added later. After a list, a new group has to bring its
            "max_lr"; the same holds for the two momenta.
        total_steps: steps of the whole cycle, at least 1; one more step than that is an error.
            Default: None, that is `epochs * steps_per_epoch`.
        epochs: number of epochs, at least 1. Default: None.
        steps_per_epoch: steps of each, at least 1. Default: None.
        pct_start: part of the steps that the rise takes, in [0, 1]. Default: 0.3.
        anneal_strategy: "cos" or "linear". Default: "cos".
        cycle_momentum: whether to move the momentum too (Adam's: its first beta). Default: True.
        base_momentum: lowest momentum, or a list. Default: 0.85.
        max_momentum: highest momentum, or a list. Default: 0.95.
        div_factor: how many times smaller the first learning rate is, more than 0. Default: 25.
        final_div_factor: how many times smaller than that the last one is. Default: 1e4.
        three_phase: come back to `initial_lr` before the final fall. Default: False.
        last_epoch: index of the last step done. Default: -1.

    Raises:
        TypeError, ValueError: an argument is no number, or out of its range, or not one value for
            each group; or `cycle_momentum` with an optimizer that has no momentum.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.lr_scheduler import OneCycleLR
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0, momentum=0.9)
        >>> scheduler = OneCycleLR(optimizer, 1.0, total_steps=6, pct_start=0.5, div_factor=10)
        >>> for step in range(6):
        ...     print(step, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [0.1]
        1 [0.55]
        2 [1.0]
        3 [0.75]
        4 [0.25]
        5 [0.0]

    Source: Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates", https://arxiv.org/abs/1708.07120.
    """

    _unsaved: ClassVar = LRScheduler._unsaved | {"_div_factor", "_final_div_factor"}
    _per_group: ClassVar = {"max_lr": None, "base_momentum": None, "max_momentum": None}

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        self.optimizer = _is_optimizer(optimizer)
        last_epoch = _integer("last_epoch", last_epoch, -1)
        if total_steps is not None:
            self.total_steps = _integer("total_steps", total_steps, 1)
        elif epochs is not None and steps_per_epoch is not None:
            self.total_steps = _integer("epochs", epochs, 1)
            self.total_steps *= _integer("steps_per_epoch", steps_per_epoch, 1)
        else:
            raise ValueError("give either total_steps or both epochs and steps_per_epoch")
        rise = _number("pct_start", pct_start, "[0, 1]") * self.total_steps - 1
        self._anneal_func_type = _choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self._div_factor = _number("div_factor", div_factor, "(0, inf)")
        self._final_div_factor = _number("final_div_factor", final_div_factor, "(0, inf)")

        phases = [(rise, "initial_lr", "max_lr", "max_momentum", "base_momentum")]
        if three_phase:
            phases += [
                (2 * rise, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
                (self.total_steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
            ]
        else:
            phases += [(self.total_steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum")]
        names = ("end_step", "start_lr", "end_lr", "start_momentum", "end_momentum")
        self._schedule_phases: list[dict[str, Any]] = [dict(zip(names, phase)) for phase in phases]

        max_lrs = self._one_per_group("max_lr", max_lr)
        lows, highs = self._use_momentum(cycle_momentum, base_momentum, max_momentum)
        if last_epoch == -1:
            for i, group in enumerate(optimizer.param_groups):
                group["max_lr"] = max_lrs[i]
                self._set_bounds(group)
                if self.cycle_momentum:
                    group["base_momentum"], group["max_momentum"] = lows[i], highs[i]
        super().__init__(optimizer, last_epoch)

    def _set_bounds(self, group: dict[str, Any]) -> None:
        group["initial_lr"] = group["max_lr"] / self._div_factor
        group["min_lr"] = group["initial_lr"] / self._final_div_factor

    def _move_to(self, epoch: float | None) -> None:
        super()._move_to(epoch)
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"Tried to step {self.last_epoch} times; "
                f"the specified number of total steps is {self.total_steps}"
            )

    def _between(self, start_name: str, end_name: str) -> list[float]:
        """Each group's value now, on the way between two of its bounds in the current phase."""
        begin = 0.0
        for phase in self._schedule_phases:
            if self.last_epoch <= phase["end_step"] or phase is self._schedule_phases[-1]:
                break
            begin = phase["end_step"]
        length = phase["end_step"] - begin
        # A rise of no length, as with pct_start * total_steps == 1, is at its end.
        part = (self.last_epoch - begin) / length if length else 1.0
        values = []
        for group in self.optimizer.param_groups:
            start, end = group[phase[start_name]], group[phase[end_name]]
            if self._anneal_func_type == "cos":
                values.append(end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1))
            else:
                values.append((end - start) * part + start)
        return values

    def _next_lrs(self) -> list[float]:
        return self._between("start_lr", "end_lr")

    def _next_momenta(self) -> list[float]:
        return self._between("start_momentum", "end_momentum")

    def _take_in_new_groups(self) -> None:
        known = len(self.base_lrs)
        super()._take_in_new_groups()
        for i, group in enumerate(self.optimizer.param_groups[known:], known):
            self._set_bounds(group)
            self.base_lrs[i] = group["initial_lr"]


# ---- a rule that watches a metric ----


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
        >>> from genesis.optim.lr_scheduler import ReduceLROnPlateau
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        >>> for epoch, loss in enumerate([2.0, 1.0, 1.0, 1.0]):
        ...     optimizer.step().clear_grad()
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
        optimizer: Optimizer,
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
        self.optimizer = _is_optimizer(optimizer)
        self.mode = _choice("mode", mode, ("min", "max"))
        self.factor = _number("factor", factor, "[0, 1)")
        self.patience = _integer("patience", patience, 0)
        self.threshold = _number("threshold", threshold)
        self.threshold_mode = _choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown = _integer("cooldown", cooldown, 0)
        self.min_lrs = self._one_per_group("min_lr", min_lr)
        self.default_min_lr = None if self._given_as_list["min_lr"] else self.min_lrs[0]
        self.eps = _number("eps", eps)
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
        current = _metric(metrics)
        self._grow_lists()
        if epoch is not None:
            _number("epoch", epoch)
            warnings.warn(EPOCH_DEPRECATION_WARNING, stacklevel=2)
        self._move_to(epoch)
        if self._is_better(current, self.best):
            self.best = current
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = self._current_lrs()

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
        for group, lr, least in zip(self.optimizer.param_groups, self._current_lrs(), self.min_lrs):
            reduced = max(lr * self.factor, least)
            if lr - reduced > self.eps:
                group["lr"] = reduced


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


# ---- schedulers made of schedulers ----


class _CompositeLR(LRScheduler):
    """Steps other schedulers. What these do to a group is theirs; here is only what holds them."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"_schedulers"}

    def _hold(self, optimizer: Optimizer | None, schedulers: Iterable[LRScheduler]) -> None:
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
        self.optimizer = _is_optimizer(optimizer)

    def _watch_order(self) -> None:
        """From now on the order warning is this scheduler's, not each part's own."""
        self._do_not_watch_order()
        self._steps_before = self.optimizer._step_count

    def _do_not_watch_order(self) -> None:
        super()._do_not_watch_order()
        for scheduler in self._schedulers:
            scheduler._do_not_watch_order()

    def _leaves(self) -> Iterator[LRScheduler]:
        for scheduler in self._schedulers:
            yield from scheduler._leaves()

    def _reset_lrs(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["initial_lr"])

    def _restart(self) -> None:
        for scheduler in self._leaves():
            scheduler.last_epoch = -1
        self._reset_lrs()
        self._initial_step()
        self._do_not_watch_order()

    def _take_in_new_groups(self) -> None:
        for scheduler in self._schedulers:
            scheduler._take_in_new_groups()

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
        super()._take_over(state)


class ChainedScheduler(_CompositeLR):
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
        >>> from genesis.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> warmup = ConstantLR(optimizer, factor=0.5, total_iters=2)
        >>> scheduler = ChainedScheduler([warmup, ExponentialLR(optimizer, gamma=0.5)])
        >>> for epoch in range(4):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
        ...     scheduler.step()
        0 [0.5]
        1 [0.25]
        2 [0.25]
        3 [0.125]

    Source: `torch.optim.lr_scheduler.ChainedScheduler`.
    """

    def __init__(self, schedulers: Iterable[LRScheduler], optimizer: Optimizer | None = None):
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
        self._check_order()
        self._take_in_new_groups()
        for scheduler in self._schedulers:
            scheduler.step()
        self._last_lr = self._current_lrs()


class SequentialLR(_CompositeLR):
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
        >>> from genesis.optim.lr_scheduler import ExponentialLR, LinearLR, SequentialLR
        >>> optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=1.0)
        >>> warmup = LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = ExponentialLR(optimizer, gamma=0.5)
        >>> scheduler = SequentialLR(optimizer, [warmup, decay], milestones=[2])
        >>> for epoch in range(5):
        ...     print(epoch, scheduler.get_last_lr())
        ...     optimizer.step().clear_grad()
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
        optimizer: Optimizer,
        schedulers: Iterable[LRScheduler],
        milestones: Iterable[int],
        last_epoch: int = -1,
    ):
        self._hold(_is_optimizer(optimizer), schedulers)
        self._milestones = _milestones(milestones)
        if len(self._milestones) != len(self._schedulers) - 1:
            raise ValueError(
                "milestones must be one less than schedulers, but got "
                f"{len(self._milestones)} milestones and {len(self._schedulers)} schedulers"
            )
        self.last_epoch = _integer("last_epoch", last_epoch, -1) + 1
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
        self._check_order()
        self._take_in_new_groups()
        epoch = self.last_epoch + 1
        index = bisect_right(self._milestones, epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == epoch:
            scheduler._restart()
        else:
            scheduler.step()
        self.last_epoch = epoch
        self._last_lr = scheduler.get_last_lr()
