"""All that needs a GPU, in one command: `python benchmarks/gpu_check.py`.

First the numbers: every row of the tests' table of cases, step by step, on the device and on the
CPU. Then the speed: AdamW, SGD with momentum and RMSprop on the parameters of well-known models,
beside torch's fused and foreach steps and beside a copy on the device that moves as many bytes. It
prints tables and keeps them in `benchmarks/results/<device name>.json`.

Needs numba-cuda, NumPy and torch with CUDA, and no network. `--quick` takes a minute, not ten.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from cases import CASES, DTYPES, SHAPES
from shapes import MODELS
from timing import alternate

import genesis
from genesis import buffers, cuda_driver

# ---- the numbers ----

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LEAST = {"float64": 0.0, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
ROUNDINGS = 16
"""How many units in the last place of the largest update a result may be off: a GPU fuses
multiplications and additions, which the CPU rounds one by one."""


def excess(got: np.ndarray, expected: np.ndarray, before: np.ndarray, dtype: str) -> float:
    """The largest difference as a multiple of what is allowed.

    Allowed are `ROUNDINGS` of the largest change in arithmetic, and two of each value as stored.
    """
    got, expected, before = (np.asarray(a, np.float64) for a in (got, expected, before))
    if not got.size:
        return 0.0
    arithmetic = EPS["float64" if dtype == "float64" else "float32"]
    largest = np.max(np.abs(expected - before))
    allowed = ROUNDINGS * arithmetic * largest + 2 * (EPS[dtype] * np.abs(expected) + LEAST[dtype])
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(same, 0, np.abs(got - expected) / allowed)
    return float(np.max(np.where(np.isnan(found), np.inf, found)))


def case_excess(case: Any, dtype: np.dtype, device: str, steps: int = 6) -> float:
    """How far the device is from the CPU, see `excess`; both start each step from the same."""
    rng = np.random.default_rng(20260)
    name = buffers.FLOAT_TYPES[dtype]
    shapes = [*SHAPES, (10_007,)]
    here = [genesis.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in shapes]
    there = [genesis.Parameter(p.data.copy()).to(device) for p in here]
    # One tensor whose memory does not begin on a multiple of 16 bytes.
    data = rng.standard_normal(1_000).astype(dtype)
    here.append(genesis.Parameter(data[1:].copy()))
    there.append(genesis.Parameter(buffers.put(data, device)[1:]))
    ours, theirs = case.make(here), case.make(there)
    worst = 0.0
    for _ in range(steps):
        befores = [p.data.copy() for p in here]
        states = [_arrays(ours.state.get(p, {})) for p in here]
        for p, q in zip(here, there):
            p.grad = rng.standard_normal(p.shape).astype(dtype)
            q.grad = buffers.put(p.grad, device)
        ours.step()
        theirs.step()
        for p, q, before, state in zip(here, there, befores, states):
            worst = max(worst, excess(q.numpy(), p.data, before, name))
            p.data[...] = q.numpy()
            new = _arrays(theirs.state.get(q, {}))
            for entry, values in _arrays(ours.state.get(p, {})).items():
                old = state.get(entry, np.zeros_like(values))
                worst = max(worst, excess(new[entry], values, old, name))
                ours.state[p][entry] = new[entry]
    return worst


def _arrays(entries: Any) -> dict[str, np.ndarray]:
    """The buffers among a parameter's state, copied to the host."""
    return {
        name: buffers.host_copy(value) for name, value in entries.items() if buffers.is_array(value)
    }


def check_cases(device: str, cases: list = CASES) -> dict[str, dict[str, float]]:
    """Run the table of cases; the excess of each by data type."""
    found: dict[str, dict[str, float]] = {}
    for case in cases:
        found[case.id] = {
            buffers.FLOAT_TYPES[dtype]: case_excess(case, dtype, device) for dtype in DTYPES
        }
        bad = {dtype: value for dtype, value in found[case.id].items() if not value <= 1}
        print("\r" + " " * 100 + "\r" + case.id[:100], end="\n" if bad else "", flush=True)
        if bad:
            print(f"  WRONG, in multiples of what is allowed: {bad}")
    wrong = sum(not value <= 1 for values in found.values() for value in values.values())
    worst = max(value for values in found.values() for value in values.values())
    print(
        f"\r{len(cases)} cases in {len(DTYPES)} data types: {wrong} wrong; the largest difference "
        f"is {worst:.2f} of what is allowed{' ' * 40}"
    )
    return found


