"""Every example runs, and does what its README says."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import on_cpu_only
from matplotlib.image import imread

import genesis

pytestmark = on_cpu_only

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# Example, arguments that make it quick, the PNG it makes if any, what its last line says.
RUNS = [
    (
        "digits.py",
        "--epochs 2 --output curve.png",
        "curve.png",
        r"test accuracy 9\d\.\d% after 2 epochs \(\d+\.\d s\), learning curve in curve\.png",
    ),
    (
        "digits_mixed.py",
        "--epochs 2 --output curve.png",
        "curve.png",
        r"16-bit runs are at most \d\.\d points below float32, curves in curve\.png",
    ),
    (
        "your_own_optimizer.py",
        "--size 1000 --steps 5",
        None,
        r"4 optimizers give the bits of their formulas",
    ),
    (
        "torch_drop_in.py",
        "--steps 40",
        None,
        r"after 40 steps the losses are (0e\+00|\de-0[6-9]) apart; the step is .* as its fused one",
    ),
]

WITHOUT_DIGITS = "needs scikit-learn's digits: pip install -e '.[test,examples]'"
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
needs_digits = pytest.mark.skipif(find_spec("sklearn") is None, reason=WITHOUT_DIGITS)

OPTIMIZERS = ["adamw", "adam", "sgd", "rmsprop"]  # of digits.py


def test_every_example_has_a_row():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {file for file, *_ in RUNS}


def test_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in readme] == []


@pytest.mark.parametrize(
    ("file", "arguments", "png", "last_line"),
    [
        pytest.param(
            *row,
            id=row[0],
            marks=[needs_digits] * ("digits" in row[0]) + [needs_torch] * ("torch" in row[0]),
        )
        for row in RUNS
    ],
)
def test_runs(file, arguments, png, last_line, tmp_path):
    paths = [str(Path(genesis.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, EXAMPLES / file, *arguments.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(last_line, done.stdout.splitlines()[-1]), done.stdout
    assert "Warning" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if png is None else [png])
    if png is not None:
        assert "100%|" in done.stderr, "no progress bar"
        check_plot(tmp_path / png)


def check_plot(path):
    """A PNG of a size one can read, with something drawn in it."""
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = imread(path)
    height, width = pixels.shape[:2]
    assert 300 <= height <= 1500
    assert 600 <= width <= 3000
    assert 0.01 < np.mean(pixels[..., :3] < 0.9) < 0.5


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason=WITHOUT_DIGITS)
    return load_example("digits")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_digits_learns(digits, optimizer, tmp_path, capsys):
    path = tmp_path / "curve.png"
    accuracy = digits.main(["--optimizer", optimizer, "--output", str(path)])
    assert accuracy >= 0.97
    *epochs, last = capsys.readouterr().out.splitlines()
    assert len(epochs) == 30
    assert f"{accuracy:.1%}" in epochs[-1]
    assert last.startswith(f"test accuracy {accuracy:.1%} after 30 epochs (")
    check_plot(path)


def test_digits_offers_what_is_tested_here(digits):
    assert [*digits.OPTIMIZERS] == OPTIMIZERS


def test_digits_backward_agrees_with_differences(digits):
    rng = np.random.default_rng(0)
    linears = [digits.Linear(6, 5, rng), digits.Linear(5, 4, rng)]
    network = [linears[0], digits.ReLU(), linears[1]]
    x, labels = rng.standard_normal((7, 6)), rng.integers(0, 4, 7)  # float64, so all is float64

    def loss():
        return digits.cross_entropy(digits.forward(network, x), labels)[0]

    digits.backward(network, digits.cross_entropy(digits.forward(network, x), labels)[1])
    h = 2.0**-10
    for parameter in (p for linear in linears for p in (linear.weight, linear.bias)):
        differences = np.empty(parameter.shape)
        for i in np.ndindex(parameter.shape):
            value = parameter.data[i]
            parameter.data[i] = value + h
            above = loss()
            parameter.data[i] = value - h
            differences[i] = (above - loss()) / (2 * h)
            parameter.data[i] = value
        np.testing.assert_allclose(parameter.grad, differences, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--optimizer newton", "choose from '?adamw'?, '?adam'?, '?sgd'?, '?rmsprop'?"),
        ("--lr 0", "--lr must be above 0, but is 0"),
        ("--lr nan", "--lr must be above 0, but is nan"),
        ("--lr fast", "--lr: invalid float value: 'fast'"),
        ("--epochs 0", "--epochs must be at least 1, but is 0"),
        ("--epochs 1.5", "--epochs: invalid int value: '1.5'"),
        ("--batch-size -1", "--batch-size must be at least 1, but is -1"),
        ("--seed -1", "--seed must be at least 0, but is -1"),
        ("--output curve.jpg", r"--output must end in \.png, but is curve\.jpg"),
        ("--output nowhere/curve.png", "--output: no directory nowhere"),
        ("--speed 3", "unrecognized arguments: --speed 3"),
    ],
)
def test_digits_refuses(digits, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        digits.main(arguments.split())
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # that the numbers overflow is the point
def test_digits_says_when_the_learning_rate_is_too_large(digits, tmp_path):
    path = tmp_path / "curve.png"
    with pytest.raises(SystemExit, match="the loss is nan after epoch 1: try a smaller --lr"):
        digits.main(["--optimizer", "sgd", "--lr", "1e30", "--output", str(path)])
    assert not path.exists()


@needs_digits
def test_16_bit_digits_reach_what_float32_reaches(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    accuracies = load_example("digits_mixed").main(
        ["--epochs", "10", "--output", str(tmp_path / "curve.png")]
    )
    assert min(accuracies.values()) >= accuracies["float32"] - 0.01
    assert accuracies["float32"] >= 0.97


def test_own_optimizers_are_not_what_their_numpy_loops_are_not(monkeypatch):
    """The race compares both: another formula is noticed."""
    example = load_example("your_own_optimizer")
    for optimizer_class, settings, in_numpy in example.CONTESTS:
        arguments = optimizer_class, {**settings, "lr": 0.05}, in_numpy
        with pytest.raises(AssertionError):
            example.race(*arguments, np.random.default_rng(0), size=100, steps=5)


def test_the_flag_of_the_example_decides_what_is_allocated():
    example = load_example("your_own_optimizer")
    for amsgrad in (False, True):
        p = genesis.Parameter(np.ones(3))
        p.grad = np.ones(3)
        state = example.Adam([p], amsgrad=amsgrad).step().state[p]
        assert ("largest" in state) is amsgrad


@pytest.mark.parametrize("name", ["size", "steps"])
def test_your_own_optimizer_refuses(name, capsys):
    with pytest.raises(SystemExit):
        load_example("your_own_optimizer").main([f"--{name}", "0"])
    assert f"--{name} must be at least 1, but is 0" in capsys.readouterr().err
