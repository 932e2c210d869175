"""SOAP, Shampoo and Kron against references from their papers, in float64, and what they refuse.

Agreement with packages is in test_packages.py, what they share with all that work by tensor in
test_per_tensor.py.
"""

import itertools
import math

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis.buffers import BFLOAT16
from genesis.optim import SOAP, Kron, Shampoo
from genesis.optim.kron import balanced, normal_numbers, solved, spectral_bound, turned
from genesis.optim.shampoo import inverse_root
from genesis.optim.soap import next_basis

pytestmark = on_cpu_only
CLASSES = [SOAP, Shampoo, Kron]
each_class = pytest.mark.parametrize("cls", CLASSES)
SHAPES = [(10, 5), (4, 9), (7,), (), (3, 4, 2), (2, 3, 2, 2), (1, 6), (0, 3)]


# ---- references: one parameter, as the formulas say ----


def letters(ndim, axis):
    """Indices of a tensor, and the same with another letter at one axis."""
    one = "abcdef"[:ndim]
    return one, one.replace(one[axis], "z")


def outer(g, axis):
    one, other = letters(g.ndim, axis)
    return np.einsum(f"{one},{other}->{one[axis]}z", g, g)


def times(matrix, g, axis):
    one, other = letters(g.ndim, axis)
    return np.einsum(f"z{one[axis]},{one}->{other}", matrix, g)


class SoapReference:
    """Handed the first basis, since in a null space any basis is right."""

    def __init__(self, param, optimizer, parameter, *, shape=None, axes=None, **hyper):
        self.param, self.optimizer, self.parameter = param, optimizer, parameter
        self.shape = param.shape if shape is None else shape
        self.axes = axes
        self.hyper = {
            "lr": 3e-3, "betas": (0.95, 0.95), "shampoo_beta": None, "eps": 1e-8,
            "weight_decay": 0.01, "precondition_frequency": 10, "normalize_grads": False,
            "correct_bias": True, "maximize": False, **hyper,
        }  # fmt: skip
        self.t = 0
        self.m, self.v = np.zeros(self.shape), np.zeros(self.shape)
        self.gg = dict.fromkeys(axes, 0.0)

    def __call__(self, grad):
        h = self.hyper
        b1, b2 = h["betas"]
        bs = b2 if h["shampoo_beta"] is None else h["shampoo_beta"]
        g = (-grad if h["maximize"] else grad).reshape(self.shape)
        if self.t == 0:
            for i in self.axes:
                self.gg[i] = (1 - bs) * outer(g, i)
            state = self.optimizer.state[self.parameter]
            self.q = {i: state[f"Q_{i}"].copy() for i in self.axes}
            self.t = 1
            return
        t = self.t
        m = self.m = b1 * self.m + (1 - b1) * g
        turned_g, turned_m = g, m
        for i, q in self.q.items():
            turned_g, turned_m = times(q.T, turned_g, i), times(q.T, turned_m, i)
        self.v = b2 * self.v + (1 - b2) * turned_g**2
        n = turned_m / (np.sqrt(self.v) + h["eps"])
        for i, q in self.q.items():
            n = times(q, n, i)
        if h["normalize_grads"]:
            n = n / np.sqrt((n**2).mean())
        lr = h["lr"] * (math.sqrt(1 - b2**t) / (1 - b1**t) if h["correct_bias"] else 1)
        shrunk = (1 - h["lr"] * h["weight_decay"]) * self.param
        self.param = shrunk - lr * n.reshape(self.param.shape)
        for i in self.axes:
            self.gg[i] = bs * self.gg[i] + (1 - bs) * outer(g, i)
            if t % h["precondition_frequency"] == 0:
                q = self.q[i]
                order = np.argsort(-np.diag(q.T @ self.gg[i] @ q))
                self.v = np.take(self.v, order, i)
                self.q[i] = np.linalg.qr(self.gg[i] @ q[:, order])[0]
        self.t += 1


