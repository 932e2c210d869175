"""Every example runs, and does what its README says."""

import importlib.util
import os
import re
import signal
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

# Example, arguments that make it quick, the file it makes if any, what its last line says.
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
        "char_rnn.py",
        "--steps 100 --hidden 16",
        None,
        r"\d+ of \d+ lines are lines of the song, at a loss of \d\.\d{3}",
    ),
    (
        "autograd_mlp.py",
        "--epochs 2 --checkpoint run.safetensors",
        "run.safetensors",
        r"test accuracy \d\d\.\d% after 2 epochs, kept in run\.safetensors",
    ),
    (
        "factorization.py",
        "--users 2000 --items 500 --ratings 50000 --epochs 3 --batch-size 256",
        None,
        r"error on test ratings 0\.\d{3}, \d\d% less than of the means",
    ),
    (
        "lbfgs_fit.py",
        "--points 100",
        None,
        r"L-BFGS stopped after \d\d evaluations, by tolerance_(grad|change)",
    ),
    (
        "jax_gradients.py",
        "--steps 100",
        None,
        r"accuracy \d\d\.\d%, parameters differ by \de-0[4-9] at most from those of JAX",
    ),
    (
        "digits_mpi.py",
        "--epochs 2 --checkpoint run.safetensors",
        "run.safetensors",
        r"test accuracy 9\d\.\d% after 2 epochs in 1 processes, weights [0-9a-f]{8}",
    ),
    (
        "torch_drop_in.py",
        "--steps 40",
        None,
        r"after 40 steps the losses are (0e\+00|\de-0[6-9]) apart; the step is .* as its fused one",
    ),
]

# What an example needs beyond what tests need, and how to get it.
NEEDS = {
    "digits.py": ("sklearn", "scikit-learn's digits: pip install -e '.[test,examples]'"),
    "digits_mixed.py": ("sklearn", "scikit-learn's digits: pip install -e '.[test,examples]'"),
    "char_rnn.py": ("threadpoolctl", "threadpoolctl: pip install -e '.[test,examples]'"),
    "autograd_mlp.py": (
        "autograd sklearn",
        "autograd, scikit-learn: pip install -e '.[test,examples]'",
    ),
    "digits_mpi.py": (
        "mpi4py sklearn",
        "mpi4py, MPI and scikit-learn: pip install -e '.[test,examples,mpi]'",
    ),
    "torch_drop_in.py": ("torch", "torch: pip install 'torch>=2.13'"),
    "jax_gradients.py": ("jax", "jax, which no extra installs: pip install jax"),
}


def missing(file):
    """Why an example cannot run here; "" if it can."""
    modules, what = NEEDS.get(file, ("", ""))
    return f"needs {what}" if any(find_spec(name) is None for name in modules.split()) else ""


def needs(file):
    """The mark that skips where something is missing that an example needs."""
    return pytest.mark.skipif(bool(missing(file)), reason=missing(file))


needs_digits = needs("digits.py")

OPTIMIZERS = ["adamw", "adam", "sgd", "rmsprop"]  # of digits.py


def test_every_example_has_a_row():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {file for file, *_ in RUNS}


def test_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in readme] == []


@pytest.mark.parametrize(
    ("file", "arguments", "made", "last_line"),
    [pytest.param(*row, id=row[0], marks=needs(row[0])) for row in RUNS],
)
def test_runs(file, arguments, made, last_line, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / file, *arguments.split()],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(last_line, done.stdout.splitlines()[-1]), done.stdout
    assert "Warning" not in done.stderr, done.stderr
    found = {path.name for path in tmp_path.iterdir()}
    if file == "digits_mpi.py":  # its checkpoint is an index and a shard
        found = {name for name in found if not name.endswith("-0-of-1")}
    assert found == (set() if made is None else {made})
    if made is not None and made.endswith(".png"):
        assert "100% " in done.stderr, "no progress"
        assert "\r" not in done.stderr
        check_plot(tmp_path / made)


