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


def _adam(param, grad, state, step, lr, betas, eps, amsgrad):
    mean = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    square = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * np.square(grad)
    new = {"exp_avg": mean, "exp_avg_sq": square}
    if amsgrad:  # as in torch, the largest average is taken before its bias is corrected
        square = new["max_exp_avg_sq"] = np.maximum(state.get("max_exp_avg_sq", 0), square)
    corrected_mean = mean / (1 - betas[0] ** step)
    corrected_square = square / (1 - betas[1] ** step)
    return param - lr * corrected_mean / (np.sqrt(corrected_square) + eps), new


def adam(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0,
    amsgrad=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize) + weight_decay * param
    return _adam(param, grad, state, step, lr, betas, eps, amsgrad)


def adamw(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
    amsgrad=False, maximize=False,
):  # fmt: skip
    grad = _descent(grad, maximize)
    return _adam(param - lr * weight_decay * param, grad, state, step, lr, betas, eps, amsgrad)


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


REFERENCES = {"SGD": sgd, "Adam": adam, "AdamW": adamw, "RMSprop": rmsprop}


class Reference:
    """Runs a reference over several parameters, as an optimizer does; None skips a parameter."""

    def __init__(self, name, params, **hyper):
        self.rule = REFERENCES[name]
        self.hyper = hyper
        self.params = [np.array(p, np.float64) for p in params]
        self.states = [{} for _ in params]
        self.steps = [0 for _ in params]

    def step(self, grads):
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