class ShampooReference:
    def __init__(self, param, *, shape=None, **hyper):
        self.param = param
        self.shape = param.shape if shape is None else shape
        self.hyper = {
            "lr": 1e-2, "betas": (0.9, 1.0), "eps": 1e-12, "momentum": 0.0, "dampening": 0.0,
            "weight_decay": 0.0, "max_preconditioner_dim": 1024, "precondition_frequency": 1,
            "start_preconditioning_step": None, "exponent_override": None, "use_nesterov": False,
            "use_bias_correction": True, "use_decoupled_weight_decay": True, "grafting": None,
            "grafting_beta2": 0.999, "grafting_eps": 1e-8, "maximize": False, **hyper,
        }  # fmt: skip
        self.t = 0
        self.m, self.b, self.v = 0.0, 0.0, 0.0
        self.factors, self.roots = {}, {}

    def __call__(self, grad):
        h = self.hyper
        self.t += 1
        t, (b1, b2), corrects = self.t, h["betas"], h["use_bias_correction"]
        g = -grad if h["maximize"] else grad
        if not h["use_decoupled_weight_decay"]:
            g = g + h["weight_decay"] * self.param
        self.m = b1 * self.m + (1 - b1) * g
        m = self.m / (1 - b1**t if corrects else 1)
        if h["grafting"] == "adagrad":
            self.v = self.v + g**2
        else:
            self.v = h["grafting_beta2"] * self.v + (1 - h["grafting_beta2"]) * g**2
        v = self.v / (1 - h["grafting_beta2"] ** t) if h["grafting"] == "adam" else self.v
        d = np.sqrt(v) + h["grafting_eps"] if h["grafting"] not in (None, "sgd") else 1.0
        graft, g, m = (each.reshape(self.shape) for each in (m / d, g, m))
        start = h["start_preconditioning_step"] or h["precondition_frequency"]
        due = t == start or (t > start and t % h["precondition_frequency"] == 0)
        p = np.empty(self.shape)
        size = h["max_preconditioner_dim"]
        cuts = [[slice(a, a + size) for a in range(0, n, size)] for n in self.shape]
        for place in itertools.product(*cuts):
            key, piece = str(place), m[place]
            for i in range(len(self.shape)):
                old = self.factors.get((key, i), 0.0)
                new = outer(g[place], i)
                self.factors[key, i] = old + new if b2 == 1 else b2 * old + (1 - b2) * new
                if due:
                    factor = self.factors[key, i] / (1 - b2**t if corrects and b2 < 1 else 1)
                    values, vectors = np.linalg.eigh(factor)
                    values = values - min(values.min(), 0) + h["eps"]
                    power = -(h["exponent_override"] or 1 / (2 * len(self.shape)))
                    self.roots[key, i] = vectors @ np.diag(values**power) @ vectors.T
                if t >= start:
                    piece = times(self.roots[key, i], piece, i)
            if h["grafting"] is not None:
                length = np.linalg.norm(graft[place])
                piece = piece * length / np.linalg.norm(piece) if t >= start else graft[place]
            p[place] = piece
        p = p.reshape(self.param.shape)
        if h["use_decoupled_weight_decay"]:
            p = p + h["weight_decay"] * self.param
        self.b = h["momentum"] * self.b + (1 - h["dampening"]) * p
        ahead = (1 - h["dampening"]) * p + h["momentum"] * self.b
        self.param = self.param - h["lr"] * (ahead if h["use_nesterov"] else self.b)


class KronReference:
    """With whole matrices for all factors, and inverses."""

    def __init__(self, param, number, *, shape=None, diagonal=None, every=1, **hyper):
        self.param, self.number, self.every = param, number, every
        self.shape = (param.shape or (1,)) if shape is None else shape
        self.diagonal = diagonal or [n == 1 or len(self.shape) < 2 for n in self.shape]
        self.hyper = {
            "lr": 3e-4, "b1": 0.9, "weight_decay": 0.0, "momentum_into_precond_update": True,
            "precond_lr": 0.1, "precond_init_scale": 1.0, "seed": 0, "maximize": False, **hyper,
        }  # fmt: skip
        scale = self.hyper["precond_init_scale"] ** (1 / len(self.shape))
        self.q = [scale * np.eye(n) for n in self.shape]
        self.t, self.m, self.since = 0, 0.0, 0

    def __call__(self, grad):
        h = self.hyper
        self.t += 1
        self.since += 1
        g = (-grad if h["maximize"] else grad).reshape(self.shape)
        self.m = h["b1"] * self.m + (1 - h["b1"]) * g
        m = self.m / (1 - h["b1"] ** self.t)
        if self.since >= self.every:
            self.since = 0
            self.fit(m if h["momentum_into_precond_update"] else g)
        p = m
        for i, q in enumerate(self.q):
            p = times(q.T @ q, p, i)
        p = p * min(1, 1.1 / math.sqrt((p**2).mean()))
        p = p.reshape(self.param.shape)
        if self.param.ndim > 1:
            p = p + h["weight_decay"] * self.param
        self.param = self.param - h["lr"] * p

    def fit(self, g):
        h = self.hyper
        noise = normal_numbers(h["seed"], self.number, self.t, self.shape, np.dtype(np.float64))
        a = g + math.sqrt(2.0**-23) * np.abs(g).mean() * noise
        b = noise
        for i, q in enumerate(self.q):
            a, b = times(q, a, i), times(np.linalg.inv(q).T, b, i)
        new = []
        for i, q in enumerate(self.q):
            first, second = outer(a, i), outer(b, i)
            both = first + second
            if self.diagonal[i]:
                step = np.diag(np.diag(first - second)) / np.abs(np.diag(both)).max()
            else:
                column = both[:, np.argmax((both**2).sum(0))]
                image = both @ column
                norm = np.linalg.norm(both @ image) / np.linalg.norm(image)
                step = np.triu(first - second) / norm
            new.append(q - h["precond_lr"] * step @ q)
        self.q = new