# ---- the speed ----


class Gpu:
    """Where times are taken: the default stream of the first GPU."""

    device = "cuda"

    def __init__(self, torch: Any):
        self._torch = torch
        self._cuda = cuda_driver.cuda()
        self._begin, self._end = self._cuda.event(), self._cuda.event()

    def array(self, tensor: Any) -> Any:
        """A torch tensor as something of which a Parameter can be made, sharing its memory."""
        return tensor

    def wait(self) -> None:
        """Wait until all work is done."""
        self._torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """How long the device works on what `call` puts there, the host's time left out."""
        # While the device sleeps, the host hands over all that is to be timed.
        self._torch.cuda._sleep(4_000_000)  # cycles, 2 to 3 ms
        self._begin.record()
        call()
        self._end.record()
        self._end.synchronize()
        return self._cuda.event_elapsed_time(self._begin, self._end) / 1e3

    def forget(self) -> None:
        """Give memory back, so that torch's and Numba's allocators can use it."""
        self.wait()
        self._torch.cuda.empty_cache()


OPTIMIZERS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: class, hyper-parameters, and float32 numbers that an element's update reads and writes
    "AdamW": ("AdamW", {"lr": 1e-3}, 7),
    "SGD momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}, 5),
    "RMSprop": ("RMSprop", {"lr": 1e-3}, 5),
}
FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, Numba or Python says that memory is used up."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower().replace("_", " ")


def contenders(
    torch: Any, place: Any, optimizer: str, shapes: list[tuple[int, ...]]
) -> dict[str, Callable[[], object]]:
    """Steps of genesis and torch on float32 parameters of their own and the same gradients."""
    name, hyper, _ = OPTIMIZERS[optimizer]
    options = {"torch fused": {"fused": True}} if name in FUSED else {}
    options["torch foreach"] = {"foreach": True}
    grads = [torch.full(shape, 0.1, device=place.device) for shape in shapes]

    def parameters() -> Iterator[Any]:
        for shape in shapes:
            yield torch.ones(shape, device=place.device)

    ours = [genesis.Parameter(place.array(tensor)) for tensor in parameters()]
    for param, grad in zip(ours, grads):
        param.grad = place.array(grad)
    calls: dict[str, Callable[[], object]] = {
        "genesis": getattr(genesis.optim, name)(ours, **hyper).step
    }
    calls["genesis"]()
    for other, option in options.items():
        try:
            theirs = [tensor.requires_grad_() for tensor in parameters()]
            for tensor, grad in zip(theirs, grads):
                tensor.grad = grad
            step = getattr(torch.optim, name)(theirs, **hyper, **option).step
            step()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            print(f"{other} is left out: the device has not the memory for it")
        else:
            calls[other] = step
    place.wait()
    return calls


COPY_AT_MOST = 2**28


