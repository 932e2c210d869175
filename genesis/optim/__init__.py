"""Optimizers: one small class a family, with the names and defaults of `torch.optim`."""

from . import lr_scheduler
from .adam import Adam, AdamW
from .clip_grad import clip_grad_norm, clip_grad_value
from .optimizer import Optimizer
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm",
    "clip_grad_value",
    "lr_scheduler",
]