def followed(opt, params, references, rng, steps=50):
    """The largest difference of an update from the references', relative to the largest update."""
    begin = [p.data.copy() for p in params]
    for _ in range(steps):
        grads = [rng.standard_normal(p.shape) for p in params]
        for p, grad in zip(params, grads):
            p.grad = grad
        opt.step()
        for reference, grad in zip(references, grads):
            reference(grad)
    errors = [
        np.abs(p.data - r.param).max() / np.abs(r.param - b).max()
        for p, r, b in zip(params, references, begin)
    ]
    return max(errors)


def made(cls, shapes, rng, **hyper):
    params = [genesis.Parameter(rng.standard_normal(shape)) for shape in shapes]
    return params, cls(params, **hyper)


SOAPS = [
    {},
    {"lr": 0.1, "betas": (0.6, 0.8), "shampoo_beta": 0.7, "eps": 1e-3, "weight_decay": 0.3},
    {"precondition_frequency": 1, "normalize_grads": True},
    {"correct_bias": False, "precondition_1d": True, "maximize": True, "precondition_frequency": 7},
    {"max_precond_dim": 4},
]


def soap_references(params, opt, hyper):
    most, vectors = hyper.get("max_precond_dim", 10000), hyper.get("precondition_1d")
    kept = {k: v for k, v in hyper.items() if k not in ("max_precond_dim", "precondition_1d")}
    return [
        SoapReference(
            p.data.copy(), opt, p,
            axes=[i for i, n in enumerate(p.shape) if 1 < n <= most and (p.ndim > 1 or vectors)],
            **kept,
        )
        for p in params
    ]  # fmt: skip


@pytest.mark.parametrize("hyper", SOAPS, ids=str)
def test_soap_follows_its_reference(hyper, rng):
    # Any basis of a null space is right, so that where bases follow from the first gradients already
    # there may be none.
    quick = hyper.get("precondition_frequency") == 1
    shapes = [(5, 5), (3, 4, 2), (7,), ()] if quick else SHAPES[:-1]
    params, opt = made(SOAP, shapes, rng, **hyper)
    assert followed(opt, params, soap_references(params, opt, hyper), rng) < 1e-10


def test_soap_begins_with_eigenvectors_and_moves_nothing(rng):
    for shape in [(6, 6), (10, 3)]:
        p = genesis.Parameter(np.ones(shape))
        p.grad = rng.standard_normal(shape)
        opt = SOAP([p]).step()
        np.testing.assert_array_equal(p.data, np.ones(shape))
        for i, n in enumerate(shape):
            q, gg = opt.state[p][f"Q_{i}"], opt.state[p][f"GG_{i}"]
            np.testing.assert_allclose(gg, 0.05 * outer(p.grad, i), rtol=1e-12)
            np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-13)
            values = np.diag(q.T @ gg @ q)
            np.testing.assert_allclose(q.T @ gg @ q, np.diag(values), atol=1e-13)
            assert np.all(np.diff(values) < 1e-14)


def test_the_basis_comes_nearer_to_the_eigenvectors(rng):
    root = rng.standard_normal((8, 8))
    matrix = root @ np.diag(3.0 ** np.arange(8)) @ root.T
    basis = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    for _ in range(200):
        basis, _ = next_basis(matrix, basis)
    turned_matrix = basis.T @ matrix @ basis
    rest = turned_matrix - np.diag(np.diag(turned_matrix))
    assert np.abs(rest).max() < 1e-9 * np.abs(matrix).max()


