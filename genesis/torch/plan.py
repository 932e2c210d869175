"""How the parameters of a torch optimizer are updated, kept from step to step.

A `Plan` sorts the parameters that have gradients into buckets of one group, equal data types and equal
numbers ("step" above all), one launch each. A step does not believe it: it goes by addresses, and torch
lets anybody replace, resize, transpose and convert tensors in place. So every step looks at all of
them, at gradients, parameters, state and the numbers in it, in compiled passes, and makes another plan
where anything is not as it was. What a launch touches lies in storages that are held until it is over.

All parameters of a bucket have the same tensors as their numbers, so that a step writes one "step" and
not a thousand. Nobody outside sees that: `unshared` gives each its own where torch is to go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import hyper, kernels
from ..formulas import Recipe
from ..hyper import Flag
from ..optim import options
from .tensors import (
    PLAIN,
    TYPES,
    filled_like,
    gradient_of,
    handles,
    laid_like,
    lies_like,
    place_of,
    plain,
    record,
    storages,
    stream_of,
    unfit,
    unreachable,
)

if TYPE_CHECKING:
    from ..formulas import OfSettings

_TORCH = {name: dtype for dtype, name in TYPES.items()}
_NUMBER_TYPES = {torch.float32: "float32", torch.float64: "float64"}
State = dict[Tensor, dict[str, Any]]


class Formula(NamedTuple):
    """What is to be done with the parameters of a group.

    Attributes:
        recipe: what an update is made of.
        numbers: the names of the numbers that state holds, each as a tensor of one element.
        completes: whether state that is there in part is completed, or left to torch.
        check: raises ValueError for settings that are impossible together. Default: None.
    """

    recipe: Recipe
    numbers: tuple[str, ...]
    completes: bool
    check: OfSettings | None = None

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What a group says of the hyper-parameters, in Python's numbers."""
        found = {
            # Torch's optimizers have no entry for flags of genesis' own, unless they are given.
            name: plain(group.get(name, False) if isinstance(declared, Flag) else group[name])
            for name, declared in self.recipe.hypers.items()
        }
        found["maximize"] = group["maximize"]
        if self.check is not None:
            self.check(found)
        for name, declared in options.UNDER_TORCH.items():
            if name in group:
                declared.check(name, group[name])
                found[name] = plain(group[name])
        return found

    def at(self, settings: dict[str, Any], step: int) -> dict[str, Any]:
        """Settings after so many updates, where functions of the step are numbers."""
        hypers = self.recipe.hypers
        return hyper.at(hypers, settings, hyper.scheduled(hypers, settings), step)

    @property
    def every_number(self) -> tuple[str, ...]:
        """The names of all numbers that state may hold."""
        return self.numbers or ("step",)

    def numbers_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the numbers that state holds with these settings."""
        # Random bits need the number of the update, so it must be kept.
        return self.numbers or (("step",) if settings.get("stochastic_rounding") else ())


def state_type(param: Tensor, settings: Mapping[str, Any]) -> torch.dtype:
    """The type of a parameter's new state buffers."""
    if settings.get("state_dtype") is not None:
        return _TORCH[settings["state_dtype"]]
    has_master = settings.get("master_weights") and param.dtype in TYPES and param.itemsize == 2
    return torch.float32 if has_master else param.dtype


def _no_tensor(value: Any, name: str) -> str | None:
    """Why a kernel cannot reach what a state holds under a name; None: it can."""
    if not isinstance(value, Tensor):
        return f"state whose {name!r} is no tensor"
    return unreachable(value, f"state {name!r}")


def left_to_torch(group: Mapping[str, Any]) -> str | None:
    """Why the settings of a group ask for torch's own step; None: they do not."""
    for flag in ("differentiable", "capturable"):
        if group.get(flag):
            return f"{flag}=True"
    return None


def unshared(entries: Iterable[dict[str, Any]], numbers: Iterable[str], seen: set[int]) -> None:
    """Give each parameter numbers of its own, in tensors that no other has: `seen` are others' ids."""
    for own in entries:
        for name in numbers:
            number = own.get(name)
            if isinstance(number, Tensor):
                if id(number) in seen:
                    own[name] = number.clone()
                seen.add(id(number))


