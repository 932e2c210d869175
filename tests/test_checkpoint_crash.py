"""What a save leaves on the disk when it is killed, fails, or meets another; and what it costs."""

import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from attack_tools import lines_run
from devices import on_cpu_only

from genesis import regions
from genesis.checkpoint import CheckpointError, atomic_file, file_format, load, save
from genesis.parameter import Parameter
from genesis.regions import autocast

pytestmark = on_cpu_only

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path):
    """In a directory of its own, so that a listing shows every file left behind."""
    return str(tmp_path / "run.safetensors")


def files_beside(path):
    return sorted(set(os.listdir(os.path.dirname(path))) - {os.path.basename(path)})


def run(code, *arguments):
    """Run code in a process of its own; what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# Killed.


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(kills, path):
    """Each time a complete state is there: the last one reported, or the one after it."""
    rng = random.Random(kills)
    horizon = 0.03  # then three saves, however busy the machine is
    saver = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("checkpoint_saver.py"), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    reported = caught_writing = newer = 0
    with saver:
        for _ in range(kills):
            saver.stdin.write("go\n")
            saver.stdin.flush()
            child = int(saver.stdout.readline())
            begin = time.perf_counter()
            time.sleep(rng.uniform(0, horizon))
            os.kill(child, signal.SIGKILL)
            elapsed = time.perf_counter() - begin
            lines = list(iter(saver.stdout.readline, "dead\n"))
            reported = int(lines[-1]) if lines else reported
            horizon = min(1, 3 * elapsed / len(lines) if lines else 1.5 * horizon)
            if not os.path.exists(path):
                assert reported == 0
                continue
            state = load(path)
            number = state["number"]
            assert number in (reported, reported + 1)
            newer += number == reported + 1
            generator = np.random.default_rng(number)
            np.testing.assert_array_equal(state["weights"][0], generator.random((64, 1024)))
            np.testing.assert_array_equal(
                state["weights"][1], generator.random(100_000, np.float32)
            )
            assert state["rng"] == generator.bit_generator.state
            assert (state["optimizer"]["state"][0]["exp_avg"] == number).all()
            reported = number
            # The killed save's file at most: each save sweeps what the one before it left.
            leftovers = files_beside(path)
            assert len(leftovers) <= 1
            caught_writing += len(leftovers)
        saver.stdin.close()
    print(f"{kills} kills: {reported} saves, {caught_writing} left a file, {newer} unreported")
    assert reported >= kills / 4
    assert caught_writing >= kills / 20
    save(None, path)
    assert files_beside(path) == []


# Interrupted.


class AlarmError(Exception):
    """What somebody's signal handler raises."""


INTERRUPTIONS = (KeyboardInterrupt, SystemExit, AlarmError, TimeoutError)  # the last is an OSError


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


def interrupt_at(moment, error, module):
    """A trace function that raises before the bytecode of this number in a module's functions.

    That is where a signal handler's exception comes from, too.
    """
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if passed == moment:
                passed += 1
                raise error
            passed += 1
        return trace

    return trace, lambda: passed > moment


@needs_proc
@pytest.mark.parametrize("old", [False, True])
def test_an_exception_before_any_bytecode(old, path):
    """All moments of the module that opens files, one after the other, and a leftover to sweep."""
    before = descriptors()
    moment = leftovers = new = 0
    interrupted = True
    while interrupted:
        for file in [path, *(Path(path).parent / name for name in files_beside(path))]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)
        if old:
            save("old", path)
        leftover(path)
        error = INTERRUPTIONS[moment % len(INTERRUPTIONS)]
        trace, raised = interrupt_at(moment, error(), atomic_file)
        sys.settrace(trace)
        try:
            save("new", path)
        except INTERRUPTIONS as exception:
            sys.settrace(None)
            caught = type(exception)
        else:
            sys.settrace(None)
            caught = None
        interrupted = raised()
        assert caught is (error if interrupted else None)
        assert descriptors() == before, moment
        if old or os.path.exists(path):
            state = load(path)
            assert state in (("old", "new") if old else ("new",))
            new += interrupted and state == "new"
        leftovers += len(files_beside(path))
        save("next", path)
        assert load(path) == "next"
        assert files_beside(path) == [], moment
        moment += 1 if old else 5  # most moments are the same
    print(f"{moment} moments: {new} after the rename, {leftovers} left a file")
    assert moment > 300
    assert new > 5
    assert leftovers > 5


