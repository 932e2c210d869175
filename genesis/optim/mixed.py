"""One optimizer with a rule for each group, and Muon with AdamW as the first of its users."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from .. import buffers
from ..commit import commit, prepared
from ..kernels import reductions
from ..nn.utils.clip_grad import norm_and_finite
from ..parameter import Parameter
from . import arrays, ema, gradients, measured, members, shown
from .adam import AdamW
from .gradient_optimizer import Ending, GradientOptimizer
from .group import put
from .muon import Muon
from .optimizer import Optimizer
from .param_groups import exempting, with_names
from .rule_optimizer import RuleOptimizer
from .state import State, _Dictlike


class Mixed(GradientOptimizer):
    """One optimizer whose groups have different update rules.

    A model has one object then, one checkpoint and one scheduler; `max_norm` is the norm of all
    gradients, and a step is complete or has not begun, of all groups together. The numbers are those of
    the optimizers by themselves.

    Args:
        groups: a list of dicts, each a group: "params", as for any optimizer; "optimizer", a class of
            `genesis.optim` or one that `genesis.rule` made, or the name of one of `genesis.optim`; and
            hyper-parameters of that class where they are not its defaults. Not possible are `LBFGS`,
            Schedule-Free optimizers and wrappers, which are more than an update.

    Attributes:
        param_groups: all groups, in the order given; in each, "optimizer" is the name of its class.
        state: the state of all parameters.

    Raises:
        TypeError: `groups` is no list of dicts, or an "optimizer" is not as above.
        ValueError: a group has no "optimizer", or lacks a hyper-parameter that its class has no default
            for; else as for any optimizer. (In messages, parameters and groups are counted within each
            class.)

    Example:
        >>> import numpy as np, genesis
        >>> W, b = np.eye(2), np.zeros(2)
        >>> opt = genesis.optim.Mixed([
        ...     {"params": {"W": W}, "optimizer": genesis.optim.Muon, "lr": 0.02},
        ...     {"params": {"b": b}, "optimizer": genesis.optim.AdamW, "lr": 0.1},
        ... ])
        >>> _ = opt.step(grads={"W": 2 * W, "b": np.ones(2)}, max_norm=1.0)
        >>> b.round(3)
        array([-0.1, -0.1])
        >>> [group["optimizer"] for group in opt.state_dict()["param_groups"]]
        ['Muon', 'AdamW']
    """

    def __init__(self, groups: Iterable[dict[str, Any]]):
        if isinstance(groups, (dict, str)) or not isinstance(groups, Iterable):
            raise TypeError(
                "Mixed takes a list of groups, each with 'params' and 'optimizer', but got a "
                f"{type(groups).__name__}: write [{{'params': ..., 'optimizer': genesis.optim.AdamW}}]"
            )
        self.defaults = {}
        self.param_groups = []
        self._parts: dict[str, GradientOptimizer] = {}
        self._step_count = 0
        self._grad_norm = None
        self._hooks = None
        self._matching = None
        groups = list(groups)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        for given in groups:
            self._add(given)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its "optimizer".

        Args:
            param_group: as for the constructor.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is as it was before.
        """
        self._add(param_group)

    def _add(self, given: Any) -> None:
        number = len(self.param_groups)
        if not isinstance(given, dict):
            raise TypeError(
                f"group {number} of Mixed must be a dict, but got {type(given).__name__}"
            )
        if "optimizer" not in given:
            raise ValueError(
                f"group {number} of Mixed has no 'optimizer': give a class, for example "
                "{'params': ..., 'optimizer': genesis.optim.AdamW}"
            )
        kind = _kind(given["optimizer"], number)
        name = kind.__name__
        settings = {key: value for key, value in given.items() if key != "optimizer"}
        required = [
            each.name
            for each in inspect.signature(kind).parameters.values()
            if each.default is each.empty and each.name != "params"
        ]
        missing = sorted({*required} - settings.keys())
        if missing:
            raise ValueError(
                f"group {number} of Mixed needs {missing}: {name} has no default for it"
            )
        part = self._parts.get(name)
        if part is None:
            part = kind([settings], **{each: settings[each] for each in required})
            (made,) = part.param_groups
            part._said_no_gradients = True  # it is said here, of all of them
        elif type(part) is not kind:
            raise ValueError(f"two classes of Mixed have the name {name!r}: give one another name")
        else:
            made = part._new_group(settings, part.param_groups)
        if self.param_groups and ("param_names" in self.param_groups[0]) != ("param_names" in made):
            raise ValueError(
                "all optimizer param groups should be with/without names, but group "
                f"{number} of Mixed is {'with' if 'param_names' in made else 'without'}: name a "
                "parameter as {'params': {'name': array}}, or leave all without names as [Parameter]"
            )
        groups = [*self.param_groups, made]
        members.distinct([(each["params"], members.names(each, each["params"])) for each in groups])
        put(made, "optimizer", name)
        self._parts[name] = part
        self.param_groups = groups

    def _sorted(self) -> list[tuple[GradientOptimizer, list[int]]]:
        """The optimizers, with their groups as they are now, and which groups of all these are."""
        places: dict[str, list[int]] = {name: [] for name in self._parts}
        for i, group in enumerate(self.param_groups):
            name = group.get("optimizer")
            if name not in places:
                raise ValueError(
                    f"the 'optimizer' of group {i} is {name!r}, but this Mixed has {list(places)}: add "
                    "groups of another class with add_param_group"
                )
            places[name].append(i)
        found = [(self._parts[name], rows) for name, rows in places.items()]
        for part, rows in found:
            part.param_groups = [self.param_groups[i] for i in rows]
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part, _ in self._sorted():
            part.zero_grad(set_to_none)

    zero_grad.__doc__ = GradientOptimizer.zero_grad.__doc__

    def to(self, device: str) -> Mixed:
        for part, _ in self._sorted():
            part.to(device)
        return self

    to.__doc__ = GradientOptimizer.to.__doc__

    # ---- state ----

    @property
    def state(self) -> Any:
        """The state of each parameter, in the mapping of the optimizer that updates it.

        It is used as any optimizer's, and edits count; what is assigned is taken over.
        """
        return _States([(part._state, part._parameters()) for part, _ in self._sorted()])

    @state.setter
    def state(self, state: Mapping[Parameter, Mapping[str, Any]]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(
                "state must be a mapping from parameters to mappings of their state, but got "
                f"{type(state).__name__}"
            )
        parts = self._sorted()
        known = {parameter for part, _ in parts for parameter in part._parameters()}
        if not known.issuperset(state):
            raise ValueError("state has an entry for a parameter that is in no group")
        for part, _ in parts:
            own = set(part._parameters())
            part.state = {p: entries for p, entries in state.items() if p in own}  # type: ignore[assignment]

    @property
    def _state(self) -> Any:  # type: ignore[override]
        return self.state

    # ---- the step ----

    def _apply(
        self,
        given: list[gradients.Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
        zeroes: bool = False,
    ) -> None:
        parts = self._sorted()
        views = given or [[p._grad_view for p in group["params"]] for group in self.param_groups]
        every = [view for each in views for view in each if view is not None]
        if not every and self._parameters():
            self._say_no_gradients()
        self._check_apart(views)
        if zeroes and len(parts) > 1:
            self._check_erasable(views)
        if max_norm is not None or inverse_scale is not None:
            factor *= inverse_scale or 1.0
            self._grad_norm, finite = norm_and_finite(every, factor)
            if inverse_scale is not None and not finite:
                self.step_skipped = True
                return
            if max_norm is not None:
                factor *= reductions.clip_factor(max_norm, self._grad_norm)
        reached = 0

        def go_on(place: int, before: list[partial]) -> None:
            """Let the optimizers from this place on make their calls, and then make all of them."""
            nonlocal reached
            reached = place
            if place == len(parts):
                before.append(partial(setattr, self, "_step_count", self._step_count + 1))
                prepared(before)() if ending is None else ending(before)
                return
            part, rows = parts[place]
            own = None if given is None else [given[i] for i in rows]
            # Each waits with its calls until those behind it have theirs: what fails writes nothing.
            part._apply(
                own,
                None,
                clip_value,
                None,
                lambda made: go_on(place + 1, [*before, *made]),
                factor,
                zeroes,
            )

        try:
            go_on(0, [])
        except (TypeError, ValueError) as error:
            if len(parts) == 1 or reached == len(parts):
                raise
            name = type(parts[reached][0]).__name__
            raise type(error)(f"{error} (counted among those of {name})") from None

    def _changes(self) -> measured.Changes | None:
        found: list[Any] = [None] * len(self.param_groups)
        for part, rows in self._sorted():
            changes = part._changes() or [None] * len(rows)
            for row, each in zip(rows, changes):
                # What a step leaves out, no part of it knows of.
                found[row] = measured.NOTHING if self.step_skipped and each is not None else each
        return found if any(each is not None for each in found) else None

    def _check_apart(self, views: list[gradients.Views]) -> None:
        """Raise ValueError if optimizers would write what others read or write."""
        if len(self._parts) == 1:
            return
        written: list[Any] = []
        whose: list[tuple[str, str]] = []
        called: list[str | None] = []
        state = self.state
        for group in self.param_groups:
            names = members.names(group, group["params"])
            for parameter, name in zip(group["params"], names):
                what = members.label(len(called), name)
                called.append(name)
                written.append(parameter._view)
                whose.append((what, ""))
                for key, value in (state.get(parameter) or {}).items():
                    if buffers.is_array(value):
                        written.append(buffers.view(value))
                        whose.append((what, key))
        flat = [view for each in views for view in each]
        if buffers.overlapping(written, [view for view in flat if view is not None]):
            arrays.apart(written, whose)
            arrays.outside(flat, called, 0, written, whose)

    def _check_erasable(self, views: list[gradients.Views]) -> None:
        """Raise ValueError if gradients of different optimizers share memory, which they set to zero."""
        flat = [view for each in views for view in each]
        labelled = zip(members.labels(self.param_groups), flat)
        arrays.apart_if_erased([(what, view) for what, view in labelled if view is not None])

    # ---- averages ----

    def swap_ema(self) -> None:
        """Let parameters show their averages, or their own values again: see `RuleOptimizer.swap_ema`.

        Parameters of optimizers without averages stay as they are.

        Raises:
            RuntimeError: no parameter has an average.
            TypeError, ValueError: an array does not fit its place. Nothing has been written.
        """
        commit(self._swapping_ema())

    def _swapping_ema(self) -> list[partial]:
        """The calls, for `commit`, that `swap_ema` makes."""
        actions: list[partial] = []
        state = self.state
        with_averages = [
            part
            for part, _ in self._sorted()
            if any("ema" in (state.get(p) or {}) for p in part._parameters())
        ]
        for part in with_averages or [part for part, _ in self._sorted()]:
            everyone = [
                (parameter, members.label(number, name))
                for number, (parameter, name) in enumerate(
                    pair
                    for group in part.param_groups
                    for pair in zip(group["params"], members.names(group, group["params"]))
                )
            ]
            actions += ema.swap(everyone, part._state, getattr(part, "stream", None))
        return actions

    # ---- snapshots ----

    def _snapshot(self) -> dict[str, Any]:
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        state: dict[int, Any] = {}
        for part, _ in self._sorted():
            numbers = [number[parameter] for parameter in part._parameters()]
            saved = part._snapshot()["state"]
            state.update((numbers[i], entries) for i, entries in saved.items())
        groups = self._saved_groups(self._last_steps)
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _saved_groups(self, last_steps: Callable[[], list[int]]) -> list[dict[str, Any]]:
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        groups: list[Any] = [None] * len(self.param_groups)
        for part, rows in self._sorted():
            numbers = [number[parameter] for parameter in part._parameters()]
            saved = part._saved_groups(lambda rows=rows: [last_steps()[i] for i in rows])  # type: ignore[misc]
            for i, group in zip(rows, saved):
                groups[i] = {**group, "params": [numbers[each] for each in group["params"]]}
        return groups

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        saved = list(saved_groups)
        if len(saved) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved)} instead of {len(self.param_groups)}. Make the groups as they were when "
                "it was saved"
            )
        for i, (group, each) in enumerate(zip(self.param_groups, saved)):
            if each.get("optimizer") != group["optimizer"]:
                raise ValueError(
                    f"group {i} of the loaded state dict was updated by {each.get('optimizer')!r}, but "
                    f"here by {group['optimizer']!r}: was it saved by another optimizer than this Mixed?"
                )
        groups: list[Any] = [None] * len(saved)
        owner: dict[Any, Parameter] = {}
        for part, rows in self._sorted():
            loaded, owners = part._loaded_groups([saved[i] for i in rows])
            owner.update(owners)
            for i, group in zip(rows, loaded):
                groups[i] = group
        return groups, owner

    def _taking_over(self, state_dict: dict[str, Any]) -> list[partial]:
        groups, owner = self._loaded_groups(state_dict["param_groups"])
        states: dict[str, dict[Parameter, Any]] = {name: {} for name in self._parts}
        parts = {p: name for name, part in self._parts.items() for p in part._parameters()}
        block = self._block_for(state_dict["state"], owner)
        for number, entries in state_dict["state"].items():
            if number not in owner:
                raise ValueError(
                    f"loaded state dict has state for {number!r}, which no group names"
                )
            parameter = owner[number]
            title = members.label(number, parameter.name)
            name = parts[parameter]
            loaded = self._parts[name]._loaded_state(title, parameter, entries, block)
            states[name][parameter] = loaded
        return [
            *(
                partial(setattr, self._parts[name], "_state", State(state))
                for name, state in states.items()
            ),
            partial(setattr, self, "param_groups", groups),
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_hooks": None,
            "_matching": None,
            "_grad_norm": self.grad_norm,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _shown(self) -> str:
        """The optimizers in one line."""
        self._sorted()
        return f"{type(self).__name__}({', '.join(map(repr, self._parts.values()))})"

    __repr__ = shown.never_failing(_shown)


class _States(_Dictlike):
    """The states of several optimizers as one mapping.

    Args:
        parts: the state of each, with its parameters.
    """

    def __init__(self, parts: list[tuple[State, list[Parameter]]]):
        self._states = [state for state, _ in parts]
        self._of = {parameter: state for state, params in parts for parameter in params}

    def __getitem__(self, parameter: Any) -> Any:
        return self._of[parameter][parameter]

    def __setitem__(self, parameter: Any, entries: Mapping[str, Any]) -> None:
        self._of[parameter][parameter] = entries

    def __delitem__(self, parameter: Any) -> None:
        del self._of[parameter][parameter]

    def __iter__(self) -> Iterator[Any]:
        return (parameter for state in self._states for parameter in state)

    def __len__(self) -> int:
        return sum(map(len, self._states))

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._of and parameter in self._of[parameter]  # type: ignore[index]

    def get(self, parameter: Any, default: Any = None) -> Any:
        state = self._of.get(parameter)
        return default if state is None else state.get(parameter, default)


def _kind(given: Any, number: int) -> type[GradientOptimizer]:
    """The class that a group's "optimizer" means."""
    kind = given
    if isinstance(given, str):
        kind = getattr(import_module(__package__), given, None)  # type: ignore[arg-type]
    is_class = isinstance(kind, type) and issubclass(kind, Optimizer)
    if is_class and kind in (Optimizer, GradientOptimizer, RuleOptimizer):
        is_class = False
    if not is_class:
        raise TypeError(
            f"the 'optimizer' of group {number} must be an optimizer class or the name of one of "
            f"genesis.optim, but is {given!r}"
        )
    # What has a step of its own is more than an update from gradients that are there.
    if getattr(kind, "_step", None) is not GradientOptimizer._step or issubclass(kind, Mixed):
        raise TypeError(
            f"Mixed does not support {kind.__name__} (group {number}), whose step is more than an "
            "update: give it parameters of its own"
        )
    return kind


# ---- Muon with AdamW ----

NOT_HIDDEN = ("embed", "embedding", "embeddings", "wte", "wpe", "head", "classifier")
"""Words in names of matrices that are not between two hidden layers."""


class MuonWithAdamW(Mixed):
    """Muon for the matrices of hidden layers, AdamW for the rest of a model.

    Which is which follows from shapes and names:

    - a parameter with two axes is for `Muon`, unless its name has one of the words `not_hidden`;
    - all others are for `AdamW`: embeddings and heads by their names, and what has fewer or more axes
      (biases, scales of normalization layers, kernels of convolutions).

    A name counts by its words, as in `param_groups_weight_decay`: "head" is found in "lm_head.weight"
    and in "head", but not in "header". Weight decay is for what has two axes or more. There are up to
    three groups, in the order Muon, AdamW with weight decay, AdamW without; print their "param_names"
    once to see what went where. One learning rate serves both, as Muon's is adjusted to the size of
    AdamW's updates (`adjust_lr_fn="match_rms_adamw"`). See `Mixed` for all else.

    Args:
        params: a tree of arrays or `Parameter`s, whose names are their paths, or `(name, Parameter)`
            pairs.
        lr: learning rate, a finite number of at least 0, or a function of the step. Default: 1e-3.
        weight_decay: decoupled weight decay, at least 0. Default: 0.1.
        momentum: Muon's, at least 0. Default: 0.95.
        nesterov: whether Muon's momentum is Nesterov's. Default: True.
        ns_steps: how many products make Muon's update orthogonal. Default: 5.
        betas: AdamW's decay rates, each in [0, 1). Default: (0.9, 0.95).
        eps: AdamW's, at least 0. Default: 1e-8.
        adamw_lr: AdamW's learning rate. Default: None, `lr`.
        not_hidden: words in names of matrices that are for AdamW. Default: ("embed", "embedding",
            "embeddings", "wte", "wpe", "head", "classifier").

    Raises:
        TypeError: `params` has no names; an argument has a wrong type.
        ValueError: an argument is out of range, or as for any optimizer.

    Example:
        >>> import numpy as np, genesis
        >>> params = {
        ...     "embed": np.ones((9, 4)), "layer": {"W": np.eye(4), "b": np.zeros(4)},
        ...     "head": np.ones((4, 9)),
        ... }
        >>> opt = genesis.optim.MuonWithAdamW(params, lr=1e-3)
        >>> for group in opt.param_groups:
        ...     print(group["optimizer"], group["weight_decay"], group["param_names"])
        Muon 0.1 ['layer.W']
        AdamW 0.1 ['embed', 'head']
        AdamW 0.0 ['layer.b']

    References:
        Jordan et al.: Muon: an optimizer for hidden layers in neural networks. 2024,
        https://kellerjordan.github.io/posts/muon/. Liu et al.: Muon is scalable for LLM training.
        2025, https://arxiv.org/abs/2502.16982
    """

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = 1e-3,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        adamw_lr: float | Callable[[int], float] | None = None,
        not_hidden: Iterable[str] = NOT_HIDDEN,
    ):
        pairs = with_names(params)
        elsewhere = exempting(not_hidden, "not_hidden")
        muon: dict[str, Any] = {
            "optimizer": Muon,
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": "match_rms_adamw",
        }
        adamw: dict[str, Any] = {
            "optimizer": AdamW,
            "lr": lr if adamw_lr is None else adamw_lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
        }
        sorted_: list[list[tuple[str, Any]]] = [[], [], []]
        for name, parameter in pairs:
            is_hidden = parameter.ndim == 2 and not elsewhere(name)
            sorted_[0 if is_hidden else 1 if parameter.ndim >= 2 else 2].append((name, parameter))
        settings = muon, adamw, {**adamw, "weight_decay": 0.0}
        super().__init__(
            [{**each, "params": found} for each, found in zip(settings, sorted_) if found]
        )
