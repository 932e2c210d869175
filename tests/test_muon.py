"""Muon against a float64 reference and against torch, which iterates in bfloat16."""

import inspect
import math

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis.buffers import BFLOAT16
from genesis.optim import Muon
from genesis.optim.muon import orthogonalized

pytestmark = on_cpu_only

SHAPES = [(10, 5), (5, 10), (7, 7), (1, 4), (64, 33)]
VARIANTS = [
    {},
    {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.3},
    {"nesterov": False, "weight_decay": 0},
    {"adjust_lr_fn": "match_rms_adamw", "lr": 0.01},
    {"adjust_lr_fn": "original", "ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5)},
    {"eps": 50.0, "lr": 0.1},
]
each_variant = pytest.mark.parametrize("hyper", VARIANTS, ids=str)


def reference(
    param, grad, buf, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
    ns_coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7, ns_steps=5, adjust_lr_fn=None,
):  # fmt: skip
    """One step, as the formulas say."""
    buf = momentum * buf + (1 - momentum) * grad
    x = (1 - momentum) * grad + momentum * buf if nesterov else buf
    x = x / max(np.sqrt((x * x).sum()), eps)
    a, b, c = ns_coefficients
    for _ in range(ns_steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    rows, columns = param.shape
    ratio = math.sqrt(max(1, rows / columns))
    if adjust_lr_fn == "match_rms_adamw":
        ratio = 0.2 * math.sqrt(max(rows, columns))
    return param * (1 - lr * weight_decay) - lr * ratio * x, buf


@each_variant
def test_float64_follows_the_reference(hyper, rng):
    params = [genesis.Parameter(rng.standard_normal(shape)) for shape in SHAPES]
    opt = Muon(params, **hyper)
    expected = [(p.data.copy(), np.zeros(p.shape)) for p in params]
    for _ in range(20):
        for i, p in enumerate(params):
            p.grad = rng.standard_normal(p.shape)
            expected[i] = reference(expected[i][0], p.grad, expected[i][1], **hyper)
        opt.step()
        for p, (param, buf) in zip(params, expected):
            np.testing.assert_allclose(p.data, param, rtol=0, atol=1e-12 * np.abs(param).max())
            np.testing.assert_allclose(opt.state[p]["momentum_buffer"], buf, rtol=0, atol=1e-13)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@each_variant
def test_each_update_is_near_torchs(hyper, torch, rng):
    params = [genesis.Parameter(rng.standard_normal(s).astype(np.float32)) for s in SHAPES]
    tensors = [torch.tensor(p.data.copy(), requires_grad=True) for p in params]
    ours, theirs = Muon(params, **hyper), torch.optim.Muon(tensors, **hyper)
    start = [p.data.copy() for p in params]
    for _ in range(50):
        for p, tensor in zip(params, tensors):
            p.grad = rng.standard_normal(p.shape).astype(np.float32)
            tensor.grad = torch.tensor(p.grad)
        ours.step()
        theirs.step()
        for p, tensor in zip(params, tensors):
            np.testing.assert_allclose(
                ours.state[p]["momentum_buffer"],
                theirs.state[tensor]["momentum_buffer"],
                rtol=1e-5,
                atol=1e-6,
            )
    for p, tensor, before in zip(params, tensors, start):
        update = tensor.detach().numpy() - before
        error = np.linalg.norm(p.data - before - update) / np.linalg.norm(update)
        assert error < 3e-2, p.shape


def test_the_tolerance_beside_torch_sees_a_changed_coefficient(torch, rng):
    before = rng.standard_normal((32, 16)).astype(np.float32)
    grad = rng.standard_normal((32, 16)).astype(np.float32)
    tensor = torch.tensor(before.copy(), requires_grad=True)
    tensor.grad = torch.tensor(grad)
    torch.optim.Muon([tensor]).step()
    update = tensor.detach().numpy() - before
    for hyper, visible in [({}, False), ({"lr": 1.05e-3}, True), ({"ns_steps": 4}, True)]:
        p = genesis.Parameter(before.copy())
        p.grad = grad
        Muon([p], **hyper).step()
        error = np.linalg.norm(p.data - before - update) / np.linalg.norm(update)
        assert (error > 3e-2) == visible, hyper


def test_singular_values_come_near_one(rng):
    for shape in [(20, 30), (30, 20)]:
        matrix = rng.standard_normal(shape)
        found = orthogonalized(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        values = np.linalg.svd(found, compute_uv=False)
        assert found.shape == shape
        assert 0.6 < values.min() <= values.max() < 1.3
        assert (found * matrix).sum() > 0


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_16_bit_parameters_are_updated_in_float32(dtype, rng):
    before = rng.standard_normal((6, 4)).astype(dtype)
    p = genesis.Parameter(before.copy())
    p.grad = rng.standard_normal((6, 4)).astype(np.float32)
    opt = Muon([p], lr=0.1).step()
    expected, _ = reference(before.astype(np.float64), p.grad, 0, lr=0.1)
    np.testing.assert_allclose(
        p.data.astype(np.float64), expected, rtol=float(2 * _spacing(dtype)), atol=1e-5
    )
    assert opt.state[p]["momentum_buffer"].dtype == dtype


def _spacing(dtype):
    return 2.0**-8 if dtype == BFLOAT16 else 2.0**-11


@pytest.mark.parametrize("order", ["strided", "F", "reversed"])
def test_any_memory_layout(order, rng):
    base = rng.standard_normal((6, 8))
    arrays = {
        "strided": np.zeros((12, 16))[::2, ::2],
        "F": np.zeros((6, 8), order="F"),
        "reversed": np.zeros((6, 8))[::-1, ::-1],
    }
    arrays[order][...] = base
    params = [genesis.Parameter(arrays[order]), genesis.Parameter(base.copy())]
    grad = rng.standard_normal((6, 8))
    params[0].grad, params[1].grad = np.asfortranarray(grad), grad
    Muon(params).step()
    np.testing.assert_allclose(params[0].data, params[1].data, rtol=1e-13)


def test_empty_matrices_and_missing_gradients_are_left_alone(rng):
    params = [genesis.Parameter(np.ones(shape)) for shape in [(0, 5), (5, 0), (2, 2)]]
    for p in params[:2]:
        p.grad = np.ones(p.shape)
    opt = Muon(params).step()
    np.testing.assert_array_equal(params[2].data, np.ones((2, 2)))
    assert params[2] not in opt.state


def test_max_norm_clips_and_closure_is_called(rng):
    before, grad = rng.standard_normal((2, 4, 3))
    p = genesis.Parameter(before.copy())
    opt = Muon([p], momentum=0.0, eps=1e3)  # so large an eps that the gradient's size counts

    def closure():
        p.grad = 100 * grad
        return 7.0

    assert opt.step(closure, max_norm=1.0) == 7.0
    norm = np.linalg.norm(100 * grad)
    assert opt.grad_norm == pytest.approx(norm, rel=1e-14)
    expected, _ = reference(before, 100 * grad / (norm + 1e-6), 0, momentum=0.0, eps=1e3)
    np.testing.assert_allclose(p.data, expected, rtol=1e-13)
    np.testing.assert_array_equal(p.grad, 100 * grad)


def test_state_moves_to_torch_and_back(torch, rng, tmp_path):
    p = genesis.Parameter(rng.standard_normal((6, 4)).astype(np.float32))
    opt = Muon([p])
    for _ in range(3):
        p.grad = rng.standard_normal((6, 4)).astype(np.float32)
        opt.step()
    genesis.save(opt.state_dict(), tmp_path / "state")
    saved = genesis.load(tmp_path / "state")
    tensor = torch.tensor(p.data.copy(), requires_grad=True)
    theirs = torch.optim.Muon([tensor])
    buffer = saved["state"][0]["momentum_buffer"]
    theirs.load_state_dict({**saved, "state": {0: {"momentum_buffer": torch.tensor(buffer)}}})
    again = Muon([genesis.Parameter(p.data.copy())])
    again.load_state_dict(theirs.state_dict())
    (q,) = again.param_groups[0]["params"]
    q.grad = p.grad
    again.step()
    opt.step()
    np.testing.assert_array_equal(p.data, q.data)


def test_the_signature_is_torchs(torch):
    theirs = inspect.signature(torch.optim.Muon).parameters
    ours = inspect.signature(Muon).parameters
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_refuses_parameters_that_are_no_matrices(shape):
    p, q = genesis.Parameter(np.ones(shape)), genesis.Parameter(np.ones((2, 2)))
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        Muon([q, p])
    opt = Muon([q])
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        opt.add_param_group({"params": [p]})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("hyper", "said"),
    [
        ({"lr": -1}, "Invalid learning rate"),
        ({"weight_decay": float("nan")}, "Invalid weight_decay"),
        ({"momentum": -0.1}, "Invalid momentum"),
        ({"nesterov": 1}, "expected True or False"),
        ({"eps": -1}, "Invalid epsilon"),
        ({"ns_steps": 100}, r"expected a whole number in \[0, 99\]"),
        ({"ns_steps": 2.0}, "expected a whole number"),
        ({"ns_coefficients": (1, 2)}, "expected 3 finite numbers"),
        ({"ns_coefficients": (1, 2, "3")}, "ns_coefficients at index 2: '3', expected a .*number"),
        ({"adjust_lr_fn": "none"}, "expected None or one of 'original', 'match_rms_adamw'"),
    ],
)
def test_refuses_impossible_hyper_parameters(hyper, said):
    p, q = genesis.Parameter(np.ones((2, 2))), genesis.Parameter(np.ones((2, 2)))
    with pytest.raises((ValueError, TypeError), match=said):
        Muon([p], **hyper)
    opt = Muon([{"params": [p]}, {"params": [q]}])
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
    with pytest.raises(TypeError, match="Muon does not support master_weights"):
        Muon([{"params": [p], "master_weights": True}])
    opt = Muon([p, q])
    p.grad = np.ones((2, 2))
    q.grad = genesis.SparseGrad([0], np.ones((1, 2)))
    with pytest.raises(TypeError, match="Muon does not support sparse gradients"):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((2, 2)))
