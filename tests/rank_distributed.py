"""What test_distributed.py runs on several ranks, and how it trains in one process.

    mpiexec -n N python rank_distributed.py COMMAND FOLDER

Each rank saves what came of it as FOLDER/COMMAND-N-RANK.npy, for the tests to judge. The functions that
make parameters and gradients are the tests' as well.
"""

import os
import sys
import warnings
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
    "embedding": (180, 200),  # 36,000 elements, of which a kernel's chunk takes 16,384
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


def refuse(folder):
    """What is said, on each rank, of what ranks do not have alike; and whether anything was written."""
    from mpi4py import MPI

    from genesis.distributed import DistributedOptimizer

    rank = MPI.COMM_WORLD.rank
    odd = rank == 1
    said = {}

    def tried(name, act, opt=None, params=None):
        before = None if params is None else {n: a.tobytes() for n, a in params.items()}
        try:
            act()
            said[name] = None
        except Exception as error:
            said[name] = type(error).__name__, str(error)
        if params is not None:
            after = {n: a.tobytes() for n, a in params.items()}
            said[name] += (before == after and not opt.state,)

    def two(shape=(3,), dtype=np.float64):
        return {"a": np.ones(2), "b": np.ones(shape, dtype)}

    def distributed(params=None, lr=0.1, kind=genesis.optim.Adam, **others):
        return DistributedOptimizer(kind(two() if params is None else params, lr=lr), **others)

    shape, dtype = (4, 3) if odd else (3, 4), np.float32 if odd else np.float64
    tried("shapes", lambda: distributed(two(shape)))
    tried("types", lambda: distributed(two(dtype=dtype)))
    strided = np.ones((4, 6))[:, ::2] if odd else np.ones((4, 3))
    tried("memory", lambda: distributed({"a": np.ones(2), "b": strided}))
    tried("rates", lambda: distributed(lr=0.2 if odd else 0.1))
    tried("classes", lambda: distributed(kind=genesis.optim.AdamW if odd else genesis.optim.Adam))
    tried("arguments", lambda: distributed(bucket_mb=5 if odd else 6))
    tried("impossible on one", lambda: distributed(parts=0 if odd else 2))
    tried("LBFGS", lambda: distributed(kind=genesis.optim.LBFGS))
    tried(
        "LBFGS on one", lambda: distributed(kind=genesis.optim.LBFGS if odd else genesis.optim.SGD)
    )
    tried("Prodigy", lambda: DistributedOptimizer(genesis.optim.Prodigy(two())))
    tried(
        "Lookahead",
        lambda: DistributedOptimizer(genesis.optim.Lookahead(genesis.optim.Adam(two()))),
    )

    grads = {"a": np.ones(2), "b": np.ones(3)}
    sparse = genesis.SparseGrad(np.array([0]), np.ones(1))

    def in_step(name, act, before=lambda opt, params: None):
        params = two()
        if name == "values" and odd:
            params["b"][1] = 7
        opt = distributed(params)
        before(opt, params)
        tried(name, lambda: act(opt), opt, params)
        if name not in ("added", "edited", "read-only", "values"):
            opt.step(grads=grads)  # the next step is as if nothing had been
            said[name] += (np.allclose(params["b"], 0.9),)

    in_step("values", lambda opt: opt.step(grads=grads))
    in_step("missing", lambda opt: opt.step(grads={**grads, "b": None} if odd else grads))
    in_step("wrong shape", lambda opt: opt.step(grads={**grads, "b": np.ones(4)} if odd else grads))
    in_step("sparse", lambda opt: opt.step(grads={**grads, "b": sparse}))
    in_step("sparse on one", lambda opt: opt.step(grads={**grads, "b": sparse} if odd else grads))
    in_step("other arguments", lambda opt: opt.step(grads=grads, max_norm=2.0 if odd else 1.0))
    in_step("negative norm", lambda opt: opt.step(grads=grads, max_norm=-1.0 if odd else 1.0))
    in_step("closure", lambda opt: opt.step(lambda: (1 / (rank - 1), grads)))
    in_step("other calls", lambda opt: opt.state_dict() if odd else opt.step(grads=grads))
    in_step(
        "ready on one", lambda opt: (odd and opt.ready("b", np.ones(3)), opt.step(max_norm=9.0))
    )

    def edit(opt, params):
        opt.param_groups[0]["lr"] = 0.3 if odd else 0.1

    def add(opt, params):
        if odd:
            opt.param_groups[0]["params"].append(genesis.Parameter(np.ones(2)))
            opt.param_groups[0]["param_names"].append("c")

    def lock(opt, params):
        params["b"].flags.writeable = not odd

    def hold(opt, params):
        for parameter in opt._parameters():
            parameter.grad = np.ones(parameter.shape)
        parameter.grad.flags.writeable = not odd

    in_step("locked gradient", lambda opt: opt.step(zero_grad=True), hold)
    in_step("edited", lambda opt: opt.step(grads=grads), edit)
    in_step(
        "added", lambda opt: opt.step(grads={**grads, **({"c": np.ones(2)} if odd else {})}), add
    )
    in_step("read-only", lambda opt: opt.step(grads=grads), lock)
    in_step(
        "added by a call",
        lambda opt: (
            opt.add_param_group({"params": {"c": np.ones(2)}}) if odd else opt.step(grads=grads)
        ),
    )

    path = folder / "refused.safetensors"
    opt = distributed()
    save, load = genesis.distributed.save_checkpoint, genesis.distributed.load_checkpoint
    tried("paths", lambda: save(folder / str(rank), optimizer=opt))
    tried("no folder", lambda: save(folder / "none" / "file", optimizer=opt))
    tried("no optimizer", lambda: save(path, epoch=1))
    tried("no file", lambda: load(path, optimizer=opt))
    tried("unsaved", lambda: save(path, optimizer=opt, what=1 if odd else object()))
    MPI.COMM_WORLD.Barrier()  # each rank sweeps up after itself
    said["files"] = sorted(each.name for each in folder.iterdir() if "refused" in each.name)
    return said


