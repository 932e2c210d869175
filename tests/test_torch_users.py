"""What a training script has around `genesis.torch`'s optimizers, in genesis' spelling and in torch's.

Clipping, schedulers, checkpoints, `torch.compile`, and a small language model that is trained with all
of it: every number beside torch's own, from the same start.
"""

import copy
import gc
import math
import shutil
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
from devices import on_cpu_only
from scheduler_cases import CASES, NESTED, Case, Part, build

import genesis
from genesis.nn import utils
from genesis.optim import lr_scheduler as schedulers

torch = pytest.importorskip("torch")
ours = pytest.importorskip("genesis.torch")

pytestmark = [pytest.mark.torch, on_cpu_only]

Parameter = torch.nn.Parameter
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


# ---- clipping ----


def held(*gradients):
    """Parameters that hold these gradients."""
    params = []
    for gradient in gradients:
        params.append(Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype)))
        params[-1].grad = gradient
    return params


def some(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (), (2, 8, 3, 3)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def norm_of(gradients, norm_type):
    """The norm of all elements together, in NumPy's float64; torch's own idea of the 0-norm."""
    arrays = [gradient.double().numpy().ravel() for gradient in gradients]
    if norm_type == 0:
        return sum(bool(array.any()) for array in arrays)
    return np.linalg.norm(np.concatenate(arrays), norm_type)


@pytest.fixture
def torchs_are_not_asked(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch's own function was called")

    for name in utils.__all__:
        monkeypatch.setattr(torch.nn.utils, name, refuse)


@pytest.mark.usefixtures("torchs_are_not_asked")
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_clip_grad_norm(dtype, norm_type):
    gradients, kept = some(dtype), some(dtype)
    params = [*held(*gradients), Parameter(torch.ones(2))]  # the last one has no gradient
    versions = [gradient._version for gradient in gradients]
    wanted = norm_of(kept, norm_type)
    max_norm = wanted / 3
    factor = min(1, max_norm / (wanted + 1e-6))
    norm = utils.clip_grad_norm_(iter(params), max_norm, norm_type)
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norm.item() == pytest.approx(wanted, rel=1e-12 if dtype == torch.float64 else 1e-6)
    for gradient, before, version in zip(gradients, kept, versions):
        scaled = before.double() * factor
        torch.testing.assert_close(
            gradient.double(), scaled, rtol=2 * torch.finfo(dtype).eps, atol=1e-7
        )
        assert gradient._version > version
    if norm_type:
        assert utils.get_total_norm(gradients, norm_type).item() == pytest.approx(
            max_norm, rel=4 * torch.finfo(dtype).eps, abs=1e-5
        )


def test_small_norms_are_left_as_they_are():
    params, kept = held(*some()), some()
    utils.clip_grad_norm_(params, 1e9)
    assert all(torch.equal(param.grad, before) for param, before in zip(params, kept))


def expanded():
    return torch.tensor([[3.0], [-4.0]]).expand(2, 5)


LAYOUTS = {
    "channels last": lambda: some()[3].contiguous(memory_format=torch.channels_last),
    "transposed": lambda: some()[0].t(),
    "part": lambda: some()[3].flatten()[3:20],
    "gaps": lambda: some()[3].flatten()[::3],
    "columns": lambda: torch.arange(24.0).reshape(4, 6)[:, ::2],
    "expanded": expanded,
    "expanded from one": lambda: torch.tensor(2.0).expand(3, 4),
    "expanded, in the middle": lambda: torch.arange(1.0, 7.0).reshape(2, 1, 3).expand(2, 4, 3),
    "windows": lambda: torch.arange(1.0, 7.0).unfold(0, 3, 1),
    "of one element": lambda: torch.tensor([[7.0]]).expand(1, 1),
    "empty": lambda: torch.zeros(0, 3),
}


@pytest.mark.usefixtures("torchs_are_not_asked")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipping_in_any_layout(layout):
    gradient, other = LAYOUTS[layout](), torch.tensor([2.0, -1.0])
    whole = gradient.untyped_storage()
    beside = torch.tensor([], dtype=torch.float32).set_(whole, 0, (len(whole) // 4,), (1,)).clone()
    wanted, before = norm_of([gradient, other], 2), gradient.clone()
    params = held(gradient, other)
    norm = utils.clip_grad_norm_(params, 1.0)
    assert norm.item() == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(params[0].grad, before / (wanted + 1e-6), rtol=1e-6, atol=1e-7)
    assert params[0].grad is gradient
    assert gradient.untyped_storage().data_ptr() == whole.data_ptr()
    # Memory between the elements is as it was.
    now = torch.tensor([], dtype=torch.float32).set_(whole, 0, (len(whole) // 4,), (1,))
    reached = torch.zeros(len(now), dtype=torch.bool)
    reached.as_strided(gradient.shape, gradient.stride(), gradient.storage_offset()).logical_or_(
        torch.tensor(True)
    ) if layout == "gaps" else reached.fill_(True)
    assert torch.equal(now[~reached], beside[~reached])
    utils.clip_grad_value_(params, 0.1)
    assert params[0].grad.abs().max() <= 0.1 if gradient.numel() else True


def test_clipping_is_seen_by_autograd():
    gradient = torch.ones(3, requires_grad=True) * 2
    [param] = held(gradient.detach())
    loss = (gradient**2).sum()
    param.grad = gradient
    utils.clip_grad_norm_(param, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.usefixtures("torchs_are_not_asked")
def test_one_parameter_a_generator_and_trees():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    for given in (
        model.parameters,
        lambda: dict(model.named_parameters()),
        lambda: [{"w": layer.weight, "b": layer.bias} for layer in model],
        lambda: tuple(model.parameters()),
    ):
        model.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        gradients = [param.grad.clone() for param in model.parameters()]
        assert utils.clip_grad_norm_(given(), 0.1).item() == pytest.approx(
            norm_of(gradients, 2), rel=1e-6
        )
        assert norm_of([p.grad for p in model.parameters()], 2) == pytest.approx(0.1, rel=1e-4)
    [param] = held(torch.tensor([3.0, 4.0]))
    assert utils.clip_grad_norm_(param, torch.tensor(1.0)).item() == 5
    without = Parameter(torch.ones(3))
    norm = utils.clip_grad_norm_([without], 1.0)
    assert isinstance(norm, torch.Tensor)
    assert norm.item() == 0
    assert without.grad is None
    assert utils.clip_grad_norm_([], 1.0) == 0  # nobody can say whose these are


@pytest.mark.usefixtures("torchs_are_not_asked")
def test_clipping_by_value_and_in_the_other_spelling():
    params = held(torch.tensor([3.0, -0.5, math.nan]), torch.tensor([-9.0]).bfloat16())
    assert utils.clip_grad_value_(params, 1.0) is None
    torch.testing.assert_close(params[0].grad, torch.tensor([1.0, -0.5, math.nan]), equal_nan=True)
    assert params[1].grad.item() == -1
    genesis.optim.clip_grad_value(params, -0.25, 2.0)
    assert params[0].grad[:2].tolist() == [1.0, -0.25]
    params = held(torch.tensor([3.0, 4.0]))
    assert genesis.optim.clip_grad_norm(params, 1.0).item() == 5
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.8]))
    utils.clip_grads_with_norm_(params, 0.5, utils.get_total_norm([params[0].grad]))
    torch.testing.assert_close(params[0].grad, torch.tensor([0.3, 0.4]))
    utils.clip_grads_with_norm_(params, 0.25, 0.5)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.15, 0.2]))
    for clip in (utils.clip_grad_norm_, utils.clip_grad_value_):
        with pytest.raises(ValueError, match="must be at least 0"):
            clip(params, -1.0)


def test_norms_that_are_not_finite():
    for bad in (math.inf, math.nan):
        params = held(torch.tensor([1.0, bad]), torch.tensor([2.0]))
        with pytest.raises(RuntimeError, match=r"order 2\.0 .* is non-finite"):
            utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
        assert params[1].grad.item() == 2
        others = held(torch.tensor([1.0, bad]), torch.tensor([2.0]))
        norm = utils.clip_grad_norm_(params, 1.0)
        theirs = torch.nn.utils.clip_grad_norm_(others, 1.0)
        torch.testing.assert_close(norm, theirs, equal_nan=True)
        for param, other in zip(params, others):
            torch.testing.assert_close(param.grad, other.grad, equal_nan=True)
    # Where squares overflow torch says inf, and makes zeros of gradients.
    [param] = held(torch.tensor([3e30, 4e30]))
    assert utils.clip_grad_norm_(param, 1.0).item() == pytest.approx(5e30)
    torch.testing.assert_close(param.grad, torch.tensor([0.6, 0.8]))


def shared():
    gradient = torch.tensor([3.0, 4.0])
    return [gradient, gradient]


def overlapping():
    memory = torch.arange(1.0, 6.0)
    return [memory[:3], memory[2:]]


TORCHS = {
    "complex": lambda: [torch.tensor([3.0 + 4.0j])],
    "the same gradient": shared,
    "overlapping gradients": overlapping,
    "subclass": lambda: [torch.tensor([3.0, 4.0]).as_subclass(_Subclass)],
}


class _Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", TORCHS)
def test_what_torch_clips_itself(kind):
    """All of a call, together with gradients that a kernel could reach."""
    clips = utils.clip_grad_norm_, torch.nn.utils.clip_grad_norm_
    results = []
    for clip in clips:
        params = held(*TORCHS[kind](), torch.tensor([1.0, -2.0]))
        norm = clip(params, 0.5)
        results.append([norm, *(param.grad for param in params)])
    for mine, theirs in zip(*results):
        assert torch.equal(mine.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor))
    if kind != "complex":
        params = held(*TORCHS[kind](), torch.tensor([1.0, -2.0]))
        utils.clip_grad_value_(params, 0.5)
        assert all(param.grad.abs().max() <= 0.5 for param in params)


