"""Which machine code is taken for a rule: always that of its content; and what becomes of files.

Every expected number is worked out by hand: each rule is the identity but for a small factor.
"""

import logging
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numba
import numpy as np
import pytest
from devices import on_cpu_only

from genesis import kernels
from genesis.kernels import cache, cpu, rules
from genesis.kernels.digest import UnknownContentError, digest

pytestmark = on_cpu_only

ROOT = Path(__file__).parent.parent


def moved(rule, gradient=3.0, hyper=()):
    """Where one update moves a parameter that is 0."""
    target, grad = np.zeros(1), np.full(1, gradient)
    launch = kernels.prepare(rule, [[grad], [target]], len(hyper))
    launch.set_scalars(1.0, hyper)
    launch.run()
    return target[0]


def defined(source, **others):
    """The functions that `source` defines, which have no file."""
    names = {"__name__": "typed_in", "numba": numba, "math": math, **others}
    exec(source, names)
    return names


def factory(factor):
    def rule(param, grad, state, hyper):
        return param - factor * grad, state

    return rule


def test_two_closures_of_one_factory():
    assert moved(factory(1.0)) == -3
    assert moved(factory(3.0)) == -9
    assert moved(factory(1.0)) == -3


def test_an_equal_closure_compiles_nothing():
    moved(factory(1.5))
    before = cpu.updating.compiled.cache_info().misses
    assert moved(factory(1.5)) == -4.5
    assert cpu.updating.compiled.cache_info().misses == before


RULE = "def rule(param, grad, state, hyper):\n    return {}, state\n"


def test_two_functions_of_one_name_without_source():
    first, second = (defined(RULE.format(f"param - grad * {k}"))["rule"] for k in (1, 3))
    assert moved(first) == -3
    assert moved(second) == -9


def test_code_that_is_replaced():
    rule = factory(1.0)
    assert moved(rule) == -3
    rule.__code__ = defined(
        "def made(factor):\n"
        "    def rule(param, grad, state, hyper):\n"
        "        return param + factor * grad, state\n"
        "    return rule"
    )["made"](0).__code__
    assert moved(rule) == 3


def test_a_cell_a_global_and_an_array_that_change():
    rule = factory(1.0)
    assert moved(rule) == -3
    rule.__closure__[0].cell_contents = 3.0
    assert moved(rule) == -9
    # 1 and 1.0 and True are equal, but not to a compiler
    assert len({digest(factory(one)) for one in (1, 1.0, True, np.float32(1), np.float64(1))}) == 5

    names = defined(RULE.format("param - FACTOR * TABLE[1] * grad"), FACTOR=1.0, TABLE=np.ones(2))
    assert moved(names["rule"]) == -3
    names["FACTOR"] = 2.0
    assert moved(names["rule"]) == -6
    names["TABLE"][1] = 5.0
    assert moved(names["rule"]) == -30
    names["TABLE"] = names["TABLE"].astype(np.float32)
    assert len({digest(names["rule"]), digest(defined(RULE.format("param"))["rule"])}) == 2


@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "plain"])
def test_a_helper_changed_in_another_module(jitted):
    helpers = types.ModuleType("helpers")
    decorator = "@numba.njit\n" if jitted else ""

    def change(formula):
        source = f"{decorator}def square(x):\n    return {formula}\n"
        exec(source, {**vars(helpers), "numba": numba}, vars(helpers))

    rule = defined(RULE.format("param - helpers.square(grad)"), helpers=helpers)["rule"]
    change("x * x")
    assert moved(rule) == -9
    change("x * x * x")
    assert moved(rule) == -27


def test_what_a_jitted_helper_refers_to_changes_after_it_was_compiled():
    """Numba would go on with the old machine code of the helper: in a new kernel, and on disk."""
    source = "@numba.njit\ndef helper(x):\n    return x * FACTOR\n"
    names = defined(source + RULE.format("param - helper(grad)"), FACTOR=1.0)
    assert names["helper"](3.0) == 3
    assert moved(names["rule"]) == -3
    names["FACTOR"] = 3.0
    assert moved(names["rule"]) == -9
    assert names["helper"](3.0) == 3  # it belongs to the user


