"""How one group of parameters is updated, kept from step to step.

A `Plan` sorts the parameters that have gradients into buckets of equal device, data types and step
count, one launch each. It stays as it is until the group, its arrays or its state change, and it
learns of gradients in other arrays by comparing one number a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np

from .. import buffers, kernels
from ..parameter import Parameter, data_edits
from ..sparse import RowsView
from .precision import Precision
from .state import State

Rule = tuple[Callable, tuple[str, ...]]
"""A rule and the names of its state buffers, in the order in which the rule takes them."""


class Bucket:
    """The parameters that one launch updates.

    Attributes:
        parameters: the parameters.
        numbers: what their state holds besides buffers, the same for all: "step" and perhaps more.
        launch: how they are updated.
    """

    __slots__ = ("launch", "numbers", "numbers_after", "parameters")

    def __init__(
        self, parameters: list[Parameter], numbers: dict[str, Any], launch: kernels.Launch
    ):
        self.parameters = parameters
        self.numbers = numbers
        self.numbers_after = numbers
        self.launch = launch


class Plan:
    """The buckets of one group and what they were made from.

    State that parameters lack is created here but not handed over: `created` waits until nothing
    can fail any more, so that running out of memory leaves the optimizer as it was.

    Args:
        parameters: the group's parameters.
        rule: the group's rule.
        state: the optimizer's state.
        initial: what the state of a parameter begins with: numbers, and values that fill buffers
            where that is not 0.
        kept: which names are numbers. "step" may be missing: then it is 0 for a parameter without
            buffers and 1 for others, and the state does not show it.
        scalars: how many scalars the rule takes.
        stream: on a GPU the stream to work on, or None.
        types: in which data types to keep state.
        first: the number of the first parameter among all of the optimizer's.
    """

    def __init__(
        self,
        parameters: list[Parameter],
        rule: Rule,
        state: State,
        initial: dict[str, Any],
        kept: tuple[str, ...],
        scalars: int,
        stream: Any,
        types: Precision,
        first: int,
    ):
        self.buckets: list[Bucket] = []
        self.created: list[tuple[Parameter, dict]] = []
        self._kept = kept
        self._rule = rule
        self._types = types
        self._state_edits = state.edits
        self._data_edits = data_edits()
        self._tokens = [p._token for p in parameters]
        self._layouts = [p._grad_layout for p in parameters]
        self._versions = [p._version for p in parameters]
        self.sparse = [p for p in parameters if isinstance(p._grad_view, RowsView)]
        function, names = rule
        members: dict[tuple, list[tuple]] = {}
        for number, parameter in enumerate(parameters, start=first):
            if parameter._grad_view is None:
                continue
            entries, numbers = self._entries(parameter, state, initial)
            views = [parameter._grad_view, parameter._view]
            views += [buffers.view(entries[name]) for name in names]
            with_copy = True
            if "master" in entries:  # the rule updates the master; the parameter is a copy of it
                views[1:] = [buffers.view(entries["master"]), *views[2:], views[1]]
            elif parameter._working is not None:  # autocast's copy is refreshed in the same pass
                views.append(buffers.view(parameter._working))
            else:
                with_copy = False
            types_ = [buffers.layout(view)[:2] for view in views]
            alone = number if isinstance(parameter._grad_view, RowsView) else None
            key = (with_copy, alone, *numbers.values(), *types_)
            members.setdefault(key, []).append((parameter, number, numbers, views))
        for (with_copy, *_), rows in members.items():
            columns = list(zip(*(views for *_, views in rows)))
            launch = kernels.prepare(
                function,
                columns,
                scalars,
                stream,
                with_copy=with_copy,
                keys=[number for _, number, *_ in rows] if types.stochastic_rounding else None,
            )
            self.buckets.append(Bucket([parameter for parameter, *_ in rows], rows[0][2], launch))

    def _entries(
        self, parameter: Parameter, state: State, initial: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parameter's state, completed if need be, and the numbers in it."""
        entries = dict(state.get(parameter) or {})
        missing = [name for name in (*self._kept, *self._rule[1]) if name not in entries]
        if self._types.master_weights and parameter._view.itemsize == 2 and "master" not in entries:
            wide = buffers.host_copy(parameter._data).astype(np.float32)
            entries["master"] = buffers.copy_beside(wide, parameter._view)
            missing.append("master")
        like = buffers.view(entries["master"]) if "master" in entries else parameter._view
        for name in missing:
            if name in self._kept:
                entries[name] = initial[name]
            elif name != "master":
                value = initial.get(name, 0.0)
                entries[name] = buffers.full(value, like, self._types.state_dtype)
        if missing:
            self.created.append((parameter, entries))
        numbers = {name: entries[name] for name in self._kept}
        if "step" not in self._kept:
            numbers["step"] = 0 if missing else 1
        return entries, numbers

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
            if not all(map(is_, [p._token for p in parameters], self._tokens)):
                return False
            self._data_edits = data_edits()
        for bucket in self.buckets:
            views = [p._grad_view for p in bucket.parameters]
            bucket.launch.refresh_gradients(views)  # type: ignore[arg-type]
        self._versions = versions
        return True

    def zero_gradients(self, parameters: list[Parameter]) -> bool:
        """Fill all gradients with zeros in one pass; False, and nothing is done, if it cannot.

        It can if the gradients are the arrays of the last step, flat and writable.
        """
        if [p._version for p in parameters] != self._versions or not all(
            layout is None or layout.writable for layout in self._layouts
        ):
            return False
        return all(bucket.launch.zero_gradients() for bucket in self.buckets)

    def adopt(self, state: State) -> None:
        """Take the state as it now is for what the plan was made from, and keep its numbers."""
        self._state_edits = state.edits
        if self._kept:
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    state[parameter].share(bucket.numbers)

    def run(self) -> None:
        """Update all parameters, and their numbers."""
        for bucket in self.buckets:
            bucket.launch.run()
            bucket.numbers.update(bucket.numbers_after)
