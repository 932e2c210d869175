"""Torch's optimizers with genesis' step: a drop-in for training scripts that use torch on the CPU.

    optimizer = genesis.torch.AdamW(model.parameters(), lr=1e-3)  # in place of torch.optim.AdamW

Each class is a subclass of the torch optimizer of its name, with its arguments, its numbers and its
state dict, which can be exchanged with torch's at any time. A step is one launch for all parameters of
a group, wherever torch keeps them. What a kernel cannot reach (complex or sparse tensors, those on
other devices, subclasses such as DTensor) is updated by torch's own step: `optimizer.fast` tells what
went which way, and `strict=True` makes it an error. `foreach` and `fused` are accepted and make no
difference.

The package is imported only when it is asked for: genesis itself does without torch.

Example:
    >>> import torch, genesis.torch
    >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> optimizer = genesis.torch.AdamW([p], lr=0.1)
    >>> isinstance(optimizer, torch.optim.AdamW)
    True
    >>> (p**2).sum().backward()
    >>> optimizer.step()
    >>> p.detach()
    tensor([ 0.8990, -1.8980])
    >>> optimizer.fast
    Paths(genesis=1, torch=0, without_gradient=0, reasons={})
"""

from .required import check

check()

from .in_backward import step_in_backward  # noqa: E402
from .optimizers import (  # noqa: E402, once it is known that torch is there
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)  # fmt: skip
from .own import of  # noqa: E402
from .stepping import Paths  # noqa: E402

__all__ = [
    "ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Paths", "RAdam", "RMSprop",
    "Rprop", "SGD", "of", "step_in_backward",
]  # fmt: skip
