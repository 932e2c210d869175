"""
Sixteen bits, with and without masters
======================================

bfloat16 has eight binary digits. Below 1 its numbers are 1/256 apart, and a step of 0.001, less
than half of that, is lost when it is stored, however often it is taken. ``master_weights`` updates
a float32 copy; ``stochastic_rounding`` rounds up or down at random, so that steps count on average.
See :doc:`../mixed_precision`.
"""

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np

import genesis

SETTINGS = {
    "float32": (np.float32, {}),
    "bfloat16": (ml_dtypes.bfloat16, {}),
    "bfloat16, stochastic_rounding": (ml_dtypes.bfloat16, {"stochastic_rounding": True}),
    "bfloat16, master_weights": (ml_dtypes.bfloat16, {"master_weights": True}),
}
COLORS = {
    "float32": "black",
    "bfloat16": "tab:red",
    "bfloat16, stochastic_rounding": "tab:orange",
    "bfloat16, master_weights": "tab:blue",
}
WIDTHS = {"float32": 4}

# %%
# One number
# ----------
# It begins at 1, and each of 300 steps subtracts 0.001. Plain bfloat16 never leaves 1. With a
# master it is the rounded copy of what float32 has; with stochastic rounding it jumps, and stays
# near.

fig, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
for name, (dtype, options) in SETTINGS.items():
    params = {"x": np.ones(1, dtype)}
    optimizer = genesis.optim.SGD(params, lr=1e-3, **options)
    path = [1.0]
    for _ in range(300):
        optimizer.step(grads={"x": np.ones(1, np.float32)})
        path.append(float(params["x"][0]))
    alpha = 0.25 if name == "float32" else 1
    ax.plot(path, label=name, color=COLORS[name], lw=WIDTHS.get(name, 1.5), alpha=alpha)
ax.set_xlabel("step")
ax.set_ylabel("value of the parameter")
ax.grid(alpha=0.3)
ax.legend()
plt.show()

# %%
# A fit
# -----
# A line through 512 points in 64 dimensions. As the error falls, so do the steps; plain bfloat16
# stops where they are lost, at an error a thousand times that of the others. With a master, or
# rounded at random, they go on to where rounding the parameters themselves makes the error: the
# loss and its gradients are those of the rounded ones. The master, dashed, is a little better than
# its copy.

rng = np.random.default_rng(0)
X = rng.standard_normal((512, 64)).astype(np.float32)
truth = rng.standard_normal(64).astype(np.float32)
y = X @ truth


def loss(w):
    return float(np.mean((X @ w.astype(np.float32) - y) ** 2))


fig, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
for name, (dtype, options) in SETTINGS.items():
    params = {"w": np.zeros(64, dtype)}
    optimizer = genesis.optim.SGD(params, lr=2e-2, **options)
    [parameter] = optimizer.param_groups[0]["params"]
    losses, of_master = [], []
    for _ in range(400):
        error = X @ params["w"].astype(np.float32) - y
        optimizer.step(grads={"w": 2 * X.T @ error / len(y)})
        losses.append(loss(params["w"]))
        if "master_weights" in options:
            of_master.append(loss(optimizer.state[parameter]["master"]))
    alpha = 0.25 if name == "float32" else 1
    ax.semilogy(losses, label=name, color=COLORS[name], lw=WIDTHS.get(name, 1.5), alpha=alpha)
    if of_master:
        ax.semilogy(of_master, "--", color=COLORS[name], label="its master")
ax.set_xlabel("step")
ax.set_ylabel("mean squared error")
ax.grid(alpha=0.3)
ax.legend(loc="lower left")
plt.show()
