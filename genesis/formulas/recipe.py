"""What an optimizer's class is made of: one formula, or several in a row, with the names of all that
they share."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from .. import checks
from ..hyper import REQUIRED, Flag, Hyper, Number, Several
from .formula import GIVEN, Formula
from .symbols import ALL, NUMBERS, TENSOR, Operand, RuleError, Scalar, Sums, Symbol, Trace, summing
from .symbols import parts as parts_of
from .writing import Written

MOST_FLAGS = 6


class Numbers:
    """A function for per-step numbers: `f(step, carried=0.0, ..., *, lr=..., ...)`.

    Args:
        function: the function.
        formula: the formula whose scalars it computes, which may declare some of its keywords.

    Attributes:
        carried: the numbers that it carries from step to step, with what they begin with.
        hypers: its keywords.
        gives: the names of what it returns.
    """

    def __init__(self, function: Callable, formula: Formula):
        self.function, self._formula = function, formula
        self.carried: dict[str, float] = {}
        self.hypers: dict[str, Hyper] = {}
        parameters = list(_host_function(function, formula).parameters.values())
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
                self.hypers[name] = self._declared(name, default)
            elif checks.is_number(default):
                self.carried[name] = float(default)
            else:
                self._refuse(
                    f"{parameter} is carried from step to step, so its default must be the number "
                    "with which it begins; a hyper-parameter comes after a *"
                )
        self.gives = self._tried()

    def _declared(self, name: str, default: Any) -> Hyper:
        if default is not inspect.Parameter.empty:
            if name in self._formula.hypers:
                self._formula.refuse(
                    name, "the rule and its numbers declare this both: once will do"
                )
            return self._formula.declared(name, default)
        return self._formula.hypers.get(name) or self._formula.declared(name, REQUIRED)

    def _tried(self) -> list[str]:
        hypers = {name: _example(declared) for name, declared in self.hypers.items()}
        try:
            found = self.function(1, **self.carried, **hypers)
        except Exception as error:
            self._refuse(f"failed at step 1 with {hypers}: {type(error).__name__}: {error}")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            self._refuse(f"must return a dict of numbers by name, but returned {found!r}")
        for name, value in found.items():
            if not (checks.is_number(value) or checks.is_flag(value)):
                self._refuse(f"{name!r} must be a number, but is {value!r}")
        return list(found)

    def _refuse(self, why: str) -> NoReturn:
        _refuse_host_function(self.function, self._formula, why)


def _host_function(function: Any, formula: Formula) -> inspect.Signature:
    """The signature of a function that belongs to a formula and runs on the host."""
    if not inspect.isfunction(function):
        _refuse_host_function(function, formula, f"must be a plain function, but is {function!r}")
    return inspect.signature(function)


def _refuse_host_function(function: Any, formula: Formula, why: str) -> NoReturn:
    code = getattr(function, "__code__", None)
    where = formula.file if code is None else code.co_filename
    line = formula.line if code is None else code.co_firstlineno
    name = getattr(function, "__name__", repr(function))
    raise RuleError(f'{where}:{line}: {formula.kind} {formula.name}: "{name}": {why}')


class OfSettings:
    """A function on the host of some hyper-parameters, by keyword.

    Args:
        function: the function.
        formula: the formula to which it belongs.
        hypers: what hyper-parameters there are.

    Attributes:
        names: those that the function takes.
    """

    def __init__(self, function: Callable, formula: Formula, hypers: Iterable[str]):
        self._function = function
        self.names = tuple(_host_function(function, formula).parameters)
        unknown = [name for name in self.names if name not in hypers]
        if unknown:
            _refuse_host_function(function, formula, f"{unknown[0]!r} is no hyper-parameter")

    def __call__(self, group: Mapping[str, Any]) -> Any:
        return self._function(**{name: group[name] for name in self.names})


def _example(declared: Hyper) -> Any:
    """A possible value for a hyper-parameter that must be given."""
    if declared.default is not REQUIRED:
        return declared.default
    for value in (0.1, 1, *getattr(declared, "interval", ())):
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
        self.hypers: dict[str, Hyper] = {}
        self._declare_keywords()
        self._check_names()
        for name, default in (defaults or {}).items():
            if name not in self.hypers:
                raise TypeError(f"{formula.name} has no hyper-parameter {name!r}")
            before = self.hypers[name]
            before.check(name, default)
            self.hypers[name] = replace(before, default=default)
        self._renamed = dict(renamed or {})

    def _declare_keywords(self) -> None:
        """Add up the hyper-parameters, in the order in which formula and numbers name them."""
        formula = self.formula
        others = {} if self.numbers is None else self.numbers.hypers
        for name in formula.keywords:
            if name in formula.hypers and name in self.gives:
                formula.refuse(
                    name,
                    "the numbers return what is declared here as a hyper-parameter: leave out its "
                    "default, or return it under another name",
                )
            if name in self.gives or (name in formula.open and name in GIVEN):
                continue
            if name in formula.open and name not in others and self.numbers is not None:
                formula.refuse(name, "has no default, and the numbers do not return it")
            known = formula.hypers.get(name) or others.get(name)
            self.hypers[name] = known or formula.declared(name, REQUIRED)
        for name, declared in others.items():
            self.hypers.setdefault(name, declared)

    def _check_names(self) -> None:
        """Refuse names that mean two things."""
        formula = self.formula
        for name in (*self.hypers, *self.gives, *self.carried):
            if name in formula.states or name in formula.leading:
                formula.refuse(
                    name, "a hyper-parameter or number has the name of a state buffer: rename one"
                )
        for name, begins in formula.states.items():
            if isinstance(begins, str) and not isinstance(self.hypers.get(begins), Number):
                formula.refuse(name, f"begins with {begins!r}, which is no hyper-parameter")
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
            if not (
                isinstance(result, Operand) or checks.is_number(result) or checks.is_flag(result)
            ):
                hint = f": end with return {', '.join(wanted)}" if result is None else ""
                formula.refuse_return(f"{name} must become a number, not {result!r}{hint}")
        return results

    def keywords(
        self, value_of: Callable[[str], Any], named: Any, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The formula's keywords: `value_of` a hyper-parameter, what is `named`, and what is `given`."""
        return {
            name: named[name]
            if name in self.gives
            else given[name]
            if name in given and name in self.formula.open
            else value_of(self.outside(name))
            for name in self.formula.keywords
        }

    @property
    def over(self) -> dict[str, str]:
        """Of the numbers of state of which elements each is one, under the names outside."""
        return {self.outside(name): over for name, over in self.formula.over.items()}

    @property
    def averages(self) -> dict[str, str]:
        """Of the state that is a running average what it is, under the names outside."""
        return {self.outside(name): kind for name, kind in self.formula.averages.items()}

    @property
    def begins(self) -> dict[str, float | str]:
        """What fills each state buffer at first, under the names outside."""
        return {
            self.outside(name): self.outside(begins) if isinstance(begins, str) else begins
            for name, begins in self.formula.states.items()
        }


