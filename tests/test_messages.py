"""Silence is no answer: what is misspelt, misplaced, impossible or slow says so, and when it is done."""

import copy
import inspect
import logging
import pickle
from functools import partial
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from cases import SPECIAL
from devices import on_cpu_only

import genesis
from genesis import optim
from genesis.kernels import specialise, waiting
from genesis.optim import lr_scheduler, swa_utils, torch_flags
from genesis.optim.group import Group, Misplaced

pytestmark = on_cpu_only

NAMES = sorted({*torch_flags.FLAGS, *SPECIAL})
each_optimizer = pytest.mark.parametrize("name", NAMES)


@genesis.rule
def plain(param, grad, *, lr=0.1, weight_decay=0.0, step_sizes=(0.0, 1.0)):
    return param - lr * (grad + weight_decay * param) * step_sizes[1]


def parameter(dtype=np.float64, shape=(3, 2)):
    return genesis.Parameter(np.ones(shape, dtype))


def make(kind, params=None, **given):
    kind = getattr(optim, kind) if isinstance(kind, str) else kind
    if kind is optim.SGD:
        given.setdefault("lr", 0.1)
    return kind([parameter()] if params is None else params, **given)


def message(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# ---- did you mean ----


@each_optimizer
def test_a_misspelt_argument_is_told(name):
    kind = getattr(optim, name)
    said = message(TypeError, kind, [parameter()], learning_rate=0.1)
    assert said == (
        f"{name}.__init__() got an unexpected keyword argument 'learning_rate': did you mean 'lr'?"
    )
    for argument in inspect.signature(kind).parameters:
        if len(argument) > 3 and argument != "params":
            misspelt = argument[:-2] + argument[-1] + argument[-2]
            said = message(TypeError, kind, [parameter()], **{misspelt: 0})
            assert said.endswith(f"argument {misspelt!r}: did you mean {argument!r}?")
    said = message(TypeError, kind, [parameter()], banana=1)
    assert said == f"{name}.__init__() got an unexpected keyword argument 'banana'"


def test_what_other_libraries_call_it_is_told():
    for given, meant in [
        ("epsilon", "eps"), ("beta1", "betas"), ("b2", "betas"), ("wd", "weight_decay"),
        ("l2", "weight_decay"), ("Learning_Rate", "lr"), ("learning_rte", "lr"),
    ]:  # fmt: skip
        assert message(TypeError, make, "AdamW", **{given: 0.1}).endswith(
            f"argument {given!r}: did you mean {meant!r}?"
        )
    assert message(TypeError, make, "SGD", beta1=0.9).endswith("argument 'beta1'")
    chained = genesis.chain(genesis.transforms.scale_by_lr, name="chained")
    for kind in (plain, chained):
        assert message(TypeError, make, kind, learning_rate=1).endswith("did you mean 'lr'?")


MISSPELT = {
    "weight_deacy": "weight_decay",
    "weightdecay": "weight_decay",
    "Weight_Decay": "weight_decay",
    "learning_rate": "lr",
    "learning_rte": "lr",
    "LR": "lr",
    "beta": "betas",
    "amsgard": "amsgrad",
    "maximise": "maximize",
    "master_weight": "master_weights",
}


@pytest.mark.parametrize(("key", "meant"), MISSPELT.items())
def test_a_misspelt_key_of_a_group_is_told(key, meant):
    said = f"no setting {key!r}: did you mean {meant!r}?"
    assert said in message(ValueError, optim.AdamW, [{"params": parameter(), key: 0.1}])
    opt = make("AdamW")
    assert said in message(ValueError, opt.add_param_group, {"params": parameter(), key: 0.1})
    assert len(opt.param_groups) == 1
    [group] = opt.param_groups
    before = dict(group)
    for change in (
        partial(group.__setitem__, key, 0.1), partial(group.setdefault, key, 0.1),
        partial(group.update, {"lr": 0.5, key: 0.1}), partial(group.update, **{key: 0.1}),
        partial(group.update, [(key, 0.1)]), partial(group.__ior__, {key: 0.1}),
    ):  # fmt: skip
        assert said in message(ValueError, change)
        assert group == before


@each_optimizer
def test_other_keys_stay_the_users_own(name):
    [group] = make(name).param_groups
    own = (
        "initial_lr max_lr min_lr base_momentum max_momentum swa_lr lr_scale max_learning_rate "
        "no_weight_decay name names layer layer_decay tag step steps wd l2 id index foreach fused "
        "capturable differentiable momentum_factor"
    ).split()
    for key in (*own, 3, None, ("lr",)):
        group[key] = "mine"
    assert all(group[key] == "mine" for key in own)


def test_what_was_saved_can_be_loaded_whatever_its_keys():
    opt = make("Adam")
    saved = opt.state_dict()
    saved["param_groups"][0].update(weight_deacy=1, fused=True, foreach=None)
    opt.load_state_dict(saved)
    assert type(opt.param_groups[0]) is Group
    assert opt.param_groups[0]["weight_deacy"] == 1
    opt.param_groups[0]["weight_deacy"] = 2  # it is there
    opt.load_state_dict(opt.state_dict())


# ---- torch's flags ----


def test_torchs_flags_are_those_of_torch():
    torch = pytest.importorskip("torch")
    for name in NAMES:
        peer = getattr(torch.optim, name, None)
        theirs = {} if peer is None else inspect.signature(peer).parameters
        flags = {flag: theirs[flag].default for flag in theirs if flag in torch_flags.DEFAULTS}
        ours = inspect.signature(getattr(optim, name)).parameters
        assert {f: ours[f].default for f in ours if f in torch_flags.DEFAULTS} == flags
        assert {*torch_flags.FLAGS.get(name, ())} == {*flags}


@each_optimizer
@pytest.mark.parametrize("flag", torch_flags.DEFAULTS)
def test_torchs_flags_are_taken_where_torch_has_them_and_ignored(name, flag, caplog):
    with caplog.at_level(logging.DEBUG, "genesis"):
        if flag not in torch_flags.FLAGS.get(name, ()):
            assert f"argument {flag!r}" in message(TypeError, make, name, **{flag: True})
            assert not caplog.records
            return
        opt = make(name, **{flag: True})
        [record] = caplog.records
        assert record.levelno == logging.DEBUG
        assert f"{name} ignores {flag}=True" in record.getMessage()
        caplog.clear()
        assert opt.state_dict() == make(name).state_dict()
        assert not caplog.records
    assert flag not in opt.defaults
    assert flag not in opt.param_groups[0]
    assert flag in getattr(optim, name).__doc__
    assert not hasattr(opt, flag)


def test_one_line_for_several_flags_and_none_for_other_rules(caplog):
    with caplog.at_level(logging.DEBUG, "genesis"):
        make("SGD", foreach=True, fused=None, differentiable=False)
    [record] = caplog.records
    assert "SGD ignores foreach=True, differentiable=False, fused=None" in record.getMessage()

    @genesis.rule
    def Adam(param, grad, *, lr=0.1):  # noqa: N802
        return param - lr * grad

    assert "argument 'fused'" in message(TypeError, make, Adam, fused=True)


# ---- values are checked when they are set ----


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -0.1), ("lr", float("nan")), ("lr", "a"), ("lr", None), ("lr", True),
        ("betas", 0.9), ("betas", (0.9, 1.0)), ("eps", -1), ("amsgrad", 1), ("maximize", "no"),
        ("master_weights", 1), ("state_dtype", "float8"), ("lr", np.ones(2)),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_as_by_the_constructor(key, value):
    said = message((ValueError, TypeError), make, "AdamW", **{key: value})
    [group] = make("AdamW").param_groups
    before = dict(group)
    changes = [
        partial(group.__setitem__, key, value), partial(group.update, {"eps": 1.0, key: value}),
        partial(group.update, **{key: value}), partial(group.__ior__, {key: value}),
    ]  # fmt: skip
    if key not in group:
        changes.append(partial(group.setdefault, key, value))
    for change in changes:
        assert message((ValueError, TypeError), change) == said
        assert group == before
    group.pop(key, None)
    assert message((ValueError, TypeError), group.setdefault, key, value) == said


