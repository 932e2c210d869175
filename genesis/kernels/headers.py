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
import math
import operator
import struct
import sys
import weakref
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from .. import buffers
from . import CHANGED, MAY_OVERLAP, ids, pointers
from .compiling import once
from .words import compile_words, function

# Where fields lie. Of an object: the count of references to it, and its type. Of a list: its length and
# where its elements are. Of an ndarray: data, number of axes, shape, strides, type and flags.
REFERENCES, TYPE = 0, struct.calcsize("n")
HEADER = object.__basicsize__
LENGTH, ITEMS = HEADER, HEADER + 8
DATA, AXES, SHAPE, STRIDES, DTYPE, FLAGS = (HEADER + offset for offset in (0, 8, 16, 24, 40, 48))

# C- and F-contiguous, aligned, writeable: the flags that say what may be done with the memory.
CONTIGUOUS = 0x1 | 0x2
FLAG_BITS = CONTIGUOUS | 0x100 | 0x400

# A subclass may say something else of itself than what its header has.
GETTERS = [getattr(np.ndarray, name).__get__ for name in ("dtype", "flags", "shape", "strides")]
FLAG_NUMBER, ITEMSIZE = operator.attrgetter("num"), operator.attrgetter("itemsize")

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


@function
def same_array(code, record, array):
    """Whether an array is as the record says."""
    found, axes = array[8 * ARRAY], array[8 * ITS_AXES]
    with code.when(
        (found[DATA] != array[8 * ITS_DATA])
        | (found[DTYPE] != array[8 * ITS_DTYPE])
        | (found.half(AXES) != axes)
        | (found.half(FLAGS) & FLAG_BITS != array[8 * ITS_FLAGS])
    ):
        code.give(False)
    shape, strides = found[SHAPE], found[STRIDES]
    expected = record + 8 * array[8 * ITS_SHAPE]
    with (
        code.each(axes) as axis,
        code.when(
            (shape[8 * axis] != expected[8 * axis])
            | (strides[8 * axis] != expected[8 * (axes + axis)])
        ),
    ):
        code.give(False)
    code.give(True)


@function
def same_gradient(code, record, owner, gradient, array):
    """Whether a gradient is as the record says, wherever it lies; `array` has its shape."""
    axes = array[8 * ITS_AXES]
    with code.when(
        (gradient[DTYPE] != owner[8 * GRAD_DTYPE])
        | (gradient.half(AXES) != axes)
        | (gradient.half(FLAGS) & FLAG_BITS != owner[8 * GRAD_FLAGS])
    ):
        code.give(False)
    shape, expected = gradient[SHAPE], record + 8 * array[8 * ITS_SHAPE]
    with code.each(axes) as axis, code.when(shape[8 * axis] != expected[8 * axis]):
        code.give(False)
    code.give(True)


@function
def in_a_region(code, record, array, itemsize):
    """Whether an array's memory may be within a region: regions are sorted and do not overlap."""
    first, last = code.variable(array[DATA]), code.variable(array[DATA] + itemsize)
    shape, strides = array[SHAPE], array[STRIDES]
    with code.each(array.half(AXES)) as axis:
        length = shape[8 * axis]
        with code.when(length == 0):
            code.give(False)
        extent = strides[8 * axis] * (length - 1)
        first.value += code.smaller(extent, 0)
        last.value += code.larger(extent, 0)
    count, starts = record[8 * REGION_COUNT], record[8 * REGIONS]
    # The last region that begins before the array's end is the only one that may reach into it.
    low, high = code.variable(0), code.variable(count)
    with code.repeat(lambda: low.value < high.value):
        middle = (low.value + high.value) >> 1
        before = starts[8 * middle] < last.value
        low.value = code.choice(before, middle + 1, low.value)
        high.value = code.choice(before, high.value, middle)
    with code.when(low.value == 0):
        code.give(False)
    code.give(starts[8 * (count + low.value - 1)] > first.value)


