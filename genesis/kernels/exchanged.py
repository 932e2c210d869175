"""What another library's tensors are like at this moment, asked of that library in one compiled pass.

A launch goes to addresses, so everything that it touches is looked at right before it: where it lies,
shape, strides, type, device. Since version 1.3 DLPack has an interface for this in C,
`__dlpack_c_exchange_api__`: a function that fills in a `DLTensor` for an object. A question takes
some nanoseconds, where each of the getters that a library has for Python takes as much as all of it
for several tensors.

What `DLTensor` does not tell is how much memory there is behind an address. Whoever asks says that, as
the bounds of memory that he holds: what lies within those is alive, whatever anybody does meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .compiling import once
from .memory import half, put, put_half, word
from .specialise import compile_function, specialised

# Where a DLTensor has its fields, and how many bytes it takes.
DATA, DEVICE, AXES, DTYPE, SHAPE, STRIDES, OFFSET, TENSOR_SIZE = 0, 8, 16, 20, 24, 32, 40, 48
ON_CPU = 1

# Of the interface: its version, and the function that fills in a DLTensor.
VERSION, ASK = 0, 40
MAJOR, CAPSULE = 1, b"dlpack_exchange_api"

# The word in which a DLTensor has its type: a code (2: float, 4: bfloat), bits and lanes.
KINDS = {
    "float64": 2 | 64 << 8 | 1 << 16,
    "float32": 2 | 32 << 8 | 1 << 16,
    "float16": 2 | 16 << 8 | 1 << 16,
    "bfloat16": 4 | 16 << 8 | 1 << 16,
}

FITS, OTHER_ORDER, CHANGED = range(3)
"""What is said of a tensor: it can be used where it lies; it could, but lies in another order than the
one it belongs to; it is none of what is expected."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def _ask(typing_context, function, thing, tensor):
    """Fill in the DLTensor at an address for an object; returns 0, or another number if it is none."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_I32, [_I64, _I64])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.sext(builder.call(function, arguments[1:]), _I64)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def _forget_error(typing_context):
    """Let no exception be under way that a question has raised."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "PyErr_Clear"), [])
        return context.get_dummy_value()

    return types.void(), generate


@numba.njit(error_model="numpy")
def asked(function, thing, tensor):
    """Whether the object is a tensor that has memory; the DLTensor then says which."""
    if _ask(function, thing, tensor) == 0:
        return True
    _forget_error()
    return False


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
    function, tensor, like, row, objects, bounds, kinds, sizes, addresses, verdicts
):  # fmt: skip
    """As `look`, for one row; returns its worst verdict."""
    columns = objects.shape[1]
    for column in range(columns):
        verdicts[row, column] = FITS
    verdicts[row, like] = CHANGED
    size = sizes[row]
    if not asked(function, objects[row, like], tensor):
        return CHANGED
    # They belong to the object, which nobody touches while this pass holds the interpreter's lock.
    axes, shape, strides = half(tensor + AXES), word(tensor + SHAPE), word(tensor + STRIDES)
    elements = 1
    for axis in range(axes):
        elements *= word(shape + 8 * axis)
    if elements != size or (size > 1 and not is_dense(axes, shape, strides, size)):
        return CHANGED
    other = tensor + TENSOR_SIZE
    worst = FITS
    for column in range(columns):
        verdicts[row, column] = CHANGED
        its = tensor if column == like else other
        if column != like and not asked(function, objects[row, column], its):
            return CHANGED
        if (
            half(its + DTYPE) != kinds[column]
            or half(its + DEVICE) != ON_CPU
            or half(its + AXES) != axes
        ):
            return CHANGED
        verdict = FITS
        its_shape, its_strides = word(its + SHAPE), word(its + STRIDES)
        for axis in range(axes):
            length = word(shape + 8 * axis)
            if word(its_shape + 8 * axis) != length:
                return CHANGED
            if length > 1 and word(its_strides + 8 * axis) != word(strides + 8 * axis):
                verdict = OTHER_ORDER
        address = word(its + DATA) + word(its + OFFSET)
        itemsize = (kinds[column] >> 11) & 31
        if size > 0 and (
            address == 0
            or address % itemsize != 0
            or address < bounds[row, column, 0]
            # Of one in another order the last byte may lie anywhere, and its library reads it.
            or (verdict == FITS and address + size * itemsize > bounds[row, column, 1])
        ):
            return CHANGED
        addresses[row, column] = address
        verdicts[row, column] = verdict
        worst = max(worst, verdict)
    return worst