def test_possible_values_are_taken_in_every_way():
    p = parameter()
    opt = optim.AdamW([p])
    [group] = opt.param_groups
    group["lr"] = np.float32(0.5)
    group.update(eps=1.0)
    group.update({"weight_decay": 0})
    group |= {"betas": [0.0, 0.0]}
    assert group is opt.param_groups[0]
    assert group.setdefault("lr", -1) == 0.5  # it is there: nothing is set
    group["amsgrad"] = np.True_
    group["lr"] = lambda step: 0.5
    p.grad = np.ones((3, 2))
    opt.step()
    np.testing.assert_array_equal(p.data, np.full((3, 2), 0.75))
    del group["lr"]
    assert "it has no 'lr'" in message(ValueError, opt.step)


def test_settings_that_must_fit_together_are_asked_at_the_step():
    p = parameter()
    opt = optim.SGD([p], lr=0.1)
    [group] = opt.param_groups
    group["nesterov"] = True  # needs a momentum, which comes next
    group["momentum"] = 0.9
    p.grad = np.ones((3, 2))
    opt.step()
    group["momentum"] = 0.0
    assert "Nesterov" in message(ValueError, opt.step)


def test_plain_dicts_in_groups_are_asked_at_the_step():
    p = parameter()
    opt = optim.SGD([p], lr=0.1)
    opt.param_groups = [{**opt.param_groups[0], "mine": 1}]
    p.grad = np.ones((3, 2))
    opt.step()
    opt.param_groups[0]["lr"] = -1.0
    assert "Invalid learning rate: -1.0" in message(ValueError, opt.step)
    opt.param_groups[0]["lr"] = 1.0
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.5