def copy_of(torch: Any, place: Any, moved: int) -> tuple[Callable[[], object], float]:
    """A copy on the device that moves `moved` bytes, and by how much its time is to be multiplied."""
    elements = max(1, moved // 8)  # 4 bytes read, 4 written
    copied = min(elements, COPY_AT_MOST)
    source = torch.ones(copied, device=place.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), elements / copied


def time_model(
    torch: Any, place: Any, optimizer: str, shapes: list[tuple[int, ...]], seconds: float
) -> dict[str, dict[str, float]]:
    """Microseconds of a step by contender: on the device, on the host, and both until it is done."""
    elements = sum(map(math.prod, shapes))
    calls = contenders(torch, place, optimizer, shapes)
    copy, factor = copy_of(torch, place, 4 * OPTIMIZERS[optimizer][2] * elements)
    device: dict[str, list[float]] = {name: [] for name in [*calls, "copy"]}

    def on_device(name: str, call: Callable[[], object]) -> Callable[[], object]:
        return lambda: device[name].append(place.seconds(call))

    timed = {name: on_device(name, call) for name, call in {**calls, "copy": copy}.items()}
    alternate(timed, seconds)  # its own times are of host and device together; not of interest
    waiting = dict.fromkeys(calls, place.wait)
    host = alternate(calls, seconds, waiting)
    place.wait()

    def until_done(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: (call(), place.wait())

    whole = alternate({name: until_done(call) for name, call in calls.items()}, seconds)
    found = {
        name: {
            "device_us": 1e6 * statistics.median(device[name]),
            "host_us": 1e6 * statistics.median(host[name]),
            "whole_us": 1e6 * statistics.median(whole[name]),
        }
        for name in calls
    }
    found["copy"] = {"device_us": 1e6 * factor * statistics.median(device["copy"])}
    return found


def line(title: str, found: dict[str, dict[str, float]]) -> None:
    """Print what `time_model` found."""
    limit = found["copy"]["device_us"]
    for name, times in found.items():
        share = limit / times["device_us"]
        rest = [f"{times[key]:12.1f}" for key in ("host_us", "whole_us") if key in times]
        print(f"{title:32}{name:15}{times['device_us']:12.1f}{share:8.2f}" + "".join(rest))
        title = ""
    sys.stdout.flush()


HEADER = f"{'':47}{'device us':>12}{'of copy':>8}{'host us':>12}{'whole us':>12}"


def time_models(torch: Any, place: Any, models: list[str], seconds: float) -> dict[str, Any]:
    """Time every optimizer on every model, and print a table."""
    print(f"\nSteps with gradients in the same arrays, float32, medians\n{HEADER}")
    found: dict[str, Any] = {}
    for model in models:
        shapes = MODELS[model]()
        for optimizer in OPTIMIZERS:
            try:
                times = time_model(torch, place, optimizer, shapes, seconds)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                print(f"{model} {optimizer}: the device has not the memory for it")
                continue
            finally:
                place.forget()
            found.setdefault(model, {})[optimizer] = times
            line(f"{model} {optimizer}", times)
    return found


def time_hosts(torch: Any, place: Any, counts: list[int], seconds: float) -> dict[str, Any]:
    """Time AdamW on more and more small tensors, and print a table."""
    print(f"\nAdamW on small tensors (544 elements): does the host's time grow?\n{HEADER}")
    found = {}
    for count in counts:
        found[str(count)] = times = time_model(torch, place, "AdamW", [(544,)] * count, seconds)
        line(f"{count} tensor{'s' * (count > 1)}", times)
        place.forget()
    return found


# ---- the command ----


def about(cuda: Any, torch: Any) -> dict[str, str]:
    """What the results belong to."""
    from importlib.metadata import version

    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return {
        "device": name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "multiprocessors": str(device.MULTIPROCESSOR_COUNT),
        "python": platform.python_version(),
        "genesis": genesis.__version__,
        "torch": torch.__version__,
        **{package: version(package) for package in ("numpy", "numba", "numba-cuda")},
        "date": time.strftime("%Y-%m-%d"),
    }


def write(results: dict[str, Any], folder: Path) -> Path:
    """Keep results under the device's name."""
    name = re.sub(r"[^A-Za-z0-9.]+", "_", results["about"]["device"]).strip("_")
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models and short timings")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="only these models")
    parser.add_argument("--no-timing", action="store_true", help="check the numbers only")
    options = parser.parse_args(arguments)
    try:
        cuda = cuda_driver.cuda()
    except RuntimeError as error:
        print(f"gpu_check needs a GPU. {error}", file=sys.stderr)
        return 2
    if cuda_driver.SIMULATED:
        print(
            "gpu_check needs a GPU, not the simulator: unset NUMBA_ENABLE_CUDASIM", file=sys.stderr
        )
        return 2
    cases = check_cases("cuda:0")
    wrong = any(not value <= 1 for values in cases.values() for value in values.values())
    if options.no_timing:
        return int(wrong)
    try:
        import torch
    except ImportError:
        print("timings need torch, which is not installed", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(f"timings need a torch that can use CUDA, not {torch.__version__}", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"about": about(cuda, torch), "cases": cases}
    print("\n" + "\n".join(f"{name:20}{value}" for name, value in results["about"].items()))
    place = Gpu(torch)
    seconds = 0.5 if options.quick else 3.0
    models = options.models or (["mlp", "tiny1000", "resnet50"] if options.quick else list(MODELS))
    results["host"] = time_hosts(torch, place, [1, 100, 1000], seconds)
    results["models"] = time_models(torch, place, models, seconds)
    print(f"\nwritten to {write(results, Path(__file__).parent / 'results')}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
