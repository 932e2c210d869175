"""Gradient clipping: every norm against NumPy and torch, in place and folded into the step."""

import copy
import gc
import math
import threading
import weakref

import numpy as np
import pytest
from cases import BFLOAT16, ONE_EACH
from devices import DEVICE, on_device, parameter

import genesis
from genesis import buffers
from genesis.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
    kept,
)

SHAPES = [(10, 5), (10,), (), (0,), (3, 4, 2), (4,)]
NORM_TYPES = [1.0, 2.0, math.inf, -math.inf, 0.0, 3.0, 0.5, 2.5, -1.0]


def host(array):
    return buffers.host_copy(array)


def gradients(dtype=np.float64, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    grads = [(rng.standard_normal(shape) * scale).astype(dtype) for shape in SHAPES]
    grads[-1][...] = 0  # a tensor of zeros does not count for the norm of order 0
    return grads


def parameters(grads, dtype=np.float64):
    params = []
    for grad in grads:
        params.append(parameter(np.zeros(np.shape(grad), dtype)))
        params[-1].grad = None if grad is None else on_device(np.array(grad))
    return params


def numpy_norm(grads, norm_type):
    if norm_type == 0:
        return float(sum(np.any(grad != 0) for grad in grads))
    flat = np.concatenate([np.asarray(grad, np.float64).ravel() for grad in grads])
    with np.errstate(divide="ignore"):
        return float(np.linalg.norm(flat, norm_type))


@pytest.mark.parametrize(
    ("norm_type", "dtype"),
    [
        *((norm_type, dtype) for norm_type in NORM_TYPES for dtype in (np.float64, np.float32)),
        *((norm_type, dtype) for norm_type in (2.0, math.inf) for dtype in (np.float16, BFLOAT16)),
    ],
    ids=lambda value: f"{value:g}" if type(value) is float else np.dtype(value).name,
)
def test_norms_are_numpys(norm_type, dtype):
    grads = gradients(dtype)
    expected = numpy_norm(grads, norm_type)
    tolerance = 1e-13 if dtype is np.float64 or DEVICE == "cpu" else 1e-6
    got = get_total_norm([on_device(grad) for grad in grads], norm_type)
    assert type(got) is float
    assert got == pytest.approx(expected, rel=tolerance)
    params = parameters(grads)
    before = [host(p.grad) for p in params]
    norm = clip_grad_norm_(params, 0.5, norm_type)
    assert norm == pytest.approx(expected, rel=tolerance)
    factor = min(1, 0.5 / (expected + 1e-6))
    for p, grad in zip(params, before):
        precision = {8: 1e-13, 4: 1e-6, 2: 1e-2}[grad.dtype.itemsize]
        np.testing.assert_allclose(
            host(p.grad).astype(float), grad.astype(float) * factor, rtol=precision, atol=1e-7
        )


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1.0, 1e6])
def test_clipping_follows_torch(norm_type, max_norm):
    torch = pytest.importorskip("torch")
    grads = [grad for grad in gradients() if grad.size]  # torch has no max of nothing
    params = parameters(grads)
    tensors = [torch.zeros(grad.shape, dtype=torch.float64) for grad in grads]
    for tensor, grad in zip(tensors, grads):
        tensor.grad = torch.tensor(grad)
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    assert clip_grad_norm_(params, max_norm, norm_type) == pytest.approx(expected.item(), rel=1e-12)
    for p, tensor in zip(params, tensors):
        np.testing.assert_allclose(host(p.grad), tensor.grad.numpy(), rtol=1e-12, atol=1e-300)


def test_16_bit_gradients_do_not_overflow():
    grads = [np.full(1000, 60000, np.float16)] * 3
    assert get_total_norm([on_device(g) for g in grads]) == pytest.approx(
        60000 * math.sqrt(3000), rel=1e-3
    )


# Gradients that fit their type where squares, which a GPU sums up in that type, do not.
HUGE = [(np.float64, 1e200), (np.float32, 1e30)]


