"""CAME, AdamMini and GaLoreAdamW against float64 references, and what they promise besides."""

import math

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis import buffers
from genesis.buffers import BFLOAT16
from genesis.kernels import threads
from genesis.optim import CAME, AdamMini, AdamW, GaLoreAdamW

pytestmark = on_cpu_only

SHAPES = [(10, 6), (10,), (), (3, 4, 2), (2, 3, 4, 5), (2, 7), (0,), (3, 0)]


def rms(x):
    return math.sqrt(np.mean(np.square(x)))


def came(
    param, grad, state, step, *, lr=2e-4, eps=(1e-30, 1e-16), clip_threshold=1.0,
    betas=(0.9, 0.999, 0.9999), weight_decay=0.0, maximize=False,
):  # fmt: skip
    """One step, with sums over rows and columns as the paper's algorithm has them."""
    grad = -grad if maximize else grad

    def estimate(name, squares, beta):
        """The average's row sums times its column sums, over the sum of all."""
        r = beta * state.get(f"{name}_row", 0) + (1 - beta) * squares.sum(axis=-1)
        c = beta * state.get(f"{name}_col", 0) + (1 - beta) * squares.sum(axis=-2)
        state.update({f"{name}_row": r, f"{name}_col": c})
        return r[..., :, None] * c[..., None, :] / r.sum(axis=-1)[..., None, None]

    if grad.ndim > 1:
        v = estimate("exp_avg_sq", grad**2 + eps[0], betas[1])
    else:
        v = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * (grad**2 + eps[0])
        state["exp_avg_sq"] = v
    u = grad / np.sqrt(v)
    u = u / max(1.0, rms(u) / clip_threshold)
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * u
    if grad.ndim > 1:
        m = m / np.sqrt(estimate("exp_avg_res", (u - m) ** 2 + eps[1], betas[2]))
    return param - lr * weight_decay * param - lr * m


def adam_mini(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
    blocks="row", maximize=False,
):  # fmt: skip
    grad = -grad if maximize else grad
    if blocks == "row":
        blocks = len(param) if param.ndim > 1 else 1
    count = 1 if blocks == "tensor" else blocks
    m = state["exp_avg"] = betas[0] * state.get("exp_avg", 0) + (1 - betas[0]) * grad
    means = np.array([np.mean(part**2) for part in np.split(grad.ravel(), count)])
    v = state["exp_avg_sq"] = betas[1] * state.get("exp_avg_sq", 0) + (1 - betas[1]) * means
    every = np.repeat(v, param.size // count).reshape(param.shape)
    update = m / (1 - betas[0] ** step) / (np.sqrt(every / (1 - betas[1] ** step)) + eps)
    return param * (1 - lr * weight_decay) - lr * update


def galore(
    param, grad, state, step, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0,
    rank=128, update_proj_gap=200, scale=0.25, maximize=False,
):  # fmt: skip
    """Always with left singular vectors, so of a tall matrix all is transposed."""
    grad = -grad if maximize else grad
    projects = rank is not None and grad.ndim == 2 and min(grad.shape) > rank
    tall = projects and grad.shape[0] >= grad.shape[1]
    low = grad.T if tall else grad
    if projects:
        if (step - 1) % update_proj_gap == 0:
            values, vectors = np.linalg.eigh(low @ low.T)
            found = vectors[:, np.argsort(values)[::-1][:rank]]
            before = state.get("P", found)
            state["P"] = found * np.where(np.sum(found * before, axis=0) < 0, -1, 1)
        low = state["P"].T @ low
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * low
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * low**2
    update = m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    if projects:
        update = scale * (state["P"] @ update)
        update = update.T if tall else update
    return param * (1 - lr * weight_decay) - lr * update


REFERENCES = {CAME: came, AdamMini: adam_mini, GaLoreAdamW: galore}
VARIANTS = [
    (CAME, {"lr": 0.1}),
    (CAME, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.3, 0.7, 0.6), "maximize": True}),
    (CAME, {"lr": 0.1, "eps": (0.5, 0.1), "clip_threshold": 0.5}),
    (AdamMini, {"lr": 0.1}),
    (AdamMini, {"lr": 0.1, "blocks": "tensor", "weight_decay": 0.3, "maximize": True}),
    (AdamMini, {"lr": 0.1, "betas": (0.3, 0.7), "eps": 0.1}),
    (GaLoreAdamW, {"lr": 0.1, "rank": 2, "update_proj_gap": 7}),
    (
        GaLoreAdamW,
        {
            "lr": 0.1,
            "rank": 3,
            "update_proj_gap": 50,
            "scale": 2.0,
            "weight_decay": 0.3,
            "eps": 0.1,
        },
    ),
    (
        GaLoreAdamW,
        {"lr": 0.1, "rank": 1, "betas": (0.3, 0.7), "update_proj_gap": 1, "maximize": True},
    ),
    (GaLoreAdamW, {"rank": None}),
]
EACH = [(kind, next(hyper for each, hyper in VARIANTS if each is kind)) for kind in REFERENCES]
each_variant = pytest.mark.parametrize(("kind", "hyper"), VARIANTS, ids=str)
each_kind = pytest.mark.parametrize(("kind", "hyper"), EACH, ids=lambda value: str(value)[-20:])


