"""Random formulas: what is written for a kernel does what the function itself does, bit for bit.

Nothing is compiled here. The kernel's function runs on NumPy scalars, as in the simulator, with the
scalars that the host's function gives; `reference` runs the formula itself, decisions and all.
"""

import itertools
import math
import random

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis.kernels import simulated

pytestmark = on_cpu_only

VALUES = [-2.5, -1.0, 0.0, -0.0, 0.3, 1.0, 7.0, math.inf, math.nan]
HYPER = {"lr": 0.1, "beta": 0.7, "rate": 0.0, "shift": -1.5}


class Writer:
    """Writes a random formula as source."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.names = ["param", "grad", "a", "b", *HYPER]
        self.lines = []

    def number(self, depth):
        pick = self.random.random()
        if depth == 0 or pick < 0.25:
            return self.random.choice([*self.names, "0", "1", "2.5", "step"])
        inner = [self.number(depth - 1) for _ in range(3)]
        if pick < 0.6:
            return "({} {} {})".format(inner[0], self.random.choice("+-*"), inner[1])
        if pick < 0.65:
            return f"(-{inner[0]})"
        if pick < 0.7:
            return f"(param / (2 + {inner[0]} * grad))"
        if pick < 0.75:
            return f"math.sqrt(abs({inner[0]} + grad))"
        if pick < 0.8:
            return f"(grad + {inner[0]}) ** {self.random.choice([2, 3, 0.5])}"
        if pick < 0.84:
            return f"({self.truth(1)}) * {inner[0]}"
        if pick < 0.92:
            return f"{self.random.choice(['min', 'max'])}({inner[0]}, {inner[1]})"
        return f"({inner[0]} if {self.truth(depth - 1)} else {inner[1]})"

    def truth(self, depth):
        pick = self.random.random()
        if pick < 0.6 or depth == 0:
            sign = self.random.choice(["<", "<=", ">", ">=", "==", "!="])
            return f"{self.number(min(depth, 1))} {sign} {self.number(min(depth, 1))}"
        if pick < 0.7:
            return f"not {self.truth(0)}"
        if pick < 0.8:
            return self.random.choice(["flag", "not flag", "grad", "rate"])
        return f"({self.truth(0)} {self.random.choice(['and', 'or'])} {self.truth(0)})"

    def block(self, depth, indent):
        pad = "    " * indent
        for _ in range(self.random.randint(1, 3)):
            if depth and self.random.random() < 0.4:
                self.lines.append(f"{pad}if {self.truth(1)}:")
                self.block(depth - 1, indent + 1)
                if self.random.random() < 0.5:
                    self.lines.append(f"{pad}else:")
                    self.block(depth - 1, indent + 1)
                if self.random.random() < 0.2:
                    self.lines.append(f"{pad}    return {self.number(1)}, a, {self.number(1)}")
            else:
                name = self.random.choice(["param", "a", "b", "lr", "x", "y"])
                self.lines.append(f"{pad}{name} = {self.number(2)}")

    def source(self):
        self.names += ["x", "y"]
        self.lines = ["    x = grad * beta", "    y = 1 - beta"]
        self.block(2, 1)
        self.block(1, 1)
        keywords = ", ".join(f"{name}={value}" for name, value in HYPER.items())
        head = f"def Random(param, grad, a, b, *, {keywords}, flag=False, step):"
        tail = f"    return {self.number(2)}, {self.number(2)}, {self.number(1)}"
        return "\n".join([head, *self.lines, tail])


def made(source):
    """The class; None if there are too many ways through the formula."""
    names = {"math": math}
    exec(source, names)
    function = names["Random"]
    function.__kwdefaults__ = {
        name: value if name == "flag" else genesis.hyper.number(value)
        for name, value in function.__kwdefaults__.items()
    }
    try:
        return genesis.rule(function)
    except genesis.RuleError as error:
        if "256 ways" in str(error):
            return None
        raise


@pytest.mark.parametrize("seed", range(100))
def test_random_formulas(seed):
    source = Writer(seed).source()
    optimizer = made(source)
    if optimizer is None:
        return
    recipe = optimizer._recipe
    elements = random.Random(seed).sample(list(itertools.product(VALUES, repeat=4)), 25)
    for flag, step, kind in itertools.product((False, True), (1, 3), (np.float32, np.float64)):
        written = recipe.written_for({"flag": flag})
        kernel = simulated.device_function.__wrapped__(written.rule)
        try:
            scalars = written.scalars(HYPER, step, [{}])
        except (ValueError, OverflowError, TypeError, ZeroDivisionError):
            continue  # the host's own arithmetic has no result, whatever the elements
        if any(isinstance(scalar, complex) for scalar in scalars):
            continue
        hyper = tuple(kind(scalar) for scalar in scalars)
        for param, grad, a, b in elements:
            states = {"a": kind(a), "b": kind(b)}
            wanted = optimizer.reference(kind(param), grad, a, b, step=step, flag=flag)
            wanted = dict(zip(("param", "a", "b"), wanted))
            state = tuple(states[name] for name in written.states)
            found, after = kernel(kind(param), kind(grad), state, hyper)
            pairs = [("param", found), *zip(written.states, after)]
            for name, value in pairs:
                assert type(value) is kind, source
                same = value.tobytes() == wanted[name].tobytes()
                assert same or (np.isnan(value) and np.isnan(wanted[name])), (
                    f"{name}: {value} is not {wanted[name]}\n{source}\n{written.text}"
                )
