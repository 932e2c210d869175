"""`transform`, and how transforms become one recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .formula import Formula
from .recipe import Numbers, Part, Recipe
from .symbols import RuleError


class Transform:
    """One part of a chain. Made by `transform`.

    Calling it gives the same with other defaults: `scale_by_adam(eps=1e-6)`.
    """

    def __init__(
        self,
        formula: Formula,
        numbers: Numbers | None,
        prefix: str = "",
        defaults: dict[str, Any] | None = None,
    ):
        self._formula, self._made_by, self._prefix = formula, numbers, prefix
        self._defaults = dict(defaults or {})
        self.__name__, self.__doc__ = formula.name, formula.doc
        self.part()

    def part(self, shared: Iterable[str] = ()) -> Part:
        """The formula under its names; those that are shared have no prefix."""
        part = Part(self._formula, self._made_by, None, self._defaults)
        own = (*part.hypers, *self._formula.states, *part.carried)
        names = {name: f"{self._prefix}{name}" for name in own if name not in shared}
        return Part(self._formula, self._made_by, names, self._defaults)

    def __call__(self, **defaults: Any) -> Transform:
        both = {**self._defaults, **defaults}
        return Transform(self._formula, self._made_by, self._prefix, both)

    def prefixed(self, prefix: str) -> Transform:
        """The same, with this before the names of its hyper-parameters and state buffers."""
        if not prefix.isidentifier():
            raise ValueError(f"a prefix must begin a name, but got {prefix!r}")
        return Transform(self._formula, self._made_by, prefix + self._prefix, self._defaults)

    def __repr__(self) -> str:
        return f"<transform {self._prefix}{self.__name__}>"


def transform(
    function: Callable | None = None,
    *,
    numbers: Callable | None = None,
    averages: Mapping[str, str] | None = None,
) -> Any:
    """Turn a function of one element into a part of a chain.

    The function takes the update so far and the parameter, `grad` as well if it names it, then its
    state buffers, and after a `*` its hyper-parameters; it returns the new update and the new state.
    All else is as for `rule`.

    Args:
        function: `function(update, param, [grad,] *state, *, hyper-parameters)`.
        numbers: a function for per-step numbers, see `rule`. Default: None.
        averages: which of its state buffers are running averages, see `rule`. Default: None, none.

    Returns:
        A `Transform`.

    Raises:
        RuleError: the function is no such formula; says in which file and line, and why.

    Example:
        >>> import genesis
        >>> @genesis.transform
        ... def halved(update, param):
        ...     return update / 2
        >>> Slow = genesis.chain(halved, genesis.transforms.scale_by_lr(lr=0.5), name="Slow")
        >>> Slow.reference(1.0, 2.0)
        (np.float64(0.5),)
    """
    if function is None:
        return lambda function: transform(function, numbers=numbers, averages=averages)
    formula = Formula(function, "transform", ("update", "param"), ("grad",), averages)
    return Transform(formula, None if numbers is None else Numbers(numbers, formula))


def composed(
    transforms: Sequence[Any], name: Any, shared: Iterable[str], file: str, line: int
) -> Recipe:
    """The recipe for transforms in a row, composed at a place in a file; see `genesis.chain`."""
    where = f"{file}:{line}: chain {name}"
    shared = (shared,) if isinstance(shared, str) else tuple(shared)
    if not isinstance(name, str) or not name.isidentifier():
        raise RuleError(f"{where}: {name!r} is no name of a class")
    if not transforms:
        raise RuleError(f"{where}: nothing is composed: give at least one transform")
    for part in transforms:
        if not isinstance(part, Transform):
            raise RuleError(
                f"{where}: {part!r} is no transform: decorate the function with genesis.transform"
            )
    parts = [transform.part(shared) for transform in transforms]
    _check_names(parts, shared, where)
    return Recipe(name, parts, file, line)


def _check_names(parts: list[Part], shared: tuple[str, ...], where: str) -> None:
    """Raise RuleError where two parts have a name in common that is not declared as shared."""
    owners: dict[str, Part] = {}
    for part in parts:
        named = {part.outside(n): h for n, h in part.hypers.items()}
        others = [part.outside(n) for n in (*part.formula.states, *part.carried)]
        for name in (*named, *others):
            if name not in owners:
                owners[name] = part
                continue
            both = f"{owners[name].formula.name} and {part.formula.name} both have {name!r}"
            if name not in shared:
                raise RuleError(
                    f'{where}: {both}: tell them apart, {part.formula.name}.prefixed("other_"), or '
                    f"say that it is one hyper-parameter, shared=[{name!r}]"
                )
            before = {owners[name].outside(n): h for n, h in owners[name].hypers.items()}
            if name not in named or name not in before:
                raise RuleError(f"{where}: {both}: only hyper-parameters can be shared")
            if named[name] != before[name]:
                raise RuleError(
                    f"{where}: {both}, which is shared, but its default or range differs: "
                    f"{before[name].entry} and {named[name].entry}"
                )
    for name in shared:
        if name not in owners:
            raise RuleError(f"{where}: no part has {name!r}, which is declared as shared")