def gradients(rng, step, shapes=SHAPES):
    """Gradients of one step, some missing; those of matrices turn slowly and are not zero."""
    for i, shape in enumerate(shapes):
        grad = np.asarray(rng.standard_normal(shape))
        yield None if (step + i) % 7 == 3 else grad


@pytest.fixture
def tiles(monkeypatch):
    """A function that sets the size of tiles, their least rows and most columns."""
    from genesis.kernels import tiles

    def set_tiles(size, rows, columns):
        for name, value in (("TILE", size), ("TILE_ROWS", rows), ("TILE_COLUMNS", columns)):
            monkeypatch.setattr(tiles, name, value)

    return set_tiles


def beside_reference(kind, hyper, rng, steps=50, **changed):
    """The largest error of an update in so many steps, relative to its largest element."""
    params = [genesis.Parameter(np.asarray(rng.standard_normal(shape))) for shape in SHAPES]
    opt = kind(params, **{**hyper, **changed})
    begin = [p.data.copy() for p in params]
    expected, states, counts = [*begin], [{} for _ in params], [0 for _ in params]
    worst = 0.0
    for step in range(steps):
        for i, grad in enumerate(gradients(rng, step)):
            params[i].grad = grad
            if grad is not None:
                counts[i] += 1
                if grad.size:
                    expected[i] = REFERENCES[kind](
                        expected[i], grad, states[i], counts[i], **hyper
                    )  # fmt: skip
        opt.step()
    for p, param, before, count in zip(params, expected, begin, counts):
        assert opt.state[p]["step"] == count
        if p.size:
            worst = max(worst, np.max(np.abs(p.data - param)) / np.max(np.abs(param - before)))
    return worst


@each_variant
def test_50_steps_in_float64_follow_the_reference(kind, hyper, rng, tiles):
    tiles(7, 2, 3)  # many tiles even here
    assert beside_reference(kind, hyper, rng) < 1e-10


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (CAME, {"lr": 0.1 * (1 + 1e-9)}),
        (CAME, {"betas": (0.9, 0.999, 0.9999 - 1e-9)}),
        (AdamMini, {"betas": (0.9, 0.999 - 1e-8)}),
        (AdamMini, {"eps": 2e-8}),
        (GaLoreAdamW, {"scale": 0.25 * (1 + 1e-8)}),
        (GaLoreAdamW, {"update_proj_gap": 8}),
    ],
    ids=str,
)
def test_the_tolerance_sees_a_changed_coefficient(kind, changed, rng):
    assert beside_reference(kind, dict(EACH)[kind], rng, **changed) > 1e-10


