"""Adafactor against a float64 reference and against torch."""

import inspect
import math

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis import buffers
from genesis.buffers import BFLOAT16
from genesis.kernels import threads
from genesis.optim import Adafactor

pytestmark = on_cpu_only

SHAPES = [(10, 5), (10,), (), (3, 4, 2), (2, 3, 4, 5), (1, 7), (0,), (3, 0)]
VARIANTS = [
    {},
    {"lr": 0.1, "weight_decay": 0.1},
    {"maximize": True, "beta2_decay": -0.3},
    {"eps": (1e-1, 0.5), "lr": 0.5},
    {"d": 3.0, "lr": 0.5, "eps": (None, 0.0)},
]
each_variant = pytest.mark.parametrize("hyper", VARIANTS, ids=str)


def reference(
    param, grad, state, step, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0,
    weight_decay=0.0, maximize=False, spacing=2.0**-52,
):  # fmt: skip
    """One step, as the formulas say; `state` is edited."""
    grad = -grad if maximize else grad
    eps1 = spacing if eps[0] is None else eps[0]
    beta = 1 - step**beta2_decay

    def rms(x):
        return math.sqrt(np.mean(np.square(x)))

    alpha = max(eps[1], rms(param)) * min(lr, 1 / math.sqrt(step))
    param = param * (1 - lr * weight_decay)
    if grad.ndim > 1:
        r = state["row_var"] = beta * state.get("row_var", 0) + (1 - beta) * np.mean(
            grad**2, axis=-1, keepdims=True
        )
        c = state["col_var"] = beta * state.get("col_var", 0) + (1 - beta) * np.mean(
            grad**2, axis=-2, keepdims=True
        )
        v = r * c / np.maximum(r.mean(axis=-2, keepdims=True), eps1)
    else:
        v = state["variance"] = beta * state.get("variance", 0) + (1 - beta) * grad**2
    u = grad / np.maximum(np.sqrt(v), eps1)
    return param - alpha * u / max(1.0, rms(u) / d)


def gradients(rng, step):
    """Gradients of one step: some missing, some zero."""
    for i, shape in enumerate(SHAPES):
        grad = np.asarray(rng.standard_normal(shape))
        yield None if (step + i) % 7 == 3 else grad * (0.0 if (step + i) % 5 == 0 else 1.0)


@pytest.fixture
def tiles(monkeypatch):
    """A function that sets the size of tiles, their least rows and most columns."""
    from genesis.kernels import tiles

    def set_tiles(size, rows, columns):
        for name, value in (("TILE", size), ("TILE_ROWS", rows), ("TILE_COLUMNS", columns)):
            monkeypatch.setattr(tiles, name, value)

    return set_tiles


@each_variant
def test_float64_follows_the_reference(hyper, rng, tiles):
    tiles(7, 2, 3)  # many tiles even here
    params = [genesis.Parameter(np.asarray(rng.standard_normal(shape))) for shape in SHAPES]
    opt = Adafactor(params, **hyper)
    expected = [p.data.copy() for p in params]
    states = [{} for _ in params]
    steps = [0 for _ in params]
    for step in range(50):
        for i, grad in enumerate(gradients(rng, step)):
            params[i].grad = grad
            if grad is not None:
                steps[i] += 1
                if grad.size:
                    expected[i] = reference(expected[i], grad, states[i], steps[i], **hyper)
        opt.step()
        for p, param, state, count in zip(params, expected, states, steps):
            np.testing.assert_allclose(p.data, param, rtol=1e-12, atol=1e-13)
            if count:
                assert opt.state[p]["step"] == count
            for name in state:
                np.testing.assert_allclose(opt.state[p][name], state[name], rtol=1e-12)
    assert {*opt.state[params[0]]} == {"step", "row_var", "col_var"}
    assert {*opt.state[params[1]]} == {"step", "variance"}
    assert opt.state[params[4]]["row_var"].shape == (2, 3, 4, 1)
    assert opt.state[params[4]]["col_var"].shape == (2, 3, 1, 5)


