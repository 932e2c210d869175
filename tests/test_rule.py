"""`genesis.rule`, `genesis.chain`, `genesis.transform`: from a formula to an optimizer."""

import ast
import code
import copy
import importlib.util
import inspect
import linecache
import math
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from devices import in_simulator, on_cpu_only, on_device, parameter
from published import PUBLISHED, AdamW, CautiousAdamW, Lion, NAdamW, ScheduleFreeAdamW

import genesis
from genesis import RuleError, hyper
from genesis import transforms as T
from genesis.kernels import functions

published = pytest.mark.parametrize("name", PUBLISHED)
# float32 with those among which is every way of being written.
published_types = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, np.float64) for name in PUBLISHED),
        *((name, np.float32) for name in ("Lion", "ScheduleFreeAdamW", "AdamW amsgrad")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
both_types = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda d: d.__name__)


def gradients_for(rng, steps, size=41, dtype=np.float64):
    return [rng.standard_normal(size).astype(dtype) for _ in range(steps)]


def stepped(opt, p, gradients, **others):
    for gradient in gradients:
        p.grad = on_device(gradient)
        opt.step(**others)
    return p.numpy()


def buffers_of(opt, p):
    """A parameter's state buffers on the host, in the order of the formula."""
    return [
        genesis.buffers.host_copy(opt.state[p][name])
        for name in opt._recipe.written_for(opt.param_groups[0]).states
    ]


def assert_bits(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    kind = f"i{found.itemsize}"
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(kind), wanted[~nan].view(kind))


def source_of(made, choice=()):
    return made._recipe.written[choice].text


def kernel_of(made, choice=()):
    return ast.parse(source_of(made, choice)).body[0]


# ---- published optimizers ----


@published_types
def test_published_optimizers_agree_with_their_papers(name, dtype, rng):
    made, reference, settings = PUBLISHED[name]
    x, gradients = rng.standard_normal(41).astype(dtype), gradients_for(rng, 50, dtype=dtype)
    p = parameter(x)
    found = stepped(made([p], **settings), p, gradients)
    wanted = reference(x.astype(float), [g.astype(float) for g in gradients], **settings)
    moved = np.abs(wanted - x).max()
    assert moved > 0.1
    tolerance = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@published
def test_published_optimizers_take_at_most_15_lines(name):
    made, *_ = PUBLISHED[name]
    formulas = [part.formula for part in made._recipe.parts]
    for formula in formulas:
        lines, _ = inspect.getsourcelines(formula.code)
        assert len(lines) <= 15


@published_types
@on_cpu_only
def test_the_reference_gives_the_kernels_bits(name, dtype, rng):
    made, _, settings = PUBLISHED[name]
    x = rng.standard_normal(300).astype(dtype)
    p = parameter(x)
    opt = made([p], **settings)
    values = [x]
    carried = dict(made._recipe.carried)
    for step, gradient in enumerate(gradients_for(rng, 6, 300, dtype), 1):
        values = made.reference(values[0], gradient, *values[1:], step=step, **carried, **settings)
        stepped(opt, p, [gradient])
        carried = {name: opt.state[p][name] for name in carried}
        assert_bits(p.numpy(), values[0])
        kept = dict(zip(made._recipe.states, values[1:]))
        for state in opt._recipe.written_for(opt.param_groups[0]).states:
            assert_bits(opt.state[p][state], kept[state])


@in_simulator
@published
def test_the_simulator_gives_the_references_values(name, rng):
    made, _, settings = PUBLISHED[name]
    x, gradient = rng.standard_normal(20), rng.standard_normal(20)
    p = parameter(x)
    stepped(made([p], **settings), p, [gradient])
    np.testing.assert_array_equal(p.numpy(), made.reference(x, gradient, **settings)[0])


@published
def test_groups_have_settings_of_their_own(name, rng):
    made, reference, settings = PUBLISHED[name]
    xs, gradients = gradients_for(rng, 2), gradients_for(rng, 4)
    p, q = parameter(xs[0]), parameter(xs[1])
    opt = made([{"params": [p]}, {"params": [q], "lr": 0.05}], **settings)
    for gradient in gradients:
        p.grad, q.grad = on_device(gradient), on_device(gradient)
        opt.step()
    np.testing.assert_allclose(p.numpy(), reference(xs[0], gradients, **settings), rtol=1e-12)
    other = reference(xs[1], gradients, **{**settings, "lr": 0.05})
    np.testing.assert_allclose(q.numpy(), other, rtol=1e-12)


@published
def test_max_norm_clips(name, rng):
    made, reference, settings = PUBLISHED[name]
    x, gradients = rng.standard_normal(41), gradients_for(rng, 4)
    p = parameter(x)
    found = stepped(made([p], **settings), p, gradients, max_norm=0.5)
    clipped = [g * (0.5 / (np.linalg.norm(g) + 1e-6)) for g in gradients]
    np.testing.assert_allclose(found, reference(x, clipped, **settings), rtol=1e-9)


@published
def test_maximize_goes_up(name, rng):
    made, reference, settings = PUBLISHED[name]
    x, gradients = rng.standard_normal(41), gradients_for(rng, 4)
    p = parameter(x)
    found = stepped(made([p], **settings, maximize=True), p, gradients)
    wanted = reference(x, [-g for g in gradients], **settings)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_master_weights(rng):
    made, _, settings = PUBLISHED["ScheduleFreeAdamW"]
    x, gradients = (
        rng.standard_normal(41).astype(np.float16),
        gradients_for(rng, 8, dtype=np.float16),
    )
    narrow, wide = parameter(x), parameter(x.astype(np.float32))
    opt = made([narrow], **settings, master_weights=True)
    stepped(opt, narrow, gradients)
    stepped(made([wide], **settings), wide, gradients)
    assert_bits(genesis.buffers.host_copy(opt.state[narrow]["master"]), wide.numpy())
    assert_bits(narrow.numpy(), wide.numpy().astype(np.float16))


@published
def test_a_run_goes_on_bit_by_bit(name, rng, tmp_path):
    made, _, settings = PUBLISHED[name]
    x, gradients = rng.standard_normal(41), gradients_for(rng, 8)
    p = parameter(x)
    whole = stepped(made([p], **settings), p, gradients).copy()
    q = parameter(x)
    first = made([q], **settings)
    stepped(first, q, gradients[:3])
    genesis.save(first.state_dict(), tmp_path / "state")
    r = parameter(q.numpy())
    loaded = made([r])
    loaded.load_state_dict(genesis.load(tmp_path / "state"))
    assert_bits(stepped(loaded, r, gradients[3:]), whole)
    again = pickle.loads(pickle.dumps(first))
    (s,) = again.param_groups[0]["params"]
    assert type(again) is made
    assert_bits(stepped(again, s, gradients[3:]), whole)


# ---- what is compiled ----


@published
def test_no_number_stands_in_a_kernel(name):
    made, _, _ = PUBLISHED[name]
    for choice in made._recipe.written:
        kernel = kernel_of(made, choice)
        assert not [node for node in ast.walk(kernel) if isinstance(node, ast.Constant)]


