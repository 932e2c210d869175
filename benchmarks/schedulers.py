"""What `scheduler.step()` costs, in turns with torch: every scheduler, one parameter group.

    python benchmarks/schedulers.py [--rounds 51]

Each turn makes the scheduler anew and steps it up to `STEPS` times, so that both libraries go
through the same part of the schedule. The table shows medians over the turns.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import alternate_measured, median

import genesis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from scheduler_cases import CASES, Case, build

STEPS = 200


def genesis_maker(kind: str) -> Any:
    return getattr(genesis.optim.lr_scheduler, kind)


def torch_maker(kind: str) -> Any:
    import torch

    if kind == "SWALR":
        return torch.optim.swa_utils.SWALR
    return getattr(torch.optim.lr_scheduler, kind)


def genesis_optimizer(case: Case) -> Any:
    parameters = [genesis.Parameter(np.ones(2))]
    parameters[0].grad = np.ones(2)
    if case.optimizer == "Adam":
        return genesis.optim.Adam(parameters, lr=0.1)
    return genesis.optim.SGD(parameters, lr=0.1, momentum=0.9)


def torch_optimizer(case: Case) -> Any:
    import torch

    parameters = [torch.nn.Parameter(torch.ones(2))]
    if case.optimizer == "Adam":
        return torch.optim.Adam(parameters, lr=0.1)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def seconds(case: Case, steps: int, optimizer: Callable, make: Callable) -> float:
    """The time of one step, in a run of `steps` of them."""
    scheduler = build(case, make, optimizer(case))
    scheduler.optimizer.step()
    if case.metric is None:
        calls = [scheduler.step] * steps
    else:
        calls = [partial(scheduler.step, case.metric(t)) for t in range(steps)]
    begin = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - begin) / steps


def contest(case: Case, rounds: int) -> dict[str, float]:
    """The median over the turns of the microseconds that a step takes, by library."""
    inner = [part.kwargs for part in (case, *case.kwargs.get("schedulers", ()))]
    # One cycle refuses to go on after its end.
    ends = [kwargs["total_steps"] for kwargs in inner if "total_steps" in kwargs]
    ends += [kwargs["epochs"] * kwargs["steps_per_epoch"] for kwargs in inner if "epochs" in kwargs]
    steps = min([STEPS, *(end - 2 for end in ends)])
    contenders = {
        "genesis": partial(seconds, case, steps, genesis_optimizer, genesis_maker),
        "torch": partial(seconds, case, steps, torch_optimizer, torch_maker),
    }
    alternate_measured(contenders, 0, least=2, most=2)  # to warm up
    found = alternate_measured(contenders, 0, least=rounds, most=rounds)
    return {name: 1e6 * median(took) for name, took in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=51, help="turns that each library has")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    print(f"{'scheduler':34} {'genesis us':>10} {'torch us':>10} {'ratio':>7}")
    for case in CASES:
        if case.kind == "get_cosine_schedule_with_warmup":  # which torch does not have
            continue
        took = contest(case, rounds)
        ours, theirs = took["genesis"], took["torch"]
        print(f"{case!r:34} {ours:10.2f} {theirs:10.2f} {ours / theirs:7.2f}", flush=True)


if __name__ == "__main__":
    main()
