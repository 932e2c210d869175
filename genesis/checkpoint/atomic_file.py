"""The file on the disk: written whole or not at all, and read only if it is a file.

An exception from a signal handler may come after any bytecode. So a descriptor is never held by a
plain number between two of them: one call that is implemented in C opens it and puts it into an
object that closes it, and that object into a list that the cleaning up looks through.

Where there is no `flock` (Windows) the `filelock` package locks a file beside the temporary one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import secrets
import signal
import stat
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, tee
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_to_read(path: str) -> io.BufferedReader:
    """The regular file at `path`, opened; ValueError at once for a FIFO, a device or a socket."""
    # Looked at before it is opened, as opening a device may do something (rewind a tape) and
    # opening a FIFO waits for a writer; and after, as another file may be there by then.
    _check_readable(os.stat(path), path)

    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened: list[io.FileIO] = []
    try:
        opened.extend(map(io.FileIO, map(os.open, [path], [flags]), ["rb"]))
        _check_readable(os.fstat(opened[0].fileno()), path)
        return io.BufferedReader(opened[0])
    except BaseException:
        for file in opened:
            file.close()
        raise


def _check_readable(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"it is no regular file but {kind}")


# A program that writes into a file, instead of putting another in its place, could do so between the
# moment when it is found undamaged and that when it is read into somebody's arrays. Linux can keep it
# waiting meanwhile, by a lease; whoever replaces the file is not kept, and does no harm.


def keep_writers_out(file: io.BufferedReader) -> bool:
    """Let the system hold up whoever would open the file to write into it; False if it does not.

    It does so for at most `/proc/sys/fs/lease-break-time`, 45 seconds, and not on every file system, nor
    for other people's files, nor when one has opened it already.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # Who holds a lease is told by a signal that somebody waits; this one is ignored by default.
        fcntl.fcntl(file.fileno(), fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno is None:  # not the system's, but an alarm's
            raise
        return False
    return True


def are_writers_out(file: io.BufferedReader) -> bool:
    """Whether, since `keep_writers_out`, nobody has written, nor asked to."""
    return fcntl.fcntl(file.fileno(), fcntl.F_GETLEASE) == fcntl.F_RDLCK


def let_writers_in(file: io.BufferedReader) -> None:
    # Closing the file is not enough: a process forked meanwhile has it open, too.
    fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)


def replace_file(
    path: str, write: Callable[[io.FileIO], None], what: str = "the checkpoint"
) -> None:
    """Let `write` fill a new file, and put it in the place of `path` once it is on the disk.

    Args:
        path: the file to replace.
        write: gets the new file, empty.
        what: what cannot be saved, in messages.
    """
    target = os.path.realpath(path)
    opened: list[io.FileIO] = []
    locks: list[Any] = []
    try:
        status = _check_target(target)
        if fcntl is not None:
            _sweep(target, opened)
            file = _create_temporary(target, status, opened)
        else:
            _sweep_by_lock_files(target)
            file = _create_beside_a_lock_file(target, status, opened, locks)
        write(file)
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows renames no file that is open
        os.replace(file.name, target)
        file.close()
        _sync_directory(os.path.dirname(target))
    except BaseException as error:
        for file in opened:
            if fcntl is None:
                file.close()  # nor does it remove one
            if isinstance(file.name, str):  # created here; what `_sweep` opened has no name
                with contextlib.suppress(OSError):  # the first error is the one to report
                    os.unlink(file.name)
            file.close()
        if not isinstance(error, OSError) or error.errno is None:
            raise
        # The same type again, as OSError picks it by the number.
        message = f"cannot save {what}: {error.strerror}"
        raise OSError(error.errno, message, path) from error
    finally:
        for lock in locks:
            _give_back(lock)


class _best_effort:  # noqa: N801, used like a function
    """What the system refuses here is no reason to fail the save.

    It is no generator: an alarm's exception that comes while one is thrown away is lost.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        # Without a number it is not the system's: the TimeoutError of an alarm, say.
        return isinstance(error, OSError) and error.errno is not None


def begin_flushing(file: io.FileIO, start: int, length: int) -> None:
    """Let the system begin to put this part of the file on the disk, if it can be asked to.

    The file is flushed in the end in any case; begun early, that takes little more than the disk does.
    """
    if hasattr(os, "posix_fadvise"):
        # That the file is not needed in memory is what makes Linux write it, without waiting for it.
        with _best_effort():
            os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def _check_target(target: str) -> os.stat_result | None:
    """The status of the file to be replaced, None if there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    # A rename would put a file in the place of /dev/null, and would overrule a write protection.
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return status


# Whoever writes a temporary file holds a lock on it, which the kernel drops when the process ends,
# however it ends. A lock that can be had marks a leftover. (A process number in the name would be
# wrong after a restart, in another container and on another host.) Where a file system has no
# locks, saving works and leftovers stay.