def environment():
    """In which an example finds this genesis, wherever it runs."""
    paths = [str(Path(genesis.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


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
    if missing("digits.py"):
        pytest.skip(missing("digits.py"))
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


# ---- gradients in trees ----


def assert_gradients_agree(loss_and_grads, params):
    """The gradients that an example writes out are those that differences show."""
    grads = loss_and_grads(params)[1]
    h = 2.0**-10

    def slopes(array):
        found = np.empty_like(array)
        for i in np.ndindex(array.shape):
            value = array[i]
            losses = []
            for array[i] in (value + h, value - h):
                losses.append(loss_and_grads(params)[0])
            array[i] = value
            found[i] = (losses[0] - losses[1]) / (2 * h)
        return found

    for (path, array), (_, grad) in zip(
        genesis.tree.flatten_with_path(params), genesis.tree.flatten_with_path(grads)
    ):
        np.testing.assert_allclose(grad, slopes(array), rtol=1e-3, atol=1e-5, err_msg=path)


@needs("char_rnn.py")
def test_backward_through_time_agrees_with_differences(rng):
    example = load_example("char_rnn")
    params = example.new_network(characters=4, hidden=3, rng=rng)
    params = genesis.tree.map(lambda array: array.astype(float), params)
    inputs, targets = rng.integers(0, 4, (2, 5, 2))
    state = rng.standard_normal((2, 3))
    assert_gradients_agree(
        lambda params: example.loss_and_grads(params, inputs, targets, state)[:2], params
    )


@needs("char_rnn.py")
def test_the_network_learns_the_song():
    example = load_example("char_rnn")
    assert example.song().startswith(
        "ninety-nine boats, ninety-nine boats,\none sails home:\nninety-e"
    )
    assert example.song().endswith("one boat, one boat,\none sails home:\nno boats.\n\n")
    right, lines = example.main(["--steps", "1500", "--hidden", "64"])
    assert 0 < right <= lines


def test_gradients_of_the_spectrum_agree_with_differences():
    example = load_example("lbfgs_fit")
    x = np.linspace(-3, 3, 20)
    y = example.model(example.TRUTH, x)
    params = genesis.tree.map(np.copy, example.GUESS)
    assert_gradients_agree(lambda params: example.loss_and_grads(params, x, y), params)


def test_the_fit_finds_the_truth_where_there_is_no_noise(capsys):
    example = load_example("lbfgs_fit")
    found = example.main(["--noise", "0"])
    for (path, value), (_, truth) in zip(
        genesis.tree.flatten_with_path(found), genesis.tree.flatten_with_path(example.TRUTH)
    ):
        np.testing.assert_allclose(value, truth, rtol=1e-3, err_msg=path)
    assert "stopped after" in capsys.readouterr().out


def test_the_fit_says_if_steps_were_too_few(capsys):
    load_example("lbfgs_fit").main(["--steps", "1"])
    assert capsys.readouterr().out.endswith(", by max_iter\n")


def test_factors_with_rows_are_those_with_dense_gradients(rng):
    """The race compares both, and the gradients are those of the loss."""
    example = load_example("factorization")
    params = genesis.tree.map(
        lambda array: np.array(array, float), example.new_params(5, 4, 2, 3.0, rng)
    )
    user, item, rating = rng.integers(0, 5, 12), rng.integers(0, 4, 12), rng.standard_normal(12)

    def loss_and_grads(params):
        wrong = example.predict(params, user, item) - rating
        large = params["user"]["factors"][user], params["item"]["factors"][item]
        loss = (wrong @ wrong + 0.1 * sum((factors**2).sum() for factors in large)) / 2
        grads = example.gradients(params, user, item, rating, 0.1)
        return loss, example.dense(params, grads)

    assert_gradients_agree(loss_and_grads, params)


@needs("jax_gradients.py")
def test_jax_alone_gives_other_numbers_with_another_rate():
    """What the example compares would be noticed."""
    example = load_example("jax_gradients")
    rng = np.random.default_rng(0)
    points = example.spirals(64, rng)
    ends = []
    for train, lr in ((example.train_with_genesis, 0.01), (example.train_in_jax, 0.0101)):
        params = example.new_params([2, 8, 1], np.random.default_rng(1))
        found = train(params, [points] * 20, lr)
        ends.append(params if train is example.train_with_genesis else found[0])
    differences = genesis.tree.map(lambda p, q: float(abs(p - q).max()), *ends)
    assert max(leaf for _, leaf in genesis.tree.flatten_with_path(differences)) > 1e-3


def test_without_jax_the_example_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(SystemExit, match="needs JAX: python -m pip install jax"):
        load_example("jax_gradients")


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        pytest.param(*row, marks=needs(row[0]))
        for row in [
            ("char_rnn.py", "--voices 0", "--voices must be at least 1, but is 0"),
            ("char_rnn.py", "--lr nan", "--lr must be above 0, but is nan"),
            ("autograd_mlp.py", "--epochs 0", "--epochs must be at least 1, but is 0"),
            ("autograd_mlp.py", "--resume --checkpoint nowhere", "--resume: there is no nowhere"),
            ("factorization.py", "--batch-size 0", "--batch-size must be at least 1, but is 0"),
            ("factorization.py", "--ratings 5", "--ratings must be at least 10, but is 5"),
            ("lbfgs_fit.py", "--noise nan", "--noise must be at least 0, but is nan"),
            ("jax_gradients.py", "--batch-size 0", "--batch-size must be at least 1, but is 0"),
        ]
    ],
)
def test_refuses(file, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        load_example(file.removesuffix(".py")).main(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# ---- stopped and resumed ----


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bytes that a run of 4 epochs of autograd_mlp.py ends with."""
    if missing("autograd_mlp.py"):
        pytest.skip(missing("autograd_mlp.py"))
    path = tmp_path_factory.mktemp("uninterrupted") / "run.safetensors"
    load_example("autograd_mlp").main(["--epochs", "4", "--checkpoint", str(path)])
    return path.read_bytes()


@pytest.mark.parametrize("after", [0, 1, 86, 100])
def test_a_resumed_run_gives_the_same_bits(after, uninterrupted, tmp_path, monkeypatch, capsys):
    """Ctrl-C after so many steps, of which an epoch has 43."""
    example = load_example("autograd_mlp")
    path = tmp_path / "run.safetensors"
    calls = 0

    def interrupted(loss):
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return value_and_grad(loss)

    value_and_grad = example.value_and_grad
    monkeypatch.setattr(example, "value_and_grad", interrupted)
    with pytest.raises(SystemExit) as stopped:
        example.main(["--epochs", "4", "--checkpoint", str(path)])
    assert stopped.value.code == 130
    printed = capsys.readouterr().out
    assert f"stopped after step {after} of 172; to go on:" in printed
    assert printed.splitlines()[-1].endswith(f"autograd_mlp.py --resume --checkpoint {path}")
    assert path.read_bytes() != uninterrupted

    monkeypatch.setattr(example, "value_and_grad", value_and_grad)
    example.main(["--resume", "--checkpoint", str(path)])
    assert path.read_bytes() == uninterrupted
    assert f"go on after step {after} of 172" in capsys.readouterr().out


@needs("autograd_mlp.py")
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_a_run_stopped_by_ctrl_c_goes_on_to_the_same_bits(tmp_path):
    settings = "--epochs 8".split()  # seconds long, so that the signal finds it
    whole, path = tmp_path / "whole.safetensors", tmp_path / "run.safetensors"
    load_example("autograd_mlp").main([*settings, "--checkpoint", str(whole)])
    command = [sys.executable, EXAMPLES / "autograd_mlp.py", "--checkpoint", path]
    options = {"env": environment(), "text": True, "encoding": "utf-8"}
    # A shell starts what runs in the background so that it ignores SIGINT, these tests perhaps.
    as_in_front = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    interruptible = [sys.executable, "-c", as_in_front, *command[1:], *settings]
    with subprocess.Popen(interruptible, stdout=subprocess.PIPE, **options) as run:
        assert run.stdout.readline().startswith("epoch  1:")
        run.send_signal(signal.SIGINT)
        rest = run.stdout.read()
    assert run.returncode == 130, rest
    assert "stopped after step" in rest
    assert path.read_bytes() != whole.read_bytes()
    subprocess.run([*command, "--resume"], check=True, timeout=300, **options)
    assert path.read_bytes() == whole.read_bytes()


@needs("autograd_mlp.py")
def test_a_run_is_resumed_with_what_it_was_started_with(tmp_path, capsys):
    example = load_example("autograd_mlp")
    path = str(tmp_path / "run.safetensors")
    example.main(["--epochs", "1", "--checkpoint", path])
    with pytest.raises(SystemExit):
        example.main(["--resume", "--epochs", "2", "--checkpoint", path])
    assert "--resume goes on with the run as it was started: --epochs 1" in capsys.readouterr().err