@needs_proc
@pytest.mark.parametrize("interrupts", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_exceptions_from_an_alarm_at_random_moments(interrupts, path):
    rng = random.Random(interrupts)
    before = descriptors()
    state = {"number": 0, "a": np.zeros(20_000), "b": [Parameter(np.ones(3)) for _ in range(20)]}
    save(state, path)
    begin = time.perf_counter()
    save(state, path)
    horizon = 1.2 * (time.perf_counter() - begin)
    error = None

    def handler(*_):
        raise error

    previous = signal.signal(signal.SIGALRM, handler)
    raised = written = 0
    number = 0
    try:
        for _ in range(interrupts):
            state["number"] += 1
            state["a"][:] = state["number"]
            error = rng.choice(INTERRUPTIONS)()
            caught = None
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, horizon))
                save(state, path)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except BaseException as exception:
                caught = exception
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert caught is None or caught is error
            loaded = load(path)
            assert loaded["number"] in (number, state["number"])
            assert (loaded["a"] == loaded["number"]).all()
            assert caught is not None or loaded["number"] == state["number"]
            raised += caught is not None
            written += caught is not None and loaded["number"] == state["number"]
            number = loaded["number"]
            assert descriptors() == before
            assert len(files_beside(path)) <= 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    print(f"{interrupts} alarms: {raised} interrupted a save, {written} of them after the rename")
    assert raised > interrupts / 4
    save(state, path)
    assert files_beside(path) == []


def test_an_interrupted_save_leaves_the_region(path):
    """At each bytecode of what takes the save out of the caller's region of autocast."""
    moment = 0
    interrupted = True
    parameter = Parameter(np.ones(3, np.float32))
    while interrupted:
        trace, raised = interrupt_at(moment, KeyboardInterrupt(), regions)
        with autocast("bfloat16"):
            sys.settrace(trace)
            try:
                save([parameter], path)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert parameter.dtype == "bfloat16"
        assert parameter.dtype == np.float32
        interrupted = raised()
        moment += 1
    assert moment > 5
    assert load(path)[0].dtype == np.float32


# Failed.


