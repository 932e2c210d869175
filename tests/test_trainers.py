"""genesis.torch in the hands of others: Lightning, Accelerate, Transformers' Trainer, and two ranks.

Each run is made with torch's own class, and once more with ours in its place and nothing else changed.
The trainer clips, accumulates, schedules, and saves a checkpoint in the middle; from that the other
class goes on to the end.

The tests of a trainer need its package, and are skipped without it: `tox run -e packages` installs all
of them, and fails if any test is skipped. Nothing is downloaded.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from devices import on_cpu_only

torch = pytest.importorskip("torch", reason="needs torch: tox run -e packages")
ours = pytest.importorskip("genesis.torch", reason="needs torch: tox run -e packages")
from rank_trainer import CASES as RANK_CASES  # noqa: E402
from rank_trainer import MAX_NORM, OPTIONS, network  # noqa: E402, once it is known that torch is there

# What trainers warn of is theirs to mend.
pytestmark = [on_cpu_only, pytest.mark.filterwarnings("ignore", "error:::genesis")]


class Run(NamedTuple):
    """What a trainer did.

    Attributes:
        losses: of each batch.
        moved: how far each parameter is from where the whole run began.
        steps: of each step the norm of the gradients, and what `fast` said if the optimizer has it.
        optimizer: of torch's class or ours, out of whatever the trainer has put around it.
    """

    losses: list
    moved: list
    steps: list
    optimizer: object


@pytest.fixture(scope="module", autouse=True)
def _offline_and_on_one_thread():
    # On a busy machine threads wait for each other far longer than work as small as this takes.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        yield
    torch.set_num_threads(before)


def imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what others warn as they are imported, nothing is ours
        return pytest.importorskip(name, reason=f"needs {name.split('.')[0]}: tox run -e packages")


def batches(count):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(4 * count, 6, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :2].sin() + inputs[:, 2:4])
    return torch.utils.data.DataLoader(data, batch_size=4)


def steps_of(optimizer):
    """A list of what there is to say of each step, which grows with them."""
    steps = []

    def note(optimizer, *_):
        grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
        norm = torch.nn.utils.get_total_norm(grads).item()
        steps.append((norm, getattr(optimizer, "fast", None)))

    optimizer.register_step_post_hook(note)
    return steps


def moved(params, first):
    return [param.detach() - start for param, start in zip(params, first)]


# ---- trainers: 12 batches, two to a step, a checkpoint after 6 ----


def by_lightning(cls, options, folder, resume):
    pl = imported("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.losses = network(), []

        def training_step(self, batch):
            inputs, wanted = batch
            loss = torch.nn.functional.mse_loss(self.network(inputs), wanted)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            optimizer = cls(self.parameters(), **options)
            self.steps = steps_of(optimizer)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    saving = pl.callbacks.ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=MAX_NORM,
        accumulate_grad_batches=2,
        callbacks=[saving],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    first = [param.detach().clone() for param in module.parameters()]
    trainer.fit(module, batches(6), ckpt_path=resume and resume / "epoch=0.ckpt")
    return Run(
        module.losses, moved(module.parameters(), first), module.steps, trainer.optimizers[0]
    )


def by_fabric(cls, options, folder, resume):
    fabric = imported("lightning").Fabric(accelerator="cpu", devices=1)
    made, losses = network(), []
    first = [param.detach().clone() for param in made.parameters()]
    optimizer = cls(made.parameters(), **options)
    steps = steps_of(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    model, wrapped = fabric.setup(made, optimizer)
    assert isinstance(wrapped, cls)
    state = {"model": model, "optimizer": wrapped, "schedule": schedule}
    if resume:
        fabric.load(resume / "middle.pt", state)
    for number, (inputs, wanted) in enumerate(fabric.setup_dataloaders(batches(12)), 1):
        if resume and number <= 6:
            continue
        with fabric.no_backward_sync(model, enabled=number % 2 == 1):
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            losses.append(loss.item())
            fabric.backward(loss / 2)
        if number % 2 == 0:
            fabric.clip_gradients(model, wrapped, max_norm=MAX_NORM)
            wrapped.step()
            schedule.step()
            wrapped.zero_grad()
        if number == 6:
            fabric.save(folder / "middle.pt", state)
    if hasattr(optimizer, "fast"):
        assert wrapped.fast == optimizer.fast
    return Run(losses, moved(made.parameters(), first), steps, optimizer)


def by_accelerate(cls, options, folder, resume):
    accelerate = imported("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, losses = network(), []
    first = [param.detach().clone() for param in model.parameters()]
    optimizer = cls(model.parameters(), **options)
    steps = steps_of(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    model, wrapped, loader, schedule = accelerator.prepare(model, optimizer, batches(12), schedule)
    assert wrapped.optimizer is optimizer
    if resume:
        accelerator.load_state(resume / "middle")
        loader = accelerator.skip_first_batches(loader, 6)
    for number, (inputs, wanted) in enumerate(loader, 1):
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            losses.append(loss.item())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            wrapped.step()
            schedule.step()
            wrapped.zero_grad()
        if number == 6 and not resume:
            accelerator.save_state(folder / "middle")
    return Run(losses, moved(model.parameters(), first), steps, optimizer)


def by_transformers(cls, options, folder, resume):
    transformers = imported("accelerate") and imported("transformers")
    transformers.set_seed(3)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    )
    # A bias that all keys share changes nothing: its gradient is rounding alone, which both classes
    # divide by its size. In float64 that is far below their eps.
    model.double()
    first, losses = [param.detach().clone() for param in model.parameters()], []
    model.register_forward_hook(lambda _, args, found: losses.append(found.loss.item()))
    tokens = torch.randint(20, (12, 8), generator=torch.Generator().manual_seed(5))
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder),
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=MAX_NORM,
            lr_scheduler_type="linear",
            warmup_steps=2,
            save_steps=3,
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizer_cls_and_kwargs=(cls, options),
    )
    optimizer = trainer.create_optimizer()
    steps = steps_of(optimizer)
    trainer.train(resume_from_checkpoint=resume and str(resume / "checkpoint-3"))
    assert trainer.optimizer.optimizer is optimizer
    return Run(losses, moved(model.parameters(), first), steps, optimizer)


TRAINERS = {
    "lightning": by_lightning,
    "fabric": by_fabric,
    "accelerate": by_accelerate,
    "transformers": by_transformers,
}
CASES = [(trainer, name) for trainer in TRAINERS for name in OPTIONS]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def runs(request, tmp_path_factory):
    """A whole run of each class, "peer" being torch's, and what came of the checkpoints in the middle:
    "over" is the peer's with ours from there, "back" ours with the peer from there.
    """
    trainer, name = request.param
    run, options = TRAINERS[trainer], OPTIONS[name]
    classes = {"peer": getattr(torch.optim, name), "ours": getattr(ours, name)}
    given = {"peer": options, "ours": {**options, "strict": True}}
    folders = {key: tmp_path_factory.mktemp(key) for key in classes}
    whole = {key: run(classes[key], given[key], folders[key], None) for key in classes}
    over = tmp_path_factory.mktemp("over")
    whole["over"] = run(classes["ours"], given["ours"], over, folders["peer"])
    whole["back"] = run(classes["peer"], given["peer"], over, folders["ours"])
    return name, whole


# Of losses the relative tolerance, and of how far parameters have moved (1 at most) the relative and
# the absolute one: five times what was seen.
TOLERANCES = {torch.float32: (2e-6, 1e-6, 3e-7), torch.float64: (1e-11, 1e-10, 2e-12)}


def assert_same(losses, expected_losses, found, expected):
    of_losses, rtol, atol = TOLERANCES[expected[0].dtype]
    assert losses == pytest.approx(expected_losses, rel=of_losses)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("which", ["ours", "over", "back"])
def test_trainer_ends_where_it_ends_with_the_other_class(runs, which):
    name, whole = runs
    expected, found = whole["peer"], whole[which]
    count = 12 if which == "ours" else 6
    assert type(found.optimizer) is getattr(torch.optim if which == "back" else ours, name)
    assert_same(found.losses, expected.losses[-count:], found.moved, expected.moved)
    norms, ways = zip(*found.steps)
    assert norms == pytest.approx([MAX_NORM] * (count // 2), rel=1e-4)
    if which != "back":
        assert set(map(str, ways)) == {str(ours.Paths(genesis=len(found.moved)))}


def test_runs_are_long_enough_to_tell_them_apart(runs):
    _, whole = runs
    assert all(step.abs().max() > 0.01 for step in whole["peer"].moved)
    assert len(whole["peer"].losses) == 12


def test_what_lightning_makes_of_an_optimizer_is_one_of_ours(tmp_path):
    pl = imported("lightning.pytorch")

    class Module(pl.LightningModule):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.network = network()

        def configure_optimizers(self):
            return ours.AdamW(self.parameters(), lr=0.03, strict=True)

        def training_step(self, batch):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.network(batch[0]).square().mean())
            optimizer.step(max_norm=0.01)
            assert type(optimizer) is not ours.AdamW
            assert isinstance(optimizer, ours.AdamW)
            assert optimizer.fast == (4, 0, 0, {})
            self.norm = optimizer.grad_norm

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, peer = Module(), network()
    trainer.fit(module, batches(3))
    optimizer = torch.optim.AdamW(peer.parameters(), lr=0.03)
    for inputs, _ in batches(3):
        optimizer.zero_grad()
        peer(inputs).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 0.01)
        optimizer.step()
    first = [*network().parameters()]
    both = (moved(each.parameters(), first) for each in (module, peer))
    assert_same([module.norm], [norm.item()], *both)


# ---- two ranks, each a process of its own ----


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks have saved of each case, and what they said as they ended."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("rank_trainer.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return folder, f"the ranks ended with {codes}\n" + "\n".join(said)


@pytest.fixture(params=RANK_CASES)
def case(request, ranks):
    folder, said = ranks
    files = [folder / f"{request.param}-{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), said
    return request.param, [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("which", ["ours", "over", "back"])
@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_end_where_they_end_with_the_other_class(case, name, which):
    kind, both = case
    counts = []
    for one in both:
        expected, found = one[name, "peer"], one[name, which]
        assert_same(found["losses"], expected["losses"], found["moved"], expected["moved"])
        assert all(step.abs().max() > 0.01 for step in found["moved"])
        assert len(found["losses"]) == 12
        assert len(found["ways"]) == (6 if which == "ours" else 3)
        assert len(set(map(str, found["ways"]))) == 1
        counts.append(found["ways"][0])
        if kind != "fsdp":
            assert set(found["in_buckets"]) == {kind.endswith("views")}
            assert found["told"] == []
    # Both have the same parameters, to the last bit.
    assert all(map(torch.equal, both[0][name, which]["moved"], both[1][name, which]["moved"]))
    if kind.startswith("ddp"):
        assert counts == [(4, 0, 0, {})] * 2
    elif kind.startswith("zero"):
        assert all(way[1:] == (0, 0, {}) and way[0] > 0 for way in counts)
        assert sum(way[0] for way in counts) == 4
    else:
        assert counts == [(0, 4, 0, {"parameter of class DTensor": 4})] * 2


@pytest.mark.parametrize("case", ["fsdp"], indirect=True)
def test_sharded_parameters_are_left_to_the_other_class_and_it_is_told_once(case):
    for one in case[1]:
        for name in OPTIONS:
            # One optimizer for each half of the run.
            for which, optimizers in {"ours": 2, "over": 1, "back": 1}.items():
                assert one[name, which]["told"] == optimizers * [
                    f"{name} leaves 4 parameters to torch's own step "
                    "(4 for: parameter of class DTensor)"
                ]


@pytest.mark.parametrize("case", ["fsdp"], indirect=True)
def test_strict_refuses_sharded_parameters_on_every_rank(case):
    for one in case[1]:
        assert "strict=True" in one["strict"]["said"]
        assert "4 for: parameter of class DTensor" in one["strict"]["said"]
        assert one["strict"]["untouched"]
