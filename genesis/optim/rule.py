"""`rule` and `chain`: an optimizer class from the formula of one element, or from several in a row."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, overload

from .. import hyper
from ..formulas import Formula, Numbers, OfSettings, Part, Recipe, Transform, composed
from ..hyper import REQUIRED
from . import options, torch_flags
from .rule_optimizer import RuleOptimizer


@overload
def rule(
    function: Callable,
    *,
    numbers: Callable | None = None,
    check: Callable | None = None,
    sparse: Callable | str | None = None,
    averages: Mapping[str, str] | None = None,
    counted: bool = True,
    base: type[RuleOptimizer] = RuleOptimizer,
) -> type[RuleOptimizer]: ...


@overload
def rule(
    *,
    numbers: Callable | None = None,
    check: Callable | None = None,
    sparse: Callable | str | None = None,
    averages: Mapping[str, str] | None = None,
    counted: bool = True,
    base: type[RuleOptimizer] = RuleOptimizer,
) -> Callable[[Callable], type[RuleOptimizer]]: ...


def rule(
    function: Callable | None = None,
    *,
    numbers: Callable | None = None,
    check: Callable | None = None,
    sparse: Callable | str | None = None,
    averages: Mapping[str, str] | None = None,
    counted: bool = True,
    base: type[RuleOptimizer] = RuleOptimizer,
) -> Any:
    """Turn the function that updates one element into an optimizer class.

    Positional arguments after `param, grad` are state buffers: zeros at first, or what their default
    says, a number or the name of a hyper-parameter. Where the default is `genesis.per_tensor(...)` or
    `genesis.overall(...)`, it is one number for each tensor, or for all of them.
    Keywords are hyper-parameters: of each group, and changeable between steps without compiling
    anything. Those with a default of True or False are flags: each choice is compiled on its own, and
    state that it does not read is not allocated. A keyword `step` without a default is the number of
    the update, from 1; a keyword `first` without one is whether a state buffer is new. `genesis.hyper`
    declares ranges and documentation.

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
            value, kept in the state. Its keywords are hyper-parameters of the optimizer; one that the
            rule declares has no default here. Default: None.
        check: a function of some hyper-parameters, by keyword, that raises ValueError for what is
            possible by itself but not together. Default: None.
        sparse: a function of some hyper-parameters, by keyword, that says whether gradients may be
            `SparseGrad`s, as where the update leaves an element as it is whose gradient is 0; "only",
            they must be. Default: None, they must not be.
        averages: those of its state buffers that are running averages of something of the gradient's
            size, or of its square's, by name: "signed", or "positive" for what is never negative. Where
            all buffers are, `state_dtype="8bit"` is possible. Default: None, none is.
        counted: whether the number of updates is kept in the state, as "step". False is possible
            where nothing makes use of it. Default: True.
        base: the class of which a subclass is made, for methods of its own: a subclass of
            `genesis.optim.RuleOptimizer` without a formula. Default: `RuleOptimizer` itself.

    Returns:
        A subclass of `genesis.optim.Optimizer` with the function's name. `reference` of it evaluates
        the formula on NumPy scalars, bit for bit as a CPU's kernel does; what follows from sums over a
        tensor agrees to rounding.

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
        return partial(
            _ruled,
            numbers=numbers,
            check=check,
            sparse=sparse,
            averages=averages,
            counted=counted,
            base=base,
        )
    return _ruled(function, numbers, check, sparse, averages, counted, base)


