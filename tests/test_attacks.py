"""What users do to an optimizer between its steps, and during them: each attack a test.

A step does what lists, arrays and state now are, or refuses with an error and has written nothing.
Random sequences of such attacks are in `test_stateful.py`, alarms at random moments in
`test_interrupts.py`.
"""

import copy
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from attack_tools import (
    Interrupted,
    entries_of,
    in_child,
    interrupted_at,
    lines_run,
    picture,
    refused,
    same,
    watchdog,
)
from cases import BFLOAT16, THREE, Case
from devices import on_cpu_only
from reference import Reference
from stateful_model import guarded

import genesis
from genesis.kernels import cpu, threads
from genesis.optim import SGD, Adam, AdamW

pytestmark = [
    on_cpu_only,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*no parameter has a gradient"),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """Kernels that many children need, compiled before they are forked."""
    for case in (Case("SGD", {"lr": 0.1}), Case("SGD", {"lr": 0.1, "momentum": 0.9}), *THREE):
        opt, _ = subject(case)
        opt.step(max_norm=1.0)
    Adam(params(3)).step(max_norm=1.0)


def params(*sizes, dtype=np.float64):
    """Parameters named a, b, c, ... with a gradient each, of ones, twos, threes."""
    made = []
    for i, (name, size) in enumerate(zip("abcdef", sizes)):
        p = genesis.Parameter(np.full(size, float(i + 1), dtype), name=name)
        p.grad = np.full(size, float(i + 1), dtype)
        made.append(p)
    return made


def values(*parameters):
    return [p.data.copy() for p in parameters]


def follows(p, opt, before, state, step, name="Adam", **hyper):
    """Assert that a parameter is where the reference leads in one step."""
    expected, _ = Reference(name, []).rule(before, p.grad, state, step, **hyper)
    np.testing.assert_allclose(p.data, expected, rtol=1e-12, atol=0)


# ---- 1: lists ----


@in_child
def test_a_deleted_group_is_left_alone():
    a, b = params(3, 3)
    opt = SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)
    opt.step()
    del opt.param_groups[0]
    before = values(a, b)
    opt.step()
    np.testing.assert_array_equal(a.data, before[0])
    np.testing.assert_array_equal(b.data, before[1] - 0.5 * b.grad)


@in_child
def test_groups_take_their_learning_rates_along():
    a, b = params(3, 3)
    opt = SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.25}], lr=0.1)
    opt.step()
    before = values(a, b)
    opt.param_groups.reverse()
    opt.step()
    np.testing.assert_array_equal(a.data, before[0] - 0.5 * a.grad)
    np.testing.assert_array_equal(b.data, before[1] - 0.25 * b.grad)


@in_child
@pytest.mark.parametrize("grad", [None, 2.0])
def test_a_replaced_parameter_is_the_one_that_is_updated(grad):
    a, b = params(3, 5)
    b.grad = None if grad is None else np.full(5, grad)
    opt = Adam([a], lr=0.1)
    opt.step().step()
    before = values(a, b)
    opt.param_groups[0]["params"][0] = b
    opt.step()
    np.testing.assert_array_equal(a.data, before[0])
    assert opt.state[a]["step"] == 2
    if grad is None:
        np.testing.assert_array_equal(b.data, before[1])
        assert entries_of(opt, b) == {}
    else:
        follows(b, opt, before[1], {}, 1, lr=0.1)
        assert opt.state[b]["step"] == 1


@in_child
def test_parameters_may_leave_come_and_change_places():
    a, b, c = params(3, 4, 5)
    opt = Adam([a, b], lr=0.1)
    members = opt.param_groups[0]["params"]
    opt.step()
    before, state = values(a, b, c), {p: dict(entries_of(opt, p)) for p in (a, b)}
    copies = {p: {k: copy.copy(v) for k, v in state[p].items()} for p in state}
    members.reverse()
    members.append(c)
    opt.step()
    follows(a, opt, before[0], copies[a], 2, lr=0.1)
    follows(b, opt, before[1], copies[b], 2, lr=0.1)
    follows(c, opt, before[2], {}, 1, lr=0.1)
    assert [opt.state[p]["step"] for p in (a, b, c)] == [2, 2, 1]
    before = values(a, b, c)
    members.remove(b)
    opt.step()
    np.testing.assert_array_equal(b.data, before[1])
    assert [opt.state[p]["step"] for p in (a, b, c)] == [3, 2, 2]
    before = values(a, b, c)
    opt.param_groups[0]["params"] = [b]
    opt.step()
    np.testing.assert_array_equal([*a.data, *c.data], [*before[0], *before[2]])
    assert [opt.state[p]["step"] for p in (a, b, c)] == [3, 3, 2]


@in_child
def test_a_list_of_other_groups_is_the_list():
    a, b = params(3, 3)
    opt = SGD([a], lr=0.1)
    opt.step()
    before = values(a, b)
    opt.param_groups = [{**opt.param_groups[0], "params": [b], "lr": 0.5}]
    opt.step()
    np.testing.assert_array_equal(a.data, before[0])
    np.testing.assert_array_equal(b.data, before[1] - 0.5 * b.grad)
    opt.param_groups = []
    before = values(a, b)
    opt.step()
    np.testing.assert_array_equal([a.data, b.data], before)


@in_child
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "edit",
    [
        lambda groups, a, b: groups[0]["params"].append(a),
        lambda groups, a, b: groups[1]["params"].append(a),
        lambda groups, a, b: groups[1]["params"].__setitem__(0, a),
        lambda groups, a, b: groups.append(groups[0]),
        lambda groups, a, b: groups[1]["params"].append(None),
        lambda groups, a, b: groups[1]["params"].append(np.ones(3)),
        lambda groups, a, b: groups[1]["params"].append(genesis.Parameter(a.data)),
    ],
    ids="twice in-two-groups instead-of group-twice none array alias".split(),
)
def test_refuses_impossible_lists(edit, steps):
    a, b = params(3, 3)
    opt = SGD([{"params": [a]}, {"params": [b]}], lr=0.1, momentum=0.9)
    for _ in range(steps):
        opt.step()
    edit(opt.param_groups, a, b)
    for p in opt.param_groups[1]["params"]:
        if isinstance(p, genesis.Parameter):
            p.grad = np.ones(3)
    refused(opt.step, opt, parameters=[a, b])


@in_child
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "fast"),
        ("lr", None),
        ("lr", float("nan")),
        ("betas", (1.5, 0.9)),
        ("betas", 0.9),
        ("eps", -1.0),
        ("weight_decay", -1.0),
        ("amsgrad", "yes"),
        ("maximize", "up"),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_refuses_impossible_hyper_parameters_as_the_constructor_does(name, value, steps):
    a, b = params(3, 3)
    opt = Adam([{"params": [a]}, {"params": [b]}])
    for _ in range(steps):
        opt.step()
    with pytest.raises((ValueError, TypeError)) as at_once:
        Adam([a], **{name: value})
    opt.param_groups[1] = {**opt.param_groups[1], name: value}
    refused(opt.step, opt, str(at_once.value), errors=at_once.type)


def test_a_group_is_not_compared_with_all_before():
    def make(count):
        groups = [{"params": [genesis.Parameter(np.ones(2))]} for _ in range(count)]
        return lines_run(lambda: SGD(groups, lr=0.1))

    make(1)
    assert make(400) < 2.2 * make(200)


# ---- 1: state ----


@in_child
def test_another_state_counts_from_the_next_step_on():
    (a,) = params(3)
    opt = Adam([a], lr=0.1)
    opt.step()
    mean, square = np.full(3, 0.5), np.full(3, 4.0)
    given = {a: {"step": 6, "exp_avg": mean, "exp_avg_sq": square}}
    before = a.data.copy()
    entries = {"exp_avg": mean.copy(), "exp_avg_sq": square.copy()}
    opt.state = given
    opt.step()
    follows(a, opt, before, entries, 7, lr=0.1)
    assert opt.state[a]["step"] == 7
    assert opt.state[a]["exp_avg"] is mean
    assert given[a]["step"] == 6  # the structure was copied, not the arrays
    del given[a]
    assert a in opt.state


@in_child
@pytest.mark.parametrize("way", ["del", "pop", "clear", "empty", "assign"])
def test_removed_state_begins_anew(way):
    (a,) = params(3)
    opt = Adam([a], lr=0.1)
    opt.step().step()
    if way == "del":
        del opt.state[a]
    elif way == "pop":
        opt.state.pop(a)
    elif way == "clear":
        opt.state.clear()
    elif way == "empty":
        opt.state[a] = {}
    else:
        opt.state = {}
    before = a.data.copy()
    opt.step()
    follows(a, opt, before, {}, 1, lr=0.1)
    assert opt.state[a]["step"] == 1


@in_child
def test_edits_of_entries_count():
    (a,) = params(3)
    opt = Adam([a], lr=0.1)
    opt.step().step()
    entries = {k: copy.copy(v) for k, v in entries_of(opt, a).items()}
    del opt.state[a]["exp_avg"]
    opt.state[a]["step"] = 9
    replaced = opt.state[a]["exp_avg_sq"] = np.full(3, 2.0)
    before = a.data.copy()
    opt.step()
    follows(a, opt, before, {"exp_avg_sq": np.full(3, 2.0)}, 10, lr=0.1)
    assert opt.state[a]["exp_avg_sq"] is replaced
    assert entries["exp_avg"][0] != opt.state[a]["exp_avg"][0]


@in_child
@pytest.mark.parametrize("state", [5, None, [1], {"a": 1}])
def test_refuses_state_that_is_none(state):
    (a,) = params(3)
    opt = Adam([a])
    opt.step()
    before = entries_of(opt, a)
    with pytest.raises((TypeError, ValueError)):
        opt.state = state
    assert entries_of(opt, a).keys() == before.keys()
    opt.step()
    assert opt.state[a]["step"] == 2


BAD_BUFFERS = {
    "smaller": lambda a, b, opt: np.zeros(2),
    "larger": lambda a, b, opt: np.zeros(100),
    "other shape": lambda a, b, opt: np.zeros((2, 3)),
    "ints": lambda a, b, opt: np.zeros(6, np.int64),
    "complex": lambda a, b, opt: np.zeros(6, complex),
    "bytes": lambda a, b, opt: np.zeros(6, np.uint8),
    "a list": lambda a, b, opt: [0.0] * 6,
    "a number": lambda a, b, opt: 0.0,
    "None": lambda a, b, opt: None,
    "read-only": lambda a, b, opt: np.broadcast_to(0.0, 6),
    "a view of itself": lambda a, b, opt: np.lib.stride_tricks.as_strided(np.ones(1), (6,), (0,)),
    "the parameter": lambda a, b, opt: a.data,
    "another parameter": lambda a, b, opt: b.data,
    "its other buffer": lambda a, b, opt: opt.state[a]["exp_avg_sq"],
    "another's buffer": lambda a, b, opt: opt.state[b]["exp_avg"],
    "its gradient": lambda a, b, opt: a.grad,
    "another's gradient": lambda a, b, opt: b.grad,
}


@in_child
@pytest.mark.parametrize("way", BAD_BUFFERS)
def test_refuses_a_state_buffer_that_does_not_fit(way):
    a, b = params(6, 6)
    opt = Adam([a, b])
    opt.step()
    opt.state[a]["exp_avg"] = BAD_BUFFERS[way](a, b, opt)
    said = [] if "gradient" in way else ["exp_avg"]
    refused(opt.step, opt, *said)
    refused(lambda: opt.step(max_norm=1.0), opt, *said)
    del opt.state[a]["exp_avg"]
    opt.step()
    assert opt.state[a]["step"] == opt.state[b]["step"] == 2


@in_child
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_a_buffer_of_another_float_type_is_used_as_it_is(dtype):
    (a,) = params(6)
    opt = Adam([a], lr=0.1)
    opt.step()
    mean = opt.state[a]["exp_avg"] = np.full(6, 0.25, dtype)
    state = {"exp_avg": np.full(6, 0.25), "exp_avg_sq": opt.state[a]["exp_avg_sq"].copy()}
    before = a.data.copy()
    opt.step()
    follows(a, opt, before, state, 2, lr=0.1)
    assert opt.state[a]["exp_avg"] is mean
    np.testing.assert_array_equal(mean, np.full(6, 0.9 * 0.25 + 0.1).astype(dtype))


# ---- 2: memory ----


def attempt_to_resize(array, size):
    """Whether NumPy lets the array be resized."""
    try:
        array.resize(size, refcheck=False)
    except ValueError:
        return False
    return True


@in_child
@pytest.mark.parametrize("size", [1, 3_000_000])
@pytest.mark.parametrize("role", ["parameter", "gradient", "state"])
def test_what_a_step_has_used_cannot_be_resized(role, size):
    """A weak reference is enough for NumPy to refuse it; what it allows, the step must see."""
    (a,) = params(1000)
    opt = Adam([a])
    opt.step()
    array = {"parameter": a.data, "gradient": a.grad, "state": opt.state[a]["exp_avg"]}[role]
    if attempt_to_resize(array, size):
        assert role == "gradient"  # which a step holds for as long as it lasts, and no longer
        refused(opt.step, opt, "shape")
        return
    opt.step()
    assert opt.state[a]["step"] == 2


@in_child
@pytest.mark.parametrize("size", [1, 3_000_000])
@pytest.mark.parametrize("role", ["parameter", "gradient", "state"])
def test_what_is_resized_before_a_step_is_seen_by_it(role, size):
    a, b = params(1000, 1000)
    opt = Adam([b, a])
    if role == "state":
        opt.step()
        opt.state[a]["exp_avg"] = array = np.zeros(1000)
    else:
        array = a.data if role == "parameter" else a.grad
    if attempt_to_resize(array, size):
        refused(opt.step, opt, "shape")
    else:
        opt.step()


@in_child
def test_a_resized_parameter_does_not_leave_stray_pointers():
    """Memory that the array had is another array's now; the step must not write there."""
    a = genesis.Parameter(np.ones(100_000))
    a.grad = np.ones(100_000)
    opt = SGD([a], lr=0.1)
    array = a.data
    if attempt_to_resize(array, 10):
        others = [np.zeros(1000) for _ in range(200)]
        refused(opt.step, opt, "shape")
        a.grad = np.ones(10)
        opt.step()
        np.testing.assert_array_equal(array, np.full(10, 1 - 0.1))
        assert not np.any(others)


@in_child
@pytest.mark.parametrize("steps", [0, 2])
def test_a_parameter_of_another_shape_wants_gradient_and_state_of_it(steps):
    (a,) = params(6)
    opt = Adam([a], lr=0.1)
    for _ in range(steps):
        opt.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.data.shape = (2, 3)
    assert a.shape == (2, 3)
    refused(opt.step, opt, "gradient", "shape")
    a.grad = np.ones((2, 3))
    if steps:
        refused(opt.step, opt, "exp_avg", "shape")
        for name in ("exp_avg", "exp_avg_sq"):
            opt.state[a][name] = opt.state[a][name].reshape(2, 3)
    opt.step()
    assert opt.state[a]["step"] == steps + 1
    assert opt.state[a]["exp_avg"].shape == (2, 3)


@in_child
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, ">f8", "M8[s]"])
@pytest.mark.parametrize("role", ["parameter", "gradient", "state"])
def test_another_type_of_the_same_memory_is_seen(role, dtype, steps):
    a, b = params(8, 8)
    opt = Adam([b, a])
    for _ in range(steps):
        opt.step()
    if role == "state":
        if not steps:
            opt.state[a] = {"exp_avg": np.zeros(8), "exp_avg_sq": np.zeros(8), "step": 0}
        array = opt.state[a]["exp_avg"]
    else:
        array = a.data if role == "parameter" else a.grad
    before = picture(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array.dtype = dtype
        with pytest.raises((ValueError, TypeError)):
            opt.step()
        array.dtype = np.float64
    assert same(picture(opt), before)
    opt.step()


@in_child
@pytest.mark.parametrize("how", ["shape", "smaller", "type"])
def test_a_gradient_that_changes_after_it_was_assigned_is_seen(how):
    a, b = params(12, 12)
    opt = SGD([b, a], lr=0.1, momentum=0.9)
    opt.step()
    a.grad = grad = np.ones(12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "shape":
            grad.shape = (3, 4)
        elif how == "smaller":
            if not attempt_to_resize(grad, 2):
                return
        else:
            grad.dtype = np.int64
    refused(opt.step, opt, "gradient")
    refused(lambda: opt.step(max_norm=1.0), opt, "gradient")
    a.grad = np.ones(12)
    opt.step()


@in_child
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("case", THREE, ids=lambda case: case.id)
def test_an_array_made_read_only_is_not_written(case, steps):
    a, b = params(3, 3)
    opt = case.make([b, a])
    for _ in range(steps):
        opt.step()
    a.data.flags.writeable = False
    refused(opt.step, opt, "read-only")
    a.data.flags.writeable = True
    before = a.data.copy()
    opt.step()
    assert (a.data != before).all()


@in_child
def test_a_state_buffer_made_read_only_is_not_written():
    a, b = params(3, 3)
    opt = Adam([b, a])
    opt.step()
    opt.state[a]["exp_avg_sq"].flags.writeable = False
    refused(opt.step, opt, "exp_avg_sq", "read-only")
    opt.state[a]["exp_avg_sq"].flags.writeable = True
    opt.step()
    assert opt.state[a]["step"] == 2


OVERLAPS = {
    "its parameter": lambda a, b, opt, block: a.data,
    "its parameter, partly": lambda a, b, opt, block: block[3:11],
    "its parameter, backwards": lambda a, b, opt, block: block[0:8][::-1],
    "another parameter": lambda a, b, opt, block: b.data,
    "a buffer": lambda a, b, opt, block: opt.state[a]["exp_avg"],
    "another's buffer": lambda a, b, opt, block: opt.state[b]["exp_avg_sq"],
}


@in_child
@pytest.mark.parametrize("way", OVERLAPS)
@pytest.mark.parametrize("steady", [False, True])
def test_refuses_a_gradient_that_the_step_would_write(way, steady):
    block = np.arange(16.0)
    a = genesis.Parameter(block[:8], name="a")
    b = genesis.Parameter(np.ones(8), name="b")
    opt = Adam([a, b])
    for _ in range(1 + 2 * steady):
        a.grad, b.grad = np.ones(8), np.ones(8)
        opt.step()
    a.grad = OVERLAPS[way](a, b, opt, block)
    refused(opt.step, opt, "shares memory")
    refused(lambda: opt.step(max_norm=1.0), opt, "shares memory")
    a.grad = np.ones(8)
    opt.step()


@in_child
def test_gradients_may_share_memory_with_what_is_not_written():
    a, b, c = params(4, 4, 4)
    block = np.arange(5.0)
    opt = SGD([a, b, c], lr=0.5)
    for _ in range(2):
        a.grad, b.grad, c.grad = block[:4], block[1:], None
        before = values(a, b, c)
        opt.step()
        np.testing.assert_array_equal(a.data, before[0] - 0.5 * block[:4])
        np.testing.assert_array_equal(b.data, before[1] - 0.5 * block[1:])
        a.grad, b.grad = c.data, c.data  # c itself stands still
        before = values(a, b, c)
        opt.step()
        np.testing.assert_array_equal(a.data, before[0] - 0.5 * c.data)
        np.testing.assert_array_equal(b.data, before[1] - 0.5 * c.data)
        np.testing.assert_array_equal(c.data, before[2])


@in_child
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("partly", [False, True])
def test_refuses_parameters_that_came_to_share_memory(partly, steps):
    block = np.arange(12.0)
    a = genesis.Parameter(block[:8], name="a")
    (_, b) = params(8, 8)
    a.grad = np.ones(8)
    opt = SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    for _ in range(steps):
        opt.step()
    b.data = block[4:] if partly else a.data
    refused(opt.step, opt, "share")
    b.data = np.ones(8)
    opt.step()


@in_child
def test_guards_around_arrays_stay_as_they_are():
    """All tricks with headers at once, and nothing beside the arrays is written."""
    rng = np.random.default_rng(3)
    arrays = [guarded(rng.standard_normal(n)) for n in (5, 8, 1)]
    made = [genesis.Parameter(array) for array in arrays]
    opt = AdamW(made)
    for turn in range(20):
        for p in made:
            p.grad = rng.standard_normal(p.shape)
        array = arrays[turn % 3]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if turn % 4 == 1:
                array.dtype = np.float32
            elif turn % 4 == 2:
                array.flags.writeable = False
            elif turn % 4 == 3:
                array.shape = (1, array.size)
            if turn % 4:
                refused(opt.step, opt)
            array.flags.writeable = True
            array.dtype = np.float64
            array.shape = (array.size,)
        opt.step()
        for each in arrays:
            block = each.base
            while isinstance(block.base, np.ndarray):
                block = block.base
            assert (block[:64] == 0xAB).all()
            assert (block[-64:] == 0xAB).all()


# ---- 2: other threads ----


def beside(work, seconds=1.0):
    """Run `work` again and again in another thread; returns what ends it, and its errors."""
    ended, errors = threading.Event(), []

    def run():
        while not ended.is_set():
            try:
                work()
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()

    def end():
        ended.set()
        thread.join(60)
        assert not thread.is_alive()
        assert not errors, errors

    return end


@in_child
@pytest.mark.parametrize("many", [False, True])
def test_gradients_assigned_by_another_thread_during_a_step(many):
    """Arrays that large go back to the system at once: who reads them then is ended."""
    sizes = [20_000] * 60 if many else [1_200_000] * 2
    made = [genesis.Parameter(np.zeros(size)) for size in sizes]
    opt = SGD(made, lr=1.0)

    def assign():
        for p in made:
            p.grad = np.ones(p.shape)

    assign()
    opt.step()
    end = beside(assign)
    steps = 1
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        opt.step(max_norm=1e9) if steps % 3 == 0 else opt.step()
        steps += 1
    end()
    for p in made:
        np.testing.assert_array_equal(p.data, np.full(p.shape, -float(steps)))


@in_child
def test_gradients_dropped_by_another_thread_during_a_step():
    made = [genesis.Parameter(np.zeros(400_000)) for _ in range(4)]
    opt = SGD(made, lr=1.0)

    def assign():
        for p in made:
            p.grad = np.ones(p.shape)
        opt.zero_grad()

    end = beside(assign)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        opt.step()
    end()
    for p in made:
        assert len(np.unique(p.data)) == 1
        assert p.data[0] == int(p.data[0]) <= 0


@in_child
@pytest.mark.parametrize("what", ["data", "entries", "state"])
def test_arrays_replaced_by_another_thread_during_a_step(what):
    (p,) = params(600_000)
    opt = SGD([p], lr=0.0, momentum=0.9)
    opt.step()

    def replace():
        if what == "data":
            p.data = np.ones(p.shape)
        elif what == "entries":
            opt.state[p]["momentum_buffer"] = np.ones(p.shape)
        else:
            opt.state = {p: {"momentum_buffer": np.ones(p.shape)}}

    end = beside(replace)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        opt.step()
    end()
    assert (p.data == 1.0).all()


@in_child
def test_one_optimizer_in_two_threads_breaks_nothing():
    a, b = params(50_000, 10)
    opt = Adam([a, b])
    end = beside(opt.step)
    for turn in range(300):
        opt.step()
        if turn % 7 == 0:
            opt.param_groups[0]["lr"] = 1e-3 * (1 + turn % 3)
            a.grad = np.ones(50_000)
    end()
    opt.step()
    assert np.isfinite(a.data).all()


# ---- 3: complete or not begun ----

# What interrupts a step does not meet the formula. Rules with one buffer, two, and numbers beside it,
# and an optimizer that works tensor by tensor, of which test_per_tensor.py has more.
EVERY = [*THREE, Case("Muon", {"lr": 0.1})]


def subject(case, steps=2, dtype=np.float64):
    """An optimizer with two groups after some steps, always the same."""
    rng = np.random.default_rng(5)
    made = [genesis.Parameter(rng.standard_normal((4, 3)).astype(dtype)) for _ in range(3)]
    opt = case.make([{"params": made[:2]}, {"params": made[2:], "lr": 0.05}])
    for step in range(steps + 1):
        for p in made:
            p.grad = rng.standard_normal((4, 3)).astype(dtype)
        if step < steps:
            opt.step()
    return opt, made


def assert_whole(case, steps, call, kind, after_interruption=lambda opt: None):
    """Interrupt `call(opt)` at each of its moments: what there is, is as before or as after."""
    opt, _ = subject(case, steps)
    call(opt)
    after = picture(opt)
    opt, _ = subject(case, steps)
    before = picture(opt)
    moment, seen = 0, {"before": 0, "after": 0}
    while interrupted_at(lambda: call(opt), moment, kind):  # noqa: B023
        now = picture(opt)
        whole = same(now, before) or same(now, after)
        assert whole, f"half done at moment {moment}"
        after_interruption(opt)
        seen["after" if same(now, after) else "before"] += 1
        # A step that had not begun is tried again, later: often the plan is there already. The
        # first step is begun anew, so that each moment of making plans comes.
        if same(now, after) or steps == 0:
            opt, _ = subject(case, steps)
        moment += 1
    assert same(picture(opt), after), "what was interrupted before is not done right later"
    assert moment > 3
    return seen


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.id)
def test_an_exception_at_any_moment_of_a_step(case, steps):
    with watchdog():
        assert_whole(case, steps, lambda opt: opt.step(), Interrupted)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, KeyboardInterrupt) for case in EVERY if case.name != "ASGD"),
        *((EVERY[1], kind) for kind in (SystemExit, MemoryError)),
    ],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_any_exception_at_any_moment_of_a_clipped_step(case, kind):
    with watchdog():
        assert_whole(case, 1, lambda opt: opt.step(max_norm=0.1), kind)


