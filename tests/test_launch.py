"""How work is launched: threads, chunks, forks, the cache on disk, and what an import costs."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, ONE_EACH
from devices import on_cpu_only

import genesis
from genesis.commit import commit
from genesis.kernels import cpu, table, threads

pytestmark = on_cpu_only

ROOT = Path(__file__).parent.parent


def trained(case, size=1000, steps=4, tensors=3):
    """Parameters after a few steps, always the same."""
    rng = np.random.default_rng(7)
    params = [
        genesis.Parameter(rng.standard_normal(size + i).astype(np.float32)) for i in range(tensors)
    ]
    opt = case.make(params)
    for _ in range(steps):
        for p in params:
            p.grad = rng.standard_normal(p.shape).astype(np.float32)
        opt.step()
    return np.concatenate([p.data for p in params])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_threads_and_chunks_change_no_bit(case, num_threads, monkeypatch):
    expected = trained(case)
    monkeypatch.setattr(threads, "MINIMUM_BYTES", 1)
    for number in (1, 2, 4):
        for chunk in (1, 16, 33, 4096):
            num_threads(number)
            monkeypatch.setattr(cpu, "CHUNK", chunk)
            np.testing.assert_array_equal(trained(case), expected)


def test_several_threads_do_take_part(small_chunks, num_threads):
    """Nothing above would notice if all work were done by the caller."""
    num_threads(2)
    p = genesis.Parameter(np.ones(1000))
    p.grad = np.ones(1000)
    opt = genesis.optim.SGD([p], lr=0.5)
    opt.step()
    (step,) = opt._plans
    update = step.plans[0].buckets[0].launch._update
    helped = threading.Event()
    called = []

    def kernel(record, helping, compiled=update._kernel):
        called.append((helping, threading.get_ident()))
        if helping:
            helped.set()
        else:
            assert helped.wait(10)
        return compiled(record, helping)

    update._kernel = kernel
    opt.step()
    assert sorted(helping for helping, _ in called) == [False, True]
    assert dict(called)[False] == threading.get_ident() != dict(called)[True]
    np.testing.assert_array_equal(p.data, np.zeros(1000))


def test_a_helper_that_comes_too_late_is_not_waited_for(small_chunks, num_threads):
    num_threads(2)
    release, busy = threading.Event(), threading.Event()

    def job():
        busy.set()
        release.wait(10)

    helpers = threads.helpers(2, 10**9)
    commit(threads.calls(job, helpers))
    assert busy.wait(10)
    p = genesis.Parameter(np.ones(1000))
    p.grad = np.ones(1000)
    genesis.optim.SGD([p], lr=0.5).step()
    assert not release.is_set()
    np.testing.assert_array_equal(p.data, np.full(1000, 0.5))
    release.set()


def test_a_helper_never_works_for_a_caller_that_has_not_begun(
    small_chunks, num_threads, monkeypatch
):
    """As when an exception came between the job's being handed out and the kernel's call."""
    num_threads(2)
    # One helper, however many earlier tests have started: what it does next it does after the job.
    monkeypatch.setattr(threads, "_team", threads._Team())
    limit = time.monotonic() + 10
    while not threads._team.ready(1) and time.monotonic() < limit:
        time.sleep(0.001)
    p = genesis.Parameter(np.ones(1000))
    p.grad = np.ones(1000)
    opt = genesis.optim.SGD([p], lr=0.5)
    opt.step()
    (step,) = opt._plans
    *handing_out, begin = step.plans[0].buckets[0].launch.actions()
    assert len(handing_out) == 1
    commit(handing_out)
    done = threading.Event()
    commit(threads.calls(done.set, 1))
    assert done.wait(10)
    np.testing.assert_array_equal(p.data, np.full(1000, 0.5))
    assert begin() == len(step.plans[0].buckets[0].launch._table.chunks)


def test_python_threads_step_their_own_optimizers_at_once(small_chunks, num_threads):
    num_threads(4)
    expected = {case.id: trained(case) for case in ONE_EACH}
    wrong = []

    def work(case):
        for _ in range(10):
            if not np.array_equal(trained(case), expected[case.id]):
                wrong.append(case.id)

    workers = [threading.Thread(target=work, args=(case,)) for case in ONE_EACH * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def _in_child(queue):
    queue.put(trained(ONE_EACH[0]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_step(small_chunks, num_threads):
    num_threads(3)
    expected = trained(ONE_EACH[0])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


def test_cut_covers_every_element_once():
    sizes = [0, 1, 6, 7, 8, 0, 100, 13]
    chunks = table.cut(sizes, 7)
    covered = [np.zeros(size, int) for size in sizes]
    for tensor, start, stop in chunks:
        assert 0 < stop - start <= 7
        covered[tensor][start:stop] += 1
    assert all((count == 1).all() for count in covered)
    assert table.cut([], 7).shape == (0, 3)


def test_set_num_threads(num_threads):
    num_threads(3)
    assert genesis.get_num_threads() == 3
    num_threads(np.int64(2))
    assert genesis.get_num_threads() == 2
    for bad, error in [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="number of threads must be"):
            num_threads(bad)
    assert genesis.get_num_threads() == 2


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


FIRST_STEP = """
import logging, numpy as np
logging.basicConfig(level=logging.INFO)
import genesis
p = genesis.Parameter(np.ones(3))
p.grad = np.ones(3)
genesis.optim.{name}([p], lr=0.1).step()
genesis.optim.SGD([p], lr=0.1, momentum=0.5).step()
"""
COMPILING = "INFO:genesis:compiling"


def test_compiled_code_is_kept_on_disk_and_the_log_says_when_it_is_made(tmp_path):
    code = FIRST_STEP.format(name="Adam")
    first = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.count(COMPILING) == 1
    kept = {path.name for path in tmp_path.rglob("*.nbc")}
    assert any("Adam" in name for name in kept)
    assert COMPILING not in run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert {path.name for path in tmp_path.rglob("*.nbc")} == kept


def test_genesis_cache_0_keeps_nothing(tmp_path):
    code = FIRST_STEP.format(name="SGD")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "GENESIS_CACHE": "0"}
    assert COMPILING in run_python(code, **environment)
    assert not list(tmp_path.rglob("*.nb?"))


def test_a_changed_rule_is_never_served_from_the_cache(tmp_path):
    """The same name, another formula: in another file, and in a changed copy of the package."""
    rule = "def assign(param, grad, state, hyper):\n    return {}, state\n"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import numpy as np, mine\n"
        "from genesis import kernels\n"
        "target = np.zeros(3)\n"
        "grad = np.full(3, 2.0)\n"
        "launch = kernels.prepare(mine.assign, [[grad], [target]], 0)\n"
        "launch.set_scalars(1.0, ())\n"
        "launch.run()\n"
        "print(target.sum())\n"
    )
    for formula, expected in [("grad", "6.0"), ("grad * grad", "12.0"), ("grad - grad", "0.0")]:
        (tmp_path / "mine.py").write_text(rule.format(formula))
        answer = run_python(
            code, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONDONTWRITEBYTECODE="1"
        )
        assert expected in answer.splitlines()


def test_import_brings_in_neither_numba_nor_anything_for_tests_or_plots():
    heavy = run_python(
        "import sys, genesis\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'numba', 'pytest', 'matplotlib', 'tqdm', 'torch', 'sklearn'}))"
    )
    assert heavy.strip() == "[]"


def test_everything_promised_is_exported():
    for name in genesis.__all__:
        assert hasattr(genesis, name)


def test_a_helper_that_cannot_be_started_is_not_waited_for(monkeypatch):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads._thread, "start_new_thread", fail)
    assert threads._Team().ready(2) == 0
    monkeypatch.setattr(threads._thread, "start_new_thread", lambda *_: 0)  # it never begins
    assert threads._Team().ready(2) == 0
