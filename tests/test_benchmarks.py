"""The benchmark suite works: its workloads can be run, and its report says what they came to."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import ONE_EACH
from devices import on_cpu_only

import genesis

pytestmark = on_cpu_only

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def suite():
    """The suite's modules; Numba compiles nothing in parallel here."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = "bars contest loops pages peers pictures report roofline starts timing training"
        modules = {name: import_module(name) for name in f"{names} words worker workloads".split()}
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(**modules)


SHAPES = [(3, 4), (5,), ()]


def result_of(suite, name, samples):
    return suite.contest.Result(suite.workloads.WORKLOADS[name], samples)


def test_contenders_take_turns_and_first_calls_do_not_count(suite, monkeypatch):
    monkeypatch.setattr(suite.timing, "SETTLING", 0.0)
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    before = {"b": lambda: calls.append("before b")}
    found = suite.timing.alternate(contenders, 0, before, least=3, most=3)
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert calls.count("a") == 8  # one untimed call in each of four turns, a timed one as well
    assert all(calls[i - 1] == "before b" for i, name in enumerate(calls) if name == "b")
    turns = [name for i, name in enumerate(calls) if name != "before b"][::2]
    assert sorted(turns[:3]) == sorted(turns[3:6]) == ["a", "b", "c"]
    assert turns[3:6] != turns[6:9]  # nobody always follows the same one


