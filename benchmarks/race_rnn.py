"""The race of a recurrent network that says which character comes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from races import Batch, Params, Race, cross_entropy

CHARACTERS, WIDTH, HIDDEN = 64, 32, 128
LENGTH, VOICES = 25, 16
"""Characters in a piece of text, and how many pieces a batch has."""


class Recurrent(Race):
    """An embedding, one recurrent layer of tanh, and an output for each character.

    Characters of a batch stand in rows, one after the other in time, with a column for each piece.
    Every piece begins with a state of zeros.
    """

    title = f"character RNN, {HIDDEN} units, {VOICES} pieces of {LENGTH} characters"

    def parameters(self) -> Params:
        rng = np.random.default_rng(0)

        def weights(rows: int, columns: int) -> np.ndarray:
            return (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        return {
            "embedding": weights(CHARACTERS, WIDTH),
            "input": weights(WIDTH, HIDDEN),
            "recurrent": weights(HIDDEN, HIDDEN),
            "output": weights(HIDDEN, CHARACTERS),
            "bias": np.zeros(CHARACTERS, np.float32),
        }

    def batches(self) -> Sequence[Batch]:
        """Pieces of a text in which one of three characters follows each."""
        rng = np.random.default_rng(1)
        follow = rng.integers(0, CHARACTERS, (CHARACTERS, 3))
        choices = rng.integers(0, 3, 64 * VOICES * (LENGTH + 1))
        text = np.zeros(len(choices), np.int64)
        for i in range(1, len(text)):
            text[i] = follow[text[i - 1], choices[i]]
        pieces = text.reshape(64, VOICES, LENGTH + 1).transpose(0, 2, 1).copy()
        return [(piece[:-1], piece[1:]) for piece in pieces]

    def gradients(self, params: Params, *batch: np.ndarray) -> tuple[Any, Params]:
        inputs, targets = batch
        dtype = params["recurrent"].dtype
        # Only the state needs a loop over time; all else is one product for the whole piece.
        read = params["embedding"][inputs.ravel()]
        driven = (read @ params["input"]).reshape(LENGTH, VOICES, HIDDEN)
        states = np.zeros((LENGTH + 1, VOICES, HIDDEN), dtype)
        for t in range(LENGTH):
            np.tanh(driven[t] + states[t] @ params["recurrent"], out=states[t + 1])
        before, after = states[:-1].reshape(-1, HIDDEN), states[1:].reshape(-1, HIDDEN)
        logits = after @ params["output"] + params["bias"]
        loss, d_logits = cross_entropy(logits, targets.ravel())

        d_after = (d_logits @ params["output"].T).reshape(LENGTH, VOICES, HIDDEN)
        slopes = 1 - states[1:] ** 2
        # A state acts on what is said there, and on the next state: the second part comes from behind.
        d_sums = np.empty_like(d_after)
        d_next = np.zeros((VOICES, HIDDEN), dtype)
        for t in reversed(range(LENGTH)):
            np.multiply(d_after[t] + d_next, slopes[t], out=d_sums[t])
            d_next = d_sums[t] @ params["recurrent"].T
        d_sums = d_sums.reshape(-1, HIDDEN)
        chosen = np.eye(CHARACTERS, dtype=dtype)[inputs.ravel()]
        return loss, {
            "embedding": chosen.T @ (d_sums @ params["input"].T),
            "input": read.T @ d_sums,
            "recurrent": before.T @ d_sums,
            "output": after.T @ d_logits,
            "bias": d_logits.sum(axis=0),
        }

    def torch_model(self) -> tuple[Any, Callable[..., Any]]:
        import torch

        embedding = torch.nn.Embedding(CHARACTERS, WIDTH)
        recurrent = torch.nn.RNN(WIDTH, HIDDEN, bias=False)
        output = torch.nn.Linear(HIDDEN, CHARACTERS)
        values = self.parameters()
        places = {
            "embedding": embedding.weight,
            "input": recurrent.weight_ih_l0,
            "recurrent": recurrent.weight_hh_l0,
            "output": output.weight,
            "bias": output.bias,
        }
        with torch.no_grad():
            for name, place in places.items():
                value = values[name] if name == "embedding" else values[name].T
                place.copy_(torch.from_numpy(value.copy()))

        def loss(inputs: Any, targets: Any) -> Any:
            states, _ = recurrent(embedding(inputs))
            logits = output(states).flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, targets.flatten())

        return torch.nn.ModuleList([embedding, recurrent, output]), loss

    def jax_loss(self) -> Callable[..., Any]:
        import jax
        import optax

        def loss(params: Any, inputs: Any, targets: Any) -> Any:
            def follow(state: Any, driven: Any) -> Any:
                state = jax.numpy.tanh(driven + state @ params["recurrent"])
                return state, state

            driven = params["embedding"][inputs] @ params["input"]
            nothing = jax.numpy.zeros((VOICES, HIDDEN), np.float32)
            _, states = jax.lax.scan(follow, nothing, driven)
            logits = states @ params["output"] + params["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        return loss
