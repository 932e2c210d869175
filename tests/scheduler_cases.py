"""The table of learning-rate schedules: one line a case, which `test_lr_scheduler.py` runs through.

A line gives the scheduler, its arguments, and where the schedule has a formula, that formula as plain
Python: `lr(t, lr0)` from the step and the group's learning rate at the start. Torch is met to
`TOLERANCE`, relative to the larger number. The formulas are written another way, and a recursion gathers
rounding errors, so they are met to `FORMULA_TOLERANCE`, and near zero to that part of `FORMULA_FLOOR`.
"""

# A case is one line, however long.
# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

TOLERANCE = 1e-12
FORMULA_TOLERANCE = 1e-11
FORMULA_FLOOR = 1e-3
STEPS = 200
LRS = (0.1, 0.3, 0.02)


class Each(tuple):
    """A list argument: a value for each group, cut to the number of groups."""


class Part:
    """A scheduler inside of another one."""

    def __init__(self, kind: str, **kwargs: Any):
        self.kind = kind
        self.kwargs = kwargs


class Case(Part):
    def __init__(
        self,
        name: str,
        kind: str,
        lr: Callable[[int, float], float] | None = None,
        metric: Callable[[int], float] | None = None,
        optimizer: str = "SGD",
        steps: int = STEPS,
        **kwargs: Any,
    ):
        super().__init__(kind, **kwargs)
        self.name = name
        self.lr = lr
        self.metric = metric
        self.optimizer = optimizer
        self.steps = steps

    def __repr__(self) -> str:
        return f"{self.kind}-{self.name}"


def build(part: Part, make: Callable[..., Any], optimizer: Any) -> Any:
    """The scheduler of `part`, from the library in which `make(kind)` looks up a class."""
    kwargs = {}
    for name, value in part.kwargs.items():
        if isinstance(value, Each):
            value = list(value[: len(optimizer.param_groups)])
        elif isinstance(value, type):
            value = value()  # a callable object of its own for each scheduler
        elif name == "schedulers":
            value = [build(inner, make, optimizer) for inner in value]
        kwargs[name] = value
    if part.kind == "ChainedScheduler":
        return make(part.kind)(**kwargs)
    return make(part.kind)(optimizer, **kwargs)


class Fading:
    """A callable object, whose attributes belong into a snapshot."""

    def __init__(self) -> None:
        self.rate = 0.97
        self.calls = [0]

    def __call__(self, t: int) -> float:
        self.calls[0] += 1
        return self.rate**t


def half(low: float, high: float, part: float) -> float:
    """From `high` to `low` along half a cosine."""
    return low + (high - low) * (1 + math.cos(math.pi * part)) / 2


def period(t: int, first: int, mult: int) -> float:
    """How far `t` is in its period, when each is `mult` times as long as the one before."""
    while t >= first:
        t, first = t - first, first * mult
    return t / first


def triangle(t: int, up: float, down: float) -> float:
    t %= up + down
    return t / up if t <= up else (up + down - t) / down


def one_cycle(
    t: int, peak: float, total: int, pct: float, curve=half, div=25.0, final=1e4
) -> float:
    top = pct * total - 1
    if t <= top:
        return curve(peak, peak / div, t / top)
    return curve(peak / div / final, peak, (t - top) / (total - 1 - top))


def line(low: float, high: float, part: float) -> float:
    return high + (low - high) * part


