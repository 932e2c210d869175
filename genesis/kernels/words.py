"""Machine code over 64-bit numbers, written by running a Python function once.

What each step does besides arithmetic (comparing records, claiming chunks, sorting rows) works with
addresses and counts, all of them 64-bit integers. Numba would find a type for every one of some hundred
values, and make a library of every function: seconds before the first step. Here such a function is run
once with `Word`s in place of numbers, and what is done with these becomes instructions, at once.

Control flow is written with `when`, `each` and `repeat`; a number that changes is a `Variable`::

    @function
    def total(code, numbers, count):
        found = code.variable(0)
        with code.each(count) as i:
            with code.when(numbers[8 * i] > 0):
                found.value += numbers[8 * i]
        code.give(found.value)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .specialise import compile_function, specialised

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Word:
    """A 64-bit integer in machine code; of an address, `[offset]` is the number that is there."""

    __slots__ = ("code", "ir")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code: Code, value: ir.Value):
        self.code, self.ir = code, value

    def __add__(self, other: Word | int) -> Word:
        return self._with("add", other)

    def __sub__(self, other: Word | int) -> Word:
        return self._with("sub", other)

    def __mul__(self, other: Word | int) -> Word:
        return self._with("mul", other)

    def __and__(self, other: Word | int) -> Word:
        return self._with("and_", other)

    def __rshift__(self, other: Word | int) -> Word:
        return self._with("ashr", other)

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: Word | int) -> Condition:  # type: ignore[override]
        return self._compared("==", other)

    def __ne__(self, other: Word | int) -> Condition:  # type: ignore[override]
        return self._compared("!=", other)

    def __lt__(self, other: Word | int) -> Condition:
        return self._compared("<", other)

    def __le__(self, other: Word | int) -> Condition:
        return self._compared("<=", other)

    def __gt__(self, other: Word | int) -> Condition:
        return self._compared(">", other)

    def __ge__(self, other: Word | int) -> Condition:
        return self._compared(">=", other)

    def __getitem__(self, offset: Word | int) -> Word:
        return Word(self.code, self.code.builder.load((self + offset).pointer(I64)))

    def __setitem__(self, offset: Word | int, value: Word | int) -> None:
        self.code.builder.store(self.code.word(value).ir, (self + offset).pointer(I64))

    def half(self, offset: Word | int) -> Word:
        """The 32-bit number at this address and an offset."""
        builder = self.code.builder
        return Word(self.code, builder.sext(builder.load((self + offset).pointer(I32)), I64))

    def pointer(self, kind: ir.Type) -> ir.Value:
        """This address, for LLVM, of something of a type."""
        return self.code.builder.inttoptr(self.ir, kind.as_pointer())

    def _with(self, operation: str, other: Word | int) -> Word:
        if isinstance(other, int) and other == 0 and operation in ("add", "sub"):
            return self
        operate = getattr(self.code.builder, operation)
        return Word(self.code, operate(self.ir, self.code.word(other).ir))

    def _compared(self, how: str, other: Word | int) -> Condition:
        builder = self.code.builder
        return Condition(self.code, builder.icmp_signed(how, self.ir, self.code.word(other).ir))


class Condition:
    """Whether something is so. Both sides of `&` and `|` are computed, whatever the first is."""

    __slots__ = ("code", "ir")

    def __init__(self, code: Code, value: ir.Value):
        self.code, self.ir = code, value

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.code, self.code.builder.and_(self.ir, other.ir))

    def __or__(self, other: Condition) -> Condition:
        return Condition(self.code, self.code.builder.or_(self.ir, other.ir))

    def __bool__(self) -> bool:
        raise TypeError("what is so is known when the code runs: use `when`, `&` and `|`")


class Variable:
    """A number that changes, as `value`."""

    __slots__ = ("_code", "_place")

    def __init__(self, code: Code, first: Word | int):
        self._code = code
        self._place = cgutils.alloca_once(code.builder, I64)
        self.value = first

    @property
    def value(self) -> Any:
        return Word(self._code, self._code.builder.load(self._place))

    @value.setter
    def value(self, value: Word | int) -> None:
        self._code.builder.store(self._code.word(value).ir, self._place)


class Code:
    """A function's code, as far as it is written."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    def word(self, value: Word | Condition | int) -> Word:
        """A number as a word; of a condition 1 if it holds, otherwise 0."""
        if isinstance(value, Condition):
            return Word(self, self.builder.zext(value.ir, I64))
        return value if isinstance(value, Word) else Word(self, I64(int(value)))

    def variable(self, first: Word | int) -> Variable:
        """A number that is this at first."""
        return Variable(self, first)

    def give(self, value: Word | Condition | int) -> None:
        """End the function with a result."""
        self.builder.ret(self.word(value).ir)

    @contextmanager
    def when(self, condition: Condition | Word) -> Iterator[None]:
        """What follows, only if something is so; a word says so unless it is 0."""
        so = condition if isinstance(condition, Condition) else condition != 0
        with self.builder.if_then(so.ir):
            yield

    def unless(self, found: Word) -> Any:
        """What follows, only if a word is 0."""
        return self.when(found == 0)

    @contextmanager
    def repeat(self, condition: Callable[[], Condition]) -> Iterator[None]:
        """What follows, as long as something is so, which is found out before each time."""
        asking, doing, after = map(self.builder.append_basic_block, ("ask", "do", "after"))
        self.builder.branch(asking)
        self.builder.position_at_end(asking)
        self.builder.cbranch(condition().ir, doing, after)
        self.builder.position_at_end(doing)
        yield
        if not self.builder.block.is_terminated:
            self.builder.branch(asking)
        self.builder.position_at_end(after)

    @contextmanager
    def each(self, stop: Word | int, start: Word | int = 0, step: int = 1) -> Iterator[Word]:
        """What follows, for every `step`th number from `start` on that is less than `stop`."""
        number = self.variable(start)
        with self.repeat(lambda: number.value < stop):
            now = number.value
            yield now
            number.value = now + step

    def choice(self, condition: Condition, one: Word | int, other: Word | int) -> Word:
        """One number if something is so, otherwise the other."""
        values = self.word(one).ir, self.word(other).ir
        return Word(self, self.builder.select(condition.ir, *values))

    def smaller(self, one: Word, other: Word | int) -> Word:
        return self.choice(one < other, one, other)

    def larger(self, one: Word, other: Word | int) -> Word:
        return self.choice(one > other, one, other)

    def prefetch(self, address: Word) -> None:
        """Ask for the cache line at an address, without waiting for it."""
        pointer = address.pointer(I8)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
        function = self.builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        # not for writing alone, to be kept in all caches, data
        self.builder.call(function, [pointer, I32(1), I32(3), I32(1)])


