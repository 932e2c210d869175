"""Parameter groups: what users give, as lists of parameters, and groups made by name."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any

from .. import buffers
from ..parameter import Parameter

__all__ = ["param_groups_weight_decay"]


def param_groups_weight_decay(
    named_parameters: Iterable[tuple[str, Parameter]],
    weight_decay: float,
    no_decay: Iterable[str] = ("bias", "norm", "ln"),
) -> list[dict[str, Any]]:
    """Two parameter groups: the second, of biases and normalization layers, without weight decay.

    A name counts by its words: what is left when it is split at everything that is no letter, upper
    case or lower. An entry of `no_decay` exempts a name in which it is a word or the end of one. So
    "ln" is found in "block1.ln2.weight" but not in "kernel" or "balance", and "norm" in
    "input_layernorm.weight" and "LayerNorm.weight" but not in "normal.weight". An entry of several
    words, such as "pos_embed", must be found as a whole. Shapes do not matter.

    Args:
        named_parameters: `(name, Parameter)` pairs, for example `model.items()`.
        weight_decay: of the first group; of the second it is 0.
        no_decay: what exempts a name. Default: ("bias", "norm", "ln").

    Returns:
        The two groups, for any optimizer that has weight decay. They keep the names, and the order
        of parameters. Either may be empty.

    Raises:
        TypeError: `named_parameters` gives something else than pairs; `no_decay` is one string.
        ValueError: an entry of `no_decay` has no letter.

    Example:
        >>> import numpy as np, genesis
        >>> model = {
        ...     name: genesis.Parameter(np.zeros(3))
        ...     for name in ("kernel", "bias", "layernorm.scale", "head.weight", "head.bias")
        ... }
        >>> groups = genesis.optim.param_groups_weight_decay(model.items(), 0.1)
        >>> opt = genesis.optim.AdamW(groups, lr=1e-3)
        >>> for group in opt.param_groups:
        ...     print(group["weight_decay"], group["param_names"])
        0.1 ['kernel', 'head.weight']
        0.0 ['bias', 'layernorm.scale', 'head.bias']
    """
    if isinstance(no_decay, str):
        raise TypeError(f"no_decay must hold strings, but is one: write ({no_decay!r},)")
    exempt = [_words(entry) for entry in no_decay]
    if "." in exempt:
        raise ValueError(f"each entry of no_decay needs a letter, but got {no_decay!r}")
    pairs: tuple[list, list] = [], []
    for pair in named_parameters:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(
                "named_parameters must give (name, Parameter) pairs, as dict.items() does, "
                f"but gave {pair!r}"
            )
        words = _words(pair[0])
        pairs[any(entry in words for entry in exempt)].append(pair)
    return [
        # An empty group has names too: an optimizer wants them for all groups or for none.
        {"params": group, "param_names": [name for name, _ in group], "weight_decay": decay}
        for group, decay in zip(pairs, (weight_decay, 0.0))
    ]


def _words(name: str) -> str:
    """The words of a name, in lower case, a point after each."""
    return re.sub(r"[\W\d_]+", ".", name.lower()).strip(".") + "."


# ---- what an optimizer is given ----


def warn(message: str) -> None:
    """Warn the user: the warning names the line that called into genesis."""
    frame: FrameType | None = sys._getframe()
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("genesis."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


_UNORDERED = (
    "optimizer parameters need to be organized in ordered collections, but the ordering of "
    "parameters in sets will change between runs. Please use a list instead."
)


def groups(params: Any) -> list[dict[str, Any]]:
    """An optimizer's `params` as a list of groups; TypeError or ValueError where it is none."""
    if isinstance(params, Parameter):
        raise TypeError(
            "params must be an iterable of Parameters or dicts, but got a single Parameter: "
            "put it in a list, [parameter]"
        )
    if hasattr(params, "__array__"):
        raise TypeError(
            "params must be an iterable of Parameters or dicts, but got a single "
            f"{type(params).__name__}: wrap it, [genesis.Parameter(array)]"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, dict) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be an iterable of Parameters or dicts, but got a {type(params).__name__}: "
            "give a list, for example [parameter], [group] or params.items()"
        )
    entries = list(params)
    if not entries:
        raise ValueError("optimizer got an empty parameter list")
    return entries if isinstance(entries[0], dict) else [{"params": entries}]


def members(params: Any) -> tuple[list[Parameter], list[str] | None]:
    """A group's "params" as a list, each parameter once, and their names if they have any."""
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, Parameter):
        params = [params]
    elif hasattr(params, "__array__") or not isinstance(params, Iterable):
        raise TypeError(
            f"a group's params must be Parameters, but got a {type(params).__name__}: "
            "wrap arrays, [genesis.Parameter(array)]"
        )
    named = [entry if isinstance(entry, tuple) else (None, entry) for entry in params]
    for _, parameter in named:
        if not isinstance(parameter, Parameter):
            raise TypeError(
                "optimizer can only optimize Parameters, but one of the params is "
                f"{type(parameter).__name__}: wrap arrays in genesis.Parameter(array)"
            )
    once: dict[Parameter, str | None] = {}
    for name, parameter in named:
        once.setdefault(parameter, name)
    if len(once) < len(named):
        warn("optimizer contains a parameter group with duplicate parameters; each is kept once")
    names = [name for name in once.values() if name is not None]
    if 0 < len(names) < len(once):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    return list(once), names or None


def memory(parameters: list[Parameter]) -> None:
    """Raise ValueError if two parameters share memory."""
    pair = buffers.overlapping([p._view for p in parameters])
    if pair:
        first, second = (label(i, parameters[i]) for i in pair)
        raise ValueError(
            f"{first} and {second} share memory, so that an update of one would change the other: "
            "give each an array of its own, or give the shared Parameter once"
        )


def distinct(groups: list[list[Parameter]]) -> None:
    """Raise ValueError if a parameter is in the groups twice, or two share memory."""
    everyone = [parameter for group in groups for parameter in group]
    places: dict[Parameter, int] = {}
    for i, parameter in enumerate(everyone):
        if places.setdefault(parameter, i) != i:
            raise ValueError(
                "some parameters appear in more than one parameter group, or twice in one: "
                f"{label(places[parameter], parameter)} is parameter {i} too; keep it in one place"
            )
    memory(everyone)


def label(i: int, parameter: Parameter) -> str:
    """What messages call the `i`-th parameter of an optimizer."""
    return f"parameter {i}" if parameter.name is None else f"parameter {i} ({parameter.name!r})"
