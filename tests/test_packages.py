"""Optimizers that torch has not, beside the packages from which people take them.

The rows of the table that name a package run here for 50 steps beside it. Where it does something else
than the paper, which the docstring of the optimizer says, it is handed what makes up for exactly that:
everything else has to agree. What such a row cannot show is shown by the reference in test_updates.py.

The packages are no dependencies. Without them these tests are skipped: `tox run -e packages` installs
them, and fails if any test is skipped.
"""

import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from cases import CASES, Case
from devices import on_cpu_only
from packages import PEERS, SHAPES, Peer, renamed, state_of

import genesis

pytestmark = [pytest.mark.torch, on_cpu_only]

STEPS = 50
TOLERANCES = {np.float64: 1e-10, np.float32: 5e-6}


def package(name):
    """The package, if it is installed."""
    missing = [each for each in ("torch", name) if find_spec(each) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: tox run -e packages")
    return __import__(name)


ROWS = [case for case in CASES if case.peer not in ("torch", None)]


def updates(case, peer, dtype, steps=STEPS, after=None, **changed):
    """How far genesis and the peer have moved each parameter, in float64; `after` is called for both.

    Parameters begin small beside the updates, so that in float32 their rounding hides none of these.
    """
    import torch

    rng = np.random.default_rng(5)
    hyper = {**case.hyper, **peer.apart}
    factor = peer.factor(hyper) if peer.factor else 1
    arrays = [(0.01 * rng.standard_normal(shape)).astype(dtype) for shape in peer.shapes]
    begin = [array.astype(np.float64) for array in arrays]
    params = [genesis.Parameter(array) for array in arrays]
    tensors = [torch.tensor(array * dtype(factor), requires_grad=True) for array in arrays]
    ours = getattr(genesis.optim, case.name)(params, **{**hyper, **changed})
    theirs = peer.make(tensors, hyper)
    for step in range(1, steps + 1):
        grads = [
            peer.size * rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape)
            for shape in peer.shapes
        ]
        for param, tensor, grad in zip(params, tensors, grads):
            param.grad = grad.astype(dtype)
            tensor.grad = torch.tensor(param.grad)
        ours.step()
        if peer.handed:
            peer.handed(ours, theirs, step)
        if peer.before:
            peer.before(theirs, step, [tensor.grad.clone() for tensor in tensors])
        theirs.step()
    for optimizer in (ours, theirs) if after else ():
        after(optimizer)
    found = [tensor.detach().numpy().astype(np.float64) / factor for tensor in tensors]
    return (
        [param.data.astype(np.float64) - before for param, before in zip(params, begin)],
        [after - before for after, before in zip(found, begin)],
    )


def error(case, peer, dtype, **others):
    """The largest difference, relative to the largest update."""
    pairs = zip(*updates(case, peer, dtype, **others))
    return max(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)) for ours, theirs in pairs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.id)
def test_50_steps_follow_the_package(case, dtype):
    package(case.peer)
    assert error(case, PEERS[case.name], dtype) < TOLERANCES[dtype]


@pytest.mark.parametrize("growth_rate", [float("inf"), 1.2])
@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam"])
def test_50_steps_in_which_the_learning_rate_is_found_follow_the_package(name, growth_rate):
    """Gradients at random, as above, say nothing of the way to go."""
    torch, case = package("torch"), next(case for case in ROWS if case.name == name)
    package(case.peer)
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    params = [genesis.Parameter(array.copy()) for array in arrays]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    hyper = {"d0": 1e-4, "growth_rate": growth_rate}
    ours = getattr(genesis.optim, name)([{"params": params[:1]}, {"params": params[1:]}], **hyper)
    theirs = PEERS[name].make(tensors, hyper)
    for _ in range(STEPS):
        for param, tensor in zip(params, tensors):
            param.grad = param.data - 1
            tensor.grad = tensor.detach() - 1
        ours.step()
        theirs.step()
    found = ours.state[params[0]]["d"]
    assert found > 1e-3
    assert abs(found / theirs.param_groups[0]["d"] - 1) < 1e-10
    for param, tensor, array in zip(params, tensors, arrays):
        change = tensor.detach().numpy() - array
        assert np.max(np.abs(param.data - array - change)) < 1e-10 * np.max(np.abs(change))


def test_every_optimizer_that_torch_has_not_has_a_peer_here():
    others = {case.name for case in CASES} - {case.name for case in CASES if case.peer == "torch"}
    assert others <= {case.name for case in ROWS} == PEERS.keys()


