"""The race of a logistic regression on sparse rows: yes or no, by which few of a million features.

Adagrad, as such models are trained: a feature that is rare keeps a large step. A batch uses less than
one in a hundred weights, and the gradient of all others is zero, so that they stay where they are.
Whoever knows that reads and writes only the weights of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from races import Batch, Iterate, Params, Race

import genesis

FEATURES, BATCH, EACH = 1 << 20, 256, 32
"""The number of weights, of examples in a batch, and of features that an example has."""

SUM, EPS = 0.1, 1e-10
"""With what Adagrad's sums of squares begin, and what is added to their roots."""


class Rows(Race):
    """A weight for each feature, one for all, and Adagrad; nothing is clipped."""

    title = f"logistic regression, {BATCH} examples of {EACH} in {FEATURES:,} features"
    lr = 0.1
    max_norm = np.inf

    def parameters(self) -> Params:
        return {"weights": np.zeros(FEATURES, np.float32), "bias": np.zeros(1, np.float32)}

    def batches(self) -> Sequence[Batch]:
        """Features of examples, few of them common and most of them rare, and answers."""
        rng = np.random.default_rng(1)
        truth = rng.standard_normal(FEATURES)
        features = (FEATURES * rng.random((64, BATCH, EACH)) ** 3).astype(np.int64)
        chances = 1 / (1 + np.exp(-truth[features].sum(axis=2)))
        answers = (rng.random(chances.shape) < chances).astype(np.float32)
        return list(zip(features, answers))

    def gradients(self, params: Params, *batch: np.ndarray) -> tuple[Any, Params]:
        """The loss and its gradients; of the weights, one for each use of a feature in the batch."""
        features, answers = batch
        logits = params["weights"][features].sum(axis=1) + params["bias"]
        loss = np.mean(np.logaddexp(0, logits) - answers * logits)
        delta = (1 / (1 + np.exp(-logits)) - answers) / np.float32(len(answers))
        return loss, {"weights": np.repeat(delta, EACH), "bias": delta.sum(keepdims=True)}

    def contenders(self) -> dict[str, Callable[[], Iterate]]:
        return {
            "genesis": self.with_genesis,
            "torch eager": self.with_torch,
            "JAX, jitted, rows by hand": self.with_jax,
            "JAX and optax, jitted": self.with_optax,
            "NumPy": self.with_numpy,
        }

    def with_genesis(self) -> Iterate:
        params, batches = self.parameters(), cycle(self.batches())
        optimizer = genesis.optim.Adagrad(
            params, lr=self.lr, initial_accumulator_value=SUM, eps=EPS
        )

        def iterate() -> float:
            features, answers = next(batches)
            loss, grads = self.gradients(params, features, answers)
            rows = genesis.SparseGrad(features.ravel(), grads["weights"])
            optimizer.step(grads={"weights": rows, "bias": grads["bias"]})
            return float(loss)

        return iterate

    def with_numpy(self) -> Iterate:
        """NumPy, and Adagrad written out for the rows of the batch."""
        params, batches = self.parameters(), cycle(self.batches())
        sums = {name: np.full_like(p, SUM) for name, p in params.items()}
        lr, eps = np.float32(self.lr), np.float32(EPS)

        def iterate() -> float:
            features, answers = next(batches)
            loss, grads = self.gradients(params, features, answers)
            rows, places = np.unique(features.ravel(), return_inverse=True)
            of_rows = np.bincount(places, grads["weights"]).astype(np.float32)
            for name, where, grad in (
                ("weights", rows, of_rows),
                ("bias", slice(None), grads["bias"]),
            ):
                sums[name][where] += grad * grad
                params[name][where] -= lr * grad / (np.sqrt(sums[name][where]) + eps)
            return float(loss)

        return iterate

    def torch_model(self) -> tuple[Any, Callable[..., Any]]:
        import torch

        # As it is by default, which torch would have one say.
        torch.sparse.check_sparse_tensor_invariants.disable()
        weights = torch.nn.EmbeddingBag(FEATURES, 1, mode="sum", sparse=True)
        bias = torch.nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            weights.weight.zero_()
        model = torch.nn.ParameterList([weights.weight, bias])

        def loss(features: Any, answers: Any) -> Any:
            logits = weights(features)[:, 0] + bias
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, answers)

        return model, loss

    def torch_optimizer(self, params: Any, **options: Any) -> Any:
        import torch

        return torch.optim.Adagrad(params, self.lr, initial_accumulator_value=SUM, eps=EPS)

    def jax_loss(self) -> Callable[..., Any]:
        import optax

        def loss(params: Any, features: Any, answers: Any) -> Any:
            logits = params["weights"][features].sum(axis=1) + params["bias"]
            return optax.sigmoid_binary_cross_entropy(logits, answers).mean()

        return loss

    def optax_chain(self) -> Any:
        """optax has no update of rows: it moves every weight, by zero most of them."""
        import optax

        return optax.adagrad(self.lr, SUM, EPS)

    def with_jax(self) -> Iterate:
        """JAX, and Adagrad written out for the rows of the batch, in one compiled function."""
        import jax

        jnp, loss_of = jax.numpy, self.jax_loss()

        def update(params: Any, sums: Any, features: Any, answers: Any) -> Any:
            rows = features.ravel()
            # The loss of the weights that are used, as if each use had one of its own.
            used = {"weights": params["weights"][rows], "bias": params["bias"]}
            places = jnp.arange(len(rows)).reshape(features.shape)
            value, grads = jax.value_and_grad(loss_of)(used, places, answers)
            # As many rows as there are uses; those left over lie beyond the table and are not written.
            each, inverse = jnp.unique(
                rows, return_inverse=True, size=len(rows), fill_value=FEATURES
            )
            of_rows = jax.ops.segment_sum(grads["weights"], inverse, len(rows))
            moved, added = {}, {}
            for name, where, grad in (
                ("weights", each, of_rows),
                ("bias", jnp.arange(1), grads["bias"]),
            ):
                added[name] = sums[name].at[where].add(grad * grad, mode="drop")
                root = jnp.sqrt(added[name].at[where].get(mode="clip")) + EPS
                moved[name] = params[name].at[where].add(-self.lr * grad / root, mode="drop")
            return moved, added, value

        compiled = jax.jit(update, donate_argnums=(0, 1))
        params = {name: jnp.array(p) for name, p in self.parameters().items()}
        sums = {name: jnp.full_like(p, SUM) for name, p in params.items()}
        batches = cycle(self.batches())

        def iterate() -> float:
            nonlocal params, sums
            params, sums, value = compiled(params, sums, *next(batches))
            return float(value)

        return iterate