@pytest.mark.parametrize(("dtype", "size"), HUGE)
def test_squares_that_overflow_do_no_harm(dtype, size):
    grads = [np.array([3, 4], dtype) * dtype(size), np.ones(5, np.float32), np.full(7, -1.5, dtype)]
    arrays = [on_device(grad) for grad in grads]
    assert get_total_norm(arrays) == pytest.approx(
        5 * size, rel=1e-6 if dtype is np.float32 else 1e-15
    )
    assert get_total_norm(arrays[::-1]) == get_total_norm(arrays)
    params = parameters(grads, dtype)
    assert clip_grad_norm_(params, 10.0, error_if_nonfinite=True) == pytest.approx(
        5 * size, rel=1e-6
    )
    np.testing.assert_allclose(host(params[0].grad), [6, 8], rtol=1e-6)
    many = np.full(40_000, size, dtype)
    rel = 2e-5 if dtype is np.float32 else 1e-12  # a thousand float32 numbers one after the other
    assert get_total_norm([on_device(many)]) == pytest.approx(200 * size, rel=rel)
    for bad in (math.inf, -math.inf, math.nan):
        many[30_000] = bad
        assert not math.isfinite(get_total_norm([on_device(many)]))
        assert math.isnan(get_total_norm([on_device(many)])) == math.isnan(bad)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the norm of a step stays there, in float32")
def test_a_step_clips_gradients_whose_squares_overflow():
    params = parameters([np.array([3e200, 4e200]), np.array([0.0])])
    for groups in (params, [{"params": p} for p in params]):
        for p in params:
            p.data = np.zeros(p.shape)
        opt = genesis.optim.SGD(groups, lr=1.0)
        opt.step(max_norm=10.0)
        assert opt.grad_norm == pytest.approx(5e200, rel=1e-15)
        np.testing.assert_allclose(params[0].data, [-6, -8], rtol=1e-12)
    params[1].grad[:] = math.nan
    opt.step(max_norm=10.0)
    assert math.isnan(opt.grad_norm)


def test_nothing_to_clip_is_no_error():
    assert clip_grad_norm_([], 1.0) == 0.0
    assert clip_grad_norm_(parameters([None, None]), 1.0) == 0.0
    assert get_total_norm([]) == 0.0
    assert get_total_norm([on_device(np.zeros(0))], -math.inf) == 0.0
    clip_grad_value_([], 1.0)
    clip_grads_with_norm_([], 1.0, 3.0)


def test_one_parameter_or_any_iterable():
    for wrap in (lambda ps: ps[0], list, tuple, iter, lambda ps: (p for p in ps)):
        params = parameters([np.array([3.0, 4.0])])
        assert clip_grad_norm_(wrap(params), 1.0) == 5.0
        np.testing.assert_allclose(host(params[0].grad), [0.6, 0.8], rtol=1e-6)
    assert get_total_norm(on_device(np.array([3.0, 4.0]))) == 5.0


def test_values_are_clipped():
    grads = [np.array([-3.0, -0.5, 0.0, 0.5, 3.0, np.nan, np.inf]), None]
    params = parameters(grads)
    clip_grad_value_(params, 1)
    np.testing.assert_array_equal(host(params[0].grad), [-1, -0.5, 0, 0.5, 1, np.nan, 1])
    params = parameters(grads)
    genesis.optim.clip_grad_value(params, -0.25, 2)
    np.testing.assert_array_equal(host(params[0].grad), [-0.25, -0.25, 0, 0.5, 2, np.nan, 2])


def test_megengines_form():
    params = parameters([np.array([3.0, 4.0])])
    assert genesis.optim.clip_grad_norm(params, max_norm=1.0, ord=1) == 7.0
    np.testing.assert_allclose(host(params[0].grad), np.array([3, 4]) / 7, rtol=1e-6)


