"""Optimizers that work through another one: Lookahead and SAM, and what all wrappers have in common."""

import copy
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter

import genesis
from genesis import optim
from genesis.optim import SAM, Lookahead, lr_scheduler

SHAPES = [(5, 3), (), (0,), (7,)]
WRAPPERS = {
    "Lookahead": lambda optimizer: Lookahead(optimizer, k=3, alpha=0.4),
    "SAM": lambda optimizer: SAM(optimizer, rho=0.1),
    "ASAM": lambda optimizer: SAM(optimizer, rho=0.5, adaptive=True),
    "SAM of Lookahead": lambda optimizer: SAM(Lookahead(optimizer, k=2)),
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def made(wrap, kind=optim.AdamW, dtype=np.float32, **settings):
    """Parameters, the same ones for every call, and a wrapper of an optimizer of them."""
    rng = np.random.default_rng(0)
    params = [parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    return params, wrap(kind(params, **{"lr": 0.1, **settings}))


def np_parameter(value):
    """A parameter of these numbers in float64, on the CPU."""
    return genesis.Parameter(np.array(value, np.float64))


def closure_of(params, step, log=None):
    """The loss of a quadratic that differs from step to step, and its gradients."""
    rng = np.random.default_rng(100 + step)
    centers = [rng.standard_normal(p.shape) for p in params]

    def closure():
        values = [p.numpy().astype(np.float64) for p in params]
        if log is not None:
            log.append(values)
        grads = [3 * (value - center) for value, center in zip(values, centers)]
        loss = sum(float(np.sum(g * g)) / 6 for g in grads)
        return loss, [on_device(g.astype(p.dtype)) for g, p in zip(grads, params)]

    return closure


def train(params, opt, *steps, **others):
    for step in steps:
        opt.step(closure_of(params, step), **others)


def arrays(params):
    return [p.numpy().copy() for p in params]


def same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def everything(params, opt):
    """All bits that a run consists of."""
    saved = opt.state_dict()
    state = [v for entries in saved["state"].values() for v in entries.values()]
    return [*arrays(params), *state, *saved.get("lookahead", {}).get("slow", {}).values()]


# ---- Lookahead ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (1, 0.3), (3, 1.0)])
def test_lookahead_returns_part_of_the_way(dtype, k, alpha):
    """Beside SGD with momentum and the paper's algorithm, in NumPy."""
    params, opt = made(lambda o: Lookahead(o, k, alpha), optim.SGD, dtype, momentum=0.9)
    fast = [p.numpy().astype(np.float64) for p in params]
    slow = [value.copy() for value in fast]
    velocity = [np.zeros_like(value) for value in fast]
    for step in range(1, 13):
        _, grads = closure_of([np_parameter(value) for value in fast], step)()
        train(params, opt, step)
        for i, grad in enumerate(grads):
            velocity[i] = 0.9 * velocity[i] + on_host(grad)
            fast[i] = fast[i] - 0.1 * velocity[i]
            if step % k == 0:
                fast[i] = slow[i] = (1 - alpha) * slow[i] + alpha * fast[i]
        rtol = 1e-12 if dtype == np.float64 else 1e-4
        for p, value in zip(params, fast):
            np.testing.assert_allclose(p.numpy(), value, rtol=rtol, atol=rtol)
        assert opt.since_sync == step % k


@pytest.mark.parametrize("stochastic", [False, pytest.param(True, marks=on_cpu_only)])
def test_lookahead_moves_masters(stochastic):
    settings = {"master_weights": True, "stochastic_rounding": stochastic}
    params, opt = made(lambda o: Lookahead(o, k=2), optim.SGD, BFLOAT16, **settings)
    start = [p.numpy().astype(np.float64) for p in params]
    train(params, opt, 0)
    before = [on_host(opt.state[p]["master"]).astype(np.float64) for p in params]
    _, grads = closure_of(params, 1)()
    opt.step(grads=grads)
    for p, first, master, grad in zip(params, start, before, grads):
        ahead = master - 0.1 * on_host(grad).astype(np.float64)
        now = on_host(opt.state[p]["master"])
        np.testing.assert_allclose(now, (first + ahead) / 2, rtol=1e-5, atol=1e-6)
        shown = p.numpy().astype(np.float32)
        np.testing.assert_allclose(shown, now, rtol=2.0 ** (-7 if stochastic else -8))
    masters = [on_host(opt.state[p]["master"]).copy() for p in params]
    opt.step(grads=[on_device(np.zeros(p.shape, np.float32)) for p in params])
    same([on_host(opt.state[p]["master"]) for p in params], masters)  # nothing looks edited


@on_cpu_only
def test_lookahead_reaches_arrays_of_any_layout():
    strided = np.ones((40, 60), np.float32)[:, ::2]
    flat = genesis.Parameter(np.ones((40, 30), np.float32))
    opt = Lookahead(optim.SGD([genesis.Parameter(strided), flat], lr=1.0), k=2)
    for _ in range(4):
        opt.step(grads=[np.ones((40, 30), np.float32)] * 2)
    assert np.all(strided == -1.0)
    same([strided], [flat.data])


def test_parameters_without_gradient_and_new_ones_join():
    params, opt = made(lambda o: Lookahead(o, k=2), optim.SGD)
    late = parameter(np.ones(3, np.float32))
    opt.step(grads=[None, *closure_of(params, 0)()[1][1:]])
    opt.add_param_group({"params": [late]})
    before = arrays(params)
    opt.step(grads=[None] * 4 + [on_device(np.ones(3, np.float32))])
    np.testing.assert_array_equal(params[0].numpy(), before[0])
    np.testing.assert_allclose(late.numpy(), 1 - 0.05)
    assert params[3].numpy()[0] != before[3][0]  # it has returned half of its way


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_failed_or_skipped_step_leaves_lookahead_as_it_was(stop):
    params, opt = made(lambda o: Lookahead(o, k=2))
    train(params, opt, *range(stop))
    before, count = everything(params, opt), opt.since_sync
    params[0].grad = on_device(np.full((5, 3), np.nan, np.float32))
    assert opt.scaled_step(0.5) is None
    assert opt.step_skipped
    with pytest.raises(ValueError, match="the gradient"):
        opt.step(grads=[on_device(np.ones(9, np.float32)), None, None, None])
    slow = opt._slow[params[3]]
    opt._slow[params[3]] = on_device(np.ones(2, np.float32))
    if count == 1:
        with pytest.raises(ValueError, match="slow array of parameter 3 has shape"):
            train(params, opt, stop)
    opt._slow[params[3]] = slow
    same(everything(params, opt), before)
    assert opt.since_sync == count
    others, never = made(lambda o: Lookahead(o, k=2))
    train(others, never, *range(8))
    train(params, opt, *range(stop, 8))
    same(everything(params, opt), everything(others, never))


# ---- SAM ----


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sam_steps_by_the_gradient_nearby(adaptive, maximize, dtype):
    rho, lr = 0.3, 0.05
    params, opt = made(lambda o: SAM(o, rho, adaptive), optim.SGD, dtype, lr=lr, maximize=maximize)
    values = [p.numpy().astype(np.float64) for p in params]
    for step in range(5):
        log = []
        loss = opt.step(closure_of(params, step, log))
        sign = -1 if maximize else 1
        mine = [np_parameter(value) for value in values]
        first, grads = closure_of(mine, step)()
        sizes = [np.abs(value) if adaptive else 1 for value in values]
        norm = np.sqrt(sum(np.sum((s * on_host(g)) ** 2) for s, g in zip(sizes, grads)))
        for p, s, g in zip(mine, sizes, grads):
            p.data[...] += sign * rho * s**2 * on_host(g) / norm
        _, nearby = closure_of(mine, step)()
        rtol = 1e-12 if dtype == np.float64 else 1e-4
        for at_first, then, value, p in zip(*log, values, mine):
            np.testing.assert_allclose(at_first, value, rtol=rtol, atol=rtol)
            np.testing.assert_allclose(then, p.data, rtol=rtol, atol=rtol)
        values = [value - sign * lr * on_host(g) for value, g in zip(values, nearby)]
        for p, value in zip(params, values):
            np.testing.assert_allclose(p.numpy(), value, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(loss, first, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_puts_16_bits_back(dtype, adaptive):
    params, opt = made(lambda o: SAM(o, 0.5, adaptive), optim.SGD, dtype, lr=0.0)
    before = arrays(params)
    log = []
    opt.step(closure_of(params, 0, log))
    same(arrays(params), before)
    assert np.any(log[1][0] != log[0][0])


@each_wrapper
@on_cpu_only
def test_gradients_may_be_assigned(wrap):
    params, opt = made(wrap)
    others, other = made(wrap)

    def assigning(step):
        def closure():
            loss, grads = closure_of(others, step)()
            for p, grad in zip(others, grads):
                p.grad = grad
            return loss

        return closure

    for step in range(4):
        loss = opt.step(closure_of(params, step))
        assert other.step(assigning(step)) == loss
    same(everything(params, opt), everything(others, other))


@pytest.mark.parametrize("adaptive", [False, True])
def test_whatever_ends_the_second_evaluation_parameters_are_put_back(adaptive):
    params, opt = made(lambda o: SAM(o, 0.5, adaptive))
    train(params, opt, 0)
    before = everything(params, opt)
    for error in (ValueError, KeyboardInterrupt):
        calls = []

        def closure(error=error, calls=calls):
            calls.append(arrays(params))
            if len(calls) == 2:
                raise error("here")
            return closure_of(params, 1)()

        with pytest.raises(error, match="here"):
            opt.step(closure)
        assert np.any(calls[1][0] != calls[0][0])
        same(everything(params, opt), before)
    train(params, opt, 1)
    others, never = made(lambda o: SAM(o, 0.5, adaptive))
    train(others, never, 0, 1)
    same(everything(params, opt), everything(others, never))


@on_cpu_only
def test_sam_reaches_arrays_of_any_layout_and_working_copies():
    strided = np.ones((40, 60), np.float32)[:, ::2]
    p = genesis.Parameter(strided)
    opt = SAM(optim.SGD([p], lr=1.0), rho=float(np.sqrt(1200)))
    seen = []
    with genesis.autocast("bfloat16"):

        def closure():
            seen.append((strided[0, 0], float(p.data[0, 0])))
            return 0.0, [np.ones((30, 40), np.float32).T]

        opt.step(closure)
        assert float(p.data[0, 0]) == 0
    assert seen == [(1, 1), (2, 2)]
    assert np.all(strided == 0)


def test_no_gradient_at_all_moves_nothing():
    params, opt = made(lambda o: SAM(o), optim.SGD)
    before = arrays(params)
    opt.step(lambda: (0.0, [on_device(np.zeros(p.shape, np.float32)) for p in params]))
    same(arrays(params), before)


# ---- what is refused ----


def test_a_step_of_sam_without_a_closure_is_refused():
    params, opt = made(SAM)
    before = arrays(params)
    for p in params:
        p.grad = on_device(np.ones(p.shape, np.float32))
    for way in (opt.step, lambda: opt.step(grads=arrays(params)), lambda: opt.scaled_step(1.0)):
        with pytest.raises(RuntimeError, match=r"its step needs a closure: step\(closure\), where"):
            way()
    with pytest.raises(TypeError, match=r"closure of step must be a function.*but got list"):
        opt.step([])
    with pytest.raises(ValueError, match="grads= or a closure, but not both"):
        opt.step(closure_of(params, 0), grads=arrays(params))
    same(arrays(params), before)
    assert not opt.state


@on_cpu_only
def test_sam_refuses_what_it_cannot_move():
    p = genesis.Parameter(np.ones((4, 2), np.float32))
    opt = SAM(optim.SGD([p], lr=0.1))
    with pytest.raises(TypeError, match=r"SAM does not support sparse gradients.*parameter 0"):
        opt.step(lambda: (0.0, [genesis.SparseGrad([1], np.ones((1, 2), np.float32))]))
    with pytest.raises(ValueError, match="shares memory with parameter 0"):
        opt.step(lambda: (0.0, [p.data]))
    p.data.flags.writeable = False
    with pytest.raises(ValueError, match="parameter 0"):
        opt.step(lambda: (0.0, [np.ones((4, 2), np.float32)]))
    assert np.all(p.data == 1)


@pytest.mark.parametrize("wrapper", [Lookahead, SAM])
def test_what_cannot_be_wrapped(wrapper):
    p = parameter(np.ones((2, 2)))
    for bad in ([p], optim.AdamW, None, optim.LBFGS([p])):
        with pytest.raises(TypeError, match=rf"{wrapper.__name__} works through an optimizer of"):
            wrapper(bad)
    with pytest.raises(TypeError, match=rf"works through a {wrapper.__name__} already"):
        wrapper(wrapper(optim.AdamW([p])))
    if wrapper is Lookahead:
        with pytest.raises(TypeError, match="Lookahead does not support ScheduleFreeSGD"):
            wrapper(optim.ScheduleFreeSGD([p]))


@pytest.mark.parametrize(
    ("wrapper", "name", "bad", "said"),
    [
        (Lookahead, "k", 0, "Invalid k value: 0, expected a whole number"),
        (Lookahead, "k", 2.0, "Invalid k value: 2.0"),
        (Lookahead, "alpha", 0.0, r"Invalid alpha value: 0.0, expected a number in \(0, 1\]"),
        (Lookahead, "alpha", 1.5, "Invalid alpha value: 1.5"),
        (SAM, "rho", -0.1, "Invalid rho value: -0.1"),
        (SAM, "rho", float("nan"), "Invalid rho value: nan"),
        (SAM, "adaptive", 1, "Invalid adaptive: 1, expected True or False"),
    ],
)
def test_impossible_settings_are_refused_wherever_they_are_given(wrapper, name, bad, said):
    params, opt = made(wrapper)
    with pytest.raises((ValueError, TypeError), match=said):
        made(lambda o: wrapper(o, **{name: bad}))
    saved = opt.state_dict()
    saved[opt._key][name] = bad
    with pytest.raises((ValueError, TypeError), match=said):
        opt.load_state_dict(saved)
    before = arrays(params)
    setattr(opt, name, bad)
    with pytest.raises((ValueError, TypeError), match=said):
        train(params, opt, 0)
    same(arrays(params), before)


# ---- the contract ----


@each_wrapper
def test_a_resumed_run_is_the_same_run(wrap, tmp_path):
    path = tmp_path / "run.safetensors"
    whole, opt = made(wrap)
    train(whole, opt, *range(10))
    for stop in (4, 5, 6):
        params, first = made(wrap)
        train(params, first, *range(stop))
        genesis.save_checkpoint(path, params=arrays(params), optimizer=first)
        others, resumed = made(wrap)
        train(others, resumed, 50)  # of another run, which is forgotten
        loaded = genesis.load_checkpoint(path, optimizer=resumed)
        for p, value in zip(others, loaded["params"]):
            p.data = on_device(value)
        train(others, resumed, *range(stop, 10))
        same(everything(others, resumed), everything(whole, opt))


@each_wrapper
def test_copies_and_pickles_go_on(wrap):
    params, opt = made(wrap)
    train(params, opt, 0)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        theirs = other.param_groups[0]["params"]
        train(theirs, other, 1, 2)
    train(params, opt, 1, 2)
    same(everything(theirs, other), everything(params, opt))


@pytest.mark.parametrize("wrapper", [Lookahead, SAM])
def test_a_state_dict_is_the_inner_optimizers_and_one_entry(wrapper):
    params, opt = made(wrapper)
    train(params, opt, 0)
    saved = opt.state_dict()
    assert saved.keys() == {"state", "param_groups", opt._key}
    _, plain = made(lambda optimizer: optimizer)
    plain.load_state_dict(saved)
    np.testing.assert_equal(plain.state_dict(), {k: saved[k] for k in ("state", "param_groups")})
    with pytest.raises(ValueError, match=rf"has no '{opt._key}': was it saved by another"):
        opt.load_state_dict(plain.state_dict())
    if wrapper is Lookahead:
        saved["lookahead"]["slow"][0] = np.zeros(3)
        with pytest.raises(ValueError, match=r"slow array of parameter 0 has shape \(3,\)"):
            opt.load_state_dict(saved)
        saved["lookahead"]["slow"] = {9: np.zeros(3)}
        with pytest.raises(ValueError, match="has an array for 9"):
            opt.load_state_dict(saved)
    np.testing.assert_equal(opt.state_dict()["state"], saved["state"])


@on_cpu_only
def test_slow_arrays_are_loaded_by_name():
    def named(*order):
        params = {name: genesis.Parameter(np.full(2, float(i))) for i, name in enumerate("abc")}
        groups = [{"params": [(name, params[name]) for name in order]}]
        return params, Lookahead(optim.SGD(groups, lr=0.1), k=5)

    _, opt = named("a", "b", "c")
    opt.step(grads={name: np.ones(2) for name in "abc"})
    others, resumed = named("c", "a", "b")
    resumed.load_state_dict(opt.state_dict())
    for i, name in enumerate("abc"):
        np.testing.assert_array_equal(resumed._slow[others[name]], [i, i])


@each_wrapper
def test_schedules_groups_and_edits_reach_through(wrap):
    params, opt = made(wrap)
    (group,) = opt.param_groups
    schedule = lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    train(params, opt, 0)
    schedule.step()
    assert group["lr"] == 0.05
    assert "0.05" in repr(opt)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        group["lr"] = -1
    group["lr"] = 0.0
    group["weight_decay"] = 0.0
    inner = opt.optimizer
    assert opt.param_groups is inner.param_groups
    assert opt.state is inner.state
    assert opt.defaults is inner.defaults
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        opt.add_param_group({"params": params[:1]})
    opt.zero_grad()
    assert all(p.grad is None for p in params)
    opt.state = {}
    assert not inner.state
    assert opt.to("cpu" if params[0].device == "cpu" else "cuda") is opt


@each_wrapper
def test_clipping_and_trees_reach_through(wrap):
    params, opt = made(wrap)
    others, other = made(wrap)
    train(params, opt, 0, 1, max_norm=0.5)
    assert opt.grad_norm > 0.5
    train(others, other, 0, 1)
    with pytest.raises(AssertionError):
        same(arrays(params), arrays(others))
    with pytest.raises(ValueError, match="grads has no '2'"):
        opt.step(lambda: (0.0, arrays(params)[:2]))


@each_wrapper
def test_each_hook_is_called_once_a_step(wrap):
    params, opt = made(wrap)
    calls = []

    def noting(name):
        return lambda optimizer, *rest: calls.append((name, type(optimizer).__name__))

    handles = [
        optim.register_optimizer_step_pre_hook(noting("every pre")),
        optim.register_optimizer_step_post_hook(noting("every post")),
    ]
    inner = opt.optimizer
    for each, name in ((opt, "own"), (inner, "inner")):
        each.register_step_pre_hook(noting(f"{name} pre"))
        each.register_step_post_hook(noting(f"{name} post"))
        each.register_state_dict_pre_hook(noting(f"{name} saving"))
        each.register_load_state_dict_post_hook(noting(f"{name} loaded"))
    try:
        train(params, opt, 0)
    finally:
        for handle in handles:
            handle.remove()
    outer, within = type(opt).__name__, type(inner).__name__
    assert calls == [
        ("every pre", outer),
        ("own pre", outer),
        ("inner pre", within),
        ("inner post", within),
        ("own post", outer),
        ("every post", outer),
    ]
    calls.clear()
    opt.load_state_dict(opt.state_dict())
    assert calls == [
        ("own saving", outer),
        ("inner saving", within),
        ("inner loaded", within),
        ("own loaded", outer),
    ]


@on_cpu_only
def test_matrix_optimizers_are_wrapped_as_well():
    params = [genesis.Parameter(np.eye(3)), genesis.Parameter(np.ones((3, 2)))]
    opt = SAM(Lookahead(optim.Muon(params, lr=0.1), k=2))
    for step in range(4):
        train(params, opt, step)
    assert opt.optimizer.since_sync == 0
    assert repr(opt).startswith("SAM(Lookahead(Muon(lr=0.1)")
