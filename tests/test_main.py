"""`python -m genesis`, the self-check and compiling ahead."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, SPECIAL, WRAPPERS
from devices import DEVICE, on_cpu_only

import genesis
from genesis import ahead, machine, selfcheck, trials
from genesis.__main__ import main
from genesis.kernels import cache, compiling, cpu

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd, **environment):
    """Status, output and errors of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "genesis", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


# ---- trials and the self-check ----


def test_every_optimizer_is_tried():
    assert {*trials.names()} == {*(case.name for case in CASES), *SPECIAL, *WRAPPERS}


@pytest.mark.parametrize("name", trials.names())
def test_every_optimizer_passes_its_check(name):
    (found,) = selfcheck.checked([name], [DEVICE], shown=False)
    if found.status == "not here":
        assert DEVICE != "cpu"
        return
    assert found.status == "ok", found
    assert found.step > 0
    if DEVICE == "cpu" and found.error is not None and found.error != 0.0:
        assert getattr(genesis.optim, name)._recipe.sums  # the formula's own bits otherwise


@on_cpu_only
def test_a_wrong_step_is_found():
    class Wrong(genesis.optim.SGD):
        @classmethod
        def reference(cls, *args, **given):
            return super().reference(*args, **{**given, "lr": given["lr"] * 1.001})

    found = selfcheck.check(Wrong)
    assert found.status == "wrong"
    assert 0.5e-3 < found.error < 2e-3

    class Upwards(genesis.optim.Muon):
        def __init__(self, params, lr=0.1):
            super().__init__(params, lr=lr)

        def step(self, closure):
            _, grads = closure()
            return super().step(grads={"weight": -grads["weight"]})

    assert selfcheck.check(Upwards).status == "wrong"


