"""What every elementwise optimizer can be told besides its formula's hyper-parameters.

In which data types it keeps its state, how it rounds what it stores in 16 bits, whether it keeps an
average of the parameters, and what it does about gradients that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from .. import buffers, hyper, packing

STATE_TYPES = {name: dtype for dtype, name in buffers.FLOAT_TYPES.items()}


class Options(TypedDict, total=False):
    """Keyword arguments that every elementwise optimizer takes, and every group may override.

    Those on state take effect when a parameter's state is created, at its first step.

    master_weights: keep a float32 copy of each 16-bit parameter in the state ("master"), update that
        one and round it into the parameter in the same pass. "split": keep of it only the lower 16 bits
        ("master_low", uint16), since a bfloat16 parameter is the upper ones; 2 bytes an element instead
        of 4, and the same float32 to the bit. On the CPU. The parameter is the nearest bfloat16 there,
        too, but of two that are equally near the larger in magnitude; who edits it, edits its 16 bits.
        Default: False, as in torch; a step far smaller than the parameter is then lost in rounding.
    state_dtype: "float64", "float32", "float16" or "bfloat16", the type in which new state buffers
        are kept. "8bit": averages are kept as codes of one byte in the shape of the parameter, for
        example "exp_avg", and a float32 for each 256 of them, "exp_avg_scale"; 1.016 bytes an average
        and element. What codes stand for, `genesis.optim.dequantize` says. It is for optimizers all of
        whose state buffers are averages, and works on the CPU, with dense gradients; parameters that
        do not lie in C order are copied at each step. Default: None, the parameter's (the master's, if
        there is one).
    stochastic_rounding: round what is stored as bfloat16 up or down at random, in proportion to what
        lies between, so that small steps count on average. The random bits follow from the number of
        the parameter and of its update, from nothing else: a run can be repeated. Default: False.
    ema_decay: how much of an exponential average of the parameter is kept at each step, in [0, 1]. The
        average is in the state ("ema"), in the parameter's data type (the master's, if there is one),
        and costs no pass of its own: at a parameter's first step it is what the parameter became, and
        from then on `ema = ema_decay * ema + (1 - ema_decay) * parameter`. `swap_ema()` lets
        parameters show it. Default: None, no average.
    skip_nonfinite: leave a step out, whole, if a gradient of any group has an inf or a NaN in it, as a
        loss scaler does; one group that asks for it will do. Nothing is written then, neither state
        nor step counts, `step_skipped` says so and `skipped_steps` counts. It takes a pass over the
        gradients, the one that `max_norm` takes as well, and on a GPU waits for it. Default: False;
        `step(skip_nonfinite=...)` decides for one step.
    measure_updates: note in the update's own pass how far parameters move, for `update_norm` and
        `update_ratios`. What moves is the parameter as it is stored, or its master, if there is one.
        Sums are float64, of pieces of at most 512 elements (on a GPU 4096) that are summed in the
        update's arithmetic. It costs no pass. Default: False.
    """

    master_weights: bool | str
    state_dtype: str | None
    stochastic_rounding: bool
    ema_decay: float | None
    skip_nonfinite: bool
    measure_updates: bool


HYPERS = {
    "master_weights": hyper.flag_or_word(False, (packing.SPLIT,)),
    "state_dtype": hyper.word((*STATE_TYPES, packing.EIGHT_BITS)),
    "stochastic_rounding": hyper.flag(False),
    "ema_decay": hyper.number(None, low=0, most=1, unset=True),
    "skip_nonfinite": hyper.flag(False),
    "measure_updates": hyper.flag(False),
}
"""The declarations of these options."""

UNDER_TORCH = {
    **HYPERS,
    "master_weights": hyper.flag(False),
    "state_dtype": hyper.word(tuple(STATE_TYPES)),
}
"""Of these what is possible with torch's tensors, whose state is not packed."""

BUFFERS = ("master", packing.LOWER, "ema", "trained")
"""The state buffers that belong to options and not to a formula: the last is what a parameter was
before `swap_ema`."""


class InForce(NamedTuple):
    """What a group's options say of state and kernels: what changes with them is laid out anew."""

    master_weights: bool
    splits: bool
    state_dtype: np.dtype | None
    packs: bool
    stochastic_rounding: bool
    averages: bool
    measures: bool


def of(group: Mapping[str, Any]) -> InForce:
    """The options in force for a group."""
    name, masters = group.get("state_dtype"), group.get("master_weights", False)
    return InForce(
        masters != packing.SPLIT and bool(masters),
        masters == packing.SPLIT,
        STATE_TYPES.get(name or ""),
        name == packing.EIGHT_BITS,
        group.get("stochastic_rounding", False),
        group.get("ema_decay") is not None,
        group.get("measure_updates", False),
    )


def skips(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a step is to be left out if a gradient is not finite."""
    return any(group.get("skip_nonfinite") for group in groups)


def weights(group: Mapping[str, Any], begins: bool) -> tuple[float, float]:
    """How much of an average is kept in the next update, and the weight of the parameter in it.

    A new average `begins` with the parameter.
    """
    weight = 1.0 if begins else 1.0 - group["ema_decay"]
    return 1.0 - weight, weight


def check_average(bytes_of_element: int, what: str) -> None:
    """Raise ValueError if a parameter with elements of so many bytes cannot have an average."""
    if bytes_of_element == 2:
        raise ValueError(
            f"{what} has 16 bits, in which an average stands still: with ema_decay set "
            "master_weights=True, and the average is that of the float32 master"
        )


def check_packing(view: np.ndarray, what: str) -> None:
    """Raise ValueError if averages of a parameter cannot be kept in 8 bits."""
    _check_on_cpu(view, what, "state_dtype='8bit'", "state_dtype='bfloat16'")


def _check_on_cpu(view: np.ndarray, what: str, asked: str, instead: str) -> None:
    device = buffers.device_of(view)
    if device != "cpu":
        raise ValueError(f"{what} is on {device}, and {asked} works on the CPU only: set {instead}")


def check_averages(name: str, states: Iterable[str], averages: Mapping[str, str]) -> None:
    """Raise ValueError if not all state buffers of an optimizer of this name are averages."""
    others = [state for state in states if state not in averages]
    if others:
        raise ValueError(
            f"state_dtype='8bit' is for running averages, in which errors of rounding fade, but {name} "
            f"keeps {', '.join(map(repr, others))}, which it does not say are such: set "
            "state_dtype='bfloat16' or leave it out, or if it is a rule of your own and they are, say "
            "averages={...} in genesis.rule"
        )


def check_splitting(view: np.ndarray, what: str) -> None:
    """Raise ValueError if a parameter cannot be the upper half of a master."""
    if view.dtype == np.float16:
        raise ValueError(
            f"{what} is float16, which is not the upper half of a float32: with float16 set "
            "master_weights=True, or make it bfloat16"
        )
    _check_on_cpu(view, what, "master_weights='split'", "master_weights=True")


SHOWS_AVERAGE = (
    "{what} shows its average since swap_ema(), and cannot be updated: call swap_ema() again before "
    "the next step"
)
