"""From symbols to code: a kernel's function, and the host's for its scalars.

Where a formula asks for sums, or keeps numbers in the state, there are more: one of an element, that
gives what is summed; one of a tensor, that makes of the sums the numbers that the kernel's function
takes, and what becomes of those kept for the tensor; if need be one of a tensor, before, for what the
summands take of numbers kept; and one for what becomes of the numbers that are kept for all tensors.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import FunctionType
from typing import Any

from ..kernels.sums import Sums
from .symbols import ALL, ELEMENT, NUMBERS, TENSOR, TOTALS, Symbol

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
        states: the names of the state, each with the operation of its symbol: "element" of a buffer.
        summands: what the formula sums, by what it sums over.

    Attributes:
        states: the names of buffers that are needed: that something reads, other than to leave them
            as they are.
        of_tensor, of_all: of numbers kept for each tensor, and for all, those that are needed.
        count: how many scalars the host computes.
        totals: how many sums over the tensor there are.
        numbers: how many numbers the kernel takes that follow from sums, from the number of elements, or
            from numbers kept.
        concerns_all: whether there is anything about all tensors together.
    """

    def __init__(
        self,
        name: str,
        file: str,
        line: int,
        results: Sequence[Symbol],
        states: Mapping[str, str],
        summands: Mapping[str, Sequence[Symbol]],
    ):
        self._name, self._file, self._line = name, file, line
        kept = _read(results, list(states), [each for over in summands.values() for each in over])
        become = dict(zip(states, results[1:]))
        kinds: dict[str, list[str]] = {kind: [] for kind in ("element", *NUMBERS.values())}
        for i, (state, kind) in enumerate(states.items()):
            if i in kept:
                kinds[kind].append(state)
        self.states, self.of_tensor, self.of_all = map(tuple, kinds.values())
        self._results = [results[0], *(become[name] for name in self.states)]
        self._next = [become[name] for name in self.of_tensor]
        self._next_of_all = [become[name] for name in self.of_all]
        self._numbers = _outermost_numbers(self._results)
        if not self._numbers and (self.of_tensor or self.of_all):
            self._numbers = [*self._next, *self._next_of_all][:1]  # rows have a place for numbers
        # Of equal sums one will do, and of those that nothing makes use of, none.
        ends = _uses([*self._numbers, *self._next, *self._next_of_all], _operands)
        self._place: dict[tuple[str, int], int] = {}
        self._asked: dict[str, list[int]] = {}
        self._summands: list[Symbol] = []
        for over, kind in TOTALS.items():
            of = summands[over]
            used = [symbol.operands[0] for symbol, _ in ends if symbol.operation == kind]
            places = {i: min(j for j in used if of[j] is of[i]) for i in used}
            asked = self._asked[kind] = sorted({*places.values()})
            self._place.update(((kind, i), asked.index(j)) for i, j in places.items())
            self._summands += [of[i] for i in asked]
        self._early = _outermost_numbers(self._summands)
        self._roots = [*self._results, *self._summands, *self._next, *self._numbers]
        self._scalars = list(_hosts(self._roots))
        self._scalars_of_all = list(_hosts(self._next_of_all))
        self.count = len(self._scalars)
        self.totals, self.numbers = len(self._asked["total"]), len(self._numbers)
        self.concerns_all = any(
            symbol.level == ALL for symbol in (*self._numbers, *self._early)
        ) or any(
            symbol.operation in ("total_of_all", "count_of_all", "of_all")
            for symbol, _ in _uses([*self._numbers, *self._next, *self._next_of_all], _operands)
        )

    @cached_property
    def rule(self) -> FunctionType:
        """The kernel's function: `(param, grad, state, hyper) -> (param, state)`, without numbers.

        `hyper` has the numbers of the tensor, then the scalars.
        """
        return self._compilable(self._kernel())

    @cached_property
    def summand(self) -> FunctionType:
        """What is summed: `(param, grad, state, hyper) -> ...`, a tuple, over the tensor and over all.

        `hyper` has the numbers that `begin` gives, then the scalars.
        """
        return self._compilable(self._summand())

    @cached_property
    def begin(self) -> FunctionType | None:
        """What summands take of a tensor: `(known, count, hyper) -> ...`, a tuple; None, it is nothing.

        `known` has the numbers kept for the tensor, then those for all; `count` and `hyper` are as for
        `finish`.
        """
        return self._compilable(self._begin()) if self._early else None

    @cached_property
    def finish(self) -> FunctionType:
        """The numbers of a tensor: `(known, count, hyper) -> ...`, a tuple; `hyper` has the scalars.

        `known` has the sums over the tensor, the numbers kept for it, the sums over all tensors, the
        number of all elements, if anything concerns all, and the numbers kept for all; `count` is the
        number of elements. What it gives are the numbers that the kernel's function takes, and what
        becomes of those kept for the tensor.
        """
        return self._compilable(self._finish())

    @cached_property
    def carry(self) -> FunctionType | None:
        """What becomes of the numbers kept for all: `(known, hyper) -> ...`, a tuple; None: of none.

        `known` is as for `finish`, without what is the tensor's; `hyper` has the scalars of all.
        """
        return self._compilable(self._carry()) if self.of_all else None

    @cached_property
    def sums(self) -> Sums | None:
        """What kernels need to know of the sums; None, there are none."""
        if not self.numbers:
            return None
        return Sums(
            self.summand,
            self.finish,
            self.totals,
            self.numbers,
            len(self.states),
            self.count,
            self.begin,
            len(self._early),
            len(self.of_tensor),
            self.carry,
            self.concerns_all,
            len(self._asked["total_of_all"]),
            len(self.of_all),
            len(self._scalars_of_all),
        )

    @cached_property
    def scalars(self) -> FunctionType:
        """The host's function: `scalars(group, step, named, first)` are the kernel's scalars.

        `group` has hyper-parameters by name, Python's numbers (arithmetic with NumPy's would be in
        their types), `named` what functions for per-step numbers gave, and `first` says that a state
        buffer is new.
        """
        return self._made(self._host(self._scalars, self._roots))

    @cached_property
    def scalars_of_all(self) -> FunctionType:
        """As `scalars`, those of `carry`."""
        return self._made(self._host(self._scalars_of_all, self._next_of_all))

    @cached_property
    def about_all(self) -> tuple:
        """What must be equal for groups whose tensors are summed up together."""
        carried = ast.unparse(self._carry()) if self.of_all else ""
        return carried, tuple(self._asked["total_of_all"]), self.of_all

    @property
    def text(self) -> str:
        """All functions as source."""
        sums = [self._summand(), self._finish()] if self.numbers else []
        if self._early:
            sums.insert(0, self._begin())
        if self.of_all:
            sums.append(self._carry())
        host = self._host(self._scalars, self._roots)
        return "\n\n\n".join(map(ast.unparse, [*sums, self._kernel(), host]))

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
        numbers = [f"of_tensor_{i}" for i in range(len(self._early))]
        names.update(zip(map(id, self._early), numbers))
        scalars = [names[id(scalar)] for scalar in self._scalars]
        body = [*_unpack(self.states, "state"), *_unpack([*numbers, *scalars], "hyper")]
        writer = _Writer(names, "value_", taken)
        body += self._shared(writer, self._summands, ELEMENT)
        body.append(_returned(writer, self._summands))
        return self._function("summand", arguments, body)

    def _begin(self) -> ast.FunctionDef:
        known = [*_leaves("of_tensor", self.of_tensor), *_leaves("of_all", self.of_all)]
        return self._of_known("begin", known, self._early)

    def _finish(self) -> ast.FunctionDef:
        of_tensor = [
            *_leaves("total", range(self.totals)),
            *_leaves("of_tensor", self.of_tensor),
        ]
        return self._of_known(
            "finish", [*of_tensor, *self._known_of_all], [*self._numbers, *self._next]
        )

    def _carry(self) -> ast.FunctionDef:
        return self._of_known("carry", self._known_of_all, self._next_of_all, of_all=True)

    @property
    def _known_of_all(self) -> list[tuple[str, Any]]:
        """What is known of all tensors once they are summed up."""
        if not self.concerns_all:
            return []
        totals = range(len(self._asked["total_of_all"]))
        return [
            *_leaves("total_of_all", totals),
            ("count_of_all", None),
            *_leaves("of_all", self.of_all),
        ]

    def _of_known(
        self,
        name: str,
        known: Sequence[tuple[str, Any]],
        results: Sequence[Symbol],
        of_all: bool = False,
    ) -> ast.FunctionDef:
        """A function of what is known of a tensor, or of all, each by its leaf's kind and which one."""
        arguments = ("known", "hyper") if of_all else ("known", "count", "hyper")
        own = {leaf: f"known_{i}" for i, leaf in enumerate(known)}
        names, taken = self._named({*arguments, *own.values()}, of_all)
        scalars = [
            names[id(scalar)] for scalar in (self._scalars_of_all if of_all else self._scalars)
        ]
        body = [*_unpack([*own.values()], "known"), *_unpack(scalars, "hyper")]

        def name_of(leaf: Symbol) -> str | None:
            which: Any = leaf.operands[0] if leaf.operands else None
            return own.get((leaf.operation, self._place.get((leaf.operation, which), which)))

        writer = _Writer(names, "value_", taken, name_of)
        body += self._shared(writer, results, ALL, TENSOR)
        body.append(_returned(writer, results))
        return self._function(name, arguments, body)

    def _named(self, taken: set[str], of_all: bool = False) -> tuple[dict[int, str], set[str]]:
        """The names of scalars in a function in which others are taken, and all names in it."""
        names: dict[int, str] = {}
        taken = {"math", *taken}
        for i, scalar in enumerate(self._scalars_of_all if of_all else self._scalars):
            name = _name(scalar)
            name = f"scalar_{i}" if name is None or name in taken else name
            taken.add(name)
            names[id(scalar)] = name
        return names, taken

    def _shared(self, writer: _Writer, roots: Sequence[Symbol], *levels: int) -> list[ast.stmt]:
        """What a function computes once, since it makes use of it several times."""
        uses = _uses(roots, lambda symbol: symbol.operands if symbol.level in levels else ())
        return [
            writer.assign(symbol)
            for symbol, count in uses
            if count > 1 and symbol.level in levels and not symbol.is_leaf
        ]

    def _host(self, scalars: Sequence[Symbol], roots: Sequence[Symbol]) -> ast.FunctionDef:
        names: dict[int, str] = {}
        body: list[ast.stmt] = []
        writer = _Writer(names, "value_", set())
        when = _when(roots)
        always = [scalar for scalar in scalars if () in when[id(scalar)]]
        certain = {id(symbol) for symbol, _ in _uses(always, _certain)}
        for symbol, count in _uses(scalars, _operands):
            is_shared = count > 1 and not symbol.is_leaf and id(symbol) in certain
            if is_shared or symbol.operation == "hyper":
                body.append(writer.assign(symbol))
        values = [writer.guarded(symbol, when[id(symbol)]) for symbol in scalars]
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
        reads = {s.operands[0] for s, _ in _uses(changed, _operands) if s.operation in _STATE}
        found = [i for i in kept if states[i] in reads]
        if found == kept:
            return kept
        kept = found


_STATE = ("element", *NUMBERS.values())


def _is(symbol: Symbol, state: str) -> bool:
    return symbol.operation in _STATE and symbol.operands[0] == state


def _leaves(kind: str, which: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(kind, each) for each in which]


def _outermost_numbers(symbols: Sequence[Symbol]) -> list[Symbol]:
    """What an element's function takes as numbers of its tensor, or of all."""
    return [s for s, _ in _uses(symbols, _elements) if s.level in (ALL, TENSOR)]


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
        known: the name of a leaf that is none of the usual ones; None, it is. Default: none are not.
    """

    def __init__(
        self,
        names: dict[int, str],
        prefix: str,
        taken: set[str],
        known: Callable[[Symbol], str | None] = lambda leaf: None,
    ):
        self._names, self._prefix, self._taken = names, prefix, taken
        self._known = known

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
        if symbol.is_leaf:
            name = self._known(symbol)
            return _leaf(symbol) if name is None else _load(name)
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
