import gc
from importlib.util import find_spec

import numpy as np
import pytest
from devices import SIMULATED, WITHOUT_NUMBA_CUDA

import genesis
from genesis.kernels import cpu, threads

collect_ignore = [
    "conftest.py",  # by doctest, which takes one for the other beside benchmarks/
    # Run in processes of their own, and with torch only.
    *(["rank_trainer.py", "torch_session.py"] if find_spec("torch") is None else []),
    *(["rank_distributed.py", "mpi_runs.py"] if find_spec("mpi4py") is None else []),
]


def pytest_configure(config):
    if SIMULATED and find_spec("numba_cuda") is None:
        raise pytest.UsageError(f"NUMBA_ENABLE_CUDASIM=1 {WITHOUT_NUMBA_CUDA}")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    parser.addoption("--site", action="store_true", help="also build the site and look at it")
    parser.addoption("--no-skips", action="store_true", help="fail if any test is skipped")
    parser.addoption("--long", type=float, help="minutes of random sequences (test_stateful.py)")
    parser.addoption("--interrupts", type=int, help="how many alarms (test_interrupts.py)")
    parser.addoption("--busy", type=int, default=0, help="busy processes beside test_interrupts.py")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    if not config.getoption("--site"):
        for item in items:
            if "site" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="builds the site: run with --site"))
    if SIMULATED:
        # Examples hold arrays of NumPy. Not as skips, which pytest cannot report without a line.
        examples = [item for item in items if isinstance(item, pytest.DoctestItem)]
        config.hook.pytest_deselected(items=examples)
        items[:] = [item for item in items if not isinstance(item, pytest.DoctestItem)]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """With --no-skips, what a test needs is to be there: a run that skips any has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--no-skips"):
        return
    skipped = len(reporter.stats.get("skipped", ()))
    if skipped:
        reporter.write_line(f"\n--no-skips, but {skipped} skipped: this run has failed", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def rng():
    return np.random.default_rng(20260)


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut work so small that little tensors are shared among threads as large ones are."""
    monkeypatch.setattr(cpu, "CHUNK", 7)
    monkeypatch.setattr(threads, "MINIMUM_BYTES", 1)


@pytest.fixture
def num_threads():
    """Set the number of threads for one test."""
    before = genesis.get_num_threads()
    yield genesis.set_num_threads
    genesis.set_num_threads(before)


@pytest.fixture(autouse=True)
def _collect_after():
    yield
    gc.collect(0)
