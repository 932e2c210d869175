"""The modules that compile for a kind of device: what each offers, and what it knows of the others."""

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genesis.kernels import compiling
from genesis.kernels.target import Target

ROOT = Path(__file__).parent.parent


def found(code, **others):
    """What a Python of its own prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=120, **others
    ).stdout


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_target_offers_what_is_written_down(device):
    if device == "cuda":
        pytest.importorskip("numba_cuda", reason="needs numba-cuda: genesis-optim[cu13]")
    target = compiling.target_named(device)
    members = {name for name in {*vars(Target), *Target.__annotations__} if name[0] != "_"}
    assert members == {
        "CHUNK", "bind", "bind_clip", "bind_combination", "bind_reduction", "bind_transform",
        "bind_zero", "copying", "numbers", "stream_numbered",
    }  # fmt: skip
    for name in members:
        offered = getattr(target, name)
        promised = vars(Target).get(name)
        if inspect.isfunction(promised):
            _, *expected = inspect.signature(promised).parameters.values()
            parameters = inspect.signature(offered).parameters.values()
            assert [(p.name, p.kind, p.default) for p in parameters] == [
                (p.name, p.kind, p.default) for p in expected
            ]
    assert isinstance(target.CHUNK, int)
    assert target.bind_clip is None or callable(target.bind_clip)


def test_cuda_needs_nothing_of_the_cpus():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: genesis-optim[cu13]")
    modules = found(
        "import sys\n"
        "from genesis.kernels import compiling, headers, overlaps, table\n"
        "compiling.target_named('cuda:0')\n"
        "print(*sys.modules)"
    ).split()
    assert "genesis.kernels.cuda" in modules
    assert "genesis.kernels.cpu" not in modules


def test_every_source_of_kernels_is_part_of_their_keys(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "genesis", tmp_path / "genesis", ignore=ignored)
    kernels = tmp_path / "genesis" / "kernels"

    def sources():
        return found("from genesis.kernels import specialise as s; print(s._SOURCES)", cwd=tmp_path)

    keys = {sources()}
    compiled = kernels / "cuda" / "__pycache__"
    compiled.mkdir(exist_ok=True)
    (compiled / "anything.pyc").write_text("what Python may make anew at any time")
    assert keys == {sources()}
    for path in kernels / "cpu" / "working.py", kernels / "cuda" / "templates.py":
        with path.open("a") as file:
            file.write("# another\n")
        keys.add(sources())
    assert len(keys) == 3