def negative():
    return torch.tensor([1.0 + 2.0j, 3.0 - 4.0j]).conj().imag


def negative_and_dense():
    return torch.tensor([1.0 + 2.0j]).conj().imag


def too_small():
    gradient = torch.ones(50)
    gradient.untyped_storage().resize_(8)
    return gradient


def with_gaps_and_too_small():
    gradient = torch.ones(50)[::3]
    gradient.untyped_storage().resize_(8)
    return gradient


def made_in_inference_mode():
    with torch.inference_mode():
        return torch.ones(3)


@pytest.mark.parametrize(
    "make",
    [
        negative,
        negative_and_dense,
        too_small,
        with_gaps_and_too_small,
        made_in_inference_mode,
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(3).to_sparse(),
    ],
    ids="negative negative-dense small gaps inference meta sparse".split(),
)
def test_what_no_kernel_may_touch(make, monkeypatch):
    """Whatever torch makes of it: some of it is an error there."""
    asked = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: asked.append(given))
    gradient = make()
    with torch.inference_mode(gradient.is_inference()):
        param = Parameter(torch.zeros(gradient.shape, device=gradient.device))
        param.grad = gradient
    utils.clip_grad_norm_([param], 1.0, foreach=False)
    assert asked == [([param], 1.0, 2.0, False, False)]


