"""Every piece of work that is measured, described once: pytest-benchmark and report.py run these.

Steps and what stands around them are here. Whole iterations of training are in `iterations`, steps
in the middle of a loop in `loops`, what a new process waits for in `starts`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import iterations
import loops
import numpy as np
import peers
import roofline
import shapes
import starts
from contest import PRANGE, ROOFLINES, TABLE, Contest, Workload
from peers import ADAMW, Case, Genesis, Missing
from shapes import TITLES
from timing import Call

import genesis

ALL = ("genesis", *(name for name in peers.PEERS if name != "package"))
BEYOND_TORCH = ("genesis", "package", "NumPy")
"""Who has optimizers that torch has not."""
PASSES = {
    "step": ("step",),
    "clip": ("norm", "scale"),
    "clip_within": ("norm",),
    "zero": ("zero",),
    "clip_step_zero": ("norm", "step, zero"),
    "scaled_clip_step_zero": ("norm", "step, zero"),
}
"""The passes over memory that work needs at least, for its roofline."""


# ---- steps ----


def contest_of(
    method: str,
    case: Case,
    shapes_: peers.Shapes,
    names: Sequence[str],
    before: str | None = None,
) -> Contest:
    """A contest in which each trainer's `method` is timed, and `before` is called before it.

    A first call of each, here, compiles whatever there is to compile.
    """
    contest = Contest()
    ours: Genesis | None = None
    for name in (name for name in names if name not in ROOFLINES):
        try:
            trainer = peers.trainer(name, case, shapes_)
            call = getattr(trainer, method)
            if before is not None:
                contest.before[name] = getattr(trainer, before)
                contest.before[name]()
            call()
        except Missing as missing:
            contest.missing[name] = str(missing)
            contest.before.pop(name, None)
            continue
        contest.contenders[name] = call
        if isinstance(trainer, Genesis):
            ours = trainer
    if ours is not None:
        if method in ("clip", "clip_within", "zero"):
            ours.step()  # so that there is state
        columns = ours.columns
        if PRANGE in names:
            elements = sum(array.size for array in columns[0])
            passes = PASSES[method]
            contest.contenders[PRANGE] = roofline.prange(elements, len(columns) - 2, passes)
        if TABLE in names:
            contest.contenders[TABLE] = roofline.table(columns)
    return contest


def _of_model(
    name: str,
    what: str,
    method: str,
    case: Case,
    model: str,
    names: tuple[str, ...],
    before: str | None = None,
    quick: bool = False,
    seconds: float = 6.0,
) -> Workload:
    shapes_ = shapes.MODELS[model]()
    elements = sum(int(np.prod(shape)) for shape in shapes_)
    full = sum(name not in ROOFLINES or name == PRANGE for name in names)
    return Workload(
        name=f"{name}/{model}",
        title=f"{TITLES[model]}: {what}",
        contenders=names,
        build=lambda wanted: contest_of(method, case, shapes_, wanted, before),
        seconds=seconds,
        quick=quick,
        memory=int(elements * 4 * 4.5 * full),
    )


def _steps() -> list[Workload]:
    found = []
    everyone = (*ALL, *ROOFLINES)
    for model in shapes.MODELS:
        large = model not in ("mlp", "tiny1000", "resnet50")
        names = everyone
        if model == "llama_3_2_1b":
            names = ("genesis", "torch fused", TABLE)
        quick = model in ("tiny1000", "resnet50")
        seconds = 16.0 if large else 10.0
        step = partial(_of_model, names=names, seconds=seconds)
        found.append(step("step/AdamW", "AdamW step", "step", ADAMW, model, quick=quick))
        if model in ("resnet50", "vit_b_16"):
            momentum = peers.first_cases()["SGD-momentum"]
            title = "SGD with momentum, step"
            found.append(step("step/SGD-momentum", title, "step", momentum, model))
        if model not in ("mlp", "tiny1000", "resnet50"):
            continue
        quick = model == "tiny1000"
        title = "AdamW step, fresh gradients"
        found.append(step("fresh/AdamW", title, "step", ADAMW, model, before="fresh", quick=quick))
        passes = partial(step, case=ADAMW, model=model, names=(*ALL, PRANGE), before="refill")
        title, quick = "clip + AdamW step + zero", model != "mlp"
        found.append(passes("clip+step+zero/AdamW", title, "clip_step_zero", quick=quick))
        title = "unscale + check + clip + AdamW step + zero"
        found.append(passes("scaled/AdamW", title, "scaled_clip_step_zero"))
        found.append(passes("clip/AdamW", "clip alone", "clip"))
        title = "clip alone, a norm within the limit"
        found.append(passes("clip_within/AdamW", title, "clip_within"))
        found.append(passes("zero/AdamW", "zero alone", "zero"))
    return found


def _catalogue() -> list[Workload]:
    """Every elementwise optimizer of the table at ResNet-50's shapes."""
    found = []
    for name, case in peers.first_cases().items():
        names = (*(ALL if case.peer == "torch" else BEYOND_TORCH), *ROOFLINES)
        workload = _of_model(
            f"step/{name}", f"{name} step", "step", case, "resnet50", names, seconds=8.0
        )
        found.append(workload)
    return found


