"""Any optimizer, made for a small problem as its constructor asks: for compiling ahead and self-checks.

What an optimizer needs is seen from its signature, so that a new one needs no line here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from . import buffers, optim
from .sparse import SparseGrad

SHAPE = (6, 4)
"""Of the parameter: a matrix, which is what every optimizer takes."""

LR = 0.01

DTYPES = {name: dtype for dtype, name in buffers.FLOAT_TYPES.items()}
"""The types that a parameter and its gradient may have, by their names."""


def names() -> list[str]:
    """The optimizers of `genesis.optim` that there are to be made."""
    return [name for name in dir(optim) if _is_optimizer(getattr(optim, name))]


def _is_optimizer(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and issubclass(kind, optim.Optimizer)
        and kind not in (optim.Optimizer, optim.RuleOptimizer)
    )


class Trial:
    """A parameter of float numbers between -1 and 1, and an optimizer that takes it towards 3.

    Args:
        make: the class, or `functools.partial` of it with hyper-parameters. Its first argument may be
            parameters, groups or another optimizer.
        dtype: of the parameter, one of `DTYPES`. Default: "float32".
        gradient: of the gradient. Default: None, the parameter's.
        device: where the parameter lies. Default: "cpu".
    """

    def __init__(
        self,
        make: Callable,
        dtype: str = "float32",
        gradient: str | None = None,
        device: str = "cpu",
    ):
        self._device = device
        self._gradient = DTYPES[gradient or dtype]
        start = np.linspace(-1, 1, int(np.prod(SHAPE))).reshape(SHAPE)
        self._tree = {"weight": buffers.put(start.astype(DTYPES[dtype]), device)}
        kind = make.func if isinstance(make, functools.partial) else make
        self._is_sparse = not getattr(kind, "_takes_dense", True)
        first, *others = inspect.signature(make).parameters.values()
        required = [p.name for p in others if p.default is p.empty and p.kind not in _MANY]
        self.settings = {name: LR for name in required if name == "lr"}
        self.optimizer = make(self._first(first.name), **self.settings)
        self.parameter = self.optimizer.param_groups[0]["params"][0]

    def _first(self, name: str) -> Any:
        if name == "optimizer":
            return optim.SGD(self._tree, lr=LR)
        if name == "groups":
            return [{"params": self._tree, "optimizer": "AdamW"}]
        return self._tree

    def gradient(self) -> np.ndarray:
        """The gradient of `loss`, on the host."""
        return (self.parameter.numpy().astype(np.float64) - 3.0).astype(self._gradient)

    def loss(self) -> float:
        """Half the sum of squares of what is missing."""
        return float(np.sum((self.parameter.numpy().astype(np.float64) - 3.0) ** 2) / 2)

    def closure(self) -> tuple[float, dict[str, Any]]:
        """What a step asks for: the loss and its gradient."""
        gradient: Any = self.gradient()
        if self._is_sparse:
            gradient = SparseGrad(np.arange(SHAPE[0]), gradient)
        else:
            gradient = buffers.put(gradient, self._device)
        return self.loss(), {"weight": gradient}

    def step(self, **others: Any) -> None:
        """One step, with a gradient of its own; waits for the device."""
        self.optimizer.step(self.closure, **others)
        if self._device != "cpu":
            self.parameter.numpy()


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
