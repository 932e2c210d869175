"""What arrays are like at this moment, read from their objects in one compiled pass.

A launch goes to addresses that were taken down when its tables were laid out. What those arrays are
can change behind anybody's back: NumPy lets a user resize an array, give it another shape or type, or
make it read-only, all in place. So everything that a launch touches is looked at again right before
it: where the data lies, shape, strides, type, flags. At a few nanoseconds an array that is cheaper
than any book-keeping of who may have changed what.

The pass reads CPython's and NumPy's structures as both publish them for C, and a probe refuses to go
on where they differ. It holds the interpreter's lock, so nothing changes while it looks.
"""

from __future__ import annotations

import ctypes
import operator
import struct
import sys
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from numba.core import types

from .. import buffers
from . import CHANGED, MAY_OVERLAP, ids
from .compiling import once
from .memory import half, prefetch, put, word
from .specialise import compile_function, specialised

# Where fields lie. Of an object: the count of references to it, and its type. Of a list: its length and
# where its elements are. Of an ndarray: data, number of axes, shape, strides, type and flags.
REFERENCES, TYPE = 0, struct.calcsize("n")
HEADER = object.__basicsize__
LENGTH, ITEMS = HEADER, HEADER + 8
DATA, AXES, SHAPE, STRIDES, DTYPE, FLAGS = (HEADER + offset for offset in (0, 8, 16, 24, 40, 48))

# C- and F-contiguous, aligned, writeable: the flags that say what may be done with the memory.
FLAG_BITS = 0x1 | 0x2 | 0x100 | 0x400

COUNTS_NONE = sys.version_info < (3, 12)

# A record is a vector of 64-bit numbers: a head, a part for each owner, a part for each array, then
# shapes and strides. These are the places of numbers in the head and in such parts.
(
    OWNERS,
    ARRAYS,
    SLOT,
    OTHER_SLOT,
    GRAD_SLOT,  # where an owner has its gradient
    HELD,  # a list for references to the gradients
    NOTHING,  # None, which such a list has where there is no reference
    REGIONS,
    REGION_COUNT,
    HEAD_SIZE,
) = range(10)
(
    OWNER,  # the object that holds arrays in its slots
    IN_SLOT,  # what it holds there
    IN_OTHER_SLOT,
    GRAD_TYPE,  # the class of its gradient
    GRAD_LIKE,  # 1 + the number of the array that has the gradient's shape; 0: look no further;
    # -1: nor that, but say that it has moved
    GRAD_DTYPE,
    GRAD_FLAGS,
    GRAD_ITEMSIZE,
    GRAD_DATA,  # where the gradient lay when its memory was last compared with the regions
    CELL,  # where a table wants to know where the gradient lies; 0: nowhere
    OWNER_SIZE,
) = range(11)
ARRAY, ITS_DATA, ITS_DTYPE, ITS_AXES, ITS_FLAGS, ITS_SHAPE, ARRAY_SIZE = range(7)

AHEAD, OWNERS_AHEAD = 8 * ARRAY_SIZE * 8, 6
"""How far ahead to ask for what comes, in bytes of the record and in owners."""


@numba.njit(error_model="numpy")
def same_array(record, array):
    """Whether an array is as the record says."""
    found = word(array + 8 * ARRAY)
    axes = word(array + 8 * ITS_AXES)
    if (
        word(found + DATA) != word(array + 8 * ITS_DATA)
        or word(found + DTYPE) != word(array + 8 * ITS_DTYPE)
        or half(found + AXES) != axes
        or half(found + FLAGS) & FLAG_BITS != word(array + 8 * ITS_FLAGS)
    ):
        return False
    shape = word(found + SHAPE)
    strides = word(found + STRIDES)
    expected = record + 8 * word(array + 8 * ITS_SHAPE)
    for axis in range(axes):
        if word(shape + 8 * axis) != word(expected + 8 * axis):
            return False
        if word(strides + 8 * axis) != word(expected + 8 * (axes + axis)):
            return False
    return True