def look(function, tensor, like, objects, bounds, kinds, sizes, addresses, verdicts):
    """Say of each tensor whether it can be used, and where it lies.

    Args:
        function: the library's, which answers.
        tensor: the address of memory for two `DLTensor`s.
        like: the column of those that have to be dense, and to which the others of a row belong.
        objects: for each row and column the address of the object.
        bounds: for each the memory that is known to be alive: its first byte and one past the last.
        kinds: for each column its type, as in `KINDS`.
        sizes: for each row the number of elements.
        addresses: for each row and column where the tensor lies; filled.
        verdicts: for each what is said of it; filled, in each row up to the first that has `CHANGED`.

    Returns:
        The worst verdict.
    """
    worst = FITS
    for row in range(len(objects)):
        found = look_at_row(
            function, tensor, like, row, objects, bounds, kinds, sizes, addresses, verdicts
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


_NUMBER, _FLAG = types.int64, types.boolean
_VECTOR, _MATRIX, _CUBE = (types.Array(_NUMBER, axes, "C") for axes in (1, 2, 3))


@once
def _compiled(function: Any, *signature: Any) -> Any:
    template = specialised(function, function.__name__, {})
    result, *arguments = signature
    what = f"{function.__name__} of every step"
    return compile_function(template, result(*arguments), nogil=False, what=what)


def exchange_of(kind: type) -> int:
    """The address of the function by which a class of tensors answers; 0 if it has none."""
    capsule = getattr(kind, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_in.restype, pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    interface = pointer_in(capsule, CAPSULE)
    if ctypes.c_uint32.from_address(interface + VERSION).value != MAJOR:
        return 0
    return ctypes.c_int64.from_address(interface + ASK).value


class Question:
    """What there is to ask about the tensors of a table, as often as it is needed.

    Args:
        function: see `exchange_of`.
        like: the column to which the others of a row belong.
        storages: the storage type of each column.
        sizes: for each row the number of elements.
        addresses: a table's, which `compare` fills.

    Attributes:
        objects: for each row and column the `id` of the tensor, which has to be alive.
        bounds: for each the first byte and one past the last of memory that is alive.
        verdicts: for each what was said of it.
        compare: asks; returns the worst verdict.
    """

    def __init__(
        self,
        function: int,
        like: int,
        storages: Sequence[str],
        sizes: Sequence[int],
        addresses: np.ndarray,
    ):
        self.objects = np.zeros(addresses.shape, np.int64)
        self.bounds = np.zeros((*addresses.shape, 2), np.int64)
        self.verdicts = np.zeros(addresses.shape, np.int64)
        self._tensors = np.zeros(2 * TENSOR_SIZE // 8, np.int64)
        kinds = np.array([KINDS[name] for name in storages], np.int64)
        signature = (_NUMBER, _NUMBER, _NUMBER, _NUMBER, _MATRIX, _CUBE, _VECTOR, _VECTOR)
        self.compare = partial(
            _compiled(look, *signature, _MATRIX, _MATRIX),
            function,
            self._tensors.ctypes.data,
            like,
            self.objects,
            self.bounds,
            kinds,
            np.array(sizes, np.int64),
            addresses,
            self.verdicts,
        )


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

    def rounded(self, number: float) -> float:
        """The number as it is kept."""
        return self._kind.type(number).item()

    def _bits_of(self, number: float) -> int:
        return self._kind.type(number).view(self._bits).item()

    def hold(self, number: float) -> bool:
        """Whether this is the number in every row."""
        called = _compiled(holds, _FLAG, _MATRIX, _NUMBER, _FLAG, _NUMBER)
        return called(*self._where, self._bits_of(number))

    def storing(self, number: float) -> partial:
        """The call, for `commit`, that puts the number in every row."""
        called = _compiled(store, _FLAG, _MATRIX, _NUMBER, _FLAG, _NUMBER)
        return partial(called, *self._where, self._bits_of(number))
