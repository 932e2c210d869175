"""Optimizers whose update of an element is a formula: how their steps are planned and launched."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import numpy as np

from .. import checks, hyper, kernels, packing
from ..commit import commit
from ..formulas import OfSettings, Recipe, Sums
from ..hyper import REQUIRED
from ..parameter import Parameter
from ..sparse import RowsView
from . import ema, measured, members, options, spelling, torch_flags
from .gradient_optimizer import Ending, GradientOptimizer
from .gradients import Views
from .overall import OfAllTensors, agreed
from .plan import ChangedMeanwhileError, Plan, StepPlan
from .state import State

ATTEMPTS = 10
"""How often a step makes its plan if another thread changes what it is made for meanwhile."""


class RuleOptimizer(GradientOptimizer):
    """What `rule` and `chain` make classes of: an optimizer whose update is a formula.

    The arguments, a formula's hyper-parameters in their order, are described by each class.

    Attributes:
        reference: the formula for NumPy scalars, see `genesis.rule`.
    """

    _recipe: ClassVar[Recipe]
    _positional: ClassVar[tuple[str, ...]]
    _options = options.HYPERS
    _check_settings: ClassVar[OfSettings | None] = None
    _takes_sparse: ClassVar[OfSettings | bool] = False
    _takes_dense: ClassVar[bool] = True
    _flags: ClassVar[tuple[str, ...]] = ()
    """The arguments of `torch_flags` that the constructor takes."""
    _measuring: list[list[kernels.Launch] | None] | None = None
    """The launches of the last step that have noted how far parameters moved, see `StepPlan`."""

    def __init__(self, params: Iterable, *args: Any, maximize: bool = False, **given: Any):
        # The plan of the last step. A step takes it out, so that no other thread has it too, and puts
        # it back when it is done: whatever ends the step before that, the next one makes its own.
        self._plans: list[StepPlan] = []
        self._stream: Any = None
        flags = {name: given.pop(name) for name in self._flags if name in given}
        torch_flags.ignore(type(self).__name__, flags)
        defaults = self._bound(args, given)
        super().__init__(params, {**defaults, "maximize": maximize, **given})

    def _bound(self, args: tuple, given: dict[str, Any]) -> dict[str, Any]:
        """The hyper-parameters, taken out of the constructor's arguments."""
        title, declared = f"{type(self).__name__}.__init__()", self._recipe.hypers
        if len(args) > len(self._positional):
            raise TypeError(
                f"{title} takes at most {len(self._positional)} arguments after params by position "
                f"({', '.join(self._positional)}), but got {len(args)}"
            )
        found = dict(zip(self._positional, args))
        twice = sorted(found.keys() & given.keys())
        if twice:
            raise TypeError(f"{title} got multiple values for argument {twice[0]!r}")
        unknown = given.keys() - declared.keys() - self._options.keys()
        if unknown:
            known = (*declared, "maximize", *self._options, *self._flags)
            raise spelling.unexpected(title.removesuffix("()"), min(unknown), known)
        defaults = {
            name: found[name] if name in found else given.pop(name, hyper_.default)
            for name, hyper_ in declared.items()
        }
        missing = [repr(name) for name, value in defaults.items() if value is REQUIRED]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            raise TypeError(
                f"{title} missing {len(missing)} required argument{plural}: {', '.join(missing)}"
            )
        return defaults

    def _check(self, group: dict[str, Any]) -> None:
        if group.get("state_dtype") == packing.EIGHT_BITS:
            states = [name for name in self._recipe.states if name not in self._recipe.over]
            options.check_averages(type(self).__name__, states, self._recipe.averages)
        if self._check_settings is not None:
            self._check_settings(group)

    def _check_lr(self, group: dict[str, Any]) -> None:
        """As `_check_group`, where nothing but "lr" is new since then, as after a scheduler's step."""
        declared = self._hypers.get("lr")
        if declared is not None:
            declared.check("lr", group["lr"])
        if self._check_settings is not None and "lr" in self._check_settings.names:
            self._check_settings(group)

    def _check_gradient(self, group: dict[str, Any], view: np.ndarray) -> None:
        is_sparse = isinstance(view, RowsView)
        if not is_sparse and not self._takes_dense:
            raise TypeError(
                f"{type(self).__name__} does not support dense gradients, please consider Adam "
                "instead, or assign genesis.SparseGrad(indices, values)"
            )
        takes = self._takes_sparse
        if is_sparse and not (takes(group) if isinstance(takes, OfSettings) else takes):
            super()._check_gradient(group, view)
        if is_sparse and group.get("state_dtype") == packing.EIGHT_BITS:
            raise TypeError(
                f"{type(self).__name__} takes no SparseGrad with state_dtype='8bit', whose blocks do "
                "not end where rows do: set state_dtype='bfloat16' for this group"
            )
        if is_sparse and group.get("ema_decay") is not None:
            raise TypeError(
                f"{type(self).__name__} takes no SparseGrad with ema_decay, since averages of rows "
                "without gradient would stand still: keep them with "
                "genesis.optim.swa_utils.AveragedParameters"
            )
        if is_sparse and group.get("measure_updates"):
            raise TypeError(
                f"{type(self).__name__} takes no SparseGrad with measure_updates, since its update "
                "looks at a few rows of the parameter only: set measure_updates=False for this group"
            )

    # ---- the step ----

    def _apply(
        self,
        given: list[Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
        zeroes: bool = False,
    ) -> None:
        # All that can fail comes first: a bad number in the last group leaves the first untouched.
        step = self._planned(given, clip_value is not None, zeroes)
        if zeroes:
            step.check_erasable()
        step.set_scalars(clip_value)
        if factor != 1:
            for bucket in step.buckets:
                bucket.launch.multiply_gradients(factor)
        if max_norm is not None or inverse_scale is not None:
            launches = [bucket.launch for bucket in step.buckets]
            self._grad_norm, finite = kernels.clip(launches, max_norm, inverse_scale)
            if inverse_scale is not None and not finite:
                for plan in step.plans:
                    plan.release()
                self.step_skipped, self._plans = True, [step]
                if step.measuring is not None:
                    self._measuring = [None if each is None else [] for each in step.measuring]
                return
        for plan in step.indirect:
            plan.gather()
        # Here it happens, as one instruction of the interpreter.
        (ending or commit)(step.actions())
        self._step_count += 1
        self._measuring = step.measuring
        for plan in step.indirect:
            plan.release()
        self._plans.append(step)

    def _changes(self) -> measured.Changes | None:
        return None if self._measuring is None else measured.of_launches(self._measuring)

    def _planned(self, given: list[Views] | None, clips: bool, zeroes: bool) -> StepPlan:
        """The plan for the next step, the kept one if it fits. Nothing has changed so far."""
        kept = None
        try:
            kept = self._plans.pop()
            if kept.fits(self.param_groups, self._state, given, clips, zeroes):
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
            of_all = self._of_all(kept) if self._recipe.sums_over_all else None
            for i, group in enumerate(self.param_groups):
                views = None if given is None else given[i]
                plans.append(self._plan(i, group, first, kept, views, clips, zeroes, of_all))
                first += len(plans[-1].parameters)
            if kept is not None and plans == kept.plans:
                return kept
            if not any(plan.buckets for plan in plans) and first:
                self._say_no_gradients()
            try:
                return StepPlan(plans, kept, given)
            except ChangedMeanwhileError:
                kept = None
                attempts -= 1
                if not attempts:
                    raise

    def _of_all(self, kept: StepPlan | None) -> OfAllTensors:
        """Where plans find the numbers of all tensors: where those before had them, or the state has."""
        before = None
        edits = self._state._edits
        for plan in () if kept is None else kept.plans:
            if edits is plan.count and edits.value == plan.edits:
                before = before or plan.of_all
        own = {p: self._state[p] for p in self._parameters() if p in self._state}
        return OfAllTensors(own, self._stream, before)

    def _plan(
        self,
        i: int,
        group: dict[str, Any],
        first: int,
        kept: StepPlan | None,
        given: Views | None,
        clips: bool,
        zeroes: bool,
        of_all: OfAllTensors | None,
    ) -> Plan:
        """The plan of group `i`, the kept one if it still fits.

        `first` is the number of its first parameter among all of them.
        """
        plan = kept.plans[i] if kept is not None and i < len(kept.plans) else None
        if plan is not None and (plan.first, plan.clips, plan.zeroes) != (first, clips, zeroes):
            plan = None
        settings = None if plan is None else plan.settings
        if settings is None or not _same(settings, group):
            self._check_group(group, i)
            settings = {n: v if n == "params" else checks.plain(v) for n, v in group.items()}
            if plan is not None and (plan.sparse or not plan.suits(settings)):
                plan = None
        parameters = group["params"]
        if type(parameters) is not list:
            parameters = list(parameters)
        if plan is None or not kept.still_fits(plan, parameters, self._state, given):  # type: ignore[union-attr]
            plan = self._new_plan(settings, parameters, first, given, clips, zeroes, of_all)
        plan.settings = settings
        return plan

    def _new_plan(
        self,
        settings: dict[str, Any],
        parameters: list[Parameter],
        first: int,
        given: Views | None,
        clips: bool,
        zeroes: bool,
        of_all: OfAllTensors | None,
    ) -> Plan:
        members.check_parameters(parameters)
        gradients = [parameter._grad_view for parameter in parameters] if given is None else given
        for gradient in gradients:
            if gradient is not None:
                self._check_gradient(settings, gradient)
        return Plan(
            parameters,
            gradients,
            self._recipe,
            settings,
            self._state,
            self._numbers,
            self._stream,
            first,
            self._check_lr,
            clips,
            zeroes,
            of_all,
        )

    def _read(self, state_dict: dict[str, Any]) -> tuple[list[dict], State]:
        groups, state = super()._read(state_dict)
        agreed(state, [name for name, over in self._recipe.over.items() if over == "all"])
        return groups, state

    # ---- averages ----

    def swap_ema(self) -> None:
        """Let parameters show their averages, for an evaluation; the second call puts them back.

        Needs `ema_decay` (see `genesis.optim.options.Options`). What the parameters were is kept in the
        state under "trained", exactly, and counts in checkpoints too; the averages stay in "ema".
        Until the second call no step is possible. Parameters without an average, which have had no step
        yet, stay as they are.

        Raises:
            RuntimeError: no parameter has an average.
            TypeError, ValueError: an array does not fit its place or cannot be written. Nothing has
                been written.

        Example:
            >>> import numpy as np, genesis
            >>> x = np.array([1.0])
            >>> opt = genesis.optim.SGD([genesis.Parameter(x)], lr=1.0, ema_decay=0.5)
            >>> for _ in range(2):
            ...     _ = opt.step(grads=[np.array([1.0])])
            >>> opt.swap_ema()
            >>> x  # half of 0, after the first step, and half of -1
            array([-0.5])
            >>> opt.swap_ema()
            >>> x
            array([-1.])
        """
        commit(self._swapping_ema())

    def _swapping_ema(self) -> list[partial]:
        """The calls, for `commit`, that `swap_ema` makes."""
        everyone = [*zip(self._parameters(), members.labels(self.param_groups))]
        return ema.swap(everyone, self._state, self._stream)

    # ---- devices ----

    @property
    def stream(self) -> Any:
        """The CUDA stream on which steps are put, a `numba.cuda` stream; None: the default one."""
        return self._stream

    @stream.setter
    def stream(self, stream: Any) -> None:
        self._stream = stream
        self._plans = []

    def to(self, device: str) -> RuleOptimizer:
        super().to(device)
        self._plans = []
        return self

    to.__doc__ = GradientOptimizer.to.__doc__

    # ---- gradients ----

    def zero_grad(self, set_to_none: bool = True) -> None:
        if set_to_none:
            return super().zero_grad()
        kept = None
        with suppress(IndexError):
            kept = self._plans.pop()
        for i, group in enumerate(self.param_groups):
            if kept is None or not self._zeroed(i, group["params"], kept):
                self._fill_gradients(group["params"])
        if kept is not None:
            self._plans.append(kept)
        return None

    zero_grad.__doc__ = GradientOptimizer.zero_grad.__doc__

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

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stream": None, "_plans": [], "_measuring": None}

    # ---- the formula by itself ----

    @classmethod
    def reference(
        cls,
        param: Any,
        grad: Any,
        *state: Any,
        step: int = 1,
        first: bool | None = None,
        **given: Any,
    ) -> tuple[Any, ...]:
        """One update of one element by the formula itself, with the arithmetic of the kernels.

        What a CPU's kernel gives agrees with it bit for bit; what follows from sums over a tensor, which
        kernels compute in float64, agrees to rounding. Arrays are gone through element by element, in
        Python: this is for tests.

        Args:
            param, grad: the element of the parameter and of the gradient; float64 if the first is
                float64 (or Python's float), else float32.
            state: the elements of the state buffers, in the order of the formula. Those left out are
                what they begin with.
            step: the number of the update, from 1. Default: 1.
            first: whether a state buffer is new. Default: None, if no `state` is given.
            given: hyper-parameters, as for the constructor, and carried numbers as they were before
                the update.

        Returns:
            What becomes of the parameter and of each state buffer.

        Raises:
            TypeError, ValueError: an impossible hyper-parameter, or too many state buffers.
        """
        recipe = cls._recipe
        numbers = {name: given.pop(name, value) for name, value in recipe.carried.items()}
        group = {name: given.pop(name, h.default) for name, h in recipe.hypers.items()}
        if given or len(state) > len(recipe.states):
            wrong = sorted(given) if given else f"{len(state)} state buffers"
            raise TypeError(
                f"{cls.__name__}.reference: {wrong}, but the state is {list(recipe.states)} and the "
                f"hyper-parameters are {list(recipe.hypers)}"
            )
        for name, declared in recipe.hypers.items():
            if group[name] is REQUIRED:
                raise TypeError(f"{cls.__name__}.reference: {name!r} is required")
            declared.check(name, group[name])
            group[name] = checks.plain(group[name])
        kind: Any = np.float64 if np.asarray(param).dtype == np.float64 else np.float32
        group = hyper.at(recipe.hypers, group, hyper.scheduled(recipe.hypers, group), step - 1)
        named = recipe.named(group, numbers, step)
        begun = [recipe.initial(group)[name] for name in list(recipe.states)[len(state) :]]
        now = {"step": step, "first": not state if first is None else first}
        columns = np.broadcast_arrays(param, grad, *state, *begun)
        results = [np.empty(columns[0].shape, kind) for _ in range(1 + len(recipe.states))]
        sums = Sums(columns[0].size, kind)
        unknown = True
        while unknown:
            for place in np.ndindex(columns[0].shape):
                param, grad, *elements = (column[place] for column in columns)
                values = recipe.evaluated(kind, param, grad, elements, group, named, now, sums)
                for result, value in zip(results, values):
                    result[place] = value
            unknown = sums.learned()
        return tuple(
            result.flat[0] if name in recipe.over and result.size else result[()]
            for name, result in zip(("", *recipe.states), results)
        )


def _same(settings: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether a group is as it was when its settings were taken down."""
    try:
        return settings == group
    except (TypeError, ValueError):  # a user's own entries may be arrays, which have no one truth
        return False
