"""From a formula to an optimizer: `rule`, `transform` and `chain`.

A rule is a function of one element. It is run once, when its class is made, with symbols in place of
numbers (`symbols`): what it does with them is written down, on every way through its `if`s. From that
come a kernel's function, in which no number stands, and a function for the host, which computes once
a step, in float64, whatever depends on no element (`writing`).
"""

from . import hyper
from .chain import Transform, chain, transform
from .formula import RuleError
from .rule import RuleOptimizer, rule

__all__ = ["RuleError", "RuleOptimizer", "Transform", "chain", "hyper", "rule", "transform"]
