"""Time contenders in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call, by contender: A B C A B C ..., after two rounds that do not count.

    Args:
        contenders: functions of no arguments, by name.
        rounds: how many calls of each count.
        before: for some contenders a function that is called, untimed, before each of its calls.
    """
    before = before or {}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds + 2):
            for name, call in contenders.items():
                if name in before:
                    before[name]()
                start = time.perf_counter()
                call()
                elapsed = time.perf_counter() - start
                if round_ >= 2:
                    seconds[name].append(elapsed)
    finally:
        gc.enable()
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each contender's times."""
    return {name: statistics.median(times) for name, times in seconds.items()}
