"""The benchmark suite works: its workloads can be run, and its report says what they came to."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

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
        import bars
        import peers
        import report
        import roofline
        import timing
        import workloads
    finally:
        sys.path.remove(str(BENCHMARKS))

    class Suite:
        pass

    Suite.bars, Suite.peers, Suite.report = bars, peers, report
    Suite.roofline, Suite.timing, Suite.workloads = roofline, timing, workloads
    return Suite


SHAPES = [(3, 4), (5,), ()]


def result_of(suite, name, samples):
    return suite.workloads.Result(suite.workloads.WORKLOADS[name], samples)


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
        results[name] = suite.workloads.measure(works[name], 0.01)
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
    monkeypatch.setattr(suite.report, "README", tmp_path.parent / "README.md")
    path, shown = suite.report.write(results, about, "here", " --quick")
    assert "one tensor of 1" in shown
    assert f"({tmp_path.name}/here.md)" in shown
    assert f"({tmp_path.name}/here.png)" in shown
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


def test_every_bar_needs_a_workload_that_exists(suite):
    """Bars that nothing could ever measure would be silent."""
    everything = {
        name: suite.workloads.Result(workload, {c: [1.0] for c in workload.contenders})
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


def test_headlines_are_of_workloads_that_exist(suite):
    assert {*suite.report.HEADLINES} <= {*suite.workloads.WORKLOADS}


def test_readme_is_filled_between_its_markers(suite):
    begin, end = suite.report.BEGIN, suite.report.END
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert suite.report.fill_readme(text, "new\n") == f"before\n{begin}\nnew\n{end}\nafter\n"
    with pytest.raises(ValueError, match="README must have"):
        suite.report.fill_readme("no markers", "new\n")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0124, "s", "12.4 ms"), (2.5e-6, "s", "2.5 us"), (41.2, "x", "41x"), (0.913, "", "0.91")],
)
def test_amounts_read_well(suite, value, unit, text):
    assert suite.report.amount(value, unit) == text


def test_the_command_line_lists_workloads():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), "--list", "step/*/resnet50"],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert "step/AdamW/resnet50" in done.stdout


def losses_of(training, name, iterations=20):
    iterate = training.CONTENDERS[name]()
    return [iterate() for _ in range(iterations)]


@pytest.mark.torch
def test_contenders_train_the_same_network(suite):
    training = suite.workloads.training
    threads = genesis.get_num_threads()
    ours = losses_of(training, "genesis")
    try:
        assert ours[-1] < ours[0]
        np.testing.assert_allclose(losses_of(training, "NumPy"), ours, rtol=1e-4)
        torch = pytest.importorskip("torch")
        before = torch.get_num_threads()
        for name in ("torch eager, fused", "torch eager"):
            np.testing.assert_allclose(losses_of(training, name), ours, rtol=1e-4)
        torch.set_num_threads(before)
        pytest.importorskip("optax")
        np.testing.assert_allclose(losses_of(training, "JAX and optax, jitted"), ours, rtol=1e-4)
    finally:
        genesis.set_num_threads(threads)


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
