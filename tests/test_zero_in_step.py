"""`step(zero_grad=True)`: the bits of a step and then `zero_grad(set_to_none=False)`."""

import numpy as np
import pytest
from cases import BFLOAT16, DTYPES, THREE
from devices import SIMULATED, on_cpu_only, on_device, on_host, parameter

import genesis
from genesis import optim
from genesis.kernels import cpu

SHAPES = [(5, 4), (7,), (0,), ()]


def params(dtype=np.float32):
    rng = np.random.default_rng(3)
    found = [parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    if not SIMULATED:  # one that does not lie flat, as then some of its gradients
        found.append(genesis.Parameter(rng.standard_normal((6, 4)).astype(dtype)[::2, ::2]))
    return found


def give(ps, rng, kind):
    """Gradients in new arrays, in arrays of another order, or in the arrays of the step before."""
    for p in ps:
        grad = rng.standard_normal(p.shape).astype(p.dtype)
        if kind == "the same" and not SIMULATED:
            p.grad[...] += grad  # which is zero
        elif kind == "other" and grad.ndim == 2 and not SIMULATED:
            p.grad = np.asfortranarray(grad)
        elif kind == "strided" and grad.ndim == 2 and not SIMULATED:
            p.grad = np.repeat(grad, 2, axis=1)[:, ::2]
        else:
            p.grad = on_device(grad)


KINDS = "new", "the same", "other", "the same", "strided", "the same", "strided", "new"


def bits(opt):
    arrays = [on_host(p.data) for p in opt._parameters()]
    arrays += [v for e in opt.state_dict()["state"].values() for v in e.values()]
    return [np.asarray(each).tobytes() for each in arrays]


def agree(make, dtype=np.float32, **asked):
    usual, one_pass = make(params(dtype)), make(params(dtype))
    for number, kind in enumerate(KINDS):
        for opt in (usual, one_pass):
            give(opt._parameters(), np.random.default_rng(number), kind)
        usual.step(**asked)
        usual.zero_grad(set_to_none=False)
        assert one_pass.step(**asked, zero_grad=True) is one_pass
        assert one_pass.grad_norm == usual.grad_norm
        assert bits(one_pass) == bits(usual)
        for p in one_pass._parameters():
            assert not np.any(on_host(p.grad))


@pytest.mark.parametrize("case", THREE, ids=str)
def test_the_bits_are_those_of_two_calls(case):
    agree(case.make)
    agree(case.make, max_norm=0.5)


HALF = {
    "masters": (np.float16, {"master_weights": True}),
    "at random": (BFLOAT16, {"stochastic_rounding": True}),
    "measured": (np.float32, {"measure_updates": True, "ema_decay": 0.9}),
    "clipped": (np.float32, {}),
}


@on_cpu_only
@pytest.mark.parametrize("kind", HALF)
def test_with_options_too(kind):
    dtype, options = HALF[kind]
    asked = {"clip_value": 0.25} if kind == "clipped" else {}
    agree(lambda ps: optim.AdamW(ps, **options), dtype, **asked)


OTHERS = {
    "LAMB": lambda ps: optim.LAMB(ps),
    "Adafactor": lambda ps: optim.Adafactor(ps),
    "Lookahead": lambda ps: optim.Lookahead(optim.SGD(ps, lr=0.1), k=2),
    "Mixed": lambda ps: optim.Mixed(
        [
            {"params": ps[:1], "optimizer": "Adafactor"},
            {"params": ps[1:], "optimizer": "SGD", "lr": 0.1},
        ]
    ),
}


@on_cpu_only
@pytest.mark.parametrize("kind", OTHERS)
def test_for_optimizers_of_other_kinds(kind):
    agree(OTHERS[kind])
    agree(OTHERS[kind], max_norm=0.5)


@on_cpu_only
def test_sam_sets_the_gradients_of_its_closure_to_zero():
    x = genesis.Parameter(np.array([3.0, -4.0]))
    opt = optim.SAM(optim.SGD([x], lr=0.25), rho=0.5)

    def closure():
        x.grad = 2 * x.data
        return float(x.data @ x.data)

    opt.step(closure, zero_grad=True)
    np.testing.assert_allclose(x.data, [1.35, -1.8])
    assert not x.grad.any()


def test_a_step_that_is_left_out_leaves_zeros_too():
    opt = optim.SGD(params(), lr=1.0)
    for way in (
        lambda: opt.step(skip_nonfinite=True, zero_grad=True),
        lambda: opt.scaled_step(0.5, zero_grad=True),
        lambda: genesis.amp.GradScaler().step(opt, zero_grad=True),
    ):
        give(opt._parameters(), np.random.default_rng(1), "new")
        before = bits(opt)
        opt._parameters()[1].grad = on_device(np.full(7, np.nan, np.float32))
        way()
        assert opt.step_skipped
        assert bits(opt) == before
        assert not any(np.any(on_host(p.grad)) for p in opt._parameters())
    assert opt.skipped_steps == 3


def test_a_scaler_that_has_unscaled_sets_to_zero_too():
    opt, scaler = optim.SGD(params(), lr=1.0), genesis.amp.GradScaler()
    for bad in (1.0, np.inf):
        give(opt._parameters(), np.random.default_rng(1), "new")
        opt._parameters()[1].grad = on_device(np.full(7, bad, np.float32))
        scaler.unscale_(opt)
        scaler.step(opt, zero_grad=True)
        scaler.update()
        assert opt.step_skipped is (bad == np.inf)
        assert not any(np.any(on_host(p.grad)) for p in opt._parameters())


def test_hooks_see_it_where_it_is_asked_for():
    seen = []
    opt = optim.Lookahead(optim.SGD(params(), lr=1.0))
    for each in (opt, opt.optimizer):
        each.register_step_post_hook(lambda opt, args, kwargs: seen.append(kwargs))
    for asked in ({}, {"zero_grad": True}):
        give(opt._parameters(), np.random.default_rng(1), "new")
        opt.step(**asked)
    assert seen == [{}, {}, {"zero_grad": True}, {"zero_grad": True}]


def refused(opt, error, said, **asked):
    before = bits(opt), [None if p.grad is None else on_host(p.grad) for p in opt._parameters()]
    with pytest.raises(error, match=said):
        opt.step(zero_grad=True, **asked)
    after = bits(opt), [None if p.grad is None else on_host(p.grad) for p in opt._parameters()]
    np.testing.assert_equal(after, before)


@on_cpu_only
@pytest.mark.parametrize("make", [lambda ps: optim.SGD(ps, lr=1.0), lambda ps: optim.Adafactor(ps)])
def test_gradients_that_cannot_be_set_to_zero_are_refused(make):
    ps = params()
    opt = make([{"params": ps[:1]}, {"params": ps[1:]}])
    give(ps, np.random.default_rng(1), "new")
    for _ in range(2):  # at the first step, and where there is a plan
        ps[1].grad.flags.writeable = False
        refused(
            opt, ValueError, "gradient of parameter 1, which zero_grad=True sets to zero, is read-o"
        )
        ps[1].grad = np.ones(7, np.float32)
        # Two that share memory, new at each step, and one of them moved where the other was.
        memory = np.ones(27, np.float32)
        ps[1].grad, ps[0].grad = memory[:7], memory[6:26].reshape(5, 4)
        refused(
            opt, ValueError, "gradients of parameter 0 and parameter 1 share memory, and zero_grad"
        )
        ps[0].grad = memory[7:].reshape(5, 4)
        opt.step(zero_grad=True)
        assert not memory.any()
        ps[1].grad = memory[8:15]
        refused(
            opt, ValueError, "gradients of parameter 0 and parameter 1 share memory, and zero_grad"
        )
        opt.step()  # which reads them only
        ps[1].grad = np.ones(7, np.float32)
    refused(opt, ValueError, "given others: fill those yourself", grads=[p.grad for p in ps])
    with pytest.raises(TypeError, match="Invalid zero_grad: 1, expected True or False"):
        opt.step(zero_grad=1)


@on_cpu_only
def test_two_optimizers_in_one_do_not_share_gradients_that_become_zero():
    ps = params()[:2]
    opt = OTHERS["Mixed"](ps)
    memory = np.ones(27, np.float32)
    ps[1].grad, ps[0].grad = memory[:7], memory[6:26].reshape(5, 4)
    refused(opt, ValueError, "gradients of parameter 0 and parameter 1 share memory, and zero_grad")
    opt.step()


@on_cpu_only
def test_a_sparse_gradient_is_refused():
    table = genesis.Parameter(np.ones((4, 2)))
    table.grad = genesis.SparseGrad(np.array([1]), np.ones((1, 2)))
    opt = optim.SGD([table], lr=1.0)
    with pytest.raises(TypeError, match=r"parameter 0 is a SparseGrad.*clear_grad"):
        opt.step(zero_grad=True)
    np.testing.assert_array_equal(table.data, np.ones((4, 2)))


# ---- where no step follows ----


@on_cpu_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_past_the_cache_are_zeros_and_nothing_else(dtype, monkeypatch):
    """Whatever a gradient begins and ends with, and whatever lies beside it."""
    monkeypatch.setattr(cpu, "STREAMED", 0)
    monkeypatch.setattr(cpu, "CHUNK", 50)
    memory = np.ones(6000, dtype)
    places = [(1, 0), (10, 1), (40, 33), (100, 200), (300, 16), (500, 777), (2000, 250)]
    params, grads = [], []
    for start, size in places:
        params.append(genesis.Parameter(np.ones(size, dtype)))
        grads.append(memory[start : start + size])
        params[-1].grad = grads[-1]
    opt = optim.SGD(params, lr=0.0)
    opt.step()
    opt.zero_grad(set_to_none=False)
    expected = np.ones(6000, dtype)
    for start, size in places:
        expected[start : start + size] = 0
    assert (memory == expected).all()
