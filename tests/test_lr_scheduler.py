"""Learning-rate schedulers against formulas and torch: alone, combined, resumed, and misused."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import json
import math
import pickle
import pkgutil
import warnings

import numpy as np
import pytest
from devices import on_cpu_only
from scheduler_cases import (
    CASES,
    FORMULA_FLOOR,
    FORMULA_TOLERANCE,
    LRS,
    NESTED,
    TOLERANCE,
    Case,
    Each,
    Fading,
    Part,
    build,
)

import genesis
from genesis.optim import lr_scheduler as schedulers

pytestmark = [
    on_cpu_only,
    pytest.mark.filterwarnings("ignore:.*no parameter has a gradient"),  # schedules need none
]

LEAVES = [case for case in CASES if case.kind not in ("ChainedScheduler", "SequentialLR")]
BATCHED = [case for case in LEAVES if case.metric is None]  # those that a composite takes
every_case = pytest.mark.parametrize("case", CASES + NESTED, ids=repr)


def optimizer_for(case="SGD", lrs=LRS):
    groups = [{"params": [genesis.Parameter(np.ones(2))], "lr": lr} for lr in lrs]
    kind = getattr(case, "optimizer", case)
    if kind == "Adam":
        return genesis.optim.Adam(groups, lr=1.0)
    return genesis.optim.SGD(groups, lr=1.0, momentum=0.9)


def torch_optimizer_for(torch, case="SGD", lrs=LRS):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    if getattr(case, "optimizer", case) == "Adam":
        return torch.optim.Adam(groups, lr=1.0)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def make(kind):
    return getattr(schedulers, kind)


def torch_maker(torch):
    def make(kind):
        if kind == "SWALR":
            return torch.optim.swa_utils.SWALR
        if kind == "get_cosine_schedule_with_warmup":
            return hugging_face
        return getattr(torch.optim.lr_scheduler, kind)

    def hugging_face(optimizer, num_warmup_steps, num_training_steps, num_cycles=0.5):
        def factor(t):
            if t < num_warmup_steps:
                return float(t) / float(max(1, num_warmup_steps))
            rest = float(max(1, num_training_steps - num_warmup_steps))
            angle = math.pi * float(num_cycles) * 2.0 * (float(t - num_warmup_steps) / rest)
            return max(0.0, 0.5 * (1.0 + math.cos(angle)))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    return make


def start(case, lrs=LRS):
    optimizer = optimizer_for(case, lrs)
    return optimizer, build(case, make, optimizer)


def start_torch(torch, case, lrs=LRS):
    optimizer = torch_optimizer_for(torch, case, lrs)
    return optimizer, build(case, torch_maker(torch), optimizer)


def advance(case, optimizer, scheduler, t):
    """The step that leads to epoch `t`."""
    optimizer.step()
    if case.metric is None:
        scheduler.step()
    else:
        scheduler.step(case.metric(t))


def values(optimizer):
    """All that a scheduler may set."""
    names = ("lr", "momentum", "betas")
    return [
        number
        for group in optimizer.param_groups
        for name in names
        if name in group
        for number in np.ravel(group[name]).tolist()
    ]


def run(case, optimizer, scheduler, steps, begin=0):
    """What `values` gives at epochs `begin`, ..., `steps - 1`."""
    rows = [values(optimizer)]
    for t in range(begin + 1, steps):
        advance(case, optimizer, scheduler, t)
        rows.append(values(optimizer))
    return rows


def deviation(actual, expected, floor=0.0):
    """The largest difference relative to the larger number, or to `floor` near zero."""
    a, b = np.array(actual, float), np.array(expected, float)
    assert a.shape == b.shape
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)
    return float(np.max(np.abs(a - b) / np.where(size > 0, size, 1.0), initial=0.0))


# ---- numbers ----


def test_every_scheduler_has_a_row():
    rows = {case.kind for case in CASES}
    assert rows == set(schedulers.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("case", [case for case in CASES + NESTED if case.lr is not None], ids=repr)
def test_formula(case):
    optimizer, scheduler = start(case)
    for t in range(case.steps):
        if t:
            advance(case, optimizer, scheduler, t)
        lrs = [group["lr"] for group in optimizer.param_groups]
        expected = [case.lr(t, lr) for lr in LRS]
        assert deviation(lrs, expected, FORMULA_FLOOR) <= FORMULA_TOLERANCE, t
        assert scheduler.get_last_lr() == lrs


@pytest.mark.parametrize("mode", ["SGD", "Adam"])
@pytest.mark.parametrize("kind", ["CyclicLR", "OneCycleLR"])
def test_momentum_runs_against_the_learning_rate(kind, mode):
    bounds = {"base_momentum": 0.6, "max_momentum": 0.95}
    if kind == "CyclicLR":
        case = Case("", kind, base_lr=0.1, max_lr=0.5, step_size_up=10, optimizer=mode, **bounds)
    else:
        case = Case("", kind, max_lr=0.5, total_steps=41, pct_start=0.5, optimizer=mode, **bounds)
    optimizer, scheduler = start(case, LRS[:1])
    group = optimizer.param_groups[0]
    pairs = []
    for t in range(41):
        if t:
            advance(case, optimizer, scheduler, t)
        pairs.append((group["lr"], group["betas"][0] if mode == "Adam" else group["momentum"]))
    low, high = min(pairs), max(pairs)
    assert low[1] == pytest.approx(0.95, abs=1e-3)
    assert high[1] == pytest.approx(0.6, abs=1e-3)
    if kind == "CyclicLR":
        assert all(m == pytest.approx(0.95 - 0.35 * (lr - 0.1) / 0.4) for lr, m in pairs)
    if mode == "Adam":
        assert group["betas"][1] == 0.999


@pytest.mark.parametrize("lrs", [LRS[:1], LRS], ids=["one-group", "three-groups"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_like_torch(case, lrs):
    torch = pytest.importorskip("torch")
    actual = run(case, *start(case, lrs), case.steps)
    expected = run(case, *start_torch(torch, case, lrs), case.steps)
    assert actual == expected  # to the last bit


def combinations():
    exp, step = Part("ExponentialLR", gamma=0.97), Part("StepLR", step_size=11, gamma=0.5)
    constant = Part("ConstantLR", factor=0.5, total_iters=3)
    for case in BATCHED:
        part = Part(case.kind, **case.kwargs)
        for name, kind, parts, rest in [
            ("chained", "ChainedScheduler", [part, exp], {}),
            ("chained-after", "ChainedScheduler", [step, part], {}),
            ("first", "SequentialLR", [part, step], {"milestones": [9]}),
            ("second", "SequentialLR", [constant, part], {"milestones": [7]}),
            ("between", "SequentialLR", [exp, part, step], {"milestones": [5, 23]}),
        ]:
            yield Case(
                f"{name}-{case}",
                kind,
                steps=40,
                optimizer=case.optimizer,
                schedulers=parts,
                **rest,
            )


@pytest.mark.parametrize("case", list(combinations()), ids=repr)
def test_combinations_like_torch(case):
    torch = pytest.importorskip("torch")
    actual = run(case, *start(case), case.steps)
    expected = run(case, *start_torch(torch, case), case.steps)
    assert deviation(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_change_by_hand_is_kept_as_in_torch(case):
    torch = pytest.importorskip("torch")
    rows = []
    for optimizer, scheduler in (start(case), start_torch(torch, case)):
        for t in range(1, 40):
            advance(case, optimizer, scheduler, t)
            if t % 9 == 4:
                for group in optimizer.param_groups:
                    group["lr"] *= 1.5
            rows.append(values(optimizer))
    assert deviation(rows[:39], rows[39:]) <= TOLERANCE


EPOCHS = [0, 1, 5, 2, 2, 17, 40, 8, None, None, 30, None]


@pytest.mark.parametrize("case", BATCHED, ids=repr)
def test_explicit_epochs_as_in_torch(case):
    torch = pytest.importorskip("torch")
    rows = []
    for optimizer, scheduler in (start(case), start_torch(torch, case)):
        deprecated = case.kind != "CosineAnnealingWarmRestarts"
        for epoch in EPOCHS:
            optimizer.step()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                scheduler.step(epoch)
            assert len(caught) == (deprecated and epoch is not None)
            rows.append(values(optimizer))
    assert deviation(rows[: len(EPOCHS)], rows[len(EPOCHS) :]) <= TOLERANCE


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_fractions_of_epochs(mult):
    """Steps of a quarter pass through the values that whole steps have."""
    optimizer = optimizer_for()
    scheduler = schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=mult)
    whole = start(Case("", "CosineAnnealingWarmRestarts", T_0=5, T_mult=mult))
    for t in range(200):
        optimizer.step()
        scheduler.step(t / 4)
        assert scheduler.last_epoch == t // 4
        if t % 4 == 0:
            assert values(optimizer) == values(whole[0])
            whole[0].step()
            whole[1].step()
    assert min(values(optimizer)) > 0


def test_restarts_are_exact_at_high_powers():
    """torch finds the period with a logarithm, and misses this restart by its rounding."""
    optimizer = optimizer_for()
    scheduler = schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=3)
    optimizer.step()
    scheduler.step((3**5 - 1) // 2)
    assert scheduler.get_last_lr() == list(LRS)


@pytest.mark.parametrize("kind", ["MultiStepLR", "StepLR", "ExponentialLR", "LambdaLR"])
@pytest.mark.parametrize("last_epoch", [0, 3, 11])
@pytest.mark.torch
def test_last_epoch(kind, last_epoch):
    case = next(case for case in CASES if case.kind == kind and case.lr is not None)
    first = run(case, *start(case), 30)
    optimizer = optimizer_for(lrs=first[last_epoch][::2])
    for group, lr in zip(optimizer.param_groups, LRS):
        group["initial_lr"] = lr
    scheduler = build(Part(kind, last_epoch=last_epoch, **case.kwargs), make, optimizer)
    assert scheduler.last_epoch == last_epoch + 1
    # As in torch, a recursive schedule is one step behind unless it decays at that very epoch.
    torch = pytest.importorskip("torch")
    other = torch_optimizer_for(torch, lrs=first[last_epoch][::2])
    for group, lr in zip(other.param_groups, LRS):
        group["initial_lr"] = lr
    same = build(Part(kind, last_epoch=last_epoch, **case.kwargs), torch_maker(torch), other)
    assert deviation(run(case, optimizer, scheduler, 9), run(case, other, same, 9)) <= TOLERANCE


# ---- rounding errors ----


def dips():
    """Schedules that end at 0, and whose recursion leaves some -1e-18 there."""
    line = Part("LinearLR", end_factor=0.0, total_iters=5)
    slow = Part("ExponentialLR", gamma=0.999)
    return [
        Case("line", "LinearLR", **line.kwargs),
        Case("chain", "ChainedScheduler", schedulers=[line, slow]),
        Case("sequence", "SequentialLR", schedulers=[line, slow], milestones=[6]),
    ]


@pytest.mark.parametrize("case", dips(), ids=repr)
@pytest.mark.torch
def test_a_rounding_error_below_zero_is_zero(case):
    torch = pytest.importorskip("torch")
    optimizer, scheduler = start(case, LRS[:1])
    rows = run(case, optimizer, scheduler, 6)
    theirs = run(case, *start_torch(torch, case, LRS[:1]), 6)
    assert -1e-17 < theirs[5][0] < 0  # the premise: torch keeps the error
    assert rows[:5] == theirs[:5]
    assert rows[5][0] == 0.0
    assert scheduler.get_last_lr() == [0.0]
    other = optimizer_for(case, LRS[:1])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.0


def test_what_really_is_negative_is_not_hidden():
    """It is refused; a scheduler that turned it into 0 would hide a wrong schedule."""
    optimizer = optimizer_for(lrs=LRS[:1])
    scheduler = schedulers.LambdaLR(optimizer, lambda t: 1 - 1e-11 - t)
    optimizer.step()
    before, lr = scheduler.state_dict(), optimizer.param_groups[0]["lr"]
    with pytest.raises(
        ValueError, match=r"Invalid learning rate: -.* \(from LambdaLR at epoch 1\)"
    ):
        scheduler.step()
    assert scheduler.state_dict() == before
    assert optimizer.param_groups[0]["lr"] == lr


def test_noise_of_a_momentum_is_zero():
    optimizer = optimizer_for(lrs=LRS[:1])
    group = optimizer.param_groups[0]
    scheduler = schedulers.CyclicLR(
        optimizer,
        0.1,
        0.5,
        step_size_up=1,
        scale_fn=lambda cycle: 1 + 2e-16,
        base_momentum=0.0,
        max_momentum=0.9,
    )
    optimizer.step()
    scheduler.step()
    assert 0.9 + (0.0 - 0.9) * 1.0 * (1 + 2e-16) < 0  # the premise
    assert group["momentum"] == 0.0
    assert math.copysign(1, group["momentum"]) == 1


def test_one_cycle_on_a_line_ends_above_zero():
    """The last `scheduler.step()` of a training loop goes one step beyond; torch's is negative then."""
    case = Case("", "OneCycleLR", max_lr=0.4, total_steps=10, anneal_strategy="linear")
    optimizer, scheduler = start(case, LRS[:1])
    rows = run(case, optimizer, scheduler, 11)
    assert rows[10] == rows[9]
    assert rows[10][0] == pytest.approx(0.4 / 25 / 1e4, rel=1e-9)