@pytest.mark.parametrize(
    ("shape", "most", "merged"),
    [
        ((3, 4, 2), 10000, (24,)),
        ((3, 4, 2), 12, (12, 2)),
        ((10, 3, 2), 6, (10, 6)),
        ((2, 5, 3), 4, (2, 5, 3)),
    ],
)
def test_soap_merges_axes_up_to_a_size(shape, most, merged, rng):
    hyper = {"merge_dims": True, "max_precond_dim": most, "precondition_frequency": 30}
    params, opt = made(SOAP, [shape], rng, **hyper)
    axes = [i for i, n in enumerate(merged) if 1 < n <= most]
    reference = SoapReference(
        params[0].data.copy(), opt, params[0], shape=merged, axes=axes, precondition_frequency=30
    )
    assert followed(opt, params, [reference], rng) < 1e-10
    assert {f"Q_{i}" for i in axes} == {name for name in opt.state[params[0]] if name[0] == "Q"}


SHAMPOOS = [
    {"eps": 1e-6},
    {"betas": (0.6, 0.9), "lr": 0.1, "grafting": "adam", "weight_decay": 0.1},
    {
        "betas": (0.0, 0.8), "use_bias_correction": False, "grafting": "rmsprop", "momentum": 0.7,
        "eps": 1e-4,
    },
    {
        "grafting": "adagrad", "momentum": 0.9, "dampening": 0.3, "use_nesterov": True,
        "max_preconditioner_dim": 3, "eps": 1e-3, "maximize": True,
    },
    {"grafting": "sgd", "precondition_frequency": 4, "start_preconditioning_step": 6, "eps": 1e-3},
    {"weight_decay": 0.2, "use_decoupled_weight_decay": False, "eps": 1e-2},
    {"exponent_override": 0.3, "eps": 1e-2, "precondition_frequency": 5},
]  # fmt: skip


@pytest.mark.parametrize("hyper", SHAMPOOS, ids=str)
def test_shampoo_follows_its_reference(hyper, rng):
    params, opt = made(Shampoo, SHAPES[:-1], rng, use_merge_dims=False, **hyper)
    references = [ShampooReference(p.data.copy(), shape=p.shape or (1,), **hyper) for p in params]
    assert followed(opt, params, references, rng) < 1e-10


@pytest.mark.parametrize(
    ("shape", "most", "merged"),
    [((3, 4, 2), 1024, (24,)), ((3, 1, 4, 2), 12, (12, 2)), ((1, 1), 8, (1,)), ((), 8, (1,))],
)
def test_shampoo_merges_axes_up_to_a_size(shape, most, merged, rng):
    hyper = {"max_preconditioner_dim": most, "grafting": "sgd", "eps": 1e-4}
    params, opt = made(Shampoo, [shape], rng, **hyper)
    reference = ShampooReference(params[0].data.copy(), shape=merged, **hyper)
    assert followed(opt, params, [reference], rng) < 1e-10


def test_shampoo_goes_along_the_gradient_until_it_has_roots(rng):
    p = genesis.Parameter(np.zeros((3, 2)))
    opt = Shampoo([p], lr=0.5, betas=(0.0, 1.0), start_preconditioning_step=3, use_merge_dims=False)
    p.grad = rng.standard_normal((3, 2))
    opt.step().step()
    np.testing.assert_allclose(p.data, -p.grad)
    assert not opt.state[p]["root_0_0"].any()
    before = p.data.copy()
    opt.step()
    assert not np.allclose(p.data - before, -0.5 * p.grad)
    # Roots that are missing, since the setting has changed, are made then.
    other = Shampoo([p], betas=(0.0, 1.0), precondition_frequency=50, use_merge_dims=False).step()
    other.param_groups[0]["start_preconditioning_step"] = 1
    other.step()
    assert other.state[p]["root_0_0"].any()


def test_inverse_roots_of_float32_matrices_keep_small_eigenvalues(rng):
    vectors = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    values = np.logspace(0, -6, 20)
    matrix = ((vectors * values) @ vectors.T).astype(np.float32)
    root = inverse_root(matrix, 0.5, 0.0)
    assert root.dtype == np.float32
    exact = np.linalg.inv(matrix.astype(np.float64))
    found = root.astype(np.float64) @ root
    assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact)


KRONS = [
    {},
    {"lr": 0.1, "b1": 0.6, "weight_decay": 0.3, "precond_lr": 0.3, "precond_init_scale": 3.0},
    {"momentum_into_precond_update": False, "seed": 5, "maximize": True},
]


