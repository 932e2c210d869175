"""Sparse gradients: what they are, which optimizers take them, and that only their rows are touched."""

import copy
import ctypes
import inspect
import mmap
import pickle
import sys
import warnings

import numpy as np
import pytest
from attack_tools import in_child
from devices import SIMULATED, parameter

import genesis
from genesis import SparseGrad, optim
from genesis.buffers import BFLOAT16
from genesis.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from genesis.optim import SGD, Adagrad, Adam, SparseAdam, options

VARIANTS = [{}, {"lr": 0.1, "betas": (0.3, 0.7), "eps": 1e-3}, {"maximize": True}]
each_variant = pytest.mark.parametrize("hyper", VARIANTS, ids=str)


def draw(rng, shape, count, repeated=True, dtype=np.float64):
    """A sparse gradient for a parameter of this shape."""
    indices = (
        rng.integers(0, shape[0], count) if repeated else rng.choice(shape[0], count, replace=False)
    )
    return SparseGrad(indices, rng.standard_normal((count, *shape[1:])).astype(dtype))


# ---- the gradient itself ----


def test_is_the_dense_gradient_with_repeated_rows_summed(rng):
    grad = SparseGrad([3, 0, 3, 1], np.array([[1.0, 2], [3, 4], [10, 20], [5, 6]]))
    expected = np.array([[3.0, 4], [5, 6], [0, 0], [11, 22], [0, 0]])
    np.testing.assert_array_equal(grad.to_dense(5), expected)
    once = grad.coalesced()
    np.testing.assert_array_equal(once.indices, [0, 1, 3])
    np.testing.assert_array_equal(once.to_dense(5), expected)
    assert len(grad) == 4
    assert len(once) == 3
    assert len(grad.emptied()) == 0
    for other in (copy.deepcopy(grad), pickle.loads(pickle.dumps(grad))):
        np.testing.assert_array_equal(other.to_dense(5), expected)


def test_shares_its_values_and_guards_its_indices():
    values, indices = np.ones((2, 3)), np.array([0, 1])
    grad = SparseGrad(indices, values)
    assert grad.values is values
    indices[0] = 10**9  # would be an address outside the parameter
    np.testing.assert_array_equal(grad.indices, [0, 1])
    with pytest.raises(ValueError, match="read-only"):
        grad.indices[0] = 10**9


def test_indices_cannot_be_made_writable_nor_read_in_another_way():
    grad = SparseGrad(np.array([0, 1]), np.ones((2, 3)))
    seen = grad.indices
    while isinstance(seen, np.ndarray):
        with pytest.raises(ValueError, match="WRITEABLE"):
            seen.flags.writeable = True
        seen = seen.base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        grad.indices.shape = (2, 1)
        grad.indices.dtype = np.int32
    np.testing.assert_array_equal(grad.indices, [0, 1])
    assert len(grad) == 2


def in_place(edit):
    """An edit of how an array lies, which newer versions of NumPy advise against."""

    def quietly(values):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            edit(values)

    return quietly