CHANGED = {
    "Adam": {"weight_decay": 0.1 * (1 + 1e-6)},
    "AdamW": {"betas": (0.9 * (1 + 1e-7), 0.999)},
    "Lion": {"lr": 1e-4 * (1 + 1e-7)},
    "SignSGD": {"lr": 1e-3 * (1 + 1e-7)},
    "AdEMAMix": {"alpha": 5 * (1 + 1e-7)},
    "ADOPT": {"betas": (0.9 * (1 + 1e-7), 0.9999)},
    "Adan": {"betas": (0.98, 0.92 * (1 + 1e-7), 0.99)},
    "MARS": {"gamma": 0.025 * (1 + 1e-7)},
    "LAMB": {"weight_decay": 0.1 * (1 + 1e-6)},
    "LARS": {"trust_coefficient": 1e-3 * (1 + 1e-7)},
    "StableAdamW": {"betas": (0.9, 0.99 * (1 + 1e-7))},
    "AdaBelief": {"betas": (0.9, 0.999 * (1 + 1e-7))},
    "Yogi": {"betas": (0.9, 0.999 * (1 + 1e-7))},
    "LaProp": {"betas": (0.9 * (1 + 1e-7), 0.999)},
    "FTRL": {"lambda_2": 1e-7},
    "AdaBound": {"gamma": 1e-3 * (1 + 1e-7)},
    "NovoGrad": {"betas": (0.95 * (1 + 1e-7), 0.98)},
    "Prodigy": {"betas": (0.9, 0.999 * (1 + 1e-7))},
    "DAdaptAdam": {"betas": (0.9, 0.999 * (1 + 1e-7))},
    "DoG": {"reps_rel": 1e-2 * (1 + 1e-7)},
    "LDoG": {"weight_decay": 0.1 * (1 + 1e-6)},
    "ScheduleFreeSGD": {"momentum": 0.9 * (1 + 1e-7)},
    "ScheduleFreeAdamW": {"betas": (0.9 * (1 + 1e-7), 0.999)},
    "ScheduleFreeRAdam": {"betas": (0.9, 0.999 * (1 + 1e-7))},
}


@pytest.mark.parametrize("name", CHANGED)
def test_the_tolerance_sees_a_changed_coefficient(name):
    case = next(case for case in ROWS if case.name == name)
    package(case.peer)
    assert error(case, PEERS[name], np.float64, **CHANGED[name]) > TOLERANCES[np.float64]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
def test_50_steps_of_lion_follow_lion_pytorch(dtype):
    lion_pytorch = package("lion_pytorch")
    peer = Peer(lambda tensors, hyper: lion_pytorch.Lion(tensors, **hyper))
    case = Case("Lion", {"lr": 0.01, "betas": (0.7, 0.95), "weight_decay": 0.3})
    assert error(case, peer, dtype) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
def test_50_steps_of_adan_follow_adan_pytorch_but_for_the_first_gradient(dtype):
    """Which the package leaves out: it is handed the state after the first step, and that step."""
    adan_pytorch = package("adan_pytorch")
    hyper = {"lr": 0.01, "betas": (0.9, 0.8, 0.95), "weight_decay": 0.3}
    enters = tuple(1 - beta for beta in hyper["betas"])
    shrunk = 1 + hyper["lr"] * hyper["weight_decay"]

    def make(tensors, hyper):
        return adan_pytorch.Adan(tensors, **{**hyper, "betas": enters})

    def first_gradient(optimizer, step, grads):
        if step == 1:
            optimizer.first = grads
        elif step == 2:
            (group,) = optimizer.param_groups
            for tensor, grad in zip(group["params"], optimizer.first):
                state = optimizer.state[tensor]
                state["m"].copy_(enters[0] * grad)
                state["n"].copy_(enters[2] * grad * grad)
                tensor.data -= hyper["lr"] * grad / (grad.abs() + 1e-8) / shrunk

    assert error(Case("Adan", hyper), Peer(make, first_gradient), dtype) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    "case", [case for case in ROWS if case.peer == "schedulefree"], ids=lambda case: case.id
)
def test_what_schedule_free_optimizers_show_in_eval_mode_is_what_the_package_shows(case, dtype):
    """After 50 steps with an evaluation in between, where the package moves parameters by rounding."""
    package(case.peer)
    peer = PEERS[case.name]

    def evaluated(optimizer, step, grads):
        peer.before(optimizer, step, grads)
        if step == 20:
            optimizer.eval()
            optimizer.train()

    ours, theirs = updates(case, Peer(peer.make, evaluated), dtype, after=lambda each: each.eval())
    worst = max(np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(ours, theirs))
    assert worst < TOLERANCES[dtype]


