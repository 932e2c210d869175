"""Workloads: whole iterations of training, by each contender (see `training`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import training
from contest import Contest, Workload
from worker import Worker


def _race(race: str, threads: str) -> Workload:
    names = tuple(training.RACES[race].contenders())

    def build(wanted: Sequence[str]) -> Contest:
        worker = Worker("training.py", race, threads, *wanted, **training.environment(threads))
        missing = json.loads(worker.ready)
        ready = {name: partial(worker.ask, name) for name in wanted if name not in missing}
        return Contest(ready, missing=missing, close=worker.close)

    one = threads == "1"
    words = "one thread" if one else f"{threads} threads"
    title = f"{training.RACES[race].title}: an iteration, {words}"
    name = f"train/{race}" if one else f"train/{race}/{threads}-threads"
    quick = race == "mlp" and one
    return Workload(name, title, names, build, seconds=15.0, quick=quick, itself=True)


def workloads() -> list[Workload]:
    """Each race, with one thread and with as many as each contender takes by itself."""
    return [_race(race, threads) for race in training.RACES for threads in training.THREADS]