def test_full_disk(path):
    """A file size limit fails a write as a full disk does: in the middle of it."""
    printed = run(
        """
        import os, resource, sys
        import numpy as np
        from genesis.checkpoint import load, save
        path = sys.argv[1]
        save({"number": 1}, path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        try:
            save({"number": 2, "a": np.zeros(1_000_000)}, path)
        except OSError as error:
            print(type(error).__name__, error.errno, error)
        print(load(path), os.listdir(os.path.dirname(path)))
        save({"number": 3, "a": np.zeros(100_000)}, path)
        print(load(path)["number"])
        """,
        path,
    )
    assert printed == (
        f"OSError 27 [Errno 27] cannot save the checkpoint: File too large: {path!r}\n"
        "{'number': 1} ['run.safetensors']\n3\n"
    )


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step(step, error, path, monkeypatch):
    save({"number": 1}, path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(file_format, "_write_all", fail)
        else:
            patch.setattr(os, step, fail)
        with pytest.raises(type(error)) as caught:
            save({"number": 2}, path)
    if isinstance(error, OSError):
        assert caught.value.filename == path
        assert "No space left on device" in str(caught.value)
    assert load(path) == {"number": 1}
    assert files_beside(path) == []


class Device:
    """A device array whose copy to the host does what the test wants."""

    dtype, shape = np.dtype(np.float32), (3,)

    def __init__(self, copy):
        self.copy_to_host = copy


def test_an_array_that_cannot_be_fetched(path):
    def lost():
        raise RuntimeError("device lost")

    save({"number": 1}, path)
    with pytest.raises(RuntimeError, match="device lost"):
        save({"a": np.ones(9), "b": Device(lost)}, path)
    assert load(path) == {"number": 1}
    assert files_beside(path) == []


def test_the_data_reach_the_disk_before_the_name_and_the_name_before_the_return(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("directory" if directory else ("data", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def recorded_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    save(np.ones(1000), path)
    assert events == [("data", os.path.getsize(path)), "rename", "directory"]


@pytest.mark.parametrize(
    ("where", "error"), [("missing/run", FileNotFoundError), ("", IsADirectoryError)]
)
def test_impossible_targets(where, error, tmp_path):
    target = tmp_path / where
    with pytest.raises(error, match="cannot save the checkpoint") as caught:
        save(1, target)
    assert caught.value.filename == str(target)
    assert os.listdir(tmp_path) == []


def test_a_socket_and_a_device_are_not_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "null").symlink_to("/dev/null")
        for name in ("socket", "null"):
            with pytest.raises(OSError, match="not a regular file"):
                save(1, tmp_path / name)
    assert stat.S_ISSOCK(os.stat(tmp_path / "socket").st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["null", "socket"]


def test_a_fifo_in_the_place_of_a_leftover_stays(path, tmp_path):
    fifo = tmp_path / ".run.safetensors.0123456789abcdef.tmp"
    os.mkfifo(fifo)
    save(1, path)
    assert stat.S_ISFIFO(os.stat(fifo).st_mode)


def test_a_special_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        save(1, tmp_path / "fifo")
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_protected_file_is_not_replaced(path, monkeypatch):
    save(1, path)
    os.chmod(path, 0o444)
    if os.geteuid() == 0:  # whom no mode stops
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot save the checkpoint"):
        save(2, path)
    assert load(path) == 1


# Leftovers, and others who save.


def leftover(path, token="0123456789abcdef"):
    directory, name = os.path.split(path)
    file = Path(directory, f".{name}.{token}.tmp")
    file.write_bytes(b"half a checkp")
    return file


def test_leftovers_are_swept_and_nothing_else(path, tmp_path):
    dead = [leftover(path), leftover(path, "f" * 16)]
    others = [
        leftover(path + "2"),
        leftover(str(tmp_path / "safetensors")),
        leftover(path, "0123456789ABCDEF"),
        leftover(path, "0123456789abcde"),
        leftover(path, "notes"),
        tmp_path / "run.safetensors.tmp",
    ]
    others[-1].write_bytes(b"")
    save(1, path)
    assert not any(file.exists() for file in dead)
    assert all(file.exists() for file in others)


def test_a_link_in_the_place_of_a_leftover_is_not_followed(path, tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    link = tmp_path / ".run.safetensors.0123456789abcdef.tmp"
    link.symlink_to("precious")
    save(1, path)
    assert link.read_bytes() == b"x"


def test_a_refused_object_sweeps_nothing(path):
    file = leftover(path)
    with pytest.raises(TypeError):
        save({1}, path)
    assert file.exists()


def test_the_file_of_a_save_still_at_work_is_left_alone(path):
    """Another thread, and another process, save to the path while one save is held up."""
    arrived, go_on = threading.Event(), threading.Event()

    def slowly():
        arrived.set()
        assert go_on.wait(60)
        return np.full(3, 7, np.float32)

    thread = threading.Thread(target=save, args=([Device(slowly)], path))
    thread.start()
    try:
        assert arrived.wait(60)
        (live,) = files_beside(path)
        save("by a thread", path)
        assert load(path) == "by a thread"
        run(
            "import sys; from genesis.checkpoint import save; save('by a process', sys.argv[1])",
            path,
        )
        assert load(path) == "by a process"
        assert files_beside(path) == [live]
    finally:
        go_on.set()
        thread.join()
    assert load(path)[0].tolist() == [7, 7, 7]
    assert files_beside(path) == []


def test_a_temporary_file_swept_before_it_was_locked(path, monkeypatch):
    """The moment between creating and locking: the save starts again under another name."""
    flock, swept = atomic_file.fcntl.flock, []

    def sweep_first(descriptor, operation):
        if not swept:
            (name,) = files_beside(path)
            os.unlink(os.path.join(os.path.dirname(path), name))
            swept.append(name)
        flock(descriptor, operation)

    monkeypatch.setattr(atomic_file.fcntl, "flock", sweep_first)
    save("kept", path)
    assert load(path) == "kept"
    assert len(swept) == 1


def test_a_file_system_without_locks(path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic_file.fcntl, "flock", unsupported)
    file = leftover(path)
    save(1, path)
    assert load(path) == 1
    assert file.exists()


def test_many_threads_save_to_one_path(path):
    def work(number):
        for _ in range(5):
            save({"number": number, "a": np.full(1000, number)}, path)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if os.path.exists(path):
            state = load(path)
            assert (state["a"] == state["number"]).all()
    assert files_beside(path) == []


def test_an_array_that_another_thread_changes_does_not_spoil_the_file(path):
    array = np.zeros(2_000_000)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            np.add(array, 1, out=array)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(5):
            save(array, path)
            load(path)
    finally:
        stop.set()
        thread.join()


# Modes and links.


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_new_file_follows_the_umask(path, umask):
    save(1, path)
    assert mode(path) == 0o666 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o644, 0o755])
def test_an_existing_file_keeps_its_mode(kept, path, umask):
    save(1, path)
    os.chmod(path, kept)
    save(2, path)
    assert mode(path) == kept


@pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root may give files away"
)
def test_an_existing_file_keeps_its_owner(path):
    save(1, path)
    os.chown(path, 12345, 23456)
    save(2, path)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (12345, 23456)


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_file_is_replaced(relative, tmp_path):
    (tmp_path / "runs").mkdir()
    file, link = tmp_path / "runs" / "epoch3", tmp_path / "latest"
    link.symlink_to("runs/epoch3" if relative else file)
    save(1, link)  # makes the file that a dangling link names, as `open` would
    save(2, link)
    assert link.is_symlink()
    assert load(file) == load(link) == 2
    assert sorted(os.listdir(tmp_path)) == ["latest", "runs"]
    assert os.listdir(tmp_path / "runs") == ["epoch3"]


def test_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="cannot save the checkpoint: Too many levels"):
        save(1, tmp_path / "loop")


def test_kinds_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["plain", Path("as a Path"), b"bytes", "n" * 255, "é" * 127, "[*]?.tmp", "a\nb"]
    for number, name in enumerate(names):
        leftovers = (
            [] if len(os.fsencode(name)) > 200 else [leftover(os.path.abspath(os.fsdecode(name)))]
        )
        save(number, name)
        assert load(name) == number
        assert not any(file.exists() for file in leftovers)
    assert len(os.listdir(tmp_path)) == len(names)


# Cost.

MEASURE = """
    import re, sys
    import numpy as np
    from genesis.checkpoint import load, save

    def resident(what):
        status = open("/proc/self/status").read()
        return int(re.search(rf"{what}:\\s*(\\d+) kB", status)[1]) / 1024

    class Device:
        dtype, shape = np.dtype("f8"), (1 << 21,)
        def copy_to_host(self):
            return np.ones(self.shape)

    case, path = sys.argv[1:]
    if case == "contiguous":
        state = [np.ones((8, 1 << 21))]
    elif case == "strided":
        state = [np.ones((1 << 21, 8))[:, i::2] for i in range(2)]
    else:
        state = [Device() for i in range(8)]
    save(state, path)
    load(path)
    if case == "load":
        del state
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak
    before = resident("VmRSS")
    kept = load(path) if case == "load" else save(state, path)
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize(
    ("case", "mebibytes"), [("contiguous", 0), ("strided", 64), ("device", 16), ("load", 128)]
)
def test_memory(case, mebibytes, path):
    """All states have 128 MiB: in one array, in two that are strided, in eight on a device."""
    extra = float(run(MEASURE, case, path))
    print(f"{case}: {extra:.1f} MiB")
    assert extra <= mebibytes + 8
    assert extra >= 0.9 * mebibytes or mebibytes < 64  # so that this measures something


def test_a_damaged_file_costs_no_more_than_a_good_one(path):
    save(np.zeros(1 << 22), path)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(CheckpointError, match="checksum"):
        load(path)


def test_thousands_of_small_tensors(path):
    state = {i: {"exp_avg": np.ones(3), "p": Parameter(np.ones(3))} for i in range(2500)}
    save(state, path)
    loaded = load(path)
    assert len(loaded) == 2500
    assert all((entries["exp_avg"] == 1).all() for entries in loaded.values())


def test_the_work_grows_with_the_number_of_tensors_no_faster(path):
    def work(count):
        state = {i: {"exp_avg": np.ones(3), "p": Parameter(np.ones(3))} for i in range(count)}
        return lines_run(lambda: save(state, path)), lines_run(lambda: load(path))

    work(1)
    for more, less in zip(work(400), work(200)):
        assert more < 2.2 * less