def test_a_shared_gradient_is_scaled_once():
    p, q = parameters([np.array([3.0]), np.array([3.0])])
    q.grad = p.grad
    clip_grads_with_norm_([p, q], 1.0, 2.0)
    np.testing.assert_allclose(host(p.grad), [1.5], rtol=1e-6)


SAME = {
    "another view": lambda g: g[...],
    "flat": lambda g: g.reshape(-1),
    "in one axis more": lambda g: g[None, :, None],
    "transposed": lambda g: g.T,
    "reversed": lambda g: g[::-1, ::-1],
    "split": lambda g: g.reshape(2, 2, 6),
    "matrix": lambda g: np.ndarray.view(g, np.matrix),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="views of NumPy arrays")
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("again", SAME.values(), ids=SAME)
@pytest.mark.parametrize("strided", [False, True])
def test_two_views_of_the_same_elements_are_scaled_once(again, strided):
    grad = np.arange(1.0, 25.0).reshape(4, 6)
    if strided:
        grad = np.repeat(grad, 2).reshape(4, 12)[:, ::2]  # evenly, so that it has flat views too
    before = grad.copy()
    first, second = again(grad), grad
    params = [genesis.Parameter(np.zeros(g.shape)) for g in (first, second)]
    params[0].grad, params[1].grad = first, second
    # As in torch, the norm counts the gradient of each parameter.
    assert clip_grad_norm_(params, 1.0) == pytest.approx(math.sqrt(2) * np.linalg.norm(before))
    np.testing.assert_allclose(grad, before / (math.sqrt(2) * np.linalg.norm(before)), rtol=1e-6)
    grad[...] = before
    clip_grads_with_norm_(params[::-1], 1.0, 2.0)
    np.testing.assert_allclose(grad, before / 2, rtol=1e-6)


@pytest.mark.skipif(DEVICE != "cpu", reason="views of NumPy arrays")
@pytest.mark.parametrize("named", [False, True])
def test_gradients_that_share_a_part_of_their_memory_are_refused(named):
    memory = np.ones(12)
    for first, second in [
        (memory[:5], memory[4:9]),
        (memory, memory[3:6]),
        (memory[::2], memory[::3]),
        (memory[::-1], memory[:4]),
        (memory, memory.view(np.float32)),
    ]:
        names = ("a", "b", "c") if named else (None,) * 3
        grads = np.ones(3), first, second
        params = [genesis.Parameter(np.zeros(g.shape), name=n) for g, n in zip(grads, names)]
        for p, grad in zip(params, grads):
            p.grad = grad
        said = (
            "parameter 1 'b' and parameter 2 'c' share" if named else "parameter 1 and parameter 2"
        )
        for call in (
            lambda params: clip_grad_norm_(params, 0.1),
            lambda params: clip_grads_with_norm_(params, 1.0, 2.0),
            lambda params: clip_grad_value_(params, 0.5),
        ):
            with pytest.raises(ValueError, match=said):
                call(params)
        np.testing.assert_array_equal(memory, np.ones(12))
        np.testing.assert_array_equal(grads[0], np.ones(3))
    even, odd = memory[::2], memory[1::2]  # ranges that meet, but no element in common
    params = [genesis.Parameter(np.zeros(6)) for _ in range(2)]
    params[0].grad, params[1].grad = even, odd
    clip_grads_with_norm_(params, 1.0, 2.0)
    np.testing.assert_allclose(memory, np.full(12, 0.5), rtol=1e-6)


