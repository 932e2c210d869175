"""Averages of parameters in the step, and parameters that show them."""

import copy
import math
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter

import genesis
from genesis.optim.swa_utils import AveragedParameters, get_ema_weight_fn

SHAPES = [(5, 3), (), (0,), (7,)]
DECAY = 0.9


def made(dtype=np.float32, kind=genesis.optim.AdamW, **settings):
    """Parameters, the same ones for every call, and an optimizer of them."""
    rng = np.random.default_rng(0)
    params = [parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    return params, kind(params, lr=0.1, **settings)


def set_gradients(params, step):
    rng = np.random.default_rng(100 + step)
    for p in params:
        p.grad = on_device(rng.standard_normal(p.shape).astype(p.dtype))


def arrays(params):
    return [p.numpy().copy() for p in params]


def averages(opt, params):
    return [on_host(opt.state[p]["ema"]) for p in params]


def same(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_averages_are_right_and_parameters_are_what_they_are_without(dtype):
    params, opt = made(dtype, ema_decay=DECAY)
    others, plain = made(dtype)
    expected = None
    for step in range(5):
        for each, optimizer in ((params, opt), (others, plain)):
            set_gradients(each, step)
            optimizer.step(**({}, {"max_norm": 1.0}, {"clip_value": 0.3})[step % 3])
        same(arrays(params), arrays(others))
        values = [array.astype(np.float64) for array in arrays(params)]
        if expected is None:
            expected = values
        expected = [DECAY * e + (1 - DECAY) * v for e, v in zip(expected, values)]
        rtol = 1e-13 if dtype == np.float64 else 1e-6
        for found, mean in zip(averages(opt, params), expected):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, mean, rtol=rtol, atol=rtol)


def test_averages_are_those_of_averaged_parameters_bit_for_bit():
    params, opt = made(ema_decay=DECAY)
    average = AveragedParameters(params, get_ema_weight_fn(DECAY))
    for step in range(4):
        set_gradients(params, step)
        opt.step()
        average.update()
        same(averages(opt, params), [mean.numpy() for mean in average.averages])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_the_average_of_16_bits_is_that_of_the_master(dtype):
    params, opt = made(dtype, ema_decay=DECAY, master_weights=True, state_dtype="bfloat16")
    expected = None
    for step in range(4):
        set_gradients(params, step)
        opt.step()
        masters = [on_host(opt.state[p]["master"]).astype(np.float64) for p in params]
        expected = masters if expected is None else expected
        expected = [DECAY * e + (1 - DECAY) * m for e, m in zip(expected, masters)]
    for found, mean in zip(averages(opt, params), expected):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, mean, rtol=1e-6, atol=1e-6)
    before = arrays(params)
    opt.swap_ema()
    same(arrays(params), [mean.astype(dtype) for mean in averages(opt, params)])
    opt.swap_ema()
    same(arrays(params), before)


def test_an_average_begins_with_the_parameters_first_step_wherever_the_others_are():
    params, opt = made(kind=genesis.optim.SGD, momentum=0.9)
    late = params.pop()
    set_gradients(params, 0)
    opt.step()
    opt.param_groups[0]["ema_decay"] = (
        DECAY  # state that is there goes on: momentum is not begun anew
    )
    others, plain = made(kind=genesis.optim.SGD, momentum=0.9)
    later = others.pop()
    set_gradients(others, 0)
    plain.step()
    for step in (1, 2):
        for each, optimizer in (([*params, late], opt), ([*others, later], plain)):
            set_gradients(each, step)
            if step == 1:
                each[-1].grad = None
            optimizer.step()
        same(arrays(params), arrays(others))
    same(arrays([late]), averages(opt, [late]))
    first = averages(opt, params[:1])[0]
    assert not np.array_equal(first, params[0].numpy())
    opt.param_groups[0]["ema_decay"] = None  # stands still
    set_gradients(params, 3)
    opt.step()
    same([first], averages(opt, params[:1]))


@pytest.mark.parametrize(("decay", "expected"), [(0.0, "the parameter"), (1.0, "the first")])
def test_the_ends_of_the_range_are_exact(decay, expected):
    params, opt = made(ema_decay=decay)
    first = None
    for step in range(3):
        set_gradients(params, step)
        opt.step()
        first = first or arrays(params)
    same(averages(opt, params), arrays(params) if expected == "the parameter" else first)