@numba.njit(error_model="numpy")
def same_gradient(record, owner, gradient, array):
    """Whether a gradient is as the record says, wherever it lies; `array` has its shape."""
    axes = word(array + 8 * ITS_AXES)
    if (
        word(gradient + DTYPE) != word(owner + 8 * GRAD_DTYPE)
        or half(gradient + AXES) != axes
        or half(gradient + FLAGS) & FLAG_BITS != word(owner + 8 * GRAD_FLAGS)
    ):
        return False
    shape = word(gradient + SHAPE)
    expected = record + 8 * word(array + 8 * ITS_SHAPE)
    for axis in range(axes):  # noqa: SIM110, what Numba compiles well
        if word(shape + 8 * axis) != word(expected + 8 * axis):
            return False
    return True


@numba.njit(error_model="numpy")
def bounds_of(array, itemsize):
    """An array's first byte and one past the last: equal if it is empty."""
    first = word(array + DATA)
    last = first + itemsize
    shape = word(array + SHAPE)
    strides = word(array + STRIDES)
    for axis in range(half(array + AXES)):
        length = word(shape + 8 * axis)
        if length == 0:
            return first, first
        extent = word(strides + 8 * axis) * (length - 1)
        first += min(extent, 0)
        last += max(extent, 0)
    return first, last


@numba.njit(error_model="numpy")
def in_a_region(record, array, itemsize):
    """Whether an array's memory may be within a region: regions are sorted and do not overlap."""
    first, last = bounds_of(array, itemsize)
    if first == last:
        return False
    count = word(record + 8 * REGION_COUNT)
    starts = word(record + 8 * REGIONS)
    # The last region that begins before the array's end is the only one that may reach into it.
    low = 0
    high = count
    while low < high:
        middle = (low + high) >> 1
        if word(starts + 8 * middle) < last:
            low = middle + 1
        else:
            high = middle
    return low > 0 and word(starts + 8 * (count + low - 1)) > first


