"""From symbols to code: a kernel's function, and the host's for its scalars.

Where a formula asks for sums over its tensor, there are two more: one of an element, that gives what is
summed, and one of a tensor, that makes of the sums the numbers that the kernel's function takes.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

from ..kernels.sums import Sums
from .symbols import ELEMENT, TENSOR, Symbol

_BINARY = {"add": ast.Add, "sub": ast.Sub, "mul": ast.Mult, "div": ast.Div, "power": ast.Pow}
_COMPARED = {
    "lt": ast.Lt, "le": ast.LtE, "gt": ast.Gt, "ge": ast.GtE, "eq": ast.Eq, "ne": ast.NotEq
}  # fmt: skip
_SAFE = {"add", "sub", "mul", "neg", "choice", "truth", *_COMPARED}
_HOME = "genesis.kernels.rules"
"""The module that generated functions say they come from: Numba looks for it when it loads their
machine code, and nothing in it differs from user to user."""


class Written:
    """The code for one formula, its flags decided. It is written when it is asked for.

    Args:
        name: the formula's name.
        file, line: where the formula is; the lines of symbols are in that file.
        results: what becomes of the parameter and of each state buffer.
        states: the names of state buffers.
        summands: what the formula sums over its tensor.

    Attributes:
        states: the names of those that are needed: that something reads, other than to leave them
            as they are.
        count: how many scalars the host computes.
        totals: how many sums there are.
        numbers: how many numbers the kernel takes that follow from them, or from the number of elements.
    """

    def __init__(
        self,
        name: str,
        file: str,
        line: int,
        results: Sequence[Symbol],
        states: Sequence[str],
        summands: Sequence[Symbol] = (),
    ):
        self._name, self._file, self._line = name, file, line
        kept = _read(results, states, summands)
        self.states = tuple(state for i, state in enumerate(states) if i in kept)
        self._results = [results[0], *(results[1 + i] for i in kept)]
        self._numbers = [s for s, _ in _uses(self._results, _elements) if s.level == TENSOR]
        # Of equal sums one will do, and of those that nothing makes use of, none.
        used = [s.operands[0] for s, _ in _uses(self._numbers, _operands) if s.operation == "total"]
        self._place = {i: min(j for j in used if summands[j] is summands[i]) for i in used}
        self._asked = sorted({*self._place.values()})
        self._summands = [summands[i] for i in self._asked]
        self._roots = [*self._results, *self._summands]
        self._scalars = list(_hosts(self._roots))
        self.count = len(self._scalars)
        self.totals, self.numbers = len(self._summands), len(self._numbers)

    @cached_property
    def rule(self) -> FunctionType:
        """The kernel's function: `(param, grad, state, hyper) -> (param, state)`, without numbers.

        `hyper` has the numbers of the tensor, then the scalars.
        """
        return self._compilable(self._kernel())

    @cached_property
    def summand(self) -> FunctionType:
        """What is summed: `(param, grad, state, hyper) -> ...`, a tuple; `hyper` has the scalars."""
        return self._compilable(self._summand())

    @cached_property
    def finish(self) -> FunctionType:
        """The numbers of a tensor: `(totals, count, hyper) -> ...`, a tuple; `hyper` has the scalars.

        `totals` has the sums, `count` is the number of elements.
        """
        return self._compilable(self._finish())

    @cached_property
    def sums(self) -> Sums | None:
        """What kernels need to know of the sums; None, there are none."""
        if not self.numbers:
            return None
        return Sums(
            self.summand, self.finish, self.totals, self.numbers, len(self.states), self.count
        )

    @cached_property
    def scalars(self) -> FunctionType:
        """The host's function: `scalars(group, step, named, first)` are the kernel's scalars.

        `group` has hyper-parameters by name, Python's numbers (arithmetic with NumPy's would be in
        their types), `named` what functions for per-step numbers gave, and `first` says that a state
        buffer is new.
        """
        return self._made(self._host())

    @property
    def text(self) -> str:
        """All functions as source."""
        sums = [self._summand(), self._finish()] if self.totals else []
        return "\n\n\n".join(map(ast.unparse, [*sums, self._kernel(), self._host()]))

    def _compilable(self, function: ast.FunctionDef) -> FunctionType:
        made = self._made(function)
        # What is compiled is known by its name, too: two formulas of one name may differ.
        digest = hashlib.blake2b(ast.unparse(function).encode(), digest_size=8).hexdigest()
        made.__name__ = made.__qualname__ = f"{self._name}_{digest}"
        return made

    def _made(self, function: ast.FunctionDef) -> FunctionType:
        module = ast.Module([function], [])
        names: dict[str, Any] = {"math": math, "__name__": _HOME}
        exec(compile(module, self._file, "exec"), names)
        return names[function.name]

    def _function(
        self, name: str, arguments: Sequence[str], body: list[ast.stmt]
    ) -> ast.FunctionDef:
        function = ast.parse("def function(): pass").body[0]
        assert isinstance(function, ast.FunctionDef)
        function.name, function.body = name, body
        function.args.args = [ast.arg(argument) for argument in arguments]
        function.lineno = function.end_lineno = self._line
        return ast.fix_missing_locations(function)

    def _kernel(self) -> ast.FunctionDef:
        arguments = "param", "grad", "state", "hyper"
        names, taken = self._named({*arguments, *self.states})
        numbers = [f"of_tensor_{i}" for i in range(self.numbers)]
        names.update(zip(map(id, self._numbers), numbers))
        scalars = [names[id(scalar)] for scalar in self._scalars]
        body = [*_unpack(self.states, "state"), *_unpack([*numbers, *scalars], "hyper")]
        writer = _Writer(names, "value_", taken)
        body += self._shared(writer, self._results, ELEMENT)
        param, *states = [writer.expression(symbol) for symbol in self._results]
        rest: Any = ast.Tuple(states, ast.Load()) if states else _load("state")
        body.append(ast.Return(ast.Tuple([param, rest], ast.Load())))
        return self._function("rule", arguments, body)

    def _summand(self) -> ast.FunctionDef:
        arguments = "param", "grad", "state", "hyper"
        names, taken = self._named({*arguments, *self.states})
        scalars = [names[id(scalar)] for scalar in self._scalars]
        body = [*_unpack(self.states, "state"), *_unpack(scalars, "hyper")]
        writer = _Writer(names, "value_", taken)
        body += self._shared(writer, self._summands, ELEMENT)
        body.append(_returned(writer, self._summands))
        return self._function("summand", arguments, body)

    def _finish(self) -> ast.FunctionDef:
        arguments = "totals", "count", "hyper"
        names, taken = self._named({*arguments})
        totals = [f"total_{i}" for i in range(self.totals)]
        scalars = [names[id(scalar)] for scalar in self._scalars]
        body = [*_unpack(totals, "totals"), *_unpack(scalars, "hyper")]
        writer = _Writer(names, "value_", taken | {*totals}, self._total)
        body += self._shared(writer, self._numbers, TENSOR)
        body.append(_returned(writer, self._numbers))
        return self._function("finish", arguments, body)

    def _total(self, place: int) -> str:
        """What the function of a tensor calls a sum."""
        return f"total_{self._asked.index(self._place[place])}"

    def _named(self, taken: set[str]) -> tuple[dict[int, str], set[str]]:
        """The names of scalars in a function in which others are taken, and all names in it."""
        names: dict[int, str] = {}
        taken = {"math", *taken}
        for i, scalar in enumerate(self._scalars):
            name = _name(scalar)
            name = f"scalar_{i}" if name is None or name in taken else name
            taken.add(name)
            names[id(scalar)] = name
        return names, taken

    def _shared(self, writer: _Writer, roots: Sequence[Symbol], level: int) -> list[ast.stmt]:
        """What a function computes once, since it makes use of it several times."""
        uses = _uses(roots, lambda symbol: symbol.operands if symbol.level == level else ())
        return [
            writer.assign(symbol)
            for symbol, count in uses
            if count > 1 and symbol.level == level and not symbol.is_leaf
        ]

    def _host(self) -> ast.FunctionDef:
        names: dict[int, str] = {}
        body: list[ast.stmt] = []
        writer = _Writer(names, "value_", set())
        when = _when(self._roots)
        always = [scalar for scalar in self._scalars if () in when[id(scalar)]]
        certain = {id(symbol) for symbol, _ in _uses(always, _certain)}
        for symbol, count in _uses(self._scalars, _operands):
            is_shared = count > 1 and not symbol.is_leaf and id(symbol) in certain
            if is_shared or symbol.operation == "hyper":
                body.append(writer.assign(symbol))
        values = [writer.guarded(symbol, when[id(symbol)]) for symbol in self._scalars]
        body.append(ast.Return(ast.Tuple(values, ast.Load())))
        return self._function("scalars", ("group", "step", "named", "first"), body)


def _returned(writer: _Writer, symbols: Iterable[Symbol]) -> ast.Return:
    return ast.Return(ast.Tuple(list(map(writer.expression, symbols)), ast.Load()))


def _read(
    results: Sequence[Symbol], states: Sequence[str], summands: Sequence[Symbol]
) -> list[int]:
    """The numbers of the state buffers that something reads, other than to hand them on."""
    kept = list(range(len(states)))
    while True:
        changed = [
            results[0],
            *(results[1 + i] for i in kept if not _is(results[1 + i], states[i])),
            *summands,
        ]
        reads = {s.operands[0] for s, _ in _uses(changed, _operands) if s.operation == "element"}
        found = [i for i in kept if states[i] in reads]
        if found == kept:
            return kept
        kept = found


def _is(symbol: Symbol, element: str) -> bool:
    return symbol.operation == "element" and symbol.operands[0] == element


def _operands(symbol: Symbol) -> tuple:
    return symbol.operands


def _elements(symbol: Symbol) -> tuple:
    """The operands of what a kernel computes of elements."""
    return symbol.operands if symbol.level == ELEMENT else ()


def _not_hosts(symbol: Symbol) -> tuple:
    """The operands of what is not the host's."""
    return () if symbol.on_host else symbol.operands


