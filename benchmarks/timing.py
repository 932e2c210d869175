"""Time contenders in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]

SETTLING = 0.006
"""Seconds of untimed calls at the start of a turn. OpenMP's workers (torch's, `prange`'s) go on
spinning for some milliseconds after a call and take a core from whoever comes next."""


def alternate(
    contenders: Mapping[str, Call],
    seconds: float = 2.0,
    before: Mapping[str, Call] | None = None,
    least: int = 5,
    most: int = 1000,
    settling: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of every timed call, by contender.

    The contenders take turns, in another order each round. A turn begins with untimed calls: until
    `SETTLING` has passed and at least one, so that each finds the caches as it left them itself.
    Then come timed calls, for about as long. One more round before the first is not counted.

    Args:
        contenders: functions of no arguments, by name.
        seconds: about how long all of it may take, when a machine is quiet.
        before: for some contenders a function that is called, untimed, before each of its calls.
        least: rounds that are run even if that takes longer.
        most: rounds after which it ends even if there is time left.
        settling: as for `turn`.
    """
    before = before or {}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            turn(contenders[name], before.get(name), settling)
        end = time.perf_counter() + seconds
        rounds = 0
        while rounds < least or (rounds < most and time.perf_counter() < end):
            for name in names:
                found[name] += turn(contenders[name], before.get(name), settling)
            _reorder(names, rounds)
            rounds += 1
    finally:
        if enabled:
            gc.enable()
    return found


def _reorder(names: list[str], rounds: int) -> None:
    """Another order for the next round, so that nobody always follows the same one."""
    names.append(names.pop(0))
    if rounds % 2:
        names.reverse()


def turn(call: Call, before: Call | None = None, settling: float | None = None) -> list[float]:
    """The seconds of each timed call of one turn, which takes `settling` seconds twice.

    Default: None, `SETTLING`.
    """
    settling = SETTLING if settling is None else settling
    start = time.perf_counter()
    while True:
        if before is not None:
            before()
        call()
        if time.perf_counter() - start > settling:
            break
    found: list[float] = []
    start = time.perf_counter()
    while not found or time.perf_counter() - start < settling:
        if before is not None:
            before()
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def alternate_measured(
    contenders: Mapping[str, Callable[[], float]], seconds: float, least: int = 3, most: int = 30
) -> dict[str, list[float]]:
    """What contenders return that measure themselves, in turns, in another order each round."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    end = time.perf_counter() + seconds
    for round_ in range(most):
        if not names or (round_ >= least and time.perf_counter() > end):
            break
        for name in names:
            found[name].append(contenders[name]())
        _reorder(names, round_)
    return found


class Summary(dict):
    """What a list of figures comes to: median, spread (half the interquartile range), least, count."""

    def __init__(self, figures: Sequence[float]):
        low, high = figures[0], figures[0]
        if len(figures) > 1:
            low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
        super().__init__(
            median=median(figures), spread=(high - low) / 2, least=min(figures), calls=len(figures)
        )


def median(figures: Sequence[float]) -> float:
    """The middle figure."""
    return statistics.median(figures)
