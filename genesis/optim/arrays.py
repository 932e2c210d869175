"""Whether the arrays of a step are what they have to be, each error with what to do about it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import buffers, checks, packing
from ..commit import assign
from ..kernels import overlaps
from ..sparse import RowsView
from .members import label


class Used(NamedTuple):
    """An array that a step uses, as it should be.

    Attributes:
        what: what messages call it.
        array: the array, or whatever somebody put in its place.
        shape: the shape that it must have.
        device: where it must be.
        mend: what to do if its shape is another.
    """

    what: str
    array: Any
    shape: tuple[int, ...]
    device: str = "cpu"
    mend: str = "give it that shape again, or put another array in its place"


def fitting(used: Used) -> np.ndarray:
    """The view of an array; TypeError or ValueError unless it is one of floats and fits its place."""
    view = buffers.check(used.array, used.what)
    if view.shape != used.shape:
        raise ValueError(
            f"{used.what} has shape {view.shape}, but its place has shape {used.shape}: {used.mend}"
        )
    device = buffers.layout(view).device
    if device != used.device:
        raise ValueError(
            f"{used.what} is on {device}, but its place is on {used.device}: move one of them, or all "
            f"of an optimizer's arrays with optimizer.to({used.device!r})"
        )
    return view


def writable(view: np.ndarray, what: str) -> np.ndarray:
    """The view; ValueError unless every element of it can be written, and by itself."""
    layout = buffers.layout(view)
    if layout.order is None or not layout.writable:
        buffers.check_writable(view, what)
    return view


def gradient(view: np.ndarray, parameter: np.ndarray, what: str) -> None:
    """Raise unless a gradient fits its parameter, as they are now; both are views."""
    if not isinstance(view, RowsView):
        mend = "give a gradient of its parameter's shape"
        device = buffers.device_of(parameter)
        fitting(Used(f"the gradient of {what}", view, parameter.shape, device, mend))
    elif view.shape[1:] != parameter.shape[1:] or not view.largest < len(parameter):
        raise ValueError(
            f"the SparseGrad of {what} has values of shape {view.shape} and rows up to "
            f"{view.largest}, but the parameter's array has shape {parameter.shape} now: assign "
            "a gradient that fits"
        )


def erasable(view: np.ndarray, what: str) -> None:
    """Raise unless a step can set this gradient to zero."""
    if isinstance(view, RowsView):
        raise TypeError(
            f"zero_grad=True fills gradients with zeros, but that of {what} is a SparseGrad, which is "
            "made anew for each step: leave it out and call optimizer.clear_grad()"
        )
    writable(view, f"the gradient of {what}, which zero_grad=True sets to zero,")


def erasing(view: np.ndarray) -> partial:
    """The call, for `commit`, that sets a gradient on the host to zero, of whatever strides."""
    return assign(view, np.zeros((), np.uint8))


def apart_if_erased(gradients: list[tuple[str, np.ndarray]]) -> None:
    """Raise ValueError if gradients share memory that a step sets to zero; they go by parameter."""
    views = [view for _, view in gradients]
    if overlaps.apart(views):
        return
    pair = buffers.overlapping(views)
    if pair:
        first, second = (gradients[i][0] for i in pair)
        raise ValueError(
            f"the gradients of {first} and {second} share memory, and zero_grad=True would set one to "
            "zero before the other is read: give each an array of its own, or call "
            "optimizer.zero_grad(set_to_none=False) after the step"
        )


def buffer(value: Any, name: str, what: str, parameter: np.ndarray) -> np.ndarray:
    """The view of a state buffer; raises unless it fits its parameter and can be written."""
    what = f"state {name!r} of {what}"
    mend = "delete the entry, which then begins anew, or put in an array of that shape"
    used = Used(what, value, parameter.shape, buffers.device_of(parameter), mend)
    return writable(fitting(used), what)


def _packed(value: Any, what: str, dtypes: dict[Any, Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of packed state; raises unless it has one of these types, this shape, and can be written.

    It is on the host, as nothing that is packed can be used elsewhere.
    """
    if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
        got = getattr(value, "dtype", type(value).__name__)
        where = "" if isinstance(value, np.ndarray) else " on the CPU"
        raise TypeError(
            f"{what} must be a NumPy array{where} of {' or '.join(map(str, dtypes))}, but got {got}: "
            "delete the parameter's state, which then begins anew, or load it again"
        )
    if value.shape != shape:
        raise ValueError(
            f"{what} has shape {value.shape}, but its place has shape {shape}: delete the parameter's "
            "state, which then begins anew, or put in an array of that shape"
        )
    return writable(value, what)


