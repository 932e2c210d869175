"""What a rule costs, and what it gains: `python benchmarks/rules.py`.

First AdamW in turns as the package has it, as a user's rule, as a chain, and with a kernel and scalars
written by hand: one tensor of 1000 elements for what Python does in a step, one of a million and the
shapes of ResNet-50 for the kernels. Then Lion and NAdamW, rules of 15 lines, beside the for-loops that
torch's users have for them. One thread in the first part, so that what is compared is code; all of them
in the second.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import shapes
from peers import Missing, gradients, module
from published import Lion, NAdamW
from timing import alternate, median

import genesis
from genesis import transforms as T  # noqa: N812

Shapes = Sequence[tuple[int, ...]]

# ---- AdamW in four ways ----


@genesis.rule
def RuleAdamW(  # noqa: N802
    param, grad, exp_avg, exp_avg_sq, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, step
):  # fmt: skip
    """The package's formula, in its order of operations, without its variants."""
    beta1, beta2 = betas
    param = param * (1 - lr * weight_decay)
    exp_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + (1 - beta2) * grad * grad
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    return param - lr / (1 - beta1**step) * exp_avg / denom, exp_avg, exp_avg_sq


ChainedAdamW = genesis.chain(
    T.scale_by_adam, T.add_decayed_weights, T.scale_by_lr, name="ChainedAdamW"
)


def adamw(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, kept, beta1, beta1c, beta2, beta2c, per_root, eps = hyper
    param = param * kept
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq) * per_root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def adamw_scalars(group, step, named, first):
    beta1, beta2 = group["betas"]
    step_size = group["lr"] / (1 - beta1**step)
    per_root = 1 / (1 - beta2**step) ** 0.5
    kept = 1 - group["lr"] * group["weight_decay"]
    return step_size, kept, beta1, 1 - beta1, beta2, 1 - beta2, per_root, group["eps"]


_by_hand = copy.copy(genesis.optim.AdamW._recipe)
_by_hand.written = {
    (False,): SimpleNamespace(
        rule=adamw, scalars=adamw_scalars, states=("exp_avg", "exp_avg_sq"), count=8
    )
}


class HandWritten(genesis.optim.AdamW):
    """AdamW whose code nothing has written but a person."""

    _recipe = _by_hand


WORK = {"1000": [(1000,)], "mlp": shapes.mlp(), "1M": [(1000, 1000)], "resnet50": shapes.resnet50()}


def stepping(made: Callable, sizes: Shapes, **settings: Any) -> Callable[[], object]:
    """The step of an optimizer whose parameters all have gradients."""
    params = [genesis.Parameter(np.ones(size, np.float32)) for size in sizes]
    for param, gradient in zip(params, gradients(sizes)):
        param.grad = gradient
    return made(params, **settings).step


# ---- rules beside torch's for-loops ----


def torchs(make: Callable[[Any, list], Any], sizes: Shapes) -> Callable[[], object]:
    """The step of what `make` makes of torch and parameters that all have gradients."""
    torch = module("torch")
    params = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    for param, gradient in zip(params, gradients(sizes)):
        param.grad = torch.from_numpy(gradient)
    return make(torch, params).step


def lion(torch: Any, params: list) -> Any:
    return module("lion_pytorch").Lion(params, lr=1e-4)


def nadamw(torch: Any, params: list) -> Any:
    settings = {"lr": 2e-3, "weight_decay": 1e-2, "decoupled_weight_decay": True}
    return torch.optim.NAdam(params, foreach=False, **settings)


CONTESTS = {
    "Lion": (Lion, {}, "lion-pytorch", lion),
    "NAdamW": (NAdamW, {}, "torch for-loop", nadamw),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each size")
    parser.add_argument("work", nargs="*", help=f"of {', '.join([*WORK, *CONTESTS])}; all")
    options = parser.parse_args()
    classes = {
        "by hand": HandWritten,
        "package": genesis.optim.AdamW,
        "rule": RuleAdamW,
        "chain": ChainedAdamW,
    }
    threads = genesis.get_num_threads()
    for name in options.work or [*WORK, *CONTESTS]:
        if name in WORK:
            genesis.set_num_threads(1)
            contenders = {title: stepping(made, WORK[name]) for title, made in classes.items()}
        else:
            genesis.set_num_threads(threads)
            made, settings, title, make = CONTESTS[name]
            sizes = WORK["resnet50"]
            try:
                contenders = {"rule": stepping(made, sizes, **settings), title: torchs(make, sizes)}
            except Missing as reason:
                print(f"{name:>8}: {reason}")
                continue
        found = alternate(contenders, options.seconds)
        first, *_ = found
        for title, seconds in found.items():
            ratio = median(seconds) / median(found[first])
            print(
                f"{name:>8} {title:>14}: {median(seconds) * 1e6:10.2f} us, {ratio:.3f} of {first}"
            )


if __name__ == "__main__":
    main()