# ---- MegEngine's names ----


class MegEngineStyle(genesis.optim.lr_scheduler.LRScheduler):
    """A scheduler as one writes it for MegEngine."""

    def __init__(self, optimizer, milestones, gamma=0.1, current_epoch=-1):
        self.milestones = milestones
        self.gamma = gamma
        super().__init__(optimizer, current_epoch)

    def get_lr(self):
        passed = sum(self.current_epoch >= milestone for milestone in self.milestones)
        return [base_lr * self.gamma**passed for base_lr in self.base_lrs]


def test_megengine_sequence():
    case = Case("", "MultiStepLR", milestones=[6, 10, 21], gamma=0.5)
    optimizer = optimizer_for()
    scheduler = MegEngineStyle(optimizer, [6, 10, 21], gamma=0.5)
    assert run(case, optimizer, scheduler, 30) == run(case, *start(case), 30)
    assert scheduler.current_epoch == scheduler.last_epoch == 29
    assert scheduler.state_dict()["gamma"] == 0.5


def test_current_epoch():
    optimizer = optimizer_for()
    scheduler = schedulers.MultiStepLR(optimizer, [2], current_epoch=-1)
    assert scheduler.current_epoch == 0
    again = schedulers.MultiStepLR(optimizer, [2], current_epoch=0)
    assert again.last_epoch == again.current_epoch == 1
    again.current_epoch = 5
    assert again.last_epoch == 5
    with pytest.raises(TypeError, match="last_epoch and current_epoch"):
        schedulers.MultiStepLR(optimizer, [2], last_epoch=0, current_epoch=0)