def _create_temporary(
    target: str, status: os.stat_result | None, opened: list[io.FileIO]
) -> io.FileIO:
    """A new file, locked, which is in `opened` from its first moment."""
    mode = _mode(status)
    while True:
        temporary = _temporary_start(target) + secrets.token_hex(8) + ".tmp"
        opened.extend(map(_creating(mode), [temporary], ["x+"]))
        file = opened[-1]
        with _best_effort():
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            break
        file.close()  # another process swept it away before it was locked
    if status is not None:
        with _best_effort():  # only root may give files away
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        with _best_effort():
            os.fchmod(file.fileno(), mode)
    return file


def _mode(status: os.stat_result | None) -> int:
    return 0o666 if status is None else stat.S_IMODE(status.st_mode)


def _creating(mode: int) -> Callable[[str, str], io.FileIO]:
    """`io.FileIO` for new files of this mode, as the umask has it."""
    return functools.partial(io.FileIO, opener=functools.partial(os.open, mode=mode))


def _temporary_start(target: str) -> str:
    directory, name = os.path.split(target)
    # File systems allow 255 bytes. Where two long names begin alike, each save sweeps for both.
    return os.path.join(directory, f".{os.fsdecode(os.fsencode(name)[:200])}.")


def _sweep(target: str, opened: list[io.FileIO]) -> None:
    """Remove the temporary files of saves to `target` that were killed."""
    start = _temporary_start(target)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for leftover in _matching(start, ".tmp"):
        with _best_effort():
            if not stat.S_ISREG(os.lstat(leftover).st_mode):
                continue
            opened.extend(map(io.FileIO, map(os.open, [leftover], [flags]), ["r+"]))
            file = opened[-1]
            with _best_effort():
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            file.close()


def _matching(start: str, *ends: str) -> Iterator[str]:
    directory, name = os.path.split(start)
    pattern = re.compile(f"{re.escape(name)}[0-9a-f]{{16}}({'|'.join(map(re.escape, ends))})")
    with contextlib.suppress(PermissionError):  # one may write to a directory and not list it
        for entry in os.listdir(directory):
            if pattern.fullmatch(entry):
                yield os.path.join(directory, entry)


# Without flock, a lock is had on a file `.NAME.<16 hex digits>.lock` that is there for this purpose:
# what `filelock` locks must not be the file that is written, which it would open and cut off.


def _create_beside_a_lock_file(
    target: str, status: os.stat_result | None, opened: list[io.FileIO], locks: list[Any]
) -> io.FileIO:
    """As `_create_temporary`, with a lock on a file beside it, which is in `locks`."""
    file_lock = _filelock().FileLock
    while True:
        start = _temporary_start(target) + secrets.token_hex(8)
        lock = file_lock(start + ".lock", timeout=0)
        locks.append(lock)
        if not _taken(lock):  # somebody is sweeping it away
            continue
        opened.extend(map(_creating(_mode(status)), [start + ".tmp"], ["x+"]))
        return opened[-1]


def _sweep_by_lock_files(target: str) -> None:
    file_lock = _filelock().FileLock
    found = _matching(_temporary_start(target), ".tmp", ".lock")
    for start in sorted({os.path.splitext(leftover)[0] for leftover in found}):
        with _best_effort():
            if os.path.lexists(start + ".tmp") and not stat.S_ISREG(
                os.lstat(start + ".tmp").st_mode
            ):
                continue
            lock = file_lock(start + ".lock", timeout=0)
            if not _taken(lock):
                continue
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(start + ".tmp")
            finally:
                _give_back(lock)


def _taken(lock: Any) -> bool:
    """Take a lock; False if somebody has it."""
    try:
        lock.acquire()
    except _filelock().Timeout:
        return False
    return True


def _give_back(lock: Any) -> None:
    """Unlock, and remove the lock's file."""
    lock.release()
    with contextlib.suppress(OSError):  # it is gone already, or somebody looks whether it is locked
        os.unlink(lock.lock_file)


def _filelock() -> Any:
    try:
        import filelock
    except ImportError as error:
        raise OSError(
            "genesis.save needs the package filelock on a system without fcntl: pip install filelock"
        ) from error
    return filelock


def _sync_directory(directory: str) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows flushes no directories
        return
    # No object closes a directory's descriptor, so one C call opens it, flushes it and closes it:
    # `tee` hands the number first to fsync, then to close. If fsync fails, it is still there for
    # the second call; after a success that one finds nothing to do.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    to_sync, to_close = tee(map(os.open, [directory], [flags]))
    try:
        deque(chain(map(os.fsync, to_sync), map(os.close, to_close)), maxlen=0)
    except PermissionError:
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # no such operation there
            raise
    finally:
        deque(map(os.close, to_close), maxlen=0)
