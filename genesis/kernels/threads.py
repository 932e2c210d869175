"""A small team of threads that share one launch, and the number of them.

Numba's own threading layers do not fit: OpenMP waits milliseconds for a worker that the system has
put aside and dies in a forked child, workqueue aborts the process when two Python threads launch at
once. Here every thread claims chunks from a counter that belongs to the launch, so that the caller
does all the work itself where nobody comes to help, and waits only for chunks that were claimed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

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
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._size = 0

    def call(self, helpers: int, job: Callable[[], None]) -> None:
        if self._size < helpers:
            with self._starting:
                while self._size < helpers:
                    self._size += 1
                    threading.Thread(target=self._work, name="genesis", daemon=True).start()
        for _ in range(helpers):
            self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()


_team = _Team()


def _forget_team() -> None:
    global _team
    _team = _Team()  # threads do not survive a fork, and a queue's lock may have been held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)


def run(kernel: Callable, arguments: tuple, chunks: int, bytes_moved: int) -> None:
    """Call `kernel(*arguments, claims)` on this thread and on as many others as pay.

    `claims` is two counters: chunks claimed and chunks done. The kernel claims chunks until none is
    left and returns the number done by all threads so far, or 0 if it got none itself: so one call,
    that which did the last chunk, returns `chunks`.
    """
    helpers = min(_number, chunks, 1 + bytes_moved // MINIMUM_BYTES) - 1
    claims = np.zeros(2, np.int64)
    finished = threading.Lock()
    finished.acquire()

    def job() -> None:
        if kernel(*arguments, claims) == chunks:
            finished.release()

    _team.call(helpers, job)
    if kernel(*arguments, claims) != chunks:
        _wait(finished)


def _wait(finished: threading.Lock) -> None:
    """Wait for chunks that helpers still work on, even if the user presses Ctrl-C meanwhile.

    Leaving at once would let them write on while the caller believes that the step has ended.
    """
    try:
        finished.acquire()
    except KeyboardInterrupt:
        finished.acquire()
        raise
