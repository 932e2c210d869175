"""What a user's function says: its arguments, and whether it is a formula at all.

The function's bytecode is read, not its source, so that one from `exec`, a REPL or a zip will do.
Source, where there is any, is only quoted in errors.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import linecache
import math
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, NoReturn

import numpy as np

from .. import checks, hyper, packing
from ..hyper import REQUIRED, Hyper
from ..kernels import functions
from .symbols import (
    BUILTINS,
    MATH,
    RuleError,
    StateNumber,
    declares_only,
    mean,
    overall,
    per_tensor,
    total,
)

ALLOWED = "a rule is arithmetic, if and math on one element"

RESERVED = (
    "params param_names maximize master_weights state_dtype stochastic_rounding step first master "
    "master_low self"
).split()
"""Names that groups, state and constructors of all optimizers have for something else."""

GIVEN = ("step", "first")
"""Keywords that a formula may have without a default: the number of the update, from 1, and whether it
is the first with a new state buffer."""


# ---- what a formula's bytecode must not hold ----

_STATEMENTS = {
    "a loop": "FOR_ITER GET_ITER GET_AITER GET_YIELD_FROM_ITER",
    "a function or comprehension within": "MAKE_FUNCTION",
    "a class": "LOAD_BUILD_CLASS",
    "an import": "IMPORT_NAME IMPORT_FROM IMPORT_STAR",
    "a global variable set": "STORE_GLOBAL DELETE_GLOBAL",
    "a variable of another function set": "DELETE_DEREF",
    "an attribute set": "STORE_ATTR DELETE_ATTR",
    "an element set": "STORE_SUBSCR DELETE_SUBSCR STORE_SLICE",
    "a list, dict, set or text": "BUILD_LIST BUILD_MAP BUILD_SET BUILD_STRING BUILD_CONST_KEY_MAP "
    "FORMAT_VALUE FORMAT_SIMPLE FORMAT_WITH_SPEC LIST_APPEND LIST_EXTEND SET_ADD MAP_ADD",
    "with, try, raise or assert": "SETUP_WITH BEFORE_WITH SETUP_FINALLY PUSH_EXC_INFO RAISE_VARARGS "
    "LOAD_ASSERTION_ERROR WITH_EXCEPT_START LOAD_SPECIAL",
    "yield or await": "YIELD_VALUE YIELD_FROM RETURN_GENERATOR GEN_START GET_AWAITABLE SEND",
}
_REFUSED = {name: what for what, names in _STATEMENTS.items() for name in names.split()}
_LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")


class Formula:
    """A rule's or a transform's function.

    Args:
        function: the function.
        kind: "rule" or "transform", for errors.
        leading: the names with which its arguments begin.
        optional: names that may follow, which are no state either.
        averages: of the state that is a running average what it is, "signed" or "positive", by name.
            Default: None, none is.

    Attributes:
        name, file, line: the function's.
        run: the function, with operands' arithmetic in place of `math` (see `symbols`). Numbers that
            it took from globals and closures are what they were when the formula was made.
        leading: its first arguments.
        states: its state, and what fills each buffer at first: a number, or what the hyper-parameter
            of this name is then.
        over: of the state that is one number for many elements, what these are, see `symbols.OVER`.
        hypers: hyper-parameters that its keywords declare.
        keywords: all of its keywords.
        open: those without a default, whose meaning others decide.

    Raises:
        RuleError: it is no formula.
    """

    def __init__(
        self,
        function: Any,
        kind: str,
        leading: tuple[str, ...],
        optional: tuple[str, ...] = (),
        averages: Mapping[str, str] | None = None,
    ):
        if not isinstance(function, FunctionType):
            raise RuleError(f"a {kind} must be a plain function, but got {function!r}")
        self.kind, self.name, self.doc = kind, function.__name__, function.__doc__
        self.module, self.qualname = function.__module__, function.__qualname__
        self.code, self._globals = function.__code__, function.__globals__
        self.file, self.line = self.code.co_filename, self.code.co_firstlineno
        self.states: dict[str, float | str] = {}
        self.over: dict[str, str] = {}
        self.hypers: dict[str, Hyper] = {}
        self.keywords: list[str] = []
        self.open: list[str] = []
        self._read_signature(inspect.signature(function), leading, optional)
        self.averages = dict(averages or {})
        self._check_averages()
        self._adapted = _Adapted(self)
        self.run = self._adapted.function(function)

    def _read_signature(
        self, signature: inspect.Signature, leading: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        positional: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            name, default = parameter.name, parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self.refuse(str(parameter), "name every state buffer and every hyper-parameter")
            if parameter.kind is not parameter.KEYWORD_ONLY:
                positional.append(parameter)
                continue
            self.keywords.append(name)
            if isinstance(default, StateNumber):
                self.refuse(
                    f"{name}={default!r}",
                    "a number of state is no hyper-parameter: it stands before the *",
                )
            if default is parameter.empty:
                self.open.append(name)
            else:
                self.hypers[name] = self.declared(name, default)
        names = tuple(parameter.name for parameter in positional)
        if names[: len(leading)] != leading:
            self.refuse(
                f"def {self.name}({', '.join(names)})",
                f"the arguments of a {self.kind} begin with {', '.join(leading)}",
            )
        self.leading = leading + tuple(name for name in names if name in optional)
        for parameter in positional[len(leading) :]:
            if parameter.name not in optional:
                self._declare_state(parameter)
            elif isinstance(parameter.default, StateNumber):
                self.refuse(str(parameter), "this is no state: give it no default")
        for name in self.keywords:
            if name not in self.open or name not in GIVEN:
                self.check_name(name)

    def _check_averages(self) -> None:
        for name, kind in self.averages.items():
            if name not in self.states or name in self.over:
                known = [state for state in self.states if state not in self.over]
                self.refuse(f"averages={self.averages}", f"{name!r} is none of its buffers {known}")
            if name + packing.SCALE in (*self.states, *self.keywords):
                self.refuse(name + packing.SCALE, f"this is what {name!r} has in 8 bits: rename it")
            if kind not in packing.KINDS:
                self.refuse(
                    f"averages={self.averages}",
                    f"{name!r} must be {' or '.join(map(repr, packing.KINDS))}, not {kind!r}",
                )

    def _declare_state(self, parameter: inspect.Parameter) -> None:
        name, default = parameter.name, parameter.default
        begins = 0.0 if default is parameter.empty else default
        if isinstance(default, StateNumber):
            self.over[name], begins = default.over, default.begins
        names_keyword = isinstance(begins, str) and begins in self.keywords
        if not (names_keyword or checks.is_number(begins)):
            self.refuse(
                str(parameter),
                "what is positional is a state buffer, and its default a number with which it "
                "begins, or the name of a hyper-parameter; a hyper-parameter comes after a *",
            )
        self.check_name(name)
        self.states[name] = begins if isinstance(begins, str) else float(begins)

    def declared(self, name: str, default: Any) -> Hyper:
        """The declaration of a hyper-parameter."""
        try:
            found = hyper.declared(name, default)
            if found.default is not REQUIRED:
                found.check(name, found.default)
        except (TypeError, ValueError) as error:
            self.refuse(f"{name}={default!r}", f"this default is impossible: {error}")
        return found

    def check_name(self, name: str) -> None:
        """Refuse a name that means something else in every optimizer."""
        if name in GIVEN:
            self.refuse(
                name,
                f"a formula asks for it by a keyword without a default: def {self.name}"
                f"(..., *, {name}, ...)",
            )
        if name in RESERVED:
            self.refuse(name, "this name means something else in every optimizer: take another")

    def refuse(self, construct: str, why: str, line: int | None = None) -> NoReturn:
        """Raise RuleError about something in the function."""
        line = self.line if line is None else line
        raise RuleError(f'{self.file}:{line}: {self.kind} {self.name}: "{construct}": {why}')

    def refuse_return(self, why: str) -> NoReturn:
        """Raise RuleError about what the function returns."""
        line, lines = self.line, set()
        for instruction in dis.get_instructions(self.code):
            line = _line_of(instruction) or line
            if instruction.opname in ("RETURN_VALUE", "RETURN_CONST"):
                lines.add(line)
        # Of several one cannot tell which it was.
        line = lines.pop() if len(lines) == 1 else self.line
        quoted = _statement(self.file, line, self._globals)
        self.refuse(quoted if quoted.startswith("return") else "return", why, line)

    def refuse_instruction(
        self, code: CodeType, instruction: dis.Instruction, line: int, what: str, why: str
    ) -> NoReturn:
        """Raise RuleError about an instruction in the function or one that it calls."""
        quoted = _statement(code.co_filename, line, self._globals) or what
        self._refuse_at(code, quoted, why, line)

    def _refuse_at(self, code: CodeType, construct: str, why: str, line: int) -> NoReturn:
        where = "" if code is self.code else f" (which {self.name} calls)"
        raise RuleError(
            f'{code.co_filename}:{line}: {self.kind} {self.name}: "{construct}"{where}: {why}'
        )

    def refuse_error(self, error: Exception) -> NoReturn:
        """Raise RuleError about what went wrong when the formula was run."""
        if isinstance(error, RuleError):
            raise error
        code, place, line = self.code, -1, self.line
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in self._adapted.made:
                code, place, line = trace.tb_frame.f_code, trace.tb_lasti, trace.tb_lineno
            trace = trace.tb_next
        construct = _expression(code, place, line, self._globals)
        why = f"{ALLOWED} ({type(error).__name__}: {error})"
        if isinstance(error, RecursionError):
            why = f"{ALLOWED}, and a function must not call itself without end"
        self._refuse_at(code, construct or f"def {self.name}", why, line)


class _Adapted:
    """Copies of a formula's function and of those that it calls, with operands' arithmetic.

    Attributes:
        made: the copies by code.
    """

    def __init__(self, formula: Formula):
        self._formula = formula
        self.made: dict[CodeType, Any] = {}
        self._functions: dict[int, tuple[Any, Any]] = {}

    def function(self, function: FunctionType) -> FunctionType:
        if id(function) in self._functions:
            return self._functions[id(function)][1]
        code = function.__code__
        names: dict[str, Any] = {"__builtins__": {}, "__name__": function.__module__}
        cells = tuple(CellType() for _ in function.__closure__ or ())
        made = FunctionType(code, names, function.__name__, function.__defaults__, cells or None)
        made.__kwdefaults__ = function.__kwdefaults__
        self._functions[id(function)] = function, made  # first, for it may call itself
        self.made[code] = made
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            line = _line_of(instruction) or line
            name = instruction.argval
            self._check(code, instruction, line)
            if instruction.opname in _LOADS_GLOBAL and name not in names:
                names[name] = self._global(function, name, instruction, line)
            elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
                self._fill(function, name, cells, instruction, line)
        return made

    def _check(self, code: CodeType, instruction: dis.Instruction, line: int) -> None:
        what = _REFUSED.get(instruction.opname)
        is_jump = instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs
        if is_jump and instruction.argval <= instruction.offset:
            what = "a loop"
        if what is not None:
            self._formula.refuse_instruction(code, instruction, line, what, ALLOWED)

    def _global(
        self, function: FunctionType, name: str, instruction: dis.Instruction, line: int
    ) -> Any:
        code = function.__code__
        if name in function.__globals__:
            return self._value(function.__globals__[name], code, instruction, line, name)
        if name in BUILTINS:
            return BUILTINS[name]
        why = ALLOWED if hasattr(builtins, name) else f"{name!r} is not known here"
        self._formula.refuse_instruction(code, instruction, line, name, why)

    def _fill(
        self,
        function: FunctionType,
        name: str,
        cells: tuple[CellType, ...],
        instruction: dis.Instruction,
        line: int,
    ) -> None:
        """Take over what a closure holds."""
        code = function.__code__
        if name not in code.co_freevars:
            return
        place = code.co_freevars.index(name)
        try:
            value = (function.__closure__ or ())[place].cell_contents
        except ValueError:
            why = f"{name!r} has no value yet"
            self._formula.refuse_instruction(code, instruction, line, name, why)
        cells[place].cell_contents = self._value(value, code, instruction, line, name)

    def _value(
        self, value: Any, code: CodeType, instruction: dis.Instruction, line: int, name: str
    ) -> Any:
        found = self.known(value)
        if found is None:
            why = f"{ALLOWED}; {name!r} is a {type(value).__name__}"
            self._formula.refuse_instruction(code, instruction, line, name, why)
        return found

    def known(self, value: Any) -> Any:
        """What stands for a value in a formula; None if nothing does."""
        if value is total or value is mean:
            return value
        if value is per_tensor or value is overall:
            return declares_only
        value = getattr(value, "py_func", value)  # of a function that Numba compiles
        if isinstance(value, FunctionType):
            return self.function(value)
        if value is math:
            return MATH
        if isinstance(value, ModuleType):
            return _Module(value, self)
        if isinstance(value, BuiltinFunctionType):
            if value.__module__ == "math" and value.__name__ in functions.ARGUMENTS:
                return getattr(MATH, value.__name__)
            return next((f for n, f in BUILTINS.items() if getattr(builtins, n) is value), None)
        if checks.is_number(value) or checks.is_flag(value):
            return value
        if isinstance(value, tuple) and all(map(checks.is_number, value)):
            return value
        return None


class _Module:
    """A module of which a formula uses functions and numbers."""

    def __init__(self, module: ModuleType, adapted: _Adapted):
        self._module, self._adapted = module, adapted

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        found = self._adapted.known(value)
        if found is None:
            what = f"{self._module.__name__}.{name} is a {type(value).__name__}"
            if isinstance(value, np.ufunc):
                what += "; take a function of math, and for a sign math.copysign(1.0, x)"
            raise AttributeError(what)
        return found


def _line_of(instruction: dis.Instruction) -> int | None:
    """The line on which an instruction begins, if it says so."""
    positions = getattr(instruction, "positions", None)
    if positions is not None and positions.lineno is not None:
        return positions.lineno
    line = instruction.starts_line
    return line if isinstance(line, int) and not isinstance(line, bool) else None


def _source_line(file: str, line: int, names: dict[str, Any]) -> str:
    return linecache.getline(file, line, names)


def _statement(file: str, line: int, names: dict[str, Any]) -> str:
    """A line of source; empty where there is none."""
    text = _source_line(file, line, names).strip()
    return text[:-1].rstrip() if text.endswith(":") else text


def _expression(code: CodeType, place: int, line: int, names: dict[str, Any]) -> str:
    """The source of the instruction at a place, or of its line; empty where there is none."""
    positions: Callable | None = getattr(code, "co_positions", None)
    if positions is not None and place >= 0:
        first, last, start, end = list(positions())[place // 2]
        if first is not None and first == last and start is not None and end is not None:
            text = _source_line(code.co_filename, first, names).encode()
            return text[start:end].decode(errors="replace")
    return _statement(code.co_filename, line, names)