def use(folder):
    """What works through a distributed optimizer as it does through another."""
    from mpi4py import MPI

    from genesis.distributed import DistributedOptimizer

    world = MPI.COMM_WORLD
    results = {}

    def finish(name, opt, params):
        results[name] = {**found(opt, params), "more": None}

    # Gradients that come in while the backward pass goes on.
    for name in ("ready", "ready some"):
        params, opt = made("AdamW")
        for number in range(3):
            for part in opt.my_parts:
                grads = gradients(params, number, part)
                held = {n: g for n, g in grads.items() if g is not None}
                first = [*held][:: -1 if name == "ready" else -2]
                for each in first:
                    opt.ready(params[each], held[each])
                group = opt.param_groups[0]
                for parameter, each in zip(group["params"], group["param_names"]):
                    parameter.grad = held.get(each)
                opt.accumulate()
            opt.step(max_norm=MAX_NORM)
        finish(name, opt, params)

    # Parts that do not come out even, and a last one that comes with the step.
    for parts in (1, 5):
        params, opt = made("SGD", parts=parts)
        for number in range(3):
            mine = list(opt.my_parts)
            for part in mine[:-1]:
                opt.accumulate(gradients(params, number, part))
            opt.step(grads=gradients(params, number, mine[-1]) if mine else None, max_norm=MAX_NORM)
        finish(f"{parts} parts", opt, params)

    # A schedule, a scaler that finds an inf in one part, hooks.
    params, opt = made("SGD")
    schedule = genesis.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    scaler = genesis.amp.GradScaler(init_scale=4.0, growth_interval=100)
    calls = []
    opt.register_step_post_hook(lambda optimizer, args, kwargs: calls.append("outer"))
    opt.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: calls.append("inner"))
    for number in range(4):
        for part in opt.my_parts:
            grads = gradients(params, number, part)
            grads = {
                n: None if g is None else g * np.float32(scaler.get_scale())
                for n, g in grads.items()
            }
            if number == 1 and part == PARTS - 1:
                grads["weight"][3, 4] = np.inf
            opt.accumulate(grads)
        scaler.step(opt, max_norm=MAX_NORM)
        scaler.update()
        if not opt.step_skipped:
            schedule.step()
    finish("scaler", opt, params)
    results["scaler"]["more"] = (
        opt.skipped_steps,
        calls,
        opt.param_groups[0]["lr"],
        scaler.get_scale(),
    )

    # A scaler that unscales before, and finds an inf on one rank.
    params, opt = made("SGD", parts=world.size)
    scaler = genesis.amp.GradScaler(init_scale=4.0)
    for parameter in opt.param_groups[0]["params"]:
        parameter.grad = np.ones(parameter.shape, np.float32)
    if world.rank == world.size - 1:
        opt.param_groups[0]["params"][1].grad[0, 0] = np.inf
    before = {name: array.copy() for name, array in params.items()}
    scaler.unscale_(opt)
    scaler.step(opt)
    same = all(np.array_equal(before[name], params[name]) for name in params)
    results["unscaled"] = opt.step_skipped, same

    # Averages, shown and put back; norms of updates.
    params, opt = made("average")
    for number in range(2):
        step(opt, params, number)
    opt.swap_ema()
    shown = {name: array.copy() for name, array in params.items()}
    opt.swap_ema()
    finish("averages", opt, params)
    results["averages"]["more"] = shown

    # A group that comes later.
    params = {name: array for name, array in parameters(np.float32).items() if name != "bias"}
    opt = DistributedOptimizer(
        genesis.optim.AdamW(params, lr=1e-2), parts=PARTS, bucket_mb=BUCKET_MB
    )
    step(opt, params, 0)
    params = {**params, "bias": parameters(np.float32)["bias"]}
    opt.add_param_group({"params": {"bias": params["bias"]}, "lr": 1e-1})
    step(opt, params, 1)
    finish("later", opt, params)

    # An optimizer that has state already, by another name.
    params = parameters(np.float32)
    inner = optimizer_of("AdamW", params)
    inner.step(grads=mean(params, 0), max_norm=MAX_NORM)
    opt = DistributedOptimizer(inner, parts=PARTS, bucket_mb=BUCKET_MB)
    step(opt, params, 1)
    finish("begun", opt, params)

    # Lookahead around it, a rule for each group within it.
    params, inner = made("SGD")
    opt = genesis.optim.Lookahead(inner, k=2)
    for number in range(3):
        for part in inner.my_parts:
            inner.accumulate(gradients(params, number, part))
        opt.step(max_norm=MAX_NORM)
    finish("Lookahead", opt, params)
    params = parameters(np.float32)
    opt = DistributedOptimizer(mixed(params), parts=PARTS, bucket_mb=BUCKET_MB)
    for number in range(3):
        step(opt, params, number)
    finish("Mixed", opt, params)

    # MPI's own reduction, and bfloat16 on the way: near the others, and alike on all ranks.
    for name, others in {
        "reduced": {"deterministic": False},
        "reduced all": {"deterministic": False, "shard_state": False},
        "bfloat16": {"communication": "bfloat16"},
    }.items():
        params, opt = made("SGD", **others)
        for number in range(3):
            step(opt, params, number)
        finish(name, opt, params)

    # Gradients that parameters hold, and that are zeros afterwards.
    params, opt = made("SGD", parts=world.size)
    for number in range(3):
        grads = gradients(params, number, world.rank)
        for parameter in opt._parameters():
            parameter.grad = grads[parameter.name]
        opt.step(max_norm=MAX_NORM, zero_grad=True)
        assert not any(p.grad is not None and np.any(p.grad) for p in opt._parameters())
    finish("zeroed", opt, params)

    # What one rank has, all have.
    params = parameters(np.float32)
    for array in params.values():
        array += world.rank
    opt = DistributedOptimizer(genesis.optim.SGD(params, lr=0.1))
    opt.broadcast_parameters(root=world.size - 1)
    results["broadcast"] = {name: array.copy() for name, array in params.items()}
    return results


