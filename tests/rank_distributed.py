"""What test_distributed.py runs on several ranks, and how it trains in one process.

    mpiexec -n N python rank_distributed.py COMMAND FOLDER

Each rank saves what came of it as FOLDER/COMMAND-N-RANK.npy, for the tests to judge. The functions that
make parameters and gradients are the tests' as well.
"""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import genesis

PARTS = 12
STEPS = 50
MAX_NORM = 1.0
BUCKET_MB = 0.1
"""So small that a tensor is cut into several buckets, and several tensors are in one."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

SHAPES = {
    "embedding": (300, 200),  # 60,000 elements, of which a kernel's chunk takes 16,384
    "weight": (120, 150),
    "bias": (150,),
    "turned": (40, 30),  # does not lie in the order of C
    "nothing": (0, 3),
    "scale": (),
    "unused": (7, 5),  # never has a gradient
}

# The optimizer, its arguments, the parameters' type, further arguments of DistributedOptimizer.
CASES = {
    "AdamW": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}, np.float32, {}),
    "flat": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}, np.float32, {"flatten": True}),
    "all": ("AdamW", {"lr": 1e-2, "weight_decay": 0.1}, np.float32, {"shard_state": False}),
    "SGD": ("SGD", {"lr": 1e-1, "momentum": 0.9, "nesterov": True}, np.float32, {}),
    "LAMB": ("LAMB", {"lr": 1e-2}, np.float32, {}),
    "masters": ("AdamW", {"lr": 1e-2, "master_weights": True}, BFLOAT16, {}),
    "average": ("Adam", {"lr": 1e-2, "ema_decay": 0.9, "measure_updates": True}, np.float64, {}),
    "random": ("AdamW", {"lr": 1e-2, "stochastic_rounding": True}, BFLOAT16, {}),
    "Muon": ("Muon", {"lr": 1e-2}, np.float32, {}),
    "Prodigy": ("Prodigy", {}, np.float32, {"shard_state": False}),
}
SHORT = {"flat", "all", "average", "random", "Muon", "Prodigy"}
"""Cases that show what they have to in a few steps."""


def steps_of(case):
    return 6 if case in SHORT else STEPS


def parameters(dtype, matrices=False):
    """A tree of arrays, the same each time."""
    rng = np.random.default_rng(1)
    made = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    made["turned"] = np.asfortranarray(made["turned"])
    return {n: a for n, a in made.items() if a.ndim == 2 and a.size} if matrices else made


def gradients(params, step, part):
    """The gradients of one part of the global batch in a step."""
    rng = np.random.default_rng([step, part])
    return {
        name: None
        if name == "unused"
        else rng.standard_normal(array.shape).astype(
            np.float64 if array.dtype == np.float64 else np.float32
        )
        for name, array in params.items()
    }


def mean(params, step, parts=PARTS):
    """What all parts come to, added up one after the other in the type of the arithmetic."""
    total = gradients(params, step, 0)
    for part in range(1, parts):
        other = gradients(params, step, part)
        total = {n: None if g is None else g + other[n] for n, g in total.items()}
    return {n: None if g is None else g * g.dtype.type(1 / parts) for n, g in total.items()}


def optimizer_of(case, params):
    name, arguments, _, _ = CASES[case]
    return getattr(genesis.optim, name)(params, **arguments)


def made(case, **others):
    """Parameters, and a distributed optimizer of them."""
    from genesis.distributed import DistributedOptimizer

    params = parameters(CASES[case][2], matrices=case == "Muon")
    given = {"parts": PARTS, "bucket_mb": BUCKET_MB, **CASES[case][3], **others}
    opt = DistributedOptimizer(optimizer_of(case, params), **given)
    return (opt.flattened(params) if opt._flatten else params), opt


def step(opt, params, number):
    for part in opt.my_parts:
        opt.accumulate(gradients(params, number, part))
    return opt.step(max_norm=MAX_NORM)


def found(opt, params):
    """What is to be the same however many ranks there are."""
    return {
        "params": {name: np.array(array) for name, array in params.items()},
        "state": opt.state_dict()["state"],
        "grad_norm": opt.grad_norm,
        "update_norm": opt.update_norm,
    }


# ---- commands: each returns what is saved ----


def train(folder):
    """All cases from beginning to end."""
    results = {}
    for case in CASES:
        params, opt = made(case)
        for number in range(steps_of(case)):
            step(opt, params, number)
        results[case] = found(opt, params)
        results[case]["kept"] = sum(
            value.nbytes
            for entries in opt.state.values()
            for value in entries.values()
            if isinstance(value, np.ndarray)
        )
    return results


COMMANDS = {"train": train}


def main(command, folder):
    from mpi4py import MPI

    results = COMMANDS[command](folder)
    world = MPI.COMM_WORLD
    np.save(folder / f"{command}-{world.size}-{world.rank}.npy", np.array([results], object))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