def _sizes(name: str, title: str, tensors: int, size: int, before: str | None) -> Workload:
    names = ("genesis", "torch fused", *ROOFLINES)
    shapes_ = [(size,)] * tensors
    return Workload(
        name=name,
        title=title,
        contenders=names,
        build=lambda wanted: contest_of("step", ADAMW, shapes_, wanted, before),
        seconds=4.0,
        memory=tensors * size * 4 * 14,
        quick=(tensors, size) == (1, 1),
    )


def _plain_sizes() -> list[Workload]:
    return [
        _sizes("size/1x1", "one tensor of 1: what Python costs", 1, 1, None),
        _sizes("size/1x1000", "one tensor of 1000, AdamW step", 1, 1000, None),
        _sizes("size/1000x10", "1000 tensors of 10, AdamW step", 1000, 10, None),
        _sizes(
            "fresh/1000x10", "1000 tensors of 10, AdamW step, fresh gradients", 1000, 10, "fresh"
        ),
        _sizes("size/1x1M", "one tensor of 1 million, AdamW step", 1, 1_000_000, None),
        _sizes("size/1x2M", "one tensor of 2 million, AdamW step", 1, 2_000_000, None),
        _sizes("size/1x25M", "one tensor of 25 million, AdamW step", 1, 25_000_000, None),
    ]


# ---- gradients given to the step ----


def _given(name: str, title: str, tensors: int, size: int, nested: bool = False) -> Workload:
    names = ("genesis", "genesis, assigned", "genesis, steady", "torch fused, assigned")
    keys = [f"p{i}" for i in range(tensors)]

    def tree(leaves: Sequence[Any]) -> Any:
        if nested:
            return [{"W": w, "b": b} for w, b in zip(leaves[::2], leaves[1::2])]
        return dict(zip(keys, leaves))

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        now: dict[str, Any] = {}

        def arrays() -> list[np.ndarray]:
            return [np.full(size, 0.01, np.float32) for _ in range(tensors)]

        def fresh() -> None:
            now["grads"] = arrays()
            now["tree"] = tree(now["grads"])

        fresh()
        ours = [genesis.optim.AdamW(tree(arrays())) for _ in range(3)]
        holders = ours[1].param_groups[0]["params"]

        def assigned() -> None:
            for param, grad in zip(holders, now["grads"]):
                param.grad = grad
            ours[1].step()

        for param, grad in zip(ours[2].param_groups[0]["params"], arrays()):
            param.grad = grad
        contest.contenders = {
            "genesis": lambda: ours[0].step(grads=now["tree"]),
            "genesis, assigned": assigned,
            "genesis, steady": ours[2].step,
        }
        contest.before = dict.fromkeys(names[:2], fresh)
        try:
            torch = peers.module("torch")
            params = [torch.ones(size, requires_grad=True) for _ in range(tensors)]
            theirs = torch.optim.AdamW(params, fused=True)

            def fresh_tensors() -> None:
                now["tensors"] = [torch.full((size,), 0.01) for _ in range(tensors)]

            def torch_assigned() -> None:
                for param, grad in zip(params, now["tensors"]):
                    param.grad = grad
                theirs.step()

            contest.contenders[names[3]] = torch_assigned
            contest.before[names[3]] = fresh_tensors
        except Missing as missing:
            contest.missing[names[3]] = str(missing)
        for contender, call in contest.contenders.items():
            contest.before.get(contender, fresh)()
            call()
        return contest

    return Workload(name, title, names, build, seconds=6.0)


