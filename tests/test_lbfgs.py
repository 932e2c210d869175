"""LBFGS beside torch's: the same path in as many evaluations, and what it refuses."""

import copy

import numpy as np
import pytest
from devices import DEVICE, on_cpu_only, parameter

import genesis
from genesis.buffers import BFLOAT16
from genesis.optim import LBFGS


def rosenbrock(x):
    a, b = x
    gradient = np.array([2 * (a - 1) - 400 * a * (b - a * a), 200 * (b - a * a)])
    return (1 - a) ** 2 + 100 * (b - a * a) ** 2, gradient


@pytest.fixture(scope="module")
def diabetes():
    """Least squares on measurements of 442 patients: ten columns, each of unit variance."""
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="needs scikit-learn: pip install -e '.[test,examples]'"
    )
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), (y - y.mean()) / y.std()

    def loss(weights):
        residual = x @ weights - y
        return residual @ residual / len(y), 2 * x.T @ residual / len(y)

    return loss


class Run:
    """A function, its parameter and an optimizer; counts evaluations."""

    def __init__(self, function, start, dtype=np.float64, **hyper):
        self.calls = 0
        self.function = function
        self.param = genesis.Parameter(np.array(start, dtype))
        self.opt = LBFGS([self.param], **hyper)

    def closure(self):
        self.calls += 1
        loss, gradient = self.function(self.param.data.astype(np.float64))
        self.param.grad = gradient.astype(self.param.dtype)
        return loss

    def step(self):
        return self.opt.step(self.closure)


class TorchRun:
    def __init__(self, torch, function, start, **hyper):
        self.calls = 0
        self.torch, self.function = torch, function
        self.param = torch.tensor(np.array(start, np.float64), requires_grad=True)
        self.opt = torch.optim.LBFGS([self.param], **hyper)

    def closure(self):
        self.calls += 1
        loss, gradient = self.function(self.param.detach().numpy())
        self.param.grad = self.torch.tensor(gradient)
        return self.torch.tensor(loss)

    def step(self):
        return float(self.opt.step(self.closure))


VARIANTS = [
    {"lr": 0.1},
    {"lr": 0.01, "history_size": 3, "max_iter": 7},
    {"line_search_fn": "strong_wolfe"},
    {"line_search_fn": "strong_wolfe", "history_size": 2, "max_iter": 4},
    {"line_search_fn": "strong_wolfe", "max_iter": 8, "max_eval": 6, "lr": 0.5},
    {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-2},
    {"line_search_fn": "strong_wolfe", "tolerance_change": 1e-2},
]


@pytest.mark.parametrize("hyper", VARIANTS, ids=str)
@pytest.mark.parametrize("start", [(-1.5, 2.0), (0.5, -3.0)])
def test_follows_torch_on_rosenbrock(hyper, start):
    torch = pytest.importorskip("torch")
    ours = Run(rosenbrock, start, **hyper)
    theirs = TorchRun(torch, rosenbrock, start, **hyper)
    for _ in range(4):
        np.testing.assert_allclose(ours.step(), theirs.step(), rtol=1e-8, atol=1e-20)
        np.testing.assert_allclose(ours.param.data, theirs.param.detach(), rtol=1e-10)
        assert ours.calls == theirs.calls
        state, expected = ours.opt.state[ours.param], theirs.opt.state[theirs.param]
        assert (state["n_iter"], state["func_evals"]) == (
            expected["n_iter"],
            expected["func_evals"],
        )
        assert len(state.get("ro", ())) == len(expected.get("ro", ()))


def test_ends_at_rosenbrocks_minimum():
    run = Run(rosenbrock, (-1.5, 2.0), line_search_fn="strong_wolfe")
    for _ in range(4):
        run.step()
    np.testing.assert_allclose(run.param.data, [1, 1], atol=1e-5)
    assert run.calls < 60


@pytest.mark.parametrize("hyper", [{"lr": 0.5}, {"line_search_fn": "strong_wolfe"}], ids=str)
def test_least_squares_on_diabetes_as_low_as_torch_in_no_more_calls(hyper, diabetes):
    torch = pytest.importorskip("torch")
    ours = Run(diabetes, np.zeros(10), **hyper)
    theirs = TorchRun(torch, diabetes, np.zeros(10), **hyper)
    for _ in range(4):
        ours.step()
        theirs.step()
    final = diabetes(ours.param.data)[0]
    expected = diabetes(theirs.param.detach().numpy())[0]
    assert final <= expected * (1 + 1e-9)
    assert ours.calls <= theirs.calls
    assert final == pytest.approx(0.48225, abs=1e-4)  # of a variance of 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=str)