def _certain(symbol: Symbol) -> tuple:
    """The operands that are computed whatever a choice comes to."""
    return symbol.operands[:1] if symbol.operation == "choice" else symbol.operands


def _uses(roots: Iterable[Symbol], operands: Callable[[Symbol], tuple]) -> list[tuple[Symbol, int]]:
    """All symbols, those first on which others depend, and how often each is used."""
    counts: dict[int, int] = {}
    ordered: list[Symbol] = []

    def visit(symbol: Symbol) -> None:
        counts[id(symbol)] = counts.get(id(symbol), 0) + 1
        if counts[id(symbol)] == 1:
            for operand in () if symbol.is_leaf else operands(symbol):
                visit(operand)
            ordered.append(symbol)

    for root in roots:
        visit(root)
    return [(symbol, counts[id(symbol)]) for symbol in ordered]


def _hosts(results: Iterable[Symbol]) -> list[Symbol]:
    """The outermost symbols that the host computes."""
    return [symbol for symbol, _ in _uses(results, _not_hosts) if symbol.on_host]


def _may_fail(symbol: Symbol) -> bool:
    """Whether Python may raise an error where a kernel would give NaN or infinity."""
    return not symbol.is_leaf and symbol.operation not in _SAFE


_Chain = tuple[tuple[Symbol, bool], ...]
"""Conditions that the host decides, each with its answer."""