def mixed(params):
    """An optimizer with a rule for each group."""
    small = {n: params[n] for n in ("bias", "scale", "nothing", "unused", "turned")}
    large = {n: params[n] for n in ("embedding", "weight")}
    return genesis.optim.Mixed(
        [
            {"params": large, "optimizer": "Muon", "lr": 0.02},
            {"params": small, "optimizer": "AdamW", "lr": 0.1},
        ]
    )


CHECKPOINTED = "AdamW", "LAMB", "masters", "all"


def save(folder):
    """Three steps, and a checkpoint of each case."""
    for case in CHECKPOINTED:
        params, opt = made(case)
        for number in range(3):
            step(opt, params, number)
        file = folder / f"{case}.safetensors"
        for epoch in (2, 3):  # the second save takes the place of the first
            genesis.distributed.save_checkpoint(file, optimizer=opt, model=params, epoch=epoch)
    return sorted(each.name for each in folder.iterdir() if each.name.startswith("AdamW.s"))


def resume(folder):
    """The steps after a checkpoint, three for each number of ranks, and a checkpoint again."""
    results = {}
    for case in CHECKPOINTED:
        params, opt = made(case)
        for array in params.values():
            array[...] = 0
        file = folder / f"{case}.safetensors"
        loaded = genesis.distributed.load_checkpoint(file, optimizer=opt, model=params)
        for number in range(loaded["epoch"], loaded["epoch"] + 3):
            step(opt, params, number)
        epoch = loaded["epoch"] + 3
        genesis.distributed.save_checkpoint(file, optimizer=opt, model=params, epoch=epoch)
        results[case] = {**found(opt, params), "epoch": epoch}
    return results


def fail(folder):
    """One rank raises what nobody catches, while the others wait in a step."""
    from mpi4py import MPI

    params, opt = made("SGD", parts=MPI.COMM_WORLD.size)
    for number in range(3):
        if number == 1 and opt.rank == 1:
            raise KeyError("the data of rank 1")
        opt.step(grads=gradients(params, number, opt.rank))


def endure(folder):
    """Go on from the last checkpoint, with another one after each step, until somebody ends it."""
    params, opt = made("AdamW", parts=4)
    (folder / f"pid-{opt.rank}").write_text(str(os.getpid()))
    file = folder / "endured.safetensors"
    epoch = 0
    if opt._agreement.comm.bcast(file.exists()):
        loaded = genesis.distributed.load_checkpoint(file, optimizer=opt, model=params)
        epoch = loaded["epoch"]
    while True:
        step(opt, params, epoch)
        epoch += 1
        genesis.distributed.save_checkpoint(file, optimizer=opt, model=params, epoch=epoch)


COMMANDS = {each.__name__: each for each in (train, refuse, use, save, resume, fail, endure)}


def main(command, folder):
    from mpi4py import MPI

    warnings.simplefilter("error")
    results = COMMANDS[command](folder)
    world = MPI.COMM_WORLD
    np.save(folder / f"{command}-{world.size}-{world.rank}.npy", np.array([results], object))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