def test_what_an_optimizer_does_not_support_is_refused_at_once():
    [group] = make("Muon").param_groups
    assert message(TypeError, group.__setitem__, "master_weights", True) == (
        "Muon does not support master_weights"
    )


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy]
    + [lambda g, p=p: pickle.loads(pickle.dumps(g, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)],
)
def test_a_group_is_a_dict(duplicate):
    opt = make("AdamW")
    [group] = opt.param_groups
    assert isinstance(group, dict)
    assert group == dict(group)
    assert repr(group) == repr(dict(group))
    assert type(group.copy()) is type(group | {}) is dict
    group["itself"] = group
    other = duplicate(group)
    assert type(other) is Group
    assert other.keys() == group.keys()
    assert other["lr"] == 1e-3
    assert (other["params"][0] is group["params"][0]) == (duplicate is copy.copy)
    assert "Invalid learning rate" in message(ValueError, other.__setitem__, "lr", -1)
    del group["itself"], other["itself"]
    [saved] = opt.state_dict()["param_groups"]
    assert type(saved) is dict
    opt.load_state_dict(opt.state_dict())
    assert type(opt.param_groups[0]) is Group
    opt.add_param_group({"params": parameter()})
    assert type(opt.param_groups[1]) is Group


def test_a_pickle_with_plain_dicts_is_loaded():
    opt = make("AdamW")
    opt.param_groups = [dict(group) for group in opt.param_groups]
    other = pickle.loads(pickle.dumps(opt))
    assert type(other.param_groups[0]) is dict
    other.param_groups[0]["params"][0].grad = np.ones((3, 2))
    other.step()


def test_a_scheduler_that_goes_out_of_range_changes_nothing():
    opt = optim.AdamW([parameter()], lr=0.1)
    scheduler_is_good = True
    scheduler = lr_scheduler.CyclicLR(
        opt, 0.1, 0.5, step_size_up=1, base_momentum=0.5, max_momentum=0.9,
        scale_fn=lambda cycle: 1.0 if scheduler_is_good else -9.0,
    )  # fmt: skip
    scheduler_is_good = False
    opt.param_groups[0]["params"][0].grad = np.ones((3, 2))
    opt.step()
    before, settings = scheduler.state_dict(), dict(opt.param_groups[0])
    said = message(ValueError, scheduler.step)
    assert "Invalid" in said
    assert said.endswith("(from CyclicLR at epoch 1)")
    assert scheduler.state_dict() == before
    assert opt.param_groups[0] == settings
    scheduler_is_good = True
    scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.5


# ---- hyper-parameters are no attributes ----