def function(write: Callable) -> Callable:
    """A function of words, to be called by others that are written so: a function of machine code.

    Args:
        write: `write(code, *words)` writes it, and ends every path with `code.give`.
    """

    @functools.wraps(write)
    def call(code: Code, *arguments: Word | int) -> Word:
        module, name = code.builder.module, f"genesis.{write.__name__}"
        made = module.globals.get(name)
        if made is None:
            kind = ir.FunctionType(I64, [I64] * len(arguments))
            made = ir.Function(module, kind, name)
            made.linkage = "internal"
            made.attributes.add("alwaysinline")
            inner = Code(ir.IRBuilder(made.append_basic_block("entry")))
            write(inner, *(Word(inner, argument) for argument in made.args))
        return Word(code, code.builder.call(made, [code.word(a).ir for a in arguments]))

    return call


def calling(typing_context: Any, called: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """A function of Numba's, for code that is written in words within an intrinsic.

    Args:
        typing_context: the intrinsic's.
        called: a jitted function or an intrinsic.
        arguments: the types of its arguments.

    Returns:
        The type of its result, and `call(context, builder, *values)`, which writes a call of it.
    """
    known = typing_context.resolve_value_type(called)
    signature = known.get_call_type(typing_context, arguments, {})

    def call(context: Any, builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        made = context.get_function(known, signature)
        context.add_linking_libs(getattr(made, "libs", ()))
        return made(builder, values)

    return signature.return_type, call


def compile_words(written: Callable, what: str, nogil: bool = False) -> Callable:
    """A function of three words, compiled to be called from Python with three integers.

    Args:
        written: what `function` has made.
        what: what it is, for people.
        nogil: whether other threads of Python run while it does. Default: False.
    """

    @intrinsic
    def run(typing_context, first, second, third):
        def generate(context, builder, signature, arguments):
            code = Code(builder)
            return written(code, *(Word(code, argument) for argument in arguments)).ir

        return _OF_THREE, generate

    function = specialised(_called, written.__name__, {"run": run})
    return compile_function(function, _OF_THREE, nogil=nogil, what=what)


_OF_THREE = types.int64(types.int64, types.int64, types.int64)

run: Any = None  # stands for what `compile_words` puts in its place


def _called(first, second, third):
    return run(first, second, third)
