"""Put results into README.md and docs/benchmarks.md: `python benchmarks/pages.py RESULTS.json...`

Results are what `report.py` writes to `benchmarks/results/`. Of several files the later ones count for
the workloads that they have. Sections of the page of which nothing was measured stay as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import loops
import pictures
import shapes
import starts
import training
import words
from words import Record

ROOT = Path(__file__).parents[1]
README, PAGE, PICTURES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs/pictures"

Records = Mapping[str, Record]
"""Results by the names of their workloads, each with what is known of the machine as "machine"."""

RACES = {
    "mlp": "A small classifier",
    "rnn": "A character RNN",
    "rows": "Logistic regression on sparse rows",
}
STEPS = (
    "size/1x1",
    "clip+step+zero/AdamW/mlp",
    "fresh/AdamW/tiny1000",
    "step/SGD-momentum/resnet50",
    "step/AdamW/resnet50",
    "clip+step+zero/AdamW/resnet50",
    "step/NAdam/resnet50",
)
PANELS = (
    "step/AdamW/resnet50",
    "step/AdamW/vit_b_16",
    "step/AdamW/gpt2",
    "clip+step+zero/AdamW/resnet50",
    "step/AdamW/tiny1000",
    "clip+step+zero/AdamW/tiny1000",
)
PEERS = ("genesis", "torch fused", "torch foreach", "optax", "NumPy")

HEADLINES = {
    "train/mlp": "training a 64-128-64-10 network, an iteration",
    "train/rnn": "training a character RNN, an iteration",
    "train/rows": "logistic regression on sparse rows, an iteration",
    "size/1x1": "AdamW step of one tensor of 1: what Python costs",
    "clip+step+zero/AdamW/mlp": "MLP: clip + AdamW step + zero",
    "compiled/AdamW/tiny1000": "1000 small tensors: AdamW step",
    "loop/products-12ms/tiny1000": "the same, 12 ms of other work after the last",
    "compiled/AdamW/resnet50": "ResNet-50: AdamW step",
    "clip+step+zero/AdamW/resnet50": "ResNet-50: clip + AdamW step + zero",
    "start/first step/resnet50": "ResNet-50: from nothing to the first step",
}
"""What the README's table shows, and how it says it."""

COMPILED = (starts.COMPILED, starts.COMPILED_COLD, starts.COMPILED_KEPT)
KINDS: dict[str, Callable[[str], bool]] = {
    "genesis": lambda name: name == "genesis",
    "torch eager": lambda name: name.startswith("torch") and name not in COMPILED,
    "torch.compile": lambda name: name in COMPILED,
    "JAX, jitted": lambda name: name.startswith(("JAX", "optax")),
    "NumPy": lambda name: name == "NumPy",
}
"""The columns of the README's table: which contenders each is about."""


def read(files: Sequence[Path]) -> dict[str, Record]:
    """The records of some results, each with its machine."""
    found: dict[str, Record] = {}
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        for name, record in results["workloads"].items():
            if record["contenders"] or record["missing"]:
                found[name] = {**record, "machine": results["machine"]}
    return found


def _caption(records: Sequence[Record], packages: Sequence[str] = ()) -> str:
    """Where and when some results were taken, and how busy the machine was."""
    times: dict[str, list[str]] = {}
    for machine in (record["machine"] for record in records):
        versions = "".join(f", {each} {machine['versions'][each]}" for each in packages)
        where = f"{machine['processor']}, {machine['threads']} threads{versions}"
        times.setdefault(where, []).append(machine["time"])
    said = [f"{where}, {' to '.join(sorted({min(t), max(t)}))}" for where, t in times.items()]
    load = max(record["load"] for record in records)
    return f"{'; '.join(said)}; load up to {load:.1f} when a workload began"


def _reasons(records: Records, titles: Mapping[str, str], names: Callable[[str], bool]) -> str:
    """Why some contenders are missing in a table."""
    found = [
        f"{titles[key]}, {name}: {reason}"
        for key, record in records.items()
        for name, reason in record["missing"].items()
        if names(name)
    ]
    return f" Missing: {'; '.join(found)}." if found else ""


LEGEND = "medians, half the interquartile range, and how many times genesis' time that is"


# ---- the sections of the page ----


def race(name: str, records: Records) -> list[str]:
    """A race with one thread and with default threads: a picture and a table."""
    words_of = {"1": "one thread", "default": "default threads"}
    keys = {"1": f"train/{name}", "default": f"train/{name}/default-threads"}
    found = {words_of[threads]: records[key] for threads, key in keys.items() if key in records}
    if not found:
        return []
    picture = PICTURES / f"race-{name}.png"
    pictures.chart([{**record, "title": words} for words, record in found.items()], picture)
    contenders = list(training.RACES[name].contenders())
    rows = [[each, *(words.cell(record, each) for record in found.values())] for each in contenders]
    packages = ("numpy", "torch", "jax", "optax")
    return [
        f"![Time of an iteration by each contender](pictures/{picture.name})",
        "",
        *words.table(["an iteration", *found], rows),
        "",
        f"{_caption(list(found.values()), packages)}: {LEGEND}.",
    ]


