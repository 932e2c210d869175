"""Clipping of gradients that torch's parameters hold: `genesis.nn.utils` comes here for them.

Gradients on the CPU are reduced and scaled where they lie, in launches over all of one data type. What
a kernel cannot reach (complex or sparse gradients, other devices, subclasses), and gradients that share
memory with each other, are left to torch's function of the same name, all of a call together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import checks, kernels
from ..commit import commit
from ..kernels import reductions, transforms
from .tensors import PLAIN, TYPES, gradient_of, handles, is_dense, plain, storages, unreachable

_PLAIN = frozenset(PLAIN)
_Key = tuple[torch.dtype, tuple[int, ...]]


def get_total_norm(
    tensors: list[Tensor], norm_type: float, error_if_nonfinite: bool, foreach: bool | None
) -> Tensor:
    """As `genesis.nn.utils.get_total_norm`; a tensor of one element."""
    with _Batches(tensors, writing=False) as found:
        if found is not None:
            return _as_tensor(_norm(found, norm_type, error_if_nonfinite), tensors)
    return torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)


def clip_grad_norm_(
    params: list[Tensor],
    max_norm: Any,
    norm_type: float,
    error_if_nonfinite: bool,
    foreach: bool | None,
) -> Tensor:
    """As `genesis.nn.utils.clip_grad_norm_`; the norm is a tensor of one element."""
    max_norm = checks.limit("max_norm", plain(max_norm))
    gradients = _gradients(params)
    with _Batches(gradients, writing=True) as found:
        if found is not None:
            total = _norm(found, norm_type, error_if_nonfinite)
            _scale(found, reductions.clip_factor(max_norm, total))
            return _as_tensor(total, gradients)
    return torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type, error_if_nonfinite, foreach)


def clip_grads_with_norm_(
    params: list[Tensor], max_norm: Any, total_norm: Any, foreach: bool | None
) -> None:
    """As `genesis.nn.utils.clip_grads_with_norm_`; the norm may be a tensor of one element."""
    max_norm = checks.limit("max_norm", plain(max_norm))
    with _Batches(_gradients(params), writing=True) as found:
        if found is not None:
            _scale(found, reductions.clip_factor(max_norm, float(plain(total_norm))))
            return
    torch.nn.utils.clip_grads_with_norm_(params, max_norm, torch.as_tensor(total_norm), foreach)


def clamp_gradients(params: list[Tensor], lower: float, upper: float) -> None:
    """Clip every element of gradients to [lower, upper], in place."""
    gradients = _gradients(params)
    with _Batches(gradients, writing=True) as found:
        if found is not None:
            _transform(found, transforms.clamp, (lower, upper))
            return
    with torch.no_grad():
        for gradient in gradients:
            gradient.clamp_(lower, upper)


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [gradient for gradient in map(gradient_of, params) if gradient is not None]


def _as_tensor(total: float, tensors: list[Tensor]) -> Tensor:
    """A norm as torch returns it, but in no type that it may be too large for."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.tensor(total, dtype=torch.float64 if wide else torch.float32)