# ---- SOAP, Shampoo, Kron ----


class Double:
    """torch, which is asked for float32 and gives float64."""

    def __getattr__(self, name):
        import torch

        return getattr(torch, "float64" if name == "float32" else name)


def first_bases():
    """`handed`: the package's SOAP begins with the same eigenvectors, which a null space leaves open."""
    begun = {}

    def handed(ours, theirs, step):
        import torch

        tensors = theirs.param_groups[0]["params"]
        for parameter, tensor in zip(ours.param_groups[0]["params"], tensors):
            state = ours.state[parameter]
            if step == 1:
                begun[parameter] = {
                    name: value.copy() for name, value in state.items() if name[0] == "Q"
                }
            elif step == 2:
                for name, basis in begun[parameter].items():
                    theirs.state[tensor]["Q"][int(name[2:])] = torch.tensor(basis)

    return handed


def soap(tensors, hyper):
    names = {"max_precond_dim": "max_precondition_dim", "normalize_grads": "normalize_gradient"}
    return renamed("SOAP", names)(tensors, hyper)


def shrunk_after(hyper):
    return 1 - hyper.get("lr", 3e-3) * hyper.get("weight_decay", 0.01)


SOAPS = [
    {},
    {"lr": 0.1, "betas": (0.7, 0.9), "shampoo_beta": 0.8, "eps": 1e-3, "weight_decay": 0.3},
    {"precondition_1d": True, "maximize": True, "correct_bias": False, "max_precond_dim": 9},
    {"merge_dims": True, "max_precond_dim": 12, "normalize_grads": True, "eps": 1e-14},
]


def soap_error(hyper, dtype, monkeypatch, **changed):
    package("pytorch_optimizer")
    from pytorch_optimizer.optimizer import soap as module

    if dtype is np.float64:  # it factorizes in float32, whatever the parameter
        monkeypatch.setattr(module, "torch", Double())
    # It cannot merge the only axis of a vector. A vector's products are of full rank after 7 gradients.
    shapes = [(10, 5), (3, 4, 2)] if hyper.get("merge_dims") else SHAPES
    peer = Peer(soap, None, shrunk_after, shapes=shapes, handed=first_bases())
    return error(Case("SOAP", hyper), peer, dtype, **changed)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("hyper", SOAPS, ids=str)
def test_50_steps_of_soap_follow_pytorch_optimizer(hyper, dtype, monkeypatch):
    assert soap_error(hyper, dtype, monkeypatch) < TOLERANCES[dtype]


def scalable(tensors, hyper):
    """`make` for its ScalableShampoo, whose betas are those of the momentum and of the products."""
    import pytorch_optimizer

    grafts = {None: 0, "sgd": 1, "adagrad": 2, "rmsprop": 3}
    frequency = hyper.get("precondition_frequency", 1)
    optimizer = pytorch_optimizer.ScalableShampoo(
        tensors,
        lr=hyper["lr"],
        weight_decay=hyper.get("weight_decay", 0.0),
        decoupled_weight_decay=True,
        start_preconditioning_step=frequency,
        preconditioning_compute_steps=frequency,
        block_size=hyper.get("max_preconditioner_dim", 1024),
        shape_interpretation=False,
        graft_type=grafts[hyper.get("grafting")],
        nesterov=hyper.get("use_nesterov", False),
        diagonal_eps=hyper.get("grafting_eps", 1e-8),
        matrix_eps=hyper["eps"],
        use_svd=True,
        maximize=hyper.get("maximize", False),
        foreach=False,
    )
    # It refuses 1 for the second, though it knows what to do with it.
    optimizer.param_groups[0]["betas"] = (hyper.get("momentum", 0.0), hyper["betas"][1])
    return optimizer


def epsilon_stays(optimizer, step, grads):
    """It is added to the products at the beginning, and decays with them."""
    import torch

    group, states = state_of(optimizer)
    _, beta = group["betas"]
    for state in states if step > 1 else ():
        preconditioner = state["pre_conditioner"]
        for matrix in preconditioner.statistics:
            matrix += preconditioner.matrix_eps * (1 / beta - 1) * torch.eye(len(matrix))
    for state in states if step == 1 else ():
        for matrix in state["pre_conditioner"].statistics:
            matrix /= beta


