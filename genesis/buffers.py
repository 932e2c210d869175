"""The one place that knows what kinds of array there are.

A *buffer* is an array whose memory a kernel can read and write where it lies: a `numpy.ndarray`, or
an array on a CUDA device (Numba's, or any with a `__cuda_array_interface__`). Everything above this
module sees buffers through `view`: a NumPy array that has the buffer's address, shape, strides and
data type, so that one code answers all questions about its layout. The elements of a device
buffer's view cannot be read; its memory belongs to the device.

Arrays of other libraries come in by two doors, and never as a copy: `adopted` for what an optimizer
writes, `readable` for what it only reads. Neither imports a library: an object of one is known by
the library being there already.
"""

from __future__ import annotations

import math
import re
import sys
from array import ArrayType
from collections.abc import Callable, Iterable
from contextvars import ContextVar, copy_context
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from . import cuda_driver, dlpack

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT_TYPES = {
    np.dtype(np.float64): "float64",
    np.dtype(np.float32): "float32",
    np.dtype(np.float16): "float16",
    BFLOAT16: "bfloat16",
}
"""The data types of parameters, gradients and state, and the names that kernels know them by."""

PACKED_TYPES = {np.dtype(name): name for name in ("int8", "uint8", "uint16")}
"""Those of state that is packed, see `packing`."""

ACCEPTED = "float64, float32, float16 or bfloat16 (ml_dtypes.bfloat16)"


class Layout(NamedTuple):
    """How a buffer lies in memory; equal layouts are the same object."""

    device: str
    dtype: str
    order: str | None
    """"C" or "F" (flat in that order), "any" (flat in both), or None: a kernel needs a copy."""
    writable: bool


class DeviceView(np.ndarray):
    """Where a device array lies, in NumPy's terms. Its elements must not be touched from here."""

    owner: Any
    place: str
    stream: int | None


# ---- what there is ----


def is_device_array(array: Any) -> bool:
    """Whether `array` lies on a CUDA device."""
    return not isinstance(array, np.ndarray) and (
        hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")
    )


def is_array(value: Any) -> bool:
    """Whether `value` is an array, on the host or on a device."""
    return isinstance(value, np.ndarray) or is_device_array(value)


def is_arraylike(value: Any) -> bool:
    """Whether `value` is an array of any library, or lends its memory like one."""
    return (
        is_array(value)
        or isinstance(value, (memoryview, ArrayType))
        or any(
            hasattr(type(value), name)
            for name in ("__array__", "__array_interface__", "__dlpack__")
        )
    )


def view(array: Any) -> np.ndarray:
    """The array itself on the host, a `DeviceView` of it on a device."""
    if isinstance(array, np.ndarray):
        return array
    if cuda_driver.SIMULATED and hasattr(array, "__cuda_ndarray__"):
        found: Any = array._ary.view(DeviceView)  # a simulated array has no interface to ask
        pointer, found.stream = 0, None
    else:
        interface = array.__cuda_array_interface__
        pointer, _ = interface["data"]
        # Numba's own arrays say None where a stride is 0, as if they were contiguous.
        numba_array = hasattr(array, "__cuda_ndarray__")
        strides = array.strides if numba_array else interface.get("strides")
        found = _over(interface["data"], interface["shape"], strides, interface["typestr"]).view(
            DeviceView
        )
        found.stream = interface.get("stream")
    found.owner = array
    found.place = f"cuda:{cuda_driver.device_of(array, pointer)}"
    return found


def given(view: Any) -> Any:
    """What the view is of: the array itself on the host, what the user gave on a device."""
    return view if type(view) is np.ndarray else getattr(view, "owner", view)


def owner_of_memory(array: np.ndarray) -> np.ndarray:
    """The array of whose memory `array` is a view, or the last one if no array owns it."""
    base: Any = array
    while isinstance(base, np.ndarray):
        array, base = base, base.base
        if isinstance(base, memoryview):
            base = base.obj
    return array


