"""What all schedulers share: counting epochs, new groups, snapshots, the order of calls."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from numbers import Real
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar

from ... import hyper
from ...checks import integer, number
from .. import shown
from ..group import put
from ..optimizer import Optimizer

EPOCH_DEPRECATION_WARNING = (
    "`scheduler.step(epoch)` is deprecated and kept for old code: call `scheduler.step()` once an "
    "epoch. With an epoch, the closed form of the schedule is used where it has one."
)

NOISE = 1e-12
"""A negative learning rate of at most this part of the initial one is a rounding error of 0."""

_FLAGS = ("_is_initial", "_get_lr_called_within_step")
"""What torch saves, but sets only during a step."""

_RATE = hyper.rate()
"""The usual learning rate, for optimizers that declare none."""

_USUAL: Mapping[str, hyper.Hyper] = {
    "lr": _RATE, "momentum": hyper.non_negative(), "betas": hyper.decay()
}  # fmt: skip
"""What is possible for optimizers of other libraries, of "betas" the first."""

Scheduler = TypeVar("Scheduler", bound=type)


class AnyOptimizer(Protocol):
    """What a scheduler asks of an optimizer: genesis' own have it, torch's, and what is put around them.

    Attributes:
        param_groups: a list of dicts, each with "params" and "lr".
    """

    param_groups: list[dict[str, Any]]

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Update the parameters."""


def is_optimizer(optimizer: Any) -> Any:
    """`optimizer`, if it is one, see `AnyOptimizer`."""
    if not isinstance(optimizer, Optimizer):
        groups = getattr(optimizer, "param_groups", None)
        shows_groups = isinstance(groups, list) and all(
            isinstance(group, dict) and {"params", "lr"} <= group.keys() for group in groups
        )
        steps = callable(getattr(optimizer, "step", None)) and not isinstance(optimizer, type)
        if not (groups and shows_groups and steps):
            raise TypeError(
                f"{type(optimizer).__name__} is not an Optimizer: a scheduler needs one of genesis or "
                "torch, or an object with a method step and with param_groups, a list of dicts that "
                "have 'params' and 'lr'"
            )
    return optimizer


class _Noted:
    """Whether an optimizer that does not count its steps has made one since: its hook says so."""

    def __init__(self, optimizer: Any):
        self._stepped = False
        self._handle = optimizer.register_step_post_hook(self)

    def __call__(self, *args: Any) -> None:
        self._stepped = True

    def end(self) -> bool:
        """Take the hook out; whether there was a step."""
        self._handle.remove()
        return self._stepped

    def __reduce__(self) -> tuple:
        # A copy of the scheduler would wait for a hook that the optimizer's copy does not have.
        return _nothing, ()