def test_blocks_are_pieces_along_the_first_axis(rng):
    start, grads = rng.standard_normal((6, 4)), rng.standard_normal((3, 6, 4))
    for blocks in ("row", "tensor", 1, 2, 3, 6):
        p, state, expected = genesis.Parameter(start.copy()), {}, start
        opt = AdamMini([p], lr=0.1, blocks=blocks)
        for step, grad in enumerate(grads, 1):
            p.grad = grad
            opt.step()
            expected = adam_mini(expected, grad, state, step, lr=0.1, blocks=blocks)
        np.testing.assert_allclose(p.data, expected, rtol=1e-13)
        np.testing.assert_allclose(opt.state[p]["exp_avg_sq"], state["exp_avg_sq"], rtol=1e-13)
        assert opt.state[p]["exp_avg_sq"].shape == state["exp_avg_sq"].shape


def test_state_has_the_shapes_that_the_docstrings_say():
    def shapes(opt):
        p = opt.param_groups[0]["params"][0]
        p.grad = np.ones(p.shape)
        entries = opt.step().state[p]
        return {name: array.shape for name, array in entries.items() if name != "step"}

    def p(*shape):
        return [genesis.Parameter(np.ones(shape))]

    assert shapes(CAME(p(2, 3, 4))) == {
        "exp_avg": (2, 3, 4),
        "exp_avg_sq_row": (2, 3),
        "exp_avg_sq_col": (2, 4),
        "exp_avg_res_row": (2, 3),
        "exp_avg_res_col": (2, 4),
    }
    assert shapes(CAME(p(4))) == {"exp_avg": (4,), "exp_avg_sq": (4,)}
    assert shapes(AdamMini(p(4, 5))) == {"exp_avg": (4, 5), "exp_avg_sq": (4,)}
    assert shapes(AdamMini(p(4))) == {"exp_avg": (4,), "exp_avg_sq": (1,)}
    low = {"exp_avg": (2, 7), "exp_avg_sq": (2, 7), "projector": (5, 2)}
    assert shapes(GaLoreAdamW(p(5, 7), rank=2)) == low
    high = {"exp_avg": (7, 2), "exp_avg_sq": (7, 2), "projector": (2, 5)}
    assert shapes(GaLoreAdamW(p(7, 5), rank=2)) == high
    assert shapes(GaLoreAdamW(p(7, 5), rank=5)) == {"exp_avg": (7, 5), "exp_avg_sq": (7, 5)}


def test_galore_is_adamw_where_it_does_not_project(rng):
    shapes = [(7,), (3, 4, 2), (5, 3), ()]
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    ours = GaLoreAdamW([genesis.Parameter(a.copy()) for a in arrays], rank=3, eps=1e-8)
    theirs = AdamW([genesis.Parameter(a.copy()) for a in arrays], weight_decay=0)
    for clip in (None, None, 0.3):
        grads = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
        for opt in (ours, theirs):
            for p, grad in zip(opt.param_groups[0]["params"], grads):
                p.grad = grad
            opt.step(clip_value=clip)
    for p, q in zip(*(opt.param_groups[0]["params"] for opt in (ours, theirs))):
        np.testing.assert_array_equal(p.data, q.data)
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(ours.state[p][name], theirs.state[q][name])


def test_the_signs_of_singular_vectors_do_not_matter(rng, monkeypatch):
    svd = np.linalg.svd
    grads = rng.standard_normal((9, 5, 7))
    found = []
    for turns in (False, True):
        signs = np.random.default_rng(3)

        def turned(matrix, full_matrices):
            left, values, right = svd(matrix, full_matrices=full_matrices)
            each = signs.choice([-1, 1], len(values))  # noqa: B023
            return left * each, values, right * each[:, None]

        monkeypatch.setattr(np.linalg, "svd", turned if turns else svd)
        p = genesis.Parameter(np.ones((5, 7)))
        opt = GaLoreAdamW([p], lr=0.1, rank=3, update_proj_gap=2)
        for grad in grads:
            p.grad = grad
            opt.step()
        found.append(p.data)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-13)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(CAME, np.float16), (AdamMini, BFLOAT16), (GaLoreAdamW, np.float16)],
    ids=str,
)
def test_narrow_types_are_rounded_once(kind, dtype, rng):
    hyper = {**dict(EACH)[kind], "lr": 0.5}
    before = rng.standard_normal((6, 5)).astype(dtype)
    p = genesis.Parameter(before.copy())
    p.grad = rng.standard_normal((6, 5)).astype(np.float32)
    opt = kind([p], **hyper).step()
    wide = before.astype(np.float64), p.grad.astype(np.float64)
    expected = REFERENCES[kind](*wide, {}, 1, **hyper)
    bits = {np.dtype(np.float16): 10, BFLOAT16: 7}[np.dtype(dtype)]
    allowed = 2.0 ** -(bits + 1) * np.abs(expected) + 1e-4
    assert np.all(np.abs(p.data.astype(np.float64) - expected) <= allowed)
    types = {name: a.dtype for name, a in opt.state[p].items() if name != "step"}
    narrow = {"exp_avg"} if kind is not GaLoreAdamW else set()
    assert types == {name: dtype if name in narrow else np.float32 for name in types}