class _Interface:
    """What NumPy makes an array of without looking at its elements."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, data: tuple, shape: tuple, strides: tuple | None, typestr: str, owner: Any):
        self.owner = owner  # the array's base is this object, which keeps the memory's owner
        self.__array_interface__ = {
            "data": data,
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
            "version": 3,
        }


_NOWHERE = 4096
"""The address of arrays without elements: any that suits every type, as nothing lies there."""


def _over(
    data: tuple, shape: tuple, strides: tuple | None, typestr: str, owner: Any = None
) -> np.ndarray:
    """The array over memory that is described in the terms of NumPy's interface, which `owner` keeps."""
    address, readonly = data
    if not address:
        # Whoever has no elements says so, but NumPy makes new memory of it, or, before 2.3, no array.
        if 0 not in shape:
            raise ValueError(f"an array of shape {shape} must have memory, but says address 0")
        data = (_NOWHERE, readonly)
    found = np.asarray(_Interface(data, shape, strides, typestr, owner))
    # NumPy has no name for bfloat16; libraries that have one give it as two opaque bytes.
    return found.view(BFLOAT16) if found.dtype.str[1:] == "V2" else found


def _memory_order(c_contiguous: bool, f_contiguous: bool, aligned: bool) -> str | None:
    if not aligned:
        return None
    if c_contiguous and f_contiguous:
        return "any"
    return "C" if c_contiguous else "F" if f_contiguous else None


# NumPy's flag bits. One look into a table costs 0.15 us, four attributes of `flags` 0.3 us, and
# every assignment of a gradient pays it.
_C_CONTIGUOUS, _F_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x2, 0x100, 0x400
_FLAGS = _C_CONTIGUOUS | _F_CONTIGUOUS | _ALIGNED | _WRITEABLE


def _layouts(device: str) -> dict[tuple[np.dtype, int], Layout]:
    return {
        (dtype, c | f | a | w): Layout(device, name, _memory_order(c > 0, f > 0, a > 0), w > 0)
        for dtype, name in {**FLOAT_TYPES, **PACKED_TYPES}.items()
        for c in (0, _C_CONTIGUOUS)
        for f in (0, _F_CONTIGUOUS)
        for a in (0, _ALIGNED)
        for w in (0, _WRITEABLE)
    }


_HOST_LAYOUTS = _layouts("cpu")
_DEVICE_LAYOUTS: dict[str, dict[tuple[np.dtype, int], Layout]] = {}


def layout(view: np.ndarray) -> Layout:
    """The layout of a buffer, given its view. KeyError for a data type that is not accepted."""
    if isinstance(view, DeviceView):
        if view.place not in _DEVICE_LAYOUTS:
            _DEVICE_LAYOUTS[view.place] = _layouts(view.place)
        return _DEVICE_LAYOUTS[view.place][view.dtype, view.flags.num & _FLAGS]
    return _HOST_LAYOUTS[view.dtype, view.flags.num & _FLAGS]


def device_of(view: np.ndarray) -> str:
    """Where a buffer lies, given its view: "cpu" or "cuda:N"."""
    return view.place if isinstance(view, DeviceView) else "cpu"


def flat_order(view: np.ndarray) -> Literal["C", "F"]:
    """The order in which kernels walk through a buffer, and its gradient and state with it."""
    flags = view.flags
    return "F" if flags.f_contiguous and not flags.c_contiguous and flags.aligned else "C"


# ---- what is refused ----


