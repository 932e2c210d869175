"""Run the benchmarks and write what they show: `python benchmarks/report.py [--quick]`.

Writes `benchmarks/results/<machine>.json`, `.md` and `.png`; `--readme` puts a few headline figures into
README.md, between its marker comments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import bars
import numpy as np
from workloads import PRANGE, ROOFLINES, WORKLOADS, Result, measure

import genesis
from genesis.progress import Progress

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

DRIFT = 0.1
"""A roofline that moves by more than this while a workload runs makes its figures doubtful."""

QUICK_LEAVES_OUT = ("optax", "NumPy", "torch for-loop", PRANGE)
QUICK_SHARE = 0.3

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = {
    "genesis": "#0072B2",
    "torch fused": "#E69F00",
    "torch foreach": "#F0C766",
    "torch for-loop": "#F7E3B2",
    "optax": "#009E73",
    "NumPy": "#999999",
}
PANELS = (
    "step/AdamW/resnet50",
    "step/AdamW/vit_b_16",
    "step/AdamW/gpt2",
    "clip+step+zero/AdamW/resnet50",
    "step/AdamW/tiny1000",
    "clip+step+zero/AdamW/tiny1000",
)
HEADLINES = (
    "size/1x1",
    "clip+step+zero/AdamW/mlp",
    "fresh/AdamW/tiny1000",
    "step/SGD-momentum/resnet50",
    "step/AdamW/resnet50",
    "clip+step+zero/AdamW/resnet50",
    "step/NAdam/resnet50",
)


# ---- the machine ----


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a reader needs to know about the machine and the run."""
    versions = {"python": platform.python_version()}
    for package in ("genesis-optim", "numpy", "numba", "torch", "jax", "optax"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "processor": processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": genesis.get_num_threads(),
        "load": os.getloadavg(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def machine_name(about: Mapping[str, Any]) -> str:
    """A file name for results of this machine."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{about['processor']} {about['threads']} cores".lower())
    return name.strip("-")


# ---- words ----


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


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, rows)]


def _cell(result: Result, name: str) -> str:
    figures = result.record()["contenders"].get(name)
    if figures is None:
        return "" if name not in result.workload.contenders else "missing"
    unit = result.workload.unit
    text = f"{amount(figures['median'], unit)} ±{figures['spread'] / (figures['median'] or 1):.0%}"
    ratio = result.ratio(name)
    if name != "genesis" and ratio is not None and unit == "s":
        text += f" ({amount(ratio, 'x')})"
    return text


def _peers_table(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    """A row for each workload, a column for each peer."""
    rows = []
    for result in results:
        fraction = "" if result.fraction is None else f"{result.fraction:.2f}"
        if result.drift > DRIFT:
            fraction += f" (drifted {result.drift:.0%})"
        cells = [_cell(result, name) for name in peers]
        rows.append([result.workload.title, *cells, fraction])
    return _table(["work", *peers, "of the roofline"], rows) if rows else []


def _speed_tables(results: Sequence[Result]) -> list[str]:
    """A table of those workloads in which peers compete, and lists of the others."""
    peers = list(COLOURS)
    shared = [r for r in results if r.samples and set(r.samples) & set(peers[1:])]
    shared = [r for r in shared if set(r.workload.contenders) <= {*peers, *ROOFLINES}]
    lines = _peers_table(shared, peers)
    others = [r for r in results if r.samples and r not in shared]
    if others:
        rows = [
            [result.workload.title, name, _cell(result, name)]
            for result in others
            for name in result.samples
        ]
        lines += ["", *_table(["other work", "contender", "figure"], rows)]
    return lines


def _bar_table(verdicts: Sequence[bars.Verdict]) -> list[str]:
    rows = []
    for bar, figure, holds in verdicts:
        if figure is not None:
            bound = f"{'at least' if bar.least else 'at most'} {amount(bar.bound, bar.unit)}"
            word = "yes" if holds else "**no**"
            value = amount(figure.value, bar.unit)
            rows.append([str(bar.issue), bar.claim, bound, value, word, figure.remark])
    lines = _table(["issue", "claim", "bar", "measured", "holds", "remark"], rows)
    others = [bar.claim for bar, figure, _ in verdicts if figure is None]
    if others:
        lines += ["", f"Not measured in this run ({len(others)}): {'; '.join(others)}."]
    return lines


def _missing(results: Sequence[Result]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.error:
            reasons.setdefault(("all", result.error), []).append(result.workload.title)
        for name, reason in result.missing.items():
            reasons.setdefault((name, reason), []).append(result.workload.title)
    return [
        f"- {name}: {reason} ({titles[0] if len(titles) == 1 else f'{len(titles)} workloads'})"
        for (name, reason), titles in reasons.items()
    ]


def markdown(
    results: Sequence[Result], about: Mapping[str, Any], picture: str, arguments: str
) -> str:
    """The report as Markdown, without a heading."""
    versions = about["versions"]
    load = max([r.load for r in results], default=0.0)
    lines = [
        f"{about['processor']}, {about['threads']} threads on {about['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {about['time']}, `python benchmarks/report.py{arguments}`. "
        f"Load before the run {about['load'][0]:.1f}, and at most {load:.1f} when a workload began.",
        "",
        f"![time of each contender]({picture})",
        "",
        "Each cell: the median, half the interquartile range beside it, and in brackets how many times "
        "genesis' time that is. Contenders took turns. The roofline moves the same bytes and computes "
        "next to nothing.",
        "",
        *_speed_tables(results),
    ]
    drifted = [r.workload.title for r in results if r.drift > DRIFT]
    if drifted:
        lines += [
            "",
            f"The roofline drifted by more than {DRIFT:.0%} during: {'; '.join(drifted)}.",
        ]
    return "\n".join(lines) + "\n"


def headlines(results: Sequence[Result], about: Mapping[str, Any], path: Path) -> str:
    """What the README shows: few workloads, and where the others are."""
    peers = [name for name in COLOURS if name != "torch for-loop"]
    shown = [r for r in results if r.workload.name in HEADLINES and r.samples]
    where = Path(os.path.relpath(path, README.parent)).with_suffix("").as_posix()
    lines = [
        f"![time of each contender]({where}.png)",
        "",
        *_peers_table(shown, peers),
        "",
        f"{about['processor']}, {about['threads']} threads, {about['time']}: medians, half the "
        "interquartile range, and how many times genesis' time that is; the roofline moves the same "
        f"bytes and computes next to nothing. [All workloads, versions and bars]({where}.md).",
    ]
    return "\n".join(lines) + "\n"


def appendix(results: Sequence[Result], verdicts: Sequence[bars.Verdict]) -> str:
    """Bars, and what is missing."""
    missing = _missing(results)
    lines = ["", "## Bars", "", *_bar_table(verdicts)]
    if missing:
        lines += ["", "## Missing", "", *missing]
    return "\n".join(lines) + "\n"


# ---- the picture ----


def chart(results: Mapping[str, Result], path: Path) -> None:
    """Bars of each contender's median in a panel for each of some workloads, and of all optimizers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [results[name] for name in PANELS if name in results and results[name].samples]
    if not panels:
        panels = [r for r in results.values() if "genesis" in r.samples and len(r.samples) > 1][:6]
    rows = -(-len(panels) // 2)
    if not rows:
        return
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(
        rows, 2, figsize=(11, 2.5 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axes, result in zip(grid.flat, panels):
        _panel(axes, result)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes: Any, result: Result) -> None:
    names = [name for name in COLOURS if name in result.samples]
    medians = [result.median(name) or 0.0 for name in names]
    scale, unit = (1e3, "ms") if max(medians) >= 1e-3 else (1e6, "us")
    spread = np.array([np.quantile(result.samples[name], (0.25, 0.75)) for name in names]).T
    errors = np.abs(spread - np.array(medians)) * scale
    heights = [value * scale for value in medians]
    places = range(len(names))
    axes.barh(
        places,
        heights,
        xerr=errors.tolist(),  # Matplotlib looks into its rows, of which an array of one is no number
        color=[COLOURS[name] for name in names],
        edgecolor="#444444",
        linewidth=0.5,
        error_kw={"ecolor": "#444444", "linewidth": 1},
    )
    ours = medians[0]
    for place, value, error in zip(places, medians, errors[1]):
        text = amount(value)
        if place and names[0] == "genesis":
            text += f"  ({amount(value / ours, 'x')})"
        axes.annotate(
            text,
            (value * scale + error, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    limit = result.roofline
    if limit is not None and limit > 0.02 * max(medians):
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
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(h + e for h, e in zip(heights, errors[1])) * 1.38)
    axes.set_xlabel(f"median, {unit}")
    axes.set_title(result.workload.title, loc="left", fontsize=11, fontweight="bold")
    axes.margins(y=0.12)


# ---- README ----


def fill_readme(text: str, report: str) -> str:
    """`text` with `report` between the marker comments.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README must have {BEGIN!r} and, after it, {END!r}, once each")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{report}{END}{after}"


# ---- the run ----


def chosen(patterns: Sequence[str], quick: bool) -> list[str]:
    """Names of workloads: those that match a pattern, else the quick ones, else all."""
    if patterns:
        return [name for name in WORKLOADS if any(fnmatch(name, p) for p in patterns)]
    return [name for name, workload in WORKLOADS.items() if workload.quick or not quick]


def run(
    names: Sequence[str], share: float, leave_out: Sequence[str], bar: bool = True
) -> list[Result]:
    """Measure workloads, with a progress bar; Ctrl-C ends it early, with what there is."""
    found = []
    for name in (progress := Progress(names, unit="workloads", shown=bar)):
        progress.note = name
        try:
            found.append(measure(WORKLOADS[name], share, leave_out))
        except KeyboardInterrupt:
            break
        except Exception as error:  # one broken workload must not cost all the others
            progress.write(f"{name}: {error!r}")
            found.append(Result(WORKLOADS[name], error=f"failed: {error!r}", failed=True))
    return found


def write(
    results: Sequence[Result], about: Mapping[str, Any], name: str, arguments: str = ""
) -> tuple[Path, str]:
    """Write JSON, Markdown and PNG; returns the Markdown's path and the part for the README."""
    RESULTS.mkdir(exist_ok=True)
    by_name = {result.workload.name: result for result in results}
    verdicts = bars.judge(by_name)
    record = {
        "machine": about,
        "workloads": {key: result.record() for key, result in by_name.items()},
        "bars": [
            {
                "issue": bar.issue,
                "claim": bar.claim,
                "bound": bar.bound,
                "least": bar.least,
                "unit": bar.unit,
                "measured": None if figure is None else figure.value,
                "remark": "" if figure is None else figure.remark,
                "holds": holds,
            }
            for bar, figure, holds in verdicts
        ],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    picture = RESULTS / f"{name}.png"
    chart(by_name, picture)
    path = RESULTS / f"{name}.md"
    body = markdown(results, about, picture.name, arguments)
    path.write_text(f"# {name}\n\n{body}{appendix(results, verdicts)}")
    return path, headlines(results, about, path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", help="names or patterns, such as 'step/*/resnet50'")
    parser.add_argument("--quick", action="store_true", help="a few workloads, in two minutes")
    parser.add_argument("--seconds", type=float, default=1.0, help="multiply each workload's time")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="CONTENDER",
        help="leave one out, as 'optax'",
    )
    parser.add_argument("--list", action="store_true", help="only name the workloads")
    parser.add_argument("--name", help="name of the results' files (default: the machine)")
    parser.add_argument("--readme", action="store_true", help="put headline figures into README.md")
    given = parser.parse_args(arguments)
    names = chosen(given.workloads, given.quick)
    if not names:
        parser.error(f"no workload is called {' or '.join(given.workloads)}; see --list")
    if given.list:
        for name in names:
            print(f"{name:34} {WORKLOADS[name].title}")
        return 0
    if given.readme:
        fill_readme(README.read_text(), "")  # fails before the work, not after it
    about = machine()
    share = given.seconds * (QUICK_SHARE if given.quick else 1.0)
    left_out = [*given.without, *(QUICK_LEAVES_OUT if given.quick else ())]
    results = run(names, share, left_out)
    words = [shlex.quote(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    name = given.name or machine_name(about)
    path, shown = write(results, about, name, "".join(f" {word}" for word in words))
    if given.readme:
        README.write_text(fill_readme(README.read_text(), shown))
    print(path.read_text())
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
