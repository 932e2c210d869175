"""Averages in 8 bits and masters in two halves."""

import copy
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import DEVICE, in_simulator, on_cpu_only

import genesis
from genesis import buffers, optim
from genesis.optim import SGD, AdamW, dequantize

F32 = np.float32
BLOCK = 256


def bits_of(array):
    return np.ascontiguousarray(array).view(np.uint8)


def same_bits(one, other):
    assert one.shape == other.shape
    np.testing.assert_array_equal(bits_of(one), bits_of(other))


# ---- codes ----


def steps_between_codes(kind):
    """What all codes of a kind stand for with the scale at which the largest is 1, by the documents."""
    if kind == "positive":
        return (np.arange(256) / 255) ** 4
    first, magnitudes = 17 / 4096, [0.0]
    step = 1 / 4096
    value = first
    for code in range(1, 128):
        value += step
        magnitudes.append(value - first)
        if (code + 1) % 16 == 0:
            step *= 2
    found = np.array(magnitudes) / (1 - first)
    return np.concatenate([-found[:0:-1], found])


@genesis.rule(averages={"signed": "signed", "positive": "positive"})
def Keeps(param, grad, signed, positive, *, lr=0.0, keep=0.0):  # noqa: N802
    """State that is the gradient and its square, whatever it was."""
    return param - lr * grad, grad + keep * signed, grad * grad + keep * positive


def kept(grads, count):
    """What state shows after each of so many updates."""
    opt = Keeps({"x": np.zeros(grads.shape, F32)}, state_dtype="8bit")
    for _ in range(count):
        opt.step(grads={"x": grads})
        (entries,) = opt.state.values()
        yield {
            name: dequantize(entries[name], entries[f"{name}_scale"])
            for name in ("signed", "positive")
        }


@on_cpu_only
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_what_is_kept_lies_between_its_neighbours_and_is_right_on_average(kind):
    rng = np.random.default_rng(0)
    grads = (rng.standard_normal(1000) * np.exp(rng.standard_normal(1000))).astype(F32)
    wanted = grads if kind == "signed" else grads * grads
    found = np.array([each[kind] for each in kept(grads, 512)], np.float64)
    values = steps_between_codes(kind)
    for start in range(0, 1000, BLOCK):
        part = slice(start, start + BLOCK)
        largest = np.abs(wanted[part]).max()
        place = np.searchsorted(values, wanted[part] / largest * (1 - 1e-6 * np.sign(wanted[part])))
        low, high = values[np.maximum(place - 1, 0)], values[np.minimum(place, len(values) - 1)]
        near = found[:, part] / largest
        width = high - low
        assert (near >= low - 0.01 * width - 1e-6).all()
        assert (near <= high + 0.01 * width + 1e-6).all()
        # Where the largest is, it is exact, or the next code of a few roundings.
        top = np.abs(wanted[part]).argmax()
        np.testing.assert_allclose(found[:, part][:, top], wanted[part][top], rtol=1e-6)
        off = np.abs(near.mean(0) - wanted[part] / largest) / np.maximum(width, 1e-12)
        # Fourth roots bend between codes; signed codes do not.
        assert np.quantile(off, 0.98) < (0.06 if kind == "positive" else 0.01)


@on_cpu_only
def test_averages_of_squares_are_never_0_where_something_was():
    grads = np.full(300, 1e-9, F32)
    grads[0] = 1.0
    grads[7] = 0.0
    for found in kept(grads, 20):
        assert (found["positive"] > 0).sum() == 299
        assert found["positive"][7] == 0
    assert found["signed"][0] == 1.0


@on_cpu_only
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(value):
    grads = np.ones(600, F32)
    grads[300] = value
    (found,) = kept(grads, 1)
    for name in found:
        assert not np.isfinite(found[name][300])
        assert (found[name][:256] == 1).all()
        assert (found[name][512:] == 1).all()


@on_cpu_only
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e30, 1e19])
def test_scales_may_be_small_or_large(size):
    grads = np.linspace(-1, 1, 500).astype(F32) * F32(size)
    (found,) = kept(grads, 1)
    np.testing.assert_allclose(found["signed"], grads, atol=0.04 * size)


@on_cpu_only
def test_dequantize_of_all_codes():
    codes = np.arange(-127, 128).astype(np.int8)
    np.testing.assert_allclose(
        dequantize(codes, np.array([3 / (1 - 17 / 4096)], F32)),
        3 * steps_between_codes("signed"),
        rtol=1e-5,
        atol=1e-9,
    )
    codes = np.arange(256).astype(np.uint8).reshape(16, 16)
    np.testing.assert_allclose(
        dequantize(codes, np.array([3], F32)).reshape(-1),
        3 * steps_between_codes("positive"),
        rtol=1e-5,
    )


