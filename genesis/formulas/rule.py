"""`rule`: an optimizer class from the function that updates one element."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from ..optim import checks
from ..optim.optimizer import Optimizer
from ..optim.plan import Rule
from .formula import Formula
from .hyper import REQUIRED
from .recipe import Numbers, Part, Recipe
from .writing import Written

_OPTIONS = {"master_weights": False, "state_dtype": None, "stochastic_rounding": False}


class RuleOptimizer(Optimizer):
    """What `rule` and `chain` make classes of: an optimizer whose update is a formula.

    The arguments, a formula's hyper-parameters, are described by each class.

    Attributes:
        reference: the formula for NumPy scalars, see `rule`.
    """

    _recipe: ClassVar[Recipe]
    _fills: ClassVar[dict[str, float]] = {}

    def __init__(self, params: Iterable, *, maximize: bool = False, **given: Any):
        hypers = self._recipe.hypers
        defaults = {name: given.pop(name, declared.default) for name, declared in hypers.items()}
        missing = [repr(name) for name, value in defaults.items() if value is REQUIRED]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            raise TypeError(
                f"{type(self).__name__}.__init__() missing {len(missing)} required keyword-only "
                f"argument{plural}: {', '.join(missing)}"
            )
        super().__init__(params, {**defaults, "maximize": maximize}, **given)

    def _check(self, group: dict[str, Any]) -> None:
        for name, declared in self._recipe.hypers.items():
            declared.check(name, checks.entry(group, name))
        checks.flags(group, "maximize")

    def _check_lr(self, group: dict[str, Any]) -> None:
        rate = self._recipe.hypers.get("lr")
        if rate is not None:
            rate.check("lr", group["lr"])

    def _written(self, group: dict[str, Any]) -> Written:
        return self._recipe.written[self._recipe.choice(group)]

    def _rule(self, group: dict[str, Any]) -> Rule:
        written = self._written(group)
        return written.rule, written.states

    def _initial(self, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": 0, **self._recipe.carried, **self._fills}

    @classmethod
    def reference(
        cls, param: Any, grad: Any, *state: Any, step: int = 1, **given: Any
    ) -> tuple[Any, ...]:
        """One update of one element by the formula itself, with the arithmetic of the kernels.

        What a CPU's kernel gives agrees with it bit for bit. Arrays are gone through element by
        element, in Python: this is for tests.

        Args:
            param, grad: the element of the parameter and of the gradient; float64 if the first is
                float64 (or Python's float), else float32.
            state: the elements of the state buffers, in the order of the formula. Those left out are
                what they begin with.
            step: the number of the update, from 1. Default: 1.
            given: hyper-parameters, as for the constructor, and carried numbers as they were before
                the update.

        Returns:
            What becomes of the parameter and of each state buffer.

        Raises:
            TypeError, ValueError: an impossible hyper-parameter, or too many state buffers.
        """
        recipe = cls._recipe
        numbers = {name: given.pop(name, value) for name, value in recipe.carried.items()}
        group = {name: given.pop(name, h.default) for name, h in recipe.hypers.items()}
        if given or len(state) > len(recipe.states):
            wrong = sorted(given) if given else f"{len(state)} state buffers"
            raise TypeError(
                f"{cls.__name__}.reference: {wrong}, but the state is {list(recipe.states)} and the "
                f"hyper-parameters are {list(recipe.hypers)}"
            )
        for name, declared in recipe.hypers.items():
            if group[name] is REQUIRED:
                raise TypeError(f"{cls.__name__}.reference: {name!r} is required")
            declared.check(name, group[name])
            group[name] = checks.plain(group[name])
        kind: Any = np.float64 if np.asarray(param).dtype == np.float64 else np.float32
        named = recipe.named(group, numbers, step)
        begun = list(recipe.states.values())[len(state) :]
        columns = np.broadcast_arrays(param, grad, *state, *begun)
        results = [np.empty(columns[0].shape, kind) for _ in range(1 + len(recipe.states))]
        for place in np.ndindex(columns[0].shape):
            param, grad, *elements = (column[place] for column in columns)
            values = recipe.evaluated(kind, param, grad, elements, group, named, step)
            for result, value in zip(results, values):
                result[place] = value
        return tuple(result[()] for result in results)


class WithNumbers(RuleOptimizer):
    """One with a function for per-step numbers."""

    _found: tuple[Any, Any] | None = None

    def _next(self, group: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
        recipe, step = self._recipe, numbers["step"] + 1
        named = recipe.named(group, numbers, step)
        self._found = numbers, named  # for the scalars, which are asked for next
        return {"step": step, **recipe.next_carried(named)}

    def _scalars_between(
        self, group: dict[str, Any], before: dict[str, Any], after: dict[str, Any], first: bool
    ) -> tuple[float, ...]:
        found, self._found = self._found, None
        if found is not None and found[0] is before:
            named = found[1]
        else:
            named = self._recipe.named(group, before, after["step"])
        return self._written(group).scalars(group, after["step"], named)


def made(recipe: Recipe, module: str, qualname: str, doc: str | None) -> type[RuleOptimizer]:
    """The class for a recipe, as it is known in a module."""
    needs = [set(written.states) for written in recipe.written.values()]
    needed, ever = set.intersection(*needs), set.union(*needs)
    body = {
        "__module__": module,
        "__qualname__": qualname,
        "__doc__": _documented(recipe, doc),
        "__signature__": _signature(recipe),
        "_recipe": recipe,
        "_always": tuple(name for name in recipe.states if name in needed),
        "_sometimes": tuple(name for name in recipe.states if name in ever - needed),
        "_numbers": ("step", *recipe.carried),
        "_fills": {name: value for name, value in recipe.states.items() if value},
    }
    if recipe.has_numbers:
        return type(recipe.name, (WithNumbers,), body)
    return type(recipe.name, (RuleOptimizer,), {**body, "_scalars": _scalars(recipe)})


def _scalars(recipe: Recipe) -> Callable:
    """The method `_scalars`, which each step calls: found here, it costs half a microsecond less."""
    by_choice = {choice: written.scalars for choice, written in recipe.written.items()}
    if len(by_choice) > 1:
        choice = recipe.choice
        return lambda self, group, numbers: by_choice[choice(group)](group, numbers["step"], None)
    (only,) = by_choice.values()
    return lambda self, group, numbers: only(group, numbers["step"], None)


def _signature(recipe: Recipe) -> inspect.Signature:
    def keyword(name: str, default: Any) -> inspect.Parameter:
        empty = inspect.Parameter.empty
        default = empty if default is REQUIRED else default
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)

    keywords = {name: declared.default for name, declared in recipe.hypers.items()}
    keywords.update({"maximize": False, **_OPTIONS})
    return inspect.Signature(
        [
            inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(keyword(name, default) for name, default in keywords.items()),
        ]
    )


_PARAMS = "params: an iterable of `Parameter`s, of `(name, Parameter)` pairs, or of group dicts."
_OTHERS = (
    "maximize: go up the gradient instead of down. Default: False.\n"
    "master_weights, state_dtype, stochastic_rounding: how state is kept and rounded, see\n"
    "    `genesis.optim.precision.Options`."
)


def _documented(recipe: Recipe, doc: str | None) -> str:
    """The docstring, completed by what is known of arguments and state if it says nothing of them."""
    text = inspect.cleandoc(doc or f"{recipe.name}.")
    if "Args:" not in text:
        entries = [f"{name}: {declared.entry}" for name, declared in recipe.hypers.items()]
        lines = "\n".join([_PARAMS, *entries, _OTHERS]).splitlines()
        text += "\n\nArgs:\n" + "\n".join(f"    {line}" for line in lines)
        state = ", ".join(f'"{name}"' for name in ("step", *recipe.carried, *recipe.states))
        text += f"\n\nState of a parameter: {state}."
    return text


def rule(function: Callable | None = None, *, numbers: Callable | None = None) -> Any:
    """Turn the function that updates one element into an optimizer class.

    Positional arguments after `param, grad` are state buffers, zeros at first, or their default.
    Keywords are hyper-parameters: of each group, and changeable between steps without compiling
    anything. Those with a default of True or False are flags: each choice is compiled on its own, and
    state that it does not read is not allocated. A keyword `step` without a default is the number of
    the update, from 1. `genesis.hyper` declares ranges and documentation.

    The function is run when the class is made, with symbols in place of numbers. It may use
    arithmetic, `if`, conditional expressions, several `return`s, `min`, `max`, `abs`, functions of
    `math`, and plain functions made of the same. What depends on no element, a literal or
    `1 - lr * weight_decay`, is computed on the host, once a step, in float64. Numbers from globals and
    closures are taken when the class is made. `x**2`, and other small whole powers of an element, are
    products; `x**0.5` is a square root.

    Args:
        function: `function(param, grad, *state, *, hyper-parameters)`, which returns the new value of
            param and of every state buffer.
        numbers: `numbers(step, carried=0.0, *, hyper-parameters)`, a plain function on the host, called
            once a step; returns a dict. What it returns under the name of a keyword of the rule is
            that keyword; what it returns under the name of a carried number, that number's next
            value, kept in the state. Its keywords are hyper-parameters of the optimizer. Default: None.

    Returns:
        A subclass of `genesis.optim.Optimizer` with the function's name. `reference` of it evaluates
        the formula on NumPy scalars, bit for bit as a CPU's kernel does.

    Raises:
        RuleError: the function is no such formula; says in which file and line, and why.

    Example:
        >>> import numpy as np, genesis
        >>> @genesis.rule
        ... def Signed(param, grad, exp_avg, *, lr=1e-3, beta=0.9):
        ...     exp_avg = beta * exp_avg + (1 - beta) * grad
        ...     return param - lr * (1 if exp_avg > 0 else -1 if exp_avg < 0 else 0), exp_avg
        >>> p = genesis.Parameter(np.array([1.0, -2.0, 3.0]))
        >>> p.grad = np.array([0.3, -0.2, 0.0])
        >>> Signed([p], lr=0.5).step().state[p]["exp_avg"].round(3)
        array([ 0.03, -0.02,  0.  ])
        >>> p.data
        array([ 0.5, -1.5,  3. ])
    """
    if function is None:
        return lambda function: rule(function, numbers=numbers)
    formula = Formula(function, "rule", ("param", "grad"))
    part = Part(formula, None if numbers is None else Numbers(numbers, formula))
    recipe = Recipe(formula.name, [part], formula.file, formula.line)
    return made(recipe, formula.module, formula.qualname, formula.doc)
