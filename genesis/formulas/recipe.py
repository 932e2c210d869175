"""What an optimizer's class is made of: one formula, or several in a row, with the names of all that
they share."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from .formula import Formula, RuleError
from .hyper import REQUIRED, Hyper
from .symbols import Number, Operand, Trace
from .writing import Written

MOST_FLAGS = 6


class Numbers:
    """A function for per-step numbers: `f(step, carried=0.0, ..., *, lr=..., ...)`.

    Args:
        function: the function.
        formula: the formula whose scalars it computes, for errors.

    Attributes:
        carried: the numbers that it carries from step to step, with what they begin with.
        hypers: its keywords.
        gives: the names of what it returns.
    """

    def __init__(self, function: Callable, formula: Formula):
        self.function, self._formula = function, formula
        self._name = getattr(function, "__name__", repr(function))
        self.carried: dict[str, float] = {}
        self.hypers: dict[str, Hyper] = {}
        if not inspect.isfunction(function):
            self._refuse(f"must be a plain function, but is {function!r}")
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        ):
            self._refuse("its first argument must be the number of the update, step")
        for parameter in parameters[1:]:
            name, default = parameter.name, parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._refuse(f"name every keyword, in place of {parameter}")
            formula.check_name(name)
            if parameter.kind is parameter.KEYWORD_ONLY:
                self.hypers[name] = formula.declared(
                    name, REQUIRED if default is parameter.empty else default
                )
            elif isinstance(default, (int, float)) and not isinstance(default, bool):
                self.carried[name] = float(default)
            else:
                self._refuse(
                    f"{parameter} is carried from step to step, so its default must be the number "
                    "with which it begins; a hyper-parameter comes after a *"
                )
        self.gives = self._tried()

    def _tried(self) -> list[str]:
        hypers = {name: _example(declared) for name, declared in self.hypers.items()}
        try:
            found = self.function(1, **self.carried, **hypers)
        except Exception as error:
            self._refuse(f"failed at step 1 with {hypers}: {type(error).__name__}: {error}")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            self._refuse(f"must return a dict of numbers by name, but returned {found!r}")
        for name, value in found.items():
            if not isinstance(value, (int, float, np.floating, np.integer, np.bool_)):
                self._refuse(f"{name!r} must be a number, but is {value!r}")
        return list(found)

    def _refuse(self, why: str) -> Any:
        code = getattr(self.function, "__code__", None)
        line = None if code is None else code.co_firstlineno
        where = self._formula.file if code is None else code.co_filename
        raise RuleError(
            f"{where}:{line or self._formula.line}: {self._formula.kind} {self._formula.name}: "
            f'"{self._name}": {why}'
        )


def _example(declared: Hyper) -> Any:
    """A possible value for a hyper-parameter that must be given."""
    if declared.default is not REQUIRED:
        return declared.default
    candidates = (0.1, 1.0, declared.low, declared.most)
    for value in candidates:
        try:
            declared.check("", value)
        except ValueError:
            continue
        return value
    return 0.0


class Part:
    """A formula in its place: what its names are called outside.

    Args:
        formula: the formula.
        numbers: its function for per-step numbers, or None.
        renamed: what its states, hyper-parameters and carried numbers are called, by their own name;
            those that are not in here keep their names.
        defaults: other defaults of its hyper-parameters, by their own names.
    """

    def __init__(
        self,
        formula: Formula,
        numbers: Numbers | None = None,
        renamed: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.formula, self.numbers = formula, numbers
        self.gives = [] if numbers is None else numbers.gives
        self.carried = {} if numbers is None else numbers.carried
        self.hypers = {} if numbers is None else dict(numbers.hypers)
        self._declare_keywords()
        self._check_names()
        for name, default in (defaults or {}).items():
            if name not in self.hypers:
                raise TypeError(f"{formula.name} has no hyper-parameter {name!r}")
            before = self.hypers[name]
            before.check(name, default)
            self.hypers[name] = Hyper(default, *_fields(before)[1:])
        self._renamed = dict(renamed or {})

    def _declare_keywords(self) -> None:
        """Add the hyper-parameters that the formula declares."""
        formula = self.formula
        for name in formula.keywords:
            if name in formula.hypers:
                if name in self.hypers:
                    formula.refuse(name, "the rule and its numbers declare this both: once will do")
                if name in self.gives:
                    formula.refuse(
                        name,
                        "the numbers return what is declared here as a hyper-parameter: leave out "
                        "its default, or return it under another name",
                    )
                self.hypers[name] = formula.hypers[name]
            elif name not in self.gives and name not in self.hypers and name != "step":
                if self.numbers is not None:
                    formula.refuse(name, "has no default, and the numbers do not return it")
                self.hypers[name] = formula.declared(name, REQUIRED)

    def _check_names(self) -> None:
        """Refuse names that mean two things."""
        formula = self.formula
        for name in (*self.hypers, *self.gives, *self.carried):
            if name in formula.states or name in formula.leading:
                formula.refuse(
                    name, "a hyper-parameter or number has the name of a state buffer: rename one"
                )
        for name in self.carried:
            if name in self.hypers:
                formula.refuse(name, "a carried number has the name of a hyper-parameter")
            if name not in self.gives:
                formula.refuse(name, "a carried number, which the numbers do not return")

    def outside(self, name: str) -> str:
        """What a name of the formula's is called outside."""
        return self._renamed.get(name, name)

    def run(self, leading: Sequence[Any], states: Mapping[str, Any], keywords: Any) -> Any:
        """What the formula makes of these operands, as a list of results."""
        given = [states[name] for name in self.formula.states]
        formula = self.formula
        try:
            found = formula.run(*leading, *given, **keywords)
        except Exception as error:
            formula.refuse_error(error)
        results = found if isinstance(found, (tuple, list)) else (found,)
        wanted = (formula.leading[0], *formula.states)
        if len(results) != len(wanted):
            formula.refuse_return(
                f"return {', '.join(wanted)}, what the first argument and each state buffer become: "
                f"{len(wanted)} values, not {len(results)}"
            )
        for name, result in zip(wanted, results):
            if not isinstance(result, (Operand, int, float, np.floating, np.integer, np.bool_)):
                formula.refuse_return(f"{name} must become a number, not {result!r}")
        return results

    def keywords(self, value_of: Callable[[str], Any], named: Any, step: Any) -> dict[str, Any]:
        """The formula's keywords: `value_of` a hyper-parameter, what is `named`, and the step."""
        return {
            name: named[name]
            if name in self.gives
            else step
            if name == "step"
            else value_of(self.outside(name))
            for name in self.formula.keywords
        }

    def called(self, group: Mapping[str, Any], numbers: Mapping[str, Any], step: int) -> Any:
        """What the function for per-step numbers gives."""
        if self.numbers is None:
            return None
        carried = [numbers[self.outside(name)] for name in self.carried]
        hypers = {name: group[self.outside(name)] for name in self.numbers.hypers}
        return self.numbers.function(step, *carried, **hypers)


