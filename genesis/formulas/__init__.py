"""From a formula to a recipe, of which `genesis.rule` and `genesis.chain` make optimizers.

A rule is a function of one element. It is run once, when its class is made, with symbols in place of
numbers (`symbols`): what it does with them is written down, on every way through its `if`s. From that
come a kernel's function, in which no number stands, and a function for the host, which computes once
a step, in float64, whatever depends on no element (`writing`).
"""

from .chain import Transform, composed, transform
from .formula import Formula
from .recipe import Numbers, OfSettings, Part, Recipe
from .symbols import RuleError, Sums, mean, overall, per_tensor, total
from .writing import Written

__all__ = [
    "Formula",
    "Numbers",
    "OfSettings",
    "Part",
    "Recipe",
    "RuleError",
    "Sums",
    "Transform",
    "Written",
    "composed",
    "mean",
    "overall",
    "per_tensor",
    "total",
    "transform",
]