def test_clipping_holds_no_gradients():
    params = held(*some())
    utils.clip_grad_norm_(params, 1.0)
    gone = [weakref.ref(param.grad) for param in params]
    for param in params:
        param.grad = None
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(params)


# ---- schedulers ----


LRS = (0.1, 0.3, 0.02)
SCHEDULED = pytest.mark.parametrize("case", CASES + NESTED, ids=repr)


def arrays_optimizer(case):
    groups = [{"params": [genesis.Parameter(np.ones(2))], "lr": lr} for lr in LRS]
    if case.optimizer == "Adam":
        return genesis.optim.Adam(groups, lr=1.0)
    return genesis.optim.SGD(groups, lr=1.0, momentum=0.9)


def tensors_optimizer(case, library=ours, lrs=LRS):
    groups = [{"params": [Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    if case.optimizer == "Adam":
        return library.Adam(groups, lr=1.0)
    return library.SGD(groups, lr=1.0, momentum=0.9)


def genesis_maker(kind):
    return getattr(schedulers, kind)


def torch_maker(kind):
    places = torch.optim.lr_scheduler, torch.optim.swa_utils
    return next(getattr(place, kind) for place in places if hasattr(place, kind))


def moved(optimizer):
    return [
        (float(group["lr"]), group.get("momentum"), group.get("betas"))
        for group in optimizer.param_groups
    ]


def advance(case, optimizer, scheduler, steps, first=1):
    rows = [moved(optimizer)]
    for t in range(first, first + steps):
        optimizer.step()
        scheduler.step(*([] if case.metric is None else [case.metric(t)]))
        rows.append(moved(optimizer))
    return rows


@pytest.mark.filterwarnings("ignore:.*no parameter has a gradient")
@SCHEDULED
def test_genesis_schedulers_give_the_same_for_tensors_as_for_arrays(case):
    steps = min(case.steps - 1, 40)
    wanted = arrays_optimizer(case)
    found = tensors_optimizer(case)
    expected = advance(case, wanted, build(case, genesis_maker, wanted), steps)
    actual = advance(case, found, build(case, genesis_maker, found), steps)
    assert actual == expected  # to the last bit


def outcome(case, optimizer, steps):
    """What a scheduler of torch's sets, or the error that it makes of its arguments."""
    try:
        return advance(case, optimizer, build(case, torch_maker, optimizer), steps)
    except (TypeError, ValueError, ZeroDivisionError, NotImplementedError) as error:
        return type(error)


@pytest.mark.filterwarnings("ignore:Detected call of")  # of parts that torch steps at milestones
@SCHEDULED
def test_torchs_schedulers_give_the_same_for_genesis_as_for_torch(case):
    if case.kind == "get_cosine_schedule_with_warmup":
        assert not hasattr(torch.optim.lr_scheduler, case.kind)  # it is no scheduler of torch's
        return
    steps = min(case.steps - 1, 40)
    expected = outcome(case, tensors_optimizer(case, torch.optim), steps)
    assert outcome(case, tensors_optimizer(case), steps) == expected


@SCHEDULED
def test_genesis_schedulers_resume_on_tensors(case):
    steps = min((case.steps - 1) // 2, 15)
    optimizer = tensors_optimizer(case)
    scheduler = build(case, genesis_maker, optimizer)
    advance(case, optimizer, scheduler, steps)
    again = tensors_optimizer(case)
    resumed = build(case, genesis_maker, again)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(scheduler.state_dict())
    first = steps + 1
    expected = advance(case, optimizer, scheduler, steps, first)
    assert advance(case, again, resumed, steps, first) == expected


WITH_TENSORS = [
    Part("ExponentialLR", gamma=0.9),
    Part("CosineAnnealingLR", T_max=5),
    Part("CyclicLR", base_lr=0.1, max_lr=0.3, step_size_up=3),
    Part("OneCycleLR", max_lr=0.5, total_steps=12),
    Part("SWALR", swa_lr=0.05, anneal_epochs=4),
    Part("ReduceLROnPlateau", patience=0, factor=0.5),
    Part(
        "SequentialLR",
        schedulers=[Part("LinearLR", total_iters=3), Part("StepLR", step_size=2)],
        milestones=[4],
    ),
]


@pytest.mark.parametrize("part", WITH_TENSORS, ids=lambda part: part.kind)
@pytest.mark.parametrize("library", [ours, torch.optim], ids=["genesis", "torch"])
def test_learning_rates_that_are_tensors_stay_these_tensors(part, library):
    metric = (lambda t: 1.0) if part.kind == "ReduceLROnPlateau" else None
    case = Case("tensor", part.kind, metric=metric, **part.kwargs)
    rates = [torch.tensor(lr, dtype=torch.float64) for lr in LRS]
    optimizer, other = tensors_optimizer(case, library, rates), tensors_optimizer(case, library)
    found = advance(case, optimizer, build(case, genesis_maker, optimizer), 8)
    wanted = advance(case, other, build(case, genesis_maker, other), 8)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates))
    for row, expected in zip(found, wanted):
        for one, two in zip(row, expected):
            assert one[0] == pytest.approx(two[0], rel=1e-12)
            assert one[1:] == two[1:]


@pytest.mark.parametrize("library", [ours, torch.optim], ids=["genesis", "torch"])
def test_a_scheduler_that_is_stepped_first_warns_once(library):
    for order, count in (("scheduler first", 1), ("optimizer first", 0)):
        optimizer = library.SGD([Parameter(torch.ones(1))], lr=0.1)
        scheduler = schedulers.StepLR(optimizer, 1)
        chained = schedulers.ChainedScheduler([schedulers.ConstantLR(optimizer)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                for step in (optimizer.step, scheduler.step, chained.step)[:: 1 - 2 * count]:
                    step()
        assert [str(one.message)[:20] for one in caught] == ["`lr_scheduler.step()"] * 2 * count, (
            order
        )
        assert not optimizer._optimizer_step_post_hooks  # nothing is left behind


def test_copies_of_a_scheduler_and_its_optimizer():
    optimizer = ours.SGD([Parameter(torch.ones(1))], lr=1.0)
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    again, other = copy.deepcopy((optimizer, scheduler))
    assert other.optimizer is again
    for one in (scheduler, other):
        one.step()
        assert one.get_last_lr() == [0.5]
    assert again.param_groups[0] is not optimizer.param_groups[0]


def test_a_torch_schedulers_snapshot_is_taken_over():
    first, second = (ours.SGD([Parameter(torch.ones(1))], lr=1.0) for _ in range(2))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(first, 10)
    mine = schedulers.CosineAnnealingLR(second, 10)
    for _ in range(4):
        first.step()
        theirs.step()
    second.load_state_dict(first.state_dict())
    mine.load_state_dict(theirs.state_dict())
    for _ in range(4):
        first.step()
        second.step()
        theirs.step()
        mine.step()
        assert mine.get_last_lr() == theirs.get_last_lr()


def test_what_is_no_optimizer():
    class Wrapped:
        """As libraries put around an optimizer."""

        def __init__(self, optimizer):
            self.param_groups, self.step = optimizer.param_groups, optimizer.step

    optimizer = ours.SGD([Parameter(torch.ones(1))], lr=1.0, momentum=0.5)
    wrapped = Wrapped(optimizer)
    scheduler = schedulers.OneCycleLR(wrapped, max_lr=1.0, total_steps=10)
    before = optimizer.param_groups[0]["lr"]
    scheduler.step()  # there nobody can tell whether a step was made
    assert optimizer.param_groups[0]["lr"] > before
    for nonsense in (
        torch.nn.Linear(1, 1), ours.SGD, [optimizer], optimizer.param_groups, None, scheduler,
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"is not an Optimizer: .* 'params' and 'lr'"):
            schedulers.StepLR(nonsense, 1)
    wrapped.param_groups = [{"params": []}]
    with pytest.raises(TypeError, match="Wrapped is not an Optimizer"):
        schedulers.StepLR(wrapped, 1)


def test_impossible_learning_rates_are_refused_before_anything_is_written():
    optimizer = ours.SGD([Parameter(torch.ones(1))], lr=1.0)
    scheduler = schedulers.LambdaLR(optimizer, lambda t: 1.0 if t < 2 else -1.0)
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match=r"learning rate: -1\.0.*from LambdaLR at epoch 2"):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert scheduler.last_epoch == 1


# ---- checkpoints ----


def same_bits(one, other):
    """Whether two nested values are alike: types, shapes, strides apart, every bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert [*one] == [*other]
        for key in one:
            same_bits(one[key], other[key])
        assert getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, its in zip(one, other):
            same_bits(mine, its)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.requires_grad == other.requires_grad
        for mine, its in zip(one.detach().flatten(), other.detach().flatten()):
            kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[mine.itemsize]
            assert mine.resolve_neg().view(kind) == its.view(kind)
    else:
        assert one == other


def saved_and_loaded(value, tmp_path):
    genesis.save(value, tmp_path / "file.safetensors")
    return genesis.load(tmp_path / "file.safetensors")


INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "bool"]


@pytest.mark.parametrize("dtype", [*TYPES, *(getattr(torch, name) for name in INTEGERS)], ids=str)
def test_tensors_come_back(dtype, tmp_path):
    values = torch.tensor([[1.5, -0.0, 3.25], [0.0, 7.0, 250.0]])
    values = values.abs().to(dtype) if not dtype.is_floating_point else values.to(dtype)
    tensors = {
        "whole": values,
        "one": values[1, 2],
        "transposed": values.t(),
        "strided": values[:, ::2],
        "expanded": values[0, 0].expand(3, 2),
        "empty": values[:0],
        "turned": [values.flip(0), (values[1],)],
    }
    if dtype.is_floating_point:
        tensors["special"] = torch.tensor([math.inf, -math.nan, 5e-324, 1e-40]).to(dtype)
        tensors["parameters"] = [Parameter(values.clone()), Parameter(values.t(), False)]
    same_bits(saved_and_loaded(tensors, tmp_path), tensors)


def test_other_ways_that_tensors_lie(tmp_path):
    memory = torch.arange(12.0).reshape(3, 4)
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    values = {
        "one": memory[0],
        "same": memory[0],
        "part": memory[:2],
        "negative": torch.tensor([1.0 + 2.0j]).conj().imag,
        "asks": torch.ones(2, requires_grad=True) * 2,
        "images": images,
    }
    loaded = saved_and_loaded(values, tmp_path)
    assert all(torch.equal(loaded[name], values[name]) for name in values)
    assert loaded["one"] is loaded["same"]
    loaded["one"].zero_()  # what shares a part of its memory has its own now
    assert torch.equal(loaded["part"], memory[:2])
    assert not loaded["asks"].requires_grad
    from safetensors.torch import load_file

    file = load_file(tmp_path / "file.safetensors")
    assert torch.equal(file["images"], images)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), "its dtype is torch.complex64, and accepted are"),
        (torch.ones(2).to_sparse(), r"its layout is torch\.sparse_coo: give tensor\.to_dense"),
        (torch.ones(2, device="meta"), "it is on meta, without values"),
        (torch.ones(2).as_subclass(_Subclass), "its class _Subclass would not come back"),
        (torch.nn.Linear(1, 1), r"save its state_dict\(\)"),
    ],
)
def test_tensors_that_cannot_be_saved_are_named(value, message, tmp_path):
    with pytest.raises(TypeError, match=rf"obj\['a'\]\[1\]: cannot save a .*{message}"):
        genesis.save({"a": [0, value]}, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


def test_without_torch_tensors_come_back_as_arrays(tmp_path):
    values = {"a": torch.tensor([1.0, 2.0]).bfloat16(), "b": Parameter(torch.ones(2, 1))}
    genesis.save(values, tmp_path / "file.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import genesis, numpy as np\n"
        "found = genesis.load(sys.argv[1])\n"
        "assert {type(a) for a in found.values()} == {np.ndarray}\n"
        "assert found['a'].dtype == 'bfloat16' and found['a'].tolist() == [1, 2]\n"
        "assert found['b'].shape == (2, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "file.safetensors"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def small_model():
    torch.manual_seed(3)
    first = torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
    layers = first, torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 8)
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 8))
    model[4].weight = model[3].weight = Parameter(torch.randn(8, 16))  # tied
    model[4] = torch.nn.Linear(8, 8)
    return model


def train(model, optimizer, scheduler, first, steps):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 2, 4, 4, generator=generator)
        optimizer.zero_grad()
        model(images).square().mean().backward()
        utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()


def whole(library, lr=0.05):
    model = small_model()
    decays = [param for param in model.parameters() if param.ndim > 1]
    others = [param for param in model.parameters() if param.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others}]
    optimizer = library.AdamW(groups, lr=lr, amsgrad=True)
    return model, optimizer, schedulers.CosineAnnealingLR(optimizer, 12)


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05)], ids=["number", "tensor"])
def test_a_run_resumes_bit_for_bit(lr, tmp_path):
    path = tmp_path / "run.safetensors"
    model, optimizer, scheduler = whole(ours, copy.deepcopy(lr))
    train(model, optimizer, scheduler, 0, 3)
    genesis.save_checkpoint(path, model=model, optimizer=optimizer, scheduler=scheduler)
    same_bits(genesis.load_checkpoint(path)["model"], model.state_dict())
    same_bits(genesis.load_checkpoint(path)["optimizer"], optimizer.state_dict())
    again, other, resumed = whole(ours, copy.deepcopy(lr))
    train(again, other, resumed, 7, 1)  # somewhere else
    genesis.load_checkpoint(path, model=again, optimizer=other, scheduler=resumed)
    for each in ((model, optimizer, scheduler), (again, other, resumed)):
        train(*each, 3, 3)
    assert other.fast.torch == 0
    same_bits(again.state_dict(), model.state_dict())
    same_bits(other.state_dict(), optimizer.state_dict())
    assert resumed.state_dict() == scheduler.state_dict()


def test_torchs_optimizer_goes_on_from_a_checkpoint_and_comes_back(tmp_path):
    path = tmp_path / "run.safetensors"
    model, optimizer, scheduler = whole(ours)
    train(model, optimizer, scheduler, 0, 3)
    genesis.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    saved = genesis.load(path)
    theirs, peer, its = whole(torch.optim)
    theirs.load_state_dict(saved["model"])
    peer.load_state_dict(saved["optimizer"])
    same_bits(peer.state_dict()["state"], optimizer.state_dict()["state"])
    its.load_state_dict(scheduler.state_dict())
    train(theirs, peer, its, 3, 1)
    genesis.save_checkpoint(path, model=theirs, optimizer=peer, scheduler=its)
    genesis.load_checkpoint(path, model=model, optimizer=optimizer, scheduler=scheduler)
    same_bits(optimizer.state_dict()["state"], peer.state_dict()["state"])
    train(model, optimizer, scheduler, 4, 1)
    assert optimizer.fast.torch == 0


def test_a_checkpoint_that_does_not_fit_leaves_model_and_optimizer(tmp_path):
    path = tmp_path / "run.safetensors"
    model, optimizer, scheduler = whole(ours)
    train(model, optimizer, scheduler, 0, 2)
    saved = copy.deepcopy(model.state_dict())
    saved["4.weight"] = torch.ones(3, 3)
    genesis.save_checkpoint(path, optimizer=optimizer, model=saved)
    train(model, optimizer, scheduler, 2, 1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    with pytest.raises(RuntimeError, match=r"size mismatch for 4\.weight"):
        genesis.load_checkpoint(path, optimizer=optimizer, model=model)
    same_bits(model.state_dict(), before[0])
    same_bits(optimizer.state_dict(), before[1])


NAMES = [name for name in ours.__all__ if hasattr(torch.optim, name)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_state_of_arrays_is_taken_over(name, dtype):
    """A run on NumPy's arrays goes on with torch's tensors, bit for bit."""
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal(5).astype(dtype)]
    optimizer = getattr(genesis.optim, name)(arrays, **kwargs)
    for _ in range(3):
        optimizer.step(grads=[rng.standard_normal(a.shape).astype(dtype) for a in arrays])
    params = [Parameter(torch.tensor(array)) for array in arrays]
    other = getattr(ours, name)(params, **kwargs, strict=True)
    state = optimizer.state_dict()
    other.load_state_dict(state)
    for _ in range(2):
        grads = [rng.standard_normal(a.shape).astype(dtype) for a in arrays]
        for param, grad in zip(params, grads):
            param.grad = torch.tensor(grad)
        kept = copy.deepcopy(state)
        other.step()
        optimizer.step(grads=grads)
        assert str(kept) == str(state)  # what was loaded is not written
        for param, array in zip(params, arrays):
            # Torch rounds these two's numbers, "eta" and "mu_product", to float32 as it takes them over.
            rtol = 1e-6 if name in ("ASGD", "NAdam") and dtype == np.float64 else 0
            np.testing.assert_allclose(param.detach().numpy(), array, rtol=rtol)


@genesis.rule
def Sign(param, grad, exp_avg, *, lr=1e-3, beta=0.9):  # noqa: N802
    exp_avg = beta * exp_avg + (1 - beta) * grad
    return param - lr * (1 if exp_avg > 0 else -1 if exp_avg < 0 else 0), exp_avg


def test_state_of_a_rule_of_ones_own(tmp_path):
    array = np.array([1.0, -2.0], np.float32)
    optimizer = Sign([array], lr=0.5)
    optimizer.step(grads=[np.array([1.0, -1.0], np.float32)])
    param = Parameter(torch.tensor(array))
    other = ours.of(Sign)([param], lr=0.1)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict(), tmp_path))
    assert other.state[param]["step"].item() == 1
    param.grad = torch.tensor([-3.0, 0.25])
    optimizer.step(grads=[param.grad.numpy()])
    other.step()
    assert np.array_equal(param.detach().numpy(), array)
    optimizer.load_state_dict(saved_and_loaded(other.state_dict(), tmp_path))
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 2


# ---- compilation, and a whole training script ----


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="torch.compile needs a C++ compiler",
)


class Block(torch.nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before, self.after = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mixing = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.wide, self.narrow = (
            torch.nn.Linear(width, 2 * width),
            torch.nn.Linear(2 * width, width),
        )

    def forward(self, x):
        batch, length, width = x.shape
        mixed = self.mixing(self.before(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(torch.nn.functional.gelu(self.wide(self.after(x))))


class GPT(torch.nn.Module):
    """A language model of letters, whose output layer shares the embedding."""

    def __init__(self, letters, width=16, layers=4, context=16):
        super().__init__()
        self.letters = torch.nn.Embedding(letters, width)
        self.places = torch.nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = torch.nn.Sequential(*(Block(width, 2) for _ in range(layers)))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, letters, bias=False)
        self.head.weight = self.letters.weight
        with torch.no_grad():
            self.letters.weight.mul_(0.02)

    def forward(self, text):
        return self.head(self.norm(self.blocks(self.letters(text) + self.places)))


def text():
    """Sums, written out: something to learn in two hundred steps."""
    rng = np.random.default_rng(0)
    written = "".join(f"{a}+{b}={a + b};" for a, b in rng.integers(0, 10, (2000, 2)).tolist())
    letters = sorted(set(written))
    return torch.tensor([letters.index(letter) for letter in written]), len(letters)


def trained(model, data, library, *, clip, scheduler, steps=200):
    """The losses of a training script as people write it."""
    decays = [param for param in model.parameters() if param.ndim > 1]
    others = [param for param in model.parameters() if param.ndim <= 1]
    optimizer = library.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3
    )
    schedule = scheduler(optimizer, T_max=steps)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        starts = torch.randint(len(data) - 17, (8,), generator=generator).tolist()
        batch = torch.stack([data[start : start + 17] for start in starts])
        scores = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    if library is ours:
        assert optimizer.fast == (len([*model.parameters()]), 0, 0, {})
    return losses


@pytest.fixture
def one_thread():
    """Sums of this size are not worth more, and a busy machine would make them slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=needs_compiler)], ids=["eager", "compiled"]
)
def test_a_small_gpt_learns_as_with_torch(compiled):
    torch.manual_seed(0)
    data, letters = text()
    model = GPT(letters)
    if compiled:
        for block in model.blocks:  # one compilation, since all are alike
            block.compile()
    start = copy.deepcopy(model.state_dict())
    theirs = trained(
        model,
        data,
        torch.optim,
        clip=torch.nn.utils.clip_grad_norm_,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
    )
    model.load_state_dict(start)
    mine = trained(
        model,
        data,
        ours,
        clip=utils.clip_grad_norm_,
        scheduler=schedulers.CosineAnnealingLR,
    )
    assert theirs[-1] < 0.8 * theirs[0]
    assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_accumulated_gradients_of_groups_by_layer(name):
    results = []
    for library, clip, scheduler in (
        (torch.optim, torch.nn.utils.clip_grad_value_, torch.optim.lr_scheduler.OneCycleLR),
        (ours, utils.clip_grad_value_, schedulers.OneCycleLR),
    ):
        torch.manual_seed(2)
        layers = [torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)]
        model, kwargs = torch.nn.Sequential(*layers), {"momentum": 0.9} if name == "SGD" else {}
        before = [param.detach().clone() for param in model.parameters()]
        groups = [
            {"params": layer.parameters(), "lr": 0.1 / (1 + i)}
            for i, layer in enumerate(layers[::2])
        ]
        optimizer = getattr(library, name)(groups, lr=0.1, **kwargs)
        schedule = scheduler(optimizer, max_lr=[0.1, 0.05], total_steps=12)
        for step in range(10):
            for part in range(4):
                generator = torch.Generator().manual_seed(10 * step + part)
                (model(torch.randn(3, 5, generator=generator)).square().mean() / 4).backward()
            clip(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        assert all(param.grad is None for param in model.parameters())
        results.append([p.detach() - start for p, start in zip(model.parameters(), before)])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_step_is_torchs():
    results = []
    for library in (torch.optim, ours):
        torch.compiler.reset()
        params = [Parameter(torch.linspace(-1, 1, 6)), Parameter(torch.ones(2, 3))]
        optimizer = library.AdamW(params, lr=torch.tensor(0.1))
        scheduler = schedulers.ExponentialLR(optimizer, 0.9)

        @torch.compile(backend="aot_eager")  # tracing is what counts, and the other is slow
        def step(optimizer=optimizer):
            optimizer.step()

        for i in range(4):
            for param in params:
                param.grad = torch.full_like(param, 0.5 + i)
            if i == 3:  # and back
                optimizer.step()
            else:
                step()
            scheduler.step()
        results.append([*params, *(e["step"] for e in optimizer.state.values())])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_clipping_within_a_compiled_function():
    torch.compiler.reset()
    params, others = held(*some()), held(*some())

    @torch.compile(backend="aot_eager")
    def clipped():
        return utils.clip_grad_norm_(params, 1.0)

    torch.testing.assert_close(clipped(), torch.nn.utils.clip_grad_norm_(others, 1.0))
    for param, other in zip(params, others):
        torch.testing.assert_close(param.grad, other.grad)
