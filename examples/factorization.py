# SPDX-License-Identifier: Apache-2.0
"""Who likes what: factors of users and items, of which a batch touches only a few rows.

    python examples/factorization.py

A rating is predicted as mean + user's bias + item's bias + (user's factors) @ (item's factors). The
gradient of the two tables of factors is zero but for the rows in the batch, so it is a `SparseGrad`,
and the step reads and writes these rows only. The biases have dense gradients, in the same tree.
"""

import argparse
import time

import numpy as np

import genesis

NOISE = 0.3  # of the ratings: no prediction can have a smaller error


def ratings(users, items, count, rng):
    """Ratings made up of tastes that nobody will be told: columns user, item, and the rating.

    As in life, some users rate a lot and most of them little, and so it is with items.
    """
    tastes = rng.standard_normal((users, 2)) / 2, rng.standard_normal((items, 2))
    user = (users * rng.random(count) ** 8).astype(int)
    item = (items * rng.random(count) ** 8).astype(int)
    liked = (tastes[0][user] * tastes[1][item]).sum(axis=1)
    leniency, quality = 0.3 * rng.standard_normal(users), 0.5 * rng.standard_normal(items)
    noise = NOISE * rng.standard_normal(len(user))
    rating = 3.5 + leniency[user] + quality[item] + liked + noise
    return user, item, rating.astype(np.float32)


def new_params(users, items, factors, mean, rng):
    small = np.float32(0.1)
    return {
        "mean": np.full((), mean, np.float32),
        "user": {
            "factors": small * rng.standard_normal((users, factors), np.float32),
            "bias": np.zeros(users, np.float32),
        },
        "item": {
            "factors": small * rng.standard_normal((items, factors), np.float32),
            "bias": np.zeros(items, np.float32),
        },
    }


def predict(params, user, item):
    of_user, of_item = params["user"], params["item"]
    products = of_user["factors"][user] * of_item["factors"][item]
    return params["mean"] + of_user["bias"][user] + of_item["bias"][item] + products.sum(axis=1)


def error(params, data):
    """Root of the mean square of what a prediction is wrong by."""
    user, item, rating = data
    return float(np.sqrt(np.mean((predict(params, user, item) - rating) ** 2)))


def gradients(params, user, item, rating, penalty):
    """Of the squared errors' sum over a batch, half of it, plus a penalty for large factors."""
    wrong = predict(params, user, item) - rating
    of_user, of_item = params["user"]["factors"][user], params["item"]["factors"][item]
    by_user = wrong[:, None] * of_item + penalty * of_user  # a row for each rating
    by_item = wrong[:, None] * of_user + penalty * of_item
    return {
        "mean": wrong.sum(),
        "user": {
            "factors": genesis.SparseGrad(user, by_user),  # rows of one user are summed
            "bias": np.bincount(user, wrong, len(params["user"]["bias"])),
        },
        "item": {
            "factors": genesis.SparseGrad(item, by_item),
            "bias": np.bincount(item, wrong, len(params["item"]["bias"])),
        },
    }


def dense(params, grads):
    """The same gradients with zeros in all other rows."""

    def as_array(parameter, grad):
        is_sparse = isinstance(grad, genesis.SparseGrad)
        return grad.to_dense(len(parameter)) if is_sparse else grad

    return genesis.tree.map(as_array, params, grads)


def of_means(data, users, items):
    """The prediction without factors: each user's and each item's mean deviation."""
    user, item, rating = data
    params = new_params(users, items, 1, rating.mean(), np.random.default_rng(0))
    params["item"]["factors"][:] = 0
    # A few ratings more, of 0 deviation each, for who has few.
    wrong = rating - predict(params, user, item)
    params["item"]["bias"] += np.bincount(item, wrong, items) / (np.bincount(item, None, items) + 3)
    wrong = rating - predict(params, user, item)
    params["user"]["bias"] += np.bincount(user, wrong, users) / (np.bincount(user, None, users) + 3)
    return params


def race(params, lr, batches, penalty):
    """Median seconds of a step with rows and with dense gradients, from the same beginning.

    What the steps compute is the same, bit for bit: rows without a gradient stay as they are.
    """
    medians, ends = [], []
    for prepared in (lambda _, grads: grads, dense):
        own = genesis.tree.map(np.copy, params)
        optimizer = genesis.optim.Adagrad(own, lr=lr)
        times = []
        for batch in batches:
            grads = prepared(own, gradients(own, *batch, penalty))
            start = time.perf_counter()
            optimizer.step(grads=grads)
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times)))
        ends.append(genesis.tree.flatten_with_path(own))
    for (path, one), (_, other) in zip(*ends):
        np.testing.assert_array_equal(one, other, err_msg=path)
    return medians


def main(argv=None):
    """Train, report the errors and how fast a step is; returns the error on the test ratings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--users", type=int, default=300_000, help="default: %(default)s")
    add("--items", type=int, default=50_000, help="default: %(default)s")
    add("--ratings", type=int, default=1_000_000, help="default: %(default)s")
    add("--factors", type=int, default=32, help="default: %(default)s")
    add("--epochs", type=int, default=4, help="default: %(default)s")
    add("--batch-size", type=int, default=1024, help="default: %(default)s")
    add("--lr", type=float, default=0.1, help="learning rate; default: %(default)s")
    add("--penalty", type=float, default=0.1, help="for large factors; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    least = {
        "users": 1,
        "items": 1,
        "ratings": 10,
        "factors": 1,
        "epochs": 1,
        "batch_size": 1,
        "seed": 0,
    }
    for name, number in least.items():
        if getattr(args, name) < number:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least {number}, but is {getattr(args, name)}")

    rng = np.random.default_rng(args.seed)
    everything = ratings(args.users, args.items, args.ratings, rng)
    cut = len(everything[0]) // 10
    test, train = [column[:cut] for column in everything], [column[cut:] for column in everything]
    params = new_params(args.users, args.items, args.factors, train[2].mean(), rng)
    first = genesis.tree.map(np.copy, params)
    optimizer = genesis.optim.Adagrad(params, lr=args.lr)  # without weight decay it takes rows

    def batches():
        order = rng.permutation(len(train[0]))
        for start in range(0, len(order), args.batch_size):
            rows = order[start : start + args.batch_size]
            yield [column[rows] for column in train]

    for epoch in range(1, args.epochs + 1):
        for batch in batches():
            optimizer.step(grads=gradients(params, *batch, args.penalty))
        print(
            f"epoch {epoch}: error {error(params, train):.3f}, on test ratings {error(params, test):.3f}"
        )

    means = error(of_means(train, args.users, args.items), test)
    print(
        f"means of users and items alone: {means:.3f} on test ratings; noise of a rating: {NOISE}"
    )
    some = [batch for batch, _ in zip(batches(), range(20))]
    rows, whole = race(first, args.lr, some, args.penalty)
    print(
        f"a step with rows {rows * 1e3:.3f} ms, with dense gradients {whole * 1e3:.3f} ms: "
        f"{whole / rows:.1f} times as fast, the same bits"
    )
    last = error(params, test)
    print(f"error on test ratings {last:.3f}, {1 - last / means:.0%} less than of the means")
    return last


if __name__ == "__main__":
    main()
