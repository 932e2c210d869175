"""Averaged parameters: running mean and exponential average, against plain formulas and torch."""

import copy
import math
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter

import genesis
from genesis.optim.swa_utils import (
    SWALR,
    AveragedParameters,
    get_ema_weight_fn,
    get_swa_weight_fn,
)

SHAPES = [(5, 3), (), (0,), (7,)]


def set_values(params, seed):
    rng = np.random.default_rng(seed)
    for p in params:
        p.data = on_device(rng.standard_normal(p.shape).astype(p.dtype))
    return [p.numpy().copy() for p in params]


@pytest.mark.parametrize(("weight_fn", "decay"), [(None, None), (get_ema_weight_fn(0.9), 0.9)])
def test_averages_are_right(weight_fn, decay):
    params = [parameter(np.zeros(shape)) for shape in SHAPES]
    average = AveragedParameters(params, weight_fn)
    seen = []
    for step in range(6):
        seen.append(set_values(params, step))
        average.update()
    for i, averaged in enumerate(average.averages):
        values = [values[i] for values in seen]
        expected = np.mean(values, axis=0)
        if decay is not None:
            expected = values[0]
            for value in values[1:]:
                expected = decay * expected + (1 - decay) * value
        np.testing.assert_allclose(averaged.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert average.n_averaged == 6


def test_the_first_update_copies_exactly():
    p = parameter(np.array([1e30, 1.0], np.float32))
    average = AveragedParameters([p])
    p.data = on_device(np.array([1e-30, math.pi], np.float32))
    average.update()
    np.testing.assert_array_equal(average.averages[0].numpy(), p.numpy())


def test_a_weight_of_1_takes_the_newest_exactly():
    p = parameter(np.array([1e8], np.float32))
    averages = AveragedParameters([p], get_ema_weight_fn(0.0)), AveragedParameters([p])
    for average in averages:
        average.update()
    p.data = on_device(np.array([1.0], np.float32))
    for average in averages:
        average.update()
    assert averages[0].averages[0].numpy() == 1.0
    assert averages[1].averages[0].numpy() == np.float32(1e8 / 2)


def test_follows_torch():
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    for weight_fn, avg_fn in [(None, None), (get_ema_weight_fn(0.8), get_ema_avg_fn(0.8))]:
        model = torch.nn.Linear(4, 3).double()
        swa = AveragedModel(model, avg_fn=avg_fn)
        params = [parameter(p.detach().numpy().copy()) for p in model.parameters()]
        average = AveragedParameters(params, weight_fn)
        for step in range(5):
            values = set_values(params, step)
            with torch.no_grad():
                for p, value in zip(model.parameters(), values):
                    p.copy_(torch.tensor(value))
            swa.update_parameters(model)
            average.update()
        for averaged, p in zip(average.averages, swa.module.parameters()):
            np.testing.assert_allclose(averaged.numpy(), p.detach().numpy(), rtol=1e-12)


def test_types_are_mixed_and_averages_are_separate():
    params = [parameter(np.ones(3, dtype)) for dtype in (np.float64, np.float32, BFLOAT16)]
    average = AveragedParameters(iter(params))
    average.update()
    for p in params:
        p.data = on_device(np.full(3, 3, p.dtype))
    average.update()
    for p, averaged in zip(params, average.averages):
        assert averaged.dtype == p.dtype
        np.testing.assert_array_equal(averaged.numpy().astype(float), np.full(3, 2.0))
        np.testing.assert_array_equal(p.numpy().astype(float), np.full(3, 3.0))


def test_follows_an_optimizer():
    p = parameter(np.array([1.0, 2.0]))
    opt = genesis.optim.SGD([p], lr=0.1)
    average = AveragedParameters([p], get_swa_weight_fn())
    seen = []
    for _ in range(4):
        p.grad = on_device(p.numpy().copy())
        opt.step()
        average.update()
        seen.append(p.numpy().copy())
    np.testing.assert_allclose(average.averages[0].numpy(), np.mean(seen, axis=0), rtol=1e-14)


def test_state_is_resumed():
    params = [parameter(np.zeros(shape)) for shape in SHAPES]
    average = AveragedParameters(params, get_ema_weight_fn(0.7))
    for step in range(3):
        set_values(params, step)
        average.update()
    saved = average.state_dict()
    others = [
        AveragedParameters(params, get_ema_weight_fn(0.7)),
        copy.deepcopy(average),
        pickle.loads(pickle.dumps(average)),
    ]
    others[0].load_state_dict(saved)
    for other in others[1:]:
        other._params = params
    set_values(params, 9)
    for averages in (average, *others):
        averages.update()
        assert averages.n_averaged == 4
    for other in others:
        for left, right in zip(average.averages, other.averages):
            np.testing.assert_array_equal(left.numpy(), right.numpy())
    assert saved["n_averaged"] == 3


def test_refuses_what_does_not_fit():
    p = parameter(np.zeros(3))
    average = AveragedParameters([("w", p)])
    assert average.names == ["w"]
    average.update()
    saved = average.state_dict()
    for bad, said in [
        ({}, "n_averaged"),
        ({**saved, "n_averaged": -1}, "number of updates"),
        ({**saved, "n_averaged": 1.5}, "number of updates"),
        ({**saved, "averages": []}, "0 averages"),
        ({**saved, "averages": [np.zeros(4)]}, "shape"),
        ({**saved, "averages": [np.zeros(3, np.float32)]}, "float32"),
        ({**saved, "averages": [np.zeros(3, int)]}, "int64"),
    ]:
        with pytest.raises((ValueError, TypeError), match=said):
            average.load_state_dict(bad)
    assert average.n_averaged == 1
    with pytest.raises(ValueError, match="decay"):
        get_ema_weight_fn(1.1)
    with pytest.raises(ValueError, match="decay"):
        get_ema_weight_fn(math.nan)
    with pytest.raises(TypeError):
        AveragedParameters(p)
    with pytest.raises(ValueError, match="empty"):
        AveragedParameters([])
    assert SWALR is genesis.optim.lr_scheduler.SWALR


# ---- what an update finds when it looks ----


def test_an_update_sees_arrays_that_were_replaced():
    p = parameter(np.ones(3))
    mean = AveragedParameters([p])
    mean.update()
    for value, expected in ((3.0, 2.0), (5.0, 3.0)):
        p.data = on_device(np.full(3, value))
        mean.update()
        np.testing.assert_array_equal(on_host(mean.averages[0].data), np.full(3, expected))
    mean.averages[0].data = on_device(np.zeros(3))
    p.data = on_device(np.full(3, 4.0))
    mean.update()
    np.testing.assert_array_equal(on_host(mean.averages[0].data), np.ones(3))


@on_cpu_only
@pytest.mark.parametrize("attack", ["read-only", "shape", "dtype", "shared"])
def test_an_average_that_cannot_be_written_is_refused_and_nothing_changes(attack):
    p, q = genesis.Parameter(np.ones(4)), genesis.Parameter(np.ones(4), name="q")
    mean = AveragedParameters([p, q])
    mean.update()
    mean.update()
    p.data[:] = q.data[:] = 9.0
    array = mean.averages[1].data
    said = r"parameter 1 \('q'\)"
    if attack == "read-only":
        array.flags.writeable = False
    elif attack == "shape":
        array.shape = (2, 2)
    elif attack == "dtype":
        array.dtype = np.int64
    else:
        mean.averages[1].data = q.data
    before = mean.averages[0].data.copy()
    with pytest.raises((TypeError, ValueError), match=said):
        mean.update()
    np.testing.assert_array_equal(mean.averages[0].data, before)
    assert mean.n_averaged == 2
