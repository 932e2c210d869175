"""Says, once in a process, that compilation has made the user wait, and whether it will again.

Compilations are timed as they end, under the lock of `compiling`: no timer, no thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .cache import keeps_code, kept_in

logger = logging.getLogger("genesis")

NOTICED = 1.0
"""Seconds of waiting, all in all, after which it is said what they went into."""

clock = time.perf_counter

_spent = 0.0
_made: list[str] = []
_said = False
_expected = 0


@contextmanager
def expected() -> Iterator[None]:
    """Say nothing of what is compiled within: somebody has asked for it, and watches."""
    global _expected
    _expected += 1
    try:
        yield
    finally:
        _expected -= 1


def timed(
    what: str, dispatcher: Any, make: Callable[[], Any], has_compiled: Callable[[], bool]
) -> Any:
    """What `make` returns, with the time that it took counted if it has compiled.

    Args:
        what: what is compiled, for people.
        dispatcher: Numba's, whose code it is.
        make: compiles, or loads what was compiled before.
        has_compiled: whether it has compiled; asked afterwards.
    """
    begin = clock()
    made = make()
    if has_compiled():
        _count(what, dispatcher, clock() - begin)
    return made


def _count(what: str, dispatcher: Any, seconds: float) -> None:
    global _spent, _said
    if _expected:
        return
    _spent += seconds
    if _said:
        return
    _made.append(what)
    if _spent > NOTICED:
        _said = True
        logger.warning(
            "compiling took %.1f s so far in this process (%s): %s",
            _spent,
            "; ".join(_made),
            _prospect(dispatcher),
        )
        _made.clear()


def _prospect(dispatcher: Any) -> str:
    """Whether a later run need not wait."""
    folder = kept_in(dispatcher)
    if folder is not None:
        return f"the code is kept in {folder}, so that later runs need not wait"
    if not keeps_code():
        return "the code is not kept, as GENESIS_CACHE=0 says, so that each run waits anew"
    return (
        "the code is not kept for later runs, which wait anew (NUMBA_CACHE_DIR names a folder that can "
        "be written)"
    )
