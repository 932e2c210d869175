"""Saves in the background: what is in the file, what waits for it, and what happens when it fails."""

import _thread
import errno
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from attack_tools import interrupted_after
from devices import on_cpu_only

import genesis
from genesis.checkpoint import (
    background,
    codec,
    file_format,
    load,
    load_checkpoint,
    save,
    save_checkpoint,
    wait_for_save,
)

pytestmark = on_cpu_only

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.safetensors")


@pytest.fixture(autouse=True)
def nothing_left_over():
    """A test that fails must not hand its save, or its error, to the next one."""
    yield
    background._forget()


@pytest.fixture
def held_up(monkeypatch):
    """Two events: the first says that the thread has come to the file, which waits for the second."""
    arrived, go_on = threading.Event(), threading.Event()
    write = file_format.write

    def held(*args, **kwargs):
        if threading.current_thread().name == "genesis save":
            arrived.set()
            assert go_on.wait(60)
        write(*args, **kwargs)

    monkeypatch.setattr(file_format, "write", held)
    yield arrived, go_on
    go_on.set()
    wait_for_save()


def run(code, *arguments, returncode=0):
    """Run code in a process of its own; what it prints, and what it says of errors."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == returncode, result.stderr
    return result.stdout, result.stderr


def files_beside(path):
    return sorted(set(os.listdir(os.path.dirname(path))) - {os.path.basename(path)})


# What is in the file.


def everything():
    """Arrays of every kind of memory, type and byte order."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((6, 8)).astype(np.float32)
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(np.float32)
    read_only = base.copy()
    read_only.flags.writeable = False
    return {
        "plain": base,
        "fortran": np.asfortranarray(base),
        "strided": base[::2, 1::3],
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[:1], (4, 8)),
        "read-only": read_only,
        "unaligned": unaligned,
        "empty": np.zeros((3, 0, 2)),
        "0-d": np.array(1.5),
        "scalar": np.float16(2.5),
        "bfloat16": rng.integers(0, 1 << 16, (5, 7), np.uint16).view(ml_dtypes.bfloat16)[:, ::2],
        "bool": np.array([True, False, True]),
        "int8": np.arange(3, dtype=np.int8),
        "big": np.arange(5, dtype=">f8"),
        "nan": np.array([0x7FF0DEADBEEF0001], np.uint64).view(np.float64),
        "parameter": genesis.Parameter(base.copy(), name="p"),
        "numbers": [1, 2.5, "x", None, (2**70,)],
    }


def test_the_file_is_the_same_as_one_that_was_waited_for(tmp_path):
    save(everything(), tmp_path / "waited for")
    save(everything(), tmp_path / "not", background=True)
    wait_for_save()
    assert (tmp_path / "not").read_bytes() == (tmp_path / "waited for").read_bytes()


def test_what_comes_later_is_not_in_the_file(path, held_up):
    _, go_on = held_up
    params = {"w": np.zeros((40, 50), np.float32), "b": genesis.Parameter(np.zeros(3))}
    optimizer = genesis.optim.AdamW(params, lr=0.1)
    step = {"w": np.ones((40, 50), np.float32), "b": np.ones(3)}
    optimizer.step(grads=step)
    expected = params["w"].copy(), optimizer.state_dict()
    save_checkpoint(path, background=True, params=params, optimizer=optimizer, epoch=1)
    optimizer.step(grads=step)
    params["w"][:] = 7
    go_on.set()
    saved = load_checkpoint(path)
    np.testing.assert_array_equal(saved["params"]["w"], expected[0])
    for i in range(2):
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(
                saved["optimizer"]["state"][i][name], expected[1]["state"][i][name]
            )
    assert saved["optimizer"]["state"][0]["step"] == 1
    assert saved["epoch"] == 1


def test_what_edits_a_state_dict_edits_a_copy(path):
    """A hook, or the method of a subclass, edits the dict that is saved, and not the optimizer."""

    class Zeroing(genesis.optim.AdamW):
        def state_dict(self):
            state = super().state_dict()
            state["state"][0]["exp_avg"][:] = 0
            return state

    def zero(optimizer, state):
        state["state"][0]["exp_avg"][:] = 0

    for make in (Zeroing, genesis.optim.AdamW):
        w = np.ones(4)
        optimizer = make([w], lr=0.1)
        if make is not Zeroing:
            optimizer.register_state_dict_post_hook(zero)
        optimizer.step(grads=[np.ones(4)])
        (state,) = optimizer.state.values()
        before = state["exp_avg"].copy()
        assert before.all()
        save_checkpoint(path, optimizer=optimizer)
        np.testing.assert_array_equal(state["exp_avg"], before)
        assert not load(path)["optimizer"]["state"][0]["exp_avg"].any()


