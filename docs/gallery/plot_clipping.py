"""
What clipping does to a recurrent network
=========================================

A recurrent network learns to spell a song, character by character. Its gradients run back through
25 equal layers, and now and then one is many times as long as usual. A single step along it can
throw away what was learnt. See :doc:`../clipping`.
"""

import matplotlib.pyplot as plt
import numpy as np

import genesis

NUMBERS = "ten", "nine", "eight", "seven", "six", "five", "four", "three", "two"
SONG = "".join(f"{n} boats sail home, {n} boats. " for n in NUMBERS) * 12
ALPHABET = sorted(set(SONG))
CODES = np.array([ALPHABET.index(character) for character in SONG])
HIDDEN, LENGTH, BATCH, STEPS = 48, 25, 8, 600


def loss_and_gradients(params, read, wanted, state):
    """The cross entropy of the next characters, and its gradients through time."""
    states = [state]
    for codes in read:
        states.append(np.tanh(params["in"][codes] + states[-1] @ params["again"] + params["bias"]))
    after = np.stack(states[1:])
    scores = after @ params["out"] + params["offset"]
    chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    of_wanted = (*np.indices(wanted.shape), wanted)
    loss = -np.mean(np.log(chances[of_wanted] + 1e-300))

    d_scores = chances
    d_scores[of_wanted] -= 1
    d_scores /= wanted.size
    grads = {name: np.zeros_like(param) for name, param in params.items()}
    grads["out"] = np.einsum("tbh,tbn->hn", after, d_scores)
    grads["offset"] = d_scores.sum(axis=(0, 1))
    d_after = d_scores @ params["out"].T
    d = np.zeros((BATCH, HIDDEN))
    for t in reversed(range(LENGTH)):
        d = (d @ params["again"].T + d_after[t]) * (1 - after[t] ** 2)
        np.add.at(grads["in"], read[t], d)
        grads["again"] += states[t].T @ d
        grads["bias"] += d.sum(axis=0)
    return loss, grads, states[-1]


def train(**clipping):
    """The loss at each step, and the norm of the gradients before clipping."""
    rng = np.random.default_rng(0)
    params = {
        "in": 0.3 * rng.standard_normal((len(ALPHABET), HIDDEN)),
        "again": rng.standard_normal((HIDDEN, HIDDEN)) / HIDDEN**0.5,
        "bias": np.zeros(HIDDEN),
        "out": 0.1 * rng.standard_normal((HIDDEN, len(ALPHABET))),
        "offset": np.zeros(len(ALPHABET)),
    }
    optimizer = genesis.optim.SGD(params, lr=1.0)
    at, state = rng.integers(0, len(CODES) - LENGTH - 1, BATCH), np.zeros((BATCH, HIDDEN))
    losses, norms = [], []
    for _ in range(STEPS):
        if at.max() + LENGTH + 1 >= len(CODES):
            at, state = rng.integers(0, 50, BATCH), np.zeros((BATCH, HIDDEN))
        places = at + np.arange(LENGTH)[:, None]
        loss, grads, state = loss_and_gradients(params, CODES[places], CODES[places + 1], state)
        losses.append(loss)
        norms.append(genesis.nn.utils.get_total_norm(grads))
        optimizer.step(grads=grads, **clipping)
        at = at + LENGTH
    return losses, norms


runs = {"no clipping": train(), "step(max_norm=0.5)": train(max_norm=0.5)}

# %%
# The same network, the same song, the same learning rate. Above, how long each gradient was before
# clipping; below, the loss. The limit is about the usual length, so that both runs learn alike for
# hundreds of steps. Then a few gradients in a row are too long for this learning rate, and the run
# without clipping does not come back.

fig, axes = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True, layout="constrained")
for color, (name, (losses, norms)) in zip(("tab:red", "tab:blue"), runs.items()):
    axes[0].semilogy(norms, color=color, lw=1, label=name)
    axes[1].semilogy(losses, color=color, lw=1, label=name)
axes[0].axhline(0.5, color="black", lw=1, ls="--", label="the limit")
axes[0].set_ylabel("norm of the gradients")
axes[1].set_ylabel("loss for each character")
axes[1].set_xlabel("step")
for ax in axes:
    ax.grid(alpha=0.3)
axes[0].legend(loc="upper left")
plt.show()
