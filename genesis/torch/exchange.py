"""Torch's tensors as NumPy's arrays and back: for checkpoints, and for state that comes from NumPy.

Both ways share memory where that is possible. NumPy has no name for bfloat16, so these go as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..buffers import BFLOAT16
from .tensors import PLAIN

_NAMES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip
_DTYPES = {getattr(torch, name): np.dtype(name) for name in _NAMES} | {torch.bfloat16: BFLOAT16}


class Described(NamedTuple):
    """What a checkpoint has to know of a tensor.

    Attributes:
        dtype, shape: those of its array.
        fetch: makes the array, in the memory of the host.
        place: equal for tensors that are the same elements of memory in the same order.
        is_parameter: whether it is a parameter.
        requires_grad: whether it asks for a gradient.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]
    place: tuple
    is_parameter: bool
    requires_grad: bool


def described(tensor: Tensor) -> Described | str:
    """What a checkpoint has to know of a tensor; or why it cannot be saved."""
    if type(tensor) not in PLAIN:
        return f"its class {type(tensor).__name__} would not come back: give a plain tensor"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"its layout is {tensor.layout}: give tensor.to_dense()"
    if tensor.device.type == "meta":
        return "it is on meta, without values"
    if tensor.dtype not in _DTYPES:
        accepted = ", ".join(str(dtype) for dtype in _DTYPES)
        return f"its dtype is {tensor.dtype}, and accepted are {accepted}"
    # Empty tensors have no memory to be known by.
    place: tuple = (id(tensor),)
    if tensor.numel():
        address = tensor.data_ptr()
        place = str(tensor.device), address, tensor.dtype, tensor.shape, tensor.stride()
        place = *place, tensor.is_neg()
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    dtype, shape = _DTYPES[tensor.dtype], tuple(tensor.shape)
    fetch = partial(to_array, tensor)
    return Described(dtype, shape, fetch, place, is_parameter, tensor.requires_grad)


def to_array(tensor: Tensor) -> np.ndarray:
    """An array with a tensor's values, over its memory if that is the host's."""
    tensor = tensor.detach().cpu().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor over an array's memory."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def with_tensors(state_dict: Any, numbers: Collection[str] = ()) -> Any:
    """An optimizer's state dict with copies as tensors in place of arrays; itself if it has none.

    Args:
        state_dict: the state dict.
        numbers: the names of numbers, which become tensors too.
    """
    state = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if not isinstance(state, Mapping):
        return state_dict

    def is_other(name: Any, value: Any) -> bool:
        return isinstance(value, np.ndarray) or (name in numbers and type(value) in (int, float))

    def converted(name: Any, value: Any) -> Any:
        if not is_other(name, value):
            return value
        if isinstance(value, np.ndarray):
            return to_tensor(np.array(value, order="K"))
        return torch.tensor(float(value), dtype=torch.get_default_dtype())

    entries = [each.items() for each in state.values() if isinstance(each, Mapping)]
    if not any(is_other(name, value) for each in entries for name, value in each):
        return state_dict
    become = {
        key: {name: converted(name, value) for name, value in each.items()}
        if isinstance(each, Mapping)
        else each
        for key, each in state.items()
    }
    return {**state_dict, "state": become}
