"""Every update rule, one scalar function each, simplest first.

A rule takes one element of a parameter with its gradient and state, and the step's scalars, and
returns what they become. The same function is compiled for every target, which owns the loops; so a
rule imports nothing but `math` and holds no numbers: a literal would turn float32 arithmetic into
float64 on a GPU. Complements such as `1 - beta` come ready-made from the host, which computes them
in float64 (`optim/`). The order of operations is that of torch's single-tensor CPU path, except that
Adam multiplies by 1 / sqrt(1 - beta2**t) where torch divides: a division less is a quarter of the
time where data is in the cache, for at most one more rounding. A running average is torch's `lerp`: it
starts from the end to which it comes closer, so that a weight of 1 gives the new value itself, and
a decay rate of 0 forgets. The weight is the same for all elements, so the choice leaves the loop.

`hyper` never holds the learning rate's sign, a loss scale or a clip factor: the loop multiplies the
gradient by one `scale` before the rule sees it (-1 to maximize).
"""

import math


def copy(param, grad, state, hyper):
    return grad, state


def accumulate(param, grad, state, hyper):
    return param + grad, state


def average(param, grad, state, hyper):
    kept, weight = hyper
    change = grad - param
    return param + weight * change if weight < kept else grad - kept * change, state


def sgd(param, grad, state, hyper):
    lr, weight_decay = hyper
    grad = grad + weight_decay * param
    return param - lr * grad, state


def sgd_momentum(param, grad, state, hyper):
    (buf,) = state
    lr, weight_decay, momentum, undamped = hyper
    grad = grad + weight_decay * param
    buf = buf * momentum + undamped * grad
    return param - lr * buf, (buf,)


def sgd_nesterov(param, grad, state, hyper):
    (buf,) = state
    lr, weight_decay, momentum, undamped = hyper
    grad = grad + weight_decay * param
    buf = buf * momentum + undamped * grad
    return param - lr * (grad + momentum * buf), (buf,)


def asgd(param, grad, state, hyper):
    (ax,) = state
    eta, weight_decay, kept, mu, averaging = hyper
    grad = grad + weight_decay * param
    param = param * kept - eta * grad
    ax = ax + mu * (param - ax) if averaging else param
    return param, (ax,)


def rprop(param, grad, state, hyper):
    prev, step_size = state
    shrink, grow, smallest, largest, one, zero = hyper
    agreement = grad * prev
    factor = grow if agreement > zero else shrink if agreement < zero else one
    step_size = step_size * factor
    step_size = smallest if step_size < smallest else step_size
    step_size = largest if step_size > largest else step_size
    grad = zero if agreement < zero else grad  # after a sign change, one update of rest
    move = step_size if grad > zero else -step_size if grad < zero else zero
    return param - move, (grad, step_size)


def adagrad(param, grad, state, hyper):
    (total,) = state
    lr, weight_decay, eps = hyper
    grad = grad + weight_decay * param
    total = total + grad * grad
    denom = math.sqrt(total) + eps
    return param - lr * grad / denom, (total,)


def rmsprop(param, grad, state, hyper):
    (square_avg,) = state
    lr, weight_decay, alpha, beta, eps = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * alpha + beta * grad * grad
    denom = math.sqrt(square_avg) + eps
    return param - lr * grad / denom, (square_avg,)


def rmsprop_momentum(param, grad, state, hyper):
    square_avg, buf = state
    lr, weight_decay, alpha, beta, eps, momentum = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * alpha + beta * grad * grad
    denom = math.sqrt(square_avg) + eps
    buf = buf * momentum + grad / denom
    return param - lr * buf, (square_avg, buf)


def rmsprop_centered(param, grad, state, hyper):
    square_avg, grad_avg = state
    lr, weight_decay, alpha, beta, eps = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * alpha + beta * grad * grad
    change = grad - grad_avg
    grad_avg = grad_avg + beta * change if beta < alpha else grad - alpha * change
    denom = math.sqrt(square_avg - grad_avg * grad_avg) + eps
    return param - lr * grad / denom, (square_avg, grad_avg)


def rmsprop_centered_momentum(param, grad, state, hyper):
    square_avg, buf, grad_avg = state
    lr, weight_decay, alpha, beta, eps, momentum = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * alpha + beta * grad * grad
    change = grad - grad_avg
    grad_avg = grad_avg + beta * change if beta < alpha else grad - alpha * change
    denom = math.sqrt(square_avg - grad_avg * grad_avg) + eps
    buf = buf * momentum + grad / denom
    return param - lr * buf, (square_avg, buf, grad_avg)


def adadelta(param, grad, state, hyper):
    square_avg, acc_delta = state
    lr, weight_decay, rho, beta, eps = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * rho + beta * grad * grad
    delta = math.sqrt(acc_delta + eps) / math.sqrt(square_avg + eps) * grad
    acc_delta = acc_delta * rho + beta * delta * delta
    return param - lr * delta, (square_avg, acc_delta)


def adamax(param, grad, state, hyper):
    exp_avg, exp_inf = state
    step_size, weight_decay, beta1, beta1c, beta2, eps = hyper
    grad = grad + weight_decay * param
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_inf = exp_inf * beta2
    size = math.fabs(grad) + eps
    if size > exp_inf or size != size:  # so written, NaN passes through from either side
        exp_inf = size
    return param - step_size * exp_avg / exp_inf, (exp_avg, exp_inf)


def adam(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, weight_decay, beta1, beta1c, beta2, beta2c, per_root, eps = hyper
    grad = grad + weight_decay * param
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq) * per_root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def adam_amsgrad(param, grad, state, hyper):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    step_size, weight_decay, beta1, beta1c, beta2, beta2c, per_root, eps = hyper
    grad = grad + weight_decay * param
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    if not exp_avg_sq <= max_exp_avg_sq:  # so written, NaN passes through
        max_exp_avg_sq = exp_avg_sq
    denom = math.sqrt(max_exp_avg_sq) * per_root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq, max_exp_avg_sq)


def adamw(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, kept, beta1, beta1c, beta2, beta2c, per_root, eps = hyper
    param = param * kept
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq) * per_root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def adamw_amsgrad(param, grad, state, hyper):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    step_size, kept, beta1, beta1c, beta2, beta2c, per_root, eps = hyper
    param = param * kept
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    if not exp_avg_sq <= max_exp_avg_sq:
        max_exp_avg_sq = exp_avg_sq
    denom = math.sqrt(max_exp_avg_sq) * per_root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq, max_exp_avg_sq)


def nadam(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    grad_size, avg_size, weight_decay, beta1, beta1c, beta2, beta2c, correction2, eps = hyper
    grad = grad + weight_decay * param
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq / correction2) + eps
    param = param - grad_size * grad / denom
    return param - avg_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def nadam_decoupled(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    grad_size, avg_size, kept, beta1, beta1c, beta2, beta2c, correction2, eps = hyper
    param = param * kept
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq / correction2) + eps
    param = param - grad_size * grad / denom
    return param - avg_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def radam(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, weight_decay, beta1, beta1c, beta2, beta2c, fixed, eps = hyper
    grad = grad + weight_decay * param
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = fixed if fixed else math.sqrt(exp_avg_sq) + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def radam_decoupled(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, kept, beta1, beta1c, beta2, beta2c, fixed, eps = hyper
    param = param * kept
    change = grad - exp_avg
    exp_avg = exp_avg + beta1c * change if beta1c < beta1 else grad - beta1 * change
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = fixed if fixed else math.sqrt(exp_avg_sq) + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)