def test_swapping_shows_averages_and_puts_back_every_bit():
    params, opt = made(ema_decay=DECAY)
    others, plain = made()
    for step in range(3):
        for each, optimizer in ((params, opt), (others, plain)):
            set_gradients(each, step)
            optimizer.step()
    means = averages(opt, params)
    opt.swap_ema()
    same(arrays(params), means)
    same(averages(opt, params), means)
    with pytest.raises(
        RuntimeError, match=r"shows its average since swap_ema.*call swap_ema.*again"
    ):
        opt.step()
    same(arrays(params), means)
    opt.swap_ema()
    same(arrays(params), arrays(others))
    for each, optimizer in ((params, opt), (others, plain)):
        set_gradients(each, 3)
        optimizer.step()
    same(arrays(params), arrays(others))


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy", "checkpoint"])
def test_a_snapshot_of_either_mode_goes_on(way, tmp_path):
    whole, steady = made(ema_decay=DECAY)
    for step in range(4):
        set_gradients(whole, step)
        steady.step()
    params, opt = made(ema_decay=DECAY)
    for step in range(2):
        set_gradients(params, step)
        opt.step()
    opt.swap_ema()
    if way in ("pickle", "deepcopy"):
        opt = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
        params = opt.param_groups[0]["params"]
    else:
        values = arrays(params)
        if way == "checkpoint":
            genesis.save_checkpoint(tmp_path / "run.safetensors", optimizer=opt)
            params, opt = made()
            genesis.load_checkpoint(tmp_path / "run.safetensors", optimizer=opt)
        else:
            saved = opt.state_dict()
            params, opt = made()
            opt.load_state_dict(saved)
        for p, value in zip(params, values):
            p.data = on_device(value)
    set_gradients(params, 2)
    with pytest.raises(RuntimeError, match=r"shows its average"):
        opt.step()
    opt.swap_ema()
    for step in (2, 3):
        set_gradients(params, step)
        opt.step()
    same(arrays(params), arrays(whole))
    same(averages(opt, params), averages(steady, whole))


@on_cpu_only
def test_swapping_reaches_strided_arrays_and_working_copies():
    strided = np.ones((4, 6), np.float32)[:, ::2]
    p = genesis.Parameter(strided)
    opt = genesis.optim.SGD([p], lr=1.0, ema_decay=0.5)
    for _ in range(2):
        opt.step(grads=[np.ones((4, 3), np.float32)])
    with genesis.autocast("bfloat16"):
        assert np.all(p.data.astype(np.float32) == -1)
        opt.swap_ema()
        assert np.all(strided == -0.5)
        assert np.all(p.data.astype(np.float32) == -0.5)
    opt.swap_ema()
    assert np.all(strided == -1)


def test_nothing_is_written_where_one_array_does_not_fit():
    params, opt = made(ema_decay=DECAY)
    set_gradients(params, 0)
    opt.step()
    set_gradients(params, 1)
    opt.step()
    before = arrays(params)
    opt.state[params[-1]]["ema"] = on_device(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=r"state 'ema' of parameter 3 has shape"):
        opt.swap_ema()
    with pytest.raises(ValueError, match=r"state 'ema' of parameter 3 has shape"):
        opt.step()
    same(arrays(params), before)
    assert "trained" not in opt.state[params[0]]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"ema_decay value: 1.5, expected a number in \[0, 1\]"):
        made(ema_decay=1.5)
    with pytest.raises(TypeError, match=r"Invalid ema_decay value: '0.9'"):
        made(ema_decay="0.9")
    with pytest.raises(ValueError, match=r"ema_decay value: nan"):
        made(ema_decay=math.nan)
    params, opt = made()
    with pytest.raises(
        RuntimeError, match=r"found no averages: construct the optimizer with ema_decay"
    ):
        opt.swap_ema()
    with pytest.raises(ValueError, match=r"Invalid ema_decay"):
        opt.param_groups[0]["ema_decay"] = -0.1
    params, opt = made(np.float16, ema_decay=DECAY)
    set_gradients(params, 0)
    before = arrays(params)
    with pytest.raises(ValueError, match=r"parameter 0 has 16 bits.*set master_weights=True"):
        opt.step()
    same(arrays(params), before)
    assert not opt.state
    with pytest.raises(TypeError, match=r"Muon does not support ema_decay"):
        genesis.optim.Muon([{"params": [np.ones((2, 2))], "ema_decay": 0.9}])


@on_cpu_only
def test_sparse_rows_have_no_averages():
    p = genesis.Parameter(np.ones((4, 2), np.float32))
    opt = genesis.optim.SGD([p], lr=0.1, ema_decay=DECAY)
    p.grad = genesis.SparseGrad([1], np.ones((1, 2), np.float32))
    with pytest.raises(TypeError, match=r"no SparseGrad with ema_decay.*AveragedParameters"):
        opt.step()


@on_cpu_only
def test_an_average_that_does_not_lie_flat_is_shown_as_it_is():
    rng = np.random.default_rng(0)
    p = genesis.Parameter(np.zeros((300, 200), np.float32))
    opt = genesis.optim.SGD([p], lr=1.0, ema_decay=0.5)
    opt.step(grads=[np.ones((300, 200), np.float32)])
    mean = rng.standard_normal((300, 400)).astype(np.float32)[:, ::2]
    opt.state[p]["ema"] = mean
    opt.swap_ema()
    np.testing.assert_array_equal(p.data, mean)