def noise(t: int) -> float:
    """A metric that falls, unevenly."""
    return 1.0 / (1 + t // 7) + 0.05 * ((t * 7919) % 13)


LINEAR, CONSTANT = Part("LinearLR", start_factor=0.1, total_iters=6), Part("ConstantLR")
EXP, STEP = Part("ExponentialLR", gamma=0.97), Part("StepLR", step_size=5, gamma=0.5)
COS, ONE = Part("CosineAnnealingLR", T_max=30), Part("OneCycleLR", max_lr=0.4, total_steps=300)
WARM, POLY = Part("CosineAnnealingWarmRestarts", T_0=9), Part("PolynomialLR", total_iters=90)
ADAM = {"optimizer": "Adam"}

# fmt: off
CASES = [
    Case("fade", "LambdaLR", lambda t, lr: lr * 0.95**t, lr_lambda=lambda t: 0.95**t),
    Case("object", "LambdaLR", lambda t, lr: lr * 0.97**t, lr_lambda=Fading),
    Case("each", "LambdaLR", lr_lambda=Each((lambda t: 0.9**t, lambda t: t // 30, lambda t: 1.0))),
    Case("int", "LambdaLR", lambda t, lr: lr * (t // 3), lr_lambda=lambda t: t // 3),
    Case("fade", "MultiplicativeLR", lambda t, lr: lr * 0.95**t, lr_lambda=lambda t: 0.95),
    Case("object", "MultiplicativeLR", lr_lambda=Fading),
    Case("each", "MultiplicativeLR", lr_lambda=Each((lambda t: 0.9, lambda t: 1.0 - 1e-3 * t, lambda t: 1.01))),
    Case("warm", "get_cosine_schedule_with_warmup", lambda t, lr: lr * t / 10 if t < 10 else half(0, lr, (t - 10) / 190), num_warmup_steps=10, num_training_steps=200),
    Case("cold", "get_cosine_schedule_with_warmup", lambda t, lr: half(0, lr, t / 200), num_warmup_steps=0, num_training_steps=200),
    Case("waves", "get_cosine_schedule_with_warmup", lambda t, lr: lr * t / 3 if t < 3 else half(0, lr, 3 * (t - 3) / 97), num_warmup_steps=3, num_training_steps=100, num_cycles=1.5),
    Case("0.9", "ExponentialLR", lambda t, lr: lr * 0.9**t, gamma=0.9),
    Case("0.999", "ExponentialLR", lambda t, lr: lr * 0.999**t, gamma=0.999),
    Case("grow", "ExponentialLR", lambda t, lr: lr * 1.02**t, gamma=1.02),
    Case("zero", "ExponentialLR", lambda t, lr: lr * (t == 0), gamma=0),
    Case("3", "StepLR", lambda t, lr: lr * 0.1 ** (t // 3), step_size=3),
    Case("1", "StepLR", lambda t, lr: lr * 0.99**t, step_size=1, gamma=0.99),
    Case("30", "StepLR", lambda t, lr: lr * 0.5 ** (t // 30), step_size=30, gamma=0.5),
    Case("three", "MultiStepLR", lambda t, lr: lr * 0.1 ** ((t >= 5) + (t >= 30) + (t >= 80)), milestones=[5, 30, 80]),
    Case("twice", "MultiStepLR", lambda t, lr: lr * 0.5 ** (2 * (t >= 7) + (t >= 20)), milestones=[7, 7, 20], gamma=0.5),
    Case("zero", "MultiStepLR", lambda t, lr: lr * 0.5 ** (1 + (t >= 9)), milestones=[0, 9], gamma=0.5),
    Case("none", "MultiStepLR", lambda t, lr: lr, milestones=[]),
    Case("default", "ConstantLR", lambda t, lr: lr / 3 if t < 5 else lr),
    Case("long", "ConstantLR", lambda t, lr: lr * 0.25 if t < 90 else lr, factor=0.25, total_iters=90),
    Case("one", "ConstantLR", lambda t, lr: lr, factor=1, total_iters=3),
    Case("never", "ConstantLR", lambda t, lr: lr / 4, factor=0.25, total_iters=0),
    Case("never-still", "ConstantLR", lambda t, lr: 0.0, factor=0, total_iters=0),
    Case("default", "LinearLR", lambda t, lr: lr * (1 / 3 + 2 / 3 * min(t, 5) / 5)),
    Case("up", "LinearLR", lambda t, lr: lr * (0.01 + 0.99 * min(t, 37) / 37), start_factor=0.01, total_iters=37),
    Case("down", "LinearLR", lambda t, lr: lr * (1 - 0.9 * min(t, 50) / 50), start_factor=1, end_factor=0.1, total_iters=50),
    Case("to-zero", "LinearLR", lambda t, lr: lr * 0.5 * (1 - min(t, 20) / 20), start_factor=0.5, end_factor=0, total_iters=20),
    Case("default", "PolynomialLR", lambda t, lr: lr * (1 - min(t, 5) / 5)),
    Case("square", "PolynomialLR", lambda t, lr: lr * (1 - min(t, 250) / 250) ** 2, total_iters=250, power=2),
    Case("0.9", "PolynomialLR", lambda t, lr: lr * (1 - min(t, 60) / 60) ** 0.9, total_iters=60, power=0.9),
    Case("flat", "PolynomialLR", lambda t, lr: lr, total_iters=60, power=0),
    Case("10", "CosineAnnealingLR", T_max=10),
    Case("200", "CosineAnnealingLR", lambda t, lr: half(0, lr, t / 200), T_max=200),
    Case("1", "CosineAnnealingLR", lambda t, lr: half(0.01, lr, t), T_max=1, eta_min=0.01),
    Case("waves", "CosineAnnealingLR", lambda t, lr: half(0.001, lr, t / 25), T_max=25, eta_min=0.001),
    Case("upwards", "CosineAnnealingLR", lambda t, lr: half(0.5, lr, t / 40), T_max=40, eta_min=0.5),
    Case("10", "CosineAnnealingWarmRestarts", lambda t, lr: half(0, lr, period(t, 10, 1)), T_0=10),
    Case("1", "CosineAnnealingWarmRestarts", lambda t, lr: lr, T_0=1),
    Case("7x2", "CosineAnnealingWarmRestarts", lambda t, lr: half(0.001, lr, period(t, 7, 2)), T_0=7, T_mult=2, eta_min=0.001),
    Case("1x3", "CosineAnnealingWarmRestarts", lambda t, lr: half(0, lr, period(t, 1, 3)), T_0=1, T_mult=3),
    Case("default", "SWALR", lambda t, lr: half(0.05, lr, min(t, 10) / 10), swa_lr=0.05),
    Case("linear", "SWALR", lambda t, lr: line(0.2, lr, min(t, 33) / 33), swa_lr=0.2, anneal_epochs=33, anneal_strategy="linear"),
    Case("at-once", "SWALR", lambda t, lr: 0.01, swa_lr=0.01, anneal_epochs=0),
    Case("each", "SWALR", swa_lr=Each((0.2, 0.1, 0.0)), anneal_epochs=15),
    Case("triangular", "CyclicLR", lambda t, lr: 0.01 + 0.09 * triangle(t, 8, 8), base_lr=0.01, max_lr=0.1, step_size_up=8),
    Case("uneven", "CyclicLR", lambda t, lr: 0.01 + 0.09 * triangle(t, 5, 13), base_lr=0.01, max_lr=0.1, step_size_up=5, step_size_down=13),
    Case("saw", "CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=16, step_size_down=0, cycle_momentum=False),
    Case("triangular2", "CyclicLR", lambda t, lr: 0.01 + 0.09 * triangle(t, 16, 16) / 2 ** (t // 32), base_lr=0.01, max_lr=0.1, step_size_up=16, mode="triangular2", **ADAM),
    Case("exp-range", "CyclicLR", lambda t, lr: 0.01 + 0.09 * triangle(t, 16, 16) * 0.99**t, base_lr=0.01, max_lr=0.1, step_size_up=16, mode="exp_range", gamma=0.99, base_momentum=0.6, max_momentum=0.95),
    Case("own-cycles", "CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=6.5, scale_fn=lambda x: 1 / x, **ADAM),
    Case("own-steps", "CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=9, scale_fn=Fading, scale_mode="iterations"),
    Case("each", "CyclicLR", base_lr=Each((0.01, 0.02, 0.03)), max_lr=Each((0.1, 0.01, 0.3)), step_size_up=7, base_momentum=Each((0.7, 0.8, 0.0)), max_momentum=Each((0.9, 0.95, 0.5))),
    Case("two-phases", "OneCycleLR", lambda t, lr: one_cycle(t, 0.4, 200, 0.3), max_lr=0.4, total_steps=200),
    Case("linear", "OneCycleLR", lambda t, lr: one_cycle(t, 1.0, 210, 0.25, line, 10, 100), max_lr=1, epochs=21, steps_per_epoch=10, pct_start=0.25, anneal_strategy="linear", div_factor=10, final_div_factor=100, **ADAM),
    Case("three-phases", "OneCycleLR", max_lr=0.4, total_steps=201, three_phase=True, pct_start=0.4),
    Case("no-rise", "OneCycleLR", max_lr=0.4, total_steps=200, pct_start=0.0, cycle_momentum=False),
    Case("all-rise", "OneCycleLR", max_lr=0.4, total_steps=200, pct_start=1.0, base_momentum=0.5, max_momentum=0.99),
    Case("short", "OneCycleLR", max_lr=0.4, total_steps=41, steps=41, **ADAM),
    Case("each", "OneCycleLR", max_lr=Each((0.4, 0.3, 0.2)), total_steps=220, base_momentum=Each((0.7, 0.8, 0.1)), max_momentum=Each((0.9, 0.95, 0.5))),
    Case("stuck", "ReduceLROnPlateau", lambda t, lr: lr * 0.1 ** (max(0, t - 1) // 3), lambda t: 1.0, patience=2, eps=0),
    Case("cooldown", "ReduceLROnPlateau", lambda t, lr: lr * 0.5 ** (max(0, t + 2) // 5), lambda t: 1.0, patience=1, factor=0.5, cooldown=3, eps=0),
    Case("noise", "ReduceLROnPlateau", metric=noise, patience=3, factor=0.7, cooldown=2),
    Case("bounded", "ReduceLROnPlateau", metric=noise, patience=0, factor=0.3, min_lr=Each((1e-3, 1e-2, 1e-4)), eps=1e-5),
    Case("max", "ReduceLROnPlateau", metric=noise, mode="max", factor=0.9, patience=4, threshold=0.2),
    Case("max-abs", "ReduceLROnPlateau", metric=noise, mode="max", threshold_mode="abs", threshold=0.02, patience=1, factor=0.8),
    Case("abs", "ReduceLROnPlateau", metric=noise, threshold_mode="abs", threshold=0.02, patience=5, factor=0.8),
    Case("nan", "ReduceLROnPlateau", metric=lambda t: math.nan if t % 4 else -t, patience=1, factor=0.8),
    Case("constant-exp", "ChainedScheduler", lambda t, lr: lr * 0.97**t * (1 / 3 if t < 5 else 1), schedulers=[CONSTANT, EXP]),
    Case("linear-step-cos", "ChainedScheduler", schedulers=[LINEAR, STEP, COS]),
    Case("one-step", "ChainedScheduler", schedulers=[ONE, STEP]),
    Case("sequence-exp", "ChainedScheduler", schedulers=[Part("SequentialLR", schedulers=[LINEAR, STEP], milestones=[6]), EXP]),
    Case("linear-cos", "SequentialLR", lambda t, lr: lr * (0.1 + 0.9 * t / 6) if t < 6 else half(0, lr, (t - 6) / 300), schedulers=[LINEAR, Part("CosineAnnealingLR", T_max=300)], milestones=[6]),
    Case("constant-exp", "SequentialLR", lambda t, lr: lr / 3 if t < 4 else lr * 0.97 ** (t - 4), schedulers=[CONSTANT, EXP], milestones=[4]),
    Case("three", "SequentialLR", schedulers=[LINEAR, WARM, POLY], milestones=[6, 20]),
    Case("skipped", "SequentialLR", schedulers=[LINEAR, STEP, EXP], milestones=[8, 8]),
    Case("at-zero", "SequentialLR", lambda t, lr: lr * 0.97**t, schedulers=[LINEAR, EXP], milestones=[0]),
    Case("linear-one", "SequentialLR", schedulers=[LINEAR, ONE], milestones=[11]),
    Case("one", "SequentialLR", lambda t, lr: lr * 0.97**t, schedulers=[EXP], milestones=[]),
]

# Where torch misses the first step or cannot go on (pytorch/pytorch issue 196243), the formula alone says.
NESTED = [
    Case("chain-first", "SequentialLR", lambda t, lr: lr * 0.97**t * (1 / 3 if t < 5 else 1) if t < 8 else lr * 0.5 ** ((t - 8) // 5), schedulers=[Part("ChainedScheduler", schedulers=[CONSTANT, EXP]), STEP], milestones=[8]),
    Case("chain-last", "SequentialLR", lambda t, lr: lr * 0.5 ** (t // 5) if t < 8 else lr * 0.97 ** (t - 8) * (1 / 3 if t < 13 else 1), schedulers=[STEP, Part("ChainedScheduler", schedulers=[CONSTANT, EXP])], milestones=[8]),
    Case("sequence-first", "SequentialLR", lambda t, lr: lr / 3 if t < 4 else lr * 0.97 ** (t - 4) if t < 20 else lr * 0.5 ** ((t - 20) // 5), schedulers=[Part("SequentialLR", schedulers=[CONSTANT, EXP], milestones=[4]), STEP], milestones=[20]),
    Case("sequence-last", "SequentialLR", lambda t, lr: lr * 0.97**t if t < 7 else lr / 3 if t < 11 else lr * 0.5 ** ((t - 11) // 5), schedulers=[EXP, Part("SequentialLR", schedulers=[CONSTANT, STEP], milestones=[4])], milestones=[7]),
    Case("start-at-peak", "OneCycleLR", lambda t, lr: half(0.4 / 25e4, 0.4, t / 19), max_lr=0.4, total_steps=20, pct_start=0.05, steps=20),
    Case("still", "ConstantLR", lambda t, lr: 0.0 if t < 4 else lr, factor=0, total_iters=4),
]
# fmt: on