@each_kind
@pytest.mark.parametrize("order", ["strided", "F"])
def test_any_memory_layout_and_types_of_state(kind, hyper, order, rng):
    shape = (6, 8)
    start, grads = rng.standard_normal(shape), rng.standard_normal((4, *shape))
    arrays = {"strided": np.zeros((12, 16))[::2, ::-2], "F": np.zeros(shape, order="F")}
    arrays[order][...] = start
    params = [genesis.Parameter(arrays[order]), genesis.Parameter(start.copy())]
    optimizers = [kind([p], **hyper) for p in params]
    for step, grad in enumerate(grads):
        params[0].grad, params[1].grad = np.asfortranarray(grad), grad
        for opt in optimizers:
            opt.step()
        if step == 1:  # from now on what is written lies anywhere, too
            entries = optimizers[0].state[params[0]]
            for name in [name for name in entries if name != "step"]:
                entries[name] = np.asfortranarray(entries[name])
    np.testing.assert_allclose(params[0].data, params[1].data, rtol=1e-12)


@each_kind
def test_threads_and_company_change_no_bit(kind, hyper, tiles, monkeypatch, num_threads):
    monkeypatch.setattr(threads, "MINIMUM_BYTES", 1)
    tiles(100, 3, 11)
    shapes = [(40, 30), (57,), (7, 8, 9), (2, 100), (100, 3)]
    found = []
    for number in (1, 4, 4, 4):
        num_threads(number)
        rng = np.random.default_rng(1)
        params = [genesis.Parameter(rng.standard_normal(s).astype(np.float32)) for s in shapes]
        grads = [[rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3)]
        apart = len(found) == 2
        groups = [[p] for p in params] if apart else [params]
        optimizers = [kind(group, **hyper) for group in groups]
        for some in grads:
            for p, grad in zip(params, some):
                p.grad = grad
            for opt in optimizers:
                opt.step()
        state = {p: entries for opt in optimizers for p, entries in opt.state.items()}
        found.append(
            [
                array.tobytes()
                for p in params
                for array in (p.data, *state[p].values())
                if isinstance(array, np.ndarray)
            ]
        )
    assert found.count(found[0]) == len(found)


@each_kind
def test_a_run_that_is_resumed_is_the_same_to_the_last_bit(kind, hyper, rng, tmp_path):
    shapes = [(6, 4), (5,), (4, 7)]
    start = [rng.standard_normal(shape) for shape in shapes]
    grads = [[rng.standard_normal(shape) for shape in shapes] for _ in range(12)]

    def steps(opt, some):
        for each in some:
            for p, grad in zip(opt.param_groups[0]["params"], each):
                p.grad = grad
            opt.step()
        return [p.data for p in opt.param_groups[0]["params"]]

    def made(arrays):
        return kind([genesis.Parameter(array.copy()) for array in arrays], **hyper)

    whole = steps(made(start), grads)
    first = made(start)
    half = steps(first, grads[:5])
    genesis.save(first.state_dict(), tmp_path / "state")
    second = made(half)
    second.load_state_dict(genesis.load(tmp_path / "state"))
    for one, other in zip(whole, steps(second, grads[5:])):
        np.testing.assert_array_equal(one, other)


