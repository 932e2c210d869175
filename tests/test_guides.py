"""The README and the pages under docs/: their code runs, their names exist, every name has a page."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

import pytest
from devices import SIMULATED

import genesis
from genesis import cuda_driver

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NEED_TORCH = {"under_torch.md"}
NEED_MPI = {"scaling.md"}
ON_DEVICES = {"gpu.md"}
"""Pages that say something else where there is a GPU, or a simulated one."""


def _cuda_here():
    try:
        cuda_driver.cuda()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    """Every block of Python in turn, in one namespace. One that has no device here ends as a skip."""
    sybil = pytest.importorskip("sybil", reason="needs sybil: pip install -e '.[test]'")
    from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

    if page.name in NEED_TORCH:
        pytest.importorskip("torch")
    if page.name in NEED_MPI:
        pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI: pip install mpi4py mpich")
    if SIMULATED and page.name not in ON_DEVICES:
        pytest.skip("about the CPU target")
    monkeypatch.chdir(tmp_path)
    threads = genesis.get_num_threads()
    document = sybil.Sybil([PythonCodeBlockParser(), SkipParser()], path=str(page.parent)).parse(
        page
    )
    document.namespace.update(__name__="__main__", cuda_here=_cuda_here())
    examples = list(document.examples())
    blocks = re.findall(r"^```(?:python|\{code-cell\} python)$", document.text, re.MULTILINE)
    assert len(examples) >= len(blocks)
    left_out = set()
    try:
        for example in examples:
            try:
                example.evaluate()
            except SkipTest as reason:
                left_out.add(str(reason))
    finally:
        genesis.set_num_threads(threads)
    if left_out:
        pytest.skip(f"all but blocks left out: {', '.join(sorted(left_out))}")


# ---- names of others ----

ROOTS = {
    "optim": "genesis.optim",
    "lr_scheduler": "genesis.optim.lr_scheduler",
    "schedules": "genesis.optim.schedules",
    "genesis": "genesis",
}
"""What the first word of a name in the tables of coming_from.md stands for."""
MEGENGINE = (
    "Parameter amp.GradScaler amp.autocast load optimizer.Adadelta optimizer.Adagrad optimizer.Adam "
    "optimizer.AdamW optimizer.LAMB optimizer.LAMBFp16 optimizer.LRScheduler optimizer.MultiStepLR "
    "optimizer.Optimizer.clear_grad optimizer.SGD optimizer.clip_grad_norm "
    "optimizer.clip_grad_value save"
)
"""MegEngine's names as in its sources: there is no package of it for the Pythons that genesis needs."""

_FIND = """
import importlib, json, sys
missing = []
for name in json.load(sys.stdin):
    found = None
    for part in name.split("."):
        if found is None:
            found = importlib.import_module(part)
            continue
        if not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                missing.append(name)
                break
        found = getattr(found, part)
print(json.dumps(missing))
"""


def _rows(library):
    """The rows of the tables about a library: its name, and what it is here."""
    page = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    return re.findall(rf"^\| `({library}\.[\w.]+)` \| (.+) \|$", page, re.MULTILINE)


@pytest.mark.parametrize("library", ["torch", "megengine", "optax", "keras"])
def test_names_here_that_others_are_led_to(library):
    rows = _rows(library)
    assert len(rows) > 10
    for theirs, ours in rows:
        names = [name.split(".") for name in re.findall(r"`([\w.]+)`", ours)]
        known = [name for name in names if len(name) > 1 and name[0] in ROOTS]
        arguments = re.findall(r"`(\w+=\S*|optimizer\.step\(\S+\))`", ours)
        assert (
            known or arguments or "groups" in ours or "not needed" in ours or "the same" in ours
        ), theirs
        for root, *parts in known:
            found = import_module(ROOTS[root])
            for part in parts:
                found = getattr(found, part)


@pytest.mark.parametrize("library", ["torch", "optax", "keras"])
def test_names_of_other_libraries(library):
    if find_spec(library) is None:
        pytest.skip(f"needs {library}")
    names = [theirs for theirs, _ in _rows(library)]
    # In a process of its own: these libraries warn when they are imported, and change a process.
    backend = "torch" if find_spec("torch") else "jax"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FIND],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_names_of_megengine():
    assert {theirs for theirs, _ in _rows("megengine")} == {
        f"megengine.{name}" for name in MEGENGINE.split()
    }


# ---- the API ----

MODULES = (
    "genesis genesis.amp genesis.nn genesis.nn.utils genesis.optim genesis.optim.lr_scheduler "
    "genesis.optim.schedules genesis.optim.swa_utils genesis.transforms genesis.tree "
    "genesis.distributed"
)
ELSEWHERE = {
    "genesis.amp.autocast": "genesis.autocast",
    "genesis.optim.swa_utils.SWALR": "genesis.optim.lr_scheduler.SWALR",
}
"""Public names that are another one's, which has the page."""
ALSO = (
    "formulas.chain.Transform hyper.Choice hyper.Flag hyper.Number hyper.Several hyper.betas "
    "hyper.count hyper.decay hyper.epsilon hyper.flag hyper.non_negative hyper.number hyper.rate "
    "hyper.several hyper.word optim.gradient_optimizer.GradientOptimizer optim.group.Group "
    "optim.hooks.RemovableHandle optim.options.Options optim.schedule_free.ScheduleFree "
    "optim.state.State"
)
"""What users meet though no `__all__` names it: declarations, and what others are made of or return."""


def listed():
    """The names of which docs/api lists a page, and the modules that have one."""
    names, modules = set(), set()
    for page in sorted((DOCS / "api").glob("*.rst")):
        module = None
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith(".. module:: "):
                modules.add(line.split()[-1])
            elif line.startswith(".. currentmodule:: "):
                module = line.split()[-1]
            elif line.startswith(".. data:: "):
                names.add(f"genesis.{line.split()[-1]}")
            elif module and re.fullmatch(r"   [\w.]+", line):
                names.add(f"{module}.{line.strip()}")
    return names, modules


def test_every_public_name_has_a_page():
    names, modules = listed()
    wanted = set()
    for name in MODULES.split():
        module = import_module(name)
        assert module.__all__, name
        for public in module.__all__:
            full = f"{name}.{public}"
            if isinstance(getattr(module, public), ModuleType):
                assert full in modules, f"{full} has no page: docs/api"
            else:
                wanted.add(ELSEWHERE.get(full, full))
                assert getattr(import_module(ELSEWHERE.get(full, full).rpartition(".")[0]), public)
    wanted |= {f"genesis.{name}" for name in ALSO.split()}
    ours = {name for name in names if not name.startswith("genesis.torch.")}
    assert ours == wanted, "docs/api lists too few names, or too many"


def test_every_public_name_for_torch_has_a_page():
    pytest.importorskip("torch")
    names, _ = listed()
    public = {f"genesis.torch.{name}" for name in import_module("genesis.torch").__all__}
    assert {name for name in names if name.startswith("genesis.torch.")} == public