def test_helpers_that_call_each_other_and_a_module_that_holds_itself():
    helpers = types.ModuleType("helpers")
    helpers.helpers = helpers
    source = (
        "@numba.njit\ndef even(n):\n    return n == 0 or odd(n - 1)\n"
        "@numba.njit\ndef odd(n):\n    return n == LAST or (n != 0 and even(n - 1))\n"
    )
    vars(helpers).update(numba=numba, LAST=1)
    exec(source, vars(helpers))
    rule = defined(RULE.format("param - helpers.helpers.odd(int(grad))"), helpers=helpers)["rule"]
    assert moved(rule, 2.0) == 0
    helpers.LAST = 0
    assert moved(rule, 2.0) == -1
    assert digest(helpers.even) != digest(helpers.odd)
    fact = defined(
        "@numba.njit\ndef fact(n):\n    return n * fact(n - 1) if n > BOTTOM else 1.0\n"
        + RULE.format("param - fact(grad)"),
        BOTTOM=0,
    )
    assert moved(fact["rule"], 4.0) == -24
    fact["BOTTOM"] = 2
    assert moved(fact["rule"], 4.0) == -12


def test_options_and_signatures_of_helpers_stay():
    helper = "@numba.njit({})\ndef helper(x):\n    return x * 0.5\n"
    helper += RULE.format("param - helper(grad)")
    whole = defined(helper.format("'int64(int64)'"))
    assert moved(whole["rule"], 5.0) == -2  # 5 / 2, as an integer
    assert moved(defined(helper.format(""))["rule"], 5.0) == -2.5
    assert digest(whole["rule"]) != digest(defined(helper.format("'float64(int64)'"))["rule"])
    assert digest(whole["rule"]) != digest(defined(helper.format("fastmath=True"))["rule"])


class _Unreadable:
    """Something of which nobody knows what a compiler makes of it."""


