"""The race of a small classifier: a perceptron with two hidden layers of ReLU, and cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from races import Batch, Params, Race, cross_entropy

SIZES, BATCH = (64, 128, 64, 10), 32


class Perceptron(Race):
    """A 64-128-64-10 network on batches of 32."""

    title = "64-128-64-10 network, batch 32"

    def parameters(self) -> Params:
        rng = np.random.default_rng(0)
        params = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(SIZES), 1):
            scale = np.sqrt(2 / fan_in)
            params[f"W{i}"] = (rng.standard_normal((fan_in, fan_out)) * scale).astype(np.float32)
            params[f"b{i}"] = np.zeros(fan_out, np.float32)
        return params

    def batches(self) -> Sequence[Batch]:
        rng = np.random.default_rng(1)
        images = rng.standard_normal((64, BATCH, SIZES[0])).astype(np.float32)
        labels = rng.integers(0, SIZES[-1], (64, BATCH))
        return list(zip(images, labels))

    def gradients(self, params: Params, *batch: np.ndarray) -> tuple[Any, Params]:
        x, labels = batch
        h1 = np.maximum(x @ params["W1"] + params["b1"], 0)
        h2 = np.maximum(h1 @ params["W2"] + params["b2"], 0)
        loss, delta = cross_entropy(h2 @ params["W3"] + params["b3"], labels)
        grads = {"W3": h2.T @ delta, "b3": delta.sum(axis=0)}
        delta = (delta @ params["W3"].T) * (h2 > 0)
        grads["W2"], grads["b2"] = h1.T @ delta, delta.sum(axis=0)
        delta = (delta @ params["W2"].T) * (h1 > 0)
        grads["W1"], grads["b1"] = x.T @ delta, delta.sum(axis=0)
        return loss, grads

    def torch_model(self) -> tuple[Any, Callable[..., Any]]:
        import torch

        layers: list[Any] = []
        values = self.parameters()
        for i, (fan_in, fan_out) in enumerate(pairwise(SIZES), 1):
            layer = torch.nn.Linear(fan_in, fan_out)
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(values[f"W{i}"].T.copy()))
                layer.bias.copy_(torch.from_numpy(values[f"b{i}"]))
            layers += [layer, torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        return model, lambda x, labels: torch.nn.functional.cross_entropy(model(x), labels)

    def jax_loss(self) -> Callable[..., Any]:
        import jax
        import optax

        def loss(params: Any, x: Any, labels: Any) -> Any:
            h1 = jax.nn.relu(x @ params["W1"] + params["b1"])
            h2 = jax.nn.relu(h1 @ params["W2"] + params["b2"])
            logits = h2 @ params["W3"] + params["b3"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return loss
