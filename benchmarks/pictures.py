"""Pictures of results: bars of each contender's median, in a panel for each workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from words import Record, amount

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = {
    "genesis": "#0072B2",
    "torch fused": "#E69F00",
    "torch eager, fused": "#E69F00",
    "torch foreach": "#F0C766",
    "torch eager": "#F0C766",
    "torch for-loop": "#F7E3B2",
    "torch compiled": "#CC79A7",
    "JAX, jitted, rows by hand": "#56B4E9",
    "JAX and optax, jitted": "#009E73",
    "optax": "#009E73",
    "NumPy": "#999999",
}


def chart(records: Sequence[Record], path: Path, columns: int = 2, width: float = 11.0) -> None:
    """A panel for each record; nothing is drawn where there is none."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not records:
        return
    columns = min(columns, len(records))
    rows = -(-len(records) // columns)
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, 2.5 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axes, record in zip(grid.flat, records):
        _panel(axes, record)
    for axes in list(grid.flat)[len(records) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def grouped(
    panels: Mapping[str, Mapping[str, Record]],
    names: Sequence[str],
    path: Path,
    width: float = 11.0,
) -> None:
    """A panel for each title, in which each label has a bar for each of the contenders."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, row = plt.subplots(
        1, len(panels), figsize=(width, 3.6), squeeze=False, sharey=True, layout="constrained"
    )
    height = 0.8 / len(names)
    for axes, (title, records) in zip(row.flat, panels.items()):
        places = np.arange(len(records))
        most = max(
            figures["median"] + figures["spread"]
            for record in records.values()
            for figures in record["contenders"].values()
        )
        scale, unit = _unit(most)
        for i, name in enumerate(names):
            figures = [record["contenders"].get(name) for record in records.values()]
            where = places + (i - (len(names) - 1) / 2) * height
            there = [(y, f) for y, f in zip(where, figures) if f is not None]
            _bars(axes, [y for y, _ in there], [f for _, f in there], scale, height, name)
            for y, f in there:
                _annotate(axes, amount(f["median"]), (f["median"] + f["spread"]) * scale, y, 8)
        axes.set_yticks(places, list(records))
        axes.set_xlim(0, most * scale * 1.3)
        axes.set_xlabel(f"median, {unit}")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    row.flat[0].invert_yaxis()
    handles = row.flat[0].get_legend_handles_labels()
    figure.legend(*handles, ncols=len(names), loc="outside upper right", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _unit(most: float) -> tuple[float, str]:
    return (1e3, "ms") if most >= 1e-3 else (1e6, "us")


def _bars(
    axes: Any,
    places: Sequence[float],
    figures: Sequence[Mapping[str, float]],
    scale: float,
    height: float,
    name: str | Sequence[str],
) -> None:
    """Bars of medians, with half the interquartile range to either side."""
    colours = COLOURS[name] if isinstance(name, str) else [COLOURS[each] for each in name]
    axes.barh(
        places,
        [each["median"] * scale for each in figures],
        height,
        xerr=[each["spread"] * scale for each in figures],
        color=colours,
        edgecolor="#444444",
        linewidth=0.5,
        error_kw={"ecolor": "#444444", "linewidth": 1},
        label=name if isinstance(name, str) else None,
    )


def _annotate(axes: Any, text: str, value: float, place: float, size: int) -> None:
    axes.annotate(
        text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=size
    )


def _panel(axes: Any, record: Record) -> None:
    contenders = record["contenders"]
    names = [name for name in COLOURS if name in contenders]
    figures = [contenders[name] for name in names]
    most = max(each["median"] for each in figures)
    scale, unit = _unit(most)
    _bars(axes, range(len(names)), figures, scale, 0.8, names)
    for place, (name, each) in enumerate(zip(names, figures)):
        text = amount(each["median"])
        if place and name in record["ratio"]:
            text += f"  ({amount(record['ratio'][name], 'x')})"
        _annotate(axes, text, (each["median"] + each["spread"]) * scale, place, 9)
    limit = record["roofline"]
    if limit is not None and limit > 0.02 * most:
        axes.axvline(limit * scale, color="#D55E00", linestyle="--", linewidth=1.3)
        axes.annotate(
            "roofline",
            (limit * scale, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -1),
            textcoords="offset points",
            color="#B04A00",
            fontsize=8,
            va="top",
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(each["median"] + each["spread"] for each in figures) * scale * 1.45)
    axes.set_xlabel(f"median, {unit}")
    axes.set_title(record["title"], loc="left", fontsize=11, fontweight="bold")
    axes.margins(y=0.12)
