"""Sums over all tensors, and numbers that are state: against plain NumPy, and against themselves."""

import copy
import math
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter
from interrupts import Moments

import genesis
from genesis import RuleError, mean, overall, per_tensor, total

SHAPES = [(5, 3), (), (4000,), (0,), (7,)]


@genesis.rule
def Both(
    param,
    grad,
    s,
    v=per_tensor("v0"),
    d=overall("d0"),
    num=overall(),
    *,
    lr=0.5,
    beta=0.9,
    v0=0.5,
    d0=0.1,
):
    """Every kind of number at once: what is summed depends on those kept, and these on the sums."""
    s = beta * s + d * grad / v
    v = beta * v + total(grad * grad)
    num = beta * num + total(grad * s, over="all") + mean(param, over="all")
    d = max(d, abs(num) / (1 + total(abs(s), over="all")))
    return param - lr * d * s / math.sqrt(v), s, v, d, num


class Expected:
    """The same in float64, of all tensors."""

    def __init__(self, first, beta=0.9, lr=0.5):
        self.x = [x.astype(np.float64) for x in first]
        self.s, self.v, self.d, self.num = [0 * x for x in self.x], [0.5] * len(first), 0.1, 0.0
        self.beta, self.lr = beta, lr

    def step(self, gradients):
        """None skips a tensor."""
        rows = [i for i, g in enumerate(gradients) if g is not None]
        g = {i: gradients[i].astype(np.float64) for i in rows}
        for i in rows:
            self.s[i] = self.beta * self.s[i] + self.d * g[i] / self.v[i]
            self.v[i] = self.beta * self.v[i] + (g[i] ** 2).sum()
        count = sum(g[i].size for i in rows)
        along = sum((g[i] * self.s[i]).sum() for i in rows)
        self.num = self.beta * self.num + along + sum(self.x[i].sum() for i in rows) / count
        self.d = max(self.d, abs(self.num) / (1 + sum(np.abs(self.s[i]).sum() for i in rows)))
        for i in rows:
            self.x[i] = self.x[i] - self.lr * self.d * self.s[i] / math.sqrt(self.v[i])


def values(seed, dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def assign(params, gradients):
    for p, gradient in zip(params, gradients):
        p.grad = None if gradient is None else on_device(gradient)


def numbers(opt, p):
    return {name: opt.state[p][name] for name in ("v", "d", "num")}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_follow_from_sums_and_go_on(dtype):
    params, expected = [parameter(value) for value in values(0, dtype)], Expected(values(0, dtype))
    opt = Both([{"params": params[:2]}, {"params": params[2:]}])
    rtol = 1e-11 if dtype == np.float64 else 2e-5
    for step in range(1, 5):
        gradients = values(step, dtype)
        if step == 3:  # only what has a gradient counts in sums
            gradients[1] = None
        if step == 4:
            gradients[0] = gradients[3] = gradients[4] = None
        assign(params, gradients)
        opt.step()
        expected.step(gradients)
        for i, p in enumerate(params):
            found = numbers(opt, p)
            np.testing.assert_allclose([found["d"], found["num"]], [expected.d, expected.num], rtol)
            np.testing.assert_allclose(p.numpy(), expected.x[i], rtol, atol=rtol)
            if p.size:
                np.testing.assert_allclose(found["v"], expected.v[i], rtol)
    assert all(type(value) is float for value in found.values())


def test_types_masters_and_counts_are_summed_together():
    """Which are buckets of their own, in an order that is not that of the parameters."""
    types = [np.float32, np.float64, np.float32, np.float64, BFLOAT16]
    first = [value.astype(dtype) for value, dtype in zip(values(0), types)]
    params, expected = [parameter(value) for value in first], Expected(first)
    opt = Both(params, master_weights=True)
    for step in range(1, 4):
        gradients = [value.astype(dtype) for value, dtype in zip(values(step), types)]
        if step == 1:
            gradients[1] = None  # it counts one update less from now on
        assign(params, gradients)
        opt.step()
        expected.step(gradients)
    np.testing.assert_allclose(opt.state[params[0]]["d"], expected.d, rtol=1e-5)
    for i, p in enumerate(params[:4]):
        np.testing.assert_allclose(p.numpy(), expected.x[i], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        on_host(opt.state[params[4]]["master"]), expected.x[4], rtol=2e-5, atol=2e-5
    )


@on_cpu_only
def test_the_bits_do_not_depend_on_threads_or_grouping(small_chunks):
    shapes = [(300, 50), (7_000,), (7,), (3, 1638), (100,)]
    first = values(0, np.float32, shapes)
    found = []
    before = genesis.get_num_threads()
    try:
        for threads, groups in ((1, [5]), (4, [5]), (3, [1, 1, 2, 1]), (2, [2, 3])):
            genesis.set_num_threads(threads)
            params = [genesis.Parameter(value.copy()) for value in first]
            ends = np.cumsum(groups)
            split = [params[end - size : end] for end, size in zip(ends, groups)]
            opt = Both([{"params": group} for group in split])
            if groups == [2, 3]:  # buckets that do not follow each other: counts differ
                opt.state[params[1]] = {
                    "step": 7,
                    "v": 0.5,
                    "d": 0.1,
                    "num": 0.0,
                    "s": 0 * first[1],
                }
            for step in range(1, 4):
                assign(params, values(step, np.float32, shapes))
                opt.step(max_norm=5.0)
            found.append([*(p.data for p in params), opt.state[params[0]]["d"]])
    finally:
        genesis.set_num_threads(before)
    for other in found[1:]:
        for one, another in zip(found[0], other):
            np.testing.assert_array_equal(one, another)


def trained(steps, opt=None, params=None):
    if opt is None:
        params = [parameter(value) for value in values(0)]
        opt = Both([{"params": params[:2]}, {"params": params[2:]}])
    for step in steps:
        assign(params, values(step))
        opt.step()
    return opt, params


def assert_same(opt, params, other, others):
    for p, q in zip(params, others):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
        assert numbers(opt, p) == numbers(other, q)


@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy", "edit"])
def test_a_resumed_run_is_the_same_run(how, tmp_path):
    whole, everything = trained(range(1, 6))
    opt, params = trained(range(1, 4))
    if how in ("pickle", "deepcopy"):
        both = opt, params
        both = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
        opt, params = both
    elif how == "edit":
        opt.state[params[2]]["v"] += 0.0  # which makes the next step look at the state
    else:
        saved = opt.state_dict()
        if how == "file":
            genesis.save(saved, tmp_path / "it")
            saved = genesis.load(tmp_path / "it")
        copies = [parameter(p.numpy()) for p in params]
        opt = Both([{"params": copies[:2]}, {"params": copies[2:]}])
        trained((9,), opt, copies)  # which is lost
        for p, other in zip(copies, params):
            p.data = on_device(other.numpy())
        opt.load_state_dict(saved)
        params = copies
    trained((4, 5), opt, params)
    assert_same(opt, params, whole, everything)


def test_numbers_are_edited_in_the_state():
    opt, params = trained((1,))
    for p in params:
        opt.state[p]["d"] = 2.0
    assert opt.state_dict()["state"][0]["d"] == 2.0
    opt.state[params[0]]["v"] = 4.0
    trained((2,), opt, params)
    assert opt.state[params[3]]["d"] >= 2.0
    opt.state[params[0]]["d"] = 3.0
    with pytest.raises(ValueError, match=r"'d' is one number for all parameters, but 3.0 for"):
        trained((3,), opt, params)
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="one number for all parameters"):
        opt.load_state_dict(saved)
    for entries in saved["state"].values():
        entries["d"] = np.array([0.5])
    opt.load_state_dict(saved)
    assert opt.state[params[1]]["d"] == 0.5
    saved["state"][0]["v"] = np.ones(2)
    with pytest.raises(TypeError, match=r"'v' of .* must be one number"):
        opt.load_state_dict(saved)
    del saved["state"][0]["v"]
    with pytest.raises(ValueError, match=r"has no \['v'\]"):
        opt.load_state_dict(saved)