def test_a_state_dict_asked_for_is_still_a_copy(path):
    w = np.ones(4)
    optimizer = genesis.optim.AdamW([w], lr=0.1)
    optimizer.step(grads=[np.ones(4)])
    save_checkpoint(path, optimizer=optimizer)
    (state,) = optimizer.state.values()
    assert not np.shares_memory(optimizer.state_dict()["state"][0]["exp_avg"], state["exp_avg"])


def test_the_memory_of_copies_is_used_again_until_it_is_given_back(path):
    def place():
        return background._last.memory.ctypes.data, background._last.memory.size

    save({"a": np.zeros(1000)}, path, background=True)
    background.wait()
    first = place()
    save({"a": np.ones(900)}, path, background=True)
    background.wait()
    assert place() == first
    save({"a": np.ones(300)}, path, background=True)  # for which it is far too large
    background.wait()
    assert place()[1] == 2400
    assert load(path)["a"].tolist() == [1.0] * 300
    wait_for_save()
    assert background._last is None


# Who waits.


@pytest.mark.parametrize("call", ["save", "background", "load", "wait_for_save"])
def test_the_next_call_waits(call, path, held_up):
    arrived, go_on = held_up
    save({"number": 1}, path, background=True)
    assert arrived.wait(60)
    assert not os.path.exists(path)
    calls = {
        "save": lambda: save({"number": 2}, path),
        "background": lambda: save({"number": 2}, path, background=True),
        "load": lambda: load(path),
        "wait_for_save": wait_for_save,
    }
    ended = threading.Event()
    other = threading.Thread(target=lambda: (calls[call](), ended.set()))
    other.start()
    assert not ended.wait(0.2)
    go_on.set()
    other.join(60)
    assert ended.is_set()
    wait_for_save()
    assert load(path)["number"] == (2 if call in ("save", "background") else 1)
    assert files_beside(path) == []