@each_optimizer
def test_hyper_parameters_are_no_attributes(name):
    opt = make(name)
    for key in opt.defaults:
        said = message(AttributeError, setattr, opt, key, 0.1)
        assert f"for group in optimizer.param_groups: group[{key!r}] = ..." in said
        assert f"group[{key!r}]" in message(AttributeError, getattr, opt, key)
        assert not hasattr(opt, key)
        assert not hasattr(type(opt), key)
        assert key not in vars(opt)
        assert key not in dir(opt)
        [descriptor] = [vars(base)[key] for base in type(opt).__mro__ if key in vars(base)]
        assert type(descriptor) is Misplaced
        assert inspect.getdoc(descriptor) is None  # so that documentation does not list it
    opt.anything = 1
    assert opt.anything == 1


def test_a_name_that_the_class_uses_otherwise_is_left_alone():
    @genesis.rule
    def odd(param, grad, *, lr=0.1, state=0.5, to=1.0):
        return param - lr * state * to * grad

    opt = make(odd)
    opt.state = {}
    assert opt.to("cpu") is opt

    class Warm(optim.SGD):
        momentum = "of the class"

    opt = make(Warm, lr=0.1)
    assert opt.momentum == "of the class"
    assert "dampening" in message(AttributeError, setattr, opt, "dampening", 1)


# ---- files ----


def test_swapped_arguments_of_save_are_told(tmp_path):
    path = tmp_path / "file"
    for obj in ({"a": 1}, [1], np.ones(2)):
        said = message(TypeError, genesis.save, path, obj)
        assert "the call is save(obj, path), and these arguments are the other way round" in said
    assert message(TypeError, genesis.save, {"a": 1}, 3).endswith("the call is save(obj, path)")
    assert message(TypeError, genesis.load, {"a": 1}).endswith("got a dict: the call is load(path)")
    opt = make("AdamW")
    for call, text in [
        (genesis.save_checkpoint, "save_checkpoint(path, name=object, ...)"),
        (genesis.load_checkpoint, "load_checkpoint(path, name=object, ...)"),
    ]:
        for args in [(opt,), (opt, path), (path, opt)]:
            said = message(TypeError, call, *args)
            assert f"the call is {text}" in said
            assert said.endswith("the other way round") == (args == (opt, path))
        assert "needs a name" in message(TypeError, call, path, opt, epoch=1)
    assert not path.exists()
    genesis.save("a string", path)
    assert genesis.load(path) == "a string"


# ---- compilation ----


@pytest.fixture
def fresh(monkeypatch):
    """As if nothing had been compiled; each look at the clock comes 0.3 seconds after the last."""
    now = iter(0.3 * i for i in range(1000))
    for name, value in [("_spent", 0.0), ("_made", []), ("_said", False), ("clock", now.__next__)]:
        monkeypatch.setattr(waiting, name, value)


_number = 0


def _plus(x):
    return x + _number


def compiled(number, what):
    made = specialise.specialised(_plus, what, {"_number": number})
    int64 = numba.types.int64
    assert specialise.compile_function(made, int64(int64), what=what)(1) == 1 + number