def _given_gradients() -> list[Workload]:
    what = "AdamW, step(grads=tree) with fresh arrays"
    return [
        _given("given/1000x10", f"1000 tensors of 10 in a dict: {what}", 1000, 10),
        _given("given/nested", f"1000 tensors of 10 in 500 dicts: {what}", 1000, 10, nested=True),
        _given("given/1x1000", f"one tensor of 1000: {what}", 1, 1000),
    ]


# ---- genesis under torch ----


FUSED_IN_TORCH = ("SGD", "Adam", "AdamW", "Adagrad")
"""Those of which torch has a fused form on the CPU."""

OTHERS_IN_TORCH = ("RMSprop", "NAdam", "RAdam", "Adadelta", "Adamax", "Rprop", "ASGD")


def _torch(
    name: str, title: str, case: Case, shapes_: peers.Shapes, before: str | None
) -> Workload:
    """Torch's tensors, one thread each; "genesis" is `genesis.torch` here."""
    names = ("genesis", "torch fused", "torch foreach", "torch for-loop", TABLE)

    def build(wanted: Sequence[str]) -> Contest:
        number = genesis.get_num_threads()
        genesis.set_num_threads(1)  # the peers follow
        contest = Contest(close=lambda: genesis.set_num_threads(number))
        for contender in (each for each in names[:4] if each in wanted):
            try:
                is_ours = contender == "genesis"
                make = peers.UnderTorch if is_ours else peers.PEERS[contender]
                trainer = make(case, shapes_)
            except Missing as missing:
                contest.missing[contender] = str(missing)
                continue
            if before is not None:
                contest.before[contender] = getattr(trainer, before)
                contest.before[contender]()
            trainer.step()
            contest.contenders[contender] = trainer.step
            if is_ours and TABLE in wanted:
                contest.contenders[TABLE] = roofline.table(trainer.columns)
        return contest

    elements = sum(int(np.prod(shape)) for shape in shapes_)
    return Workload(name, title, names, build, seconds=6.0, memory=elements * 4 * 20)


def _under_torch() -> list[Workload]:
    small = [(10,)] * 1000
    what = "under torch, AdamW step, fresh gradients"
    found = [_torch("torch/AdamW/1000x10", f"1000 tensors of 10 {what}", ADAMW, small, "fresh")]
    for name in (*FUSED_IN_TORCH, *OTHERS_IN_TORCH):
        case = Case(name, {"lr": 0.01, "momentum": 0.9} if name == "SGD" else {})
        title = f"ResNet-50 under torch: {name} step"
        found.append(_torch(f"torch/{name}/resnet50", title, case, shapes.resnet50(), None))
    return found


# ---- 16-bit storage ----


def _bfloat16() -> Workload:
    names = (
        "genesis",
        "genesis, all bfloat16",
        "genesis, bfloat16 state",
        "torch fused, all bfloat16",
    )
    shapes_ = shapes.MODELS["resnet50"]()

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        bfloat16 = genesis.buffers.BFLOAT16
        makers: list[Callable[[], peers.Trainer]] = [
            lambda: Genesis(ADAMW, shapes_),
            lambda: Genesis(ADAMW, shapes_, bfloat16),
            lambda: Genesis(ADAMW, shapes_, state_dtype="bfloat16"),
            lambda: peers.Torch(ADAMW, shapes_, "fused", "bfloat16"),
        ]
        for name, make in zip(names, makers):
            try:
                trainer = make()
                trainer.step()
            except (Missing, TypeError) as reason:
                contest.missing[name] = str(reason)
                continue
            contest.contenders[name] = trainer.step
        return contest

    return Workload(
        "bfloat16/resnet50", "ResNet-50: AdamW step, 16-bit storage", names, build, seconds=10.0
    )


