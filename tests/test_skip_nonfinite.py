"""`skip_nonfinite`: a step whose gradients are not finite leaves no trace."""

import warnings

import numpy as np
import pytest
from devices import SIMULATED, on_device, parameter

import genesis
from genesis import optim

BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])


def all_of(opt):
    """Everything that a step may change."""
    return [p.numpy().copy() for p in opt._parameters()], opt.state_dict(), opt._step_count


def same(one, other):
    np.testing.assert_equal(one, other)


def params(dtype=np.float64):
    return [parameter(np.arange(1, 6, dtype=dtype)), parameter(np.ones((2, 3), dtype))]


def give(opt, bad=None):
    for p in opt._parameters():
        grad = np.full(p.shape, 0.5)
        p.grad = on_device(grad)
    if bad is not None:
        grad.reshape(-1)[-1] = bad
        p.grad = on_device(grad)


MAKE = {
    "AdamW": lambda ps, **o: optim.AdamW(ps, **o),
    "two groups": lambda ps, **o: optim.AdamW([{"params": ps[:1], **o}, {"params": ps[1:]}]),
    "ema": lambda ps, **o: optim.AdamW(ps, ema_decay=0.9, **o),
    "Muon": lambda ps, **o: optim.Muon([{"params": ps[1:], **o}], lr=0.1),
    "Lookahead": lambda ps, **o: optim.Lookahead(optim.AdamW(ps, **o), k=1),
    "Mixed": lambda ps, **o: optim.Mixed(
        [
            {"params": ps[:1], "optimizer": optim.AdamW, **o},
            {"params": ps[1:], "optimizer": optim.Muon, "lr": 0.1},
        ]
    ),
}


@BAD
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("by_option", [True, False])
def test_a_skipped_step_leaves_no_trace(kind, by_option, bad):
    if kind in ("Muon", "Mixed") and SIMULATED:
        pytest.skip("Muon works on the CPU only")
    opt = MAKE[kind](params(), **({"skip_nonfinite": True} if by_option else {}))
    asked = {} if by_option else {"skip_nonfinite": True}
    give(opt)
    opt.step(**asked)
    assert not opt.step_skipped
    before = all_of(opt)
    give(opt, bad)
    assert opt.step(**asked) is opt
    assert opt.step_skipped
    assert opt.skipped_steps == 1
    same(all_of(opt), before)
    give(opt)
    opt.step(**asked)
    assert not opt.step_skipped
    assert opt.skipped_steps == 1
    assert not np.array_equal(opt._parameters()[0].numpy(), before[0][0])


def test_a_first_step_that_is_skipped_makes_no_state():
    opt = optim.AdamW(params(), skip_nonfinite=True)
    give(opt, np.nan)
    opt.step()
    assert not opt.state
    assert opt.state_dict()["state"] == {}


def test_without_it_a_step_takes_what_it_is_given_and_one_step_may_decide():
    opt = optim.SGD(params(), lr=1.0)
    give(opt, np.nan)
    opt.step(skip_nonfinite=False)
    opt.step()
    assert np.isnan(opt._parameters()[1].numpy()).sum() == 1
    opt = optim.SGD(params(), lr=1.0, skip_nonfinite=True)
    give(opt, np.nan)
    opt.step(skip_nonfinite=False)
    assert np.isnan(opt._parameters()[1].numpy()).sum() == 1
    assert opt.skipped_steps == 0


def test_finite_gradients_give_the_same_bits_with_it(rng):
    plain, careful = optim.AdamW(params()), optim.AdamW(params(), skip_nonfinite=True)
    for _ in range(3):
        for a, b in zip(plain._parameters(), careful._parameters()):
            a.grad = b.grad = on_device(rng.standard_normal(a.shape))
        plain.step(max_norm=0.7)
        careful.step(max_norm=0.7)
        assert careful.grad_norm == pytest.approx(plain.grad_norm, rel=1e-14)
    plain.step()
    careful.step()
    for a, b in zip(plain._parameters(), careful._parameters()):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-15)


def test_large_numbers_whose_squares_overflow_are_finite():
    opt = optim.SGD(params(), lr=1e-300, skip_nonfinite=True)
    for p in opt._parameters():
        p.grad = on_device(np.full(p.shape, 1e300))
    opt.step()
    assert not opt.step_skipped


@BAD
def test_clipping_closures_hooks_and_schedules(bad):
    opt = optim.SGD(params(), lr=1.0, skip_nonfinite=True)
    schedule = optim.lr_scheduler.StepLR(opt, 1)
    called = []
    opt.register_step_post_hook(lambda *_: called.append("after"))
    before = all_of(opt)

    def closure():
        called.append("closure")
        give(opt, bad)
        return 3.0

    assert opt.step(closure, max_norm=1.0) == 3.0
    assert called == ["closure"]
    assert not np.isfinite(opt.grad_norm)
    same(all_of(opt), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no step came before the schedule's, and rightly so
        schedule.step()
    give(opt)
    opt.step(max_norm=1.0)
    assert called == ["closure", "after"]


def test_a_loss_scaler_decides_by_itself():
    opt = optim.SGD(params(), lr=1.0, skip_nonfinite=True)
    scaler = genesis.amp.GradScaler(init_scale=4.0)
    before = all_of(opt)
    give(opt, np.inf)
    assert scaler.step(opt) is None
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert opt.skipped_steps == 1
    same(all_of(opt), before)


@BAD
def test_sam_does_not_go_where_it_would_not_come_back_from(bad):
    opt = optim.SAM(optim.SGD(params(), lr=1.0, skip_nonfinite=True))
    for when in (1, 2):
        before, evaluations = all_of(opt), []

        def closure(when=when, evaluations=evaluations):
            evaluations.append(1)
            give(opt, bad if len(evaluations) == when else None)
            return 2.0

        assert opt.step(closure) == 2.0
        assert opt.step_skipped
        assert len(evaluations) == when
        assert opt.skipped_steps == when
        same(all_of(opt), before)


@pytest.mark.parametrize("bad", [1, "yes", 0.0, None])
def test_other_values_are_refused(bad):
    with pytest.raises(TypeError, match="skip_nonfinite"):
        optim.SGD(params(), lr=1.0, skip_nonfinite=bad)
    opt = optim.SGD(params(), lr=1.0)
    if bad is not None:
        with pytest.raises(TypeError, match="skip_nonfinite"):
            opt.step(skip_nonfinite=bad)


def test_lbfgs_has_no_such_option():
    opt = optim.LBFGS([genesis.Parameter(np.ones(2))])
    with pytest.raises(TypeError, match="skip_nonfinite"):
        opt.step(lambda: 1.0, skip_nonfinite=True)