def test_dequantize_refuses_what_it_is_not_for():
    codes, scales = np.zeros(300, np.int8), np.zeros(2, F32)
    with pytest.raises(TypeError, match="int8 or uint8, but got float32"):
        dequantize(codes.astype(F32), scales)
    with pytest.raises(TypeError, match="float32, but got float64"):
        dequantize(codes, scales.astype(np.float64))
    with pytest.raises(
        ValueError, match=r"shape \(3,\), but 300 codes in blocks of 256 have \(2,\)"
    ):
        dequantize(codes, np.zeros(3, F32))


# ---- optimizers ----

SHAPES = [(40, 50), (77,), (3, 4, 2), (), (0,), (256,), (1025,)]

RULES = {
    "AdamW": {"lr": 0.01, "betas": (0.9, 0.99), "amsgrad": True},
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "LAMB": {"lr": 0.01, "betas": (0.9, 0.99)},
    "NovoGrad": {"lr": 0.01},
    "RMSprop": {"lr": 0.003, "momentum": 0.9, "centered": True},
}


def run(opt, arrays, steps=8, seed=1, **given):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        grads = [
            np.asarray(rng.standard_normal(a.shape) + 0.3 * np.asarray(a, float)).astype(F32)
            for a in arrays
        ]
        opt.step(grads=grads, **given)


def started(name, shapes=SHAPES, dtype=F32, **given):
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    return arrays, getattr(optim, name)([*arrays], **{**RULES.get(name, {}), **given})


