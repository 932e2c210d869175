"""THE table: every optimizer in every variant of its constructor.

Tests, benchmarks and documentation are driven by it. A new optimizer is one row or a few here, and a
reference of the same name in `reference.py`; a test fails for an exported optimizer without a row.
One that torch has not says `peer=None`, or which package has its like.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import genesis

SHAPES = [(10, 5), (10,), (), (0,), (3, 4, 2)]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]


class Case(NamedTuple):
    """One optimizer with one set of hyper-parameters."""

    name: str
    hyper: dict[str, Any]
    peer: str | None = "torch"
    """The package whose optimizer of the same name it is compared with."""

    @property
    def id(self) -> str:
        values = [f"{name}={value}" for name, value in self.hyper.items()]
        return "-".join([self.name, *values]).replace(" ", "")

    def make(self, params: Any, **others: Any) -> genesis.optim.Optimizer:
        return getattr(genesis.optim, self.name)(params, **{**self.hyper, **others})


CASES = [
    Case("SGD", {"lr": 0.1}),
    Case("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    Case("SGD", {"lr": 0.1, "maximize": True}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    Case("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    Case("Adam", {}),
    Case("Adam", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}),
    Case("Adam", {"lr": 0.01, "betas": (0.5, 0.5), "eps": 1e-3}),
    Case("Adam", {"weight_decay": 0.1}),
    Case("Adam", {"amsgrad": True}),
    Case("Adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    Case("Adam", {"maximize": True}),
    Case("AdamW", {}),
    Case("AdamW", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}),
    Case("AdamW", {"weight_decay": 0.3, "lr": 0.1}),
    Case("AdamW", {"weight_decay": 0}),
    Case("AdamW", {"amsgrad": True}),
    Case("AdamW", {"amsgrad": True, "weight_decay": 0.3, "maximize": True}),
    Case("RMSprop", {}),
    Case("RMSprop", {"lr": 0.1, "alpha": 0.5, "eps": 1e-3}),
    Case("RMSprop", {"weight_decay": 0.1}),
    Case("RMSprop", {"momentum": 0.9}),
    Case("RMSprop", {"centered": True}),
    Case("RMSprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    Case("RMSprop", {"momentum": 0.9, "maximize": True}),
    Case("Adagrad", {}),
    Case("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    Case("Adagrad", {"weight_decay": 0.1, "maximize": True}),
    Case("Adadelta", {}),
    Case("Adadelta", {"lr": 0.5, "rho": 0.5, "eps": 1e-3}),
    Case("Adadelta", {"weight_decay": 0.1, "maximize": True}),
    Case("Adamax", {}),
    Case("Adamax", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}),
    Case("Adamax", {"weight_decay": 0.1, "maximize": True}),
    Case("NAdam", {}),
    Case("NAdam", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3, "momentum_decay": 0.5}),
    Case("NAdam", {"weight_decay": 0.1}),
    Case("NAdam", {"weight_decay": 0.3, "decoupled_weight_decay": True, "lr": 0.1}),
    Case("NAdam", {"weight_decay": 0.3, "decoupled_weight_decay": True, "maximize": True}),
    Case("RAdam", {}),
    Case("RAdam", {"lr": 0.01, "betas": (0.3, 0.6)}),
    Case("RAdam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-2}),
    Case("RAdam", {"weight_decay": 0.1}),
    Case("RAdam", {"weight_decay": 0.3, "decoupled_weight_decay": True, "lr": 0.1}),
    Case("RAdam", {"weight_decay": 0.3, "decoupled_weight_decay": True, "maximize": True}),
    Case("ASGD", {}),
    Case("ASGD", {"lr": 0.1, "lambd": 0.5, "alpha": 0.5, "t0": 3.0}),
    Case("ASGD", {"weight_decay": 0.1, "t0": 0, "maximize": True}),
    Case("Rprop", {}),
    Case("Rprop", {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.05, 0.2)}),
    Case("Rprop", {"maximize": True}),
]

SPECIAL = {"LBFGS": "torch", "Adafactor": "torch", "Muon": "torch", "SparseAdam": "torch"}
"""Optimizers that no rule and no common loop of steps describes, and their peers: each has tests of
its own, in a file that names it, with its own table of variants, reference and comparison."""

ONE_EACH = list({case.name: case for case in CASES}.values())
"""The last row of each optimizer, for tests that are not about its formula."""

TWO = [case for case in ONE_EACH if case.name in ("SGD", "Adam")]
"""For tests about storage types, each of which is another kernel: a conversion knows no formula."""

THREE = [case for case in ONE_EACH if case.name in ("SGD", "Adam", "ASGD")]
"""For tests about options of all optimizers: one buffer, two, and one with numbers beside it."""

EACH_TYPE = [
    *((case, dtype) for case in ONE_EACH for dtype in DTYPES[:2]),
    *((case, dtype) for case in TWO for dtype in DTYPES[2:]),
]
"""For tests about each optimizer and about each storage type, but not about each with each."""
