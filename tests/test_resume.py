"""A run that is killed and resumed from a checkpoint is the run that was never interrupted."""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES, ONE_EACH
from devices import on_cpu_only

import genesis
from genesis.optim import lr_scheduler
from genesis.optim.swa_utils import AveragedParameters, get_ema_weight_fn

pytestmark = on_cpu_only


class Run:
    """A little training run with everything that has a state: a linear model on random data."""

    def __init__(self, case, dtype=np.float32):
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((64, 5)).astype(dtype)
        self.y = self.x @ np.arange(5, dtype=dtype)
        self.weight = genesis.Parameter(np.zeros(5, dtype), name="weight")
        self.bias = genesis.Parameter(np.zeros((), dtype), name="bias")
        self.optimizer = case.make(
            [{"params": [self.weight]}, {"params": [self.bias], "lr": 0.02, "weight_decay": 0}]
        )
        warmup = lr_scheduler.LinearLR(self.optimizer, total_iters=5)
        cosine = lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=15)
        self.scheduler = lr_scheduler.SequentialLR(self.optimizer, [warmup, cosine], [5])
        self.average = AveragedParameters([self.weight, self.bias], get_ema_weight_fn(0.9))
        self.rng = np.random.default_rng(1)
        self.step = 0

    def train(self, steps):
        for _ in range(steps):
            batch = self.rng.permutation(64)[:16]
            error = self.x[batch] @ self.weight + self.bias - self.y[batch]
            self.weight.grad = self.x[batch].T @ error / 16
            self.bias.grad = error.mean()
            self.optimizer.step(max_norm=1.0).clear_grad()
            self.scheduler.step()
            self.average.update()
            self.step += 1

    def save(self, path):
        genesis.save_checkpoint(
            path,
            weight=self.weight.data,
            bias=self.bias.data,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            average=self.average,
            random=self.rng.bit_generator.state,
            step=self.step,
        )

    def resume(self, path):
        loaded = genesis.load_checkpoint(
            path, optimizer=self.optimizer, scheduler=self.scheduler, average=self.average
        )
        self.weight.data[...] = loaded["weight"]
        self.bias.data[...] = loaded["bias"]
        self.rng.bit_generator.state = loaded["random"]
        self.step = loaded["step"]

    def everything(self):
        state = self.optimizer.state_dict()
        buffers = [v for entries in state["state"].values() for v in entries.values()]
        return [self.weight.data, self.bias.data, *buffers, *self.average.state_dict()["averages"]]


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.id)
def test_a_resumed_run_is_the_same_run(case, tmp_path):
    path = tmp_path / "run.safetensors"
    whole = Run(case)
    whole.train(20)
    first = Run(case)
    first.train(7)
    first.save(path)
    first.train(3)  # lost
    for stop in (12, 20):
        resumed = Run(case)
        resumed.resume(path)
        resumed.train(stop - resumed.step)
        resumed.save(path)
    assert resumed.step == whole.step == 20
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
    assert resumed.scheduler.state_dict() == whole.scheduler.state_dict()
    assert (
        resumed.optimizer.state_dict()["param_groups"]
        == (whole.optimizer.state_dict()["param_groups"])
    )
    for got, expected in zip(resumed.everything(), whole.everything(), strict=True):
        np.testing.assert_array_equal(got, expected)


SNAPSHOT = Path(__file__).parent / "data" / "optimizers_0.1.safetensors"


@on_cpu_only
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.peer == "torch"], ids=lambda case: case.id
)
def test_a_snapshot_of_0_1_goes_on_bit_by_bit(case):
    """Saved when each optimizer was a class with a kernel written by hand: three steps, then two.

    There were only those that torch has, too.
    """
    saved = genesis.load(SNAPSHOT)[case.id]
    rng = np.random.default_rng(11)
    shapes = (3, 2), (5,)
    first = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    params = [genesis.Parameter(array) for array in saved["params"]]
    assert [p.shape for p in params] == [array.shape for array in first]
    opt = case.make([{"params": params[:1]}, {"params": params[1:]}])
    opt.load_state_dict(saved["optimizer"])
    assert opt.param_groups[1]["lr"] == 0.02
    for step in range(5):
        gradients = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        if step >= 3:
            for p, gradient in zip(params, gradients):
                p.grad = gradient
            opt.step()
    for p, after in zip(params, saved["after"]):
        np.testing.assert_array_equal(p.data, after)
