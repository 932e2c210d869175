"""Rules whose last state is an average of the parameter over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import rules
from .specialise import specialised

rule: Any = None
average: Any = None


def _and_average(param, grad, state, hyper):
    """The rule, and the average with its new parameter in it, by the last two scalars."""
    param, rest = rule(param, grad, state[:-1], hyper[:-2])
    mean, _ = average(state[-1], param, (), hyper[-2:])
    return param, rest + (mean,)


def averaged(function: Any, compiled: Callable) -> Any:
    """A rule that takes its new parameter into an average, as its last state.

    Args:
        function: the rule.
        compiled: what makes a function callable from a kernel. The rule then has two scalars behind
            its own: how much of the average is kept, and the weight of the parameter (`rules.average`).
    """
    names = {"rule": compiled(function), "average": compiled(rules.average)}
    return specialised(_and_average, f"{function.__name__}_and_average", names)