def look(record, owners, given):
    """Compare a group's parameters, gradients and arrays with a record of what they were.

    References to the gradients, or None, are put into a list as they are found, so that they live
    on, whatever other threads assign, until somebody empties it.

    Args:
        record: the record's address.
        owners: the address of the list of objects that hold arrays in slots.
        given: the address of a list of gradients, or None, in place of those that owners hold; 0:
            there is none.

    Returns:
        How many gradients lie elsewhere than before, which is written into the record's cells;
        `CHANGED` if anything else differs; `MAY_OVERLAP` if such a gradient may share memory with
        the regions that the step writes.
    """
    count = word(record + 8 * OWNERS)
    if word(owners + LENGTH) != count:
        return CHANGED
    given_items = 0
    if given != 0:
        if word(given + LENGTH) != count:
            return CHANGED
        given_items = word(given + ITEMS)
    first_array = record + 8 * (HEAD_SIZE + OWNER_SIZE * count)
    array = first_array
    last_array = first_array + 8 * ARRAY_SIZE * (word(record + 8 * ARRAYS) - 1)
    while array <= last_array:
        # The step before may have put all of this out of the cache, and objects lie anywhere.
        coming = word(min(array + 2 * AHEAD, last_array) + 8 * ARRAY)
        prefetch(coming)
        prefetch(coming + FLAGS)
        prefetch(word(word(min(array + AHEAD, last_array) + 8 * ARRAY) + SHAPE))
        if not same_array(record, array):
            return CHANGED
        array += 8 * ARRAY_SIZE
    slot = word(record + 8 * SLOT)
    other_slot = word(record + 8 * OTHER_SLOT)
    grad_slot = word(record + 8 * GRAD_SLOT)
    owner_items = word(owners + ITEMS)
    nothing = word(record + 8 * NOTHING)
    held_items = word(word(record + 8 * HELD) + ITEMS)
    part = record + 8 * HEAD_SIZE
    moved = 0
    for i in range(count):
        # The owners on record are alive, whatever the list may hold.
        ahead = 8 * OWNER_SIZE * min(OWNERS_AHEAD, count - 1 - i)
        coming = word(word(part + ahead + 8 * OWNER) + grad_slot)
        if given != 0:
            coming = word(given_items + 8 * min(i + OWNERS_AHEAD, count - 1))
        prefetch(coming)
        prefetch(coming + FLAGS)
        owner = word(owner_items + 8 * i)
        if owner != word(part + 8 * OWNER):
            return CHANGED
        gradient = word(owner + grad_slot)
        if given != 0:
            gradient = word(given_items + 8 * i)
        if (
            word(held_items + 8 * i) != nothing
            or gradient == 0
            or word(owner + slot) != word(part + 8 * IN_SLOT)
            or word(owner + other_slot) != word(part + 8 * IN_OTHER_SLOT)
            or word(gradient + TYPE) != word(part + 8 * GRAD_TYPE)
        ):
            return CHANGED
        if gradient != nothing:
            # What the list had, None, has a count too, until Python 3.12 made it last for ever.
            put(held_items + 8 * i, gradient)
            put(gradient + REFERENCES, word(gradient + REFERENCES) + 1)
            if COUNTS_NONE:
                put(nothing + REFERENCES, word(nothing + REFERENCES) - 1)
        like = word(part + 8 * GRAD_LIKE)
        if like < 0:
            moved += 1
        elif like > 0:
            if not same_gradient(record, part, gradient, first_array + 8 * ARRAY_SIZE * (like - 1)):
                return CHANGED
            data = word(gradient + DATA)
            cell = word(part + 8 * CELL)
            # One that does not lie flat may have other strides at the same place.
            if data != word(part + 8 * GRAD_DATA) or cell == 0:
                if in_a_region(record, gradient, word(part + 8 * GRAD_ITEMSIZE)):
                    return MAY_OVERLAP
                put(part + 8 * GRAD_DATA, data)
                if cell > 0:
                    put(cell, data)
                moved += 1
        part += 8 * OWNER_SIZE
    return moved


def describe(objects, itemsizes, fields, bounds):
    """Write down what arrays are like.

    Args:
        objects, itemsizes: the addresses of the array objects, and the bytes of their elements.
        fields: for each array the numbers at `ARRAY` to `ITS_FLAGS`; filled.
        bounds: for each array its first byte and one past the last; filled. Equal if it is empty.
    """
    for i in range(len(objects)):
        array = objects[i]
        fields[i, ARRAY] = array
        fields[i, ITS_DATA] = word(array + DATA)
        fields[i, ITS_DTYPE] = word(array + DTYPE)
        fields[i, ITS_AXES] = half(array + AXES)
        fields[i, ITS_FLAGS] = half(array + FLAGS) & FLAG_BITS
        bounds[i, 0], bounds[i, 1] = bounds_of(array, itemsizes[i])
    return len(objects)


def shapes(objects, found, places, first):
    """Write down shapes and strides one after another, and where each begins, from `first` on."""
    place = 0
    for i in range(len(objects)):
        places[i] = first + place
        axes = half(objects[i] + AXES)
        shape = word(objects[i] + SHAPE)
        strides = word(objects[i] + STRIDES)
        for axis in range(axes):
            found[place + axis] = word(shape + 8 * axis)
            found[place + axes + axis] = word(strides + 8 * axis)
        place += 2 * axes
    return place


@once
def _compiled(function: Any, *arguments: Any) -> Any:
    probe()
    template = specialised(function, function.__name__, {})
    what = f"{function.__name__} of every step"
    return compile_function(template, types.int64(*arguments), nogil=False, what=what)