def test_other_dtypes_reach_the_minimum(dtype):
    run = Run(lambda x: ((x - 3) @ (x - 3), 2 * (x - 3)), np.zeros(5), dtype)
    for _ in range(3):
        run.step()
    assert run.param.data.dtype == dtype
    np.testing.assert_allclose(run.param.data.astype(np.float64), np.full(5, 3.0), rtol=1e-2)
    assert run.opt.state[run.param]["d"].dtype == np.float32


def quadratic(params, weights):
    """A closure for the sum of squares of what lies in all parameters; the last has no gradient."""

    def closure():
        loss = 0.0
        for param, weight in zip(params, weights):
            values = genesis.buffers.host_copy(param.data).astype(np.float64)
            loss += weight * float(((values - 1) ** 2).sum())
            gradient = (2 * weight * (values - 1)).astype(param.dtype)
            param.grad = genesis.buffers.put(gradient, DEVICE)
        return loss

    return closure


def test_parameters_of_all_kinds_are_one_vector(rng):
    strided = np.zeros((6, 8))[::2, ::2]
    params = [
        parameter(np.zeros((2, 3), np.float32)),
        parameter(np.float64(0)),
        parameter(np.zeros((0, 4))),
        parameter(np.asfortranarray(np.zeros((3, 2)))),
        genesis.Parameter(strided) if DEVICE == "cpu" else parameter(np.zeros((3, 4))),
    ]
    idle = parameter(np.full(2, 5.0))
    opt = LBFGS([*params, idle], line_search_fn="strong_wolfe")
    closure = quadratic(params, [1, 2, 3, 4, 5])
    for _ in range(3):
        opt.step(closure)
    for param in params:
        np.testing.assert_allclose(param.numpy(), np.ones(param.shape), rtol=1e-5)
    np.testing.assert_array_equal(idle.numpy(), [5.0, 5.0])
    assert opt.state[params[0]]["d"].shape == (6 + 1 + 6 + 12 + 2,)
    assert len(opt.state) == 1


def test_step_returns_what_the_first_call_returned():
    run = Run(rosenbrock, (-1.5, 2.0))
    assert run.step() == rosenbrock((-1.5, 2.0))[0]
    assert run.opt._step_count == 1


def test_stops_at_once_where_the_gradient_is_small():
    run = Run(rosenbrock, (1.0, 1.0))
    run.step()
    assert run.calls == 1
    assert dict(run.opt.state[run.param]) == {"func_evals": 1, "n_iter": 0}
    run.opt.load_state_dict(run.opt.state_dict())


# ---- state ----


def test_goes_on_from_a_saved_state_as_if_nothing_had_been(tmp_path):
    run = Run(rosenbrock, (-1.5, 2.0), history_size=4, max_iter=5, lr=0.1)
    run.step()
    genesis.save(run.opt.state_dict(), tmp_path / "state")
    other = Run(rosenbrock, run.param.data, history_size=4, max_iter=5, lr=0.1)
    other.opt.load_state_dict(genesis.load(tmp_path / "state"))
    copied = copy.deepcopy(run.opt)
    before = run.opt.state_dict()["state"][0]["old_stps"]
    expected = [array.copy() for array in before]
    for _ in range(2):
        assert run.step() == other.step()
    np.testing.assert_array_equal(run.param.data, other.param.data)
    for array, was in zip(before, expected, strict=True):
        np.testing.assert_array_equal(array, was)
    assert copied.state[copied.param_groups[0]["params"][0]]["n_iter"] == 5