@pytest.mark.parametrize("case", [EVERY[2], EVERY[-1]], ids=lambda case: case.name)
def test_an_exception_at_any_moment_of_a_scaled_step(case):
    def step(opt):
        genesis.amp.GradScaler(init_scale=4.0).step(opt)

    with watchdog():
        assert_whole(case, 1, step, Interrupted)


@pytest.mark.parametrize("case", [EVERY[1], EVERY[2]], ids=lambda case: case.name)
def test_an_exception_at_any_moment_of_a_threaded_step(
    case, monkeypatch, num_threads, small_chunks
):
    """No helper may write once the call has ended."""
    num_threads(3)
    with watchdog():
        assert_whole(case, 1, lambda opt: opt.step(), KeyboardInterrupt, later_is_the_same)


def later_is_the_same(opt):
    now = picture(opt)
    time.sleep(0.002)
    assert same(picture(opt), now), "something was written after the call had ended"


@pytest.mark.parametrize("case", [EVERY[0], EVERY[2], EVERY[-1]], ids=lambda case: case.name)
def test_an_exception_at_any_moment_of_load_state_dict(case):
    opt, _ = subject(case, 4)
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 0.625

    def load(opt):
        opt.load_state_dict(saved)

    opt, _ = subject(case, 1)
    rates = [group["lr"] for group in opt.param_groups]
    before = picture(opt)
    load(opt)
    after = picture(opt)
    opt, _ = subject(case, 1)
    moment = 0
    while interrupted_at(lambda: load(opt), moment):  # noqa: B023
        now, loaded = picture(opt), opt.param_groups[0]["lr"] == 0.625
        assert same(now, after if loaded else before), f"half loaded at moment {moment}"
        assert loaded or [group["lr"] for group in opt.param_groups] == rates
        if loaded:
            opt, _ = subject(case, 1)
        moment += 1
    assert same(picture(opt), after)
    assert moment > 20


