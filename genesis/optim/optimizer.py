"""What all optimizers share: groups, state, the step, and snapshots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

from .. import buffers, kernels
from ..commit import commit
from ..nn.utils.clip_grad import check_max_norm, norm_and_finite
from ..parameter import Parameter
from ..sparse import SparseGrad
from . import checks, hooks, precision
from .plan import ChangedMeanwhileError, Plan, Rule, StepPlan
from .state import State

if TYPE_CHECKING:
    from typing_extensions import Unpack


ATTEMPTS = 10
"""How often a step makes its plan if another thread changes what it is made for meanwhile."""

_set_gradient = vars(Parameter)["_grad_view"].__set__


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
        param_groups: a list of dicts, one a group: "params" and every hyper-parameter. All of it may be
            edited between steps, and the next step does what it then says.
        state: a mapping from each parameter to a mapping of its state buffers and the int "step".
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
    """The numbers that state shows. Without "step" among them, `_scalars` cannot go by it."""

    def __init__(
        self, params: Iterable, defaults: dict[str, Any], **options: Unpack[precision.Options]
    ):
        precision.check_names(self, options)
        self.defaults = {**defaults, **options}
        self._state = State()
        self.param_groups: list[dict[str, Any]] = []
        self._grad_norm: float | Callable[[], float] | None = None
        self.step_skipped = False
        self._step_count = 0
        self._stream: Any = None
        # The plan of the last step. A step takes it out, so that no other thread has it too, and puts
        # it back when it is done: whatever ends the step before that, the next one makes its own.
        self._plans: list[StepPlan] = []
        self._hooks: hooks.Hooks | None = None
        self._check_all(self.defaults)
        groups: list[dict[str, Any]] = []
        for group in checks.groups(params):
            groups.append(self._new_group(group, groups))
        checks.parameters([group["params"] for group in groups])
        self.param_groups = groups

    def _check_all(self, group: dict[str, Any]) -> None:
        self._check(group)
        precision.check(group)

    def _check(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if the hyper-parameters in `group` are impossible."""
        raise NotImplementedError(f"{type(self).__name__} must define _check")

    def _check_lr(self, group: dict[str, Any]) -> None:
        """As `_check`, where nothing but "lr" is new since then, as after a scheduler's step."""
        checks.lr(group)

    def _check_gradient(self, group: dict[str, Any], parameter: Parameter) -> None:
        """Raise TypeError if a group's rule does not suit the kind of gradient a parameter has."""
        if isinstance(parameter.grad, SparseGrad):
            raise TypeError(
                f"{type(self).__name__} does not support sparse gradients with the settings of this "
                "group: use SparseAdam, or assign the dense gradient, "
                "grad.to_dense(len(parameter))"
            )

    def _rule(self, group: dict[str, Any]) -> Rule:
        """The rule that a group asks for, whatever its "lr", and the names of the rule's buffers."""
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
        self, group: dict[str, Any], before: dict[str, Any], after: dict[str, Any], first: bool
    ) -> tuple[float, ...]:
        """The rule's scalars for the update that takes state's numbers from `before` to `after`.

        `first` says that a buffer of the parameter is new.
        """
        return self._scalars(group, after)

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

    # ---- the step ----

    @hooks.around
    def step(
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None
    ) -> Any:
        """Update every parameter that has a gradient.

        The step looks at every array that it is to use, and either does all that it has to do or
        raises and has done nothing, also if a signal handler raises (Ctrl-C).

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
            TypeError, ValueError: `max_norm` or a number in a group is impossible; a parameter, a
                gradient or a state buffer does not fit the others any more, cannot be written, or
                shares memory with what the step writes. Nothing has been written.
        """
        return self._step(closure, max_norm)

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
        if not hooks.concern(self):
            self._step(None, max_norm, inverse_scale)
        elif norm_and_finite(self._gradients(), inverse_scale)[1]:

            def step(_: Optimizer, *, max_norm: float | None = None) -> Any:
                return self._step(None, max_norm, inverse_scale)

            hooks.call(step, (self,), {} if max_norm is None else {"max_norm": max_norm})
        else:
            self.step_skipped = True
        return None if self.step_skipped else self

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        max_norm: float | None = None,
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
        step = self._planned()
        for plan in step.plans:
            settings = plan.settings  # what was checked, whoever edits the group meanwhile
            scale = -1.0 if settings["maximize"] else 1.0
            for bucket in plan.buckets:
                before, after = bucket.numbers, bucket.after
                after.update(self._next(settings, before))
                hyper = self._scalars_between(settings, before, after, bucket.first)
                bucket.launch.set_scalars(scale, hyper, after["step"])
        if max_norm is not None or inverse_scale is not None:
            launches = [bucket.launch for plan in step.plans for bucket in plan.buckets]
            self._grad_norm, finite = kernels.clip(launches, max_norm, inverse_scale)
            if inverse_scale is not None and not finite:
                for plan in step.plans:
                    plan.release()
                self.step_skipped, self._plans = True, [step]
                return self if closure is None else loss
        for plan in step.indirect:
            plan.gather()
        # Here it happens, as one instruction of the interpreter.
        commit(step.actions())
        self._step_count += 1
        for plan in step.indirect:
            plan.release()
        self._plans.append(step)
        return self if closure is None else loss

    def _planned(self) -> StepPlan:
        """The plan for the next step, the kept one if it fits. Nothing has changed so far."""
        kept = None
        try:
            kept = self._plans.pop()
            if kept.fits(self.param_groups, self._state):
                return kept
        except IndexError:  # the first step, or one that another thread is in the middle of
            pass
        if kept is not None:
            self._plans.clear()
            for plan in kept.plans:
                plan.release()
        attempts = ATTEMPTS
        while True:
            plans: list[Plan] = []
            first = 0
            for i, group in enumerate(self.param_groups):
                plans.append(self._plan(i, group, first, kept))
                first += len(plans[-1].parameters)
            if kept is not None and plans == kept.plans:
                return kept
            try:
                return StepPlan(plans, kept)
            except ChangedMeanwhileError:
                kept = None
                attempts -= 1
                if not attempts:
                    raise

    def _plan(self, i: int, group: dict[str, Any], first: int, kept: StepPlan | None) -> Plan:
        """The plan of group `i`, the kept one if it still fits.

        `first` is the number of its first parameter among all of them.
        """
        plan = kept.plans[i] if kept is not None and i < len(kept.plans) else None
        if plan is not None and plan.first != first:
            plan = None
        settings = None if plan is None else plan.settings
        if settings is None or not checks.same(settings, group):
            self._check_group(i, group)
            settings = checks.snapshot(group)
            rule, types = self._rule(settings), precision.of(settings)
            if plan is not None and (plan.sparse or (rule, types) != (plan.rule, plan.types)):
                plan = None
        parameters = group["params"]
        if type(parameters) is not list:
            parameters = list(parameters)
        if plan is None or not kept.still_fits(plan, parameters, self._state):  # type: ignore[union-attr]
            plan = self._new_plan(settings, parameters, first)
        plan.settings, plan.check_lr = settings, self._check_lr
        return plan

    def _new_plan(self, group: dict[str, Any], parameters: list[Parameter], first: int) -> Plan:
        try:
            gradients = [parameter._grad_view for parameter in parameters]
        except AttributeError:
            checks.members(parameters)  # says what is no parameter
            raise
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                self._check_gradient(group, parameter)
        initial = self._initial(group)
        scalars = self._scalars_between(group, initial, self._next(group, initial), True)
        types = precision.of(group)
        # Random bits follow from the number of the update, so that one must be kept.
        kept = self._numbers or (("step",) if types.stochastic_rounding else ())
        return Plan(
            parameters,
            gradients,
            self._rule(group),
            self._state,
            initial,
            kept,
            len(scalars),
            self._stream,
            types,
            first,
        )

    def _check_group(self, i: int, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if a group cannot be stepped with."""
        try:
            self._check_all(group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (in param group {i})") from None

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last `step(max_norm=...)`, before clipping, else None.

        On a GPU, where `step` itself waits for nothing, asking for it waits for the step.
        """
        if callable(self._grad_norm):
            self._grad_norm = self._grad_norm()
        return self._grad_norm

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
        state = State(self._state_on(lambda parameter: device))
        become = [action for p, other in moved.items() for action in p.becoming(other)]
        commit([*become, partial(setattr, self, "_state", state)])
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
        kept = None
        with suppress(IndexError):
            kept = self._plans.pop()
        for i, group in enumerate(self.param_groups):
            if kept is not None and self._zeroed(i, group["params"], kept):
                continue
            for parameter in group["params"]:
                if isinstance(parameter.grad, SparseGrad):
                    parameter.grad = parameter.grad.emptied()
                elif parameter.grad is not None:
                    gradient = parameter.grad
                    zeroed = buffers.zeroed(gradient)
                    if zeroed is not gradient:
                        parameter.grad = zeroed
        if kept is not None:
            self._plans.append(kept)

    def _zeroed(self, i: int, parameters: list[Parameter], kept: StepPlan) -> bool:
        """Fill the gradients of a group with zeros in one pass, if the last step's plan fits them."""
        if i >= len(kept.plans) or type(parameters) is not list:
            return False
        plan = kept.plans[i]
        try:
            zeroing = plan.zeroing() if kept.still_fits(plan, parameters, self._state) else None
        except ValueError:  # a gradient that no step would take can be zeroed all the same
            zeroing = None
        if zeroing is not None:
            commit(zeroing)
        plan.release()
        return zeroing is not None

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
        group = self._new_group(param_group, self.param_groups)
        everyone = [other["params"] for other in self.param_groups]
        checks.parameters([*everyone, group["params"]])
        self.param_groups.append(group)

    def _new_group(self, param_group: Any, others: list[dict[str, Any]]) -> dict[str, Any]:
        """A group with all its hyper-parameters, checked; not yet that it has parameters of its own."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group).__name__}")
        if "params" not in param_group:
            raise ValueError(f"param_group must have 'params', but has {sorted(param_group)}")
        parameters, names = checks.members(param_group["params"])
        group = {**self.defaults, **param_group, "params": parameters}
        if names is not None:
            group["param_names"] = names
        if others and ("param_names" in others[0]) != ("param_names" in group):
            raise ValueError(
                "all optimizer param groups should be with/without names. cannot add param "
                f"group {'without' if names is None else 'with'} names to the optimizer"
            )
        self._check_all(group)
        return group

    def _gradients(self) -> list[Any]:
        return [p.grad for p in self._parameters() if p.grad is not None]

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
        loaded = {"param_groups": groups, "_state": State(state)}
        commit([partial(setattr, self, name, value) for name, value in loaded.items()])
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
            "_state": state,
            "_grad_norm": self.grad_norm,
            "_stream": None,
            "_plans": [],
            "_hooks": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state = State(self._state_on(lambda parameter: parameter.device))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])
