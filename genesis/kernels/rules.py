"""Every update rule, one scalar function each, simplest first.

A rule takes one element of a parameter with its gradient and state, and the step's scalars, and
returns what they become. The same function is compiled for every target, which owns the loops; so a
rule imports nothing but `math` and holds no numbers: a literal would turn float32 arithmetic into
float64 on a GPU. Complements such as `1 - beta` come ready-made from the host, which computes them
in float64 (`optim/`). The order of operations is that of torch's single-tensor CPU path.

`hyper` never holds the learning rate's sign, a loss scale or a clip factor: the loop multiplies the
gradient by one `scale` before the rule sees it (-1 to maximize).
"""

import math


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
    grad_avg = grad_avg + beta * (grad - grad_avg)
    denom = math.sqrt(square_avg - grad_avg * grad_avg) + eps
    return param - lr * grad / denom, (square_avg, grad_avg)


def rmsprop_centered_momentum(param, grad, state, hyper):
    square_avg, buf, grad_avg = state
    lr, weight_decay, alpha, beta, eps, momentum = hyper
    grad = grad + weight_decay * param
    square_avg = square_avg * alpha + beta * grad * grad
    grad_avg = grad_avg + beta * (grad - grad_avg)
    denom = math.sqrt(square_avg - grad_avg * grad_avg) + eps
    buf = buf * momentum + grad / denom
    return param - lr * buf, (square_avg, buf, grad_avg)


def adam(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, weight_decay, beta1c, beta2, beta2c, root, eps = hyper
    grad = grad + weight_decay * param
    exp_avg = exp_avg + beta1c * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq) / root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def adam_amsgrad(param, grad, state, hyper):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    step_size, weight_decay, beta1c, beta2, beta2c, root, eps = hyper
    grad = grad + weight_decay * param
    exp_avg = exp_avg + beta1c * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    if not exp_avg_sq <= max_exp_avg_sq:  # so written, NaN passes through
        max_exp_avg_sq = exp_avg_sq
    denom = math.sqrt(max_exp_avg_sq) / root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq, max_exp_avg_sq)


def adamw(param, grad, state, hyper):
    exp_avg, exp_avg_sq = state
    step_size, kept, beta1c, beta2, beta2c, root, eps = hyper
    param = param * kept
    exp_avg = exp_avg + beta1c * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    denom = math.sqrt(exp_avg_sq) / root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq)


def adamw_amsgrad(param, grad, state, hyper):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    step_size, kept, beta1c, beta2, beta2c, root, eps = hyper
    param = param * kept
    exp_avg = exp_avg + beta1c * (grad - exp_avg)
    exp_avg_sq = exp_avg_sq * beta2 + beta2c * grad * grad
    if not exp_avg_sq <= max_exp_avg_sq:
        max_exp_avg_sq = exp_avg_sq
    denom = math.sqrt(max_exp_avg_sq) / root + eps
    return param - step_size * exp_avg / denom, (exp_avg, exp_avg_sq, max_exp_avg_sq)
