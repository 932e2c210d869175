"""Samples that were taken before, as tests of pytest-benchmark."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from workloads import WORKLOADS

_samples: deque[float] = deque()
_clock = 0.0


def replayed() -> float:
    """A clock for pytest-benchmark on which each call takes as long as the next sample."""
    global _clock
    if len(_samples) % 2:
        _clock += _samples[0]
    _samples.popleft()
    return _clock


def replay(benchmark: Any, samples: Sequence[float]) -> None:
    """Hand samples to pytest-benchmark, in a test marked by `contests`."""
    _samples.clear()
    for sample in samples:
        _samples.extend((sample, sample))  # popped at the start and at the end of a round
    benchmark.pedantic(lambda: None, rounds=len(samples), iterations=1)


def contests(wanted: Callable[[str], bool]) -> Callable:
    """Parametrize a test over the contenders of all workloads whose name is wanted."""
    pairs = [
        (name, contender)
        for name, workload in WORKLOADS.items()
        if wanted(name)
        for contender in workload.contenders
    ]
    marked = [pytest.param(*pair, id=f"{pair[0]}: {pair[1]}") for pair in pairs]

    def decorate(test: Callable) -> Callable:
        test = pytest.mark.benchmark(timer=replayed)(test)
        return pytest.mark.parametrize(("workload", "contender"), marked)(test)

    return decorate