# ---- snapshots ----


def through_json(state):
    return json.loads(json.dumps(state))


def plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (int, float, str, bool)


@every_case
def test_resume_at_many_positions(case):
    optimizer, scheduler = start(case)
    steps = min(case.steps, 41)
    saved = [(optimizer.state_dict(), through_json(scheduler.state_dict()))]
    for t in range(1, steps):
        advance(case, optimizer, scheduler, t)
        saved.append((optimizer.state_dict(), through_json(scheduler.state_dict())))
    expected = run(case, *start(case), steps)
    assert plain(scheduler.state_dict())
    for position, (optimizer_state, scheduler_state) in enumerate(saved):
        if position % 2 and 8 < position < steps - 4:
            continue
        optimizer, scheduler = start(case)
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        assert run(case, optimizer, scheduler, steps, position) == expected[position:], position


@every_case
def test_a_snapshot_is_no_alias(case):
    optimizer, scheduler = start(case)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    for t in range(1, 20):
        advance(case, optimizer, scheduler, t)
    assert state == before
    other = start(case)[1]
    other.load_state_dict(state)
    for t in range(1, 20):
        advance(case, other.optimizer, other, t)
    assert state == before


@pytest.mark.parametrize("position", [0, 1, 13])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_takes_over_snapshots_of_torch(case, position):
    torch = pytest.importorskip("torch")
    steps = min(case.steps, 30)
    theirs = start_torch(torch, case)
    run(case, *theirs, position + 1)
    optimizer, scheduler = start(case)
    optimizer.load_state_dict(theirs[0].state_dict())
    scheduler.load_state_dict(theirs[1].state_dict())
    actual = run(case, optimizer, scheduler, steps, position)
    assert deviation(actual, run(case, *theirs, steps, position)) <= TOLERANCE


SAVED = {
    "LambdaLR": "lr_lambdas",
    "MultiplicativeLR": "lr_lambdas",
    "get_cosine_schedule_with_warmup": "lr_lambdas",
    "ExponentialLR": "gamma",
    "StepLR": "gamma step_size",
    "MultiStepLR": "gamma milestones",
    "ConstantLR": "factor total_iters",
    "LinearLR": "end_factor start_factor total_iters",
    "PolynomialLR": "power total_iters",
    "CosineAnnealingLR": "T_max eta_min",
    "CosineAnnealingWarmRestarts": "T_0 T_cur T_i T_mult eta_min",
    "SWALR": "_anneal_strategy anneal_epochs",
    "CyclicLR": "_scale_fn_custom cycle_momentum gamma max_lrs mode scale_mode step_ratio total_size",
    "OneCycleLR": "_anneal_func_type _schedule_phases cycle_momentum total_steps",
}
"""What version 0.1 saved of each kind, beside what all kinds have."""


@pytest.mark.parametrize("case", [case for case in LEAVES if case.kind in SAVED], ids=repr)
def test_snapshots_have_the_entries_of_version_0_1(case):
    """Loading refuses a missing and an unknown entry, so these names are what it takes."""
    expected = {"last_epoch", "base_lrs", "_step_count", "_last_lr", *SAVED[case.kind].split()}
    if case.kind in ("CyclicLR", "OneCycleLR") and case.kwargs.get("cycle_momentum", True):
        expected.add("use_beta1")
        if case.kind == "CyclicLR":
            expected |= {"base_momentums", "max_momentums"}
    state = start(case)[1].state_dict()
    assert set(state) == expected
    if case.kind == "get_cosine_schedule_with_warmup":
        names = {"num_warmup_steps", "num_training_steps", "num_cycles"}
        assert all(set(entry) == names for entry in state["lr_lambdas"])


