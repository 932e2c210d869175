# SPDX-License-Identifier: Apache-2.0
"""genesis: the optimizer step for training code written in NumPy.

import genesis

weight = genesis.Parameter(array)
optimizer = genesis.optim.AdamW([weight], lr=1e-3)
weight.grad = gradient
optimizer.step()
"""

__distribution__ = "genesis-optim"  # before all imports, some of which look for it: see `namesake`

from typing import TYPE_CHECKING, Any

from . import amp, hyper, nn, optim, transforms, tree
from . import namesake as _namesake
from ._version import __version__
from .ahead import warmup
from .checkpoint import CheckpointError, load, load_checkpoint, save, save_checkpoint, wait_for_save
from .formulas import RuleError, mean, overall, per_tensor, total, transform
from .kernels.denormals import set_flush_denormal
from .kernels.threads import get_num_threads, set_num_threads
from .optim.rule import chain, rule
from .parameter import Parameter
from .regions import autocast
from .sparse import SparseGrad

enable_autocast = True
"""Set to False, it turns every region of `autocast` off."""

__all__ = [
    "CheckpointError",
    "Parameter",
    "RuleError",
    "SparseGrad",
    "__version__",
    "amp",
    "autocast",
    "chain",
    "enable_autocast",
    "get_num_threads",
    "hyper",
    "load",
    "load_checkpoint",
    "mean",
    "nn",
    "optim",
    "overall",
    "per_tensor",
    "rule",
    "save",
    "save_checkpoint",
    "set_flush_denormal",
    "set_num_threads",
    "total",
    "transform",
    "transforms",
    "tree",
    "wait_for_save",
    "warmup",
]


if not TYPE_CHECKING:  # to a type checker, this would be a promise of any attribute

    def __getattr__(name: str) -> Any:
        raise AttributeError(_namesake.missing(name), name=name, obj=_namesake.package())