def _nothing() -> None:
    pass


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
        optimizer: the optimizer whose groups are scheduled: of genesis, of torch, or anything like them
            (see `AnyOptimizer`). A learning rate that is a tensor of torch stays that tensor, and is
            filled.
        last_epoch: index of the last epoch done, in epochs; -1 starts anew, another value needs
            "initial_lr" in every group. Default: -1.
        current_epoch: MegEngine's name for `last_epoch`. Default: None.

    Attributes:
        last_epoch: the epoch that the current learning rates are for (also `current_epoch`).
        base_lrs: the initial learning rate of each group.

    Raises:
        TypeError: `optimizer` is none, or `last_epoch` is no number.
        ValueError: `last_epoch` is below -1.
        KeyError: `last_epoch` is not -1 and a group has no "initial_lr".

    Example:
        >>> import numpy as np, genesis
        >>> class Halving(genesis.optim.lr_scheduler.LRScheduler):
        ...     def get_lr(self):
        ...         return [lr * 0.5 ** self.last_epoch for lr in self.base_lrs]
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = Halving(optimizer)
        >>> for epoch in range(3):
        ...     print(epoch, scheduler.get_last_lr())
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0]
        1 [0.5]
        2 [0.25]
    """

    # The optimizer saves itself; the other attributes mean something only in this process.
    _unsaved: ClassVar[frozenset[str]] = frozenset(
        ("optimizer", "_given_as_list", "_steps_before", *_FLAGS)
    )
    # Arguments with a value for each group, and the attribute that lists these; None where the
    # groups themselves hold them, under the argument's name.
    _per_group: ClassVar[dict[str, str | None]] = {}
    _given_as_list: Mapping[str, bool] = MappingProxyType({})
    _steps_before: int | _Noted | None = None
    _is_initial = False
    _get_lr_called_within_step = False
    # Whether `get_lr` is that of this class, so that a step can do without it.
    _is_plain: ClassVar[bool] = True
    last_epoch: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_plain = cls.get_lr is LRScheduler.get_lr

    def __init__(
        self, optimizer: AnyOptimizer, last_epoch: int = -1, *, current_epoch: int | None = None
    ):
        self.optimizer = is_optimizer(optimizer)
        if current_epoch is not None:
            if last_epoch != -1:
                raise TypeError("last_epoch and current_epoch are the same: give one of them")
            last_epoch = current_epoch
        self.last_epoch = integer("last_epoch", last_epoch, -1)
        for i, group in enumerate(optimizer.param_groups):
            if callable(group["lr"]):
                raise ValueError(
                    f"the learning rate of param group {i} is a function of the step already, "
                    f"{group['lr']!r}: give the optimizer a number for a scheduler to change"
                )
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
        """`get_lr()` of genesis' own schedulers, without the warning."""
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
        if self._steps_before is not None:
            self._check_order()
        if epoch is not None:
            number("epoch", epoch)
            warnings.warn(EPOCH_DEPRECATION_WARNING, stacklevel=2)
        self._advance(epoch)

    def _check_order(self) -> None:
        """Warn, once, if no optimizer step came before the first scheduler step."""
        before, self._steps_before = self._steps_before, None
        count = getattr(self.optimizer, "_step_count", None)
        stepped = before.end() if isinstance(before, _Noted) else before != count
        if not stepped and not getattr(self.optimizer, "step_skipped", False):
            warnings.warn(
                "`lr_scheduler.step()` was called before `optimizer.step()`, so the first learning "
                "rate of the schedule is never used: call `optimizer.step()` first. See "
                "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate",
                stacklevel=3,
            )

    def _watch_order(self) -> None:
        """Notice from now on whether the optimizer makes a step, where it can be known."""
        if isinstance(self.optimizer, Optimizer):
            self._steps_before = self.optimizer._step_count
        elif hasattr(self.optimizer, "register_step_post_hook"):
            self._steps_before = _Noted(self.optimizer)

    def _do_not_watch_order(self) -> None:
        if isinstance(self._steps_before, _Noted):
            self._steps_before.end()
        self._steps_before = None

    def _declared(self, name: str) -> hyper.Hyper | None:
        """What the optimizer says is possible as a setting, or what is usual."""
        hypers = getattr(self.optimizer, "_hypers", _USUAL)
        return hypers.get(name)

    def _advance(self, epoch: Any = None, counted: bool = True) -> None:
        """Compute first, then write: an exception from a schedule leaves all as it was."""
        groups = self.optimizer.param_groups
        if len(groups) > len(self.base_lrs):
            self._take_in_new_groups()
        before = self.last_epoch
        self.last_epoch = before + 1 if epoch is None else epoch
        self._step_count += counted
        try:
            lrs = self._next_lrs() if epoch is None and self._is_plain else self._lrs_at(epoch)
            declared = self._declared("lr")
            usual = (declared or _RATE).is_usual
            for lr in lrs:
                # Nearly always so; else find out what is wrong with it, or mend it.
                if not usual(lr):
                    lrs = self._plain(lrs)
                    self._check("lr", declared, lrs)
                    break
            if len(lrs) != len(groups):
                raise ValueError(
                    f"{type(self).__name__} has {len(lrs)} learning rates for "
                    f"{len(groups)} parameter groups"
                )
        except BaseException:
            self.last_epoch = before
            self._step_count -= counted
            raise
        for group, lr in zip(groups, lrs):
            put(group, "lr", lr)
        self._last_lr = lrs

    def _check(self, name: str, declared: hyper.Hyper | None, values: list[Any]) -> None:
        """Raise TypeError or ValueError if a value is impossible that is about to be written."""
        if declared is None:
            return
        try:
            for value in values:
                declared.check(name, value)
        except (TypeError, ValueError) as error:
            where = f"(from {type(self).__name__} at epoch {self.last_epoch})"
            raise type(error)(f"{error} {where}") from None

    def _lrs_at(self, epoch: Any) -> list[float]:
        """What a subclass gives for `last_epoch`: its `get_lr()`, or at an epoch its closed form."""
        self._get_lr_called_within_step = True
        try:
            closed_form = getattr(self, "_get_closed_form_lr", None)
            return list(self.get_lr() if epoch is None or closed_form is None else closed_form())
        finally:
            self._get_lr_called_within_step = False

    def _plain(self, lrs: Iterable[Any]) -> list[float]:
        """Learning rates as floats, with 0 for what is negative only by rounding."""
        lrs = [float(lr) for lr in lrs]
        if not all(map(math.isfinite, lrs)):
            raise ValueError(
                f"{type(self).__name__} gives learning rates {lrs} at epoch {self.last_epoch}"
            )
        return [
            0.0 if -NOISE * size <= lr < 0 else lr
            for lr, size in zip(lrs, [*self._sizes(), *[0.0] * len(lrs)])
        ]

    def _sizes(self) -> list[float]:
        """For each group what its learning rates come from, and with it their rounding errors."""
        return self.base_lrs

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
        self._watch_order()

    def _restart(self) -> None:
        """Go back to epoch 0, as torch does at a milestone: no step of its own is counted."""
        self._advance(0, counted=False)

    def _leaves(self) -> Iterator[LRScheduler]:
        yield self

    # ---- for people ----

    __repr__ = shown.never_failing(shown.scheduler)

    def _argument(self, name: str) -> Any:
        """What the constructor was given as `name`; an error if that is not kept."""
        kept, places = vars(self), (name, f"_{name}", f"{name}s", self._per_group.get(name))
        found: Any = [kept[place] for place in places if place in kept][:1]
        found = found[0] if found else [group[name] for group in self.optimizer.param_groups]
        if name in self._given_as_list and found.count(found[0]) == len(found):
            return found[0]
        return found

    # ---- arguments with one value for each group ----

    def _one_per_group(self, name: str, value: Any, check: Callable = number) -> list:
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


