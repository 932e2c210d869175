"""What another library's tensors are like at this moment, asked of that library in one compiled pass.

A launch goes to addresses, so everything that it touches is looked at right before it: layout, device,
type, shape, strides, where it lies, and how much memory there is. A library that has C functions for
this answers in some nanoseconds, where each getter that it has for Python takes longer than all of that.
The pass holds the interpreter's lock, so nothing changes while it looks.

Such a function takes a handle, which is within the object, and where to put its answer: 32 or 64 bits.
It returns 0 unless it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import CHANGED_TENSOR, FITS, MEETS, MOVED, OTHER_ORDER
from .compiling import once
from .memory import half, put, put_half, word
from .specialise import compile_function, specialised
from .storage import BYTES

# What is asked, in this order: each is also the place of the answer. What comes first decides whether
# the rest can be asked, and the answers that are addresses belong to the object.
LAYOUT, DEVICE, INDEX, DTYPE, AXES, SHAPE, STRIDES, STORAGE, OFFSET, DATA, FACTS = range(11)
STRIDED = 0

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def ask(typing_context, function, handle, place):
    """Let a function, at an address, put an answer in a place; returns 0 unless it fails."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I32, [_I64, _I64])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.sext(builder.call(function, arguments[1:]), _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@numba.njit(error_model="numpy")
def asked(functions, handle, answers, device, index):
    """Ask everything about a tensor; whether it is a strided one on a device, of which all is known."""
    put(answers + 8 * LAYOUT, 0)
    put(answers + 8 * DEVICE, 0)
    put(answers + 8 * INDEX, 0)
    for fact in range(FACTS):
        if ask(word(functions + 8 * fact), handle, answers + 8 * fact) != 0:
            return False
        if fact == LAYOUT and half(answers + 8 * LAYOUT) != STRIDED:
            return False
        if fact == DEVICE and half(answers + 8 * DEVICE) != device:
            return False
        if fact == INDEX and half(answers + 8 * INDEX) != index:
            return False
    return True


@numba.njit(error_model="numpy")
def is_dense(axes, shape, strides, elements):
    """Whether the elements fill a piece of memory, each once, in whatever order of the axes."""
    expected = 1
    while expected < elements:
        found = 0
        for axis in range(axes):
            if word(strides + 8 * axis) == expected and word(shape + 8 * axis) > 1:
                found = word(shape + 8 * axis)
        if found == 0:
            return False
        expected *= found
    return expected == elements


@numba.njit(error_model="numpy")
def look_at_row(
    functions, within, answers, device, index, like, row, objects, kinds, itemsizes, sizes, addresses,
    offsets, verdicts
):  # fmt: skip
    """As `look`, for one row; returns its worst verdict."""
    columns = objects.shape[1]
    for column in range(columns):
        verdicts[row, column] = FITS
    verdicts[row, like] = CHANGED_TENSOR
    size = sizes[row]
    if not asked(functions, objects[row, like] + within, answers, device, index):
        return CHANGED_TENSOR
    axes = word(answers + 8 * AXES)
    shape, strides = word(answers + 8 * SHAPE), word(answers + 8 * STRIDES)
    elements = 1
    for axis in range(axes):
        elements *= word(shape + 8 * axis)
    if elements != size or (size > 1 and not is_dense(axes, shape, strides, size)):
        return CHANGED_TENSOR
    others = answers + 8 * FACTS
    worst = FITS
    for column in range(columns):
        verdicts[row, column] = CHANGED_TENSOR
        its = answers if column == like else others
        if column != like and not asked(
            functions, objects[row, column] + within, its, device, index
        ):
            return CHANGED_TENSOR
        if half(its + 8 * DTYPE) != kinds[column] or word(its + 8 * AXES) != axes:
            return CHANGED_TENSOR
        verdict = FITS
        its_shape, its_strides = word(its + 8 * SHAPE), word(its + 8 * STRIDES)
        for axis in range(axes):
            length = word(shape + 8 * axis)
            if word(its_shape + 8 * axis) != length:
                return CHANGED_TENSOR
            if length > 1 and word(its_strides + 8 * axis) != word(strides + 8 * axis):
                verdict = OTHER_ORDER
        address = word(its + 8 * DATA)
        offset = word(its + 8 * OFFSET)
        itemsize = itemsizes[column]
        if size > 0 and (
            address == 0
            or address % itemsize != 0
            # Of one in another order the last byte may lie anywhere, and its library reads it.
            or (verdict == FITS and (offset + size) * itemsize > word(its + 8 * STORAGE))
        ):
            return CHANGED_TENSOR
        addresses[row, column] = address
        offsets[row, column] = offset
        verdicts[row, column] = verdict
        worst = max(worst, verdict)
    return worst


def look(
    functions, within, answers, device, index, like, objects, kinds, itemsizes, sizes, addresses,
    offsets, verdicts
):  # fmt: skip
    """Say of each tensor whether it can be used, and where it lies.

    Args:
        functions: the address of the addresses of functions that answer.
        within: where in an object its handle is.
        answers: the address of memory for two tensors' answers.
        device, index: the library's numbers for the device on which all have to be.
        like: the column of those that have to be dense, and to which the others of a row belong.
        objects: for each row and column the address of the object.
        kinds, itemsizes: for each column the library's number for its type, and its bytes.
        sizes: for each row the number of elements.
        addresses: for each row and column where the tensor lies; filled.
        offsets: for each how many elements of its storage come before it; filled.
        verdicts: for each what is said of it; filled, in each row up to the first that has changed.

    Returns:
        The worst verdict.
    """
    worst = FITS
    for row in range(len(objects)):
        found = look_at_row(
            functions, within, answers, device, index, like, row, objects, kinds, itemsizes, sizes,
            addresses, offsets, verdicts,
        )  # fmt: skip
        worst = max(worst, found)
    return worst