SCALABLES = [
    {"betas": (0.0, 1.0), "max_preconditioner_dim": 4},
    {"betas": (0.0, 1.0), "grafting": "adagrad", "weight_decay": 0.1, "maximize": True},
    {"betas": (0.0, 1.0), "grafting": "sgd", "precondition_frequency": 5},
    {
        "betas": (0.0, 0.9), "grafting": "rmsprop", "grafting_beta2": 0.9, "momentum": 0.8,
        "use_nesterov": True, "use_bias_correction": False,
    },
]  # fmt: skip


def scalable_error(hyper, dtype, **changed):
    package("pytorch_optimizer")
    common = {"lr": 0.1, "eps": 1e-4, "use_merge_dims": False, **hyper}
    peer = Peer(scalable, epsilon_stays, shapes=[(10, 5), (3, 4, 2)])
    return error(Case("Shampoo", common), peer, dtype, **changed)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("hyper", SCALABLES, ids=str)
def test_50_steps_of_shampoo_follow_pytorch_optimizer_where_settings_mean_the_same(hyper, dtype):
    assert scalable_error(hyper, dtype) < TOLERANCES[dtype]


def original_error(dtype, **changed):
    package("pytorch_optimizer")
    hyper = {
        "lr": 0.1, "betas": (0.0, 1.0), "eps": 1e-2, "weight_decay": 0.1,
        "use_decoupled_weight_decay": False, "use_merge_dims": False,
    }  # fmt: skip

    def make(tensors, hyper):
        import pytorch_optimizer

        return pytorch_optimizer.Shampoo(
            tensors, lr=hyper["lr"], weight_decay=hyper["weight_decay"], matrix_eps=hyper["eps"]
        )

    return error(Case("Shampoo", hyper), Peer(make, shapes=[(10, 5), (7,)]), dtype, **changed)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
def test_50_steps_of_the_first_shampoo_follow_pytorch_optimizer(dtype):
    assert original_error(dtype) < TOLERANCES[dtype]


KRONS = [
    {},
    {"lr": 0.1, "b1": 0.7, "weight_decay": 0.3, "precond_lr": 0.3, "precond_init_scale": 3.0},
    {"memory_save_mode": "one_diag", "preconditioner_update_probability": 0.3},
    {"merge_dims": False, "momentum_into_precond_update": False, "max_size_triangular": 8},
]


class Never:
    """What the package's Kron draws lots with."""

    def random(self):
        return 1.0


def kron_error(hyper, dtype, monkeypatch, **changed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, which it imports
        kron_torch, torch = package("kron_torch"), package("torch")
    from kron_torch import kron as module

    from genesis.optim.kron import normal_numbers, working_shape

    noises = []
    made_of = module._calc_A_and_conjB
    # It would write the noise into the momentum, and solve in float32 whatever the parameter.
    monkeypatch.setattr(module, "_calc_A_and_conjB", lambda e, g, q: made_of(e, g.clone(), q))
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noises.pop(0))
    if dtype is np.float64:
        monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)

    def make(tensors, hyper):
        kind = torch.float64 if dtype is np.float64 else torch.float32
        optimizer = kron_torch.Kron(tensors, precond_dtype=kind, **hyper)
        optimizer.rng = Never()
        return optimizer

    def handed(ours, theirs, step):
        group = ours.param_groups[0]
        for number, parameter in enumerate(group["params"]):
            if ours.state[parameter]["since_update"] == 0:
                shape = working_shape(group, parameter.shape)
                key = (group["seed"], number, step, shape, parameter.data.dtype)
                noises.append(torch.tensor(normal_numbers(*key)))

    peer = Peer(make, shapes=[(10, 5), (7,), (2, 3, 8)], handed=handed)
    with torch.compiler.set_stance("force_eager"):
        found = error(Case("Kron", hyper), peer, dtype, **changed)
    assert not noises
    return found


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("hyper", KRONS, ids=str)
def test_50_steps_of_kron_follow_kron_torch(hyper, dtype, monkeypatch, capsys):
    assert kron_error(hyper, dtype, monkeypatch) < TOLERANCES[dtype]


def test_the_tolerance_of_those_with_matrices_sees_a_changed_coefficient(monkeypatch, capsys):
    tolerance = TOLERANCES[np.float64]
    assert soap_error({}, np.float64, monkeypatch, shampoo_beta=0.95 * (1 + 1e-6)) > tolerance
    assert scalable_error(SCALABLES[0], np.float64, eps=1e-4 * (1 + 1e-6)) > tolerance
    assert original_error(np.float64, eps=1e-2 * (1 + 1e-7)) > tolerance
    assert kron_error({}, np.float64, monkeypatch, precond_lr=0.1 * (1 + 1e-7)) > tolerance


