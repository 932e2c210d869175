"""What a race is: one piece of training, and how each contender does an iteration of it.

NumPy has its gradients written out by hand, as they are in programs without an autograd; genesis and
plain NumPy share them, and differ in the update. torch runs its own layers, op by op. JAX has all of an
iteration in one compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

import genesis

Params = dict[str, np.ndarray]
Batch = tuple[np.ndarray, ...]
Iterate = Callable[[], float]
"""Does one iteration and returns the loss before its update."""

BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.01
"""The settings of AdamW, for those who write it out."""


class Race:
    """A model, its data, and an iteration by each contender: gradients, clipping, AdamW.

    Attributes:
        title: what is trained, in words.
        lr: the learning rate.
        max_norm: to which the norm of all gradients is clipped.
    """

    title: str
    lr = 1e-3
    max_norm = 1.0

    # ---- what a race must say ----

    def parameters(self) -> Params:
        """The same initial values for everyone, in new arrays."""
        raise NotImplementedError

    def batches(self) -> Sequence[Batch]:
        """The same batches for everyone; they come round again and again."""
        raise NotImplementedError

    def gradients(self, params: Params, *batch: np.ndarray) -> tuple[Any, Params]:
        """The loss and its gradients, by hand."""
        raise NotImplementedError

    def torch_model(self) -> tuple[Any, Callable[..., Any]]:
        """A module of torch with the initial values, and its loss for a batch of tensors."""
        raise NotImplementedError

    def jax_loss(self) -> Callable[..., Any]:
        """The loss for parameters and a batch of JAX."""
        raise NotImplementedError

    # ---- contenders ----

    def contenders(self) -> dict[str, Callable[[], Iterate]]:
        """Who takes part: each gets ready and gives a function that does an iteration."""
        return {
            "genesis": self.with_genesis,
            "torch eager, fused": lambda: self.with_torch(fused=True),
            "torch eager": self.with_torch,
            "JAX and optax, jitted": self.with_optax,
            "NumPy": self.with_numpy,
        }

    def with_genesis(self) -> Iterate:
        """NumPy, and genesis for the step."""
        params, batches = self.parameters(), cycle(self.batches())
        optimizer = genesis.optim.AdamW(params, lr=self.lr)

        def iterate() -> float:
            loss, grads = self.gradients(params, *next(batches))
            optimizer.step(grads=grads, max_norm=self.max_norm)
            return float(loss)

        return iterate

    def with_numpy(self) -> Iterate:
        """NumPy, and AdamW written out in NumPy."""
        params, batches = self.parameters(), cycle(self.batches())
        averages = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
        (beta1, beta2), count = BETAS, 0

        def iterate() -> float:
            nonlocal count
            count += 1
            loss, grads = self.gradients(params, *next(batches))
            norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
            scale = np.float32(min(1.0, self.max_norm / (norm + 1e-6)))
            for name, param in params.items():
                grad, (first, second) = grads[name] * scale, averages[name]
                first += np.float32(1 - beta1) * (grad - first)
                second *= np.float32(beta2)
                second += np.float32(1 - beta2) * grad * grad
                param *= np.float32(1 - self.lr * DECAY)
                root = np.sqrt(second) / np.float32((1 - beta2**count) ** 0.5) + np.float32(EPS)
                param -= np.float32(self.lr / (1 - beta1**count)) * first / root
            return float(loss)

        return iterate

    def with_torch(self, **options: Any) -> Iterate:
        """torch, op by op, on as many threads as genesis."""
        import torch

        torch.set_num_threads(genesis.get_num_threads())
        (model, loss_of), batches = self.torch_model(), cycle(self.batches())
        optimizer = self.torch_optimizer(model.parameters(), **options)

        def iterate() -> float:
            optimizer.zero_grad()
            loss = loss_of(*map(torch.from_numpy, next(batches)))
            loss.backward()
            if self.max_norm < np.inf:
                torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
            optimizer.step()
            return loss.item()

        return iterate

    def torch_optimizer(self, params: Any, **options: Any) -> Any:
        """torch's optimizer for the race."""
        import torch

        return torch.optim.AdamW(params, lr=self.lr, **options)

    def with_optax(self) -> Iterate:
        """JAX and optax, all of an iteration in one compiled function."""
        import jax
        import optax

        chain, loss_of = self.optax_chain(), self.jax_loss()

        def update(params: Any, state: Any, *batch: Any) -> Any:
            value, grads = jax.value_and_grad(loss_of)(params, *batch)
            updates, state = chain.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        compiled = jax.jit(update, donate_argnums=(0, 1))
        params = {name: jax.numpy.array(p) for name, p in self.parameters().items()}
        state, batches = chain.init(params), cycle(self.batches())

        def iterate() -> float:
            nonlocal params, state
            params, state, value = compiled(params, state, *next(batches))
            return float(value)

        return iterate

    def optax_chain(self) -> Any:
        """optax' clipping and optimizer for the race."""
        import optax

        clipping = optax.clip_by_global_norm(self.max_norm)
        return optax.chain(clipping, optax.adamw(self.lr, *BETAS, EPS, weight_decay=DECAY))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[Any, np.ndarray]:
    """The mean cross entropy of rows of logits, and its gradient; `logits` is written over."""
    logits -= logits.max(axis=1, keepdims=True)
    exps = np.exp(logits)
    sums = exps.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = np.mean(np.log(sums[:, 0]) - logits[rows, labels])
    delta = exps / sums
    delta[rows, labels] -= 1
    delta /= len(labels)
    return loss, delta
