"""What all of pytest's runs share: in how many processes they run, and what cannot be imported here."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Doctests are collected from the package: some of its modules need packages that need not be here.
collect_ignore_glob = [
    *(["genesis/kernels/cuda*"] if find_spec("numba_cuda") is None else []),
    *(["genesis/torch/*"] if find_spec("torch") is None else []),
    *(["genesis/distributed/*"] if find_spec("mpi4py") is None else []),
]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core for whole folders; none beside this one for a file, a test or a benchmark.

    `-n` says it otherwise. Each process compiles what the others have not kept on disk yet, so more
    than a few win nothing.
    """
    paths = [Path(argument.partition("::")[0]) for argument in config.args]
    if any(path.is_file() or "benchmarks" in path.parts for path in paths):
        return 0
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, 4) if cores > 1 else 0