@function
def look(code, record, owners, given):
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
    count = record[8 * OWNERS]
    with code.when(owners[LENGTH] != count):
        code.give(CHANGED)
    given_items = code.variable(0)
    with code.when(given != 0):
        with code.when(given[LENGTH] != count):
            code.give(CHANGED)
        given_items.value = given[ITEMS]
    first_array = record + 8 * (HEAD_SIZE + OWNER_SIZE * count)
    last_array = first_array + 8 * ARRAY_SIZE * (record[8 * ARRAYS] - 1)
    with code.each(last_array + 1, start=first_array, step=8 * ARRAY_SIZE) as array:
        # The step before may have put all of this out of the cache, and objects lie anywhere.
        coming = code.smaller(array + 2 * AHEAD, last_array)[8 * ARRAY]
        code.prefetch(coming)
        code.prefetch(coming + FLAGS)
        code.prefetch(code.smaller(array + AHEAD, last_array)[8 * ARRAY][SHAPE])
        with code.unless(same_array(code, record, array)):
            code.give(CHANGED)
    slot, other_slot, grad_slot = (record[8 * at] for at in (SLOT, OTHER_SLOT, GRAD_SLOT))
    owner_items, nothing = owners[ITEMS], record[8 * NOTHING]
    held_items = record[8 * HELD][ITEMS]
    moved = code.variable(0)
    with code.each(count) as i:
        part = record + 8 * HEAD_SIZE + 8 * OWNER_SIZE * i
        # The owners on record are alive, whatever the list may hold.
        ahead = code.smaller(i + OWNERS_AHEAD, count - 1)
        coming = code.variable(record[8 * (HEAD_SIZE + OWNER) + 8 * OWNER_SIZE * ahead][grad_slot])
        with code.when(given != 0):
            coming.value = given_items.value[8 * ahead]
        code.prefetch(coming.value)
        code.prefetch(coming.value + FLAGS)
        owner = owner_items[8 * i]
        with code.when(owner != part[8 * OWNER]):
            code.give(CHANGED)
        its = code.variable(owner[grad_slot])
        with code.when(given != 0):
            its.value = given_items.value[8 * i]
        gradient = its.value
        with code.when(
            (held_items[8 * i] != nothing)
            | (gradient == 0)
            | (owner[slot] != part[8 * IN_SLOT])
            | (owner[other_slot] != part[8 * IN_OTHER_SLOT])
        ):
            code.give(CHANGED)
        with code.when(gradient[TYPE] != part[8 * GRAD_TYPE]):
            code.give(CHANGED)
        with code.when(gradient != nothing):
            # What the list had, None, has a count too, until Python 3.12 made it last for ever.
            held_items[8 * i] = gradient
            gradient[REFERENCES] = gradient[REFERENCES] + 1
            if COUNTS_NONE:
                nothing[REFERENCES] = nothing[REFERENCES] - 1
        like = part[8 * GRAD_LIKE]
        with code.when(like < 0):
            moved.value += 1
        with code.when(like > 0):
            array = first_array + 8 * ARRAY_SIZE * (like - 1)
            with code.unless(same_gradient(code, record, part, gradient, array)):
                code.give(CHANGED)
            data, cell = gradient[DATA], part[8 * CELL]
            # One that does not lie flat may have other strides at the same place.
            with code.when((data != part[8 * GRAD_DATA]) | (cell == 0)):
                with code.when(in_a_region(code, record, gradient, part[8 * GRAD_ITEMSIZE])):
                    code.give(MAY_OVERLAP)
                part[8 * GRAD_DATA] = data
                with code.when(cell > 0):
                    cell[0] = data
                moved.value += 1
    code.give(moved.value)


def described(arrays: Sequence[np.ndarray], first: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """What arrays are like.

    Args:
        arrays: of NumPy.
        first: where in the record their shapes and strides begin.

    Returns:
        For each array the numbers at `ARRAY` to `ITS_SHAPE`; shapes and strides one after another; and
        for each array its first byte and one past the last, equal if it is empty.
    """
    size = len(arrays)
    dtypes, flags, shapes, strides = (list(map(get, arrays)) for get in GETTERS)
    axes = np.fromiter(map(len, shapes), np.int64, size)
    fields = np.empty((size, ARRAY_SIZE), np.int64)
    fields[:, ARRAY] = ids(arrays)
    fields[:, ITS_DATA] = pointers.addresses(arrays)
    fields[:, ITS_DTYPE] = ids(dtypes)
    fields[:, ITS_AXES] = axes
    fields[:, ITS_FLAGS] = np.fromiter(map(FLAG_NUMBER, flags), np.int64, size) & FLAG_BITS
    fields[:, ITS_SHAPE] = first + 2 * (np.cumsum(axes) - axes)
    extents = list(chain.from_iterable(chain.from_iterable(zip(shapes, strides))))
    bounds = np.repeat(fields[:, [ITS_DATA]], 2, axis=1)
    itemsizes = np.fromiter(map(ITEMSIZE, dtypes), np.int64, size)
    bounds[:, 1] += itemsizes * np.fromiter(map(math.prod, shapes), np.int64, size)
    for i in np.flatnonzero(fields[:, ITS_FLAGS] & CONTIGUOUS == 0):  # empty ones are contiguous
        reached = [step * (length - 1) for length, step in zip(shapes[i], strides[i])]
        bounds[i, 0] += sum(far for far in reached if far < 0)
        bounds[i, 1] = fields[i, ITS_DATA] + sum(far for far in reached if far > 0) + itemsizes[i]
    return fields, extents, bounds


@once
def _compiled() -> Any:
    probe()
    return compile_words(look, "look of every step")


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
        start = HEAD_SIZE + OWNER_SIZE * count + ARRAY_SIZE * size
        fields, extents, self.bounds = described(arrays, start)
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
        shapes = np.array(extents, np.int64)
        self._record = np.concatenate([head, parts.ravel(), fields.ravel(), shapes])
        self._parts = self._record[HEAD_SIZE:][: OWNER_SIZE * count].reshape(count, OWNER_SIZE)
        self.compare = partial(_compiled(), self._record.ctypes.data)
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
