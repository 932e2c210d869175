"""Optimizers: one small file a family, with the names and defaults of `torch.optim` or of their
authors.

What is asked for is imported then: a class is made from its formula, which takes milliseconds.
"""

from importlib import import_module
from typing import Any

from .. import namesake as _namesake

_namesake.check()

_HOMES = {
    "ADOPT": "adopt",
    "ASGD": "asgd",
    "CAME": "came",
    "FTRL": "ftrl",
    "LAMB": "lamb",
    "LARS": "lars",
    "LBFGS": "lbfgs",
    "LDoG": "dog",
    "MARS": "mars",
    "SGD": "sgd",
    "SOAP": "soap",
    "AdEMAMix": "ademamix",
    "AdaBelief": "adabelief",
    "AdaBound": "adabound",
    "Adadelta": "adadelta",
    "Adafactor": "adafactor",
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamMini": "adam_mini",
    "AdamW": "adam",
    "Adamax": "adamax",
    "Adan": "adan",
    "DAdaptAdam": "prodigy",
    "DoG": "dog",
    "GaLoreAdamW": "galore",
    "Kron": "kron",
    "LaProp": "laprop",
    "Lion": "lion",
    "Lookahead": "lookahead",
    "Mixed": "mixed",
    "Muon": "muon",
    "MuonWithAdamW": "mixed",
    "NAdam": "nadam",
    "NovoGrad": "novograd",
    "Optimizer": "optimizer",
    "Prodigy": "prodigy",
    "RAdam": "radam",
    "RMSprop": "rmsprop",
    "RuleOptimizer": "rule_optimizer",
    "Rprop": "rprop",
    "SAM": "sam",
    "ScheduleFreeAdamW": "schedule_free",
    "ScheduleFreeRAdam": "schedule_free",
    "ScheduleFreeSGD": "schedule_free",
    "Shampoo": "shampoo",
    "SignSGD": "sign_sgd",
    "SparseAdam": "sparse_adam",
    "StableAdamW": "stable_adamw",
    "Yogi": "yogi",
    "clip_grad_norm": "clip_grad",
    "clip_grad_value": "clip_grad",
    "dequantize": "dequantize",
    "param_groups_layerwise_lr_decay": "param_groups",
    "param_groups_weight_decay": "param_groups",
    "register_optimizer_step_post_hook": "hooks",
    "register_optimizer_step_pre_hook": "hooks",
}
"""In which module each name is at home."""
_MODULES = ("lr_scheduler", "schedules", "swa_utils")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
