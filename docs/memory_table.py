"""The table in choosing.md, from the table of cases: `python docs/memory_table.py` rewrites it.

Each kind of state that the cases of an optimizer have is one row. What a parameter keeps is looked up
in the optimizer itself, after one step in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import genesis

HERE = Path(__file__).parent
PAGE = HERE / "choosing.md"
BEGIN, END = "<!-- memory table: begin -->\n", "<!-- memory table: end -->\n"

sys.path.insert(0, str(HERE.parent / "tests"))
from cases import CASES, Case  # noqa: E402


def buffers(case: Case) -> dict[str, int]:
    """The bytes an element of each state buffer, with a float32 parameter."""
    p = genesis.Parameter(np.ones(1024, np.float32))
    p.grad = np.ones(1024, np.float32)
    state = case.make([p]).step().state.get(p, {})
    return {name: b.nbytes // 1024 for name, b in state.items() if isinstance(b, np.ndarray)}


def sums(case: Case) -> bool:
    """Whether a step sums up each tensor before."""
    opt = case.make([genesis.Parameter(np.ones(1, np.float32))])
    return opt._recipe.written_for(opt.param_groups[0]).sums is not None


def rows() -> list[str]:
    """The lines of the table: optimizers in alphabetical order, each from little state to much."""
    kinds = {}
    passes: dict[tuple, set[int]] = {}
    for case in CASES:
        found = buffers(case)
        kind = case.name, tuple(found)
        kinds[kind] = sum(found.values())
        passes.setdefault(kind, set()).add(1 + sums(case))
    lines = [
        "| optimizer | state buffers | bytes of state a parameter | bytes moved a parameter and step |",
        "|---|---|---|---|",
    ]
    order = sorted(kinds.items(), key=lambda kind: (kind[0][0].lower(), kind[1]))
    for (name, names), kept in order:
        shown = ", ".join(f"`{b}`" for b in names) or "none"
        # The gradient is read; the parameter and its state are read and written. Where a tensor is
        # summed up, everything is read once more before.
        moved = [4 + 2 * 4 + 2 * kept + (n - 1) * (8 + kept) for n in sorted(passes[name, names])]
        lines.append(f"| `{name}` | {shown} | {kept} | {' or '.join(map(str, moved))} |")
    return lines


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n".join([*rows(), ""]) + END + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