def _fields(declared: Hyper) -> tuple:
    return tuple(getattr(declared, name) for name in declared.__dataclass_fields__)


class Recipe:
    """What an optimizer's class is made of.

    Args:
        name: the class's.
        parts: the formulas. One that is alone gives the parameter; of several each gives the
            update that the next one takes, and the last one's is subtracted.
        file, line: where the class is made.

    Attributes:
        states: what fills each state buffer at first.
        hypers: the hyper-parameters.
        carried: numbers carried from step to step, with what they begin with.
        flags: the hyper-parameters that are flags.
        choice: a group's choice of flags.
        written: the code by this choice.
    """

    def __init__(self, name: str, parts: Sequence[Part], file: str, line: int):
        self.name, self.parts, self.file, self.line = name, parts, file, line
        self.states: dict[str, float] = {}
        self.hypers: dict[str, Hyper] = {}
        self.carried: dict[str, float] = {}
        for part in parts:
            self.states.update({part.outside(n): v for n, v in part.formula.states.items()})
            self.hypers.update({part.outside(n): v for n, v in part.hypers.items()})
            self.carried.update({part.outside(n): v for n, v in part.carried.items()})
        self.flags = [name for name, declared in self.hypers.items() if declared.is_flag]
        self.has_numbers = any(part.numbers for part in parts)
        if len(self.flags) > MOST_FLAGS:
            parts[0].formula.refuse(", ".join(self.flags), f"more than {MOST_FLAGS} flags")
        self.choice: Callable[[Mapping[str, Any]], Any] = (
            itemgetter(*self.flags) if self.flags else lambda group: ()
        )
        self.written: dict[Any, Written] = {}
        for values in itertools.product((False, True), repeat=len(self.flags)):
            flags = dict(zip(self.flags, values))
            self.written[self.choice(flags)] = self._written(flags)

    def results(
        self,
        param: Any,
        grad: Any,
        states: Mapping[str, Any],
        value_of: Callable[[str], Any],
        named: Sequence[Any],
        step: Any,
    ) -> list[Any]:
        """What becomes of the parameter and of each state buffer."""
        if self.parts[0].formula.kind == "rule":
            (part,) = self.parts
            return list(part.run((param, grad), states, part.keywords(value_of, named[0], step)))
        update = grad
        after = []
        for part, numbers in zip(self.parts, named):
            leading = [update, param, *([grad] if "grad" in part.formula.leading else [])]
            own = {name: states[part.outside(name)] for name in part.formula.states}
            keywords = part.keywords(value_of, numbers, step)
            update, *rest = part.run(leading, own, keywords)
            after += rest
        return [param - update, *after]

    def _written(self, flags: Mapping[str, bool]) -> Written:
        """The code, for one choice of flags."""
        trace = Trace(self.parts[0].formula.code if len(self.parts) == 1 else None)
        hypers = {
            name: tuple(trace.leaf("hyper", name, i) for i in range(declared.count))
            if declared.count
            else trace.leaf("hyper", name)
            for name, declared in self.hypers.items()
            if not declared.is_flag
        }
        named = [
            {name: trace.leaf("named", i, name) for name in part.gives}
            for i, part in enumerate(self.parts)
        ]
        states = {name: trace.leaf("element", name) for name in self.states}
        param, grad = trace.leaf("element", "param"), trace.leaf("element", "grad")
        step = trace.leaf("step")

        def formula() -> list[Any]:
            return self.results(param, grad, states, {**hypers, **flags}.__getitem__, named, step)

        try:
            results = trace.results(formula)
        except (TypeError, RecursionError) as error:
            self.parts[0].formula.refuse_error(error)
        return Written(self.name, self.file, self.line, results, list(self.states))

    def named(self, group: Mapping[str, Any], numbers: Mapping[str, Any], step: int) -> Any:
        """What the parts' functions for per-step numbers give."""
        return [part.called(group, numbers, step) for part in self.parts]

    def next_carried(self, named: Sequence[Any]) -> dict[str, float]:
        """The carried numbers after a step."""
        return {
            part.outside(name): float(numbers[name])
            for part, numbers in zip(self.parts, named)
            for name in part.carried
        }

    def evaluated(
        self,
        kind: type,
        param: Any,
        grad: Any,
        states: Sequence[Any],
        group: Mapping[str, Any],
        named: Sequence[Any],
        step: int,
    ) -> list[Any]:
        """What the formulas give for one element, as the CPU's kernels compute it."""

        values = dict(zip(self.states, map(Number, map(kind, states))))
        found = self.results(
            Number(kind(param)), Number(kind(grad)), values, group.__getitem__, named, step
        )
        return [value.value if isinstance(value, Number) else kind(float(value)) for value in found]
