# SPDX-License-Identifier: Apache-2.0
"""A network that autograd differentiates, trained so that Ctrl-C costs nothing.

    python examples/autograd_mlp.py
    python examples/autograd_mlp.py --resume       # after Ctrl-C, or after a crash

The model is a plain function of a list of dicts of arrays. HIPS autograd returns its gradients as a
list of dicts, too, and the step takes them as they are.

A run that was stopped at any moment and resumed ends with the same bits as one that was not. For
that a step is complete or has not begun, a checkpoint holds the parameters and the optimizer's state
after one and the same step, and all else (learning rate, order of the images) follows from the
number of that step.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path

import autograd.numpy as np
from autograd import value_and_grad
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import genesis
from genesis.optim import schedules

# ---- the model ----


def new_params(sizes, rng):
    """A list of layers. He initialization: a signal keeps its size through any number of ReLUs."""
    return [
        {
            "weight": rng.standard_normal((i, o), np.float32) * np.float32(math.sqrt(2 / i)),
            "bias": np.zeros(o, np.float32),
        }
        for i, o in pairwise(sizes)
    ]


def network(params, x):
    *hidden, last = params
    for layer in hidden:
        x = np.maximum(x @ layer["weight"] + layer["bias"], 0)
    return x @ last["weight"] + last["bias"]


def loss(params, images, labels):
    """The mean cross-entropy."""
    logits = network(params, images)
    logits = logits - np.max(logits, axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    return -np.mean(log_p[np.arange(len(labels)), labels])


def accuracy(params, images, labels):
    return np.mean(network(params, images).argmax(axis=1) == labels)


def load():
    """Images and labels to train on, 1347 of them, and 450 to test with."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(np.float32)  # pixels count from 0 to 16
    return train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)


# ---- training ----


def steps_of(optimizer):
    """How many steps the parameters have had: it is kept with them, so that it is never behind."""
    return next(iter(optimizer.state.values()), {"step": 0})["step"]


def train(params, optimizer, data, settings, checkpoint):
    """Train from wherever the parameters are to the end of the last epoch."""
    images, test_images, labels, test_labels = data
    per_epoch = math.ceil(len(images) / settings["batch_size"])

    def save():
        genesis.save_checkpoint(checkpoint, params=params, optimizer=optimizer, settings=settings)

    try:
        for step in range(steps_of(optimizer), settings["epochs"] * per_epoch):
            epoch, place = divmod(step, per_epoch)
            order = np.random.default_rng([settings["seed"], epoch]).permutation(len(images))
            batch = order[place * settings["batch_size"] :][: settings["batch_size"]]
            _, grads = value_and_grad(loss)(params, images[batch], labels[batch])
            optimizer.step(grads=grads, max_norm=1.0)
            if place == per_epoch - 1:
                save()
                print(
                    f"epoch {epoch + 1:2}: loss {loss(params, images, labels):.4f}; on test images "
                    f"{loss(params, test_images, test_labels):.4f}, "
                    f"{accuracy(params, test_images, test_labels):.1%}",
                    flush=True,
                )
    except KeyboardInterrupt:
        save()
        raise


def arguments(argv):
    """The command line, checked; of a run that goes on, with what it was started with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=20, help="default: %(default)s")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--lr", type=float, default=2e-3, help="the largest learning rate; default: %(default)s")
    add("--seed", type=int, default=0, help="of first weights and shuffling; default: %(default)s")
    add("--checkpoint", type=Path, default="autograd_mlp.safetensors", help="default: %(default)s")
    add("--resume", action="store_true", help="go on with the run whose checkpoint this is")
    args = parser.parse_args(argv)
    saved = None
    if args.resume:
        try:
            saved = genesis.load_checkpoint(args.checkpoint)
        except FileNotFoundError:
            parser.error(f"--resume: there is no {args.checkpoint}")
        except genesis.CheckpointError as error:
            parser.error(f"--resume: {error}")
        parser.set_defaults(**saved["settings"])
        args = parser.parse_args(argv)
    settings = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "seed")}
    started = settings if saved is None else saved["settings"]
    as_options = " ".join(f"--{k.replace('_', '-')} {value}" for k, value in started.items())
    for fits, message in (
        (args.epochs >= 1, f"--epochs must be at least 1, but is {args.epochs}"),
        (args.batch_size >= 1, f"--batch-size must be at least 1, but is {args.batch_size}"),
        (0 < args.lr < math.inf, f"--lr must be above 0, but is {args.lr}"),
        (args.seed >= 0, f"--seed must be at least 0, but is {args.seed}"),
        (settings == started, f"--resume goes on with the run as it was started: {as_options}"),
    ):
        if not fits:
            parser.error(message)
    return args, settings, saved


def main(argv=None):
    """Train, and return the parameters."""
    args, settings, saved = arguments(argv)
    data = load()
    params = new_params([64, 128, 64, 10], np.random.default_rng(settings["seed"]))
    steps = settings["epochs"] * math.ceil(len(data[0]) / settings["batch_size"])
    optimizer = genesis.optim.AdamW(
        genesis.optim.param_groups_weight_decay(params, 0.01),  # none for biases
        lr=settings["lr"] * schedules.warmup_cosine(steps // 10, steps),
    )
    if saved is not None:
        genesis.load_checkpoint(args.checkpoint, params=params, optimizer=optimizer)
        print(f"go on after step {steps_of(optimizer)} of {steps}", flush=True)
    try:
        with threadpool_limits(1):  # such small products gain nothing from BLAS threads
            train(params, optimizer, data, settings, args.checkpoint)
    except KeyboardInterrupt:
        print(f"stopped after step {steps_of(optimizer)} of {steps}; to go on:")
        option = f" --checkpoint {args.checkpoint}" * (
            args.checkpoint.name != "autograd_mlp.safetensors"
        )
        print(f"python examples/autograd_mlp.py --resume{option}")
        raise SystemExit(130) from None  # as the shell has it for Ctrl-C
    result = accuracy(params, data[1], data[3])
    print(
        f"test accuracy {result:.1%} after {settings['epochs']} epochs, kept in {args.checkpoint}"
    )
    return params


if __name__ == "__main__":
    main()