class _ByChoice(dict):
    """What there is for each choice of switches, made when it is first asked for."""

    def __init__(self, make: Callable[[tuple[bool, ...]], Written]):
        super().__init__()
        self._make = make

    def __missing__(self, choice: tuple[bool, ...]) -> Written:
        return self.setdefault(choice, self._make(choice))  # of two threads' the first one's


class Recipe:
    """What an optimizer's class is made of.

    Args:
        name: the class's.
        parts: the formulas. One that is alone gives the parameter; of several each gives the
            update that the next one takes, and the last one's is subtracted.
        file, line: where the class is made.
        tried: whether the formulas are gone through with every choice of flags at once, so that what is
            wrong with them is told here. Default: True; False: when such a choice is first made.

    Attributes:
        states: what fills each state buffer at first: a number, or the name of a hyper-parameter.
        over: of those that are one number for many elements, what these are.
        averages: of those that are running averages, "signed" or "positive".
        hypers: the hyper-parameters.
        carried: numbers carried from step to step, with what they begin with.
        named: `named(group, numbers, step)` is what the parts' functions for numbers give, from
            those that state holds before the step.
        next_carried: `next_carried(named)` are the carried numbers after it.
        switches: the names of flags, and of numbers for whose 0 there is another kernel.
        written: the code by the choice of these.
    """

    def __init__(
        self, name: str, parts: Sequence[Part], file: str, line: int, *, tried: bool = True
    ):
        self.name, self.parts, self.file, self.line = name, parts, file, line
        self.states: dict[str, float | str] = {}
        self.over: dict[str, str] = {}
        self.averages: dict[str, str] = {}
        self.hypers: dict[str, Hyper] = {}
        self.carried: dict[str, float] = {}
        for part in parts:
            self.averages.update(part.averages)
            self.states.update(part.begins)
            self.over.update(part.over)
            self.hypers.update({part.outside(n): v for n, v in part.hypers.items()})
            self.carried.update({part.outside(n): v for n, v in part.carried.items()})
        self.has_numbers = any(part.numbers for part in parts)
        self.switches = [name for name, declared in self.hypers.items() if declared.switches]
        if len(self.switches) > MOST_FLAGS:
            parts[0].formula.refuse(", ".join(self.switches), f"more than {MOST_FLAGS} flags")
        self.written = _ByChoice(lambda choice: self._written(dict(zip(self.switches, choice))))
        if tried:
            self.every_written()
        self.named, self.next_carried = self._host_functions()

    def _host_functions(self) -> tuple[Callable, Callable]:
        """The functions `named` and `next_carried`.

        Written out, as a step calls them: to go through the names each time takes longer than the
        numbers themselves.
        """
        calls, carried = [], []
        for i, part in enumerate(self.parts):
            if part.numbers is None:
                calls.append("None")
                continue
            given = ["step", *(f"numbers[{part.outside(name)!r}]" for name in part.carried)]
            given += [f"{name}=group[{part.outside(name)!r}]" for name in part.numbers.hypers]
            calls.append(f"functions[{i}]({', '.join(given)})")
            carried += [f"{part.outside(n)!r}: float(named[{i}][{n!r}])" for n in part.carried]
        functions = [None if part.numbers is None else part.numbers.function for part in self.parts]
        return (
            eval(f"lambda group, numbers, step: ({', '.join(calls)},)", {"functions": functions}),
            eval(f"lambda named: {{{', '.join(carried)}}}"),
        )

    def every_written(self) -> list[Written]:
        """The code for each choice of switches."""
        choices = itertools.product((False, True), repeat=len(self.switches))
        return [self.written[choice] for choice in choices]

    def written_for(self, group: Mapping[str, Any]) -> Written:
        """The code for a group's choice of switches."""
        return self.written[tuple([bool(group[name]) for name in self.switches])]

    def results(
        self,
        param: Any,
        grad: Any,
        states: Mapping[str, Any],
        value_of: Callable[[str], Any],
        named: Sequence[Any],
        given: Mapping[str, Any],
    ) -> list[Any]:
        """What becomes of the parameter and of each state buffer."""
        if self.parts[0].formula.kind == "rule":
            (part,) = self.parts
            return list(part.run((param, grad), states, part.keywords(value_of, named[0], given)))
        update = grad
        after = []
        for part, numbers in zip(self.parts, named):
            leading = [update, param, *([grad] if "grad" in part.formula.leading else [])]
            own = {name: states[part.outside(name)] for name in part.formula.states}
            keywords = part.keywords(value_of, numbers, given)
            update, *rest = part.run(leading, own, keywords)
            after += rest
        return [param - update, *after]

    def _written(self, choice: Mapping[str, bool]) -> Written:
        """The code, for one choice of flags and switches."""
        trace = Trace(self.parts[0].formula.code if len(self.parts) == 1 else None)
        hypers: dict[str, Any] = {}
        for name, declared in self.hypers.items():
            if isinstance(declared, Flag):
                hypers[name] = choice[name]
            elif isinstance(declared, Several):
                hypers[name] = tuple(
                    trace.leaf("hyper", name, i) for i in range(len(declared.parts))
                )
            elif choice.get(name, True):
                hypers[name] = trace.leaf("hyper", name)
                if declared.switches:
                    trace.assume(hypers[name])
            else:
                hypers[name] = 0.0
        named = [
            {name: trace.leaf("named", i, name) for name in part.gives}
            for i, part in enumerate(self.parts)
        ]
        kinds = {name: NUMBERS[over] for name, over in self.over.items()}
        states = {name: trace.leaf(kinds.get(name, "element"), name) for name in self.states}
        param, grad = trace.leaf("element", "param"), trace.leaf("element", "grad")
        given = {name: trace.leaf(name) for name in GIVEN}

        def formula() -> list[Any]:
            return self.results(param, grad, states, hypers.__getitem__, named, given)

        try:
            results = trace.results(formula)
        except (TypeError, RecursionError) as error:
            self.parts[0].formula.refuse_error(error)
        for name, result in zip(self.states, results[1:]):
            self._check_number(name, result)
        every = {name: kinds.get(name, "element") for name in self.states}
        return Written(self.name, self.file, self.line, results, every, trace.summands)

    def _check_number(self, name: str, result: Symbol) -> None:
        """Refuse that a number of state becomes what is not one number."""
        over = self.over.get(name)
        if over is None:
            return
        counted = [each.operation for each in parts_of(result) if each.operation in GIVEN]
        if over == "all" and counted:
            why = (
                f"{name} is one number for all tensors, which may differ in {counted[0]!r}: count in an "
                "overall number of its own"
            )
        elif result.level <= {"tensor": TENSOR, "all": ALL}[over]:
            return
        elif over == "all":
            why = (
                f"{name} is one number for all tensors, so it must become what is the same for all of "
                'them: of sums over all, total(x, over="all"), of other such numbers and of '
                "hyper-parameters"
            )
        else:
            why = (
                f"{name} is one number for each tensor, so it must become what is the same for all its "
                "elements: of sums, of other such numbers and of hyper-parameters"
            )
        part = next(part for part in self.parts if name in part.over)
        part.formula.refuse_return(why)

    def initial(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the state of a parameter begins with: numbers, and what fills buffers."""
        fills = {
            name: float(group[begins]) if isinstance(begins, str) else begins
            for name, begins in self.states.items()
        }
        return {"step": 0, **self.carried, **fills}

    @property
    def sums(self) -> bool:
        """Whether, with some choice of flags, an update asks for sums, or keeps numbers of tensors."""
        return any(written.numbers for written in self.every_written())

    @property
    def sums_over_all(self) -> bool:
        """Whether, with some choice of flags, it asks for sums over all tensors, or keeps such."""
        return any(written.concerns_all for written in self.every_written())

    def evaluated(
        self,
        kind: type,
        param: Any,
        grad: Any,
        states: Sequence[Any],
        group: Mapping[str, Any],
        named: Sequence[Any],
        given: Mapping[str, Any],
        sums: Sums,
    ) -> list[Any]:
        """What the formulas give for one element, as the CPU's kernels compute it.

        `sums` gives what they sum over all elements, see `symbols.Sums`.
        """
        values = dict(zip(self.states, map(Scalar, map(kind, states))))

        def formula() -> list[Any]:
            return self.results(
                Scalar(kind(param)), Scalar(kind(grad)), values, group.__getitem__, named, given
            )

        found = summing(sums, formula)
        return [value.value if isinstance(value, Scalar) else kind(float(value)) for value in found]
