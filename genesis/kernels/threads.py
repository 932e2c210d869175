"""A small team of threads that share one launch, and the number of them.

Numba's own threading layers do not fit: OpenMP waits milliseconds for a worker that the system has
put aside and dies in a forked child, workqueue aborts the process when two Python threads launch at
once. Here every thread claims chunks from a counter that belongs to the launch, so that the caller
does all the work itself where nobody comes to help, and waits only for chunks that were claimed: in
the kernel, where no signal handler can make it leave.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from functools import partial

import numpy as np

MINIMUM_BYTES = 12_000_000
"""Memory traffic below which a launch stays on the calling thread: waking a helper takes about 0.1
ms, in which one core moves some megabytes."""


def _available() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_number = _available()


def set_num_threads(number: int) -> None:
    """Set how many threads one optimizer step may use, the calling one included.

    Results do not depend on it. Small steps use one thread whatever the number.

    Args:
        number: at least 1. Default at start: the number of cores this process may run on.

    Raises:
        TypeError: not an integer.
        ValueError: less than 1.

    Example:
        >>> import genesis
        >>> before = genesis.get_num_threads()
        >>> genesis.set_num_threads(1)
        >>> genesis.get_num_threads()
        1
        >>> genesis.set_num_threads(before)
    """
    global _number
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"the number of threads must be an int, but got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"the number of threads must be at least 1, but got {number}")
    _number = int(number)


def get_num_threads() -> int:
    """Return how many threads one optimizer step may use (see `set_num_threads`)."""
    return _number


class _Team:
    """Helper threads, started when first needed, that take jobs from one queue."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = 0
        self._begun: list[int] = []

    def ready(self, helpers: int) -> int:
        """How many of that many helpers there are; those that lack are started, for later launches."""
        if self._started < helpers:
            with self._starting, contextlib.suppress(RuntimeError, MemoryError):
                # Where no thread can be had, the caller does the work. `threading.Thread` would wait,
                # for ever, for one that finds no memory to begin with.
                while self._started < helpers:
                    _thread.start_new_thread(self._work, ())
                    self._started += 1
        return min(len(self._begun), helpers)

    def _work(self) -> None:
        self._begun.append(threading.get_native_id())
        while True:
            self.jobs.get()()


_team = _Team()


def _forget_team() -> None:
    global _team
    _team = _Team()  # threads do not survive a fork, and a queue's lock may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)


def helpers(chunks: int, bytes_moved: int) -> int:
    """How many threads are there to help with a launch, as many as pay.

    Args:
        chunks: into how many pieces the work is cut.
        bytes_moved: how much memory it reads and writes.
    """
    wanted = min(_number, chunks, 1 + bytes_moved // MINIMUM_BYTES) - 1
    return _team.ready(wanted) if wanted > 0 else 0


def calls(job: Callable, helpers: int) -> list[partial]:
    """The calls, of a function written in C, that give a job to helpers."""
    return [partial(_team.jobs.put, job)] * helpers
