"""The file on the disk: written whole or not at all, and read only if it is a file.

An exception from a signal handler may come after any bytecode. So a descriptor is never held by a
plain number between two of them: one call that is implemented in C opens it and puts it into an
object that closes it, and that object into a list that the cleaning up looks through.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, tee
from typing import Any

try:
    import fcntl
except (
    ImportError
):  # not a POSIX system: the rest of genesis works there, save says that it does not
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


def replace_file(path: str, write: Callable[[io.FileIO], None]) -> None:
    """Let `write` fill a new file, and put it in the place of `path` once it is on the disk."""
    if fcntl is None:
        raise OSError("genesis.save needs a POSIX system: it locks the file that it writes")
    target = os.path.realpath(path)
    opened: list[io.FileIO] = []
    try:
        status = _check_target(target)
        _sweep(target, opened)
        file = _create_temporary(target, status, opened)
        write(file)
        os.fsync(file.fileno())
        os.replace(file.name, target)
        file.close()
        _sync_directory(os.path.dirname(target))
    except BaseException as error:
        for file in opened:
            if isinstance(file.name, str):  # created here; what `_sweep` opened has no name
                with contextlib.suppress(OSError):  # the first error is the one to report
                    os.unlink(file.name)
            file.close()
        if not isinstance(error, OSError) or error.errno is None:
            raise
        # The same type again, as OSError picks it by the number.
        message = f"cannot save the checkpoint: {error.strerror}"
        raise OSError(error.errno, message, path) from error


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
    mode = 0o666 if status is None else stat.S_IMODE(status.st_mode)
    create = functools.partial(io.FileIO, opener=functools.partial(os.open, mode=mode))
    while True:
        temporary = _temporary_start(target) + secrets.token_hex(8) + ".tmp"
        opened.extend(map(create, [temporary], ["x+"]))
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


def _temporary_start(target: str) -> str:
    directory, name = os.path.split(target)
    # File systems allow 255 bytes. Where two long names begin alike, each save sweeps for both.
    return os.path.join(directory, f".{os.fsdecode(os.fsencode(name)[:200])}.")


def _sweep(target: str, opened: list[io.FileIO]) -> None:
    """Remove the temporary files of saves to `target` that were killed."""
    start = _temporary_start(target)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for leftover in _matching(start):
        with _best_effort():
            if not stat.S_ISREG(os.lstat(leftover).st_mode):
                continue
            opened.extend(map(io.FileIO, map(os.open, [leftover], [flags]), ["r+"]))
            file = opened[-1]
            with _best_effort():
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            file.close()


def _matching(start: str) -> Iterator[str]:
    directory, name = os.path.split(start)
    pattern = re.compile(re.escape(name) + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(PermissionError):  # one may write to a directory and not list it
        for entry in os.listdir(directory):
            if pattern.fullmatch(entry):
                yield os.path.join(directory, entry)


def _sync_directory(directory: str) -> None:
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
