"""One compilation at a time, none while the process forks, and its result found again by content.

A forked child has a single thread, but a copy of every lock as it was. One that another thread held,
Numba's or LLVM's, would stay locked in the child for ever, and making it anew would open what that
thread left half done: registries of Numba's, and mutexes within LLVM that nobody can reach. So a fork
waits until no thread compiles: for the compilation that is under way, and no other.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from .digest import UnknownContentError, digest
from .target import Target

logger = logging.getLogger("genesis")

_lock = threading.RLock()
_fork_waits = False  # and no `Event`, whose own lock an exception may leave locked
_held: list[Any] = []
_PATIENCE = 1.0
"""Seconds for which a thread that wants to compile lets a fork go first."""


def alone(make: Callable, *arguments: Any) -> Any:
    """Import or compile anything of Numba's: `make(*arguments)`; other threads wait, and forks do.

    It is no context manager made of a generator: an exception from a signal handler between that
    one's beginning and the `with` block would leave the lock held by a thread that has gone on.
    """
    if _lock._is_owned():  # type: ignore[attr-defined]
        return make(*arguments)
    # A lock goes to whoever is awake: a thread that compiles one rule after the other would take it
    # again and again before one that is to fork gets it. This is about fairness alone, so it has an
    # end: a fork that has not come by then was interrupted before it could say that it is over.
    global _fork_waits
    until = time.monotonic() + _PATIENCE
    while _fork_waits:
        time.sleep(0.001)
        if time.monotonic() > until:
            _fork_waits = False
    with _lock:
        return make(*arguments)


def module_named(name: str) -> Any:
    """A module of this package whose first import brings in Numba.

    A step asks for it again and again, and `import_module` would run Python code each time, under
    locks that in Python 3.10 an exception from a signal handler may leave locked for ever.
    """
    name = f"{__package__}.{name}"
    module: Any = sys.modules.get(name)
    if module is None or module.__spec__._initializing:
        module = alone(import_module, name)
    return module


def target_named(device: str) -> Target:
    """The module that compiles for a device."""
    return module_named(device.partition(":")[0])


class Kept:
    """A function that makes kernels, and keeps them; its first argument is a rule.

    A rule is known by its content, not by which object it is: two closures of one factory differ,
    and so does one function before and after what it refers to has changed. One whose content
    cannot be told is compiled whenever it is asked for.
    """

    def __init__(self, make: Callable):
        functools.update_wrapper(self, make)
        self._make = make
        self._made: dict[tuple, Any] = {}
        self._misses = 0

    def __call__(self, rule: Callable, *others: Any) -> Any:
        try:
            key = digest(rule), *others
        except UnknownContentError as reason:
            _say_unknown(str(reason))
            return alone(self._anew, rule, others)
        made = self._made.get(key)
        return alone(self._unless_made, key, rule, others) if made is None else made

    def _anew(self, rule: Callable, others: tuple) -> Any:
        self._misses += 1
        return self._make(rule, *others)

    def _unless_made(self, key: tuple, rule: Callable, others: tuple) -> Any:
        if key not in self._made:  # as it may be by a thread that had the lock before
            self._made[key] = self._anew(rule, others)
        return self._made[key]

    def cache_clear(self) -> None:
        """Forget all, as for a function under `functools.lru_cache`."""
        self._made.clear()

    def cache_info(self) -> Any:
        """How often something was made, as `misses`."""
        return SimpleNamespace(misses=self._misses)


def once(make: Callable) -> Callable:
    """`functools.lru_cache`, but two threads never make the same thing, nor while a process forks."""
    made: dict[tuple, Any] = {}

    def unless_made(key: tuple) -> Any:
        if key not in made:
            made[key] = make(*key)
        return made[key]

    @functools.wraps(make)
    def get(*key: Any) -> Any:
        found = made.get(key)
        return alone(unless_made, key) if found is None else found

    return get


@functools.lru_cache(maxsize=None)
def _say_unknown(reason: str) -> None:
    logger.warning(
        "%s, of which it cannot be told what machine code it leads to: the code is kept neither on "
        "disk nor from one plan to the next (hand it over as a scalar, or make it a constant)",
        reason,
    )


def _locks() -> Iterator[Any]:
    """All locks that a thread may hold while it compiles, from the outermost to the innermost."""
    yield _lock
    for module, name in (
        ("numba.core.compiler_lock", "global_compiler_lock"),
        ("numba.cuda.core.compiler_lock", "_numba_cuda_compiler_lock"),
    ):
        holder = getattr(sys.modules.get(module), name, None)
        if holder is not None:
            yield holder._lock
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None and hasattr(ffi, "lib"):
        # Also held, for moments, by a thread that collects what LLVM has made.
        yield ffi.lib._lock._lock


def _before_fork() -> None:
    global _fork_waits
    _fork_waits = True
    for each in _locks():
        _held.append(each)
        each.acquire()


def _after_fork() -> None:
    global _fork_waits
    while _held:
        each = _held.pop()
        if each._is_owned():
            each.release()
    _fork_waits = False


def _after_fork_in_child() -> None:
    _after_fork()
    for each in _locks():
        if each.acquire(blocking=False):
            each.release()
        else:  # a signal handler's exception has ended the wait: Python ignores it and forks
            each._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
