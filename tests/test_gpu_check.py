"""The command for machines with a GPU, rehearsed without one."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import BFLOAT16, CASES, ONE_EACH
from devices import in_simulator, needs_numba_cuda, on_cpu_only

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu_check

import genesis

# One of each kind of update; tests/test_cuda.py has them all.
KINDS = [case for case in ONE_EACH if case.name in ("AdamW", "LAMB", "Prodigy", "ScheduleFreeSGD")]


@in_simulator
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.id)
def test_cases_agree(case, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "DTYPES", [np.dtype(np.float32), BFLOAT16])
    monkeypatch.setattr(gpu_check, "SHAPES", [(3,), ()])
    check = gpu_check.case_excess
    monkeypatch.setattr(
        gpu_check, "case_excess", lambda case, dtype, device: check(case, dtype, device, 2)
    )
    found = gpu_check.check_cases("cuda:0", [case])
    assert all(value <= 1 for value in found[case.id].values())
    assert "1 cases in 2 data types: 0 wrong" in capsys.readouterr().out


@in_simulator
def test_a_wrong_number_is_seen(monkeypatch, capsys):
    def adamw(param, grad, state, hyper):
        param, state = original(param, grad, state, hyper)
        return param * (1 + np.float32(1e-5)), state

    case = next(case for case in CASES if case.name == "AdamW")
    monkeypatch.setattr(gpu_check, "DTYPES", [np.dtype(np.float32)])
    original = genesis.optim.AdamW._recipe.every_written()[0].rule
    from genesis.kernels.cuda import launching

    launch = launching.compiled
    monkeypatch.setattr(
        launching,
        "compiled",
        lambda rule, *others: launch(adamw if rule is original else rule, *others),
    )
    found = gpu_check.check_cases("cuda:0", [case])
    assert found[case.id]["float32"] > 2
    assert "WRONG" in capsys.readouterr().out


def test_what_is_allowed():
    before, expected = np.zeros(3), np.array([1.0, 2.0, 4.0])
    eps = 2.0**-23
    assert gpu_check.excess(expected, expected, before, "float32") == 0
    near = expected + 4 * 16 * eps
    assert 0.8 < gpu_check.excess(near, expected, before, "float32") < 1
    far = expected + [0, 0, 1e-3]
    assert gpu_check.excess(far, expected, before, "float32") > 100
    assert gpu_check.excess(far, expected, before, "bfloat16") < 1
    nan = np.array([np.nan])
    assert gpu_check.excess(nan, nan, np.zeros(1), "float32") == 0
    assert gpu_check.excess(nan, np.ones(1), np.zeros(1), "float32") == np.inf
    assert gpu_check.excess(np.zeros(0), np.zeros(0), np.zeros(0), "float32") == 0


class Rehearsal:
    """In the place of `gpu_check.Gpu`: the CPU."""

    device = "cpu"

    def array(self, tensor):
        return tensor.numpy()

    def wait(self):
        pass

    def seconds(self, call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def forget(self):
        pass


@on_cpu_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.torch
def test_timings_are_rehearsed(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    found = gpu_check.time_models(torch, Rehearsal(), ["mlp"], 0.01)
    hosts = gpu_check.time_hosts(torch, Rehearsal(), [1, 3], 0.01)
    assert list(found["mlp"]) == ["AdamW", "SGD momentum", "RMSprop"]
    assert list(found["mlp"]["AdamW"]) == ["genesis", "torch fused", "torch foreach", "copy"]
    assert list(found["mlp"]["RMSprop"]) == ["genesis", "torch foreach", "copy"]
    assert all(value > 0 for value in found["mlp"]["AdamW"]["genesis"].values())
    assert list(hosts) == ["1", "3"]
    out = capsys.readouterr().out
    assert "mlp SGD momentum" in out
    assert "3 tensors" in out
    results = {"about": {"device": "NVIDIA H100 80GB/HBM3 "}, "models": found, "host": hosts}
    path = gpu_check.write(results, tmp_path / "results")
    assert path.name == "NVIDIA_H100_80GB_HBM3.json"
    assert json.loads(path.read_text())["host"]["1"]["genesis"] == hosts["1"]["genesis"]


@on_cpu_only
@pytest.mark.torch
def test_a_model_too_large_is_left_out(monkeypatch, capsys):
    torch = pytest.importorskip("torch")

    def full(*arguments, **others):
        raise MemoryError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(gpu_check, "contenders", full)
    assert gpu_check.time_models(torch, Rehearsal(), ["mlp"], 0.01) == {}
    assert "mlp AdamW: the device has not the memory for it" in capsys.readouterr().out


@needs_numba_cuda
def test_about_names_the_device():
    device = SimpleNamespace(name=b"GPU", compute_capability=(9, 0), MULTIPROCESSOR_COUNT=132)
    cuda = SimpleNamespace(get_current_device=lambda: device)
    found = gpu_check.about(cuda, SimpleNamespace(__version__="2"))
    assert found["device"] == "GPU"
    assert found["compute_capability"] == "9.0"


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    def missing():
        raise RuntimeError("no CUDA device can be used: no driver")

    if not gpu_check.cuda_driver.SIMULATED:
        monkeypatch.setattr(gpu_check.cuda_driver, "cuda", missing)
    assert gpu_check.main([]) == 2
    assert "gpu_check needs a GPU" in capsys.readouterr().err
