"""Clip gradients by their common norm or by value: one pass to reduce, one to scale.

Parameters may be genesis' own or torch's. The code for torch's is in `genesis.torch`, which is imported
when there are any: then torch is there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ... import buffers, checks, kernels, tree
from ...commit import commit
from ...kernels import overlaps, reductions, transforms
from ...parameter import Parameter
from ...sparse import SparseGrad
from . import kept

_GRADIENT = attrgetter("_grad_view")


def get_total_norm(
    tensors: Any,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Any:
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
        foreach: how torch is to do it where it does: for its tensors on other devices, or that are not
            dense. Default: None, as it thinks best.

    Returns:
        The norm, a float; 0.0 for no arrays. Of tensors of torch a tensor of shape (), as in torch, of
        float32 or else float64.

    Raises:
        RuntimeError: the norm is inf or NaN and `error_if_nonfinite` is True.
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import numpy as np, genesis
        >>> genesis.nn.utils.get_total_norm([np.array([3.0]), np.array([[4.0]])])
        5.0
    """
    norm_type = _checked_norm_type(norm_type)
    tensors, of_torch = _sorted_out(tensors)
    if of_torch:
        return _for_torch().get_total_norm(of_torch, norm_type, error_if_nonfinite, foreach)
    with kept.Tabled(_at_once(tensors), writing=False) as tables:
        if tables is not None:
            return _checked(tables.norm(norm_type), norm_type, error_if_nonfinite)
    return _checked(kernels.norm(_batches_of(tensors), norm_type), norm_type, error_if_nonfinite)


def norm_and_finite(tensors: Any, factor: float) -> tuple[float, bool]:
    """The 2-norm of arrays times a factor, and whether they are finite, before and after."""
    with kept.Tabled(_at_once(tensors), writing=False) as tables:
        if tables is not None:
            return kernels.norm_and_finite(tables.batches, factor)
    return kernels.norm_and_finite(_batches_of(tensors), factor)


def clip_grads_with_norm_(
    parameters: Any, max_norm: float, total_norm: Any, foreach: bool | None = None
) -> None:
    r"""Scale gradients in place by `max_norm / total_norm`, if that is less than 1.

    Args:
        parameters: a tree or an iterable of `Parameter`s, or of torch's, of which those without a
            gradient are skipped, or a tree of gradients themselves, as NumPy has them.
        max_norm: the norm that the gradients may have at most, at least 0.
        total_norm: the norm that they have, from `get_total_norm`.
        foreach: how torch is to do it where it does, see `get_total_norm`. Default: None.

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
    parameters, of_torch = _sorted_out(parameters)
    if of_torch:
        _for_torch().clip_grads_with_norm_(of_torch, max_norm, total_norm, foreach)
        return
    max_norm = checks.limit("max_norm", max_norm)
    scale_gradients(parameters, reductions.clip_factor(max_norm, float(total_norm)))


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Any:
    r"""Clip the common norm of gradients, in place.

    With :math:`n` the norm of all gradients together, each is multiplied by
    :math:`\min(1, \text{max\_norm} / (n + 10^{-6}))`.

    Args:
        parameters: a tree or an iterable of `Parameter`s, or of torch's, of which those without a
            gradient are skipped, or a tree of gradients themselves, as NumPy has them.
        max_norm: the norm that the gradients may have at most, at least 0.
        norm_type: the exponent of the norm, also inf, -inf and 0 (see `get_total_norm`).
            Default: 2.0.
        error_if_nonfinite: raise, and leave the gradients as they are, if the norm is inf or NaN.
            Default: False.
        foreach: how torch is to do it where it does, see `get_total_norm`. Default: None.

    Returns:
        The norm before clipping, a float; 0.0 for no gradients. Of torch's parameters a tensor of shape
        (), as in torch, of float32 or else float64.

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
    norm_type = _checked_norm_type(norm_type)
    parameters, of_torch = _sorted_out(parameters)
    if of_torch:
        return _for_torch().clip_grad_norm_(
            of_torch, max_norm, norm_type, error_if_nonfinite, foreach
        )
    max_norm = checks.limit("max_norm", max_norm)
    with kept.Tabled(_at_once(parameters), writing=True) as tables:
        if tables is not None:
            total = _checked(tables.norm(norm_type), norm_type, error_if_nonfinite)
            factor = reductions.clip_factor(max_norm, total)
            if factor != 1:
                tables.transform(transforms.scale, (factor,))
            return total
    gradients = _gradients(parameters)
    total = get_total_norm([each.array for each in gradients], norm_type, error_if_nonfinite)
    _transform(gradients, transforms.scale, (reductions.clip_factor(max_norm, total),))
    return total


