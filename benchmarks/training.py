"""Whole iterations of training a small network: gradients, clipping and AdamW, by each contender.

`python benchmarks/training.py NAME...` serves: for each name of a contender that it reads it runs some
iterations and prints the median seconds of one. All contenders live in this one process and have one
thread each, which has to be said before NumPy or JAX is imported: see `ENVIRONMENT`.

The network is a 64-128-64-10 perceptron with ReLU and cross entropy, on batches of 32. NumPy has its
gradients written out by hand, as they are in programs without an autograd.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from timing import median, turn

import genesis

ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

SIZES, BATCH, MAX_NORM, LR = (64, 128, 64, 10), 32, 1.0, 1e-3

Params = dict[str, np.ndarray]


def parameters() -> Params:
    """The same initial values for everyone."""
    rng = np.random.default_rng(0)
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(SIZES), 1):
        scale = np.sqrt(2 / fan_in)
        params[f"W{i}"] = (rng.standard_normal((fan_in, fan_out)) * scale).astype(np.float32)
        params[f"b{i}"] = np.zeros(fan_out, np.float32)
    return params


class Batches:
    """Endless batches, the same for everyone."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._images = rng.standard_normal((64, BATCH, SIZES[0])).astype(np.float32)
        self._labels = rng.integers(0, SIZES[-1], (64, BATCH))
        self._next = 0

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self._next = (self._next + 1) % len(self._images)
        return self._images[self._next], self._labels[self._next]


def loss_and_gradients(params: Params, x: np.ndarray, labels: np.ndarray) -> tuple[Any, Params]:
    """Forward and backward pass, by hand."""
    h1 = np.maximum(x @ params["W1"] + params["b1"], 0)
    h2 = np.maximum(h1 @ params["W2"] + params["b2"], 0)
    logits = h2 @ params["W3"] + params["b3"]
    logits -= logits.max(axis=1, keepdims=True)
    exps = np.exp(logits)
    sums = exps.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = np.mean(np.log(sums[:, 0]) - logits[rows, labels])
    delta = exps / sums
    delta[rows, labels] -= 1
    delta /= len(labels)
    grads = {"W3": h2.T @ delta, "b3": delta.sum(axis=0)}
    delta = (delta @ params["W3"].T) * (h2 > 0)
    grads["W2"], grads["b2"] = h1.T @ delta, delta.sum(axis=0)
    delta = (delta @ params["W2"].T) * (h1 > 0)
    grads["W1"], grads["b1"] = x.T @ delta, delta.sum(axis=0)
    return loss, grads


# ---- contenders: each gives a function that does one iteration and returns the loss ----


def with_genesis() -> Callable[[], float]:
    """NumPy, and genesis for the step."""
    genesis.set_num_threads(1)
    params, batch = parameters(), Batches()
    optimizer = genesis.optim.AdamW(params, lr=LR)

    def iterate() -> float:
        loss, grads = loss_and_gradients(params, *batch())
        optimizer.step(grads=grads, max_norm=MAX_NORM)
        return float(loss)

    return iterate


def with_numpy() -> Callable[[], float]:
    """NumPy, and AdamW written out in NumPy."""
    params, batch = parameters(), Batches()
    averages = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    count = 0

    def iterate() -> float:
        nonlocal count
        count += 1
        loss, grads = loss_and_gradients(params, *batch())
        norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        scale = np.float32(min(1.0, MAX_NORM / (norm + 1e-6)))
        for name, param in params.items():
            grad, (first, second) = grads[name] * scale, averages[name]
            first += np.float32(0.1) * (grad - first)
            second *= np.float32(0.999)
            second += np.float32(0.001) * grad * grad
            param *= np.float32(1 - LR * 0.01)
            root = np.sqrt(second) / np.float32((1 - 0.999**count) ** 0.5) + np.float32(1e-8)
            param -= np.float32(LR / (1 - 0.9**count)) * first / root
        return float(loss)

    return iterate


def with_torch(**options: Any) -> Callable[[], float]:
    """torch eager."""
    import torch

    torch.set_num_threads(1)
    layers: list[Any] = []
    values = parameters()
    for i in range(1, len(SIZES)):
        layer = torch.nn.Linear(SIZES[i - 1], SIZES[i])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(values[f"W{i}"].T.copy()))
            layer.bias.copy_(torch.from_numpy(values[f"b{i}"]))
        layers += [layer, torch.nn.ReLU()]
    model, batch = torch.nn.Sequential(*layers[:-1]), Batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, **options)

    def iterate() -> float:
        x, labels = batch()
        optimizer.zero_grad()
        logits = model(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return loss.item()

    return iterate


def with_optax() -> Callable[[], float]:
    """JAX and optax, all of an iteration in one compiled function."""
    import jax
    import optax

    jnp = jax.numpy
    chain = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LR, weight_decay=0.01))

    def loss(params: Any, x: Any, labels: Any) -> Any:
        h1 = jax.nn.relu(x @ params["W1"] + params["b1"])
        h2 = jax.nn.relu(h1 @ params["W2"] + params["b2"])
        logits = h2 @ params["W3"] + params["b3"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(params: Any, state: Any, x: Any, labels: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, labels)
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(update, donate_argnums=(0, 1))
    params = {name: jnp.array(p) for name, p in parameters().items()}
    state, batch = chain.init(params), Batches()

    def iterate() -> float:
        nonlocal params, state
        params, state, value = compiled(params, state, *batch())
        return float(value)

    return iterate


CONTENDERS: dict[str, Callable[[], Callable[[], float]]] = {
    "genesis": with_genesis,
    "torch eager, fused": lambda: with_torch(fused=True),
    "torch eager": with_torch,
    "JAX and optax, jitted": with_optax,
    "NumPy": with_numpy,
}


def main(names: list[str]) -> None:
    """Make the contenders, say which there are, and run whichever is asked for."""
    ready: dict[str, Callable[[], float]] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            ready[name] = CONTENDERS[name]()
            ready[name]()
        except ImportError as error:
            missing[name] = f"{error.name} is not installed ({error})"
    print(json.dumps(missing), flush=True)
    for line in sys.stdin:
        print(median(turn(ready[line.strip()], settling=0.05)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
