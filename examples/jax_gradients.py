# SPDX-License-Identifier: Apache-2.0
"""JAX computes the gradients, genesis updates the parameters: NumPy arrays in a dict.

    python -m pip install jax
    python examples/jax_gradients.py

`jax.jit(jax.value_and_grad(loss))` takes the dict as it is. The gradients come back as a dict of JAX
arrays, which the step reads where they lie. A second training in JAX alone, with the update written
out, ends at the same numbers.
"""

import argparse
import math
from itertools import pairwise

import numpy as np

import genesis

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    raise SystemExit("this example needs JAX: python -m pip install jax") from None


def spirals(points, rng):
    """Two spirals, one in the other, to be told apart: points of the plane, and 0 or 1 for each."""
    label = rng.integers(0, 2, points)
    turn = 3 * np.pi * np.sqrt(rng.random(points))
    angle = turn + np.pi * label
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) * turn[:, None] / 6
    x += 0.03 * rng.standard_normal(x.shape)
    return x.astype(np.float32), label.astype(np.float32)


def new_params(sizes, rng):
    def weight(i, o):
        return rng.standard_normal((i, o), np.float32) * np.float32(1 / math.sqrt(i))

    layers = [
        {"W": weight(i, o), "b": rng.standard_normal(o, np.float32)} for i, o in pairwise(sizes)
    ]
    return {"hidden": layers[:-1], "last": layers[-1]}


def logits(params, x):
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["W"] + layer["b"])
    return (x @ params["last"]["W"] + params["last"]["b"])[:, 0]


def loss(params, x, label):
    """The mean cross-entropy."""
    return jnp.mean(jax.nn.softplus(logits(params, x)) - label * logits(params, x))


value_and_grad = jax.jit(jax.value_and_grad(loss))


def train_with_genesis(params, batches, lr):
    """Update the arrays of `params` in place; returns the losses."""
    optimizer = genesis.optim.Adam(params, lr=lr)
    losses = []
    for batch in batches:
        value, grads = value_and_grad(params, *batch)
        # JAX computes while Python goes on, and reads NumPy arrays where they lie. The step waits for
        # the gradients, and with them for the loss, before it writes. Anything else that was asked of
        # JAX with these arrays should be there by now, too: jax.block_until_ready(it).
        optimizer.step(grads=grads)
        losses.append(float(value))
    return losses


def train_in_jax(params, batches, lr):
    """The same with Adam in JAX, compiled; returns new parameters and the losses."""

    @jax.jit
    def step(params, m, v, t, x, label):
        value, grads = jax.value_and_grad(loss)(params, x, label)
        m = jax.tree.map(lambda m, g: m + (1 - 0.9) * (g - m), m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + (1 - 0.999) * g * g, v, grads)

        def updated(p, m, v):
            root = jnp.sqrt(v) / jnp.sqrt(1 - 0.999**t) + 1e-8
            return p - lr / (1 - 0.9**t) * m / root

        return jax.tree.map(updated, params, m, v), m, v, value

    m = v = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for t, batch in enumerate(batches, 1):
        params, m, v, value = step(params, m, v, float(t), *batch)
        losses.append(float(value))
    return params, losses


def main(argv=None):
    """Train both ways; returns the accuracy and the largest difference between the parameters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=1000, help="default: %(default)s")
    add("--points", type=int, default=1000, help="of the spirals; default: %(default)s")
    add("--batch-size", type=int, default=128, help="default: %(default)s")
    add("--lr", type=float, default=3e-3, help="learning rate; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("points", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least {least}, but is {getattr(args, name)}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be above 0, but is {args.lr}")

    rng = np.random.default_rng(args.seed)
    x, label = spirals(args.points, rng)
    params = new_params([2, 64, 64, 1], rng)
    first = jax.tree.map(jnp.array, params)  # copies: the arrays themselves will change
    rows = rng.integers(0, args.points, (args.steps, args.batch_size))
    batches = [(x[some], label[some]) for some in rows]
    losses = train_with_genesis(params, batches, args.lr)
    plain, plain_losses = train_in_jax(first, batches, args.lr)

    every = max(1, args.steps // 5)
    for step in range(every, args.steps + 1, every):
        ours, theirs = (np.mean(all[step - every : step]) for all in (losses, plain_losses))
        print(f"steps to {step:5}: loss {ours:.6f}, in JAX alone {theirs:.6f}")
    accuracy = float(np.mean((np.asarray(logits(params, x)) > 0) == label))
    differences = genesis.tree.map(lambda p, q: float(abs(p - q).max()), params, plain)
    largest = max(leaf for _, leaf in genesis.tree.flatten_with_path(differences))
    print(f"accuracy {accuracy:.1%}, parameters differ by {largest:.0e} at most from those of JAX")
    return accuracy, largest


if __name__ == "__main__":
    main()