def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Clip every element of gradients to [-clip_value, clip_value], in place.

    Args:
        parameters: a tree or an iterable of `Parameter`s, or of torch's, of which those without a
            gradient are skipped, or a tree of gradients themselves, as NumPy has them.
        clip_value: the largest magnitude, at least 0.
        foreach: accepted, as torch takes it, and of no effect. Default: None.

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
    parameters, of_torch = _sorted_out(parameters)
    if of_torch:
        _for_torch().clamp_gradients(of_torch, lower, upper)
        return
    with kept.Tabled(_at_once(parameters), writing=True) as tables:
        if tables is not None:
            tables.transform(transforms.clamp, (lower, upper))
            return
    gradients = _gradients(parameters)
    if any(isinstance(each.array, SparseGrad) for each in gradients):
        raise TypeError(
            "a SparseGrad cannot be clipped by value, since repeated rows are yet to be summed: clip "
            "the norm, or assign grad.coalesced() and clip the array in its values"
        )
    _transform(gradients, transforms.clamp, (lower, upper))


def scale_gradients(parameters: Any, factor: float) -> None:
    """Multiply gradients by a factor, in place."""
    with kept.Tabled(_at_once(parameters), writing=True) as tables:
        if tables is not None:
            if factor != 1:
                tables.transform(transforms.scale, (factor,))
            return
    _transform(_gradients(parameters), transforms.scale, (factor,))


def _checked(total: float, norm_type: float, error_if_nonfinite: bool) -> float:
    """A norm; RuntimeError if it is inf or NaN and must not be."""
    if error_if_nonfinite and not math.isfinite(total):
        raise reductions.not_finite(norm_type)
    return total


def _at_once(values: Any) -> list[Any] | None:
    """The gradients that parameters hold, or the leaves of a list or dict, without a look at each.

    None for other trees, of which `_gradients` and `_batches_of` know more. What is no array among what
    is found, is to be told by them, too.
    """
    if type(values) is dict:
        return list(values.values())
    if type(values) not in (list, tuple):
        return [values] if type(values) is np.ndarray else None
    kinds = set(map(type, values))
    if kinds == {Parameter}:
        return [view for view in map(_GRADIENT, values) if view is not None]
    return list(values) if kinds == {np.ndarray} else None


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
            if buffers.is_torchs(leaf):
                raise TypeError(
                    f"expected either genesis.Parameters or torch's, but {what.removeprefix('the ')} is "
                    f"torch's {type(leaf).__name__} among others: clip them in a call of their own"
                )
            if not buffers.is_arraylike(leaf):
                hint = ": give its parameters()" if hasattr(leaf, "parameters") else ""
                raise TypeError(
                    "parameters must be Parameters, or a tree of gradients, but "
                    f"{repr(path) if path else 'it'} is a {type(leaf).__name__}{hint}"
                )
            found.append(_Gradient(leaf, buffers.readable(leaf, what), repr(path)))
    return found


def _is_iterator(value: Any) -> bool:
    """Whether values come out of it, and it is no tree."""
    is_leaf = tree.opened(value) is None and not buffers.is_arraylike(value)
    return is_leaf and isinstance(value, Iterable) and not isinstance(value, (str, SparseGrad))


def _sorted_out(values: Any) -> tuple[Any, list[Any]]:
    """What functions here are given, iterators as lists; and the tensors, if they are torch's."""
    if type(values) in (list, tuple) and values and type(values[0]) in (Parameter, np.ndarray):
        return values, []  # torch's among others are found later
    if _is_iterator(values):
        values = list(values)
    if "torch" not in sys.modules:
        return values, []
    if buffers.is_torchs(values):
        return values, [values]
    if isinstance(values, (list, tuple)) and all(map(buffers.is_torchs, values)):
        return values, list(values)
    leaves = [leaf for _, leaf in tree.flatten_with_path(values)]
    return values, leaves if all(map(buffers.is_torchs, leaves)) else []


def _for_torch() -> Any:
    """The module that does the same for torch's tensors."""
    return import_module("genesis.torch.clipping")


def _batches_of(tensors: Any) -> list[kernels.Batch]:
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