def _ruled(
    function: Callable,
    numbers: Callable | None,
    check: Callable | None,
    sparse: Callable | str | None,
    averages: Mapping[str, str] | None,
    counted: bool,
    base: type[RuleOptimizer],
) -> type[RuleOptimizer]:
    formula = Formula(function, "rule", ("param", "grad"), averages=averages)
    part = Part(formula, None if numbers is None else Numbers(numbers, formula))
    # The package's own formulas are known to be right, and there are many of them to import.
    tried = not str(formula.module).startswith(f"{__package__}.")
    recipe = Recipe(formula.name, [part], formula.file, formula.line, tried=tried)
    if not (isinstance(base, type) and issubclass(base, RuleOptimizer)) or hasattr(base, "_recipe"):
        formula.refuse(
            f"base={base!r}",
            "the base of a rule is a subclass of genesis.optim.RuleOptimizer without a formula",
        )
    further: dict[str, Any] = {}
    if sparse is not None and recipe.sums:
        formula.refuse(
            "sparse", "sums over a tensor need all of its gradient, so it must not be sparse"
        )
    if check is not None:
        further["_check_settings"] = OfSettings(check, formula, recipe.hypers)
    if sparse == "only":
        further.update(_takes_sparse=True, _takes_dense=False)
    elif sparse is not None:
        further["_takes_sparse"] = OfSettings(sparse, formula, recipe.hypers)  # type: ignore[arg-type]
    if not counted:
        if numbers is not None or "step" in formula.open:
            formula.refuse("counted=False", "the formula or its numbers make use of the step")
        further["_numbers"] = ()
    return _made(recipe, formula.module, formula.qualname, formula.doc, further, base)


def chain(*transforms: Transform, name: str, shared: Iterable[str] = ()) -> type[RuleOptimizer]:
    """Compose transforms into one optimizer class.

    The first takes the gradient as its update, each other what the one before it gave; the last
    one's update is subtracted from the parameter. All of it is compiled as one pass.

    Args:
        transforms: the parts, in order; see `transform` and `genesis.transforms`.
        name: the name of the class; to be pickled, it must be assigned to this name in its module.
        shared: names of hyper-parameters that several parts have and that are one. Names that are not
            in here must differ: `part.prefixed("slow_")` gives a part's names a prefix.

    Returns:
        A subclass of `genesis.optim.Optimizer`.

    Raises:
        RuleError: what is composed is no transform, or two parts have a name in common; says in which
            file and line.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis import transforms as T
        >>> Chained = genesis.chain(
        ...     T.scale_by_adam, T.add_decayed_weights, T.scale_by_lr(lr=0.1), name="Chained"
        ... )
        >>> p = genesis.Parameter(np.array([1.0, -2.0]))
        >>> p.grad = np.array([0.3, -0.2])
        >>> _ = Chained([p], weight_decay=0.0).step()
        >>> p.data.round(6)
        array([ 0.9, -1.9])
    """
    frame = sys._getframe(1)
    file, line = frame.f_code.co_filename, frame.f_lineno
    recipe = composed(transforms, name, shared, file, line)
    doc = f"{name}: {', then '.join(transform.__name__ for transform in transforms)}."
    return _made(recipe, frame.f_globals.get("__name__", "__main__"), name, doc)


def _made(
    recipe: Recipe,
    module: str,
    qualname: str,
    doc: str | None,
    further: dict[str, Any] | None = None,
    base: type[RuleOptimizer] = RuleOptimizer,
) -> type[RuleOptimizer]:
    """The class for a recipe, as it is known in a module."""
    positional = _positional(recipe)
    flags = torch_flags.of(recipe.name, module)
    body = {
        "__module__": module,
        "__qualname__": qualname,
        "__signature__": _signature(recipe, positional, flags),
        "_recipe": recipe,
        "_positional": positional,
        "_hypers": {**recipe.hypers, "maximize": _MAXIMIZE, **base._hypers},
        "_flags": flags,
        "_always": _Buffers(recipe, always=True),
        "_sometimes": _Buffers(recipe, base._sometimes, always=False),
        "_numbers": ("step", *recipe.carried),
        "_kept_numbers": tuple(recipe.over),
        "_averages": recipe.averages,
        **(further or {}),
    }
    body["__doc__"] = _documented(recipe, doc, body["_numbers"], flags)
    return type(recipe.name, (base,), body)