_NUMBER = types.int64
_VECTOR, _MATRIX = types.Array(_NUMBER, 1, "C"), types.Array(_NUMBER, 2, "C")


def probe() -> None:
    """Raise RuntimeError unless objects are laid out as the pass expects."""

    def at(thing: Any, offset: int, kind: Any = ctypes.c_int64) -> int:
        return kind.from_address(id(thing) + offset).value

    array = np.zeros((3, 5, 7), np.float32)[:, ::2, ::-1]
    array.flags.writeable = False
    things = [array, None]
    axes = ctypes.c_int64 * 3
    expected = [
        (at(array, TYPE), id(np.ndarray)),
        (at(array, DATA), array.ctypes.data),
        (at(array, AXES, ctypes.c_int32), 3),
        (tuple(axes.from_address(at(array, SHAPE))), array.shape),
        (tuple(axes.from_address(at(array, STRIDES))), array.strides),
        (at(array, DTYPE), id(array.dtype)),
        (at(array, FLAGS, ctypes.c_int32), array.flags.num),
        (at(things, LENGTH), 2),
        (at(things, ITEMS) and ctypes.c_int64.from_address(at(things, ITEMS) + 8).value, id(None)),
    ]
    # A Python without a global lock counts references in another way, too.
    if object.__basicsize__ != 16 or any(found != right for found, right in expected):
        raise RuntimeError(
            f"this Python or NumPy {np.__version__} lays out its objects unlike those that genesis "
            "knows: take CPython of 64 bits with its global lock, or report this with your versions"
        )


def slot_offset(kind: type, name: str) -> int:
    """Where in an object of this class (with `__slots__`) the named slot is."""
    specimen, mark = kind.__new__(kind), object()
    setattr(specimen, name, mark)
    for offset in range(HEADER, kind.__basicsize__, 8):
        if ctypes.c_int64.from_address(id(specimen) + offset).value == id(mark):
            return offset
    raise RuntimeError(f"the slot {name} of {kind.__name__} was not found")