@each_kind
def test_clipping_in_the_step_is_clipping_before_it(kind, hyper, rng):
    start, grad = rng.standard_normal((2, 6, 5))
    norm = np.linalg.norm(grad)
    for asked, clipped in [
        ({"clip_value": 0.5}, np.clip(grad, -0.5, 0.5)),
        ({"max_norm": 1.0}, grad / (norm + 1e-6)),
    ]:
        params = [genesis.Parameter(start.copy()) for _ in range(2)]
        optimizers = [kind([p], **{**hyper, "lr": 0.1}) for p in params]
        for p, given in zip(params, (grad, clipped)):
            p.grad = given
        optimizers[0].step(**asked)
        optimizers[1].step()
        np.testing.assert_allclose(params[0].data, params[1].data, rtol=1e-12)
        assert optimizers[0].grad_norm in (None, pytest.approx(norm, rel=1e-14))


@each_kind
def test_a_loss_scale_is_taken_out_and_inf_skips_the_step(kind, hyper, rng):
    start, grad = rng.standard_normal((2, 6, 5))
    params = [genesis.Parameter(start.copy()) for _ in range(2)]
    optimizers = [kind([p], **hyper) for p in params]
    params[0].grad, params[1].grad = grad * 1024, grad
    genesis.amp.GradScaler(1024.0).step(optimizers[0])
    optimizers[1].step()
    np.testing.assert_array_equal(params[0].data, params[1].data)
    before = optimizers[0].state_dict()
    params[0].grad = np.full((6, 5), np.inf)
    genesis.amp.GradScaler(1024.0).step(optimizers[0])
    assert optimizers[0].step_skipped
    np.testing.assert_array_equal(params[0].data, params[1].data)
    np.testing.assert_equal(optimizers[0].state_dict(), before)


@each_kind
def test_refuses_sparse_gradients_and_devices_before_anything_is_written(kind, hyper):
    p, q = genesis.Parameter(np.ones((4, 4))), genesis.Parameter(np.ones((4, 4)))
    opt = kind([p, q], **hyper)
    p.grad = np.ones((4, 4))
    q.grad = genesis.SparseGrad([0], np.ones((1, 4)))
    with pytest.raises(TypeError, match=f"{kind.__name__} does not support sparse gradients"):
        opt.step()
    q.grad = np.ones((4, 4))
    elsewhere = q.data.view(buffers.DeviceView)
    elsewhere.owner, elsewhere.place = q.data, "cuda:0"
    q._view = elsewhere
    with pytest.raises(ValueError, match=r'move them with optimizer.to\("cpu"\)'):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((4, 4)))
    assert not opt.state.get(p)
    with pytest.raises(TypeError, match=f"{kind.__name__} does not support state_dtype"):
        kind([{"params": [p], "state_dtype": "bfloat16"}])


@pytest.mark.parametrize(
    ("kind", "hyper", "said"),
    [
        (CAME, {"lr": -1}, "Invalid learning rate"),
        (CAME, {"eps": 1e-3}, "expected 2 finite numbers"),
        (CAME, {"eps": (-1, 0)}, "Invalid epsilon value at index 0"),
        (CAME, {"clip_threshold": 0}, "expected a number above 0"),
        (CAME, {"betas": (0.9, 0.999)}, "expected 3 numbers"),
        (AdamMini, {"blocks": "rows"}, 'Invalid blocks: .*, expected "row", "tensor" or a whole'),
        (AdamMini, {"blocks": 0}, "Invalid blocks: 0, expected"),
        (AdamMini, {"blocks": 2.0}, "Invalid blocks: 2.0, expected"),
        (AdamMini, {"blocks": True}, "Invalid blocks: True, expected"),
        (
            AdamMini,
            {"blocks": 3},
            r"3 blocks .* shape \(4, 5\) \('w'\), expected a number that div",
        ),
        (GaLoreAdamW, {"rank": 0}, "expected a whole number of at least 1, or None"),
        (GaLoreAdamW, {"rank": 2.0}, "expected a whole number"),
        (GaLoreAdamW, {"update_proj_gap": 0}, "expected a whole number of at least 1"),
        (GaLoreAdamW, {"scale": -1}, "Invalid scale value: -1"),
    ],
)
def test_refuses_impossible_hyper_parameters_before_anything_is_written(kind, hyper, said):
    p = genesis.Parameter(np.ones((4, 5)), name="w")
    with pytest.raises((ValueError, TypeError), match=said):
        kind([p], **hyper)
    opt = kind([p])
    p.grad = np.ones((4, 5))
    dict.update(opt.param_groups[0], hyper)  # past the group's own check
    with pytest.raises((ValueError, TypeError), match=said):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((4, 5)))
    assert not opt.state.get(p)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_galore_refuses_a_gradient_that_has_no_svd(value):
    p, q = genesis.Parameter(np.ones((4, 5))), genesis.Parameter(np.ones((4, 5)), name="w")
    opt = GaLoreAdamW([p, q], rank=2)
    p.grad, q.grad = np.ones((4, 5)), np.full((4, 5), value)
    with pytest.raises(ValueError, match=r"the gradient of w has inf or NaN, .*: skip such steps"):
        opt.step()
    np.testing.assert_array_equal(p.data, np.ones((4, 5)))
    assert not opt.state.get(p)