class Member(NamedTuple):
    """One parameter of a bucket, and its state, which may have to be completed.

    Attributes:
        row: its position in the group.
        param, grad: the parameter and its gradient.
        entries: its state.
        tensors: what an update writes, by the name in the state, in the order of the table's columns
            behind the gradient; the parameter itself has no name.
        created: those of them that are to be put into the state.
        numbers: what its state holds besides.
        number_type: the type of that.
        first: whether a buffer is new, so that the next update is the first.
        new_average: whether an average is.
    """

    row: int
    param: Tensor
    grad: Tensor
    entries: dict[str, Any]
    tensors: dict[str, Tensor]
    created: dict[str, Any]
    numbers: dict[str, float]
    number_type: torch.dtype
    first: bool
    new_average: bool

    @property
    def kind(self) -> tuple:
        """What one launch must have in common."""
        types = [tensor.dtype for tensor in (self.grad, *self.tensors.values())]
        numbers = self.number_type, *self.numbers.items()
        new = self.first, self.new_average
        return (place_of(self.param), *new, *numbers, *self.tensors, *types)


class Bucket:
    """The parameters that one launch updates.

    Args:
        group: the number of their group.
        formula: what is done with them.
        settings: those of the group.
        members: the parameters.
        keys: a number for each, from which follow the random bits by which it is rounded; or None.

    Attributes:
        numbers: what their state holds besides buffers, the same for all.
        first: whether a buffer is new, so that the next update is their first.
        new_average: whether an average is.
        stays: says whether everything is where it was, see `kernels.staying`.
        refused: the rows that `take` could not take, as far as it is known.
    """

    def __init__(
        self,
        group: int,
        formula: Formula,
        settings: dict[str, Any],
        members: list[Member],
        keys: list[int] | None,
    ):
        self.group, self.formula = group, formula
        one = members[0]
        self.numbers, number_type, self.first = dict(one.numbers), one.number_type, one.first
        numbers = self.numbers
        self.averages, self.new_average = "ema" in one.tensors, one.new_average
        self.written = formula.recipe.written_for(settings)
        self.options = options.of(settings)
        self.rows = [member.row for member in members]
        self.params = [member.param for member in members]
        self.entries = [member.entries for member in members]
        self.refused: list[int] = []
        others = [list(column) for column in zip(*(m.tensors.values() for m in members))]
        columns = [[one.grad], *others]
        sizes = [param.numel() for param in self.params]
        types = [TYPES[column[0].dtype] for column in columns]
        self.place = place_of(one.param)
        self.stream = stream_of(self.place)
        self.launch = kernels.prepare_flat(
            self.written.rule,
            sizes,
            types,
            self.written.count,
            device=self.place,
            stream=self.stream,
            copy="master" if "master" in one.tensors else None,
            averages=self.averages,
            keys=keys,
            sums=self.written.sums,
            measures=self.options.measures,
        )
        self._lasting = list(chain(*others))
        answering = handles()
        assert answering is not None  # or nothing had been fit for a bucket
        own = 1 + list(one.tensors).index("")
        about = answering.about(self.place)
        self._question = kernels.question(*about, own, types, sizes, self.launch.addresses)
        self._question.objects[:, 1:] = kernels.ids(self._lasting).reshape(len(others), -1).T
        self._gatherer = kernels.gatherer(self.rows, PLAIN, self._question.objects)
        itemsizes = [column[0].element_size() for column in columns]
        self._bytes = np.array(sizes, np.int64)[:, None] * np.array(itemsizes, np.int64)

        # The numbers, in tensors that are these parameters' alone.
        shared = {name: torch.tensor(numbers[name], dtype=number_type) for name in numbers}
        self._shared = list(shared.values())
        self._cells: dict[str, Any] = {}
        if shared:
            kinds = [_NUMBER_TYPES[number_type]] * len(shared)
            where = np.zeros((1, len(shared)), np.int64)
            self._number_question = kernels.question(*answering.about("cpu"), 0, kinds, [1], where)
            self._number_question.objects[0] = kernels.ids(self._shared)
            for column, name in enumerate(shared):
                self._cells[name] = kernels.cells(where, column, kinds[0])
        names = (*shared, *(name for name in one.tensors if name))
        created = [{**shared, **member.created} for member in members]
        self._handing_over = [
            partial(entries.update, new) for entries, new in zip(self.entries, created) if new
        ]
        held = [
            (*self._shared, *(tensor for name, tensor in member.tensors.items() if name))
            for member in members
        ]
        self.kept = kernels.kept_entries(self.entries, names, held) if names else None

        self.after: dict[str, float] = {}
        self._gradients: Any = None
        self.hold()
        if self.stream:
            record(self._lasting, self.place)

    def hold(self) -> None:
        """Hold the storages in which parameters and state are now, whatever other threads put there."""
        self._held = storages(self._lasting), storages(self._shared)

    def take(self, gradients: list[Any]) -> bool:
        """Take the gradients of a step, and look at all that it is going to touch.

        Args:
            gradients: those of the whole group.

        Returns:
            Whether everything can be used.
        """
        self.refused = []
        if not self._gatherer.gather(gradients):
            return False
        own = gradients
        if len(self.rows) < len(gradients):
            own = [gradients[row] for row in self.rows]
        question = self._question
        self._gradients = own
        verdict = question.compare()
        if verdict != kernels.FITS:
            # Only gradients may lie in another order.
            bad = question.verdicts[:, 1:].any(axis=1)
            bad |= question.verdicts[:, 0] == kernels.CHANGED_TENSOR
            self.refused = [self.rows[i] for i in np.flatnonzero(bad)]
            if self.refused:
                return False
        # A number whose sign is only noted lies within a complex one, so not where a storage begins.
        within = np.flatnonzero(question.offsets)
        if len(within) and self._any_negative(own, within):
            return False
        if verdict != kernels.FITS:
            self._copy_gradients(own)
        if self.stream:
            record(own, self.place)
        return not self._cells or self._numbers_hold()

    def _any_negative(self, gradients: list[Tensor], places: np.ndarray) -> bool:
        rows, columns = np.divmod(places, self.launch.addresses.shape[1])
        count = len(gradients)
        for row, column in zip(rows.tolist(), columns.tolist()):
            tensor = self._lasting[(column - 1) * count + row] if column else gradients[row]
            if tensor.is_neg():
                return True
        return False

    def _copy_gradients(self, gradients: list[Tensor]) -> None:
        """Let flat copies stand for gradients that lie in another order than their parameters."""
        copies = []
        for row in np.flatnonzero(self._question.verdicts[:, 0]):
            copies.append(laid_like(gradients[row], self.params[row]))
            self.launch.addresses[row, 0] = copies[-1].data_ptr()
        self._gradients = gradients, copies

    def _numbers_hold(self) -> bool:
        if self._number_question.compare() != kernels.FITS:
            return False
        return all(cell.hold(self.numbers[name]) for name, cell in self._cells.items())

    def ranges(self) -> np.ndarray:
        """The first byte of each array and one past the last: for each row and column."""
        addresses = self.launch.addresses
        return np.stack([addresses, addresses + self._bytes], axis=-1)

    def settle(self, regions: np.ndarray) -> None:
        """Keep in mind where everything is; `regions` hold all that the step writes."""
        sizes = np.ascontiguousarray(self._bytes[:, 0])
        self.stays = kernels.staying(self.launch.addresses, sizes, regions)

    def gradient_ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each gradient the first byte and one past the last."""
        first = self.launch.addresses[:, 0]
        return first, first + self._bytes[:, 0]

    def set_scalars(self, settings: dict[str, Any], factor: float) -> None:
        """Compute the numbers of the next update, and hand them and the addresses to the kernel.

        `factor` is what gradients are multiplied by.
        """
        recipe, before = self.formula.recipe, self.numbers
        step = int(before.get("step", 0.0)) + 1
        settings = self.formula.at(settings, step - 1)
        after: dict[str, float] = {"step": step}
        named = None
        if recipe.has_numbers:
            named = recipe.named(settings, before, step)
            after.update(recipe.next_carried(named))
        values = self.written.scalars(settings, step, named, self.first)
        if self.averages:
            values = (*values, *options.weights(settings, self.new_average))
        self.launch.set_scalars(-factor if settings["maximize"] else factor, values, step)
        self.launch.follow()
        self.after = {name: cell.rounded(after[name]) for name, cell in self._cells.items()}

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that update the parameters and their state."""
        return [
            *self.launch.actions(),
            *(cell.storing(self.after[name]) for name, cell in self._cells.items()),
            *self._handing_over,
            partial(self.numbers.update, self.after),
            partial(setattr, self, "first", False),
            partial(setattr, self, "new_average", False),
            # What `torch.autograd.graph.increment_version` calls: that one is not written in C.
            partial(torch._C._increment_version, self.params),
        ]

    def release(self) -> None:
        """After a step: hold no gradients any more, they live as long as the parameters have them."""
        self._gradients = None
        self._handing_over = []