def _when(results: Iterable[Symbol]) -> dict[int, list[_Chain]]:
    """For each symbol of `_hosts` the conditions under which a kernel makes use of it.

    Where it does not, its value may not even exist: it may be a division by zero.
    """
    found: dict[int, list[_Chain]] = {}
    seen: set[tuple] = set()

    def visit(symbol: Symbol, chain: _Chain) -> None:
        key = id(symbol), *((id(condition), answer) for condition, answer in chain)
        if key in seen:
            return
        seen.add(key)
        if symbol.on_host:
            found.setdefault(id(symbol), []).append(chain)
        elif symbol.operation == "choice" and symbol.operands[0].on_host:
            condition, yes, no = symbol.operands
            visit(condition, chain)
            visit(yes, (*chain, (condition, True)))
            visit(no, (*chain, (condition, False)))
        elif not symbol.is_leaf:
            for operand in symbol.operands:
                visit(operand, chain)

    for result in results:
        visit(result, ())
    return found


def _name(scalar: Symbol) -> str | None:
    if scalar.operation == "hyper" and len(scalar.operands) == 1:
        return scalar.operands[0]
    if scalar.operation == "named":
        return scalar.operands[1]
    return scalar.operation if scalar.operation in ("step", "first") else None


class _Writer:
    """Turns symbols into expressions; those that have a name stand by it.

    Args:
        names: the names, by the symbol's `id`.
        prefix: with what other names begin.
        taken: names that are none of these.
        total: the name of a sum, by its place. Default: None, there are none.
    """

    def __init__(
        self,
        names: dict[int, str],
        prefix: str,
        taken: set[str],
        total: Callable[[int], str] | None = None,
    ):
        self._names, self._prefix, self._taken = names, prefix, taken
        self._total = total

    def assign(self, symbol: Symbol) -> ast.Assign:
        """Compute a symbol once; from now on it has a name."""
        value = self.expression(symbol)
        number = len(self._names)
        while f"{self._prefix}{number}" in self._taken:
            number += 1
        name = f"{self._prefix}{number}"
        self._taken.add(name)
        self._names[id(symbol)] = name
        return _at(symbol, ast.Assign([ast.Name(name, ast.Store())], value))

    def expression(self, symbol: Symbol) -> Any:
        if id(symbol) in self._names:
            return _at(symbol, _load(self._names[id(symbol)]))
        return _at(symbol, self._written(symbol))

    def guarded(self, symbol: Symbol, when: Sequence[_Chain]) -> ast.expr:
        """A symbol's value under any of these conditions; otherwise 0, if it may not exist."""
        value = self.expression(symbol)
        if () in when or not any(_may_fail(part) for part, _ in _uses([symbol], _operands)):
            return value
        either = [_joined(ast.And, [self._answer(*one) for one in chain]) for chain in when]
        return ast.IfExp(_joined(ast.Or, either), value, ast.Constant(0.0))

    def _answer(self, condition: Symbol, answer: bool) -> ast.expr:
        value = self.expression(condition)
        return value if answer else ast.UnaryOp(ast.Not(), value)

    def _written(self, symbol: Symbol) -> ast.expr:
        operation = symbol.operation
        if operation == "total" and self._total is not None:
            return _load(self._total(symbol.operands[0]))
        if symbol.is_leaf:
            return _leaf(symbol)
        operands = [self.expression(operand) for operand in symbol.operands]
        if operation in _BINARY:
            return ast.BinOp(operands[0], _BINARY[operation](), operands[1])
        if operation == "neg":
            return ast.UnaryOp(ast.USub(), operands[0])
        if operation in _COMPARED:
            return ast.Compare(operands[0], [_COMPARED[operation]()], [operands[1]])
        if operation == "choice":
            return ast.IfExp(*operands)
        if operation == "truth":
            return operands[0]
        return ast.Call(ast.Attribute(_load("math"), operation, ast.Load()), operands, [])


