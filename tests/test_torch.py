"""genesis.torch: torch's optimizers with genesis' step, by torch's own database and checks.

What is checked of an optimizer here is condensed from torch's tests of its own. Each check is run on
torch's class first: where that passes, ours has to.
"""

import copy
import gc
import inspect
import io
import logging
import pickle
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from cases import CASES
from devices import on_cpu_only

import genesis
from genesis.optim import options

torch = pytest.importorskip("torch")
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

database = pytest.importorskip("torch.testing._internal.common_optimizers")
ours = pytest.importorskip("genesis.torch")

pytestmark = [pytest.mark.torch, on_cpu_only]

NAMES = [name for name in ours.__all__ if hasattr(torch.optim, name)]
INFOS = {info.optim_cls.__name__: info for info in database.optim_db}
SHAPES = [(10, 5), (10,), (), (0,), (3, 4, 2, 2)]
Parameter = torch.nn.Parameter


def inputs(name, skip=("differentiable",)):
    """All settings of an optimizer in torch's database, with `foreach` and `fused` in all states."""
    found = database._get_optim_inputs_including_global_cliquey_kwargs(
        "cpu", torch.float32, INFOS[name], skip=skip
    )
    return [one.kwargs for one in found if "capturable" not in one.kwargs]


def parameters(seed=0, shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params, step, others=()):
    """New gradients, in new memory, the same ones for `others`."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        if others:
            others[i].grad = param.grad.to(others[i].dtype, copy=True)


def assert_near(params, others, before=None, rtol=2e-5, atol=5e-7):
    for i, (param, other) in enumerate(zip(params, others)):
        start = 0 if before is None else before[i]
        torch.testing.assert_close(
            param.detach() - start, other.detach() - start, rtol=rtol, atol=atol
        )


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        set_gradients(params, step)
        optimizer.step()


# ---- torch's numbers ----


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_are_torchs(name):
    for kwargs in inputs(name):
        params, others = parameters(), parameters()
        before = [param.detach().clone() for param in params]
        peer = getattr(torch.optim, name)(
            params, **{**kwargs, "foreach": False, "fused": None} if "fused" in kwargs else kwargs
        )
        optimizer = getattr(ours, name)(others, **kwargs)
        assert isinstance(optimizer, getattr(torch.optim, name))
        for step in range(6):
            set_gradients(params, step, others)
            peer.step()
            optimizer.step()
        assert optimizer.fast == (len(SHAPES), 0, 0, {})
        assert_near(params, others, before)
        assert [*optimizer.state_dict()["state"].get(0, {})] == [
            *peer.state_dict()["state"].get(0, {})
        ]


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_torchs(name):
    torchs, own = (inspect.signature(getattr(of, name)) for of in (torch.optim, ours))
    count = len(torchs.parameters)
    assert [*own.parameters.values()][:count] == [*torchs.parameters.values()]
    caution = ["cautious", "cautious_weight_decay"] if name in ("Adam", "AdamW", "NAdam") else []
    assert [*own.parameters][count:] == ["strict", *options.HYPERS, *caution]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("from_torch", [True, False])
def test_state_dict_goes_over_in_the_middle_of_a_run(name, from_torch):
    kwargs = {"momentum": 0.9} if name == "SGD" else {}
    classes = [getattr(torch.optim, name), getattr(ours, name)]
    first, second = classes if from_torch else classes[::-1]
    params, others, reference = parameters(), parameters(), parameters()
    before = [param.detach().clone() for param in params]
    peer = getattr(torch.optim, name)(reference, **kwargs)
    optimizer = first(params, **kwargs)
    run(peer, reference, 8)
    run(optimizer, params, 4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for other, param in zip(others, params):
        other.data.copy_(param.data)
    optimizer = second(others, **kwargs)
    optimizer.load_state_dict(saved)
    run(optimizer, others, 4, first=4)
    assert_near(reference, others, before)
    for mine, its in zip(optimizer.state.values(), peer.state.values()):
        assert mine.keys() == its.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, its[key], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types(dtype):
    params, others = parameters(dtype=dtype), parameters(dtype=torch.float64)
    for other, param in zip(others, params):
        other.data.copy_(param.data)
    optimizer, peer = ours.Adam(params, lr=0.1), torch.optim.Adam(others, lr=0.1)
    for step in range(4):
        set_gradients(params, step, others)
        optimizer.step()
        peer.step()
    assert optimizer.state[params[0]]["exp_avg"].dtype == dtype
    eps = torch.finfo(dtype).eps
    assert_near([p.double() for p in params], others, rtol=8 * eps, atol=8 * eps)


def test_types_in_one_group_and_double_in_the_middle():
    model = torch.nn.Linear(4, 3)
    extra = Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = ours.AdamW([*model.parameters(), extra], lr=0.1)
    run(optimizer, [*model.parameters(), extra], 2)
    assert optimizer.fast.genesis == 3
    before = model.weight.detach().clone()
    model.double()
    assert model.weight.dtype == torch.float64
    run(optimizer, [*model.parameters(), extra], 1, first=2)
    assert optimizer.fast.genesis == 3
    assert model.weight.dtype == torch.float64
    moved = (model.weight.detach() - before).abs()
    assert 0.0 < moved.max() < 0.3


def test_channels_last_is_flat():
    images = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    params, others = [Parameter(images.clone())], [Parameter(images.clone())]
    assert not params[0].is_contiguous()
    optimizer, peer = ours.AdamW(params, strict=True), torch.optim.AdamW(others)
    for step in range(4):
        set_gradients(params, step, others)
        if step % 2:  # in the parameter's order, else in another, which costs a copy
            params[0].grad = params[0].grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
        peer.step()
    assert_near(params, others)
    state = optimizer.state[params[0]]["exp_avg"]
    assert state.stride() == params[0].stride()


def test_expanded_gradients_are_read():
    param, other = Parameter(torch.ones(3, 4)), Parameter(torch.ones(3, 4))
    param.grad = torch.tensor(0.5).expand(3, 4)
    other.grad = torch.full((3, 4), 0.5)
    ours.Adam([param], strict=True).step()
    torch.optim.Adam([other]).step()
    assert_near([param], [other])


# ---- torch's checks, condensed ----


def _least_squares(cls, kwargs, scheduler_inputs=(), transposed=False):
    weight = torch.randn(10, 5)
    weight = Parameter(weight.t().contiguous().t() if transposed else weight)
    bias = Parameter(torch.randn(10))
    wanted = torch.randn(5)
    optimizer = cls([weight, bias], **kwargs)
    schedulers = [make(optimizer) for make in scheduler_inputs]

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(wanted) + bias).pow(2).sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(10):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)
            else:
                scheduler.step()
    last = closure().item()
    assert last > first if kwargs.get("maximize") else last < first


def check_goes_right_direction(cls, info):
    for kwargs in inputs(info.optim_cls.__name__):
        torch.manual_seed(1)
        _least_squares(cls, kwargs)
        _least_squares(cls, kwargs, transposed=True)


def check_goes_right_direction_with_schedulers(cls, info):
    for schedulers in info.scheduler_inputs:
        torch.manual_seed(1)
        kwargs = {"lr": 0.01} if info.optim_cls.__name__ in ("SGD", "ASGD") else {}
        _least_squares(cls, kwargs, schedulers)


def check_tensor_lr(cls, info):
    for kwargs in inputs(info.optim_cls.__name__):
        if kwargs.get("foreach") or ("lr" in kwargs and isinstance(kwargs["lr"], torch.Tensor)):
            continue
        params, others = parameters(), parameters()
        lr = 0.01
        one = cls(params, **{**kwargs, "lr": torch.tensor(lr)})
        two = cls(others, **{**kwargs, "lr": lr})
        run(one, params, 4)
        run(two, others, 4)
        assert_near(params, others)
        assert isinstance(one.param_groups[0]["lr"], torch.Tensor)


def check_groups(cls, info):
    params, others = parameters(), parameters()
    groups = [{"params": params[:2], "lr": 0.003}, {"params": params[2:]}]
    one, two = cls(groups, lr=0.01), cls(others[2:], lr=0.01)
    run(one, params, 3)
    for step in range(3):
        set_gradients(others, step)
        two.step()
    assert_near(params[2:], others[2:], rtol=0, atol=0)


def check_state_dict_is_deterministic(cls, info):
    for kwargs in inputs(info.optim_cls.__name__):
        params = parameters()
        one = cls(params, **kwargs)
        run(one, params, 3)
        others = [Parameter(param.detach().clone()) for param in params]
        two = cls(others, **kwargs)
        two.load_state_dict(copy.deepcopy(one.state_dict()))
        run(one, params, 3, first=3)
        run(two, others, 3, first=3)
        assert_near(params, others, rtol=0, atol=0)


def check_save_load_with_weights_only(cls, info):
    for kwargs in inputs(info.optim_cls.__name__):
        params = parameters()
        optimizer = cls(params, **kwargs)
        run(optimizer, params, 3)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved, wanted = torch.load(file, weights_only=True), optimizer.state_dict()
        assert saved["param_groups"] == wanted["param_groups"]
        for key, entries in wanted["state"].items():
            assert type(entries) is dict
            for name, value in entries.items():
                assert torch.equal(saved["state"][key][name], value)


def check_older_state_dict(cls, info):
    params = parameters()
    optimizer = cls(params)
    run(optimizer, params, 3)
    old = copy.deepcopy(optimizer.state_dict())
    for entries in old["state"].values():
        if "step" in entries:
            entries["step"] = entries["step"].item()
    for group in old["param_groups"]:
        for flag in ("maximize", "foreach", "differentiable", "capturable"):
            group.pop(flag, None)
    optimizer.load_state_dict(old)
    run(optimizer, params, 2, first=3)


def check_named_parameters(cls, info):
    names = [f"p{i}" for i in range(len(SHAPES))]
    params = parameters()
    optimizer = cls(zip(names, params))
    run(optimizer, params, 1)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


def check_pickle_and_deepcopy(cls, info):
    params = parameters()
    optimizer = cls(params)
    run(optimizer, params, 2)
    copied = copy.deepcopy(optimizer)
    again = pickle.loads(pickle.dumps(optimizer))
    run(optimizer, params, 2, first=2)
    for other in (copied, again):
        others = other.param_groups[0]["params"]
        assert others[0] is not params[0]
        run(other, others, 2, first=2)
        assert_near(params, others, rtol=0, atol=0)


def check_step_hooks(cls, info):
    params = parameters()
    optimizer = cls(params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    handle = register_optimizer_step_pre_hook(lambda *_: seen.append("all"))
    try:
        run(optimizer, params, 2)
    finally:
        handle.remove()
    assert seen == ["all", "pre", "post"] * 2
    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((self, lambda: 5.0), kwargs))
    set_gradients(params, 3)
    assert optimizer.step() == 5.0


def check_state_dict_hooks(cls, info):
    params = parameters()
    optimizer, seen = cls(params), []
    run(optimizer, params, 1)
    optimizer.register_state_dict_pre_hook(lambda self: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda self, found: {**found, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda self, found: seen.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append("loaded"))
    found = optimizer.state_dict()
    assert found["more"] == 1
    optimizer.load_state_dict(found)
    assert seen == ["pre", "load", "loaded"]


def check_no_gradients(cls, info):
    params = parameters()
    optimizer = cls(params)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    assert_near(params, before, rtol=0, atol=0)
    set_gradients(params, 0)
    params[0].grad = None
    optimizer.step()
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])


def check_complex(cls, info):
    for kwargs in inputs(info.optim_cls.__name__):
        if kwargs.get("fused"):
            continue
        param = Parameter(torch.randn(5, dtype=torch.complex64))
        other = Parameter(param.detach().clone())
        one, two = cls([param], **kwargs), info.optim_cls([other], **kwargs)
        for _ in range(3):
            param.grad = torch.randn(5, dtype=torch.complex64)
            other.grad = param.grad.clone()
            one.step()
            two.step()
        torch.testing.assert_close(param, other)


def check_sparse(cls, info):
    if not info.supports_sparse:
        return
    params, others = [Parameter(torch.ones(4, 2))], [Parameter(torch.ones(4, 2))]
    one, two = cls(params, lr=0.1), cls(others, lr=0.1)
    for _ in range(3):
        dense = torch.zeros(4, 2)
        dense[1] = 0.5
        params[0].grad, others[0].grad = dense.to_sparse(1), dense
        one.step()
        two.step()
    assert_near(params, others)


def check_errors(cls, info):
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        params = case.optimizer_error_input.params
        kwargs = case.optimizer_error_input.kwargs
        is_warning = issubclass(case.error_type, Warning)
        expected = (pytest.warns if is_warning else pytest.raises)(
            case.error_type, match=case.error_regex
        )
        if case.error_on == database.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with expected:
                cls(params, **kwargs)
        else:
            optimizer = cls(params, **kwargs)
            with expected:
                optimizer.step()


def check_differentiable(cls, info):
    param = torch.rand(5, dtype=torch.float64, requires_grad=True)
    grad = torch.rand(5, dtype=torch.float64, requires_grad=True)
    moved = param.clone()
    moved.grad = grad
    optimizer = cls([moved], lr=0.1, differentiable=True)
    optimizer.step()
    moved.sum().backward()
    assert grad.grad is not None or param.grad is not None


def check_scaler_with_an_inf_step(cls, info):
    for fused in (False, True):
        kwargs = {"lr": 0.1}
        if fused:
            if "fused" not in inspect.signature(cls).parameters:
                continue
            kwargs["fused"] = True
        params, others = parameters(shapes=[(10, 5), (10,)]), parameters(shapes=[(10, 5), (10,)])
        one, two = cls(params, **kwargs), info.optim_cls(others, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0, growth_interval=100)
        for step in range(4):
            set_gradients(params, step, others)
            scaler.scale(torch.ones(()))  # makes the scale
            for param in params:
                param.grad *= scaler.get_scale()
            if step == 2:
                params[0].grad[0] = torch.inf
            else:
                two.step()
            scaler.step(one)
            scaler.update()
        assert_near(params, others)
        assert scaler.get_scale() == 64.0


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
@pytest.mark.parametrize("name", NAMES)
def test_checks_that_torch_passes(name, check):
    info = INFOS[name]
    torch.manual_seed(0)
    try:
        check(getattr(torch.optim, name), info)
    except Exception as error:
        pytest.skip(f"torch's own fails: {type(error).__name__}: {error}")
    torch.manual_seed(0)
    check(getattr(ours, name), info)


# ---- what torch lets anybody do between two steps ----


@pytest.fixture
def pair():
    """Our AdamW and torch's on equal parameters, after two steps; `go` makes more and compares."""

    class Pair:
        def __init__(self):
            self.params, self.others = parameters(), parameters()
            self.optimizer = ours.AdamW(self.params, lr=0.1)
            self.peer = torch.optim.AdamW(self.others, lr=0.1)
            self.steps = 0
            self.go(2)

        def both(self, edit):
            edit(self.optimizer, self.params)
            edit(self.peer, self.others)

        def go(self, steps=2, edit_gradients=None):
            for _ in range(steps):
                set_gradients(self.params, self.steps, self.others)
                if edit_gradients is not None:
                    edit_gradients(self.params)
                    edit_gradients(self.others)
                self.optimizer.step()
                self.peer.step()
                self.steps += 1
            assert_near(self.params, self.others)

    return Pair()


