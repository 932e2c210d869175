"""
Benchmarks
==========

What was measured on one machine, in turns; the figures are read from ``benchmarks/results``, where
the report says how they vary. How they were taken, and what they do not show, is in
:doc:`../performance`.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

results = Path("../../benchmarks/results/amd-epyc-2-cores.json")
report = json.loads(results.read_text(encoding="utf-8"))
machine, workloads = report["machine"], report["workloads"]
versions = machine["versions"]
print(
    f"{machine['processor']}, {machine['threads']} threads; torch {versions['torch']}, "
    f"optax {versions['optax']}, numpy {versions['numpy']}; {machine['time']}"
)


def median(key, contender):
    return workloads[key]["contenders"].get(contender, {}).get("median", np.nan)


# %%
# A step of AdamW
# ---------------
# How many times the time of genesis each contender takes: 1 is genesis, longer is slower. The gain
# is largest where tensors are small, since there the others wait for Python; a model of 25 million
# parameters waits for memory, whoever steps it, and the fused kernel of torch is as fast.

contenders = ["torch fused", "torch foreach", "torch for-loop", "optax", "NumPy"]
models = {
    "mlp": "MLP,\n6 tensors",
    "tiny1000": "1000 small\ntensors",
    "resnet50": "ResNet-50",
    "vit_b_16": "ViT-B/16",
    "bert_base": "BERT-base",
}


def bars(ax, keys, labels):
    """For each workload a bar of each contender, as a multiple of genesis' time."""
    width = 0.8 / len(contenders)
    for i, contender in enumerate(contenders):
        ratios = [median(key, contender) / median(key, "genesis") for key in keys]
        places = np.arange(len(keys)) + (i - (len(contenders) - 1) / 2) * width
        ax.bar(places, np.subtract(ratios, 1), width, bottom=1, label=contender)
        for place, ratio in zip(places, ratios):
            if np.isfinite(ratio):
                ax.annotate(
                    f"{ratio:.2f}"
                    if ratio < 1
                    else f"{ratio:.1f}"
                    if ratio < 10
                    else f"{ratio:.0f}",
                    (place, max(ratio, 1)),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                )
    ax.axhline(1, color="black", lw=1)
    ax.set_yscale("log")
    ax.set_ylim(0.85, 200)
    ax.set_yticks([1, 2, 5, 10, 20, 50, 100], ["genesis: 1", 2, 5, 10, 20, 50, 100])
    ax.minorticks_off()
    ax.set_xticks(range(len(keys)), labels)
    ax.set_xlim(-0.5, len(keys) - 0.5)
    ax.set_ylabel("time, as a multiple of genesis'")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(ncols=len(contenders), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(10, 4.5), layout="constrained")
bars(ax, [f"step/AdamW/{model}" for model in models], models.values())
plt.show()

# %%
# Clipping, and a loss scaler
# ---------------------------
# What stands around a step in a training loop: the norm of all gradients, the check for inf and
# NaN, zeros in the gradients. genesis does the first two in one pass and applies them in the
# update's own.

work = {
    "step": "step",
    "clip+step+zero": "clip, step,\nzero",
    "scaled": "unscale, check,\nclip, step, zero",
}
contenders = ["torch fused", "torch foreach", "torch for-loop", "NumPy"]
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, model in zip(axes, ("tiny1000", "resnet50")):
    bars(ax, [f"{kind}/AdamW/{model}" for kind in work], work.values())
    ax.get_legend().remove()
    ax.set_title(models[model].replace("\n", " "))
axes[1].set_ylabel("")
fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center", frameon=False)
plt.show()

# %%
# How near the limit
# ------------------
# The roofline is a kernel that moves the same bytes and computes next to nothing. At the shapes of
# ResNet-50 every rule is at about nine tenths of it or above: there is little left to be had from a
# faster formula.

keys = [key for key in workloads if key.startswith("step/") and key.endswith("/resnet50")]
shares = sorted((workloads[key]["fraction_of_roofline"], key.split("/")[1]) for key in keys)
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.barh([name for _, name in shares], [share for share, _ in shares], color="tab:blue")
for share, name in shares:
    ax.text(share - 0.01, name, f"{share:.2f}", va="center", ha="right", color="white", fontsize=8)
ax.axvline(1, color="black", lw=1)
ax.text(1.005, 0.94, "roofline", transform=ax.get_xaxis_transform(), fontsize=8)
ax.set_xlim(0, 1.1)
ax.set_xlabel("time of the roofline / time of a step")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