def as_tensors(torch, value):
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    return [as_tensors(torch, item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("hyper", [{"lr": 0.1}, {"line_search_fn": "strong_wolfe", "max_iter": 6}])
def test_state_moves_to_torch_and_back(hyper):
    torch = pytest.importorskip("torch")
    ours = Run(rosenbrock, (-1.5, 2.0), **hyper)
    ours.step()
    theirs = TorchRun(torch, rosenbrock, ours.param.data, **hyper)
    saved = ours.opt.state_dict()
    saved["state"][0] = {name: as_tensors(torch, v) for name, v in saved["state"][0].items()}
    theirs.opt.load_state_dict(saved)
    ours.step()
    theirs.step()
    np.testing.assert_allclose(ours.param.data, theirs.param.detach(), rtol=1e-10)
    again = Run(rosenbrock, theirs.param.detach().numpy(), **hyper)
    again.opt.load_state_dict(theirs.opt.state_dict())
    again.step()
    theirs.step()
    np.testing.assert_allclose(again.param.data, theirs.param.detach(), rtol=1e-10)
    assert again.calls > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d": None}, r"has no \['d'\]"),
        ({"n_iter": None}, r"has no \['n_iter'\]"),
        ({"d": np.zeros(3)}, "has shape"),
        ({"ro": []}, "different lengths"),
        ({"exp_avg": np.zeros(2)}, "exp_avg"),
    ],
)
def test_refuses_a_state_that_does_not_fit(change, said):
    run = Run(rosenbrock, (-1.5, 2.0), lr=0.1)
    run.step()
    saved = run.opt.state_dict()
    saved["state"][0].update(change)
    before = run.opt.state_dict()
    with pytest.raises(ValueError, match=said):
        run.opt.load_state_dict(saved)
    np.testing.assert_equal(run.opt.state_dict(), before)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("hyper", "said"),
    [
        ({"lr": -1}, "Invalid learning rate"),
        ({"lr": "1"}, "expected a .*number"),
        ({"max_iter": 0}, "Invalid max_iter value: 0"),
        ({"max_iter": 2.5}, "expected a whole number"),
        ({"max_eval": -3}, "Invalid max_eval value"),
        ({"history_size": 0}, "Invalid history_size value"),
        ({"history_size": True}, "expected a whole number"),
        ({"tolerance_grad": -1e-9}, "Invalid tolerance_grad"),
        ({"tolerance_change": float("nan")}, "Invalid tolerance_change"),
        ({"line_search_fn": "armijo"}, "expected None or one of 'strong_wolfe'"),
    ],
)
def test_refuses_impossible_hyper_parameters(hyper, said):
    p = genesis.Parameter(np.ones(3))
    with pytest.raises((ValueError, TypeError), match=said):
        LBFGS([p], **hyper)


def test_refuses_several_groups():
    p, q = genesis.Parameter(np.ones(3)), genesis.Parameter(np.ones(3))
    with pytest.raises(ValueError, match="doesn't support per-parameter options"):
        LBFGS([{"params": [p]}, {"params": [q]}])
    opt = LBFGS([p])
    with pytest.raises(ValueError, match="doesn't support per-parameter options"):
        opt.add_param_group({"params": [q]})
    with pytest.raises(TypeError, match="master_weights"):
        LBFGS([{"params": [p], "master_weights": True}])


def test_refuses_steps_that_it_cannot_do_before_anything_is_written():
    run = Run(rosenbrock, (-1.5, 2.0))
    with pytest.raises(TypeError, match="needs a function"):
        run.opt.step()
    with pytest.raises(TypeError, match="needs a function"):
        run.opt.step(3.0)
    with pytest.raises(ValueError, match="does not take max_norm"):
        run.opt.step(run.closure, max_norm=1.0)
    run.opt.param_groups[0] = {**run.opt.param_groups[0], "lr": -1}
    with pytest.raises(ValueError, match="learning rate"):
        run.opt.step(run.closure)
    assert run.calls == 0
    np.testing.assert_array_equal(run.param.data, [-1.5, 2.0])
    assert not run.opt.state.get(run.param)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_closure_that_fails_leaves_everything_as_it_was(line_search):
    run = Run(rosenbrock, (-1.5, 2.0), lr=0.1, line_search_fn=line_search)
    run.step()
    before = run.param.data.copy(), run.opt.state_dict()
    values = iter([run.closure, run.closure, run.closure])

    def failing():
        closure = next(values, None)
        if closure is None:
            return "no number"
        return closure()

    with pytest.raises(TypeError, match="must return the loss, a number, but returned 'no number'"):
        run.opt.step(failing)
    np.testing.assert_array_equal(run.param.data, before[0])
    np.testing.assert_equal(run.opt.state_dict(), before[1])


@on_cpu_only
def test_refuses_a_sparse_gradient():
    p = genesis.Parameter(np.ones((3, 2)))
    opt = LBFGS([p])

    def closure():
        p.grad = genesis.SparseGrad([1], np.ones((1, 2)))
        return 0.0

    with pytest.raises(TypeError, match="does not support sparse gradients"):
        opt.step(closure)
    np.testing.assert_array_equal(p.data, np.ones((3, 2)))


@on_cpu_only
def test_threads_change_no_bit_and_sums_are_those_of_numpy(small_chunks, num_threads, rng):
    start, other, another = rng.standard_normal((3, 200)).astype(np.float32)
    found = []
    for number in (1, 4, 4):
        num_threads(number)
        vector = start.copy()
        working = genesis.kernels.working(vector)
        sums = working.times(another), working.add_and_multiply(-0.3, other, another)
        working.add(0.7, another)
        found.append((*sums, vector.tobytes()))
    assert found.count(found[0]) == 3
    wide = start.astype(float), other.astype(float), another.astype(float)
    moved = wide[0] - 0.3 * wide[1]
    np.testing.assert_allclose(found[0][:2], [wide[0] @ wide[2], moved @ wide[2]], rtol=1e-5)
    np.testing.assert_allclose(vector, moved + 0.7 * wide[2], rtol=1e-5, atol=1e-6)