@pytest.fixture
def torch():
    """torch, with step counts and the like in float64."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def beside_torch(torch, rng, hyper, dtype, changed=None, steps=50):
    """The largest error of an update in `steps` steps, relative to its largest element."""
    arrays = [np.asarray(rng.standard_normal(s), dtype) for s in [(10, 5), (10,), (), (3, 4, 2)]]
    params = [genesis.Parameter(a.copy()) for a in arrays]
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    ours = Adafactor(params, **{**hyper, **(changed or {})})
    theirs = torch.optim.Adafactor(tensors, **hyper)
    for _ in range(steps):
        for p, tensor in zip(params, tensors):
            p.grad = np.asarray(rng.standard_normal(p.shape), dtype)
            tensor.grad = torch.tensor(p.grad)
        ours.step()
        theirs.step()
    worst = 0.0
    for p, tensor, before in zip(params, tensors, arrays):
        update = tensor.detach().numpy() - before
        worst = max(worst, np.max(np.abs(p.data - before - update)) / np.max(np.abs(update)))
    return worst


@each_variant
def test_follows_torch(hyper, torch, rng):
    assert beside_torch(torch, rng, hyper, np.float64) < 1e-12
    assert beside_torch(torch, rng, hyper, np.float32) < 1e-4  # as rounding of 50 updates adds up


@pytest.mark.parametrize(
    "changed",
    [{"lr": 0.1 * (1 + 1e-9)}, {"beta2_decay": -0.8 - 1e-9}, {"weight_decay": 0.1 + 1e-9}],
    ids=str,
)
def test_the_tolerance_sees_a_changed_coefficient(changed, torch, rng):
    hyper = {"lr": 0.1, "weight_decay": 0.1}
    assert beside_torch(torch, rng, hyper, np.float64, changed, steps=8) > 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("grad_dtype", [np.float64, BFLOAT16], ids=str)
def test_narrow_types_are_rounded_once(dtype, grad_dtype, rng):
    before = rng.standard_normal((6, 5)).astype(dtype)
    p = genesis.Parameter(before.copy())
    p.grad = rng.standard_normal((6, 5)).astype(grad_dtype)
    opt = Adafactor([p], lr=0.5).step()
    bits = {np.dtype(np.float32): 23, np.dtype(np.float16): 10, BFLOAT16: 7}[np.dtype(dtype)]
    wide = before.astype(np.float64), p.grad.astype(np.float64)
    expected = reference(*wide, {}, 1, lr=0.5, spacing=2.0**-bits)
    allowed = 2.0 ** -(bits + 1) * np.abs(expected) + 3e-6
    assert np.all(np.abs(p.data.astype(np.float64) - expected) <= allowed)
    assert opt.state[p]["row_var"].dtype == dtype


@pytest.mark.parametrize("order", ["strided", "F", "reversed"])
@pytest.mark.parametrize(
    "size", [(5, 2, 2), (64, 1, 4), (70, 64, 8192), (65536, 64, 8192)], ids=str
)
def test_any_memory_layout_and_tiles(order, size, rng, tiles):
    tiles(*size)
    shape = (3, 4, 5, 6)
    base = rng.standard_normal(shape)
    arrays = {
        "strided": np.zeros((6, 8, 10, 12))[::2, ::2, ::2, ::2],
        "F": np.zeros(shape, order="F"),
        "reversed": np.zeros(shape)[::-1, :, ::-1, ::-1],
    }
    arrays[order][...] = base
    p = genesis.Parameter(arrays[order])
    p.grad = np.asfortranarray(rng.standard_normal(shape))
    Adafactor([p], lr=0.5).step()
    expected = reference(base, p.grad, {}, 1, lr=0.5)
    np.testing.assert_allclose(p.data, expected, rtol=1e-12)


class Peculiar(np.ndarray):
    """An array that does nothing as others do."""

    def __getitem__(self, key):
        raise AssertionError("not to be asked")

    __setitem__ = __array_ufunc__ = reshape = astype = fill = __getitem__


@pytest.mark.parametrize("kind", [np.matrix, np.recarray, np.memmap, Peculiar])
@pytest.mark.parametrize("name", ["Adafactor", "Muon", "LBFGS", "AdamW"])
@pytest.mark.parametrize("order", ["C", "strided"])
def test_a_subclass_of_ndarray_is_an_array(kind, name, order, rng):
    start, gradient = rng.standard_normal((2, 6, 8))

    def run(kind):
        values = start.copy()
        param = genesis.Parameter((values[:, ::2] if order == "strided" else values).view(kind))
        opt = getattr(genesis.optim, name)([param], lr=0.1)

        def closure():
            grad = gradient * values + 1
            param.grad = (grad[:, ::2] if order == "strided" else grad).view(kind)
            return float((gradient * values * values).sum())

        for _ in range(3):
            opt.step(closure)
        opt.zero_grad(set_to_none=False)
        assert not np.any(np.asarray(param.grad))
        opt.load_state_dict(opt.state_dict())
        opt.step(closure)
        return values

    np.testing.assert_array_equal(run(kind), run(np.ndarray))


def test_state_may_be_a_matrix_too(rng):
    runs = []
    for kind in (np.matrix, np.ndarray):
        param = genesis.Parameter(np.ones((3, 4)))
        opt = Adafactor([param])
        for step in range(3):
            param.grad = np.random.default_rng(step).standard_normal((3, 4))
            opt.step()
            for name in ("row_var", "col_var"):
                opt.state[param][name] = opt.state[param][name].view(kind)
        runs.append(param.data)
    np.testing.assert_array_equal(*runs)


def test_max_norm_clips_and_closure_is_called(rng):
    before, grad = rng.standard_normal((2, 4, 3))
    p = genesis.Parameter(before.copy())
    opt = Adafactor([p], eps=(2.0, 1e-3))  # so large an eps that the gradient's size counts

    def closure():
        p.grad = grad
        return 7.0

    assert opt.step(closure, max_norm=1.0) == 7.0
    norm = np.linalg.norm(grad)
    assert opt.grad_norm == pytest.approx(norm, rel=1e-14)
    expected = reference(before, grad / (norm + 1e-6), {}, 1, eps=(2.0, 1e-3))
    np.testing.assert_allclose(p.data, expected, rtol=1e-13)


def test_state_moves_to_torch_and_back(torch, rng, tmp_path):
    shapes = [(6, 4), (5,)]
    params = [genesis.Parameter(rng.standard_normal(shape)) for shape in shapes]
    opt = Adafactor(params)
    for _ in range(3):
        for p in params:
            p.grad = rng.standard_normal(p.shape)
        opt.step()
    genesis.save(opt.state_dict(), tmp_path / "state")
    saved = genesis.load(tmp_path / "state")
    for entries in saved["state"].values():
        entries.update((n, torch.tensor(v)) for n, v in entries.items() if n != "step")
    tensors = [torch.tensor(p.data.copy(), requires_grad=True) for p in params]
    theirs = torch.optim.Adafactor(tensors)
    theirs.load_state_dict(saved)
    again = Adafactor([genesis.Parameter(p.data.copy()) for p in params])
    again.load_state_dict(theirs.state_dict())
    copies = again.param_groups[0]["params"]
    for p, q, tensor in zip(params, copies, tensors):
        p.grad = q.grad = rng.standard_normal(p.shape)
        tensor.grad = torch.tensor(p.grad)
    for each in (opt, again, theirs):
        each.step()
    for p, q, tensor in zip(params, copies, tensors):
        np.testing.assert_array_equal(p.data, q.data)
        np.testing.assert_allclose(p.data, tensor.detach(), rtol=1e-13)
        assert opt.state[p]["step"] == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row_var": np.ones((3, 2))}, r"has shape \(3, 2\).*which makes it \(3, 1\)"),
        ({"row_var": None}, "keeps .*'row_var'"),
        ({"variance": np.ones((3, 2))}, "keeps .*'row_var'"),
        ({"step": None}, r"has no \['step'\]"),
        ({"exp_avg": np.ones((3, 2))}, "exp_avg"),
    ],
)
def test_refuses_a_state_that_does_not_fit(change, said):
    p = genesis.Parameter(np.ones((3, 2)))
    p.grad = np.ones((3, 2))
    opt = Adafactor([p]).step()
    saved = opt.state_dict()
    saved["state"][0].update(change)
    before = opt.state_dict()
    with pytest.raises(ValueError, match=said):
        opt.load_state_dict(saved)
    np.testing.assert_equal(opt.state_dict(), before)


def test_the_signature_is_torchs(torch):
    theirs = dict(inspect.signature(torch.optim.Adafactor).parameters)
    ours = inspect.signature(Adafactor).parameters
    assert sorted((n, str(p.default), p.kind) for n, p in ours.items()) == sorted(
        (n, str(p.default), p.kind) for n, p in theirs.items()
    )
    positional = [n for n, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == positional


@pytest.mark.parametrize(
    ("hyper", "said"),
    [
        ({"lr": -1}, "Invalid learning rate"),
        (
            {"beta2_decay": 0.1},
            "Invalid beta2_decay value: 0.1, expected a finite number of at most 0",
        ),
        ({"beta2_decay": "0"}, "expected a .*number"),
        ({"eps": (-1.0, 1e-3)}, "Invalid epsilon value at index 0"),
        ({"eps": (None, -1e-3)}, "Invalid epsilon value at index 1"),
        ({"eps": (None, None)}, "expected a .*number"),
        ({"eps": 1e-3}, "expected 2 numbers"),
        ({"d": 0.9}, "expected a number of at least 1"),
        ({"weight_decay": float("nan")}, "Invalid weight_decay"),
        ({"maximize": 1}, "expected True or False"),
    ],
)
def test_refuses_impossible_hyper_parameters_before_anything_is_written(hyper, said):
    p, q = genesis.Parameter(np.ones((2, 2))), genesis.Parameter(np.ones((2, 2)))
    with pytest.raises((ValueError, TypeError), match=said):
        Adafactor([p], **hyper)
    opt = Adafactor([{"params": [p]}, {"params": [q]}])
    p.grad = q.grad = np.ones((2, 2))
    with pytest.raises((ValueError, TypeError), match=said):
        opt.param_groups[1].update(hyper)
    dict.update(opt.param_groups[1], hyper)  # past the group's own check
    with pytest.raises((ValueError, TypeError), match=said):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((2, 2)))
    assert not opt.state.get(p)


def test_refuses_what_rules_alone_follow_and_sparse_gradients():
    p, q = genesis.Parameter(np.ones((2, 2))), genesis.Parameter(np.ones((2, 2)))
    with pytest.raises(TypeError, match="Adafactor does not support state_dtype"):
        Adafactor([{"params": [p], "state_dtype": "bfloat16"}])
    opt = Adafactor([p, q])
    p.grad = np.ones((2, 2))
    q.grad = genesis.SparseGrad([0], np.ones((1, 2)))
    with pytest.raises(TypeError, match="Adafactor does not support sparse gradients"):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((2, 2)))


def test_refuses_device_parameters_and_says_what_to_do():
    p = genesis.Parameter(np.ones((2, 2)))
    p.grad = np.ones((2, 2))
    opt = Adafactor([p])
    elsewhere = p.data.view(buffers.DeviceView)
    elsewhere.owner, elsewhere.place = p.data, "cuda:0"
    p._view = elsewhere
    with pytest.raises(ValueError, match=r'move them with optimizer.to\("cpu"\)'):
        opt.step()


def stepped(shapes, dtype, rng, apart=False):
    """What parameters and state are after three steps of one optimizer, or of one for each."""
    params = [genesis.Parameter(np.asarray(rng.standard_normal(s), dtype)) for s in shapes]
    gradients = [[np.asarray(rng.standard_normal(s), dtype) for s in shapes] for _ in range(3)]
    optimizers = [Adafactor([p], lr=0.1) for p in params] if apart else [Adafactor(params, lr=0.1)]
    for some in gradients:
        for p, grad in zip(params, some):
            p.grad = grad
        for opt in optimizers:
            opt.step()
    state = {p: entries for opt in optimizers for p, entries in opt.state.items()}
    names = ("row_var", "col_var", "variance")
    return [
        array.tobytes()
        for p in params
        for array in (p.data, *(state[p][name] for name in names if name in state[p]))
    ]


def test_threads_and_company_change_no_bit(tiles, monkeypatch, num_threads):
    monkeypatch.setattr(threads, "MINIMUM_BYTES", 1)
    tiles(100, 3, 11)
    shapes = [(40, 30), (57,), (7, 8, 9), (1, 100), (100, 1)]
    found = []
    for number in (1, 4, 4, 4):
        num_threads(number)
        found.append(stepped(shapes, np.float32, np.random.default_rng(1), apart=len(found) == 2))
    assert found.count(found[0]) == len(found)


def test_clip_value_and_state_of_another_type(rng):
    before, grad = rng.standard_normal((2, 5, 4)).astype(np.float32)
    params = [genesis.Parameter(before.copy()) for _ in range(3)]
    for p, given in zip(params, (2 * grad, np.clip(2 * grad, -0.5, 0.5), 2 * grad)):
        p.grad = given
    optimizers = [Adafactor([p], lr=0.1) for p in params]
    optimizers[0].step(clip_value=0.5)
    optimizers[1].step()
    np.testing.assert_array_equal(params[0].data, params[1].data)
    assert not np.array_equal(
        params[0].data, optimizers[2].step().param_groups[0]["params"][0].data
    )
    state = optimizers[0].state[params[0]]
    for name in ("row_var", "col_var"):
        state[name] = state[name].astype(np.float64)
    for p, opt in zip(params[:2], optimizers):
        p.grad = grad
        opt.step()
    np.testing.assert_array_equal(params[0].data, params[1].data)
    for name in ("row_var", "col_var"):
        np.testing.assert_array_equal(state[name], optimizers[1].state[params[1]][name])
        assert state[name].dtype == np.float64


def test_parameters_are_not_copied():
    import tracemalloc

    p = genesis.Parameter(np.ones((1000, 1000), np.float32))
    p.grad = np.ones((1000, 1000), np.float32)
    opt = Adafactor([p]).step()
    tracemalloc.start()
    opt.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < p.data.nbytes / 10