def _set_state(optimizer, params):
    optimizer.state[params[0]]["exp_avg"].fill_(0.5)


def _replace_state(optimizer, params):
    optimizer.state[params[0]]["exp_avg"] = torch.full_like(params[0], 0.5).detach()


def _replace_state_data(optimizer, params):
    optimizer.state[params[0]]["exp_avg"].data = torch.full((10, 5), 0.25)


def _transpose_state(optimizer, params):
    entry = optimizer.state[params[0]]["exp_avg_sq"]
    entry.data = entry.t().contiguous().t()


def _drop_state(optimizer, params):
    del optimizer.state[params[1]]


def _clear_state(optimizer, params):
    optimizer.state.clear()


def _other_entries(optimizer, params):
    optimizer.state[params[0]] = copy.deepcopy(optimizer.state[params[0]])


def _reordered_state(optimizer, params):
    entries = optimizer.state.pop(params[0])
    optimizer.state[params[0]] = entries


def _set_step(optimizer, params):
    optimizer.state_dict()  # after which no two have one in common
    optimizer.state[params[0]]["step"].fill_(50.0)


def _set_step_by_hand(optimizer, params):
    for param in params:
        optimizer.state[param]["step"] = torch.tensor(7.0)


def _replace_data(optimizer, params):
    params[0].data = torch.linspace(0, 1, 50).reshape(10, 5)