class _Buffers:
    """The names of the state buffers that a formula reads whatever its flags are, or of the others.

    It takes all of these choices to know, so a class has it by asking.
    """

    def __init__(self, recipe: Recipe, further: tuple[str, ...] = (), *, always: bool):
        self._recipe, self._further, self._always = recipe, further, always

    def __get__(self, instance: Any, owner: Any) -> tuple[str, ...]:
        needs = [
            {*written.states, *written.of_tensor, *written.of_all}
            for written in self._recipe.every_written()
        ]
        needed, ever = set.intersection(*needs), set.union(*needs)
        wanted = needed if self._always else ever - needed
        return (*(name for name in self._recipe.states if name in wanted), *self._further)


_MAXIMIZE = hyper.flag(False, "go up the gradient instead of down")


def _signature(
    recipe: Recipe, positional: tuple[str, ...], flags: tuple[str, ...]
) -> inspect.Signature:
    def parameter(name: str, default: Any) -> inspect.Parameter:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Parameter(
            name,
            kind if name in positional else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is REQUIRED else default,
        )

    declared = {**recipe.hypers, "maximize": _MAXIMIZE, **options.HYPERS}
    defaults = {name: hyper.default for name, hyper in declared.items()}
    defaults.update((name, torch_flags.DEFAULTS[name]) for name in flags)
    return inspect.Signature(
        [
            inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(parameter(name, default) for name, default in defaults.items()),
        ]
    )


def _positional(recipe: Recipe) -> tuple[str, ...]:
    """The hyper-parameters that may be given by position: none after one that has to be named."""
    names: list[str] = []
    for name, declared in recipe.hypers.items():
        if getattr(declared, "further", False) or (
            names
            and declared.default is REQUIRED
            and recipe.hypers[names[-1]].default is not REQUIRED
        ):
            break
        names.append(name)
    return tuple(names)


# ---- documentation ----

_PARAMS = (
    "params: a tree of arrays (nested dicts, lists, ...), or an iterable of `Parameter`s, of `(name, "
    "Parameter)` pairs, or of group dicts."
)
_OPTIONS = (
    "master_weights, state_dtype, stochastic_rounding, ema_decay, skip_nonfinite, measure_updates: how "
    "state is kept and rounded, an average of the parameters, what is done about gradients that are not "
    "finite, and whether steps are measured, see `genesis.optim.options.Options`."
)
_FLAGS = (
    "torch's, which choose among its implementations: accepted so that its code runs, and ignored."
)
_RAISES = "Raises:\n    TypeError, ValueError: a hyper-parameter or `params` that is not as above."
_SECTIONS = re.compile(r"^(Raises:|State of a parameter|Example:|References:)", re.MULTILINE)


def _documented(
    recipe: Recipe, doc: str | None, numbers: tuple[str, ...], flags: tuple[str, ...]
) -> str:
    """The docstring, with what is known of arguments, errors and state where it does not say it."""
    text = inspect.cleandoc(doc or f"{recipe.name}.")
    if "Args:" in text:
        return text
    found = _SECTIONS.search(text)
    place = len(text) if found is None else found.start()
    head, rest = text[:place].rstrip(), text[place:]
    declared = {**recipe.hypers, "maximize": _MAXIMIZE}
    entries = [_PARAMS, *(f"{name}: {hyper.entry}" for name, hyper in declared.items()), _OPTIONS]
    if flags:
        entries.append(f"{', '.join(flags)}: {_FLAGS}")
    sections = [head, "\n".join(["Args:", *map(_wrapped, entries)])]
    if "Raises:" not in rest:
        sections.append(_RAISES)
    if "State of a parameter" not in rest:
        names = ", ".join(f'"{name}"' for name in (*numbers, *recipe.states))
        sections.append(f"State of a parameter: {names or 'none'}.")
    return "\n\n".join([*sections, *([rest] if rest else [])])


def _wrapped(entry: str) -> str:
    """An entry of a list of arguments, in lines."""
    return textwrap.fill(entry, 100, initial_indent=" " * 4, subsequent_indent=" " * 8)
