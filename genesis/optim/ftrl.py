"""FTRL-Proximal."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import sign
from .rule import rule


def _numbers(step, *, lr):
    """One over the learning rate; nothing moves without one."""
    return {"moves": lr > 0, "steepness": 1 / lr if lr else 0.0}


def _leaves_rows():
    """Whether rows without a gradient stay as they are: always."""
    return True


@rule(numbers=_numbers, sparse=_leaves_rows)
def FTRL(
    param,
    grad,
    sum="initial_accumulator_value",
    linear=0.0,
    *,
    lr=1e-3,
    beta=hyper.non_negative(0, "added to the root of the sum of squares"),
    lambda_1=hyper.non_negative(0, "L1 penalty, which makes elements exactly 0"),
    lambda_2=hyper.non_negative(0, "L2 penalty"),
    initial_accumulator_value=hyper.non_negative(
        0, "where the sum begins; read when a parameter gets its state, at its first update"
    ),
    moves,
    steepness,
):
    r"""FTRL-Proximal: for linear models on sparse features, with weights that become exactly 0.

    With gradient :math:`g`, parameter :math:`w`, learning rate :math:`\alpha` and penalties
    :math:`\lambda_1, \lambda_2`, for each element whose gradient is not 0:

    .. math::
        \sigma &= (\sqrt{n + g^2} - \sqrt{n}) / \alpha \\
        z &\leftarrow z + g - \sigma w \\
        n &\leftarrow n + g^2 \\
        w &\leftarrow \begin{cases}
            0 & |z| \le \lambda_1 \\
            -\left( \frac{\beta + \sqrt{n}}{\alpha} + \lambda_2 \right)^{-1}
            (z - \lambda_1 \operatorname{sign}(z)) & \text{else}
        \end{cases}

    An element whose gradient is 0 stays as it is: so do, in the paper, the weights of features that an
    example has not, and so a `SparseGrad` will do. (Keras and pytorch_optimizer set a weight to 0 that
    never had a gradient.) A learning rate of 0 changes nothing, not even the state.

    The parameter is meant to begin with 0: of any other beginning, :math:`z` knows only what
    :math:`\sigma` tells it. With `beta` and `initial_accumulator_value` of 0 that is all; otherwise
    it is pulled to 0 in its first update.

    Names are those of `pytorch_optimizer.FTRL`; Keras has `initial_accumulator_value=0.1`, calls the
    penalties `l1_regularization_strength` and `l2_regularization_strength`, and counts the latter
    twice. The paper finds `beta=1` good enough.

    State of a parameter: "step", "sum" (:math:`n`), "linear" (:math:`z`).

    Example:
        >>> import numpy as np, genesis
        >>> x = np.zeros(2)
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.FTRL([p], lr=0.5, lambda_1=2.0)
        >>> for _ in range(3):
        ...     p.grad = 2 * x - [4.0, 0.5]  # the gradient of (x - [2, 0.25]) @ (x - [2, 0.25])
        ...     _ = opt.step()
        >>> x.round(3)
        array([0.815, 0.   ])

    References:
        McMahan, Holt, Sculley, and 13 others: Ad click prediction: a view from the trenches. KDD 2013,
        https://research.google.com/pubs/archive/41159.pdf
    """
    if not moves or grad == 0:
        return param, sum, linear
    before = math.sqrt(sum)
    sum = sum + grad * grad
    root = math.sqrt(sum)
    linear = linear + grad - (root - before) * steepness * param
    if abs(linear) <= lambda_1:
        param = 0
    else:
        param = (lambda_1 * sign(linear) - linear) / ((beta + root) * steepness + lambda_2)
    return param, sum, linear