@pytest.mark.skipif(DEVICE != "cpu", reason="sparse gradients work on the CPU")
def test_one_array_of_values_in_two_sparse_gradients_is_scaled_once():
    values = np.full((2, 3), 2.0)
    params = [genesis.Parameter(np.zeros((5, 3))) for _ in range(2)]
    for p in params:
        p.grad = genesis.SparseGrad([1, 4], values)
    clip_grads_with_norm_(params, 1.0, 2.0)
    np.testing.assert_allclose(values, np.ones((2, 3)), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_norms(bad):
    params = parameters([np.array([1.0, bad]), np.array([2.0])])
    for norm_type in (1.0, 2.0, math.inf, 3.0):
        with pytest.raises(RuntimeError, match="non-finite"):
            clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
        np.testing.assert_array_equal(host(params[0].grad), [1.0, bad])
        expected = math.nan if math.isnan(bad) else math.inf
        np.testing.assert_equal(get_total_norm([p.grad for p in params], norm_type), expected)
    clip_grad_norm_(params, 1.0)
    assert np.isnan(host(params[0].grad)[1])


@pytest.mark.skipif(DEVICE != "cpu", reason="strides and read-only flags of NumPy arrays")
def test_strided_and_read_only_gradients():
    (p,) = parameters([np.ones((4, 3))])
    p.grad = np.full((3, 4), 2.0).T
    assert clip_grad_norm_(p, 1.0) == pytest.approx(math.sqrt(48))
    np.testing.assert_allclose(p.grad, 2 / math.sqrt(48), rtol=1e-6)
    p.grad = np.full((4, 6), 2.0)[:, ::2]
    assert clip_grad_norm_(p, 1.0) == pytest.approx(math.sqrt(48))
    np.testing.assert_allclose(p.grad, 2 / math.sqrt(48), rtol=1e-6)
    q = parameters([np.ones(3)])[0]
    p.grad = np.ones((4, 3))
    q.grad = np.broadcast_to(2.0, 3)
    with pytest.raises(ValueError, match="the gradient of parameter 1 is read-only"):
        clip_grad_norm_([p, q], 1.0)
    np.testing.assert_array_equal(p.grad, np.ones((4, 3)))


def test_refuses_bad_bounds():
    params = parameters([np.ones(3)])
    opt = genesis.optim.SGD(params, lr=1.0)
    for bad, error in [
        (-1, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error, match="max_norm must be"):
            clip_grad_norm_(params, bad)
        with pytest.raises(error, match="max_norm must be"):
            clip_grads_with_norm_(params, bad, 1.0)
        if bad is not None:
            with pytest.raises(error, match="max_norm must be"):
                opt.step(max_norm=bad)
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match="clip_value must be"):
            clip_grad_value_(params, bad)
    for lower, upper in [(1, 0), (math.nan, 1), (0, math.nan)]:
        with pytest.raises(ValueError, match="lower must not exceed upper"):
            genesis.optim.clip_grad_value(params, lower, upper)
    with pytest.raises(ValueError, match="norm_type"):
        clip_grad_norm_(params, 1.0, math.nan)
    for bad in (3.0, [3.0], {"W": "x"}):
        with pytest.raises(TypeError, match="Parameters, or a tree of gradients"):
            clip_grad_norm_(bad, 1.0)
    with pytest.raises(TypeError, match="the gradient 'W' must have dtype"):
        clip_grad_norm_({"W": np.ones(3, int)}, 1.0)
    with pytest.raises(TypeError, match="the tensor '0' must"):
        get_total_norm([np.ones(3, int)])
    np.testing.assert_array_equal(host(params[0].grad), np.ones(3))
    np.testing.assert_array_equal(params[0].numpy(), np.zeros(3))


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.id)
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e6])
def test_clipping_in_the_step_is_clipping_before_it(case, max_norm):
    grads = gradients()
    params = parameters(grads)
    others = parameters(grads)
    opt = case.make([{"params": params[:2]}, {"params": params[2:], "maximize": False}])
    other = case.make([{"params": others[:2]}, {"params": others[2:], "maximize": False}])
    for seed in range(3):
        grads = gradients(scale=10.0 ** (seed - 1), seed=seed)
        for p, q, grad in zip(params, others, grads):
            p.grad, q.grad = on_device(grad), on_device(grad.copy())
        opt.step(max_norm=max_norm)
        expected = clip_grad_norm_(others, max_norm)
        other.step()
        assert opt.grad_norm == expected
        for p, q, grad in zip(params, others, grads):
            np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-12, atol=1e-15)
            np.testing.assert_array_equal(host(p.grad), grad)  # not written


