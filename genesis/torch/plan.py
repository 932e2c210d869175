"""How the parameters of a torch optimizer are updated, kept from step to step.

A `Plan` sorts the parameters that have gradients into buckets of one group, equal data types and equal
numbers ("step" above all), one launch each. A step does not believe it: it goes by addresses, and torch
lets anybody replace, resize, transpose and convert tensors in place. So every step looks at all of
them, at gradients, parameters, state and the numbers in it, in compiled passes, and makes another plan
where anything is not as it was. What a launch touches lies in storages that are held until it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import hyper, kernels
from ..formulas import Recipe
from .tensors import (
    EXCHANGE,
    PLAIN,
    TYPES,
    Memory,
    gradient_of,
    ids,
    is_negative,
    laid_like,
    lies_like,
    plain,
    unfit,
    unreachable,
)

FITS, CHANGED = 0, 2  # see `kernels.exchanged`
_NUMBER_TYPES = {torch.float32: "float32", torch.float64: "float64"}


class Formula(NamedTuple):
    """What is to be done with the parameters of a group.

    Attributes:
        recipe: what an update is made of.
        numbers: the names of the numbers that state holds, each as a tensor of one element.
        completes: whether state that is there in part is completed, or left to torch.
    """

    recipe: Recipe
    numbers: tuple[str, ...]
    completes: bool

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What a group says of the hyper-parameters, in Python's numbers."""
        found = {name: plain(group[name]) for name in self.recipe.hypers}
        found["maximize"] = group["maximize"]
        return found


def left_to_torch(group: Mapping[str, Any]) -> str | None:
    """Why the settings of a group ask for torch's own step; None: they do not."""
    for flag in ("differentiable", "capturable"):
        if group.get(flag):
            return f"{flag}=True"
    return None


class Member:
    """One parameter of a bucket, and its state, which is completed but not handed over yet.

    Args:
        row: its position in the group.
        param, grad: the parameter and its gradient.
        entries: its state.
        created: what is to be put there.
    """

    def __init__(
        self, row: int, param: Tensor, grad: Tensor, entries: dict[str, Any], created: dict[str, Any]
    ):
        self.row, self.param = row, param
        self.grad: Any = grad  # until the plan is made
        self.entries, self.created = entries, created

    def state(self, names: Iterable[str]) -> list[Tensor]:
        """What its state holds under these names, once that is handed over."""
        return [self.created.get(name, self.entries.get(name)) for name in names]


