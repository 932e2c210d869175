"""Are the numbers right? Every row of the table against the reference and against its peer, torch.

What is compared is the update where a parameter's own size would hide it.
"""

import copy
import inspect
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, SHAPES, SPECIAL, TWO, WRAPPERS, Case
from devices import SIMULATED, on_cpu_only, on_device, on_host, parameter
from reference import REFERENCES, Reference

import genesis
from genesis.buffers import FLOAT_TYPES

STEPS = 25 if SIMULATED else 50


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
    params = [parameter(array) for array in arrays]
    return params, case.make(params)


def set_grads(params, grads, dtype):
    for param, grad in zip(params, grads):
        param.grad = None if grad is None else on_device(np.asarray(grad, dtype))


def largest(errors):
    """The largest error; infinite where there is NaN, which Python's max would pass over."""
    return np.nan_to_num(np.max(errors, initial=0), nan=np.inf)


def relative_error(got, expected, least=1e-3):
    """The largest error, relative to the largest expected element of each array."""
    return max(
        largest(np.abs(g - e)) / max(np.max(np.abs(e), initial=0), least)
        for g, e in zip(got, expected)
    )


def kept(entries):
    """A parameter's state in float64, without the step count."""
    return {
        name: np.asarray(on_host(value), np.float64)
        for name, value in entries.items()
        if name != "step" and value is not None
    }


def state_error(got, expected):
    """The relative error of a parameter's state; 0 without any."""
    return relative_error([got[name] for name in expected], expected.values(), 1e-9) if got else 0


def run_both(case, rng, other, hand_over, steps=STEPS):
    """Run genesis in float64 beside another implementation; the largest relative error on the way.

    `hand_over` gives gradients to the other and returns its parameters and their states.
    """
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    params, opt = make(case, arrays)
    worst = 0.0
    for step in range(steps):
        grads = gradients(rng, step)
        set_grads(params, grads, np.float64)
        opt.step()
        expected, states = hand_over(other, grads)
        worst = max(worst, relative_error([p.numpy() for p in params], expected))
        for param, state in zip(params, states):
            worst = max(worst, state_error(kept(opt.state.get(param, {})), kept(state)))
    return worst


def run_beside_reference(case, rng, hyper, steps=STEPS):
    """`run_both` with the reference, which takes these hyper-parameters."""
    state = rng.bit_generator.state
    reference = Reference(case.name, [rng.standard_normal(shape) for shape in SHAPES], **hyper)
    rng.bit_generator.state = state

    def hand_over(reference, grads):
        reference.step(grads)
        return reference.params, reference.states

    return run_both(case, rng, reference, hand_over, steps)


def changes(hyper, factor):
    """Each number among the hyper-parameters in turn changed by a factor, alone or in its pair."""
    for name, value in hyper.items():
        if isinstance(value, float):
            yield name, {name: value * factor}
        elif isinstance(value, tuple):
            for i in range(len(value)):
                changed = list(value)
                changed[i] *= factor
                yield f"{name}[{i}]", {name: tuple(changed)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_float64_follows_the_reference(case, rng):
    assert run_beside_reference(case, rng, case.hyper) < 1e-12


def beside_torch(case, rng):
    """`run_both` with torch's optimizer of the same name."""
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
            states = [optimizer.state.get(tensor, {}) for tensor in tensors]
            return [tensor.detach().numpy() for tensor in tensors], states

        return run_both(case, rng, optimizer, hand_over)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.peer == "torch"], ids=lambda case: f"torch-{case.id}"
)
def test_float64_follows_the_peer(case, rng):
    """Peers in other packages are those of test_packages.py."""
    assert beside_torch(case, rng) < 1e-12


