"""Optimizers from papers, as a user writes them, and each once more in plain NumPy.

The references follow the papers: whole arrays, all of the history where that is simpler, no formula
of one element.
"""

from __future__ import annotations

import math

import numpy as np

import genesis
from genesis import transforms as T


@genesis.rule
def Lion(param, grad, exp_avg, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Lion: the sign of an interpolated momentum."""
    mix = beta1 * exp_avg + (1 - beta1) * grad
    sign = 1 if mix > 0 else -1 if mix < 0 else 0
    param = param * (1 - lr * weight_decay) - lr * sign
    return param, beta2 * exp_avg + (1 - beta2) * grad


def nadamw_numbers(step, mu_product=1.0, *, lr=2e-3, betas=(0.9, 0.999), momentum_decay=4e-3):
    mu, later = (betas[0] * (1 - 0.5 * 0.96 ** (s * momentum_decay)) for s in (step, step + 1))
    mu_product *= mu
    avg_size = lr * later / (1 - mu_product * later)
    return {
        "mu_product": mu_product,
        "grad_size": lr * (1 - mu) / (1 - mu_product),
        "avg_size": avg_size,
    }


@genesis.rule(numbers=nadamw_numbers)
def NAdamW(
    param, grad, exp_avg, exp_avg_sq, *, grad_size, avg_size, lr, betas, eps=1e-8,
    weight_decay=1e-2, step,
):  # fmt: skip
    exp_avg = betas[0] * exp_avg + (1 - betas[0]) * grad
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    denom = math.sqrt(exp_avg_sq / (1 - betas[1] ** step)) + eps
    move = (grad_size * grad + avg_size * exp_avg) / denom
    return param * (1 - lr * weight_decay) - move, exp_avg, exp_avg_sq


@genesis.rule
def AdaBelief(
    param, grad, exp_avg, exp_avg_var, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, step
):  # fmt: skip
    exp_avg = exp_avg + (1 - betas[0]) * (grad - exp_avg)
    exp_avg_var = betas[1] * exp_avg_var + (1 - betas[1]) * (grad - exp_avg) ** 2 + eps
    denom = math.sqrt(exp_avg_var / (1 - betas[1] ** step)) + eps
    return param - lr / (1 - betas[0] ** step) * exp_avg / denom, exp_avg, exp_avg_var


@genesis.rule
def ADOPT(
    param, grad, exp_avg, exp_avg_sq, *, lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, step
):  # fmt: skip
    if step == 1:
        return param, exp_avg, grad * grad
    clip = (step - 1) ** 0.25
    normed = min(max(grad / max(math.sqrt(exp_avg_sq), eps), -clip), clip)
    exp_avg = exp_avg + (1 - betas[0]) * (normed - exp_avg)
    return param - lr * exp_avg, exp_avg, betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad


def schedule_free_numbers(
    step, lr_max=0.0, weight_sum=0.0, *, lr=2.5e-3, warmup_steps=0, r=0.0, weight_lr_power=2.0
):
    now = lr * min(1.0, step / max(warmup_steps, 1))
    lr_max = max(now, lr_max)
    weight = step**r * lr_max**weight_lr_power
    weight_sum += weight
    pull = weight / weight_sum if weight_sum else 0.0
    return {"lr_max": lr_max, "weight_sum": weight_sum, "now": now, "pull": pull}


@genesis.rule(numbers=schedule_free_numbers)
def ScheduleFreeAdamW(
    param, grad, z, exp_avg_sq, *, now, pull, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, step
):  # fmt: skip
    z = param if step == 1 else z
    exp_avg_sq = betas[1] * exp_avg_sq + (1 - betas[1]) * grad * grad
    update = grad / (math.sqrt(exp_avg_sq / (1 - betas[1] ** step)) + eps) + weight_decay * param
    param = param + pull * (z - param) + now * (betas[0] * (1 - pull) - 1) * update
    return param, z - now * update, exp_avg_sq


CautiousAdamW = genesis.chain(
    T.scale_by_adam, T.cautious, T.add_decayed_weights, T.scale_by_lr, name="CautiousAdamW"
)


@genesis.rule
def AdamW(
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8,
    weight_decay=1e-2, amsgrad=False, step,
):  # fmt: skip
    beta1, beta2 = betas
    param = param * (1 - lr * weight_decay)
    exp_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + (1 - beta2) * grad * grad
    if amsgrad:
        max_exp_avg_sq = exp_avg_sq if not exp_avg_sq <= max_exp_avg_sq else max_exp_avg_sq
    largest = max_exp_avg_sq if amsgrad else exp_avg_sq
    denom = math.sqrt(largest) * (1 / (1 - beta2**step) ** 0.5) + eps
    param = param - lr / (1 - beta1**step) * exp_avg / denom
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq


# ---- references: the parameter after steps with these gradients ----


def lion(x, gradients, lr, beta1=0.9, beta2=0.99, weight_decay=0.0):
    m = np.zeros_like(x)
    for g in gradients:
        update = np.sign(m * beta1 + g * (1 - beta1))
        x = x - lr * (update + weight_decay * x)
        m = m * beta2 + g * (1 - beta2)
    return x


def nadamw(x, gradients, lr, weight_decay):
    mus = [0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in range(1, len(gradients) + 2)]
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g)
        hat = mus[t] * m / (1 - np.prod(mus[: t + 1]))
        hat = hat + (1 - mus[t - 1]) * g / (1 - np.prod(mus[:t]))
        x = x - lr * weight_decay * x - lr * hat / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return x


def adabelief(x, gradients, lr, eps=1e-8):
    m, s = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * np.square(g - m) + eps
        x = x - lr * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + eps)
    return x


def adopt(x, gradients, lr):
    m, v = np.zeros_like(x), np.square(gradients[0])
    for t, g in enumerate(gradients[1:], 1):
        clip = np.power(t, 0.25)
        m = 0.9 * m + 0.1 * np.clip(g / np.maximum(np.sqrt(v), 1e-6), -clip, clip)
        x = x - lr * m
        v = 0.9999 * v + 0.0001 * np.square(g)
    return x


def schedule_free_adamw(x, gradients, lr, weight_decay, warmup_steps):
    """The paper's three sequences; gradients are taken at y, which is the parameter."""
    y = z = x
    v, weights = np.zeros_like(x), []
    for t, g in enumerate(gradients, 1):
        now = lr * min(1.0, t / warmup_steps)
        weights.append(now**2)  # the largest so far, as the warm-up rises
        v = 0.999 * v + 0.001 * np.square(g)
        z = z - now * (g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + weight_decay * y)
        c = weights[-1] / sum(weights)
        x = (1 - c) * x + c * z
        y = 0.1 * z + 0.9 * x
    return y


def cautious_adamw(x, gradients, lr, weight_decay):
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g)
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - lr * (np.where(u * g > 0, u, 0) + weight_decay * x)
    return x


def adamw(x, gradients, lr, weight_decay, amsgrad=False):
    m, v, largest = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g)
        largest = np.maximum(largest, v) if amsgrad else v
        x = x - lr * weight_decay * x
        x = x - lr * (m / (1 - 0.9**t)) / (np.sqrt(largest / (1 - 0.999**t)) + 1e-8)
    return x


PUBLISHED = {
    "Lion": (Lion, lion, {"lr": 1e-2, "weight_decay": 0.1}),
    "NAdamW": (NAdamW, nadamw, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdaBelief": (AdaBelief, adabelief, {"lr": 1e-2}),
    "ADOPT": (ADOPT, adopt, {"lr": 1e-2}),
    "ScheduleFreeAdamW": (
        ScheduleFreeAdamW,
        schedule_free_adamw,
        {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 10},
    ),
    "CautiousAdamW": (CautiousAdamW, cautious_adamw, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW": (AdamW, adamw, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW amsgrad": (AdamW, adamw, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
}
"""Each class, its reference and the settings to compare them with."""