EDITS = {
    "shape": in_place(lambda values: setattr(values, "shape", (12,))),
    "narrow": in_place(lambda values: setattr(values, "shape", (6, 2))),
    "dtype": in_place(lambda values: setattr(values, "dtype", np.float32)),
    "strides": in_place(lambda values: setattr(values, "strides", (0, 8))),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("when", ["before it is assigned", "after", "after a step"])
def test_an_array_of_values_that_is_arranged_anew_changes_nothing(edit, when, rng):
    values = rng.standard_normal((4, 3))
    expected = np.zeros((9, 3))
    np.subtract.at(expected, [7, 2, 2, 0], values)
    grad = SparseGrad([7, 2, 2, 0], values)
    p = genesis.Parameter(np.zeros((9, 3)))
    opt = SGD([p], lr=1.0)
    steps = 1
    if when == "before it is assigned":
        edit(values)
    p.grad = grad
    if when == "after a step":
        opt.step()
        steps = 2
    if when != "before it is assigned":
        edit(values)
    opt.step()
    np.testing.assert_allclose(p.data, steps * expected, rtol=1e-12)
    np.testing.assert_allclose(grad.to_dense(9), -expected, rtol=1e-12)
    assert grad.values is values
    assert repr(grad) == "SparseGrad(4 rows of shape (3,), dtype=float64)"
    assert clip_grad_norm_(p, 1e9) == pytest.approx(np.linalg.norm(expected))
    copied = pickle.loads(pickle.dumps(grad))
    np.testing.assert_allclose(copied.to_dense(9), -expected, rtol=1e-12)
    assert len(grad.emptied()) == 0


@pytest.mark.parametrize("kind", ["the array", "a view", "a view through a memoryview"])
def test_the_memory_of_values_is_not_freed_by_resize(kind):
    array = np.ones((4, 3))
    values = {"the array": array, "a view": array[1:], "a view through a memoryview": None}[kind]
    if values is None:
        values = np.asarray(memoryview(array))[1:]
    grad = SparseGrad(np.arange(len(values)), values)
    with pytest.raises(ValueError, match="cannot resize"):
        array.resize((1, 3), refcheck=False)
    del grad
    if kind == "the array":
        del values
        array.resize((1, 3), refcheck=False)
        assert array.shape == (1, 3)


def test_a_view_knows_its_gradient():
    p = genesis.Parameter(np.ones((5, 3)))
    p.grad = grad = SparseGrad([4], np.ones((1, 3)))
    assert p._grad_view.owner is grad


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("kind", ["matrix", "overlapping", "reversed", "read-only", "constant"])
def test_odd_arrays_of_values(kind, rng):
    flat = rng.standard_normal(8)
    values = {
        "matrix": np.matrix(flat[:6].reshape(3, 2)),
        "overlapping": np.lib.stride_tricks.as_strided(flat, (3, 2), (8, 8)),
        "reversed": flat[:6].reshape(3, 2)[::-1, ::-1],
        "read-only": np.lib.stride_tricks.as_strided(flat, (3, 2), (16, 8), writeable=False),
        "constant": np.broadcast_to(flat[:2], (3, 2)),
    }[kind]
    expected = np.zeros((4, 2))
    np.add.at(expected, [3, 0, 3], np.array(values))
    grad = SparseGrad([3, 0, 3], values)
    np.testing.assert_allclose(grad.to_dense(4), expected, rtol=1e-14)
    assert type(grad.to_dense(4)) is np.ndarray
    p = genesis.Parameter(np.zeros((4, 2)))
    p.grad = grad
    SGD([p], lr=1.0).step(max_norm=1e9)
    np.testing.assert_allclose(p.data, -expected, rtol=1e-14)
    before = np.array(values)
    if kind in ("matrix", "reversed"):
        norm = clip_grad_norm_(p, 0.5)
        assert norm == pytest.approx(np.linalg.norm(expected))
        np.testing.assert_allclose(values, before * (0.5 / (norm + 1e-6)), rtol=1e-14)
    else:
        with pytest.raises(ValueError, match=r"read-only|share memory"):
            clip_grad_norm_(p, 0.5)
        np.testing.assert_array_equal(values, before)


def test_values_that_became_read_only_are_not_written():
    values = np.full((2, 3), 2.0)
    p = genesis.Parameter(np.zeros((4, 3)))
    p.grad = SparseGrad([0, 1], values)
    values.flags.writeable = False
    with pytest.raises(ValueError, match="values of a SparseGrad is read-only now"):
        clip_grad_norm_(p, 0.1)
    np.testing.assert_array_equal(values, np.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("indices", "values", "error", "said"),
    [
        (np.ma.array([0, 1], mask=[0, 1]), np.ones((2, 3)), TypeError, "masked array: take"),
        ([0.0, 1.0], np.ones((2, 3)), TypeError, "must be integers, but got dtype float64"),
        ([True, False], np.ones((2, 3)), TypeError, "must be integers, but got dtype bool"),
        ([[0, 1]], np.ones((2, 3)), ValueError, r"must be 1-D, but got shape \(1, 2\)"),
        (3, np.ones((1, 3)), ValueError, r"must be 1-D, but got shape \(\)"),
        ([0, -1], np.ones((2, 3)), ValueError, "must not be negative, but got -1"),
        (np.array([2**63], np.uint64), np.ones((1, 3)), ValueError, "larger than any array"),
        ([0, 1], np.ones((3, 3)), ValueError, r"2 indices and values of shape \(3, 3\)"),
        ([0], np.ones(()), ValueError, "one row of values for each index"),
        ([0], np.ones((1, 3), int), TypeError, "must have dtype float64"),
        ([0], [[1.0]], TypeError, "must be a NumPy or CUDA array"),
    ],
)
def test_refuses_what_makes_no_gradient(indices, values, error, said):
    with pytest.raises(error, match=said):
        SparseGrad(indices, values)


@pytest.mark.skipif(SIMULATED, reason="about the CPU target")
def test_refuses_what_does_not_fit_the_parameter():
    p = genesis.Parameter(np.ones((5, 3)), name="table")
    p.grad = kept = SparseGrad([4], np.ones((1, 3)))
    for grad, said in [
        (SparseGrad([5], np.ones((1, 3))), "index 5 of a SparseGrad is out of range for 5 rows"),
        (SparseGrad([0], np.ones((1, 4))), r"of 'table' must have values of shape \(1, 3\)"),
        (SparseGrad([0], np.ones(1)), "must have values of shape"),
    ]:
        with pytest.raises(ValueError, match=said):
            p.grad = grad
    assert p.grad is kept
    scalar = genesis.Parameter(np.ones(()))
    with pytest.raises(ValueError, match=r"a parameter of shape \(\) has no rows"):
        scalar.grad = SparseGrad([0], np.ones(1))
    with pytest.raises(TypeError):
        p.data + p.grad


@pytest.mark.skipif(not SIMULATED, reason="needs NUMBA_ENABLE_CUDASIM=1")
def test_a_device_parameter_takes_none():
    p = parameter(np.ones((5, 3)))
    with pytest.raises(ValueError, match="is on cuda:0 and sparse gradients work on the CPU"):
        p.grad = SparseGrad([0], np.ones((1, 3)))
    q = genesis.Parameter(np.ones((5, 3)))
    q.grad = SparseGrad([0], np.ones((1, 3)))
    with pytest.raises(ValueError, match="set it to None before the parameter moves"):
        SparseAdam([q]).to("cuda")


# ---- SparseAdam ----


def reference(param, grad, state, step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, maximize=False):
    """One step on the rows of the gradient; everything is edited in place."""
    once = grad.coalesced()
    rows, g = once.indices, -once.values if maximize else once.values
    m, v = state
    m[rows] = betas[0] * m[rows] + (1 - betas[0]) * g
    v[rows] = betas[1] * v[rows] + (1 - betas[1]) * g**2
    size = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    param[rows] -= size * m[rows] / (np.sqrt(v[rows]) + eps)


SHAPES = [(20, 5), (9,), (6, 2, 3), (4, 0)]


@each_variant
def test_float64_follows_the_reference(hyper, rng, small_chunks):
    params = [genesis.Parameter(rng.standard_normal(shape)) for shape in SHAPES]
    expected = [p.data.copy() for p in params]
    states = [(np.zeros(p.shape), np.zeros(p.shape)) for p in params]
    opt = SparseAdam(params, **hyper)
    for step in range(1, 31):
        for p, param, state in zip(params, expected, states):
            p.grad = draw(rng, p.shape, rng.integers(0, 2 * len(p)))
            reference(param, p.grad, state, step, **hyper)
        opt.step()
    for p, param, (m, v) in zip(params, expected, states):
        np.testing.assert_allclose(p.data, param, rtol=1e-12)
        np.testing.assert_allclose(opt.state[p]["exp_avg"], m, rtol=1e-11, atol=1e-15)
        np.testing.assert_allclose(opt.state[p]["exp_avg_sq"], v, rtol=1e-12)
        assert opt.state[p]["step"] == 30


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def sparse_tensor(torch, grad, shape):
    return torch.sparse_coo_tensor(
        torch.tensor(grad.indices)[None], torch.tensor(grad.values), shape, check_invariants=True
    )


def run_beside_torch(torch, rng, name, hyper, changed=None, steps=50, dtype=np.float64):
    """The largest error of an update, relative to its largest element."""
    start = rng.standard_normal((30, 4)).astype(dtype)
    p, tensor = genesis.Parameter(start.copy()), torch.tensor(start, requires_grad=True)
    ours = getattr(optim, name)([p], **{**hyper, **(changed or {})})
    theirs = getattr(torch.optim, name)([tensor], **hyper)
    for _ in range(steps):
        p.grad = draw(rng, p.shape, 15, dtype=dtype)
        tensor.grad = sparse_tensor(torch, p.grad, p.shape)
        ours.step()
        theirs.step()
    update = tensor.detach().numpy() - start
    return np.max(np.abs(p.data - start - update)) / np.max(np.abs(update))


OTHERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.5, "eps": 1e-3}),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("name", "hyper"), [*(("SparseAdam", h) for h in VARIANTS), *OTHERS])
def test_follows_torch(name, hyper, torch, rng):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert run_beside_torch(torch, rng, name, hyper) < 1e-12
        assert run_beside_torch(torch, rng, name, hyper, dtype=np.float32) < 1e-4
        if "lr" in hyper:
            changed = {"lr": 0.1 * (1 + 1e-9)}
            assert run_beside_torch(torch, rng, name, hyper, changed, steps=5) > 1e-12
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "values", "unaligned"])
def test_any_memory_layout(layout, rng):
    start = rng.standard_normal((10, 6))
    array = {
        "F": np.zeros((10, 6), order="F"),
        "strided": np.zeros((20, 12))[::2, ::2],
        "reversed": np.zeros((10, 6))[::-1],
        "values": np.zeros((10, 6)),
        "unaligned": np.zeros(10 * 6 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(10, 6),
    }[layout]
    array[...] = start
    p, plain = genesis.Parameter(array), genesis.Parameter(start.copy())
    ours, expected = SparseAdam([p], lr=0.1), SparseAdam([plain], lr=0.1)
    for _ in range(4):
        grad = draw(rng, (10, 6), 8)
        values = np.asfortranarray(grad.values) if layout == "values" else grad.values
        p.grad, plain.grad = SparseGrad(grad.indices, values), grad
        ours.step()
        expected.step()
    np.testing.assert_array_equal(p.data, plain.data)


@pytest.mark.parametrize(
    ("dtype", "repeated"), [(np.float16, True), (BFLOAT16, True), (BFLOAT16, False)], ids=str
)
def test_16_bit_rows_are_summed_and_updated_in_float32(dtype, repeated, rng):
    start = rng.standard_normal((8, 5)).astype(dtype)
    p = genesis.Parameter(start.copy())
    indices = [2, 5, 2, 2] if repeated else [2, 5, 0, 7]
    values = rng.standard_normal((4, 5)).astype(dtype)
    p.grad = SparseGrad(indices, values)
    SGD([p], lr=0.5).step()
    expected = start.astype(np.float64)
    np.subtract.at(expected, indices, 0.5 * values.astype(np.float64))
    rounding = 2.0 ** -(8 if dtype == BFLOAT16 else 11)
    error = np.abs(p.data.astype(np.float64) - expected)
    assert np.all(error <= rounding * np.abs(expected) + 1e-6)
    assert np.any(p.data[5] != start[5])


def test_rows_without_gradient_are_not_touched(rng):
    p = genesis.Parameter(rng.standard_normal((50, 3)))
    opt = SparseAdam([p], lr=0.1)
    p.grad = SparseGrad(np.arange(50), rng.standard_normal((50, 3)))
    opt.step()
    before = p.data.copy(), opt.state[p]["exp_avg"].copy(), opt.state[p]["exp_avg_sq"].copy()
    p.grad = draw(rng, p.shape, 7)
    opt.step()
    touched = np.zeros(50, bool)
    touched[p.grad.indices] = True
    for array, was in zip((p.data, *opt.state[p].values()), (before[0], 2, *before[1:])):
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array[~touched], was[~touched])
            assert np.all(array[touched] != was[touched])