def test_parameters_of_the_schedule_are_restored():
    optimizer = optimizer_for()
    scheduler = schedulers.get_cosine_schedule_with_warmup(optimizer, 3, 20, 1.5)
    other = schedulers.get_cosine_schedule_with_warmup(optimizer_for(), 10, 77)
    other.load_state_dict(scheduler.state_dict())
    assert vars(other.lr_lambdas[0]) == vars(scheduler.lr_lambdas[0])
    other = schedulers.LambdaLR(optimizer_for(), Fading())
    other.lr_lambdas[0].rate = 0.5
    state = other.state_dict()
    fresh = schedulers.LambdaLR(optimizer_for(), Fading())
    fresh.load_state_dict(state)
    assert fresh.lr_lambdas[0].rate == 0.5
    assert schedulers.LambdaLR(optimizer, abs).state_dict()["lr_lambdas"] == [None] * 3


@every_case
def test_pickle_and_deepcopy(case):
    optimizer, scheduler = start(case)
    copies = [copy.deepcopy(scheduler)]
    if "<lambda>" not in repr(case.kwargs):  # which cannot be pickled
        copies.append(pickle.loads(pickle.dumps(scheduler)))
    expected = run(case, optimizer, scheduler, 12)
    for other in copies:
        assert run(case, other.optimizer, other, 12) == expected


def attributes(scheduler):
    return scheduler.state_dict(), [dict(group) for group in scheduler.optimizer.param_groups]


@every_case
def test_refuses_what_is_no_snapshot_of_it(case):
    scheduler = start(case)[1]
    before = attributes(scheduler)
    state = copy.deepcopy(before[0])
    foreign = schedulers.StepLR(optimizer_for(), 3).state_dict()
    if case.kind == "StepLR":
        foreign = schedulers.ExponentialLR(optimizer_for(), 0.3).state_dict()
    with pytest.raises(TypeError, match="must be a dict"):
        scheduler.load_state_dict([state])
    with pytest.raises((KeyError, ValueError), match="saved by"):
        scheduler.load_state_dict(foreign)
    with pytest.raises(KeyError, match="_last_lr"):
        scheduler.load_state_dict({})
    with pytest.raises(ValueError, match="momentun"):
        scheduler.load_state_dict({**state, "momentun": 1})
    for name in state:
        with pytest.raises(KeyError, match=name):
            scheduler.load_state_dict({key: state[key] for key in state if key != name})
    with pytest.raises(ValueError, match="_last_lr"):
        scheduler.load_state_dict({**state, "_last_lr": "0.1"})
    with pytest.raises(ValueError, match="4 parameter groups, but the optimizer has 3"):
        scheduler.load_state_dict({**state, "_last_lr": [0.1] * 4})
    assert attributes(scheduler) == before


def test_a_broken_part_leaves_all_parts_alone():
    case = Case(
        "",
        "SequentialLR",
        schedulers=[Part("LinearLR"), Part("LambdaLR", lr_lambda=Fading), Part("LinearLR")],
        milestones=[3, 9],
    )
    optimizer, scheduler = start(case)
    run(case, optimizer, scheduler, 8)
    state = scheduler.state_dict()
    broken = copy.deepcopy(state)
    del broken["_schedulers"][2]["total_iters"]
    scheduler = start(case)[1]
    before = attributes(scheduler)
    with pytest.raises(KeyError, match="total_iters"):
        scheduler.load_state_dict(broken)
    with pytest.raises(ValueError, match="2 schedulers, not for 3"):
        scheduler.load_state_dict({**state, "_schedulers": state["_schedulers"][:2]})
    assert attributes(scheduler) == before


# ---- groups added later ----

ADDED = 0.5
JOIN = 4
"""Added at this epoch, so scheduled from the next one on."""


def add_group(optimizer, **more):
    optimizer.add_param_group({"params": [genesis.Parameter(np.ones(1))], "lr": ADDED, **more})


def joined(case, steps=40, lrs=LRS[:1]):
    """Learning rates of the first group and of one added at epoch `JOIN`, from there on."""
    optimizer, scheduler = start(case, lrs)
    run(case, optimizer, scheduler, JOIN + 1)
    add_group(optimizer)
    pairs = []
    for t in range(JOIN + 1, steps):
        advance(case, optimizer, scheduler, t)
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        pairs.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))
    return optimizer, scheduler, pairs


def single(case):
    return not any(isinstance(value, Each) for value in case.kwargs.values())


def cases_of(*kinds):
    cases = [case for case in CASES if case.kind in kinds and single(case)]
    assert {case.kind for case in cases} == set(kinds)
    return pytest.mark.parametrize("case", cases, ids=repr)


@cases_of(
    "LambdaLR",
    "get_cosine_schedule_with_warmup",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "OneCycleLR",
)
def test_an_added_group_takes_its_place_in_a_closed_form(case):
    optimizer, _, pairs = joined(case)
    whole = start(case, (LRS[0], ADDED))
    expected = run(case, *whole, 40)
    lr = len(expected[0]) // 2
    assert [list(pair) for pair in pairs] == [[row[0], row[lr]] for row in expected[JOIN + 1 :]]
    assert values(optimizer) == expected[-1]
    if case.kind not in ("CyclicLR", "OneCycleLR"):
        assert optimizer.param_groups[-1]["initial_lr"] == ADDED


@cases_of(
    "MultiplicativeLR",
    "ExponentialLR",
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
)
def test_an_added_group_changes_by_the_same_ratio(case):
    before = start(case, LRS[:1])
    old = run(case, *before, JOIN + 1)[-1][0]
    optimizer, _, pairs = joined(case)
    if old:
        expected = [lr / old * ADDED for lr, _ in pairs]
        assert deviation([lr for _, lr in pairs], expected) <= 1e-13
    if case.kind != "ReduceLROnPlateau":
        assert optimizer.param_groups[-1]["initial_lr"] == ADDED


