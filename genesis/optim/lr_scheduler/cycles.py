"""Cycles, counted in steps (batches), which move the momentum against the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ... import hyper
from ...checks import choice, function, integer, number
from ..group import put, set_rate
from ..schedules import anneal, cycle_scale, triangle
from .base import NOISE, AnyOptimizer, LRScheduler, documented, is_optimizer
from .functions import function_state, with_state


class MomentumLR(LRScheduler):
    """Sets "momentum", or the first of "betas", with each learning rate."""

    _unsaved: ClassVar = LRScheduler._unsaved | {"_momenta"}
    # What `_next_lrs` found for the settings, until they are written.
    _momenta: Sequence[Any] = ()
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
        defaults = getattr(self.optimizer, "defaults", self.optimizer.param_groups[0])
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

    def _use(self, momenta: list[float]) -> None:
        """Make settings of the groups' next momenta, or raise before anything is written."""
        name = "betas" if self.use_beta1 else "momentum"
        declared = self._declared(name)
        part = declared.parts[0] if isinstance(declared, hyper.Several) else declared
        values: list[Any] = []
        for group, momentum in zip(self.optimizer.param_groups, momenta):
            if -NOISE <= momentum < 0:  # a rounding error
                momentum = 0.0
            values.append((momentum, *group["betas"][1:]) if self.use_beta1 else momentum)
            if part is not None and not part.is_usual(momentum):
                whole = isinstance(declared, hyper.Several)
                self._check(name, declared, values[-1:] if whole else [momentum])
        self._momenta = values

    def _advance(self, epoch: Any = None, counted: bool = True) -> None:
        super()._advance(epoch, counted)
        name = "betas" if self.cycle_momentum and self.use_beta1 else "momentum"
        for group, value in zip(self.optimizer.param_groups, self._momenta):
            put(group, name, value)


