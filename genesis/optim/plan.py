"""How the parameters of a group are updated, kept from step to step.

A `Plan` sorts the parameters that have gradients into buckets of equal device, data types and step
count, one launch each, and takes down what it was made for: which parameters, which arrays, how these
lie in memory, which edits of the state it knows of. A step believes none of that. It compares it with
what it finds, in one compiled pass, and makes another plan where anything differs. `StepPlan` is the
plans of all groups, and that no two arrays among them share memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from operator import is_
from typing import Any

import numpy as np

from .. import buffers, checks, hyper, kernels, packing
from ..formulas import Recipe
from ..parameter import Parameter
from ..sparse import RowsView
from . import arrays, members, options
from .gradients import Views
from .overall import OfAllTensors
from .state import KeptNumbers, State


@lru_cache(maxsize=None)
def parameter_slots() -> tuple[int, ...]:
    """Where a `Parameter` has its array, its working copies and its gradient."""
    names = "_view", "_working", "_grad_view"
    return tuple(kernels.slot_offset(Parameter, name) for name in names)


class Bucket:
    """The parameters that one launch updates.

    Attributes:
        rows: their positions in the group.
        numbers: what their state holds besides buffers, the same for all: "step" and perhaps more.
        after: what it will hold when the next step is done.
        first: whether a buffer of theirs is new, so that the next update is its first.
        averages: whether an update takes them into an average, and `new_average` whether that begins.
        launch: how they are updated.
        scalars_of_all: what it gives for the numbers that all tensors have in common.
    """

    __slots__ = (
        "_count", "after", "averages", "first", "launch", "new_average", "numbers", "rows",
        "scalars_of_all",
    )  # fmt: skip

    def __init__(
        self,
        rows: list[int],
        numbers: dict[str, Any],
        first: bool,
        averages: bool,
        new_average: bool,
        launch: kernels.Launch,
    ):
        self.rows = rows
        self.averages, self.new_average = averages, new_average
        self.numbers = numbers
        self.after = dict(numbers)
        self.first = first
        self.launch = launch
        self.scalars_of_all: tuple[float, ...] = ()
        self._count = partial(numbers.update, self.after)

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that update the parameters, their buffers and numbers.

        Those of `launch.summing()` come before, of all buckets.
        """
        actions = [*self.launch.updating(), self._count]
        if self.first:
            actions.append(partial(setattr, self, "first", False))
        if self.new_average:
            actions.append(partial(setattr, self, "new_average", False))
        return actions

    @property
    def steady(self) -> bool:
        """Whether `actions` always gives the same calls."""
        return self.launch.steady and not self.first and not self.new_average


