"""What genesis.torch has more than torch: masters, types of state, random rounding, averages, updates
in the backward pass.

The reference for the options is `genesis.optim`, which has tests of its own, bit for bit; the reference
for averages is torch's `AveragedModel`, and that for the backward pass is `step()`.
"""

import copy
import io
import pickle

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only

import genesis

torch = pytest.importorskip("torch")
ours = pytest.importorskip("genesis.torch")
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402

pytestmark = [pytest.mark.torch, on_cpu_only]

Parameter = torch.nn.Parameter
SHAPES = [(5, 7), (3, 4, 5, 6), (9,), ()]


def as_array(tensor):
    """A tensor's values in an array of their own."""
    own = tensor.detach().clone().contiguous()
    if own.dtype == torch.bfloat16:
        return own.view(torch.int16).numpy().view(BFLOAT16)
    return own.numpy()


def same(tensor, array):
    found = as_array(tensor)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


OPTIONS = [
    (torch.float32, {"ema_decay": 0.9}),
    (torch.float32, {"state_dtype": torch.bfloat16}),
    (torch.bfloat16, {"master_weights": True}),
    (torch.bfloat16, {"master_weights": True, "ema_decay": 0.9, "state_dtype": "bfloat16"}),
    (torch.bfloat16, {"stochastic_rounding": True}),
    (torch.float16, {"master_weights": True}),
]


