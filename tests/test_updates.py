"""Are the numbers right? Every row of the table against the reference and against torch.

What is compared is the update where a parameter's own size would hide it.
"""

import numpy as np
import pytest
from cases import CASES, ONE_EACH, SHAPES
from reference import REFERENCES, Reference

import genesis
from genesis.buffers import FLOAT_TYPES

STEPS = 50


def gradients(rng, step, shapes=SHAPES):
    """Gradients of one step: some missing, some zero, the second parameter frozen for a while."""
    grads = []
    for i, shape in enumerate(shapes):
        grad = rng.standard_normal(shape)
        if (step + i) % 7 == 3 or (i == 1 and 10 <= step < 20):
            grads.append(None)
        else:
            grads.append(grad * (0 if (step + i) % 5 == 0 else 1))
    return grads


def make(case, arrays):
    params = [genesis.Parameter(array.copy()) for array in arrays]
    return params, case.make(params)


def set_grads(params, grads, dtype):
    for param, grad in zip(params, grads):
        param.grad = None if grad is None else np.asarray(grad, dtype)


def relative_error(got, expected):
    """The largest error, relative to the largest expected element of each array."""
    return max(
        np.max(np.abs(g - e), initial=0) / max(np.max(np.abs(e), initial=0), 1e-3)
        for g, e in zip(got, expected)
    )


def run_both(case, rng, other, hand_over, steps=STEPS):
    """Run genesis in float64 beside another implementation; the largest relative error on the way."""
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    params, opt = make(case, arrays)
    worst = 0.0
    for step in range(steps):
        grads = gradients(rng, step)
        set_grads(params, grads, np.float64)
        opt.step()
        worst = max(worst, relative_error([p.data for p in params], hand_over(other, grads)))
    return worst


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float64_follows_the_reference(case, rng):
    state = rng.bit_generator.state
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    rng.bit_generator.state = state
    reference = Reference(case.name, arrays, **case.hyper)

    def hand_over(reference, grads):
        reference.step(grads)
        return reference.params

    assert run_both(case, rng, reference, hand_over) < 1e-12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float64_follows_torch(case, rng):
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # torch's own step counts follow the default
    try:
        state = rng.bit_generator.state
        tensors = [torch.tensor(rng.standard_normal(shape), requires_grad=True) for shape in SHAPES]
        rng.bit_generator.state = state
        optimizer = getattr(torch.optim, case.name)(tensors, **case.hyper)

        def hand_over(optimizer, grads):
            for tensor, grad in zip(tensors, grads):
                tensor.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
            optimizer.step()
            return [tensor.detach().numpy() for tensor in tensors]

        assert run_both(case, rng, optimizer, hand_over) < 1e-12
    finally:
        torch.set_default_dtype(before)


def float32_excess(case, rng, steps=20, **changed):
    """How far one float32 step is off, as a multiple of what is allowed.

    Each step starts from genesis's own parameter and state, so that errors do not pile up. Allowed
    is 1e-6 of the largest update, and three roundings of the parameter: AdamW shrinks it by a rounded
    factor, then moves it.
    """
    array = rng.standard_normal(64).astype(np.float32)
    param = genesis.Parameter(array)
    opt = case.make([param])
    rule = REFERENCES[case.name]
    worst = 0.0
    for step in range(1, steps + 1):
        param.grad = rng.standard_normal(64).astype(np.float32)
        before = array.astype(np.float64)
        state = {
            name: value.astype(np.float64)
            for name, value in opt.state[param].items()
            if name != "step"
        }
        opt.step()
        expected, _ = rule(
            before, param.grad.astype(np.float64), state, step, **{**case.hyper, **changed}
        )
        rounding = np.spacing(np.abs(expected).astype(np.float32))
        allowed = 1e-6 * np.max(np.abs(expected - before)) + 1.5 * rounding
        worst = max(worst, np.max(np.abs(array - expected) / allowed))
    return worst


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_float32_step_is_right_to_rounding(case, rng):
    assert float32_excess(case, rng) <= 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_float32_tolerance_sees_a_changed_coefficient(case, rng):
    for name, value in case.hyper.items():
        if isinstance(value, float) and name != "eps":
            assert float32_excess(case, rng, **{name: value * 1.01}) > 2, name


def test_float64_tolerance_sees_a_changed_coefficient(rng):
    for case in CASES:
        for name, value in case.hyper.items():
            if not isinstance(value, float):
                continue
            state = rng.bit_generator.state
            arrays = [rng.standard_normal(shape) for shape in SHAPES]
            rng.bit_generator.state = state
            changed = {**case.hyper, name: value * (1 + 1e-7)}
            reference = Reference(case.name, arrays, **changed)

            def hand_over(reference, grads):
                reference.step(grads)
                return reference.params

            assert run_both(case, rng, reference, hand_over, steps=8) > 1e-12, (case.id, name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_state_holds_what_the_reference_holds(case, rng):
    params, opt = make(case, [rng.standard_normal(5)])
    reference = Reference(case.name, [params[0].data], **case.hyper)
    for _ in range(3):
        params[0].grad = rng.standard_normal(5)
        opt.step()
        reference.step([params[0].grad])
    state = dict(opt.state.get(params[0], {}))
    assert state.pop("step", 3) == 3
    assert state.keys() == reference.states[0].keys()
    for name, value in state.items():
        np.testing.assert_allclose(value, reference.states[0][name], rtol=1e-12)


PRECISION = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
TYPES = {name: dtype for dtype, name in FLOAT_TYPES.items()}
PAIRS = [
    *((case, name, name) for case in CASES for name in TYPES),
    *((case, p, g) for case in ONE_EACH for p in TYPES for g in TYPES if p != g),
]


@pytest.mark.parametrize(
    ("case", "param_type", "grad_type"), PAIRS, ids=lambda v: v if isinstance(v, str) else v.id
)
def test_first_step_with_every_pair_of_dtypes(case, param_type, grad_type, rng):
    array = rng.standard_normal(40).astype(TYPES[param_type])
    grad = rng.standard_normal(40).astype(TYPES[grad_type])
    param = genesis.Parameter(array)
    param.grad = grad
    before = array.astype(np.float64)
    case.make([param]).step()
    rule = REFERENCES[case.name]
    expected, _ = rule(before, grad.astype(np.float64), {}, 1, **case.hyper)
    if param_type == "float64":
        np.testing.assert_allclose(array, expected, rtol=1e-12)
    else:
        # Storing rounds by half a unit in the last place, the float32 arithmetic by a little.
        allowed = 2.0 ** -(PRECISION[param_type] + 1) * np.abs(expected) + 1e-6
        assert np.all(np.abs(array.astype(np.float64) - expected) <= allowed)


def test_every_exported_optimizer_has_a_row_a_reference_and_an_example():
    exported = {
        name
        for name in genesis.optim.__all__
        if isinstance(getattr(genesis.optim, name), type) and name != "Optimizer"
    }
    assert exported == {case.name for case in CASES} == REFERENCES.keys()
    for name in exported:
        assert ">>>" in getattr(genesis.optim, name).__doc__, f"{name} has no example"