class Plan:
    """The buckets of one group and what they were made for.

    State that parameters lack is created here but not handed over: `created` waits for the step
    itself, so that whatever fails leaves the optimizer as it was.

    Args:
        parameters: the group's parameters.
        gradients: the view of the gradient of each, or None.
        recipe: what an update is made of.
        settings: the group, checked.
        state: the optimizer's state.
        numbers: the names of the numbers that state shows.
        stream: on a GPU the stream to work on, or None.
        first: the number of the first parameter among all of the optimizer's.
        check_lr: raises unless the learning rate of a group like it is valid.
        clips: whether an update clips the elements of gradients, to a value that `set_scalars` takes.
        zeroes: whether an update sets the gradients to zero.
        of_all: where the numbers of all tensors are; None, there are none.

    Attributes:
        called: what each parameter is called, or None.
        scheduled: the names of hyper-parameters that are functions of the step.
        arrays: what an update writes, and `whose` parameter and which of its buffers each of them is.

    Raises:
        TypeError, ValueError: an array of a parameter is not what it has to be for a step.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        gradients: list[Any],
        recipe: Recipe,
        settings: dict[str, Any],
        state: State,
        numbers: tuple[str, ...],
        stream: Any,
        first: int,
        check_lr: Callable[[dict[str, Any]], None],
        clips: bool,
        zeroes: bool,
        of_all: OfAllTensors | None,
    ):
        self.recipe, self.first, self.check_lr = recipe, first, check_lr
        self.clips, self.zeroes = clips, zeroes
        self.of_all: kernels.OfAll | None = None
        self.settings = settings
        self.scheduled = hyper.scheduled(recipe.hypers, settings)
        self.written = recipe.written_for(settings)
        self.options = options.of(settings)
        self.parameters, self._gradients = list(parameters), gradients
        self.called = members.names(settings, self.parameters)
        self.buckets: list[Bucket] = []
        self.created: dict[Parameter, dict[str, Any]] = {}
        self.numbers: dict[Parameter, Mapping[str, Any]] = {}
        self.arrays: list[np.ndarray] = []
        self.whose: list[tuple[str, str]] = []
        self.state, self.edits = state, state.edits
        self.count, self._initial = state._edits, recipe.initial(self._settings_at(0))
        # What is rounded by the number of the update, and functions of the step, need it to be kept.
        counts = self.options.stochastic_rounding or self.scheduled or self._packs()
        self._kept = numbers or (("step",) if counts else ())
        self.views = [p._view for p in parameters]
        self._workings = [p._working for p in parameters]
        self._outdated: list[Any] = []
        self._likes = [-1] * len(parameters)
        cells = np.zeros(len(parameters), np.int64)
        for key, rows in self._sorted().items():
            columns = list(zip(*(self._tensors[row] for row in rows)))
            if of_all is not None:
                device = buffers.device_of(columns[1][0])
                self.of_all = of_all.get(self.written, self._initial, device)
            launch = kernels.prepare(
                self.written.rule,
                columns,
                self.written.count,
                stream,
                copy=key[0],
                averages=self.options.averages,
                clips=clips,
                sums=self.written.sums,
                kept=np.array([self._numbers_kept[row] for row in rows]),
                of_all=self.of_all,
                measures=self.options.measures,
                zeroes=zeroes,
                keys=[first + row for row in rows] if self.options.stochastic_rounding else None,
                scales=list(zip(*(self._scales[row] for row in rows))),
            )
            cells[rows] = launch.cells()
            bucket = Bucket(
                rows, self._numbers[rows[0]], key[1], self.options.averages, key[2], launch
            )
            self.buckets.append(bucket)
            self._share(bucket)
        self.writable_gradients = all(
            gradient is None or gradient.flags.writeable for gradient in gradients
        )
        self.indirect = any(bucket.launch.indirect for bucket in self.buckets)
        self.sparse = any(isinstance(gradient, RowsView) for gradient in gradients)
        self._elsewhere = any(buffers.device_of(view) != "cpu" for view in self.views)
        self._watch = kernels.watch(
            self.parameters,
            parameter_slots(),
            (self.views, self._workings),
            gradients,
            self._likes,
            cells,
            self.arrays,
        )
        self.look, self.held = self._watch.compare, self._watch.held
        del self._tensors, self._scales, self._numbers, self._numbers_kept, self._gradients
        del self._block

    def _packs(self) -> bool:
        """Whether state is kept in 8 bits, or some was."""
        entries = [self.state.get(parameter) or {} for parameter in self.parameters]
        names = [name + packing.SCALE for name in self.recipe.averages]
        return self.options.packs or any(name in each for each in entries for name in names)

    def _share(self, bucket: Bucket) -> None:
        """Let the state of a bucket's parameters show the numbers that it counts, and those kept."""
        for place, row in enumerate(bucket.rows):
            shown: Mapping[str, Any] = bucket.numbers if self._kept else {}
            places: dict[str, tuple[Callable[[], Any], Any]] = {
                name: (bucket.launch.kept, (place, i))
                for i, name in enumerate(self.written.of_tensor)
            }
            places.update(self.of_all_shown())
            if places:
                shown = KeptNumbers(shown, places)
            if shown:
                self.numbers[self.parameters[row]] = shown

    def of_all_shown(self) -> dict[str, tuple[Callable[[], Any], Any]]:
        """For each number of all tensors what reads it."""
        if self.of_all is None:
            return {}
        return {name: (self.of_all.kept, i) for i, name in enumerate(self.written.of_all)}

    def share_with_others(
        self, places: Mapping[str, tuple[Callable[[], Any], Any]]
    ) -> dict[Parameter, Mapping[str, Any]]:
        """What parameters without a gradient show, which have the numbers of all tensors, too."""
        rows = {row for bucket in self.buckets for row in bucket.rows}
        found: dict[Parameter, Mapping[str, Any]] = {}
        for row, parameter in enumerate(self.parameters):
            entries = self.state.get(parameter)
            if row not in rows and entries and any(name in entries for name in places):
                shared = entries.shared
                numbers = {n: entries[n] for n in shared if n in entries and n not in places}
                found[parameter] = KeptNumbers(numbers, places)
        return found

    def _sorted(self) -> dict[tuple, list[int]]:
        """The rows that have gradients by what one launch must have in common."""
        self._tensors: dict[int, list[np.ndarray]] = {}
        self._scales: dict[int, list[np.ndarray]] = {}
        self._numbers: dict[int, dict[str, Any]] = {}
        self._numbers_kept: dict[int, list[float]] = {}
        found: dict[tuple, list[int]] = {}
        self._block = self._block_for_state()
        for row, gradient in enumerate(self._gradients):
            if gradient is None:
                continue
            parameter, view = self.parameters[row], self.views[row]
            what = members.label(self.first + row, self.called[row])
            arrays.writable(buffers.check(view, what), what)
            arrays.gradient(gradient, view, what)
            if self.zeroes:
                arrays.erasable(gradient, what)
            entries, numbers, begins, new_average = self._entries(parameter, view, what)
            named = {"": view}
            scales: dict[str, np.ndarray] = {}
            for name in self.written.states:
                beside = name + packing.SCALE
                if beside in entries or packing.is_packed(entries[name]):
                    named[name] = arrays.codes(entries[name], name, what, view)
                    scales[beside] = arrays.scales(entries.get(beside), beside, what, view)
                else:
                    named[name] = arrays.buffer(entries[name], name, what, view)
            if self.options.averages:
                named["ema"] = arrays.buffer(entries["ema"], "ema", what, view)
            copy: kernels.Copy = None
            working = self._workings[row]
            if "master" in entries:  # the rule updates the master; the parameter is a copy of it
                copy = "master"
                del named[""]
                master = arrays.buffer(entries["master"], "master", what, view)
                named = {"master": master, **named, "": view}
            elif packing.LOWER in entries:
                named[packing.LOWER] = arrays.lower(entries[packing.LOWER], what, view)
            elif working is not None and working.of is view:
                # One copy is brought up to date in the same pass, others when somebody looks.
                copy = "copy"
                *others, last = working.by_type.values()
                self._outdated += others
                named["copy"] = buffers.view(last.array)
            self._likes[row] = -2 if isinstance(gradient, RowsView) else len(self.arrays)
            for each in (named, scales):
                self.arrays += each.values()
                self.whose += [(what, name) for name in each]
            self._scales[row] = list(scales.values())
            self._tensors[row] = [gradient, *named.values()]
            self._numbers[row] = numbers
            self._numbers_kept[row] = [
                arrays.state_number(entries[name], name, what) for name in self.written.of_tensor
            ]
            types = [buffers.layout(array)[:2] for array in self._tensors[row]]
            alone = row if isinstance(gradient, RowsView) else None
            key = (copy, begins, new_average, alone, *numbers.values(), *types)
            found.setdefault(key, []).append(row)
        return found

    def _block_for_state(self) -> buffers.Block:
        """Memory for the buffers of all parameters that have a gradient, but no state so far."""
        sizes: list[int] = []
        for parameter, view, gradient in zip(self.parameters, self.views, self._gradients):
            if gradient is None or self.state.get(parameter):
                continue
            narrow, kept = view.itemsize == 2, self.options.state_dtype
            has_master = self.options.master_weights and narrow
            splits = self.options.splits and narrow
            own = view.size * (4 if has_master or splits else view.itemsize)
            sizes += [own] * (has_master + self.options.averages) + [2 * view.size] * splits
            if self.options.packs:
                sizes += [view.size, 4 * packing.blocks(view.size)] * len(self.written.states)
            else:
                sizes += [view.size * kept.itemsize if kept else own] * len(self.written.states)
        return buffers.Block(sizes)

    def _entries(
        self, parameter: Parameter, view: np.ndarray, what: str
    ) -> tuple[dict[str, Any], dict[str, Any], bool, bool]:
        """The parameter's state, completed if need be, and the numbers in it.

        Also whether a buffer is new, and whether an average is.
        """
        entries = dict(self.state.get(parameter) or {})
        if "trained" in entries:
            raise RuntimeError(options.SHOWS_AVERAGE.format(what=what))
        own = (*self._kept, *self.written.of_tensor, *self.written.states)
        missing = [name for name in own if name not in entries]
        own_master = not {"master", packing.LOWER}.isdisjoint(entries)
        if self.options.master_weights and view.itemsize == 2 and not own_master:
            wide = buffers.host_copy(buffers.given(view)).astype(np.float32)
            entries["master"] = buffers.copy_beside(wide, view, self._block)
            missing.append("master")
        if self.options.splits and view.itemsize == 2 and not own_master:
            options.check_splitting(view, what)
            entries[packing.LOWER] = buffers.full(0, view, np.dtype(np.uint16), self._block)
            missing.append(packing.LOWER)
        like = buffers.view(entries["master"]) if "master" in entries else view
        wide_type = np.dtype(np.float32) if packing.LOWER in entries else None
        begins = False
        for name in missing:
            if name in self._kept:
                entries[name] = self._initial[name]
            elif name in self.written.of_tensor:
                begins = True
                entries[name] = self._initial[name]
            elif name not in options.BUFFERS:
                begins = True
                value = self._initial.get(name, 0.0)
                entries.pop(name + packing.SCALE, None)
                if self.options.packs:
                    options.check_packing(view, what)
                    kind, zeros = self.recipe.averages[name], self._block.zeros
                    codes, scales = packing.full(value, view.shape, kind, zeros)
                    entries[name], entries[name + packing.SCALE] = codes, scales
                else:
                    kept = self.options.state_dtype or wide_type
                    entries[name] = buffers.full(value, like, kept, self._block)
        new_average = self.options.averages and "ema" not in entries
        if new_average:
            options.check_average(4 if wide_type else like.itemsize, what)
            entries["ema"] = buffers.full(0.0, like, wide_type, self._block)
            missing.append("ema")
        if missing or (self.written.of_all and not entries):
            self.created[parameter] = entries
        numbers = {name: arrays.state_number(entries[name], name, what) for name in self._kept}
        return entries, numbers or {"step": 0}, begins, new_average

    def has_settings_of(self, group: dict[str, Any]) -> bool:
        """Whether a group is as it was when it was checked, but perhaps for another learning rate.

        That is what schedulers change, often at each step.
        """
        try:
            if self.settings == group:
                return True
            rate = group["lr"]
            if {**self.settings, "lr": rate} != group:
                return False
            self.check_lr(group)
        except (KeyError, TypeError, ValueError):  # a user's own entries may not compare, either
            return False
        if "lr" in self.recipe.switches or self.scheduled or callable(rate):
            return False
        self.settings["lr"] = checks.plain(rate)
        return True

    def suits(self, settings: dict[str, Any]) -> bool:
        """Whether settings, checked, ask for what the buckets were made for, with whatever numbers."""
        return (
            self.written is self.recipe.written_for(settings)
            and self.options == options.of(settings)
            and self.scheduled == hyper.scheduled(self.recipe.hypers, settings)
        )

    def _settings_at(self, step: int) -> dict[str, Any]:
        """The settings after so many updates."""
        return hyper.at(self.recipe.hypers, self.settings, self.scheduled, step)

    def set_scalars(self, clip_value: float | None = None) -> None:
        """Compute the numbers of the next update of each bucket, and hand them to its kernel.

        Those of a plan that `clips` end with the value to which it does.
        """
        settings = self.settings  # what was checked, whoever edits the group meanwhile
        recipe, scalars = self.recipe, self.written.scalars
        scale = -1.0 if settings["maximize"] else 1.0
        for bucket in self.buckets:
            before, after = bucket.numbers, bucket.after
            step = after["step"] = before["step"] + 1
            if self.scheduled:
                settings = self._settings_at(step - 1)
            named = None
            if recipe.has_numbers:
                named = recipe.named(settings, before, step)
                after.update(recipe.next_carried(named))
            values = scalars(settings, step, named, bucket.first)
            if self.written.of_all:
                bucket.scalars_of_all = self.written.scalars_of_all(settings, step, named, False)
            if bucket.averages:
                values = (*values, *options.weights(settings, bucket.new_average))
            if clip_value is not None:
                values = (*values, clip_value)
            bucket.launch.set_scalars(scale, values, step)

    @property
    def bounds(self) -> np.ndarray:
        """For each array its first byte and one past the last."""
        return self._watch.bounds

    def release(self) -> None:
        """Hold no gradients any more: they live as long as the parameters have them."""
        self._watch.release()
        if self.indirect:
            for bucket in self.buckets:
                bucket.launch.release_gradients()

    def look_unguarded(self, parameters: int, given: int) -> int:
        """As `look`, once it is known that no gradient shares memory with an array."""
        return self._watch.compare_unguarded(parameters, given)

    def guard(self, regions: Any) -> None:
        """Let `compare` find gradients that may share memory with what the step writes."""
        self._watch.guard(regions)

    @property
    def places(self) -> np.ndarray:
        """Where each gradient lay when it was last looked at; -1 for what is unknown."""
        return self._watch.places

    def take(self) -> None:
        """Use the gradients that `look` has found, where the launches cannot see for themselves."""
        if self.indirect or self._elsewhere:
            for bucket in self.buckets:
                bucket.launch.take_gradients([self.held[row] for row in bucket.rows])

    def gather(self) -> None:
        """Make ready what the update reads from copies of tensors."""
        for bucket in self.buckets:
            bucket.launch.gather()

    def actions(self) -> Iterable[partial]:
        """The calls, for `commit`, that do the step of this group."""
        for bucket in self.buckets:
            yield from bucket.actions()
        for copy in self._outdated:
            yield partial(setattr, copy, "entry", 0)
        yield self._watch.release

    def zeroing(self) -> list[partial] | None:
        """The calls, for `commit`, that fill the gradients with zeros; None if that is not so easy."""
        if not self.writable_gradients:
            return None
        zeroing: list[partial] = []
        for bucket in self.buckets:
            actions = bucket.launch.zero_gradients()
            if actions is None:
                return None
            zeroing += actions
        return zeroing


