"""`python -m genesis`: what was found on this machine, and a self-check."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

import genesis


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _self_check() -> str:
    """Take one step and compare it with the formula; returns what came out."""
    array = np.linspace(-1, 1, 1000, dtype=np.float32)
    before = array.astype(np.float64)
    param = genesis.Parameter(array)
    param.grad = np.sin(before)
    start = time.perf_counter()
    genesis.optim.AdamW([param], lr=0.1, weight_decay=0.5).step()
    elapsed = time.perf_counter() - start
    # At the first step the averages, their bias corrected, are the gradient and its square.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * param.grad / (np.abs(param.grad) + 1e-8)
    error = np.max(np.abs(array - expected))
    if error > 1e-6:
        raise RuntimeError(f"a step of AdamW is off by {error:.1e}: please report this")
    return f"ok: a step of AdamW is right to {error:.0e} (first step {elapsed:.2f} s)"


def main() -> None:
    print(f"genesis     {genesis.__version__}")
    print(f"python      {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("numba", "numpy", "ml-dtypes", "safetensors"):
        print(f"{name:11} {_installed(name)}")
    print(f"threads     {genesis.get_num_threads()}")
    print(f"self-check  {_self_check()}")


if __name__ == "__main__":
    main()
