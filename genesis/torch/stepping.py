"""The step of torch's optimizers, done by genesis."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from .. import checks, kernels
from ..commit import commit
from ..hyper import Hyper
from ..optim import measured, options
from .exchange import with_tensors
from .plan import Formula, Plan, unshared
from .tensors import TYPES

logger = logging.getLogger("genesis")

ATTEMPTS = 10
"""How often a step makes its plan if another thread changes what it is made for meanwhile."""


class Paths(NamedTuple):
    """How many parameters the last step updated, and which way.

    Attributes:
        genesis: in launches of genesis.
        torch: by torch's own step.
        without_gradient: not at all, as they had no gradient.
        reasons: why torch's own step, with how many parameters there are for each reason.
    """

    genesis: int = 0
    torch: int = 0
    without_gradient: int = 0
    reasons: dict[str, int] = {}  # noqa: RUF012, an empty default that nobody edits


class FusedStep:
    """What makes a torch optimizer step by genesis: a class that comes before torch's own.

    Args:
        params, args, given: as for the torch optimizer of this name.
        strict: let a step that would leave parameters to torch's own raise RuntimeError instead, before
            anything is written. Default: False.
        master_weights, state_dtype, stochastic_rounding, ema_decay, skip_nonfinite, measure_updates: see
            `genesis.optim.options.Options`; `state_dtype` may be a `torch.dtype`. Any group may have
            its own. With one of them nothing is left to torch's own step, which knows none. Default:
            not there.
        cautious, cautious_weight_decay: of `Adam`, `AdamW` and `NAdam`, likewise; see "Caution" in the
            guide to choosing an optimizer.

    Attributes:
        strict: see above; it may be changed at any time.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    defaults: dict[str, Any]

    _further: ClassVar[Mapping[str, Hyper]] = options.UNDER_TORCH
    """The declarations of what groups may have that torch's optimizers do not know."""
    step_skipped = False
    """Whether the last step did nothing, since a gradient was not finite: see `skip_nonfinite`."""
    skipped_steps = 0
    """How many steps have been left out by `skip_nonfinite`; not kept in state dicts."""

    _torch_step: ClassVar[Any] = None
    """Torch's own step, without its hooks: they are run by the one that calls it."""

    def __init_subclass__(cls, **given: Any):
        super().__init_subclass__(**given)
        base = next((b for b in cls.__mro__ if vars(torch.optim).get(b.__name__) is b), None)
        if base is None or base is torch.optim.Optimizer or "_torch_step" in cls.__dict__:
            return
        cls._torch_step = staticmethod(_unhooked(base.step))  # type: ignore[attr-defined]
        if "__init__" not in cls.__dict__:
            signature = inspect.signature(base)
            defaults = {name: declared.default for name, declared in cls._further.items()}
            further = [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
                for name, default in {"strict": False, **defaults}.items()
            ]
            cls.__signature__ = signature.replace(  # type: ignore[attr-defined]
                parameters=[*signature.parameters.values(), *further]
            )

    def __init__(self, params: Any, *args: Any, strict: bool = False, **given: Any):
        self._begin(strict)
        self._take_options(given)
        super().__init__(params, *args, **given)  # type: ignore[call-arg]
        self._convert_state()

    def _convert_state(self) -> None:
        """Give state that torch's constructor has begun the type that the options ask for."""

    def _take_options(self, given: dict[str, Any]) -> None:
        """Take out of a constructor's arguments what torch's optimizers do not know."""
        self._options = {name: given.pop(name) for name in self._further if name in given}
        self._check_options(self._options)

    def _check_options(self, settings: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is impossible; a type is known by its name."""
        kind = settings.get("state_dtype")
        if isinstance(kind, torch.dtype):
            settings["state_dtype"] = TYPES.get(kind, str(kind))
        for name, declared in self._further.items():
            if name in settings:
                declared.check(name, settings[name])

    def _begin(self, strict: bool) -> None:
        self.strict = strict
        self._grad_norm: Any = None
        self._measuring: list[list[Any] | None] | None = None
        # A step takes the plan out, so that no other thread has it too, and puts it back in the end.
        self._plans: list[Plan] = []
        self._paths = Paths()
        self._told: set[str] = set()
        self._loading: dict[str, Any] | None = None
        # Whatever is loaded, parameters go on being updated where they were.
        self._in_backward: Any = self.__dict__.get("_in_backward")
        self._first = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.defaults.update(self._options)  # torch's constructor has made others, and adds groups
        if isinstance(param_group, dict):
            self._check_options(param_group)
        super().add_param_group(param_group)  # type: ignore[misc]
        if self._in_backward is not None:
            self._in_backward.attach()

    add_param_group.__doc__ = torch.optim.Optimizer.add_param_group.__doc__

    def _unshare(self) -> None:
        """Give each parameter numbers of its own in the state: others than this step are to see it."""
        self._plans.clear()
        seen: set[int] = set()
        for group in self.param_groups:
            entries = [self.state[param] for param in group["params"] if param in self.state]
            unshared(entries, self._formula(group).every_number, seen)

    def state_dict(self) -> dict[str, Any]:
        self._unshare()
        return super().state_dict()  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state dict, of this class or torch's, whose buffers may be arrays of NumPy.

        As torch's, but state buffers of groups with options keep the type in which they were saved.
        Torch makes the parameter's type of all of them, and an average or a master would be lost.
        """

        def note(optimizer: Any, state_dict: dict[str, Any]) -> None:
            self._loading = state_dict

        numbers: set[str] = set()
        if self._torch_step is None:  # torch's own classes make tensors of numbers themselves
            numbers = {
                name for group in self.param_groups for name in self._formula(group).every_number
            }
        # The last hook sees what the others have made of it, and torch loads just that.
        handle = self.register_load_state_dict_pre_hook(note)  # type: ignore[attr-defined]
        try:
            super().load_state_dict(with_tensors(state_dict, numbers))  # type: ignore[misc]
        finally:
            handle.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "strict": self.strict}  # type: ignore[misc]

    def __setstate__(self, state: dict[str, Any]) -> None:
        strict = state.get("strict", self.__dict__.get("strict", False))
        loading = self.__dict__.get("_loading")
        self._begin(strict)
        super().__setstate__(state)  # type: ignore[misc]
        self._options = {
            name: self.defaults[name] for name in self._further if name in self.defaults
        }
        for group in self.param_groups:
            for name, value in self._options.items():
                group.setdefault(name, value)
        if loading is not None:
            self._keep_types(loading)
        self._unshare()

    def _keep_types(self, loading: dict[str, Any]) -> None:
        """Take state buffers from a state dict in their own types, which torch has converted."""
        for group, saved in zip(self.param_groups, loading["param_groups"]):
            for param, number in zip(group["params"], saved["params"]):
                entries = loading["state"].get(number, {})
                if not any(name in entries for name in options.BUFFERS) and not asked(group):
                    continue
                for name, value in entries.items():
                    own = self.state[param].get(name)
                    if (
                        isinstance(value, torch.Tensor)
                        and isinstance(own, torch.Tensor)
                        and value.dtype != own.dtype
                    ):
                        self.state[param][name] = value.detach().to(own.device, copy=True)

    def _formula(self, group: dict[str, Any]) -> Formula:
        """What is done with the parameters of a group."""
        raise NotImplementedError

    @property
    def fast(self) -> Paths:
        """How many parameters the last step updated by genesis, how many by torch, and why."""
        return self._paths if self._in_backward is None else self._in_backward.paths

    @property
    def in_backward(self) -> Any:
        """What updates parameters in the backward pass, see `step_in_backward`; None: `step()` does.

        Its `remove()` ends that.
        """
        return self._in_backward

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients at the last `step(max_norm=...)`, before clipping, else None.

        On a GPU, where `step` itself waits for nothing, asking for it waits for the step.
        """
        if callable(self._grad_norm):
            self._grad_norm = self._grad_norm()
        return self._grad_norm

    @property
    def update_norm(self) -> float | None:
        """The norm of the last step's change, see `genesis.optim.SGD.update_norm`."""
        changes = self._changes()
        return None if changes is None else measured.norm(changes)

    @property
    def update_ratios(self) -> list[float | None] | None:
        """For each group this over its parameters' norm, see `genesis.optim.SGD.update_ratios`."""
        changes = self._changes()
        return None if changes is None else measured.ratios(changes)

    def _changes(self) -> measured.Changes | None:
        return None if self._measuring is None else measured.of_launches(self._measuring)

    def step(self, closure: Callable | None = None, *, max_norm: float | None = None) -> Any:
        """Update the parameters that have gradients.

        Args:
            closure: computes gradients anew and returns the loss. Default: None.
            max_norm: the norm that all gradients together may have at most. They are clipped in the
                update itself, and stay as they are. Default: None, any.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: `strict` is set, or `max_norm` given, and a parameter cannot be updated by
                genesis; or no torch optimizer could do it either.
        """
        if self._in_backward is not None:
            raise RuntimeError(
                f"{type(self).__name__}.step: parameters are updated in backward(), by "
                "step_in_backward: leave out step(), or end that with optimizer.in_backward.remove()"
            )
        if torch.compiler.is_compiling() and self._torch_step is not None:
            if any(map(asked, self.param_groups)):
                raise RuntimeError(
                    f"{type(self).__name__}.step cannot be compiled with {', '.join(self._further)}, "
                    "which torch's own step does not know: leave it out of torch.compile"
                )
            if self._plans:
                self._unshare()
            return type(self)._torch_step(self, closure)
        loss = None
        self.step_skipped = False
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # How a `GradScaler` asks optimizers that unscale gradients in their own step.
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is None or not found_inf.item():
            with torch.no_grad():
                self._update(1.0 if scale is None else 1.0 / scale.item(), max_norm)
        return loss

    def _update(self, factor: float, max_norm: float | None) -> None:
        if max_norm is not None:
            max_norm = checks.limit("max_norm", max_norm)
        plan = self._planned()
        # All that can fail comes first: a bad number in the last group leaves the first untouched.
        self._check_left(plan, max_norm)
        skips = options.skips(self.param_groups)
        looks = skips or max_norm is not None
        plan.set_scalars(1.0 if looks else factor)
        if looks:
            launches = [bucket.launch for bucket in plan.buckets]
            scale = None if factor == 1 and not skips else factor
            self._grad_norm, finite = kernels.clip(launches, max_norm, scale)
            if skips and not finite:
                plan.release()
                self._plans.append(plan)
                found = plan.measuring()
                self._measuring = found and [None if each is None else [] for each in found]
                self.step_skipped = True
                self.skipped_steps += 1
                return
        if plan.reasons:
            self._step_of_torch(plan, factor)
        if not plan.adopt(self.state):
            raise RuntimeError(
                f"{type(self).__name__}: the state was changed by another thread while a step was "
                "being prepared: nothing has been updated but what torch updates by itself"
            )
        # Here it happens, as one instruction of the interpreter.
        commit(plan.actions())
        self._measuring = plan.measuring()
        plan.release()
        counts = sum(len(bucket.rows) for bucket in plan.buckets), sum(plan.reasons.values())
        self._paths = Paths(*counts, plan.without, plan.reasons)
        self._plans.append(plan)

    def swap_ema(self) -> None:
        """Let parameters show their averages, for an evaluation; the second call puts them back.

        Needs `ema_decay`. What the parameters were is kept in the state under "trained", exactly, and
        counts in checkpoints too; the averages stay in "ema". Until the second call no step is
        possible. Parameters without an average, which have had no step yet, stay as they are.

        Raises:
            RuntimeError: no parameter has an average.

        Example:
            >>> import torch, genesis.torch
            >>> p = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = genesis.torch.SGD([p], lr=1.0, ema_decay=0.5)
            >>> for _ in range(2):
            ...     p.grad = torch.tensor([1.0])
            ...     optimizer.step()
            >>> optimizer.swap_ema()
            >>> p.data  # half of 0, after the first step, and half of -1
            tensor([-0.5000])
            >>> optimizer.swap_ema()
            >>> p.data
            tensor([-1.])
        """
        params = [param for group in self.param_groups for param in group["params"]]
        back = any("trained" in self.state.get(param, {}) for param in params)
        name = "trained" if back else "ema"
        actions: list[partial] = []
        for param in params:
            entries = self.state.get(param, {})
            if name not in entries:
                continue
            shown = param.detach()  # has the memory and the version of the parameter
            if back:
                actions.append(partial(entries.pop, name))
            else:
                actions.append(partial(entries.update, trained=shown.clone()))
            actions.append(partial(shown.copy_, entries[name]))
        if not actions:
            raise RuntimeError(
                "swap_ema() found no averages: construct the optimizer with ema_decay, for example "
                "ema_decay=0.999, and let it step first"
            )
        self._plans.clear()
        commit(actions)

    def _planned(self) -> Plan:
        """The plan for this step, the kept one if it fits. Nothing has changed so far."""
        formulas = [self._formula(group) for group in self.param_groups]
        try:
            plan = self._plans.pop()
        except IndexError:  # the first step, or one that another thread is in the middle of
            pass
        else:
            if plan.fits(self.param_groups, formulas, self.state, self._first):
                return plan
            self._plans.clear()
        return Plan(self.param_groups, formulas, self.state, self._first)

    def _check_left(self, plan: Plan, max_norm: float | None) -> None:
        """Refuse to leave parameters to torch's own step where that was not to be; else say it once."""
        if not plan.reasons:
            return
        name, left = type(self).__name__, sum(plan.reasons.values())
        why = ", ".join(f"{count} for: {reason}" for reason, count in plan.reasons.items())
        if self._torch_step is None:
            raise RuntimeError(f"{name} cannot update {left} parameters ({why})")
        if self.strict:
            raise RuntimeError(
                f"{name}(strict=True) would leave {left} parameters to torch's own step ({why})"
            )
        if any(params and asked(group) for group, params in zip(self.param_groups, plan.left)):
            raise RuntimeError(
                f"{name} would leave {left} parameters to torch's own step ({why}), which knows none of "
                f"{', '.join(self._further)}: put them into a group without these"
            )
        if max_norm is not None:
            raise RuntimeError(
                f"{name}.step(max_norm=...) clips in its own pass, but {left} parameters take torch's "
                f"step ({why}): clip before, with torch.nn.utils.clip_grad_norm_"
            )
        if not self._told.issuperset(plan.reasons):
            self._told.update(plan.reasons)
            logger.warning("%s leaves %d parameters to torch's own step (%s)", name, left, why)

    def _step_of_torch(self, plan: Plan, factor: float) -> None:
        """Let torch's own step, without its hooks, update what the plan leaves to it."""
        if factor != 1.0 or not math.isfinite(factor):
            for param in (param for params in plan.left for param in params):
                param.grad.mul_(factor)  # type: ignore[union-attr]
        # A number that parameters have in common would count once for each of them.
        of_torch = {id(param) for params in plan.left for param in params}
        for group, params in zip(self.param_groups, plan.left):
            names = self._formula(group).every_number
            others = [own for param, own in self.state.items() if id(param) not in of_torch]
            seen = {id(own[name]) for own in others for name in names if name in own}
            unshared([self.state[param] for param in params if param in self.state], names, seen)
        # An optimizer that shares the state, but has no other parameters, nor the scaler's numbers.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("found_inf", None)
        other.__dict__.pop("grad_scale", None)
        other.param_groups = [
            {**group, "params": params} for group, params in zip(self.param_groups, plan.left)
        ]
        type(self)._torch_step(other)


def asked(group: dict[str, Any]) -> bool:
    """Whether a group asks for something that torch's own step does not know."""
    more = "cautious", "cautious_weight_decay", "skip_nonfinite"
    return any(options.of(group)) or any(map(group.get, more))


def _unhooked(step: Callable) -> Callable:
    """A step without the wrapper by which torch runs hooks around it."""
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step
