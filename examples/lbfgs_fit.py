# SPDX-License-Identifier: Apache-2.0
"""Fit a spectrum of two overlapping peaks with L-BFGS: the gradient by hand, no step size to choose.

    python examples/lbfgs_fit.py

The model is a sum of two bell curves over a sloping background, eight numbers in a dict of arrays.
L-BFGS calls one function for both the loss and its gradients, as often as it needs, and says in the
end why it stopped. For comparison the same function is given to Adam.
"""

import argparse

import numpy as np

import genesis

TRUTH = {
    "background": np.array([0.5, 0.3]),  # at 0, and its slope
    "height": np.array([2.0, 1.2]),
    "centre": np.array([-0.5, 0.9]),
    "width": np.array([0.5, 0.7]),
}
GUESS = {
    "background": np.array([0.0, 0.0]),
    "height": np.array([1.0, 1.0]),
    "centre": np.array([-1.0, 1.0]),
    "width": np.array([1.0, 1.0]),
}


def peaks(params, x):
    """How far each point is from each centre, in widths, and each bell curve there: rows of x."""
    z = (x[:, None] - params["centre"]) / params["width"]
    return z, np.exp(-0.5 * z**2)


def model(params, x):
    level, slope = params["background"]
    return level + slope * x + peaks(params, x)[1] @ params["height"]


def loss_and_grads(params, x, y):
    """Half the mean square of what the model leaves unexplained, and its gradient."""
    z, bell = peaks(params, x)
    residual = model(params, x) - y
    share = residual / len(x)
    by_centre = (share @ (bell * z)) * params["height"] / params["width"]
    by_width = (share @ (bell * z**2)) * params["height"] / params["width"]
    grads = {
        "background": np.array([share.sum(), share @ x]),
        "height": share @ bell,
        "centre": by_centre,
        "width": by_width,
    }
    return 0.5 * np.mean(residual**2), grads


def fit(x, y, most):
    """Minimize with L-BFGS, `most` steps at most; the parameters, the optimizer and how many calls."""
    params = genesis.tree.map(np.copy, GUESS)
    optimizer = genesis.optim.LBFGS(params, line_search_fn="strong_wolfe")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        return loss_and_grads(params, x, y)

    # A step is up to 20 iterations. It is worth another one if nothing but their number ended it.
    for step in range(1, most + 1):
        loss = optimizer.step(closure)  # at the step's beginning
        print(f"step {step}: loss {loss:.6f} before, ended by {optimizer.stop_reason}")
        if optimizer.stop_reason not in ("max_iter", "max_eval"):
            break
    return params, optimizer.stop_reason, calls


def calls_of_adam(x, y, goal, most=50_000):
    """How many evaluations Adam needs for a loss of at most `goal`; None if more than `most`."""
    params = genesis.tree.map(np.copy, GUESS)
    optimizer = genesis.optim.Adam(params, lr=0.01)
    for calls in range(1, most + 1):
        if optimizer.step(lambda: loss_and_grads(params, x, y)) <= goal:
            return calls
    return None


def main(argv=None):
    """Fit, compare with the truth, and return the parameters that were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--points", type=int, default=400, help="of the spectrum; default: %(default)s")
    add("--noise", type=float, default=0.05, help="its standard deviation; default: %(default)s")
    add("--steps", type=int, default=10, help="at most, 20 iterations each; default: %(default)s")
    add("--seed", type=int, default=0, help="of the noise; default: %(default)s")
    args = parser.parse_args(argv)
    for name, least in (("points", 10), ("noise", 0), ("steps", 1), ("seed", 0)):
        if not getattr(args, name) >= least:
            parser.error(f"--{name} must be at least {least}, but is {getattr(args, name)}")

    x = np.linspace(-3, 3, args.points)
    y = model(TRUTH, x) + args.noise * np.random.default_rng(args.seed).standard_normal(len(x))
    params, reason, calls = fit(x, y, args.steps)
    print()
    for (path, truth), (_, found) in zip(
        genesis.tree.flatten_with_path(TRUTH), genesis.tree.flatten_with_path(params)
    ):
        for i, (true, value) in enumerate(zip(truth, found)):
            print(f"{path}[{i}]".ljust(15) + f"{value:8.4f}, in truth {true:5.2f}")
    loss = loss_and_grads(params, x, y)[0]
    print(f"noise          {np.sqrt(2 * loss):8.4f}, in truth {args.noise:5.2f}\n")
    adam = calls_of_adam(x, y, loss * (1 + 1e-6) + 1e-12)
    others = f"{adam} evaluations" if adam else "more than 50000 evaluations"
    print(f"Adam, to a loss larger by a millionth: {others}")
    print(f"L-BFGS stopped after {calls} evaluations, by {reason}")
    return params


if __name__ == "__main__":
    main()