def test_a_skipped_step_changes_no_number():
    opt, params = trained((1, 2))
    before = [numbers(opt, p) for p in params]
    scaler = genesis.amp.GradScaler(init_scale=1.0)
    gradients = values(3)
    gradients[2][17] = np.inf
    assign(params, gradients)
    scaler.step(opt)
    assert opt.step_skipped
    assert [numbers(opt, p) for p in params] == before
    whole, everything = trained((1, 2, 4))
    trained((4,), opt, params)
    assert_same(opt, params, whole, everything)


@on_cpu_only
def test_an_interrupted_step_is_complete_or_has_not_begun():
    whole = [trained(range(1, 4)), trained(range(1, 5))]
    opt, params = trained(range(1, 4))
    assign(params, values(4))
    counting = Moments()
    counting.attack(opt.step)
    done = set()
    for n in (*range(1, counting.count, 9), *range(counting.count - 8, counting.count + 1)):
        opt, params = trained(range(1, 4))
        assign(params, values(4))
        Moments(n).attack(opt.step)
        known = [opt.state[params[0]]["d"] == other.state[ps[0]]["d"] for other, ps in whole]
        after = known.index(True)
        assert_same(opt, params, *whole[after])
        done.add(after)
    assert done == {0, 1}


def test_groups_must_agree_on_what_all_have_in_common():
    @genesis.rule
    def Flagged(param, grad, d=overall("d0"), *, lr=1.0, beta=0.5, d0=1.0, both=False):
        d = beta * d + total(grad, over="all") + (total(param, over="all") if both else 0)
        return param - lr * d * grad, d

    params = [parameter(np.ones(2)), parameter(np.ones(3))]
    assign(params, [np.ones(2), np.ones(3)])

    def stepped(**other):
        Flagged([{"params": params[:1]}, {"params": params[1:], **other}]).step()

    with pytest.raises(ValueError, match=r"'d' is one number for all .* have alike: beta"):
        stepped(beta=0.7)
    with pytest.raises(ValueError, match=r"begin with 1.0 and with 2.0"):
        stepped(d0=2.0)
    with pytest.raises(ValueError, match=r"groups have other .*both|groups have other flags"):
        stepped(both=True)
    for p in params:
        np.testing.assert_array_equal(p.numpy(), 1)
    stepped(lr=0.5)  # each group's own
    np.testing.assert_allclose(params[0].numpy(), 1 - 5.5)
    np.testing.assert_allclose(params[1].numpy(), 1 - 5.5 / 2)