def _replace_data_by_part_of_another(optimizer, params):
    params[0].data = torch.linspace(0, 1, 200)[25:75].reshape(10, 5)


def _replace_data_by_gaps(optimizer, params):
    params[0].data = torch.linspace(0, 1, 100).reshape(10, 10)[:, ::2]


def _set_in_place(optimizer, params):
    with torch.no_grad():
        params[1].set_(torch.linspace(0, 1, 10))


def _move_to_shared_memory(optimizer, params):
    params[0].untyped_storage().share_memory_()
    optimizer.state[params[0]]["exp_avg"].share_memory_()


def _change_group(optimizer, params):
    optimizer.param_groups[0].update(lr=0.02, betas=(0.5, 0.6), maximize=True, weight_decay=0.3)


def _tensor_lr(optimizer, params):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.05)


def _swap_params(optimizer, params):
    listed = optimizer.param_groups[0]["params"]
    listed[0], listed[1] = listed[1], listed[0]


def _remove_param(optimizer, params):
    optimizer.param_groups[0]["params"].pop(0)


def _load_itself(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _freed_storage(optimizer, params):
    """As FSDP does with what it does not need for a while."""
    storage, kept = params[0].untyped_storage(), params[0].detach().clone()
    storage.resize_(0)
    storage.resize_(4 * 50)
    params[0].data.copy_(kept)


EDITS = [
    _set_state, _replace_state, _replace_state_data, _transpose_state, _drop_state, _clear_state,
    _other_entries, _reordered_state, _set_step, _set_step_by_hand, _replace_data,
    _replace_data_by_part_of_another, _replace_data_by_gaps, _set_in_place, _move_to_shared_memory,
    _change_group, _tensor_lr, _swap_params, _remove_param, _load_itself, _freed_storage,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__[1:])
def test_what_was_edited_between_steps_counts(pair, edit):
    pair.both(edit)
    pair.go()
    pair.both(edit)
    pair.go()


def test_added_group(pair):
    more = parameters(seed=5, shapes=[(4,)]), parameters(seed=5, shapes=[(4,)])
    pair.optimizer.add_param_group({"params": more[0], "lr": 0.01})
    pair.peer.add_param_group({"params": more[1], "lr": 0.01})
    pair.params += more[0]
    pair.others += more[1]
    pair.go()
    assert pair.optimizer.fast.genesis == len(SHAPES) + 1


def test_gradients_come_and_go(pair):
    def without(rows):
        def edit(params):
            for row in rows:
                params[row].grad = None

        return edit

    for rows in ([0], [1, 2], [], [0, 1, 2, 3, 4], [4]):
        pair.go(1, without(rows))
        assert pair.optimizer.fast[:3] == (len(SHAPES) - len(rows), 0, len(rows))
    steps = {id(entries["step"]) for entries in pair.optimizer.state.values()}
    saved = pair.optimizer.state_dict()["state"]
    wanted = pair.peer.state_dict()["state"]
    assert [saved[i]["step"] for i in saved] == [wanted[i]["step"] for i in wanted]
    assert len({id(saved[i]["step"]) for i in saved}) == len(saved) > len(steps)


def test_resized_state_is_refused_as_torch_refuses_it(pair):
    pair.optimizer.state[pair.params[0]]["exp_avg"].resize_(3, 5)
    before = [param.detach().clone() for param in pair.params]
    with pytest.raises(RuntimeError):
        pair.optimizer.step()  # torch's own, which has begun with the one parameter by then
    assert_near(pair.params[1:], before[1:], rtol=0, atol=0)


def test_storage_that_became_too_small_is_not_touched(pair):
    pair.params[0].grad.untyped_storage().resize_(8)
    pair.optimizer.strict = True
    before = pair.params[1].detach().clone()
    with pytest.raises(RuntimeError, match="memory out of reach"):
        pair.optimizer.step()
    assert torch.equal(pair.params[1], before)


def test_gradient_that_is_only_noted_as_negative():
    param, other = Parameter(torch.ones(1)), Parameter(torch.ones(1))
    for one in (param, other):
        one.grad = torch.tensor([1.0 + 2.0j]).conj().imag
        assert one.grad.is_neg()
    optimizer = ours.SGD([param], lr=0.1)
    optimizer.step()
    torch.optim.SGD([other], lr=0.1).step()
    assert torch.equal(param, other)
    assert optimizer.fast.torch == 1


def test_gradient_that_is_the_parameter_itself():
    param, other = Parameter(torch.ones(4)), Parameter(torch.ones(4))
    param.grad, other.grad = param.data, other.data
    optimizer = ours.AdamW([param], lr=0.1, weight_decay=0.5)
    optimizer.step()
    torch.optim.AdamW([other], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(param, other)
    assert "memory that the step writes" in str(optimizer.fast.reasons)


@pytest.mark.parametrize("whole", [True, False])
def test_parameters_that_share_memory(whole):
    memory = torch.ones(2, 8)
    params, others = (
        [Parameter(m[0, :6]), Parameter(m[0, :6] if whole else m[0, 2:8])]
        for m in (memory, memory.clone())
    )
    optimizer, peer = ours.Adam(params, lr=0.1), torch.optim.Adam(others, lr=0.1)
    for step in range(3):
        set_gradients(params, step, others)
        optimizer.step()
        peer.step()
    assert_near(params, others)
    assert optimizer.fast.torch == 2


def test_tied_weights_are_one_parameter():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    optimizer = ours.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert optimizer.fast.genesis == 3


def test_autograd_refuses_what_was_saved_before_a_step():
    param = Parameter(torch.ones(3))
    optimizer = ours.SGD([param], lr=0.1)
    loss = (param**2).sum()
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_replaced_memory_is_not_held():
    param = Parameter(torch.ones(1000))
    optimizer = ours.SGD([param], lr=0.1)
    run(optimizer, [param], 2)
    grad = weakref.ref(param.grad)
    param.grad = None
    gc.collect()
    assert grad() is None


def test_two_threads_at_once():
    params = parameters(shapes=[(50, 50)] * 8)
    optimizer = ours.Adam(params, lr=1e-3)
    run(optimizer, params, 1)
    stop, errors = threading.Event(), []

    def stepping():
        try:
            while not stop.is_set():
                optimizer.step()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=stepping) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        for param in params:
            if turn % 3 == 0:
                param.data = torch.randn(50, 50)
            param.grad = torch.randn(50, 50)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.isfinite(param).all() for param in params)