@cases_of("CosineAnnealingLR")
def test_an_added_group_anneals_from_where_it_is(case):
    low, period = case.kwargs.get("eta_min", 0), case.kwargs["T_max"]
    _, scheduler, pairs = joined(case)
    lrs = [lr for _, lr in pairs]
    for t, lr in enumerate(lrs, JOIN + 1):
        if JOIN < t <= period:
            done = (1 + math.cos(math.pi * t / period)) / (1 + math.cos(math.pi * JOIN / period))
            assert lr == pytest.approx(low + (ADDED - low) * done, rel=1e-12, abs=1e-15)
    if period < 20:  # from the lowest point on it is as if it had always been there
        whole = run(case, *start(case, (ADDED,)), 40)
        assert lrs[-10:] == pytest.approx([row[0] for row in whole[-10:]], rel=1e-9, abs=1e-12)
    assert scheduler.base_lrs[-1] == ADDED


@cases_of("SWALR")
def test_an_added_group_arrives_at_swa_lr(case):
    optimizer, _, pairs = joined(case)
    assert pairs[-1][1] == pytest.approx(case.kwargs["swa_lr"], rel=1e-12)
    lrs = [ADDED] + [lr for _, lr in pairs]
    assert lrs == sorted(lrs, reverse=True)
    assert optimizer.param_groups[-1]["initial_lr"] == ADDED


@cases_of("ChainedScheduler")
def test_an_added_group_in_a_chain(case):
    optimizer, _, pairs = joined(case)
    group = optimizer.param_groups[-1]
    lrs = [lr for _, lr in pairs]
    if case.name == "constant-exp":  # the end of the constant divides by its factor, 1/3
        expected = [3 * ADDED * 0.97 ** (t - JOIN) for t in range(JOIN + 1, 40)]
        assert deviation(lrs, expected) <= 1e-13
    if case.name == "one-step":  # one cycle in closed form for all groups, then a step
        assert all(first == lr for first, lr in pairs)
        assert group["initial_lr"] == 0.4 / 25
    else:
        assert group["initial_lr"] == ADDED
    assert all(0 <= lr < 10 * ADDED for lr in lrs)
    assert lrs[0] != ADDED