def test_what_is_refused():
    with pytest.raises(
        RuleError, match=r"test_overall.py:\d+: rule Elements: .*each tensor, so it"
    ):

        @genesis.rule
        def Elements(param, grad, v=per_tensor(), *, lr):
            return param - lr * v, grad

    with pytest.raises(RuleError, match="one number for all tensors, so it must become"):

        @genesis.rule
        def Tensors(param, grad, d=overall(), *, lr):
            return param - lr * d, total(grad)

    with pytest.raises(RuleError, match="may differ in 'step'"):

        @genesis.rule
        def Counts(param, grad, d=overall(), *, lr, step):
            return param - lr * d, d + step

    with pytest.raises(RuleError, match="of what depends on another total"):

        @genesis.rule
        def Nested(param, grad, *, lr):
            return param - lr * total(grad / total(grad), over="all")

    with pytest.raises(RuleError, match="of what depends on another total"):

        @genesis.rule
        def Hidden(param, grad, *, lr):
            return param - lr * (total(param, over="all") if total(grad) > 0 else 1)

    with pytest.raises(RuleError, match="must be of what differs from element to element"):

        @genesis.rule
        def Same(param, grad, v=per_tensor(), *, lr):
            return param - lr * total(v, over="all"), v + total(grad)

    with pytest.raises(RuleError, match="is over 'tensor' or over 'all', but got 'each'"):

        @genesis.rule
        def Other(param, grad, *, lr):
            return param - lr * total(grad, over="each")

    with pytest.raises(RuleError, match=r"stands before the \*"):

        @genesis.rule
        def Keyword(param, grad, *, lr=per_tensor()):
            return param - lr * grad

    with pytest.raises(RuleError, match="stand as defaults of positional arguments"):

        @genesis.rule
        def Inside(param, grad, *, lr):
            return param - overall(0.0) * grad

    with pytest.raises(RuleError, match=r"begins with 'v1'|its default a number"):

        @genesis.rule
        def Begins(param, grad, v=per_tensor("v1"), *, lr):
            return param - lr * v, v

    with pytest.raises(
        RuleError, match=r"test_overall.py:\d+: total\(\) has a meaning in a rule only"
    ):
        total(np.ones(3), over="all")
    with pytest.raises(RuleError, match="sums over a tensor need all of its gradient"):

        @genesis.rule(sparse=lambda lr: True)
        def Sparse(param, grad, d=overall(), *, lr):
            return param - lr * grad, d + total(grad, over="all")


@on_cpu_only
def test_torch_has_none_of_it_yet():
    pytest.importorskip("torch")
    ours = pytest.importorskip("genesis.torch")
    with pytest.raises(TypeError, match="Both has numbers of a tensor, or of all, in its state"):
        ours.of(Both)


def test_reference_evaluates_numbers():
    x, g, s = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.2]), np.array([0.1, -0.1, 0.0])
    found, after, *kept = Both.reference(x, g, s, 0.7, 0.2, 0.3)
    expected = Expected([x])
    expected.s, expected.v, expected.d, expected.num = [s], [0.7], 0.2, 0.3
    expected.step([g])
    np.testing.assert_allclose(found, expected.x[0], rtol=1e-14)
    np.testing.assert_allclose(after, expected.s[0], rtol=1e-14)
    np.testing.assert_allclose(kept, [expected.v[0], expected.d, expected.num], rtol=1e-14)


@on_cpu_only
def test_mixed_sums_over_the_tensors_of_each_rule():
    """And options, clipping and averages of all optimizers work with what is of all tensors."""
    first, gradients = values(0, np.float32, [(5, 3), (7,)]), values(1, np.float32, [(5, 3), (7,)])
    settings = {"master_weights": True, "state_dtype": "float32", "ema_decay": 0.5}
    alone = [genesis.Parameter(first[0].copy())]
    opt = Both(alone, **settings)
    both = [genesis.Parameter(value.copy()) for value in first]
    mixed = genesis.optim.Mixed(
        [
            {"params": both[:1], "optimizer": Both, **settings},
            {"params": both[1:], "optimizer": genesis.optim.SGD, "lr": 0.1},
        ]
    )
    for _ in range(3):
        assign(alone, gradients)
        assign(both, gradients)
        opt.step(clip_value=0.3)
        mixed.step(clip_value=0.3)
    np.testing.assert_array_equal(alone[0].data, both[0].data)
    assert numbers(opt, alone[0]) == numbers(mixed, both[0])
    saved = mixed.state_dict()
    mixed.load_state_dict(saved)
    assert mixed.state_dict()["state"][0]["d"] == saved["state"][0]["d"]
    np.testing.assert_array_equal(opt.state[alone[0]]["ema"], mixed.state[both[0]]["ema"])
