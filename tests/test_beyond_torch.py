"""Optimizers that torch has not: what the table of cases cannot show of them.

That they follow their papers is shown row by row in test_updates.py, that they do what packages do in
test_packages.py.
"""

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis import optim

pytestmark = on_cpu_only


def stepped(opt, p, *grads):
    for grad in grads:
        p.grad = np.array(grad, np.float64)
        opt.step()
    return p.data.copy()


# ---- signs ----


def test_the_sign_of_lion_is_that_of_the_momentum_which_beta1_mixes():
    """The rows cannot tell beta1 exactly: it only says where the sign turns, and that is looked for."""
    beta1, turn = 0.7, 0.7 / 0.3
    p = genesis.Parameter(np.zeros(3))
    opt = optim.Lion([p], lr=1.0, betas=(beta1, 0.0))
    stepped(opt, p, [1.0, 1.0, 1.0])  # beta2 is 0: the momentum is this gradient
    before = p.data.copy()
    after = stepped(opt, p, [-turn * (1 - 1e-9), -turn * (1 + 1e-9), 0.0])
    np.testing.assert_array_equal(after - before, [-1.0, 1.0, -1.0])


def test_the_sign_of_signum_is_that_of_the_average():
    p = genesis.Parameter(np.zeros(2))
    opt = optim.SignSGD([p], lr=1.0, momentum=0.75)
    stepped(opt, p, [4.0, 4.0])  # the average is 1
    before = p.data.copy()
    after = stepped(opt, p, [-3 * (1 - 1e-9), -3 * (1 + 1e-9)])
    np.testing.assert_array_equal(after - before, [-1.0, 1.0])


@pytest.mark.parametrize(
    "make", [optim.Lion, optim.SignSGD, lambda p: optim.SignSGD(p, momentum=0)]
)
def test_signs_leave_zeros_alone_and_hide_no_nan(make):
    p = genesis.Parameter(np.array([1.0, 2.0, 3.0, 4.0]))
    after = stepped(make([p]), p, [0.0, -0.0, np.nan, np.inf])
    np.testing.assert_array_equal(after[:2], [1.0, 2.0])
    assert np.isnan(after[2])
    assert np.isfinite(after[3])


# ---- AdEMAMix ----


def slow_decay(step, **hyper):
    """The slow average's decay rate in an update, from what a gradient of 1 leaves in it."""
    values = optim.AdEMAMix.reference(0.0, 1.0, 0.0, 0.0, 0.0, step=step, **hyper)
    return 1 - values[2]