def float32_excess(case, rng, steps=20, **changed):
    """How far one float32 step is off, as a multiple of what is allowed.

    Each step starts from genesis's own parameter and state, so that errors do not pile up. Allowed
    is 1e-6 of the largest update, and four roundings of the parameter: NAdam shrinks it by a rounded
    factor, then moves it twice. Of state it is 1e-6 of the largest element. Prodigy's is twice that on
    a GPU, where a thread adds up numbers that on the CPU stand in lanes of their own.
    """
    relative = 2e-6 if SIMULATED and case.name == "Prodigy" else 1e-6
    param = parameter(rng.standard_normal(64).astype(np.float32))
    opt = case.make([param])
    rule = REFERENCES[case.name]
    worst = 0.0
    for step in range(1, steps + 1):
        grad = rng.standard_normal(64).astype(np.float32)
        param.grad = on_device(grad)
        before = param.numpy().astype(np.float64)
        state = kept(opt.state[param])
        opt.step()
        expected, state = rule(
            before, grad.astype(np.float64), state, step, **{**case.hyper, **changed}
        )
        rounding = np.spacing(np.abs(expected).astype(np.float32))
        allowed = relative * np.max(np.abs(expected - before)) + 2 * rounding
        worst = max(worst, largest(np.abs(param.numpy() - expected) / allowed))
        worst = max(worst, state_error(kept(opt.state[param]), state) / relative)
    return worst


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_one_float32_step_is_right_to_rounding(case, rng):
    assert float32_excess(case, rng) <= 1


@on_cpu_only  # what is shown is that the test above can fail
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_float32_tolerance_sees_a_changed_coefficient(case, rng):
    for name, changed in changes(case.hyper, 1.01):
        if name != "eps":
            same = copy.deepcopy(rng)  # the same numbers for each name
            assert float32_excess(case, same, **changed) > 2, name


@on_cpu_only
def test_float64_tolerance_sees_a_changed_coefficient(rng):
    for case in CASES:
        for name, changed in changes(case.hyper, 1 + 1e-7):
            error = run_beside_reference(case, rng, {**case.hyper, **changed}, steps=8)
            assert error > 1e-12, (case.id, name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_state_holds_what_the_reference_holds(case, rng):
    params, opt = make(case, [rng.standard_normal(5)])
    reference = Reference(case.name, [params[0].numpy()], **case.hyper)
    for _ in range(3):
        grad = rng.standard_normal(5)
        params[0].grad = on_device(grad)
        opt.step()
        reference.step([grad])
    state = dict(opt.state.get(params[0], {}))
    assert state.pop("step", 3) == 3
    assert state.keys() == reference.states[0].keys()
    for name, value in state.items():
        np.testing.assert_allclose(on_host(value), reference.states[0][name], rtol=1e-12)


FORGETFUL = [
    *(
        Case(name, {"betas": (0.0, 0.0), **others})
        for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
        for others in ({}, {"amsgrad": True}, {"decoupled_weight_decay": True})
        if {*others} <= {*inspect.signature(getattr(genesis.optim, name)).parameters}
    ),
    Case("RMSprop", {"alpha": 0.0, "centered": True}),
    Case("RMSprop", {"alpha": 0.0, "centered": True, "momentum": 0.9}),
]


@pytest.mark.parametrize(("dtype", "huge"), [(np.float32, 1e8), (np.float64, 1e17)])
@pytest.mark.parametrize("case", FORGETFUL, ids=lambda case: case.id)
def test_a_decay_rate_of_0_forgets(case, dtype, huge):
    param = parameter(np.zeros(40, dtype))
    opt = case.make([param])
    name = "grad_avg" if case.name == "RMSprop" else "exp_avg"
    for value in (huge, 1.0, huge, -3.0):
        param.grad = on_device(np.full(40, value, dtype))
        opt.step()
        np.testing.assert_array_equal(on_host(opt.state[param][name]), dtype(value))


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.4999999, 0.5, 0.5000001, 0.9])
def test_an_average_is_computed_from_its_nearer_end(beta, rng):
    """So what is rounded is at most half of the way between the ends, however far they are apart."""
    param = parameter(np.zeros(500, np.float32))
    opt = genesis.optim.Adam([param], betas=(beta, 0.999))
    before = np.zeros(500)
    for scale in (1e8, 1e4, 1.0, 1e-4):
        grad = (scale * rng.standard_normal(500)).astype(np.float32)
        param.grad = on_device(grad)
        opt.step()
        got = np.array(on_host(opt.state[param]["exp_avg"]), np.float64)
        change = grad - before
        expected = before + (1 - beta) * change
        # Rounded are the difference, the coefficient, their product, and the sum.
        part = min(beta, 1 - beta) * np.abs(change)
        assert np.all(np.abs(got - expected) <= 2.0**-24 * 1.01 * (3 * part + np.abs(expected)))
        before = got