def test_waiting_for_compilations_is_told_once(fresh, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GENESIS_CACHE", "1")
    with caplog.at_level(logging.WARNING, "genesis"):
        for number in range(3):
            compiled(number, f"kernel {number}")
        assert not caplog.records
        for _ in range(9):
            compiled(0, "kernel 0")  # from the disk
        assert not caplog.records
        for number in range(3, 9):
            compiled(number, f"kernel {number}")
    [record] = caplog.records
    assert (record.name, record.levelno) == ("genesis", logging.WARNING)
    said = record.getMessage()
    assert said.startswith(
        "compiling took 1.2 s so far in this process (kernel 0; kernel 1; kernel 2; kernel 3): "
    )
    assert str(tmp_path) in said
    assert said.endswith("so that later runs need not wait")


def test_waiting_in_vain_is_told(fresh, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "NOTICED", 0.1)
    monkeypatch.setenv("GENESIS_CACHE", "0")
    with caplog.at_level(logging.WARNING, "genesis"):
        compiled(1, "kernel")
    assert "not kept, as GENESIS_CACHE=0 says" in caplog.text
    monkeypatch.setenv("GENESIS_CACHE", "1")
    said = waiting._prospect(SimpleNamespace(_cache=None))
    assert "not kept for later runs" in said
    assert "NUMBA_CACHE_DIR" in said


def test_a_rules_name_and_types_are_told(fresh, caplog, monkeypatch):
    monkeypatch.setattr(waiting, "NOTICED", 0.1)
    monkeypatch.setenv("GENESIS_CACHE", "0")

    @genesis.rule
    def Whose(param, grad, *, lr=0.123):  # noqa: N802
        return param - lr * grad

    p = parameter(np.float32)
    p.grad = np.ones((3, 2), np.float32)
    with caplog.at_level(logging.WARNING, "genesis"):
        Whose([p]).step()
    assert "(Whose for float32)" in caplog.text


# ---- repr ----


def test_an_optimizer_in_one_line():
    p, q = parameter(np.float32, (30, 100)), parameter(np.float64, (5,))
    opt = optim.AdamW([p])
    assert repr(opt) == "AdamW(lr=0.001): 1 parameter, 3,000 elements, float32, 0 steps"
    p.grad = np.ones((30, 100), np.float32)
    opt.step()
    assert repr(opt) == "AdamW(lr=0.001): 1 parameter, 3,000 elements, float32, 1 step"
    groups = [{"params": p}, {"params": q, "lr": 0.5}]
    opt = optim.AdamW(groups, lr=0.1, betas=(0.5, 0.9), state_dtype="bfloat16")
    opt.step()
    assert repr(opt) == (
        "AdamW(2 groups, lr=0.1 / 0.5, betas=(0.5, 0.9), state_dtype='bfloat16'): 2 parameters, "
        "3,005 elements, float32, float64, 1 step"
    )
    opt = optim.SGD([p], lr=genesis.optim.schedules.cosine(10), momentum=0.5)
    assert repr(opt).startswith("SGD(lr=cosine(T_max=10, ")
    opt = optim.SGD([{"params": parameter()} for _ in range(9)], lr=0.1)
    for i, group in enumerate(opt.param_groups):
        group["lr"] = 0.1 * i
    assert repr(opt).startswith("SGD(9 groups, lr=0 / 0.1 / 0.2 / 0.3 / ...): 9 parameters, 54 ")


@each_optimizer
def test_only_what_is_not_the_default_is_shown(name):
    opt = make(name)
    lr = opt.defaults["lr"]
    assert repr(opt) == f"{name}(lr={lr:.6g}): 1 parameter, 6 elements, float64, 0 steps"
    other = make(name)
    take = {"SparseAdam": genesis.SparseGrad(np.arange(3), np.ones((3, 2)))}
    other.param_groups[0]["params"][0].grad = take.get(name, np.ones((3, 2)))
    other.step(*[lambda: 1.0] * (name == "LBFGS"))
    assert repr(other).endswith(", 1 step")
    if name not in ("SGD", "Muon", "LBFGS"):  # which do not count the steps of each parameter
        opt.load_state_dict(other.state_dict())
        assert repr(opt).endswith(", 1 step")


SCHEDULERS = {
    "LambdaLR(lr_lambda=abs): epoch 0, lr 0": lambda o: lr_scheduler.LambdaLR(o, abs),
    "StepLR(step_size=3): epoch 0, lr 1": lambda o: lr_scheduler.StepLR(o, 3),
    "StepLR(step_size=3, gamma=0.5): epoch 0, lr 1": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR(milestones=[1, 2]): epoch 0, lr 1": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
    "ConstantLR(): epoch 0, lr 0.333333": lr_scheduler.ConstantLR,
    "LinearLR(start_factor=0.5): epoch 0, lr 0.5": lambda o: lr_scheduler.LinearLR(o, 0.5),
    "ExponentialLR(gamma=0.5): epoch 0, lr 1": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR(total_iters=9): epoch 0, lr 1": lambda o: lr_scheduler.PolynomialLR(o, 9),
    "CosineAnnealingLR(T_max=4): epoch 0, lr 1": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts(T_0=4): epoch 0, lr 1": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4)
    ),
    "SWALR(swa_lr=0.5, anneal_strategy='linear'): epoch 0, lr 1": (
        lambda o: lr_scheduler.SWALR(o, 0.5, anneal_strategy="linear")
    ),
    "CyclicLR(base_lr=0.1, max_lr=0.5, step_size_up=9, step_size_down=9): epoch 0, lr 0.1": (
        lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 9)
    ),
    "OneCycleLR(max_lr=0.5, total_steps=9): epoch 0, lr 0.02": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, 9)
    ),
    "ReduceLROnPlateau(patience=3): epoch 0, lr 1": (
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=3)
    ),
    "MultiplicativeLR(lr_lambda=abs): epoch 0, lr 1": (
        lambda o: lr_scheduler.MultiplicativeLR(o, abs)
    ),
    "SequentialLR(schedulers=[StepLR(step_size=3), LinearLR()], milestones=[2]): epoch 0, lr 1": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.StepLR(o, 3), lr_scheduler.LinearLR(o)], [2]
        )
    ),
    "ChainedScheduler(schedulers=[StepLR(step_size=3), LinearLR()]): epoch 0, lr 0.333333": (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.StepLR(o, 3), lr_scheduler.LinearLR(o)]
        )
    ),
}