def test_the_slow_average_of_ademamix_forgets_later_from_update_to_update():
    hyper = {"betas": (0.9, 0.999, 0.9999), "beta3_warmup": 1000}
    halves = [np.log(0.5) / np.log(slow_decay(step, **hyper)) for step in (250, 500, 750, 1000)]
    first, last = (np.log(0.5) / np.log(beta) for beta in (0.9, 0.9999))
    expected = [first + part * (last - first) for part in (0.25, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(halves, expected, rtol=1e-9)
    assert slow_decay(2000, **hyper) == slow_decay(1000, **hyper)
    # From no memory at all, and where the slow average would be the faster.
    assert 0 < slow_decay(1, betas=(0.0, 0.9, 0.9), beta3_warmup=10) < 0.9
    assert slow_decay(1, betas=(0.9, 0.9, 0.5), beta3_warmup=10) == 0.5
    assert slow_decay(1, betas=(0.0, 0.9, 0.0), beta3_warmup=10) == 0
    assert slow_decay(1, betas=(0.9, 0.9, 0.5), beta3_warmup=0) == 0.5


# ---- ADOPT ----


def test_the_first_gradient_of_adopt_moves_nothing():
    for hyper in ({"weight_decay": 0.5, "decoupled_weight_decay": True}, {"eps": 0.0}):
        p = genesis.Parameter(np.array([1.0, -2.0]))
        opt = optim.ADOPT([p], lr=0.1, **hyper)
        np.testing.assert_array_equal(stepped(opt, p, [3.0, 0.0]), [1.0, -2.0])
        np.testing.assert_array_equal(opt.state[p]["exp_avg_sq"], [9.0, 0.0])


def test_adopt_clips_what_it_knew_nothing_of():
    moves = {}
    for clip_exp in (None, 0.25, 1.0):
        p = genesis.Parameter(np.zeros(1))
        opt = optim.ADOPT([p], lr=1.0, betas=(0.0, 0.999), clip_exp=clip_exp)
        stepped(opt, p, [1e-3])
        one = stepped(opt, p, [1.0])[0]  # a thousand times as large
        moves[clip_exp] = one, stepped(opt, p, [1e6])[0] - one
    np.testing.assert_allclose(moves[None][0], -1e3)
    np.testing.assert_allclose(moves[0.25], [-1, -(2**0.25)])
    np.testing.assert_allclose(moves[1.0], [-1, -2])


# ---- AdaBound ----


def test_the_bounds_of_adabound_follow_the_learning_rate_from_its_peak():
    """Beside the authors' formula, in which the peak is what the optimizer was made with."""
    rates = [0.25, 0.5, 1.0, 1.0, 0.5, 0.1, 0.0, 0.2]
    p = genesis.Parameter(np.zeros(1))
    opt = optim.AdaBound([p], betas=(0.0, 0.0), final_lr=0.5, gamma=0.9)
    for step, lr in enumerate(rates, 1):
        opt.param_groups[0]["lr"] = lr
        for size in (1e-12, 1e12):  # far above, and far below
            low = 1 - 1 / (0.9 * step + 1)
            high = 1 + 1 / (0.9 * step)
            peak = max(rates[:step])
            expected = 0.5 * lr / peak * (high if size < 1 else low)
            rule = optim.AdaBound.reference(
                0.0, size, 0.0, 0.0, 0.0, step=step, base_lr=max(rates[: step - 1], default=0.0),
                lr=lr, betas=(0.0, 0.0), final_lr=0.5, gamma=0.9, eps=0.0,
            )  # fmt: skip
            np.testing.assert_allclose(-rule[0] / size, expected, rtol=1e-12)
        stepped(opt, p, [1.0])
        assert opt.state[p]["base_lr"] == max(rates[:step])
    assert np.isfinite(p.data[0])


def test_a_learning_rate_of_0_from_the_start_moves_nothing_in_adabound():
    p = genesis.Parameter(np.ones(2))
    opt = optim.AdaBound([p], lr=0.0)
    np.testing.assert_array_equal(stepped(opt, p, [1.0, 0.0], [1.0, 0.0]), [1.0, 1.0])
    assert opt.state[p]["base_lr"] == 0


# ---- FTRL ----


def test_ftrl_makes_zeros_and_leaves_what_has_no_gradient(rng):
    x = np.array([0.0, 0.0, 5.0, 0.0])
    p = genesis.Parameter(x)
    opt = optim.FTRL([p], lr=0.5, beta=1.0, lambda_1=1.0)
    stepped(opt, p, [-0.5, -2.0, 0.0, 1.0])
    np.testing.assert_array_equal(x[[0, 2, 3]], [0.0, 5.0, 0.0])
    assert x[1] == 1.0 / ((1 + 2) / 0.5)
    assert not np.signbit(x).any()
    state = {name: np.copy(value) for name, value in opt.state[p].items() if name != "step"}
    opt.param_groups[0]["lr"] = 0.0
    before = x.copy()
    stepped(opt, p, [1.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(x, before)
    np.testing.assert_equal(
        {name: value for name, value in opt.state[p].items() if name != "step"}, state
    )


def test_ftrl_goes_on_from_any_parameter_if_nothing_pulls():
    p = genesis.Parameter(np.array([3.0]))
    opt = optim.FTRL([p], lr=0.5)
    np.testing.assert_allclose(stepped(opt, p, [2.0]), 3 - 0.5)  # as Adagrad's first step


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("SignSGD", {"lr": 0.1, "momentum": 0}),
        ("FTRL", {"lr": 0.1}),
        ("FTRL", {"lr": 0.1, "lambda_1": 0.3, "initial_accumulator_value": 0.1}),
    ],
)
def test_rows_are_updated_as_a_dense_gradient_would(name, hyper, rng):
    start = rng.standard_normal((20, 3))
    p, q = genesis.Parameter(start.copy()), genesis.Parameter(start.copy())
    sparse, dense = (getattr(optim, name)([each], **hyper) for each in (p, q))
    for _ in range(5):
        p.grad = genesis.SparseGrad(rng.integers(0, 20, 7), rng.standard_normal((7, 3)))
        q.grad = p.grad.to_dense(20)
        sparse.step()
        dense.step()
        np.testing.assert_array_equal(p.data, q.data)
    assert (p.data == start).any()
    assert (p.data != start).any()


@pytest.mark.parametrize("hyper", [{}, {"momentum": 0, "weight_decay": 0.1}])
def test_signs_with_momentum_or_decay_refuse_rows(hyper):
    p = genesis.Parameter(np.ones((3, 2)))
    p.grad = genesis.SparseGrad([1], np.ones((1, 2)))
    with pytest.raises(TypeError, match="SignSGD does not support sparse gradients"):
        optim.SignSGD([p], **hyper).step()


# ---- NAdamW ----


def test_nadam_without_its_schedule_is_the_nadamw_of_others(rng):
    """Of AlgoPerf and optax, written from their description: Nesterov's momentum at full strength."""
    beta1, beta2, lr, decay = 0.9, 0.99, 0.01, 0.3
    x = rng.standard_normal(9)
    p = genesis.Parameter(x.copy())
    opt = optim.NAdam(
        [p], lr, (beta1, beta2), weight_decay=decay, momentum_decay=1e9, decoupled_weight_decay=True
    )
    m = v = 0
    for step in range(1, 21):
        grad = rng.standard_normal(9)
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        ahead = beta1 * m / (1 - beta1 ** (step + 1)) + (1 - beta1) * grad / (1 - beta1**step)
        x = x - lr * decay * x - lr * ahead / (np.sqrt(v / (1 - beta2**step)) + 1e-8)
        np.testing.assert_allclose(stepped(opt, p, grad), x, rtol=1e-12)