def holds(addresses, column, wide, bits):
    """Whether there are these bits at all addresses of a column: 64, or if not `wide` 32."""
    for row in range(len(addresses)):
        address = addresses[row, column]
        if (word(address) if wide else half(address)) != bits:
            return False
    return True


def store(addresses, column, wide, bits):
    """Put these bits at all addresses of a column."""
    for row in range(len(addresses)):
        if wide:
            put(addresses[row, column], bits)
        else:
            put_half(addresses[row, column], bits)
    return True


def stays(addresses, sizes, written, starts, ends):
    """Say whether what a step writes is where it was, and gradients are elsewhere.

    Args:
        addresses: for each row where its gradient lies, and then what is written.
        sizes: for each row the bytes of its gradient.
        written: where what is written was.
        starts, ends: of regions that hold all of it, in ascending order.
    """
    for row in range(len(addresses)):
        for column in range(written.shape[1]):
            if addresses[row, 1 + column] != written[row, column]:
                return MOVED
    for row in range(len(addresses)):
        first = addresses[row, 0]
        last = first + sizes[row]
        # The last region that begins before the gradient's end is the only one that may reach into it.
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            if starts[middle] < last:
                low = middle + 1
            else:
                high = middle
        if low > 0 and ends[low - 1] > first and first < last:
            return MEETS
    return FITS


_NUMBER, _FLAG = types.int64, types.boolean
_VECTOR, _MATRIX = (types.Array(_NUMBER, axes, "C") for axes in (1, 2))
_PART = types.Array(_NUMBER, 2, "A")  # columns of a table that has others


@once
def _compiled(function: Any, *signature: Any) -> Any:
    template = specialised(function, function.__name__, {})
    result, *arguments = signature
    what = f"{function.__name__} of every step"
    return compile_function(template, result(*arguments), nogil=False, what=what)


class Question:
    """What there is to ask about the tensors of a table, as often as it is needed.

    Args:
        functions: the addresses of the functions that answer, in the order of facts.
        within: where in an object its handle is.
        kinds: the library's number for each storage type.
        device: its numbers for the device on which all have to be, the kind and which one of these.
        like: the column to which the others of a row belong.
        storages: the storage type of each column.
        sizes: for each row the number of elements.
        addresses: a table's, which `compare` fills.

    Attributes:
        objects: for each row and column the `id` of the tensor, which has to be alive.
        offsets: for each how many elements of its storage come before it.
        verdicts: for each what was said of it.
        compare: asks; returns the worst verdict.
    """

    def __init__(
        self,
        functions: np.ndarray,
        within: int,
        kinds: dict[str, int],
        device: tuple[int, int],
        like: int,
        storages: Sequence[str],
        sizes: Sequence[int],
        addresses: np.ndarray,
    ):
        self.objects, self.offsets, self.verdicts = (
            np.zeros(addresses.shape, np.int64) for _ in range(3)
        )
        self._kept = functions, np.zeros(2 * FACTS, np.int64)
        self.compare = partial(
            _compiled(
                look, _NUMBER, *[_NUMBER] * 6, _MATRIX, *[_VECTOR] * 3, _PART, *[_MATRIX] * 2
            ),
            functions.ctypes.data,
            within,
            self._kept[1].ctypes.data,
            *device,
            like,
            self.objects,
            np.array([kinds[name] for name in storages], np.int64),
            np.array([BYTES[name] for name in storages], np.int64),
            np.array(sizes, np.int64),
            addresses,
            self.offsets,
            self.verdicts,
        )


def staying(addresses: np.ndarray, sizes: np.ndarray, regions: np.ndarray) -> partial:
    """A function that compares a table with what it is now, see `stays`.

    Args:
        addresses: the table's, gradients first.
        sizes: for each row the bytes of its gradient.
        regions: the beginnings and the ends of regions that hold all that is written.
    """
    starts, ends = map(np.ascontiguousarray, regions)
    called = _compiled(stays, _NUMBER, _PART, _VECTOR, _MATRIX, _VECTOR, _VECTOR)
    return partial(called, addresses, sizes, addresses[:, 1:].copy(), starts, ends)


class Cells:
    """A number that is kept once for each row, at the addresses in a column of a table.

    Args:
        addresses: the table's.
        column: the number's.
        storage: "float32" or "float64".
    """

    def __init__(self, addresses: np.ndarray, column: int, storage: str):
        self._kind = np.dtype(storage)
        self._bits = np.dtype(f"i{self._kind.itemsize}")
        self._where = addresses, column, self._kind.itemsize == 8
        signature = _FLAG, _MATRIX, _NUMBER, _FLAG, _NUMBER
        self._holds, self._store = _compiled(holds, *signature), _compiled(store, *signature)

    def rounded(self, number: float) -> float:
        """The number as it is kept."""
        return self._kind.type(number).item()

    def _bits_of(self, number: float) -> int:
        return self._kind.type(number).view(self._bits).item()

    def hold(self, number: float) -> bool:
        """Whether this is the number in every row."""
        return self._holds(*self._where, self._bits_of(number))

    def storing(self, number: float) -> partial:
        """The call, for `commit`, that puts the number in every row."""
        return partial(self._store, *self._where, self._bits_of(number))
