"""DoG and LDoG: distance over gradients."""

from __future__ import annotations

import math

from .. import hyper
from ..formulas import overall, per_tensor, total
from .pieces import L2
from .rule import rule

_LR = hyper.rate(1.0, "factor on the step size that is found; the authors advise against another")
_FIRST = hyper.number(
    1e-6, "the first step goes this far, in proportion to 1 + the norm of the parameters", above=0
)
_INIT_ETA = hyper.number(
    None,
    "the step size until the parameters have moved, in place of `reps_rel`",
    above=0,
    unset=True,
)
_EPS = hyper.epsilon(1e-8, "added to the sum of squared gradients")


def _numbers(step, *, init_eta):
    return {"first_eta": 0.0 if init_eta is None else init_eta}


def _step_size(param, grad, init, rbar, grad_sq, lr, reps_rel, eps, first_eta, over):
    """The step size, the largest distance so far, and the sum of squared gradients."""
    grad_sq = grad_sq + total(grad * grad, over)
    rbar = max(rbar, math.sqrt(total((param - init) * (param - init), over)))
    size = math.sqrt(total(param * param, over))
    if first_eta > 0:
        eta = lr * rbar / math.sqrt(grad_sq + eps) if rbar > 0 else first_eta
    else:
        rbar = rbar if rbar > 0 else reps_rel * (1 + size)
        eta = lr * rbar / math.sqrt(grad_sq + eps)
    return eta, rbar, grad_sq


@rule(numbers=_numbers)
def DoG(
    param,
    grad,
    init,
    rbar=overall(),
    grad_sq=overall(),
    *,
    reps_rel=_FIRST,
    lr=_LR,
    weight_decay=L2,
    eps=_EPS,
    init_eta=_INIT_ETA,
    first_eta,
    first,
):
    r"""DoG: gradient descent whose step is the distance from the start, over the norm of all gradients.

    There is no learning rate to tune. With gradients :math:`g`, the parameters :math:`x` of all groups
    as one vector, their first values :math:`x_0`, and weight decay :math:`\lambda`:

    .. math::
        g &\leftarrow g + \lambda x \\
        \bar{r} &\leftarrow \max(\bar{r}, \lVert x - x_0 \rVert), \text{ at first }
            r_\epsilon (1 + \lVert x_0 \rVert) \\
        G &\leftarrow G + \lVert g \rVert^2 \\
        x &\leftarrow x - \gamma \, \frac{\bar{r}}{\sqrt{G + \epsilon}} \, g

    It has to be combined with an average of the iterates: `ema_decay=0.999` and `swap_ema()`, or
    `genesis.optim.swa_utils.AveragedParameters`, in place of the package's averager. `reps_rel`
    (:math:`r_\epsilon`) is 1e-4 for models with batch normalization. `weight_decay` is the
    package's, not the paper's.

    Sums are over the tensors that have a gradient. `dog-optimizer` has a :math:`\bar{r}` and a
    :math:`G` for each group; here, as in the paper, they are those of all, and each group's `lr`
    multiplies its own step. There, `init_eta` is the step size once, even if the parameters do not
    move by it.

    State of a parameter: "step", "init" (:math:`x_0`), "rbar" (:math:`\bar{r}`) and "grad_sq"
    (:math:`G`), floats, the same for all.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.DoG([p], reps_rel=0.1)
        >>> for _ in range(10):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.087, -0.117])

    References:
        Ivgi, Hinder, Carmon: DoG is SGD's best friend: a parameter-free dynamic step size schedule.
        ICML 2023, https://arxiv.org/abs/2302.12022
    """
    init = param if first else init
    grad = grad + weight_decay * param
    eta, rbar, grad_sq = _step_size(
        param, grad, init, rbar, grad_sq, lr, reps_rel, eps, first_eta, "all"
    )
    return param - eta * grad, init, rbar, grad_sq


@rule(numbers=_numbers)
def LDoG(
    param,
    grad,
    init,
    rbar=per_tensor(),
    grad_sq=per_tensor(),
    *,
    reps_rel=_FIRST,
    lr=_LR,
    weight_decay=L2,
    eps=_EPS,
    init_eta=_INIT_ETA,
    first_eta,
    first,
):
    r"""LDoG: `DoG` for each tensor by itself.

    All is as for `DoG`, with :math:`\bar{r}`, :math:`G` and the norms those of a tensor.

    State of a parameter: "step", "init", "rbar" and "grad_sq", floats.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([3.0, -4.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.LDoG([p], reps_rel=0.1)
        >>> for _ in range(10):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x.round(3)
        array([ 0.087, -0.117])

    References:
        Ivgi, Hinder, Carmon: DoG is SGD's best friend: a parameter-free dynamic step size schedule.
        ICML 2023, https://arxiv.org/abs/2302.12022
    """
    init = param if first else init
    grad = grad + weight_decay * param
    eta, rbar, grad_sq = _step_size(
        param, grad, init, rbar, grad_sq, lr, reps_rel, eps, first_eta, "tensor"
    )
    return param - eta * grad, init, rbar, grad_sq