def test_what_cannot_be_read_is_neither_shared_nor_kept(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    source = "def rule(param, grad, state, hyper):\n    return param - twice(grad), state\n"
    doubled = numba.vectorize(lambda x: 2 * x)
    rule = defined(source, twice=doubled)["rule"]
    with pytest.raises(UnknownContentError, match=r"twice of rule refers to .*DUFunc"):
        digest(rule)
    with caplog.at_level(logging.WARNING, "genesis"):
        assert moved(rule) == -6
        assert moved(rule) == -6
    assert [r.message.partition(",")[0] for r in caplog.records if "twice" in r.message] == [
        "twice of rule refers to an object of type numba.np.ufunc.dufunc.DUFunc"
    ]
    assert not list(tmp_path.rglob("*update*rule*.nbc"))
    with pytest.raises(UnknownContentError, match=r"thing of rule refers to .*_Unreadable"):
        digest(defined(RULE.format("param - thing"), thing=_Unreadable())["rule"])


def test_an_overloaded_function_is_not_believed():
    """What Numba compiles in its place is nowhere in the function."""
    names = defined("def swapped(x):\n    return x\n" + RULE.format("param - swapped(grad)"))
    digest(names["rule"])

    @numba.extending.overload(names["swapped"])
    def overload(x):
        return lambda x: 2 * x

    with pytest.raises(
        UnknownContentError, match="swapped of rule refers to swapped, in whose place"
    ):
        digest(names["rule"])
    assert moved(names["rule"]) == -6


def test_the_number_of_scalars_is_part_of_the_key(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    rule = defined(RULE.format("param - hyper[0] * grad"))["rule"]
    assert moved(rule, hyper=(1.0, 7.0, 7.0)) == -3
    assert moved(rule, hyper=(2.0,)) == -6
    assert len(list(tmp_path.rglob("*update*rule*.nbc"))) == 2


SESSION = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(levelname)s:%(message)s", stream=sys.stdout)
import numpy as np
from genesis import kernels
def moved(rule, dtype="f8"):
    target, grad = np.zeros(1, dtype), np.full(1, 3, dtype)
    launch = kernels.prepare(rule, [[grad], [target]], 0)
    launch.set_scalars(1.0, ())
    launch.run()
    return float(target[0])
"""
COMPILING = "INFO:compiling"


def session(code, folder=None, **environment):
    """What Python prints after SESSION and this code."""
    if folder is not None:
        environment["NUMBA_CACHE_DIR"] = str(folder)
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **environment}
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    result = subprocess.run(
        [sys.executable, "-c", SESSION + code],
        cwd=environment.pop("cwd", ROOT),
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_files_too_are_found_by_content(tmp_path):
    """Closures, and a helper in another module, in one session after the other."""
    code = (
        "import mine\nprint([moved(mine.made(factor)) for factor in FACTORS], moved(mine.rule))\n"
    )
    mine = (
        "import helpers\n"
        "def made(factor):\n"
        "    def rule(param, grad, state, hyper):\n"
        "        return param - factor * grad, state\n"
        "    return rule\n"
        "def rule(param, grad, state, hyper):\n"
        "    return param - helpers.square(grad), state\n"
    )
    helper = "import numba\n@numba.njit\ndef square(x):\n    return {}\n"
    (tmp_path / "mine.py").write_text(mine)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for factors, formula, expected in [
        ([1.0], "x * x", "[-3.0] -9.0"),
        ([3.0], "x * x * x", "[-9.0] -27.0"),
        ([3.0, 1.0], "x * x", "[-9.0, -3.0] -9.0"),
    ]:
        (tmp_path / "helpers.py").write_text(helper.format(formula))
        found = session(code.replace("FACTORS", str(factors)), tmp_path / "kept", PYTHONPATH=path)
        assert found.splitlines()[-1] == expected
    assert COMPILING not in found  # all of it was known by then


def test_kernels_of_several_sessions_do_not_share_their_helpers(tmp_path):
    """LLVM keeps one of two symbols with one name; a recursive helper stays a symbol."""
    code = (
        "import numba\n"
        "def made(factor):\n"
        "    @numba.njit\n"
        "    def power(n):\n"
        "        return factor * power(n - 1.0) if n > 0 else 1.0\n"
        "    def rule(param, grad, state, hyper):\n"
        "        return param - power(grad), state\n"
        "    return rule\n"
        "print([moved(made(factor)) for factor in FACTORS])\n"
    )
    for factors, expected in [
        ("2.0,", "[-8.0]"),
        ("3.0, 2.0, 4.0", "[-27.0, -8.0, -64.0]"),
        ("4.0, 3.0, 2.0", "[-64.0, -27.0, -8.0]"),
    ]:
        found = session(code.replace("FACTORS", f"({factors})"), tmp_path)
        assert found.splitlines()[-1] == expected
    assert COMPILING not in found


def test_helpers_that_call_each_other_are_not_loaded_from_disk(tmp_path):
    """Numba does not say in a file where the one finds the other: the process would crash."""
    code = (
        "import numba\n"
        "@numba.njit\n"
        "def even(n): return n == 0 or odd(n - 1)\n"
        "@numba.njit\n"
        "def odd(n): return n == 1 or (n != 0 and even(n - 1))\n"
        "def rule(param, grad, state, hyper): return param - odd(int(grad)), state\n"
        "print(moved(rule))\n"
    )
    for _ in range(2):
        assert session(code, tmp_path).split()[-1] == "-1.0"


def test_a_rule_without_source_is_kept_on_disk(tmp_path):
    code = (
        "names = {}\n"
        "exec('def rule(param, grad, state, hyper): return param - 2 * grad, state', names)\n"
        "print(moved(names['rule']))\n"
    )
    assert COMPILING in session(code, tmp_path)
    again = session(code, tmp_path)
    assert COMPILING not in again
    assert again.split()[-1] == "-6.0"


def test_settings_of_numba_are_part_of_the_key(tmp_path):
    code = "from genesis.kernels import rules\nprint(moved(rules.copy))\n"
    session(code, tmp_path)
    assert COMPILING in session(code, tmp_path, NUMBA_OPT="0")
    assert COMPILING not in session(code, tmp_path)


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: np.random.default_rng(1).bytes(len(content)),
    "longer": lambda content: content + b"\0",
}


def flipped(content, place):
    """With one bit changed: in the middle of the machine code, say."""
    place = int(place * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    session("from genesis.kernels import rules\nmoved(rules.copy, 'f4')", folder)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        lambda content: flipped(content, 0),
        lambda content: flipped(content, 1 / 2),
    ],
    ids=[*DAMAGES, "first bit", "a bit in the middle"],
)
def test_damaged_files_are_compiled_anew(damage, filled, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "kept"
    shutil.copytree(filled, folder)
    files = [path for path in folder.rglob("*update*copy*") if path.is_file()]
    whole = [path.read_bytes() for path in files]
    assert len(files) == 1
    for path, content in zip(files, whole):
        path.write_bytes(damage(content))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    cpu.updating.compiled.cache_clear()
    with caplog.at_level(logging.WARNING, "genesis"):
        target = np.zeros(1, np.float32)
        launch = kernels.prepare(rules.copy, [[np.full(1, 3, "f4")], [target]], 0)
        launch.set_scalars(1.0, ())
        launch.run()
    assert target[0] == 3
    assert sum("is damaged" in record.message for record in caplog.records) == len(files)
    caplog.clear()
    cpu.updating.compiled.cache_clear()
    with caplog.at_level(logging.WARNING, "genesis"):
        kernels.prepare(rules.copy, [[np.full(1, 3, "f4")], [target]], 0)
    assert not caplog.records  # they have been mended


def test_a_disk_that_takes_nothing_stops_no_step(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with caplog.at_level(logging.WARNING, "genesis"):
        assert moved(factory(11.0)) == -33
    assert any("No space left on device" in record.message for record in caplog.records)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_read_only_installation_without_a_home(tmp_path):
    """A temporary folder, said once, and gone at the end."""
    copy = tmp_path / "installed"
    shutil.copytree(
        ROOT / "genesis", copy / "genesis", ignore=shutil.ignore_patterns("__pycache__")
    )
    # Not to be written even by root: where folders would have to be, there are files.
    for folder in (copy / "genesis" / "kernels", copy / "genesis" / "kernels" / "cpu"):
        (folder / "__pycache__").write_text("")
    nowhere = tmp_path / "a file"
    nowhere.write_text("")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import os\n"
        "from genesis.kernels import rules\n"
        "for dtype in 'f4', 'f8':\n"
        "    assert moved(rules.copy, dtype) == 3\n"
        "(folder,) = os.listdir(os.environ['TMPDIR'])\n"
        "print(len(os.listdir(os.path.join(os.environ['TMPDIR'], folder))), folder)\n"
        "child = os.fork() if hasattr(os, 'fork') else 1\n"
        "if child == 0: sys.exit(0)\n"
        "if child > 1: os.waitpid(child, 0)\n"
        "assert os.listdir(os.environ['TMPDIR']) == [folder]\n"
    )
    homeless = {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere), "TMPDIR": str(scratch)}
    for setting in ({}, {"NUMBA_CACHE_DIR": str(nowhere)}):
        found = session(code, PYTHONPATH=str(copy), cwd=str(copy), **homeless, **setting)
        assert found.count("WARNING:neither") == 1
        assert found.count("WARNING") <= 2  # that it took long, perhaps
        assert "NUMBA_CACHE_DIR names a lasting place" in found
        count, folder = found.split()[-2:]
        assert int(count) >= 2  # the look at headers, and the update
        assert folder.startswith("genesis-")
        assert not list(scratch.iterdir())


def test_old_files_go_and_others_stay(tmp_path):
    age = {"used": 1, "forgotten": 61}
    sources = "0123456789abcdef"

    def made(name, days):
        path = tmp_path / name
        path.write_bytes(b"")
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))
        return path.name

    kept = {
        made(f"genesis.cpu.update_{sources}_a.nbc", 50),
        made("genesis.cpu.update_other_b.nbc", 1),
        made("cpu.somebody_elses-3.py311.1.nbc", 1000),
        made("cpu.cpython-311.pyc", 1000),
        made("numbers.genesis.nbc", 1000),
    }
    made(f"genesis.cpu.update_{sources}_c.nbc", age["forgotten"])
    made("genesis.cpu.update_other_d.nbc", 3)
    made(f"genesis.cpu.update_{sources}_e.nbc.tmp.0123", 3)
    cache.prune(tmp_path, sources)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_compiling_prunes_and_loading_keeps(tmp_path):
    code = "from genesis.kernels import rules\nprint(moved(rules.copy))\n"
    session(code, tmp_path)
    (some, *_) = files = sorted(tmp_path.rglob("*.nbc"))
    then = time.time() - 59 * 24 * 3600
    former = some.with_name("genesis.cpu.update_former.nbc")
    former.write_bytes(b"")
    for path in (*files, former):
        os.utime(path, (then, then))
    assert COMPILING not in session(code, tmp_path)
    assert former.exists()  # nothing new, nothing done
    assert all(time.time() - path.stat().st_mtime < 3600 for path in files)
    assert COMPILING in session(code.replace("copy", "accumulate"), tmp_path)
    assert not former.exists()
    assert all(path.exists() for path in files)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_while_other_threads_compile():
    """A child steps at once, with a rule that is known and one that it has to compile."""
    code = """
import os, signal, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
def made(factor):
    names = {"__name__": __name__}
    exec(f"def rule_{factor}(param, grad, state, hyper): return param - {factor} * grad, state", names)
    return names[f"rule_{factor}"]
assert moved(made(1)) == -3
stop = threading.Event()
compiled = []
def compile(factor):
    while not stop.is_set():
        factor += 1
        assert moved(made(factor)) == -3 * factor
        compiled.append(factor)
threads = [threading.Thread(target=compile, args=(1000 * k,), daemon=True) for k in (1, 2)]
for thread in threads: thread.start()
failed = []
for number in range(4):
    time.sleep(0.037 * number)
    child = os.fork()
    if child == 0:
        signal.alarm(300)
        factor = 5 if number % 2 else 1
        os._exit(moved(made(factor)) != -3 * factor or moved(made(1)) != -3)
    failed += [os.waitpid(child, 0)[1]]
    if any(failed): break
stop.set()
for thread in threads: thread.join()
print(len(compiled), failed)
"""
    count, failed = session(code, GENESIS_CACHE="0").splitlines()[-1].split(" ", 1)
    assert failed == str([0] * 4)
    assert int(count) >= 2


def test_threads_that_want_one_kernel_make_it_once():
    before = cpu.updating.compiled.cache_info().misses
    results = []
    start = threading.Barrier(4)

    def work():
        start.wait(10)
        results.append(moved(factory(21.0)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == [-63] * 4
    assert cpu.updating.compiled.cache_info().misses == before + 1


def test_a_fork_that_was_interrupted_holds_nobody_up():
    """As when an exception from a signal handler ends the hook that runs after a fork."""
    from genesis.kernels import compiling

    compiling._fork_waits = True
    assert compiling.alone(int) == 0
    assert not compiling._fork_waits
