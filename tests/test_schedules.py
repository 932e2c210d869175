"""Schedules as plain functions: against the schedulers of the same names, and as values."""

from __future__ import annotations

import copy
import doctest
import inspect
import json
import math
import pickle

import numpy as np
import pytest

import genesis
from genesis.optim import lr_scheduler, schedules

# Schedules need no gradients.
pytestmark = pytest.mark.filterwarnings("ignore:.*no parameter has a gradient")

PEAK = 0.4
"""The initial learning rate; a schedule is a part of it."""

TWINS = {
    "constant": ("ConstantLR", {"factor": 0.25, "total_iters": 7}),
    "linear": ("LinearLR", {"start_factor": 0.1, "end_factor": 0.7, "total_iters": 13}),
    "exponential": ("ExponentialLR", {"gamma": 0.93}),
    "step": ("StepLR", {"step_size": 4, "gamma": 0.5}),
    "multistep": ("MultiStepLR", {"milestones": [3, 3, 11], "gamma": 0.5}),
    "polynomial": ("PolynomialLR", {"total_iters": 17, "power": 1.5}),
    "cosine": ("CosineAnnealingLR", {"T_max": 12, "low": 0.05}),
    "warm_restarts": ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2, "low": 0.05}),
    "warmup_cosine": (
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 5, "num_training_steps": 31, "num_cycles": 0.5},
    ),
    "cyclic": (
        "CyclicLR",
        {"step_size_up": 3, "step_size_down": 4, "mode": "exp_range", "gamma": 0.97, "low": 0.1},
    ),
    "one_cycle": (
        "OneCycleLR",
        {"total_steps": 40, "pct_start": 0.4, "div_factor": 10.0, "three_phase": True},
    ),
}
EXAMPLES = [
    *(getattr(schedules, name)(**arguments) for name, (_, arguments) in TWINS.items()),
    schedules.cyclic(3, mode="triangular2"),
    schedules.one_cycle(30, anneal_strategy="linear"),
    schedules.warmup(4, schedules.cosine(20), start_factor=0.1),
    schedules.warmup(4),
    0.1 * schedules.exponential(0.9) * schedules.step(3),
]
every_example = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


def sgd(lr=PEAK):
    return genesis.optim.SGD([genesis.Parameter(np.ones(2))], lr=lr, momentum=0.9)


def learning_rates(optimizer, scheduler, steps):
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


@pytest.mark.parametrize("name", TWINS)
def test_like_the_scheduler(name):
    kind, arguments = TWINS[name]
    schedule = getattr(schedules, name)(**arguments)
    given = dict(arguments)
    low = given.pop("low", None)
    optimizer = sgd()
    if kind == "CyclicLR":
        given.update(base_lr=low * PEAK, max_lr=PEAK, cycle_momentum=False)
    elif kind == "OneCycleLR":
        given.update(max_lr=PEAK)
    elif low is not None:
        given["eta_min"] = low * PEAK
    scheduler = getattr(lr_scheduler, kind)(optimizer, **given)
    expected = np.array(learning_rates(optimizer, scheduler, 40))
    actual = PEAK * np.array([schedule(t) for t in range(40)])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@every_example
def test_a_schedule_is_a_function_that_gives_floats(schedule):
    factors = [schedule(t) for t in range(50)]
    assert all(type(factor) is float and math.isfinite(factor) for factor in factors)
    assert factors == [schedule(t) for t in range(50)]
    assert min(factors) >= 0
    optimizer = sgd()
    scheduler = lr_scheduler.LambdaLR(optimizer, schedule)
    lrs = learning_rates(optimizer, scheduler, 30)
    assert lrs == [PEAK * factor for factor in factors[:30]]


@every_example
def test_a_schedule_is_a_value(schedule):
    again = eval(repr(schedule), vars(schedules))
    others = [again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)]
    for other in others:
        assert other is not schedule
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert repr(other) == repr(schedule)
        assert [other(t) for t in range(9)] == [schedule(t) for t in range(9)]
    name = next(iter(vars(schedule)))
    with pytest.raises(AttributeError, match="cannot be changed"):
        setattr(schedule, name, 1)
    assert sum(other == schedule for other in EXAMPLES) == 1


def test_warmup_and_product():
    cosine = schedules.cosine(10)
    warm = schedules.warmup(4, cosine, start_factor=0.2)
    assert [warm(t) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-15)
    assert [warm(t + 4) for t in range(10)] == [cosine(t) for t in range(10)]
    assert schedules.warmup(2, 0.5)(99) == 0.5
    both = cosine * schedules.exponential(0.5)
    assert [both(t) for t in range(5)] == [cosine(t) * 0.5**t for t in range(5)]
    assert (0.1 * cosine)(3) == (cosine * 0.1)(3) == 0.1 * cosine(3)