def check(array: Any, what: str) -> np.ndarray:
    """The view of `array`; TypeError, beginning with `what`, unless it is a buffer of floats."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{what} must be a plain array, but got a masked array: "
            "fill it first, for example with array.filled(0)"
        )
    if not isinstance(array, np.ndarray) and not is_device_array(array):
        raise TypeError(
            f"{what} must be a NumPy or CUDA array of {ACCEPTED}, but got {type(array).__name__}: "
            "make one with numpy.asarray(..., dtype=numpy.float32)"
        )
    found = view(array)
    if found.dtype in FLOAT_TYPES:
        return found
    if not found.dtype.isnative:
        raise TypeError(
            f"{what} must be in this machine's byte order, but got dtype {found.dtype.str!r}: "
            "convert it with array.astype(array.dtype.newbyteorder('='))"
        )
    raise TypeError(
        f"{what} must have dtype {ACCEPTED}, but got {found.dtype}: "
        "convert it with array.astype(numpy.float32)"
    )


def check_writable(view: np.ndarray, what: str) -> None:
    """Raise ValueError unless every element can be written, each in memory of its own."""
    flags = view.flags
    if not flags.writeable:
        raise ValueError(
            f"{what} is read-only, but an optimizer updates it in place: give a writable array, "
            "for example array.copy()"
        )
    if flags.forc:  # contiguous, in either order: nearly all arrays
        return
    extent = view.itemsize
    for stride, length in sorted(
        (abs(stride), length) for stride, length in zip(view.strides, view.shape) if length > 1
    ):
        if stride < extent and view.size:
            raise ValueError(
                f"{what} has elements that share memory (shape {view.shape}, strides "
                f"{view.strides}): give an array of its own, for example array.copy()"
            )
        extent += stride * (length - 1)


def overlapping(
    views: list[np.ndarray], others: list[np.ndarray] | None = None
) -> tuple[int, int] | None:
    """The positions of two buffers that share memory, or None.

    The buffers in `others`, whose positions follow those of `views`, may share memory with each
    other, but not with any of `views`.

    Buffers are sorted by address, so that only neighbours whose byte ranges meet are compared
    element by element: a thousand separate arrays cost a few milliseconds, not a million pairs.
    """
    alone = len(views)
    views = views + (others or [])
    bounds = getattr(np.lib, "array_utils", np).byte_bounds
    spans = sorted((device_of(view), *bounds(view), i) for i, view in enumerate(views) if view.size)
    still_open: list[tuple[str, int, int]] = []
    for device, start, end, i in spans:
        still_open = [other for other in still_open if other[0] == device and other[1] > start]
        for *_, j in still_open:
            if min(i, j) < alone and np.shares_memory(views[i], views[j]):
                return min(i, j), max(i, j)
        still_open.append((device, end, i))
    return None


# ---- arrays from elsewhere ----


def adopted(array: Any, what: str) -> np.ndarray:
    """The view of what an optimizer may write: the memory of `array` itself, never a copy of it.

    Args:
        array: a buffer, or a writable array of another library on the host: by its
            `__array_interface__`, the buffer protocol, DLPack, or the one array in a pandas or
            xarray object. The view keeps it alive.
        what: how messages begin.

    Raises:
        TypeError: no array of an accepted type, or none whose memory can be shared.
        ValueError: it is read-only, or elements of it share memory.

    Example:
        >>> import array
        >>> numbers = array.array("d", [1.0, 2.0])
        >>> adopted(numbers, "data")[0] = 5
        >>> numbers
        array('d', [5.0, 2.0])
    """
    if type(array) is np.ndarray and array.dtype in FLOAT_TYPES:  # nearly all
        found = array
    else:
        found = check(array, what) if isinstance(array, np.ndarray) else _shared(array, what, True)
    check_writable(found, what)
    return found


def readable(array: Any, what: str) -> np.ndarray:
    """The view of what is only read: a number, or the memory of `array` itself.

    Args:
        array: a buffer, a float or a NumPy scalar, or an array of another library, read-only or
            not: a torch tensor or a JAX array besides what `adopted` takes.
        what: how messages begin.

    Raises:
        TypeError: no array of an accepted type, or none that can be read without a copy.

    Example:
        >>> readable(memoryview(np.ones(3)).toreadonly(), "the gradient")
        array([1., 1., 1.])
    """
    if isinstance(array, (float, np.generic)):  # what reductions return for shape ()
        array = np.asarray(array)
    if type(array) is np.ndarray and array.dtype in FLOAT_TYPES:
        return array
    return check(array, what) if isinstance(array, np.ndarray) else _shared(array, what, False)


def _shared(array: Any, what: str, writing: bool) -> np.ndarray:
    """The view of an array that is not NumPy's, by whatever shows its memory."""
    if _is_of(array, "torch", "Tensor"):
        return _torch_memory(array, what, writing)
    if _is_of(array, "jax", "Array"):
        return _jax_memory(array, what, writing)
    if _is_of(array, "pandas", "Series") or _is_of(array, "pandas", "DataFrame"):
        return _pandas_memory(array, what, writing)
    if _is_of(array, "xarray", "DataArray"):
        return _xarray_memory(array, what, writing)
    # A class has the attributes of its arrays, and the memory of a NumPy scalar is nobody's.
    if is_device_array(array) or isinstance(array, (type, np.generic)):
        return check(array, what)
    interface = getattr(array, "__array_interface__", None)
    if isinstance(interface, dict):
        return _interface_memory(array, interface, what)
    try:
        memory = memoryview(array)
    except TypeError:
        pass
    else:
        return _buffer_memory(array, memory, what)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _dlpack_memory(array, what, writing)
    return check(array, what)


