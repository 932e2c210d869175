"""Clip gradients by their common norm or by value: one pass to reduce, one to scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import buffers, checks, kernels, tree
from ...commit import commit
from ...kernels import overlaps, reductions, transforms
from ...parameter import Parameter
from ...sparse import SparseGrad


def get_total_norm(tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    r"""The norm of several arrays together, as if they were one vector.

    .. math:: \left( \sum_i |x_i|^p \right)^{1/p}

    Sums are taken in float64 in an order that depends on nothing, so that 16-bit values do not
    overflow and the result is the same to the last bit for any number of threads. The 2-norm is right,
    too, where squares would overflow and torch gives inf.

    Args:
        tensors: an array or a `SparseGrad`, or a tree or an iterable of them, of float types on any
            device. Of a `SparseGrad` the sums of repeated rows count.
        norm_type: the exponent p; inf and -inf give the largest and smallest magnitude, 0 the number
            of arrays that are not all zeros (as in torch). Default: 2.0.
        error_if_nonfinite: raise if the norm is inf or NaN. Default: False.

    Returns:
        The norm, a float; 0.0 for no arrays.

    Raises:
        RuntimeError: the norm is inf or NaN and `error_if_nonfinite` is True.
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import numpy as np, genesis
        >>> genesis.nn.utils.get_total_norm([np.array([3.0]), np.array([[4.0]])])
        5.0
    """
    norm_type = _checked_norm_type(norm_type)
    batches = _batches_of(tensors)
    if norm_type == 2:
        total, _ = kernels.norm_and_finite(batches)
    else:
        reduced = [batch.reduce(norm_type) for batch in batches]
        total = reductions.norm(
            norm_type, [results for results, _ in reduced], [owners for _, owners in reduced]
        )
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return total


def norm_and_finite(tensors: Any, factor: float) -> tuple[float, bool]:
    """The 2-norm of arrays times a factor, and whether they are finite, before and after."""
    return kernels.norm_and_finite(_batches_of(tensors), factor)


def clip_grads_with_norm_(parameters: Any, max_norm: float, total_norm: float) -> None:
    r"""Scale gradients in place by `max_norm / total_norm`, if that is less than 1.

    Args:
        parameters: a tree or an iterable of `Parameter`s, of which those without a gradient are
            skipped, or a tree of gradients themselves.
        max_norm: the norm that the gradients may have at most, at least 0.
        total_norm: the norm that they have, from `get_total_norm`.

    Raises:
        TypeError, ValueError: arguments that are not as above, or a gradient that cannot be written.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2))
        >>> p.grad = np.array([3.0, 4.0])
        >>> genesis.nn.utils.clip_grads_with_norm_(p, 1.0, 5.0)
        >>> p.grad.round(3)
        array([0.6, 0.8])
    """
    max_norm = checks.limit("max_norm", max_norm)
    scale_gradients(parameters, reductions.clip_factor(max_norm, float(total_norm)))


def clip_grad_norm_(
    parameters: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> float:
    r"""Clip the common norm of gradients, in place.

    With :math:`n` the norm of all gradients together, each is multiplied by
    :math:`\min(1, \text{max\_norm} / (n + 10^{-6}))`.

    Args:
        parameters: a tree or an iterable of `Parameter`s, of which those without a gradient are
            skipped, or a tree of gradients themselves.
        max_norm: the norm that the gradients may have at most, at least 0.
        norm_type: the exponent of the norm, also inf, -inf and 0 (see `get_total_norm`).
            Default: 2.0.
        error_if_nonfinite: raise, and leave the gradients as they are, if the norm is inf or NaN.
            Default: False.

    Returns:
        The norm before clipping, a float; 0.0 for no gradients.

    Raises:
        RuntimeError: the norm is inf or NaN and `error_if_nonfinite` is True.
        TypeError, ValueError: arguments that are not as above, or a gradient that cannot be written.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2))
        >>> p.grad = np.array([3.0, 4.0])
        >>> genesis.nn.utils.clip_grad_norm_(p, max_norm=1.0)
        5.0
        >>> p.grad.round(3)
        array([0.6, 0.8])
        >>> grads = {"W": np.array([[3.0]]), "b": np.array([4.0])}
        >>> genesis.nn.utils.clip_grad_norm_(grads, max_norm=1.0)
        5.0

    References:
        Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks. ICML 2013,
        https://arxiv.org/abs/1211.5063
    """
    max_norm = checks.limit("max_norm", max_norm)
    gradients = _gradients(parameters)
    total = get_total_norm([each.array for each in gradients], norm_type, error_if_nonfinite)
    _transform(gradients, transforms.scale, (reductions.clip_factor(max_norm, total),))
    return total


def clip_grad_value_(parameters: Any, clip_value: float) -> None:
    """Clip every element of gradients to [-clip_value, clip_value], in place.

    Args:
        parameters: a tree or an iterable of `Parameter`s, of which those without a gradient are
            skipped, or a tree of gradients themselves.
        clip_value: the largest magnitude, at least 0.

    Raises:
        TypeError, ValueError: arguments that are not as above, or a gradient that cannot be written.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2))
        >>> p.grad = np.array([3.0, -0.5])
        >>> genesis.nn.utils.clip_grad_value_(p, 1.0)
        >>> p.grad
        array([ 1. , -0.5])
    """
    clip_value = checks.limit("clip_value", clip_value)
    clamp_gradients(parameters, -clip_value, clip_value)


def clamp_gradients(parameters: Any, lower: float, upper: float) -> None:
    """Clip every element of gradients to [lower, upper], in place."""
    gradients = _gradients(parameters)
    if any(isinstance(each.array, SparseGrad) for each in gradients):
        raise TypeError(
            "a SparseGrad cannot be clipped by value, since repeated rows are yet to be summed: clip "
            "the norm, or assign grad.coalesced() and clip the array in its values"
        )
    _transform(gradients, transforms.clamp, (lower, upper))


def scale_gradients(parameters: Any, factor: float) -> None:
    """Multiply gradients by a factor, in place."""
    _transform(_gradients(parameters), transforms.scale, (factor,))


class _Gradient(NamedTuple):
    """A gradient, its view, and what messages call it."""

    array: Any
    view: np.ndarray
    what: str


def _gradients(parameters: Any) -> list[_Gradient]:
    """The gradients of parameters, or those that a tree consists of.

    Raises:
        TypeError: there is something else in the tree.
    """
    if isinstance(parameters, Parameter):
        parameters = [parameters]
    elif _is_iterator(parameters):
        parameters = list(parameters)
    if isinstance(parameters, (list, tuple)) and all(type(p) is Parameter for p in parameters):
        leaves = [(str(i), parameter) for i, parameter in enumerate(parameters)]
    else:
        leaves = tree.flatten_with_path(parameters)
    found = []
    for path, leaf in leaves:
        if isinstance(leaf, Parameter):
            if leaf._grad_view is not None:
                what = (
                    f"parameter {path}" if leaf.name is None else f"parameter {path} {leaf.name!r}"
                )
                found.append(_Gradient(leaf.grad, leaf._grad_view, what))
        elif isinstance(leaf, SparseGrad):
            found.append(_Gradient(leaf, leaf.values, repr(path)))
        else:
            what = f"the gradient {path!r}" if path else "the gradient"
            _refuse_torchs(leaf)
            if not buffers.is_arraylike(leaf):
                raise TypeError(
                    "parameters must be Parameters, or a tree of gradients, but "
                    f"{repr(path) if path else 'it'} is a {type(leaf).__name__}"
                )
            found.append(_Gradient(leaf, buffers.readable(leaf, what), repr(path)))
    return found


def _is_iterator(value: Any) -> bool:
    """Whether values come out of it, and it is no tree."""
    is_leaf = tree.opened(value) is None and not buffers.is_arraylike(value)
    return is_leaf and isinstance(value, Iterable) and not isinstance(value, (str, SparseGrad))


def _refuse_torchs(parameter: Any) -> None:
    """Raise TypeError for a parameter or tensor of torch, where ours are expected."""
    kind = type(parameter)
    if any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in kind.__mro__):
        raise TypeError(
            f"expected genesis.Parameters, but got torch's {kind.__name__}: clip torch's with the "
            "function of the same name in torch.nn.utils"
        )


def _batches_of(tensors: Any) -> list[kernels.Batch]:
    if _is_iterator(tensors):
        tensors = list(tensors)
    views = []
    for path, leaf in tree.flatten_with_path(tensors):
        what = f"the tensor {path!r}" if path else "the tensor"
        if isinstance(leaf, Parameter):
            raise TypeError(f"{what} is a Parameter: give its data or its grad")
        views.append(buffers.readable(_summed(leaf), what))
    return _batches(views)


def _summed(tensor: Any) -> Any:
    """The tensor itself, or of a sparse gradient all that is not zero."""
    return tensor.coalesced().values if isinstance(tensor, SparseGrad) else tensor


def _checked_norm_type(norm_type: Any) -> float:
    norm_type = float(norm_type)
    if math.isnan(norm_type):
        raise ValueError("norm_type must be a number, inf or -inf, but got nan")
    return norm_type


def _transform(gradients: list[_Gradient], function: Callable, scalars: Sequence[float]) -> None:
    """Apply a transform to every gradient, once to one that several parameters share."""
    shared: dict[int, _Gradient] = {}
    for each in gradients:
        _check_writable(each)
        if each.view.size:
            shared.setdefault(id(each.array), each)
    found = list(shared.values())
    if not overlaps.apart([each.view for each in found]):
        found = _once(found)
    batches = _batches([each.view for each in found])
    commit([action for batch in batches for action in batch.transforming(function, scalars)])


def _check_writable(gradient: _Gradient) -> None:
    """Raise ValueError if a gradient cannot be written, or may no longer be."""
    if not gradient.view.flags.writeable and not isinstance(gradient.array, SparseGrad):
        raise ValueError(
            f"the gradient of {gradient.what} is read-only, but clipping changes it in place: clip in "
            "the step, which reads it only, optimizer.step(max_norm=...) or step(clip_value=...), or "
            "give a copy"
        )
    buffers.check_writable(gradient.view, f"the gradient of {gradient.what}")
    if isinstance(gradient.array, SparseGrad) and not gradient.array.values.flags.writeable:
        raise ValueError(
            "the array of values of a SparseGrad is read-only now, but clipping changes it in place: "
            "make it writable, or assign a SparseGrad of values.copy()"
        )


def _once(gradients: list[_Gradient]) -> list[_Gradient]:
    """Of gradients that are the same elements of memory, one.

    Raises ValueError if gradients share a part of their memory only.
    """
    kept: dict[tuple, _Gradient] = {}
    for gradient in gradients:
        kept.setdefault(_elements(gradient.view), gradient)
    once = list(kept.values())
    pair = buffers.overlapping([gradient.view for gradient in once])
    if pair:
        raise ValueError(
            f"the gradients of {once[pair[0]].what} and {once[pair[1]].what} share a part of their "
            "memory, so that a change of one would change a part of the other: give each an array "
            "of its own, or both the same"
        )
    return once


def _elements(view: np.ndarray) -> tuple:
    """Equal for views of the same elements of memory, in whatever order and shape."""
    start = view.__array_interface__["data"][0]
    axes: list[tuple[int, int]] = []
    for stride, length in sorted(zip(view.strides, view.shape), key=lambda axis: abs(axis[0])):
        if length == 1:
            continue
        if stride < 0:
            start += stride * (length - 1)
            stride = -stride
        if axes and axes[-1][0] * axes[-1][1] == stride:
            axes[-1] = axes[-1][0], axes[-1][1] * length
        else:
            axes.append((stride, length))
    return *buffers.layout(view)[:2], start, *axes


def _batches(views: list[np.ndarray]) -> list[kernels.Batch]:
    """The arrays that have elements, sorted into batches of one device and data type."""
    sorted_: dict[tuple[str, str], list[np.ndarray]] = {}
    for view in views:
        if view.size:
            sorted_.setdefault(buffers.layout(view)[:2], []).append(view)
    return [kernels.Batch(batch) for batch in sorted_.values()]
