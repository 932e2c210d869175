"""Parameter groups made by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..parameter import Parameter


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