@cases_of("SequentialLR")
def test_an_added_group_in_a_sequence(case):
    optimizer, _, pairs = joined(case)
    assert optimizer.param_groups[-1]["initial_lr"] in (ADDED, 0.4 / 25)
    # A part that begins afterwards begins anew for all groups.
    begin = next((m for m in case.kwargs["milestones"] if m > JOIN), None)
    if begin is not None:
        whole = run(case, *start(case, (LRS[0], ADDED)), 40)
        expected = [row[len(row) // 2] for row in whole[begin:]]
        assert deviation([lr for _, lr in pairs[begin - JOIN - 1 :]], expected) <= 1e-12


def test_a_recursive_schedule_treats_an_added_group_as_torch_does():
    torch = pytest.importorskip("torch")
    kinds = "ExponentialLR StepLR MultiStepLR ConstantLR LinearLR PolynomialLR ReduceLROnPlateau"
    for case in CASES:
        if case.kind in kinds.split() and single(case):
            optimizer, scheduler = start_torch(torch, case, LRS[:1])
            run(case, optimizer, scheduler, JOIN + 1)
            parameter = torch.nn.Parameter(torch.ones(1))
            optimizer.add_param_group({"params": [parameter], "lr": ADDED})
            rows = run(case, optimizer, scheduler, 40, JOIN)[1:]
            pairs = [list(pair) for pair in joined(case)[2]]
            assert deviation(pairs, [row[::2] for row in rows]) <= TOLERANCE, case


@pytest.mark.parametrize("case", [case for case in CASES if single(case)], ids=repr)
def test_resume_with_an_added_group(case):
    for wait in (0, 1, 5):  # saved before its first step as well
        optimizer, scheduler = start(case, LRS[:1])
        run(case, optimizer, scheduler, JOIN + 1)
        add_group(optimizer)
        run(case, optimizer, scheduler, JOIN + 1 + wait, JOIN)
        saved = optimizer.state_dict(), through_json(scheduler.state_dict())
        expected = run(case, optimizer, scheduler, 30, JOIN + wait)
        for late in (False, True):
            optimizer = optimizer_for(case, LRS[:1])
            if late:
                scheduler = build(case, make, optimizer)
            add_group(optimizer)
            if not late:
                scheduler = build(case, make, optimizer)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
            assert run(case, optimizer, scheduler, 30, JOIN + wait) == expected


def test_a_snapshot_with_more_groups_is_refused():
    scheduler = start(Case("", "StepLR", step_size=3))[1]
    fewer = start(Case("", "StepLR", step_size=3), LRS[:2])[1]
    with pytest.raises(ValueError, match="3 parameter groups, but the optimizer has 2"):
        fewer.load_state_dict(scheduler.state_dict())


LISTS = {
    "LambdaLR": lambda s, g: s.lr_lambdas.append(lambda t: 0.5),
    "MultiplicativeLR": lambda s, g: s.lr_lambdas.append(lambda t: 0.5),
    "SWALR": lambda s, g: g.update(swa_lr=0.2),
    "CyclicLR": lambda s, g: (
        s.max_lrs.append(0.7),
        s.base_momentums.append(0.7),
        s.max_momentums.append(0.7),
    ),
    "OneCycleLR": lambda s, g: g.update(max_lr=0.7, base_momentum=0.7, max_momentum=0.7),
    "ReduceLROnPlateau": lambda s, g: s.min_lrs.append(0.01),
}


@pytest.mark.parametrize("case", [case for case in CASES if not single(case)], ids=repr)
def test_a_list_has_no_value_for_an_added_group(case):
    optimizer, scheduler = start(case)
    run(case, optimizer, scheduler, JOIN + 1)
    add_group(optimizer)
    before = attributes(scheduler)
    optimizer.step()
    with pytest.raises(ValueError, match=r"was given for each parameter group .* 4 groups"):
        scheduler.step(*([] if case.metric is None else [1.0]))
    assert attributes(scheduler) == before
    LISTS[case.kind](scheduler, optimizer.param_groups[-1])
    run(case, optimizer, scheduler, 30, JOIN)
    assert len(scheduler.get_last_lr()) == 4
    lr = optimizer.param_groups[-1]["lr"]
    assert math.isfinite(lr)
    assert lr != ADDED


def test_a_list_of_one():
    """One group and a list: still a list."""
    optimizer = optimizer_for(lrs=LRS[:1])
    scheduler = schedulers.LambdaLR(optimizer, [lambda t: 0.9**t])
    add_group(optimizer)
    optimizer.step()
    with pytest.raises(ValueError, match=r"append it to scheduler\.lr_lambdas"):
        scheduler.step()


# ---- order ----


@every_case
def test_order(case):
    def trouble(*steps):
        optimizer, scheduler = start(case)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", ".*no parameter has a gradient")
            for step in steps:
                if step == "o":
                    optimizer.step()
                else:
                    scheduler.step(*([] if case.metric is None else [1.0]))
        for warning in caught:
            assert warning.filename == __file__
            assert "`lr_scheduler.step()` was called before `optimizer.step()`" in str(
                warning.message
            )
        return len(caught)

    assert trouble(*"ososos") == 0
    assert trouble(*"oosss") == 0
    assert trouble(*"sososso") == (case.metric is None)


def test_order_counts_from_the_scheduler():
    optimizer = optimizer_for()
    optimizer.step()
    scheduler = schedulers.StepLR(optimizer, 3)
    with pytest.warns(UserWarning, match="how-to-adjust-learning-rate"):
        scheduler.step()
    scheduler.step()


def test_no_order_warning_when_a_scaler_skipped_the_step():
    optimizer = optimizer_for()
    scheduler = schedulers.StepLR(optimizer, 3)
    optimizer.step_skipped = True
    scheduler.step()


def test_the_optimizer_is_not_patched():
    optimizer = optimizer_for()
    before = dict(vars(optimizer))
    schedulers.StepLR(optimizer, 3)
    assert vars(optimizer) == before


def test_get_lr_is_for_step():
    optimizer = optimizer_for()
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    with pytest.warns(UserWarning, match="get_last_lr"):
        assert scheduler.get_lr() == [lr / 2 for lr in LRS]
    assert scheduler.get_last_lr() == list(LRS)
    scheduler.get_last_lr().clear()
    assert scheduler.get_last_lr() == list(LRS)


# ---- wrong arguments ----

NAN, INF = math.nan, math.inf
WRONG = [
    ("LambdaLR", {"lr_lambda": 0.9}, TypeError, "lr_lambda must be a function"),
    ("LambdaLR", {"lr_lambda": [abs, 3, abs]}, TypeError, r"lr_lambda\[1\] must be a function"),
    ("LambdaLR", {"lr_lambda": [abs]}, ValueError, "lr_lambda .* expected 3 values, but got 1"),
    ("MultiplicativeLR", {"lr_lambda": None}, TypeError, "lr_lambda must be a function"),
    ("MultiplicativeLR", {"lr_lambda": []}, ValueError, "expected 3 values, but got 0"),
    ("ExponentialLR", {"gamma": NAN}, ValueError, r"gamma must be in \[0, inf\), but got nan"),
    ("ExponentialLR", {"gamma": -0.1}, ValueError, "gamma"),
    ("ExponentialLR", {"gamma": INF}, ValueError, "gamma"),
    ("ExponentialLR", {"gamma": "0.9"}, TypeError, "gamma must be a number, but got str"),
    ("ExponentialLR", {"gamma": True}, TypeError, "gamma must be a number, but got bool"),
    ("StepLR", {"step_size": 0}, ValueError, "step_size must be an integer of at least 1"),
    ("StepLR", {"step_size": -3}, ValueError, "step_size"),
    ("StepLR", {"step_size": 1.5}, ValueError, "step_size"),
    ("StepLR", {"step_size": NAN}, ValueError, "step_size"),
    ("StepLR", {"step_size": INF}, ValueError, "step_size"),
    ("StepLR", {"step_size": None}, TypeError, "step_size must be an integer, but got None"),
    ("StepLR", {"step_size": 3, "gamma": -1}, ValueError, "gamma"),
    ("StepLR", {"step_size": 3, "last_epoch": -2}, ValueError, "last_epoch"),
    ("StepLR", {"step_size": 3, "last_epoch": "1"}, TypeError, "last_epoch"),
    ("StepLR", {"step_size": 3, "last_epoch": 1}, KeyError, r"initial_lr.*param_groups\[0\]"),
    ("MultiStepLR", {"milestones": [30, 10]}, ValueError, "milestones must be in increasing order"),
    ("MultiStepLR", {"milestones": [-1]}, ValueError, r"milestones\[0\]"),
    ("MultiStepLR", {"milestones": [1.5]}, ValueError, r"milestones\[0\]"),
    ("MultiStepLR", {"milestones": ["1"]}, TypeError, r"milestones\[0\]"),
    ("MultiStepLR", {"milestones": 30}, TypeError, "milestones must be a list of epochs"),
    ("MultiStepLR", {"milestones": [3], "gamma": NAN}, ValueError, "gamma"),
    ("ConstantLR", {"factor": 1.1}, ValueError, r"factor must be in \[0, 1\], but got 1.1"),
    ("ConstantLR", {"factor": -0.1}, ValueError, "factor"),
    ("ConstantLR", {"total_iters": -1}, ValueError, "total_iters"),
    ("LinearLR", {"start_factor": 0}, ValueError, r"start_factor must be in \(0, 1\], but got 0"),
    ("LinearLR", {"start_factor": 1.01}, ValueError, "start_factor"),
    ("LinearLR", {"end_factor": 1.5}, ValueError, "end_factor"),
    ("LinearLR", {"end_factor": -1}, ValueError, "end_factor"),
    ("LinearLR", {"total_iters": 0}, ValueError, "total_iters"),
    ("PolynomialLR", {"total_iters": -5}, ValueError, "total_iters"),
    ("PolynomialLR", {"power": -1}, ValueError, "power"),
    ("PolynomialLR", {"power": NAN}, ValueError, "power"),
    ("PolynomialLR", {"power": "2"}, TypeError, "power"),
    ("CosineAnnealingLR", {"T_max": 0}, ValueError, "T_max"),
    ("CosineAnnealingLR", {"T_max": -3}, ValueError, "T_max"),
    ("CosineAnnealingLR", {"T_max": "3"}, TypeError, "T_max"),
    ("CosineAnnealingLR", {"T_max": 3, "eta_min": -1}, ValueError, "eta_min"),
    ("CosineAnnealingWarmRestarts", {"T_0": 0}, ValueError, "T_0"),
    ("CosineAnnealingWarmRestarts", {"T_0": 1.5}, ValueError, "T_0"),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 0}, ValueError, "T_mult"),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 1.5}, ValueError, "T_mult"),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "eta_min": "0"}, TypeError, "eta_min"),
    ("SWALR", {"swa_lr": -1}, ValueError, "swa_lr"),
    ("SWALR", {"swa_lr": [0.1]}, ValueError, "swa_lr .* expected 3 values, but got 1"),
    ("SWALR", {"swa_lr": 0.1, "anneal_epochs": -1}, ValueError, "anneal_epochs"),
    ("SWALR", {"swa_lr": 0.1, "anneal_epochs": 2.5}, ValueError, "anneal_epochs"),
    ("SWALR", {"swa_lr": 0.1, "anneal_strategy": "sin"}, ValueError, "anneal_strategy .* 'cos'"),
    ("CyclicLR", {"base_lr": -1, "max_lr": 1}, ValueError, "base_lr"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": NAN}, ValueError, "max_lr"),
    ("CyclicLR", {"base_lr": [0.1], "max_lr": 1}, ValueError, "base_lr .* expected 3"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": [1, 2]}, ValueError, "max_lr .* expected 3"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "step_size_up": 0}, ValueError, "step_size_up"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "step_size_down": -1}, ValueError, "step_size_down"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "mode": "square"}, ValueError, "mode .*triangular2"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "gamma": -1}, ValueError, "gamma"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "scale_fn": 2}, TypeError, "scale_fn"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "scale_mode": "x"}, ValueError, "scale_mode"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "base_momentum": -1}, ValueError, "base_momentum"),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 1, "max_momentum": [1]}, ValueError, "max_momentum"),
    ("OneCycleLR", {"max_lr": 1}, ValueError, "total_steps or both epochs and steps_per_epoch"),
    ("OneCycleLR", {"max_lr": 1, "epochs": 3}, ValueError, "total_steps or both epochs"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 0}, ValueError, "total_steps"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 1.5}, ValueError, "total_steps"),
    ("OneCycleLR", {"max_lr": 1, "epochs": 0, "steps_per_epoch": 3}, ValueError, "epochs"),
    ("OneCycleLR", {"max_lr": 1, "epochs": 3, "steps_per_epoch": -3}, ValueError, "steps_per_ep"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": 1.1}, ValueError, "pct_start"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "pct_start": -0.1}, ValueError, "pct_start"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "anneal_strategy": "x"}, ValueError, "'linear'"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "div_factor": 0}, ValueError, "div_factor"),
    ("OneCycleLR", {"max_lr": 1, "total_steps": 9, "final_div_factor": 0}, ValueError, "final_div"),
    ("OneCycleLR", {"max_lr": [1], "total_steps": 9}, ValueError, "max_lr .* expected 3"),
    ("ReduceLROnPlateau", {"mode": "least"}, ValueError, "mode must be one of 'min', 'max'"),
    ("ReduceLROnPlateau", {"factor": 1.0}, ValueError, r"factor must be in \[0, 1\), but got 1"),
    ("ReduceLROnPlateau", {"factor": -0.1}, ValueError, "factor"),
    ("ReduceLROnPlateau", {"patience": -1}, ValueError, "patience"),
    ("ReduceLROnPlateau", {"cooldown": -1}, ValueError, "cooldown"),
    ("ReduceLROnPlateau", {"threshold": NAN}, ValueError, "threshold"),
    ("ReduceLROnPlateau", {"threshold_mode": "r"}, ValueError, "threshold_mode must be one of"),
    ("ReduceLROnPlateau", {"min_lr": [0.1]}, ValueError, "min_lr .* expected 3 values, but got 1"),
    ("ReduceLROnPlateau", {"min_lr": -1}, ValueError, "min_lr"),
    ("ReduceLROnPlateau", {"eps": -1}, ValueError, "eps"),
    (
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": -1, "num_training_steps": 9},
        ValueError,
        "num_warmup_steps",
    ),
    (
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 0, "num_training_steps": None},
        TypeError,
        "num_training_steps",
    ),
    (
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 0, "num_training_steps": 9, "num_cycles": NAN},
        ValueError,
        "num_cycles",
    ),
]


