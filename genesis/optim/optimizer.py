"""What all optimizers share: groups, state, the step, and snapshots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import buffers, kernels
from ..commit import commit
from ..nn.utils.clip_grad import check_max_norm
from ..parameter import Parameter
from ..sparse import SparseGrad
from . import checks, hooks, precision
from .plan import Plan, Rule
from .state import State

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Optimizer:
    """Base class of all optimizers.

    A subclass hands its defaults to this constructor, names its state buffers in `_always` and
    `_sometimes`, and defines three methods: `_check` (are a group's hyper-parameters possible?),
    `_rule` (which rule do they ask for?) and `_scalars` (which numbers does the rule take at a given
    step?). One whose state has more numbers than "step" names them in `_numbers` and defines how
    they begin and go on, `_initial` and `_next`. Everything else is here.

    Args:
        params: the parameters to optimize: an iterable of `Parameter`s, of `(name, Parameter)` pairs,
            or of dicts, each a group: `{"params": [...], "lr": 0.1, ...}`.
        defaults: hyper-parameters of groups that do not set their own.
        options: `master_weights`, `state_dtype` and `stochastic_rounding`, see `precision.Options`.

    Attributes:
        param_groups: a list of dicts, one a group: "params" and every hyper-parameter. Any number in
            them may be changed between steps.
        state: a dict from each parameter to a dict of its state buffers and the int "step".
        defaults: as given.
        step_skipped: whether the last step that a loss scaler took found inf or NaN and did nothing.

    Raises:
        TypeError: `params` is a single parameter or array, a set, or holds something else than
            parameters; a hyper-parameter has a wrong type.
        ValueError: no parameters, impossible hyper-parameters, a parameter in two groups, or two
            parameters that share memory.
    """

    _always: tuple[str, ...] = ()
    _sometimes: tuple[str, ...] = ()
    _numbers: tuple[str, ...] = ("step",)
    """The numbers that state shows. Without "step" among them, `_scalars` sees step 1, then 2."""

    def __init__(
        self, params: Iterable, defaults: dict[str, Any], **options: Unpack[precision.Options]
    ):
        precision.check_names(self, options)
        self.defaults = {**defaults, **options}
        self.state = State()
        self.param_groups: list[dict[str, Any]] = []
        self._grad_norm: float | Callable[[], float] | None = None
        self.step_skipped = False
        self._step_count = 0
        self._stream: Any = None
        self._plans: list[Plan] = []
        self._hooks: hooks.Hooks | None = None
        self._check_all(self.defaults)
        for group in checks.groups(params):
            self.add_param_group(group)

    def _check_all(self, group: dict[str, Any]) -> None:
        self._check(group)
        precision.check(group)

    def _check(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if the hyper-parameters in `group` are impossible."""
        raise NotImplementedError(f"{type(self).__name__} must define _check")

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        """Raise TypeError if a group's rule does not suit the kind of gradient a parameter has."""
        if isinstance(parameter.grad, SparseGrad):
            raise TypeError(
                f"{type(self).__name__} does not support sparse gradients with the settings of this "
                "group: use SparseAdam, or assign the dense gradient, "
                "grad.to_dense(len(parameter))"
            )

    def _rule(self, group: dict[str, Any]) -> Rule:
        """The rule that a group asks for and the names of its state buffers, in the rule's order."""
        raise NotImplementedError(f"{type(self).__name__} must define _rule")

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        """What a parameter's state begins with: its numbers, and what fills a buffer if not 0."""
        return {"step": 0}

    def _next(self, group: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
        """The numbers in the state of a parameter after one more update."""
        return {"step": numbers["step"] + 1}

    def _scalars(self, group: dict[str, Any], numbers: dict[str, Any]) -> tuple[float, ...]:
        """The rule's scalars for the update after which state holds `numbers`."""
        raise NotImplementedError(f"{type(self).__name__} must define _scalars")

    def _scalars_between(
        self, group: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
    ) -> tuple[float, ...]:
        """The rule's scalars for the update that takes state's numbers from `before` to `after`."""
        return self._scalars(group, after)

    # ---- the step ----

    def step(
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None
    ) -> Any:
        """Update every parameter that has a gradient.

        With `max_norm` the gradients of all groups are clipped by their common norm, as
        `clip_grad_norm_` does, but without being written: one pass reads them for the norm, and
        the update applies the factor. `optimizer.grad_norm` is then the norm before clipping.

        Args:
            closure: a function that computes the gradients anew and returns the loss; called once,
                before the update. Default: None, the gradients are there already.
            max_norm: the norm that the gradients may have at most, at least 0. Default: None, no
                clipping.

        Returns:
            The closure's loss, or without a closure the optimizer itself, so that
            `opt.step().clear_grad()` works.

        Raises:
            TypeError, ValueError: `max_norm` or a number in a group is impossible. Nothing has been
                written.
        """
        if self._hooks is None and not hooks.every_step_pre and not hooks.every_step_post:
            return self._step(closure, max_norm)
        return self._hooked_step(closure, max_norm)

    def scaled_step(self, inverse_scale: float, *, max_norm: float | None = None) -> Any:
        """Update with gradients multiplied by `inverse_scale`, unless one of them is inf or NaN.

        This is what a loss scaler calls (`genesis.amp.GradScaler.step`). One pass reads the
        gradients, for the check and the norm; the update multiplies them; they are not written.

        Args:
            inverse_scale: 1 / the scale of the loss.
            max_norm: the norm that unscaled gradients may have at most. Default: None, any.

        Returns:
            The optimizer itself; None if the step was left out. `step_skipped` then says so, and
            nothing has changed: no parameter, no state, no step count.
        """
        if self._hooks is None and not hooks.every_step_pre and not hooks.every_step_post:
            self._step(None, max_norm, inverse_scale)
        else:
            self._hooked_step(None, max_norm, inverse_scale)
        return None if self.step_skipped else self

    def _step(
        self,
        closure: Callable[[], Any] | None,
        max_norm: float | None,
        inverse_scale: float | None = None,
    ) -> Any:
        """The step without hooks.

        With `inverse_scale` the gradients are multiplied by it first, and if any of them is inf or
        NaN nothing at all is done, which `step_skipped` then says.
        """
        self.step_skipped = False
        if max_norm is not None:
            max_norm = check_max_norm(max_norm)
        loss = None if closure is None else closure()
        # All that can fail comes first: a bad number in the last group leaves the first untouched.
        plans = [self._plan(i, group) for i, group in enumerate(self.param_groups)]
        if max_norm is not None or inverse_scale is not None:
            launches = [bucket.launch for plan in plans for bucket in plan.buckets]
            self._grad_norm = norm = kernels.clip(launches, max_norm, inverse_scale)
            if inverse_scale is not None and not math.isfinite(norm):  # type: ignore[arg-type]
                self.step_skipped = True
                return self if closure is None else loss
        if plans != self._plans:
            self._adopt(plans)
        for plan in plans:
            plan.run()
        self._step_count += 1
        return self if closure is None else loss

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last `step(max_norm=...)`, before clipping, else None.

        On a GPU, where `step` itself waits for nothing, asking for it waits for the step.
        """
        if callable(self._grad_norm):
            self._grad_norm = self._grad_norm()
        return self._grad_norm

    def _hooked_step(
        self,
        closure: Callable[[], Any] | None,
        max_norm: float | None,
        inverse_scale: float | None = None,
    ) -> Any:
        """The step with hooks, which see the arguments as they were given.

        After a step that was left out no hook is called.
        """
        args: tuple = (self,) if closure is None else (self, closure)
        kwargs: dict[str, Any] = {} if max_norm is None else {"max_norm": max_norm}
        own = self._hooks or hooks.Hooks()
        for hook in [*hooks.every_step_pre.values(), *own.step_pre.values()]:
            changed = hook(self, args, kwargs)
            if changed is None:
                continue
            if not isinstance(changed, tuple) or len(changed) != 2:
                raise RuntimeError(
                    f"a step hook must return None or a tuple of (new_args, new_kwargs), but got "
                    f"{changed!r}"
                )
            args, kwargs = changed
        result = self._step(*_step_arguments(*args[1:], **kwargs), inverse_scale)
        if self.step_skipped:
            return result
        for hook in [*own.step_post.values(), *hooks.every_step_post.values()]:
            hook(self, args, kwargs)
        return result

    def _plan(self, i: int, group: dict[str, Any]) -> Plan:
        """The plan of group `i`, the kept one if it still fits, with the next step's scalars set."""
        parameters, rule = group["params"], self._rule(group)
        plan = self._plans[i] if i < len(self._plans) else None
        if plan is not None and plan.still_fits(parameters, rule, self.state):
            for parameter in plan.sparse:
                self._check_gradient(group, parameter)
        else:
            for parameter in parameters:
                if parameter._grad_view is not None:
                    self._check_gradient(group, parameter)
            initial = self._initial(group)
            scalars = len(self._scalars_between(group, initial, self._next(group, initial)))
            types = precision.of(group)
            # Random bits follow from the number of the update, so that one must be kept.
            kept = self._numbers or (("step",) if types.stochastic_rounding else ())
            first = sum(len(other["params"]) for other in self.param_groups[:i])
            plan = Plan(
                parameters, rule, self.state, initial, kept, scalars, self._stream, types, first
            )
        scale = -1.0 if group["maximize"] else 1.0
        for bucket in plan.buckets:
            bucket.numbers_after = after = self._next(group, bucket.numbers)
            hyper = self._scalars_between(group, bucket.numbers, after)
            bucket.launch.set_scalars(scale, hyper, after["step"])
        return plan

    def _adopt(self, plans: list[Plan]) -> None:
        """Keep these plans, and the state that they created."""
        for plan in plans:
            for parameter, entries in plan.created:
                self.state[parameter] = entries
            plan.created = []
        for plan in plans:
            plan.adopt(self.state)
        self._plans = plans

    # ---- devices ----

    @property
    def stream(self) -> Any:
        """The CUDA stream on which steps are put, a `numba.cuda` stream; None: the default one."""
        return self._stream

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._stream = stream
        self._plans = []

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
        state = self._state_on(lambda parameter: device)
        for parameter, other in moved.items():
            parameter.become(other)
        self.state = State(state)
        self._plans = []
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
            for parameter, entries in self.state.items()
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
            for parameter in self._parameters():
                parameter.grad = None
            return
        for i, group in enumerate(self.param_groups):
            plan = self._plans[i] if i < len(self._plans) else None
            if plan is not None and plan.zero_gradients(group["params"]):
                continue
            for parameter in group["params"]:
                if isinstance(parameter.grad, SparseGrad):
                    parameter.grad = parameter.grad.emptied()
                elif parameter.grad is not None:
                    parameter.grad = buffers.zeroed(parameter.grad)

    def clear_grad(self) -> None:
        """Set the gradients of all parameters to None: `zero_grad(set_to_none=True)`."""
        self.zero_grad(set_to_none=True)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, for example of layers that have been frozen so far.

        Args:
            param_group: `{"params": [...]}` and the hyper-parameters in which the group differs from
                `defaults`. "params" is as for the constructor, or one `Parameter`.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is as it was before.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError(f"param_group must have 'params', but has {sorted(param_group)}")
        parameters, names = checks.members(param_group["params"])
        group = {**self.defaults, **param_group, "params": parameters}
        if names is not None:
            group["param_names"] = names
        for other in self.param_groups:
            if ("param_names" in other) != ("param_names" in group):
                raise ValueError(
                    "all optimizer param groups should be with/without names. cannot add param "
                    f"group {'without' if names is None else 'with'} names to the optimizer"
                )
        self._check_all(group)
        known = self._parameters()
        if not set(known).isdisjoint(parameters):
            raise ValueError("some parameters appear in more than one parameter group")
        checks.memory(known + parameters)
        self.param_groups.append(group)

    def _parameters(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    # ---- snapshots ----

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the optimizer in torch's layout, which no later step changes.

        Returns:
            A dict with "state", for each parameter that has any its state by the parameter's number
            (host arrays and the int "step"), and "param_groups", the groups with such numbers in
            place of the parameters.
        """
        own = self._hooks or hooks.Hooks()
        for hook in list(own.state_dict_pre.values()):
            hook(self)
        snapshot = self._snapshot()
        for hook in list(own.state_dict_post.values()):
            changed = hook(self, snapshot)
            snapshot = snapshot if changed is None else changed
        return snapshot

    def _snapshot(self) -> dict[str, Any]:
        number = {parameter: i for i, parameter in enumerate(self._parameters())}
        state = {
            i: {
                name: buffers.host_copy(value) if buffers.is_array(value) else deepcopy(value)
                for name, value in self.state[parameter].items()
            }
            for parameter, i in number.items()
            if self.state.get(parameter)
        }
        groups = []
        for group in self.param_groups:
            numbers = [number[parameter] for parameter in group["params"]]
            settings = {name: value for name, value in group.items() if name != "params"}
            groups.append({**deepcopy(settings), "params": numbers})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and hyper-parameters from what `state_dict()` returned.

        Everything is copied, and a state buffer keeps the data type in which it was saved. The dict
        may come from the torch optimizer of the same name, tensors and all.

        Args:
            state_dict: the dict, saved by an optimizer with groups of the same sizes.

        Raises:
            ValueError: other groups, sizes, shapes or names than this optimizer's.
            TypeError: a value of a wrong type. In either case the optimizer keeps what it had.
        """
        own = self._hooks or hooks.Hooks()
        for hook in list(own.load_pre.values()):
            state_dict = dict(state_dict)  # a hook may edit it, and must not edit the caller's
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError("state_dict must be a dict with 'state' and 'param_groups'")
        groups, owner = self._loaded_groups(state_dict["param_groups"])
        state = {}
        for number, entries in state_dict["state"].items():
            if number not in owner:
                raise ValueError(
                    f"loaded state dict has state for {number!r}, which no group names"
                )
            state[owner[number]] = self._loaded_state(number, owner[number], entries)
        commit(
            [
                partial(setattr, self, "param_groups", groups),
                partial(setattr, self, "state", State(state)),
                partial(setattr, self, "_plans", []),
            ]
        )
        for hook in list(own.load_post.values()):
            hook(self)

    def _loaded_groups(self, saved_groups: Any) -> tuple[list[dict], dict[Any, Parameter]]:
        """The groups as saved, and which parameter each saved number stands for."""
        saved_groups = deepcopy(saved_groups)
        if len(saved_groups) != len(self.param_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved_groups)} instead of {len(self.param_groups)}"
            )
        groups = []
        owner: dict[Any, Parameter] = {}
        for i, (group, saved) in enumerate(zip(self.param_groups, saved_groups)):
            optional = {
                name: group[name] for name in precision.Options.__annotations__ if name in group
            }
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
            owner.update(zip(saved["params"], group["params"]))
            loaded = {**optional, **saved, "params": group["params"]}
            if "param_names" in group:
                loaded.setdefault("param_names", group["param_names"])
            self._check_all(loaded)
            groups.append(loaded)
        return groups, owner

    def _loaded_state(self, number: Any, parameter: Parameter, entries: dict) -> dict[str, Any]:
        """Copies of one parameter's saved state, checked against what this optimizer keeps."""
        entries = {name: value for name, value in entries.items() if value is not None}
        if not entries:
            return {}
        missing = {*self._numbers, *self._always} - entries.keys()
        unknown = entries.keys() - {
            *(*self._numbers, *self._always, *self._sometimes),
            *("step", "master"),  # with stochastic rounding and with master weights
        }
        if missing or unknown:
            wrong = f"no {sorted(missing)}" if missing else f"{sorted(unknown)}"
            raise ValueError(
                f"loaded state of parameter {number} has {wrong}: was it saved by another optimizer "
                f"than {type(self).__name__}?"
            )
        loaded: dict[str, Any] = {}
        for name, value in entries.items():
            what = f"loaded state {name!r} of parameter {number}"
            if name in self._numbers or name == "step":
                loaded[name] = float(value)
                if name == "step":
                    if not (loaded[name] >= 0 and loaded[name].is_integer()):
                        raise ValueError(f"{what} must be a count of updates, but got {value}")
                    loaded[name] = int(value)
                continue
            array = buffers.as_host(value, what)
            shape = self._state_shape(name, parameter)
            if array.shape != shape:
                raise ValueError(
                    f"{what} has shape {array.shape}, but the parameter has {parameter.shape}"
                    + ("" if shape == parameter.shape else f", which makes it {shape}")
                )
            loaded[name] = buffers.copy_beside(array, parameter._view)
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
        return {
            **self.__dict__,
            "state": state,
            "_grad_norm": self.grad_norm,
            "_stream": None,
            "_plans": [],
            "_hooks": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.state = State(self._state_on(lambda parameter: parameter.device))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])


def _step_arguments(
    closure: Callable[[], Any] | None = None, *, max_norm: float | None = None
) -> tuple[Callable[[], Any] | None, float | None]:
    """The arguments of `step` however they are given."""
    return closure, max_norm
