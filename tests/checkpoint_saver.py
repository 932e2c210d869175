"""Saves over one path until it is killed; run by test_checkpoint_crash.py.

For each line on standard input a child is forked (importing NumPy once saves most of the time), and
its process number printed. The child saves state after state, and prints each number once `save`
has returned.
"""

import os
import sys

import numpy as np

from genesis.checkpoint import load, save
from genesis.parameter import Parameter


def state(number: int) -> dict:
    rng = np.random.default_rng(number)
    return {
        "number": number,
        "weights": [Parameter(rng.random((64, 1024)), name="w"), rng.random(100_000, np.float32)],
        "optimizer": {"state": {0: {"exp_avg": np.full((64, 1024), float(number))}}},
        "rng": rng.bit_generator.state,
    }


def tell(word: object) -> None:
    os.write(1, f"{word}\n".encode())  # at once, so that no kill leaves half a line


def main(path: str) -> None:
    for _ in sys.stdin:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            tell("dead")
            continue
        number = load(path)["number"] if os.path.exists(path) else 0
        tell(os.getpid())
        while True:
            number += 1
            save(state(number), path)
            tell(number)


if __name__ == "__main__":
    main(sys.argv[1])
