"""One of two ranks that train a model together over gloo; run by test_trainers.py.

    python rank_trainer.py RANK FOLDER

What came of each case is saved as FOLDER/CASE-RANK.pt, for the tests to judge. A rank waits at most
TIMEOUT seconds for the other one.
"""

import copy
import datetime
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import genesis.torch as ours

TIMEOUT = 180.0
MAX_NORM = 0.1
# RMSprop has no fused form in torch.
OPTIONS = {
    "AdamW": {"lr": 0.03, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
}


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))


class Replicated:
    """Each rank has all parameters and all state: DistributedDataParallel."""

    def __init__(self, folder: Path, views: bool):
        self.folder, self.views = folder, views

    def model(self):
        return DistributedDataParallel(network(), gradient_as_bucket_view=self.views)

    def optimizer(self, cls, params, options):
        return cls(params, **options)

    def inner(self, optimizer):
        """The optimizer of torch's class or ours that does the step."""
        return optimizer

    def state(self, optimizer):
        return copy.deepcopy(optimizer.state_dict())


class Divided(Replicated):
    """Each rank has all parameters, and updates some of them: ZeroRedundancyOptimizer."""

    def optimizer(self, cls, params, options):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(
            params, optimizer_class=cls, parameters_as_bucket_view=self.views, **options
        )

    def inner(self, optimizer):
        return optimizer.optim

    def state(self, optimizer):
        optimizer.consolidate_state_dict(to=0)
        file = self.folder / "state.pt"
        if dist.get_rank() == 0:
            torch.save(optimizer.state_dict(), file)
        dist.barrier()
        loaded = torch.load(file, weights_only=True)
        dist.barrier()  # before the next one is written
        return loaded


class Sharded(Replicated):
    """Each rank has a part of each parameter, gradient and state: fully_shard."""

    def model(self):
        # It takes seconds to import, and tests import this file for less.
        from torch.distributed.fsdp import fully_shard

        model = network()
        fully_shard(model[0], mesh=dist.init_device_mesh("cpu", (2,)))
        return fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))


CASES = {
    "ddp-copies": (Replicated, False),
    "ddp-views": (Replicated, True),
    "zero-copies": (Divided, False),
    "zero-views": (Divided, True),
    "fsdp": (Sharded, False),
}


def whole(tensors):
    """Copies of tensors, put together if each rank has a part of them."""
    return [getattr(tensor, "full_tensor", tensor.clone)().clone() for tensor in tensors]


def trained(case, name, classes, strict):
    """Six steps of two batches each, the first three with one class and the last with the other."""
    model = case.model()
    params = [*model.parameters()]
    first = whole(param.detach() for param in params)
    losses, ways, in_buckets, saved = [], [], [], None
    for half, cls in enumerate(classes):
        is_ours = cls is getattr(ours, name)
        options = {**OPTIONS[name], **({"strict": strict} if is_ours else {})}
        optimizer = case.optimizer(cls, model.parameters(), options)
        if saved is not None:
            optimizer.load_state_dict(saved)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for step in range(3 * half, 3 * half + 3):
            generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
            for without_sync in (getattr(model, "no_sync", nullcontext), nullcontext):
                inputs = torch.randn(4, 6, generator=generator)
                wanted = inputs[:, :2].sin() + inputs[:, 2:4]
                with without_sync():
                    loss = torch.nn.functional.mse_loss(model(inputs), wanted) / 2
                    loss.backward()
                losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
            in_buckets += [p.grad.untyped_storage().nbytes() > p.grad.nbytes for p in params]
            optimizer.step()
            schedule.step()
            # Gradients that are views are kept, and are made views once more.
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            if is_ours:
                ways.append(tuple(case.inner(optimizer).fast))
        saved = case.state(optimizer)
    last = whole(param.detach() for param in params)
    return {
        "losses": losses,
        "moved": [end - start for end, start in zip(last, first)],
        "ways": ways,
        "in_buckets": in_buckets,
    }


def refused(case):
    """What `strict=True` says on this rank, and whether anything was written before."""
    model = case.model()
    optimizer = case.optimizer(ours.AdamW, model.parameters(), {"lr": 0.1, "strict": True})
    model(torch.ones(4, 6)).sum().backward()
    before = whole(param.detach() for param in model.parameters())
    said = None
    try:
        optimizer.step()
    except RuntimeError as error:
        said = str(error)
    after = whole(param.detach() for param in model.parameters())
    return {"said": said, "untouched": all(map(torch.equal, before, after))}


def main(rank: int, folder: Path) -> None:
    wait = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=wait
    )
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("genesis").addHandler(handler)
    for which, (kind, views) in CASES.items():
        case, results = kind(folder, views), {}
        for name in OPTIONS:
            peer, own = getattr(torch.optim, name), getattr(ours, name)
            ways = {
                "peer": (peer, peer),
                "ours": (own, own),
                "over": (peer, own),
                "back": (own, peer),
            }
            for key, classes in ways.items():
                told.clear()
                found = trained(case, name, classes, strict=kind is not Sharded)
                results[name, key] = {**found, "told": [*told]}
        results["strict"] = refused(case) if kind is Sharded else None
        torch.save(results, folder / f"{which}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