def test_saves_of_many_threads_come_one_after_the_other(path):
    def work(number):
        for _ in range(5):
            save({"number": number, "a": np.full(1000, number)}, path, background=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = load(path)
    assert (state["a"] == state["number"]).all()
    assert files_beside(path) == []


def test_the_process_waits_at_its_end(path):
    code = """
        import sys
        import numpy as np
        from genesis.checkpoint import save
        save({"a": np.arange(5_000_000)}, sys.argv[1], background=True)
    """
    assert run(code, path) == ("", "")
    assert load(path)["a"][-1] == 4_999_999
    assert files_beside(path) == []


def test_a_save_when_the_process_is_about_to_end(path):
    """From 3.12 on no thread can be started then."""
    code = """
        import atexit, sys
        from genesis.checkpoint import save
        atexit.register(save, "late", sys.argv[1], background=True)
    """
    assert run(code, path) == ("", "")
    assert load(path) == "late"


def test_without_a_thread_the_file_is_written_at_once(path, monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", start)
    save({"a": np.ones(3)}, path, background=True)
    assert os.path.exists(path)
    with pytest.raises(FileNotFoundError, match="in the background"):
        save(1, os.path.join(os.path.dirname(path), "missing", "run"), background=True)
    assert load(path)["a"].tolist() == [1, 1, 1]


def test_with_one_thread_to_be_had_and_no_second(path, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    save({"a": np.ones(3)}, path, background=True)
    assert load(path)["a"].tolist() == [1, 1, 1]


def test_the_path_is_that_of_the_call(tmp_path, monkeypatch, held_up):
    _, go_on = held_up
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    save("here", "run", background=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    go_on.set()
    wait_for_save()
    assert load(tmp_path / "run") == "here"
    assert os.listdir(tmp_path / "elsewhere") == []


# Failures.


@pytest.mark.parametrize("call", ["save", "background", "load", "load_checkpoint", "wait_for_save"])
def test_an_error_is_raised_by_the_next_call_and_once(call, path, tmp_path):
    save({"number": 1}, path)
    missing = tmp_path / "missing" / "run"
    save({"a": np.ones(3)}, missing, background=True)
    calls = {
        "save": lambda: save({"number": 2}, path),
        "background": lambda: save({"number": 2}, path, background=True),
        "load": lambda: load(path),
        "load_checkpoint": lambda: load_checkpoint(path),
        "wait_for_save": wait_for_save,
    }
    with pytest.raises(
        FileNotFoundError, match="cannot save the checkpoint in the background"
    ) as caught:
        calls[call]()
    assert caught.value.filename == str(missing)
    assert load(path) == {"number": 1}
    calls[call]()
    wait_for_save()
    assert load(path) == {"number": 2 if call in ("save", "background") else 1}


needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@needs_posix
def test_a_full_disk(path):
    """As in test_checkpoint_crash, by a limit to the size of files."""
    code = """
        import os, resource, signal, sys
        import numpy as np
        from genesis.checkpoint import load, save, wait_for_save
        path = sys.argv[1]
        save({"number": 1}, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        save({"number": 2, "a": np.zeros(1_000_000)}, path, background=True)
        try:
            save({"number": 3}, path, background=True)
        except OSError as error:
            print(type(error).__name__, error)
        print(load(path), os.listdir(os.path.dirname(path)))
        save({"number": 4, "a": np.zeros(100_000)}, path, background=True)
        wait_for_save()
        print(load(path)["number"])
        save({"number": 5, "a": np.zeros(1_000_000)}, path, background=True)
        print("the end")
    """
    printed, said = run(code, path)
    assert printed == (
        "OSError [Errno 27] cannot save the checkpoint in the background: File too large: "
        f"{path!r}\n{{'number': 1}} ['run.safetensors']\n4\nthe end\n"
    )
    assert "OSError: [Errno 27] cannot save the checkpoint in the background: File too" in said
    assert load(path)["number"] == 4
    assert files_beside(path) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), KeyboardInterrupt()]
)
def test_whatever_ends_the_thread_is_raised(error, path, monkeypatch):
    save({"number": 1}, path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(file_format, "_write_all", fail)
        save({"number": 2, "a": np.ones(10)}, path, background=True)
        with pytest.raises(type(error)):
            wait_for_save()
    assert background._last.memory.size == 0  # nor is it kept for the sake of the error
    assert load(path) == {"number": 1}
    assert files_beside(path) == []


def test_what_is_wrong_with_the_object_is_raised_at_once(path):
    with pytest.raises(TypeError, match=r"obj\['a'\]: cannot save a set"):
        save({"a": {1}}, path, background=True)
    for wrong in (1, None, np.ones(2), "yes"):
        with pytest.raises(TypeError, match="background must be True or False, but got"):
            save_checkpoint(path, background=wrong, a=1)
        with pytest.raises(TypeError, match="background must be True or False, but got"):
            save(1, path, background=wrong)
    wait_for_save()
    assert not os.path.exists(path)


def test_an_array_that_cannot_be_copied(path):
    class Lost:
        dtype, shape = np.dtype(np.float32), (3,)

        def copy_to_host(self):
            raise RuntimeError("device lost")

    save({"number": 1}, path)
    with pytest.raises(RuntimeError, match="device lost"):
        save({"a": np.ones(9), "b": Lost()}, path, background=True)
    assert load(path) == {"number": 1}
    save({"number": 2}, path, background=True)
    assert load(path) == {"number": 2}


# Interrupts, finalizers and forks.


class AlarmError(Exception):
    pass


def interrupt_at(moment):
    """A trace function that raises before the bytecode of this number in background.py."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_filename != background.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == moment + 1:
                raise AlarmError
        return trace

    return trace, lambda: passed > moment


def test_an_exception_before_any_bytecode_of_the_call(path):
    """The file of that moment is there or it is not; the next save works, and waits for nobody."""
    moment = written = 0
    interrupted = True
    while interrupted:
        save("old", path)
        trace, raised = interrupt_at(moment)
        sys.settrace(trace)
        try:
            save("new", path, background=True)
        except AlarmError:
            pass
        finally:
            sys.settrace(None)
        interrupted = raised()
        if background.turn._is_owned():  # more places than signal handlers of CPython run at
            background.turn.release()
        wait_for_save()
        state = load(path)
        assert state in ("old", "new")
        written += interrupted and state == "new"
        save("next", path, background=True)
        assert load(path) == "next"
        assert files_beside(path) == []
        moment += 1
    print(f"{moment} moments, {written} of them after the thread was started")
    assert moment > 100
    assert 0 < written < moment - 1


@needs_posix
# An alarm may come in the callback of a weak reference, of which `threading` has some.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("interrupts", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_alarms_at_random_moments(interrupts, path):
    """In the call, in the thread's start and in the waits: each file is whole, and nothing hangs."""
    rng = random.Random(interrupts)
    array = np.zeros(20_000)
    save({"number": 0, "a": array}, path)

    raised = number = 0
    for attempt in range(1, interrupts + 1):
        array[:] = attempt

        def call(attempt=attempt):
            save({"number": attempt, "a": array}, path, background=True)
            if attempt % 3 == 0:
                wait_for_save()

        raised += interrupted_after(call, rng.uniform(1e-5, 4e-3), AlarmError)
        state = load(path)
        assert state["number"] >= number
        assert (state["a"] == state["number"]).all()
        number = state["number"]
    print(f"{raised} of {interrupts} alarms came, {number} was the last file")
    assert raised > interrupts / 10
    save("next", path, background=True)
    assert load(path) == "next"
    assert files_beside(path) == []


@needs_posix
def test_an_interrupt_while_waiting(path, held_up):
    """Ctrl-C ends the wait; the file is written all the same, and the next call waits again."""
    arrived, go_on = held_up
    save({"number": 1}, path, background=True)
    assert arrived.wait(60)

    def handler(*_):
        raise AlarmError

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for call in (lambda: save({"number": 2}, path, background=True), wait_for_save):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(AlarmError):
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert not os.path.exists(path)
    go_on.set()
    assert load(path) == {"number": 1}


def test_a_finalizer_that_saves(path, held_up, tmp_path):
    """It may run in the thread that writes, which must not wait for itself."""
    _, go_on = held_up
    done = []

    class Saving:
        def __del__(self):
            done.append(threading.current_thread().name)
            for background_ in (False, True):
                save("final", tmp_path / "final", background=background_)

    write = file_format._write_all

    def collecting(*args):
        if not done and threading.current_thread().name == "genesis save":
            saving = Saving()
            del saving
            gc.collect()
        write(*args)

    go_on.set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_format, "_write_all", collecting)
        save("outer", path, background=True)
        wait_for_save()
    assert done == ["genesis save"]
    assert (load(path), load(tmp_path / "final")) == ("outer", "final")


def test_a_save_within_the_copying_of_another(path, tmp_path):
    class Saving:
        dtype, shape = np.dtype(np.float64), (100,)

        def copy_to_host(self):
            save({"a": np.full(100, 2.0)}, tmp_path / "inner", background=True)
            return np.full(100, 1.0)

    save({"a": np.zeros(300)}, path, background=True)
    save({"a": np.full(100, 3.0), "b": Saving(), "c": np.full(100, 4.0)}, path, background=True)
    outer, inner = load(path), load(tmp_path / "inner")
    assert [set(outer[name]) for name in "abc"] == [{3}, {1}, {4}]
    assert set(inner["a"]) == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait(path, held_up, tmp_path):
    arrived, go_on = held_up
    save("parent's", path, background=True)
    assert arrived.wait(60)
    child = os.fork()
    if child == 0:
        try:
            go_on.set()  # the child's own, of which nobody knows
            wait_for_save()
            save("child's", tmp_path / "child", background=True)
            wait_for_save()
            ended = 0 if load(tmp_path / "child") == "child's" else 2
        except BaseException:
            ended = 1
        os._exit(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not os.path.exists(path)
    go_on.set()
    assert load(path) == "parent's"


def test_the_thread_is_no_daemon_even_of_one(path, held_up):
    arrived, _ = held_up
    daemon = threading.Thread(target=save, args=(1, path), kwargs={"background": True}, daemon=True)
    daemon.start()
    daemon.join()
    assert arrived.wait(60)
    assert not background._last.thread.daemon


def test_parts_of_copies_are_aligned():
    sources = {
        name: codec.Source(np.dtype(kind), (3,), lambda kind=kind: np.ones(3, kind), None)
        for name, kind in (("a", "f8"), ("b", "f4"), ("c", "f2"), ("d", "i1"))
    }
    copies, memory = background.copied(sources)
    assert memory.size == 45
    for copy in copies.values():
        assert copy.fetch().flags.aligned
        assert copy.fetch() is copy.fetch()


def test_early_flushing_is_a_request_only(path, monkeypatch):
    asked = []

    def refuse(*args):
        asked.append(args[1:3])
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(file_format, "_PIECE", 1000)
    array = np.arange(100_000.0)
    save(array, path)
    assert (load(path) == array).all()
    assert asked[0][0] == 0
    assert all(a[0] + a[1] == b[0] for a, b in pairwise(asked))
    monkeypatch.delattr(os, "posix_fadvise")
    save(array, path)
    assert (load(path) == array).all()
