"""Hooks: when they are called, what they may change, and that they can be taken out again."""

import copy
import pickle

import numpy as np
import pytest

import genesis
from genesis.optim import (
    SGD,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


@pytest.fixture
def opt():
    p = genesis.Parameter(np.zeros(2))
    p.grad = np.array([3.0, 4.0])
    return SGD([p], lr=1.0, momentum=0.5)


def note(calls, name, result=None):
    def hook(*args):
        calls.append(name)
        return result

    return hook


def test_step_hooks_are_called_in_torchs_order(opt):
    calls = []
    with (
        register_optimizer_step_post_hook(note(calls, "every post")),
        register_optimizer_step_pre_hook(note(calls, "every pre")),
    ):
        opt.register_step_post_hook(note(calls, "post 1"))
        opt.register_step_post_hook(note(calls, "post 2"))
        opt.register_step_pre_hook(note(calls, "pre 1"))
        handle = opt.register_step_pre_hook(note(calls, "pre 2"))
        assert opt.step(lambda: calls.append("closure") or 5) == 5
        expected = ["every pre", "pre 1", "pre 2", "closure", "post 1", "post 2", "every post"]
        assert calls == expected
        handle.remove()
        handle.remove()
        calls.clear()
        assert opt.step() is opt
        expected = ["every pre", "pre 1", "post 1", "post 2", "every post"]
        assert calls == expected
    calls.clear()
    opt.step()
    assert calls == ["pre 1", "post 1", "post 2"]


@pytest.mark.parametrize("by", ["position", "keyword"])
def test_hooks_see_a_closure_as_it_was_given(opt, by):
    seen = []
    opt.register_step_pre_hook(lambda *given: seen.append(given))
    opt.register_step_post_hook(lambda *given: seen.append(given))
    closure = lambda: 5  # noqa: E731
    if by == "position":
        assert opt.step(closure) == 5
        assert seen == [(opt, (opt, closure), {})] * 2
    else:
        assert opt.step(closure=closure, max_norm=1.0) == 5
        assert seen == [(opt, (opt,), {"closure": closure, "max_norm": 1.0})] * 2


def test_a_hook_sees_a_closure_as_torchs_do(opt):
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, requires_grad=True)
    tensor.grad = torch.ones(2)
    theirs = torch.optim.SGD([tensor], lr=0.5)
    seen = {}
    for name, optimizer in (("ours", opt), ("theirs", theirs)):
        for hook in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook):
            hook(
                lambda own, args, kwargs, name=name: seen.setdefault(name, []).append(
                    (len(args), args[0] is own, [*map(callable, args[1:])], sorted(kwargs))
                )
            )
        optimizer.step()
        optimizer.step(lambda: 1.0)
        optimizer.step(closure=lambda: 1.0)
    assert seen["ours"] == seen["theirs"]


def test_no_hook_runs_for_a_step_that_a_scaler_leaves_out(opt):
    calls = []
    opt.register_step_pre_hook(note(calls, "pre"))
    opt.register_step_post_hook(note(calls, "post"))
    scaler = genesis.amp.GradScaler(init_scale=2.0)
    opt.param_groups[0]["params"][0].grad[0] = np.inf
    assert scaler.step(opt) is None
    assert calls == []
    scaler.update()
    opt.param_groups[0]["params"][0].grad[0] = 1.0
    assert scaler.step(opt) is opt
    assert calls == ["pre", "post"]


def test_the_same_order_as_torch():
    torch = pytest.importorskip("torch")
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook as torch_post,
    )
    from torch.optim.optimizer import (
        register_optimizer_step_pre_hook as torch_pre,
    )

    def trace(opt, pre, post):
        calls = []
        handles = [
            post(note(calls, "every post")),
            pre(note(calls, "every pre")),
        ]
        opt.register_state_dict_pre_hook(note(calls, "state pre 1"))
        opt.register_state_dict_pre_hook(note(calls, "state pre 2"), prepend=True)
        opt.register_state_dict_post_hook(note(calls, "state post 1"))
        opt.register_state_dict_post_hook(note(calls, "state post 2"), prepend=True)
        opt.register_load_state_dict_pre_hook(note(calls, "load pre 1"))
        opt.register_load_state_dict_pre_hook(note(calls, "load pre 2"), prepend=True)
        opt.register_load_state_dict_post_hook(note(calls, "load post 1"))
        opt.register_load_state_dict_post_hook(note(calls, "load post 2"), prepend=True)
        opt.register_step_post_hook(note(calls, "post"))
        opt.register_step_pre_hook(note(calls, "pre"))
        opt.step()
        opt.load_state_dict(opt.state_dict())
        for handle in handles:
            handle.remove()
        return calls

    p = genesis.Parameter(np.zeros(2))
    p.grad = np.zeros(2)
    ours = trace(
        SGD([p], lr=1.0), register_optimizer_step_pre_hook, register_optimizer_step_post_hook
    )
    assert ours == trace(torch.optim.SGD([torch.zeros(2)], lr=1.0), torch_pre, torch_post)


def test_a_step_hook_sees_and_may_change_the_arguments(opt):
    seen = []
    opt.register_step_pre_hook(lambda *given: seen.append(given))

    def closure():
        return 1

    opt.step(closure, max_norm=2.0)
    assert seen == [(opt, (opt, closure), {"max_norm": 2.0})]
    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 9), {"max_norm": 1.0}))
    assert opt.step() == 9
    assert opt.grad_norm == 5.0
    opt.register_step_pre_hook(lambda o, args, kwargs: [args, kwargs])
    before = opt.param_groups[0]["params"][0].data.copy()
    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        opt.step()
    np.testing.assert_array_equal(opt.param_groups[0]["params"][0].data, before)


def test_state_dict_hooks_may_change_what_is_saved_and_loaded(opt):
    opt.step()
    opt.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 1})
    saved = opt.state_dict()
    assert saved["note"] == 1

    def halve(o, given):
        given["param_groups"] = copy.deepcopy(given["param_groups"])
        given["param_groups"][0]["lr"] /= 2

    opt.register_load_state_dict_pre_hook(halve)
    loaded = []
    opt.register_load_state_dict_post_hook(lambda o: loaded.append(o.param_groups[0]["lr"]))
    opt.load_state_dict(saved)
    assert loaded == [0.5]
    assert saved["param_groups"][0]["lr"] == 1.0


def test_hooks_stay_behind_when_an_optimizer_is_copied(opt):
    calls = []
    opt.register_step_pre_hook(note(calls, "pre"))
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(copy.deepcopy(opt)))):
        other.step()
    assert calls == []


def test_refuses_what_cannot_be_called(opt):
    with pytest.raises(TypeError, match="callable"):
        opt.register_step_pre_hook(3)
    with pytest.raises(TypeError, match="callable"):
        register_optimizer_step_pre_hook(None)
