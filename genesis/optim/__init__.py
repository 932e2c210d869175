"""Optimizers: one small class a family, with the names and defaults of `torch.optim`."""

from . import lr_scheduler, schedules, swa_utils
from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .asgd import ASGD
from .clip_grad import clip_grad_norm, clip_grad_value
from .hooks import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from .lbfgs import LBFGS
from .muon import Muon
from .nadam import NAdam
from .optimizer import Optimizer
from .param_groups import param_groups_weight_decay
from .radam import RAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .sgd import SGD
from .sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "clip_grad_norm",
    "clip_grad_value",
    "lr_scheduler",
    "param_groups_weight_decay",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
    "schedules",
    "swa_utils",
]
