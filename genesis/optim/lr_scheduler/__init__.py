"""Learning-rate schedulers: what `group["lr"]` is at each epoch, with the contract of torch.

A scheduler is stepped once an epoch (or once a batch; an "epoch" is whatever you count), after the
optimizer::

    for epoch in range(epochs):
        train(...)              # optimizer.step() for each batch
        scheduler.step()

Most schedules can be written in two ways: in closed form, from a group's initial learning rate,
and recursively, from the learning rate that is in the group now. As in torch, `step()` uses the
recursive form where there is one, so that schedulers can be chained and a change by hand lasts.
The closed forms alone, without an optimizer, are in `genesis.optim.schedules`.

The modules go from simple to complex: what all share (`base`), a function of the user's
(`functions`), one factor (`factors`), a cosine or a line to a given value (`annealing`), cycles
that move the momentum too (`cycles`), a rule that watches a metric (`plateau`), and schedulers made
of schedulers (`composite`).
"""

from .annealing import SWALR, CosineAnnealingLR, CosineAnnealingWarmRestarts
from .base import LRScheduler
from .composite import ChainedScheduler, SequentialLR
from .cycles import CyclicLR, OneCycleLR
from .factors import ConstantLR, ExponentialLR, LinearLR, MultiStepLR, PolynomialLR, StepLR
from .functions import LambdaLR, MultiplicativeLR, get_cosine_schedule_with_warmup
from .plateau import ReduceLROnPlateau

__all__ = [
    "LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "get_cosine_schedule_with_warmup",
    "ExponentialLR",
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "PolynomialLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "SWALR",
    "CyclicLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "ChainedScheduler",
    "SequentialLR",
]