@on_cpu_only
def test_other_hyper_parameters_compile_nothing(rng):
    from numba.core import event

    p = parameter(np.ones(5))
    opt = Lion([p])
    stepped(opt, p, gradients_for(rng, 1, 5))
    with event.install_recorder("numba:compile") as recorder:
        opt.param_groups[0].update(lr=0.3, beta1=0.1, weight_decay=0.7)
        stepped(opt, p, gradients_for(rng, 1, 5))
    assert not recorder.buffer


def test_flags_choose_kernels_and_state(rng):
    p, q = parameter(np.ones(3)), parameter(np.ones(3))
    opt = AdamW([{"params": [p]}, {"params": [q], "amsgrad": True}])
    p.grad = q.grad = on_device(np.ones(3))
    opt.step()
    assert set(opt.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(opt.state[q]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert "max_exp_avg_sq" not in source_of(AdamW, (False,))
    assert AdamW._always == ("exp_avg", "exp_avg_sq")
    assert AdamW._sometimes == ("max_exp_avg_sq",)


def test_flags_in_expressions_and_in_numbers(rng):
    @genesis.rule(numbers=lambda step, *, lr=0.5, slow=False: {"size": lr / 2 if slow else lr})
    def Flagged(param, grad, kept, *, size, cubed=True, keep=False):
        power = grad**3 if cubed and not keep else grad
        kept = kept + power if keep else kept
        return param - size * (kept if keep else power), kept

    for slow, cubed, keep in [(s, c, k) for s in (0, 1) for c in (0, 1) for k in (0, 1)]:
        p = parameter(np.array([1.0, 2.0]))
        opt = Flagged([p], slow=bool(slow), cubed=bool(cubed), keep=bool(keep))
        found = stepped(opt, p, [np.array([2.0, 3.0])] * 2)
        move = 2 * np.array([8.0, 27.0]) if cubed and not keep else 2 * np.array([2.0, 3.0])
        move = 3 * np.array([2.0, 3.0]) if keep else move
        np.testing.assert_array_equal(found, [1, 2] - move * (0.25 if slow else 0.5))
        assert ("kept" in opt.state[p]) == bool(keep)


def test_state_that_feeds_only_itself_is_kept_and_unread_state_is_not():
    @genesis.rule
    def Averaging(param, grad, average, last, unused, begins=2.5, *, lr=0.5, weight=0.25):
        param = param - lr * grad * begins
        return param, average + weight * (param - average), grad, unused, begins

    p = parameter(np.array([1.0]))
    opt = Averaging([p])
    stepped(opt, p, [np.array([2.0])])
    assert set(opt.state[p]) == {"step", "average", "begins"}
    np.testing.assert_array_equal(p.numpy(), [1 - 0.5 * 2 * 2.5])
    np.testing.assert_array_equal(buffers_of(opt, p), [[0.25 * -1.5], [2.5]])


def test_code_after_an_if_stands_once():
    @genesis.rule
    def Many(param, grad, a, b, *, lr=0.1):
        sign = 1
        if grad > 0:
            a = a + grad
            sign = -1
        else:
            a = a - grad
        if a > b:
            b = math.sqrt(a)
        limited = min(max(param, -a), b)
        if limited != limited:
            return param, a, b
        return limited - lr / math.sqrt(a * b) * -sign * sign, a, b

    kernel = kernel_of(Many)
    roots = [node for node in ast.walk(kernel) if isinstance(node, ast.Call)]
    assert len(roots) == 2
    values = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    for param, grad, a, b in np.stack(np.meshgrid(*[values] * 4)).reshape(4, -1).T:
        na = a + grad if grad > 0 else a - grad
        nb = (math.sqrt(na) if na >= 0 else math.nan) if na > b else b
        limited = min(max(param, -na), nb)
        with np.errstate(all="ignore"):
            change = -np.float64(0.1) / np.sqrt(np.float64(na * nb))
        wanted = (param if limited != limited else limited - change), na, nb
        assert_bits(Many.reference(param, grad, a, b), wanted)
    p = parameter(values)
    found = stepped(Many([p]), p, [values])
    assert_bits(found, np.array(Many.reference(values, values)[0]))


@both_types
def test_functions_of_math(dtype, rng):
    """All of them in one kernel, each with a buffer of its own that takes its value."""
    called = {
        name: f"math.{name}({'param, grad' if arguments == 2 else 'param'})"
        for name, arguments in functions.ARGUMENTS.items()
    }
    results = ", ".join(f"{value} - {name}" for name, value in called.items())  # all begin with 0
    names = {"math": math}
    exec(f"def Called(param, grad, {', '.join(called)}):\n    return param, {results}", names)
    made = genesis.rule(names["Called"])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-30, 0.5, 100.0, -100.0]
    x = np.concatenate([special, rng.standard_normal(60), rng.uniform(0, 30, 60)]).astype(dtype)
    y = rng.permutation(x)
    p = parameter(x)
    opt = made([p])
    stepped(opt, p, [y])
    found = dict(zip(called, buffers_of(opt, p)))
    assert found.keys() == functions.ARGUMENTS.keys()
    other_names = {"pow": "power", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
                   "atan2": "arctan2"}  # fmt: skip
    for name, wanted in zip(called, made.reference(x, y)[1:]):
        assert_bits(found[name], wanted)
        usual = getattr(np, other_names.get(name, name), None)
        if usual is not None:
            with np.errstate(all="ignore"):
                independent = usual(*(x, y)[: functions.ARGUMENTS[name]])
            tolerance = 1e-5 if dtype == np.float32 else 1e-13
            np.testing.assert_allclose(found[name], independent, rtol=tolerance)


def smaller(a, b):
    return a if a < b else b


def test_min_max_abs_and_helpers_with_nan(rng):
    from math import fabs

    limits = (0.25, 2)

    @genesis.rule
    def Limited(param, grad, *, size=0.5):
        low, high = limits
        value = max(min(abs(param), fabs(grad), high), low)
        value = smaller(value, size * 3) if 0 < grad < 1 or param == 2 else value
        up = grad > 0
        return value + (up - (grad < 0)) * size + float(low) ** 2 + pow(param, 2) / param**-1

    x = np.array([np.nan, 1.0, -2.0, 0.0, -0.0, np.inf, 2.0, 1.3])
    gradients = [np.roll(x, i) for i in range(len(x))]

    def wanted(param, grad):
        value = max(min(abs(param), abs(grad), 2), 0.25)
        value = smaller(value, 1.5) if 0 < grad < 1 or param == 2 else value
        return value + ((grad > 0) * 1.0 - (grad < 0)) * 0.5 + 0.0625 + param**2 * param

    for gradient in gradients:
        p = parameter(x)
        found = stepped(Limited([p]), p, [gradient])
        assert_bits(found, np.array(Limited.reference(x, gradient)[0]))
        np.testing.assert_allclose(found, list(map(wanted, x, gradient)), rtol=1e-15)


def test_powers_are_products_and_roots():
    @genesis.rule
    def Powers(param, grad, *, two=2.0):
        return param**4 + grad**-2 + param**0.5 + param**two + 2**grad

    text = ast.unparse(kernel_of(Powers))
    assert text.count("math.pow") == 2
    assert "math.sqrt(param)" in text
    assert "**" not in text
    found = Powers.reference(3.0, 2.0)[0]
    assert found == pytest.approx(81 + 0.25 + math.sqrt(3) + 9 + 4, rel=1e-15)


def factory(sign, power=1):
    def update(grad):
        return grad * sign**power

    @genesis.rule
    def Made(param, grad, *, lr=1.0):
        return param + lr * update(grad)

    return Made


def test_closures_of_one_factory_differ():
    results = []
    for sign, power in [(3, 1), (-3, 1), (-3, 2)]:
        p = parameter(np.array([0.0]))
        results.append(float(stepped(factory(sign, power)([p]), p, [np.array([1.0])])[0]))
    assert results == [3.0, -3.0, 9.0]


SLOPE = 2.0


def test_globals_are_taken_when_the_class_is_made(monkeypatch):
    @genesis.rule
    def Sloped(param, grad):
        return param - SLOPE * grad

    monkeypatch.setitem(globals(), "SLOPE", 5.0)
    assert Sloped.reference(0.0, 1.0) == (-2.0,)
    p = parameter(np.array([0.0]))
    assert stepped(Sloped([p]), p, [np.array([1.0])])[0] == -2.0


# ---- what the host computes ----


def test_the_host_computes_in_float64_and_rounds_once():
    @genesis.rule
    def Tiny(param, grad, *, lr=0.1, beta=0.9):
        return param + (1 - (1 - lr * 1e-9)) * 1e9 + (1 - beta) * grad

    wanted = np.float32((1 - (1 - 0.1 * 1e-9)) * 1e9) + np.float32(1 - 0.9) * np.float32(1)
    for lr in (0.1, np.float64(0.1)):
        p = parameter(np.zeros(1, np.float32))
        assert_bits(stepped(Tiny([p], lr=lr), p, [np.ones(1, np.float32)]), [wanted])
    # In the arithmetic of float32, 1 - lr * 1e-9 would be 1.
    p = parameter(np.zeros(1, np.float32))
    found = stepped(Tiny([p], lr=np.float32(0.1)), p, [np.zeros(1, np.float32)])
    assert_bits(found, [np.float32((1 - (1 - float(np.float32(0.1)) * 1e-9)) * 1e9)])


def test_what_the_host_computes_is_chosen_between_not_mixed():
    """Each choice of hyper-parameters is computed by the host as a whole."""

    @genesis.rule
    def Chosen(param, grad, *, a=0.1, b=0.3):
        rate = a if grad > 0 else b
        return param - rate * 3 * grad

    gradient = np.array([1.0, -1.0], np.float32)
    p = parameter(np.zeros(2, np.float32))
    found = stepped(Chosen([p]), p, [gradient])
    assert_bits(found, [-np.float32(0.1 * 3), np.float32(0.3 * 3)])
    assert_bits(found, Chosen.reference(np.zeros(2, np.float32), gradient)[0])


def test_a_value_that_does_not_exist_is_not_asked_for(rng):
    @genesis.rule
    def Later(param, grad, *, lr=1.0, period=0.0, step):
        if step == 1:
            return param - lr * grad
        if period > 0:
            return param - grad * math.sqrt(step - 2) / period
        return param - grad / (step - 1)

    p = parameter(np.zeros(1))
    assert stepped(Later([p]), p, [np.ones(1)] * 3)[0] == -2.5
    p = parameter(np.zeros(1))
    assert stepped(Later([p], period=2.0), p, [np.ones(1)] * 3)[0] == -1.5

    @genesis.rule
    def Divides(param, grad, *, by=1.0):
        return param - grad / (1 / by)

    p = parameter(np.zeros(1))
    opt = Divides([p])
    stepped(opt, p, [np.ones(1)])
    opt.param_groups[0]["by"] = 0.0
    with pytest.raises(ZeroDivisionError) as raised:
        stepped(opt, p, [np.ones(1)])
    assert raised.traceback[-1].path.name == "test_rule.py"  # and the line of the formula
    assert raised.traceback[-1].lineno + 1 == Divides._recipe.line + 2
    assert p.numpy()[0] == -1.0
    assert opt.state[p]["step"] == 1


def test_numbers_are_computed_once_a_step_and_carried(rng):
    seen = []

    def numbers(step, total=0.5, *, lr=0.25, power=1):
        seen.append((step, total, lr, power))
        total += lr * step**power
        return {"total": total, "size": -total}

    @genesis.rule(numbers=numbers)
    def Summing(param, grad, *, size):
        return param + size * grad

    p = parameter(np.zeros(1))
    opt = Summing([p], power=2)
    stepped(opt, p, [np.ones(1)])  # when things are new, they are looked at more often
    seen.clear()
    stepped(opt, p, [np.ones(1)])
    assert seen == [(2, 0.75, 0.25, 2.0)]
    assert dict(opt.state[p]) == {"step": 2, "total": 1.75}
    assert p.numpy()[0] == -0.75 - 1.75
    assert Summing.reference(0.0, 1.0, step=2, total=0.75, power=2) == (-1.75,)


# ---- what the package's own optimizers are made of, too ----

OWN = [case for case in CASES if case.name != "SparseAdam"]


@on_cpu_only
@pytest.mark.parametrize("case", OWN, ids=lambda case: case.id)
def test_the_packages_own_optimizers_give_their_references_bits(case, rng):
    x = rng.standard_normal(50).astype(np.float32)
    p = parameter(x)
    opt = case.make([p])
    recipe = opt._recipe
    settings = {name: value for name, value in case.hyper.items() if name != "maximize"}
    sign = -1 if case.hyper.get("maximize") else 1
    values, carried = [x], dict(recipe.carried)
    for step, gradient in enumerate(gradients_for(rng, 4, 50, np.float32), 1):
        values = opt.reference(
            values[0], sign * gradient, *values[1:], step=step, **carried, **settings
        )
        stepped(opt, p, [gradient])
        carried = {name: opt.state[p][name] for name in carried}
        written = recipe.written_for(opt.param_groups[0])
        # What follows from sums, kernels compute in float64.
        same = assert_bits if written.sums is None else assert_near
        same(p.numpy(), values[0])
        kept = dict(zip(recipe.states, values[1:]))
        for state in written.states:
            same(opt.state[p][state], kept[state])


def assert_near(array, other):
    np.testing.assert_allclose(array, other, rtol=1e-6, atol=1e-7)


def test_the_stub_for_type_checkers_is_what_the_classes_say():
    folder = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("optim_stub", folder / "docs" / "optim_stub.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    written = (folder / "genesis" / "optim" / "__init__.pyi").read_text()
    assert written == made.stub(), "run `python docs/optim_stub.py`"


@genesis.rule
def Starting(param, grad, size="start", other=2.0, *, lr=0.5, start=hyper.rate(1.0)):
    return param - lr * size, size + grad, other + size


def test_state_begins_as_a_hyper_parameter_says():
    p, q = parameter(np.zeros(2)), parameter(np.zeros(2))
    opt = Starting([{"params": [p]}, {"params": [q], "start": 3.0}])
    for each in (p, q):
        each.grad = on_device(np.ones(2))
    opt.step()
    assert p.numpy()[0] == -0.5
    assert q.numpy()[0] == -1.5
    np.testing.assert_array_equal(buffers_of(opt, q)[0], np.full(2, 4.0))
    opt.param_groups[0]["start"] = 7.0  # state that is there goes on
    opt.step()
    assert p.numpy()[0] == -1.5
    assert Starting.reference(0.0, 1.0, start=3.0) == (-1.5, 4.0, 5.0)


def test_whether_an_update_is_the_first_with_a_buffer():
    @genesis.rule
    def Averaged(param, grad, average, *, lr=1.0, decay=0.5, first):
        average = grad if first else decay * average + (1 - decay) * grad
        return param - lr * average, average

    p = parameter(np.zeros(1))
    opt = Averaged([p])
    assert stepped(opt, p, [np.full(1, 2.0)])[0] == -2.0
    assert stepped(opt, p, [np.full(1, 4.0)])[0] == -5.0
    del opt.state[p]["average"]  # it begins anew, though the step counts on
    assert stepped(opt, p, [np.full(1, 4.0)])[0] == -9.0
    assert opt.state[p]["step"] == 3
    assert Averaged.reference(0.0, 2.0) == (-2.0, 2.0)
    assert Averaged.reference(0.0, 4.0, 2.0) == (-3.0, 3.0)


def test_for_0_a_switch_has_a_kernel_without_it():
    @genesis.rule(counted=False)
    def Switched(param, grad, buf, *, lr=1.0, momentum=hyper.non_negative(0.0, switch=True)):
        if momentum > 0:
            buf = momentum * buf + grad
            grad = buf
        return param - lr * grad, buf

    assert (Switched._always, Switched._sometimes, Switched._numbers) == ((), ("buf",), ())
    p = parameter(np.zeros(1))
    opt = Switched([p])
    assert stepped(opt, p, [np.ones(1)])[0] == -1.0
    assert not opt.state.get(p)
    opt.param_groups[0]["momentum"] = 0.5
    assert stepped(opt, p, [np.ones(1)] * 2)[0] == -3.5
    assert list(opt.state[p]) == ["buf"]
    on = source_of(Switched, (True,))
    assert " if " not in on
    assert "buf" not in source_of(Switched, (False,))
    with pytest.raises(ValueError, match="cannot be a switch"):
        hyper.number(0.0, low=-1, switch=True)


def test_what_is_impossible_together_is_refused():
    def ordered(low, high):
        if low > high:
            raise ValueError(f"low is {low}, which is above high, {high}")

    @genesis.rule(check=ordered)
    def Between(param, grad, *, lr=1.0, low=0.0, high=1.0):
        return min(max(param - lr * grad, low), high)

    p = parameter(np.zeros(1))
    with pytest.raises(ValueError, match="low is 2, which"):
        Between([p], low=2)
    opt = Between([p])
    opt.param_groups[0]["low"] = 0.5
    stepped(opt, p, [np.ones(1)])
    opt.param_groups[0]["high"] = -1.0
    with pytest.raises(ValueError, match=r"above high, -1.0 \(in param group 0\)"):
        stepped(opt, p, [np.ones(1)])


def test_a_learning_rate_that_decides_something_is_looked_at_when_it_alone_changes():
    def ordered(lr, most):
        if lr > most:
            raise ValueError("lr is above most")

    @genesis.rule(check=ordered)
    def Limited(param, grad, *, lr=hyper.number(0.0, low=0, switch=True), most=1.0):
        return param - lr * grad if lr else param + grad

    p = parameter(np.zeros(1))
    opt = Limited([p])
    assert stepped(opt, p, [np.ones(1)] * 2)[0] == 2.0
    opt.param_groups[0]["lr"] = 0.5
    assert stepped(opt, p, [np.ones(1)] * 2)[0] == 1.0
    opt.param_groups[0]["lr"] = 2.0
    with pytest.raises(ValueError, match=r"lr is above most \(in param group 0\)"):
        stepped(opt, p, [np.ones(1)])
    assert p.numpy()[0] == 1.0


@on_cpu_only
def test_rules_say_which_gradients_may_be_sparse():
    @genesis.rule(sparse=lambda weight_decay: weight_decay == 0)
    def Plain(param, grad, *, lr=1.0, weight_decay=0.0):
        return param - lr * (grad + weight_decay * param)

    @genesis.rule(sparse="only")
    def Rows(param, grad, *, lr=1.0):
        return param - lr * grad

    p = genesis.Parameter(np.ones((3, 2)))
    rows = genesis.SparseGrad([1], np.ones((1, 2)))
    for made in (Plain, Rows):
        p.data[...] = 1.0
        p.grad = rows
        made([p]).step()
        np.testing.assert_array_equal(p.data, [[1, 1], [0, 0], [1, 1]])
    with pytest.raises(
        TypeError, match="Plain does not support sparse gradients with the settings"
    ):
        Plain([p], weight_decay=0.1).step()
    p.grad = np.ones((3, 2))
    with pytest.raises(TypeError, match="Rows does not support dense gradients"):
        Rows([p]).step()
    p.grad = rows
    with pytest.raises(TypeError, match="Lion does not support sparse gradients"):
        Lion([p]).step()


def test_hyper_parameters_may_be_given_by_position_in_their_order():
    p = parameter(np.ones(1))
    opt = Lion([p], 0.1, 0.8)
    assert (opt.defaults["lr"], opt.defaults["beta1"], opt.defaults["beta2"]) == (0.1, 0.8, 0.99)
    with pytest.raises(TypeError, match="got multiple values for argument 'lr'"):
        Lion([p], 0.1, lr=0.2)
    with pytest.raises(TypeError, match="takes at most 4 arguments after params by position"):
        Lion([p], 0.1, 0.2, 0.3, 0.4, 0.5)

    @genesis.rule
    def Later(param, grad, *, lr=0.1, scale):
        return param - lr * scale * grad

    assert str(inspect.signature(Later)).startswith("(params, lr=0.1, *, scale,")
    with pytest.raises(TypeError, match="at most 1 arguments after params"):
        Later([p], 0.1, 2.0)
    with pytest.raises(TypeError, match="missing 1 required argument: 'scale'"):
        Later([p])


# ---- declarations ----


@genesis.rule
def Declared(
    param, grad, *, lr, gammas=hyper.betas(0.1, 0.2, 0.3),
    cap=hyper.number(1.0, "a cap", low=-1, most=2),
    eps=1e-8, beta=0.5, shift=0.0, weights=(1.0, 2.0), on=hyper.flag(False, "a switch"),
):  # fmt: skip
    """Declared: everything."""
    a, b, c = gammas
    return param - lr * grad * a * b * c * cap * eps * beta * shift * weights[1] * (2 if on else 1)


RATE = "a finite number of at least 0, or a function of the step"
WRONG = [
    # name, value, error, what a message says of both, what it expects
    ("lr", -1.0, ValueError, "learning rate: -1.0", RATE),
    ("lr", math.nan, ValueError, "learning rate: nan", RATE),
    ("lr", math.inf, ValueError, "learning rate: inf", RATE),
    ("lr", 10**400, ValueError, f"learning rate: {10**400}", RATE),
    ("lr", "x", TypeError, "learning rate: 'x'", RATE),
    ("lr", True, TypeError, "learning rate: True", RATE),
    ("gammas", (0.1, 0.2), ValueError, "gammas: (0.1, 0.2)", "3 numbers in [0, 1)"),
    ("gammas", (0.1, 0.2, 1.0), ValueError, "beta parameter at index 2: 1.0", "a number in [0, 1)"),
    ("gammas", 0.1, ValueError, "gammas: 0.1", "3 numbers in [0, 1)"),
    (
        "gammas",
        (0.1, 0.2, None),
        TypeError,
        "beta parameter at index 2: None",
        "a number in [0, 1)",
    ),
    ("cap", 2.5, ValueError, "cap value: 2.5", "a number in [-1, 2]"),
    ("cap", -1.5, ValueError, "cap value: -1.5", "a number in [-1, 2]"),
    ("eps", -1e-9, ValueError, "epsilon value: -1e-09", "a finite number of at least 0"),
    ("beta", 1.0, ValueError, "beta value: 1.0", "a number in [0, 1)"),
    ("shift", math.inf, ValueError, "shift value: inf", "a finite number"),
    ("weights", (1.0, math.nan), ValueError, "weights at index 1: nan", "a finite number"),
    ("on", 1, TypeError, "on: 1", "True or False"),
    ("maximize", 1, TypeError, "maximize: 1", "True or False"),
]


@pytest.mark.parametrize(
    ("name", "value", "error", "said", "allowed"), WRONG, ids=lambda x: str(x)[:20]
)
def test_what_is_out_of_range_is_refused(name, value, error, said, allowed):
    p = parameter(np.ones(2))
    with pytest.raises(error) as raised:
        Declared([p], **{"lr": 0.1, name: value})
    assert str(raised.value) == f"Invalid {said}, expected {allowed}"
    opt = Declared([{"params": [p]}, {"params": [parameter(np.ones(2))]}], lr=0.1)
    for q in opt._parameters():
        q.grad = on_device(np.ones(2))
    opt.step()
    before = opt.state_dict()["state"], p.numpy().copy()
    with pytest.raises(error) as raised:
        opt.param_groups[1][name] = value
    assert str(raised.value) == f"Invalid {said}, expected {allowed}"
    opt.param_groups[1] = {**opt.param_groups[1], name: value}
    with pytest.raises(error) as raised:
        opt.step()
    message = f"Invalid {said}, expected {allowed} (in param group 1)"
    assert str(raised.value) == message
    assert opt.state_dict()["state"] == before[0]
    np.testing.assert_array_equal(p.numpy(), before[1])


def test_a_learning_rate_with_a_range_of_its_own_is_checked_in_groups():
    @genesis.rule
    def Bounded(param, grad, *, lr=hyper.number(0.5, low=-1, most=1)):
        return param - lr * grad

    p = parameter(np.zeros(1))
    opt = Bounded([p], lr=-0.5)
    assert stepped(opt, p, [np.ones(1)])[0] == 0.5
    opt.param_groups[0]["lr"] = -1.0
    assert stepped(opt, p, [np.ones(1)])[0] == 1.5
    with pytest.raises(ValueError, match=r"Invalid lr value: 2.0, .*\[-1, 1\]"):
        opt.param_groups[0]["lr"] = 2.0
    opt.param_groups[0] = {**opt.param_groups[0], "lr": 2.0}
    with pytest.raises(
        ValueError, match=r"Invalid lr value: 2.0, .*\[-1, 1\] \(in param group 0\)"
    ):
        stepped(opt, p, [np.ones(1)])


def test_constructor_and_documentation_follow():
    names = list(inspect.signature(Declared).parameters)
    options = ["maximize", *genesis.optim.options.HYPERS]
    declared = ["lr", "gammas", "cap", "eps", "beta", "shift", "weights", "on"]
    assert names == ["params", *declared, *options]
    doc = inspect.getdoc(Declared)
    assert doc.startswith("Declared: everything.")
    assert "cap: a cap, a number in [-1, 2]. Default: 1.0." in doc
    assert f"lr: learning rate, {RATE}. Required." in doc
    assert "on: a switch. Default: False." in doc
    assert 'State of a parameter: "step".' in doc
    assert 'State of a parameter: "step", "lr_max", "weight_sum", "z", "exp_avg_sq".' in (
        inspect.getdoc(ScheduleFreeAdamW)
    )
    assert "lr=0.0001" in str(inspect.signature(Lion))
    with pytest.raises(TypeError, match="missing 1 required argument: 'lr'"):
        Declared([parameter(np.ones(1))])
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        Lion([parameter(np.ones(1))], learning_rate=1)
    assert issubclass(Lion, genesis.optim.Optimizer)
    assert (Lion.__name__, Lion.__qualname__, Lion.__module__) == ("Lion", "Lion", "published")
    assert pickle.loads(pickle.dumps(Lion)) is Lion


def test_reference_checks_what_it_is_given():
    for given in ({"beta1": 2.0}, {"lr": -1}):
        with pytest.raises(ValueError, match="Invalid"):
            Lion.reference(1.0, 1.0, **given)
    with pytest.raises(TypeError, match="beta3"):
        Lion.reference(1.0, 1.0, beta3=2.0)
    with pytest.raises(TypeError, match="2 state buffers"):
        Lion.reference(1.0, 1.0, 0.0, 0.0)
    with pytest.raises(TypeError, match="'lr' is required"):
        Declared.reference(1.0, 1.0)
    assert all(value.dtype == np.float32 for value in Lion.reference(np.float32(1), 1.0))


# ---- misuse: refused when the class is made, with file, line and construct ----

ALLOWED = "a rule is arithmetic, if and math on one element"
HEAD = (
    "import math\nimport numpy as np\nimport genesis\nfrom genesis import hyper, transforms as T\n"
)
MISUSES = [
    # arguments, body, offending line of the function (its decorator is line 1), construct, reason
    ("param, grad", "for i in range(3):\n    param = param - grad\nreturn param", 3,
     "for i in range(3)", ALLOWED),
    ("param, grad", "while param > 3:\n    param = param - grad\nreturn param", 3,
     "while param > 3", ALLOWED),
    ("param, grad", "import os\nreturn param", 3, "import os", ALLOWED),
    ("param, grad", "x = [param]\nreturn x[0]", 3, "x = [param]", ALLOWED),
    ("param, grad", "return [x for x in (param,)][0]", 3, "return [x for x in (param,)][0]", ALLOWED),
    ("param, grad", "print(param)\nreturn param", 3, "print(param)", ALLOWED),
    ("param, grad", "f = lambda x: x\nreturn f(param)", 3, "f = lambda x: x", ALLOWED),
    ("param, grad", "try:\n    return param\nexcept ValueError:\n    return grad", None, None,
     ALLOWED),
    ("param, grad", "assert param > 0\nreturn param", 3, "assert param > 0", ALLOWED),
    ("param, grad", "raise ValueError", 3, "raise ValueError", ALLOWED),
    ("param, grad", "yield param", None, None, ALLOWED),
    ("param, grad", "global X\nX = 1\nreturn param", 4, "X = 1", ALLOWED),
    ("param, grad", "param.x = 1\nreturn param", 3, "param.x = 1", ALLOWED),
    ("param, grad", "return param - np.sqrt(grad)", 3, "np.sqrt",
     f"{ALLOWED} (AttributeError: numpy.sqrt"),
    ("param, grad", "return param - np.sign(grad)", 3, "np.sign",
     "is a ufunc; take a function of math, and for a sign math.copysign"),
    ("param, grad", "return param - math.floor(grad)", 3, "math.floor", "rules may use sqrt"),
    ("param, grad", "return param % 2", 3, "param % 2", ALLOWED),
    ("param, grad", "return param - grad[0]", 3, "grad[0]", ALLOWED),
    ("param, grad", "return param.sum()", 3, "param.sum", ALLOWED),
    ("param, grad", "return math.sqrt(param, grad)", 3, "math.sqrt(param, grad)", "takes 1 arg"),
    ("param, grad", "return int(param)", 3, "return int(param)", ALLOWED),
    ("param, grad", "return float(param)", 3, "float(param)", ALLOWED),
    ("param, grad", "return param + 'a'", 3, "param + 'a'", ALLOWED),
    ("param, grad", "return param - unknown * grad", 3, "return param - unknown * grad",
     "'unknown' is not known here"),
    ("param, grad", "return param - OTHERS[0] * grad", 3, "return param - OTHERS[0] * grad",
     "'OTHERS' is a list"),
    ("param, grad", "return looping(param)", -2, "for i in range(2)", ALLOWED),
    ("param, grad", "return endless(param)", -5, "x > 0", "must not call itself without end"),
    ("param, grad, buf", "return param", 3, "return param", "return param, buf, what"),
    ("param, grad", "return param, grad", 3, "return param, grad", "1 values, not 2"),
    ("param, grad", "if grad > 0:\n    return param, 1\nreturn param", 1, "return", "1 values, not 2"),
    ("param, grad", "pass", None, None,
     "param must become a number, not None: end with return param"),
    ("param, grad", "return 'a'", 3, "return 'a'", "param must become a number, not 'a'"),
    ("param, gradient", "return param", 1, "def Wrong(param, gradient)", "begin with param, grad"),
    ("param, grad, *state", "return param", 1, "*state", "name every state buffer"),
    ("param, grad, **hyper", "return param", 1, "**hyper", "name every state buffer"),
    ("param, grad, buf='x'", "return param, buf", 1, "buf='x'", "positional is a state buffer"),
    ("param, grad, buf='on', *, on=True", "return param, buf", 1, "buf", "is no hyper-parameter"),
    ("param, grad, lr=hyper.rate(1)", "return param, lr", 1, None, "positional is a state buffer"),
    ("param, grad, *, lr=-1", "return param", 1, "lr=-1", "expected a finite number of at least 0"),
    ("param, grad, *, beta=1.0", "return param", 1, "beta=1.0", "expected a number in [0, 1)"),
    ("param, grad, *, x='a'", "return param", 1, "x='a'", "expected a finite number"),
    ("param, grad, *, x=math.nan", "return param", 1, "x=nan", "expected a finite number"),
    ("param, grad, *, params=1", "return param", 1, "params", "another"),
    ("param, grad, *, maximize=False", "return param", 1, "maximize", "another"),
    ("param, grad, master", "return param, master", 1, "master", "another"),
    ("param, grad, step", "return param, step", 1, "step", "def Wrong(..., *, step, ...)"),
]  # fmt: skip
HELPERS = """
OTHERS = [1]
def looping(x):
    for i in range(2):
        x = x + 1
    return x
def endless(x):
    return endless(x) if x > 0 else x
"""


def written(tmp_path, text, name="mine.py"):
    """Run text as a file of its own."""
    path = tmp_path / name
    path.write_text(text)
    linecache.checkcache()
    names = {"__name__": "mine"}
    exec(compile(text, str(path), "exec"), names)
    return names


@pytest.mark.parametrize(("arguments", "body", "line", "construct", "why"), MISUSES)
def test_misuse_is_refused_with_file_and_line(arguments, body, line, construct, why, tmp_path):
    body = body.replace("\n", "\n    ")
    head = HEAD + HELPERS
    function = f"@genesis.rule\ndef Wrong({arguments}):\n    {body}\n"
    with pytest.raises(RuleError) as raised:
        written(tmp_path, head + function)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'mine.py'}:")
    assert ": rule Wrong: " in message
    assert why in message
    if construct is not None:  # before 3.11, Python knows no more than the line
        assert (f'"{construct}"' if sys.version_info >= (3, 11) else construct) in message
    if line is not None:
        offset = len(head.splitlines())
        wanted = offset + line if line > 0 else {-2: 8, -5: 12}[line]
        assert message.startswith(f"{tmp_path / 'mine.py'}:{wanted}: ")


NUMBERS = [
    ("*, x", "lambda step, *, x=0.1: 3", "must return a dict"),
    ("*, x", "lambda step, *, lr=0.1: {'x': 'a'}", "'x' must be a number, but is 'a'"),
    (
        "*, x",
        "lambda step, *, lr=0.1: {'y': lr}",
        "has no default, and the numbers do not return it",
    ),
    ("*, x=0.1", "lambda step: {'x': 1.0}", "leave out its default"),
    ("*, x, lr=0.1", "lambda step, *, lr=0.1: {'x': 1.0}", "declare this both"),
    ("*, x", "lambda step, seen, *, lr=0.1: {'x': lr}", "carried from step to step"),
    ("*, x", "lambda step, seen=1.0, *, lr=0.1: {'x': lr}", "which the numbers do not return"),
    ("*, x", "lambda *, lr=0.1: {'x': lr}", "its first argument must be the number of the update"),
    ("*, x", "lambda step, **others: {'x': 1.0}", "name every keyword"),
    (
        "*, x",
        "lambda step, *, lr=0.1: {'x': 1 / (step - 1)}",
        "failed at step 1 with {'lr': 0.1}: Zero",
    ),
    ("buf, *, x", "lambda step, *, buf=0.1: {'x': buf}", "has the name of a state buffer"),
    ("buf, *, x", "lambda step, buf=0.1: {'x': buf, 'buf': 1.0}", "has the name of a state buffer"),
    ("*, x", "math.sqrt", "must be a plain function"),
]


@pytest.mark.parametrize(("arguments", "numbers", "why"), NUMBERS)
def test_misuse_of_numbers_is_refused(arguments, numbers, why, tmp_path):
    states = ", buf" if arguments.startswith("buf") else ""
    text = f"@genesis.rule(numbers={numbers})\ndef Wrong(param, grad, {arguments}):\n"
    with pytest.raises(RuleError) as raised:
        written(tmp_path, f"{HEAD}{text}    return param - grad * x{states}\n")
    assert str(raised.value).startswith(f"{tmp_path / 'mine.py'}:5: rule Wrong: ")
    assert why in str(raised.value)


FURTHER = [
    ("check=math.sqrt", "must be a plain function"),
    ("check=lambda rate: None", "'rate' is no hyper-parameter"),
    ("sparse='always'", "must be a plain function, but is 'always'"),
    ("sparse=lambda rate: True", "'rate' is no hyper-parameter"),
    ("counted=False", "make use of the step"),
    ("counted=False, numbers=lambda step: {}", "make use of the step"),
]


@pytest.mark.parametrize(("further", "why"), FURTHER)
def test_misuse_of_what_further_belongs_to_a_rule_is_refused(further, why, tmp_path):
    step = ", step" if further == "counted=False" else ""
    text = f"@genesis.rule({further})\ndef Wrong(param, grad, *, lr=0.1{step}):\n"
    with pytest.raises(RuleError) as raised:
        written(tmp_path, f"{HEAD}{text}    return param - grad * lr\n")
    assert str(raised.value).startswith(f"{tmp_path / 'mine.py'}:5: rule Wrong: ")
    assert why in str(raised.value)


CHAINS = [
    ("T.momentum, T.nesterov", "momentum and nesterov both have 'momentum'"),
    ("T.momentum, T.nesterov.prefixed('n_'), shared=['other']", "no part has 'other'"),
    ("T.momentum, T.nesterov, shared=['momentum']", "both have 'momentum_buffer'"),
    ("T.momentum, T.nesterov(momentum=0.5), shared=['momentum']", "its default or range differs"),
    ("T.scale_by_lr, T.scale_by_lr", "both have 'lr'"),
    ("T.momentum, abs", "is no transform"),
    ("", "nothing is composed"),
    ("T.sign, name='2 words'", "is no name of a class"),
]


@pytest.mark.parametrize(("parts", "why"), CHAINS)
def test_misuse_of_chain_is_refused(parts, why, tmp_path):
    name = "" if "name=" in parts else ", name='Wrong'"
    with pytest.raises(RuleError) as raised:
        written(tmp_path, f"{HEAD}\ngenesis.chain({parts}{name})\n".replace("(, ", "("))
    assert str(raised.value).startswith(f"{tmp_path / 'mine.py'}:6: chain ")
    assert why in str(raised.value)


def test_misuse_of_transform_is_refused(tmp_path):
    for function, why in [
        ("def Wrong(param, grad):\n    return param", "begin with update, param"),
        ("def Wrong(update, param, buf):\n    return update", "return update, buf, what"),
        ("def Wrong(update, param):\n    for i in (1, 2):\n        pass", "for i in (1, 2)"),
    ]:
        text = f"{HEAD}@genesis.transform\n{function}\ngenesis.chain(Wrong, name='Chained')\n"
        with pytest.raises(RuleError) as raised:
            written(tmp_path, text)
        assert f"{tmp_path / 'mine.py'}:" in str(raised.value)
        assert "transform Wrong: " in str(raised.value)
        assert why in str(raised.value)
    with pytest.raises(TypeError, match="no hyper-parameter 'rate'"):
        T.scale_by_lr(rate=1.0)
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        T.scale_by_lr(lr=-1)
    with pytest.raises(ValueError, match="prefix"):
        T.scale_by_lr.prefixed("a b")
    for wrong in (3, abs, Lion):
        with pytest.raises(RuleError, match="must be a plain function"):
            genesis.rule(wrong)


def test_too_many_ways_are_refused(tmp_path):
    tests = "\n".join(f"    if param > {i}:\n        grad = grad * {i}" for i in range(9))
    text = f"{HEAD}@genesis.rule\ndef Wrong(param, grad):\n{tests}\n    return param - grad\n"
    with pytest.raises(RuleError, match="more than 256 ways through its conditions"):
        written(tmp_path, text)
    fewer = text.replace("    if param > 8:\n        grad = grad * 8\n", "")
    made = written(tmp_path, fewer)["Wrong"]
    assert made.reference(3.5, 1.0) == (3.5 - 1 * 0,)


# ---- where there is no source ----

PLAIN = """
import genesis
@genesis.rule
def Plain(param, grad, buf, *, lr=0.5):
    buf = buf + (grad if grad > 0 else 2 * grad)
    return param - lr * buf, buf
"""


def assert_plain(made):
    p = parameter(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(stepped(made([p]), p, [np.array([1.0, -1.0])]), [0.5, 2.0])


def test_in_exec():
    names = {}
    exec(PLAIN, names)
    assert_plain(names["Plain"])
    with pytest.raises(RuleError, match=r'^<string>:5: rule Plain: "a loop": a rule is arith'):
        exec(PLAIN.replace("buf = buf +", "for i in (1, 2): buf ="), {})


def test_in_a_repl(capsys):
    shell = code.InteractiveConsole()
    for line in [*PLAIN.strip().splitlines(), ""]:
        shell.push(line)
    assert capsys.readouterr().err == ""
    assert_plain(shell.locals["Plain"])


def test_in_a_notebook():
    """Whose cells have source in linecache only."""
    name = "<ipython-input-1-abc>"
    text = PLAIN.replace("buf = buf +", "for i in (1, 2): buf =")
    for cell, refused in [(PLAIN, False), (text, True)]:
        linecache.cache[name] = len(cell), None, cell.splitlines(True), name
        if refused:
            with pytest.raises(RuleError, match=r'abc>:5: rule Plain: "for i in \(1, 2\): buf = '):
                exec(compile(cell, name, "exec"), {})
        else:
            names = {}
            exec(compile(cell, name, "exec"), names)
            assert_plain(names["Plain"])
    del linecache.cache[name]


def test_in_a_zip(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("zipped_rule.py", PLAIN)
        archive.writestr("zipped_wrong.py", PLAIN.replace("grad > 0", "grad > unknown"))
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    import zipped_rule

    assert_plain(zipped_rule.Plain)
    assert pickle.loads(pickle.dumps(zipped_rule.Plain)) is zipped_rule.Plain
    with pytest.raises(RuleError, match=r"zipped_wrong\.py:5: rule Plain: "):
        import zipped_wrong  # noqa: F401
    del sys.modules["zipped_rule"]


def test_a_jitted_helper_and_a_module_of_helpers(tmp_path, monkeypatch):
    numba = pytest.importorskip("numba")
    (tmp_path / "my_helpers.py").write_text("LIMIT = 2.0\ndef cut(x):\n    return min(x, LIMIT)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_helpers

    @numba.njit
    def halved(x):
        return x / 2

    @genesis.rule
    def Helped(param, grad):
        return param - halved(my_helpers.cut(grad)) * my_helpers.LIMIT

    p = parameter(np.array([0.0, 0.0]))
    np.testing.assert_array_equal(stepped(Helped([p]), p, [np.array([1.0, 5.0])]), [-1, -2])


# ---- chains ----


def test_a_chain_is_one_rule(rng):
    chained = genesis.chain(
        T.scale_by_adam, T.add_decayed_weights, T.scale_by_lr, name="ChainedAdamW"
    )
    x, gradients = rng.standard_normal(41), gradients_for(rng, 10)
    p, q = parameter(x), parameter(x)
    found = stepped(chained([p], lr=0.01, weight_decay=0.1), p, gradients)
    wanted = stepped(genesis.optim.AdamW([q], lr=0.01, weight_decay=0.1), q, gradients)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    assert list(inspect.signature(chained).parameters)[:5] == [
        "params", "betas", "eps", "weight_decay", "lr"
    ]  # fmt: skip
    assert chained.__module__ == __name__
    assert issubclass(chained, genesis.optim.RuleOptimizer)


def test_ready_transforms(rng):
    x, gradients = rng.standard_normal(41), gradients_for(rng, 5)
    g = np.array(gradients)

    def run(*parts, **given):
        p = parameter(x)
        made = genesis.chain(*parts, name="Chained")
        return stepped(made([p], **given), p, gradients)

    def evaluated(part):
        """As `run`, by the reference, which compiles nothing and gives a kernel's bits."""
        made = genesis.chain(part, name="Chained")
        values = [x]
        for step, gradient in enumerate(gradients, 1):
            values = made.reference(values[0], gradient, *values[1:], step=step)
        return values[0]

    m = np.zeros_like(g)
    for t in range(5):
        m[t] = 0.9 * (m[t - 1] if t else 0) + g[t]
    square = [0.0]
    for t in range(5):
        square.append(0.99 * square[-1] + 0.01 * g[t] ** 2)
    scaled = g / (np.sqrt(np.array(square[1:])) + 1e-8)
    for part, updates in [
        (T.momentum, m),
        (T.nesterov, g + 0.9 * m),
        (T.sign, np.sign(g)),
        (T.clip_value(limit=0.5), np.clip(g, -0.5, 0.5)),
        (T.scale_by_rms, scaled),
        (T.scale_by_lr(lr=0.3), 0.3 * g),
    ]:
        np.testing.assert_allclose(evaluated(part), x - updates.sum(0), rtol=1e-12, atol=1e-12)
    both = x - np.where(m * g > 0, m, 0).sum(0)
    np.testing.assert_allclose(run(T.momentum, T.cautious), both, rtol=1e-12)
    decayed = x.copy()
    for gradient in gradients:
        decayed = decayed - 0.1 * (gradient + 0.2 * decayed)
    found = run(T.add_decayed_weights, T.scale_by_lr, weight_decay=0.2, lr=0.1)
    np.testing.assert_allclose(found, decayed, rtol=1e-12)
    nan = genesis.chain(T.sign, name="Sign").reference(0.0, math.nan)[0]
    assert math.isnan(nan)


def test_prefixes_and_shared_names(rng):
    two = genesis.chain(
        T.momentum,
        T.momentum(momentum=0.5).prefixed("slow_"),
        T.add_decayed_weights,
        T.scale_by_lr,
        name="Two",
    )
    p = parameter(np.zeros(1))
    opt = two([p], lr=1.0, weight_decay=0.0)
    stepped(opt, p, [np.ones(1)] * 2)
    assert set(opt.state[p]) == {"step", "momentum_buffer", "slow_momentum_buffer"}
    assert {"momentum", "slow_momentum"} <= opt.defaults.keys()
    assert p.numpy()[0] == pytest.approx(-1 - (0.5 + 1.9))
    one = genesis.chain(T.momentum, T.momentum.prefixed("slow_"), name="One", shared=["momentum"])
    assert "slow_momentum" not in one([p]).defaults
    q = parameter(np.zeros(1))
    stepped(one([q], momentum=0.5), q, [np.ones(1)] * 2)
    assert q.numpy()[0] == pytest.approx(-1 - (0.5 + 1.5))


def test_transforms_with_numbers_and_flags(rng):
    @genesis.transform(
        numbers=lambda step, seen=0.0, *, warm=4: {"seen": seen + 1, "part": seen / warm}
    )
    def warmed(update, param, *, part, off=False):
        return update if off else update * part

    made = genesis.chain(T.sign, warmed.prefixed("w_"), T.scale_by_lr(lr=1.0), name="Warmed")
    p = parameter(np.zeros(1))
    opt = made([p], w_warm=2)
    stepped(opt, p, [np.ones(1)] * 3)
    assert p.numpy()[0] == -(0 + 0.5 + 1.0)
    assert dict(opt.state[p]) == {"step": 3, "w_seen": 3.0}
    opt.param_groups[0]["w_off"] = True
    stepped(opt, p, [np.ones(1)])
    assert p.numpy()[0] == -2.5


def test_classes_and_optimizers_are_copied(rng):
    for made in (Lion, CautiousAdamW, NAdamW, ScheduleFreeAdamW):
        p = parameter(np.ones(3))
        opt = made([p])
        stepped(opt, p, gradients_for(rng, 2, 3))
        twin = copy.deepcopy(opt)
        (q,) = twin.param_groups[0]["params"]
        assert q is not p
        gradients = gradients_for(rng, 2, 3)
        assert_bits(stepped(twin, q, gradients), stepped(opt, p, gradients))


def test_schedulers_drive_a_rule(rng):
    p = parameter(np.zeros(1))
    opt = Lion([p], lr=0.5)
    scheduler = genesis.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    for _ in range(3):
        stepped(opt, p, [np.ones(1)])
        scheduler.step()
    assert p.numpy()[0] == -0.5 - 0.25 - 0.125


def test_whether_something_is_true_counts_as_a_number():
    @genesis.rule
    def Signs(param, grad, *, lr=0.1):
        return ((grad > 0) - (grad < 0)) * lr * 3 + grad

    x = np.array([1.0, -1.0, 0.0, np.nan], np.float32)
    p = parameter(x)
    found = stepped(Signs([p]), p, [x])
    assert_bits(found, Signs.reference(x, x)[0])
    np.testing.assert_allclose(found[:3], [1.3, -1.3, 0.0], rtol=1e-6)