@pytest.mark.parametrize(
    ("kind", "first", "then", "said"),
    [
        (AdamMini, {"blocks": 2}, {"blocks": 4}, r"'exp_avg_sq' of .* has shape \(2,\), but"),
        (GaLoreAdamW, {"rank": 2}, {"rank": 3}, r"'exp_avg' of .* has shape \(2, 6\), but"),
        (GaLoreAdamW, {"rank": None}, {"rank": 3}, r"'exp_avg' of .* has shape \(4, 6\), but"),
    ],
)
def test_state_that_does_not_fit_the_settings_is_refused_at_a_step_and_when_loaded(
    kind, first, then, said
):
    p = genesis.Parameter(np.ones((4, 6)))
    p.grad = np.ones((4, 6))
    opt = kind([p], **first).step()
    saved, before = opt.state_dict(), p.data.copy()
    opt.param_groups[0].update(then)
    with pytest.raises(ValueError, match=said):
        opt.step()
    np.testing.assert_array_equal(p.data, before)
    saved["param_groups"][0].update(then)
    with pytest.raises(ValueError, match="of parameter 0 has"):
        opt.load_state_dict(saved)
    opt.state.pop(p)
    opt.step()
    assert not np.array_equal(p.data, before)


def test_states_of_several_groups_are_loaded_by_the_settings_that_were_saved():
    def made(ranks):
        params = [genesis.Parameter(np.ones((4, 6))) for _ in ranks]
        for p in params:
            p.grad = np.ones((4, 6))
        return GaLoreAdamW([{"params": [p], "rank": r} for p, r in zip(params, ranks)])

    saved = made([2, None]).step().state_dict()
    opt = made([None, 3])
    opt.load_state_dict(saved)
    assert [group["rank"] for group in opt.param_groups] == [2, None]
    opt.step()
    missing = {name: value for name, value in saved["state"][0].items() if name != "projector"}
    saved["state"][0] = missing
    with pytest.raises(ValueError, match=r"keeps .*'projector'"):
        opt.load_state_dict(saved)


@each_kind
def test_mixed_and_functions_of_the_step_take_them(kind, hyper, rng):
    def rate(step):
        return 0.1 / (1 + step)

    start, grads = rng.standard_normal((4, 6)), rng.standard_normal((3, 4, 6))
    params = [genesis.Parameter(start.copy()) for _ in range(2)]
    mixed = genesis.optim.Mixed([{"params": [params[0]], "optimizer": kind, **hyper, "lr": rate}])
    plain = kind([params[1]], **hyper)
    for step, grad in enumerate(grads):
        params[0].grad = params[1].grad = grad
        plain.param_groups[0]["lr"] = rate(step)
        mixed.step()
        plain.step()
    np.testing.assert_array_equal(params[0].data, params[1].data)
    again = genesis.optim.Mixed([{"params": [params[0]], "optimizer": kind, **hyper, "lr": rate}])
    again.load_state_dict(mixed.state_dict())