@pytest.mark.parametrize("to_none", [True, False])
def test_an_exception_at_any_moment_of_zero_grad(to_none):
    case = EVERY[2]
    opt, made = subject(case, 1)
    before = picture(opt)
    given = [p.grad.copy() for p in made]
    moment = 0
    while interrupted_at(lambda: opt.zero_grad(to_none), moment):
        assert same(picture(opt), before)
        for p, grad in zip(made, given):
            if p.grad is not None:
                assert (p.grad == grad).all() or not p.grad.any()
            p.grad = grad.copy()
        opt.step(max_norm=0.0) if moment % 5 == 4 else None
        before = picture(opt)
        moment += 1
    assert all(p.grad is None or not p.grad.any() for p in made)


def test_an_exception_at_any_moment_of_clipping():
    (a, b) = params(3, 5)
    given = [a.grad.copy(), b.grad.copy()]
    genesis.nn.utils.clip_grad_norm_([a, b], 0.5)
    after = [a.grad.copy(), b.grad.copy()]

    def clip():
        genesis.nn.utils.clip_grad_norm_([a, b], 0.5)

    moment = 0
    a.grad, b.grad = (grad.copy() for grad in given)
    while interrupted_at(clip, moment):
        now = [a.grad, b.grad]
        undone = all(np.array_equal(x, y) for x, y in zip(now, given))
        done = all(np.array_equal(x, y) for x, y in zip(now, after))
        assert undone or done, f"half clipped at moment {moment}"
        a.grad, b.grad = (grad.copy() for grad in given)
        moment += 1
    np.testing.assert_array_equal(a.grad, after[0])
    assert moment > 5


