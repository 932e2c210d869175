"""How one group of parameters is updated, kept from step to step.

A `Plan` sorts the parameters that have gradients into buckets of equal device, data types and step
count, one launch each. It stays as it is until the group, its arrays or its state change, and it
learns of gradients in other arrays by comparing one number a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_

from .. import buffers, kernels
from ..parameter import Parameter, data_edits
from .state import Count, State

Rule = tuple[Callable, tuple[str, ...]]
"""A rule and the names of its state buffers, in the order in which the rule takes them."""


class Bucket:
    """The parameters that one launch updates, and how many updates each has had."""

    __slots__ = ("launch", "parameters", "step")

    def __init__(self, parameters: list[Parameter], step: int, launch: kernels.Launch):
        self.parameters = parameters
        self.step = Count(step)
        self.launch = launch


class Plan:
    """The buckets of one group and what they were made from.

    State that parameters lack is created here but not handed over: `commit` does that once nothing
    can fail any more, so that running out of memory leaves the optimizer as it was.

    Args:
        parameters: the group's parameters.
        rule: the group's rule.
        state: the optimizer's state.
        counts_steps: whether the state has a "step".
        scalars: how many scalars the rule takes.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        rule: Rule,
        state: State,
        counts_steps: bool,
        scalars: int,
    ):
        self.buckets: list[Bucket] = []
        self.created: list[tuple[Parameter, dict]] = []
        self._counts_steps = counts_steps
        self._rule = rule
        self._state_edits = state.edits
        self._data_edits = data_edits()
        self._data = [p._data for p in parameters]
        self._layouts = [p._grad_layout for p in parameters]
        self._versions = [p._version for p in parameters]
        function, names = rule
        members: dict[tuple, list[tuple]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            entries, step = self._entries(parameter, state)
            arrays = [parameter.grad, parameter.data, *(entries[name] for name in names)]
            key = (step, *(buffers.layout(array)[:2] for array in arrays))
            members.setdefault(key, []).append((parameter, arrays))
        for (step, *_), rows in members.items():
            updated = [parameter for parameter, _ in rows]
            columns = list(zip(*(arrays for _, arrays in rows)))
            launch = kernels.prepare(function, columns, scalars)
            self.buckets.append(Bucket(updated, step, launch))

    def _entries(self, parameter: Parameter, state: State) -> tuple[dict, int]:
        """The parameter's state, completed if need be, and the number of its updates so far."""
        entries = dict(state.get(parameter) or {})
        names = ("step", *self._rule[1]) if self._counts_steps else self._rule[1]
        missing = [name for name in names if name not in entries]
        if missing:
            for name in missing:
                fresh = 0 if name == "step" else buffers.zeros(parameter.shape, parameter.data)
                entries[name] = fresh
            self.created.append((parameter, entries))
        if self._counts_steps:
            return entries, entries["step"]
        return entries, 0 if missing else 1

    def still_fits(self, parameters: list[Parameter], rule: Rule, state: State) -> bool:
        """Whether the plan holds for the next step; takes in gradients that are other arrays."""
        if rule != self._rule or self._state_edits != state.edits:
            return False
        versions = [p._version for p in parameters]
        if versions == self._versions:
            return True
        if len(versions) != len(self._versions):
            return False
        if [p._grad_layout for p in parameters] != self._layouts:
            return False
        if self._data_edits != data_edits():  # some parameter somewhere got another array
            if not all(map(is_, [p._data for p in parameters], self._data)):
                return False
            self._data_edits = data_edits()
        for bucket in self.buckets:
            bucket.launch.refresh_gradients([p._grad for p in bucket.parameters if p._grad is not None])
        self._versions = versions
        return True

    def adopt(self, state: State) -> None:
        """Take the state as it now is for what the plan was made from, and count its steps."""
        self._state_edits = state.edits
        if self._counts_steps:
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    state[parameter].share_step(bucket.step)

    def run(self) -> None:
        """Update all parameters and count the step."""
        for bucket in self.buckets:
            bucket.launch.run()
            if self._counts_steps:
                bucket.step.value += 1
            else:
                bucket.step.value = 1