PACKED = {
    "genesis": {},
    "genesis, state in 8 bits": {"state_dtype": "8bit"},
    "genesis, masters": {"master_weights": True},
    "genesis, split masters": {"master_weights": "split"},
}


def _packed(threads: int) -> Workload:
    """A step with packed state; with masters, parameters and gradients are bfloat16."""
    shapes_ = shapes.MODELS["resnet50"]()

    def build(wanted: Sequence[str]) -> Contest:
        before = genesis.get_num_threads()
        genesis.set_num_threads(threads)
        contest = Contest(close=lambda: genesis.set_num_threads(before))
        for name in wanted:
            given = PACKED[name]
            dtype = genesis.buffers.BFLOAT16 if "master_weights" in given else np.dtype(np.float32)
            contest.contenders[name] = Genesis(ADAMW, shapes_, dtype, **given).step
            contest.contenders[name]()
        return contest

    title = f"ResNet-50: AdamW step with packed state, {threads} thread{'s' * (threads > 1)}"
    return Workload(f"packed/resnet50/{threads}", title, tuple(PACKED), build, seconds=10.0)


def _scaled_bfloat16() -> Workload:
    """All that stands around a step, with averages of half the bytes."""
    names, shapes_ = ("genesis", "torch fused"), shapes.MODELS["resnet50"]()

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        for name in wanted:
            try:
                if name == "genesis":
                    trainer: peers.Trainer = Genesis(ADAMW, shapes_, state_dtype="bfloat16")
                else:
                    trainer = peers.trainer(name, ADAMW, shapes_)
            except Missing as missing:
                contest.missing[name] = str(missing)
                continue
            trainer.refill()
            trainer.scaled_clip_step_zero()
            contest.contenders[name] = trainer.scaled_clip_step_zero
            contest.before[name] = trainer.refill
        return contest

    title = "ResNet-50: unscale + check + clip + AdamW step + zero, genesis with bfloat16 state"
    return Workload("scaled/bfloat16/resnet50", title, names, build, seconds=10.0)


# ---- rows ----


def _sparse() -> Workload:
    names = ("genesis", "genesis, 100,000 rows", "torch")

    def build(wanted: Sequence[str]) -> Contest:
        if not hasattr(genesis, "SparseGrad") or not hasattr(genesis.optim, "SparseAdam"):
            raise Missing("genesis.optim.SparseAdam does not exist yet")
        contest = Contest()
        rows, width, touched = 1_000_000, 64, 1000
        rng = np.random.default_rng(3)
        values = rng.standard_normal((touched, width)).astype(np.float32)

        def ours(rows: int) -> Call:
            indices = np.sort(rng.choice(rows, touched, replace=False))
            param = genesis.Parameter(np.ones((rows, width), np.float32))
            param.grad = genesis.SparseGrad(indices, values)
            return genesis.optim.SparseAdam([param]).step

        contest.contenders["genesis"] = ours(rows)
        contest.contenders["genesis, 100,000 rows"] = ours(100_000)
        try:
            torch = peers.module("torch")
            weight = torch.ones((rows, width), requires_grad=True)
            index = torch.from_numpy(np.sort(rng.choice(rows, touched, replace=False)))[None]
            grad = torch.sparse_coo_tensor(index, torch.from_numpy(values), weight.shape)
            weight.grad = grad.coalesce()
            contest.contenders["torch"] = torch.optim.SparseAdam([weight]).step
        except Missing as missing:
            contest.missing["torch"] = str(missing)
        for call in contest.contenders.values():
            call()
        return contest

    title = "SparseAdam: 1000 rows of 1 million x 64"
    return Workload("sparse/1Mx64", title, names, build, memory=4 << 30)