def is_torchs(value: Any) -> bool:
    """Whether `value` is a tensor of torch, which is not imported for that."""
    return _is_of(value, "torch", "Tensor")


def _is_of(array: Any, library: str, name: str) -> bool:
    """Whether it is an object of this class of a library, which is not imported for that."""
    kind = getattr(sys.modules.get(library), name, None)
    return isinstance(kind, type) and isinstance(array, kind)


def _named(array: Any) -> str:
    """What messages call an object of another library."""
    kind = type(array)
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _torch_memory(tensor: Any, what: str, writing: bool) -> np.ndarray:
    on_cuda = tensor.device.type == "cuda"
    if writing and (tensor.requires_grad or not on_cuda):
        raise TypeError(
            f"{what} must be a NumPy or CUDA array of {ACCEPTED}, but got a {_named(tensor)}, whose "
            "memory torch itself keeps count of: give "
            + ("tensor.detach()" if on_cuda else _torch_as_numpy(tensor))
            + ", which shares it; for torch's own training loop, in place of genesis.optim.AdamW, there "
            "is genesis.torch.AdamW, and so for the others"
        )
    if on_cuda:
        return check(tensor.detach() if tensor.requires_grad else tensor, what)
    if str(tensor.layout) != "torch.strided":
        raise TypeError(
            f"{what} must be a dense array, but got a {_named(tensor)} of layout {tensor.layout}: "
            "give tensor.to_dense(), or make a genesis.SparseGrad of its rows"
        )
    try:
        if str(tensor.dtype) == "torch.bfloat16":  # a type that torch cannot hand to NumPy
            bits = tensor.detach().view(sys.modules["torch"].int16)
            return bits.numpy().view(BFLOAT16)
        found = tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"{what} must be readable where it lies, but the {_named(tensor)} on {tensor.device} is "
            f"not ({error}): give tensor.detach().cpu().resolve_conj().resolve_neg(), of an accepted "
            f"type: {ACCEPTED}"
        ) from error
    return check(found, what)


def _torch_as_numpy(tensor: Any) -> str:
    if str(tensor.dtype) == "torch.bfloat16":
        return "tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)"
    return "tensor.detach().numpy()"


def _jax_memory(array: Any, what: str, writing: bool) -> np.ndarray:
    if writing:
        raise TypeError(
            f"{what} must be an array that an optimizer can update in place, but got a JAX array, "
            "which never changes and may share its memory with others: give a copy, numpy.array(x)"
        )
    try:
        # Where it lies is asked first: an array on the host says in 20 us that it is on no GPU.
        if any(device.platform != "cpu" for device in array.devices()) and is_device_array(array):
            return check(array, what)
        found = np.asarray(array)
    except TypeError as error:  # a tracer or a key of random numbers
        raise TypeError(
            f"{what} must be an array of {ACCEPTED}, but got a {_named(array)}, which has no "
            "elements to read: assign the values that a jitted function returns"
        ) from error
    # NumPy gets one block of memory as it is; what lies on several devices is gathered into a copy.
    if found.flags.owndata and found.size:
        raise TypeError(
            f"{what} must be readable where it lies, but the JAX array on {array.sharding} is not "
            "one block of the host's memory: give a copy, numpy.asarray(x)"
        )
    return check(found, what)


