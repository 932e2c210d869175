"""Rules that ask for sums over their tensor, against plain NumPy, and against themselves."""

import math

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only, on_device, on_host, parameter

import genesis
from genesis import RuleError, mean, total
from genesis.formulas import Recipe

SHAPES = [(5, 3), (), (4000,), (0,), (7,), (1, 1)]


@genesis.rule
def Summing(
    param,
    grad,
    exp_avg,
    *,
    lr=0.1,
    beta=0.9,
    limit=genesis.hyper.non_negative(0.5),
    least=0.0,
    scaled=True,
):
    """Everything at once: two sums, a mean, a count, a choice by a sum and one by a flag."""
    exp_avg = beta * exp_avg + (1 - beta) * grad
    size, change = math.sqrt(total(param * param)), math.sqrt(total(exp_avg * exp_avg))
    trust = 1
    if scaled and size > least and change > least:
        trust = min(size / change, limit)
    agreeing = mean(exp_avg * grad > 0)
    return param - lr * trust * agreeing * (exp_avg - mean(grad)), exp_avg


def by_numpy(x, g, m, lr=0.1, beta=0.9, limit=0.5, scaled=True):
    """One update of one tensor, in float64."""
    if not x.size:
        return x, m
    m = beta * m + (1 - beta) * g
    size, change = np.linalg.norm(x.ravel()), np.linalg.norm(m.ravel())
    trust = min(size / change, limit) if scaled and size > 0 and change > 0 else 1
    agreeing = np.mean(m * g > 0)
    return x - lr * trust * agreeing * (m - g.mean()), m


def values(seed, dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    if len(found) > 4:
        found[4][...] = 0  # a tensor and a gradient without size
    return found


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("how", [{}, {"max_norm": 0.5}, {"clip_value": 0.3}], ids=str)
@pytest.mark.parametrize("scaled", [True, False])
def test_sums_are_those_of_each_tensor(dtype, how, scaled):
    params = [parameter(value) for value in values(0, dtype)]
    expected = [
        (value.astype(np.float64), 0 * value.astype(np.float64)) for value in values(0, dtype)
    ]
    opt = Summing(params, scaled=scaled)
    for step in range(1, 4):
        gradients = values(step, dtype)
        for p, gradient in zip(params, gradients):
            p.grad = on_device(gradient)
        opt.step(**how)
        wide = [gradient.astype(np.float64) for gradient in gradients]
        if "max_norm" in how:
            norm = math.sqrt(sum((g**2).sum() for g in wide))
            wide = [g * min(1.0, 0.5 / (norm + 1e-6)) for g in wide]
        if "clip_value" in how:
            wide = [np.clip(g, -0.3, 0.3) for g in wide]
        expected = [by_numpy(x, g, m, scaled=scaled) for (x, m), g in zip(expected, wide)]
    rtol = 1e-12 if dtype == np.float64 else 2e-5
    for p, (x, _), before in zip(params, expected, values(0)):
        np.testing.assert_allclose(
            p.numpy() - before.astype(dtype), x - before.astype(dtype), rtol=rtol, atol=rtol / 10
        )


def test_maximize_turns_the_gradient_before_it_is_summed():
    results = []
    for sign in (1, -1):
        params = [parameter(value) for value in values(0)]
        opt = Summing(params, maximize=sign < 0)
        for p, gradient in zip(params, values(1)):
            p.grad = on_device(sign * gradient)
        opt.step()
        results.append([p.numpy() for p in params])
    for one, other in zip(*results):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_sums_of_16_bits_are_those_of_the_master(dtype):
    first, gradients = values(0, dtype), [values(step, dtype) for step in (1, 2)]
    params = [parameter(value) for value in first]
    opt = Summing(params, master_weights=True, ema_decay=0.5)
    expected = [(value.astype(np.float64), 0 * value.astype(np.float64)) for value in first]
    for step in range(2):
        for p, gradient in zip(params, gradients[step]):
            p.grad = on_device(gradient)
        opt.step()
        expected = [
            by_numpy(x, g.astype(np.float64), m) for (x, m), g in zip(expected, gradients[step])
        ]
    for p, (x, _) in zip(params, expected):
        master = on_host(opt.state[p]["master"])
        np.testing.assert_allclose(master, x, rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(p.numpy(), master.astype(dtype))
    params[0].data = on_device(np.full((5, 3), 2.0, dtype))  # edited: it counts in the sums, too
    for p, gradient in zip(params, gradients[0]):
        p.grad = on_device(gradient)
    m = on_host(opt.state[params[0]]["exp_avg"]).astype(np.float64)
    opt.step()
    x, _ = by_numpy(np.full((5, 3), 2.0), gradients[0][0].astype(np.float64), m)
    np.testing.assert_allclose(on_host(opt.state[params[0]]["master"]), x, rtol=2e-6)


@on_cpu_only
def test_the_bits_do_not_depend_on_threads_or_grouping():
    shapes = [(300, 500), (70_000,), (7,), (3, 16384)]
    first, gradients = values(0, np.float32, shapes), values(1, np.float32, shapes)
    found = []
    before = genesis.get_num_threads()
    try:
        for threads, groups in ((1, 1), (4, 1), (3, 4)):
            genesis.set_num_threads(threads)
            params = [genesis.Parameter(value.copy()) for value in first]
            split = [params] if groups == 1 else [[p] for p in reversed(params)]
            opt = Summing([{"params": group} for group in split])
            for p, gradient in zip(params, gradients):
                p.grad = gradient
            for _ in range(2):
                opt.step(max_norm=5.0)
            found.append([p.data for p in params])
    finally:
        genesis.set_num_threads(before)
    for other in found[1:]:
        for one, another in zip(found[0], other):
            np.testing.assert_array_equal(one, another)


@on_cpu_only
def test_many_chunks_and_strided_arrays(small_chunks):
    base = np.random.default_rng(0).standard_normal((40, 10))
    p = genesis.Parameter(base[:, ::2])
    expected = p.numpy().copy(), np.zeros((40, 5))
    opt = Summing([p])
    for step in range(1, 4):
        gradient = np.random.default_rng(step).standard_normal((5, 40)).T
        p.grad = gradient
        opt.step()
        expected = by_numpy(expected[0], gradient, expected[1])
    np.testing.assert_allclose(base[:, ::2], expected[0], rtol=1e-12)


def test_reference_evaluates_sums():
    x, g, m = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.1, -0.2]), np.array([0.1, -0.1, 0.0])
    found, average = Summing.reference(x, g, m)
    expected, momentum = by_numpy(x, g, m)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(average, momentum, rtol=1e-14)
    p = genesis.Parameter(x.copy())
    p.grad = g
    opt = Summing([p])
    opt.state[p] = {"step": 0, "exp_avg": m.copy()}
    opt.step()
    np.testing.assert_allclose(p.numpy(), found, rtol=1e-14)


