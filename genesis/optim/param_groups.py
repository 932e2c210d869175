"""Parameter groups: what users give, as lists of parameters, and groups made by name."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from types import FrameType
from typing import Any

from .. import buffers, checks, tree
from ..parameter import Parameter

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
    pairs = _with_names(named_parameters)
    exempt = _exempting(no_decay)
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
    for name, parameter in _with_names(named_parameters, as_written=True):
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


def _with_names(params: Any, *, as_written: bool = False) -> list[tuple[str, Any]]:
    """The parameters and their names; TypeError if they have none."""
    params = _listed(params)
    is_list = isinstance(params, (list, tuple)) and not hasattr(params, "_fields")
    pairs = []
    if tree.opened(params) is not None:
        pairs = _as_written(params) if as_written and not _are_pairs(params) else named(params)
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


def _exempting(no_decay: Iterable[str]) -> Callable[[str], bool]:
    """What says of a name whether it is exempt from weight decay."""
    if isinstance(no_decay, str):
        raise TypeError(f"no_decay must hold strings, but is one: write ({no_decay!r},)")
    entries = [_words(entry) for entry in no_decay]
    if "." in entries:
        raise ValueError(f"each entry of no_decay needs a letter, but got {no_decay!r}")
    return lambda name: any(entry in _words(name) for entry in entries)


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
            "params must be a tree of arrays, or an iterable of Parameters or dicts, but got a single "
            "Parameter: put it in a list, [parameter]"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if tree.opened(params) is None:
        if buffers.is_arraylike(params) or not isinstance(params, Iterable):
            raise TypeError(
                "params must be a tree of arrays, or an iterable of Parameters or dicts, but got a "
                f"single {type(params).__name__}: put it in a list, [array]"
            )
        params = list(params)
    if not params and isinstance(params, Sized):
        raise ValueError("optimizer got an empty parameter list")
    if isinstance(params, (list, tuple)) and any(map(_is_group, params)):
        return list(params)
    is_dict = isinstance(params, dict) and "params" in params
    if is_dict and not all(map(_may_hold_arrays, params.values())):
        raise TypeError(
            f"params is a single dict with {list(params)}: as a group of parameters it goes in a list, "
            "[group]; a tree has arrays alone"
        )
    return [{"params": params}]


def _is_group(entry: Any) -> bool:
    """Whether an entry of a list is meant as a group, and not as a part of a tree."""
    if not isinstance(entry, dict):
        return False
    return "params" in entry or not any(map(_may_hold_arrays, entry.values()))


def _may_hold_arrays(value: Any) -> bool:
    return value is None or buffers.is_arraylike(value) or tree.opened(value) is not None


def members(params: Any) -> tuple[list[Parameter], list[str] | None]:
    """A group's "params" as a list, each parameter once, and their names if they have any.

    Arrays in a tree become parameters that share them, named by their paths.
    """
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    if isinstance(params, Parameter):
        return [params], None
    if tree.opened(params) is None:
        if buffers.is_arraylike(params):
            return [_parameter("", params)], None
        if not isinstance(params, Iterable) or isinstance(params, str):
            raise TypeError(
                f"a group's params must be a tree of arrays or Parameters, but got a "
                f"{type(params).__name__}"
            )
        params = list(params)
    if isinstance(params, (list, tuple)) and not hasattr(params, "_fields"):
        pairs = [entry for entry in params if _is_pair(entry)]
        plain = [entry for entry in params if isinstance(entry, Parameter)]
        if len(plain) == len(params):
            once = list(dict.fromkeys(plain))
            _say_duplicates(len(once) < len(plain))
            return once, None
        if pairs and len(pairs) + len(plain) == len(params):
            return _of_pairs(pairs, len(params))
    return _of_tree(tree.flatten_with_path(params))


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def _are_pairs(params: Any) -> bool:
    return isinstance(params, (list, tuple)) and len(params) > 0 and all(map(_is_pair, params))


def _of_pairs(pairs: list[tuple[str, Any]], count: int) -> tuple[list[Parameter], list[str]]:
    """The parameters that (name, Parameter) pairs name, or (name, tree)."""
    if len(pairs) < count:
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    if not all(isinstance(entry, Parameter) for _, entry in pairs):
        return _of_tree(named(pairs))
    once: dict[Parameter, str] = {}
    for name, parameter in pairs:
        once.setdefault(parameter, name)
    _say_duplicates(len(once) < len(pairs))
    return list(once), list(once.values())


def _say_duplicates(there_are: bool) -> None:
    if there_are:
        warn("optimizer contains a parameter group with duplicate parameters; each is kept once")


def _listed(params: Any) -> Any:
    """What an iterator gives, as a list; all else as it is."""
    is_tree = tree.opened(params) is not None or buffers.is_arraylike(params)
    return list(params) if isinstance(params, Iterable) and not is_tree else params


def named(params: Any) -> list[tuple[str, Any]]:
    """The parameters of a tree, or of (name, Parameter) pairs or (name, tree), with their names."""
    params = _listed(params)
    if not _are_pairs(params):
        return tree.flatten_with_path(params)
    return [
        (tree.joined([name, path]) if path else name, leaf)
        for name, below in params
        for path, leaf in tree.flatten_with_path(below)
    ]


def _of_tree(leaves: list[tuple[str, Any]]) -> tuple[list[Parameter], list[str]]:
    parameters: list[Parameter] = []
    paths: dict[Parameter, str] = {}
    for path, leaf in leaves:
        parameter = _parameter(path, leaf)
        if parameter in paths:
            raise ValueError(
                f"one Parameter is at {paths[parameter]!r} and at {path!r}: each would have a gradient; "
                "keep it in one place, with the sum of its gradients"
            )
        paths[parameter] = path
        parameters.append(parameter)
    names = list(paths.values())
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two parameters have the path {twice!r}: give one of them another key")
    return parameters, names


def _parameter(path: str, leaf: Any) -> Parameter:
    """The parameter at a place of a tree: what is there, or a new one that shares the array there."""
    if isinstance(leaf, Parameter):
        return leaf
    what = f"parameter {path!r}" if path else "a parameter"
    if not buffers.is_arraylike(leaf):
        raise TypeError(
            f"optimizer can only optimize arrays and Parameters, but {what} is "
            f"{_short(leaf)}: give an array of {buffers.ACCEPTED}, or leave it out of params"
        )
    buffers.check_writable(buffers.adopted(leaf, what), what)
    return Parameter(leaf, name=path or None)


def _short(value: Any) -> str:
    shown = repr(value)
    kind = type(value).__name__
    return f"a {kind}" if len(shown) > 40 else f"a {kind}, {shown}"


def check_parameters(parameters: Sequence[Any]) -> None:
    """Raise TypeError if something else is among a group's parameters, as after somebody's edit."""
    for entry in parameters:
        if not isinstance(entry, Parameter):
            raise TypeError(
                "optimizer can only optimize Parameters, but one of the params of a group is "
                f"{_short(entry)}: add arrays with optimizer.add_param_group"
            )


Members = tuple[Sequence[Parameter], Sequence[str | None]]
"""The parameters of a group, and what each is called."""


def names(group: Mapping[str, Any], parameters: Sequence[Parameter]) -> list[str | None]:
    """What the parameters of a group are called: by its names, or else by their own."""
    given = group.get("param_names")
    if isinstance(given, (list, tuple)) and len(given) == len(parameters):
        return list(given)
    return [parameter.name for parameter in parameters]


def distinct(groups: Sequence[Members]) -> None:
    """Raise ValueError if a parameter is in the groups twice, or two share memory."""
    everyone = [parameter for parameters, _ in groups for parameter in parameters]
    called = [name for _, names in groups for name in names]
    places: dict[Parameter, int] = {}
    for i, parameter in enumerate(everyone):
        first = places.setdefault(parameter, i)
        if first != i:
            raise ValueError(
                "some parameters appear in more than one parameter group, or twice in one: "
                f"{label(first, called[first])} is parameter {i} too; keep it in one place"
            )
    pair = buffers.overlapping([p._view for p in everyone])
    if pair:
        one, another = (label(i, called[i]) for i in pair)
        raise ValueError(
            f"{one} and {another} share memory, so that an update of one would change the other: "
            "give each an array of its own, or give the shared Parameter once"
        )


def label(i: int, name: str | None) -> str:
    """What messages call the `i`-th parameter of an optimizer."""
    return f"parameter {i}" if name is None else f"parameter {i} ({name!r})"