def test_repeated_rows_give_the_same_bits_for_any_number_of_threads(rng, small_chunks, num_threads):
    grad = draw(rng, (40, 30), 300, dtype=np.float32)
    found = []
    for number in (1, 2, 5):
        num_threads(number)
        p = genesis.Parameter(np.ones((40, 30), np.float32))
        opt = SparseAdam([p], lr=0.1)
        for _ in range(3):
            p.grad = None
            p.grad = grad
            opt.step(max_norm=1.0)
        found.append(p.data)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_values_edited_in_place_count_at_the_next_step(rng):
    for indices in ([1, 3], [1, 1]):
        p = genesis.Parameter(np.zeros((5, 2)))
        p.grad = SparseGrad(indices, np.ones((2, 2)))
        opt = SGD([p], lr=1.0).step()
        before = p.data.copy()
        p.grad.values[...] = 10
        opt.step()
        np.testing.assert_array_equal(p.data - before, 10 * before)


def test_rows_of_any_length_including_more_than_a_chunk(rng):
    p = genesis.Parameter(np.zeros((3, 40_000), np.float32))
    p.grad = SparseGrad([2, 0], rng.standard_normal((2, 40_000)).astype(np.float32))
    SGD([p], lr=1.0).step()
    np.testing.assert_array_equal(p.data[[2, 0]], -p.grad.values)
    np.testing.assert_array_equal(p.data[1], 0)