@on_cpu_only
@pytest.mark.parametrize("name", RULES)
def test_runs_stay_beside_those_with_state_in_float32(name):
    arrays, opt = started(name, state_dtype="8bit")
    others, plain = started(name)
    begin = [array.copy() for array in arrays]
    run(opt, arrays, 30)
    run(plain, others, 30)
    moved = np.concatenate([(a - b).ravel() for a, b in zip(others, begin)])
    apart = np.concatenate([(a - b).ravel() for a, b in zip(arrays, others)])
    assert np.linalg.norm(apart) < 0.03 * np.linalg.norm(moved)
    for entries in opt.state.values():
        for key in opt._averages:
            if key in entries:
                assert entries[key].dtype in (np.int8, np.uint8)
                assert entries[f"{key}_scale"].shape == (-(-entries[key].size // BLOCK),)


@on_cpu_only
def test_everything_around_a_rule_works_on_packed_state():
    given = {"state_dtype": "8bit", "ema_decay": 0.9, "measure_updates": True, "cautious": True}
    arrays, opt = started("AdamW", **given)
    others, plain = started("AdamW", **{**given, "state_dtype": None})
    run(opt, arrays, max_norm=1.0)
    run(plain, others, max_norm=1.0)
    np.testing.assert_allclose(opt.update_norm, plain.update_norm, rtol=0.02)
    assert opt.grad_norm == pytest.approx(plain.grad_norm, rel=0.02)
    opt.swap_ema()
    plain.swap_ema()
    for one, other in zip(arrays, others):
        np.testing.assert_allclose(one, other, atol=0.01)


@on_cpu_only
def test_gradients_are_set_to_zero_in_the_pass():
    p = genesis.Parameter(np.ones(700, F32))
    opt = AdamW([p], state_dtype="8bit")
    p.grad = np.ones(700, F32)
    opt.step(zero_grad=True)
    assert not p.grad.any()


@on_cpu_only
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_bit_depends_on_threads(threads, num_threads):
    arrays, opt = started("AdamW", [(200, 300), (77,)], state_dtype="8bit")
    num_threads(threads)
    run(opt, arrays, 3)
    others, other = started("AdamW", [(200, 300), (77,)], state_dtype="8bit")
    num_threads(1)
    run(other, others, 3)
    for one, another in zip(arrays, others):
        same_bits(one, another)


@on_cpu_only
def test_arrays_may_lie_in_any_way():
    plain, opt = started("AdamW", [(40, 50)], state_dtype="8bit")
    run(opt, plain, 3)
    for lay in (
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.flip(np.flip(a).copy()),
    ):
        rng = np.random.default_rng(0)
        array = lay(rng.standard_normal((40, 50)).astype(F32))
        opt = AdamW([array], **RULES["AdamW"], state_dtype="8bit")
        run(opt, [array], 3)
        np.testing.assert_array_equal(array, plain[0])


@on_cpu_only
@pytest.mark.parametrize("way", ["state_dict", "checkpoint", "pickle", "deepcopy"])
def test_a_resumed_run_is_the_same_run(way, tmp_path):
    given = {"state_dtype": "8bit"}
    arrays, opt = started("SGD", **given)
    run(opt, arrays, 3)
    others, other = started("SGD", **given)
    for one, another in zip(arrays, others):
        another[...] = one
    if way == "state_dict":
        other.load_state_dict(opt.state_dict())
    elif way == "checkpoint":
        genesis.save_checkpoint(tmp_path / "run.ckpt", optimizer=opt)
        genesis.load_checkpoint(tmp_path / "run.ckpt", optimizer=other)
    else:
        other = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
        others = [p.data for p in other._parameters()]
    run(opt, arrays, 3, seed=2)
    run(other, others, 3, seed=2)
    for one, another in zip(arrays, others):
        same_bits(one, another)
    for one, another in zip(opt.state.values(), other.state.values()):
        assert dict(one).keys() == dict(another).keys()
        assert one["step"] == another["step"] == 6
        same_bits(one["momentum_buffer"], another["momentum_buffer"])


@on_cpu_only
def test_state_of_another_kind_is_used_as_it_is():
    arrays, plain = started("AdamW", [(300,)])
    run(plain, arrays, 2)
    _, opt = started("AdamW", [(300,)], state_dtype="8bit")
    opt.load_state_dict({**plain.state_dict(), "param_groups": opt.state_dict()["param_groups"]})
    run(opt, arrays, 1)
    (entries,) = opt.state.values()
    assert entries["exp_avg"].dtype == F32
    del entries["exp_avg"], entries["exp_avg_sq"], entries["max_exp_avg_sq"]
    run(opt, arrays, 1)
    (entries,) = opt.state.values()
    assert entries["exp_avg"].dtype == np.int8


@on_cpu_only
def test_rules_and_chains_of_ones_own():
    T = genesis.transforms
    Chained = genesis.chain(T.scale_by_adam, T.scale_by_lr, name="Chained")
    x = np.ones(300, F32)
    opt = Chained([x], lr=0.1, state_dtype="8bit")
    opt.step(grads=[np.ones(300, F32)])
    np.testing.assert_allclose(x, 0.9, rtol=1e-5)


# ---- what is refused ----

CODES, SCALE = "momentum_buffer", "momentum_buffer_scale"


@on_cpu_only
@pytest.mark.parametrize(
    ("name", "given", "whose"),
    [
        ("Rprop", {}, "'prev', 'step_size'"),
        ("Adagrad", {}, "'sum'"),
        ("Adan", {}, "'pre_grad'"),
        ("ASGD", {}, "'ax'"),
        ("ScheduleFreeSGD", {"lr": 0.1}, "'z'"),
        ("DoG", {}, "'init'"),
    ],
)
def test_rules_with_other_state_are_refused(name, given, whose):
    with pytest.raises(ValueError, match=f"is for running averages.*{name} keeps .*{whose}"):
        getattr(optim, name)([np.ones(3, F32)], state_dtype="8bit", **given)
    opt = getattr(optim, name)([np.ones(3, F32)], **given)
    with pytest.raises(ValueError, match="is for running averages"):
        opt.add_param_group({"params": [np.ones(3, F32)], "state_dtype": "8bit"})
    assert len(opt.param_groups) == 1


@on_cpu_only
def test_a_rule_that_says_nothing_of_averages_is_refused_with_the_way_out():
    @genesis.rule
    def Mine(param, grad, m, *, lr=0.1):  # noqa: N802
        m = 0.9 * m + grad
        return param - lr * m, m

    with pytest.raises(ValueError, match=r"keeps 'm'.*say averages=\{...\} in genesis.rule"):
        Mine([np.ones(3, F32)], state_dtype="8bit")


def test_what_is_declared_must_be_there():
    def m(param, grad, m, *, lr=0.1):
        return param - lr * m, m

    with pytest.raises(genesis.RuleError, match=r"'v' is none of its buffers \['m'\]"):
        genesis.rule(averages={"v": "signed"})(m)
    with pytest.raises(genesis.RuleError, match="'m' must be 'signed' or 'positive', not 'both'"):
        genesis.rule(averages={"m": "both"})(m)


@on_cpu_only
def test_sparse_gradients_are_refused():
    p = genesis.Parameter(np.ones((300, 4), F32))
    opt = SGD([p], lr=0.1, momentum=0.9, state_dtype="8bit")
    p.grad = genesis.SparseGrad(np.array([1]), np.ones((1, 4), F32))
    with pytest.raises(TypeError, match="does not support sparse gradients"):
        opt.step()
    assert (p.data == 1).all()

    @genesis.rule(averages={"m": "signed"}, sparse=lambda lr: True)
    def Sparse(param, grad, m, *, lr=0.1):  # noqa: N802
        m = m + grad
        return param - lr * m, m

    with pytest.raises(TypeError, match="whose blocks do not end where rows do: set state_dtype"):
        Sparse([p], state_dtype="8bit").step()
    assert (p.data == 1).all()


@on_cpu_only
@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda e: e.pop(SCALE), TypeError, "_scale' of parameter 0 .* must be a NumPy array"),
        (lambda e: e.update({SCALE: np.ones(1, F32)}), ValueError, r"its place has shape \(2,\)"),
        (lambda e: e.update({SCALE: np.ones(4, F32)[::2]}), ValueError, "must lie flat in memory"),
        (lambda e: e.update({SCALE: np.ones(2)}), TypeError, "float32, but got float64"),
        (
            lambda e: e.update({CODES: np.ones(300, F32)}),
            TypeError,
            "int8 or uint8, but got float32",
        ),
        (lambda e: e.update({CODES: np.ones(299, np.int8)}), ValueError, r"has shape \(300,\)"),
        (lambda e: e[CODES].setflags(write=False), ValueError, "read-only"),
    ],
)
def test_edited_state_is_refused_before_anything_is_written(edit, error, message):
    x = np.ones(300, F32)
    opt = SGD([x], lr=0.1, momentum=0.9, state_dtype="8bit")
    opt.step(grads=[np.ones(300, F32)])
    (entries,) = opt.state.values()
    edit(entries)
    before = x.copy()
    with pytest.raises(error, match=message):
        opt.step(grads=[np.ones(300, F32)])
    same_bits(x, before)