class ChangedMeanwhileError(RuntimeError):
    """What a plan is made for was changed by another thread while it was being made."""


class StepPlan:
    """The plans of all groups of an optimizer, and what puts together sums over all their tensors.

    Attributes:
        measuring: for each group the launches that note how far parameters move, or None; None, no
            group has any.

    Args:
        plans: a plan for each group.
        before: the plans of the last step, if there are any.
        given: for each group a list of the views of gradients, or None, in place of those that the
            parameters hold. Default: None, there is none.

    Raises:
        TypeError, ValueError: a parameter is there twice, or arrays share memory of which the step
            writes one.
        ChangedMeanwhileError: the plans have to be made anew.
    """

    def __init__(
        self, plans: list[Plan], before: StepPlan | None, given: list[Views] | None = None
    ):
        self.plans = plans
        self._none_given: list[Views | None] = [None] * len(plans)
        self._clips = any(plan.clips for plan in plans)
        self._zeroes = any(plan.zeroes for plan in plans)
        self._erased: list[np.ndarray] | None = None
        self.indirect = [plan for plan in plans if plan.indirect]
        measures = [plan.options.measures for plan in plans]
        self.measuring: list[list[kernels.Launch] | None] | None = None
        if any(measures):
            self.measuring = [
                [bucket.launch for bucket in plan.buckets] if does else None
                for plan, does in zip(plans, measures)
            ]
        self._new = True
        self._kept: list[partial] | None = None
        self._views = [view for plan in plans for view in plan.views]
        if before is None or not _same(self._views, before._views):
            members.distinct([(plan.parameters, plan.called) for plan in plans])
        self.buckets = [bucket for plan in plans for bucket in plan.buckets]
        self._combination = self._combining()
        self._arrays = [array for plan in plans for array in plan.arrays]
        self._whose = [whose for plan in plans for whose in plan.whose]
        regions = kernels.regions([plan.bounds for plan in plans])
        if regions.met:
            arrays.apart(self._arrays, self._whose)
        for plan, views in zip(plans, given or self._none_given):
            plan.release()
            plan.guard(regions)
            if not self.still_fits(plan, plan.parameters, plan.state, views):
                raise ChangedMeanwhileError(
                    "parameters, gradients or state were changed by another thread, again and again, "
                    "while a step was being prepared: nothing has been updated"
                )

    def _combining(self) -> kernels.Combination | None:
        """What puts together the sums over all tensors; None, there are none.

        Raises:
            ValueError: groups do not agree on what is summed.
        """
        concerned = [plan for plan in self.plans if plan.buckets]
        if not any(plan.of_all is not None for plan in concerned):
            return None
        one, *others = concerned
        sums = one.written.sums
        for other in others:
            if other.written is not one.written and (
                other.of_all is None
                or one.of_all is None
                or other.written.about_all != one.written.about_all
            ):
                names = [
                    name
                    for name in one.recipe.switches
                    if bool(one.settings[name]) is not bool(other.settings[name])
                ]
                raise ValueError(
                    f"groups have other {' and '.join(names)}, and with these, sums over all tensors "
                    "are of other things: let all groups have the same"
                )
        if any(other.of_all is not one.of_all for other in others):
            raise ChangedMeanwhileError("the numbers of all tensors were changed by another thread")
        assert sums is not None
        assert one.of_all is not None
        return kernels.Combination(
            [bucket.launch for plan in concerned for bucket in plan.buckets],
            [[plan.first + row for row in b.rows] for plan in concerned for b in plan.buckets],
            sums,
            one.of_all,
        )

    def set_scalars(self, clip_value: float | None = None) -> None:
        """Compute the numbers of the next update, see `Plan.set_scalars`.

        Raises:
            ValueError: groups, or tensors, do not agree on numbers that all have in common.
        """
        for plan in self.plans:
            plan.set_scalars(clip_value)
        if self._combination is None:
            return
        one, *others = (bucket.scalars_of_all for bucket in self.buckets)
        if any(other != one for other in others):
            settings = [plan.settings for plan in self.plans if plan.buckets]
            differing = [
                name
                for name in self.plans[0].recipe.hypers
                if any(each[name] != settings[0][name] for each in settings)
            ]
            of_all = [name for plan in self.plans for name in plan.written.of_all]
            raise ValueError(
                f"{of_all[0]!r} is one number for all tensors, but follows from what they do not have "
                f"alike: {', '.join(differing) or 'the number of updates'}. Let all groups have the same"
            )
        self._combination.set_scalars(one)

    def fits(
        self,
        groups: list[dict[str, Any]],
        state: State,
        given: list[Views] | None,
        clips: bool,
        zeroes: bool,
    ) -> bool:
        """Whether groups and state are as they were at the last step, but for other gradients."""
        if len(groups) != len(self.plans):
            return False
        if clips is not self._clips or zeroes is not self._zeroes:
            return False
        edits = state._edits
        for plan, group, views in zip(self.plans, groups, given or self._none_given):
            if edits is not plan.count or edits.value != plan.edits:
                return False
            if not plan.has_settings_of(group):
                return False
            parameters = group["params"]
            found = plan.look(id(parameters), 0 if views is None else id(views))
            if found and self._look_again(plan, parameters, views, found) == kernels.CHANGED:
                return False
        return True

    def still_fits(
        self, plan: Plan, parameters: list[Parameter], state: State, given: Views | None = None
    ) -> bool:
        """Whether a plan holds for these parameters, as they are now; takes in their gradients.

        With `given`, the gradients are these, and not what parameters hold.

        Raises:
            ValueError: a gradient shares memory with what the step writes.
        """
        if state._edits is not plan.count or plan.count.value != plan.edits:
            return False
        found = plan.look(id(parameters), 0 if given is None else id(given))
        return not found or self._look_again(plan, parameters, given, found) != kernels.CHANGED

    def _look_again(
        self, plan: Plan, parameters: list[Parameter], given: Views | None, found: int
    ) -> int:
        if found == kernels.MAY_OVERLAP:
            plan.release()
            gradients = given
            if gradients is None:
                gradients = [parameter._grad_view for parameter in parameters]
            arrays.outside(gradients, plan.called, plan.first, self._arrays, self._whose)
            found = plan.look_unguarded(id(parameters), 0 if given is None else id(given))
        if found == kernels.CHANGED:
            plan.release()
        else:
            plan.take()
        return found

    def check_erasable(self) -> None:
        """Raise ValueError if gradients share memory, of a step that sets them to zero."""
        places = [plan.places for plan in self.plans]
        if self._erased is not None and all(map(np.array_equal, places, self._erased)):
            return
        found = [
            (members.label(plan.first + row, plan.called[row]), plan.held[row])
            for plan in self.plans
            for bucket in plan.buckets
            for row in bucket.rows
        ]
        arrays.apart_if_erased(found)
        known = all(
            (each[bucket.rows] >= 0).all()
            for plan, each in zip(self.plans, places)
            for bucket in plan.buckets
        )
        # Of one that does not lie flat more than its place would have to be the same.
        self._erased = [each.copy() for each in places] if known and not self.indirect else None

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that do the step, from new state to the numbers in it."""
        if self._kept is not None:
            return self._kept
        actions = self._adopting(self.plans[0].state) if self._new and self.plans else []
        steady = not self._new and all(bucket.steady for bucket in self.buckets)
        for bucket in self.buckets:
            actions += bucket.launch.summing()
        if self._combination is not None:
            actions += self._combination.actions()
        for plan in self.plans:
            actions += plan.actions()
        self._new = False
        if steady:
            self._kept = actions
        return actions

    def _adopting(self, state: State) -> list[partial]:
        """The call that hands over state that was created, where numbers are those of the buckets."""
        shown: dict[str, Any] = {}
        for plan in self.plans:
            shown = shown or plan.of_all_shown()
        others = [plan.share_with_others(shown) for plan in self.plans if shown]
        created = {p: entries for plan in self.plans for p, entries in plan.created.items()}
        numbers = {p: shared for plan in self.plans for p, shared in plan.numbers.items()}
        for each in others:
            numbers.update(each)
        for plan in self.plans:
            plan.edits += 1
        handing_over = state.updating(created, numbers)
        for parameter, shared in numbers.items():
            if parameter not in created:
                state[parameter].share(shared)
        for plan in self.plans:
            plan.created, plan.numbers = {}, {}
        return [handing_over]


def _same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