@documented()
class CyclicLR(MomentumLR):
    """Up and down between two learning rates, again and again, in steps (batches).

        lr(t) = base_lr + (max_lr - base_lr) * h(t) * scale
        momentum(t) = max_momentum - (max_momentum - base_momentum) * h(t) * scale

    h rises from 0 to 1 in `step_size_up` steps and falls to 0 in `step_size_down`. The scale is 1
    ("triangular"), 1 / 2^(cycle - 1) ("triangular2") or gamma^t ("exp_range").

    Args:
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

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0)
        >>> scheduler = CyclicLR(
        ...     optimizer, 1.0, 3.0, step_size_up=2, base_momentum=0.5, max_momentum=0.75)
        >>> for step in range(5):
        ...     print(step, scheduler.get_last_lr(), optimizer.param_groups[0]["momentum"])
        ...     _ = optimizer.step(grads=[np.ones(2)])
        ...     scheduler.step()
        0 [1.0] 0.75
        1 [2.0] 0.625
        2 [3.0] 0.5
        3 [2.0] 0.625
        4 [1.0] 0.75

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks",
    https://arxiv.org/abs/1506.01186.
    """

    _unsaved: ClassVar = MomentumLR._unsaved | {"_scale_fn_custom"}
    _per_group: ClassVar = {
        "max_lr": "max_lrs",
        "base_momentum": "base_momentums",
        "max_momentum": "max_momentums",
    }

    def __init__(
        self,
        optimizer: AnyOptimizer,
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
        self.optimizer = is_optimizer(optimizer)
        last_epoch = integer("last_epoch", last_epoch, -1)
        base_lrs = self._one_per_group("base_lr", base_lr)
        self.max_lrs = self._one_per_group("max_lr", max_lr)
        up = down = number("step_size_up", step_size_up, "(0, inf)")
        if step_size_down is not None:
            down = number("step_size_down", step_size_down)
        self.total_size = up + down
        self.step_ratio = up / self.total_size
        self.gamma = number("gamma", gamma)
        self._scale_fn_custom = None if scale_fn is None else function("scale_fn", scale_fn)
        self.scale_mode = choice("scale_mode", scale_mode, ("cycle", "iterations"))
        self.mode = mode
        if scale_fn is None:
            choice("mode", mode, ("triangular", "triangular2", "exp_range"))
            self.scale_mode = "iterations" if mode == "exp_range" else "cycle"
        lows, highs = self._use_momentum(cycle_momentum, base_momentum, max_momentum)
        if self.cycle_momentum:
            self.base_momentums, self.max_momentums = lows, highs
        if last_epoch == -1:
            for i, group in enumerate(optimizer.param_groups):
                set_rate(group, base_lrs[i])
                if self.cycle_momentum:
                    group["base_momentum"], group["max_momentum"] = lows[i], highs[i]
        super().__init__(optimizer, last_epoch)
        # An "initial_lr" that another scheduler left is not where a cycle begins.
        self.base_lrs = base_lrs

    def _argument(self, name: str) -> Any:
        up = self.total_size * self.step_ratio
        if name.startswith("step_size"):
            return up if name == "step_size_up" else self.total_size - up
        if name == "scale_fn":
            return self._scale_fn_custom
        return super()._argument(name)

    def scale_fn(self, x: float) -> float:
        """The scale of the cycle number or step `x`, whichever `scale_mode` says."""
        if self._scale_fn_custom is not None:
            return float(self._scale_fn_custom(x))
        return cycle_scale(self.mode, self.gamma, x)

    def _next_lrs(self) -> list[float]:
        t = self.last_epoch
        cycle, height = triangle(t, self.total_size, self.step_ratio)
        scale = self.scale_fn(cycle if self.scale_mode == "cycle" else t)
        if self.cycle_momentum:
            self._use(
                [
                    high + (low - high) * height * scale
                    for low, high in zip(self.base_momentums, self.max_momentums)
                ]
            )
        return [
            low + (high - low) * height * scale for low, high in zip(self.base_lrs, self.max_lrs)
        ]

    def _sizes(self) -> list[float]:
        return list(map(max, self.base_lrs, self.max_lrs))

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
        return {**super().state_dict(), "_scale_fn_custom": function_state(self._scale_fn_custom)}

    def _take_over(self, state: dict[str, Any]) -> None:
        saved = state.pop("_scale_fn_custom")
        if self._scale_fn_custom is not None:
            self._scale_fn_custom = with_state(self._scale_fn_custom, saved)
        super()._take_over(state)


@documented()
class OneCycleLR(MomentumLR):
    """One rise to a large learning rate and one fall to a tiny one, in steps (batches).

        initial_lr = max_lr / div_factor,  min_lr = initial_lr / final_div_factor
        initial_lr -> max_lr -> min_lr                in two phases
        initial_lr -> max_lr -> initial_lr -> min_lr  in three

    The rise ends at step pct_start * total_steps - 1, the last phase at total_steps - 1. Momentum
    goes from `max_momentum` to `base_momentum` and back. "initial_lr", "max_lr", "min_lr",
    "base_momentum" and "max_momentum" are put into the groups. The step after the last one stays at
    the end (where torch's would go on, on a line to below 0).

    Args:
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

    Example:
        >>> import numpy as np, genesis
        >>> optimizer = genesis.optim.SGD([np.ones(2)], lr=1.0, momentum=0.9)
        >>> scheduler = OneCycleLR(optimizer, 1.0, total_steps=6, pct_start=0.5, div_factor=10)
        >>> for step in range(6):
        ...     print(step, [round(lr, 3) for lr in scheduler.get_last_lr()])
        ...     _ = optimizer.step(grads=[np.ones(2)])
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

    _unsaved: ClassVar = MomentumLR._unsaved | {"_div_factor", "_final_div_factor"}
    _per_group: ClassVar = {"max_lr": None, "base_momentum": None, "max_momentum": None}

    def __init__(
        self,
        optimizer: AnyOptimizer,
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
        self.optimizer = is_optimizer(optimizer)
        last_epoch = integer("last_epoch", last_epoch, -1)
        if total_steps is not None:
            self.total_steps = integer("total_steps", total_steps, 1)
        elif epochs is not None and steps_per_epoch is not None:
            self.total_steps = integer("epochs", epochs, 1)
            self.total_steps *= integer("steps_per_epoch", steps_per_epoch, 1)
        else:
            raise ValueError("give either total_steps or both epochs and steps_per_epoch")
        rise = number("pct_start", pct_start, "[0, 1]") * self.total_steps - 1
        self._anneal_func_type = choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self._div_factor = number("div_factor", div_factor, "(0, inf)")
        self._final_div_factor = number("final_div_factor", final_div_factor, "(0, inf)")

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

    def _next_lrs(self) -> list[float]:
        t, begin = self.last_epoch, 0.0
        if t > self.total_steps:
            raise ValueError(
                f"Tried to step {t} times; "
                f"the specified number of total steps is {self.total_steps}"
            )
        for phase in self._schedule_phases:
            end = phase["end_step"]
            if t <= end or phase is self._schedule_phases[-1]:
                break
            begin = end
        # A rise of no length, as with pct_start * total_steps == 1, is at its end.
        part = min((t - begin) / (end - begin), 1.0) if end != begin else 1.0
        strategy = self._anneal_func_type
        lrs, momenta = [], []
        for group in self.optimizer.param_groups:
            if "max_lr" not in group:
                self._grow_lists()
            start, end = group[phase["start_lr"]], group[phase["end_lr"]]
            lrs.append(anneal(strategy, start, end, part))
            if self.cycle_momentum:
                start, end = group[phase["start_momentum"]], group[phase["end_momentum"]]
                momenta.append(anneal(strategy, start, end, part))
        if self.cycle_momentum:
            self._use(momenta)
        return lrs

    def _sizes(self) -> list[float]:
        return [group["max_lr"] for group in self.optimizer.param_groups]

    def _take_in_new_groups(self) -> None:
        known = len(self.base_lrs)
        super()._take_in_new_groups()
        for i, group in enumerate(self.optimizer.param_groups[known:], known):
            self._set_bounds(group)
            self.base_lrs[i] = group["initial_lr"]