def decimal_asgd(x, grads, lr, lambd, alpha, t0, weight_decay):
    ax, eta, mu = Decimal(0), lr, Decimal(1)
    for t, grad in enumerate(grads, 1):
        grad += weight_decay * x
        x = x - lambd * eta * x - eta * grad
        ax = (1 - mu) * ax + mu * x
        eta = lr * (1 + lambd * lr * t) ** -alpha
        mu = 1 / max(Decimal(1), t - t0)
    return {"x": x, "ax": ax, "eta": eta, "mu": mu}


def decimal_nadam(x, grads, lr, beta1, beta2, eps, momentum_decay):
    m, v, product = Decimal(0), Decimal(0), Decimal(1)

    def momentum(t):
        return beta1 * (1 - Decimal(float("0.96")) ** (t * momentum_decay) / 2)

    for t, grad in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad * grad
        product *= momentum(t)
        following = momentum(t + 1)
        ahead = (1 - momentum(t)) / (1 - product) * grad
        ahead += following / (1 - product * following) * m
        x -= lr * ahead / ((v / (1 - beta2**t)).sqrt() + eps)
    return {"x": x, "mu_product": product, "exp_avg": m, "exp_avg_sq": v}


LONG_RUNS = [
    ("ASGD", {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0.0}),
    ("ASGD", {"lr": 0.1, "lambd": 0.5, "alpha": 0.5, "t0": 3.5, "weight_decay": 0.0}),
    ("ASGD", {"lr": 0.05, "lambd": 1e-3, "alpha": 1.7, "t0": 100.0, "weight_decay": 0.01}),
    ("ASGD", {"lr": 1.0, "lambd": 1.9, "alpha": 0.0, "t0": 0.0, "weight_decay": 0.0}),
    ("NAdam", {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "momentum_decay": 4e-3}),
    ("NAdam", {"lr": 1e-2, "betas": (0.3, 0.7), "eps": 1e-3, "momentum_decay": 0.5}),
    ("NAdam", {"lr": 2e-3, "betas": (0.999999, 0.999999), "eps": 1e-8, "momentum_decay": 1e-6}),
    ("NAdam", {"lr": 2e-3, "betas": (0.99, 0.9999), "eps": 1e-8, "momentum_decay": 10.0}),
]


long_runs = pytest.mark.parametrize(("name", "hyper"), LONG_RUNS, ids=str)


def long_run(name, hyper, rng):
    """Where it starts, its gradients, and how to tell how far off where it ends is from 30 digits."""
    start, grads = 1.2345, 0.3 + rng.standard_normal(200 if SIMULATED else 600)
    values = [v for value in hyper.values() for v in (value if type(value) is tuple else [value])]
    with localcontext() as context:
        context.prec = 30
        judge = decimal_asgd if name == "ASGD" else decimal_nadam
        exact = judge(Decimal(start), [Decimal(float(g)) for g in grads], *map(Decimal, values))

    def worst(x, state):
        found = {name: np.ravel(on_host(value))[0] for name, value in state.items()}
        found["x"] = np.ravel(x)[0]
        return float(
            max(
                abs(Decimal(float(found[name])) - value) / max(abs(value), Decimal("1e-290"))
                for name, value in exact.items()
            )
        )

    return start, grads, worst


@long_runs
def test_long_runs_of_asgd_and_nadam_are_exact(name, hyper, rng):
    start, grads, worst = long_run(name, hyper, rng)
    param = parameter(np.array([start]))
    opt = getattr(genesis.optim, name)([param], **hyper)
    for grad in grads:
        param.grad = on_device(np.array([grad]))
        opt.step()
    assert worst(param.numpy(), dict(opt.state[param])) < 1e-12