def loop(records: Records) -> list[str]:
    """Steps after other work: a picture, and a row for each kind of it."""
    names = ("genesis", "torch fused")
    panels: dict[str, dict[str, Record]] = {}
    rows = []
    for model in loops.MODELS:
        for key, between in loops.BETWEEN.items():
            record = records.get(f"loop/{key}/{model}")
            if record is None or not record["contenders"]:
                continue
            panels.setdefault(shapes.TITLES[model], {})[between.words] = record
            rows.append(
                [
                    shapes.TITLES[model],
                    between.words,
                    *(words.cell(record, each) for each in names),
                ]
            )
    if not rows:
        return []
    picture = PICTURES / "loop.png"
    pictures.grouped(panels, names, picture)
    shown = [record for panel in panels.values() for record in panel.values()]
    return [
        f"![Time of a step after other work](pictures/{picture.name})",
        "",
        *words.table(["AdamW step", "when", *names], rows),
        "",
        f"{_caption(shown)}: {LEGEND}.",
    ]


def first_step(records: Records) -> list[str]:
    """What a new process waits for, by model and contender."""
    titles = {
        "start/first step": "one tensor of 1000",
        "start/first step/tiny1000": shapes.TITLES["tiny1000"],
        "start/first step/resnet50": shapes.TITLES["resnet50"],
    }
    names = ("genesis", "genesis, cold", "torch fused", *COMPILED[:0:-1], "optax")
    head = {"optax": "JAX and optax, jitted"}
    found = {key: records[key] for key in titles if key in records}
    return _compared(found, titles, names, head, "AdamW")


def compiled(records: Records) -> list[str]:
    """Steps beside those that torch has compiled."""
    titles = {f"compiled/AdamW/{each}": shapes.TITLES[each] for each in ("tiny1000", "resnet50")}
    names = ("genesis", "torch fused", starts.COMPILED, "optax", "NumPy")
    found = {key: records[key] for key in titles if key in records}
    return _compared(found, titles, names, {}, "AdamW step")


def _compared(
    found: Records,
    titles: Mapping[str, str],
    names: Sequence[str],
    head: Mapping[str, str],
    corner: str,
) -> list[str]:
    """A row for each workload, a column for each contender, and why some are missing."""
    if not found:
        return []
    rows = [[titles[key], *(words.cell(r, name) for name in names)] for key, r in found.items()]
    packages = ("numba", "torch", "jax", "optax")
    return [
        *words.table([corner, *(head.get(name, name) for name in names)], rows),
        "",
        f"{_caption(list(found.values()), packages)}: {LEGEND}."
        + _reasons(found, titles, names.__contains__),
    ]


def steps(records: Records) -> list[str]:
    """Steps by themselves, beside all peers."""
    shown = [records[name] for name in STEPS if name in records]
    if not shown:
        return []
    picture = PICTURES / "steps.png"
    pictures.chart([records[name] for name in PANELS if name in records], picture)
    return [
        f"![Time of each contender](pictures/{picture.name})",
        "",
        *words.peers_table(shown, PEERS),
        "",
        f"{_caption(shown, ('numba', 'torch', 'optax'))}: {LEGEND}; the roofline moves the same bytes "
        "and computes next to nothing.",
    ]


SECTIONS: dict[str, Callable[[Records], list[str]]] = {
    **{f"race {name}": lambda records, name=name: race(name, records) for name in RACES},
    "loop": loop,
    "first step": first_step,
    "compiled": compiled,
    "steps": steps,
}


PARTS = (*SECTIONS, "README")


# ---- the README ----


def _fastest(record: Record, kind: str) -> str:
    """The fastest contender of a kind; of those that compile, the one that had not compiled before."""
    names = [name for name in (*record["contenders"], *record["missing"]) if KINDS[kind](name)]
    if starts.COMPILED_COLD in names:
        names = [starts.COMPILED_COLD]
    there = [name for name in names if name in record["contenders"]]
    if there:
        name = min(there, key=lambda each: record["contenders"][each]["median"])
        return words.cell(record, name)
    return words.cell(record, names[0]) if names else ""


def headlines(records: Records) -> list[str]:
    """One picture and ten lines; nothing unless all of them were measured."""
    if any(name not in records for name in HEADLINES):
        return []
    shown = {name: records[name] for name in HEADLINES}
    picture = PICTURES / "races.png"
    races = [{**records[f"train/{name}"], "title": title} for name, title in RACES.items()]
    pictures.chart(races, picture, columns=3, width=17)
    rows = [
        [HEADLINES[name], *(_fastest(record, kind) for kind in KINDS)]
        for name, record in shown.items()
    ]
    return [
        f"![Time of an iteration by each contender](docs/pictures/{picture.name})",
        "",
        *words.table(["work", *KINDS], rows),
        "",
        f"{_caption(list(shown.values()))}: {LEGEND}; of each kind the fastest. Iterations on one "
        "thread; torch.compile starts with nothing compiled, genesis with what it has kept on disk."
        + _reasons(shown, HEADLINES, (starts.COMPILED, starts.COMPILED_COLD).__contains__),
    ]


def write(records: Records, wanted: Sequence[str] = PARTS) -> list[str]:
    """Fill those parts that are wanted with what there is; returns which were filled."""
    done = []
    page = PAGE.read_text(encoding="utf-8")
    for name, section in SECTIONS.items():
        if name in wanted and (lines := section(records)):
            page = words.fill(page, name, "\n".join(lines) + "\n")
            done.append(name)
    PAGE.write_text(page, encoding="utf-8")
    if "README" in wanted and (lines := headlines(records)):
        readme = README.read_text(encoding="utf-8")
        README.write_text(words.fill(readme, "benchmarks", "\n".join(lines) + "\n"), "utf-8")
        done.append("README")
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="what report.py has written")
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="fill this one only; may be given again"
    )
    given = parser.parse_args(arguments)
    done = write(read(given.results), given.part or PARTS)
    print(f"filled: {', '.join(done) or 'nothing'}")


if __name__ == "__main__":
    main()