@on_cpu_only
def test_a_failure_is_a_row_and_no_traceback(monkeypatch, capsys):
    class Failing(genesis.optim.SGD):
        def step(self, *_, **__):
            raise MemoryError("no memory\nat all")

    found = selfcheck.check(Failing)
    assert found[:4] == ("Failing", "cpu", "failed", "MemoryError: no memory at all")
    monkeypatch.setattr(selfcheck, "checked", lambda: [found])
    assert main([]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^Failing +cpu +failed +MemoryError: no memory at all$", said, re.MULTILINE)
    assert "1 of 1 checks went wrong" in said


def test_what_works_on_the_cpu_only_is_no_failure(monkeypatch):
    def refuse(kind, name, device):
        raise ValueError("Muon works on the CPU, but parameter 0 is on cuda:0")

    monkeypatch.setattr(selfcheck, "_check", refuse)
    assert selfcheck.check(genesis.optim.Muon, "cuda:0").status == "not here"
    assert selfcheck.check(genesis.optim.Muon, "cpu").status == "failed"


# ---- the command ----


@on_cpu_only
def test_the_table(monkeypatch, capsys):
    some = selfcheck.checked(["SGD"], ["cpu"], shown=False)
    monkeypatch.setattr(selfcheck, "checked", lambda: some)
    assert main([]) == 0
    said = capsys.readouterr().out
    for name in ("genesis", "numba", "numpy", "torch", "threads", "cache", "cuda"):
        assert re.search(rf"^{name} +\S", said, re.MULTILINE), name
    assert re.search(
        r"^SGD +cpu +ok +its formula to 0e\+00 +\d+\.\d\d s +\d+ us$", said, re.MULTILINE
    )
    assert said.endswith("all 1 checks passed\n")


@on_cpu_only
def test_json(monkeypatch, capsys):
    some = selfcheck.checked(["SGD"], ["cpu"], shown=False)
    monkeypatch.setattr(selfcheck, "checked", lambda: some)
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["genesis"]["version"] == genesis.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["processor"]["threads"] == genesis.get_num_threads()
    assert found["cuda"]["usable"] or "CUDA" in found["cuda"]["reason"]
    assert found["checks"][0]["optimizer"] == "SGD"
    assert main(["--json", "--no-check"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jsn"], "unrecognized arguments: --jsn"),
        (["cahce"], "invalid choice: 'cahce'"),
        (["cache", "--all"], "unrecognized arguments: --all"),
        (["warmup", "AdamW"], "unrecognized arguments: AdamW (names stand after --optimizers)"),
        (["warmup", "--optimizers"], "expected at least one argument"),
        (
            ["warmup", "--optimizers", "adamw"],
            "there is no optimizer 'adamw': did you mean 'AdamW'?",
        ),
        (["warmup", "--dtypes", "int8"], "float64, float32, float16, bfloat16"),
        (["warmup", "--dtypes", "float32:f"], "but got 'float32:f'"),
        (["warmup", "--device", "tpu"], "tpu"),
    ],
)
def test_wrong_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    errors = capsys.readouterr().err
    command = f" {arguments[0]}" if arguments[0] in ("cache", "warmup") else ""
    assert errors.startswith(f"usage: python -m genesis{command} [-h]")
    assert said in errors


def test_an_interrupt_and_a_reader_that_has_gone_end_tidily(monkeypatch, capsys, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "facts", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    command = f"{sys.executable} -m genesis --no-check | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""


# ---- the cache, and compiling ahead ----


@on_cpu_only
def test_compiled_ahead_is_found_by_later_runs_and_can_be_deleted(tmp_path):
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept"), "cwd": tmp_path}
    status, said, errors = run("warmup", "--optimizers", "SGD", **kept)
    assert (status, said) == (0, "")
    assert re.fullmatch(r"(compiling: .*\n)+", errors), errors
    assert errors.splitlines()[-1].startswith("compiling: 100% 1 of 1 optimizers, ")
    code = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "import numpy as np, genesis\n"
        "params = [np.ones(shape, 'f4') for shape in [(3, 4), (5,), (), (100_000,)]]\n"
        "opt = genesis.optim.SGD(params, lr=0.1)\n"
        "for _ in range(2): opt.step(grads=[np.ones_like(p) for p in params], max_norm=1.0)\n"
        "opt.step(grads=params and [np.ones_like(p) for p in params])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": kept["NUMBA_CACHE_DIR"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "compiling" not in done.stderr
    number = len(list(tmp_path.rglob("*.nbc")))
    status, said, _ = run("cache", **kept)
    assert status == 0
    assert re.fullmatch(rf"{number} files, \d+\.\d MB, in .*{re.escape(str(tmp_path))}.*\n", said)
    other = next(tmp_path.rglob("*.nbc")).with_name("somebody.else.nbc")
    other.write_text("")
    status, said, _ = run("cache", "--clear", **kept)
    assert status == 0
    assert said.startswith(f"deleted {number} files")
    assert [path.name for path in tmp_path.rglob("*.nbc")] == ["somebody.else.nbc"]
    assert run("cache", **kept)[1].startswith("0 files, 0.0 MB")


def test_nothing_is_kept_where_that_is_turned_off(monkeypatch, capsys):
    monkeypatch.setenv("GENESIS_CACHE", "0")
    assert cache.folders() == []
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == "0 files, 0.0 MB, in no folder\n"


@on_cpu_only
def test_a_file_that_cannot_be_deleted_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cache, "folders", lambda: [tmp_path])
    (tmp_path / "genesis.a.nbc").mkdir()  # not even root can unlink a folder
    assert main(["cache", "--clear"]) == 1
    captured = capsys.readouterr()
    assert "genesis.a.nbc" in captured.err
    assert captured.out == "not all could be deleted\n"


@on_cpu_only
def test_warmup_takes_what_users_have(capsys):
    @genesis.rule
    def Own(param, grad, *, lr=0.1, factor=2.0):  # noqa: N802
        return param - lr * factor * grad

    with_momentum = functools.partial(genesis.optim.SGD, momentum=0.9)
    genesis.warmup([Own, with_momentum], ["float32:float64"], progress=True)
    errors = capsys.readouterr().err
    assert "compiling: 100% 2 of 2 optimizers" in errors
    assert "for float32 and float64" in errors
    misses = cpu_kernels()
    trials.Trial(with_momentum, "float32", "float64").step()
    assert cpu_kernels() == misses
    genesis.warmup("SGD", progress=False)
    assert capsys.readouterr().err == ""


def cpu_kernels():
    """How many kernels this process has asked for."""
    made = [*vars(cpu.updating).values(), *vars(cpu.summing).values()]
    kept = [value for value in made if isinstance(value, compiling.Kept)]
    assert len(kept) > 5
    return sum(each.cache_info().misses for each in kept)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"optimizers": "Adm"}, ValueError, "did you mean 'Adam'"),
        ({"optimizers": "RuleOptimizer"}, ValueError, "there is no optimizer"),
        ({"optimizers": [3]}, TypeError, "a name, a class or a functools.partial"),
        ({"dtypes": "f4"}, ValueError, "but got 'f4'"),
        ({"device": "gpu"}, ValueError, "gpu"),
    ],
)
def test_warmup_refuses(arguments, error, said):
    with pytest.raises(error, match=re.escape(said)):
        ahead.warmup(**arguments, progress=False)
