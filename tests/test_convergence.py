"""The page of convergence: every optimizer takes part, and figures are those of the script."""

import importlib.util
import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import on_cpu_only
from matplotlib.image import imread

import genesis

pytestmark = on_cpu_only

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "convergence.py"
needs_digits = pytest.mark.skipif(
    find_spec("sklearn") is None,
    reason="needs scikit-learn's digits: pip install -e '.[test,examples]'",
)


def load():
    spec = importlib.util.spec_from_file_location("convergence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["convergence"] = module
    spec.loader.exec_module(module)
    return module


script = load()
NAMES = script.catalogue()
FOUND = script.results()
SPECIAL = [
    "AdamW",
    "LARS",
    "LBFGS",
    "Muon",
    "MuonWithAdamW",
    "SAM",
    "ScheduleFreeAdamW",
    "SparseAdam",
]
"""All ways in which the script makes an optimizer and steps it."""


@pytest.fixture
def tiny(monkeypatch, num_threads):
    """The script with one seed, two learning rates and hardly any steps."""
    functions = [problem._replace(gradients=2) for problem in script.FUNCTIONS]
    for name, value in {
        "FUNCTIONS": functions,
        "FACTORS": [0.1, 1.0],
        "SEEDS": [0],
        "BAR_SEEDS": [0],
        "EPOCHS": 2,
        "BAR_EPOCHS": 1,
    }.items():
        monkeypatch.setattr(script, name, value)
    return script


# ---- what is recorded ----


def test_the_catalogue_is_all_that_has_an_update():
    assert {"AdamW", "LBFGS", "Lookahead", "Muon", "ScheduleFreeSGD"} <= set(NAMES)
    assert not {"Optimizer", "RuleOptimizer", "Mixed", "lr_scheduler"} & set(NAMES)


def test_every_optimizer_has_one_family():
    members = Counter(name for family in script.FAMILIES.values() for name in family.split())
    assert [name for name in NAMES if members[name] != 1] == [], (
        "FAMILIES in docs/convergence.py names each optimizer once"
    )


def test_recipes_are_of_optimizers_that_there_are():
    assert set(script.RECIPES) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_the_script(name):
    assert name in FOUND, "run python docs/convergence.py"
    assert FOUND[name]["setup"] == script.setup(name), "run python docs/convergence.py"


def test_pictures_are_there_and_small():
    pictures = {path.name: path.stat().st_size for path in script.PICTURES.glob("*.png")}
    own = "rosenbrock.png", "rastrigin.png", "quadratic.png", "digits.png"
    others = "races race-mlp race-rnn race-rows loop steps".split()  # of benchmarks/pages.py
    assert set(pictures) == {*own, *(f"{name}.png" for name in others)}
    assert sum(pictures[name] for name in own) < 600_000
    assert sum(pictures.values()) < 1_000_000


def test_tables_of_the_page_are_up_to_date():
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.with_tables(page, FOUND), "run python docs/convergence.py"


@pytest.mark.parametrize("name", FOUND)
def test_recorded_accuracy_on_digits_is_at_most_a_point_below_adamws(name):
    assert len(FOUND[name]["bar"]) == 5
    assert np.mean(FOUND[name]["bar"]) >= np.mean(FOUND["AdamW"]["bar"]) - script.BELOW


@needs_digits
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_on_digits_is_at_most_a_point_below_adamws(name):
    assert np.mean(script.bar(name)) >= np.mean(FOUND["AdamW"]["bar"]) - script.BELOW


@needs_digits
def test_adamw_reaches_its_recorded_accuracy():
    again = script.train("AdamW", 1.0, script.BAR_SEEDS[0], script.BAR_EPOCHS, validate=False)
    # Another CPU rounds differently: some of the 450 test images may change sides.
    assert again.accuracy == pytest.approx(FOUND["AdamW"]["bar"][0], abs=0.01)


# ---- the functions ----


@pytest.mark.parametrize("problem", script.FUNCTIONS, ids=lambda problem: problem.name)
def test_gradients_agree_with_differences(problem, rng):
    w = problem.start(rng)
    value, grad = problem.at(w)
    assert value > 0
    for index in np.ndindex(w.shape):
        step = np.zeros(w.shape)
        step[index] = 1e-6
        slope = (problem.at(w + step)[0] - problem.at(w - step)[0]) / 2e-6
        assert grad[index] == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_minima_and_condition_are_as_the_page_says():
    assert script.rosenbrock(np.ones((1, 2)))[0] == 0
    assert script.rastrigin(np.zeros((1, 2)))[0] == 0
    assert script.quadratic(np.zeros((5, 8)))[0] == 0
    assert np.linalg.cond(script.hessian()) == pytest.approx(1e4)
    off_diagonal = script.hessian() - np.diag(np.diag(script.hessian()))
    assert np.abs(off_diagonal).max() > 0.05, "a function along the axes is no test"


# ---- runs ----


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_moves_on_every_function(name, tiny):
    for problem in tiny.FUNCTIONS:
        # Steps so small that none diverges, and as many as let those move, too, that look at first.
        run = tiny.descend(problem._replace(gradients=8), name, 1e-4, 0)
        assert run.gradients[-1] >= 8
        assert np.isfinite(run.places[-1]).all()
    assert not np.array_equal(run.places[0], run.places[-1])


def test_a_wrapper_and_its_optimizer_have_the_learning_rate_of_the_recipe():
    for name, lr in {"SAM": 1e-3, "Lookahead": 1e-3, "SGD": 0.05, "LARS": 0.3, "LBFGS": 1}.items():
        assert script.learning_rate(name, 10.0) == pytest.approx(10 * lr), name


def test_the_search_takes_the_least_loss_and_the_smaller_of_equals(monkeypatch):
    monkeypatch.setattr(script, "FACTORS", [0.1, 1.0, 10.0, 100.0])
    losses = {0.1: 3.0, 1.0: 2.0, 10.0: 2.0, 100.0: float("nan")}
    assert script.search(losses.get, lambda loss: loss) == (1.0, 2.0)


@needs_digits
def test_the_script_runs_and_goes_on_where_it_was(tiny, tmp_path, monkeypatch, capsys):
    script.network_of_the_example()  # found beside the script, which is to write elsewhere
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n"
        + "".join(
            f"<!-- {t} table: begin -->\n<!-- {t} table: end -->\n" for t in ("search", "bar")
        )
    )
    monkeypatch.setattr(tiny, "PAGE", page)
    monkeypatch.setattr(tiny, "HERE", tmp_path / "docs")
    monkeypatch.setattr(tiny, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(tiny, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(tiny, "catalogue", lambda: SPECIAL)
    tiny.main([])
    done = capsys.readouterr().out
    assert [line.split(":")[0] for line in done.splitlines()[: len(SPECIAL)]] == SPECIAL
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == sorted(SPECIAL)
    assert all(len(row["bar"]) == 1 for row in found.values())
    for picture in ("rosenbrock", "rastrigin", "quadratic", "digits"):
        pixels = imread(tmp_path / "pictures" / f"{picture}.png")
        assert pixels.shape[1] > 900
        assert np.mean(pixels[..., :3].min(axis=-1) < 0.9) > 0.01
    assert page.read_text().count("`SAM`") == 2

    monkeypatch.setattr(tiny, "draw", lambda found, folder: [])
    tiny.main(["--again", "AdamW"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["AdamW"]
    with pytest.raises(SystemExit):
        tiny.main(["--again", "Adamw"])
    assert "Adamw: no optimizer of genesis.optim" in capsys.readouterr().err


def test_genesis_is_the_one_under_test():
    assert Path(genesis.__file__).parents[1] == SCRIPT.parents[1]
