# SPDX-License-Identifier: Apache-2.0
"""A small GPT under torch, trained by torch's AdamW and by genesis' in its place.

    python examples/torch_drop_in.py

The model has four layers and reads letters of a text that is made up here. It is trained three times
from the same weights on the same batches, by `torch.optim.AdamW` as it comes, fused, and by
`genesis.torch.AdamW`: the loss is the same, the time of the optimizer's step is not.
"""

import argparse
import random
import statistics
import time

import torch
from torch import nn

import genesis.torch

WORDS = "a the small large cat dog sees finds likes and but red green ball house . ,".split()
CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 32, 64, 4, 4, 8


class Block(nn.Module):
    """Attention to what came before, then two layers for each letter."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.mix(self.norm_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.layers(self.norm_2(x))


class GPT(nn.Module):
    """Letters in, what may come next out."""

    def __init__(self, letters):
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters, bias=False)

    def forward(self, x):
        x = self.letters(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def made_up_text(words=4000):
    """Letters as numbers, and how many different ones there are."""
    chosen = random.Random(0)
    text = " ".join(chosen.choice(WORDS) for _ in range(words))
    letters = sorted(set(text))
    return torch.tensor([letters.index(letter) for letter in text]), len(letters)


def groups(model):
    """Weights decay, biases and norms do not."""
    decays = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decays}, {"params": others, "weight_decay": 0.0}]


def train(make, steps):
    """The last loss, and the median time of the optimizer's step in milliseconds."""
    torch.manual_seed(0)
    text, letters = made_up_text()
    model = GPT(letters)
    optimizer = make(groups(model))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    times = []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,))
        batch = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        logits = model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
        scheduler.step()
    return loss.item(), statistics.median(times) * 1e3


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(arguments).steps
    torch.set_num_threads(1)  # for a model as small as this one more of them only wait
    optimizers = {
        "torch.optim.AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
        "torch.optim.AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
        "genesis.torch.AdamW": lambda params: genesis.torch.AdamW(params, lr=1e-3),
    }
    losses, times = [], []
    for name, make in optimizers.items():
        loss, milliseconds = train(make, steps)
        print(f"{name:26} loss {loss:.5f}, {milliseconds:6.3f} ms a step of the optimizer")
        losses.append(loss)
        times.append(milliseconds)
    apart = abs(losses[2] - losses[0])
    print(
        f"after {steps} steps the losses are {apart:.0e} apart; the step is "
        f"{times[0] / times[2]:.1f} times as fast as torch's, "
        f"{times[1] / times[2]:.1f} times as fast as its fused one"
    )
    return losses


if __name__ == "__main__":
    main()
