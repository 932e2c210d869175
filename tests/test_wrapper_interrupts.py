"""What optimizers do beside one update, ended at any moment: it is complete or has not begun."""

import random

import numpy as np
import pytest
from devices import on_cpu_only
from interrupts import AlarmError, Moments, everything

import genesis
from genesis import optim

pytestmark = on_cpu_only

SHAPES = [(4, 3), (3,)]


def parameters():
    rng = np.random.default_rng(0)
    return [genesis.Parameter(rng.standard_normal(shape)) for shape in SHAPES]


def grads():
    rng = np.random.default_rng(1)
    return [rng.standard_normal(shape) for shape in SHAPES]


def mixed():
    one, two = parameters()
    return optim.Mixed(
        [
            {"params": [one], "optimizer": optim.Muon, "lr": 0.1},
            {"params": [two], "optimizer": optim.AdamW, "lr": 0.1},
        ]
    )


def step(opt):
    opt.step(lambda: (0.0, grads()), max_norm=1.0)


ACTIONS = {
    "a step of Lookahead": (lambda: optim.Lookahead(optim.AdamW(parameters()), k=3), step),
    "a step of SAM": (lambda: optim.SAM(optim.AdamW(parameters()), adaptive=True), step),
    "a step of Mixed": (mixed, step),
    "a step of Lookahead of Mixed": (lambda: optim.Lookahead(mixed(), k=3), step),
    "loading Mixed": (mixed, lambda opt: opt.load_state_dict(opt.other)),
    "loading Lookahead": (
        lambda: optim.Lookahead(optim.AdamW(parameters())),
        lambda opt: opt.load_state_dict(opt.other),
    ),
    "eval": (lambda: optim.ScheduleFreeAdamW(parameters()), lambda opt: opt.eval()),
    "train": (lambda: optim.ScheduleFreeAdamW(parameters()), lambda opt: opt.train()),
}


def prepared(name):
    """An optimizer that has had two steps, and what is to be done with it."""
    make, action = ACTIONS[name]
    opt = make()
    step(opt)
    opt.other = opt.state_dict()
    opt.other["param_groups"][0]["lr"] = 0.5
    step(opt)
    if name == "train":
        opt.eval()
    return opt, action


def found(opt):
    """All that it may have changed. (The count of steps, which only warnings read, comes after.)"""
    own = opt.state_dict().get("lookahead", {})
    slow = [array.tobytes() for array in own.get("slow", {}).values()]
    return {**everything(opt), "steps": 0, "slow": slow, "since": own.get("since_sync")}


@pytest.mark.parametrize("name", ACTIONS)
def test_at_each_moment_it_is_complete_or_has_not_begun(name):
    twin, action = prepared(name)
    before = found(twin)
    action(prepared(name)[0])  # compiles
    counting = Moments()
    assert counting.attack(lambda: action(twin)) is None
    after = found(twin)
    assert before != after
    last = counting.count
    few = set(random.Random(3).sample(range(1, last), min(40, last - 1)))
    outcomes = []
    for n in sorted(few | set(range(max(1, last - 60), last + 1))):
        opt, _ = prepared(name)
        ended = Moments(n).attack(lambda opt=opt: action(opt))
        assert ended is None or isinstance(ended, AlarmError), (n, ended)
        now = found(opt)
        assert now in (before, after), f"moment {n} of {last}"
        outcomes.append(now == after)
        if now == before:
            action(opt)  # as if nothing had been
            assert found(opt) == after
    assert outcomes.count(False) > 20
