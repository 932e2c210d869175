"""`measure_updates`: how far a step moves parameters, noted in its own pass."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from devices import SIMULATED, on_cpu_only, on_device, parameter

import genesis
from genesis import optim

SIZES = (100, 7, 3000, 0)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def arrays(rng, dtype):
    return [rng.standard_normal(n).astype(dtype) for n in SIZES]


def norm(values):
    return np.sqrt(sum(np.sum(np.square(np.asarray(v, np.float64))) for v in values))


def step(opt, grads, **asked):
    """One step: what it moved, and what parameters were before, each a list of float64 arrays."""
    params = opt._parameters()
    for p, grad in zip(params, grads):
        p.grad = on_device(grad)
    before = [p.numpy().astype(np.float64) for p in params]
    opt.step(**asked)
    return [p.numpy().astype(np.float64) - b for p, b in zip(params, before)], before


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=str)
def test_it_is_the_norm_of_what_was_stored(dtype, rng):
    """Of what 16 bits are left with, too: most of these steps round to nothing in bfloat16."""
    params = [parameter(array) for array in arrays(rng, dtype)]
    opt = optim.SGD(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.004}], lr=0.02, measure_updates=True
    )
    assert opt.update_norm is None
    assert opt.update_ratios is None
    rel = 1e-5 if SIMULATED else 1e-12 if dtype == np.float64 else 1e-6
    for _ in range(3):
        moved, before = step(opt, [g.astype(dtype) for g in arrays(rng, np.float64)])
        assert opt.update_norm == pytest.approx(norm(moved), rel=rel)
        ratios = [norm(moved[:1]) / norm(before[:1]), norm(moved[1:]) / norm(before[1:])]
        assert opt.update_ratios == pytest.approx(ratios, rel=rel)


def test_parameters_are_the_same_bits_with_it_and_without(rng):
    given = arrays(rng, np.float32)
    found = []
    for measures in (False, True):
        opt = optim.AdamW([parameter(a.copy()) for a in given], lr=0.1, measure_updates=measures)
        grads = np.random.default_rng(1)
        for _ in range(3):
            step(opt, arrays(grads, np.float32), max_norm=1.0)
        found.append([p.numpy().tobytes() for p in opt._parameters()])
    assert found[0] == found[1]


def test_no_bit_depends_on_threads_or_grouping(small_chunks, num_threads, rng):
    given, grads = arrays(rng, np.float32), arrays(rng, np.float32)

    def measured(groups, threads):
        num_threads(threads)
        params = [parameter(a.copy()) for a in given]
        opt = optim.AdamW(
            [{"params": [params[i] for i in each]} for each in groups], measure_updates=True
        )
        for p, grad in zip(params, grads):
            p.grad = on_device(grad)
        return opt.step().update_norm

    one = measured([[0, 1, 2, 3]], 1)
    assert one > 0
    assert measured([[0, 1, 2, 3]], 2) == measured([[2], [3, 0, 1]], 2) == one
    assert measured([[3], [2, 1], [0]], 1) == one


def test_a_master_is_what_is_measured(rng):
    opt = optim.SGD(
        [parameter(np.ones(50, BFLOAT16))], lr=1.0, master_weights=True, measure_updates=True
    )
    moved, _ = step(opt, [np.full(50, 1e-4, np.float32)])
    assert norm(moved) == 0
    assert opt.update_norm == pytest.approx(1e-4 * np.sqrt(50), rel=1e-3)
    assert opt.update_ratios == pytest.approx([1e-4], rel=1e-3)


@on_cpu_only
def test_random_rounding_is_measured_as_it_fell(rng):
    opt = optim.SGD(
        [parameter(np.ones(500, BFLOAT16))], lr=1.0, stochastic_rounding=True, measure_updates=True
    )
    moved, _ = step(opt, [np.full(500, 1e-3, np.float32)])
    assert norm(moved) > 0
    assert opt.update_norm == pytest.approx(norm(moved), rel=1e-6)


def test_a_rule_that_sums_is_measured(rng):
    opt = optim.AdamW(
        [parameter(a) for a in arrays(rng, np.float64)], cautious=True, measure_updates=True
    )
    moved, _ = step(opt, arrays(rng, np.float64))
    assert opt.update_norm == pytest.approx(norm(moved), rel=1e-12)


def test_zeros_have_a_ratio():
    opt = optim.SGD([parameter(np.zeros(3))], lr=1.0, measure_updates=True)
    step(opt, [np.zeros(3)])
    assert (opt.update_norm, opt.update_ratios) == (0.0, [0.0])
    step(opt, [np.ones(3)])
    assert opt.update_ratios == [np.inf]
    step(opt, [np.full(3, np.nan)])
    assert np.isnan(opt.update_norm)


def test_groups_decide_and_may_change_their_mind(rng):
    params = [parameter(np.ones(3)), parameter(np.ones(3))]
    opt = optim.SGD(
        [{"params": params[:1], "measure_updates": True}, {"params": params[1:]}], lr=0.5
    )
    step(opt, [np.ones(3)] * 2)
    assert opt.update_ratios == [0.5, None]
    assert opt.update_norm == pytest.approx(0.5 * np.sqrt(3))
    assert pickle.loads(pickle.dumps(opt)).update_norm is None
    opt.param_groups[0]["measure_updates"] = False
    step(opt, [np.ones(3)] * 2)
    assert opt.update_norm is None


def test_a_step_that_is_left_out_moves_nothing():
    opt = optim.SGD([parameter(np.ones(3))], lr=0.5, measure_updates=True, skip_nonfinite=True)
    step(opt, [np.ones(3)])
    step(opt, [np.full(3, np.nan)])
    assert (opt.update_norm, opt.update_ratios) == (0.0, [0.0])
    step(opt, [np.ones(3)])
    assert opt.update_ratios == [1.0]


@on_cpu_only
def test_wrappers_and_mixed_tell_what_is_inside():
    def make():
        return optim.SGD([genesis.Parameter(np.ones(3))], lr=0.5, measure_updates=True)

    opt = optim.Lookahead(make(), k=1)
    step(opt, [np.ones(3)])
    assert opt.update_ratios == [0.5]  # without the way back
    opt = optim.SAM(make())
    opt.step(lambda: (1.0, [np.ones(3)]))
    assert opt.update_ratios == [0.5]
    params = [genesis.Parameter(np.ones(3)), genesis.Parameter(np.eye(3))]
    opt = optim.Mixed(
        [
            {"params": params[1:], "optimizer": optim.Muon, "lr": 0.1},
            {"params": params[:1], "optimizer": optim.SGD, "lr": 0.5, "measure_updates": True},
        ]
    )
    assert opt.update_norm is None
    step(opt, [np.eye(3), np.ones(3)])
    assert opt.update_ratios == [None, 0.5]
    step(opt, [np.eye(3), np.full(3, np.nan)], skip_nonfinite=True)
    assert opt.update_ratios == [None, 0.0]


@on_cpu_only
def test_what_cannot_be_measured_is_refused():
    params = [genesis.Parameter(np.eye(3))]
    with pytest.raises(TypeError, match="Muon does not support measure_updates"):
        optim.Muon([{"params": params, "measure_updates": True}], lr=0.1)
    with pytest.raises(TypeError, match="measure_updates"):
        optim.SGD(params, lr=0.1, measure_updates=1)
    opt = optim.SGD(params, lr=0.1, measure_updates=True)
    rows = genesis.SparseGrad(np.array([1]), np.ones((1, 3)))
    with pytest.raises(TypeError, match="takes no SparseGrad with measure_updates"):
        opt.step(grads=[rows])
    assert optim.Muon(params, lr=0.1).update_norm is None