def names(wrong):
    kind, kwargs, *_ = wrong
    return f"{kind}-{kwargs}"


@pytest.mark.parametrize("wrong", WRONG, ids=names)
def test_wrong_arguments(wrong):
    kind, kwargs, error, message = wrong
    optimizer = optimizer_for()
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(error, match=message):
        make(kind)(optimizer, **kwargs)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_every_constructor_has_wrong_arguments():
    kinds = {kind for kind, *_ in WRONG} | {"LRScheduler", "ChainedScheduler", "SequentialLR"}
    assert kinds == set(schedulers.__all__)


@pytest.mark.parametrize("case", LEAVES, ids=repr)
def test_no_optimizer(case):
    class NotOne:
        param_groups = optimizer_for(case).param_groups

    with pytest.raises(TypeError, match="NotOne is not an Optimizer"):
        build(case, make, NotOne())


def test_momentum_is_needed():
    optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(1))], lr=0.1)
    del optimizer.defaults["momentum"]
    for kind, kwargs in (
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 1}),
        ("OneCycleLR", {"max_lr": 1, "total_steps": 9}),
    ):
        with pytest.raises(ValueError, match=r"momentum or betas, .* cycle_momentum=False"):
            make(kind)(optimizer, **kwargs)
        assert "initial_lr" not in optimizer.param_groups[0]
        make(kind)(optimizer, cycle_momentum=False, **kwargs)
        optimizer = genesis.optim.SGD([genesis.Parameter(np.ones(1))], lr=0.1)
        del optimizer.defaults["momentum"]


