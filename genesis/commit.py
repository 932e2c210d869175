"""Several writes as one: no signal handler runs between the first and the last of them.

Python runs signal handlers between bytecodes, so an exception from one (Ctrl-C, an alarm) can end any
function that is written in Python after any of its lines. What is to happen whole or not at all is
therefore prepared first, as a list of calls that are implemented in C, and then done by one call that
is implemented in C as well: the interpreter sees a single instruction.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

# `operator.call` is new in Python 3.11, and a third faster.
_call = getattr(operator, "call", partial.__call__)


def commit(actions: Iterable[partial]) -> list[Any]:
    """Make all calls, in order, with nothing in between.

    Args:
        actions: `functools.partial` objects of functions implemented in C (compiled kernels,
            `dict.update`, `ndarray.__setitem__`), which must not fail and whose arguments must not
            run Python code: no `__hash__`, `__eq__` or `__setattr__` written in Python.

    Returns:
        What they returned.
    """
    return list(map(_call, actions))


def prepared(actions: Iterable[partial]) -> partial:
    """`commit(actions)` as a call without arguments, implemented in C, that can be made once.

    It fails before its first write if there is no memory for what calls need.

    A list of actions may be edited until then. So a function can decide what its end is to be, and
    make it certain: nothing comes between the end of a `try` block, whatever ended it, and the first
    call of its `finally`, not even a second Ctrl-C. In Python 3.10 that holds where such a block begins
    with another `try`: it runs signal handlers where it begins to handle an exception, but never right
    before a `try`.

        outcome = [...]  # what puts everything back
        finish = prepared(outcome)
        try:
            ...
            outcome[:] = [...]  # what completes it
        finally:
            try:
                finish()
            finally:
                pass
    """
    return partial(deque(maxlen=0).extend, map(_call, chain(_REHEARSAL, actions)))


def assign(target: np.ndarray, source: np.ndarray) -> partial:
    """The call `target[...] = source`, for `commit`: `np.copyto` would run Python code.

    What `source` holds is converted to the target's data type here. The call itself moves bits as
    integers: that raises no floating-point warning and asks for no memory, as a copy of bfloat16 does.
    """
    bits = np.dtype(f"u{target.itemsize}")
    source = np.asarray(source, target.dtype)
    return partial(
        np.ndarray.__setitem__,
        target.view(bits, np.ndarray),
        ...,
        source.view(bits, np.ndarray),
    )


# What comes first in a prepared commit writes nothing. But whatever memory the interpreter needs for
# such calls (tuples of arguments) it asks for then, and uses again for the others: if there is none,
# the commit fails before its first write.
_REHEARSAL = [assign(np.zeros(1), np.zeros(1))]
