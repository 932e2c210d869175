"""What a rule costs beside the hand-written kernel of the same formula: `python benchmarks/rules.py`.

AdamW as a rule and as a chain, and the package's own, in turns; one tensor of 1000 elements for what
Python does in a step, one of a million and the shapes of ResNet-50 for the kernels. One thread, so
that what is compared is code.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
import shapes
from timing import alternate, median

import genesis
from genesis import transforms as T  # noqa: N812


@genesis.rule
def RuleAdamW(  # noqa: N802
    param, grad, exp_avg, exp_avg_sq, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, step
):  # fmt: skip
    """The package's formula, in its order of operations."""
    beta1, beta2 = betas
    param = param * (1 - lr * weight_decay)
    exp_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + (1 - beta2) * grad * grad
    denom = math.sqrt(exp_avg_sq) * (1 / (1 - beta2**step) ** 0.5) + eps
    return param - lr / (1 - beta1**step) * exp_avg / denom, exp_avg, exp_avg_sq


ChainedAdamW = genesis.chain(
    T.scale_by_adam, T.add_decayed_weights, T.scale_by_lr, name="ChainedAdamW"
)
WORK = {"1000": [(1000,)], "mlp": shapes.mlp(), "1M": [(1000, 1000)], "resnet50": shapes.resnet50()}


def stepping(made: type, sizes: Sequence[tuple[int, ...]]):
    """The step of an optimizer whose parameters all have gradients."""
    rng = np.random.default_rng(0)
    params = [genesis.Parameter(rng.standard_normal(s).astype(np.float32)) for s in sizes]
    for param in params:
        param.grad = rng.standard_normal(param.shape).astype(np.float32)
    return made(params).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each size")
    parser.add_argument("work", nargs="*", help=f"of {', '.join(WORK)}; all")
    options = parser.parse_args()
    genesis.set_num_threads(1)
    classes = {"built in": genesis.optim.AdamW, "rule": RuleAdamW, "chain": ChainedAdamW}
    for name in options.work or WORK:
        contenders = {title: stepping(made, WORK[name]) for title, made in classes.items()}
        found = alternate(contenders, options.seconds)
        usual = median(found["built in"])
        for title, seconds in found.items():
            ratio = median(seconds) / usual
            print(
                f"{name:>8} {title:>8}: {median(seconds) * 1e6:10.2f} us, {ratio:.3f} of built in"
            )


if __name__ == "__main__":
    main()
