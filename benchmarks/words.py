"""Figures and tables as people read them.

A record is what a workload's `Result.record` says, and what results on the disk are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

DRIFT = 0.1
"""A roofline that moves by more than this while a workload runs makes its figures doubtful."""


def amount(value: float | None, unit: str = "s") -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    if unit == "B":
        return f"{value:.3g} B"
    if unit == "x":
        return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
    if unit == "":
        return f"{value:.2f}"
    if unit == "us":
        return f"{value:.1f} us"
    for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= size:
            return (
                f"{value / size:.3g} {name}"
                if value < 1000 * size
                else f"{value / size:.0f} {name}"
            )
    return f"{value * 1e9:.0f} ns" if value else "0"


def row(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    return [row(head), "|" + "---|" * len(head), *map(row, rows)]


def cell(record: Record, name: str) -> str:
    """What a contender came to: median, spread, and how many times genesis' median that is.

    One that was measured once has no spread.
    """
    figures = record["contenders"].get(name)
    if figures is None:
        return "missing" if name in record["missing"] else ""
    unit = record["unit"]
    text = amount(figures["median"], unit)
    if figures["calls"] > 1:
        text += f" ±{figures['spread'] / (figures['median'] or 1):.0%}"
    ratio = record["ratio"].get(name)
    if ratio is not None and unit == "s":
        text += f" ({amount(ratio, 'x')})"
    return text


def fraction(record: Record) -> str:
    """How near genesis came to the roofline."""
    if record["fraction_of_roofline"] is None:
        return ""
    drift = record["roofline_drift"]
    return f"{record['fraction_of_roofline']:.2f}" + (
        f" (drifted {drift:.0%})" if drift > DRIFT else ""
    )


def peers_table(records: Sequence[Record], peers: Sequence[str]) -> list[str]:
    """A row for each workload, a column for each peer."""
    rows = [
        [record["title"], *(cell(record, name) for name in peers), fraction(record)]
        for record in records
    ]
    return table(["work", *peers, "of the roofline"], rows) if rows else []


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between the marker comments of that name.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page must have {begin!r} and, after it, {end!r}, once each")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}{end}{after}"