@pytest.mark.parametrize(("dtype", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adagrad"])
def test_options_give_what_they_give_for_arrays(kind, dtype, options):
    """Bit for bit, and across saving, loading, pickling in the middle of a run."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    params = [Parameter(value.clone()) for value in values]
    if not options.get("stochastic_rounding"):  # whose bits follow from the place in memory
        params[1].data = params[1].data.contiguous(memory_format=torch.channels_last)
    arrays = [genesis.Parameter(as_array(value)) for value in values]
    settings = {"lr": 0.1, **({"momentum": 0.9} if kind == "SGD" else {})}
    opt = getattr(ours, kind)(params, strict=True, **settings, **options)
    names = {**options, **({"state_dtype": "bfloat16"} if "state_dtype" in options else {})}
    other = getattr(genesis.optim, kind)(arrays, **settings, **names)
    for step in range(5):
        for param, array in zip(params, arrays):
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            array.grad = as_array(param.grad)
        opt.step(max_norm=1.0)
        other.step(max_norm=1.0)
        if step == 1:
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            file.seek(0)
            opt = getattr(ours, kind)(params, strict=True, **{**settings, "lr": 0.5})
            opt.load_state_dict(torch.load(file, weights_only=True))
        elif step == 2:
            opt = pickle.loads(pickle.dumps(opt))
            params = opt.param_groups[0]["params"]
        elif step == 3:
            opt = copy.deepcopy(opt)
            params = opt.param_groups[0]["params"]
    assert opt.fast == (len(SHAPES), 0, 0, {})
    for param, array in zip(params, arrays):
        same(param, array.data)
        entries = other.state[array]
        assert opt.state[param].keys() == entries.keys()
        for name, value in entries.items():
            if name == "step":
                assert opt.state[param]["step"].item() == value
            else:
                same(opt.state[param][name], value)


def test_averages_are_those_of_torchs_averaged_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    opt = ours.AdamW(model.parameters(), lr=0.1, ema_decay=0.9)
    for _ in range(6):
        opt.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        opt.step()
        averaged.update_parameters(model)
    for param, mean in zip(model.parameters(), averaged.module.parameters()):
        torch.testing.assert_close(opt.state[param]["ema"], mean.detach(), rtol=1e-6, atol=1e-7)
    before = [param.detach().clone() for param in model.parameters()]
    opt.swap_ema()
    x = torch.randn(16, 4)
    torch.testing.assert_close(model(x), averaged(x), rtol=1e-5, atol=1e-6)
    opt.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 shows its average.*swap_ema"):
        opt.step()
    loss = model(x).square().mean()
    opt.swap_ema()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        loss.backward()
    for param, value in zip(model.parameters(), before):
        assert torch.equal(param.detach(), value)
    opt.step()


def test_an_average_begins_anew_for_each_parameter():
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3))]
    opt = ours.SGD(params, lr=1.0, ema_decay=0.5)
    params[0].grad = torch.ones(3)
    opt.step()
    for param in params:
        param.grad = torch.ones(3)
    opt.step()
    assert opt.state[params[0]]["ema"].tolist() == [-0.5] * 3
    assert opt.state[params[1]]["ema"].tolist() == [0.0] * 3
    opt.state[params[0]]["ema"] = torch.zeros(3, 1).expand(3, 3)[0]  # in another order, not new
    for param in params:
        param.grad = torch.ones(3)
    opt.step()
    assert opt.state[params[0]]["ema"].tolist() == [-1.0] * 3


def test_masters_go_on_where_torch_was():
    """The parameter is edited, or its state is torch's: a master follows."""
    param = Parameter(torch.ones(4, dtype=torch.bfloat16))
    before = torch.optim.AdamW([param], lr=1e-3)
    param.grad = torch.ones_like(param)
    before.step()
    opt = ours.AdamW([param], lr=1e-3, master_weights=True)
    opt.load_state_dict(before.state_dict())
    assert opt.param_groups[0]["master_weights"] is True
    param.grad = torch.ones_like(param)
    opt.step()
    assert opt.state[param]["master"].dtype == torch.float32
    assert opt.state[param]["step"] == 2
    with torch.no_grad():
        param.fill_(3.0)
    param.grad = torch.ones_like(param)
    opt.step()
    assert (opt.state[param]["master"] - 3).abs().max() < 0.01


def test_small_steps_count_with_a_master_and_not_without():
    params = [Parameter(torch.ones(4, dtype=torch.bfloat16)) for _ in range(2)]
    for param, master in zip(params, (False, True)):
        opt = ours.SGD([param], lr=1e-3, master_weights=master)
        for _ in range(10):
            param.grad = torch.ones_like(param)
            opt.step()
    assert params[0].tolist() == [1.0] * 4
    assert params[1].tolist() == [0.98828125] * 4


def test_groups_have_their_own_and_a_state_dict_of_torchs_has_none():
    wide, narrow = Parameter(torch.ones(3)), Parameter(torch.ones(3, dtype=torch.bfloat16))
    groups = [{"params": [wide]}, {"params": [narrow], "master_weights": True}]
    opt = ours.AdamW(groups, lr=0.1)
    wide.grad, narrow.grad = torch.ones(3), torch.ones(3, dtype=torch.bfloat16)
    opt.step()
    assert "master" in opt.state[narrow]
    assert "master" not in opt.state[wide]
    assert opt.fast.genesis == 2
    plain = ours.AdamW([wide], lr=0.1).state_dict()["param_groups"]
    assert plain == torch.optim.AdamW([wide], lr=0.1).state_dict()["param_groups"]


def test_own_rules_take_options_too():
    param = Parameter(torch.ones(3, dtype=torch.bfloat16))
    Lion = ours.of(LION)
    opt = Lion([param], lr=1e-3, master_weights=True, ema_decay=0.5, state_dtype=torch.bfloat16)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        opt.step()
    entries = opt.state[param]
    assert entries["exp_avg"].dtype == torch.bfloat16
    torch.testing.assert_close(entries["master"], torch.full((3,), 0.998))
    torch.testing.assert_close(entries["ema"], torch.full((3,), 0.9985))


@genesis.rule
def LION(param, grad, exp_avg, *, lr=1e-4, betas=(0.9, 0.99)):  # noqa: N802
    update = betas[0] * exp_avg + (1 - betas[0]) * grad
    sign = 1 if update > 0 else -1 if update < 0 else 0
    return param - lr * sign, betas[1] * exp_avg + (1 - betas[1]) * grad


def test_what_is_refused_before_anything_is_written():
    param = Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"ema_decay value: 2, expected a number in \[0, 1\]"):
        ours.AdamW([param], ema_decay=2)
    with pytest.raises(
        ValueError, match=r"Invalid state_dtype: 'torch.int8', expected None or one of"
    ):
        ours.AdamW([param], state_dtype=torch.int8)
    with pytest.raises(TypeError, match=r"Invalid master_weights"):
        ours.AdamW([{"params": [param], "master_weights": 3}])
    opt = ours.AdamW([param], ema_decay=0.9)
    opt.param_groups[0]["ema_decay"] = "much"
    param.grad = torch.ones(3)
    with pytest.raises(TypeError, match=r"Invalid ema_decay value: 'much'"):
        opt.step()
    with pytest.raises(
        RuntimeError, match=r"found no averages: construct the optimizer with ema_decay"
    ):
        opt.swap_ema()
    narrow = Parameter(torch.ones(3, dtype=torch.float16))
    narrow.grad = torch.ones_like(narrow)
    opt = ours.AdamW([param, narrow], ema_decay=0.9)
    with pytest.raises(
        ValueError, match=r"parameter 1 of group 0 has 16 bits.*master_weights=True"
    ):
        opt.step()
    assert param.tolist() == [1.0] * 3
    assert not opt.state


def test_nothing_with_options_is_left_to_torch():
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3))]
    opt = ours.Adagrad(params, lr=0.1, ema_decay=0.9)
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(
        RuntimeError, match=r"which knows none of master_weights.*into a group without"
    ):
        opt.step()
    assert params[0].tolist() == [1.0] * 3