def test_grad_norm_is_of_the_last_clipped_step():
    params = parameters([np.array([3.0, 4.0])])
    opt = genesis.optim.SGD(params, lr=0.1)
    assert opt.grad_norm is None
    assert opt.step(lambda: 7, max_norm=1.0) == 7
    assert opt.grad_norm == 5.0
    before = params[0].numpy().copy()
    opt.step()
    np.testing.assert_allclose(before - params[0].numpy(), [0.3, 0.4], rtol=1e-12)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads of the CPU")
def test_threads_change_no_bit(small_chunks, num_threads):
    results = []
    for number in (1, 2, 4):
        num_threads(number)
        params = parameters(gradients(np.float32), np.float32)
        norms = [get_total_norm([p.grad for p in params], norm_type) for norm_type in NORM_TYPES]
        genesis.optim.AdamW(params).step(max_norm=0.1)
        norms.append(clip_grad_norm_(params, 0.1))
        results.append((norms, [p.grad for p in params], [p.data for p in params]))
    for norms, grads, data in results[1:]:
        assert norms == results[0][0]
        for got, expected in zip(grads + data, results[0][1] + results[0][2]):
            np.testing.assert_array_equal(got, expected)


def test_order_and_grouping_change_no_bit():
    grads = [grad for seed in range(20) for grad in gradients(np.float32, seed=seed)]
    arrays = [on_device(grad) for grad in grads]
    assert get_total_norm(arrays) == get_total_norm(arrays[::-1])
    params = parameters(grads, np.float32)
    one = genesis.optim.SGD(params, lr=0.1)
    many = genesis.optim.SGD([{"params": p} for p in parameters(grads, np.float32)], lr=0.1)
    for opt in (one, many):
        opt.step(max_norm=1.0)
    # On a GPU the norm is summed in float32 in the order of the tensors: the same from run to run.
    tolerance = 0 if DEVICE == "cpu" else 1e-6
    assert one.grad_norm == pytest.approx(many.grad_norm, rel=tolerance)
    for left, right in zip(params, (group["params"][0] for group in many.param_groups)):
        np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=tolerance)


@pytest.mark.skipif(DEVICE == "cpu", reason="what a GPU does without the host")
def test_clipping_on_a_device_does_not_wait_for_it(monkeypatch):
    params = parameters([np.array([3.0, 4.0]), np.array([0.0])], np.float32)
    opt = genesis.optim.SGD([{"params": p} for p in params], lr=1.0)
    waited = []
    copy_back = buffers.host_copy
    monkeypatch.setattr(buffers, "host_copy", lambda array: waited.append(1) or copy_back(array))
    opt.step(max_norm=1.0)
    opt.step(max_norm=1.0)
    assert not waited
    assert opt.grad_norm == 5.0
    assert waited
    np.testing.assert_allclose(params[0].numpy(), [-1.2, -1.6], rtol=1e-5)
    opt.step()  # the factor was for one step
    np.testing.assert_allclose(params[0].numpy(), [-4.2, -5.6], rtol=1e-5)
    monkeypatch.undo()
    for p in params:
        p.grad = on_device(np.full(p.shape, np.nan, np.float32))
    opt.step(max_norm=1.0)
    assert math.isnan(opt.grad_norm)


def test_a_clipped_run_survives_a_copy_of_the_optimizer():
    params = parameters([np.array([3.0, 4.0])])
    opt = genesis.optim.SGD(params, lr=0.1)
    opt.step(max_norm=1.0)
    assert copy.deepcopy(opt).grad_norm == 5.0


def kept_tables():
    return len(kept._KEPT)


