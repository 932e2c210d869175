# SPDX-License-Identifier: Apache-2.0
"""A recurrent network that learns a counting song letter by letter: NumPy, backward pass by hand.

    python examples/char_rnn.py

The network reads one character at a time and says which comes next. After Andrej Karpathy's
min-char-rnn (https://gist.github.com/karpathy/d4dee566867f8291f086). The parameters are a dict of
arrays, and so are the gradients: one line hands them over, and Adagrad updates the arrays in place.
"""

import argparse
import math

import numpy as np
from threadpoolctl import threadpool_limits

import genesis

UNITS = "- one two three four five six seven eight nine ten eleven twelve thirteen fourteen".split()
UNITS += "fifteen sixteen seventeen eighteen nineteen".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def spelled(number):
    """A number from 1 to 99 in words."""
    if number < 20:
        return UNITS[number]
    return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")


def song():
    """What the network reads: 99 verses, from ninety-nine boats down to none."""
    boats = ["no boats", "one boat", *(f"{spelled(n)} boats" for n in range(2, 100))]
    return "".join(
        f"{boats[n]}, {boats[n]},\none sails home:\n{boats[n - 1]}.\n\n" for n in range(99, 0, -1)
    )


# ---- the network ----


def new_network(characters, hidden, rng):
    """Parameters: small random weights, so that no unit starts saturated, and biases of 0."""

    def weights(rows, columns):
        return rng.standard_normal((rows, columns), np.float32) / np.float32(math.sqrt(rows))

    return {
        "embedding": 0.1 * rng.standard_normal((characters, hidden), np.float32),
        "recurrent": weights(hidden, hidden),
        "bias": np.zeros(hidden, np.float32),
        "output": weights(hidden, characters),
        "output_bias": np.zeros(characters, np.float32),
    }


def read(params, character, state):
    """The state after one more character."""
    return np.tanh(params["embedding"][character] + state @ params["recurrent"] + params["bias"])


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)  # so that exp cannot overflow
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def loss_and_grads(params, inputs, targets, state):
    """The cross-entropy of what comes, its gradients, and the state at the end.

    Characters stand in rows, one after the other in time, with a column for each voice: several
    pieces of the text that are read side by side. The loss is a sum over time, a mean over voices.
    """
    # Forward: only the state needs a loop over time, what is said in each is one product.
    states = [state]
    for characters in inputs:
        states.append(read(params, characters, states[-1]))
    states = np.array(states)
    before, after = states[:-1], states[1:]
    log_p = log_softmax(after @ params["output"] + params["output_bias"])
    came = np.eye(log_p.shape[-1], dtype=log_p.dtype)[targets]
    voices = inputs.shape[1]
    loss = -(came * log_p).sum() / voices

    # Backward: of softmax and cross-entropy together, probabilities minus what came.
    d_logits = (np.exp(log_p) - came) / voices
    d_after = d_logits @ params["output"].T
    # A state acts on what is said there, and on the next state: the second part comes from behind.
    d_sums = np.empty_like(after)  # by what tanh was applied to
    d_next = np.zeros_like(state)
    for t in reversed(range(len(inputs))):
        d_sums[t] = (d_after[t] + d_next) * (1 - after[t] ** 2)
        d_next = d_sums[t] @ params["recurrent"].T
    read_there = np.eye(len(params["embedding"]), dtype=came.dtype)[inputs]
    both = (0, 1), (0, 1)  # sums over time and voices
    grads = {
        "embedding": np.tensordot(read_there, d_sums, axes=both),
        "recurrent": np.tensordot(before, d_sums, axes=both),
        "bias": d_sums.sum(axis=(0, 1)),
        "output": np.tensordot(after, d_logits, axes=both),
        "output_bias": d_logits.sum(axis=(0, 1)),
    }
    return loss, grads, states[-1]


def sample(params, first, length, rng):
    """Characters that the network says one after the other, each drawn by its probability."""
    state = np.zeros_like(params["bias"])
    characters = [first]
    for _ in range(length):
        state = read(params, characters[-1], state)
        p = np.exp(log_softmax(state @ params["output"] + params["output_bias"]).astype(float))
        characters.append(rng.choice(len(p), p=p / p.sum()))
    return characters


# ---- training ----


def train(params, text, steps, lr, length, voices, report):
    """Read the text again and again, each voice from a place of its own, `length` characters a step."""
    optimizer = genesis.optim.Adagrad(params, lr=lr)
    places = np.arange(voices) * len(text) // voices
    state = np.zeros((voices, len(params["bias"])), np.float32)
    loss_of_one = math.log(len(params["output_bias"]))  # a smoothed average; at first one guesses
    for step in range(1, steps + 1):
        piece = text[(places + np.arange(length + 1)[:, None]) % len(text)]
        loss, grads, state = loss_and_grads(params, piece[:-1], piece[1:], state)
        # Through many characters gradients may explode: no element may be larger than 5.
        optimizer.step(grads=grads, clip_value=5)
        places += length
        loss_of_one += 0.01 * (float(loss) / length - loss_of_one)
        if step % report == 0 or step == steps:
            print(f"step {step:5}: loss {loss_of_one:.3f} a character")
    return loss_of_one


def main(argv=None):
    """Train, print what the network sings, and return how many of its lines are in the song."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=5000, help="pieces of text; default: %(default)s")
    add("--hidden", type=int, default=128, help="size of the state; default: %(default)s")
    add("--length", type=int, default=25, help="characters in a piece; default: %(default)s")
    add("--voices", type=int, default=16, help="pieces read side by side; default: %(default)s")
    add("--lr", type=float, default=0.05, help="learning rate; default: %(default)s")
    add("--seed", type=int, default=0, help="of weights and of the sample; default: %(default)s")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("hidden", 1), ("length", 1), ("voices", 1), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(args, name)}")
    if not 0 < args.lr < math.inf:
        parser.error(f"--lr must be above 0, but is {args.lr}")

    song_text = song()
    alphabet = sorted({*song_text})
    number = {character: i for i, character in enumerate(alphabet)}
    text = np.array([number[character] for character in song_text])
    rng = np.random.default_rng(args.seed)
    params = new_network(len(alphabet), args.hidden, rng)
    pieces = args.length, args.voices
    with threadpool_limits(1):  # such small products gain nothing from BLAS threads, only wait
        loss = train(params, text, args.steps, args.lr, *pieces, max(1, args.steps // 5))

    said = "".join(alphabet[i] for i in sample(params, number["\n"], 400, rng)).strip()
    print(f"\n{said}\n")
    lines = [line for line in said.splitlines()[:-1] if line]  # the last one may be cut off
    right = sum(line in song_text.splitlines() for line in lines)
    print(f"{right} of {len(lines)} lines are lines of the song, at a loss of {loss:.3f}")
    return right, len(lines)


if __name__ == "__main__":
    main()
