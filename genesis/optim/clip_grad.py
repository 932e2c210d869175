"""Gradient clipping in the form that MegEngine gives it."""

from __future__ import annotations

from typing import Any

from ..nn.utils.clip_grad import clamp_gradients, clip_grad_norm_


def clip_grad_norm(tensors: Any, max_norm: float, ord: float = 2.0) -> Any:
    """Clip the common norm of gradients, in place: `genesis.nn.utils.clip_grad_norm_`.

    Args:
        tensors: a tree or an iterable of `Parameter`s or of torch's parameters, of which those without a
            gradient are skipped, or a tree of gradients themselves, as NumPy has them.
        max_norm: the norm that the gradients may have at most, at least 0.
        ord: the exponent of the norm, also inf, -inf and 0. Default: 2.0.

    Returns:
        The norm before clipping, a float; of torch's parameters a tensor of shape ().

    Raises:
        TypeError, ValueError: arguments that are not as above, or a gradient that cannot be written.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2))
        >>> p.grad = np.array([3.0, 4.0])
        >>> genesis.optim.clip_grad_norm(p, max_norm=1.0)
        5.0
    """
    return clip_grad_norm_(tensors, max_norm, ord)


def clip_grad_value(tensors: Any, lower: float, upper: float) -> None:
    """Clip every element of gradients to [lower, upper], in place.

    Args:
        tensors: a tree or an iterable of `Parameter`s or of torch's parameters, of which those without a
            gradient are skipped, or a tree of gradients themselves, as NumPy has them.
        lower: the least value that an element may have.
        upper: the greatest, not less than `lower`.

    Raises:
        TypeError, ValueError: arguments that are not as above, or a gradient that cannot be written.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.ones(2))
        >>> p.grad = np.array([3.0, -0.5])
        >>> genesis.optim.clip_grad_value(p, -0.1, 1.0)
        >>> p.grad
        array([ 1. , -0.1])
    """
    lower, upper = float(lower), float(upper)
    if not lower <= upper:
        raise ValueError(f"lower must not exceed upper, but got lower={lower} and upper={upper}")
    clamp_gradients(tensors, lower, upper)
