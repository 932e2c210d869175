"""Torch's elementwise optimizers, with genesis' step.

Each is a subclass of the torch optimizer of its name: with its arguments, its groups, its state, and its
own step for what a kernel cannot reach.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .. import optim
from ..optim import options, pieces
from .plan import Formula, state_type
from .stepping import FusedStep


def _formula(rule: Any) -> Formula:
    """What a rule of genesis does, with state as torch keeps it."""
    return Formula(rule._recipe, rule._numbers, completes=False, check=rule._check_settings)


_WITH_CAUTION = {
    **options.UNDER_TORCH,
    "cautious": pieces.CAUTIOUS,
    "cautious_weight_decay": pieces.CAUTIOUS_DECAY,
}


class _OneFormula(FusedStep):
    """A class that has one formula for all groups."""

    _its_formula: ClassVar[Formula]

    def _formula(self, group: dict[str, Any]) -> Formula:
        return self._its_formula


class SGD(_OneFormula, torch.optim.SGD):
    """`torch.optim.SGD`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.SGD)


class _EitherAdam(FusedStep):
    """A class whose groups say which of the two they are."""

    _formulas: ClassVar[dict[bool, Formula]] = {
        False: _formula(optim.Adam),
        True: _formula(optim.AdamW),
    }

    _further = _WITH_CAUTION

    def _formula(self, group: dict[str, Any]) -> Formula:
        decoupled = bool(group["decoupled_weight_decay"])
        pieces.check_cautious_decay(group.get("cautious_weight_decay", False), decoupled)
        return self._formulas[decoupled]


class Adam(_EitherAdam, torch.optim.Adam):
    """`torch.optim.Adam`, whose step is a launch of genesis; see `genesis.torch`."""


class AdamW(_EitherAdam, torch.optim.AdamW):
    """`torch.optim.AdamW`, whose step is a launch of genesis; see `genesis.torch`."""


class RMSprop(_OneFormula, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.RMSprop)


class Adagrad(_OneFormula, torch.optim.Adagrad):
    """`torch.optim.Adagrad`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.Adagrad)

    def _convert_state(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                entries = self.state[param]
                entries["sum"] = entries["sum"].to(state_type(param, group))


class Adadelta(_OneFormula, torch.optim.Adadelta):
    """`torch.optim.Adadelta`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.Adadelta)


class Adamax(_OneFormula, torch.optim.Adamax):
    """`torch.optim.Adamax`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.Adamax)


class NAdam(_OneFormula, torch.optim.NAdam):
    """`torch.optim.NAdam`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.NAdam)
    _further = _WITH_CAUTION


class RAdam(_OneFormula, torch.optim.RAdam):
    """`torch.optim.RAdam`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.RAdam)


class ASGD(_OneFormula, torch.optim.ASGD):
    """`torch.optim.ASGD`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.ASGD)


class Rprop(_OneFormula, torch.optim.Rprop):
    """`torch.optim.Rprop`, whose step is a launch of genesis; see `genesis.torch`."""

    _its_formula = _formula(optim.Rprop)
