"""Symbols and numbers on which a formula runs, and what it did with them.

Both are `Operand`s: they go through the same function and mean the same arithmetic. A `Symbol` writes
down what is done with it; a `Scalar` does it, as the CPU's kernels do.

A symbol that depends on no element of a tensor is the host's. Where one is asked whether it is true,
by an `if`, `and`, `or` or `not`, the formula is run once for each answer, and the two results are
joined by a choice; where both runs did the same with different values, the choice is made between the
values. So code that follows an `if` stands once, as it was written.

What a formula sums over its tensor (`total`) is a symbol of its own, the same one on every way: the
summands of all ways are joined as results are. With the number of elements, and numbers of state
(`per_tensor`), it is what a formula may know of the whole tensor, and what is computed of these alone is
computed once for each tensor. The same goes for all tensors together: sums over all of them, and
`overall` numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from types import CodeType
from typing import Any

import numpy as np

from ..kernels import functions

ARITHMETIC = ("add", "sub", "mul", "div", "neg")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_TRUTHS = {*COMPARISONS, "truth", *functions.TESTS}
_PLAIN = (int, float, np.floating, np.integer, np.bool_)  # a bool is an int
WAYS = 256
"""How many ways through a formula there may be: eight `if`s, one after another, that is."""
_LARGEST_POWER = 8


class Operand:
    """Something with which a formula computes."""

    __slots__ = ()
    __array_ufunc__ = None  # NumPy's scalars leave arithmetic with it to this class
    __hash__ = object.__hash__

    def do(self, operation: str, *operands: Any) -> Any:
        """The result of an operation, of `ARITHMETIC`, `COMPARISONS`, "power" or of `math`."""
        raise NotImplementedError

    def choose(self, condition: Any, yes: Any, no: Any) -> Any:
        """`yes if condition else no`; from here on a kernel's number, whichever it is."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        return self.do("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self.do("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self.do("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self.do("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return self.do("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self.do("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return self.do("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self.do("div", other, self)

    def __pow__(self, other: Any) -> Any:
        return self.do("power", self, other)

    def __rpow__(self, other: Any) -> Any:
        return self.do("power", other, self)

    def __neg__(self) -> Any:
        return self.do("neg", self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self.do("fabs", self)

    def __lt__(self, other: Any) -> Any:
        return self.do("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return self.do("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return self.do("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return self.do("ge", self, other)

    def __eq__(self, other: Any) -> Any:
        return self.do("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return self.do("ne", self, other)


def power(base: Any, exponent: Any) -> Any:
    """The power of an element: small whole ones are products, 0.5 is a square root."""
    if not isinstance(exponent, Operand):
        if exponent == 0.5:
            return base.do("sqrt", base)
        if 1 <= abs(exponent) <= _LARGEST_POWER and float(exponent).is_integer():
            product = base
            for _ in range(abs(int(exponent)) - 1):
                product = product * base
            return product if exponent > 0 else 1.0 / product
    one = base if isinstance(base, Operand) else exponent
    return one.do("pow", base, exponent)


# ---- what a formula finds in place of `math` and of Python's own functions ----


def _function(name: str) -> Callable:
    usual = getattr(math, name)

    def call(*arguments: Any) -> Any:
        operand = next((a for a in arguments if isinstance(a, Operand)), None)
        if operand is None:
            return usual(*arguments)
        if len(arguments) != functions.ARGUMENTS[name]:
            raise TypeError(f"{name} takes {functions.ARGUMENTS[name]} arguments")
        return operand.do(name, *arguments)

    return call


class _Math:
    """`math`, with functions that take operands."""

    def __init__(self) -> None:
        for name in functions.ARGUMENTS:
            setattr(self, name, _function(name))
        for name in ("pi", "e", "tau", "inf", "nan"):
            setattr(self, name, getattr(math, name))

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(functions.ARGUMENTS)
        raise AttributeError(f"of math, rules may use {known}")


MATH = _Math()


def _extreme(usual: Callable, operation: str) -> Callable:
    """`min` or `max` as Python has them, what they do with NaN included."""

    def call(*arguments: Any) -> Any:
        if not any(isinstance(argument, Operand) for argument in arguments):
            return usual(*arguments)
        found, *others = arguments
        for other in others:
            operand = other if isinstance(other, Operand) else found
            if isinstance(operand, Operand):
                found = operand.choose(operand.do(operation, other, found), other, found)
            else:
                found = usual(found, other)
        return found

    return call


BUILTINS = {
    "abs": abs,
    "float": float,
    "max": _extreme(max, "gt"),
    "min": _extreme(min, "lt"),
    "pow": pow,
}
"""Python's own functions that a formula may call."""


# ---- sums over a tensor ----


OVER = "tensor", "all"
"""What sums may be over."""


class RuleError(TypeError):
    """A function cannot be the rule of an optimizer; says where and why."""


def total(value: Any, over: str = "tensor") -> Any:
    r"""In a rule: the sum of a value over all elements of the tensor, :math:`\sum_i x_i`, or of all.

    A rule that asks for sums is compiled to two passes: the first one reads gradients, parameters and
    state as they are before the update, and sums up; the second one updates. What a rule computes of
    sums and hyper-parameters alone is computed once for each tensor, in float64. Each tensor is summed
    up in pieces of fixed size, in a fixed order: the result does not depend on threads, nor on which
    other tensors there are.

    Args:
        value: what is to be summed: something that the rule has computed of the element, its gradient
            and state. It must not depend on another total, nor may an `if` on an element decide
            whether it is asked for.
        over: "tensor", or "all": the sum is over all tensors that the optimizer updates in this step,
            of all its groups: those that have a gradient. The sums of single tensors are added in the
            order of the parameters. Default: "tensor".

    Returns:
        The sum: a number, the same for all elements of a tensor, or of all tensors.

    Raises:
        RuleError: outside of a rule, or another `over`.

    Example:
        >>> import numpy as np, genesis
        >>> @genesis.rule
        ... def NormalisedSGD(param, grad, *, lr):
        ...     return param - lr * grad / genesis.total(grad**2) ** 0.5
        >>> params = {"a": np.zeros(2), "b": np.zeros(1)}
        >>> _ = NormalisedSGD(params, lr=1.0).step(grads={"a": np.array([3.0, 4.0]), "b": np.ones(1)})
        >>> params
        {'a': array([-0.6, -0.8]), 'b': array([-1.])}
    """
    return _summing("total", value, over).total(value, over)


def mean(value: Any, over: str = "tensor") -> Any:
    r"""In a rule: the mean of a value over all elements of the tensor, or of all tensors, see `total`.

    Args:
        value: what the mean is to be of.
        over: "tensor" or "all". Default: "tensor".

    Returns:
        The mean: a number, the same for all elements of a tensor, or of all tensors.

    Raises:
        RuleError: outside of a rule, or another `over`.

    Example:
        >>> import numpy as np, genesis
        >>> @genesis.rule
        ... def Centered(param, grad, *, lr):
        ...     return param - lr * (grad - genesis.mean(grad))
        >>> x = np.zeros(2)
        >>> _ = Centered([x], lr=1.0).step(grads=[np.array([1.0, 3.0])])
        >>> x
        array([ 1., -1.])
    """
    sums = _summing("mean", value, over)
    return sums.total(value, over) / sums.count(over)


def _summing(name: str, value: Any, over: Any) -> Any:
    """What has the `total` of a value and the `count` of elements; RuleError outside of a rule."""
    if over not in OVER:
        raise _misused(f"{name}() is over 'tensor' or over 'all', but got {over!r}")
    if isinstance(value, Symbol):
        return value.trace
    if isinstance(value, Scalar) and _sums:
        return _sums[-1]
    raise _misused(
        f"{name}() has a meaning in a rule only, of what the rule computes, but got {value!r}"
    )


def _misused(why: str) -> RuleError:
    """An error about a call, from outside of this module, to one of its functions."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return RuleError(f"{frame.f_code.co_filename}:{frame.f_lineno}: {why}")


# ---- numbers of state ----


class StateNumber:
    """The declaration of a number that is state, made by `per_tensor` and `overall`.

    Attributes:
        begins: what it is at first, a number or the name of a hyper-parameter.
        over: of which elements it is one number, see `OVER`.
    """

    __slots__ = ("begins", "over")

    def __init__(self, begins: float | str, over: str):
        self.begins, self.over = begins, over

    def __repr__(self) -> str:
        return f"{'overall' if self.over == 'all' else 'per_tensor'}({self.begins!r})"


def per_tensor(begins: float | str = 0.0) -> Any:
    """In a rule's arguments: a positional one is one number for each tensor, not one for each element.

    It is state as a buffer is: what it becomes is returned in its place, kept from step to step, in the
    state of the parameter as a float, and in checkpoints. It can follow from sums and from other such
    numbers, but not from elements. It is float64, whatever the parameter's type.

    Args:
        begins: what it is at first, a number, or the name of a hyper-parameter. Default: 0.0.

    Returns:
        The declaration.

    Example:
        >>> import numpy as np, genesis
        >>> @genesis.rule
        ... def Bounded(param, grad, most=genesis.per_tensor(), *, lr):
        ...     most = max(most, genesis.total(grad * grad) ** 0.5)
        ...     return param - lr * grad / most, most
        >>> x = np.zeros(2)
        >>> opt = Bounded([genesis.Parameter(x)], lr=1.0)
        >>> for size in (1.0, 0.5):
        ...     _ = opt.step(grads=[size * np.array([3.0, 4.0])])
        >>> x
        array([-0.9, -1.2])
        >>> [entries["most"] for entries in opt.state.values()]
        [5.0]
    """
    return StateNumber(begins, "tensor")


def overall(begins: float | str = 0.0) -> Any:
    """In a rule's arguments: a positional one is one number for all tensors of the optimizer.

    As `per_tensor`, but it can follow from sums over all tensors, `total(x, over="all")`, from other
    such numbers and from hyper-parameters that all groups have alike. The state of every parameter
    shows it.

    Args:
        begins: what it is at first, a number, or the name of a hyper-parameter. Default: 0.0.

    Returns:
        The declaration.

    Example:
        >>> import numpy as np, genesis
        >>> @genesis.rule
        ... def AdaGradNorm(param, grad, sum_sq=genesis.overall(), *, lr):
        ...     sum_sq = sum_sq + genesis.total(grad * grad, over="all")
        ...     return param - lr * grad / sum_sq**0.5, sum_sq
        >>> params = {"a": np.zeros(1), "b": np.zeros(1)}
        >>> opt = AdaGradNorm(params, lr=1.0)
        >>> _ = opt.step(grads={"a": np.array([3.0]), "b": np.array([4.0])})
        >>> params
        {'a': array([-0.6]), 'b': array([-0.8])}
        >>> [entries["sum_sq"] for entries in opt.state.values()]
        [25.0, 25.0]
    """
    return StateNumber(begins, "all")


def declares_only(*_: Any) -> Any:
    """What stands for `per_tensor` and `overall` in the body of a formula."""
    raise TypeError(
        "per_tensor() and overall() declare numbers of state: they stand as defaults of positional "
        "arguments"
    )


# ---- numbers ----


class Sums:
    """Sums over elements that are gone through one by one, see `Recipe.evaluated`.

    They are all there is: a sum over all tensors is the sum over these.

    The elements are gone through once for each sum, since it is asked for before it is known, and once
    more with all of them known.

    Args:
        count: the number of elements.
        kind: the type in which they are computed with.
    """

    def __init__(self, count: int, kind: type):
        self._number, self._kind = count, kind
        self._known: list[float] = []
        self._next: list[float] = []
        self._asked = 0

    def count(self, over: str) -> Scalar:
        return Scalar(self._kind(self._number))

    def begin(self) -> None:
        """Begin with another element."""
        self._asked = 0

    def total(self, value: Scalar, over: str) -> Scalar:
        place, self._asked = self._asked, self._asked + 1
        if place == len(self._known):
            self._next.append(float(value.value))
        known = self._known[place] if place < len(self._known) else math.nan
        return Scalar(self._kind(known))

    def learned(self) -> bool:
        """After all elements: whether one more sum is known now, so that it is to be done anew."""
        if not self._next:
            return False
        exact = all(map(math.isfinite, self._next))
        self._known.append(math.fsum(self._next) if exact else sum(self._next))
        self._next = []
        return True


_sums: list[Sums] = []
"""What gives sums to numbers; the last one does."""


def summing(sums: Sums, formula: Callable[[], Any]) -> Any:
    """What a formula gives for the next element, with these sums."""
    _sums.append(sums)
    try:
        sums.begin()
        return formula()
    finally:
        _sums.pop()


class Scalar(Operand):
    """A NumPy scalar that computes as kernels do. What is true is 1, what is false 0."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def do(self, operation: str, *operands: Any) -> Any:
        if operation == "power":
            return power(*operands)
        kind = type(self.value)
        values = [_value(operand, kind) for operand in operands]
        if operation in functions.ARGUMENTS:
            return Scalar(kind(functions.evaluate(operation, *values)))
        with np.errstate(all="ignore"):
            return Scalar(kind(_OPERATIONS[operation](*values)))

    def choose(self, condition: Any, yes: Any, no: Any) -> Any:
        return Scalar(_value(yes if condition else no, type(self.value)))

    def __bool__(self) -> bool:
        return bool(self.value)


def _value(operand: Any, kind: type) -> Any:
    if isinstance(operand, Scalar):
        return operand.value
    if not isinstance(operand, _PLAIN):
        raise TypeError(f"{operand!r} is no number")
    with np.errstate(all="ignore"):
        return kind(float(operand))


_OPERATIONS: dict[str, Callable] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


# ---- symbols ----


class Symbol(Operand):
    """A value that a formula computes: an operation and its operands, each of them a symbol.

    Attributes:
        operation: of the leaves as in `LEAVES`; else as in `Operand.do`, or "choice", or "truth".
        operands: of leaves what tells them apart.
        level: on what it depends: `HOST` on numbers that the host has, `ALL` on what is of all tensors
            besides, `TENSOR` on what is of the tensor, `ELEMENT` on elements.
        line: where it was computed first.
    """

    __slots__ = ("level", "line", "operands", "operation", "trace")

    def __init__(self, trace: Trace, operation: str, operands: tuple, level: int, line: int):
        self.trace, self.operation, self.operands = trace, operation, operands
        self.level, self.line = level, line

    @property
    def on_host(self) -> bool:
        return self.level == HOST

    @property
    def is_truth(self) -> bool:
        """Whether it is true or false, rather than a number."""
        return self.operation in _TRUTHS

    @property
    def is_leaf(self) -> bool:
        return self.operation in LEAVES

    def do(self, operation: str, *operands: Any) -> Any:
        trace = self.trace
        beside_element = any(isinstance(o, Symbol) and not o.on_host for o in operands)
        if operation == "power" and beside_element:
            return power(*operands)
        symbols = [trace.number(operand, beside_element) for operand in operands]
        return trace.symbol(operation, *symbols)

    def choose(self, condition: Any, yes: Any, no: Any) -> Any:
        return self.trace.choose(condition, yes, no)

    def __bool__(self) -> bool:
        return self.trace.decide(self)

    def __repr__(self) -> str:
        return f"<{self.operation} in a formula>"


HOST, ALL, TENSOR, ELEMENT = range(4)
LEAVES = {
    "element": ELEMENT,
    "total": TENSOR,
    "count": TENSOR,
    "of_tensor": TENSOR,
    "total_of_all": ALL,
    "count_of_all": ALL,
    "of_all": ALL,
    "hyper": HOST,
    "named": HOST,
    "step": HOST,
    "first": HOST,
    "constant": HOST,
}
"""The symbols on which formulas begin, and on what they depend. Of "total" there is one for each sum, of
"count", the number of elements, one; "of_tensor" and "of_all" are numbers of state."""

TOTALS = {"tensor": "total", "all": "total_of_all"}
COUNTS = {"tensor": "count", "all": "count_of_all"}
NUMBERS = {"tensor": "of_tensor", "all": "of_all"}
"""The symbols for sums, numbers of elements, and numbers of state, by what they are over."""


def parts(symbol: Symbol) -> Iterator[Symbol]:
    """A symbol and all on which it depends, each once."""
    seen: set[int] = set()
    found = [symbol]
    while found:
        part = found.pop()
        if id(part) not in seen:
            seen.add(id(part))
            yield part
            if not part.is_leaf:
                found += part.operands


class TooManyWaysError(TypeError):
    """There are too many ways through a formula."""

    def __init__(self) -> None:
        super().__init__(f"there are more than {WAYS} ways through its conditions")


class SumError(TypeError):
    """A sum in a formula is none that can be had."""


def _check_summand(symbol: Symbol) -> None:
    if any(part.operation in TOTALS.values() for part in parts(symbol)):
        raise SumError("a total cannot be taken of what depends on another total")


class Trace:
    """All symbols of one formula: equal ones are one object.

    Args:
        code: the formula's code, of which symbols note the line.

    Attributes:
        summands: once `results` is there, by what sums are over, what each is of, in the order in which
            they are asked for.
    """

    def __init__(self, code: CodeType | None = None):
        self._code = code
        self._known: dict[tuple, Symbol] = {}
        self._choices: dict[tuple, Symbol] = {}
        self._plan: Sequence[bool] = ()
        self._taken: dict[int, tuple[Symbol, bool]] = {}
        self._positive: set[int] = set()
        self._summed: dict[str, list[Symbol]] = {}
        self.summands: dict[str, list[Symbol]] = {}

    def leaf(self, operation: str, *what: Any) -> Symbol:
        """A symbol on which formulas begin."""
        return self._one(operation, what, what, LEAVES[operation])

    def count(self, over: str) -> Symbol:
        """The number of elements of the tensor, or of all tensors."""
        return self.leaf(COUNTS[over])

    def total(self, value: Any, over: str) -> Symbol:
        """The sum of a value over all elements of the tensor, or of all tensors."""
        summand = self.number(value)
        if summand.level < ELEMENT and over == "all":
            raise SumError(
                "a total over all tensors must be of what differs from element to element"
            )
        if summand.level < ELEMENT:  # the same for each of them
            return summand * self.count(over)
        _check_summand(summand)
        self._summed[over].append(summand)
        return self.leaf(TOTALS[over], len(self._summed[over]) - 1)

    def assume(self, leaf: Symbol) -> None:
        """Let it be known that a symbol is more than 0, so that no way is taken on which it is not."""
        self._positive.add(id(leaf))

    def symbol(self, operation: str, *operands: Symbol) -> Symbol:
        """The symbol for an operation."""
        key = tuple(map(id, operands))
        return self._one(operation, key, operands, max((o.level for o in operands), default=HOST))

    def _one(self, operation: str, key: tuple, operands: tuple, level: int) -> Symbol:
        whole = operation, *key
        found = self._known.get(whole)
        if found is None:
            found = Symbol(self, operation, operands, level, self._line())
            self._known[whole] = found
        return found

    def _line(self) -> int:
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is self._code:
                return frame.f_lineno
            frame = frame.f_back  # type: ignore[assignment]
        return 0 if self._code is None else self._code.co_firstlineno

    def number(self, value: Any, beside_element: bool = False) -> Symbol:
        """A symbol that is a number, for an operand or a result of a formula."""
        if isinstance(value, Symbol):
            return self.choose(value, self.number(1), self.number(0)) if value.is_truth else value
        if not isinstance(value, _PLAIN):
            raise TypeError(f"{type(value).__name__!r} is no number")
        # An int stays one, as long as it is exact: Python knows no negative zero of them.
        exact = isinstance(value, (int, np.integer, np.bool_)) and abs(int(value)) <= 2**53
        value = int(value) if exact and not beside_element else float(value)
        return self._one("constant", (type(value), repr(value)), (value,), HOST)

    def decide(self, symbol: Symbol) -> bool:
        """Whether a symbol is true, on the way through the formula that is being taken."""
        known = self._known_truth(symbol)
        if known is not None:
            return known
        condition = symbol if symbol.is_truth else self.symbol("truth", symbol)
        if id(condition) not in self._taken:
            place = len(self._taken)
            if place > WAYS:
                raise TooManyWaysError
            answer = self._plan[place] if place < len(self._plan) else True
            self._taken[id(condition)] = condition, answer
        return self._taken[id(condition)][1]

    def _known_truth(self, symbol: Symbol) -> bool | None:
        """What follows from `assume` for a symbol, or for one that compares it with 0; else None."""
        if id(symbol) in self._positive:
            return True
        if symbol.operation in COMPARISONS:
            left, right = symbol.operands
            is_zero = right.operation == "constant" and right.operands[0] == 0
            if id(left) in self._positive and is_zero:
                return symbol.operation in ("gt", "ge", "ne")
        return None

    def results(self, formula: Callable[[], Sequence[Any]]) -> list[Symbol]:
        """What a formula gives, on all ways through it together."""
        self._ways = 0
        found, self.summands = self._explored(formula, [])
        for summand in (each for summed in self.summands.values() for each in summed):
            _check_summand(summand)  # which a choice by another total may have joined
        return found

    def _explored(
        self, formula: Callable[[], Sequence[Any]], plan: list[bool]
    ) -> tuple[list[Symbol], dict[str, list[Symbol]]]:
        """The results, and the summands, of all ways that begin with these decisions."""
        self._ways += 1
        if self._ways > WAYS:
            raise TooManyWaysError
        self._plan, self._taken, self._summed = plan, {}, {over: [] for over in OVER}
        found = [self.number(result) for result in formula()]
        summed = self._summed
        taken = list(self._taken.values())
        for place in reversed(range(len(plan), len(taken))):
            others, other_sums = self._explored(
                formula, [answer for _, answer in taken[:place]] + [False]
            )
            condition = taken[place][0]
            found = [self.choose(condition, a, b) for a, b in zip(found, others)]
            for over in OVER:
                if len(summed[over]) != len(other_sums[over]) and condition.level == ELEMENT:
                    raise SumError(
                        "a total cannot be taken where it depends on an element whether it is"
                    )
                pairs = zip_longest(summed[over], other_sums[over], fillvalue=self.number(0.0))
                summed[over] = [self.choose(condition, a, b) for a, b in pairs]
        return found, summed

    def choose(self, condition: Any, yes: Any, no: Any) -> Symbol:
        """`yes if condition else no`, with the choice as far inside as it can be made."""
        yes, no = self.number(yes), self.number(no)
        if yes is no:
            return yes
        key = id(condition), id(yes), id(no)
        if key not in self._choices:
            self._choices[key] = self._chosen(condition, yes, no)
        return self._choices[key]

    def _chosen(self, condition: Symbol, yes: Symbol, no: Symbol) -> Symbol:
        if self._alike(yes, no):
            pairs = list(zip(yes.operands, no.operands))
            if yes.operation != "choice":
                chosen = [self.choose(condition, a, b) for a, b in pairs]
                return self.symbol(yes.operation, *chosen)
            inner = self._chosen_truth(condition, *pairs.pop(0))
            if inner is not None:
                first, second = (self.choose(condition, a, b) for a, b in pairs)
                return first if first is second else self.symbol("choice", inner, first, second)
        return self.symbol("choice", condition, yes, no)

    def _chosen_truth(self, condition: Symbol, yes: Symbol, no: Symbol) -> Symbol | None:
        """A choice between conditions, if it can be made further inside; else None."""
        if yes is no:
            return yes
        pairs = list(zip(yes.operands, no.operands))
        # Two that have nothing in common come from different places in the formula.
        if not self._alike(yes, no) or not any(a is b or self._alike(a, b) for a, b in pairs):
            return None
        return self.symbol(yes.operation, *(self.choose(condition, a, b) for a, b in pairs))

    @staticmethod
    def _alike(yes: Symbol, no: Symbol) -> bool:
        """Whether the same was done; not by the host, which is to compute either as a whole."""
        computed = not (yes.on_host or no.on_host or yes.is_leaf)
        return computed and yes.operation == no.operation