def test_contenders_that_measure_themselves_change_places(suite):
    calls = []

    def contender(name):
        return lambda: float(len(calls)) if calls.append(name) is None else 0.0

    found = suite.timing.alternate_measured({n: contender(n) for n in "abc"}, 0, least=3, most=3)
    assert {name: len(figures) for name, figures in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert found["a"][0] == 1.0
    rounds = ["".join(calls[i : i + 3]) for i in (0, 3, 6)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 3
    assert len({*rounds}) == 3
    assert suite.timing.alternate_measured({}, 1.0) == {}


def test_a_summary_is_the_median_and_half_the_interquartile_range(suite):
    summary = suite.timing.Summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert summary == {"median": 3.0, "spread": 1.0, "least": 1.0, "calls": 5}
    assert suite.timing.Summary([2.0])["spread"] == 0


def test_every_elementwise_optimizer_is_measured_with_all_peers(suite):
    for name, case in suite.peers.first_cases().items():
        wanted = set(suite.peers.PEERS) - {"package"}
        if case.peer != "torch":
            wanted = {"package", "NumPy"}
        workload = suite.workloads.WORKLOADS[f"step/{name}/resnet50"]
        assert {"genesis", *wanted} <= set(workload.contenders)


@pytest.mark.parametrize("name", ["AdamW", "SGD-momentum", "RMSprop", "Adagrad", "Rprop"])
@pytest.mark.torch
def test_peers_do_the_same_update(suite, name):
    case = suite.peers.first_cases()[name]
    ours = suite.peers.trainer("genesis", case, SHAPES)
    numpy = suite.peers.trainer("NumPy", case, SHAPES)
    for trainer in (ours, numpy):
        trainer.step()
        trainer.step()
    for param, other in zip(ours.params, numpy._params):
        np.testing.assert_allclose(param.data - 1, other - 1, rtol=1e-3, atol=1e-6)
    for peer in ("torch fused", "torch foreach", "torch for-loop"):
        if case.peer != "torch":
            continue
        pytest.importorskip("torch")
        try:
            theirs = suite.peers.trainer(peer, case, SHAPES)
        except suite.peers.Missing:
            continue
        theirs.step()
        theirs.step()
        for param, other in zip(ours.params, theirs.params):
            np.testing.assert_allclose(param.data, other.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("method", ["step", "clip", "fresh", "refill", "clip_step_zero", "zero"])
def test_work_under_torch_runs(suite, method):
    pytest.importorskip("torch")
    for name in ("Adam", "SGD"):
        trainer = suite.peers.UnderTorch(suite.peers.first_cases()[name], SHAPES)
        theirs = suite.peers.trainer("torch for-loop", suite.peers.first_cases()[name], SHAPES)
        for each in (trainer, theirs):
            each.step()
            getattr(each, method)()
        for param, other in zip(trainer.params, theirs.params):
            np.testing.assert_allclose(
                param.detach().numpy(), other.detach().numpy(), rtol=1e-6, atol=1e-6
            )
        assert len(trainer.columns) == (4 if name == "Adam" else 2)


@pytest.mark.torch
def test_a_workload_under_torch_and_its_bars(suite, monkeypatch):
    pytest.importorskip("torch")
    threads = genesis.get_num_threads()
    monkeypatch.setattr(suite.workloads.shapes, "resnet50", lambda: SHAPES)
    works = {work.name: work for work in suite.workloads._under_torch()}
    results = {}
    for name in ("torch/AdamW/resnet50", "torch/RMSprop/resnet50"):
        results[name] = suite.contest.measure(works[name], 0.01)
        assert not results[name].error
        assert {"genesis", "torch foreach", "roofline (table)"} <= results[name].samples.keys()
    assert "torch fused" in results["torch/RMSprop/resnet50"].missing
    verdicts = [v for v in suite.bars.judge(results) if v.figure is not None]
    assert [v.bar.bound for v in verdicts] == [0.97, 2.5]
    assert all("at the roofline it would be" in v.figure.remark for v in verdicts)
    assert genesis.get_num_threads() == threads


@pytest.mark.parametrize("method", ["clip", "clip_step_zero", "zero", "fresh", "refill"])
def test_work_of_every_kind_runs(suite, method):
    case = suite.peers.first_cases()["AdamW"]
    for name in ("genesis", "NumPy", "torch fused"):
        try:
            trainer = suite.peers.trainer(name, case, SHAPES)
        except suite.peers.Missing:
            continue
        trainer.step()
        getattr(trainer, method)()


def test_a_peer_that_is_not_installed_is_reported(suite):
    with pytest.raises(suite.peers.Missing, match="no_such_peer is not installed"):
        suite.peers.module("no_such_peer")


@pytest.mark.parametrize("buffers", range(5))
def test_the_roofline_on_the_optimizers_arrays_leaves_them_as_they_are(suite, rng, buffers):
    columns = [
        [rng.standard_normal(size).astype(np.float32) for size in (40_000, 7)]
        for _ in range(2 + buffers)
    ]
    before = [[array.copy() for array in column] for column in columns]
    suite.roofline.table(columns)()
    for column, old in zip(columns, before):
        for array, other in zip(column, old):
            np.testing.assert_array_equal(array, other)


def test_a_small_workload_from_end_to_end(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite.report, "RESULTS", tmp_path)
    left_out = ("torch foreach", "roofline (prange)", "optax")
    results = suite.report.run(["size/1x1"], 0.02, left_out, bar=False)
    about = suite.report.machine()
    _, path = suite.report.write(results, about, "here", " --quick")
    text = path.read_text()
    assert "(here.png)" in text
    assert "a step with one tensor" in text
    assert "roofline (prange): left out, to save time" in text
    record = json.loads((tmp_path / "here.json").read_text())
    found = record["workloads"]["size/1x1"]
    assert found["contenders"]["genesis"]["median"] > 0
    assert 0 < found["fraction_of_roofline"] < 1
    assert record["machine"]["threads"] >= 1
    assert (tmp_path / "here.png").stat().st_size > 1000


def test_a_workload_that_fails_costs_no_other(suite, monkeypatch):
    workload = suite.workloads.WORKLOADS["size/1x1"]

    def broken(wanted):
        raise RuntimeError("no luck")

    wrong = dataclasses.replace(workload, build=broken)
    monkeypatch.setitem(suite.workloads.WORKLOADS, "size/1x1", wrong)
    results = suite.report.run(["size/1x1", "size/1x1"], 0.02, (), bar=False)
    assert [result.error for result in results] == ["failed: RuntimeError('no luck')"] * 2
    assert all(result.failed for result in results)


def test_figures_of_a_result(suite):
    samples = {
        "genesis": [2.0] * 6,
        "torch fused": [3.0] * 6,
        "roofline (prange)": [1.0] * 6,
        "roofline (table)": [1.5, 1.5, 1.5, 1.5, 1.8, 1.8],
    }
    result = result_of(suite, "step/AdamW/resnet50", samples)
    assert (result.roofline, result.fraction, result.ratio("torch fused")) == (1.0, 0.5, 1.5)
    assert result.ratio("optax") is None
    assert result.drift == 0
    del samples["roofline (prange)"]
    assert result.drift == pytest.approx(0.2)
    assert result.record()["ratio"] == {"torch fused": 1.5}


def test_bars_are_judged(suite):
    samples = {"genesis": [1.0], "torch fused": [0.9], "roofline (table)": [0.95]}
    name = "step/AdamW/resnet50"
    verdicts = {v.bar.claim: v for v in suite.bars.judge({name: result_of(suite, name, samples)})}
    assert verdicts["AdamW, ResNet-50: of the roofline"].holds
    lost = verdicts["AdamW, ResNet-50: beside torch fused"]
    assert not lost.holds
    assert lost.figure.remark == "at the roofline it would be 0.947x"
    assert verdicts["AdamW, ResNet-50: beside optax"].holds is None
    assert verdicts["AdamW: state, bytes for each parameter"].holds is None


def test_of_first_steps_the_slowest_counts(suite):
    names = {"Adam": 0.4, "Muon": 1.2, "SparseAdam": 1.4}
    results = {
        f"start/cold/{name}": result_of(suite, f"start/cold/{name}", {"genesis": [seconds]})
        for name, seconds in names.items()
    }
    verdicts = {v.bar.claim: v for v in suite.bars.judge(results) if v.figure is not None}
    others, sparse = verdicts.values()
    assert (others.figure, others.holds) == ((1.2, "Muon, of 2"), False)
    assert (sparse.figure.value, sparse.holds) == (1.4, True)


def test_every_bar_needs_a_workload_that_exists(suite):
    """Bars that nothing could ever measure would be silent."""
    everything = {
        name: suite.contest.Result(workload, {c: [1.0] for c in workload.contenders})
        for name, workload in suite.workloads.WORKLOADS.items()
    }
    unmeasured = [v.bar.claim for v in suite.bars.judge(everything) if v.figure is None]
    assert unmeasured == []


def test_no_rule_has_more_buffers_than_the_roofline_moves(suite):
    """Otherwise the workload of such a rule fails, as it did for two of them."""
    most = len(suite.roofline._RULES) - 1
    assert len(suite.roofline._STEPS) - 1 == most
    for case in ONE_EACH:
        param = genesis.Parameter(np.ones((3, 3), np.float32))
        opt = case.make([param])
        param.grad = np.ones((3, 3), np.float32)
        opt.step()
        buffers = [v for v in opt.state[param].values() if isinstance(v, np.ndarray)]
        assert len(buffers) <= most, case.name


def test_pages_show_workloads_that_exist(suite):
    shown = {*suite.pages.HEADLINES, *suite.pages.STEPS, *suite.pages.PANELS}
    assert shown <= {*suite.workloads.WORKLOADS}
    assert len(suite.pages.HEADLINES) == 10


def test_pages_are_filled_between_their_markers(suite):
    fill = suite.words.fill
    begin, end = "<!-- loop: begin -->", "<!-- loop: end -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert fill(text, "loop", "new\n") == f"before\n{begin}\nnew\n{end}\nafter\n"
    with pytest.raises(ValueError, match="page must have '<!-- loop: begin -->'"):
        fill("no markers", "loop", "new\n")
    for page, names in (
        (suite.pages.PAGE, suite.pages.SECTIONS),
        (suite.pages.README, ["benchmarks"]),
    ):
        for name in names:
            fill(page.read_text(encoding="utf-8"), name, "")


@pytest.fixture
def record(suite):
    """What a report of everything has on the disk, with figures that nobody measured."""

    def one(workload):
        contenders = [name for name in workload.contenders if name != "torch compiled"]
        samples = {name: [1.0 + i, 2.0 + i] for i, name in enumerate(contenders)}
        missing = {"torch compiled": "was not ready after 360 s"}
        if set(workload.contenders) == set(contenders):
            missing = {}
        return suite.contest.Result(workload, samples, missing).record()

    about = suite.report.machine()
    found = {name: one(work) for name, work in suite.workloads.WORKLOADS.items()}
    return {"machine": about, "workloads": found}


def test_pages_are_filled_from_what_was_measured(suite, record, tmp_path, monkeypatch):
    pages = suite.pages
    for name in ("README", "PAGE"):
        copy = tmp_path / getattr(pages, name).name
        copy.write_text(getattr(pages, name).read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(pages, name, copy)
    monkeypatch.setattr(pages, "PICTURES", tmp_path)
    file, later = tmp_path / "all.json", tmp_path / "later.json"
    file.write_text(json.dumps(record))
    records = pages.read([file])
    assert pages.write(records) == [*pages.PARTS]
    pictures = "race-mlp race-rnn race-rows loop steps races".split()
    assert {f.stem for f in tmp_path.glob("*.png")} == {*pictures}
    readme, page = pages.README.read_text(), pages.PAGE.read_text()
    table = readme.partition("<!-- benchmarks: begin -->")[2].partition("<!-- benchmarks: end -->")[
        0
    ]
    assert table.count("\n| ") == 11  # the head and ten lines
    row = next(line for line in table.splitlines() if "from nothing" in line)
    assert row.split("|")[4].strip() == "4.5 s ±6% (3.00x)"  # compiled, cold, not from its cache
    assert "1000 small tensors, torch compiled: was not ready after 360 s" in page
    assert "| NumPy | 5.5 s ±5% (3.67x) | 5.5 s ±5% (3.67x) |" in page

    assert pages.write(records, ["loop"]) == ["loop"]
    one = {"train/rnn": record["workloads"]["train/rnn"]}
    later.write_text(json.dumps({**record, "workloads": one}))
    assert pages.write(pages.read([later])) == ["race rnn"]  # the README's ten are not all there
    assert pages.README.read_text() == readme
    assert pages.PAGE.read_text().count("| an iteration | one thread |\n") == 1


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0124, "s", "12.4 ms"), (2.5e-6, "s", "2.5 us"), (41.2, "x", "41x"), (0.913, "", "0.91")],
)
def test_amounts_read_well(suite, value, unit, text):
    assert suite.words.amount(value, unit) == text


def test_the_command_line_lists_workloads():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), "--list", "step/*/resnet50"],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert "step/AdamW/resnet50" in done.stdout