def _leaf(symbol: Symbol) -> ast.expr:
    if symbol.operation == "constant":
        return ast.Constant(symbol.operands[0])
    if symbol.operation == "element":
        return _load(symbol.operands[0])
    if symbol.operation in ("step", "first", "count"):
        return _load(symbol.operation)
    if symbol.operation == "named":
        part, name = symbol.operands
        return _item(_item(_load("named"), part), name)
    name, *places = symbol.operands
    found = _item(_load("group"), name)
    for place in places:
        found = _item(found, place)
    return found


def _item(value: ast.expr, key: Any) -> ast.expr:
    return ast.Subscript(value, ast.Constant(key), ast.Load())


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _joined(operator: Any, values: list[ast.expr]) -> ast.expr:
    return values[0] if len(values) == 1 else ast.BoolOp(operator(), values)


def _at(symbol: Symbol, node: Any) -> Any:
    node.lineno = node.end_lineno = max(symbol.line, 1)
    node.col_offset = node.end_col_offset = 0
    return node


def _unpack(names: Sequence[str], whole: str) -> list[ast.stmt]:
    if not names:
        return []
    targets: list[ast.expr] = [ast.Name(name, ast.Store()) for name in names]
    return [ast.Assign([ast.Tuple(targets, ast.Store())], _load(whole))]
