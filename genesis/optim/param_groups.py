"""Parameter groups made by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import buffers, checks, tree
from ..parameter import Parameter
from .members import are_pairs, listed, named

__all__ = ["param_groups_layerwise_lr_decay", "param_groups_weight_decay"]


def param_groups_weight_decay(
    named_parameters: Any,
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
        named_parameters: a tree of arrays or `Parameter`s, whose names are their paths, or
            `(name, Parameter)` pairs.
        weight_decay: of the first group; of the second it is 0.
        no_decay: what exempts a name. Default: ("bias", "norm", "ln").

    Returns:
        The two groups, for any optimizer that has weight decay. They keep the names, and the order
        of parameters. Either may be empty.

    Raises:
        TypeError: `named_parameters` has no names; `no_decay` is one string.
        ValueError: an entry of `no_decay` has no letter.

    Example:
        >>> import numpy as np, genesis
        >>> params = {
        ...     "kernel": np.zeros((3, 3)), "bias": np.zeros(3), "layernorm": {"scale": np.ones(3)}
        ... }
        >>> groups = genesis.optim.param_groups_weight_decay(params, 0.1)
        >>> opt = genesis.optim.AdamW(groups, lr=1e-3)
        >>> for group in opt.param_groups:
        ...     print(group["weight_decay"], group["param_names"])
        0.1 ['kernel']
        0.0 ['bias', 'layernorm.scale']
    """
    pairs = with_names(named_parameters)
    exempt = exempting(no_decay)
    return [
        _group([pair for pair in pairs if exempt(pair[0]) is free], weight_decay=decay)
        for free, decay in ((False, weight_decay), (True, 0.0))
    ]


def param_groups_layerwise_lr_decay(
    named_parameters: Any,
    lr: float,
    decay: float,
    *,
    layer: Callable[[str], Any] | None = None,
    weight_decay: float | None = None,
    no_decay: Iterable[str] = ("bias", "norm", "ln"),
) -> list[dict[str, Any]]:
    r"""A parameter group for each layer, with a learning rate that falls towards the input.

    Of :math:`n` layers, layer :math:`i` gets

    .. math:: \gamma_i = \gamma \, d^{\,n - 1 - i}

    so that the last one learns with `lr`, and what was pretrained near the input is kept. A layer is
    what is called alike up to the first number in its name: `layers.0.W` and `layers.0.b` are one,
    and so are `W1` and `b1`; without a number, up to the first point. Layers are in the order in which
    their first parameter appears: the one from the input to the output, if the tree was written so.

    Args:
        named_parameters: a tree of arrays or `Parameter`s, whose names are their paths, or
            `(name, Parameter)` pairs; from the input to the output.
        lr: the learning rate of the last layer, at least 0.
        decay: what a layer's rate is multiplied by for the one before it, in (0, 1].
        layer: a function from a name to what its layer is called; layers are in the sorted order of
            these. Default: None, as above.
        weight_decay: if given, each layer has two groups, as `param_groups_weight_decay` makes
            them, those that are not empty. Default: None, the optimizer's own for all.
        no_decay: what exempts a name from weight decay. Default: ("bias", "norm", "ln").

    Returns:
        The groups, from the first layer to the last. They keep the names.

    Raises:
        TypeError: `named_parameters` has no names; a number is none.
        ValueError: `lr` or `decay` is out of range.

    Example:
        >>> import numpy as np, genesis
        >>> blocks = [{"W": np.zeros(3)}, {"W": np.zeros(3)}]
        >>> params = {"stem": np.zeros(3), "blocks": blocks, "head": np.zeros(3)}
        >>> groups = genesis.optim.param_groups_layerwise_lr_decay(params, lr=0.1, decay=0.5)
        >>> for group in groups:
        ...     print(group["lr"], group["param_names"])
        0.0125 ['stem']
        0.025 ['blocks.0.W']
        0.05 ['blocks.1.W']
        0.1 ['head']

    References:
        Clark, Luong, Le, Manning: ELECTRA. ICLR 2020, https://arxiv.org/abs/2003.10555. Bao, Dong,
        Piao, Wei: BEiT. ICLR 2022, https://arxiv.org/abs/2106.08254
    """
    lr = checks.number("lr", lr)
    decay = checks.number("decay", decay, "(0, 1]")
    layers: dict[Any, list[tuple[str, Any]]] = {}
    for name, parameter in with_names(named_parameters, as_written=True):
        layers.setdefault(_layer(name) if layer is None else layer(name), []).append(
            (name, parameter)
        )
    ordered = list(layers.values()) if layer is None else [layers[key] for key in sorted(layers)]
    groups = []
    for i, pairs in enumerate(ordered):
        rate = lr * decay ** (len(ordered) - 1 - i)
        if weight_decay is None:
            groups.append(_group(pairs, lr=rate))
        else:
            halves = param_groups_weight_decay(pairs, weight_decay, no_decay)
            groups += [{**half, "lr": rate} for half in halves if half["params"]]
    return groups


def _layer(name: str) -> tuple[str, ...]:
    """What parameters of one layer have in common in their names."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        number = re.search(r"\d+", part)
        if number is not None:  # of the last part only the number counts, as in W1 and b1
            return (*parts[:i], number[0] if i == len(parts) - 1 else part)
    return (parts[0],)


def _group(pairs: list[tuple[str, Any]], **settings: Any) -> dict[str, Any]:
    # An empty group has names too: an optimizer wants them for all groups or for none.
    return {"params": pairs, "param_names": [name for name, _ in pairs], **settings}


def with_names(params: Any, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """The parameters and their names; TypeError if they have none."""
    params = listed(params)
    is_list = isinstance(params, (list, tuple)) and not hasattr(params, "_fields")
    pairs = []
    if tree.opened(params) is not None:
        pairs = _as_written(params) if as_written and not are_pairs(params) else named(params)
    if (
        not pairs
        or (is_list and any(isinstance(entry, Parameter) for entry in params))
        or not all(isinstance(p, Parameter) or buffers.is_arraylike(p) for _, p in pairs)
    ):
        raise TypeError(
            "named_parameters must be a tree of arrays, such as a dict, or give (name, Parameter) "
            f"pairs, as dict.items() does, but is {params!r}"
        )
    return pairs


def _as_written(params: Any, path: tuple = ()) -> list[tuple[str, Any]]:
    """As `tree.flatten_with_path`, mappings in the order in which they were put together."""
    node = tree.opened(params)
    if node is None:
        return [] if params is None else [(tree.joined(path), params)]
    children = zip(node.keys, node.children)
    if isinstance(params, Mapping):
        children = params.items()  # type: ignore[assignment]
    return [leaf for key, below in children for leaf in _as_written(below, (*path, key))]


def exempting(words: Iterable[str], what: str = "no_decay") -> Callable[[str], bool]:
    """What says of a name whether one of these words is in it; `what` is what messages call them."""
    if isinstance(words, str):
        raise TypeError(f"{what} must hold strings, but is one: write ({words!r},)")
    words = list(words)
    entries = [_words(entry) for entry in words]
    if "." in entries:
        raise ValueError(f"each entry of {what} needs a letter, but got {words!r}")
    return lambda name: any(entry in _words(name) for entry in entries)


def _words(name: str) -> str:
    """The words of a name, in lower case, a point after each."""
    return re.sub(r"[\W\d_]+", ".", name.lower()).strip(".") + "."
