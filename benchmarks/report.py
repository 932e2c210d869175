"""Run the benchmarks and write what they show: `python benchmarks/report.py [--quick]`.

Writes `benchmarks/results/<machine>.json`, `.md` and `.png`; with `--pages` what was measured goes into
docs/benchmarks.md and README.md too (see `pages`).
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
import pages
import pictures
import starts
from contest import PRANGE, ROOFLINES, Result, measure
from words import DRIFT, amount, cell, peers_table, table
from workloads import WORKLOADS

import genesis
from genesis.progress import Progress

RESULTS = Path(__file__).parent / "results"

QUICK_LEAVES_OUT = ("optax", "NumPy", "torch for-loop", PRANGE)
QUICK_SHARE = 0.3
PEERS = ("genesis", "torch fused", "torch foreach", "torch for-loop", "optax", "NumPy")


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


def _speed_tables(results: Sequence[Result]) -> list[str]:
    """A table of those workloads in which peers compete, and lists of the others."""
    shared = [r for r in results if r.samples and set(r.samples) & set(PEERS[1:])]
    shared = [r for r in shared if set(r.workload.contenders) <= {*PEERS, *ROOFLINES}]
    lines = peers_table([r.record() for r in shared], PEERS)
    others = [r for r in results if r.samples and r not in shared]
    if others:
        rows = [
            [result.workload.title, name, cell(result.record(), name)]
            for result in others
            for name in result.samples
        ]
        lines += ["", *table(["other work", "contender", "figure"], rows)]
    return lines


def _bar_table(verdicts: Sequence[bars.Verdict]) -> list[str]:
    rows = []
    for bar, figure, holds in verdicts:
        if figure is not None:
            bound = f"{'at least' if bar.least else 'at most'} {amount(bar.bound, bar.unit)}"
            word = "yes" if holds else "**no**"
            value = amount(figure.value, bar.unit)
            rows.append([str(bar.issue), bar.claim, bound, value, word, figure.remark])
    lines = table(["issue", "claim", "bar", "measured", "holds", "remark"], rows)
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


def appendix(results: Sequence[Result], verdicts: Sequence[bars.Verdict]) -> str:
    """Bars, and what is missing."""
    missing = _missing(results)
    lines = ["", "## Bars", "", *_bar_table(verdicts)]
    if missing:
        lines += ["", "## Missing", "", *missing]
    return "\n".join(lines) + "\n"


def chart(results: Mapping[str, Result], path: Path) -> None:
    """Draw some workloads that are shown if they were measured, else the first of a few contenders."""
    panels = [results[name] for name in pages.PANELS if name in results and results[name].samples]
    if not panels:
        panels = [r for r in results.values() if "genesis" in r.samples and len(r.samples) > 1][:6]
    pictures.chart([result.record() for result in panels], path)


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
) -> tuple[Path, Path]:
    """Write JSON, Markdown and PNG; returns the path of the JSON and of the Markdown."""
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
    figures = RESULTS / f"{name}.json"
    figures.write_text(json.dumps(record, indent=1) + "\n")
    picture = RESULTS / f"{name}.png"
    chart(by_name, picture)
    path = RESULTS / f"{name}.md"
    body = markdown(results, about, picture.name, arguments)
    path.write_text(f"# {name}\n\n{body}{appendix(results, verdicts)}")
    return figures, path


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
    parser.add_argument(
        "--patience",
        type=float,
        default=starts.PATIENCE,
        metavar="SECONDS",
        help="how long torch may compile a step (default: %(default)s)",
    )
    parser.add_argument("--list", action="store_true", help="only name the workloads")
    parser.add_argument("--name", help="name of the results' files (default: the machine)")
    parser.add_argument(
        "--pages", action="store_true", help="put figures into docs/benchmarks.md and README.md"
    )
    given = parser.parse_args(arguments)
    names = chosen(given.workloads, given.quick)
    if not names:
        parser.error(f"no workload is called {' or '.join(given.workloads)}; see --list")
    if given.list:
        for name in names:
            print(f"{name:34} {WORKLOADS[name].title}")
        return 0
    about = machine()
    share = given.seconds * (QUICK_SHARE if given.quick else 1.0)
    left_out = [*given.without, *(QUICK_LEAVES_OUT if given.quick else ())]
    starts.PATIENCE = given.patience
    results = run(names, share, left_out)
    words = [shlex.quote(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    name = given.name or machine_name(about)
    figures, path = write(results, about, name, "".join(f" {word}" for word in words))
    print(path.read_text())
    if given.pages:
        pages.main([str(figures)])
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
