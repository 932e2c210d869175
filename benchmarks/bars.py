"""What must hold: every bar that concerns speed or memory, in one table.

A bar looks at results of one run and gives a figure that must be at least, or at most, its bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from contest import Result
from shapes import TITLES
from workloads import FROM_PACKAGES, FUSED_IN_TORCH, OTHERS_IN_TORCH, WORKLOADS

Results = Mapping[str, Result]
TORCH = ("torch fused", "torch foreach", "torch for-loop")
WITH_SUMS = dict.fromkeys(
    ("LAMB", "LARS", "MARS", "StableAdamW", "NovoGrad", "Prodigy", "DAdaptAdam", "DoG", "LDoG"), 3.0
)
"""Optimizers that read everything twice, since they sum it up first, and their bar beside packages."""
PACKAGES = {"CAME": 3.0, "AdamMini": 3.0}
"""The bars of optimizers that are bound by memory, beside the packages from which people take them;
those that are bound by products of matrices are not to be slower."""


class Figure(NamedTuple):
    """What was measured for a bar, and a remark that helps to judge it."""

    value: float
    remark: str = ""


class Bar(NamedTuple):
    """A claim about results.

    Attributes:
        issue: where it comes from.
        claim: in words.
        figure: finds the figure in results; None if what it needs was not measured.
        bound: what the figure is compared with.
        least: whether the bound is the least it may be, or the most.
        unit: how the figure is written: "x", "" for a fraction, "us", "s", "B".
    """

    issue: int
    claim: str
    figure: Callable[[Results], Figure | None]
    bound: float
    least: bool = True
    unit: str = "x"


class Verdict(NamedTuple):
    """A bar, and whether it holds; None: not measured."""

    bar: Bar
    figure: Figure | None
    holds: bool | None


def judge(results: Results) -> list[Verdict]:
    """Every bar, looked up in results by the name of their workload."""
    found = []
    for bar in BARS:
        figure = bar.figure(results)
        holds = None
        if figure is not None:
            holds = figure.value >= bar.bound if bar.least else figure.value <= bar.bound
        found.append(Verdict(bar, figure, holds))
    return found


def _ratio(work: str, *peers: str, ours: str = "genesis") -> Callable[[Results], Figure | None]:
    """How many times as long the fastest of these peers takes, with what the roofline would allow."""

    def figure(results: Results) -> Figure | None:
        result = results.get(work)
        if result is None:
            return None
        found = {peer: ratio for peer in peers if (ratio := result.ratio(peer, ours)) is not None}
        if not found:
            return None
        peer = min(found, key=lambda name: found[name])
        remark = peer if len(peers) > 1 else ""
        theirs = result.median(peer)
        if result.roofline and theirs and work.startswith(("step/", "torch/")):
            limit = theirs / result.roofline
            remark = f"{remark}; at the roofline it would be {limit:.3g}x".lstrip("; ")
        return Figure(found[peer], remark)

    return figure


def _fraction(work: str) -> Callable[[Results], Figure | None]:
    def figure(results: Results) -> Figure | None:
        result = results.get(work)
        if result is None or result.fraction is None:
            return None
        drift = result.drift
        return Figure(result.fraction, f"roofline drifted by {drift:.0%}" if drift > 0.1 else "")

    return figure


def _median(work: str, contender: str = "genesis", scale: float = 1.0, less: str | None = None):
    def figure(results: Results) -> Figure | None:
        result = results.get(work)
        value = result and result.median(contender)
        if result is None or value is None:
            return None
        if less is not None:
            other = result.median(less)
            if other is None:
                return None
            value -= other
        return Figure(value * scale)

    return figure


def _slowest(works: str, without: str) -> Callable[[Results], Figure | None]:
    """The largest median of genesis in workloads whose names begin so, and which that is."""

    def figure(results: Results) -> Figure | None:
        found = {
            name.removeprefix(works): value
            for name, result in results.items()
            if name.startswith(works) and (value := result.median("genesis")) is not None
        }
        found.pop(without, None)
        slowest = max(found, key=lambda name: found[name], default=None)
        return None if slowest is None else Figure(found[slowest], f"{slowest}, of {len(found)}")

    return figure


def _bars() -> list[Bar]:
    found: list[Bar] = []

    def at_least(issue: int, claim: str, figure: Callable, bound: float, unit: str = "x") -> None:
        found.append(Bar(issue, claim, figure, bound, unit=unit))

    for model in ("resnet50", "vit_b_16"):
        for name in ("AdamW", "SGD-momentum"):
            work, what = f"step/{name}/{model}", f"{name}, {TITLES[model]}"
            at_least(7, f"{what}: of the roofline", _fraction(work), 0.9, "")
            at_least(7, f"{what}: beside torch fused", _ratio(work, "torch fused"), 1.0)
            at_least(7, f"{what}: beside torch foreach", _ratio(work, "torch foreach"), 4.0)
            at_least(7, f"{what}: beside optax", _ratio(work, "optax"), 1.8)
    for name in WORKLOADS:
        kind, optimizer, *model = name.split("/")[:3] + [""]
        if kind != "step" or model[0] != "resnet50" or optimizer in ("AdamW", "SGD-momentum"):
            continue
        if "package" in WORKLOADS[name].contenders:
            claim = f"{optimizer}, ResNet-50: beside its package"
            at_least(14, claim, _ratio(name, "package"), WITH_SUMS.get(optimizer, 3.5))
            if optimizer not in WITH_SUMS:
                at_least(14, f"{optimizer}, ResNet-50: of the roofline", _fraction(name), 0.9, "")
            continue
        at_least(5, f"{optimizer}, ResNet-50: of the roofline", _fraction(name), 0.85, "")
        claim = f"{optimizer}, ResNet-50: beside torch's fastest path"
        at_least(7, claim, _ratio(name, *TORCH), 3.0)
    clipped = "clip+step+zero/AdamW/resnet50"
    what = "clip + step + zero, ResNet-50: beside"
    at_least(7, f"{what} torch fused", _ratio(clipped, "torch fused"), 1.8)
    at_least(7, f"{what} optax", _ratio(clipped, "optax"), 2.5)
    tiny = "step/AdamW/tiny1000"
    at_least(7, "1000 small tensors: beside torch fused", _ratio(tiny, "torch fused"), 40)
    at_least(7, "1000 small tensors: beside torch for-loop", _ratio(tiny, "torch for-loop"), 100)
    claim = "1000 small tensors, fresh gradients: beside torch fused"
    at_least(7, claim, _ratio("fresh/AdamW/tiny1000", "torch fused"), 15)
    claim = "1000 small tensors, clip + step + zero: beside torch's fastest path"
    at_least(7, claim, _ratio("clip+step+zero/AdamW/tiny1000", *TORCH), 40)
    claim = "a step with one tensor"
    found.append(Bar(7, claim, _median("size/1x1", scale=1e6), 15, False, "us"))
    state = "AdamW: state, bytes for each parameter"
    found.append(Bar(7, state, _median("memory", "genesis, state"), 8.1, False, "B"))
    allocated = "AdamW: allocated by steps, bytes for each parameter"
    grown = _median("memory", "genesis, allocated by steps")
    found.append(Bar(7, allocated, grown, 0.01, False, "B"))

    small = "1000 tensors of 10"
    at_least(2, f"{small}: beside torch fused", _ratio("size/1000x10", "torch fused"), 50)
    claim = f"{small}, fresh gradients: beside torch fused"
    at_least(2, claim, _ratio("fresh/1000x10", "torch fused"), 20)
    at_least(2, "one tensor of 1000: beside torch fused", _ratio("size/1x1000", "torch fused"), 8)
    at_least(2, "25 million: beside torch fused", _ratio("size/1x25M", "torch fused"), 1.0)
    at_least(2, "25 million: of the roofline", _fraction("size/1x25M"), 0.85, "")
    for name in WORKLOADS:
        if name.startswith("busy/"):
            size = int(name.partition("/")[2])
            ratio = _ratio(name, "genesis", ours="genesis, one thread")
            claim = f"beside a busy core, {size:,} elements: time of one thread"
            found.append(Bar(2, claim, ratio, 1.5, False))
    start = "start/first step"
    claim = "import and first step from cache, beyond `import numba`"
    found.append(Bar(2, claim, _median(start, less="import numba"), 0.5, False, "s"))
    claim = "first step of a rule that is not in the cache"
    cold = _median(start, "genesis, cold, the step alone")
    found.append(Bar(2, claim, cold, 1.5, False, "s"))

    claim = "clip + step + zero, ResNet-50: beside torch fused"
    at_least(4, claim, _ratio(clipped, "torch fused"), 1.7)
    at_least(16, claim, _ratio(clipped, "torch fused"), 1.55)
    at_least(16, "clip + step + zero, ResNet-50: of the roofline", _fraction(clipped), 0.95, "")
    at_least(5, "SparseAdam: beside torch", _ratio("sparse/1Mx64", "torch"), 5)
    claim = "SparseAdam: a table of 1 million rows beside one of 100,000"
    rows = _ratio("sparse/1Mx64", "genesis", ours="genesis, 100,000 rows")
    found.append(Bar(5, claim, rows, 1.5, False))

    what = "beside torch's"
    at_least(14, f"Adafactor, two matrices: {what}", _ratio("matrices/Adafactor", "torch"), 3.0)
    muon = _ratio("matrices/Muon", "torch, iterating in float32")
    at_least(14, f"Muon, two matrices: {what}, both iterating in float32", muon, 1.0)
    for name, (package, *_) in FROM_PACKAGES.items():
        ratio = _ratio(f"matrices/{name}", package)
        at_least(14, f"{name}, two matrices: beside {package}", ratio, PACKAGES.get(name, 1.0))
    at_least(14, f"LBFGS, 100,000 numbers: {what}", _ratio("lbfgs/100000", "torch"), 1.3)

    train, what = "train/mlp", "64-128-64-10 network, an iteration: beside"
    claim = f"{what} torch eager's fastest path"
    at_least(12, claim, _ratio(train, "torch eager", "torch eager, fused"), 4.0)
    at_least(12, f"{what} jitted JAX and optax", _ratio(train, "JAX and optax, jitted"), 1.0)
    claim = "1000 tensors of 10, step(grads=tree), fresh: beside torch fused, assigned"
    at_least(12, claim, _ratio("given/1000x10", "torch fused, assigned"), 15)
    for work, what, bound in (("1000x10", "a dict", 0.3), ("nested", "500 dicts", 0.5)):
        more = _median(f"given/{work}", scale=1e3, less="genesis, steady")
        claim = f"step(grads=tree) with 1000 fresh arrays in {what}, an array over the steady step"
        found.append(Bar(12, claim, more, bound, False, "us"))
    more = _median("given/1x1000", scale=1e6, less="genesis, assigned")
    claim = "step(grads=tree) with one array of 1000, over p.grad = g; step()"
    found.append(Bar(12, claim, more, 1.0, False, "us"))

    what = "under torch, 1000 tensors of 10, fresh gradients: beside torch"
    at_least(13, f"{what} fused", _ratio("torch/AdamW/1000x10", "torch fused"), 3.5)
    at_least(13, f"{what} foreach", _ratio("torch/AdamW/1000x10", "torch foreach"), 8)
    for name in (*FUSED_IN_TORCH, *OTHERS_IN_TORCH):
        if name == "ASGD":  # measured, but nobody has set a bar
            continue
        claim = f"under torch, {name}, ResNet-50: beside torch's fastest path"
        bound = 0.97 if name in FUSED_IN_TORCH else 2.5
        at_least(13, claim, _ratio(f"torch/{name}/resnet50", *TORCH), bound)

    half = "bfloat16/resnet50"
    ratio = _ratio(half, "genesis", ours="genesis, all bfloat16")
    at_least(6, "AdamW all in bfloat16: beside float32", ratio, 1.5)
    ratio = _ratio(half, "genesis", ours="genesis, bfloat16 state")
    at_least(6, "AdamW with bfloat16 state: beside float32", ratio, 1.25)
    for threads, most in ((1, 2.0), (2, 1.3)):
        work = f"packed/resnet50/{threads}"
        what = f"{threads} thread{'s' * (threads > 1)}"
        eight = _ratio(work, "genesis, state in 8 bits", ours="genesis")
        claim = f"AdamW with state in 8 bits, {what}: time of float32 state"
        found.append(Bar(16, claim, eight, most, False))
        split = _ratio(work, "genesis, split masters", ours="genesis, masters")
        claim = f"AdamW with split masters, {what}: time of masters"
        found.append(Bar(16, claim, split, 1.06, False))
    ratio = _ratio("checkpoint/save", "genesis", ours="NumPy")
    claim = "save a checkpoint, 307 MB: time of NumPy's save and fsync"
    found.append(Bar(16, claim, ratio, 1.15, False))
    ratio = _ratio("checkpoint/load", "genesis", ours="torch")
    found.append(Bar(16, "load a checkpoint, 307 MB: time of torch's load", ratio, 1.2, False))
    ratio = _ratio("checkpoint/save", "genesis, in the background", ours="genesis")
    claim = "save a checkpoint in the background: the call, of the time of the save"
    found.append(Bar(16, claim, ratio, 0.25, False, ""))
    scaled = _ratio("scaled/AdamW/resnet50", *TORCH)
    claim = "unscale + check + clip + step, ResNet-50: beside torch's fastest path"
    at_least(6, claim, scaled, 2.0)
    for work, what, bound in (
        ("clip", "clip alone, ResNet-50", 1.0),
        ("clip_within", "clip alone, within the norm, ResNet-50", 2.0),
    ):
        name = f"{work}/AdamW/resnet50"
        at_least(16, f"{what}: beside torch's fastest path", _ratio(name, *TORCH), bound)
        at_least(16, f"{what}: of the roofline", _fraction(name), 0.85, "")
    claim = "clip alone, MLP: beside NumPy"
    at_least(16, claim, _ratio("clip/AdamW/mlp", "NumPy"), 1.0)
    claim = "unscale + check + clip + step + zero, ResNet-50: beside torch fused"
    at_least(16, claim, _ratio("scaled/AdamW/resnet50", "torch fused"), 1.75)
    claim = f"{claim.partition(':')[0]}, with bfloat16 state: beside torch fused"
    at_least(16, claim, _ratio("scaled/bfloat16/resnet50", "torch fused"), 1.9)
    claim = "first step of any optimizer but SparseAdam, from a cold cache"
    others = _slowest("start/cold/", without="SparseAdam")
    found.append(Bar(16, claim, others, 1.0, False, "s"))
    claim = "first step of SparseAdam, from a cold cache"
    found.append(Bar(16, claim, _median("start/cold/SparseAdam"), 1.5, False, "s"))
    claim = "1000 small tensors, 12 ms of other work after the last step"
    later = _median("loop/products-12ms/tiny1000", scale=1e6)
    found.append(Bar(16, claim, later, 400, False, "us"))
    return found


BARS = _bars()
