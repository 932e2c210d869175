"""The optimizers of torch.optim: what they refuse, state that moves to torch and back, the guide."""

import inspect
import re
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, SPECIAL
from devices import on_cpu_only

import genesis
from genesis import optim
from genesis.optim import options

pytestmark = on_cpu_only

PAGE = Path(__file__).parent.parent / "docs" / "choosing.md"
OPTIMIZERS = sorted({case.name for case in CASES})
TORCHS = [case for case in CASES if case.peer == "torch"]
each_case = pytest.mark.parametrize("case", TORCHS, ids=lambda case: case.id)


# ---- what is refused ----

NAN = float("nan")
BAD_HYPER = {
    "Adagrad": [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"lr_decay": -0.1}, "Invalid lr_decay value: -0.1"),
        ({"lr_decay": "0"}, "Invalid lr_decay value: '0', expected a .*number"),
        ({"weight_decay": NAN}, "Invalid weight_decay value: nan"),
        ({"initial_accumulator_value": -1}, "Invalid initial_accumulator_value value: -1"),
        ({"initial_accumulator_value": NAN}, "Invalid initial_accumulator_value value: nan"),
        ({"initial_accumulator_value": None}, "expected a .*number"),
        ({"eps": -1e-8}, "Invalid epsilon value"),
        ({"maximize": 1}, "expected True or False"),
    ],
    "Adadelta": [
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"rho": -0.1}, r"Invalid rho value: -0.1, expected a number in \[0, 1\]"),
        ({"rho": 1.1}, r"Invalid rho value: 1.1, expected a number in \[0, 1\]"),
        ({"rho": NAN}, "Invalid rho value: nan"),
        ({"eps": -1}, "Invalid epsilon value"),
        ({"weight_decay": -1}, "Invalid weight_decay value"),
        ({"maximize": None}, "expected True or False"),
    ],
    "Adamax": [
        ({"lr": -1}, "Invalid learning rate"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan"),
        ({"betas": (0.9,)}, "Invalid betas"),
        ({"eps": NAN}, "Invalid epsilon value"),
        ({"weight_decay": -1}, "Invalid weight_decay value"),
        ({"maximize": "no"}, "expected True or False"),
    ],
    "NAdam": [
        ({"lr": None}, "expected a .*number"),
        ({"betas": (-0.1, 0.9)}, "Invalid beta parameter at index 0: -0.1"),
        ({"betas": 0.9}, "Invalid betas"),
        ({"eps": -1}, "Invalid epsilon value"),
        ({"weight_decay": -1}, "Invalid weight_decay value"),
        ({"momentum_decay": -1e-3}, "Invalid momentum_decay value: -0.001"),
        ({"momentum_decay": NAN}, "Invalid momentum_decay value: nan"),
        ({"decoupled_weight_decay": 0.1}, "expected True or False"),
    ],
    "RAdam": [
        ({"lr": -1}, "Invalid learning rate"),
        ({"betas": (0.9, 1)}, "Invalid beta parameter at index 1: 1"),
        ({"betas": ("0", 0.9)}, "expected a .*number"),
        ({"eps": NAN}, "Invalid epsilon value"),
        ({"weight_decay": NAN}, "Invalid weight_decay value"),
        ({"decoupled_weight_decay": None}, "expected True or False"),
    ],
    "ASGD": [
        ({"lr": -1}, "Invalid learning rate"),
        ({"lambd": -1e-4}, "Invalid lambd value: -0.0001"),
        ({"lambd": NAN}, "Invalid lambd value: nan"),
        ({"alpha": -1}, "Invalid alpha value: -1"),
        ({"alpha": NAN}, "Invalid alpha value: nan"),
        ({"t0": -1}, "Invalid t0 value: -1"),
        ({"t0": NAN}, "Invalid t0 value: nan"),
        ({"weight_decay": -1}, "Invalid weight_decay value"),
        ({"maximize": 0}, "expected True or False"),
    ],
    "Rprop": [
        ({"lr": -1}, "Invalid learning rate"),
        ({"etas": (0, 1.2)}, "Invalid eta value at index 0: 0, expected"),
        ({"etas": (1, 1.2)}, "Invalid eta value at index 0: 1, expected"),
        ({"etas": (0.5, 1.0)}, "Invalid eta value at index 1: 1.0, expected"),
        ({"etas": (0.5, NAN)}, "Invalid eta value at index 1: nan"),
        ({"etas": 0.5}, "Invalid etas: 0.5, expected 2 numbers"),
        ({"step_sizes": (-1, 50)}, "Invalid step size at index 0: -1"),
        ({"step_sizes": (1e-6, NAN)}, "Invalid step size at index 1: nan"),
        ({"step_sizes": (2, 1)}, "Invalid step sizes: 2 is larger than 1"),
        ({"step_sizes": (1, 2, 3)}, "Invalid step_sizes"),
        ({"maximize": 1}, "expected True or False"),
    ],
    "Lion": [
        ({"lr": -1}, "Invalid learning rate: -1"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ],
    "SignSGD": [
        ({"momentum": 1.0}, r"Invalid momentum value: 1.0, expected a number in \[0, 1\)"),
        ({"momentum": -0.1}, "Invalid momentum value: -0.1"),
    ],
    "AdEMAMix": [
        ({"betas": (0.9, 0.999)}, "Invalid betas: .*, expected 3 numbers"),
        ({"betas": (0.9, 0.999, 1)}, "Invalid beta parameter at index 2: 1"),
        ({"alpha": -1}, "Invalid alpha value: -1"),
        ({"alpha_warmup": -1}, "Invalid alpha_warmup value: -1, expected .*, or None"),
        ({"beta3_warmup": "100"}, "Invalid beta3_warmup value: '100'"),
    ],
    "ADOPT": [
        ({"eps": -1e-6}, "Invalid epsilon value: -1e-06"),
        ({"clip_exp": -0.25}, "Invalid clip_exp value: -0.25, expected .*, or None"),
        ({"decoupled_weight_decay": 1}, "expected True or False"),
    ],
    "Adan": [
        ({"betas": (0.98, 0.92)}, "Invalid betas"),
        ({"betas": (0.98, -0.08, 0.99)}, "Invalid beta parameter at index 1: -0.08"),
        ({"no_prox": None}, "expected True or False"),
    ],
    "MARS": [
        ({"gamma": -0.025}, "Invalid gamma value: -0.025"),
        ({"betas": (1.0, 0.99)}, "Invalid beta parameter at index 0: 1.0"),
    ],
    "AdaBelief": [({"eps": NAN}, "Invalid epsilon value: nan")],
    "LAMB": [
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"adapt": 1}, "expected True or False"),
    ],
    "LARS": [
        ({"trust_coefficient": -1e-3}, "Invalid trust_coefficient value: -0.001"),
        ({"lr": 1.0, "momentum": -0.9}, "Invalid momentum value: -0.9"),
    ],
    "NovoGrad": [
        ({"betas": (0.95, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ({"grad_averaging": 1}, "expected True or False"),
    ],
    "Prodigy": [
        ({"d0": 0}, "Invalid d0 value: 0"),
        ({"beta3": 1.0}, "Invalid beta3 value: 1.0, expected .*, or None"),
        ({"d_coef": -1}, "Invalid d_coef value: -1"),
        ({"growth_rate": 0.5}, "Invalid growth_rate value: 0.5"),
    ],
    "DAdaptAdam": [
        ({"d0": -1e-6}, "Invalid d0 value: -1e-06"),
        ({"growth_rate": NAN}, "Invalid growth_rate value: nan"),
        ({"layer_scale": 0}, "Invalid layer_scale value: 0"),
    ],
    "DoG": [
        ({"reps_rel": 0}, "Invalid reps_rel value: 0"),
        ({"init_eta": 0}, "Invalid init_eta value: 0, expected .*, or None"),
    ],
    "LDoG": [({"reps_rel": NAN}, "Invalid reps_rel value: nan")],
    "StableAdamW": [({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0")],
    "Yogi": [
        ({"initial_accumulator_value": -1}, "Invalid initial_accumulator_value value: -1"),
        ({"bias_correction": 1}, "expected True or False"),
    ],
    "LaProp": [({"betas": (0.9, NAN)}, "Invalid beta parameter at index 1: nan")],
    "FTRL": [
        ({"lr": NAN}, "Invalid learning rate: nan"),
        ({"beta": -1}, "Invalid beta value: -1"),
        ({"lambda_1": -1}, "Invalid lambda_1 value: -1"),
        ({"lambda_2": NAN}, "Invalid lambda_2 value: nan"),
    ],
    "AdaBound": [
        ({"final_lr": -0.1}, "Invalid final_lr value: -0.1"),
        ({"gamma": 0}, r"Invalid gamma value: 0, expected a number in \(0, 1\)"),
        ({"gamma": 1.0}, "Invalid gamma value: 1.0"),
        ({"amsbound": "yes"}, "expected True or False"),
    ],
    "ScheduleFreeSGD": [
        ({"momentum": 0}, r"Invalid momentum value: 0, expected a number in \(0, 1\)"),
        ({"momentum": 1.0}, "Invalid momentum value: 1.0"),
        ({"warmup_steps": -1}, "Invalid warmup_steps value: -1"),
        ({"warmup_steps": 0.5}, "Invalid warmup_steps value: 0.5, expected a whole number"),
        ({"r": -1}, "Invalid r value: -1"),
        ({"weight_lr_power": NAN}, "Invalid weight_lr_power value: nan"),
        ({"ema_decay": 0.9}, r"does not support ema_decay.*optimizer.eval\(\)"),
    ],
    "ScheduleFreeAdamW": [
        ({"betas": (0, 0.999)}, r"Invalid beta parameter at index 0: 0, expected .*\(0, 1\)"),
        ({"betas": (0.9, 1)}, r"Invalid beta parameter at index 1: 1, expected .*\[0, 1\)"),
        ({"corrects_lr": 1}, "expected True or False"),
    ],
    "ScheduleFreeRAdam": [
        ({"betas": (1.0, 0.999)}, "Invalid beta parameter at index 0: 1.0"),
        ({"silent_sgd_phase": None}, "expected True or False"),
    ],
}


@pytest.mark.parametrize(
    ("name", "hyper", "said"), [(name, *row) for name, rows in BAD_HYPER.items() for row in rows]
)
def test_refuses_impossible_hyper_parameters(name, hyper, said):
    optimizer = getattr(optim, name)
    p, q = genesis.Parameter(np.ones(3)), genesis.Parameter(np.ones(3))
    with pytest.raises((ValueError, TypeError), match=said):
        optimizer([p], **hyper)
    with pytest.raises((ValueError, TypeError), match=said):
        optimizer([{"params": p}, {"params": q, **hyper}])
    opt = optimizer([p])
    with pytest.raises((ValueError, TypeError), match=said):
        opt.add_param_group({"params": q, **hyper})
    saved = opt.state_dict()
    saved["param_groups"][0].update(hyper)
    with pytest.raises((ValueError, TypeError), match=said):
        opt.load_state_dict(saved)
    assert opt.state_dict()["param_groups"] == optimizer([p]).state_dict()["param_groups"]


IMPOSSIBLE = [
    (float("inf"), ValueError),
    (-float("inf"), ValueError),
    (np.float64("inf"), ValueError),
    (NAN, ValueError),
    (10**400, ValueError),  # no float
    (True, TypeError),
    (False, TypeError),
    (np.True_, TypeError),
    (np.array(0.5), TypeError),
    (np.array([0.5]), TypeError),
    (genesis.Parameter(np.array(0.5)), TypeError),
    (0.5j, TypeError),
    ("0.5", TypeError),
]
INFINITE = {
    ("ASGD", "t0"),
    ("Adafactor", "d"),
    ("CAME", "clip_threshold"),
    ("Rprop", "step_sizes", 1),
    ("Prodigy", "growth_rate"),
    ("DAdaptAdam", "growth_rate"),
}
"""Where infinity says something: never average, never clip, no largest step, no bound."""


COUNTS = (
    "ns_steps", "max_iter", "max_eval", "history_size", "warmup_steps", "rank", "update_proj_gap",
    "precondition_frequency", "max_precond_dim", "max_preconditioner_dim", "max_size_triangular",
    "min_ndim_triangular", "seed",
)  # fmt: skip


def numbers_of(name):
    """Where an optimizer takes a number, other than a count: a key, and perhaps a place in a tuple."""
    defaults = make_any(name, any_parameter()).defaults
    for key, value in defaults.items():
        if isinstance(value, (tuple, list)):
            yield from ((key, i) for i in range(len(value)) if value[i] is not None)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in COUNTS:
            yield (key,)


SILENT = {"ADOPT": 1, "SOAP": 1, "ScheduleFreeRAdam": 4}
"""How many gradients move nothing at first."""


def any_parameter():
    return genesis.Parameter(np.ones((3, 2)))


def make_any(name, params, **hyper):
    required = {"lr": 0.1} if name == "SGD" else {}
    params = [params] if isinstance(params, genesis.Parameter) else params
    return getattr(optim, name)(params, **{**required, **hyper})


def with_bad(default, place, bad):
    """A hyper-parameter's value, `bad` or with `bad` at a place in it."""
    if not place:
        return bad
    return tuple(bad if i == place[0] else value for i, value in enumerate(default))


EVERY = sorted({*OPTIMIZERS, *SPECIAL})
each_number = pytest.mark.parametrize(
    ("name", "where"), [(name, where) for name in EVERY for where in numbers_of(name)], ids=str
)


def refusal(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


@each_number
def test_the_same_is_impossible_everywhere_and_is_said_in_the_same_words(name, where):
    p, q = any_parameter(), any_parameter()
    key, *place = where
    opt = make_any(name, p)
    default = opt.defaults[key]
    saved = opt.state_dict()
    for bad, error in IMPOSSIBLE:
        if (name, *where) in INFINITE and isinstance(bad, float) and bad == float("inf"):
            continue
        hyper = {key: with_bad(default, place, bad)}
        said = refusal(error, partial(make_any, name, p, **hyper))
        shown = str(bad).lstrip("-") if key == "beta2_decay" else str(bad)  # -beta2_decay is named
        assert said.startswith("Invalid ")
        assert shown in said or repr(bad) in said
        assert ", expected" in said
        loaded = {**saved, "param_groups": [{**saved["param_groups"][0], **hyper}]}
        ways = [
            partial(make_any, name, [{"params": p, **hyper}]),
            partial(opt.load_state_dict, loaded),
        ]
        if name != "LBFGS":  # which takes one group only
            ways.append(partial(opt.add_param_group, {"params": q, **hyper}))
        for way in ways:
            assert said in refusal(error, way)
    assert len(opt.param_groups) == 1
    assert opt.state_dict() == saved


def take_a_step(name, opt, p):
    p.grad = np.full((3, 2), 0.5)
    if name == "SparseAdam":
        p.grad = genesis.SparseGrad(np.arange(3), p.grad)
    opt.step(*[lambda: 1.0] * (name == "LBFGS"))


@each_number
@pytest.mark.parametrize("stepped", [False, True])
def test_the_step_refuses_the_same_before_anything_is_written(name, where, stepped):
    p, q = any_parameter(), any_parameter()
    key, *place = where
    opt = make_any(name, [p] if name == "LBFGS" else [{"params": [q]}, {"params": [p]}])
    default = opt.defaults[key]
    if stepped:
        take_a_step(name, opt, p)
    before, saved = p.data.copy(), opt.state_dict()["state"]
    for bad, error in IMPOSSIBLE:
        if (name, *where) in INFINITE and isinstance(bad, float) and bad == float("inf"):
            continue
        said = refusal(error, partial(make_any, name, q, **{key: with_bad(default, place, bad)}))
        setting = partial(opt.param_groups[-1].__setitem__, key, with_bad(default, place, bad))
        assert refusal(error, setting) == said
        kept = opt.param_groups[-1]
        # A plain dict is not asked before the step.
        opt.param_groups[-1] = {**kept, key: with_bad(default, place, bad)}
        assert said in refusal(error, partial(take_a_step, name, opt, p))
        opt.param_groups[-1] = kept
        np.testing.assert_array_equal(p.data, before)
        np.testing.assert_equal(opt.state_dict()["state"], saved)
    if not place:
        del opt.param_groups[-1][key]
        said = refusal(ValueError, partial(take_a_step, name, opt, p))
        assert f"it has no {key!r}, set group[{key!r}]" in said
    opt.param_groups[-1][key] = default
    for _ in range(SILENT.get(name, 0) + 1):
        take_a_step(name, opt, p)
    assert np.all(p.data != before)


@each_number
def test_numpys_scalars_are_numbers(name, where):
    key, *place = where
    default = make_any(name, any_parameter()).defaults[key]
    value = default[place[0]] if place else default
    kind = np.float64 if isinstance(value, float) else np.int64
    make_any(name, any_parameter(), **{key: with_bad(default, place, kind(value))})


def test_infinity_is_taken_where_it_says_something():
    inf = float("inf")
    for name, hyper in [
        ("ASGD", {"t0": inf}),
        ("Adafactor", {"d": inf}),
        ("CAME", {"clip_threshold": inf}),
        ("Rprop", {"step_sizes": (1e-6, inf)}),
        ("Rprop", {"step_sizes": [0, np.float32(inf)]}),
    ]:
        p = any_parameter()
        opt = make_any(name, p, **hyper)
        p.grad = np.ones((3, 2))
        opt.step().step().step()
        assert np.all(np.isfinite(p.data))
        assert np.all(p.data < 1)
    p = any_parameter()
    opt = make_any("ASGD", p, t0=inf)
    p.grad = np.ones((3, 2))
    opt.step().step().step()
    np.testing.assert_array_equal(opt.state[p]["ax"], p.data)


@pytest.mark.parametrize("name", EVERY)
def test_flags_and_choices_are_refused_in_the_same_words(name):
    p = any_parameter()
    opt = make_any(name, p)
    saved = opt.state_dict()
    flags = [key for key, value in opt.defaults.items() if isinstance(value, bool)]
    flags = [key for key in flags if key != "train_mode"]  # which `train` and `eval` set
    choices = ["adjust_lr_fn", "line_search_fn", "grafting", "memory_save_mode"]
    choices = [key for key in choices if key in opt.defaults]
    without = {*SPECIAL} - {"SparseAdam"}
    options = [] if name in without else ["master_weights", "state_dtype"]
    counts = [key for key in COUNTS if key in opt.defaults]
    for keys, values in [
        (flags + options[:1], (1, 0.0, None, "yes", np.ones(()), [True])),
        (choices + options[1:], (1, b"x", ["original"], {"a": 1}, np.ones(2), np.float32)),
        (counts, (True, np.True_, 2.0, "3", -1, NAN, np.ones((), int))),
    ]:
        for key in keys:
            for bad in values:
                group = {**saved["param_groups"][0], key: bad}
                new = partial(make_any, name, p, **{key: bad})
                in_a_group = partial(make_any, name, [{"params": p, key: bad}])
                loading = partial(opt.load_state_dict, {**saved, "param_groups": [group]})
                said = refusal((TypeError, ValueError), new)
                assert "expected" in said or "supported" in said
                assert said in refusal((TypeError, ValueError), in_a_group)
                assert said in refusal((TypeError, ValueError), loading)


# ---- state ----


@pytest.mark.parametrize(
    ("name", "buffer", "setting"),
    [
        ("Adagrad", "sum", "initial_accumulator_value"),
        ("Rprop", "step_size", "lr"),
        ("FTRL", "sum", "initial_accumulator_value"),
        ("Yogi", "exp_avg_sq", "initial_accumulator_value"),
    ],
)
def test_a_buffer_begins_with_what_its_group_says_at_the_first_update(name, buffer, setting):
    params = [genesis.Parameter(np.ones((2, 3), np.float32)) for _ in range(3)]
    opt = getattr(optim, name)([{"params": params[:1], setting: 0.25}, {"params": params[1:]}])
    opt.param_groups[1][setting] = 0.5
    for p in params[:2]:
        p.grad = np.zeros((2, 3))
    opt.step()
    opt.param_groups[1][setting] = 0.75
    params[2].grad = np.zeros((2, 3))
    opt.step()
    for p, value in zip(params, (0.25, 0.5, 0.75)):
        np.testing.assert_array_equal(opt.state[p][buffer], np.full((2, 3), value, np.float32))


@pytest.mark.parametrize(
    ("name", "number"),
    [("NAdam", "mu_product"), ("ASGD", "eta"), ("ASGD", "mu"), ("AdaBound", "base_lr")],
)
def test_a_state_that_lacks_a_number_is_refused(name, number):
    p = genesis.Parameter(np.ones(3))
    opt = getattr(optim, name)([p])
    p.grad = np.ones(3)
    saved = opt.step().state_dict()
    assert type(saved["state"][0].pop(number)) is float
    with pytest.raises(ValueError, match=rf"has no \['{number}'\]"):
        opt.load_state_dict(saved)


def test_radam_does_not_look_at_the_squares_before_it_trusts_them():
    p = genesis.Parameter(np.array([1.0, 2.0, 3.0]))
    opt = optim.RAdam([p], lr=0.1, eps=0)
    p.grad = np.array([1e200, 0.0, 1.0])  # the first square is inf, the second gives 0 / 0
    opt.step()
    np.testing.assert_allclose(p.data, [-1e199, 2.0, 2.9])
    np.testing.assert_array_equal(opt.state[p]["exp_avg_sq"][:2], [np.inf, 0])


# ---- beside torch ----

SHAPES = [(4, 3), (), (5,), (0,)]


@pytest.fixture
def torch():
    """torch, with step counts and the like in float64."""
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


class Pair:
    """The same parameters under genesis's and torch's optimizer."""

    def __init__(self, torch, case, rng, shapes=SHAPES):
        self.torch, self.rng = torch, rng
        arrays = [rng.standard_normal(shape) for shape in shapes]
        self.tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        self.params = [genesis.Parameter(array) for array in arrays]
        self.ours = case.make(self.params)
        self.theirs = getattr(torch.optim, case.name)(self.tensors, **case.hyper)

    def step(self, *, ours=True, theirs=True, skip=()):
        """One step of either or both; parameters in `skip` get no gradient."""
        for i, (param, tensor) in enumerate(zip(self.params, self.tensors)):
            grad = None if i in skip else self.rng.standard_normal(param.shape)
            param.grad = grad
            tensor.grad = None if grad is None else self.torch.tensor(grad)
        if ours:
            self.ours.step()
        if theirs:
            self.theirs.step()

    def assert_equal(self):
        for param, tensor in zip(self.params, self.tensors):
            np.testing.assert_allclose(param.data, tensor.detach(), rtol=1e-12, atol=1e-15)


@each_case
def test_torch_goes_on_from_our_state(case, torch, rng):
    pair = Pair(torch, case, rng)
    for _ in range(4):
        pair.step(theirs=False, skip=[2])
    with torch.no_grad():
        for param, tensor in zip(pair.params, pair.tensors):
            tensor.copy_(torch.tensor(param.data))
    saved = pair.ours.state_dict()
    for entries in saved["state"].values():
        for name, value in entries.items():
            if isinstance(value, np.ndarray):
                entries[name] = torch.tensor(value)
    pair.theirs.load_state_dict(saved)
    for _ in range(5):
        pair.step()
    pair.assert_equal()


@each_case
def test_we_go_on_from_torchs_state(case, torch, rng):
    pair = Pair(torch, case, rng)
    for _ in range(4):
        pair.step(ours=False, skip=[2])
    for param, tensor in zip(pair.params, pair.tensors):
        param.data[...] = tensor.detach()
    pair.ours.load_state_dict(pair.theirs.state_dict())
    for _ in range(5):
        pair.step()
    pair.assert_equal()


@each_case
def test_a_schedule_acts_as_in_torch(case, torch, rng):
    pair = Pair(torch, case, rng)
    for _ in range(6):
        pair.step()
        for opt in (pair.ours, pair.theirs):
            opt.param_groups[0]["lr"] *= 0.8
    pair.assert_equal()


@each_case
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_go_where_they_go_in_torch(case, value, torch, rng):
    pair = Pair(torch, case, rng, [(40,)])
    bad = np.ones(40)
    bad[[1, 38]] = value
    for step in range(8):
        pair.params[0].grad = grad = bad if step == 2 else np.ones(40)
        pair.tensors[0].grad = torch.tensor(grad, dtype=torch.float64)
        pair.ours.step()
        pair.theirs.step()
        buffers = pair.ours.state.get(pair.params[0], {})
        theirs = pair.theirs.state[pair.tensors[0]]
        for left, right in [
            (pair.params[0].data, pair.tensors[0]),
            *((buffers[name], theirs[name]) for name in buffers),
        ]:
            np.testing.assert_array_equal(np.isfinite(left), torch.isfinite(right).numpy())


def test_the_peer_is_torch_wherever_torch_has_one(torch):
    caution = {"cautious", "cautious_weight_decay"}  # which torch has not
    for case in CASES:
        has_one = hasattr(torch.optim, case.name) and caution.isdisjoint(case.hyper)
        assert has_one == (case.peer == "torch"), case


@pytest.mark.parametrize("name", sorted({case.name for case in TORCHS}))
def test_the_signature_is_torchs(name, torch):
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    ours = dict(inspect.signature(getattr(optim, name)).parameters)
    for option in options.HYPERS:  # genesis' own
        assert ours.pop(option).kind is inspect.Parameter.KEYWORD_ONLY
    for flag in ("cautious", "cautious_weight_decay"):
        if flag in ours:
            assert ours.pop(flag).kind is inspect.Parameter.KEYWORD_ONLY
    assert theirs.keys() - ours.keys() <= {"decoupled_weight_decay"}
    assert ours.keys() <= theirs.keys()
    by_place = [name for name, each in ours.items() if each.kind is not each.KEYWORD_ONLY]
    assert by_place == list(theirs)[: len(by_place)]
    for parameter in ours.values():
        if parameter.default is not parameter.empty:
            assert parameter.default == theirs[parameter.name].default, parameter


# ---- groups by name ----


def groups_of(*names, **settings):
    pairs = [(name, genesis.Parameter(np.ones(2))) for name in names]
    groups = optim.param_groups_weight_decay(pairs, 0.1, **settings)
    assert [group["weight_decay"] for group in groups] == [0.1, 0]
    return [[name for name, _ in group["params"]] for group in groups]


def test_names_that_are_exempt_from_weight_decay():
    exempt = [
        "bias",
        "fc.bias",
        "layers.0.Bias",
        "b/bias:0",
        "lstm.bias_ih_l0",
        "norm.weight",
        "norm1.weight",
        "layer_norm.scale",
        "encoder.LayerNorm.weight",
        "LayerNorm_0",
        "batchnorm2d.weight",
        "model.layers.11.input_layernorm.weight",
        "ln.weight",
        "h.0.ln_1.weight",
        "ln2",
        "final_ln",
    ]
    decaying = [
        "weight",
        "kernel",
        "balance",
        "linear.weight",
        "normal",
        "normalized.weight",
        "biased",
        "lnear",
        "unit1.w",
    ]
    assert groups_of(*decaying, *exempt) == [decaying, exempt]
    assert groups_of(*exempt, *decaying) == [decaying, exempt]


def test_other_names_may_be_exempt():
    names = ("kernel", "bias", "vit.pos_embed", "pos.weight", "bn1.weight")
    assert groups_of(*names, no_decay=["pos_embed", "bn"]) == [
        ["kernel", "bias", "pos.weight"],
        ["vit.pos_embed", "bn1.weight"],
    ]
    assert groups_of(*names, no_decay=()) == [list(names), []]


@pytest.mark.parametrize("names", [["w", "bias"], ["w"], ["bias"]])
def test_groups_by_name_suit_an_optimizer_even_if_one_is_empty(names):
    params = {name: genesis.Parameter(np.ones(2)) for name in names}
    opt = optim.AdamW(optim.param_groups_weight_decay(params.items(), 0.5), lr=0.1)
    for p in params.values():
        p.grad = np.zeros(2)
    opt.step()
    for name, p in params.items():
        np.testing.assert_array_equal(p.data, np.full(2, 0.95 if name == "w" else 1.0))
    assert [group["param_names"] for group in opt.param_groups] == [
        [name for name in names if name == "w"],
        [name for name in names if name == "bias"],
    ]
    opt.load_state_dict(opt.state_dict())


def test_groups_by_name_refuse_what_has_none():
    p = genesis.Parameter(np.ones(2))
    for bad in ([p], 3, p, [("w", p, 1)], [(0, p)], {"w": 3}):
        with pytest.raises(TypeError, match=r"\(name, Parameter\) pairs, as dict.items\(\) does"):
            optim.param_groups_weight_decay(bad, 0.1)
    with pytest.raises(TypeError, match=r"write \('bias',\)"):
        optim.param_groups_weight_decay([("w", p)], 0.1, no_decay="bias")
    for entry in ("", "_", "1"):
        with pytest.raises(ValueError, match="needs a letter"):
            optim.param_groups_weight_decay([("w", p)], 0.1, no_decay=("bias", entry))
    with pytest.raises(ValueError, match="Invalid weight_decay value: -1"):
        optim.AdamW(optim.param_groups_weight_decay([("w", p)], -1))


# ---- the guide ----


def test_the_guides_table_is_up_to_date():
    script = runpy.run_path(str(PAGE.with_name("memory_table.py")))
    page = PAGE.read_text()
    assert page == script["with_table"](page), "run python docs/memory_table.py"


def test_the_table_of_all_names_each_optimizer_and_says_what_it_keeps_and_moves():
    page = PAGE.read_text()
    table, _ = page.split("## All of them in one table")[1].split("The letters stand for")
    rows = {}
    for line in table.splitlines():
        if found := re.match(r"\| `(\w+)` \|([^|]*)\|([^|]*)\|", line):
            rows[found[1]] = [
                {int(n) for n in re.findall(r"\d+", text)} for text in found.groups()[1:]
            ]
    exported = {name for name in optim.__all__ if isinstance(getattr(optim, name), type)}
    assert set(rows) == exported - {"Optimizer", "RuleOptimizer", "Mixed"}
    made = page.split("<!-- memory table: begin -->")[1].split("<!-- memory table: end -->")[0]
    measured = {}
    for name, state, moved in re.findall(r"\| `(\w+)` \|.*\| (\d+) \| ([\d or]+) \|", made):
        kept, traffic = measured.setdefault(name, (set(), set()))
        kept.add(int(state))
        traffic.update(int(n) for n in re.findall(r"\d+", moved))
    assert {name: tuple(rows[name]) for name in measured} == measured