def test_an_empty_gradient_counts_a_step_and_changes_nothing():
    p = genesis.Parameter(np.ones((3, 2)))
    p.grad = SparseGrad([], np.ones((0, 2)))
    opt = SparseAdam([p]).step()
    np.testing.assert_array_equal(p.data, np.ones((3, 2)))
    assert opt.state[p]["step"] == 1


def test_dense_and_sparse_gradients_may_take_turns_in_adagrad(rng):
    p, q = genesis.Parameter(np.ones((6, 3))), genesis.Parameter(np.ones((6, 3)))
    ours, dense = Adagrad([p], lr=0.1), Adagrad([q], lr=0.1)
    for step in range(6):
        grad = draw(rng, (6, 3), 5)
        p.grad = grad if step % 2 else grad.to_dense(6)
        q.grad = grad.to_dense(6)
        ours.step()
        dense.step()
    np.testing.assert_allclose(p.data, q.data, rtol=1e-14)


def test_several_parameters_and_groups_with_master_weights(rng):
    start = rng.standard_normal((8, 3)).astype(np.float16)
    p, q = genesis.Parameter(start.copy()), genesis.Parameter(np.ones((4, 2)))
    r = genesis.Parameter(start.astype(np.float32))
    mixed = SGD([{"params": [p], "master_weights": True}, {"params": [q]}], lr=1e-4)
    exact = SGD([r], lr=1e-4)
    for _ in range(20):
        grad = draw(rng, (8, 3), 6, dtype=np.float32)
        p.grad = r.grad = grad
        q.grad = np.ones((4, 2))
        mixed.step()
        exact.step()
    np.testing.assert_array_equal(mixed.state[p]["master"], r.data)
    np.testing.assert_array_equal(p.data, r.data.astype(np.float16))
    np.testing.assert_allclose(q.data, np.full((4, 2), 1 - 20e-4))


