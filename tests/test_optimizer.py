"""What all optimizers promise: groups, state, snapshots, layouts of memory, and what they refuse."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
from cases import CASES, EACH_TYPE, ONE_EACH
from devices import on_cpu_only
from reference import Reference

import genesis
from genesis.kernels import cpu
from genesis.optim import SGD, Adam, AdamW, Optimizer, RMSprop

pytestmark = on_cpu_only

each_optimizer = pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.id)
BY_ITSELF = [
    case for case in ONE_EACH if not getattr(genesis.optim, case.name)._recipe.sums_over_all
]
"""Optimizers that update a tensor in the same way whatever others there are."""
each_type = pytest.mark.parametrize(
    ("case", "dtype"), EACH_TYPE, ids=lambda value: getattr(value, "id", value)
)


def parameters(*shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [genesis.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def give_gradients(params, seed=1):
    rng = np.random.default_rng(seed)
    for p in params:
        p.grad = rng.standard_normal(p.shape).astype(p.dtype)


def run(opt, params, steps=3, seed=1):
    for step in range(steps):
        give_gradients(params, seed + step)
        opt.step()
    return [p.data.copy() for p in params]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_state(left, right):
    assert left["param_groups"] == right["param_groups"]
    assert left["state"].keys() == right["state"].keys()
    for number, entries in left["state"].items():
        assert entries.keys() == right["state"][number].keys()
        for name, value in entries.items():
            np.testing.assert_array_equal(value, right["state"][number][name])


# ---- the step ----


def test_step_returns_the_optimizer_or_the_loss():
    (p,) = parameters((3,))
    opt = SGD([p], lr=0.1)
    calls = []

    def closure():
        calls.append(1)
        p.grad = np.ones(3)
        return 7.5

    assert opt.step(closure) == 7.5
    assert len(calls) == 1
    before = p.data.copy()
    assert opt.step() is opt
    np.testing.assert_allclose(p.data, before - 0.1)
    assert opt.step().clear_grad() is None
    assert p.grad is None


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_state_of_all_parameters_lies_side_by_side(loaded, state_dtype):
    """So a step goes through memory from one end to the other; each buffer is an array of its own."""
    params = parameters((3, 4), (5,), (0,), (2, 3), (), (70,), dtype=np.float32)
    params[3] = genesis.Parameter(np.asfortranarray(params[3].data))
    opt = AdamW(params, state_dtype=state_dtype)
    run(opt, params, 1)
    if loaded:
        opt.load_state_dict(opt.state_dict())
    buffers = [opt.state[p][name] for p in params if p.size for name in ("exp_avg", "exp_avg_sq")]
    ends = []
    for array in buffers:
        assert array.flags.writeable
        assert array.base is buffers[0].base
        assert array.ctypes.data % 64 == 0
        ends.append((array.ctypes.data, array.ctypes.data + array.nbytes))
    for (_, end), (start, _) in pairwise(ends):
        assert 0 <= start - end < 64
    assert ends[-1][1] - ends[0][0] < buffers[0].base.nbytes
    assert opt.state[params[3]]["exp_avg"].flags.f_contiguous


def test_a_buffer_in_anothers_place_is_used_as_it_is():
    params = parameters((3, 4), (5,), dtype=np.float32)
    opt, other = AdamW(params), AdamW(copy.deepcopy(params))
    for each in opt, other:
        run(each, each.param_groups[0]["params"], 1)
    own = opt.state[params[0]]["exp_avg"] = opt.state[params[0]]["exp_avg"].copy()
    for each in opt, other:
        run(each, each.param_groups[0]["params"], 1, seed=2)
    assert opt.state[params[0]]["exp_avg"] is own
    assert_same_state(opt.state_dict(), other.state_dict())


def test_memory_for_what_is_refused_is_not_asked_for():
    params = parameters((3,), (2,))
    opt = AdamW(params)
    run(opt, params, 1)
    saved = opt.state_dict()
    saved["state"][1]["exp_avg"] = np.broadcast_to(np.zeros(()), (1 << 45,))
    with pytest.raises(ValueError, match="has shape"):
        opt.load_state_dict(saved)


@each_optimizer
def test_parameters_without_gradient_are_skipped_and_get_no_state(case):
    p, q = parameters((3,), (3,))
    opt = case.make([p, q])
    p.grad = np.ones(3)
    before = q.data.copy()
    opt.step()
    np.testing.assert_array_equal(q.data, before)
    assert list(opt.state) == ([p] if opt.state else [])
    assert opt.state.get(q) is None


def test_parameters_keep_their_own_step_count():
    p, q = parameters((3,), (3,))
    opt = Adam([p, q])
    p.grad = np.ones(3)
    opt.step().step()
    q.grad = np.ones(3)
    opt.step()
    p.grad = None
    opt.step()
    assert (opt.state[p]["step"], opt.state[q]["step"]) == (3, 2)
    assert type(opt.state[p]["step"]) is int


@pytest.mark.parametrize("case", BY_ITSELF, ids=lambda case: case.id)
def test_groups_override_hyper_parameters(case):
    p, q = parameters((3,), (3,))
    alone = copy.deepcopy([p, q])
    opt = case.make([{"params": [p]}, {"params": q, "lr": 0.5, "maximize": True}])
    others = [case.make(alone[:1]), case.make(alone[1:], lr=0.5, maximize=True)]
    for step in range(3):
        for params in ([p, q], alone):
            give_gradients(params, step)
        opt.step()
        for other in others:
            other.step()
    assert_same([p.data, q.data], [x.data for x in alone])


def test_hyper_parameters_may_change_between_steps_and_compile_nothing():
    params = parameters((3, 4), (5,))
    opt = AdamW(params)
    reference = Reference("AdamW", [p.data for p in params])
    group = opt.param_groups[0]
    for step in range(6):
        give_gradients(params, step)
        opt.step()
        reference.step([p.grad for p in params])
        if step == 0:
            compiled = cpu.updating.compiled.cache_info().misses
        group["lr"] = 0.1 / (step + 1)
        group["betas"] = (0.8 + step / 100, 0.9)
        group["weight_decay"] = step / 10
        group["eps"] = 10.0**-step
        reference.hyper = {k: group[k] for k in ("lr", "betas", "weight_decay", "eps")}
    assert cpu.updating.compiled.cache_info().misses == compiled
    for p, expected in zip(params, reference.params):
        np.testing.assert_allclose(p.data, expected, rtol=1e-12)


def test_a_changed_learning_rate_is_the_one_used():
    (p,) = parameters((3,))
    p.grad = np.ones(3)
    opt = SGD([p], lr=0.1)
    opt.step()
    before = p.data.copy()
    opt.param_groups[0]["lr"] = np.float32(0.5)
    opt.step()
    np.testing.assert_array_equal(p.data, before - 0.5)


def test_switches_may_be_turned_between_steps():
    params = parameters((3,))
    opt = SGD(params, lr=0.1)
    run(opt, params)
    opt.param_groups[0]["momentum"] = 0.9
    run(opt, params)
    assert list(opt.state[params[0]]) == ["momentum_buffer"]
    opt = Adam(params)
    run(opt, params)
    opt.param_groups[0]["amsgrad"] = True
    run(opt, params)
    assert opt.state[params[0]]["step"] == 6
    assert "max_exp_avg_sq" in opt.state[params[0]]


def test_closure_errors_pass_through_and_change_nothing():
    (p,) = parameters((3,))
    opt = Adam([p])
    p.grad = np.ones(3)
    before = p.data.copy()
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    np.testing.assert_array_equal(p.data, before)
    assert not opt.state


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_nan_and_inf_pass_through(case, value):
    (p,) = parameters((4,), dtype=np.float32)
    opt = case.make([p])
    reference = Reference(case.name, [p.data], **case.hyper)
    for _ in range(2):
        p.grad = np.array([1, value, 2, 3], np.float32)
        opt.step()
        with np.errstate(all="ignore"):
            reference.step([p.grad])
    np.testing.assert_array_equal(np.isfinite(p.data), np.isfinite(reference.params[0]))
    if case.name not in ("DoG", "LDoG", "NovoGrad"):  # where all moves by a norm of all
        assert np.isfinite(p.data[[0, 2, 3]]).all()


# ---- memory ----


def layouts(array):
    """Arrays of equal values that lie in memory in every way."""
    strided = np.zeros((*array.shape[:-1], array.shape[-1] * 2), array.dtype)[..., ::2]
    reverse = np.zeros(array.shape, array.dtype)[::-1]
    bytes_off = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    fortran = np.zeros(array.shape, array.dtype, order="F")
    rows = np.zeros((array.shape[0] * 2, array.shape[1]), array.dtype)[::2]
    both = np.zeros(array.shape, array.dtype, order="F")[:, ::-1]
    for target in (strided, reverse, bytes_off, fortran, rows, both):
        target[...] = array
        yield target


@each_type
def test_any_memory_layout_gives_the_same_result(case, dtype):
    rng = np.random.default_rng(0)
    data, *grads = (rng.standard_normal((5, 6)).astype(dtype) for _ in range(4))
    variants = [genesis.Parameter(array) for array in layouts(data)]
    variants += [genesis.Parameter(data.copy()) for _ in variants]
    # As many of them, since some optimizers sum over all tensors.
    plain = [genesis.Parameter(data.copy()) for _ in variants]
    opt = case.make(plain)
    for grad in grads:
        for p in plain:
            p.grad = grad
        opt.step()
    opt = case.make(variants)
    for grad in grads:
        grad_layouts = list(layouts(grad))
        for i, p in enumerate(variants):
            p.grad = grad_layouts[(i + i // len(grad_layouts)) % len(grad_layouts)]
        opt.step()
    for p in variants:
        np.testing.assert_array_equal(p.data, plain[0].data)


def test_gradients_updated_in_place_in_a_strided_array_are_seen():
    p, q = parameters((3, 4), (3, 4))
    q.data[...] = p.data
    opt = SGD([p, q], lr=0.1)
    p.grad = np.zeros((3, 4))
    q.grad = np.zeros((4, 3)).T
    for step in range(3):
        p.grad[...] = step
        q.grad[...] = step
        opt.step()
    assert_same([p.data], [q.data])


def test_new_gradient_arrays_each_step_are_seen():
    many = parameters(*[(7,)] * 50)
    reference = copy.deepcopy(many)
    opt = Adam(many)
    others = [Adam([p]) for p in reference]
    for step in range(6):
        for i, (p, r) in enumerate(zip(many, reference)):
            if (step + i) % 3:
                p.grad = np.full(7, float(step * i))
            elif step % 2:
                p.grad = None
            r.grad = None if p.grad is None else p.grad.copy()
        opt.step()
        for other, r in zip(others, reference):
            if r.grad is not None:
                other.step()
    assert_same([p.data for p in many], [r.data for r in reference])


def test_another_data_array_is_seen():
    (p,) = parameters((3,))
    opt = SGD([p], lr=1)
    p.grad = np.ones(3)
    opt.step()
    old, new = p.data, np.zeros(3)
    kept = old.copy()
    p.data = new
    opt.step()
    np.testing.assert_array_equal(new, -np.ones(3))
    np.testing.assert_array_equal(old, kept)


def test_no_gradient_is_kept_alive():
    import weakref

    (p,) = parameters((3,))
    opt = Adam([p])
    p.grad = np.ones(3)
    gone = weakref.ref(p.grad)
    opt.step()
    p.grad = None
    assert gone() is None


# ---- state ----


def test_state_may_be_edited():
    (p,) = parameters((3,))
    p.grad = np.ones(3)
    opt = Adam([p], lr=0.1)
    opt.step().step()
    fresh = genesis.Parameter(p.data.copy())
    fresh.grad = np.ones(3)
    Adam([fresh], lr=0.1).step()
    opt.state[p]["step"] = 0
    opt.state[p]["exp_avg"] = np.zeros(3)
    opt.state[p].update(exp_avg_sq=np.zeros(3))
    opt.step()
    np.testing.assert_array_equal(p.data, fresh.data)
    assert opt.state[p]["step"] == 1
    opt.state.clear()
    opt.step()
    assert opt.state[p]["step"] == 1


def test_state_entries_read_like_a_dict():
    (p,) = parameters((3,))
    p.grad = np.ones(3)
    opt = Adam([p])
    opt.step()
    entries = opt.state[p]
    for steps in (2, 3):
        opt.step()
        readings = [
            entries["step"],
            entries.get("step"),
            dict(entries)["step"],
            {**entries}["step"],
            dict(entries.items())["step"],
            next(iter(entries.values())),
            copy.copy(entries)["step"],
            copy.deepcopy(entries)["step"],
            pickle.loads(pickle.dumps(entries))["step"],
            (entries | {})["step"],
            entries.copy()["step"],
        ]
        assert readings == [steps] * len(readings)
        assert f"'step': {steps}" in repr(entries)
    assert entries.pop("step") == 3
    assert "step" not in entries
    assert opt.state[parameters((1,))[0]] == {}


@each_optimizer
def test_state_dict_is_a_snapshot_in_torchs_layout(case):
    params = parameters((3, 4), (5,))
    opt = case.make([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    run(opt, params)
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    assert saved["param_groups"][1]["lr"] == 0.5
    run(opt, params)
    assert_same_state(saved, kept)
    for entries in saved["state"].values():
        assert type(entries.get("step", 0)) is int
        assert all(type(value) in (int, float, np.ndarray) for value in entries.values())


@each_type
def test_a_resumed_run_is_the_same_run(case, dtype):
    params = parameters((3, 4), (5,), (), (0,), dtype=dtype)
    opt = case.make(params)
    run(opt, params, 4)
    resumed = [genesis.Parameter(p.data.copy()) for p in params]
    other = case.make(resumed, lr=77)
    other.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    assert_same(run(opt, params, 4, seed=9), run(other, resumed, 4, seed=9))
    assert_same_state(opt.state_dict(), other.state_dict())


def test_load_state_dict_copies_and_keeps_dtypes():
    (p,) = parameters((3,), dtype=np.float16)
    opt = Adam([p])
    run(opt, [p], 1)
    saved = opt.state_dict()
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].astype(np.float32)
    opt.load_state_dict(saved)
    assert opt.state[p]["exp_avg"] is not saved["state"][0]["exp_avg"]
    kept = saved["state"][0]["exp_avg"].copy()
    run(opt, [p], 1)
    assert opt.state[p]["exp_avg"].dtype == np.float32
    np.testing.assert_array_equal(saved["state"][0]["exp_avg"], kept)
    assert opt.state[p]["step"] == 2


@each_optimizer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_pickle_and_deepcopy(case, duplicate):
    params = parameters((3, 4), (5,))
    opt = case.make(params)
    run(opt, params)
    other = duplicate(opt)
    others = other.param_groups[0]["params"]
    assert others[0] is not params[0]
    assert_same(run(opt, params), run(other, others))
    assert_same_state(opt.state_dict(), other.state_dict())
    assert repr(opt) == repr(other)


def test_a_hundred_tensors_in_one_group_or_a_hundred_groups():
    shapes = [(i % 7, i % 11 + 1) for i in range(100)]
    one, many, backwards = (parameters(*shapes, dtype=np.float32) for _ in range(3))
    results = [
        run(AdamW(one), one),
        run(AdamW([{"params": [p]} for p in many]), many),
        run(AdamW(backwards[::-1]), backwards),
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


# ---- groups ----


def test_params_in_every_form():
    p, q = parameters((3,), (4,))
    for given in ([p, q], (p, q), iter([p, q]), (x for x in (p, q)), {1: p, 2: q}.values()):
        assert SGD(given, lr=1).param_groups[0]["params"] == [p, q]
    for given in ([("a", p), ("b", q)], {"a": p, "b": q}.items()):
        group = SGD(given, lr=1).param_groups[0]
        assert group["params"] == [p, q]
        assert group["param_names"] == ["a", "b"]
    groups = SGD(({"params": x} for x in (p, iter([q]))), lr=1).param_groups
    assert [group["params"] for group in groups] == [[p], [q]]
    named = SGD([{"params": [("a", p)]}, {"params": [("b", q)]}], lr=1)
    assert named.state_dict()["param_groups"][1]["param_names"] == ["b"]


def test_the_users_group_dict_is_left_alone():
    (p,) = parameters((3,))
    group = {"params": (p,), "lr": 2}
    opt = SGD([group], lr=1)
    assert group == {"params": (p,), "lr": 2}
    assert opt.param_groups[0]["lr"] == 2
    assert opt.param_groups[0]["params"][0].data is p.data


def test_add_param_group():
    p, q = parameters((3,), (4,))
    opt = Adam([p])
    run(opt, [p])
    opt.add_param_group({"params": q, "lr": 0.5})
    run(opt, [p, q])
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    assert [opt.state[x]["step"] for x in (p, q)] == [6, 3]


def test_zero_grad():
    p, q = parameters((3,), (4,))
    opt = Adam([p, q])
    p.grad = kept = np.ones(3)
    opt.zero_grad(set_to_none=False)
    assert p.grad is kept
    np.testing.assert_array_equal(kept, np.zeros(3))
    assert q.grad is None
    p.grad = np.broadcast_to(1.0, 3)
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(p.grad, np.zeros(3))
    opt.zero_grad()
    assert p.grad is None


def test_str_is_torchs():
    (p,) = parameters((3,))
    assert str(SGD([p], lr=0.1)) == (
        "SGD (\nParameter Group 0\n    dampening: 0\n    lr: 0.1\n    maximize: False\n"
        "    momentum: 0\n    nesterov: False\n    weight_decay: 0\n)"
    )


# ---- what is refused ----

BAD_HYPER = [
    (SGD, {"lr": -1}, "Invalid learning rate: -1"),
    (SGD, {"lr": float("nan")}, "Invalid learning rate: nan"),
    (SGD, {"lr": "0.1"}, "expected a .*number"),
    (SGD, {"lr": None}, "expected a .*number"),
    (SGD, {"lr": 1, "momentum": -0.1}, "Invalid momentum"),
    (SGD, {"lr": 1, "momentum": float("nan")}, "Invalid momentum"),
    (SGD, {"lr": 1, "dampening": float("nan")}, "Invalid dampening"),
    (SGD, {"lr": 1, "weight_decay": -1}, "Invalid weight_decay"),
    (SGD, {"lr": 1, "nesterov": True}, "Nesterov momentum requires"),
    (SGD, {"lr": 1, "nesterov": True, "momentum": 0.9, "dampening": 0.1}, "Nesterov"),
    (SGD, {"lr": 1, "nesterov": "yes"}, "expected True or False"),
    (SGD, {"lr": 1, "maximize": 1}, "expected True or False"),
    *(
        (optimizer, hyper, said)
        for optimizer in (Adam, AdamW)
        for hyper, said in [
            ({"lr": -1}, "Invalid learning rate"),
            ({"eps": -1e-8}, "Invalid epsilon"),
            ({"eps": float("nan")}, "Invalid epsilon"),
            ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
            ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1"),
            ({"betas": (0.9, float("nan"))}, "Invalid beta parameter at index 1"),
            ({"betas": 0.9}, "Invalid betas"),
            ({"betas": (0.9,)}, "Invalid betas"),
            ({"weight_decay": -1}, "Invalid weight_decay"),
            ({"amsgrad": None}, "expected True or False"),
        ]
    ),
    (RMSprop, {"lr": -1}, "Invalid learning rate"),
    (RMSprop, {"alpha": -1}, "Invalid alpha"),
    (RMSprop, {"alpha": 1.1}, r"in \[0, 1\]"),
    (RMSprop, {"eps": -1}, "Invalid epsilon"),
    (RMSprop, {"momentum": -1}, "Invalid momentum"),
    (RMSprop, {"weight_decay": float("nan")}, "Invalid weight_decay"),
    (RMSprop, {"centered": 2}, "expected True or False"),
]


@pytest.mark.parametrize(("optimizer", "hyper", "said"), BAD_HYPER)
def test_refuses_impossible_hyper_parameters(optimizer, hyper, said):
    p, q = parameters((3,), (3,))
    with pytest.raises((ValueError, TypeError), match=said):
        optimizer([p], **hyper)
    good = {"lr": 1}
    with pytest.raises((ValueError, TypeError), match=said):
        optimizer([{"params": p}, {"params": q, **hyper}], **good)
    opt = optimizer([p], **good)
    with pytest.raises((ValueError, TypeError), match=said):
        opt.add_param_group({"params": q, **hyper})
    assert len(opt.param_groups) == 1


def test_refuses_params_that_are_none():
    (p,) = parameters((3,))
    for bad, error, said in [
        ([], ValueError, "empty parameter list"),
        (iter([]), ValueError, "empty parameter list"),
        (p, TypeError, r"\[parameter\]"),
        (p.data, TypeError, r"\[array\]"),
        ({p}, TypeError, "Please use a list"),
        ([{"params": {p}}], TypeError, "Please use a list"),
        ({"params": [p], "lr": 3}, TypeError, r"\[group\]"),
        (3, TypeError, "iterable of Parameters"),
        ([{"params": 3}], TypeError, "tree of arrays or Parameters"),
        ([p, {"params": []}], TypeError, "must be a dict"),
        ([{"params": [p]}, p], TypeError, "must be a dict"),
        ([{"lr": 3}], ValueError, "must have 'params'"),
        ([("a", p), parameters((3,))[0]], ValueError, "with/without names"),
        ([("a", 3)], TypeError, "parameter 'a' is a int, 3"),
    ]:
        with pytest.raises(error, match=said):
            SGD(bad, lr=0.1)


def test_refuses_groups_that_are_only_partly_named():
    p, q = parameters((3,), (3,))
    opt = SGD([("a", p)], lr=0.1)
    with pytest.raises(ValueError, match="cannot add param group without names"):
        opt.add_param_group({"params": q})
    opt = SGD([p], lr=0.1)
    with pytest.raises(ValueError, match="cannot add param group with names"):
        opt.add_param_group({"params": [("b", q)]})


def test_a_duplicate_within_a_group_is_kept_once():
    p, q = parameters((3,), (3,))
    with pytest.warns(UserWarning, match="duplicate parameters") as caught:
        opt = SGD([p, q, p], lr=0.1)
    assert caught[0].filename == __file__
    assert opt.param_groups[0]["params"] == [p, q]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = SGD([("a", p), ("b", q), ("a", p)], lr=0.1)
    assert opt.param_groups[0]["param_names"] == ["a", "b"]


def test_refuses_a_parameter_in_two_groups():
    p, q = parameters((3,), (3,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        SGD([{"params": [p, q]}, {"params": q}], lr=0.1)


def test_refuses_parameters_that_share_memory():
    array = np.ones((4, 6))
    p = genesis.Parameter(array, name="whole")
    for view in (array, array[1:], array.T, array[::2, ::3], array.ravel()[5:9]):
        q = genesis.Parameter(view)
        with pytest.raises(
            ValueError, match=r"parameter 0 \('whole'\) and parameter 1 share memory"
        ):
            SGD([p, q], lr=0.1)
        opt = SGD([p], lr=0.1)
        with pytest.raises(ValueError, match="share memory"):
            opt.add_param_group({"params": q})
    even, odd = genesis.Parameter(array[:, ::2]), genesis.Parameter(array[:, 1::2])
    SGD([even, odd, genesis.Parameter(np.ones(0))], lr=0.1)


def test_refuses_before_anything_is_written():
    p, q, r = parameters((3,), (3,), (3,))
    opt = Adam([{"params": p}, {"params": q}, {"params": r}])
    run(opt, [p, q])
    give_gradients([p, q, r])
    before, saved = [x.data.copy() for x in (p, q, r)], opt.state_dict()
    for name, bad, error in [
        ("lr", "1", TypeError),
        ("lr", None, TypeError),
        ("betas", 0.9, ValueError),
        ("eps", np.ones(2), TypeError),
        ("lr", 1j, TypeError),
    ]:
        kept = opt.param_groups[2]
        opt.param_groups[2] = {**kept, name: bad}
        with pytest.raises(error, match=r"Invalid .* \(in param group 2\)"):
            opt.step()
        opt.param_groups[2] = kept
        assert_same([x.data for x in (p, q, r)], before)
        assert_same_state(opt.state_dict(), saved)
    opt.step()
    assert opt.state[p]["step"] == 4
    assert opt.state[r]["step"] == 1


def test_running_out_of_memory_changes_nothing(monkeypatch):
    p, q = parameters((3,), (3,))
    opt = Adam([p, q])
    give_gradients([p, q])
    before = [p.data.copy(), q.data.copy()]
    made = []

    def full(value, like, dtype, block):
        if len(made) == 3:
            raise MemoryError
        made.append(np.full(like.shape, value, like.dtype))
        return made[-1]

    monkeypatch.setattr("genesis.buffers.full", full)
    with pytest.raises(MemoryError):
        opt.step()
    monkeypatch.undo()
    assert not opt.state
    assert_same([p.data, q.data], before)
    opt.step()
    assert opt.state[p]["step"] == 1


def change(saved, edit):
    saved = copy.deepcopy(saved)
    edit(saved)
    return saved


BAD_STATE = {
    "no dict": (lambda s: s.clear(), "'state' and 'param_groups'"),
    "fewer groups": (
        lambda s: s["param_groups"].pop(),
        "different number .* Make the groups as they",
    ),
    "more parameters": (
        lambda s: s["param_groups"][0]["params"].append(9),
        "doesn't match the size",
    ),
    "no lr": (lambda s: s["param_groups"][0].pop("lr"), r"has no \['lr'\]"),
    "bad lr": (lambda s: s["param_groups"][1].update(lr=-1), "Invalid learning rate"),
    "shape": (lambda s: s["state"][1].update(exp_avg=np.ones(4)), r"\(4,\).*\(5,\)"),
    "missing": (lambda s: s["state"][0].pop("exp_avg"), r"has no \['exp_avg'\]"),
    "no step": (lambda s: s["state"][0].pop("step"), r"has no \['step'\]"),
    "unknown": (lambda s: s["state"][0].update(velocity=np.ones(3)), "velocity"),
    "negative step": (lambda s: s["state"][0].update(step=-1), "count of updates"),
    "half step": (lambda s: s["state"][0].update(step=1.5), "count of updates"),
    "type": (lambda s: s["state"][0].update(exp_avg=np.ones((3, 4), int)), "int64"),
    "no array": (lambda s: s["state"][0].update(exp_avg=[1.0]), "list"),
    "nobody's": (lambda s: s["state"].update({7: s["state"][0]}), "7, which no group names"),
}


@pytest.mark.parametrize(("edit", "said"), BAD_STATE.values(), ids=BAD_STATE)
def test_load_state_dict_refuses_what_does_not_fit(edit, said):
    params = parameters((3, 4), (5,))
    opt = Adam([{"params": params[:1]}, {"params": params[1:]}])
    run(opt, params)
    saved = opt.state_dict()
    with pytest.raises((ValueError, TypeError), match=said):
        opt.load_state_dict(change(saved, edit))
    assert_same_state(opt.state_dict(), saved)


def test_load_state_dict_refuses_another_optimizers_state():
    """Of those that torch has: beyond them several keep the same under the same names, as Adam does."""
    params = parameters((3, 4))
    saved = [case.make(params) for case in ONE_EACH if case.peer == "torch"]
    for opt in saved:
        run(opt, params)
    for opt in saved:
        for other in saved:
            if type(opt) is not type(other) and {type(opt), type(other)} != {Adam, AdamW}:
                with pytest.raises(ValueError, match="another optimizer"):
                    opt.load_state_dict(other.state_dict())


def test_the_base_class_says_what_a_subclass_must_define():
    with pytest.raises(NotImplementedError, match="Optimizer must define _step"):
        Optimizer(parameters((3,)), {"lr": 1}).step()


def test_zero_grad_after_a_step_writes_the_same_arrays():
    params = parameters((3, 4), (5,), (2, 2), (3,))
    opt = Adam([{"params": params[:2]}, {"params": params[2:]}])
    give_gradients(params)
    params[2].grad = np.ones((4, 2))[::2]  # does not lie flat
    params[3].grad = np.broadcast_to(1.0, 3)  # cannot be written
    for _ in range(2):
        opt.step()
        kept = [p.grad for p in params]
        for grad in kept[:3]:
            grad += np.nan  # zeros, whatever was there
        opt.zero_grad(set_to_none=False)
        for p, grad in zip(params[:3], kept):
            assert p.grad is grad
            np.testing.assert_array_equal(grad, np.zeros(p.shape))
        np.testing.assert_array_equal(params[3].grad, np.zeros(3))
        assert params[3].grad is not kept[3] or kept[3].flags.writeable
    frozen = np.ones(5)
    params[1].grad = frozen
    opt.step()
    frozen.flags.writeable = False  # noticed by nobody but the memory
    params[1].grad = frozen.copy()
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(frozen, np.ones(5))