def test_an_exception_at_any_moment_of_save(tmp_path):
    path = tmp_path / "model.ckpt"
    old, new = {"weight": np.arange(5.0)}, {"weight": np.arange(7.0)}
    genesis.save(old, path)
    moment = 0
    while interrupted_at(lambda: genesis.save(new, path), moment):
        found = genesis.load(path)["weight"]
        assert np.array_equal(found, old["weight"]) or np.array_equal(found, new["weight"])
        genesis.save(old, path)
        moment += 1
    np.testing.assert_array_equal(genesis.load(path)["weight"], new["weight"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.ckpt"]
    assert moment > 50


# ---- 3: threads that do not start ----


@in_child
def test_helpers_that_cannot_start_are_not_needed(num_threads, monkeypatch, small_chunks):
    """The caller does their work, and what was meant for them does not pile up."""
    num_threads(1)
    expected, _ = subject(EVERY[2], 2)
    expected.step()
    expected = picture(expected)
    num_threads(4)

    def start(work, args):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threads._thread, "start_new_thread", start)
        opt, _ = subject(EVERY[2], 2)
        opt.step()
        assert same(picture(opt), expected)
        opt.step().step()
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        for _ in range(300):
            opt.step()
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
        grown = sum(entry.size_diff for entry in after.compare_to(before, "filename"))
        assert grown < 40_000  # a job left over takes 400 bytes or more, and here are 900 or more
    for _ in range(3):  # and once threads can be had again, all is well
        opt, _ = subject(EVERY[2], 2)
        opt.step()
        assert same(picture(opt), expected)


@in_child
def test_the_helpers_that_do_start_are_enough(num_threads, monkeypatch, small_chunks):
    num_threads(1)
    expected, _ = subject(EVERY[1], 3)
    expected.step()
    expected = picture(expected)
    num_threads(6)
    start, started = threads._thread.start_new_thread, []

    def limited(work, args):
        if len(started) == 1:
            raise RuntimeError("can't start new thread")
        started.append(work)
        return start(work, args)

    monkeypatch.setattr(threads._thread, "start_new_thread", limited)
    for _ in range(20):
        opt, _ = subject(EVERY[1], 3)
        opt.step()
        assert same(picture(opt), expected)
    assert len(started) == 1
    assert threads.MINIMUM_BYTES == 1
    assert cpu.CHUNK == 7


def test_a_gradient_that_fits_no_more_can_be_zeroed():
    a = genesis.Parameter(np.ones((2, 3)))
    a.grad = grad = np.ones((2, 3))
    opt = Adam([a])
    opt.step()
    a.data.shape = (3, 2)
    opt.zero_grad(set_to_none=False)
    assert a.grad is grad
    assert not grad.any()
    refused(opt.step, opt, "shape")
    opt.zero_grad()
    assert a.grad is None


def test_a_parameter_without_gradient_may_be_of_any_type_meanwhile():
    a, b = params(3, 4)
    opt = Adam([a, b])
    a.grad = None
    a.data.dtype = np.int64
    opt.step()
    assert opt.state[b]["step"] == 1
    a.data.dtype = np.float64
    a.grad = np.ones(3)
    opt.step()
    assert (opt.state[a]["step"], opt.state[b]["step"]) == (1, 2)