@pytest.mark.parametrize("hyper", KRONS, ids=str)
def test_kron_follows_its_reference(hyper, rng):
    params, opt = made(Kron, SHAPES[:-1], rng, merge_dims=False, **hyper)
    references = [KronReference(p.data.copy(), i, **hyper) for i, p in enumerate(params)]
    assert followed(opt, params, references, rng) < 1e-10


@pytest.mark.parametrize(
    ("shape", "hyper", "working", "diagonal"),
    [
        ((10, 5), {"memory_save_mode": "one_diag"}, (10, 5), [True, False]),
        ((5, 5), {"memory_save_mode": "one_diag"}, (5, 5), [False, True]),
        ((10, 5), {"memory_save_mode": "smart_one_diag"}, (10, 5), [True, False]),
        ((5, 5), {"memory_save_mode": "smart_one_diag"}, (5, 5), [False, False]),
        ((10, 5), {"memory_save_mode": "all_diag"}, (10, 5), [True, True]),
        ((10, 5), {"max_size_triangular": 7}, (10, 5), [True, False]),
        ((10, 5), {"min_ndim_triangular": 3}, (10, 5), [True, True]),
        ((7,), {"min_ndim_triangular": 1}, (7,), [False]),
        ((3, 4, 2), {}, (3, 8), [False, False]),
        ((2, 3, 8), {}, (6, 8), [False, False]),
        ((4, 3, 2, 2), {}, (4, 12), [False, False]),
    ],
)
def test_which_factors_of_kron_are_triangular(shape, hyper, working, diagonal, rng):
    params, opt = made(Kron, [shape], rng, **hyper)
    reference = KronReference(params[0].data.copy(), 0, shape=working, diagonal=diagonal)
    assert followed(opt, params, [reference], rng, 20) < 1e-10
    shapes = [opt.state[params[0]][f"Q_{i}"].shape for i in range(len(working))]
    assert shapes == [(n,) if d else (n, n) for n, d in zip(working, diagonal)]


def test_how_often_kron_fits_its_preconditioner(rng):
    def steps_of(probability, count=12):
        (p,), opt = made(Kron, [(4, 3)], rng, preconditioner_update_probability=probability)
        found = []
        for step in range(count):
            p.grad = rng.standard_normal((4, 3))
            before = opt.state[p]["Q_0"].copy() if step else None
            opt.step()
            if step and not np.array_equal(opt.state[p]["Q_0"], before):
                found.append(step + 1)
        return found

    assert steps_of(None) == steps_of(1.0) == list(range(2, 13))
    assert steps_of(0.3) == [4, 8, 12]
    assert steps_of(lambda step: 0.5 if step < 6 else 0.25) == [2, 4, 6, 10]
    (p,), opt = made(Kron, [(4, 3)], rng)
    p.grad = np.ones((4, 3))
    opt.step()
    for step, since in ((501, 0), (1195, 1), (9000, 32), (9000, 33)):
        opt.state[p]["step"], opt.state[p]["since_update"] = step - 1, since
        opt.step()
        # exp(-0.694) is less than 1 / 2 by a hair, so that 2 steps are not enough.
        assert opt.state[p]["since_update"] == {0: 0, 1: 2, 32: 33, 33: 0}[since], (step, since)


def test_triangular_matrices_larger_than_a_block(rng):
    for n in (300, 520):
        q = np.triu(rng.standard_normal((n, n))) / n + np.eye(n)
        for shape, axis in (((n, 4), 0), ((4, n), 1), ((2, n, 3), 1)):
            tensor = rng.standard_normal(shape)
            for transposed in (False, True):
                expected = times(q.T if transposed else q, tensor, axis)
                found = turned(q, tensor, axis, transposed=transposed)
                np.testing.assert_allclose(found, expected, atol=1e-12)
            expected = times(np.linalg.inv(q).T, tensor, axis)
            np.testing.assert_allclose(solved(q, tensor, axis), expected, atol=1e-11)
        other = np.triu(rng.standard_normal((n, n)))
        np.testing.assert_allclose(turned(other, q, 0, square=True), other @ q, atol=1e-11)