@pytest.mark.skipif(DEVICE != "cpu", reason="tables of NumPy arrays")
def test_tables_are_kept_and_arrays_are_not():
    kept._KEPT.clear()
    grads = gradients(np.float32)
    given = [grads, dict(enumerate(grads)), parameters(grads, np.float32), tuple(grads)]
    for each in given:
        clip_grad_norm_(each, 0.1)
        get_total_norm([array.copy() for array in grads])
        clip_grad_value_(each, 0.01)
    assert kept_tables() == 1
    gone = weakref.ref(grads[0])
    del grads, given, each
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(DEVICE != "cpu", reason="tables of NumPy arrays")
def test_tables_see_what_becomes_of_arrays_between_calls():
    kept._KEPT.clear()

    def check(grads):
        expected = numpy_norm(grads, 2.0)
        scaled = [np.asarray(grad, np.float64) * (0.5 / (expected + 1e-6)) for grad in grads]
        assert clip_grad_norm_(grads, 0.5) == pytest.approx(expected, rel=1e-6)
        for grad, right in zip(grads, scaled):
            np.testing.assert_allclose(grad, right, rtol=1e-6)

    shapes = [(4, 3), (5,), (2, 2)]
    rng = np.random.default_rng(2)

    def new(dtype=np.float32):
        return [rng.standard_normal(shape).astype(dtype) + 1 for shape in shapes]

    grads = new()
    check(grads)
    check(new())  # elsewhere
    check(new(np.float64))
    check(new())
    grads = new()
    grads[1].resize(7, refcheck=False)
    grads[1] += 1
    check(grads)
    grads = new()
    grads[0] = np.asfortranarray(grads[0])
    check(grads)
    grads = new()
    grads[0] = np.repeat(grads[0], 2, axis=0)[::2]
    check(grads)
    grads = new()
    grads[1] = np.frombuffer(b"x" + grads[1].tobytes(), np.uint8)[1:].copy().view(np.float32)
    check(grads)
    odd = bytearray(21)
    grads[1] = np.frombuffer(odd, np.float32, 5, offset=1)
    grads[1][:] = 3
    check(grads)
    grads = [grad.view(Named) for grad in new()]
    check(grads)
    grads = new()
    grads[2].flags.writeable = False
    with pytest.raises(ValueError, match="'2' is read-only"):
        clip_grad_norm_(grads, 0.5)
    with pytest.raises(TypeError, match="int"):
        clip_grad_norm_([grad.astype(int) for grad in new()], 0.5)
    memory = rng.standard_normal(40).astype(np.float32)
    check([memory[:12].reshape(4, 3), memory[12:17], memory[20:24].reshape(2, 2)])
    with pytest.raises(ValueError, match="share a part"):
        clip_grad_norm_(
            [memory[:12].reshape(4, 3), memory[11:16], memory[20:24].reshape(2, 2)], 0.5
        )
    check([memory[:12].reshape(4, 3), memory[12:17], memory[20:24].reshape(2, 2)])
    check(new())


class Named(np.ndarray):
    """A subclass, as other libraries have them."""


@pytest.mark.skipif(DEVICE != "cpu", reason="tables of NumPy arrays")
def test_gradients_within_the_norm_are_not_written():
    grads = gradients(np.float32)
    grads[0][0, 0] = np.uint32(0x7FC00001).view(
        np.float32
    )  # a NaN whose bits arithmetic would change
    before = [grad.tobytes() for grad in grads]
    clip_grads_with_norm_(grads, 1.0, 0.5)
    assert [grad.tobytes() for grad in grads] == before


@pytest.mark.skipif(DEVICE != "cpu", reason="tables of NumPy arrays")
def test_threads_do_not_share_tables():
    """Arrays of the same shapes in several threads, and other shapes with the same key."""
    expected, failures = {}, []
    sets = [[np.full(shape, 1.0 + i) for shape in ((3,), (2, i % 2 + 1), (4,))] for i in range(4)]
    for i, grads in enumerate(sets):
        expected[i] = numpy_norm(grads, 2.0)

    def work(i):
        for _ in range(300):
            if get_total_norm(sets[i]) != pytest.approx(expected[i], rel=1e-14):
                failures.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
