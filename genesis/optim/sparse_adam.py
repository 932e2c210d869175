"""SparseAdam: Adam for the rows that a sparse gradient has."""

from __future__ import annotations

import math

from .. import hyper
from .pieces import average, average_of_squares
from .rule import rule


@rule(sparse="only")
def SparseAdam(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    *,
    lr=hyper.rate(
        1e-3, "learning rate; a schedule may end at 0, though torch refuses to begin with it"
    ),
    betas=(0.9, 0.999),
    eps=hyper.epsilon(1e-8, "added to the denominator, before the corrections", positive=True),
    step,
):
    r"""Adam that reads and writes only those rows of a parameter which have a gradient.

    For each row :math:`r` of a `SparseGrad`, with its gradient :math:`g` (the sum over all entries
    of the row), parameter :math:`\theta`, learning rate :math:`\gamma` and update number :math:`t` of
    the whole parameter:

    .. math::
        m_r &\leftarrow \beta_1 m_r + (1 - \beta_1) g_r \\
        v_r &\leftarrow \beta_2 v_r + (1 - \beta_2) g_r^2 \\
        \theta_r &\leftarrow \theta_r - \gamma \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \,
            \frac{m_r}{\sqrt{v_r} + \epsilon}

    All other rows stay as they are: their averages do not decay, as they would in `Adam`. The time
    for a step depends on the number of rows in the gradient, not on the size of the parameter.

    State of a parameter: "step", "exp_avg" (:math:`m`), "exp_avg_sq" (:math:`v`), of the parameter's
    full size; memory for rows that are never used is not taken until they are.

    Example:
        >>> import numpy as np, genesis
        >>> table = np.ones((1000, 2))
        >>> p = genesis.Parameter(table)
        >>> opt = genesis.optim.SparseAdam([p], lr=0.1)
        >>> for _ in range(3):
        ...     p.grad = genesis.SparseGrad([7, 2], 2 * table[[7, 2]])
        ...     _ = opt.step()
        >>> table[[2, 3, 7]].round(3)
        array([[0.702, 0.702],
               [1.   , 1.   ],
               [0.702, 0.702]])

    References:
        Kingma, Ba: Adam: a method for stochastic optimization. ICLR 2015,
        https://arxiv.org/abs/1412.6980
    """
    beta1, beta2 = betas
    exp_avg = average(exp_avg, grad, beta1)
    exp_avg_sq = average_of_squares(exp_avg_sq, grad, beta2)
    # torch scales the step here rather than the root, so that eps counts for more at first.
    step_size = lr * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
    return param - step_size * exp_avg / (math.sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq
