"""Steps of `genesis.distributed` at ResNet-50's shapes: time beside torch's, memory, overlap.

    mpiexec -n 2 python benchmarks/distributed.py time
    mpiexec -n 4 python benchmarks/distributed.py memory
    mpiexec -n 2 python benchmarks/distributed.py overlap

`time` takes turns with torch's DistributedDataParallel and ZeroRedundancyOptimizer over gloo, in the
same processes and with the same gradients, which are there already and cost nothing. It also measures
what the model of docs/scaling.md is made of. Each rank has one thread.
"""

import argparse
import datetime
import os
import statistics
import tempfile
import time

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import shapes
from mpi4py import MPI

import genesis
from genesis.distributed import DistributedOptimizer

COMM = MPI.COMM_WORLD
SHAPES = shapes.resnet50()
ELEMENTS = sum(int(np.prod(shape)) for shape in SHAPES)
MB = 1e6


def arrays(seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in SHAPES]


def optimizer(params, **others):
    parameters = [genesis.Parameter(array) for array in params]
    return DistributedOptimizer(genesis.optim.AdamW(parameters, lr=1e-3), COMM, **others)


def ours(grads, **others):
    opt = optimizer(arrays(0), **others)
    return lambda: opt.step(grads=grads)


def torchs(grads, folder, fused):
    """A step of torch's, from the backward pass on, whose gradients are these."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    if not dist.is_initialized():
        wait = datetime.timedelta(seconds=120)
        store = f"file://{folder}/store"
        dist.init_process_group(
            "gloo", init_method=store, rank=COMM.rank, world_size=COMM.size, timeout=wait
        )

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *params):
            return params[0].new_zeros(())

        @staticmethod
        def backward(ctx, _):
            return tuple(tensors)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterList(map(torch.from_numpy, arrays(0)))

        def forward(self):
            return Given.apply(*self.weights)

    tensors = [torch.from_numpy(grad) for grad in grads]
    model = DistributedDataParallel(Model(), gradient_as_bucket_view=True)
    opt = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.AdamW, parameters_as_bucket_view=True, lr=1e-3, fused=fused
    )

    def step():
        opt.zero_grad()
        model().backward()
        opt.step()

    return step


def in_turns(contenders, rounds):
    """Seconds that the slowest rank takes: the median, and half of what is between the quartiles."""
    found = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, call in contenders.items():
            COMM.Barrier()
            start = time.perf_counter()
            call()
            seconds = COMM.allreduce(time.perf_counter() - start, MPI.MAX)
            if number >= 2:
                found[name].append(seconds)
    results = {}
    for name, seconds in found.items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        results[name] = middle, (high - low) / 2
    return results


def phases(grads, rounds):
    """Seconds of each phase of a step, and of MPI's own moves of as many bytes, medians."""
    opt = optimizer(arrays(0))
    opt.step(grads=grads)
    exchange, spent = opt._exchange, {}

    def timed(owner, method, name):
        call = getattr(owner, method)

        def inner(*args):
            COMM.Barrier()
            start = time.perf_counter()
            result = call(*args)
            spent.setdefault(name, []).append(time.perf_counter() - start)
            return result

        setattr(owner, method, inner)

    timed(exchange, "finish", "gradients to their owners")
    timed(opt._share.local, "_apply", "update and parameters to all")
    timed(exchange, "share_parameters", "parameters to all")
    for _ in range(rounds):
        opt.step(grads=grads)
    return {name: statistics.median(each) for name, each in spent.items()}


def network(rounds):
    """Latency of a small message, and the rate of a large one, both ways at once between neighbours."""
    other = COMM.rank ^ 1
    if other >= COMM.size:
        return None
    rates = {}
    for size in (8, 1 << 24):
        out, into = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        times = []
        for _ in range(rounds):
            COMM.Barrier()
            start = time.perf_counter()
            COMM.Sendrecv(out, other, recvbuf=into, source=other)
            times.append(time.perf_counter() - start)
        rates[size] = statistics.median(times)
    return rates[8], (1 << 24) / rates[1 << 24]


def measure_time(arguments):
    grads = arrays(100 + COMM.rank)
    with tempfile.TemporaryDirectory() as own:
        folder = COMM.bcast(own)
        contenders = {
            "genesis": ours(grads),
            "genesis, flatten": ours(grads, flatten=True),
            "genesis, MPI's reduction": ours(grads, deterministic=False),
            "genesis, bfloat16": ours(grads, communication="bfloat16"),
            "genesis, replicated": ours(grads, shard_state=False),
        }
        if not arguments.alone:
            contenders["torch"] = torchs(grads, folder, None)
            contenders["torch, fused"] = torchs(grads, folder, True)
        results = in_turns(contenders, arguments.rounds)
        COMM.Barrier()
    parts = phases(grads, arguments.rounds)
    found = network(30)
    if COMM.rank:
        return
    print(f"{COMM.size} ranks, {ELEMENTS / 1e6:.1f}M parameters, AdamW, a step:")
    best = min((t for name, (t, _) in results.items() if name.startswith("torch")), default=None)
    for name, (seconds, spread) in results.items():
        beside = f"  {seconds / best:.2f} of torch" if best else ""
        print(f"  {name:26} {seconds * 1e3:7.1f} ms +-{spread * 1e3:.1f}{beside}")
    for name, seconds in parts.items():
        print(f"  {name:32} {seconds * 1e3:7.1f} ms")
    if found:
        print(f"  latency {found[0] * 1e6:.1f} us, rate {found[1] / 1e9:.2f} GB/s each way")


def private():
    """Bytes of memory that this process has to itself."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private_")]
    return 1024 * sum(int(words[1]) for words in lines)


def measure_memory(arguments):
    params, grads = arrays(0), arrays(100 + COMM.rank)
    warm = optimizer([np.ones(8, np.float32)])
    warm.step(grads=[np.ones(8, np.float32)])  # code and libraries are there before the first look
    before = private()
    opt = optimizer(params, bucket_mb=arguments.bucket_mb)
    for _ in range(3):
        opt.step(grads=grads, max_norm=1.0)
    grown = private() - before
    state = sum(
        value.nbytes
        for entries in opt.state.values()
        for value in entries.values()
        if isinstance(value, np.ndarray)
    )
    exchange = opt._exchange
    scratch = exchange._outgoing.nbytes + exchange._incoming.nbytes
    sums = sum(each.nbytes for each in exchange.sums)
    found = COMM.gather((state, scratch, sums, grown))
    if COMM.rank:
        return
    whole, bucket = 2 * 4 * ELEMENTS, arguments.bucket_mb * 2**20
    state, scratch, sums, grown = (max(each) for each in zip(*found))
    print(f"{COMM.size} ranks, {ELEMENTS / 1e6:.1f}M parameters, AdamW, the rank that has most:")
    print(
        f"  state    {state / MB:7.1f} MB, {state / whole * COMM.size:.4f} of 1/{COMM.size} of all"
    )
    print(f"  buffers  {scratch / MB:7.1f} MB, {scratch / bucket:.2f} buckets")
    print(f"  sums     {sums / MB:7.1f} MB, {sums / bucket:.2f} buckets")
    rest = grown - state - scratch - sums
    print(f"  grown    {grown / MB:7.1f} MB of private memory, {rest / MB:.1f} MB more than these")


def measure_overlap(arguments):
    """A backward pass that computes for a while before each gradient, with `ready` and without."""
    grads = arrays(100 + COMM.rank)
    work = np.ones((256, 256), np.float32)
    totals = {}
    for early in (False, True):
        opt = optimizer(arrays(0))
        parameters = opt.param_groups[0]["params"]
        events = []
        for method in ("_start", "_arrived"):
            call = getattr(opt._exchange, method)

            def noted(*args, call=call, method=method, events=events):
                events.append((time.perf_counter(), method))
                return call(*args)

            setattr(opt._exchange, method, noted)
        for number in range(arguments.rounds):
            del events[:]
            COMM.Barrier()
            start = time.perf_counter()
            for parameter, grad in zip(reversed(parameters), reversed(grads)):
                for _ in range(1 + grad.size // 60000):
                    work @ work
                parameter.grad = grad
                if early:
                    opt.ready(parameter)
            over = time.perf_counter()
            opt.step()
            end = time.perf_counter()
            if number:
                totals.setdefault(early, []).append((over - start, end - over))
        if early and COMM.rank == 0:
            print("the last pass, ms after its begin:")
            for moment, method in events:
                what = "sent" if method == "_start" else "summed up"
                when = "in the backward pass" if moment < over else "in the step"
                print(f"  {(moment - start) * 1e3:7.1f} a bucket is {what}, {when}")
            print(f"  {(over - start) * 1e3:7.1f} the backward pass is over")
            print(f"  {(end - start) * 1e3:7.1f} the step is over")
    if COMM.rank == 0:
        for early, times in totals.items():
            backward, step = (statistics.median(each) * 1e3 for each in zip(*times))
            name = "with ready" if early else "without"
            print(f"{name:10}: backward pass {backward:.1f} ms, step {step:.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "memory", "overlap"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bucket-mb", type=float, default=25)
    parser.add_argument("--alone", action="store_true", help="without torch")
    arguments = parser.parse_args()
    {"time": measure_time, "memory": measure_memory, "overlap": measure_overlap}[arguments.what](
        arguments
    )


if __name__ == "__main__":
    main()
