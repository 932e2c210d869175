"""What there is to know of torch's tensors: which a kernel can reach, and what memory they have."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import cuda_driver

TYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""The data types of parameters, gradients and state, and the names that kernels know them by."""

PLAIN = Tensor, torch.nn.Parameter
"""The classes of tensors that are nothing but memory: a subclass may be anything."""


_FACTS = (
    "layout", "device_type", "device_index", "dtype", "dim", "sizes", "strides", "storage_size",
    "storage_offset", "data_ptr",
)  # fmt: skip
"""What `kernels.handles` asks, by the names that torch's stable C interface has for it."""


class Handles(NamedTuple):
    """How torch answers questions about its tensors in C, in the order in which `Question` wants it.

    Attributes:
        functions: the addresses of the functions of torch's stable C interface.
        within: where in a tensor's object its handle is.
        kinds: torch's numbers for storage types.
        devices: its numbers for kinds of devices.
    """

    functions: np.ndarray
    within: int
    kinds: dict[str, int]
    devices: dict[str, int]

    def about(self, place: str) -> tuple[np.ndarray, int, dict[str, int], tuple[int, int]]:
        """What `kernels.question` has to know of tensors in a place (see `place_of`)."""
        kind, _, index = place.partition(":")
        return self.functions, self.within, self.kinds, (self.devices[kind], int(index or -1))


_HALF = 2**32 - 1


@lru_cache(maxsize=None)
def handles() -> Handles | None:
    """How torch answers in C; None if this torch does not answer as it is known to."""
    probe = torch.zeros(3, 4, dtype=torch.float32)[1:]
    # A tensor's object has the pointer that is its handle right behind what all objects have.
    within = object.__basicsize__
    held = ctypes.c_int64.from_address(id(probe) + within).value
    places = [*Path(torch.__file__).parent.glob("lib/*torch_cpu.*")]
    if held & (2**64 - 1) != probe._cdata & (2**64 - 1):
        return None
    for place in places:
        try:
            library = ctypes.CDLL(str(place))
            found = [getattr(library, f"aoti_torch_get_{fact}") for fact in _FACTS]
            kinds = {
                name: getattr(library, f"aoti_torch_dtype_{name}")() for name in TYPES.values()
            }
            devices = {
                kind: getattr(library, f"aoti_torch_device_type_{kind}")()
                for kind in ("cpu", "cuda")
            }
            strided = library.aoti_torch_layout_strided()
        except (OSError, AttributeError):  # another file, or another interface
            continue
        answers: list[Any] = []
        for function in found:
            answer = ctypes.c_int64(0)
            failed = function(ctypes.c_void_p(id(probe) + within), ctypes.byref(answer))
            answers.append(None if failed else answer.value)
        layout, device, index, dtype, axes, shape, strides, size, offset, data = answers
        # The index has 32 bits, of which the answer that stood there has 64.
        told = (layout, device, index & _HALF, dtype, axes, size, offset, data)
        right = (0, 0, -1 & _HALF, kinds["float32"], 2, 48, 4, probe.data_ptr())
        two = ctypes.c_int64 * 2
        if (
            told == right
            and strided == devices["cpu"] == 0 != devices["cuda"]
            and None not in (shape, strides)
            and tuple(two.from_address(shape)) == (2, 4)
            and tuple(two.from_address(strides)) == (4, 1)
        ):
            pointers = [ctypes.cast(function, ctypes.c_void_p).value for function in found]
            return Handles(np.array(pointers, np.int64), within, kinds, devices)
    return None


# Getters that are written in C, for `map`: a thousand calls take a tenth of a millisecond.
gradient_of: Any = vars(torch._C.TensorBase)["grad"].__get__
_storage_of = Tensor.untyped_storage


def storages(tensors: Iterable[Tensor]) -> list[Any]:
    """The storages of some tensors. While somebody holds them, their memory lives."""
    return list(map(_storage_of, tensors))


# ---- where tensors are ----


def place_of(tensor: Tensor) -> str:
    """Where a tensor is: "cpu", "cuda:0", or what else torch says."""
    device = tensor.device
    return device.type if device.type == "cpu" else f"{device.type}:{device.index}"


def stream_of(place: str) -> int:
    """The number of the stream on which torch works in a place now: 0 is the default one."""
    return 0 if place == "cpu" else torch.cuda.current_stream(place).cuda_stream


def record(tensors: Iterable[Tensor], place: str) -> None:
    """Tell the allocator of a GPU that the present stream works on tensors.

    Those that were made on another stream could be given away while they are still in use here.
    """
    stream = torch.cuda.current_stream(place)
    for tensor in tensors:
        tensor.record_stream(stream)


@lru_cache(maxsize=None)
def _out_of_reach(kind: str) -> str | None:
    """Why a kernel cannot reach devices of a kind, in words for after "on"; None: it can."""
    if kind == "cpu":
        return None
    if kind != "cuda" or torch.version.cuda is None:
        return kind
    try:
        cuda_driver.cuda()
    except RuntimeError as error:
        return f"cuda ({error})"
    return None


# ---- why a kernel cannot have a tensor ----


def unreachable(tensor: Tensor, what: str) -> str | None:
    """Why a kernel cannot reach a tensor, in words that say `what` it is; None: it can."""
    if type(tensor) not in PLAIN:
        return f"{what} of class {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"{what} of layout {tensor.layout}"
    if tensor.is_nested:
        return f"nested {what}"
    if tensor.dtype not in TYPES:
        return f"{what} of {tensor.dtype}"
    elsewhere = _out_of_reach(place_of(tensor).partition(":")[0])
    if elsewhere is not None:
        return f"{what} on {elsewhere}"
    if tensor.is_neg():
        return f"{what} that is another's negative"
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # as under torch.func.vmap
        return f"{what} without memory"
    return None


def unfit(param: Tensor, grad: Tensor) -> str | None:
    """Why a kernel cannot update a parameter by a gradient; None: it can."""
    reason = unreachable(param, "parameter") or unreachable(grad, "gradient")
    if reason is not None:
        return reason
    if handles() is None:
        return f"PyTorch {torch.__version__}, which is unlike those that genesis knows"
    if param.is_inference():
        return "parameter made in inference mode"
    if grad.shape != param.shape:
        return "gradient of another shape"
    if place_of(grad) != place_of(param):
        return "gradient on another device"
    if not is_dense(param):
        return "parameter with gaps in its memory"
    return None


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a piece of memory, each once, in whatever order of the axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape)):
        if length > 1:
            if stride != expected:
                return False
            expected *= length
    return True


def lies_like(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor of the same shape has its elements in the same order."""
    strides = zip(tensor.stride(), other.stride(), tensor.shape)
    return all(own == its for own, its, length in strides if length > 1)


def laid_like(tensor: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a tensor with its elements in the order of another one, which is dense.

    Its type is the tensor's unless one is given.
    """
    kind = dtype or tensor.dtype
    copy = torch.empty_like(
        other, dtype=kind, requires_grad=False, memory_format=torch.preserve_format
    )
    return copy.copy_(tensor)


def filled_like(tensor: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    """A tensor of a type, every element `value`, with its elements in the order of another one."""
    kept = torch.preserve_format
    return torch.full_like(tensor, value, dtype=dtype, requires_grad=False, memory_format=kept)


def plain(value: Any) -> Any:
    """A setting with Python's numbers in it in place of tensors of one element."""
    if type(value) in (float, int, bool):
        return value
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value
