"""What must be measured in a process of its own: `python benchmarks/probes.py NAME...`, prints JSON.

A probe starts its clock before it imports anything that counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import shapes


def _import(name: str) -> dict[str, float]:
    start = time.perf_counter()
    __import__(name)
    return {"seconds": time.perf_counter() - start}


def import_numpy() -> dict[str, float]:
    """Import NumPy."""
    return _import("numpy")


def import_numba() -> dict[str, float]:
    """Import Numba."""
    return _import("numba")


def import_genesis() -> dict[str, float]:
    """Import genesis."""
    return _import("genesis")


def import_torch() -> dict[str, float]:
    """Import torch."""
    return _import("torch")


def import_optax() -> dict[str, float]:
    """Import optax."""
    return _import("optax")


def genesis_first_step(model: str) -> dict[str, float]:
    """Import genesis, build an AdamW, step. Cold or not is up to NUMBA_CACHE_DIR."""
    sizes = shapes.FIRST_STEPS[model]()
    start = time.perf_counter()
    import numpy as np

    import genesis

    params = [genesis.Parameter(np.ones(size, np.float32)) for size in sizes]
    for param in params:
        param.grad = np.full(param.shape, 0.1, np.float32)
    optimizer = genesis.optim.AdamW(params)
    import numba  # noqa: F401  (what is left of the first step's time is ours)

    before = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    return {"seconds": end - start, "step": end - before}


def genesis_cold(optimizer: str) -> dict[str, float]:
    """The first step of an optimizer. Cold or not is up to NUMBA_CACHE_DIR."""
    import numba  # noqa: F401

    import genesis
    from genesis import trials

    start = time.perf_counter()
    trials.Trial(getattr(genesis.optim, optimizer)).step()
    return {"step": time.perf_counter() - start}


def torch_first_step(model: str) -> dict[str, float]:
    """Import torch, build an AdamW, take its fused step."""
    sizes = shapes.FIRST_STEPS[model]()
    start = time.perf_counter()
    import torch

    params = [torch.ones(size, requires_grad=True) for size in sizes]
    for param in params:
        param.grad = torch.full(param.shape, 0.1)
    torch.optim.AdamW(params, fused=True).step()
    return {"seconds": time.perf_counter() - start}


def optax_first_step(model: str) -> dict[str, float]:
    """Import optax, build an AdamW, compile and run its update."""
    sizes = shapes.FIRST_STEPS[model]()
    start = time.perf_counter()
    import jax
    import optax

    params = tuple(jax.numpy.ones(size) for size in sizes)
    transformation = optax.adamw(1e-3)

    def step(params, state, grads):
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jax.block_until_ready(jax.jit(step)(params, transformation.init(params), params))
    return {"seconds": time.perf_counter() - start}


def memory() -> dict[str, float]:
    """What AdamW keeps for each parameter, and what steps allocate beyond it, in bytes.

    The growth of allocations with the model is told from the same steps on a model four times as
    large. NumPy reports its arrays to tracemalloc; the resident size would show what does not.
    """
    import tracemalloc

    import numpy as np

    import genesis

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def run(size: int) -> tuple[float, int, int]:
        shapes = [(size, 1000), (size,), (size // 2, 1000)]
        params = [genesis.Parameter(np.ones(shape, np.float32)) for shape in shapes]
        sets = [[np.full(s, 0.1, np.float32) for s in shapes] for _ in range(2)]
        elements = sum(param.size for param in params)

        def steps() -> None:
            for i in range(3):  # in fresh arrays, clipped, zeroed
                for param, grad in zip(params, sets[i % 2]):
                    param.grad = grad
                optimizer.step()
                optimizer.step(max_norm=1.0)
                optimizer.zero_grad(set_to_none=False)

        for param, grad in zip(params, sets[0]):
            param.grad = grad
        optimizer = genesis.optim.AdamW(params)
        tracemalloc.start()
        optimizer.step()
        state = tracemalloc.get_traced_memory()[0]
        steps()
        before_resident = resident()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        steps()
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return state / elements, peak, resident() - before_resident

    run(100)  # compiles
    state, small, _ = run(1000)
    _, large, grown = run(4000)
    elements = 6_000_000
    return {
        "state": state,
        "allocated": max(0, large - small) / (elements * 3 / 4),
        "resident": max(0, grown) / elements,
    }


def main() -> None:
    name, *arguments = sys.argv[1:]
    found: dict[str, Any] = globals()[name](*arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
