"""What several optimizers share: pieces of formulas, and declarations of hyper-parameters."""

from __future__ import annotations

from dataclasses import replace

from .. import hyper
from ..formulas import mean, total

L2 = hyper.non_negative(0, "L2 penalty, added to the gradient")
DECOUPLED = hyper.non_negative(
    1e-2, "decoupled weight decay; a step shrinks the parameter by `lr * weight_decay` of itself"
)
SHRINKS = replace(DECOUPLED, default=0)
DECAY = hyper.non_negative(0, "weight decay")
DECOUPLES = hyper.flag(
    False,
    "let weight decay shrink the parameter by `lr * weight_decay` of itself instead, as in AdamW",
)
IS_DECOUPLED = hyper.flag(
    True,
    "let weight decay shrink the parameter by `lr * weight_decay` of itself, as in AdamW; if False, it "
    "is an L2 penalty, added to the gradient",
)
CAUTIOUS = hyper.flag(
    False,
    "move only elements that momentum does not move up their gradient, and these the further; see "
    '"Caution" in the guide to choosing an optimizer',
    further=True,
)
CAUTIOUS_DECAY = hyper.flag(
    False,
    "decay only elements that the update does not bring further away from 0; see "
    '"Caution" in the guide to choosing an optimizer',
    further=True,
)
AMSGRAD = hyper.flag(False, "divide by the largest average so far")


def average(kept, new, decay):
    """A running average after one more value.

    It is torch's `lerp`: it starts from the end to which it comes closer, so that a decay rate of 0
    gives the new value itself.
    """
    change = new - kept
    return kept + (1 - decay) * change if 1 - decay < decay else new - decay * change


def average_of_squares(kept, new, decay):
    """A running average of squares after one more value."""
    return kept * decay + (1 - decay) * new * new


def larger(size, other):
    """The larger of two sizes; NaN if either is: so written, it passes through from both."""
    return size if not size <= other else other


def sign(value):
    """-1, 0 or 1. A NaN, which is neither above nor below 0, stays NaN: an optimizer that reads signs
    must not hide it."""
    return 1 if value > 0 else -1 if value < 0 else value


def bounded(value, least, most):
    """The number of this range that is nearest to a value; NaN of NaN."""
    return least if value < least else most if value > most else value


def cautiously(change, grad):
    r"""A cautious optimizer's change: none where it has another sign than the gradient.

    What is taken away there is given to the others: with :math:`u` the change that is subtracted,
    :math:`g` the gradient, :math:`n` the number of elements of the tensor, and the sum over all of them:

    .. math::
        \phi = \begin{cases} 1 & \text{where } u g > 0 \\ 0 & \text{elsewhere} \end{cases} \qquad
        u \leftarrow \frac{n}{1 + \sum \phi} \, \phi \, u

    Momentum goes on for a while where the gradient has turned already; such elements wait. Decoupled
    weight decay is no part of the change; an L2 penalty is a part of the gradient. It is for optimizers
    whose change is a momentum, divided or not, and known before anything is summed up: `Adam`, `AdamW`,
    `NAdam`, `Lion`, `AdaBelief`, `Adan`, `LaProp`, `AdEMAMix`, `ADOPT`. The sum takes a pass of its own
    over gradient, parameter and state.

    Kaizhao Liang, Lizhang Chen, Bo Liu, Qiang Liu: Cautious optimizers: improving training with one line
    of code. 2024, https://arxiv.org/abs/2411.16085. `pytorch_optimizer` scales as the paper does; the
    authors' code by :math:`1 / \max(10^{-3}, \operatorname{mean} \phi)`; heavyball by
    :math:`n / \max(1, \sum \phi)`, where zeros have a sign as well.
    """
    agrees = change * grad > 0
    count, share = total(agrees), mean(agrees)
    longer = count / share / (1 + count) if count > 0 else 0  # count / share are all elements
    return change * (agrees * longer)  # so written, NaN stays: it must not be hidden


def shrunk(param, part, change, cautious):
    r"""A parameter of which decoupled weight decay takes away a part, before a change is subtracted.

    With cautious weight decay only where the change does not bring it further away from 0: with
    :math:`u` the change, parameter :math:`\theta`, learning rate :math:`\gamma` and weight decay
    :math:`\lambda`:

    .. math::
        \theta \leftarrow \begin{cases} (1 - \gamma \lambda) \, \theta
            & \text{where } u \theta \ge 0 \\ \theta & \text{elsewhere} \end{cases}

    So weights that the loss wants larger are left to grow, and at rest it is the loss alone that is at a
    minimum. The change is what it is without decay, and before `cautious` takes any of it away. It is
    for optimizers with decoupled weight decay: `AdamW`, `NAdam`, `Lion`, `AdaBelief`, `LaProp`,
    `AdEMAMix`, `ADOPT`.

    Lizhang Chen, Jonathan Li, Kaizhao Liang, Baiyu Su, Cong Xie, Nuo Wang Pierse, Chen Liang, Ni Lao,
    Qiang Liu: Cautious weight decay. 2025, https://arxiv.org/abs/2510.12402. heavyball compares bits of
    signs, so that an element with no change at all decays by the sign of its zero.
    """
    kept = param * (1 - part)
    if cautious:
        return kept if change * param >= 0 else param
    return kept


def check_cautious_decay(cautious_weight_decay, decoupled_weight_decay):
    """Raise ValueError for cautious weight decay where there is no decoupled one."""
    if cautious_weight_decay and not decoupled_weight_decay:
        raise ValueError(
            "cautious_weight_decay is a kind of decoupled weight decay: with it set "
            "decoupled_weight_decay=True"
        )
