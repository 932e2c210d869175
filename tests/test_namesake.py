"""Other packages called genesis, before this one, behind it and over it."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import genesis
from genesis import namesake

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd, path="", flags=()):
    """What a Python says that finds packages in its folder and on a path."""
    done = subprocess.run(
        [sys.executable, *flags, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages, with a copy of this one."""
    shutil.copytree(
        Path(genesis.__file__).parent,
        tmp_path / "site" / "genesis",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path / "site"


def install_another(site):
    """Another distribution with a package of the same name, installed over what is there."""
    (site / "genesis").mkdir(exist_ok=True)
    (site / "genesis" / "__init__.py").write_text("def init(): pass\n")
    about = site / "genesis_world-0.3.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: genesis-world\nVersion: 0.3.1\n")
    (about / "top_level.txt").write_text("genesis\n")


@pytest.mark.parametrize(
    "code", ["from genesis import optim", "import genesis.nn", "import genesis.optim.lr_scheduler"]
)
def test_another_package_over_this_one(code, site, tmp_path):
    install_another(site)
    status, said = run("-c", code, cwd=tmp_path, path=site)
    assert status == 1
    last = said.splitlines()[-1]
    assert last.startswith(
        "ImportError: import genesis gives another package (genesis-world 0.3.1), "
    )
    assert "each needs an environment of its own" in last


def test_another_package_that_took_files_away_with_it(site, tmp_path):
    (site / "genesis" / "__init__.py").unlink()
    # Without what is installed beside the tests: a clone that is would be found.
    status, said = run("-c", "import genesis.optim", cwd=tmp_path, path=site, flags=("-S",))
    assert status == 1
    assert "__init__.py is missing" in said
    assert "pip install --force-reinstall --no-deps genesis-optim" in said


def test_another_package_behind_this_one(tmp_path):
    install_another(tmp_path)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    status, said = run("-c", "import genesis; genesis.init()", cwd=tmp_path / "genesis", path=path)
    assert status == 1
    assert "module 'genesis' has no attribute 'init' (this is genesis-optim, the optimizer" in said
    other = tmp_path / "genesis" / "__init__.py"
    assert f"another 'genesis' is behind it: {other}" in said
    status, said = run("-m", "genesis", "--no-check", cwd=tmp_path / "genesis", path=path)
    assert status == 0
    assert f"another genesis is behind it, unused: {other}" in said


def test_what_is_said_of_other_attributes(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(AttributeError) as raised:
        genesis.optimizers  # noqa: B018
    assert str(raised.value) == (
        "module 'genesis' has no attribute 'optimizers' (this is genesis-optim, the optimizer library, "
        f"in {namesake.FOLDER})"
    )
    assert raised.value.name == "optimizers"
    assert raised.value.obj is genesis
    assert not hasattr(genesis, "__wrapped__")
    assert namesake.missing("AdamW").endswith("no attribute 'AdamW': it is genesis.optim.AdamW")
    assert namesake.missing("torch").endswith(": import genesis.torch first")


@pytest.fixture
def clone(tmp_path):
    """The folder of a clone, called genesis."""
    (tmp_path / "genesis").mkdir()
    shutil.copy(ROOT / "__main__.py", tmp_path / "genesis")
    return tmp_path / "genesis"


def test_in_the_folder_above_a_clone_the_installed_package_is_found(clone):
    code = "import genesis; print(genesis.optim, genesis.__version__)"
    status, said = run("-c", code, cwd=clone.parent, path=ROOT)
    assert status == 0, said
    assert str(ROOT / "genesis" / "optim") in said


def test_in_the_folder_above_a_clone_where_nothing_is_installed(clone):
    status, said = run("-m", "genesis", cwd=clone.parent, flags=["-S"])
    assert status == 1
    assert said.startswith(f"genesis-optim is not installed for {sys.executable}: ")
    assert f"-m pip install -e {clone}" in said
    assert "Traceback" not in said


def test_whose_the_name_is(monkeypatch, tmp_path):
    library = [sysconfig.get_path("stdlib"), f"{sysconfig.get_path('platstdlib')}/lib-dynload"]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *library])
    assert namesake.owners() == []
    install_another(tmp_path)
    importlib.invalidate_caches()  # a folder's time may be the same as before
    assert namesake.owners() == ["genesis-world 0.3.1"]
    (tmp_path / "genesis.py").write_text("")
    assert namesake.places() == [tmp_path / "genesis" / "__init__.py", tmp_path / "genesis.py"]
