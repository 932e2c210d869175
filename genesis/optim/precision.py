"""In which data types an optimizer keeps its state, and how it rounds what it stores in 16 bits."""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np

from .. import buffers, hyper

STATE_TYPES = {name: dtype for dtype, name in buffers.FLOAT_TYPES.items()}


class Options(TypedDict, total=False):
    """Keyword arguments that every elementwise optimizer takes, and every group may override.

    They take effect when a parameter's state is created, at its first step.

    master_weights: keep a float32 copy of each 16-bit parameter in the state ("master"), update that
        one and round it into the parameter in the same pass. Default: False, as in torch; a step far
        smaller than the parameter is then lost in rounding.
    state_dtype: "float64", "float32", "float16" or "bfloat16", the type in which new state buffers
        are kept. Default: None, the parameter's (the master's, if there is one).
    stochastic_rounding: round what is stored as bfloat16 up or down at random, in proportion to what
        lies between, so that small steps count on average. The random bits follow from the number of
        the parameter and of its update, from nothing else: a run can be repeated. Default: False.
    """

    master_weights: bool
    state_dtype: str | None
    stochastic_rounding: bool


HYPERS = {
    "master_weights": hyper.flag(False),
    "state_dtype": hyper.word(tuple(STATE_TYPES)),
    "stochastic_rounding": hyper.flag(False),
}
"""The declarations of these options."""


class Precision(NamedTuple):
    """A group's options, all of them."""

    master_weights: bool
    state_dtype: np.dtype | None
    stochastic_rounding: bool


def of(group: dict[str, Any]) -> Precision:
    """The options in force for a group."""
    name = group.get("state_dtype")
    return Precision(
        group.get("master_weights", False),
        None if name is None else STATE_TYPES[name],
        group.get("stochastic_rounding", False),
    )