def _shape_of(value: Any) -> str:
    """How a saved value is built, in words."""
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Real):
        return "a number"
    return "a string" if isinstance(value, str) else "plain data"


_OPTIMIZER = "    optimizer: the optimizer to schedule.\n"
_LAST_EPOCH = "    last_epoch: index of the last epoch done. Default: -1.\n"
_RAISES = """
Raises:
    TypeError, ValueError: an argument is of another kind, or out of its range, or a list has
        not one value for each group.
"""


def documented(schedule: Callable | None = None) -> Callable[[Scheduler], Scheduler]:
    """Complete the docstrings of schedulers: what is the same for all is written once.

    Args:
        schedule: the function of `genesis.optim.schedules` whose arguments the scheduler takes.
            Default: None, the docstring describes its own, under "Args:".
    """
    own = ""
    if schedule is not None:
        text = inspect.cleandoc(schedule.__doc__ or "")
        own = text.partition("Args:\n")[2].partition("\n\n")[0] + "\n"

    def complete(scheduler: Scheduler) -> Scheduler:
        if scheduler.__doc__ is None:  # python -OO
            return scheduler
        # Indented or not: Python 3.13 takes the indentation away where it compiles.
        head, _, rest = inspect.cleandoc(scheduler.__doc__).partition("Example:\n")
        head, _, described = head.partition("Args:\n")
        described = own + described.rstrip() + "\n" * bool(described)
        scheduler.__doc__ = (
            f"{head}Args:\n{_OPTIMIZER}{described}{_LAST_EPOCH}{_RAISES}\nExample:\n{rest}"
        )
        return scheduler

    return complete
