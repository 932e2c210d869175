"""Optimizers that torch has not, beside the packages from which people take them.

The rows of the table that name a package run here for 50 steps beside it. Where it does something else
than the paper, which the docstring of the optimizer says, it is handed what makes up for exactly that:
everything else has to agree. What such a row cannot show is shown by the reference in test_updates.py.

The packages are no dependencies. Without them these tests are skipped: `tox run -e packages` installs
them, and fails if any test is skipped.
"""

from importlib.util import find_spec

import numpy as np
import pytest
from cases import CASES, Case
from devices import on_cpu_only

import genesis

pytestmark = [pytest.mark.torch, on_cpu_only]

SHAPES = [(10, 5), (7,), (3, 4, 2)]
STEPS = 50
TOLERANCES = {np.float64: 1e-10, np.float32: 5e-6}


def package(name):
    """The package, if it is installed."""
    missing = [each for each in ("torch", name) if find_spec(each) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: tox run -e packages")
    return __import__(name)


class Peer:
    """A package's optimizer on tensors of its own, handed what makes up for its deviations.

    Args:
        make: `make(tensors, hyper)`, the optimizer for hyper-parameters in genesis' names.
        before: `before(optimizer, step, grads)`, called before each step, from 1.
        factor: `factor(hyper)`, by which its parameters are those of genesis from the start.
        apart: hyper-parameters for both, in place of the row's.
        size: how large gradients are.
        shapes: of the parameters.
    """

    def __init__(self, make, before=None, factor=None, apart=None, size=1.0, shapes=SHAPES):
        self.make, self.before, self.factor = make, before, factor
        self.apart, self.size, self.shapes = apart or {}, size, shapes


def renamed(name, names=(), **fixed):
    """`make` for `pytorch_optimizer`, whose hyper-parameters may have other names."""

    def make(tensors, hyper):
        import pytorch_optimizer

        given = {dict(names).get(key, key): value for key, value in hyper.items()}
        return getattr(pytorch_optimizer, name)(tensors, **{**fixed, **given}, foreach=False)

    return make


def state_of(optimizer):
    """Its group, and the state of each tensor with it, which it makes only in a step otherwise."""
    (group,) = optimizer.param_groups
    optimizer.init_group(group)
    return group, [optimizer.state[tensor] for tensor in group["params"]]


# ---- AdEMAMix, ADOPT ----


def ademamix(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    warmups = {hyper.pop("alpha_warmup", None), hyper.pop("beta3_warmup", None)}
    (warmup,) = warmups  # it has one for both
    return pytorch_optimizer.AdEMAMix(
        tensors, t_alpha_beta3=warmup, weight_decouple=True, foreach=False, **hyper
    )


def adopt(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    power = hyper.pop("clip_exp", 0.25)
    # It counts the first gradient, which the paper calls the 0th.
    clip = None if power is None else lambda step: (step - 1) ** power
    decoupled = hyper.pop("decoupled_weight_decay", False)
    return pytorch_optimizer.ADOPT(
        tensors, clip_lambda=clip, weight_decouple=decoupled, foreach=False, **hyper
    )


def decay_from_the_second_step(optimizer, step, grads):
    (group,) = optimizer.param_groups
    if step == 1 and group["weight_decouple"]:
        optimizer.later, group["weight_decay"] = group["weight_decay"], 0.0
    elif step == 2 and group["weight_decouple"]:
        group["weight_decay"] = optimizer.later


# ---- Adan, MARS, Yogi, FTRL: what their state begins with ----


def no_difference_at_first(optimizer, step, grads):
    """With `maximize` it takes the first gradient with the wrong sign for the one before it."""
    if step == 1 and optimizer.maximize:
        for state, grad in zip(state_of(optimizer)[1], grads):
            state["previous_grad"].copy_(grad)


def no_change_at_first(optimizer, step, grads):
    if step == 1:
        sign = -1 if optimizer.maximize else 1
        for state, grad in zip(state_of(optimizer)[1], grads):
            state["last_grad"].copy_(sign * grad)


def no_momentum_at_first(optimizer, step, grads):
    if step == 1:
        for state in state_of(optimizer)[1]:
            state["exp_avg"].zero_()


def ftrl(tensors, hyper):
    import pytorch_optimizer

    hyper = dict(hyper)
    begins = hyper.pop("initial_accumulator_value", 0)
    optimizer = pytorch_optimizer.FTRL(tensors, foreach=False, **hyper)
    optimizer.begins = begins
    return optimizer


def sum_at_first(optimizer, step, grads):
    if step == 1:
        for state in state_of(optimizer)[1]:
            state["n"].fill_(optimizer.begins)


def lamb(tensors, hyper):
    without = {name: value for name, value in hyper.items() if name != "bias_correction"}
    return renamed("Lamb", weight_decouple=False, adam_debias=True)(tensors, without)


# ---- Schedule-Free ----


def schedule_free(name):
    """`make` for `schedulefree`, whose optimizers begin in eval mode and know no `maximize`."""

    def make(tensors, hyper):
        import schedulefree

        hyper = dict(hyper)
        maximizes = hyper.pop("maximize", False)
        kind = f"{name}Paper" if hyper.pop("corrects_lr", False) else name
        optimizer = getattr(schedulefree, kind)(tensors, foreach=False, **hyper)
        optimizer.train()
        optimizer.maximizes = maximizes
        return optimizer

    return make


def downhill(optimizer, step, grads):
    if optimizer.maximizes:
        for tensor in optimizer.param_groups[0]["params"]:
            tensor.grad.neg_()


# ---- Prodigy, DAdaptAdam, DoG, LDoG ----


def of_package(module, name):
    """`make` for a package's optimizer that knows no `maximize`."""

    def make(tensors, hyper):
        hyper = dict(hyper)
        maximizes = hyper.pop("maximize", False)
        optimizer = getattr(__import__(module), name)(tensors, **hyper)
        optimizer.maximizes = maximizes
        return optimizer

    return make


DECOUPLED = {"decoupled_weight_decay": "weight_decouple"}
PEERS = {
    "Lion": Peer(renamed("Lion")),
    "SignSGD": Peer(renamed("SignSGD")),
    "AdEMAMix": Peer(ademamix),
    "ADOPT": Peer(adopt, decay_from_the_second_step),
    "Adan": Peer(renamed("Adan", {"no_prox": "weight_decouple"}), no_difference_at_first),
    # Its epsilon is divided by the correction of the root, and would be seen. Some tensors are longer
    # than 1, and are scaled, others are not.
    "MARS": Peer(renamed("MARS", optimize_1d=True), no_change_at_first, None, {"eps": 0.0}, 0.3),
    # It adds epsilon to the norm, too, bounds that of the parameter by 10, and unless it is told not to,
    # divides the rate by the correction of the first average.
    "LAMB": Peer(lamb, None, None, {"eps": 0.0}),
    # It leaves vectors to SGD.
    "LARS": Peer(renamed("LARS"), None, None, None, 1.0, [(10, 5), (3, 4, 2)]),
    "StableAdamW": Peer(renamed("StableAdamW", kahan_sum=False)),
    "AdaBelief": Peer(renamed("AdaBelief", DECOUPLED)),
    "Yogi": Peer(
        lambda tensors, hyper: renamed(
            "Yogi",
            {**DECOUPLED, "initial_accumulator_value": "initial_accumulator"},
            weight_decouple=False,
        )(tensors, {key: value for key, value in hyper.items() if key != "bias_correction"}),
        no_momentum_at_first,
        None,
        {"bias_correction": True},
    ),
    # It shrinks the parameter after the update, as genesis does one that is larger by this factor. Its
    # epsilon is divided by the correction of the root.
    "LaProp": Peer(
        renamed("LaProp", DECOUPLED),
        None,
        lambda hyper: 1 - hyper.get("lr", 4e-4) * hyper.get("weight_decay", 0),
    ),
    "FTRL": Peer(ftrl, sum_at_first),
    "AdaBound": Peer(
        renamed("AdaBound", {**DECOUPLED, "amsbound": "ams_bound"}, weight_decouple=False)
    ),
    "NovoGrad": Peer(renamed("NovoGrad")),
    "Prodigy": Peer(of_package("prodigyopt", "Prodigy"), downhill),
    "DAdaptAdam": Peer(of_package("dadaptation", "DAdaptAdam"), downhill),
    "DoG": Peer(of_package("dog", "DoG"), downhill),
    "LDoG": Peer(of_package("dog", "LDoG"), downhill),
    "ScheduleFreeSGD": Peer(schedule_free("SGDScheduleFree"), downhill),
    "ScheduleFreeAdamW": Peer(schedule_free("AdamWScheduleFree"), downhill),
    "ScheduleFreeRAdam": Peer(schedule_free("RAdamScheduleFree"), downhill),
}
"""How the peer of each optimizer is made whose row names a package."""

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
    others = {case.name for case in CASES if case.peer != "torch"}
    assert others == {case.name for case in ROWS} == PEERS.keys()


CHANGED = {
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
