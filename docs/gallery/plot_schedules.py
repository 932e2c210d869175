"""
Every schedule
==============

What each schedule makes of a learning rate over 100 steps. Those that are functions come first,
beside the scheduler that gives the same numbers where there is one; then the schedulers that have
no such function. See :doc:`../schedules`.
"""

import matplotlib.pyplot as plt
import numpy as np

import genesis
from genesis.optim import lr_scheduler, schedules

STEPS = 100

# %%
# Functions of the step
# ---------------------
# Each is a factor, 1 for the full learning rate, and can be given as ``lr=``, multiplied by a number.

functions = {
    "constant(0.3, 30)\nConstantLR": schedules.constant(0.3, 30),
    "linear(0.1, 1, 30)\nLinearLR": schedules.linear(0.1, 1.0, 30),
    "exponential(0.97)\nExponentialLR": schedules.exponential(0.97),
    "step(25, 0.5)\nStepLR": schedules.step(25, 0.5),
    "multistep([30, 60, 80], 0.5)\nMultiStepLR": schedules.multistep([30, 60, 80], 0.5),
    "polynomial(100, power=2)\nPolynomialLR": schedules.polynomial(100, power=2),
    "cosine(100)\nCosineAnnealingLR": schedules.cosine(100),
    "warm_restarts(15, T_mult=2)\nCosineAnnealingWarmRestarts": schedules.warm_restarts(
        15, T_mult=2
    ),
    "warmup_cosine(10, 100)\nget_cosine_schedule_with_warmup": schedules.warmup_cosine(10, 100),
    "cyclic(15)\nCyclicLR": schedules.cyclic(15),
    'cyclic(15, mode="triangular2")\nCyclicLR': schedules.cyclic(15, mode="triangular2"),
    'cyclic(15, mode="exp_range", gamma=0.98)\nCyclicLR': schedules.cyclic(
        15, mode="exp_range", gamma=0.98
    ),
    "one_cycle(101)\nOneCycleLR": schedules.one_cycle(101),
    "one_cycle(101, three_phase=True)\nOneCycleLR": schedules.one_cycle(101, three_phase=True),
    "warmup(10, exponential(0.97))": schedules.warmup(10, schedules.exponential(0.97)),
    "cosine(100) * step(50, 0.5)\nproduct": schedules.cosine(100) * schedules.step(50, 0.5),
}


def panels(curves, columns):
    """A panel for each curve, all to the same scale."""
    rows = -(-len(curves) // columns)
    _, axes = plt.subplots(
        rows,
        columns,
        figsize=(12, 2.2 * rows),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for ax, (title, values) in zip(axes.flat, curves.items()):
        ax.step(range(len(values)), values, where="post", lw=2)
        ax.set_title(title, fontsize=9)
        ax.set_ylim(0, 1.1)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("factor")
    return axes


panels({title: [f(t) for t in range(STEPS + 1)] for title, f in functions.items()}, columns=4)
plt.show()

# %%
# Schedulers
# ----------
# They set ``group["lr"]`` of an optimizer, here from 1, and are stepped. One of them watches a
# loss: the thin line, which stops falling twice. Two are made of others.


def optimizer(lr=1.0):
    return genesis.optim.SGD({"W": np.zeros(1)}, lr=lr)


def run(make, *metrics):
    """The learning rate before each step."""
    opt = optimizer()
    scheduler = make(opt)
    rates = []
    for t in range(STEPS + 1):
        rates.append(opt.param_groups[0]["lr"])
        opt.step(grads={"W": np.zeros(1)})
        scheduler.step(*(metric[t] for metric in metrics))
    return rates


t = np.arange(STEPS + 1)
loss = 0.2 + 0.7 * np.exp(-np.minimum(t, 20) / 10) - 0.15 * np.clip((t - 50) / 20, 0, 1)

schedulers = {
    "LambdaLR(lambda t: 1 / (1 + t / 20))": run(
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t / 20))
    ),
    "MultiplicativeLR(lambda t: 0.96)": run(
        lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.96)
    ),
    "SWALR(swa_lr=0.3, anneal_epochs=40)": run(
        lambda o: lr_scheduler.SWALR(o, swa_lr=0.3, anneal_epochs=40)
    ),
    "ReduceLROnPlateau(factor=0.5,\npatience=10), and the loss": run(
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=10), loss
    ),
    "ChainedScheduler:\nConstantLR and ExponentialLR": run(
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.3, 20), lr_scheduler.ExponentialLR(o, 0.98)]
        )
    ),
    "SequentialLR:\nLinearLR, then CosineAnnealingLR": run(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, total_iters=20), lr_scheduler.CosineAnnealingLR(o, 80)],
            milestones=[20],
        )
    ),
}
axes = panels(schedulers, columns=3)
axes.flat[3].plot(loss, color="tab:gray", lw=1)
plt.show()