def codes(value: Any, name: str, what: str, parameter: np.ndarray) -> np.ndarray:
    """The codes of an average in 8 bits; raises unless they fit their parameter."""
    return _packed(value, f"state {name!r} of {what}", packing.LARGEST, parameter.shape)


def scales(value: Any, name: str, what: str, parameter: np.ndarray) -> np.ndarray:
    """The scales of an average in 8 bits; raises unless there is one for each block, flat in memory."""
    what = f"state {name!r} of {what}"
    shape = (packing.blocks(parameter.size),)
    found = _packed(value, what, {np.dtype(np.float32): "float32"}, shape)
    if buffers.layout(found).order is None:
        raise ValueError(
            f"{what} must lie flat in memory, but has strides {found.strides}: give a copy, array.copy()"
        )
    return found


def lower(value: Any, what: str, parameter: np.ndarray) -> np.ndarray:
    """The lower halves of a parameter's masters; raises unless they fit it."""
    what = f"state {packing.LOWER!r} of {what}"
    found = _packed(value, what, {np.dtype(np.uint16): "uint16"}, parameter.shape)
    if parameter.dtype != buffers.BFLOAT16:
        raise ValueError(
            f"{what} is the lower half of a master whose upper half is the parameter in bfloat16, but "
            f"that is {parameter.dtype}: delete the entry"
        )
    return found


def state_number(value: Any, name: str, what: str) -> Any:
    """A number in a parameter's state; raises for what is none. "step" is a count."""
    if not checks.is_number(value):
        raise TypeError(f"state {name!r} of {what} must be a number, but is {value!r}")
    if name == "step":
        if not (value >= 0 and float(value).is_integer()):
            raise ValueError(f"state 'step' of {what} must be a count of updates, but is {value!r}")
        return int(value)
    return float(value)


def single(value: Any, what: str) -> float:
    """A number that is loaded, which may be an array or tensor of one element; else TypeError."""
    try:
        return float(value if checks.is_number(value) else value.reshape(())[()])
    except (AttributeError, RuntimeError, TypeError, ValueError):
        raise TypeError(f"{what} must be one number, but got {value!r}") from None


def apart(arrays: list[np.ndarray], whose: list[tuple[str, str]]) -> None:
    """Raise ValueError if two arrays that a step writes share memory.

    `whose` has the parameter that each belongs to and the name of the state it is, if it is not the
    parameter's own array.
    """
    pair = buffers.overlapping(arrays)
    if pair:
        first, second = (_described(*whose[i]) for i in pair)
        raise ValueError(
            f"{first} and {second} share memory, and a step would write both: give each an array of "
            "its own"
        )


def outside(
    gradients: list[Any],
    called: list[str | None],
    first: int,
    arrays: list[np.ndarray],
    whose: list[tuple[str, str]],
) -> None:
    """Raise ValueError if a gradient shares memory with an array that a step writes.

    `called` says what their parameters are called, and `first` is the number of the first of them among
    all of the optimizer's.
    """
    rows = [i for i, view in enumerate(gradients) if view is not None]
    pair = buffers.overlapping(arrays, [gradients[i] for i in rows])
    if pair:
        i = rows[pair[1] - len(arrays)]
        raise ValueError(
            f"the gradient of {label(first + i, called[i])} shares memory with "
            f"{_described(*whose[pair[0]])}, which the step changes: assign a copy of it"
        )


def _described(what: str, name: str) -> str:
    return f"state {name!r} of {what}" if name else f"the array of {what}"


def usable(written: list[Used], others: list[Used]) -> None:
    """Raise TypeError or ValueError unless a step can use these arrays as they are now.

    Args:
        written: what the step changes: writable, and each in memory of its own.
        others: what it reads, or must leave as it is: in memory that it does not change.
    """
    views = [writable(fitting(used), used.what) for used in written]
    pair = buffers.overlapping(views, [fitting(used) for used in others])
    if pair is None:
        return
    first, second = ((*written, *others)[i].what for i in pair)
    if pair[1] < len(written):
        raise ValueError(f"{first} and {second} share memory: give each an array of its own")
    raise ValueError(f"{second} shares memory with {first}, which the step changes: assign a copy")