def test_rows_are_rounded_at_random_each_in_its_own_way():
    p = genesis.Parameter(np.ones((400, 4), BFLOAT16))
    opt = SparseAdam([p], lr=2.0**-10, state_dtype="float32", stochastic_rounding=True)
    p.grad = SparseGrad(np.arange(400), np.ones((400, 4), np.float32))
    opt.step()  # a quarter of the spacing below 1
    moved = (p.data != 1).mean()
    assert 0.2 < moved < 0.3
    assert len(np.unique(p.data.astype(np.float32), axis=0)) > 4
    assert opt.state[p]["exp_avg"].dtype == np.float32


def test_state_moves_to_torch_and_back(torch, rng, tmp_path):
    p = genesis.Parameter(rng.standard_normal((6, 4)))
    opt = SparseAdam([p], lr=0.1)
    for _ in range(3):
        p.grad = draw(rng, p.shape, 4)
        opt.step()
    genesis.save({"opt": opt.state_dict(), "p": p}, tmp_path / "state")
    loaded = genesis.load(tmp_path / "state")
    np.testing.assert_array_equal(loaded["p"].data, p.data)
    saved = loaded["opt"]
    entries = saved["state"][0]
    entries.update((n, torch.tensor(v)) for n, v in entries.items() if n != "step")
    tensor = torch.tensor(p.data.copy(), requires_grad=True)
    theirs = torch.optim.SparseAdam([tensor], lr=0.1)
    theirs.load_state_dict(saved)
    q = genesis.Parameter(p.data.copy())
    again = SparseAdam([q], lr=0.1)
    again.load_state_dict(theirs.state_dict())
    p.grad = q.grad = draw(rng, p.shape, 4)
    tensor.grad = sparse_tensor(torch, p.grad, p.shape)
    for each in (opt, theirs, again):
        each.step()
    np.testing.assert_array_equal(p.data, q.data)
    np.testing.assert_allclose(p.data, tensor.detach(), rtol=1e-12)


