"""The AdamW of torch under `torch.compile`: `python benchmarks/compiled.py MODEL THREADS`.

Prints the seconds until the first step was done, counted from before torch is imported. Then it serves:
for each line that it reads it takes some steps and prints the median seconds of one. Both need one
process, since compiling can take minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import shapes
from timing import median, turn

SETTLING = 0.05
"""Seconds of steps that are not timed at the beginning of a turn: as long as other threads may spin."""


def compiled_step(sizes: Any) -> tuple[Callable[[], None], list[Any]]:
    """A function that takes a compiled step, as torch's own recipe has it, and the parameters.

    The learning rate is a tensor, so that a schedule would not compile all of it again.
    """
    import torch

    params = [torch.ones(size, requires_grad=True) for size in sizes]
    for param in params:
        param.grad = torch.full(param.shape, 0.01)
    optimizer = torch.optim.AdamW(params, lr=torch.tensor(1e-3))

    @torch.compile(fullgraph=False)
    def step() -> None:
        optimizer.step()

    return step, params


def main(model: str, threads: str) -> None:
    sizes = shapes.FIRST_STEPS[model]()
    start = time.perf_counter()
    import torch

    torch.set_num_threads(int(threads))
    step, _ = compiled_step(sizes)
    step()
    print(time.perf_counter() - start, flush=True)
    for _ in sys.stdin:
        print(median(turn(step, settling=SETTLING)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
