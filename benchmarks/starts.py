"""Workloads: what a new process waits for. Imports, the first step, and who compiles it.

Each is found in a process of its own (see `probes` and `compiled`). What takes minutes is measured once.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import peers
import shapes
from compiled import SETTLING
from contest import Contest, Workload
from peers import ADAMW, Missing
from timing import Call, median, turn
from worker import Worker

import genesis
from genesis import trials

HERE = Path(__file__).parent

PATIENCE = 600.0
"""Seconds after which a step that is still being compiled is given up (`report.py --patience`)."""

COMPILED = "torch compiled"
COMPILED_COLD, COMPILED_KEPT = "torch compiled, cold", "torch compiled, from its cache"


def probe(name: str, *arguments: str, **environment: str) -> dict[str, float]:
    """What a process of its own finds (see `probes`)."""
    done = subprocess.run(
        [sys.executable, str(HERE / "probes.py"), name, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Missing(done.stderr.strip().rsplit("\n", 1)[-1])
    return json.loads(done.stdout)


def _seconds(name: str, *arguments: str, **environment: str) -> float:
    return probe(name, *arguments, **environment)["seconds"]


def _probes(
    contenders: dict[str, Callable[[], float]],
    close: Call = lambda: None,
    once: Sequence[str] = (),
) -> Contest:
    """A contest of probes; each runs once here, which fills caches and shows what is missing.

    Of those in `once`, that run is the measurement.
    """
    contest = Contest(close=close)
    for name, call in contenders.items():
        try:
            found = call()
        except Missing as missing:
            contest.missing[name] = str(missing)
            continue
        if name in once:
            contest.samples[name] = [found]
        else:
            contest.contenders[name] = call
    return contest


def _importing() -> Workload:
    packages = {"import numpy": "numpy", "import numba": "numba", "import torch": "torch"}
    packages = {"genesis": "genesis", **packages, "import optax": "optax"}
    return Workload(
        "start/import",
        "import",
        tuple(packages),
        lambda wanted: _probes({n: partial(_seconds, f"import_{packages[n]}") for n in wanted}),
        seconds=15.0,
        itself=True,
    )


# ---- torch.compile ----


_tried: dict[str, tuple[str, Worker | Missing]] = {}
"""For each model the folder that its compilers filled, and the process that steps it, or why not."""


def _compiling(model: str) -> tuple[str, Worker]:
    """A process that has compiled torch's step, from nothing; the same for every workload that asks.

    Raises:
        Missing: it was not done in time, or cannot be done here; nobody tries again.
    """
    if model not in _tried:
        kept = tempfile.mkdtemp(prefix="genesis-bench-")
        atexit.register(shutil.rmtree, kept, ignore_errors=True)
        try:
            worker = _compiled_step(model, kept)
        except Missing as missing:
            _tried[model] = kept, missing
        else:
            atexit.register(worker.close)
            _tried[model] = kept, worker
    folder, found = _tried[model]
    if isinstance(found, Missing):
        raise found
    return folder, found


def _compiled_step(model: str, folder: str) -> Worker:
    threads = str(genesis.get_num_threads())
    return Worker("compiled.py", model, threads, patience=PATIENCE, TORCHINDUCTOR_CACHE_DIR=folder)


def _compiled_cold(model: str) -> float:
    """Seconds until the first step, where nothing was compiled before."""
    return float(_compiling(model)[1].ready)


def _compiled_again(model: str) -> float:
    """The same in a second process, which finds what the first one has kept."""
    worker = _compiled_step(model, _compiling(model)[0])
    worker.close()
    return float(worker.ready)


def _beside_compiled(model: str) -> Workload:
    """Steps of AdamW, beside torch's once they are compiled."""
    shapes_ = shapes.FIRST_STEPS[model]()

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        for name in wanted:
            try:
                if name == COMPILED:
                    contest.contenders[name] = _compiling(model)[1].ask
                    continue
                step = peers.trainer(name, ADAMW, shapes_).step
                step()  # compiles, and makes the state before that of others, as in all workloads
            except Missing as missing:
                contest.missing[name] = str(missing)
                continue
            contest.contenders[name] = partial(_median_of_a_turn, step)
        return contest

    return Workload(
        f"compiled/AdamW/{model}",
        f"{shapes.TITLES[model]}: AdamW step beside torch.compile",
        ("genesis", "torch fused", COMPILED, "optax", "NumPy"),
        build,
        seconds=8.0,
        itself=True,
        memory=sum(int(np.prod(shape)) for shape in shapes_) * 4 * 14,
    )


def _median_of_a_turn(step: Call) -> float:
    return median(turn(step, settling=SETTLING))


# ---- the first step ----


def _first_step(model: str) -> Workload:
    """From nothing to the first step; for one small tensor also what is known to be Numba's share.

    Models are measured once, and so is what torch compiles.
    """
    small = model == "one"
    of_numba = ("genesis, cold, the step alone", "import numba") if small else ()
    compilers = (COMPILED_COLD, COMPILED_KEPT)
    names = ("genesis", "genesis, cold", *of_numba, "torch fused", *compilers, "optax")

    def build(wanted: Sequence[str]) -> Contest:
        kept = tempfile.mkdtemp(prefix="genesis-bench-")
        last: dict[str, float] = {}

        def cold() -> float:
            with tempfile.TemporaryDirectory(prefix="genesis-bench-") as empty:
                last.update(probe("genesis_first_step", model, NUMBA_CACHE_DIR=empty))
            return last["seconds"]

        def cold_step() -> float:
            if not last:
                cold()
            return last["step"]

        def from_cache() -> float:
            if not os.listdir(kept):
                probe("genesis_first_step", model, NUMBA_CACHE_DIR=kept)
            return _seconds("genesis_first_step", model, NUMBA_CACHE_DIR=kept)

        calls: dict[str, Callable[[], float]] = {
            "genesis": from_cache,
            "genesis, cold": cold,
            "genesis, cold, the step alone": cold_step,
            "import numba": lambda: _seconds("import_numba"),
            "torch fused": lambda: _seconds("torch_first_step", model),
            COMPILED_COLD: lambda: _compiled_cold(model),
            COMPILED_KEPT: lambda: _compiled_again(model),
            "optax": lambda: _seconds("optax_first_step", model),
        }
        close = partial(shutil.rmtree, kept, ignore_errors=True)
        return _probes(
            {name: calls[name] for name in wanted}, close, compilers if small else wanted
        )

    title = "import, build AdamW, first step, in a new process"
    return Workload(
        "start/first step" if small else f"start/first step/{model}",
        title if small else f"{shapes.TITLES[model]}: {title}",
        names,
        build,
        seconds=25.0,
        itself=True,
    )


def _compiled_by_us(optimizer: str) -> Workload:
    """The first step of an optimizer with an empty cache; Numba itself is imported before."""

    def cold() -> float:
        with tempfile.TemporaryDirectory(prefix="genesis-bench-") as empty:
            return probe("genesis_cold", optimizer, NUMBA_CACHE_DIR=empty)["step"]

    def build(wanted: Sequence[str]) -> Contest:
        return _probes(dict.fromkeys(wanted, cold), once=wanted)

    title = f"{optimizer}: first step from a cold cache"
    return Workload(f"start/cold/{optimizer}", title, ("genesis",), build, itself=True)


def workloads() -> list[Workload]:
    """Everything about starting."""
    models = ("resnet50", "tiny1000")
    return [
        _importing(),
        _first_step("one"),
        *(_first_step(model) for model in models),
        *map(_compiled_by_us, trials.names()),
        *(_beside_compiled(model) for model in models),
    ]
