"""Saves on a system without flock, such as Windows, pretended here."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest
from devices import on_cpu_only

from genesis.checkpoint import atomic_file, file_format, load, save, wait_for_save

pytestmark = on_cpu_only

ROOT = Path(__file__).resolve().parent.parent

ELSEWHERE = """
import os, types
from genesis.checkpoint import atomic_file

unknown = ("O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY fchown fchmod posix_fadvise geteuid").split()
atomic_file.fcntl = None
atomic_file.os = types.SimpleNamespace(**{k: v for k, v in vars(os).items() if k not in unknown})
"""
"""What Python has not on Windows is taken away from the module; `filelock` keeps what it needs here."""


@pytest.fixture(autouse=True)
def system(monkeypatch):
    """What `atomic_file` knows as `os`. As on Windows, nothing open can be renamed or removed."""
    monkeypatch.setattr(atomic_file, "fcntl", None)
    monkeypatch.setattr(atomic_file, "os", os)
    exec(ELSEWHERE, {})

    def refuse_open(function):
        def checked(path, *args, **kwargs):
            if os.fspath(path).endswith(".tmp") and os.path.realpath(path) in opened():
                raise PermissionError(errno.EACCES, "The process cannot access the file", path)
            return function(path, *args, **kwargs)

        return checked

    for name in ("replace", "unlink"):
        setattr(atomic_file.os, name, refuse_open(getattr(os, name)))
    return atomic_file.os


def opened():
    found = set()
    if os.path.isdir("/proc/self/fd"):
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.safetensors")


def files_beside(path):
    return sorted(set(os.listdir(os.path.dirname(path))) - {os.path.basename(path)})


def test_a_save_leaves_its_file_and_nothing_beside_it(path):
    for number in range(3):
        save({"number": number, "a": np.arange(100_000)}, path)
        assert load(path)["number"] == number
        assert files_beside(path) == []
    save("in the background", path, background=True)
    wait_for_save()
    assert load(path) == "in the background"
    assert files_beside(path) == []


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(path, system, monkeypatch):
    save({"number": 1}, path)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("write", "fsync", "replace"):
        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(file_format, "_write_all", fail)
            else:
                patch.setattr(system, step, fail)
            with pytest.raises(OSError, match="cannot save the checkpoint: No space left"):
                save({"number": 2}, path)
        assert load(path) == {"number": 1}
        assert files_beside(path) == [], step


def test_leftovers_are_swept_and_nothing_else(path, tmp_path):
    start = tmp_path / ".run.safetensors."
    dead = [Path(f"{start}{'0' * 16}.tmp"), Path(f"{start}{'1' * 16}.lock")]
    dead += [Path(f"{start}{'2' * 16}{end}") for end in (".tmp", ".lock")]
    others = [
        Path(f"{start}{name}") for name in ("0" * 15 + ".tmp", "notes.tmp", "A" * 16 + ".lock")
    ]
    for file in (*dead, *others):
        file.write_bytes(b"half a checkp")
    link = Path(f"{start}{'3' * 16}.tmp")
    link.symlink_to(others[0])
    save(1, path)
    assert not any(file.exists() for file in dead)
    assert all(file.read_bytes() == b"half a checkp" for file in others)
    assert stat.S_ISLNK(os.lstat(link).st_mode)


class Device:
    """A device array whose copy to the host does what the test wants."""

    dtype, shape = np.dtype(np.float32), (3,)

    def __init__(self, copy):
        self.copy_to_host = copy


def test_the_file_of_a_save_still_at_work_is_left_alone(path):
    """As in test_checkpoint_crash: another thread, another process and this thread save meanwhile."""
    arrived, go_on = threading.Event(), threading.Event()

    def slowly():
        save("by the same thread", path)
        arrived.set()
        assert go_on.wait(60)
        return np.full(3, 7, np.float32)

    thread = threading.Thread(target=save, args=([Device(slowly)], path))
    thread.start()
    try:
        assert arrived.wait(60)
        assert load(path) == "by the same thread"
        live = files_beside(path)
        assert [os.path.splitext(name)[1] for name in live] == [".lock", ".tmp"]
        save("by a thread", path)
        assert load(path) == "by a thread"
        code = "import sys; from genesis.checkpoint import save; save('by a process', sys.argv[1])"
        subprocess.run([sys.executable, "-c", ELSEWHERE + code, path], cwd=ROOT, check=True)
        assert load(path) == "by a process"
        assert files_beside(path) == live
    finally:
        go_on.set()
        thread.join()
    assert load(path)[0].tolist() == [7, 7, 7]
    assert files_beside(path) == []


def test_a_killed_save_is_swept_by_the_next(path):
    code = textwrap.dedent("""
        import os, sys
        import numpy as np
        from genesis.checkpoint import save

        class Device:
            dtype, shape = np.dtype("f4"), (3,)
            def copy_to_host(self):
                os._exit(9)

        save([Device()], sys.argv[1])
    """)
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE + code, path], cwd=ROOT)
    assert ended.returncode == 9
    assert [os.path.splitext(name)[1] for name in files_beside(path)] == [".lock", ".tmp"]
    save(1, path)
    assert files_beside(path) == []


def test_many_threads_save_to_one_path(path):
    def work(number):
        for _ in range(5):
            save({"number": number, "a": np.full(1000, number)}, path)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if os.path.exists(path):
            state = load(path)
            assert (state["a"] == state["number"]).all()
    save("last", path)
    assert files_beside(path) == []


def test_a_name_that_somebody_sweeps_is_not_taken(path, monkeypatch):
    """The moment between making the lock's file and locking it: the save takes another name."""
    tokens = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr(atomic_file.secrets, "token_hex", lambda _: next(tokens))
    start = os.path.join(os.path.dirname(path), ".run.safetensors.")
    with filelock.FileLock(start + "0" * 16 + ".lock"):
        save("kept", path)
        assert load(path) == "kept"
    assert not os.path.exists(start + "1" * 16 + ".lock")


def test_without_filelock_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(OSError, match="pip install filelock"):
        save(1, path)
    assert os.listdir(os.path.dirname(path)) == []
