"""Whole iterations of training by each contender, in a process of its own.

`python benchmarks/training.py RACE THREADS NAME...` serves: for each name of a contender that it reads
it runs some iterations and prints the median seconds of one. All contenders of a race live in this one
process. THREADS is how many each may use, or "default" for what each takes by itself; libraries have
to be told before they are imported: see `environment`.
"""

from __future__ import annotations

import json
import sys

from race_mlp import Perceptron
from race_rnn import Recurrent
from race_rows import Rows
from races import Iterate, Race
from timing import median, turn

import genesis

RACES: dict[str, Race] = {"mlp": Perceptron(), "rnn": Recurrent(), "rows": Rows()}
THREADS = ("1", "default")

SETTLING = 0.1
"""Seconds of iterations that are not timed at the beginning of a turn, and of those that are. Idle
threads of OpenBLAS go on spinning for tens of milliseconds, on cores that are another's by now."""


def environment(threads: str) -> dict[str, str]:
    """The variables by which the process that serves is told how many threads there are."""
    if threads == "default":
        return {}
    return {
        **dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), threads),
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads={threads}",
    }


def main(race: str, threads: str, *names: str) -> None:
    """Make the contenders, say which there are, and run whichever is asked for."""
    if threads != "default":
        genesis.set_num_threads(int(threads))
    contenders = RACES[race].contenders()
    ready: dict[str, Iterate] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            ready[name] = contenders[name]()
            ready[name]()
        except ImportError as error:
            missing[name] = f"{error.name} is not installed ({error})"
    print(json.dumps(missing), flush=True)
    for line in sys.stdin:
        print(median(turn(ready[line.strip()], settling=SETTLING)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
