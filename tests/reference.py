"""Independent references: each optimizer in plain float64 NumPy, written from its paper.

They share nothing with genesis, neither code nor the arrangement of the arithmetic (torch's order of
operations is what genesis follows). Each takes a parameter, its gradient, its state and the number
of this update (from 1), and returns the new parameter and state.
"""

import numpy as np


def _descent(grad, maximize):
    return -grad if maximize else grad


def sgd(
    param, grad, state, step, *, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    if not momentum:
        return param - lr * grad, {}
    if "momentum_buffer" in state:
        velocity = momentum * state["momentum_buffer"] + (1 - dampening) * grad
    else:
        velocity = grad
    direction = grad + momentum * velocity if nesterov else velocity
    return param - lr * direction, {"momentum_buffer": velocity}


def _masked(update, grad, cautious):
    """An update without its elements that disagree with the gradient, and the others in their place.

    NaN agrees with nothing and stays all the same.
    """
    if not cautious:
        return update
    agrees = np.sign(update) * np.sign(grad) == 1
    return (
        np.where(agrees | ~np.isfinite(update), update, 0)
        * agrees.size
        / (np.count_nonzero(agrees) + 1)
    )


def _shrinking(param, update, cautious):
    """What decoupled weight decay is a part of: a cautious one leaves out what the update lets grow."""
    return np.where(np.sign(update) * np.sign(param) == -1, 0, param) if cautious else param


def _adam(grad, state, step, lr, betas, eps, amsgrad):
    """The update, and the new state."""
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if amsgrad:  # as in torch, the largest average is taken before its bias is corrected
        square = new["max_exp_avg_sq"] = np.maximum(state.get("max_exp_avg_sq", 0), square)
    corrected_mean = mean / (1 - betas[0] ** step)
    corrected_square = square / (1 - betas[1] ** step)
    return lr * corrected_mean / (np.sqrt(corrected_square) + eps), new


def adam(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    amsgrad=False, cautious=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    update, new = _adam(grad, state, step, lr, betas, eps, amsgrad)
    return param - _masked(update, grad, cautious), new


def adamw(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
    amsgrad=False, cautious=False, cautious_weight_decay=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    update, new = _adam(grad, state, step, lr, betas, eps, amsgrad)
    decay = lr * weight_decay * _shrinking(param, update, cautious_weight_decay)
    return param - decay - _masked(update, grad, cautious), new


def rmsprop(
    param, grad, state, step, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0,
    centered=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    square = alpha * state.get("square_avg", 0) + (1 - alpha) * np.square(grad)
    new = {"square_avg": square}
    variance = square
    if centered:
        new["grad_avg"] = alpha * state.get("grad_avg", 0) + (1 - alpha) * grad
        variance = square - np.square(new["grad_avg"])
    scaled = grad / (np.sqrt(variance) + eps)
    if momentum:
        scaled = new["momentum_buffer"] = momentum * state.get("momentum_buffer", 0) + scaled
    return param - lr * scaled, new


def adagrad(
    param, grad, state, step, *, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0,
    eps=1e-10, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    total = state.get("sum", initial_accumulator_value) + np.square(grad)
    rate = lr / (1 + lr_decay * (step - 1))
    return param - rate * (grad / (np.sqrt(total) + eps)), {"sum": total}


def adadelta(
    param, grad, state, step, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0, maximize=False
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    before = state.get("acc_delta", 0)
    square = rho * state.get("square_avg", 0) + (1 - rho) * np.square(grad)
    delta = grad * np.sqrt((before + eps) / (square + eps))
    after = rho * before + (1 - rho) * np.square(delta)
    return param - lr * delta, {"square_avg": square, "acc_delta": after}


def adamax(
    param, grad, state, step, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    largest = np.maximum(betas[1] * state.get("exp_inf", 0), np.abs(grad) + eps)
    corrected = mean / (1 - betas[0] ** step)
    return param - lr * corrected / largest, {"exp_avg": mean, "exp_inf": largest}


def _decayed(param, grad, lr, weight_decay, decoupled):
    """Parameter and gradient with weight decay in the one or in the other."""
    decay = weight_decay * param
    return (param - lr * decay, grad) if decoupled else (param, grad + decay)


def nadam(
    param, grad, state, step, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    momentum_decay=4e-3, decoupled_weight_decay=False, cautious=False, cautious_weight_decay=False,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    shrunk, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    now, later = (betas[0] * (1 - 0.96 ** (t * momentum_decay) / 2) for t in (step, step + 1))
    product = now * state.get("mu_product", 1)
    ahead = (1 - now) / (1 - product) * grad + later / (1 - later * product) * mean
    scale = np.sqrt(square / (1 - betas[1] ** step)) + eps
    new = {"mu_product": product, "exp_avg": mean, "exp_avg_sq": square}
    update = lr * ahead / scale
    if cautious_weight_decay:
        shrunk = param - lr * weight_decay * _shrinking(param, update, True)
    return shrunk - _masked(update, grad, cautious), new


def radam(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    decoupled_weight_decay=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    update = mean / (1 - betas[0] ** step)
    limit = (1 + betas[1]) / (1 - betas[1])
    length = limit - 2 * step / (betas[1] ** -step - 1)
    if length > 5:
        variance = (limit - 4) * (limit - 2) / limit
        rectified = np.sqrt((length - 4) * (length - 2) / length / variance)
        update = update * rectified * np.sqrt(1 - betas[1] ** step) / (np.sqrt(square) + eps)
    return param - lr * update, {"exp_avg": mean, "exp_avg_sq": square}


def asgd(
    param, grad, state, step, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    eta, mu = state.get("eta", lr), state.get("mu", 1)
    param = param - eta * (lambd * param + grad)
    mean = (1 - mu) * state.get("ax", 0) + mu * param
    eta = lr * (1 + lambd * lr * step) ** -alpha
    mu = 1 if step < t0 + 1 else 1 / (step - t0)
    return param, {"ax": mean, "eta": eta, "mu": mu}


def rprop(
    param, grad, state, step, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), maximize=False
):  # fmt: skip
    grad = _descent(grad, maximize)
    turn = grad * state.get("prev", 0)
    factor = np.where(turn > 0, etas[1], np.where(turn < 0, etas[0], 1))
    size = np.clip(factor * state.get("step_size", lr), *step_sizes)
    grad = np.where(turn < 0, 0, grad)
    direction = np.nan_to_num(np.sign(grad))  # NaN does not move
    return param - size * direction, {"prev": grad, "step_size": size}


def _moved_to(mean, grad, decay):
    """An average after one more gradient; where both are infinite it is NaN, as torch's `lerp` is."""
    return mean + (1 - decay) * (grad - mean)


def lion(
    param, grad, state, step, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0, cautious=False,
    cautious_weight_decay=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    mean = state.get("exp_avg", 0)
    direction = np.sign(_moved_to(mean, grad, betas[0]))
    new = {"exp_avg": _moved_to(mean, grad, betas[1])}
    decay = weight_decay * _shrinking(param, direction, cautious_weight_decay)
    return param - lr * (_masked(direction, grad, cautious) + decay), new


def signsgd(param, grad, state, step, *, lr=1e-3, momentum=0.9, weight_decay=0, maximize=False):
    grad = _descent(grad, maximize)
    new = {}
    if momentum:
        grad = new["momentum_buffer"] = _moved_to(state.get("momentum_buffer", 0), grad, momentum)
    return param - lr * (np.sign(grad) + weight_decay * param), new


def ademamix(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=5.0, beta3_warmup=None,
    alpha_warmup=None, eps=1e-8, weight_decay=0, cautious=False, cautious_weight_decay=False,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    beta1, beta2, beta3 = betas
    if alpha_warmup:
        alpha = min(step * alpha / alpha_warmup, alpha)
    if beta3_warmup:
        part, low, high = step / beta3_warmup, np.log(beta1), np.log(beta3)
        beta3 = min(np.exp(low * high / ((1 - part) * high + part * low)), beta3)
    fast = beta1 * state.get("exp_avg", 0) + (1 - beta1) * grad
    slow = beta3 * state.get("exp_avg_slow", 0) + (1 - beta3) * grad
    square = beta2 * state.get("exp_avg_sq", 0) + (1 - beta2) * np.square(grad)
    scale = np.sqrt(square / (1 - beta2**step)) + eps
    update = (fast / (1 - beta1**step) + alpha * slow) / scale
    decay = weight_decay * _shrinking(param, update, cautious_weight_decay)
    new = {"exp_avg": fast, "exp_avg_slow": slow, "exp_avg_sq": square}
    return param - lr * (_masked(update, grad, cautious) + decay), new


def adopt(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0,
    decoupled_weight_decay=False, clip_exp=0.25, cautious=False, cautious_weight_decay=False,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    before = param
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    if step == 1:  # v_0, from which the paper begins to count
        return before, {"exp_avg": np.zeros_like(grad), "exp_avg_sq": np.square(grad)}
    normal = grad / np.maximum(np.sqrt(state["exp_avg_sq"]), eps)
    if clip_exp is not None:
        longest = (step - 1) ** clip_exp
        normal = np.clip(normal, -longest, longest)
    mean = betas[0] * state["exp_avg"] + (1 - betas[0]) * normal
    square = betas[1] * state["exp_avg_sq"] + (1 - betas[1]) * np.square(grad)
    if cautious_weight_decay:
        param = before - lr * weight_decay * _shrinking(before, mean, True)
    new = {"exp_avg": mean, "exp_avg_sq": square}
    return param - lr * _masked(mean, grad, cautious), new


def adan(
    param, grad, state, step, *, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0,
    no_prox=False, cautious=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    one, two, three = (1 - beta for beta in betas)  # as the paper has them
    change = grad - state.get("pre_grad", grad)
    mean = (1 - one) * state.get("exp_avg", 0) + one * grad
    slope = (1 - two) * state.get("exp_avg_diff", 0) + two * change
    square = (1 - three) * state.get("exp_avg_sq", 0) + three * np.square(grad + (1 - two) * change)
    corrected = [average / (1 - beta**step) for average, beta in zip((mean, slope, square), betas)]
    rate = lr / (np.sqrt(corrected[2]) + eps)
    update = _masked(rate * (corrected[0] + (1 - two) * corrected[1]), grad, cautious)
    new = {"exp_avg": mean, "exp_avg_diff": slope, "exp_avg_sq": square, "pre_grad": grad}
    if no_prox:
        return param - lr * weight_decay * param - update, new
    return (param - update) / (1 + lr * weight_decay), new


def mars(
    param, grad, state, step, *, lr=3e-3, betas=(0.95, 0.99), eps=1e-8, weight_decay=0,
    gamma=0.025, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    change = grad - state.get("last_grad", grad)
    corrected = grad + gamma * (betas[0] / (1 - betas[0])) * change
    corrected = corrected / max(1.0, np.linalg.norm(np.ravel(corrected)))
    param = param - lr * weight_decay * param
    update, new = _adam(corrected, state, step, lr, betas, eps, False)
    return param - update, {**new, "last_grad": grad}


def lamb(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2,
    bias_correction=True, adapt=True, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if bias_correction:
        mean, square = mean / (1 - betas[0] ** step), square / (1 - betas[1] ** step)
    update = mean / (np.sqrt(square) + eps) + weight_decay * param
    size, change = (np.linalg.norm(np.ravel(each)) for each in (param, update))
    ratio = size / change if adapt and size > 0 and change > 0 else 1
    return param - lr * ratio * update, new


def lars(
    param, grad, state, step, *, lr, momentum=0.9, weight_decay=0, trust_coefficient=1e-3,
    adapt=True, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    size, slope = (np.linalg.norm(np.ravel(each)) for each in (param, grad))
    rate = 1
    if adapt and size > 0 and slope > 0:
        rate = trust_coefficient * size / (slope + weight_decay * size)
    buffer = momentum * state.get("momentum_buffer", 0) + lr * rate * (grad + weight_decay * param)
    return param - buffer, {"momentum_buffer": buffer}


def stable_adamw(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-2,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    one, two = (b * (1 - b ** (step - 1)) / (1 - b**step) for b in betas)
    mean = one * state.get("exp_avg", 0) + (1 - one) * grad
    square = two * state.get("exp_avg_sq", 0) + (1 - two) * np.square(grad)
    excess = np.square(grad) / np.maximum(square, eps**2)
    rate = lr / max(1.0, np.sqrt(excess.mean())) if np.size(excess) else lr
    param = (1 - rate * weight_decay) * param - rate * mean / (np.sqrt(square) + eps)
    return param, {"exp_avg": mean, "exp_avg_sq": square}


def adabelief(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0,
    decoupled_weight_decay=True, cautious=False, cautious_weight_decay=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    before = param
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    belief = betas[1] * state.get("exp_avg_var", 0) + (1 - betas[1]) * np.square(grad - mean) + eps
    scale = np.sqrt(belief / (1 - betas[1] ** step)) + eps
    update = mean / (1 - betas[0] ** step) / scale
    if cautious_weight_decay:
        param = before - lr * weight_decay * _shrinking(before, update, True)
    return param - lr * _masked(update, grad, cautious), {"exp_avg": mean, "exp_avg_var": belief}


def yogi(
    param, grad, state, step, *, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0,
    decoupled_weight_decay=False, initial_accumulator_value=1e-6, bias_correction=False,
    maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = state.get("exp_avg_sq", initial_accumulator_value)
    square = square + (1 - betas[1]) * np.sign(np.square(grad) - square) * np.square(grad)
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if bias_correction:
        mean = mean / (1 - betas[0] ** step)
        square = square / (1 - betas[1] ** step)
    return param - lr * mean / (np.sqrt(square) + eps), new


def laprop(
    param, grad, state, step, *, lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0,
    decoupled_weight_decay=True, cautious=False, cautious_weight_decay=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    before = param
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    normal = grad / (np.sqrt(square / (1 - betas[1] ** step)) + eps)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * normal
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if cautious_weight_decay:
        param = before - lr * weight_decay * _shrinking(before, mean, True)
    return param - lr / (1 - betas[0] ** step) * _masked(mean, grad, cautious), new


def ftrl(
    param, grad, state, step, *, lr=1e-3, beta=0, lambda_1=0, lambda_2=0,
    initial_accumulator_value=0, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    total = state.get("sum", np.full_like(grad, initial_accumulator_value))
    linear = state.get("linear", np.zeros_like(grad))
    if lr == 0:
        return param, {"sum": total, "linear": linear}
    moved = grad != 0
    after = total + np.square(grad)
    sigma = (np.sqrt(after) - np.sqrt(total)) / lr
    linear = np.where(moved, linear + grad - sigma * param, linear)
    curvature = (beta + np.sqrt(after)) / lr + lambda_2
    with np.errstate(all="ignore"):  # where nothing has ever moved
        solved = -(linear - np.sign(linear) * lambda_1) / curvature
    solved = np.where(np.abs(linear) <= lambda_1, 0, solved)
    return np.where(moved, solved, param), {"sum": after, "linear": linear}


def adabound(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), final_lr=0.1, gamma=1e-3, eps=1e-8,
    weight_decay=0, decoupled_weight_decay=False, amsbound=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    param, grad = _decayed(param, grad, lr, weight_decay, decoupled_weight_decay)
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    base = max(lr, state.get("base_lr", 0))
    new = {"base_lr": base, "exp_avg": mean, "exp_avg_sq": square}
    if amsbound:
        square = new["max_exp_avg_sq"] = np.maximum(state.get("max_exp_avg_sq", 0), square)
    correction = np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    final = final_lr * lr / base if base else 0
    closeness = gamma * step
    low, high = final * closeness / (closeness + 1), final * (closeness + 1) / closeness
    rate = np.clip(lr * correction / (np.sqrt(square) + eps), low, high)
    return param - rate * mean, new


def _schedule_free(param, direction, state, step, rate, beta, r, power):
    """The three sequences of the paper, of which y is the parameter and x is found from the others."""
    y, z = param, state.get("z", param)
    x = (y - (1 - beta) * z) / beta
    largest = max(rate, state.get("lr_max", 0))
    weight = step**r * largest**power
    total = state.get("weight_sum", 0) + weight
    share = weight / total if total else 0
    z = z - rate * direction
    x = (1 - share) * x + share * z
    return beta * x + (1 - beta) * z, {"z": z, "weight_sum": total, "lr_max": largest}


def schedulefreesgd(
    param, grad, state, step, *, lr=1.0, momentum=0.9, weight_decay=0, warmup_steps=0, r=0,
    weight_lr_power=2.0, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    rate = lr * min(1, step / warmup_steps) if warmup_steps else lr
    return _schedule_free(param, grad, state, step, rate, momentum, r, weight_lr_power)


def schedulefreeadamw(
    param, grad, state, step, *, lr=2.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    warmup_steps=0, r=0, weight_lr_power=2.0, corrects_lr=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    rate = lr * min(1, step / warmup_steps) if warmup_steps else lr
    if corrects_lr:  # as in the paper's algorithm
        rate *= np.sqrt(1 - betas[1] ** step)
        normal = grad / (np.sqrt(square) + eps)
    else:
        normal = grad / (np.sqrt(square / (1 - betas[1] ** step)) + eps)
    direction = normal + weight_decay * param
    param, new = _schedule_free(param, direction, state, step, rate, betas[0], r, weight_lr_power)
    return param, {**new, "exp_avg_sq": square}


def schedulefreeradam(
    param, grad, state, step, *, lr=2.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, r=0,
    weight_lr_power=2.0, silent_sgd_phase=True, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    limit = (1 + betas[1]) / (1 - betas[1])
    powers = betas[1] ** np.arange(step)  # of which the sum is (1 - beta**step) / (1 - beta)
    length = limit - 2 * step * betas[1] ** step / ((1 - betas[1]) * powers.sum())
    if length > 4:
        variance = (limit - 4) * (limit - 2) / limit
        rate = lr * np.sqrt((length - 4) * (length - 2) / length / variance)
        direction = grad / (np.sqrt(square / (1 - betas[1] ** step)) + eps)
    else:
        rate, direction = 0 if silent_sgd_phase else lr, grad
    direction = direction + weight_decay * param
    param, new = _schedule_free(param, direction, state, step, rate, betas[0], r, weight_lr_power)
    return param, {**new, "exp_avg_sq": square}


REFERENCES = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adamw,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "Adamax": adamax,
    "NAdam": nadam,
    "RAdam": radam,
    "ASGD": asgd,
    "Rprop": rprop,
    "Lion": lion,
    "SignSGD": signsgd,
    "AdEMAMix": ademamix,
    "ADOPT": adopt,
    "Adan": adan,
    "MARS": mars,
    "LAMB": lamb,
    "LARS": lars,
    "StableAdamW": stable_adamw,
    "AdaBelief": adabelief,
    "Yogi": yogi,
    "LaProp": laprop,
    "FTRL": ftrl,
    "AdaBound": adabound,
    "ScheduleFreeSGD": schedulefreesgd,
    "ScheduleFreeAdamW": schedulefreeadamw,
    "ScheduleFreeRAdam": schedulefreeradam,
}


def novograd(
    param, grad, state, step, *, lr=1e-3, betas=(0.95, 0.98), eps=1e-8, weight_decay=0,
    grad_averaging=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    square = np.linalg.norm(np.ravel(grad)) ** 2
    if state:
        square = _moved_to(state["exp_avg_sq"], square, betas[1])
    new = grad / (np.sqrt(square) + eps) + weight_decay * param
    if state:
        new = betas[0] * state["exp_avg"] + (1 - betas[0] if grad_averaging else 1) * new
    return param - lr * new, {"exp_avg": new, "exp_avg_sq": square}


def ldog(
    param, grad, state, step, *, reps_rel=1e-6, lr=1, weight_decay=0, eps=1e-8, init_eta=None,
    maximize=False,
):  # fmt: skip
    """The distance over gradients of one tensor, or of all as one vector."""
    grad = _descent(grad, maximize) + weight_decay * param
    init = state.get("init", param)
    rbar = max(state.get("rbar", 0), np.linalg.norm(np.ravel(param - init)))
    total = state.get("grad_sq", 0) + np.sum(grad**2)
    if rbar == 0 and init_eta is None:
        rbar = reps_rel * (1 + np.linalg.norm(np.ravel(param)))
    eta = lr * rbar / np.sqrt(total + eps) if rbar else init_eta
    return param - eta * grad, {"init": init, "rbar": rbar, "grad_sq": total}


def prodigy(
    param, grad, state, step, *, lr=1, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0,
    decouple=True, use_bias_correction=False, safeguard_warmup=False, d0=1e-6, d_coef=1,
    growth_rate=np.inf, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + (0 if decouple else weight_decay) * param
    beta3 = np.sqrt(betas[1]) if beta3 is None else beta3
    if use_bias_correction:
        lr = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    begin, d = state.get("p0", param), state.get("d", d0)
    weight = d**2 / d0
    r = beta3 * state.get("d_numerator", 0) + weight * np.sum(lr * grad * (begin - param))
    s = beta3 * state.get("s", 0) + weight * (1 if safeguard_warmup else lr) * grad
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * d * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * (d * grad) ** 2
    size = np.sum(np.abs(s))
    estimate = d_coef * r / size if size else d
    largest = max(state.get("d_max", d0), estimate)
    after = min(largest, growth_rate * (max(d, estimate) if d == d0 else d))
    move = d * lr * (mean / (np.sqrt(square) + after * eps) + decouple * weight_decay * param)
    return param - move, {
        "p0": begin, "d": after, "d_max": largest, "d_numerator": r, "s": s, "exp_avg": mean,
        "exp_avg_sq": square,
    }  # fmt: skip


def dadaptadam(
    param, grad, state, step, *, lr=1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    decouple=False, use_bias_correction=False, d0=1e-6, growth_rate=np.inf, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + (0 if decouple else weight_decay) * param
    root, d = np.sqrt(betas[1]), state.get("d", d0)
    if use_bias_correction:
        lr = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    before, s = state.get("exp_avg_sq", 0), state.get("s", 0 * param)
    inner = np.sum(d * lr * grad * s / (np.sqrt(before) + eps))
    r = root * state.get("numerator_weighted", 0) + (1 - root) * inner
    s = root * s + (1 - root) * d * lr * grad
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * d * lr * grad
    square = betas[1] * before + (1 - betas[1]) * grad**2
    size = np.sum(np.abs(s))
    estimate = r / ((1 - root) * size) if size else d
    move = mean / (np.sqrt(square) + eps) + decouple * weight_decay * d * lr * param
    return param - move, {
        "d": max(d, min(estimate, d * growth_rate)), "numerator_weighted": r, "s": s,
        "exp_avg": mean, "exp_avg_sq": square,
    }  # fmt: skip


REFERENCES.update(NovoGrad=novograd, LDoG=ldog)
OF_ALL = {"DoG": ldog, "Prodigy": prodigy, "DAdaptAdam": dadaptadam}
"""References that take all parameters that have a gradient as one vector.

In their state numbers are those of all; the number of the update, in which parameters may differ, is a
vector, too."""
REFERENCES.update(OF_ALL)


def _apart(vector, places):
    return {i: vector[place].reshape(shape) for i, (place, shape) in places.items()}


class Reference:
    """Runs a reference over several parameters, as an optimizer does; None skips a parameter."""

    def __init__(self, name, params, **hyper):
        self.rule = REFERENCES[name]
        self.of_all = name in OF_ALL
        self.numbers = {}
        self.hyper = hyper
        self.params = [np.array(p, np.float64) for p in params]
        self.states = [{} for _ in params]
        self.steps = [0 for _ in params]

    def _step_of_all(self, grads):
        """What the state of a parameter that had no gradient so far lacks is what rules begin with."""
        rows = [i for i, grad in enumerate(grads) if grad is not None]
        sizes = [self.params[i].size for i in rows]
        ends = np.cumsum(sizes)
        places = {
            i: (slice(end - size, end), self.params[i].shape)
            for i, size, end in zip(rows, sizes, ends)
        }

        def joined(arrays):
            return np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in arrays])

        for i in rows:
            self.steps[i] += 1
        state = dict(self.numbers)
        known = {name for i in rows for name in self.states[i]} - self.numbers.keys()
        begins = {"p0": self.params, "init": self.params}
        for name in known:
            others = begins.get(name, [0 * param for param in self.params])
            state[name] = joined([self.states[i].get(name, others[i]) for i in rows])
        step = joined([np.full(self.params[i].shape, self.steps[i]) for i in rows])
        found, after = self.rule(
            joined([self.params[i] for i in rows]),
            joined([grads[i] for i in rows]),
            state,
            step,
            **self.hyper,
        )
        self.numbers = {name: value for name, value in after.items() if np.ndim(value) == 0}
        for i, value in _apart(found, places).items():
            self.params[i] = value
            for name in after.keys() - self.numbers.keys():
                self.states[i][name] = _apart(after[name], places)[i]
        for state in self.states:
            if state:
                state.update(self.numbers)

    def step(self, grads):
        if self.of_all:
            return self._step_of_all(grads)
        for i, grad in enumerate(grads):
            if grad is not None:
                self.steps[i] += 1
                self.params[i], self.states[i] = self.rule(
                    self.params[i],
                    np.asarray(grad, np.float64),
                    self.states[i],
                    self.steps[i],
                    **self.hyper,
                )
