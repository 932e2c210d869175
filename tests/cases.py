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
    Case("Adam", {"cautious": True, "lr": 0.01, "weight_decay": 0.1}, "pytorch_optimizer"),
    Case("Adam", {"maximize": True}),
    Case("AdamW", {}),
    Case("AdamW", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}),
    Case("AdamW", {"weight_decay": 0.3, "lr": 0.1}),
    Case("AdamW", {"weight_decay": 0}),
    Case("AdamW", {"amsgrad": True}),
    Case("AdamW", {"cautious": True, "lr": 0.1, "weight_decay": 0.3}, "pytorch_optimizer"),
    Case("AdamW", {"cautious_weight_decay": True, "lr": 0.1, "weight_decay": 0.3}, None),
    Case(
        "AdamW",
        {
            "cautious": True,
            "cautious_weight_decay": True,
            "lr": 0.1,
            "weight_decay": 0.3,
            "amsgrad": True,
            "maximize": True,
        },
        None,
    ),
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
    Case("NAdam", {"cautious": True, "lr": 0.01}, None),
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
    Case("Lion", {}, "pytorch_optimizer"),
    Case("Lion", {"cautious": True, "lr": 0.01, "weight_decay": 0.3}, "pytorch_optimizer"),
    Case("Lion", {"cautious_weight_decay": True, "lr": 0.01, "weight_decay": 0.3}, None),
    Case("Lion", {"lr": 0.01, "weight_decay": 0.3, "maximize": True}, "pytorch_optimizer"),
    Case("SignSGD", {"momentum": 0, "weight_decay": 0.1}, "pytorch_optimizer"),
    Case("SignSGD", {"lr": 0.01, "momentum": 0.6, "maximize": True}, "pytorch_optimizer"),
    Case("AdEMAMix", {}, "pytorch_optimizer"),
    Case(
        "AdEMAMix",
        {"lr": 0.01, "betas": (0.3, 0.7, 0.95), "alpha": 8.0, "alpha_warmup": 10, "eps": 1e-3},
        None,
    ),
    Case(
        "AdEMAMix",
        {"alpha_warmup": 20, "beta3_warmup": 20, "weight_decay": 0.3, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("ADOPT", {}, "pytorch_optimizer"),
    Case(
        "ADOPT", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 0.5, "clip_exp": 0.5}, "pytorch_optimizer"
    ),
    Case("ADOPT", {"weight_decay": 0.1, "clip_exp": None}, "pytorch_optimizer"),
    Case("ADOPT", {"cautious": True, "lr": 0.01}, "pytorch_optimizer"),
    Case(
        "ADOPT",
        {"weight_decay": 0.3, "decoupled_weight_decay": True, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("Adan", {}, "pytorch_optimizer"),
    Case("Adan", {"lr": 0.01, "betas": (0.3, 0.7, 0.6), "eps": 1e-3}, "pytorch_optimizer"),
    Case("Adan", {"weight_decay": 0.3, "lr": 0.1, "no_prox": True}, "pytorch_optimizer"),
    Case("Adan", {"weight_decay": 0.3, "lr": 0.1, "maximize": True}, "pytorch_optimizer"),
    Case("LAMB", {"lr": 0.1}, None),
    Case("LAMB", {"lr": 0.1, "weight_decay": 0.3, "maximize": True}, None),
    Case("LAMB", {"lr": 0.01, "bias_correction": False, "weight_decay": 0.1}, "pytorch_optimizer"),
    Case("LAMB", {"betas": (0.3, 0.7), "eps": 1e-3, "adapt": False}, None),
    Case("LARS", {"lr": 10.0}, "pytorch_optimizer"),
    Case(
        "LARS",
        {"lr": 10.0, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("LARS", {"lr": 0.01, "adapt": False, "weight_decay": 0.1}, None),
    Case("StableAdamW", {}, "pytorch_optimizer"),
    Case(
        "StableAdamW",
        {"lr": 0.1, "betas": (0.3, 0.7), "weight_decay": 0.3, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("NovoGrad", {}, "pytorch_optimizer"),
    Case("NovoGrad", {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.3}, "pytorch_optimizer"),
    Case("NovoGrad", {"grad_averaging": True, "maximize": True}, "pytorch_optimizer"),
    Case("Prodigy", {"d0": 1e-3}, "prodigyopt"),
    Case(
        "Prodigy",
        {
            "d0": 1e-3,
            "lr": 0.5,
            "betas": (0.7, 0.9),
            "beta3": 0.8,
            "weight_decay": 0.1,
            "decouple": False,
            "d_coef": 50.0,
            "growth_rate": 1.1,
        },
        "prodigyopt",
    ),
    Case(
        "Prodigy",
        {
            "d0": 1e-2,
            "d_coef": 20.0,
            "weight_decay": 0.1,
            "use_bias_correction": True,
            "safeguard_warmup": True,
        },
        "prodigyopt",
    ),
    Case("DAdaptAdam", {"d0": 1e-3}, "dadaptation"),
    Case(
        "DAdaptAdam",
        {
            "d0": 1e-2,
            "lr": 0.5,
            "betas": (0.7, 0.9),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "decouple": True,
            "use_bias_correction": True,
        },
        "dadaptation",
    ),
    Case("DoG", {"reps_rel": 1e-2}, "dog"),
    Case("DoG", {"lr": 0.5, "weight_decay": 0.1, "init_eta": 0.01, "eps": 1.0}, "dog"),
    Case("LDoG", {"reps_rel": 1e-2, "maximize": True}, None),
    Case("LDoG", {"reps_rel": 1e-2, "weight_decay": 0.1, "lr": 0.5}, "dog"),
    Case("MARS", {}, "pytorch_optimizer"),
    Case("MARS", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3, "gamma": 0.5}, "pytorch_optimizer"),
    Case("MARS", {"weight_decay": 0.3, "lr": 0.1, "maximize": True}, "pytorch_optimizer"),
    Case("AdaBelief", {}, "pytorch_optimizer"),
    Case("AdaBelief", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}, "pytorch_optimizer"),
    Case("AdaBelief", {"weight_decay": 0.1, "decoupled_weight_decay": False}, "pytorch_optimizer"),
    Case("AdaBelief", {"weight_decay": 0.3, "lr": 0.1, "maximize": True}, "pytorch_optimizer"),
    Case("Yogi", {}, None),
    Case("Yogi", {"bias_correction": True}, "pytorch_optimizer"),
    Case(
        "Yogi",
        {"betas": (0.3, 0.7), "eps": 0.1, "initial_accumulator_value": 0.5, "weight_decay": 0.1},
        "pytorch_optimizer",
    ),
    Case(
        "Yogi",
        {"weight_decay": 0.3, "decoupled_weight_decay": True, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("LaProp", {}, "pytorch_optimizer"),
    Case("LaProp", {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3}, None),
    Case("LaProp", {"weight_decay": 0.1, "decoupled_weight_decay": False}, None),
    Case("LaProp", {"cautious": True, "weight_decay": 0.3, "lr": 0.1}, "pytorch_optimizer"),
    Case("LaProp", {"weight_decay": 0.3, "lr": 0.1, "maximize": True}, "pytorch_optimizer"),
    Case("FTRL", {"lr": 1.0}, "pytorch_optimizer"),
    Case(
        "FTRL",
        {
            "lr": 2.0,
            "beta": 1.0,
            "lambda_1": 0.7,
            "lambda_2": 0.3,
            "initial_accumulator_value": 0.1,
        },
        "pytorch_optimizer",
    ),
    Case("FTRL", {"lr": 0.5, "beta": 0.5, "lambda_1": 0.5, "maximize": True}, "pytorch_optimizer"),
    Case("AdaBound", {}, "pytorch_optimizer"),
    Case(
        "AdaBound",
        {"lr": 0.01, "betas": (0.3, 0.7), "eps": 1e-3, "final_lr": 0.01, "gamma": 0.5},
        "pytorch_optimizer",
    ),
    Case("AdaBound", {"weight_decay": 0.1, "amsbound": True}, "pytorch_optimizer"),
    Case(
        "AdaBound",
        {"weight_decay": 0.3, "decoupled_weight_decay": True, "maximize": True},
        "pytorch_optimizer",
    ),
    Case("ScheduleFreeSGD", {}, "schedulefree"),
    Case(
        "ScheduleFreeSGD",
        {
            "lr": 0.1,
            "momentum": 0.7,
            "weight_decay": 0.1,
            "warmup_steps": 10,
            "r": 1.0,
            "weight_lr_power": 1.5,
        },
        "schedulefree",
    ),
    Case("ScheduleFreeAdamW", {}, "schedulefree"),
    Case(
        "ScheduleFreeAdamW",
        {"lr": 0.1, "warmup_steps": 10, "corrects_lr": True, "weight_decay": 0.3},
        "schedulefree",
    ),
    Case(
        "ScheduleFreeAdamW",
        {"lr": 0.01, "betas": (0.6, 0.7), "eps": 1e-3, "r": 0.5, "maximize": True},
        "schedulefree",
    ),
    Case("ScheduleFreeRAdam", {}, "schedulefree"),
    Case(
        "ScheduleFreeRAdam",
        {"lr": 0.01, "betas": (0.6, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        "schedulefree",
    ),
    Case(
        "ScheduleFreeRAdam",
        {"lr": 0.1, "silent_sgd_phase": False, "weight_lr_power": 1.0, "maximize": True},
        "schedulefree",
    ),
]

SPECIAL = {
    "LBFGS": "torch",
    "Adafactor": "torch",
    "Muon": "torch",
    "SparseAdam": "torch",
    "CAME": "came_pytorch",
    "AdamMini": "pytorch_optimizer",
    "GaLoreAdamW": "pytorch_optimizer",
    "SOAP": "pytorch_optimizer",
    "Shampoo": "pytorch_optimizer",
    "Kron": "kron_torch",
}
"""Optimizers that no rule and no common loop of steps describes, and their peers: each has tests of
its own, in a file that names it, with its own table of variants, reference and comparison (which is in
test_packages.py unless the peer is torch)."""

WRAPPERS = "Lookahead", "Mixed", "MuonWithAdamW", "SAM"
"""Optimizers that work through others, whose contract they keep: see test_wrappers.py, test_mixed.py."""

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
