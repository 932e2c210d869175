# SPDX-License-Identifier: Apache-2.0
"""Train a network on handwritten digits in several processes, which share the batch and the update.

    mpiexec -n 2 python examples/digits_mpi.py

The batch is divided into four parts, however many processes there are, and gradients are added up in
the order of the parts: one process, two or four come to the same network, to the last bit. It needs
mpi4py and an MPI library: pip install mpi4py mpich
"""

import argparse
import os
import zlib
from itertools import pairwise

# Processes share the cores: one thread each, for NumPy as well, which reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import genesis
from genesis.distributed import DistributedOptimizer, save_checkpoint

PARTS = 4


def load():
    """Images and labels to train on, 1347 of them, and 450 to test with."""
    images, labels = load_digits(return_X_y=True)
    images, test_images, labels, test_labels = train_test_split(
        images.astype(np.float32), labels, test_size=0.25, stratify=labels, random_state=0
    )
    mean, std = images.mean(axis=0), images.std()
    return (images - mean) / std, labels, (test_images - mean) / std, test_labels


def network(rng, widths=(64, 256, 128, 10)):
    """Weights and biases of each layer."""
    return [
        {
            "W": rng.standard_normal((inputs, outputs), np.float32)
            * np.float32((2 / inputs) ** 0.5),
            "b": np.zeros(outputs, np.float32),
        }
        for inputs, outputs in pairwise(widths)
    ]


def forward(layers, x):
    """What comes into each layer, and what comes out of the last."""
    inputs = []
    for number, layer in enumerate(layers):
        inputs.append(x)
        x = x @ layer["W"] + layer["b"]
        if number < len(layers) - 1:
            x = np.maximum(x, 0)
    return inputs, x


def gradients(layers, x, labels):
    """A tree like `layers`: the gradients of the mean cross-entropy of a part of the batch."""
    inputs, logits = forward(layers, x)
    grad = np.exp(logits - logits.max(axis=1, keepdims=True))
    grad /= grad.sum(axis=1, keepdims=True)
    grad[np.arange(len(labels)), labels] -= 1
    grad /= np.float32(len(labels))
    found = []
    for layer, into in zip(reversed(layers), reversed(inputs)):
        found.append({"W": into.T @ grad, "b": grad.sum(axis=0)})
        grad = (grad @ layer["W"].T) * (into > 0)
    return found[::-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--checkpoint", help="save one after each epoch, by this name")
    args = parser.parse_args()
    images, labels, test_images, test_labels = load()
    # All processes have the same generator, and so the same first weights and the same batches.
    rng = np.random.default_rng(0)
    layers = network(rng)
    optimizer = DistributedOptimizer(genesis.optim.AdamW(layers, lr=1e-3), parts=PARTS)
    for epoch in range(1, args.epochs + 1):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - 31, 32):
            batch = order[start : start + 32].reshape(PARTS, -1)
            for part in optimizer.my_parts:
                rows = batch[part]
                optimizer.accumulate(gradients(layers, images[rows], labels[rows]))
            optimizer.step(max_norm=1.0)
        if args.checkpoint:
            save_checkpoint(args.checkpoint, optimizer=optimizer, layers=layers, epoch=epoch)
    if MPI.COMM_WORLD.rank == 0:
        _, logits = forward(layers, test_images)
        accuracy = np.mean(logits.argmax(axis=1) == test_labels)
        bits = 0
        for layer in layers:
            for array in layer.values():
                bits = zlib.crc32(array.tobytes(), bits)
        print(
            f"test accuracy {accuracy:.1%} after {args.epochs} epochs in {optimizer.size} processes, "
            f"weights {bits:08x}"
        )


if __name__ == "__main__":
    main()