def test_balancing_and_bounding(rng):
    factors = [1e6 * np.triu(rng.standard_normal((4, 4))), rng.standard_normal(3)]
    after = balanced(factors)
    np.testing.assert_allclose(
        np.kron(after[0], after[1]), np.kron(factors[0], factors[1]), rtol=1e-12
    )
    assert np.abs(after[0]).max() == pytest.approx(np.abs(after[1]).max())
    matrix = outer(rng.standard_normal((6, 9)), 0)
    assert 0.9 < spectral_bound(matrix) / np.linalg.norm(matrix, 2) <= 1 + 1e-12
    assert spectral_bound(np.zeros((2, 2))) == 0


def test_kron_evens_out_its_factors_in_each_hundredth_step(rng):
    (p,), opt = made(Kron, [(4, 3)], rng, precond_lr=0.0)
    p.grad = np.ones((4, 3))
    opt.step()
    opt.state[p]["Q_0"] *= 16
    opt.state[p]["step"] = 98
    opt.step()
    assert opt.state[p]["Q_0"].max() == 16
    opt.step()
    assert opt.state[p]["Q_0"].max() == pytest.approx(4)
    assert opt.state[p]["Q_1"].max() == pytest.approx(4)


def test_random_numbers_of_each_seed_parameter_and_step_are_others():
    streams = itertools.product((0, 1), (0, 1), (1, 2))
    found = [normal_numbers(*key, (3, 50), np.dtype(np.float64)) for key in streams]
    for one, other in itertools.combinations(found, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.4
        assert not np.isin(one, other).any()
    assert abs(np.mean(found)) < 0.1
    assert np.std(found) == pytest.approx(1, abs=0.1)


# ---- what all three promise ----


def run(cls, arrays, grads, groups=1, **hyper):
    params = [genesis.Parameter(array) for array in arrays]
    size = -(-len(params) // groups)
    parts = [{"params": params[i : i + size]} for i in range(0, len(params), size)]
    opt = cls(parts, **hyper)
    for some in grads:
        for p, grad in zip(params, some):
            p.grad = grad
        opt.step()
    return opt


QUICK = {
    SOAP: {"precondition_frequency": 2, "lr": 0.1},
    Shampoo: {
        "grafting": "adam",
        "momentum": 0.5,
        "betas": (0.9, 0.99),
        "max_preconditioner_dim": 8,
    },
    Kron: {"lr": 0.1, "weight_decay": 0.1},
}


def data(rng, dtype=np.float64, steps=5):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    grads = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]
    return arrays, grads


@each_class
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
def test_grouping_threads_and_layout_change_no_bit(cls, dtype, rng):
    arrays, grads = data(rng, dtype)
    one = [array.copy() for array in arrays]
    run(cls, one, grads, **QUICK[cls])
    before = genesis.get_num_threads()
    genesis.set_num_threads(1)
    try:
        for order in ("groups", "strided", "F"):
            others = [array.copy() for array in arrays]
            if order == "strided":
                others = [
                    np.repeat(a[None], 2, 0).T[..., 0].T if a.ndim else a.copy() for a in arrays
                ]
            if order == "F":
                others = [np.array(array, order="F") for array in others]
                grads = [[np.array(grad, order="F") for grad in some] for some in grads]
            run(cls, others, grads, groups=3 if order == "groups" else 1, **QUICK[cls])
            for mine, other in zip(one, others):
                assert np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(other).tobytes()
    finally:
        genesis.set_num_threads(before)


@each_class
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16], ids=str)
def test_a_resumed_run_is_the_same_to_the_last_bit(cls, dtype, rng, tmp_path):
    arrays, grads = data(rng, dtype, 8)
    whole = [array.copy() for array in arrays]
    run(cls, whole, grads, **QUICK[cls])
    opt = run(cls, arrays, grads[:5], **QUICK[cls])
    genesis.save(opt.state_dict(), tmp_path / "state")
    params = [genesis.Parameter(array) for array in arrays]
    again = cls(params, **QUICK[cls])
    again.load_state_dict(genesis.load(tmp_path / "state"))
    for some in grads[5:]:
        for p, grad in zip(params, some):
            p.grad = grad
        again.step()
    for array, expected in zip(arrays, whole):
        assert array.tobytes() == expected.tobytes()