@every_example
def test_a_snapshot_restores_the_arguments(schedule):
    optimizer = sgd()
    scheduler = lr_scheduler.LambdaLR(optimizer, schedule)
    learning_rates(optimizer, scheduler, 5)
    saved = json.loads(json.dumps(scheduler.state_dict()))
    numbers = {
        name: value / 2
        for name, value in vars(schedule).items()
        if name in ("factor", "gamma", "low", "pct_start", "start_factor")
    }
    fresh = lr_scheduler.LambdaLR(sgd(), schedule.replace(**numbers))
    fresh.load_state_dict(saved)
    assert fresh.lr_lambdas == [schedule]
    assert (
        learning_rates(fresh.optimizer, fresh, 9)[1:] == learning_rates(optimizer, scheduler, 9)[1:]
    )


def test_a_snapshot_leaves_other_users_of_the_schedule_alone():
    shared = schedules.exponential(0.9)
    first, second = (lr_scheduler.LambdaLR(sgd(), shared) for _ in range(2))
    first.load_state_dict({**first.state_dict(), "lr_lambdas": [{"gamma": 0.5}]})
    assert first.lr_lambdas[0].gamma == 0.5
    assert second.lr_lambdas[0].gamma == shared.gamma == 0.9


def test_a_snapshot_with_a_wrong_argument_is_refused():
    scheduler = lr_scheduler.LambdaLR(sgd(), schedules.exponential(0.9))
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\)"):
        scheduler.load_state_dict({**before, "last_epoch": 5, "lr_lambdas": [{"gamma": -1}]})
    assert scheduler.state_dict() == before


WRONG = [
    ("constant", (1.1,), ValueError, r"factor must be in \[0, 1\]"),
    ("constant", (0.5, -1), ValueError, "total_iters must be an integer of at least 0"),
    ("linear", (0,), ValueError, r"start_factor must be in \(0, 1\]"),
    ("linear", (0.5, 1, 0), ValueError, "total_iters"),
    ("exponential", ("a",), TypeError, "gamma must be a number, but got str"),
    (
        "exponential",
        (),
        TypeError,
        r"missing a required argument: 'gamma': it is exponential\(gamma\)",
    ),
    ("step", (1.5,), ValueError, "step_size"),
    ("multistep", ([3, 1],), ValueError, "milestones must be in increasing order"),
    ("multistep", (3,), TypeError, "milestones must be a list of epochs"),
    ("polynomial", (3, -1), ValueError, "power"),
    ("cosine", (0,), ValueError, "T_max"),
    ("cosine", (3, 1.5), ValueError, "low"),
    ("warm_restarts", (3, 0), ValueError, "T_mult"),
    ("warmup_cosine", (-1, 3), ValueError, "num_warmup_steps"),
    ("cyclic", (0,), ValueError, "step_size_up"),
    ("cyclic", (3, None, "square"), ValueError, "mode must be one of 'triangular'"),
    ("one_cycle", (0,), ValueError, "total_steps"),
    ("one_cycle", (9, 0.3, "sin"), ValueError, "anneal_strategy must be one of 'cos', 'linear'"),
    ("warmup", (0,), ValueError, "steps"),
    ("warmup", (3, "x"), TypeError, "then must be a number"),
    ("product", (math.nan, 1), ValueError, "first"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0]}-{wrong[1]}")
def test_wrong_arguments(wrong):
    name, arguments, error, message = wrong
    with pytest.raises(error, match=message):
        getattr(schedules, name)(*arguments)


def test_every_schedule_is_tested():
    names = set(schedules.__all__) - {"Schedule"}
    assert {name for name, *_ in WRONG} == names
    assert set(TWINS) | {"warmup", "product"} == names


def test_examples():
    failed, attempted = doctest.testmod(schedules)
    assert not failed
    assert attempted > 15


@pytest.mark.parametrize("name", sorted(set(schedules.__all__) - {"Schedule"}))
def test_documentation(name):
    make = getattr(schedules, name)
    text = inspect.getdoc(make)
    assert all(f"{part}:\n" in text for part in ("Args", "Returns", "Raises", "Example"))
    described = [line.split(":")[0].strip() for line in text.splitlines() if ":" in line]
    assert set(inspect.signature(make).parameters) <= set(described)


# ---- as the learning rate of an optimizer ----

RATE = 0.1 * schedules.warmup(3, schedules.cosine(10))
TAKE_FUNCTIONS = ["AdamW", "SGD", "Rprop", "Adafactor", "Muon", "SOAP", "Shampoo", "Kron"]


def stepped(make, gradients, before=lambda opt, t: None):
    p = genesis.Parameter(np.arange(1.0, 10.0).reshape(3, 3))
    opt = make([p])
    for t, gradient in enumerate(gradients):
        before(opt, t)
        p.grad = gradient
        opt.step()
    return p, opt