@long_runs
def test_torch_is_as_exact_if_and_only_if_its_default_type_is_float64(name, hyper, rng):
    """It keeps what ASGD calls eta and mu, and NAdam mu_product, in that type always."""
    torch = pytest.importorskip("torch")
    start, grads, worst = long_run(name, hyper, rng)
    before = torch.get_default_dtype()
    errors = []
    try:
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            tensor = torch.tensor([start], dtype=torch.float64, requires_grad=True)
            optimizer = getattr(torch.optim, name)([tensor], **hyper)
            for grad in grads:
                tensor.grad = torch.tensor([grad], dtype=torch.float64)
                optimizer.step()
            errors.append(worst(tensor.detach().numpy(), optimizer.state[tensor]))
    finally:
        torch.set_default_dtype(before)
    assert errors[0] < 1e-12
    assert errors[1] > 1e-11


PRECISION = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
TYPES = {name: dtype for dtype, name in FLOAT_TYPES.items()}
PAIRS = [
    *((case, name, name) for case in CASES for name in ("float64", "float32")),
    *((case, p, g) for case in TWO for p in TYPES for g in TYPES if p != g or "16" in p),
]


@pytest.mark.parametrize(
    ("case", "param_type", "grad_type"), PAIRS, ids=lambda v: v if isinstance(v, str) else v.id
)
def test_first_step_with_every_pair_of_dtypes(case, param_type, grad_type, rng):
    array = rng.standard_normal(40).astype(TYPES[param_type])
    grad = rng.standard_normal(40).astype(TYPES[grad_type])
    param = parameter(array)
    param.grad = on_device(grad)
    before = array.astype(np.float64)
    case.make([param]).step()
    array = param.numpy()
    rule = REFERENCES[case.name]
    expected, _ = rule(before, grad.astype(np.float64), {}, 1, **case.hyper)
    if param_type == "float64":
        np.testing.assert_allclose(array, expected, rtol=1e-12)
    else:
        # Storing rounds by half a unit in the last place, the parameter as well as a state that
        # does not begin with zeros; the float32 arithmetic rounds by a little.
        rounded = np.abs(expected) + np.abs(expected - before)
        allowed = 2.0 ** -(PRECISION[param_type] + 1) * rounded + 1e-6
        assert np.all(np.abs(array.astype(np.float64) - expected) <= allowed)


def test_every_exported_optimizer_has_a_row_a_reference_an_example_and_a_page_entry():
    exported = {
        name
        for name in genesis.optim.__all__
        if isinstance(getattr(genesis.optim, name), type) and not name.endswith("Optimizer")
    }
    rows = {case.name for case in CASES}
    assert rows == REFERENCES.keys()
    assert exported == rows | {*SPECIAL} | {*WRAPPERS}
    assert rows.isdisjoint(SPECIAL)
    tested = {
        "SparseAdam": "sparse",
        **dict.fromkeys(("CAME", "AdamMini", "GaLoreAdamW"), "adaptive"),
        **dict.fromkeys(("SOAP", "Shampoo", "Kron"), "preconditioned"),
    }
    packages = Path(__file__).with_name("test_packages.py").read_text()
    for name, peer in SPECIAL.items():
        tests = Path(__file__).with_name(f"test_{tested.get(name, name.lower())}.py").read_text()
        assert re.search(rf"import .*\b{name}\b", tests)
        if peer not in ("torch", None):
            compared = rf"""def test\w*_{name.lower()}\w*_{peer}|Case\("{name}\""""
            assert re.search(compared, packages)
            continue
        assert re.search(rf"def test\w+_{peer}" if peer else "", tests), f"{name} without {peer}"
    for name in exported:
        assert ">>>" in getattr(genesis.optim, name).__doc__, f"{name} has no example"
    page = (Path(__file__).parent.parent / "docs" / "choosing.md").read_text()
    assert exported == set(re.findall(r"^### `(\w+)`$", page, re.MULTILINE))