def _pandas_memory(frame: Any, what: str, writing: bool) -> np.ndarray:
    found = frame.to_numpy()
    copy = "frame.to_numpy(copy=True)"
    check(found, what)
    if not _is_same_memory(found, frame.to_numpy()):
        raise TypeError(
            f"{what} must have its values in one array, but the {_named(frame)} has them in several "
            f"(of mixed dtypes, or columns added one by one) or has missing ones: give a copy, {copy}"
        )
    if writing and not found.flags.writeable:
        raise ValueError(
            f"{what} is read-only, but an optimizer updates it in place: a {_named(frame)} does not "
            f"let its array be written (copy-on-write); give a copy, {copy}"
        )
    return found


def _xarray_memory(labelled: Any, what: str, writing: bool) -> np.ndarray:
    data = labelled.data
    found = adopted(data, what) if writing else readable(data, what)
    again = labelled.data
    if again is not data and not _is_same_memory(found, readable(again, what)):
        raise TypeError(
            f"{what} must have its values in memory, but the {_named(labelled)} computes them when "
            "asked: give labelled.load() or labelled.to_numpy()"
        )
    return found


def _is_same_memory(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether what a library gave twice is the same memory: what was copied twice is not."""
    first, second = (found.__array_interface__["data"][0] for found in (one, other))
    return first == second or not one.size


def _interface_memory(array: Any, interface: dict[str, Any], what: str) -> np.ndarray:
    data = interface.get("data")
    if interface.get("mask") is not None:
        raise TypeError(
            f"{what} must be a plain array, but the {_named(array)} has a mask: fill it first"
        )
    if not isinstance(data, tuple):  # the protocol then means a buffer, the object's own for None
        try:
            memory = np.frombuffer(array if data is None else data, np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise TypeError(
                f"{what} must show its memory, but the __array_interface__ of the {_named(array)} "
                f"gives no buffer ({error}): give a NumPy array, for example numpy.asarray(x)"
            ) from error
        address, _ = memory.__array_interface__["data"]
        data = address + int(interface.get("offset", 0)), not memory.flags.writeable
        array = array, memory
    shape, strides, typestr = interface["shape"], interface.get("strides"), interface["typestr"]
    # The dict too: a producer may keep in it what its address points to.
    return check(_over(data, shape, strides, typestr, (array, interface)), what)


def _buffer_memory(array: Any, memory: memoryview, what: str) -> np.ndarray:
    native = "@=<" if sys.byteorder == "little" else "@=>"
    if memory.format.lstrip(native) not in ("d", "f", "e"):
        raise TypeError(
            f"{what} must be an array of {ACCEPTED}, but got a {type(array).__name__} of format "
            f"{memory.format!r}: convert it, numpy.asarray(x).astype(numpy.float32), or give "
            "numpy.frombuffer(x, dtype=numpy.float32) if its bytes are floats"
        )
    return check(np.asarray(memory), what)


def _dlpack_memory(array: Any, what: str, writing: bool) -> np.ndarray:
    kind, number = array.__dlpack_device__()
    if int(kind) != dlpack.CPU:
        raise TypeError(
            f"{what} must lie on the CPU, or have a __cuda_array_interface__, but the "
            f"{_named(array)} is on DLPack's device ({int(kind)}, {number}): copy it to the host"
        )
    try:
        exported = dlpack.exported(array)
    except (TypeError, BufferError, RuntimeError, ValueError) as error:
        raise TypeError(
            f"{what} must be readable where it lies, but the {_named(array)} cannot be exported by "
            f"DLPack ({error}): give a NumPy array, for example numpy.asarray(x)"
        ) from error
    if exported.copied:
        raise TypeError(
            f"{what} must be readable where it lies, but the {_named(array)} exports a copy of "
            "itself by DLPack: give that copy, numpy.from_dlpack(x)"
        )
    if writing and not exported.versioned:
        raise ValueError(
            f"{what} is read-only as far as can be told: the {_named(array)} exports itself by a "
            "version of DLPack before 1.0, which does not say; give a NumPy array over its memory"
        )
    found = _over(
        (exported.address, exported.read_only),
        exported.shape,
        exported.strides,
        exported.typestr,
        exported.capsule,
    )
    return check(found, what)


# ---- making and moving ----


def parse_device(device: str) -> str:
    """A device as "cpu" or "cuda:N"; ValueError for any other string, RuntimeError without CUDA."""
    if device == "cpu":
        return device
    match = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:N", but got {device!r}')
    count = len(cuda_driver.cuda().gpus)
    number = int(match[1] or 0)
    if number >= count:
        raise ValueError(f"device {device!r} is not among the {count} devices here")
    return f"cuda:{number}"


def put(array: np.ndarray, device: str) -> Any:
    """A host array as a buffer on `device`, which keeps its memory order."""
    if device == "cpu":
        return array
    cuda = cuda_driver.cuda()
    with cuda.gpus[int(device.partition(":")[2])]:
        if array.dtype != BFLOAT16 or cuda_driver.SIMULATED:
            return cuda.to_device(array)
        # NumPy gives no buffer of bfloat16 to the driver's bindings: its bits go as integers.
        bits = cuda.to_device(array.view(np.uint16))
        return type(bits)(bits.shape, bits.strides, array.dtype, gpu_data=bits.gpu_data)


def moved(array: Any, device: str) -> Any:
    """The buffer itself if it is on `device`, else a copy of it there."""
    return array if device_of(view(array)) == device else put(host_copy(array), device)


def empty(
    shape: tuple[int, ...],
    like: np.ndarray,
    order: Literal["C", "F"],
    dtype: np.dtype | None = None,
) -> Any:
    """A flat buffer beside the one that `like` is the view of, its elements not set."""
    device = device_of(like)
    dtype = dtype or like.dtype
    if device == "cpu":
        return np.empty(shape, dtype, order=order)
    cuda = cuda_driver.cuda()
    with cuda.gpus[int(device.partition(":")[2])]:
        return cuda.device_array(shape, dtype, order=order)


class Block:
    """One piece of the host's memory for many arrays, which lie in it side by side.

    Those who work on all of them, one after another, then go through memory from its beginning to its
    end, which is what processors fetch ahead of time, through fewer pages. Each piece that is taken
    is a view of the block, and the block lives as long as any of them.

    Args:
        sizes: for each array that may be wanted how many bytes it takes.
    """

    LINE = 64
    """Arrays begin where lines of the cache do."""

    HUGE = 1 << 21
    """Where huge pages begin. NumPy asks for them where there is room for two."""

    def __init__(self, sizes: Iterable[int]):
        self._size = sum(map(self._rounded, sizes))
        self._free: np.ndarray | None = None

    def _rounded(self, size: int) -> int:
        return -(-size // self.LINE) * self.LINE

    def zeros(
        self, shape: tuple[int, ...], dtype: np.dtype, order: Literal["C", "F"]
    ) -> np.ndarray:
        """As `np.zeros`, in the block while there is room."""
        size = math.prod(shape) * dtype.itemsize
        if not 0 < size <= self._size:
            return np.zeros(shape, dtype, order=order)
        if self._free is None:
            step = self.HUGE if self._size >= 2 * self.HUGE else self.LINE
            memory = np.zeros(self._size + step, np.uint8)  # costs nothing until touched
            self._free = memory[-memory.ctypes.data % step :]
        taken = self._rounded(size)
        found, self._free = self._free[:size], self._free[taken:]
        self._size -= taken
        return found.view(dtype).reshape(shape, order=order)


def full(
    value: float, like: np.ndarray, dtype: np.dtype | None = None, block: Block | None = None
) -> Any:
    """A buffer beside the one that `like` is the view of, every element `value`.

    On the host it lies in a block, if one is given.
    """
    order = flat_order(like)
    if value == 0 and isinstance(like, DeviceView):
        array = empty(like.shape, like, order, dtype)
        _clear(array)
        return array
    zeros = np.zeros if block is None or isinstance(like, DeviceView) else block.zeros
    array = zeros(like.shape, dtype or like.dtype, order=order)  # costs nothing until touched
    if value != 0:
        array.fill(value)
    return put(array, device_of(like))


def read_only(array: Any) -> Any:
    """The same memory as an array that cannot be written: on the host. A device array as it is."""
    if not isinstance(array, np.ndarray):
        return array
    shown = array.view()
    shown.flags.writeable = False
    return shown


def zeroed(array: Any) -> Any:
    """The buffer, filled with zeros; a new one in place of one that cannot be filled."""
    found = view(array)
    if not found.flags.writeable:
        return full(0, found)
    if not isinstance(found, DeviceView):
        np.asarray(found).fill(0)  # whatever a subclass makes of it
        return array
    if layout(found).order is None:
        return full(0, found)
    _clear(array)
    return array


def _clear(array: Any) -> None:
    """Fill a flat device array with zeros."""
    if cuda_driver.SIMULATED:
        array._ary.fill(0)
    elif array.size:
        cuda = cuda_driver.cuda()
        with cuda.gpus[int(device_of(view(array)).partition(":")[2])]:
            cuda.as_cuda_array(array, sync=False).gpu_data.memset(0)


def host_copy(array: Any) -> np.ndarray:
    """A contiguous host array with the buffer's values, never an alias of it."""
    found = view(array)
    if isinstance(found, DeviceView):
        cuda = cuda_driver.cuda()
        with cuda.gpus[int(found.place.partition(":")[2])]:
            cuda.synchronize()  # whatever stream still works on it
            if not hasattr(array, "copy_to_host"):
                array = cuda.as_cuda_array(array, sync=False)
            array = array.copy_to_host().view(found.dtype)
    return np.array(array, order="C", copy=True, subok=False)


_lending: ContextVar[bool] = ContextVar("genesis_lending", default=False)


def lending(call: Callable[[], Any], lend: bool = True) -> Any:
    """What `call` returns, when `host_copy_or_loan` need not copy; or must, if it is not to `lend`."""

    def within() -> Any:
        _lending.set(lend)
        return call()

    return copy_context().run(within)


def host_copy_or_loan(array: Any) -> np.ndarray:
    """As `host_copy`; within `lending`, for who copies it himself, a plain host array as it is."""
    return array if _lending.get() and type(array) is np.ndarray else host_copy(array)


def copy_beside(array: np.ndarray, like: np.ndarray, block: Block | None = None) -> Any:
    """A copy of a host array on the device and in the order of `like`, in its own data type.

    On the host it lies in a block, if one is given.
    """
    if block is None or isinstance(like, DeviceView):
        copy = np.array(array, order=flat_order(like), copy=True, subok=False)
        return put(copy, device_of(like))
    copy = block.zeros(array.shape, array.dtype, flat_order(like))
    copy[...] = array
    return copy


def as_host(array: Any, what: str, packed: bool = False) -> np.ndarray:
    """A host array with the values of `array`, which may be a torch tensor or on a device.

    Raises TypeError, beginning with `what`, unless it holds floats of an accepted type, or, where it may
    be `packed`, what packed state is made of.
    """
    if type(array).__module__.partition(".")[0] == "torch":
        tensor = array.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # a type that torch cannot hand to NumPy
            array = tensor.float().numpy().astype(BFLOAT16)
        else:
            array = tensor.numpy()
    if packed and isinstance(array, np.ndarray) and array.dtype in PACKED_TYPES:
        return array
    found = check(array, what)
    return host_copy(array) if isinstance(found, DeviceView) else found