# ---- in the backward pass ----


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)
    )
    model[3].bias.requires_grad_(False)
    return model.to(dtype)


@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        ("AdamW", torch.float32, {"lr": 1e-2, "ema_decay": 0.9}),
        ("SGD", torch.bfloat16, {"lr": 1e-2, "stochastic_rounding": True}),
        ("NAdam", torch.float64, {"lr": 1e-2}),
    ],
)
def test_in_the_backward_pass_it_is_what_step_does(kind, dtype, settings):
    models = network(dtype=dtype), network(dtype=dtype)
    cls = getattr(ours, kind)
    inside = ours.step_in_backward(models[0], cls, **settings)
    outside = cls(models[1].parameters(), **settings)
    assert type(inside) is cls
    schedules = [torch.optim.lr_scheduler.StepLR(opt, 2, 0.5) for opt in (inside, outside)]
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        if step == 2:  # what was frozen joins in
            for model in models:
                model[3].bias.requires_grad_(True)
        if step == 3:
            for opt in (inside, outside):
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        x = torch.randn(4, 5, generator=generator).to(dtype)
        for model in models:
            model(x).square().sum().backward()
        assert all(param.grad is None for param in models[0].parameters())
        outside.step()
        outside.zero_grad()
        for schedule in schedules:
            schedule.step()
        for param, other in zip(*(model.parameters() for model in models)):
            assert torch.equal(param, other), step
    assert inside.fast == (6, 0, 0, {})
    assert len(inside.state) == 6


def test_one_gradient_is_alive_at_a_time():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(5)))
    alive = []
    opt = ours.step_in_backward(model, ours.SGD, lr=0.1)
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    model(torch.ones(2, 4)).sum().backward()
    assert alive == [0] * 10
    assert opt.fast.genesis == 10


def test_weights_that_are_used_twice_are_updated_once():
    weight = Parameter(torch.ones(3, 3))
    opt = ours.step_in_backward([weight], ours.SGD, lr=0.5)
    x = torch.ones(1, 3)
    (x @ weight @ weight.T).sum().backward()
    other = Parameter(torch.ones(3, 3))
    (x @ other @ other.T).sum().backward()
    assert torch.equal(weight.data, other.data - 0.5 * other.grad)
    assert opt.fast.genesis == 1


def test_groups_may_be_edited_and_the_hooks_taken_away():
    params = [Parameter(torch.ones(2)) for _ in range(3)]
    opt = ours.step_in_backward([{"params": [p]} for p in params[:2]], ours.SGD, lr=1.0)
    opt.add_param_group({"params": [params[2]], "lr": 0.5})
    sum(params).sum().backward()
    assert [p[0].item() for p in params] == [0.0, 0.0, 0.5]
    del opt.param_groups[0]
    opt.param_groups[0]["lr"] = 0.25
    sum(params).sum().backward()
    assert [p[0].item() for p in params] == [0.0, -0.25, 0.0]
    assert params[0].grad is not None  # nobody's any more
    with pytest.raises(RuntimeError, match=r"in backward\(\).*leave out step.*in_backward.remove"):
        opt.step()
    opt.in_backward.remove()
    assert opt.in_backward is None
    sum(params).sum().backward()
    assert [p[0].item() for p in params] == [0.0, -0.25, 0.0]
    opt.step()
    assert [p[0].item() for p in params] == [0.0, -0.5, -0.5]


def test_in_backward_wants_a_class_of_ours():
    model = network()
    with pytest.raises(
        TypeError, match=r"takes an optimizer class of genesis.torch.*but got AdamW"
    ):
        ours.step_in_backward(model, torch.optim.AdamW)
    with pytest.raises(TypeError, match=r"but got SGD"):
        ours.step_in_backward(model, ours.SGD(model.parameters(), lr=0.1))


