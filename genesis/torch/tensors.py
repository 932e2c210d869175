"""What there is to know of torch's tensors: which a kernel can reach, and what memory they have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import kernels

TYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""The data types of parameters, gradients and state, and the names that kernels know them by."""

PLAIN = Tensor, torch.nn.Parameter
"""The classes of tensors that are nothing but memory: a subclass may be anything."""


@lru_cache(maxsize=None)
def exchange() -> int:
    """How torch answers questions about its tensors in C.

    Raises:
        RuntimeError: it does not.
    """
    found = kernels.exchange_of(Tensor)
    if not found:
        raise RuntimeError(
            f"PyTorch {torch.__version__} has no __dlpack_c_exchange_api__ of DLPack 1: please report "
            "this, with your version"
        )
    return found


# Getters that are written in C, for `map`: a thousand calls take a tenth of a millisecond.
gradient_of: Any = vars(torch._C.TensorBase)["grad"].__get__
_storage_of = Tensor.untyped_storage
_first_byte = torch.UntypedStorage.data_ptr
_length = torch.UntypedStorage.nbytes


def ids(things: Sequence[Any]) -> np.ndarray:
    """The `id` of each."""
    return np.fromiter(map(id, things), np.int64, len(things))


class Memory:
    """The storages of some tensors. While they are held here, their memory lives.

    Attributes:
        bounds: for each tensor the first byte of its storage and one past the last.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._storages = list(map(_storage_of, tensors))
        count = len(self._storages)
        self.bounds = np.empty((count, 2), np.int64)
        self.bounds[:, 0] = np.fromiter(map(_first_byte, self._storages), np.int64, count)
        self.bounds[:, 1] = np.fromiter(map(_length, self._storages), np.int64, count)
        self.bounds[:, 1] += self.bounds[:, 0]


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
    if tensor.device.type != "cpu":
        return f"{what} on {tensor.device.type}"
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
    if param.is_inference():
        return "parameter made in inference mode"
    if grad.shape != param.shape:
        return "gradient of another shape"
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


def laid_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A copy of a tensor with its elements in the order of another one, which is dense."""
    copy = torch.empty_like(other, dtype=tensor.dtype, memory_format=torch.preserve_format)
    return copy.copy_(tensor)


def plain(value: Any) -> Any:
    """A setting with Python's numbers in it in place of tensors of one element."""
    if type(value) in (float, int, bool):
        return value
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value