class Watch:
    """A record of a group's parameters, gradients and arrays, and the comparison with it.

    Args:
        owners: the objects that hold arrays.
        slots: offsets of three slots of theirs (see `slot_offset`); the last is for the gradient.
        contents: for each owner what the first two hold.
        gradients: for each owner its gradient, or None.
        likes: for each owner the position in `arrays` of that which has the gradient's shape; -1
            where the gradient is not to be looked at but for its class; -2 where it is to count as
            one that has moved, besides.
        cells: for each owner the address where a table wants to know where the gradient lies, or 0.
        arrays: what the step writes.

    Attributes:
        bounds: for each array its first byte and one past the last.
        held: a list of the gradients that `compare` found, between it and `release`.
        compare: `look` at this record; it takes the `id` of the list of owners, and that of a list of
            gradients given in place of theirs, or 0.
        release: the call that empties `held`.
    """

    def __init__(
        self,
        owners: Sequence[Any],
        slots: tuple[int, int, int],
        contents: tuple[Sequence[Any], Sequence[Any]],
        gradients: Sequence[Any],
        likes: Sequence[int],
        cells: Sequence[int],
        arrays: Sequence[np.ndarray],
    ):
        count, size = len(owners), len(arrays)
        objects = ids(arrays)
        itemsizes = np.fromiter((array.itemsize for array in arrays), np.int64, size)
        fields, self.bounds = np.empty((size, ARRAY_SIZE), np.int64), np.empty((size, 2), np.int64)
        describe_all = _compiled(describe, _VECTOR, _VECTOR, _MATRIX, _MATRIX)
        describe_all(objects, itemsizes, fields, self.bounds)
        extents = np.empty(2 * sum(array.ndim for array in arrays), np.int64)
        places = np.empty(size, np.int64)
        start = HEAD_SIZE + OWNER_SIZE * count + ARRAY_SIZE * size
        _compiled(shapes, _VECTOR, _VECTOR, _VECTOR, _NUMBER)(objects, extents, places, start)
        fields[:, ITS_SHAPE] = places

        parts = np.zeros((count, OWNER_SIZE), np.int64)
        parts[:, OWNER] = ids(owners)
        parts[:, IN_SLOT], parts[:, IN_OTHER_SLOT] = map(ids, contents)
        parts[:, GRAD_TYPE] = ids([type(gradient) for gradient in gradients])
        parts[:, GRAD_LIKE] = np.asarray(likes) + 1
        parts[:, GRAD_DATA] = -1
        parts[:, CELL] = cells
        for i in np.flatnonzero(parts[:, GRAD_LIKE] > 0):
            gradient = gradients[i]
            parts[i, GRAD_DTYPE] = id(gradient.dtype)
            parts[i, GRAD_FLAGS] = gradient.flags.num & FLAG_BITS
            parts[i, GRAD_ITEMSIZE] = gradient.itemsize
        self.held: list[Any] = [None] * count
        self.release = partial(operator.setitem, self.held, slice(None), [None] * count)
        head = np.array([count, size, *slots, id(self.held), id(None), 0, 0], np.int64)
        self._record = np.concatenate([head, parts.ravel(), fields.ravel(), extents])
        self._parts = self._record[HEAD_SIZE:][: OWNER_SIZE * count].reshape(count, OWNER_SIZE)
        look_at = _compiled(look, _NUMBER, _NUMBER, _NUMBER)
        self.compare = partial(look_at, self._record.ctypes.data)
        # The record knows objects by their addresses, which therefore must stay theirs.
        kinds = {type(gradient) for gradient in gradients}
        dtypes = {id(g.dtype): g.dtype for g, like in zip(gradients, likes) if like >= 0}
        self._kept = list(owners), contents, list(arrays), kinds, dtypes
        # While a weak reference to the array that owns memory lives, NumPy does not resize it.
        self._guards = [weakref.ref(buffers.owner_of_memory(array)) for array in arrays]

    @property
    def places(self) -> np.ndarray:
        """For each owner where its gradient lay when it was last compared; -1, it counts as moved."""
        return self._parts[:, GRAD_DATA]

    def guard(self, regions: Regions) -> None:
        """Let the next comparisons check that gradients keep out of these regions."""
        self._regions = regions
        self._record[REGIONS] = regions.table.ctypes.data
        self._record[REGION_COUNT] = regions.table.shape[1]
        self._parts[:, GRAD_DATA] = -1

    def compare_unguarded(self, owners: int, given: int) -> int:
        """As `compare`, for gradients of which it is known that they keep out of the regions."""
        count, self._record[REGION_COUNT] = self._record[REGION_COUNT], 0
        found = self.compare(owners, given)
        self._record[REGION_COUNT] = count
        # Nor may the next comparison take them for checked.
        self._parts[:, GRAD_DATA] = -1
        return found


class Regions:
    """The memory that a step writes, as byte ranges in ascending order.

    Args:
        bounds: for each array its first byte and one past the last.

    Attributes:
        table: the beginnings and the ends of ranges that do not meet.
        met: whether any two arrays' ranges did, so that they may share memory.
    """

    def __init__(self, bounds: Sequence[np.ndarray]):
        every = np.concatenate([np.empty((0, 2), np.int64), *bounds])
        every = every[every[:, 0] < every[:, 1]]
        every = every[np.argsort(every[:, 0], kind="stable")]
        reached = np.maximum.accumulate(every[:, 1])
        begins = np.ones(len(every), bool)
        begins[1:] = every[1:, 0] >= reached[:-1]
        self.met = not begins.all()
        firsts = np.flatnonzero(begins)
        ends = reached[np.append(firsts[1:], len(every)) - 1] if len(every) else reached
        self.table = np.ascontiguousarray([every[firsts, 0], ends])