@pytest.mark.parametrize("kind", ["ChainedScheduler", "SequentialLR"])
def test_wrong_parts(kind):
    optimizer = optimizer_for()
    good = schedulers.StepLR(optimizer, 3)

    def compose(*parts):
        if kind == "ChainedScheduler":
            return schedulers.ChainedScheduler(*parts, optimizer=optimizer)
        return schedulers.SequentialLR(optimizer, *parts, milestones=[1])

    with pytest.raises(ValueError, match="at least one scheduler"):
        compose([])
    with pytest.raises(TypeError, match="schedulers must be a list of schedulers, but got StepLR"):
        compose(good)
    with pytest.raises(TypeError, match=r"schedulers\[1\] must be a scheduler, but got SGD"):
        compose([good, optimizer])
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau.*schedulers\[1\]"):
        compose([good, schedulers.ReduceLROnPlateau(optimizer)])
    with pytest.raises(ValueError, match=r"same optimizer, but schedulers\[1\]"):
        compose([good, schedulers.StepLR(optimizer_for(), 3)])
    with pytest.raises(TypeError, match="StepLR is not an Optimizer"):
        schedulers.SequentialLR(good, [good], [])


@pytest.mark.parametrize("milestones", [[], [1, 2], [-1], [1.5], None])
def test_wrong_milestones(milestones):
    optimizer = optimizer_for()
    parts = [schedulers.StepLR(optimizer, 3), schedulers.ConstantLR(optimizer)]
    before = [dict(group) for group in optimizer.param_groups]
    with pytest.raises((ValueError, TypeError), match="milestones"):
        schedulers.SequentialLR(optimizer, parts, milestones)
    assert [dict(group) for group in optimizer.param_groups] == before


def test_unsorted_milestones_of_a_sequence():
    optimizer = optimizer_for()
    parts = [schedulers.StepLR(optimizer, 3) for _ in range(3)]
    with pytest.raises(ValueError, match="increasing"):
        schedulers.SequentialLR(optimizer, parts, [9, 3])


def test_whole_floats_and_numpy_numbers_are_numbers():
    optimizer = optimizer_for()
    scheduler = schedulers.StepLR(optimizer, np.int64(3), gamma=np.float32(0.5))
    assert plain(scheduler.state_dict())
    assert schedulers.CosineAnnealingLR(optimizer, 10.0).T_max == 10
    for group in optimizer.param_groups:
        group["lr"] = np.float32(0.1)
    optimizer.step()
    scheduler.step()
    assert plain(scheduler.state_dict())
    assert type(optimizer.param_groups[0]["lr"]) is float


@pytest.mark.parametrize(
    "metric", [None, "0.5", 1j, [1.0], np.ones(2), np.ones(0), object], ids=repr
)
def test_wrong_metrics(metric):
    scheduler = schedulers.ReduceLROnPlateau(optimizer_for(), patience=0)
    before = attributes(scheduler)
    with pytest.raises(TypeError, match="metrics must be a number"):
        scheduler.step(metric)
    assert attributes(scheduler) == before


@pytest.mark.parametrize("metric", [1, 1.0, np.float32(1), np.array(1.0), np.array([1.0])])
def test_metrics(metric):
    scheduler = schedulers.ReduceLROnPlateau(optimizer_for())
    scheduler.step(metric)
    assert scheduler.best == 1.0
    assert type(scheduler.best) is float


def test_plateau_epochs():
    scheduler = schedulers.ReduceLROnPlateau(optimizer_for())
    with pytest.warns(UserWarning, match="deprecated"):
        scheduler.step(1.0, epoch=7)
    scheduler.step(0.5)
    assert scheduler.last_epoch == 8


@pytest.mark.parametrize("case", BATCHED, ids=repr)
def test_wrong_epochs(case):
    scheduler = start(case)[1]
    before = attributes(scheduler)
    scheduler.optimizer.step()
    for epoch, error in ((-1, ValueError), (NAN, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="epoch"):
            scheduler.step(epoch)
    assert attributes(scheduler) == before


@pytest.mark.parametrize("bad", [NAN, INF, None, "x"], ids=repr)
def test_a_function_that_fails_changes_nothing(bad):
    optimizer = optimizer_for()
    scheduler = schedulers.LambdaLR(optimizer, [abs, abs, lambda t: bad if t == 2 else 1.0])
    optimizer.step()
    scheduler.step()
    before = attributes(scheduler)
    with pytest.raises((ValueError, TypeError)):
        scheduler.step()
    assert attributes(scheduler) == before


def test_one_cycle_ends():
    case = Case("", "OneCycleLR", max_lr=0.4, total_steps=10)
    optimizer, scheduler = start(case)
    run(case, optimizer, scheduler, 11)
    before = attributes(scheduler)
    with pytest.raises(ValueError, match=r"Tried to step 11 times; .* total steps is 10"):
        scheduler.step()
    assert attributes(scheduler) == before


def test_a_subclass_must_define_get_lr():
    with pytest.raises(NotImplementedError, match="LRScheduler defines no get_lr"):
        schedulers.LRScheduler(optimizer_for())

    class Short(schedulers.LRScheduler):
        def get_lr(self):
            return [0.1]

    with pytest.raises(ValueError, match="Short has 1 learning rates for 3 parameter groups"):
        Short(optimizer_for())


# ---- documentation ----


def test_examples():
    modules = [
        importlib.import_module(f"{schedulers.__name__}.{module.name}")
        for module in pkgutil.iter_modules(schedulers.__path__)
    ]
    results = [doctest.testmod(module) for module in modules]
    assert not any(failed for failed, _ in results)
    assert sum(attempted for _, attempted in results) > 80


@pytest.mark.parametrize("name", schedulers.__all__)
def test_documentation(name):
    public = getattr(schedulers, name)
    text = inspect.getdoc(public)
    assert text.splitlines()[0].endswith(".")
    assert "Example:" in text
    assert "Raises:" in text
    described = [line.split(":")[0].strip() for line in text.splitlines() if ":" in line]
    for argument in inspect.signature(public).parameters:
        assert argument in described