def wrapped(make, theirs_of, evaluate, steps=STEPS):
    """How far a wrapper of AdamW is from the package's, relative to the largest update.

    Args:
        make: the wrapper for an optimizer of genesis.
        theirs_of: the package's for tensors.
        evaluate: `evaluate(theirs, backward)`, one step of it.
    """
    import torch

    def gradient(value, center):
        return (value - center) * (1 + (value - center) ** 2)

    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape) for shape in SHAPES]
    params = [genesis.Parameter(array.copy()) for array in arrays]
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    ours = make(genesis.optim.AdamW(params, lr=0.02))
    theirs = theirs_of(tensors)
    for _ in range(steps):
        centers = [rng.standard_normal(shape) for shape in SHAPES]

        def backward(centers=centers):
            for tensor, center in zip(tensors, centers):
                tensor.grad = gradient(tensor.detach(), torch.tensor(center))

        def closure(centers=centers):
            return 0.0, [gradient(p.data, center) for p, center in zip(params, centers)]

        ours.step(closure)
        evaluate(theirs, backward)
    pairs = zip(params, tensors, arrays)
    return max(
        np.max(np.abs(p.data - t.detach().numpy())) / np.max(np.abs(p.data - a))
        for p, t, a in pairs
    )


def test_50_steps_of_lookahead_follow_pytorch_optimizer():
    pytorch_optimizer, torch = package("pytorch_optimizer"), package("torch")

    def theirs(tensors):
        inner = torch.optim.AdamW(tensors, lr=0.02)
        return pytorch_optimizer.Lookahead(inner, k=4, alpha=0.3, pullback_momentum="none")

    def evaluate(theirs, backward):
        backward()
        theirs.step()

    def distance(alpha):
        return wrapped(lambda o: genesis.optim.Lookahead(o, 4, alpha), theirs, evaluate)

    assert distance(0.3) < 1e-10
    assert distance(0.3 * (1 + 1e-7)) > 1e-10


@pytest.mark.parametrize("adaptive", [False, True])
def test_50_steps_of_sam_follow_pytorch_optimizer(adaptive):
    """Whose norm is a float32, so that it can be seen to seven digits only."""
    pytorch_optimizer, torch = package("pytorch_optimizer"), package("torch")

    def theirs(tensors):
        return pytorch_optimizer.SAM(
            tensors, torch.optim.AdamW, rho=0.2, adaptive=adaptive, lr=0.02, foreach=False
        )

    def evaluate(theirs, backward):
        backward()
        theirs.first_step()
        backward()
        theirs.second_step()

    def distance(rho):
        return wrapped(lambda o: genesis.optim.SAM(o, rho, adaptive), theirs, evaluate)

    assert distance(0.2) < 1e-7
    assert distance(0.2 * (1 + 1e-4)) > 1e-7


# ---- CAME, AdamMini, GaLoreAdamW: no rows of the table ----

CAME_SETTINGS = [
    {"lr": 1e-3},
    {"lr": 0.01, "weight_decay": 0.3, "betas": (0.3, 0.7, 0.6), "eps": (1e-3, 1e-4)},
    {"lr": 0.01, "clip_threshold": 0.5},
]


def came():
    """The package of CAME's authors."""
    came_pytorch = package("came_pytorch")
    return Peer(lambda tensors, hyper: came_pytorch.CAME(tensors, **hyper))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("hyper", CAME_SETTINGS, ids=str)
def test_50_steps_of_came_follow_came_pytorch(hyper, dtype):
    assert error(Case("CAME", hyper), came(), dtype) < TOLERANCES[dtype]


def test_the_tolerance_sees_a_changed_coefficient_of_came():
    changed = {"betas": (0.9, 0.999, 0.9999 - 1e-9)}
    assert error(Case("CAME", CAME_SETTINGS[0]), came(), np.float64, **changed) > 1e-10


class OfType:
    """torch, but what it calls float32 is another type."""

    def __init__(self, dtype):
        import torch

        self.float32, self._torch = dtype, torch

    def __getattr__(self, name):
        return getattr(self._torch, name)