def test_the_signature_is_torchs(torch):
    theirs = inspect.signature(torch.optim.SparseAdam).parameters
    ours = dict(inspect.signature(SparseAdam).parameters)
    for option in options.HYPERS:  # genesis' own
        assert ours.pop(option).kind is inspect.Parameter.KEYWORD_ONLY
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


# ---- what else is done to gradients ----


def test_max_norm_and_clip_grad_norm_see_the_sums(rng):
    start = rng.standard_normal((6, 3))
    grad = SparseGrad([1, 1, 4], rng.standard_normal((3, 3)))
    dense = grad.to_dense(6)
    p, q, r = (genesis.Parameter(start.copy()) for _ in range(3))
    p.grad, q.grad = grad, dense
    r.grad = SparseGrad(grad.indices, grad.values.copy())
    opts = [SGD([each], lr=1.0) for each in (p, q, r)]
    opts[0].step(max_norm=0.5)
    opts[1].step(max_norm=0.5)
    assert clip_grad_norm_(r, 0.5) == pytest.approx(np.linalg.norm(dense))
    opts[2].step()
    assert opts[0].grad_norm == pytest.approx(np.linalg.norm(dense), rel=1e-14)
    np.testing.assert_allclose(p.data, q.data, rtol=1e-14)
    np.testing.assert_allclose(p.data, r.data, rtol=1e-14)
    with pytest.raises(TypeError, match="SparseGrad cannot be clipped by value"):
        clip_grad_value_([p], 0.1)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_the_norm_of_16_bit_rows_is_that_of_their_sums_in_float32(dtype):
    values = np.full((3, 4), 60000, dtype)  # three times that is no float16
    values[2] = 1
    size = float(values[0, 0])
    dense = np.zeros((6, 4))
    np.add.at(dense, [1, 1, 4], values.astype(np.float64))
    norm = np.linalg.norm(dense)
    grad = SparseGrad([1, 1, 4], values)
    assert get_total_norm(grad) == get_total_norm([grad]) == pytest.approx(norm, rel=1e-14)
    assert get_total_norm([grad], np.inf) == 2 * size
    np.testing.assert_array_equal(grad.to_dense(6), dense)
    assert grad.to_dense(6).dtype == grad.coalesced().values.dtype == np.float32
    p = genesis.Parameter(np.zeros((6, 4), np.float32))
    p.grad = grad
    opt = SGD([p], lr=1.0).step(max_norm=1000.0)
    assert opt.grad_norm == pytest.approx(norm, rel=1e-14)
    step = p.data.copy()
    np.testing.assert_allclose(step, -1000 * dense / norm, rtol=1e-5)
    assert clip_grad_norm_(p, 1000.0) == opt.grad_norm
    p.data[...] = 0
    opt.step()
    np.testing.assert_allclose(p.data, step, rtol=2.0**-8)  # the values were rounded to 16 bits
    assert np.all(p.data[1] < -100)


def test_zero_grad(rng):
    p = genesis.Parameter(np.ones((4, 2)))
    opt = SparseAdam([p])
    p.grad = draw(rng, p.shape, 3)
    opt.zero_grad(set_to_none=False)
    assert len(p.grad) == 0
    opt.step()
    np.testing.assert_array_equal(p.data, np.ones((4, 2)))
    opt.clear_grad()
    assert p.grad is None
    assert "grad=None" in repr(p)


