"""Several writes as one: no signal handler runs between the first and the last of them.

Python runs signal handlers between bytecodes, so an exception from one (Ctrl-C, an alarm) can end any
function that is written in Python after any of its lines. What is to happen whole or not at all is
therefore prepared first, as a list of calls that are implemented in C, and then done by one call that
is implemented in C as well: the interpreter sees a single instruction.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial

import numpy as np


# `operator.call` is new in Python 3.11, and a third faster.
_call = getattr(operator, "call", partial.__call__)


def commit(actions: Iterable[partial]) -> None:
    """Make all calls, in order, with nothing in between.

    Args:
        actions: `functools.partial` objects of functions implemented in C (compiled kernels,
            `dict.update`, `ndarray.__setitem__`), which must not fail and whose arguments must not
            run Python code: no `__hash__`, `__eq__` or `__setattr__` written in Python.
    """
    list(map(_call, actions))


def assign(target: np.ndarray, source: np.ndarray) -> partial:
    """The call `target[...] = source`, for `commit`: `np.copyto` would run Python code."""
    return partial(np.ndarray.__setitem__, target, ..., source)
