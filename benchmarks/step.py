"""AdamW's step beside torch's fused one and beside the roofline: `python benchmarks/step.py`.

Every line is a ratio from one run in which the contenders took turns; medians.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import torch
from roofline import roofline
from timing import alternate, medians

import genesis


def pair(tensors: int, size: int):
    """The same AdamW on the same float32 tensors, in genesis and in torch (fused)."""
    grad = np.full(size, 0.1, np.float32)
    params = [genesis.Parameter(np.ones(size, np.float32)) for _ in range(tensors)]
    peers = [torch.ones(size, requires_grad=True) for _ in range(tensors)]
    for param, peer in zip(params, peers):
        param.grad = grad.copy()
        peer.grad = torch.from_numpy(grad.copy())
    return params, peers, genesis.optim.AdamW(params), torch.optim.AdamW(peers, fused=True)


def steady(tensors: int, size: int, rounds: int) -> dict[str, float]:
    """Steps with gradients that stay in the same arrays, in seconds."""
    _, _, ours, theirs = pair(tensors, size)
    contenders = {"genesis": ours.step, "torch fused": theirs.step}
    if tensors == 1 and size >= 1_000_000:
        contenders["roofline"] = roofline(size, 2)
    return medians(alternate(contenders, rounds))


def fresh(tensors: int, size: int, rounds: int) -> dict[str, float]:
    """Steps with gradients in other arrays each time, in seconds."""
    params, peers, ours, theirs = pair(tensors, size)
    arrays = [[np.full(size, 0.1, np.float32) for _ in params] for _ in range(2)]
    tensors_ = [[torch.full((size,), 0.1) for _ in peers] for _ in range(2)]

    def assign(parameters, sets):
        sets.reverse()
        for parameter, grad in zip(parameters, sets[0]):
            parameter.grad = grad

    return medians(
        alternate(
            {"genesis": ours.step, "torch fused": theirs.step},
            rounds,
            {
                "genesis": lambda: assign(params, arrays),
                "torch fused": lambda: assign(peers, tensors_),
            },
        )
    )


def beside_a_busy_core(size: int, rounds: int) -> dict[str, float]:
    """Steps while another process keeps one core busy, on all threads and on one, in seconds."""
    _, _, opt, _ = pair(1, size)
    number = genesis.get_num_threads()

    def with_threads(threads):
        def step():
            genesis.set_num_threads(threads)
            opt.step()

        return step

    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        contenders = {"all threads": with_threads(number), "one thread": with_threads(1)}
        return medians(alternate(contenders, rounds))
    finally:
        busy.kill()
        busy.wait()
        genesis.set_num_threads(number)


def line(title: str, seconds: dict[str, float]) -> None:
    ours = next(iter(seconds.values()))
    others = [
        f"{name} {value * 1e6:9.1f} us = {value / ours:6.2f} x"
        for name, value in list(seconds.items())[1:]
    ]
    print(f"{title:34} {ours * 1e6:9.1f} us | " + " | ".join(others), flush=True)


def main() -> None:
    print(f"{genesis.get_num_threads()} threads; each figure beside it: how many times our time")
    line("1000 tensors of 10, steady", steady(1000, 10, 200))
    line("1000 tensors of 10, fresh", fresh(1000, 10, 200))
    line("1 tensor of 1000, steady", steady(1, 1000, 2000))
    line("1 tensor of 25M, steady", steady(1, 25_000_000, 40))
    for size in (1000, 4096, 65_536, 1_000_000, 4_000_000, 25_000_000):
        rounds = max(20, min(400, 200_000_000 // size))
        line(f"busy core, 1 tensor of {size}", beside_a_busy_core(size, rounds))


if __name__ == "__main__":
    main()
