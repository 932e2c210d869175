"""Workloads: a step where training has it, in the middle of a loop.

A step that follows the last one finds its helpers awake and its arrays in the cache. In a program there
is a forward and a backward pass between them, whose threads go on spinning for a while when they are
done, and whose arrays have taken the cache. So here something else is done before each step, untimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peers
import shapes
from contest import Contest, Workload
from peers import ADAMW, Missing
from timing import Call

import genesis

MODELS = ("mlp", "tiny1000", "resnet50")
SETTLING = 0.05
"""Seconds of steps that are not timed at the beginning of a turn: longer than OpenBLAS' threads spin."""

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Between(NamedTuple):
    """What is done between two steps.

    Attributes:
        words: how a title says it.
        make: gives, for the name of a contender, the function that does it, and one that ends it.
    """

    words: str
    make: Callable[[str], tuple[Call, Call]]


def _nothing() -> None:
    pass


def _products(seconds: float, contender: str) -> tuple[Call, Call]:
    """Products of matrices on default threads, by the library that its users compute with."""
    matrix = np.full((384, 384), 0.01, np.float32)
    if contender.startswith("torch"):
        torch = peers.module("torch")
        tensor = torch.from_numpy(matrix)
        multiply = partial(torch.mm, tensor, tensor, out=torch.empty_like(tensor))
    else:
        multiply = partial(np.matmul, matrix, matrix, out=np.empty_like(matrix))

    def work() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            multiply()

    return work, _nothing


def last_level_cache() -> int:
    """Bytes of the processor's largest cache.

    Raises:
        Missing: the system does not say.
    """
    units = {"K": 1 << 10, "M": 1 << 20}
    found = [file.read_text().strip() for file in CACHES.glob("index*/size")]
    if not found:
        raise Missing(f"how large the last cache is stands in {CACHES}, which is not there")
    return max(int(size[:-1]) * units[size[-1]] for size in found)


def _sweep(contender: str) -> tuple[Call, Call]:
    """Reading twice as much as the last cache holds, on every core, which leaves nothing else in it."""
    threads = genesis.get_num_threads()
    buffer = np.ones(2 * last_level_cache() // 4, np.float32)
    parts = np.array_split(buffer, threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.sum, parts)), pool.shutdown


def _sleep(seconds: float, contender: str) -> tuple[Call, Call]:
    return partial(time.sleep, seconds), _nothing


BETWEEN = {
    "at-once": Between("right after the last", lambda contender: (_nothing, _nothing)),
    "products-1ms": Between("after 1 ms of matrix products", partial(_products, 1e-3)),
    "products-12ms": Between("after 12 ms of matrix products", partial(_products, 12e-3)),
    "sleep-12ms": Between("after a sleep of 12 ms", partial(_sleep, 12e-3)),
    "cold": Between("with cold caches", _sweep),
}


def _loop(between: str, model: str) -> Workload:
    words, make = BETWEEN[between]
    shapes_ = shapes.MODELS[model]()

    def build(wanted: Sequence[str]) -> Contest:
        ends: list[Call] = []
        contest = Contest(close=lambda: [end() for end in ends])
        for name in wanted:
            try:
                before, end = make(name)
                trainer = peers.trainer(name, ADAMW, shapes_)
            except Missing as missing:
                contest.missing[name] = str(missing)
                continue
            ends.append(end)
            trainer.step()
            contest.contenders[name], contest.before[name] = trainer.step, before
        return contest

    elements = sum(int(np.prod(shape)) for shape in shapes_)
    return Workload(
        f"loop/{between}/{model}",
        f"{shapes.TITLES[model]}: AdamW step {words}",
        ("genesis", "torch fused"),
        build,
        seconds=5.0,
        memory=elements * 4 * 9 + (1 << 30),
        settling=SETTLING,
    )


def workloads() -> list[Workload]:
    """A step of AdamW for small and large models, after each kind of other work."""
    return [_loop(between, model) for model in MODELS for between in BETWEEN]
