"""Arguments of torch's optimizers that choose among its implementations: accepted, and of no effect.

Here there is one implementation, which is fused, on every device. Code written for torch passes these
arguments all the same, so the optimizers of the same names take those that torch's take (2.13; a test
compares). They are no hyper-parameters: groups and snapshots do not have them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("genesis")

FLAGS: dict[str, tuple[str, ...]] = {
    "ASGD": ("foreach", "differentiable", "capturable"),
    "Adadelta": ("foreach", "capturable", "differentiable"),
    "Adafactor": ("foreach",),
    "Adagrad": ("foreach", "differentiable", "fused"),
    "Adam": ("foreach", "capturable", "differentiable", "fused"),
    "AdamW": ("foreach", "capturable", "differentiable", "fused"),
    "Adamax": ("foreach", "differentiable", "capturable"),
    "NAdam": ("foreach", "capturable", "differentiable"),
    "RAdam": ("foreach", "capturable", "differentiable"),
    "RMSprop": ("capturable", "foreach", "differentiable"),
    "Rprop": ("capturable", "foreach", "differentiable"),
    "SGD": ("foreach", "differentiable", "fused"),
}
"""Which of them each optimizer takes; SparseAdam, Muon and LBFGS take none."""

DEFAULTS: dict[str, bool | None] = {
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
"""Torch's defaults."""


def of(name: str, module: str | None) -> tuple[str, ...]:
    """The flags that a class takes: an optimizer of this package, or none."""
    is_ours = module is not None and module.startswith(f"{__package__}.")
    return FLAGS.get(name, ()) if is_ours else ()


def ignore(name: str, given: Mapping[str, Any]) -> None:
    """Say, in the log, which of these arguments a constructor was given and ignores."""
    if given:
        flags = ", ".join(f"{flag}={value!r}" for flag, value in given.items())
        logger.debug(
            "%s ignores %s: it chooses among torch's implementations, and here there is one, fused",
            name,
            flags,
        )