@each_class
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_16_bit_parameters_are_updated_in_float32_beside_float32_matrices(cls, dtype, rng):
    arrays, grads = data(rng, dtype, 2)
    exact = [array.astype(np.float32) for array in arrays]
    hyper = {**QUICK[cls], "lr": 0.01}
    opt = run(cls, arrays, grads, **hyper)
    other = run(cls, exact, [[g.astype(np.float32) for g in some] for some in grads], **hyper)
    for array, expected in zip(arrays, exact):
        np.testing.assert_allclose(array.astype(np.float32), expected, rtol=0.02, atol=0.02)
    pairs = zip(opt.state.values(), other.state.values())
    for entries, others in pairs:
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                is_matrix = name.partition("_")[0] in cls._kinds
                assert value.dtype == (np.float32 if is_matrix else dtype)
                assert others[name].dtype == np.float32


@each_class
def test_clipping_is_that_of_gradients_clipped_before(cls, rng):
    arrays, grads = data(rng, steps=4)
    others = [array.copy() for array in arrays]
    opt = cls([genesis.Parameter(array) for array in arrays], **QUICK[cls])
    other = cls([genesis.Parameter(array) for array in others], **QUICK[cls])
    for i, some in enumerate(grads):
        limited = [np.clip(grad, -0.3, 0.3) for grad in some]
        if i % 2:
            norm = math.sqrt(sum((grad**2).sum() for grad in some))
            limited = [grad * (0.5 / (norm + 1e-6)) for grad in some]
        for optimizer, values in ((opt, some), (other, limited)):
            for p, grad in zip(optimizer.param_groups[0]["params"], values):
                p.grad = grad
        opt.step(**({"max_norm": 0.5} if i % 2 else {"clip_value": 0.3}))
        other.step()
    for array, expected in zip(arrays, others):
        np.testing.assert_allclose(array, expected, rtol=1e-9, atol=1e-9)


# ---- what is refused ----


def untouched(opt, call, error, match):
    before = {p: p.data.tobytes() for p in opt._parameters()}
    state = repr(opt.state_dict())
    with pytest.raises(error, match=match):
        call()
    assert {p: p.data.tobytes() for p in before} == before
    assert repr(opt.state_dict()) == state


@each_class
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_refused_before_anything_is_written(cls, steps, bad, rng):
    params, opt = made(cls, [(4, 3), (3, 5)], rng, **QUICK[cls])
    for _ in range(steps):
        for p in params:
            p.grad = rng.standard_normal(p.shape)
        opt.step()
    params[0].grad = np.ones((4, 3))
    params[1].grad = np.ones((3, 5))
    params[1].grad[1, 2] = bad
    said = f"{cls.__name__} cannot update parameter 1: its gradient holds inf or NaN.*GradScaler"
    untouched(opt, opt.step, ValueError, said)
    scaler = genesis.amp.GradScaler(1.0)
    assert scaler.step(opt) is None
    assert opt.step_skipped


@each_class
def test_damaged_matrices_are_refused_before_anything_is_written(cls, rng):
    (p,), opt = made(cls, [(4, 3)], rng, **QUICK[cls])
    p.grad = rng.standard_normal((4, 3))
    opt.step().step()
    name = next(name for name in opt.state[p] if name.partition("_")[0] in cls._kinds[-1:])
    if cls is Shampoo:
        name = name.replace("root", "factor")
    good = opt.state[p][name].copy()
    for damaged in (np.full_like(good, np.nan), np.full_like(good, np.inf)):
        opt.state[p][name] = damaged
        untouched(
            opt, opt.step, ValueError, f"{cls.__name__} cannot update parameter 0: .*inf or NaN"
        )
    opt.state[p][name] = good
    opt.step()


def test_a_singular_factor_of_kron_is_refused(rng):
    (p,), opt = made(Kron, [(4, 3)], rng)
    p.grad = rng.standard_normal((4, 3))
    opt.step()
    opt.state[p]["Q_1"][:] = 0
    untouched(opt, opt.step, ValueError, "Kron cannot update parameter 0: Singular matrix")


def test_a_root_of_a_singular_matrix_is_refused(rng):
    (p,), opt = made(Shampoo, [(4, 3)], rng, eps=0.0, use_merge_dims=False)
    p.grad = np.zeros((4, 3))
    said = "Shampoo cannot update parameter 0: state 'root_0_0' holds inf or NaN.*take a larger eps"
    untouched(opt, opt.step, ValueError, said)


