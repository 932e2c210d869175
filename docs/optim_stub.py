"""Write `genesis/optim/__init__.pyi`, which shows type checkers what `genesis.rule` makes of formulas.

    python docs/optim_stub.py

A test fails when the stub is not what this makes of the classes.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import genesis
from genesis import optim

PLACE = Path(optim.__file__).with_suffix(".pyi")
_HEAD = '''"""Made by `python docs/optim_stub.py`: what type checkers see of `genesis.optim`."""

from collections.abc import Callable, Iterable
from typing import Any

'''


def stub() -> str:
    """The text of the stub."""
    homes = optim._HOMES.items()
    made = {n: kind for n, _ in homes if _is_made(kind := getattr(optim, n))}
    imports = [f"from . import {name} as {name}" for name in optim._MODULES]
    imports += [f"from .{home} import {name} as {name}" for name, home in homes if name not in made]
    bases = {kind.__base__ for kind in made.values()} - {optim.RuleOptimizer}
    imports += [f"from .{base.__module__.split('.')[-1]} import {base.__name__}" for base in bases]
    text = _HEAD + "\n".join(sorted(imports, key=_order)) + "\n"
    return text + "".join(_class(name, kind) for name, kind in made.items())


def _is_made(kind: object) -> bool:
    return (
        isinstance(kind, type) and issubclass(kind, optim.RuleOptimizer) and "_recipe" in vars(kind)
    )


def _order(line: str) -> tuple:
    """The order in which a linter wants imports."""
    _, module, _, name, *_ = line.split()
    return module, not name.isupper(), not name[0].isupper(), name


def _class(name: str, kind: type[optim.RuleOptimizer]) -> str:
    declared = {**kind._hypers, **kind._options}
    lines = [f"\nclass {name}({kind.__base__.__name__}):", "    def __init__(", "        self,"]
    keyword_only = False
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("        *,")
        hyper = declared.get(parameter.name)
        if parameter.name in kind._flags:
            annotation = "bool | None" if parameter.default is None else "bool"
        else:
            annotation = "Iterable[Any]" if hyper is None else hyper.annotation
        # Infinity has no name of its own: stubs say "..." of what they do not spell out.
        shown = "..." if parameter.default == math.inf else repr(parameter.default)
        default = "" if parameter.default is parameter.empty else f" = {shown}"
        lines.append(f"        {parameter.name}: {annotation}{default},")
    return "\n".join([*lines, "    ) -> None: ...", ""])


if __name__ == "__main__":
    PLACE.write_text(stub())
    print(f"{PLACE} has {len(optim.__all__)} names, genesis {genesis.__version__}")
