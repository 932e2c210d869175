"""Torch optimizers from rules that torch has not: the user's own, or those that only genesis has."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, ClassVar

import torch

from ..optim.rule_optimizer import RuleOptimizer
from . import optimizers
from .plan import Formula
from .stepping import FusedStep
from .tensors import plain


class RuleOfTensors(FusedStep, torch.optim.Optimizer):
    """A torch optimizer whose update is a rule of genesis; `of` makes its subclasses.

    There is no step of torch's to which it could leave parameters: what a kernel cannot reach is an
    error, before anything is written.

    Args:
        params: as for any torch optimizer.
        args, given: the rule's hyper-parameters and options, as for its own class.
    """

    rule: ClassVar[type[RuleOptimizer]]
    """The class of genesis for NumPy arrays, whose rule this is."""

    _its_formula: ClassVar[Formula]

    def __init__(self, params: Any, *args: Any, maximize: bool = False, **given: Any):
        self._begin(strict=True)
        self._helper = self.rule.__new__(self.rule)
        defaults = self.rule._bound(self._helper, args, given)
        self._take_options(given)
        defaults["maximize"] = maximize
        self._check({name: plain(value) for name, value in defaults.items()})
        torch.optim.Optimizer.__init__(self, params, {**defaults, "differentiable": False})

    def _check(self, settings: dict[str, Any]) -> None:
        """Raise TypeError or ValueError if settings are impossible."""
        rule = self.rule
        for name, declared in rule._hypers.items():
            declared.check(name, settings[name])
        if rule._check_settings is not None:
            rule._check_settings(settings)

    def _formula(self, group: dict[str, Any]) -> Formula:
        self._check({name: plain(group[name]) for name in self.rule._hypers})
        return self._its_formula

    def __reduce__(self) -> tuple:
        return _blank, (self.rule,), self.__getstate__()


def _blank(rule: type[RuleOptimizer]) -> RuleOfTensors:
    """An optimizer without parameters or state, which unpickling fills."""
    kind = of(rule)  # type: ignore[arg-type]
    return kind.__new__(kind)


@lru_cache(maxsize=None)
def of(rule: type[RuleOptimizer]) -> Any:
    """The torch optimizer for a rule of genesis.

    Args:
        rule: a class that `genesis.rule` or `genesis.chain` has made, or an elementwise optimizer of
            `genesis.optim`; for one that torch has as well it is the class of that name in here.

    Returns:
        A subclass of `torch.optim.Optimizer` with the rule's hyper-parameters and state: buffers as
        tensors like the parameter, "step" and other numbers as tensors of one element. Its `step`
        takes a closure and `max_norm`.

    Raises:
        TypeError: it is no such class, or one that takes sparse gradients only or has methods besides.

    Example:
        >>> import torch, genesis, genesis.torch
        >>> @genesis.rule
        ... def Signed(param, grad, exp_avg, *, lr=1e-3, beta=0.9):
        ...     exp_avg = beta * exp_avg + (1 - beta) * grad
        ...     return param - lr * (1 if exp_avg > 0 else -1 if exp_avg < 0 else 0), exp_avg
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = genesis.torch.of(Signed)([p], lr=0.5)
        >>> (p**2).sum().backward()
        >>> optimizer.step()
        >>> p.detach()
        tensor([ 0.5000, -1.5000])
    """
    if not (
        isinstance(rule, type) and issubclass(rule, RuleOptimizer) and hasattr(rule, "_recipe")
    ):
        raise TypeError(
            f"of() takes a class that genesis.rule or genesis.chain has made, but got {rule!r}"
        )
    if not rule._takes_dense:
        raise TypeError(
            f"{rule.__name__} takes sparse gradients only, which no kernel reaches here"
        )
    recipe = rule._recipe
    if recipe.over or recipe.sums_over_all:
        what = (
            "numbers of a tensor, or of all, in its state"
            if recipe.over
            else "sums over all tensors"
        )
        raise TypeError(
            f"{rule.__name__} has {what}: the class itself works with these, on arrays of NumPy and "
            "CUDA, but not yet on torch's tensors"
        )
    base = rule.__mro__[1]
    if base is not RuleOptimizer:
        raise TypeError(
            f"{rule.__name__} has methods beside its rule, those of {base.__name__}, without "
            "which the rule must not be used and which work on arrays of NumPy, not on tensors"
        )
    name = rule.__name__
    torchs = getattr(optimizers, name, None)
    if torchs is not None and rule.__module__.startswith("genesis.optim."):
        return torchs
    body = {
        "__module__": rule.__module__ or "__main__",
        "__qualname__": rule.__qualname__,
        "__doc__": f"{name} for torch's parameters, by `genesis.torch.of`.\n\n{rule.__doc__ or ''}",
        "__signature__": inspect.signature(rule),
        "rule": rule,
        "_its_formula": Formula(rule._recipe, rule._numbers, completes=True),
    }
    return type(name, (RuleOfTensors,), body)
