# SPDX-License-Identifier: Apache-2.0
"""Train a small neural network on handwritten digits: NumPy computes, genesis optimizes.

    python examples/digits.py --optimizer adamw

NumPy has no autograd, so each layer computes its gradients by hand, in `backward`. All that
genesis needs is what comes out: an array in `parameter.grad` before each `optimizer.step()`.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import genesis
from genesis.progress import Progress

# Class, learning rate, weight decay, other settings. AdamW shrinks the weights by its decay, the
# others add theirs to the gradient: the numbers do not compare.
OPTIMIZERS = {
    "adamw": (genesis.optim.AdamW, 1e-3, 1e-2, {}),
    "adam": (genesis.optim.Adam, 1e-3, 1e-4, {}),
    "sgd": (genesis.optim.SGD, 5e-2, 1e-4, {"momentum": 0.9}),
    "rmsprop": (genesis.optim.RMSprop, 5e-4, 1e-4, {}),
}


class Linear:
    """y = x @ weight + bias, for a batch x with one example a row."""

    def __init__(self, inputs, outputs, rng):
        # He initialization: a signal keeps its size through any number of ReLUs.
        weight = rng.standard_normal((inputs, outputs), np.float32) * math.sqrt(2 / inputs)
        self.weight = genesis.Parameter(weight)
        self.bias = genesis.Parameter(np.zeros(outputs, np.float32))

    def forward(self, x):
        self.x = x
        return x @ self.weight + self.bias  # NumPy takes a Parameter for the array in it

    def backward(self, grad):
        """Take the loss's gradient by y, set those by weight and bias, return the one by x."""
        self.weight.grad = self.x.T @ grad
        self.bias.grad = grad.sum(axis=0)
        return grad @ self.weight.T


class ReLU:
    """y = max(x, 0)."""

    def forward(self, x):
        self.positive = x > 0
        return x * self.positive

    def backward(self, grad):
        return grad * self.positive


def forward(network, x):
    for layer in network:
        x = layer.forward(x)
    return x


def backward(network, grad):
    for layer in reversed(network):
        grad = layer.backward(grad)


def cross_entropy(logits, labels):
    """The mean cross-entropy of softmax(logits), and its gradient by the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    return -log_p[rows, labels].mean(), grad / len(labels)


def evaluate(network, images, labels):
    """Mean loss and accuracy."""
    logits = forward(network, images)
    return cross_entropy(logits, labels)[0], np.mean(logits.argmax(axis=1) == labels)


def load():
    """Images and labels to train on, 1347 of them, and 450 to test with."""
    images, labels = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(
        images.astype(np.float32), labels, test_size=0.25, stratify=labels, random_state=0
    )
    # Pixels count from 0 to 16. Centred they train better: on raw ones SGD's loss goes up and down.
    mean, std = images.mean(axis=0), images.std()
    return (images - mean) / std, labels, (test_images - mean) / std, test_labels


def train(network, optimizer, data, epochs, batch_size, rng):
    """Train; return a row for each epoch: train loss and accuracy, test loss and accuracy."""
    images, labels, test_images, test_labels = data
    history = []
    for epoch in (bar := Progress(range(1, epochs + 1), unit="epochs")):
        order = rng.permutation(len(images))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logits = forward(network, images[batch])
            backward(network, cross_entropy(logits, labels[batch])[1])
            optimizer.step().clear_grad()

        loss, accuracy = evaluate(network, images, labels)
        test_loss, test_accuracy = evaluate(network, test_images, test_labels)
        history.append((loss, accuracy, test_loss, test_accuracy))
        bar.write(
            f"epoch {epoch:2}: loss {loss:.4f}, accuracy {accuracy:.1%}; "
            f"on test images {test_loss:.4f}, {test_accuracy:.1%}"
        )
        if not np.isfinite(loss):
            raise SystemExit(f"the loss is {loss} after epoch {epoch}: try a smaller --lr")
    return np.array(history)


def plot(history, title, path):
    """Draw the learning curves into a PNG file."""
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes, curves in ((left, history[:, [0, 2]]), (right, 100 * history[:, [1, 3]])):
        # Blue and vermilion are told apart by everybody, a dashed line in a grey print too.
        axes.plot(epochs, curves[:, 0], ".-", color="#0072B2", label="training images")
        axes.plot(epochs, curves[:, 1], ".--", color="#D55E00", label="test images")
        axes.set(xlabel="epoch", xlim=(0, len(history) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    left.set(ylabel="mean cross-entropy (log scale)", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    right.set(ylabel="accuracy (%)")
    figure.savefig(path)


def arguments(argv):
    """The command line, checked."""
    rates = ", ".join(f"{lr:g} for {name}" for name, (_, lr, *_) in OPTIMIZERS.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: %(default)s")
    add("--lr", type=float, help=f"learning rate; default: {rates}")
    add("--epochs", type=int, default=30, help="default: %(default)s")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--seed", type=int, default=0, help="of first weights and shuffling; default: %(default)s")
    add("--output", type=Path, default="digits.png", help="learning curve; default: %(default)s")
    args = parser.parse_args(argv)
    for fits, message in (
        (args.lr is None or 0 < args.lr < math.inf, f"--lr must be above 0, but is {args.lr}"),
        (args.epochs >= 1, f"--epochs must be at least 1, but is {args.epochs}"),
        (args.batch_size >= 1, f"--batch-size must be at least 1, but is {args.batch_size}"),
        (args.seed >= 0, f"--seed must be at least 0, but is {args.seed}"),
        (args.output.suffix == ".png", f"--output must end in .png, but is {args.output}"),
        (args.output.parent.is_dir(), f"--output: no directory {args.output.parent}"),
    ):
        if not fits:
            parser.error(message)
    return args


def main(argv=None):
    """Train, plot how it went, and return the accuracy on the test images."""
    args = arguments(argv)
    rng = np.random.default_rng(args.seed)
    linears = [Linear(64, 256, rng), Linear(256, 128, rng), Linear(128, 10, rng)]
    network = [linears[0], ReLU(), linears[1], ReLU(), linears[2]]
    optimizer_class, default_lr, decay, settings = OPTIMIZERS[args.optimizer]
    groups = [
        {"params": [linear.weight for linear in linears], "weight_decay": decay},
        {"params": [linear.bias for linear in linears], "weight_decay": 0},
    ]
    lr = args.lr or default_lr
    optimizer = optimizer_class(groups, lr=lr, **settings)

    start = time.perf_counter()
    with threadpool_limits(1):  # such small products gain nothing from BLAS threads, only wait
        history = train(network, optimizer, load(), args.epochs, args.batch_size, rng)
    seconds = time.perf_counter() - start
    accuracy = float(history[-1, -1])
    result = f"test accuracy {accuracy:.1%} after {args.epochs} epoch{'s' * (args.epochs > 1)}"
    plot(history, f"Digits, {optimizer_class.__name__} with lr {lr:g}: {result}", args.output)
    print(f"{result} ({seconds:.1f} s), learning curve in {args.output}")
    return accuracy


if __name__ == "__main__":
    main()
