"""Rules whose last state is a copy of the parameter, in another storage type.

A parameter in 16 bits with a master in 32 is updated through the master, and is itself the copy. One
in 32 bits that shows a 16-bit copy of itself in a region of `autocast` has the copy refreshed in the
same pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .specialise import specialised

rule: Any = None
edited: Any = None


def _and_copy(param, grad, state, hyper):
    """The rule, and its new parameter once more as the last state."""
    param, rest = rule(param, grad, state[:-1], hyper)
    return param, rest + (param,)


def _and_master(param, grad, state, hyper):
    """As `_and_copy`, but an element of the copy that somebody has edited counts as the parameter."""
    shown = state[-1]
    if edited(param, shown):
        param = shown
    param, rest = rule(param, grad, state[:-1], hyper)
    return param, rest + (param,)


def with_copy(function: Any, copy: str, edit: Callable, compiled: Callable) -> Any:
    """A rule that also gives a copy of the parameter, as its last state.

    Args:
        function: the rule.
        copy: "copy", or "master" if the rule's parameter is the master of that copy. What a "copy"
            held before is not looked at, so it is not even loaded.
        edit: says of a master and its copy whether the copy is another than the last update made.
        compiled: what makes a function callable from a kernel.
    """
    template = _and_master if copy == "master" else _and_copy
    names = {"rule": compiled(function), "edited": edit}
    return specialised(template, f"{function.__name__}_and_{copy}", names)
