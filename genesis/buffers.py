"""The one place that knows what kinds of array there are.

A *buffer* is an array whose memory a kernel can read and write where it lies: today a
`numpy.ndarray`. Everything above this module asks here for a buffer's device, data type and memory
order (its `Layout`), and never looks at the array's own type.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

FLOAT_TYPES = {
    np.dtype(np.float64): "float64",
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
}
"""The data types of parameters, gradients and state, and the names that kernels know them by."""

ACCEPTED = "float64, float32, float16 or bfloat16 (ml_dtypes.bfloat16)"


class Layout(NamedTuple):
    """How a buffer lies in memory; equal layouts are the same object."""

    device: str
    dtype: str
    order: str | None
    """"C" or "F" (flat in that order), "any" (flat in both), or None: a kernel needs a copy."""


def _memory_order(c_contiguous: bool, f_contiguous: bool, aligned: bool) -> str | None:
    if not aligned:
        return None
    if c_contiguous and f_contiguous:
        return "any"
    return "C" if c_contiguous else "F" if f_contiguous else None


# NumPy's flag bits. One look into this table costs 0.15 us, four attributes of `flags` 0.3 us, and
# every assignment of a gradient pays it.
_C_CONTIGUOUS, _F_CONTIGUOUS, _ALIGNED = 0x1, 0x2, 0x100
_FLAGS = _C_CONTIGUOUS | _F_CONTIGUOUS | _ALIGNED
_HOST_LAYOUTS = {
    (dtype, c | f | a): Layout("cpu", name, _memory_order(bool(c), bool(f), bool(a)))
    for dtype, name in FLOAT_TYPES.items()
    for c in (0, _C_CONTIGUOUS)
    for f in (0, _F_CONTIGUOUS)
    for a in (0, _ALIGNED)
}


def layout(buffer: np.ndarray) -> Layout:
    """The buffer's layout. Raises KeyError for a data type that is not accepted."""
    return _HOST_LAYOUTS[buffer.dtype, buffer.flags.num & _FLAGS]


def check(array: Any, what: str) -> None:
    """Raise TypeError unless `array` is a plain array of an accepted type; `what` begins the message."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{what} must be a plain NumPy array, but got a masked array: "
            "fill it first, for example with array.filled(0)"
        )
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{what} must be a NumPy array of {ACCEPTED}, but got {type(array).__name__}: "
            "make one with numpy.asarray(..., dtype=numpy.float32)"
        )
    if array.dtype in FLOAT_TYPES:
        return
    if not array.dtype.isnative:
        raise TypeError(
            f"{what} must be in this machine's byte order, but got dtype {array.dtype.str!r}: "
            "convert it with array.astype(array.dtype.newbyteorder('='))"
        )
    raise TypeError(
        f"{what} must have dtype {ACCEPTED}, but got {array.dtype}: "
        "convert it with array.astype(numpy.float32)"
    )


def check_writable(array: np.ndarray, what: str) -> None:
    """Raise ValueError unless every element of `array` can be written, each in memory of its own."""
    if not array.flags.writeable:
        raise ValueError(
            f"{what} is read-only, but an optimizer updates it in place: give a writable array, "
            "for example array.copy()"
        )
    extent = array.itemsize
    for stride, length in sorted(
        (abs(stride), length) for stride, length in zip(array.strides, array.shape) if length > 1
    ):
        if stride < extent and array.size:
            raise ValueError(
                f"{what} has elements that share memory (shape {array.shape}, strides "
                f"{array.strides}): give an array of its own, for example array.copy()"
            )
        extent = stride * (length - 1) + extent


def flat_order(buffer: np.ndarray) -> Literal["C", "F"]:
    """The order in which kernels walk through a buffer, and its gradient and state with it."""
    return "F" if layout(buffer).order == "F" else "C"


def zeros(shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """A buffer of zeros beside `like`: its device, data type and memory order."""
    return np.zeros(shape, like.dtype, order=flat_order(like))


def zeroed(buffer: np.ndarray) -> np.ndarray:
    """The buffer, filled with zeros; a new one in place of a buffer that cannot be written."""
    if not buffer.flags.writeable:
        return np.zeros(buffer.shape, buffer.dtype)
    buffer.fill(0)
    return buffer


def as_host(array: Any, what: str) -> np.ndarray:
    """A host array of an accepted type with the values of `array`, which may be a torch tensor.

    Raises TypeError, with a message that begins with `what`, where there is no such array.
    """
    if type(array).__module__.partition(".")[0] == "torch":
        tensor = array.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # a type that torch itself cannot hand to NumPy
            array = tensor.float().numpy().astype(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
    check(array, what)
    return array


def copy_beside(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A copy of `array` on the device and in the memory order of `like`, in its own data type."""
    return np.array(array, order=flat_order(like), copy=True, subok=False)


def host_copy(buffer: np.ndarray) -> np.ndarray:
    """A contiguous host array with the buffer's values, never an alias of it."""
    return np.array(buffer, order="C", copy=True, subok=False)


def overlapping(buffers: list[np.ndarray]) -> tuple[int, int] | None:
    """The positions of two buffers that share memory, or None.

    Buffers are sorted by address, so that only neighbours whose byte ranges meet are compared
    element by element: a thousand separate arrays cost a few milliseconds, not a million pairs.
    """
    bounds = getattr(np.lib, "array_utils", np).byte_bounds
    spans = sorted((*bounds(b), i) for i, b in enumerate(buffers) if b.size)
    still_open: list[tuple[int, int]] = []
    for start, end, i in spans:
        still_open = [(other_end, j) for other_end, j in still_open if other_end > start]
        for _, j in still_open:
            if np.shares_memory(buffers[i], buffers[j]):
                return min(i, j), max(i, j)
        still_open.append((end, i))
    return None
