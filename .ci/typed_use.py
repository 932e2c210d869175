"""What users write, for mypy and pyright: `tox -e types` reads it with genesis installed editable.

Lines that say `type: ignore` are mistakes: a checker that does not see our types finds none, and says
that the comment is of no use.
"""

from __future__ import annotations

import sys

import numpy as np

import genesis
from genesis.progress import Progress

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type

params = {"W": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
optimizer = genesis.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.999), ema_decay=0.999)
optimizer.step(grads=params, max_norm=1.0)
assert_type(optimizer.grad_norm, "float | None")
moved: genesis.optim.Optimizer = optimizer.to("cpu")

parameter = genesis.Parameter(np.ones(3))
assert_type(parameter.requires_grad, bool)
assert_type(genesis.get_num_threads(), int)
for epoch in (bar := Progress(range(3), unit="epochs")):
    assert_type(epoch, int)
assert_type(bar.done, int)
genesis.warmup(["AdamW"], "float32", progress=False)


@genesis.rule
def descend(param: float, grad: float, *, lr: float = 0.1) -> float:
    return param - lr * grad


assert_type(descend, type[genesis.optim.RuleOptimizer])
descend(params, lr=0.2).step()

genesis.optim.AdamW(params, learning_rate=1e-3)  # type: ignore
genesis.optim.SGD(params)  # type: ignore
genesis.optim.Adamw  # type: ignore  # noqa: B018
genesis.init()  # type: ignore
genesis.warmup(device=0)  # type: ignore