class Bucket:
    """The parameters that one launch updates.

    Args:
        group: the number of their group.
        formula: what is done with them.
        settings: those of the group.
        members: the parameters.
        numbers: what their state holds besides buffers, the same for all.
        first: whether a buffer is new, so that the next update is their first.
    """

    def __init__(
        self,
        group: int,
        formula: Formula,
        settings: dict[str, Any],
        members: list[Member],
        numbers: dict[str, float],
        first: bool,
    ):
        self.group, self.members, self.numbers, self.first = group, members, numbers, first
        self.formula = formula
        self.written = formula.recipe.written_for(settings)
        self.rows = [member.row for member in members]
        self.params = [member.param for member in members]
        self.names = (*formula.numbers, *self.written.states)
        held = [member.state(self.names) for member in members]
        self.state = list(chain.from_iterable(held))
        count = len(formula.numbers)
        cells, buffers = ([list(column) for column in zip(*held)][part] for part in _parts(count))
        sizes = [param.numel() for param in self.params]
        one = members[0]
        storages = [TYPES[one.grad.dtype], *(TYPES[c[0].dtype] for c in (self.params, *buffers))]
        self.launch = kernels.prepare_flat(self.written.rule, sizes, storages, self.written.count)
        self._lasting = list(chain(self.params, *buffers))
        self._question = kernels.question(EXCHANGE, 1, storages, sizes, self.launch.addresses)
        self._question.objects[:, 1:] = ids(self._lasting).reshape(-1, len(members)).T
        itemsizes = [column[0].element_size() for column in ([one.grad], self.params, *buffers)]
        self._bytes = np.array(sizes, np.int64)[:, None] * np.array(itemsizes, np.int64)
        self._number_tensors = list(chain(*cells))
        self._cells: dict[str, Any] = {}
        if cells:
            kinds = [_NUMBER_TYPES[column[0].dtype] for column in cells]
            where = np.zeros((len(members), count), np.int64)
            self._number_question = kernels.question(EXCHANGE, 0, kinds, [1] * len(members), where)
            self._number_question.objects[:] = ids(self._number_tensors).reshape(count, -1).T
            for column, (name, kind) in enumerate(zip(formula.numbers, kinds)):
                self._cells[name] = kernels.cells(where, column, kind)
            self._number_sizes = np.array([np.dtype(kind).itemsize for kind in kinds])
        self._get_state = itemgetter(*self.names) if self.names else None
        self.after: dict[str, float] = {}
        self._handing_over = [
            partial(member.entries.update, member.created) for member in members if member.created
        ]
        self._gradients: Any = None
        self._hold()

    def _hold(self) -> None:
        """Hold the storages in which parameters, state and numbers are now."""
        self._memory = Memory(self._lasting)
        shape = -1, len(self.members), 2
        self._question.bounds[:, 1:] = self._memory.bounds.reshape(shape).swapaxes(0, 1)
        self._number_memory = Memory(self._number_tensors)
        if self._cells:
            bounds = self._number_memory.bounds.reshape(shape)
            self._number_question.bounds[:] = bounds.swapaxes(0, 1)

    def release(self) -> None:
        """After a step: hold no gradients any more, they live as long as the parameters have them."""
        self._gradients = None
        self._handing_over = []

    def has_state(self) -> bool:
        """Whether the state of the parameters holds the tensors that it did."""
        if self._get_state is None:
            return True
        found: Iterable[Any] = map(self._get_state, (member.entries for member in self.members))
        if len(self.names) > 1:
            found = chain.from_iterable(found)
        try:
            return all(map(is_, found, self.state))
        except KeyError:
            return False

    def take(self, gradients: list[Tensor]) -> bool:
        """Take the gradients of a step, and look at all that it is going to touch.

        Returns:
            Whether everything can be used. If not, `refused` has the rows that cannot, as far as known.
        """
        self.refused: list[int] = []
        if not PLAIN.issuperset(map(type, gradients)) or any(map(is_negative, gradients)):
            return False
        question = self._question
        try:
            memory = Memory(gradients)
        except (RuntimeError, NotImplementedError):  # a sparse one, or one that is under vmap
            return False
        self._gradients = gradients, memory
        question.objects[:, 0] = ids(gradients)
        question.bounds[:, 0] = memory.bounds
        if not (self._memory.is_the_same and self._number_memory.is_the_same):
            self._hold()
        verdict = question.compare()
        if verdict == CHANGED:  # the data of a parameter may lie in another storage by now
            if any(map(is_negative, self._lasting)):
                return False
            self._hold()
            verdict = question.compare()
        if verdict != FITS:
            # Only gradients may lie in another order.
            bad = (question.verdicts == CHANGED).any(axis=1) | question.verdicts[:, 1:].any(axis=1)
            self.refused = [self.rows[i] for i in np.flatnonzero(bad)]
            if self.refused:
                return False
            self._copy_gradients(gradients)
        return not self._cells or self._take_numbers()

    def _copy_gradients(self, gradients: list[Tensor]) -> None:
        """Let flat copies stand for gradients that lie in another order than their parameters."""
        copies = []
        for row in np.flatnonzero(self._question.verdicts[:, 0]):
            copies.append(laid_like(gradients[row], self.params[row]))
            self.launch.addresses[row, 0] = copies[-1].data_ptr()
        self._gradients = *self._gradients, copies

    def _take_numbers(self) -> bool:
        question = self._number_question
        if question.compare() != FITS:
            bad = question.verdicts.any(axis=1)
            self.refused = [self.rows[i] for i in np.flatnonzero(bad)]
            return False
        return all(cell.hold(self.numbers[name]) for name, cell in self._cells.items())

    def ranges(self) -> np.ndarray:
        """The first byte of each array and one past the last: for each row and column."""
        addresses = self.launch.addresses
        return np.stack([addresses, addresses + self._bytes], axis=-1)

    def number_ranges(self) -> np.ndarray:
        """As `ranges`, for the numbers in the state."""
        if not self._cells:
            return np.empty((len(self.members), 0, 2), np.int64)
        bounds = self._number_memory.bounds.reshape(-1, len(self.members), 2).swapaxes(0, 1).copy()
        bounds[..., 1] = bounds[..., 0] + self._number_sizes
        return bounds

    def set_scalars(self, settings: dict[str, Any], factor: float) -> None:
        """Compute the numbers of the next update, and hand them to the kernel.

        `factor` is what gradients are multiplied by.
        """
        recipe, before = self.formula.recipe, self.numbers
        step = before.get("step", 0.0) + 1
        settings = hyper.at(
            recipe.hypers, settings, hyper.scheduled(recipe.hypers, settings), int(step) - 1
        )
        after = {"step": step}
        named = None
        if recipe.has_numbers:
            named = recipe.named(settings, before, int(step))
            after.update(recipe.next_carried(named))
        values = self.written.scalars(settings, int(step), named, self.first)
        self.launch.set_scalars(-factor if settings["maximize"] else factor, values)
        self.after = {name: cell.rounded(after[name]) for name, cell in self._cells.items()}

    def actions(self) -> list[partial]:
        """The calls, for `commit`, that update the parameters and their state."""
        actions = [*self.launch.actions()]
        actions += [cell.storing(self.after[name]) for name, cell in self._cells.items()]
        actions += self._handing_over
        written = [*self._lasting, *self._number_tensors]
        # What `torch.autograd.graph.increment_version` calls; that one itself is no function in C.
        actions.append(partial(torch._C._increment_version, written))
        actions.append(partial(self.numbers.update, self.after))
        actions.append(partial(setattr, self, "first", False))
        return actions