@on_cpu_only
def test_scales_that_share_memory_are_refused():
    x = np.ones(300, F32)
    opt = AdamW([x], state_dtype="8bit")
    opt.step(grads=[np.ones(300, F32)])
    (entries,) = opt.state.values()
    entries["exp_avg_scale"] = entries["exp_avg_sq_scale"]
    with pytest.raises(ValueError, match="share memory"):
        opt.step(grads=[np.ones(300, F32)])


def test_impossible_options():
    with pytest.raises(ValueError, match="Invalid state_dtype: '4bit', expected None or one of"):
        SGD([np.ones(3, F32)], lr=0.1, state_dtype="4bit")
    with pytest.raises(
        ValueError, match="Invalid master_weights: 'halves', expected True, False or 'split'"
    ):
        SGD([np.ones(3, F32)], lr=0.1, master_weights="halves")
    with pytest.raises(TypeError, match="Invalid master_weights: 2"):
        SGD([np.ones(3, F32)], lr=0.1, master_weights=2)


@in_simulator
@pytest.mark.parametrize("given", [{"state_dtype": "8bit"}, {"master_weights": "split"}])
def test_a_device_is_refused_by_name(given):
    dtype = BFLOAT16 if "master_weights" in given else F32
    p = genesis.Parameter(np.ones(3, dtype)).to(DEVICE)
    p.grad = buffers.put(np.ones(3, dtype), p.device)
    opt = SGD([p], lr=0.1, momentum=0.9, **given)
    with pytest.raises(ValueError, match="works on the CPU only: set"):
        opt.step()
    assert not opt.state
    assert (p.numpy() == 1).all()


# ---- masters in halves ----


def joined(upper, lower):
    """The float32 of two halves, by the document: the upper one is the nearest, ties away from 0."""
    bits = upper.view(np.uint16).astype(np.int64) << 16
    whole = bits + lower.astype(np.int64) - np.where(lower >= 0x8000, 0x10000, 0)
    return whole.astype(np.uint32).view(F32)


@on_cpu_only
@pytest.mark.parametrize("given", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.9}])
def test_halves_are_the_master_to_the_bit(given):
    shapes = [(40, 50), (77,), (), (0,), (1025,)]
    arrays, opt = started("AdamW", shapes, BFLOAT16, master_weights="split", **given)
    others, plain = started("AdamW", shapes, BFLOAT16, master_weights=True, **given)
    rng = np.random.default_rng(1)
    for _ in range(20):
        grads = [np.asarray(rng.standard_normal(shape)).astype(F32) for shape in shapes]
        opt.step(grads=grads)
        plain.step(grads=grads)
    ties = 0
    for one, other, halves, entries in zip(
        arrays, others, opt.state.values(), plain.state.values()
    ):
        assert "master" not in halves
        assert halves["exp_avg"].nbytes == entries["exp_avg"].nbytes
        same_bits(joined(one, halves["master_low"]), entries["master"])
        differ = one.view(np.uint16) != other.view(np.uint16)
        assert (halves["master_low"][differ] == 0x8000).all()
        ties += differ.sum()
        if "ema" in entries:
            same_bits(halves["ema"], entries["ema"])
    assert ties < 5


