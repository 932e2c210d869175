"""Saves in the background: what is saved is copied at the speed of memory, and a thread writes the file.

There is one such save at a time. Whatever comes next (a save, a load, the end of the process) waits for
it first, and raises its error if it failed, once.

An exception from a signal handler may come after any bytecode in the main thread, and in the middle of
what `threading` does with its locks, which then stay locked. So a job is known here before its thread is
started; another thread, in which no handlers run, starts it; and the waits here can be broken off.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from ..commit import commit
from . import codec

_NO_MEMORY = np.empty(0, np.uint8)


class _Signal:
    """Says once that something has come about: an event without locks that Python code holds."""

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()
        self._given = False

    def give(self) -> None:
        self._given = True
        self._closed.release()

    def wait(self) -> None:
        # With a limit, as whoever is interrupted between these two calls keeps others waiting.
        while not self._given:
            if self._closed.acquire(timeout=0.1):
                self._closed.release()


class _Job:
    """A file to be written by a thread.

    Attributes:
        thread: the thread.
        memory: what the copies lie in, for the next job when this one has ended.
        errors: what ended it, until somebody raises that.
    """

    def __init__(self, write: Callable[[], None], memory: np.ndarray):
        self._write: Callable[[], None] | None = write
        self._begun: list[None] = []
        self._started = _Signal()
        self._ended = _Signal()
        self.memory = memory
        self.errors: list[BaseException] = []
        # No daemon: the interpreter waits for it before it ends.
        self.thread = threading.Thread(target=self._run, name="genesis save", daemon=False)

    def begin(self) -> None:
        """Start the thread; RuntimeError if the system has none to give."""
        starting = partial(_thread.start_new_thread, self._start, ())
        commit([starting, partial(self._begun.append, None)])
        self._started.wait()

    def _start(self) -> None:
        try:
            self.thread.start()
        except RuntimeError:  # there was one thread to be had, and no second one
            self.thread = threading.current_thread()
            self._run()

    def _run(self) -> None:
        self._started.give()
        try:
            if self._write is not None:
                self._write()
        except BaseException as error:
            self.errors.append(error)
            self.memory = _NO_MEMORY
        finally:
            self._write = None
            self._ended.give()

    def wait(self) -> None:
        """Until it has ended, if it was begun."""
        if self._begun:
            self._ended.wait()


_last: _Job | None = None

turn = threading.RLock()
"""To be held while a job is prepared and begun. A finalizer may do so while its own thread does."""


def is_here() -> bool:
    """Whether this thread is the one that writes: a finalizer may run in it, and save something."""
    return _last is not None and _last.thread is threading.current_thread()


def wait() -> None:
    """Until no save is at work in the background; raise the error of one that failed."""
    job = _last
    if job is None or is_here():
        return
    job.wait()
    try:
        error = job.errors.pop()
    except IndexError:
        return
    raise error


def forget_memory() -> None:
    """Wait, and give the memory of copies back."""
    global _last
    with turn:
        wait()
        _last = None


def copied(sources: dict[str, codec.Source]) -> tuple[dict[str, codec.Source], np.ndarray]:
    """The tensors as they are now, and the memory in which their copies lie.

    It is that of the last job, which must have ended, unless that is too small or far too large: memory
    that is new to the process takes three times as long to be written.
    """
    size = sum(codec.size(source) for source in sources.values())
    memory = _NO_MEMORY
    if _last is not None:
        memory, _last.memory = _last.memory, memory
    if not size <= memory.size <= 2 * size:
        memory = _NO_MEMORY  # gone before the new one is there
        memory = np.empty(size, np.uint8)
    copies = {}
    end = 0
    for name, source in sources.items():  # the largest elements first, so that all are aligned
        begin, end = end, end + codec.size(source)
        copy = memory[begin:end].view(source.dtype).reshape(source.shape)
        codec.copy_to(copy, codec.fetched(name, source))
        copies[name] = source._replace(fetch=partial(np.asarray, copy), owner=None)
    return copies, memory


def begin(write: Callable[[], None], memory: np.ndarray) -> None:
    """Let a thread call `write`, whose copies lie in this memory; or call it here if there is none."""
    global _last
    wait()
    job = _Job(write, memory)
    _last = job
    try:
        job.begin()
    except RuntimeError:  # there are too many threads, or the interpreter is about to end
        _last = None
        write()


def _forget() -> None:
    """In a forked child, which has none of the threads: the parent writes its file."""
    global _last, turn
    _last, turn = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
# Python prints what is raised there, with its traceback.
atexit.register(wait)