@pytest.mark.parametrize("name", TAKE_FUNCTIONS)
def test_lr_may_be_a_function_of_the_step(name):
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal((3, 3)) for _ in range(6)]
    made = getattr(genesis.optim, name)
    p, opt = stepped(lambda params: made(params, lr=RATE), gradients)

    def follow(opt, t):
        opt.param_groups[0]["lr"] = RATE(t)

    q, _ = stepped(lambda params: made(params, lr=RATE(0)), gradients, follow)
    np.testing.assert_array_equal(p.data, q.data)
    assert opt.param_groups[0]["lr"] is RATE
    assert opt.state[p]["step"] == 6


@pytest.mark.parametrize("name", TAKE_FUNCTIONS)
def test_a_snapshot_holds_the_rate_and_the_optimizer_keeps_the_function(name, tmp_path):
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal((3, 3)) for _ in range(4)]
    made = getattr(genesis.optim, name)
    p, opt = stepped(lambda params: made(params, lr=RATE), gradients)
    genesis.save(opt.state_dict(), tmp_path / "snapshot")
    saved = genesis.load(tmp_path / "snapshot")
    assert saved["param_groups"][0]["lr"] == RATE(3)
    q = genesis.Parameter(p.data.copy())
    resumed = made([q], lr=RATE)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["lr"] is RATE
    for parameter, optimizer in ((p, opt), (q, resumed)):
        parameter.grad = gradients[0]
        optimizer.step()
    np.testing.assert_array_equal(p.data, q.data)
    plain = made([q], lr=1.0)
    plain.load_state_dict(saved)
    assert plain.param_groups[0]["lr"] == RATE(3)


def test_a_function_may_be_set_in_a_group_and_taken_out_again():
    _, opt = stepped(lambda params: genesis.optim.SGD(params, lr=1.0), [])
    q = genesis.Parameter(np.zeros(2))
    opt.add_param_group({"params": [q], "lr": lambda t: (1.0, 0.25)[t]})
    q.grad = np.ones(2)
    opt.step()
    opt.step()
    np.testing.assert_array_equal(q.data, np.full(2, -1.25))
    opt.param_groups[1]["lr"] = 0.5
    opt.step()
    np.testing.assert_array_equal(q.data, np.full(2, -1.75))


def test_a_function_that_takes_a_numbers_place_begins_at_0_and_counts_in_the_state():
    rates = (0.5, 0.25, 0.125, 0.0625)
    p, q = genesis.Parameter(np.zeros(1)), genesis.Parameter(np.zeros(1))
    opt = genesis.optim.SGD([p, q], lr=1.0)
    p.grad = q.grad = np.ones(1)
    opt.step()
    opt.step()
    opt.param_groups[0]["lr"] = rates.__getitem__
    opt.step()
    q.grad = None  # another plan
    opt.step()
    assert (p.data[0], q.data[0]) == (-2.75, -2.5)
    assert (opt.state[p]["step"], opt.state[q]["step"]) == (2, 1)


def test_an_impossible_rate_is_refused_before_anything_is_written():
    p, q = genesis.Parameter(np.ones(2)), genesis.Parameter(np.ones(2))
    opt = genesis.optim.SGD([{"params": [p]}, {"params": [q], "lr": lambda t: 1.0 - t}], lr=1.0)
    p.grad = q.grad = np.ones(2)
    opt.step()
    opt.step()
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1.0, .* at step 2\)"):
        opt.step()
    np.testing.assert_array_equal(p.data, np.full(2, -1.0))
    np.testing.assert_array_equal(q.data, np.zeros(2))
    for wrong in (lambda t: "x", lambda t: None):
        opt.param_groups[1]["lr"] = wrong
        with pytest.raises(TypeError, match="Invalid learning rate"):
            opt.step()


def test_who_takes_no_function():
    p = genesis.Parameter(np.ones(2))
    opt = genesis.optim.SGD([p], lr=RATE)
    with pytest.raises(ValueError, match="param group 0 is a function of the step already"):
        lr_scheduler.StepLR(opt, 3)
    with pytest.raises(TypeError, match=r"got .* 'alpha': it is cosine\(T_max, low=0.0\)"):
        schedules.cosine(3, alpha=0.1)
    said = r"schedules.cosine, which makes a schedule: call it, schedules.cosine\(\.\.\.\)"
    with pytest.raises(TypeError, match=said):
        genesis.optim.SGD([p], lr=schedules.cosine)
    with pytest.raises(TypeError, match=said):
        opt.param_groups[0]["lr"] = schedules.cosine
    with pytest.raises(TypeError, match="Invalid learning rate"):
        genesis.optim.LBFGS([p], lr=RATE)
    with pytest.raises(TypeError, match="Invalid learning rate"):
        genesis.optim.SGD([p], lr=float)