# ---- what torch does itself ----


def test_what_is_left_to_torch_is_told_once(caplog):
    params, others = parameters(), parameters()
    for each in (params, others):
        each.append(Parameter(torch.ones(3, dtype=torch.complex64)))
    optimizer, peer = ours.Adam(params, lr=0.1), torch.optim.Adam(others, lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    with caplog.at_level(logging.WARNING, "genesis"):
        for step in range(4):
            set_gradients(params, step, others)
            if step == 3:
                params[0].grad = others[0].grad = None
            optimizer.step()
            peer.step()
    assert_near(params, others)
    assert len(calls) == 4
    assert optimizer.fast == (4, 1, 1, {"parameter of torch.complex64": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "Adam leaves 1 parameters to torch's own step (1 for: parameter of torch.complex64)"
    ]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_moving_between_the_ways_keeps_each_step_count():
    params, others = ([Parameter(torch.ones(4, 2)) for _ in range(3)] for _ in range(2))
    optimizer, peer = ours.Adagrad(params, lr=0.1), torch.optim.Adagrad(others, lr=0.1)
    for step in range(6):
        set_gradients(params, step, others)
        if step in (2, 3, 5):
            for each in (params, others):
                each[0].grad = each[0].grad.to_sparse(1)
                each[1].grad = each[1].grad.to_sparse(1)
        optimizer.step()
        peer.step()
        assert optimizer.fast.torch == (2 if step in (2, 3, 5) else 0)
    assert_near(params, others)
    assert [optimizer.state[p]["step"].item() for p in params] == [6.0] * 3


def test_strict_refuses_before_anything_is_written():
    params = parameters()
    params.append(Parameter(torch.ones(3, dtype=torch.complex64)))
    optimizer = ours.SGD(params, lr=0.1, strict=True)
    set_gradients(params, 0)
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match=r"strict=True.*complex64"):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert copy.deepcopy(optimizer).strict


def test_bad_number_in_the_last_group_leaves_the_first():
    params = parameters()
    optimizer = ours.SGD([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    set_gradients(params, 0)
    optimizer.param_groups[1]["lr"] = "fast"
    before = [param.detach().clone() for param in params]
    with pytest.raises(TypeError):
        optimizer.step()
    assert all(map(torch.equal, params, before))


class _Subclass(torch.Tensor):
    pass


def test_subclasses_and_other_devices_are_torchs():
    tensor = torch.ones(3).as_subclass(_Subclass).requires_grad_()
    tensor.grad = torch.ones(3)
    meta = Parameter(torch.ones(3, device="meta"))
    meta.grad = torch.ones(3, device="meta")
    optimizer = ours.SGD([tensor, meta], lr=0.1)
    optimizer.step()
    assert optimizer.fast.torch == 2
    assert torch.equal(tensor.detach().as_subclass(torch.Tensor), torch.full((3,), 0.9))


def test_capturable_on_the_cpu_is_torchs_own_error():
    params = parameters()
    optimizer = ours.Adam(params, capturable=True)
    set_gradients(params, 0)
    with pytest.raises(AssertionError, match="capturable"):
        optimizer.step()


def test_gradients_of_another_device_or_shape_are_refused_by_torch():
    param = Parameter(torch.ones(3))
    with pytest.raises((RuntimeError, TypeError)):
        param.grad = torch.ones(3, device="meta")


# ---- more than torch ----


def test_max_norm_clips_in_the_same_pass():
    params, others = parameters(), parameters()
    optimizer, peer = ours.AdamW(params, lr=0.1), torch.optim.AdamW(others, lr=0.1)
    for step in range(3):
        set_gradients(params, step, others)
        norm = torch.nn.utils.clip_grad_norm_(others, 0.5)
        peer.step()
        before = params[0].grad.clone()
        optimizer.step(max_norm=0.5)
        assert optimizer.grad_norm == pytest.approx(norm.item(), rel=1e-6)
        assert torch.equal(params[0].grad, before)
    assert_near(params, others)
    with pytest.raises(ValueError, match="max_norm"):
        optimizer.step(max_norm=-1.0)
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(RuntimeError, match="clip before"):
        optimizer.step(max_norm=1.0)


@genesis.rule
def Lion(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):  # noqa: N802
    update = betas[0] * exp_avg + (1 - betas[0]) * grad
    sign = 1 if update > 0 else -1 if update < 0 else 0
    param = param * (1 - lr * weight_decay) - lr * sign
    return param, betas[1] * exp_avg + (1 - betas[1]) * grad


def test_own_rule_gives_the_numbers_that_it_gives_for_numpy():
    params = parameters()
    arrays = [genesis.Parameter(param.detach().numpy().copy()) for param in params]
    optimizer = ours.of(Lion)(params, 0.1, weight_decay=0.1)
    peer = Lion(arrays, 0.1, weight_decay=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for step in range(5):
        set_gradients(params, step)
        for param, array in zip(params, arrays):
            array.grad = param.grad.numpy()
        optimizer.step()
        scheduler.step()
        peer.step()
        peer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        if step == 2:
            optimizer = pickle.loads(pickle.dumps(optimizer))
            params = optimizer.param_groups[0]["params"]
            scheduler.optimizer = optimizer
    for param, array in zip(params, arrays):
        assert np.array_equal(param.detach().numpy(), array.data)
    assert [*optimizer.state[params[0]]] == ["step", "exp_avg"]
    assert optimizer.state[params[0]]["step"] == 5


OTHERS = sorted({case.name for case in CASES if case.peer != "torch"})
WITH_NUMBERS = ["DAdaptAdam", "DoG", "LDoG", "NovoGrad", "Prodigy"]
"""Those whose state has numbers of whole tensors, which tensors of torch cannot have yet."""


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_rules_with_numbers_of_whole_tensors_are_refused(name):
    with pytest.raises(TypeError, match=f"{name} has numbers of a tensor"):
        ours.of(getattr(genesis.optim, name))


@pytest.mark.parametrize(
    "name",
    [name for name in OTHERS if not name.startswith("ScheduleFree") and name not in WITH_NUMBERS],
)
def test_what_torch_has_not_gives_the_numbers_that_it_gives_for_numpy(name):
    params = parameters()
    arrays = [genesis.Parameter(param.detach().numpy().copy()) for param in params]
    rule = getattr(genesis.optim, name)
    optimizer, peer = ours.of(rule)(params, lr=0.1), rule(arrays, lr=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for step in range(2):  # ADOPT only looks in the first
        set_gradients(params, step)
        for param, array in zip(params, arrays):
            array.grad = None if param.grad is None else param.grad.numpy()
        optimizer.step()
        peer.step()
    for param, array in zip(params, arrays):
        assert np.array_equal(param.detach().numpy(), array.data)
        assert optimizer.state[param].keys() >= dict(peer.state.get(array, {})).keys()


def test_own_rule_state_dict():
    params, others = parameters(), parameters()
    optimizer, other = ours.of(Lion)(params, lr=0.1), ours.of(Lion)(others, lr=0.2)
    run(optimizer, params, 2)
    run(other, others, 1)
    for theirs, param in zip(others, params):
        theirs.data.copy_(param.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, 2, first=2)
    run(other, others, 2, first=2)
    assert_near(params, others, rtol=0, atol=0)


def test_own_rule_refuses_what_it_cannot_reach_and_impossible_settings():
    param = Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="learning rate"):
        ours.of(Lion)([param], lr=-1.0)
    with pytest.raises(TypeError, match="momentum"):
        ours.of(Lion)([param], momentum=0.5)
    with pytest.raises(ValueError, match="state_dtype"):
        ours.of(Lion)([param], state_dtype="float8")
    optimizer = ours.of(Lion)([param], lr=0.1)
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=r"Lion cannot update 1 parameters.*sparse"):
        optimizer.step()
    param.grad = torch.ones(3)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="learning rate"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))
    with pytest.raises(TypeError, match=r"genesis\.rule"):
        ours.of(torch.optim.Adam)
    assert ours.of(genesis.optim.Adam) is ours.Adam


# ---- what has to be there ----


def _python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_genesis_does_not_import_torch():
    _python("import sys, genesis, genesis.optim; assert 'torch' not in sys.modules")


def test_optimizers_for_arrays_name_those_for_tensors():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"genesis\.torch\.AdamW"):
        genesis.optim.AdamW(model.parameters())
    with pytest.raises(TypeError, match=r"genesis\.torch\.AdamW"):
        genesis.optim.AdamW(dict(model.named_parameters()))


def test_a_missing_torch_is_an_import_error_that_tells_what_to_do():
    _python(
        "import sys; sys.modules['torch'] = None\n"
        "try: import genesis.torch\n"
        "except ImportError as error: assert \"pip install 'torch>=2.13'\" in str(error), error\n"
        "else: raise SystemExit(1)"
    )


def test_an_older_torch_is_an_import_error(monkeypatch):
    from genesis.torch import required

    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(ImportError, match=r"2\.13 or newer.*2\.12\.1.*pip install"):
        required.check()