# ---- races, and steps in loops ----

RACES = {"mlp": 5, "rnn": 5, "rows": 5}
"""How many contenders each has."""


def losses(contender, iterations=20):
    iterate = contender()
    return [iterate() for _ in range(iterations)]


@pytest.mark.parametrize("race", RACES)
def test_gradients_by_hand_are_those_of_the_loss(suite, race):
    """By differences in float64, along a random direction for each parameter."""
    race = suite.training.RACES[race]
    params = {name: value.astype(np.float64) for name, value in race.parameters().items()}
    batch = race.batches()[0]
    rng = np.random.default_rng(5)
    if "weights" in params:  # all zeros at first
        params["weights"] = rng.standard_normal(params["weights"].shape)
    _, grads = race.gradients(params, *batch)
    if "weights" in params:
        whole = np.zeros_like(params["weights"])
        np.add.at(whole, batch[0].ravel(), grads["weights"])
        grads = {**grads, "weights": whole}
    assert grads.keys() == params.keys()
    for name, param in params.items():
        direction, size = rng.standard_normal(param.shape), 1e-6
        losses = []
        for sign in (1, -1):
            moved = {**params, name: param + sign * size * direction}
            losses.append(race.gradients(moved, *batch)[0])
        slope = float((losses[0] - losses[1]) / (2 * size))
        assert slope == pytest.approx(float(np.vdot(grads[name], direction)), rel=1e-3, abs=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("race", RACES)
def test_contenders_train_the_same(suite, race):
    contenders = dict(suite.training.RACES[race].contenders())
    assert len(contenders) == RACES[race]
    threads = genesis.get_num_threads()
    genesis.set_num_threads(1)
    try:
        ours = losses(contenders.pop("genesis"))
        assert ours[-1] < ours[0] * 0.999
        assert np.ptp(ours) > 1e-3
        np.testing.assert_allclose(losses(contenders.pop("NumPy")), ours, rtol=1e-5)
        torch = pytest.importorskip("torch")
        before = torch.get_num_threads()
        for name in [name for name in contenders if name.startswith("torch")]:
            np.testing.assert_allclose(losses(contenders.pop(name)), ours, rtol=1e-5)
        torch.set_num_threads(before)
        pytest.importorskip("optax")
        for contender in contenders.values():
            np.testing.assert_allclose(losses(contender), ours, rtol=1e-5)
    finally:
        genesis.set_num_threads(threads)


def test_races_on_one_thread_and_on_default_threads(suite):
    """The process that serves is told of one thread; of more it is told nothing."""
    names = {f"train/{race}{more}" for race, more in product(RACES, ("", "/default-threads"))}
    works = suite.workloads.WORKLOADS
    assert names == {name for name in works if name.startswith("train/")}
    assert suite.training.environment("default") == {}
    assert {*suite.training.environment("1").values()} >= {"1"}


def test_a_race_in_a_process_of_its_own(suite):
    left_out = ("torch eager", "torch eager, fused", "JAX and optax, jitted")
    result = suite.contest.measure(suite.workloads.WORKLOADS["train/mlp"], 0.0, left_out)
    assert {*result.samples} == {"genesis", "NumPy"}
    assert result.missing == dict.fromkeys(left_out, "left out, to save time")
    assert all(0 < figure < 60 for figures in result.samples.values() for figure in figures)


def test_a_process_that_ends_or_is_late_is_missing(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite.worker, "HERE", tmp_path)
    (tmp_path / "ends.py").write_text("raise RuntimeError('no luck')")
    with pytest.raises(suite.peers.Missing, match="RuntimeError: no luck"):
        suite.worker.Worker("ends.py")
    (tmp_path / "late.py").write_text("import time; time.sleep(600)")
    with pytest.raises(suite.peers.Missing, match="was not ready after 0 s"):
        suite.worker.Worker("late.py", patience=0.1)
    (tmp_path / "serves.py").write_text(
        "print('ready', flush=True)\nfor line in iter(input, ''): print(len(line), flush=True)"
    )
    worker = suite.worker.Worker("serves.py")
    assert (worker.ready, worker.ask("12345")) == ("ready\n", 5.0)
    with pytest.raises(suite.peers.Missing, match="ended without a word"):
        worker.ask("")
    worker.close()


@pytest.mark.parametrize("between", ["at-once", "products-1ms", "cold"])
def test_a_step_after_other_work(suite, between, monkeypatch):
    monkeypatch.setitem(suite.loops.shapes.MODELS, "mlp", lambda: SHAPES)
    monkeypatch.setattr(suite.loops, "last_level_cache", lambda: 1 << 16)
    monkeypatch.setattr(suite.loops, "SETTLING", 0.0)
    work = suite.loops._loop(between, "mlp")
    result = suite.contest.measure(work, 0.0)
    assert {*result.samples, *result.missing} == {"genesis", "torch fused"}
    assert len(result.samples["genesis"]) >= 5


def test_other_work_before_a_step_takes_its_time(suite):
    for key, least in (("products-1ms", 1e-3), ("sleep-12ms", 12e-3)):
        work, end = suite.loops.BETWEEN[key].make("genesis")
        start = time.perf_counter()
        work()
        assert time.perf_counter() - start >= least
        end()


def test_a_step_that_is_not_compiled_in_time_is_not_tried_again(suite, monkeypatch):
    tried = []

    def late(model, folder):
        tried.append(model)
        raise suite.peers.Missing("was not ready after 360 s")

    monkeypatch.setattr(suite.starts, "_tried", {})
    monkeypatch.setattr(suite.starts, "_compiled_step", late)
    names = suite.starts.COMPILED_COLD, suite.starts.COMPILED_KEPT
    result = suite.contest.measure(
        suite.starts._first_step("tiny1000"),
        0.0,
        ("genesis", "genesis, cold", "torch fused", "optax"),
    )
    assert tried == ["tiny1000"]
    assert [result.missing[name] for name in names] == ["was not ready after 360 s"] * 2
    beside = suite.contest.measure(
        suite.starts._beside_compiled("tiny1000"), 0.0, ("optax", "NumPy")
    )
    assert tried == ["tiny1000"]
    assert "torch compiled" in beside.missing
    assert "genesis" in beside.samples


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("default")  # torch's compiler warns of itself
def test_the_step_that_torch_compiles_is_that_of_genesis(suite):
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import compiled
    finally:
        sys.path.remove(str(BENCHMARKS))
    step, theirs = compiled.compiled_step(SHAPES)
    ours = [genesis.Parameter(np.ones(shape, np.float32)) for shape in SHAPES]
    optimizer = genesis.optim.AdamW(ours)
    for param, other in zip(ours, theirs):
        param.grad = np.full(param.shape, 0.01, np.float32)
        assert torch.equal(other.grad, torch.from_numpy(param.grad))
    for _ in range(3):
        step()
        optimizer.step()
    for param, other in zip(ours, theirs):
        moved = other.detach().numpy() - 1
        assert np.abs(moved).min() > 1e-3
        np.testing.assert_allclose(param.data - 1, moved, rtol=1e-4)


def test_schedulers_take_turns_with_torch(suite):
    """One that ends early and one that takes a metric: both are stepped no further than they go."""
    pytest.importorskip("torch")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import schedulers
    finally:
        sys.path.remove(str(BENCHMARKS))
    for kind in ("OneCycleLR-short", "ReduceLROnPlateau-noise", "SequentialLR-linear-one"):
        case = next(case for case in schedulers.CASES if repr(case) == kind)
        took = schedulers.contest(case, rounds=2)
        assert set(took) == {"genesis", "torch"}
        assert all(0 < figure < 1e6 for figure in took.values())
