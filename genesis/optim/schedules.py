"""Schedules as plain functions: `f(t)` is a factor at step (or epoch) t, counted from 0.

Each function here makes one from its arguments. Multiply it by a number to have a learning rate, or
by another schedule to have both at once::

    lr = 3e-4 * warmup(100, cosine(900))
    lr(0), lr(100), lr(1000)            # 0.0, 3e-4, 0.0

A schedule is a value: it shows how it was made, equals another one that was made alike, can be
pickled, and cannot be changed. Any of them can be the `lr_lambda` of a `LambdaLR`.

The schedulers of `genesis.optim.lr_scheduler` of the same names compute the same up to rounding.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

from .. import checks

__all__ = [
    "Schedule",
    "constant",
    "linear",
    "exponential",
    "step",
    "multistep",
    "polynomial",
    "cosine",
    "warm_restarts",
    "warmup_cosine",
    "cyclic",
    "one_cycle",
    "warmup",
    "product",
]

P = ParamSpec("P")

_COMMON = """
Returns:
    A `Schedule`: the function of the step.

Raises:
    TypeError, ValueError: an argument is of another kind, or out of its range.
"""


class Schedule:
    """A function of the step, made by one of the functions of this module.

    Its arguments are its attributes.

    Example:
        >>> from genesis.optim import schedules
        >>> schedule = schedules.exponential(0.5)
        >>> schedule, schedule.gamma, schedule(2)
        (exponential(gamma=0.5), 0.5, 0.25)
        >>> (0.1 * schedule)(0)
        0.1
    """

    __slots__ = ("__dict__", "_formula", "_make")

    _formula: Callable[..., float]
    _make: Callable[..., Schedule]

    def __init__(
        self,
        formula: Callable[..., float],
        make: Callable[..., Schedule],
        given: Mapping[str, Any],
    ):
        object.__setattr__(self, "_formula", formula)
        object.__setattr__(self, "_make", make)
        self.__dict__.update(given)

    def __call__(self, t: float) -> float:
        return self._formula(t, **self.__dict__)

    def replace(self, **given: Any) -> Schedule:
        """A schedule like this one, with other arguments.

        Args:
            given: arguments of the function that made this one, by name; the others stay.

        Raises:
            TypeError, ValueError: what that function raises for them.

        Example:
            >>> from genesis.optim import schedules
            >>> schedules.step(30, gamma=0.5).replace(gamma=0.2)
            step(step_size=30, gamma=0.2)
        """
        return self._make(**{**self.__dict__, **given})

    def __mul__(self, other: Any) -> Schedule:
        return product(self, other)

    def __rmul__(self, other: Any) -> Schedule:
        return product(other, self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self!r} cannot be changed: use replace({name}=...)")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._formula is other._formula and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self._formula, *self.__dict__.values()))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{self._make.__name__}({given})"

    def __reduce__(self) -> tuple:
        return partial(self._make, **self.__dict__), ()


def _schedule(**checks: Callable[[str, Any], Any]) -> Callable:
    """Turn a formula `f(t, ...)` into a function of its other arguments that makes a `Schedule`.

    Args:
        checks: for an argument, what returns its plain value or raises.
    """

    def decorate(formula: Callable[Concatenate[float, P], float]) -> Callable[P, Schedule]:
        signature = inspect.signature(formula)
        signature = signature.replace(
            parameters=list(signature.parameters.values())[1:], return_annotation="Schedule"
        )
        arguments = inspect.Signature(
            [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        )

        @wraps(formula)
        def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{error}: it is {formula.__name__}{arguments}") from None
            bound.apply_defaults()
            given = {
                name: checks[name](name, value) if name in checks else value
                for name, value in bound.arguments.items()
            }
            return Schedule(formula, make, given)

        make.makes_schedules = True  # type: ignore[attr-defined]
        make.__signature__ = signature  # type: ignore[attr-defined]
        text = inspect.cleandoc(formula.__doc__ or "")
        make.__doc__ = text.replace("\nExample:", f"{_COMMON}\nExample:")
        return make

    return decorate


NUMBER = checks.number
PART = partial(checks.number, interval="[0, 1]")
COUNT = partial(checks.integer, minimum=1)
COUNT_OR_0 = partial(checks.integer, minimum=0)
ANNEALING = partial(checks.choice, choices=("cos", "linear"))
MODE = partial(checks.choice, choices=("triangular", "triangular2", "exp_range"))


def POSITIVE(name: str, value: Any) -> float:
    return checks.number(name, value, "(0, inf)")


def _number_or_schedule(name: str, value: Any) -> Any:
    return value if callable(value) else NUMBER(name, value)


def _at(t: float, value: Any) -> float:
    return float(value(t)) if callable(value) else value


# ---- one line or power ----


@_schedule(factor=PART, total_iters=COUNT_OR_0)
def constant(t: float, factor: float = 1.0 / 3, total_iters: int = 5) -> float:
    """`factor` before `total_iters`, 1 from then on.

    Args:
        factor: in [0, 1]. Default: 1/3.
        total_iters: length in steps, at least 0. Default: 5.

    Example:
        >>> [constant(0.5, total_iters=2)(t) for t in range(4)]
        [0.5, 0.5, 1.0, 1.0]
    """
    return factor + (t >= total_iters) * (1.0 - factor)


@_schedule(
    start_factor=partial(checks.number, interval="(0, 1]"), end_factor=PART, total_iters=COUNT
)
def linear(
    t: float, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
) -> float:
    """`start_factor + (end_factor - start_factor) * min(t / total_iters, 1)`.

    Args:
        start_factor: in (0, 1]. Default: 1/3.
        end_factor: in [0, 1]. Default: 1.
        total_iters: length in steps, at least 1. Default: 5.

    Example:
        >>> [linear(0.5, total_iters=2)(t) for t in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """
    return start_factor + (end_factor - start_factor) * min(total_iters, t) / total_iters


@_schedule(gamma=NUMBER)
def exponential(t: float, gamma: float) -> float:
    """`gamma^t`.

    Args:
        gamma: factor of a step, at least 0.

    Example:
        >>> [exponential(0.5)(t) for t in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    return gamma**t


@_schedule(step_size=COUNT, gamma=NUMBER)
def step(t: float, step_size: int, gamma: float = 0.1) -> float:
    """`gamma^floor(t / step_size)`.

    Args:
        step_size: steps between two decays, at least 1.
        gamma: factor of a decay, at least 0. Default: 0.1.

    Example:
        >>> [step(2, gamma=0.5)(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return gamma ** (t // step_size)


@_schedule(milestones=checks.milestones, gamma=NUMBER)
def multistep(t: float, milestones: Iterable[int], gamma: float = 0.1) -> float:
    """`gamma^n` where n milestones are at most t.

    Args:
        milestones: increasing steps; one that comes twice decays twice.
        gamma: factor of a decay, at least 0. Default: 0.1.

    Example:
        >>> [multistep([1, 3], gamma=0.5)(t) for t in range(4)]
        [1.0, 0.5, 0.5, 0.25]
    """
    return gamma ** bisect_right(milestones, t)  # type: ignore[call-overload]


@_schedule(total_iters=COUNT, power=NUMBER)
def polynomial(t: float, total_iters: int = 5, power: float = 1.0) -> float:
    """`(1 - min(t / total_iters, 1))^power`.

    Args:
        total_iters: length in steps, at least 1. Default: 5.
        power: exponent, at least 0; 1 is a line. Default: 1.

    Example:
        >>> [polynomial(4, power=2)(t) for t in range(5)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    return (1.0 - min(total_iters, t) / total_iters) ** power


# ---- cosines ----


def half_cosine(t: float, length: float) -> float:
    """1 at t = 0, 0 at t = `length`, along half a cosine."""
    return (1 + math.cos(math.pi * t / length)) / 2


def restarts(t: float, first: float, mult: int) -> tuple[float, float]:
    """The time since the last restart and the length of the period, at time `t`."""
    if mult == 1:
        return t % first, first
    while t >= first:
        t -= first
        first *= mult
    return t, first


@_schedule(T_max=COUNT, low=PART)
def cosine(t: float, T_max: int, low: float = 0.0) -> float:
    """`low + (1 - low) * (1 + cos(pi t / T_max)) / 2`: half a cosine, and later up again.

    Args:
        T_max: steps from the highest to the lowest point, at least 1.
        low: the lowest factor, in [0, 1]. Default: 0.

    Example:
        >>> [round(cosine(4)(t), 3) for t in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return low + (1.0 - low) * half_cosine(t, T_max)


@_schedule(T_0=COUNT, T_mult=COUNT, low=PART)
def warm_restarts(t: float, T_0: int, T_mult: int = 1, low: float = 0.0) -> float:
    """Half a cosine from 1 to `low`, started again and again.

    Args:
        T_0: length of the first period in steps, at least 1.
        T_mult: how many times as long as the one before each period is, at least 1. Default: 1.
        low: the lowest factor, in [0, 1]. Default: 0.

    Example:
        >>> [round(warm_restarts(2, T_mult=2)(t), 3) for t in range(6)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    """
    return low + (1.0 - low) * half_cosine(*restarts(t, T_0, T_mult))


@_schedule(num_warmup_steps=COUNT_OR_0, num_training_steps=COUNT_OR_0, num_cycles=NUMBER)
def warmup_cosine(
    t: float, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5
) -> float:
    """A line from 0 to 1, then a cosine down to 0, as Hugging Face has it.

    Args:
        num_warmup_steps: length of the line in steps; 0 for none.
        num_training_steps: all steps, the line included.
        num_cycles: waves of the cosine; 0.5 goes down once. Default: 0.5.

    Example:
        >>> [round(warmup_cosine(2, 6)(t), 3) for t in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if t < num_warmup_steps:
        return t / num_warmup_steps
    progress = (t - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))


# ---- cycles ----


def triangle(t: float, total_size: float, step_ratio: float) -> tuple[int, float]:
    """The number of the cycle, from 1, and how high `t` is on its triangle, from 0 to 1."""
    cycle = math.floor(1 + t / total_size)
    part = 1.0 + t / total_size - cycle
    if part <= step_ratio:
        return cycle, part / step_ratio
    return cycle, (part - 1) / (step_ratio - 1)


def cycle_scale(mode: str, gamma: float, x: float) -> float:
    """The scale of cycle `x`, or of step `x` for "exp_range"."""
    if mode == "exp_range":
        return gamma**x
    return 1.0 if mode == "triangular" else 1 / (2.0 ** (x - 1))


def anneal(strategy: str, start: float, end: float, part: float) -> float:
    """From `start` to `end` along half a cosine ("cos") or a line ("linear")."""
    if strategy == "cos":
        return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)
    return (end - start) * part + start


@_schedule(
    step_size_up=POSITIVE,
    step_size_down=lambda name, value: None if value is None else NUMBER(name, value),
    mode=MODE,
    gamma=NUMBER,
    low=PART,
)
def cyclic(
    t: float,
    step_size_up: float = 2000,
    step_size_down: float | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    low: float = 0.0,
) -> float:
    """`low + (1 - low) * h(t) * scale`: up to 1 and down again, again and again.

    h rises from 0 to 1 in `step_size_up` steps and falls to 0 in `step_size_down`. The scale is 1
    ("triangular"), 1 / 2^(cycle - 1) ("triangular2") or gamma^t ("exp_range").

    Args:
        step_size_up: steps of a rise, more than 0. Default: 2000.
        step_size_down: steps of a fall, at least 0. Default: None, as many as of a rise.
        mode: "triangular", "triangular2" or "exp_range". Default: "triangular".
        gamma: base of "exp_range", at least 0. Default: 1.
        low: the lowest factor, in [0, 1]. Default: 0.

    Example:
        >>> [cyclic(2, mode="triangular2")(t) for t in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
    """
    total = step_size_up + (step_size_up if step_size_down is None else step_size_down)
    cycle, height = triangle(t, total, step_size_up / total)
    return low + (1.0 - low) * height * cycle_scale(
        mode, gamma, t if mode == "exp_range" else cycle
    )


@_schedule(
    total_steps=COUNT,
    pct_start=PART,
    anneal_strategy=ANNEALING,
    div_factor=POSITIVE,
    final_div_factor=POSITIVE,
)
def one_cycle(
    t: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> float:
    """One rise from `1 / div_factor` to 1 and one fall to `1 / (div_factor * final_div_factor)`.

    The rise ends at step `pct_start * total_steps - 1`, the fall at `total_steps - 1`.

    Args:
        total_steps: steps of the whole cycle, at least 1.
        pct_start: part of the steps that the rise takes, in [0, 1]. Default: 0.3.
        anneal_strategy: "cos" or "linear". Default: "cos".
        div_factor: how many times smaller than 1 the first factor is, more than 0. Default: 25.
        final_div_factor: how many times smaller than that the last one is. Default: 1e4.
        three_phase: come back to the first factor before the final fall. Default: False.

    Example:
        >>> [round(one_cycle(6, pct_start=0.5, div_factor=10)(t), 3) for t in range(6)]
        [0.1, 0.55, 1.0, 0.75, 0.25, 0.0]
    """
    first = 1.0 / div_factor
    rise = pct_start * total_steps - 1
    corners = [(rise, 1.0), *([(2 * rise, first)] if three_phase else [])]
    corners.append((total_steps - 1, first / final_div_factor))
    begin, start = 0.0, first
    for end, goal in corners:
        if t <= end:
            return anneal(anneal_strategy, start, goal, (t - begin) / (end - begin or 1.0))
        begin, start = end, goal
    return start


# ---- schedules made of schedules ----


@_schedule(steps=COUNT, then=_number_or_schedule, start_factor=PART)
def warmup(
    t: float, steps: int, then: Callable[[float], float] | float = 1.0, start_factor: float = 0.0
) -> float:
    """A line up to where `then` begins, and `then`, from its own step 0.

    Args:
        steps: length of the line, at least 1.
        then: the schedule that follows, or a number to stay at. Default: 1.
        start_factor: where the line begins, as a part of where it ends, in [0, 1]. Default: 0.

    Example:
        >>> [round(warmup(2, cosine(4))(t), 3) for t in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if t >= steps:
        return _at(t - steps, then)
    return _at(0, then) * (start_factor + (1.0 - start_factor) * t / steps)


@_schedule(first=_number_or_schedule, second=_number_or_schedule)
def product(
    t: float,
    first: Callable[[float], float] | float,
    second: Callable[[float], float] | float,
) -> float:
    """`first(t) * second(t)`; also written `first * second`.

    Args:
        first: a schedule, or a number.
        second: a schedule, or a number.

    Example:
        >>> lr = 0.5 * exponential(0.5)
        >>> lr, lr(1)
        (product(first=0.5, second=exponential(gamma=0.5)), 0.25)
    """
    return _at(t, first) * _at(t, second)
