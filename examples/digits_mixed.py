# SPDX-License-Identifier: Apache-2.0
"""The digits network in mixed precision: 16-bit numbers forward and backward, float32 in the step.

    python examples/digits_mixed.py

It trains the network of digits.py three times, in float32, bfloat16 and float16, and compares. The
16-bit runs use everything that mixed precision needs: `autocast`, `GradScaler`, clipping by the norm
in the same pass, and gradients accumulated over parts of a batch.

On a CPU this saves no time: NumPy has no fast 16-bit arithmetic. It shows how the pieces go together,
and that the numbers hold.
"""

import argparse
from pathlib import Path

import numpy as np
from digits import Linear, ReLU, backward, cross_entropy, evaluate, forward, load
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import genesis
from genesis.progress import Progress

TYPES = ["float32", "bfloat16", "float16"]
PARTS = 2  # of a batch, one after the other, as where memory is short
MAX_NORM = 5.0


def product(a, b):
    """a @ b as a GPU's tensor cores do it: 16-bit operands, float32 sums, a 16-bit result."""
    wide = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
    return wide.astype(a.dtype, copy=False)


class MixedLinear(Linear):
    """A Linear that computes in the type in which its parameters show themselves."""

    def forward(self, x):
        self.x = x.astype(self.weight.dtype, copy=False)
        return product(self.x, self.weight.data) + self.bias.data

    def backward(self, grad):
        gradients = product(self.x.T, grad), grad.sum(axis=0)
        for parameter, new in zip((self.weight, self.bias), gradients):
            # The first part of a batch sets the gradient, the others add to it.
            parameter.grad = new if parameter.grad is None else parameter.grad + new
        return product(grad, self.weight.T)


def train_epoch(network, optimizer, scaler, region, images, labels, rng, batch_size=32):
    """One pass over the images; returns how many steps were left out for their gradients."""
    left_out = 0
    order = rng.permutation(len(images))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for part in np.array_split(batch, PARTS):
            with region:
                logits = forward(network, images[part])
                grad = cross_entropy(logits.astype(np.float32), labels[part])[1]
                share = len(part) / len(batch)
                with np.errstate(over="ignore", invalid="ignore"):  # what the scaler is for
                    backward(network, scaler.scale(grad * share).astype(logits.dtype))
        left_out += scaler.step(optimizer, max_norm=MAX_NORM) is None
        scaler.update()
        optimizer.clear_grad()
    return left_out


def train(kind, epochs, seed):
    """Train in one type; returns the test accuracy after each epoch."""
    rng = np.random.default_rng(seed)
    linears = [MixedLinear(64, 256, rng), MixedLinear(256, 128, rng), MixedLinear(128, 10, rng)]
    network = [linears[0], ReLU(), linears[1], ReLU(), linears[2]]
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]
    optimizer = genesis.optim.AdamW(parameters, lr=1e-3)
    low = kind != "float32"
    region = genesis.autocast(kind if low else None, enabled=low)
    # float16 has room for small gradients only if they are scaled up; bfloat16 has as much of it as
    # float32. The first scale is far too large, to show how the scaler finds a better one.
    scaler = genesis.amp.GradScaler(init_scale=2.0**24, enabled=kind == "float16")
    images, labels, test_images, test_labels = load()
    accuracies = []
    left_out = 0
    for _ in Progress(range(epochs), title=kind, unit="epochs"):
        left_out += train_epoch(network, optimizer, scaler, region, images, labels, rng)
        with region:
            accuracies.append(evaluate(network, test_images, test_labels)[1])
    print(
        f"{kind:8}  test accuracy {accuracies[-1]:.1%}, steps left out {left_out}, "
        f"loss scale {scaler.get_scale():g}"
    )
    return accuracies


def plot(curves, path):
    """Draw the accuracies of all runs into a PNG file."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    looks = [("#000000", "-", "o"), ("#0072B2", "--", "s"), ("#D55E00", ":", "^")]
    for (kind, accuracies), (color, line, marker) in zip(curves.items(), looks):
        epochs = range(1, len(accuracies) + 1)
        percent = 100 * np.array(accuracies)
        axes.plot(epochs, percent, line, color=color, marker=marker, markersize=4, label=kind)
    axes.set(title="Digits in mixed precision", xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main(argv=None):
    """Train in all three types and return the last test accuracy of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default="digits_mixed.png", help="the PNG")
    args = parser.parse_args(argv)
    if args.epochs < 1 or args.seed < 0:
        parser.error("--epochs must be at least 1, --seed at least 0")
    with threadpool_limits(1):
        curves = {kind: train(kind, args.epochs, args.seed) for kind in TYPES}
    plot(curves, args.output)
    last = {kind: float(accuracies[-1]) for kind, accuracies in curves.items()}
    worst = max(last["float32"] - accuracy for accuracy in last.values())
    print(
        f"16-bit runs are at most {100 * worst:.1f} points below float32, curves in {args.output}"
    )
    return last


if __name__ == "__main__":
    main()