def test_strict_is_an_error_of_backward():
    param = Parameter(torch.ones(3, dtype=torch.complex64))
    ours.step_in_backward([param], ours.SGD, lr=0.1, strict=True)
    with pytest.raises(RuntimeError, match=r"SGD\(strict=True\) would leave 1 parameters"):
        param.abs().sum().backward()


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam"])
def test_caution_is_an_option_of_torchs_own_classes(kind):
    """They are what `of` gives for these rules, and the numbers are those of genesis.optim."""
    assert ours.of(getattr(genesis.optim, kind)) is getattr(ours, kind)
    settings = {"lr": 0.1, "weight_decay": 0.3, "cautious": True}
    if kind == "AdamW":
        settings["cautious_weight_decay"] = True
    rng = np.random.default_rng(3)
    array = genesis.Parameter(rng.standard_normal(50).astype(np.float32))
    param = Parameter(torch.tensor(array.data))
    opt = getattr(ours, kind)([param], strict=True, **settings)
    other = getattr(genesis.optim, kind)([array], **settings)
    for _ in range(3):
        array.grad = rng.standard_normal(50).astype(np.float32)
        param.grad = torch.tensor(array.grad)
        opt.step()
        other.step()
    same(param, array.data)
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups[0]["cautious"] is True
    with pytest.raises((TypeError, ValueError), match="cautious"):
        getattr(ours, kind)([param], cautious=1)


@pytest.mark.parametrize("kind", ["Adam", "NAdam"])
def test_cautious_weight_decay_needs_a_decoupled_one(kind):
    param = Parameter(torch.ones(3))
    opt = getattr(ours, kind)([param], cautious_weight_decay=True, weight_decay=0.1)
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match="with it set decoupled_weight_decay=True"):
        opt.step()
    assert torch.equal(param.detach(), torch.ones(3))


def test_torchs_own_step_is_not_asked_to_be_cautious():
    param = Parameter(torch.ones(3, dtype=torch.complex64))
    opt = ours.AdamW([param], cautious=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"knows none of .*cautious"):
        opt.step()


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_step_with_gradients_that_are_not_finite_is_left_out(max_norm):
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    opt = ours.AdamW(params, lr=0.1, skip_nonfinite=True)
    for bad in (torch.nan, torch.inf, None):
        for param in params:
            param.grad = torch.ones_like(param)
        if bad is not None:
            params[1].grad[0] = bad
        opt.step(max_norm=max_norm)
        assert opt.step_skipped == (bad is not None)
        assert torch.equal(params[0].detach(), torch.ones(3)) == (bad is not None)
        assert bool(opt.state) == (bad is None)
    assert opt.skipped_steps == 2
    opt.param_groups[0]["skip_nonfinite"] = False
    params[1].grad[0] = torch.nan
    opt.step()
    assert params[1].isnan().tolist() == [True, False]


def test_a_backward_pass_cannot_leave_out_a_whole_step():
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    ours.step_in_backward(model, ours.SGD, lr=0.5, skip_nonfinite=True)
    with pytest.raises(RuntimeError, match="cannot leave out a whole step"):
        model(torch.ones(2)).sum().backward()
    assert torch.equal(model.weight.detach(), before)


def test_updates_are_measured_as_on_arrays():
    rng = np.random.default_rng(4)
    arrays = [genesis.Parameter(rng.standard_normal(n).astype(np.float32)) for n in (40, 7)]
    params = [Parameter(torch.tensor(array.data)) for array in arrays]
    opt = ours.AdamW(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.01}], lr=0.1, measure_updates=True
    )
    other = genesis.optim.AdamW(
        [{"params": arrays[:1]}, {"params": arrays[1:], "lr": 0.01}], lr=0.1, measure_updates=True
    )
    assert opt.update_norm is None
    for _ in range(2):
        grads = [rng.standard_normal(array.shape).astype(np.float32) for array in arrays]
        for param, array, grad in zip(params, arrays, grads):
            param.grad, array.grad = torch.tensor(grad), grad
        opt.step()
        other.step()
        assert opt.update_norm == other.update_norm
        assert opt.update_ratios == other.update_ratios
    opt.param_groups[0]["measure_updates"] = False
    opt.step()
    assert opt.update_ratios[0] is None
    model = torch.nn.Linear(2, 1)
    ours.step_in_backward(model, ours.SGD, lr=0.5, measure_updates=True)
    with pytest.raises(RuntimeError, match="no step whose updates measure_updates could"):
        model(torch.ones(2)).sum().backward()
