"""What all optimizers share: groups, state, snapshots, hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from itertools import repeat
from typing import Any, ClassVar

import numpy as np

from .. import buffers, hyper, packing
from ..commit import commit
from ..hyper import Hyper
from ..parameter import Parameter
from ..sparse import RowsView, SparseGrad
from . import arrays, gradients, hooks, members, options, shown, spelling
from .group import Group, Misplaced, misplace
from .state import State

_set_gradient = vars(Parameter)["_grad_view"].__set__


class Optimizer:
    """Base class of all optimizers.

    A subclass declares its hyper-parameters in `_hypers`, refuses in `_check` what is impossible
    together, names the numbers and buffers of its state, and defines `_step`.

    Args:
        params: the parameters to optimize: a tree of arrays or `Parameter`s (nested dicts, lists,
            tuples, namedtuples, dataclasses; see `genesis.tree`), which the optimizer updates in
            place and calls by their paths; an iterable of `Parameter`s, or of `(name, Parameter)`
            pairs; or a list of dicts, each a group: `{"params": ..., "lr": 0.1, ...}`. Arrays are
            shared: `W -= ...` writes into one, but `W = W - ...` makes another, which the optimizer does
            not know.
        defaults: hyper-parameters of groups that do not set their own.

    Attributes:
        param_groups: a list of dicts, one a group: "params" and every hyper-parameter. All of it may be
            edited between steps, and the next step does what it then says. Impossible values are
            refused as they are set, see `group.Group`.
        state: a mapping from each parameter to a mapping of its state buffers and numbers.
        defaults: as given.

    Raises:
        TypeError: `params` is a single parameter or array, a set, or holds something else than
            parameters; a hyper-parameter has a wrong type.
        ValueError: no parameters, impossible hyper-parameters, a parameter in two groups, or two
            parameters that share memory.
    """

    _hypers: ClassVar[Mapping[str, Hyper]] = {}
    """The declarations of the hyper-parameters that every group has."""
    _options: ClassVar[Mapping[str, Hyper]] = {}
    """Those of settings that a group may have besides; see `options`."""
    _always: ClassVar[tuple[str, ...]] = ()
    """The names of state buffers that every parameter has once it was updated."""
    _sometimes: ClassVar[tuple[str, ...]] = ()
    """The names of others."""
    _numbers: ClassVar[tuple[str, ...]] = ("step",)
    """The names of the numbers that state shows."""
    _averages: ClassVar[Mapping[str, str]] = {}
    """Of these, those that are averages, which may be kept in 8 bits."""
    _kept_numbers: ClassVar[tuple[str, ...]] = ()
    """Of `_always` and `_sometimes` those that are no buffers, but numbers of a tensor, or of all."""
    _said_no_gradients = False
    step_skipped = False
    """Whether the last step did nothing, since gradients had inf or NaN in them: see `skip_nonfinite`
    and loss scalers."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        misplace(cls)

    def __init__(self, params: Iterable, defaults: dict[str, Any]):
        self.defaults = defaults
        self._state = State()
        self.param_groups: list[dict[str, Any]] = []
        self._step_count = 0
        self._matching: gradients.Matching | None = None
        self._hooks: hooks.Hooks | None = None
        self._check_group(self.defaults)
        groups: list[dict[str, Any]] = []
        for group in members.groups(params):
            groups.append(self._new_group(group, groups))
        members.distinct([_members(group) for group in groups])
        self.param_groups = groups

    def _check_group(self, group: dict[str, Any], number: int | None = None) -> None:
        """Raise TypeError or ValueError if a group's settings are impossible; say which group it is."""
        try:
            for name, declared in self._hypers.items():
                if name not in group:
                    raise ValueError(f"Invalid group: it has no {name!r}, set group[{name!r}]")
                declared.check(name, group[name])
            for name in options.HYPERS:
                if name in group:
                    self._check_setting(name, group[name])
            self._check(group)
        except (TypeError, ValueError) as error:
            if number is None:
                raise
            raise type(error)(f"{error} (in param group {number})") from None

    @classmethod
    def _check_setting(cls, name: Any, value: Any) -> None:
        """Raise TypeError or ValueError if a group's setting is impossible by itself."""
        declared = cls._hypers.get(name) or cls._options.get(name)
        if declared is not None:
            declared.check(name, value)
        elif name in options.HYPERS and value is not None and value is not False:
            raise TypeError(f"{cls.__name__} does not support {name}")

    @classmethod
    def _check_key(cls, name: Any) -> None:
        """Raise ValueError if a group's key is the name of a setting, misspelt."""
        if name != "params" and name != "param_names":
            spelling.check_key(name, {**cls._hypers, **cls._options})

    def _check(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if settings, each possible by itself, are not together."""

    def _check_gradient(self, group: dict[str, Any], view: np.ndarray) -> None:
        """Raise TypeError if a group does not suit the kind of gradient that this is the view of."""
        if isinstance(view, RowsView):
            raise TypeError(
                f"{type(self).__name__} does not support sparse gradients with the settings of this "
                "group: use SparseAdam, or assign the dense gradient, "
                "grad.to_dense(len(parameter))"
            )

    @hooks.around
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, see the optimizer's own class."""
        return self._step(closure)

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The step without hooks."""
        raise NotImplementedError(f"{type(self).__name__} must define _step")

    # ---- state ----

    @property
    def state(self) -> State:
        """The state of each parameter, a mapping from parameters to mappings, see `State`.

        Edits count from the next step on. What is assigned is taken over as a `State` of its own
        with the same arrays in it; later edits of what was assigned are not seen.
        """
        return self._state

    @state.setter
    def state(self, state: Mapping[Parameter, Mapping[str, Any]]) -> None:
        if not isinstance(state, Mapping) or not all(
            isinstance(entries, Mapping) for entries in state.values()
        ):
            raise TypeError(
                "state must be a mapping from parameters to mappings of their state, but got "
                f"{type(state).__name__}"
            )
        self._state = State(state)

    # ---- devices ----

    def to(self, device: str) -> Optimizer:
        """Move the parameters, which stay the same objects, with gradients and state to a device.

        Args:
            device: "cpu", "cuda" (the first GPU) or "cuda:N".

        Returns:
            The optimizer itself.

        Raises:
            RuntimeError: CUDA cannot be used here; the message says what is missing.
            ValueError: no such device.

        Example:
            >>> import numpy as np, genesis
            >>> opt = genesis.optim.Adam([genesis.Parameter(np.ones(3))])
            >>> opt.to("cpu") is opt
            True
        """
        device = buffers.parse_device(device)
        # Copies first: if the device has no room for them, nothing has moved.
        moved = {p: p.to(device) for p in self._parameters()}
        state = State(self._state_on(lambda parameter: device))
        become = [action for p, other in moved.items() for action in p.becoming(other)]
        commit([*become, partial(setattr, self, "_state", state)])
        return self

    def _state_on(self, device_for: Callable[[Parameter], str]) -> dict[Parameter, dict]:
        """The state with its buffers on the devices that `device_for` gives."""
        return {
            parameter: {
                name: buffers.moved(value, device_for(parameter))
                if buffers.is_array(value)
                else value
                for name, value in entries.items()
            }
            for parameter, entries in self._state.items()
        }

    # ---- gradients ----

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros.

        Args:
            set_to_none: True sets each `grad` to None, so that a parameter which gets no gradient in
                the next pass is skipped; False keeps the arrays and fills them with zeros, so that
                such a parameter is updated as with a gradient of zero. Default: True.
        """
        if set_to_none:
            # The slot itself, without the way through the property: a third of the time.
            deque(map(_set_gradient, self._parameters(), repeat(None)), maxlen=0)
            return
        for group in self.param_groups:
            self._fill_gradients(group["params"])

    def _fill_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Fill gradients with zeros, one by one."""
        for parameter in parameters:
            gradient = parameter.grad
            if isinstance(gradient, SparseGrad):
                parameter.grad = gradient.emptied()
            elif gradient is not None:
                zeroed = buffers.zeroed(gradient)
                if zeroed is not gradient:
                    parameter.grad = zeroed

    def clear_grad(self) -> None:
        """Set the gradients of all parameters to None: `zero_grad(set_to_none=True)`."""
        self.zero_grad(set_to_none=True)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, for example of layers that have been frozen so far.

        Args:
            param_group: `{"params": ...}` and the hyper-parameters in which the group differs from
                `defaults`. "params" is as for the constructor, or one `Parameter` or array.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is as it was before.
        """
        group = self._new_group(param_group, self.param_groups)
        members.distinct([_members(each) for each in (*self.param_groups, group)])
        self.param_groups.append(group)

    def _new_group(self, param_group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        """A group with all its hyper-parameters, checked; not yet that it has parameters of its own."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError(f"param_group must have 'params', but has {sorted(param_group)}")
        for key in param_group.keys() - self.defaults.keys():
            self._check_key(key)
        parameters, names = members.of_group(param_group["params"])
        group = Group(type(self), {**self.defaults, **param_group, "params": parameters})
        if names is not None:
            group["param_names"] = names
        if others and ("param_names" in others[0]) != ("param_names" in group):
            raise ValueError(
                "all optimizer param groups should be with/without names. cannot add param "
                f"group {'without' if names is None else 'with'} names to the optimizer: name a "
                "parameter as {'params': {'name': array}}, or leave all without names as [Parameter]"
            )
        self._check_group(group)
        return group

    def _given(self, grads: Any) -> list[gradients.Views]:
        """For each group the views of its gradients in a tree, of which the step sees if they fit.

        Raises:
            TypeError: `grads` is no tree, or what is in it no array that can be read where it lies.
            ValueError: a parameter has no leaf, or a leaf no parameter.
        """
        matching, groups = self._matching, self.param_groups
        given = None if matching is None else matching.views(groups, grads)
        if given is None:
            self._matching = matching = gradients.Matching(groups, grads)
            given = matching.views(groups, grads) or []
        return given

    def _say_no_gradients(self) -> None:
        """Warn, the first time, that a step has nothing to do."""
        if not self._said_no_gradients:
            self._said_no_gradients = True
            members.warn(
                f"{type(self).__name__}.step: no parameter has a gradient, so nothing is updated. "
                "Assign parameter.grad, or give them to the step: step(grads=...)"
            )

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    # ---- snapshots ----

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the optimizer in torch's layout, which no later step changes.

        Returns:
            A dict with "state", for each parameter that has any its state by the parameter's number
            (host arrays and the int "step"), and "param_groups", the groups with such numbers in
            place of the parameters, and the last value in place of a function of the step.
        """
        own = self._hooks or hooks.Hooks()
        for hook in list(own.state_dict_pre.values()):
            hook(self)
        edited = own.state_dict_post or type(self).state_dict is not Optimizer.state_dict
        snapshot = buffers.lending(self._snapshot, False) if edited else self._snapshot()
        for hook in list(own.state_dict_post.values()):
            changed = hook(self, snapshot)
            snapshot = snapshot if changed is None else changed
        return snapshot

    def _lent_state_dict(self) -> dict[str, Any]:
        """As `state_dict`, but arrays may be the state's own: for checkpoints, which copy them.

        What may edit the dict, a hook or the method of a subclass, gets copies.
        """
        return buffers.lending(self.state_dict)

    def _snapshot(self) -> dict[str, Any]:
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        state = {
            i: {
                name: buffers.host_copy_or_loan(value)
                if buffers.is_array(value)
                else deepcopy(value)
                for name, value in self.state[parameter].items()
            }
            for parameter, i in number.items()
            if self.state.get(parameter)
        }
        return {"state": state, "param_groups": self._saved_groups(self._last_steps)}

    def _saved_groups(self, last_steps: Callable[[], list[int]]) -> list[dict[str, Any]]:
        """The groups as a state dict has them.

        Args:
            last_steps: tells, if that is asked for, what `_last_steps` does.
        """
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        groups = []
        for i, group in enumerate(self.param_groups):
            numbers = [number[parameter] for parameter in group["params"]]
            settings = {name: value for name, value in group.items() if name != "params"}
            functions = hyper.scheduled(self._hypers, settings)
            if functions:
                settings = hyper.at(self._hypers, settings, functions, last_steps()[i])
            groups.append({**deepcopy(settings), "params": numbers})
        return groups

    def _last_steps(self) -> list[int]:
        """For each group how many updates its parameters had had when they had their last."""
        return [
            max(0, int(max((self.state.get(p, {}).get("step", 0) for p in each), default=0)) - 1)
            for each in (group["params"] for group in self.param_groups)
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and hyper-parameters from what `state_dict()` returned.

        Everything is copied, and a state buffer keeps the data type in which it was saved. The dict
        may come from the torch optimizer of the same name, tensors and all. A learning rate that a
        group has as a function of the step stays that function, as of it only a value is saved.

        Args:
            state_dict: the dict, saved by an optimizer with groups of the same sizes.

        Raises:
            ValueError: other groups, sizes, shapes or names than this optimizer's.
            TypeError: a value of a wrong type. In either case the optimizer keeps what it had.
        """
        commit(self._loading(state_dict))
        self._loaded()

    def _loading(self, state_dict: Any) -> list[partial]:
        """The calls, for `commit`, that take over a state dict, after hooks have seen it."""
        own = self._hooks or hooks.Hooks()
        for hook in list(own.load_pre.values()):
            state_dict = dict(state_dict)  # a hook may edit it, and must not edit the caller's
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError("state_dict must be a dict with 'state' and 'param_groups'")
        return self._taking_over(state_dict)

    def _loaded(self) -> None:
        """What comes after `_loading` and its commit."""
        own = self._hooks or hooks.Hooks()
        for hook in list(own.load_post.values()):
            hook(self)

    def _taking_over(self, state_dict: dict[str, Any]) -> list[partial]:
        """As `_loading`, of what hooks have made of the state dict."""
        groups, state = self._read(state_dict)
        loaded = {"param_groups": groups, "_state": state}
        return [partial(setattr, self, name, value) for name, value in loaded.items()]

    def _read(self, state_dict: dict[str, Any]) -> tuple[list[dict], State]:
        """The groups and the state that a state dict holds, checked, with parameters in them."""
        groups, owner = self._loaded_groups(state_dict["param_groups"])
        state = {}
        block = self._block_for(state_dict["state"], owner)
        for number, entries in state_dict["state"].items():
            if number not in owner:
                raise ValueError(
                    f"loaded state dict has state for {number!r}, which no group names"
                )
            parameter = owner[number]
            title = members.label(number, parameter.name)
            state[parameter] = self._loaded_state(title, parameter, entries, block)
        return groups, State(state)

    def _block_for(
        self, saved: dict[Any, dict[str, Any]], owner: dict[Any, Parameter]
    ) -> buffers.Block:
        """Memory for copies of the saved buffers that have their parameter's shape."""
        return buffers.Block(
            parameter.size * value.itemsize
            for number, parameter in owner.items()
            for value in saved.get(number, {}).values()
            if isinstance(value, np.ndarray) and value.shape == parameter.shape
        )

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        """The groups as saved, and which parameter each saved number stands for."""
        saved_groups = deepcopy(saved_groups)
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved_groups)} instead of {len(self.param_groups)}. Make the groups as they "
                "were when it was saved"
            )
        groups: list[dict] = []
        owner: dict[Any, Parameter] = {}
        for i, (group, saved) in enumerate(zip(self.param_groups, saved_groups)):
            further = (n for n, each in self._hypers.items() if getattr(each, "further", False))
            optional = {n: group[n] for n in (*self._options, *further) if n in group}
            missing = {"params", *self.defaults} - optional.keys() - saved.keys()
            if missing:
                raise ValueError(
                    f"group {i} of the loaded state dict has no {sorted(missing)}: was it saved by "
                    f"another optimizer than {type(self).__name__}?"
                )
            if len(saved["params"]) != len(group["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of "
                    f"optimizer's group: group {i} has {len(saved['params'])} parameters instead "
                    f"of {len(group['params'])}"
                )
            owner.update(zip(saved["params"], self._as_saved(i, group, saved.get("param_names"))))
            functions = {name: group[name] for name in hyper.scheduled(self._hypers, group)}
            found = {**optional, **saved, **functions, "params": group["params"]}
            if "param_names" in group:
                found["param_names"] = group["param_names"]
            # In the group's own order, so that a resumed run saves the same bytes.
            loaded = {name: found.pop(name) for name in group if name in found} | found
            self._check_group(loaded)
            groups.append(Group(type(self), loaded))
        return groups, owner

    def _as_saved(self, i: int, group: dict[str, Any], saved: Any) -> list[Parameter]:
        """The parameters of group `i` in the order in which their names were saved.

        Raises ValueError if other names were.
        """
        parameters, own = group["params"], group.get("param_names")
        if saved is None or own is None or list(saved) == list(own):
            return parameters
        places = dict(zip(own, parameters))
        if len(places) != len(parameters) or sorted(saved) != sorted(own):
            missing, other = sorted({*own} - {*saved}), sorted({*saved} - {*own})
            raise ValueError(
                f"group {i} of the loaded state dict names its parameters otherwise: it has no "
                f"{missing}, but {other}. If these are the same parameters in the same order, delete "
                "'param_names' from its groups first"
            )
        return [places[name] for name in saved]

    def _loaded_state(
        self, what: str, parameter: Parameter, entries: dict, block: buffers.Block | None = None
    ) -> dict[str, Any]:
        """Copies of one parameter's saved state, checked against what this optimizer keeps."""
        entries = {name: value for name, value in entries.items() if value is not None}
        if not entries:
            return {}
        missing = {*self._numbers, *self._always} - entries.keys()
        own = (*self._always, *self._sometimes)
        scales = {name + packing.SCALE for name in self._averages}
        unknown = entries.keys() - {*self._numbers, *own, "step", *options.BUFFERS, *scales}
        if missing or unknown:
            wrong = f"no {sorted(missing)}" if missing else f"{sorted(unknown)}"
            raise ValueError(
                f"loaded state of {what} has {wrong}: was it saved by another optimizer "
                f"than {type(self).__name__}?"
            )
        loaded: dict[str, Any] = {}
        for name, value in entries.items():
            title = f"loaded state {name!r} of {what}"
            if name in self._numbers or name == "step":
                loaded[name] = float(value)
                if name == "step":
                    if not (loaded[name] >= 0 and loaded[name].is_integer()):
                        raise ValueError(f"{title} must be a count of updates, but got {value}")
                    loaded[name] = int(value)
                continue
            if name in self._kept_numbers:
                loaded[name] = arrays.single(value, title)
                continue
            is_packed = name == packing.LOWER or name + packing.SCALE in entries
            array = buffers.as_host(value, title, is_packed)
            if name in scales:
                shape: tuple[int, ...] = (packing.blocks(parameter.size),)
            else:
                shape = self._state_shape(name, parameter)
            if array.shape != shape:
                raise ValueError(
                    f"{title} has shape {array.shape}, but the parameter has {parameter.shape}"
                    + ("" if shape == parameter.shape else f", which makes it {shape}")
                )
            loaded[name] = buffers.copy_beside(array, parameter._view, block)
        return loaded

    def _state_shape(self, name: str, parameter: Parameter) -> tuple[int, ...]:
        """The shape of a parameter's state buffer of this name."""
        return parameter.shape

    # ---- hooks ----

    def register_step_pre_hook(self, hook: Callable) -> hooks.RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` before each step.

        The first of `args` is the optimizer. The hook may return other `(args, kwargs)`. Hooks for
        every optimizer (`register_optimizer_step_pre_hook`) come first.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().step_pre.add(hook)

    def register_step_post_hook(self, hook: Callable) -> hooks.RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` after each step, before hooks for every optimizer.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().step_post.add(hook)

    def register_state_dict_pre_hook(
        self, hook: Callable, prepend: bool = False
    ) -> hooks.RemovableHandle:
        """Call `hook(optimizer)` before `state_dict()` looks at anything.

        Args:
            hook: the function.
            prepend: call it before the hooks that are there, not after them. Default: False.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().state_dict_pre.add(hook, prepend)

    def register_state_dict_post_hook(
        self, hook: Callable, prepend: bool = False
    ) -> hooks.RemovableHandle:
        """Call `hook(optimizer, state_dict)` on what `state_dict()` is about to return.

        The hook may edit it, or return another in its place.

        Args:
            hook: the function.
            prepend: call it before the hooks that are there, not after them. Default: False.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().state_dict_post.add(hook, prepend)

    def register_load_state_dict_pre_hook(
        self, hook: Callable, prepend: bool = False
    ) -> hooks.RemovableHandle:
        """Call `hook(optimizer, state_dict)` before `load_state_dict` looks at its argument.

        The hook gets a shallow copy, which it may edit, or return another in its place.

        Args:
            hook: the function.
            prepend: call it before the hooks that are there, not after them. Default: False.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().load_pre.add(hook, prepend)

    def register_load_state_dict_post_hook(
        self, hook: Callable, prepend: bool = False
    ) -> hooks.RemovableHandle:
        """Call `hook(optimizer)` after `load_state_dict` has loaded everything.

        Args:
            hook: the function.
            prepend: call it before the hooks that are there, not after them. Default: False.

        Returns:
            A handle whose `remove()` takes the hook out again.
        """
        return self._own_hooks().load_post.add(hook, prepend)

    def _own_hooks(self) -> hooks.Hooks:
        if self._hooks is None:
            self._hooks = hooks.Hooks()
        return self._hooks

    def __getstate__(self) -> dict[str, Any]:
        state = self._state_on(lambda parameter: "cpu")  # device arrays cannot be pickled
        return {**self.__dict__, "_state": state, "_hooks": None, "_matching": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state = State(self._state_on(lambda parameter: parameter.device))

    def __dir__(self) -> list[str]:
        attributes = {
            name: value for base in type(self).__mro__ for name, value in vars(base).items()
        }
        misplaced = {name for name, value in attributes.items() if isinstance(value, Misplaced)}
        return sorted({*super().__dir__()} - misplaced)

    def _usual(self, name: str, default: Any) -> Any:
        """The value of a hyper-parameter of which `repr` need say nothing."""
        return default

    __repr__ = shown.never_failing(shown.optimizer)
    __str__ = shown.never_failing(shown.groups)


def _members(group: dict[str, Any]) -> members.Members:
    return group["params"], members.names(group, group["params"])