class Plan:
    """The buckets of all groups, which parameters torch updates itself, and which have no gradient.

    Args:
        groups: the optimizer's.
        formulas: what is to be done with each.
        state: the optimizer's.
        first: the number of the first parameter, from which follow the random bits of rounding.

    Attributes:
        buckets: what launches update.
        left: for each group the parameters that are left to torch.
        reasons: why, with how many there are.
        without: how many parameters have no gradient.
    """

    def __init__(
        self, groups: list[dict[str, Any]], formulas: list[Formula], state: State, first: int = 0
    ):
        self._params = [list(group["params"]) for group in groups]
        self._members = [kernels.kept_list(params) for params in self._params]
        self._formulas, self._first = formulas, first
        excluded: dict[tuple[int, int], str] = {}
        while True:
            found = self._sorted(groups, state, excluded) or self._sharing()
            if not found:
                break
            excluded.update(found)
        self.without = sum(map(len, self._absent))
        self._keys: Any = None

    def _sorted(
        self, groups: list[dict[str, Any]], state: State, excluded: dict[tuple[int, int], str]
    ) -> dict[tuple[int, int], str]:
        """Sort the parameters; returns those of buckets that cannot be there after all, and why."""
        self.buckets: list[Bucket] = []
        self.left: list[list[Tensor]] = []
        self.reasons: dict[str, int] = {}
        self._absent: list[list[int]] = []
        # Of those that are left: the rows, and whether another gradient may change that.
        self._left_rows: list[list[tuple[int, bool]]] = []
        self._new: list[tuple[Tensor, dict[str, Any]]] = []
        self._asked = [left_to_torch(group) for group in groups]
        self.settings = [formula.settings(group) for formula, group in zip(self._formulas, groups)]
        refused: dict[tuple[int, int], str] = {}
        before = self._first
        for i, (group, formula, params) in enumerate(zip(groups, self._formulas, self._params)):
            left, left_rows, absent, gradients = [], [], [], list(map(gradient_of, params))
            found: dict[tuple, list[Member]] = {}
            for row, (param, grad) in enumerate(zip(params, gradients)):
                if grad is None:
                    absent.append(row)
                    continue
                always = self._asked[i] or excluded.get((i, row))
                reason = always or unfit(param, grad)
                may_change = always is None and reason is not None
                if reason is None:
                    entries = state.get(param, {})
                    if "trained" in entries:
                        what = f"parameter {row} of group {i}"
                        raise RuntimeError(options.SHOWS_AVERAGE.format(what=what))
                    made = self._member(row, param, grad, entries, formula, i, group)
                    if isinstance(made, str):
                        reason = made
                    else:
                        found.setdefault(made.kind, []).append(made)
                        if param not in state and (made.numbers or made.created):
                            self._new.append((param, entries))
                if reason is not None:
                    left.append(param)
                    left_rows.append((row, may_change))
                    self.reasons[reason] = self.reasons.get(reason, 0) + 1
            self.left.append(left)
            self._left_rows.append(left_rows)
            self._absent.append(absent)
            for members in found.values():
                keys = None
                if self.settings[i].get("stochastic_rounding"):
                    keys = [before + member.row for member in members]
                bucket = Bucket(i, formula, self.settings[i], members, keys)
                self.buckets.append(bucket)
                if not bucket.take(gradients):
                    # None is known where another thread is at work.
                    for row in bucket.refused or bucket.rows:
                        refused[i, row] = "memory out of reach"
            before += len(params)
        return refused

    def _member(
        self,
        row: int,
        param: Tensor,
        grad: Tensor,
        entries: dict[str, Any],
        formula: Formula,
        i: int,
        group: dict[str, Any],
    ) -> Member | str:
        """A parameter with its state, completed; or why it cannot be updated here."""
        if type(entries) is not dict:
            return f"state of class {type(entries).__name__}"
        settings = self.settings[i]
        asked = options.of(settings)
        initial = formula.recipe.initial(formula.at(settings, 0))
        numbers: dict[str, float] = {}
        number_type = _number_type(group)
        # A class without numbers (SGD) begins whenever its buffer is missing, as in torch.
        whole = bool(entries and formula.numbers and not formula.completes)
        for name in formula.numbers_for(settings):
            number = entries.get(name)
            if number is None:
                if whole:
                    return f"state without {name!r}"
                numbers[name] = float(initial[name])
                continue
            reason = _no_tensor(number, name)
            if reason is not None:
                return reason
            # Some of torch's classes keep theirs on a GPU; here they are on the CPU.
            number = number.cpu()
            if number.ndim or number.dtype not in _NUMBER_TYPES:
                return f"state whose {name!r} is no number"
            numbers[name], number_type = number.item(), number.dtype
        step = numbers.get("step", 0.0)
        if not 0 <= step < 2**53 or step != int(step):
            return "state whose 'step' is no count"

        # The rule updates the master, if there is one, of which the parameter is a copy.
        tensors: dict[str, Any] = {}
        master = entries.get("master")
        if master is None and asked.master_weights and param.element_size() == 2:
            master = laid_like(param.detach(), param, torch.float32)
        if master is None:
            tensors[""] = param
        else:
            tensors["master"] = master
        like = param if master is None else master
        states = formula.recipe.written_for(settings).states
        for name in states:
            tensors[name] = entries.get(name)
            if tensors[name] is None:
                if whole:
                    return f"state without {name!r}"
                kind = state_type(like, settings)
                tensors[name] = filled_like(param, initial.get(name, 0.0), kind)
        if asked.averages:
            tensors["ema"] = entries.get("ema")
            if tensors["ema"] is None:
                options.check_average(like.element_size(), f"parameter {row} of group {i}")
                tensors["ema"] = filled_like(param, 0.0, like.dtype)
        tensors.setdefault("", param)
        created = {}
        for name, tensor in tensors.items():
            if not name:
                continue
            reason = _no_tensor(tensor, name)
            if reason is not None:
                return reason
            if tensor.shape != param.shape:
                return f"state {name!r} of another shape"
            if place_of(tensor) != place_of(param):
                return f"state {name!r} on another device"
            if not lies_like(tensor, param):
                tensor = tensors[name] = laid_like(tensor, param)
            if tensor is not entries.get(name):
                created[name] = tensor
        first = any(entries.get(name) is None for name in states)
        new_average = asked.averages and entries.get("ema") is None
        return Member(
            row, param, grad, entries, tensors, created, numbers, number_type, first, new_average
        )

    def _sharing(self) -> dict[tuple[int, int], str]:
        """Those that share memory with others, of which the step writes one; sorts what it writes."""
        rows, ranges = [], []
        for bucket in self.buckets:
            written = bucket.ranges()[:, 1:]
            ranges.append(written.reshape(-1, 2))
            rows += [(bucket.group, row) for row in bucket.rows for _ in range(written.shape[1])]
        self._regions = kernels.regions(ranges)
        for bucket in self.buckets:
            bucket.settle(self._regions.table)
        if self._regions.met:
            every = np.concatenate(ranges)
            order = np.argsort(every[:, 0], kind="stable")
            order = order[every[order, 0] < every[order, 1]]
            starts, ends = every[order].T
            late = starts[1:] < np.maximum.accumulate(ends)[:-1]
            early = ends[:-1] > starts[1:]
            meeting = {*order[1:][late].tolist(), *order[:-1][early].tolist()}
            return {rows[i]: "memory that it shares with another" for i in meeting}
        found = {}
        for bucket in self.buckets:
            for i in np.flatnonzero(self._meets(bucket)):
                found[bucket.group, bucket.rows[i]] = "gradient in memory that the step writes"
        return found

    def _meets(self, bucket: Bucket) -> np.ndarray:
        """For each gradient of a bucket whether it shares memory with what the step writes."""
        starts, ends = self._regions.table
        first, last = bucket.gradient_ranges()
        if not len(starts):
            return np.zeros(len(first), bool)
        # The last region that begins before the gradient's end is the only one that may reach into it.
        place = np.searchsorted(starts, last, "left")
        return (place > 0) & (ends[place - 1] > first) & (first < last)

    def fits(
        self, groups: list[dict[str, Any]], formulas: list[Formula], state: State, first: int = 0
    ) -> bool:
        """Whether everything is as it was, but for other gradients and settings; takes these."""
        if len(groups) != len(self._params) or formulas != self._formulas or first != self._first:
            return False
        if [left_to_torch(group) for group in groups] != self._asked:
            return False
        if self._keys is None or not self._keys.is_same(state):
            return False
        self.settings = [formula.settings(group) for formula, group in zip(formulas, groups)]
        gradients = []
        for i, group in enumerate(groups):
            if not self._members[i].is_same(group["params"]):
                return False
            found = list(map(gradient_of, self._params[i]))
            if any(found[row] is not None for row in self._absent[i]):
                return False
            for row, may_change in self._left_rows[i]:
                grad = found[row]
                if grad is None or (may_change and unfit(self._params[i][row], grad) is None):
                    return False
            gradients.append(found)
        for bucket in self.buckets:
            settings = self.settings[bucket.group]
            written = bucket.formula.recipe.written_for(settings)
            if written is not bucket.written or options.of(settings) != bucket.options:
                return False
            if bucket.stream != stream_of(bucket.place):
                return False
            if bucket.kept is not None and not bucket.kept.are_same():
                return False
            if not bucket.take(gradients[bucket.group]):
                return False
        verdicts = [bucket.stays() for bucket in self.buckets]
        for bucket, verdict in zip(self.buckets, verdicts):
            if verdict == kernels.MOVED:
                now = bucket.launch.addresses[:, 1:].copy()
                bucket.hold()
                if not bucket.take(gradients[bucket.group]):
                    return False
                if not np.array_equal(bucket.launch.addresses[:, 1:], now):
                    return False
        if kernels.MOVED in verdicts:
            return not self._sharing()
        return not any(verdicts)

    def measuring(self) -> list[list[Any] | None] | None:
        """For each group the launches that note how far parameters move, or None; None: no group has."""
        found: list[list[Any] | None] = [
            [] if settings.get("measure_updates") else None for settings in self.settings
        ]
        if found.count(None) == len(found):
            return None
        for bucket in self.buckets:
            launches = found[bucket.group]
            if launches is not None:
                launches.append(bucket.launch)
        return found

    def adopt(self, state: State) -> bool:
        """Put the dicts of new state into the optimizer's, empty, as torch does before it fills them.

        Returns:
            Whether the state is still what the plan was made for.
        """
        if self._keys is not None:
            return True
        for param, entries in self._new:
            state[param] = entries
        self._new = []
        self._keys = kernels.kept_dict(state)
        pairs = (zip(bucket.params, bucket.entries) for bucket in self.buckets if bucket.kept)
        return all(state.get(param) is entries for param, entries in chain(*pairs))

    def set_scalars(self, factor: float) -> None:
        """Compute the numbers of the next updates; `factor` is what gradients are multiplied by."""
        for bucket in self.buckets:
            bucket.set_scalars(self.settings[bucket.group], factor)

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that do the step."""
        return [action for bucket in self.buckets for action in bucket.actions()]

    def release(self) -> None:
        """After a step: hold nothing that belonged to this one alone."""
        for bucket in self.buckets:
            bucket.release()


def _number_type(group: dict[str, Any]) -> torch.dtype:
    """The type in which torch keeps "step": it is the same for all, whatever the parameter's."""
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.float64 if wide else torch.float32