# ---- optimizers that see whole tensors ----

MATRICES = ((768, 768), (768, 3072))
IN_FLOAT32 = "torch, iterating in float32"


def _newton_schulz(grad: Any, coefficients: Sequence[float], steps: int, eps: float) -> Any:
    """What torch's Muon does in bfloat16, in the gradient's own type."""
    a, b, c = coefficients
    found = grad.T if grad.size(0) > grad.size(1) else grad
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = found.addmm(gram.addmm(gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if grad.size(0) > grad.size(1) else found


def _matrices(name: str) -> Workload:
    names = ("genesis", "torch", *([IN_FLOAT32] if name == "Muon" else []))

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        trainer = Genesis(Case(name, {}), MATRICES)
        contest.contenders["genesis"] = trainer.step
        try:
            torch = peers.module("torch")
        except Missing as missing:
            contest.missing.update(dict.fromkeys(names[1:], str(missing)))
            return contest
        params = [torch.ones(shape, requires_grad=True) for shape in MATRICES]
        for param, grad in zip(params, peers.gradients(MATRICES)):
            param.grad = torch.from_numpy(grad)
        optimizer = getattr(torch.optim, name)(params)
        contest.contenders["torch"] = optimizer.step

        def in_float32() -> None:
            with mock.patch.object(
                sys.modules["torch.optim._muon"], "_zeropower_via_newtonschulz", _newton_schulz
            ):
                optimizer.step()

        if name == "Muon":
            contest.contenders[IN_FLOAT32] = in_float32
        for call in contest.contenders.values():
            call()
        return contest

    title = f"{name}: matrices of 768 x 768 and 768 x 3072"
    return Workload(f"matrices/{name}", title, names, build, seconds=20.0)


def _came(tensors: list[Any]) -> Any:
    return peers.module("came_pytorch").CAME(tensors, lr=2e-4)


def _adam_mini(tensors: list[Any]) -> Any:
    class Model:
        def named_parameters(self) -> list[tuple[str, Any]]:
            return [(f"layers.{i}.weight", tensor) for i, tensor in enumerate(tensors)]

    return peers.module("pytorch_optimizer").AdamMini(Model(), lr=1e-3, weight_decay=0.0)


def _galore(tensors: list[Any]) -> Any:
    group = {"params": tensors, "projection_type": "std", "scale": 0.25, **BETWEEN_SVDS}
    return peers.module("pytorch_optimizer").GaLore([group])


def _soap(tensors: list[Any]) -> Any:
    return peers.module("pytorch_optimizer").SOAP(tensors)


def _shampoo(tensors: list[Any]) -> Any:
    return peers.module("pytorch_optimizer").ScalableShampoo(
        tensors,
        block_size=1024,
        shape_interpretation=False,
        start_preconditioning_step=10,
        preconditioning_compute_steps=10,
    )


def _kron(tensors: list[Any]) -> Any:
    return peers.module("kron_torch").Kron(tensors, **AT_EACH_STEP)


BETWEEN_SVDS = {"rank": 128, "update_proj_gap": 10**9}
"""An SVD takes as long as hundreds of steps, in NumPy and in torch: what is compared is the others."""

AT_EACH_STEP = {"preconditioner_update_probability": 1.0}

AS_SCALABLE = {
    "betas": (0.0, 0.999),
    "momentum": 0.9,
    "grafting": "sgd",
    "precondition_frequency": 10,
}
"""The settings of `Shampoo` with which it does what the package's does."""

FROM_PACKAGES: dict[str, tuple[str, dict[str, Any], Callable[[list[Any]], Any], int]] = {
    "CAME": ("came_pytorch", {}, _came, 1),
    "AdamMini": ("pytorch_optimizer", {"blocks": "tensor"}, _adam_mini, 1),
    "GaLoreAdamW": ("pytorch_optimizer", BETWEEN_SVDS, _galore, 1),
    "SOAP": ("pytorch_optimizer", {}, _soap, 10),
    "Shampoo": ("pytorch_optimizer", AS_SCALABLE, _shampoo, 10),
    "Kron": ("kron_torch", AT_EACH_STEP, _kron, 1),
}
"""Optimizers for matrices that torch has not: the package that has, settings, how its own is made, and
how many steps are timed together, so that new bases and roots count as often as they are made."""


def _matrices_beside_package(name: str) -> Workload:
    package, settings, make, steps = FROM_PACKAGES[name]

    def repeated(step: Call) -> Call:
        def call() -> None:
            for _ in range(steps):
                step()

        return call

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        contest.contenders["genesis"] = repeated(Genesis(Case(name, settings), MATRICES).step)
        try:
            torch = peers.module("torch")
            tensors = [torch.ones(shape, requires_grad=True) for shape in MATRICES]
            for tensor, grad in zip(tensors, peers.gradients(MATRICES)):
                tensor.grad = torch.from_numpy(grad)
            contest.contenders[package] = repeated(torch.no_grad()(make(tensors).step))
        except Missing as missing:
            contest.missing[package] = str(missing)
        for call in contest.contenders.values():
            call()
        return contest

    counted = "a step" if steps == 1 else f"{steps} steps"
    title = f"{name}: {counted} on matrices of 768 x 768 and 768 x 3072"
    return Workload(f"matrices/{name}", title, ("genesis", package), build, seconds=20.0)


def _lbfgs() -> Workload:
    size, settings = 100_000, {"max_iter": 100, "tolerance_grad": 0, "tolerance_change": 0}

    def build(wanted: Sequence[str]) -> Contest:
        contest = Contest()
        curvature = np.logspace(0, 4, size).astype(np.float32)
        param = genesis.Parameter(np.ones(size, np.float32))

        def ours() -> None:
            def closure() -> float:
                param.grad = curvature * param.data
                return float(param.data @ param.grad) / 2

            param.data.fill(1)
            genesis.optim.LBFGS([param], **settings).step(closure)

        contest.contenders["genesis"] = ours
        try:
            torch = peers.module("torch")
        except Missing as missing:
            contest.missing["torch"] = str(missing)
            return contest
        tensor = torch.ones(size, requires_grad=True)
        factor = torch.from_numpy(curvature)

        def theirs() -> None:
            def closure() -> Any:
                with torch.no_grad():
                    tensor.grad = factor * tensor
                    return tensor.dot(tensor.grad) / 2

            with torch.no_grad():
                tensor.fill_(1)
            torch.optim.LBFGS([tensor], **settings).step(closure)

        contest.contenders["torch"] = theirs
        return contest

    title = "LBFGS: 100 iterations on a quadratic of 100,000 numbers"
    return Workload("lbfgs/100000", title, ("genesis", "torch"), build, seconds=20.0)


# ---- beside a busy core ----


def _busy(size: int) -> Workload:
    def build(wanted: Sequence[str]) -> Contest:
        trainer = Genesis(ADAMW, [(size,)])
        trainer.step()
        number = genesis.get_num_threads()

        def with_threads(threads: int) -> Call:
            def step() -> None:
                genesis.set_num_threads(threads)
                trainer.step()

            return step

        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        time.sleep(0.3)

        def close() -> None:
            busy.kill()
            busy.wait()
            genesis.set_num_threads(number)

        return Contest(
            {"genesis": with_threads(number), "genesis, one thread": with_threads(1)}, close=close
        )

    return Workload(
        f"busy/{size}",
        f"AdamW step of {size:,} elements beside a busy core",
        ("genesis", "genesis, one thread"),
        build,
        seconds=4.0,
    )


# ---- memory ----


def _memory() -> Workload:
    names = ("genesis, state", "genesis, allocated by steps", "genesis, resident growth")

    def build(wanted: Sequence[str]) -> Contest:
        last: dict[str, float] = {}

        def state() -> float:
            last.update(starts.probe("memory"))
            return last["state"]

        calls: list[Callable[[], float]] = [
            state,
            lambda: last["allocated"],
            lambda: last["resident"],
        ]
        return Contest(dict(zip(names, calls)))

    title = "AdamW: bytes for each parameter"
    return Workload("memory", title, names, build, seconds=2.0, unit="B", itself=True, quick=True)


# ---- checkpoints ----


def _checkpoint(direction: str) -> Workload:
    background, into = "genesis, in the background", "genesis, into arrays and optimizer"
    names = ("genesis", "torch", "NumPy", background if direction == "save" else into)

    def build(wanted: Sequence[str]) -> Contest:
        folder = Path(tempfile.mkdtemp(prefix="genesis-bench-"))
        contest = Contest(close=lambda: shutil.rmtree(folder, ignore_errors=True))
        shapes_ = shapes.MODELS["resnet50"]()
        trainer = Genesis(ADAMW, shapes_)
        trainer.step()
        arrays = [param.data for param in trainer.params]
        ours = folder / "ours.safetensors"

        def save() -> None:
            genesis.save_checkpoint(ours, model=arrays, optimizer=trainer.optimizer)

        def load() -> None:
            genesis.load_checkpoint(ours)

        columns = [array for column in trainer.columns[1:] for array in column]

        def save_arrays() -> None:
            with open(folder / "plain.npz", "wb") as file:
                np.savez(file, *columns)
                file.flush()
                os.fsync(file.fileno())

        def load_arrays() -> None:
            with np.load(folder / "plain.npz") as file:
                for name in file.files:
                    file[name]

        def save_in_background() -> None:  # what is timed is how long the call holds up its caller
            genesis.save_checkpoint(
                ours, model=arrays, optimizer=trainer.optimizer, background=True
            )

        def load_into() -> None:
            genesis.load_checkpoint(ours, model=arrays, optimizer=trainer.optimizer)

        pairs = {
            "genesis": (save, load),
            "NumPy": (save_arrays, load_arrays),
            background: (save_in_background, load),
            into: (save, load_into),
        }
        # Not `wait_for_save`, which would give the memory back that training goes on to use.
        wait = genesis.checkpoint.background.wait
        try:
            peer = peers.Torch(ADAMW, shapes_, "fused")
        except Missing as missing:
            contest.missing["torch"] = str(missing)
        else:
            torch = peers.module("torch")
            peer.step()

            def save_torch() -> None:
                whole = {"model": peer.params, "optimizer": peer.optimizer.state_dict()}
                with open(folder / "theirs.pt", "wb") as file:
                    torch.save(whole, file)
                    file.flush()
                    os.fsync(file.fileno())

            pairs["torch"] = (save_torch, lambda: torch.load(folder / "theirs.pt"))
        for name in names:
            if name in pairs:
                pairs[name][0]()
                contest.contenders[name] = pairs[name][direction == "load"]
                contest.before[name] = wait
        return contest

    title = f"ResNet-50 with AdamW: {direction} a checkpoint (307 MB, on disk)"
    return Workload(f"checkpoint/{direction}", title, names, build, seconds=15.0, memory=4 << 30)


def _all() -> dict[str, Workload]:
    found = [
        *iterations.workloads(),
        *_steps(),
        *loops.workloads(),
        *_catalogue(),
        *_plain_sizes(),
        *_given_gradients(),
    ]
    found += _under_torch()
    found += [
        _bfloat16(),
        _scaled_bfloat16(),
        _packed(1),
        _packed(2),
        _sparse(),
        _matrices("Adafactor"),
        _matrices("Muon"),
        _lbfgs(),
    ]
    found += [_matrices_beside_package(name) for name in FROM_PACKAGES]
    found += [_busy(size) for size in (1000, 4096, 65_536, 1_000_000, 4_000_000, 25_000_000)]
    found += [*starts.workloads(), _memory(), _checkpoint("save"), _checkpoint("load")]
    by_name: dict[str, Workload] = {}
    for workload in found:
        by_name.setdefault(workload.name, workload)  # AdamW is in the catalogue too
    return by_name


WORKLOADS = _all()