def _parts(count: int) -> tuple[slice, slice]:
    return slice(None, count), slice(count, None)


class Plan:
    """The buckets of all groups, which parameters torch updates itself, and which have no gradient.

    Args:
        groups: the optimizer's.
        formulas: what is to be done with each.
        state: the optimizer's.

    Attributes:
        buckets: what launches update.
        left: for each group the parameters that are left to torch.
        reasons: why, with how many there are.
        without: how many parameters have no gradient.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        formulas: list[Formula],
        state: dict[Tensor, dict[str, Any]],
    ):
        self._params = [list(group["params"]) for group in groups]
        self._formulas = formulas
        excluded: dict[tuple[int, int], str] = {}
        while True:
            self._sort(groups, state, excluded)
            found = self._refused()
            if not found:
                break
            excluded.update(found)
        for bucket in self.buckets:
            for member in bucket.members:
                member.grad, member.created = None, {}
        self.without = sum(map(len, self._absent))
        self._keys: list[Any] | None = None

    def _sort(
        self,
        groups: list[dict[str, Any]],
        state: dict[Tensor, dict[str, Any]],
        excluded: dict[tuple[int, int], str],
    ) -> None:
        self.buckets: list[Bucket] = []
        self.left: list[list[Tensor]] = []
        self.reasons: dict[str, int] = {}
        self._absent: list[list[int]] = []
        self.settings = [formula.settings(group) for formula, group in zip(self._formulas, groups)]
        self._asked = [left_to_torch(group) for group in groups]
        self._new: list[tuple[Tensor, dict[str, Any]]] = []
        for i, (group, formula, params) in enumerate(zip(groups, self._formulas, self._params)):
            left, absent = [], []
            settings = self.settings[i]
            found: dict[tuple, list[Member]] = {}
            known: dict[tuple, tuple[dict[str, float], bool]] = {}
            for row, (param, grad) in enumerate(zip(params, map(gradient_of, params))):
                if grad is None:
                    absent.append(row)
                    continue
                reason = self._asked[i] or excluded.get((i, row)) or unfit(param, grad)
                if reason is None:
                    entries = state[param] if param in state else {}
                    made = self._member(row, param, grad, entries, formula, settings, group)
                    if isinstance(made, str):
                        reason = made
                    else:
                        member, numbers, first = made
                        buffers = member.state(self._names(formula, settings))
                        types = [tensor.dtype for tensor in (grad, param, *buffers)]
                        key = (first, *numbers.values(), *types)
                        found.setdefault(key, []).append(member)
                        known[key] = numbers, first
                if reason is not None:
                    left.append(param)
                    self.reasons[reason] = self.reasons.get(reason, 0) + 1
            self.left.append(left)
            self._absent.append(absent)
            for key, members in found.items():
                numbers, first = known[key]
                self.buckets.append(Bucket(i, formula, settings, members, numbers, first))
                if self.buckets[-1].names:
                    self._new += [(m.param, m.entries) for m in members if m.param not in state]

    @staticmethod
    def _names(formula: Formula, settings: dict[str, Any]) -> tuple[str, ...]:
        return (*formula.numbers, *formula.recipe.written_for(settings).states)

    def _member(
        self,
        row: int,
        param: Tensor,
        grad: Tensor,
        entries: dict[str, Any],
        formula: Formula,
        settings: dict[str, Any],
        group: dict[str, Any],
    ) -> tuple[Member, dict[str, float], bool] | str:
        """A parameter with its state, the numbers in that, and whether a buffer is new; or why not."""
        recipe = formula.recipe
        states = recipe.written_for(settings).states
        initial: dict[str, Any] | None = None
        created: dict[str, Any] = {}
        numbers: dict[str, float] = {}
        begins = False
        for name in self._names(formula, settings):
            tensor = entries.get(name)
            if tensor is None:
                # A class without numbers (SGD) begins whenever its buffer is missing, as in torch.
                if entries and formula.numbers and not formula.completes:
                    return f"state without {name!r}"
                if initial is None:
                    first = hyper.at(
                        recipe.hypers, settings, hyper.scheduled(recipe.hypers, settings), 0
                    )
                    initial = recipe.initial(first)
                if name in states:
                    begins = True
                    value = initial.get(name, 0.0)
                    shape = torch.preserve_format
                    tensor = torch.full_like(param, value, memory_format=shape, requires_grad=False)
                else:
                    tensor = torch.tensor(float(initial[name]), dtype=_number_type(group))
                created[name] = tensor
            if not isinstance(tensor, Tensor):
                return f"state whose {name!r} is no tensor"
            reason = unreachable(tensor, f"state {name!r}")
            if reason is not None:
                return reason
            if name in states:
                if tensor.shape != param.shape:
                    return f"state {name!r} of another shape"
                if not lies_like(tensor, param):
                    created[name] = laid_like(tensor, param)
            elif tensor.numel() != 1 or tensor.dtype not in _NUMBER_TYPES or tensor.ndim:
                return f"state {name!r} that is no number"
            else:
                numbers[name] = tensor.item()
        return Member(row, param, grad, entries, created), numbers, begins

    def _refused(self) -> dict[tuple[int, int], str]:
        """The parameters in buckets that cannot be there after all, by group and row, and why."""
        for bucket in self.buckets:
            if not bucket.take([member.grad for member in bucket.members]):
                # None is known where another thread is at work.
                refused = bucket.refused or bucket.rows
                return {(bucket.group, row): "memory out of reach" for row in refused}
        return self._sharing()

    def _sharing(self) -> dict[tuple[int, int], str]:
        """Those that share memory with others, of which the step writes one; sorts what it writes."""
        rows, ranges = [], []
        for bucket in self.buckets:
            written = np.concatenate([bucket.ranges()[:, 1:], bucket.number_ranges()], axis=1)
            ranges.append(written.reshape(-1, 2))
            rows += [(bucket.group, row) for row in bucket.rows for _ in range(written.shape[1])]
        self._regions = kernels.regions(ranges)
        self._written_at = [bucket.launch.addresses[:, 1:].copy() for bucket in self.buckets]
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
        first, last = bucket.ranges()[:, 0].T
        # The last region that begins before the gradient's end is the only one that may reach into it.
        place = np.searchsorted(starts, last, "left")
        return (place > 0) & (ends[place - 1] > first) & (first < last) if len(starts) else place > 0

    def fits(
        self,
        groups: list[dict[str, Any]],
        formulas: list[Formula],
        state: dict[Tensor, dict[str, Any]],
    ) -> bool:
        """Whether everything is as it was, but for other gradients and settings; takes the gradients."""
        if len(groups) != len(self._params) or formulas != self._formulas:
            return False
        if self._keys is None or not (_same(state, self._keys) and _same(state.values(), self._values)):
            return False
        if [left_to_torch(group) for group in groups] != self._asked:
            return False
        self.settings = [formula.settings(group) for formula, group in zip(formulas, groups)]
        gradients = []
        for group, params, absent in zip(groups, self._params, self._absent):
            if not _same(group["params"], params):
                return False
            found = list(map(gradient_of, params))
            if any(found[row] is not None for row in absent):
                return False
            gradients.append(found)
        for bucket in self.buckets:
            written = bucket.formula.recipe.written_for(self.settings[bucket.group])
            if written is not bucket.written or not bucket.has_state():
                return False
            found = gradients[bucket.group]
            if not bucket.take([found[row] for row in bucket.rows]):
                return False
        for bucket, before in zip(self.buckets, self._written_at):
            if not np.array_equal(bucket.launch.addresses[:, 1:], before):
                return not self._sharing()
        return not any(self._meets(bucket).any() for bucket in self.buckets)

    def adopt(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Put the dicts of new state into the optimizer's, empty, as torch does before it fills them.

        Returns:
            Whether the state is still what the plan was made for.
        """
        if self._keys is not None:
            return True
        for param, entries in self._new:
            state[param] = entries
        self._keys, self._values = list(state), list(state.values())
        of_members = (member for bucket in self.buckets if bucket.names for member in bucket.members)
        return all(state.get(member.param) is member.entries for member in of_members)

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
        self._new = []


def _same(some: Any, others: list[Any]) -> bool:
    """Whether two collections have the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def _number_type(group: dict[str, Any]) -> torch.dtype:
    """The type in which torch keeps "step": it is the same for all, whatever the parameter's."""
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.float64 if wide else torch.float32
