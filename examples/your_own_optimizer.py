# SPDX-License-Identifier: Apache-2.0
"""Your own optimizer: write the formula of one element, get a compiled optimizer.

    python examples/your_own_optimizer.py

Four of them: Lion; Adam with a flag; NAdamW, with numbers that the host computes once a step; and a
chain of ready transforms. Each is checked against its own reference, bit for bit, and raced against
the same optimizer as one writes it with whole NumPy arrays.
"""

import argparse
import math
import time

import numpy as np

import genesis
from genesis import hyper
from genesis import transforms as T

# ---- the formulas ----


@genesis.rule
def Lion(param, grad, exp_avg, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675)."""
    mix = beta1 * exp_avg + (1 - beta1) * grad
    sign = 1 if mix > 0 else -1 if mix < 0 else 0
    param = param * (1 - lr * weight_decay) - lr * sign
    return param, beta2 * exp_avg + (1 - beta2) * grad


@genesis.rule
def Adam(
    param, grad, exp_avg, exp_avg_sq, largest, *,
    lr=hyper.rate(1e-3), betas=hyper.betas(0.9, 0.999), eps=1e-8,
    amsgrad=hyper.flag(False, "divide by the largest average so far"), step,
):  # fmt: skip
    """Adam. Without amsgrad, "largest" is neither computed nor allocated."""
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    if amsgrad:
        largest = max(largest, exp_avg_sq)
    denom = math.sqrt((largest if amsgrad else exp_avg_sq) / (1 - beta2**step)) + eps
    return param - lr / (1 - beta1**step) * exp_avg / denom, exp_avg, exp_avg_sq, largest


def nadamw_numbers(step, product=1.0, *, lr=2e-3, beta1=0.9, momentum_decay=4e-3):
    """Once a step, on the host: NAdam's momentum rises, and the product of all so far is carried."""
    momentum, later = (beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay)) for t in (step, step + 1))
    product *= momentum
    return {
        "product": product,
        "grad_size": lr * (1 - momentum) / (1 - product),
        "avg_size": lr * later / (1 - product * later),
    }


@genesis.rule(numbers=nadamw_numbers)
def NAdamW(
    param, grad, exp_avg, exp_avg_sq, *,
    grad_size, avg_size, lr, beta1, beta2=0.999, eps=1e-8, weight_decay=1e-2, step,
):  # fmt: skip
    """NAdamW: Adam with Nesterov momentum and decoupled weight decay."""
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    move = grad_size * grad + avg_size * exp_avg
    denom = math.sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    return param * (1 - lr * weight_decay) - move / denom, exp_avg, exp_avg_sq


@genesis.transform
def scaled_sign(update, param, *, scale=0.1):
    """A transform of one's own: something between the update and its sign."""
    return scale * update + (1 - scale) * math.copysign(1, update)


SignedMomentum = genesis.chain(
    T.momentum, scaled_sign, T.add_decayed_weights, T.scale_by_lr, name="SignedMomentum"
)


# ---- the same with whole NumPy arrays, as one would write it without genesis ----


def lion(x, g, state, t, lr=1e-4):
    mix = 0.9 * state["m"] + 0.1 * g
    state["m"] = 0.99 * state["m"] + 0.01 * g
    return x - lr * np.sign(mix)


def adam(x, g, state, t, lr=1e-3):
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.999 * state["v"] + 0.001 * g**2
    state["largest"] = np.maximum(state["largest"], state["v"])
    denom = np.sqrt(state["largest"] / (1 - 0.999**t)) + 1e-8
    return x - lr / (1 - 0.9**t) * state["m"] / denom


def nadamw(x, g, state, t, lr=2e-3):
    momenta = [0.9 * (1 - 0.5 * 0.96 ** (0.004 * s)) for s in range(1, t + 2)]
    product = math.prod(momenta[:-1])
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.999 * state["v"] + 0.001 * g**2
    move = lr * (1 - momenta[-2]) / (1 - product) * g
    move = move + lr * momenta[-1] / (1 - product * momenta[-1]) * state["m"]
    return x * (1 - lr * 1e-2) - move / (np.sqrt(state["v"] / (1 - 0.999**t)) + 1e-8)


def signed_momentum(x, g, state, t, lr=1e-3):
    state["m"] = 0.9 * state["m"] + g
    update = 0.1 * state["m"] + 0.9 * np.copysign(np.float32(1), state["m"])
    return x - lr * (update + 1e-2 * x)


CONTESTS = [
    (Lion, {}, lion),
    (Adam, {"amsgrad": True}, adam),
    (NAdamW, {}, nadamw),
    (SignedMomentum, {}, signed_momentum),
]


# ---- the checks and the race ----


def check(optimizer_class, settings, rng):
    """Three steps of 200 elements: the kernel gives the bits of the formula on NumPy scalars."""
    values = [rng.standard_normal(200).astype(np.float32)]
    p = genesis.Parameter(values[0].copy())
    optimizer = optimizer_class([p], **settings)
    carried = {}
    for step in (1, 2, 3):
        p.grad = rng.standard_normal(200).astype(np.float32)
        values = optimizer_class.reference(
            values[0], p.grad, *values[1:], step=step, **carried, **settings
        )
        optimizer.step()
        numbers = optimizer.state[p].items()
        carried = {name: n for name, n in numbers if isinstance(n, float) and name != "step"}
        np.testing.assert_array_equal(p.data.view(np.int32), values[0].view(np.int32))


def race(optimizer_class, settings, in_numpy, rng, size, steps):
    """Median seconds of a step, with genesis and with NumPy arrays; both end at the same place."""
    x = rng.standard_normal(size).astype(np.float32)
    gradients = [rng.standard_normal(size).astype(np.float32) for _ in range(steps)]
    p, y = genesis.Parameter(x.copy()), x.copy()
    optimizer = optimizer_class([p], **settings)
    state = {name: np.zeros(size, np.float32) for name in ("m", "v", "largest")}
    times = [], []
    for t, gradient in enumerate(gradients, 1):
        start = time.perf_counter()
        p.grad = gradient
        optimizer.step()
        middle = time.perf_counter()
        y = in_numpy(y, gradient, state, t)
        end = time.perf_counter()
        times[0].append(middle - start)
        times[1].append(end - middle)
    np.testing.assert_allclose(p.data, y, rtol=1e-4, atol=1e-5)
    return [float(np.median(found)) for found in times]


def main(arguments=None):
    """Check and race all four; returns how many times faster than NumPy each is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1_000_000, help="elements (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps (%(default)s)")
    options = parser.parse_args(arguments)
    for name in ("size", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(options, name)}")
    rng = np.random.default_rng(0)
    ratios = {}
    for optimizer_class, settings, in_numpy in CONTESTS:
        name = optimizer_class.__name__
        check(optimizer_class, settings, rng)
        ours, numpys = race(optimizer_class, settings, in_numpy, rng, options.size, options.steps)
        ratios[name] = numpys / ours
        print(
            f"{name:15} {ours * 1e3:8.3f} ms a step, with NumPy {numpys * 1e3:8.3f} ms: "
            f"{ratios[name]:.1f} times as fast"
        )
    print(f"{len(ratios)} optimizers give the bits of their formulas")
    return ratios


if __name__ == "__main__":
    main()