def adam_mini(name, shapes, embeds=8, heads=4):
    """It goes by names, and wants a model that has them."""

    def make(tensors, hyper):
        import pytorch_optimizer

        class Model:
            def named_parameters(self):
                return [(f"layers.{i}.{name}", tensor) for i, tensor in enumerate(tensors)]

        given = {key: value for key, value in hyper.items() if key != "blocks"}
        return pytorch_optimizer.AdamMini(
            Model(), num_embeds=embeds, num_heads=heads, foreach=False, **given
        )

    return Peer(make, shapes=shapes)


MINI_SETTINGS = [
    ({"blocks": "tensor"}, adam_mini("mlp.weight", SHAPES)),
    ({"blocks": 4, "maximize": True}, adam_mini("q_proj.weight", [(8, 8)])),
    ({"blocks": "row"}, adam_mini("k_proj.weight", [(8, 8)], heads=8)),
]


@pytest.fixture
def type_of_averages(monkeypatch):
    """A function by which AdamMini's averages in the package, float32 otherwise, are of a type."""
    package("pytorch_optimizer")
    import torch
    from pytorch_optimizer.optimizer import adam_mini

    before = torch.get_default_dtype()

    def set_type(dtype):
        wanted = torch.float64 if dtype is np.float64 else torch.float32
        torch.set_default_dtype(wanted)
        monkeypatch.setattr(adam_mini, "torch", OfType(wanted))

    yield set_type
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(("hyper", "peer"), MINI_SETTINGS, ids=lambda value: str(value)[:24])
def test_50_steps_of_adam_mini_follow_pytorch_optimizer(hyper, peer, dtype, type_of_averages):
    type_of_averages(dtype)
    case = Case("AdamMini", {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.95), **hyper})
    assert error(case, peer, dtype) < TOLERANCES[dtype]


def test_the_tolerance_sees_a_changed_coefficient_of_adam_mini(type_of_averages):
    type_of_averages(np.float64)
    hyper, peer = MINI_SETTINGS[1]
    case = Case("AdamMini", {"lr": 0.01, "weight_decay": 0.3, **hyper})
    assert error(case, peer, np.float64, betas=(0.9, 0.999 * (1 + 1e-8))) > 1e-10


def galore(gap):
    """Its epsilon is added before the correction; it shrinks the parameter after the update, as genesis
    does one that is larger by a factor; and it counts updates from 1 where the paper does from 0."""

    def make(tensors, hyper):
        import pytorch_optimizer

        names = "rank", "update_proj_gap", "scale"
        group = {name: hyper[name] for name in names}
        others = {name: value for name, value in hyper.items() if name not in names}
        group = {"params": tensors, "projection_type": "std", **group}
        return pytorch_optimizer.GaLore([group], foreach=False, **others)

    def counted_from_zero(optimizer, step, grads):
        if step != 2:
            return
        for state in optimizer.state.values():
            if "projector" in state:
                projector = state["projector"]
                project = projector.project
                projector.project = lambda grad, steps, project=project: project(grad, steps - 1)

    return Peer(
        make,
        counted_from_zero,
        lambda hyper: 1 - hyper.get("lr") * hyper.get("weight_decay", 0),
        {"eps": 0.0, "update_proj_gap": gap},
        shapes=[(10, 5), (4, 9), (7,), (3, 4, 2)],
    )


@pytest.fixture
def signed_vectors(monkeypatch):
    """Singular vectors of the package in the gradient's own type, along those that there were before."""
    package("pytorch_optimizer")
    import torch
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

    def vectors(self, weights, projection_type, from_random_matrix=False):
        left, _, right = torch.linalg.svd(weights, full_matrices=False)
        is_right = projection_type == "right"
        found = right[: self.rank] if is_right else left[:, : self.rank]
        if self.ortho_matrix is None:
            return found
        along = (found * self.ortho_matrix).sum(dim=int(is_right), keepdim=True)
        return torch.where(along < 0, -found, found)

    monkeypatch.setattr(GaLoreProjector, "get_orthogonal_matrix", vectors)


GALORE_SETTINGS = {"lr": 0.01, "rank": 3, "scale": 0.5, "weight_decay": 0.3, "betas": (0.8, 0.95)}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("gap", [1000, 20])
def test_50_steps_of_galore_follow_pytorch_optimizer(gap, dtype, signed_vectors):
    assert error(Case("GaLoreAdamW", GALORE_SETTINGS), galore(gap), dtype) < TOLERANCES[dtype]


def test_the_tolerance_sees_a_changed_coefficient_of_galore(signed_vectors):
    case = Case("GaLoreAdamW", GALORE_SETTINGS)
    assert error(case, galore(20), np.float64, scale=0.5 * (1 + 1e-8)) > 1e-10