@pytest.mark.parametrize("cls", [SOAP, Shampoo])
def test_products_that_overflow_are_refused(cls, rng):
    params, opt = made(cls, [(2, 2)], rng)
    params[0].grad = np.full((2, 2), 1e200)
    untouched(opt, opt.step, ValueError, "the product of its gradient with itself holds inf or NaN")


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (SOAP, {"max_precond_dim": 3}),
        (SOAP, {"merge_dims": True}),
        (Shampoo, {"max_preconditioner_dim": 3}),
        (Shampoo, {"use_merge_dims": False}),
    ],
)
def test_settings_that_state_does_not_suit_are_refused(cls, setting, rng):
    params, opt = made(cls, [(4, 3), (2, 2)], rng)
    for p in params:
        p.grad = np.ones(p.shape)
    opt.step()
    saved = opt.state_dict()
    opt.param_groups[0].update(setting)
    said = "the state of parameter 0 has the matrices .*optimizer.state.pop"
    untouched(opt, opt.step, ValueError, said)
    other = cls([genesis.Parameter(p.data.copy()) for p in params])
    saved["param_groups"][0].update(setting)
    said = "parameter 0 in the loaded state dict has the matrices"
    untouched(other, lambda: other.load_state_dict(saved), ValueError, said)
    for p in params:
        opt.state.pop(p)
    opt.step()


def test_shapes_that_the_settings_do_not_suit_are_refused(rng):
    (p,), opt = made(Kron, [(4, 3)], rng)
    p.grad = np.ones((4, 3))
    saved = opt.step().state_dict()
    opt.param_groups[0]["memory_save_mode"] = "all_diag"
    said = r"state 'Q_0' of parameter 0 has shape \(4, 4\), but its place has shape \(4,\)"
    untouched(opt, opt.step, ValueError, said)
    saved["param_groups"][0]["memory_save_mode"] = "all_diag"
    other = Kron([genesis.Parameter(np.ones((4, 3)))])
    said = r"loaded state 'Q_0' of parameter 0 has shape \(4, 4\), but its place has shape \(4,\)"
    untouched(other, lambda: other.load_state_dict(saved), ValueError, said)


@each_class
def test_sparse_gradients_are_refused(cls):
    p, q = genesis.Parameter(np.ones((2, 2))), genesis.Parameter(np.ones((2, 2)))
    opt = cls([p, q])
    p.grad = np.ones((2, 2))
    q.grad = genesis.SparseGrad([0], np.ones((1, 2)))
    said = f"{cls.__name__} does not support sparse gradients"
    untouched(opt, opt.step, TypeError, said)


@pytest.mark.parametrize(
    ("cls", "hyper", "said"),
    [
        (SOAP, {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        (SOAP, {"shampoo_beta": 1.0}, r"Invalid shampoo_beta value: 1.0.*\[0, 1\), or None"),
        (SOAP, {"precondition_frequency": 0}, "Invalid precondition_frequency value: 0"),
        (SOAP, {"max_precond_dim": 0}, "Invalid max_precond_dim value: 0"),
        (SOAP, {"merge_dims": 1}, "expected True or False"),
        (Shampoo, {"betas": (0.9, 0.0)}, "Invalid beta parameter at index 1: 0.0"),
        (Shampoo, {"betas": (0.9, 1.1)}, "Invalid beta parameter at index 1: 1.1"),
        (Shampoo, {"grafting": "lars"}, "expected None or one of 'sgd', 'adagrad'"),
        (Shampoo, {"start_preconditioning_step": 0}, "Invalid start_preconditioning_step value: 0"),
        (Shampoo, {"exponent_override": 0}, "Invalid exponent_override value: 0"),
        (Shampoo, {"use_nesterov": True}, "Invalid use_nesterov: True, expected False where"),
        (Kron, {"preconditioner_update_probability": 0}, r"expected a number in \(0, 1\], or None"),
        (Kron, {"precond_init_scale": 0}, "Invalid precond_init_scale value: 0"),
        (Kron, {"memory_save_mode": "two_diag"}, "expected None or one of 'one_diag'"),
        (Kron, {"seed": -1}, "Invalid seed value: -1"),
        (Kron, {"max_size_triangular": 1.5}, "Invalid max_size_triangular value: 1.5"),
    ],
)
def test_refuses_impossible_hyper_parameters(cls, hyper, said):
    p = genesis.Parameter(np.ones((2, 2)))
    with pytest.raises((ValueError, TypeError), match=said):
        cls([p], **hyper)
    opt = cls([p])
    with pytest.raises((ValueError, TypeError), match=said):
        opt.add_param_group({"params": [genesis.Parameter(np.ones(3))], **hyper})
    p.grad = np.ones((2, 2))
    dict.update(opt.param_groups[0], hyper)  # past the group's own check
    untouched(opt, opt.step, (ValueError, TypeError), said)