@on_cpu_only
def test_an_edited_parameter_counts_and_never_becomes_nan():
    @genesis.rule
    def Moves(param, grad, *, lr=0.1):  # noqa: N802
        return param - lr * grad

    rng = np.random.default_rng(0)
    x = rng.standard_normal(5000).astype(BFLOAT16)
    opt = Moves([x], lr=0.1, master_weights="split")
    opt.step(grads=[rng.standard_normal(5000).astype(F32)])
    (entries,) = opt.state.values()
    assert (entries["master_low"] >= 0x8000).any()
    x[:1000], x[1000:2000], x[2000:3000] = 0, np.inf, -0.0
    x[3000:4000] = 7
    opt.step(grads=[np.zeros(5000, F32)])
    values = joined(x, entries["master_low"])
    assert (np.abs(values[:1000]) < 1e-38).all()
    assert (np.abs(values[2000:3000]) < 1e-38).all()
    assert (values[1000:2000] > 3e38).all()
    np.testing.assert_allclose(values[3000:4000], 7, rtol=2**-8)
    assert (x[3000:4000] == 7).all()


@on_cpu_only
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.3961776e38])
def test_halves_of_what_is_not_finite(value):
    x = np.ones(3, BFLOAT16)
    opt = SGD([x], lr=1.0, master_weights="split")
    opt.step(grads=[np.array([0.0, 1 - value, 0.0], F32)])
    (entries,) = opt.state.values()
    np.testing.assert_array_equal(
        joined(x, entries["master_low"])[1], F32(1) - (F32(1) - F32(value))
    )
    assert (x[[0, 2]] == 1).all()


@on_cpu_only
def test_a_nan_with_all_bits_set_stays_one():
    x = np.ones(3, BFLOAT16)
    opt = SGD([x], lr=1.0, master_weights="split")
    opt.step(grads=[np.array([0, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(F32)])
    assert np.isnan(x[1:].astype(F32)).all()


@on_cpu_only
def test_halves_take_sparse_gradients_and_any_order():
    dense, sparse = (np.ones((40, 5), BFLOAT16, order="F") for _ in range(2))
    p = genesis.Parameter(sparse)
    grads = np.zeros((40, 5), F32)
    grads[3] = 0.001
    one, other = (SGD([x], lr=1.0, master_weights="split") for x in (dense, p))
    for _ in range(5):
        one.step(grads=[grads])
        p.grad = genesis.SparseGrad(np.array([3]), grads[3:4])
        other.step()
    (halves,), (others,) = one.state.values(), other.state.values()
    same_bits(dense, sparse)
    same_bits(halves["master_low"], others["master_low"])
    assert halves["master_low"][3].all()


@on_cpu_only
def test_halves_are_refused_where_they_are_none():
    opt = SGD([np.ones(3, np.float16)], lr=0.1, master_weights="split")
    with pytest.raises(ValueError, match="float16, which is not the upper half of a float32"):
        opt.step(grads=[np.ones(3, np.float16)])
    assert not opt.state
    x = np.ones(3, BFLOAT16)
    opt = SGD([x], lr=0.1, master_weights="split")
    opt.step(grads=[np.ones(3, F32)])
    (entries,) = opt.state.values()
    entries["master_low"] = np.zeros(3, np.int16)
    before = x.copy()
    with pytest.raises(TypeError, match="must be a NumPy array of uint16, but got int16"):
        opt.step(grads=[np.ones(3, F32)])
    same_bits(x, before)
    ahead = optim.Lookahead(SGD([np.ones(3, BFLOAT16)], lr=0.1, master_weights="split"), k=1)
    with pytest.raises(ValueError, match="two halves, which Lookahead does not set"):
        ahead.step(grads=[np.ones(3, F32)])


@on_cpu_only
def test_parameters_in_32_bits_need_no_halves():
    x = np.ones(3, F32)
    opt = SGD([x], lr=0.1, momentum=0.9, master_weights="split")
    opt.step(grads=[np.ones(3, F32)])
    (entries,) = opt.state.values()
    assert set(entries) == {"momentum_buffer"}