def test_a_parameter_with_a_sparse_gradient_can_be_copied(rng):
    p = genesis.Parameter(np.ones((4, 2)))
    p.grad = draw(rng, p.shape, 3)
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        np.testing.assert_array_equal(other.grad.to_dense(4), p.grad.to_dense(4))
        SparseAdam([other]).step()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("make", "sparse", "said"),
    [
        (lambda p: SparseAdam(p), False, "does not support dense gradients, please consider Adam"),
        (lambda p: Adam(p), True, "Adam does not support sparse gradients"),
        (lambda p: SGD(p, 0.1, momentum=0.9), True, "SGD does not support sparse gradients"),
        (lambda p: SGD(p, 0.1, weight_decay=0.1), True, "SGD does not support sparse"),
        (lambda p: Adagrad(p, weight_decay=0.1), True, "Adagrad does not support sparse"),
    ],
)
def test_the_wrong_kind_of_gradient_is_refused_before_anything_is_written(make, sparse, said):
    p, q = genesis.Parameter(np.ones((3, 2))), genesis.Parameter(np.ones((3, 2)))
    opt = make([p, q])
    right, wrong = np.ones((3, 2)), SparseGrad([1], np.ones((1, 2)))
    p.grad, q.grad = (right, wrong) if sparse else (wrong, right)
    for _ in range(2):
        with pytest.raises(TypeError, match=said):
            opt.step()
    np.testing.assert_array_equal(p.data, np.ones((3, 2)))
    assert not opt.state.get(p)


def test_settings_that_change_between_steps_are_seen():
    p = genesis.Parameter(np.ones((3, 2)))
    opt = SGD([p], lr=0.1)
    p.grad = SparseGrad([1], np.ones((1, 2)))
    opt.step()
    before = p.data.copy()
    opt.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(TypeError, match="does not support sparse gradients"):
        opt.step()
    np.testing.assert_array_equal(p.data, before)


@pytest.mark.parametrize(
    ("hyper", "said"),
    [
        ({"lr": -1}, "Invalid learning rate"),
        ({"eps": 0.0}, "Invalid epsilon value: 0.0, expected a finite number above 0"),
        ({"betas": (1.0, 0.9)}, "beta parameter at index 0"),
        ({"betas": 0.9}, "Invalid betas"),
        ({"maximize": 1}, "expected True or False"),
    ],
)
def test_refuses_impossible_hyper_parameters(hyper, said):
    p = genesis.Parameter(np.ones((3, 2)))
    with pytest.raises((ValueError, TypeError), match=said):
        SparseAdam([p], **hyper)


def test_a_schedule_may_end_at_a_learning_rate_of_0():
    p = genesis.Parameter(np.ones((3, 2)))
    opt = SparseAdam([p], lr=0.5)
    p.grad = SparseGrad([1], np.ones((1, 2)))
    opt.step()
    opt.param_groups[0]["lr"] = 0.0
    before = p.data.copy()
    opt.step()
    np.testing.assert_array_equal(p.data, before)
    assert opt.state[p]["step"] == 2
    other = SparseAdam([{"params": [p], "lr": 0}])
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["lr"] == 0


# ---- cost ----


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects memory as Linux does")
@in_child
def test_a_step_touches_the_rows_of_its_gradient_and_no_others():
    """Every other row of the parameter and of its state lies on a page that cannot be read."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    rows, touched = 50, [3, 20, 41]

    def guarded():
        array = np.frombuffer(mmap.mmap(-1, rows * mmap.PAGESIZE), np.float32).reshape(rows, -1)
        for row in set(range(rows)) - set(touched):
            assert protect(array[row].ctypes.data, mmap.PAGESIZE, 0) == 0
        return array

    p = genesis.Parameter(guarded())
    opt = SparseAdam([p], lr=0.5, eps=1e-30)
    opt.state[p] = {"step": 1, "exp_avg": guarded(), "exp_avg_sq": guarded()}
    for _ in range(2):
        p.grad = SparseGrad(touched, np.ones((len(touched), *p.shape[1:]), np.float32))
        opt.step()
    assert opt.state[p]["step"] == 3
    assert (p.data[touched] < 0).all()
