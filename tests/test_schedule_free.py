"""Schedule-Free optimizers between their two modes.

That updates are right is shown by the table of cases, in test_updates.py and test_packages.py.
"""

import copy
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter

import genesis
from genesis.optim import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD, lr_scheduler

SHAPES = [(5, 3), (), (0,), (7,)]
KINDS = [ScheduleFreeSGD, ScheduleFreeAdamW, ScheduleFreeRAdam]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def made(kind=ScheduleFreeAdamW, dtype=np.float32, **settings):
    """Parameters, the same ones for every call, and an optimizer of them."""
    rng = np.random.default_rng(0)
    params = [parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    return params, kind(params, lr=0.1, **settings)


def trained(params, opt, *steps):
    for step in steps:
        rng = np.random.default_rng(100 + step)
        for p in params:
            p.grad = on_device(rng.standard_normal(p.shape).astype(p.dtype))
        opt.step()


def arrays(params):
    return [p.numpy().copy() for p in params]


def same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


def everything(params, opt):
    """All bits that a run consists of."""
    state = opt.state_dict()["state"]
    return [*arrays(params), *(v for entries in state.values() for v in entries.values())]


# ---- what is shown ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_eval_shows_the_average_of_the_paper(dtype):
    """The paper's sequences x, y, z for a quadratic, each kept for itself."""
    beta, lr, warmup = 0.9, 0.1, 4
    start = np.array([1.0, -2.0, 0.5])
    scale = np.array([1.0, 3.0, 0.3])
    p = parameter(start.astype(dtype))
    opt = ScheduleFreeSGD([p], lr=lr, momentum=beta, warmup_steps=warmup, weight_decay=0.01)
    x = z = y = start
    total = 0
    for step in range(1, 13):
        p.grad = on_device((scale * y).astype(dtype))
        opt.step()
        rate = lr * min(1, step / warmup)
        z = z - rate * (scale * y + 0.01 * y)
        total += rate**2
        share = rate**2 / total
        x = (1 - share) * x + share * z
        y = beta * x + (1 - beta) * z
        rtol = 1e-13 if dtype == np.float64 else 3e-6
        np.testing.assert_allclose(p.numpy(), y, rtol=rtol)
        opt.eval()
        np.testing.assert_allclose(p.numpy(), x, rtol=rtol)
        opt.train()


@each_kind
def test_a_run_that_evaluates_is_the_run_that_does_not(kind):
    params, opt = made(kind)
    others, plain = made(kind)
    for step in range(8):
        trained(params, opt, step)
        trained(others, plain, step)
        before = everything(params, opt)
        opt.eval()
        assert not any(
            np.array_equal(p.numpy(), b) for p, b in zip(params, before) if step > 5 and b.size
        )
        opt.train()
        same(everything(params, opt), before)
    same(everything(params, opt), everything(others, plain))


def test_twice_is_as_once_and_a_new_optimizer_is_in_train_mode():
    params, opt = made()
    assert [group["train_mode"] for group in opt.param_groups] == [True]
    assert "train_mode" not in repr(opt)
    opt.train()
    start = arrays(params)
    opt.eval()  # before the first step: x, y and z are one
    same(arrays(params), start)
    opt.train()
    trained(params, opt, 0, 1)
    y = arrays(params)
    opt.eval()
    x, state = arrays(params), everything(params, opt)
    opt.eval()
    same(everything(params, opt), state)
    assert "train_mode=False" in repr(opt)
    opt.train()
    opt.train()
    same(arrays(params), y)
    with pytest.raises(AssertionError):
        same(x, y)


@pytest.mark.parametrize(
    ("dtype", "stochastic"),
    [(np.float16, False), (BFLOAT16, False), pytest.param(BFLOAT16, True, marks=on_cpu_only)],
)
def test_the_average_of_16_bits_is_that_of_the_master(dtype, stochastic):
    settings = {"master_weights": True, "stochastic_rounding": stochastic}
    params, opt = made(ScheduleFreeSGD, dtype, **settings)
    trained(params, opt, 0, 1, 2)
    y = arrays(params)
    state = [{name: on_host(v) for name, v in opt.state[p].items()} for p in params]
    assert all(entries["z"].dtype == np.float32 for entries in state)
    opt.eval()
    for p, entries in zip(params, state):
        x = (entries["master"].astype(float) - 0.1 * entries["z"]) / 0.9
        spacing = np.spacing(np.abs(x).astype(np.float32)) * 2.0 ** (
            13 if dtype == np.float16 else 16
        )
        assert np.all(np.abs(p.numpy().astype(float) - x) <= 0.51 * spacing)
        np.testing.assert_array_equal(on_host(opt.state[p]["master"]), entries["master"])
    opt.train()
    same(arrays(params), y)
    others, plain = made(ScheduleFreeSGD, dtype, **settings)
    trained(others, plain, 0, 1, 2, 3)
    trained(params, opt, 3)
    same(everything(params, opt), everything(others, plain))


def test_16_bits_without_a_master_come_back_as_well():
    params, opt = made(ScheduleFreeSGD, BFLOAT16)
    trained(params, opt, 0, 1)
    before = everything(params, opt)
    opt.eval()
    opt.train()
    same(everything(params, opt), before)


def test_z_is_kept_in_the_type_that_is_asked_for():
    params, opt = made(ScheduleFreeAdamW, state_dtype="bfloat16")
    trained(params, opt, 0)
    assert opt.state[params[0]]["z"].dtype == BFLOAT16
    before = everything(params, opt)
    opt.eval()
    assert opt.state[params[0]]["y"].dtype == np.float32
    opt.train()
    same(everything(params, opt), before)


@on_cpu_only
def test_arrays_of_any_layout_and_working_copies_are_reached():
    strided = np.ones((4, 6), np.float32)[:, ::2]
    p = genesis.Parameter(strided)
    opt = ScheduleFreeSGD([p], lr=1.0, momentum=0.5)
    for _ in range(2):
        opt.step(grads=[np.ones((4, 3), np.float32)])
    with genesis.autocast("bfloat16"):
        assert np.all(p.data.astype(np.float32) == -0.75)
        opt.eval()
        assert np.all(strided == -0.5)  # of z, which was 0 and then -1
        assert np.all(p.data.astype(np.float32) == -0.5)
    opt.train()
    assert np.all(strided == -0.75)


def test_groups_have_their_own_momentum_and_parameters_their_own_numbers():
    params, _ = made()
    opt = ScheduleFreeSGD(
        [{"params": params[:1], "momentum": 0.5}, {"params": params[1:], "momentum": 0.8}], lr=0.1
    )
    late = params[-1]
    for step in range(3):
        for p in params:
            p.grad = None if p is late and step == 0 else on_device(np.ones(p.shape, np.float32))
        opt.step()
    assert [opt.state[p]["step"] for p in params] == [3, 3, 3, 2]
    y = [p.numpy().astype(float) for p in params]
    z = [on_host(opt.state[p]["z"]).astype(float) for p in params]
    opt.eval()
    for p, one, other, mix in zip(params, y, z, (0.5, 0.8, 0.8, 0.8)):
        np.testing.assert_allclose(p.numpy(), (one - (1 - mix) * other) / mix, rtol=1e-5)


# ---- what is refused ----


@each_kind
def test_a_step_in_eval_mode_is_refused_before_the_closure_runs(kind):
    params, opt = made(kind)
    trained(params, opt, 0)
    opt.eval()
    before = everything(params, opt)
    for way in (
        opt.step,
        lambda: opt.step(lambda: pytest.fail("the closure ran")),
        lambda: opt.step(grads=[p.grad for p in params], max_norm=1.0),
        lambda: opt.scaled_step(1.0),
    ):
        with pytest.raises(RuntimeError, match=r"is in eval mode.*call optimizer.train\(\)"):
            way()
    same(everything(params, opt), before)
    opt.train()
    trained(params, opt, 1)


def test_a_new_optimizer_in_eval_mode_steps_no_more_than_one_with_state():
    _, opt = made()
    opt.eval()
    with pytest.raises(RuntimeError, match="is in eval mode"):
        opt.step()


def test_the_mode_cannot_be_set_by_itself():
    _, opt = made()
    (group,) = opt.param_groups
    for way in (
        lambda: group.__setitem__("train_mode", False),
        lambda: group.update(train_mode=False),
    ):
        with pytest.raises(
            ValueError, match=r"train_mode cannot be set to False by itself.*eval\(\)"
        ):
            way()
    with pytest.raises(TypeError, match="unexpected keyword argument 'train_mode'"):
        ScheduleFreeSGD([np.ones(2)], train_mode=False)
    assert group["train_mode"] is True


def test_averages_of_other_kinds_are_refused():
    _, opt = made()
    with pytest.raises(TypeError, match=r"does not support ema_decay.*average of its own"):
        made(ema_decay=0.9)
    with pytest.raises(TypeError, match=r"does not support ema_decay"):
        opt.param_groups[0]["ema_decay"] = 0.9
    with pytest.raises(RuntimeError, match=r"has no swap_ema\(\): call eval\(\)"):
        opt.swap_ema()


@on_cpu_only
def test_sparse_rows_are_refused():
    p = genesis.Parameter(np.ones((4, 2), np.float32))
    p.grad = genesis.SparseGrad([1], np.ones((1, 2), np.float32))
    opt = ScheduleFreeSGD([p], lr=0.1)
    with pytest.raises(TypeError, match="ScheduleFreeSGD does not support sparse gradients"):
        opt.step()
    assert not opt.state


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_written_where_one_array_does_not_fit(mode):
    params, opt = made()
    trained(params, opt, 0, 1)
    name = "z" if mode == "eval" else "y"
    if mode == "train":
        opt.eval()
    good = opt.state[params[-1]][name]
    before = arrays(params)
    for bad, said in [
        (on_device(np.zeros(8, np.float32)), rf"state '{name}' of parameter 3 has shape"),
        ("none", rf"state '{name}' of parameter 3"),
        (params[0].data, rf"state '{name}' of parameter 3 has shape"),
    ]:
        opt.state[params[-1]][name] = bad
        with pytest.raises((ValueError, TypeError), match=said):
            getattr(opt, mode)()
        same(arrays(params), before)
        assert opt.param_groups[0]["train_mode"] is (mode == "eval")
        assert ("y" in opt.state[params[0]]) is (mode == "train")
    opt.state[params[-1]][name] = good
    getattr(opt, mode)()


@on_cpu_only
def test_an_array_that_cannot_be_written_is_refused():
    params, opt = made()
    trained(params, opt, 0)
    before = arrays(params)
    params[-1].data.flags.writeable = False
    with pytest.raises(ValueError, match="parameter 3"):
        opt.eval()
    same(arrays(params), before)
    assert opt.param_groups[0]["train_mode"]


def test_a_state_that_has_lost_what_parameters_were_is_refused():
    params, opt = made()
    trained(params, opt, 0)
    opt.eval()
    del opt.state[params[1]]["y"]
    before = arrays(params)
    with pytest.raises(ValueError, match="the state of parameter 1 has no 'y'"):
        opt.train()
    same(arrays(params), before)


# ---- checkpoints, groups, schedules ----


@each_kind
@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("loaded_in", ["train", "eval"])
def test_a_checkpoint_of_either_mode_goes_on_bit_for_bit(kind, saved_in, loaded_in, tmp_path):
    path = tmp_path / "run.safetensors"
    params, opt = made(kind)
    trained(params, opt, *range(7))
    getattr(opt, saved_in)()
    genesis.save_checkpoint(path, params=[p.numpy() for p in params], optimizer=opt)
    others, resumed = made(kind)
    trained(others, resumed, 50, 51)  # of another run, which is forgotten
    getattr(resumed, loaded_in)()
    loaded = genesis.load_checkpoint(path, optimizer=resumed)
    for p, value in zip(others, loaded["params"]):
        p.data = on_device(value)
    assert resumed.param_groups[0]["train_mode"] is (saved_in == "train")
    same(everything(others, resumed), everything(params, opt))
    if saved_in == "eval":
        with pytest.raises(RuntimeError, match="is in eval mode"):
            resumed.step()
    for each, optimizer in ((params, opt), (others, resumed)):
        optimizer.eval()
        optimizer.train()
        trained(each, optimizer, 7, 8, 9)
        optimizer.eval()
    same(everything(others, resumed), everything(params, opt))
    whole, never = made(kind)
    trained(whole, never, *range(10))
    never.eval()
    same(arrays(whole), arrays(params))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_copies_and_pickles_are_in_the_same_mode(mode):
    params, opt = made()
    trained(params, opt, 0, 1)
    getattr(opt, mode)()
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        theirs = other.param_groups[0]["params"]
        other.train()
        trained(theirs, other, 2)
    opt.train()
    trained(params, opt, 2)
    same(everything(theirs, other), everything(params, opt))


def test_a_group_that_is_added_is_in_the_mode_of_the_others():
    params, _ = made()
    opt = ScheduleFreeSGD(params[:2], lr=0.1)
    trained(params[:2], opt, 0, 1)
    opt.eval()
    opt.add_param_group({"params": params[2:]})
    assert [group["train_mode"] for group in opt.param_groups] == [False, False]
    opt.train()
    assert [group["train_mode"] for group in opt.param_groups] == [True, True]
    trained(params, opt, 2)


def test_a_schedule_counts_in_the_average():
    p = parameter(np.zeros(1))
    opt = ScheduleFreeSGD([p], lr=1.0, momentum=0.5)
    schedule = lr_scheduler.LambdaLR(opt, lambda epoch: (1.0, 2.0, 1.0)[min(epoch, 2)])
    for _ in range(3):
        p.grad = on_device(np.ones(1))
        opt.step()
        schedule.step()
    # z is -1, -3, -4 with weights 1, 4 and, as the largest rate so far is 2, 4 again.
    opt.eval()
    np.testing.assert_allclose(p.numpy(), [-(1 + 4 * 3 + 4 * 4) / 9])
    assert opt.state[p]["lr_max"] == 2


def test_rates_of_0_move_nothing():
    p = parameter(np.ones(2))
    opt = ScheduleFreeAdamW([p], lr=0.0)
    for _ in range(2):
        p.grad = on_device(np.ones(2))
        opt.step()
    opt.eval()
    np.testing.assert_array_equal(p.numpy(), [1.0, 1.0])


@on_cpu_only
def test_a_rule_has_no_other_base():
    def descent(param, grad, *, lr=0.1):
        return param - lr * grad

    for bad in (genesis.optim.Optimizer, genesis.optim.SGD, "RuleOptimizer"):
        with pytest.raises(TypeError, match=r"the base of a rule is a subclass of .*RuleOptimizer"):
            genesis.rule(descent, base=bad)


@on_cpu_only
def test_under_torch_they_are_refused():
    pytest.importorskip("torch")
    import genesis.torch

    with pytest.raises(TypeError, match=r"ScheduleFreeSGD has methods beside its rule"):
        genesis.torch.of(ScheduleFreeSGD)