@pytest.mark.parametrize(("text", "scheduler"), SCHEDULERS.items())
def test_a_scheduler_in_one_line(text, scheduler):
    assert repr(scheduler(optim.SGD([parameter()], lr=1, momentum=0.5))) == text


def test_every_scheduler_is_shown():
    shown = {text.partition("(")[0] for text in SCHEDULERS}
    public = {
        name for name in lr_scheduler.__all__ if isinstance(getattr(lr_scheduler, name), type)
    }
    assert shown == public - {"LRScheduler"}


def test_a_scheduler_says_where_it_stands():
    opt = optim.SGD([{"params": parameter()}, {"params": parameter(), "lr": 0.5}], lr=1)
    scheduler = lr_scheduler.ExponentialLR(opt, 0.1)
    opt.step(grads=[np.ones((3, 2)), None])
    scheduler.step()
    assert repr(scheduler) == "ExponentialLR(gamma=0.1): epoch 1, lr 0.1 / 0.05"


def test_a_scaler_and_averages_in_one_line():
    scaler = genesis.amp.GradScaler(8.0, growth_interval=5)
    assert repr(scaler) == "GradScaler(growth_interval=5): scale 8.0, 0 updates since it changed"
    assert repr(genesis.amp.GradScaler(enabled=False)) == "GradScaler(enabled=False)"
    size = "1 parameter, 6 elements, float64"
    mean = swa_utils.AveragedParameters([parameter()])
    mean.update()
    assert repr(mean) == f"AveragedParameters: running mean of {size}, 1 update"
    mean = swa_utils.AveragedParameters([parameter()], swa_utils.get_ema_weight_fn(0.5))
    assert repr(mean) == (
        f"AveragedParameters: exponential average, decay 0.5, of {size}, 0 updates"
    )
    assert "average by abs of" in repr(swa_utils.AveragedParameters([parameter()], abs))


class _Angry:
    def __repr__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = None


def test_showing_never_fails():
    for kind in (optim.AdamW, optim.LBFGS, lr_scheduler.StepLR, lr_scheduler.SequentialLR):
        half = kind.__new__(kind)
        assert kind.__name__ in repr(half)
        assert kind.__name__ in str(half)
    for kind in (genesis.amp.GradScaler, swa_utils.AveragedParameters):
        assert kind.__name__ in repr(kind.__new__(kind))
    opt = make("AdamW")
    scheduler = lr_scheduler.StepLR(opt, 3)
    for edit in (
        lambda group: group.update({3: 4}),
        lambda group: group.pop("lr"),
        lambda group: group.update(params=None),
        lambda group: dict.update(group, lr=_Angry(), betas=np.ones(3)),
        lambda group: opt.param_groups.append(None),
    ):
        edit(opt.param_groups[0])
        for shown in (opt, scheduler):
            assert type(shown).__name__ in repr(shown)
            assert type(shown).__name__ in str(shown)
            assert "\n" not in repr(shown)


# ---- clipping ----


def test_clipping_torchs_parameters_among_others():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Parameter(torch.ones(3))
    for given in ([parameter(), theirs], {"ours": parameter(), "theirs": theirs}):
        for clip in (
            partial(genesis.nn.utils.clip_grad_norm_, max_norm=1.0),
            partial(genesis.nn.utils.clip_grad_value_, clip_value=1.0),
        ):
            said = message(TypeError, clip, given)
            assert said.startswith("expected either genesis.Parameters or torch's, but ")
            assert "is torch's Parameter among others" in said
            assert "a call of their own" in said
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    said = message(TypeError, genesis.nn.utils.clip_grad_norm_, model, 1.0)
    assert said.endswith("is a Linear: give its parameters()")