class _Batch:
    """Tensors of one data type, as a kernel sees them; kept for tensors of the same sizes.

    Args:
        dtype: their data type.
        sizes: how many elements each has, not 0.

    Attributes:
        tensors: those of this call.
        batch: what reduces and transforms them.
    """

    def __init__(self, dtype: torch.dtype, sizes: Sequence[int]):
        answering = handles()
        assert answering is not None
        self.tensors: list[Tensor] = []
        self._storages: list[Any] = []
        self._copies: dict[int, Tensor] = {}
        self.batch = kernels.FlatBatch(sizes, TYPES[dtype])
        self._addresses = self.batch.addresses
        self._question = kernels.question(
            *answering.about("cpu"), 0, [TYPES[dtype]], sizes, self._addresses
        )
        self._bytes = np.array(sizes, np.int64) * dtype.itemsize

    def take(self, tensors: list[Tensor]) -> bool:
        """Look at tensors, and copy those that do not lie flat; whether all can be used."""
        question, self.tensors = self._question, tensors
        try:
            self._storages = storages(tensors)  # so that their memory lives
        except (RuntimeError, NotImplementedError):  # sparse ones have none
            return False
        question.objects[:, 0] = kernels.ids(tensors)
        if question.compare() != kernels.FITS:
            for row in np.flatnonzero(question.verdicts[:, 0]).tolist():
                tensor = tensors[row]
                # One that lies flat, and yet cannot be used, has less memory than it says.
                if unreachable(tensor, "gradient") is not None or is_dense(tensor):
                    return False
                if not _has_its_memory(tensor):
                    return False
                self._copies[row] = tensor.detach().contiguous()
                self._addresses[row, 0] = self._copies[row].data_ptr()
        # A number whose sign is only noted lies within a complex one, so not where a storage begins.
        within = np.flatnonzero(question.offsets[:, 0]).tolist()
        return not any(tensors[row].is_neg() for row in within)

    def ranges(self) -> np.ndarray:
        """Of each tensor's memory the first byte and one past the last."""
        first = self._addresses[:, 0].copy()
        last = first + self._bytes
        for row in self._copies:
            tensor = self.tensors[row]
            first[row] = tensor.data_ptr()
            last[row] = first[row] + _extent(tensor) * tensor.element_size()
        return np.stack([first, last], axis=-1)

    def put_back(self) -> None:
        """Write what has become of copies to where they came from."""
        for row, copy in self._copies.items():
            _once(self.tensors[row]).copy_(_once(copy, like=self.tensors[row]))

    def release(self) -> None:
        """Hold no tensors any more."""
        self.tensors, self._storages, self._copies = [], [], {}


_KEPT: dict[_Key, Any] = {}
"""`_Batch`es that are not in use, by the sizes of their tensors."""

_MOST_KEPT = 16


def _extent(tensor: Tensor) -> int:
    """How many elements of memory lie between the first and one past the last."""
    lengths = zip(tensor.shape, tensor.stride())
    return 1 + sum((length - 1) * stride for length, stride in lengths)


def _has_its_memory(tensor: Tensor) -> bool:
    end = (tensor.storage_offset() + _extent(tensor)) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def _once(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The part of a tensor that has each element of memory once, where `like` has been expanded."""
    tensor = tensor.detach()
    for axis, stride in enumerate((tensor if like is None else like).stride()):
        if stride == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


class _Batches:
    """Tensors in batches, while they are worked on; None in place of it if torch is to do that itself.

        with _Batches(tensors, writing=True) as found:
            if found is None: ...

    Args:
        tensors: the tensors.
        writing: whether they are changed, so that they must not share memory.
    """

    def __init__(self, tensors: Sequence[Tensor], *, writing: bool):
        self._tensors, self._writing = tensors, writing
        self._found: dict[_Key, _Batch] = {}

    def __enter__(self) -> list[_Batch] | None:
        tensors = self._tensors
        if torch.compiler.is_compiling() or not _PLAIN.issuperset(map(type, tensors)):
            return None
        if handles() is None or any(map(Tensor.is_inference, tensors)):
            return None
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        if not by_type.keys() <= TYPES.keys():
            return None
        for dtype, those in by_type.items():
            filled = [tensor for tensor in those if tensor.numel()]
            if filled:
                key = dtype, tuple(map(Tensor.numel, filled))
                kept = _KEPT.pop(key, None)
                batch = self._found[key] = kept or _Batch(*key)
                if not batch.take(filled):
                    return None
        found = [*self._found.values()]
        if self._writing and found and kernels.regions([batch.ranges() for batch in found]).met:
            return None
        return found

    def __exit__(self, *raised: object) -> None:
        for key, batch in self._found.items():
            batch.release()
            _KEPT[key] = batch
        for key in list(_KEPT)[:-_MOST_KEPT]:
            _KEPT.pop(key, None)


def _norm(found: list[_Batch], norm_type: float, error_if_nonfinite: bool) -> float:
    total = kernels.norm([each.batch for each in found], norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise reductions.not_finite(norm_type)
    return total


def _scale(found: list[_Batch], factor: float) -> None:
    if factor != 1.0:
        _transform(found, transforms.scale, (factor,))


def _transform(found: list[_Batch], function: Callable, scalars: Sequence[float]) -> None:
    actions = [action for each in found for action in each.batch.transforming(function, scalars)]
    written = [tensor for each in found for tensor in each.tensors]
    # What `torch.autograd.graph.increment_version` calls: that one is not written in C.
    commit([*actions, partial(torch._C._increment_version, written)])
    with torch.no_grad():
        for each in found:
            each.put_back()