@on_cpu_only
def test_chains_sum_too():
    @genesis.transform
    def normalised(update, param):
        return update / math.sqrt(total(update * update))

    Normalised = genesis.chain(
        normalised, genesis.transforms.scale_by_lr(lr=1.0), name="Normalised"
    )
    x = np.zeros(2)
    Normalised([x]).step(grads=[np.array([3.0, 4.0])])
    np.testing.assert_allclose(x, [-0.6, -0.8], rtol=1e-15)


@on_cpu_only
def test_equal_sums_are_had_once_and_unused_ones_not_at_all():
    @genesis.rule
    def Twice(param, grad, *, lr, on=False):
        size, again, other = total(grad * grad), total(grad * grad), total(param)
        return param - lr * grad / (size + again) * (other if on else 1)

    recipe: Recipe = Twice._recipe
    assert [recipe.written[(on,)].totals for on in (False, True)] == [1, 2]
    assert recipe.written[(False,)].numbers == 1


def test_a_mean_of_ones_is_one():
    @genesis.rule
    def Counted(param, grad, *, lr):
        return param - lr * grad / mean(param * 0 + 1)

    p = parameter(np.zeros(4))
    p.grad = on_device(np.ones(4))
    Counted([p], lr=1.0).step()
    np.testing.assert_array_equal(p.numpy(), -np.ones(4))


def test_what_is_refused():
    with pytest.raises(RuleError, match="depends on another total"):

        @genesis.rule
        def Nested(param, grad, *, lr):
            return param - lr * total(grad * total(grad))

    with pytest.raises(RuleError, match="depends on an element whether it is"):

        @genesis.rule
        def Sometimes(param, grad, *, lr):
            return param - lr * (total(grad) if grad > 0 else 1.0)

    with pytest.raises(RuleError, match="sums over a tensor need all of its gradient"):

        @genesis.rule(sparse=lambda lr: True)
        def Sparse(param, grad, *, lr):
            return param - lr * grad / total(grad)

    with pytest.raises(TypeError, match="has a meaning in a rule only"):
        mean(np.ones(3))
    p = parameter(np.ones(4))
    if isinstance(p.data, np.ndarray):
        p.grad = genesis.SparseGrad([1], np.ones(1))
        with pytest.raises(TypeError, match="does not support sparse gradients"):
            Summing([p]).step()


@on_cpu_only
def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    ours = pytest.importorskip("genesis.torch")
    first, gradients = values(0, np.float32), values(1, np.float32)
    tensors = [torch.nn.Parameter(torch.tensor(value)) for value in first]
    params = [genesis.Parameter(value.copy()) for value in first]
    for tensor, p, gradient in zip(tensors, params, gradients):
        tensor.grad, p.grad = torch.tensor(gradient), gradient
    ours.of(Summing)(tensors).step()
    Summing(params).step()
    for tensor, p in zip(tensors, params):
        np.testing.assert_array_equal(tensor.detach().numpy(), p.data)
