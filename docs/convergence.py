"""
How the optimizers come down
============================

Every optimizer of `genesis.optim` on four problems: two functions of the plane, whose paths can be
drawn, an ill-conditioned quadratic function, and the network of `examples/digits.py`. Each gets the
learning rate that one small search finds for it: the same factors around its documented learning rate,
the same number of gradients, the same seeds.

    python docs/convergence.py                     # optimizers without results, then pictures and tables
    python docs/convergence.py --again AdamW Lion  # these anew
    python docs/convergence.py --again all         # everything

What is found goes to `docs/convergence.json`, the pictures to `docs/pictures/`, the tables into
`docs/convergence.md`, where it says how to read them. An optimizer that `genesis.optim` exports takes
part by that alone; a test fails until it has a family here, and results.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

import genesis

HERE = Path(__file__).resolve().parent
RESULTS, PAGE, PICTURES = HERE / "convergence.json", HERE / "convergence.md", HERE / "pictures"

# %%
# Who takes part
# --------------
#
# Families are for the eye: each has rows of its own in the pictures.

FAMILIES = {
    "Gradient descent, and signs": "SGD ASGD LARS SignSGD Lion Rprop",
    "Adam and its first variants": "AdamW Adam NAdam RAdam Adamax SparseAdam",
    "Adam, averaged or divided otherwise": "AdaBelief Yogi LaProp ADOPT AdaBound StableAdamW",
    "Adam, and something more": "AdEMAMix Adan MARS LAMB Lookahead SAM",
    "Squares alone": "RMSprop Adagrad Adadelta FTRL",
    "Adam with less state": "Adafactor CAME AdamMini NovoGrad GaLoreAdamW",
    "No schedule, or no learning rate": (
        "ScheduleFreeAdamW ScheduleFreeRAdam ScheduleFreeSGD Prodigy DAdaptAdam DoG LDoG"
    ),
    "Matrices, and curvature": "Muon MuonWithAdamW SOAP Kron Shampoo LBFGS",
}
REFERENCE = "AdamW"  # grey in every picture

NO_RULE = {"Optimizer", "RuleOptimizer", "Mixed"}
"""Bases, and what has no update of its own."""


def catalogue() -> list[str]:
    """The names of all optimizers that `genesis.optim` exports."""
    exported = {name: getattr(genesis.optim, name) for name in genesis.optim.__all__}
    return sorted(
        name
        for name, found in exported.items()
        if isinstance(found, type)
        and issubclass(found, genesis.optim.Optimizer)
        and name not in NO_RULE
    )


class Recipe(NamedTuple):
    """What an optimizer is given besides its defaults, as its entry in `choosing.md` says."""

    hyper: Mapping[str, Any] = MappingProxyType({})
    vectors: dict[str, Any] | None = None
    """Other values for biases; with "optimizer", that optimizer for them, by way of `Mixed`."""
    around: str | None = None
    """The optimizer that a wrapper works through."""
    sparse: bool = False
    """Takes a `SparseGrad`: here of all rows."""
    full_batch: bool = False
    """Made for gradients of all data: on the digits it gets these, and so fewer of them."""
    bar_epochs: int | None = None
    """For how long it is trained by the recipe alone. Default: None, as all others."""


RECIPES = {
    "SGD": Recipe({"lr": 0.05, "momentum": 0.9}),
    "ASGD": Recipe({"lr": 0.05}),
    "Lion": Recipe({"weight_decay": 0.1}),
    "SignSGD": Recipe({"lr": 3e-4}),
    "Yogi": Recipe({"bias_correction": True}),
    "FTRL": Recipe({"lr": 0.02}),
    "RMSprop": Recipe({"lr": 5e-4}),
    "LARS": Recipe({"lr": 0.3}, vectors={"adapt": False, "lr": 0.01}),
    "LAMB": Recipe(vectors={"adapt": False, "weight_decay": 0}),
    "Muon": Recipe({"adjust_lr_fn": "match_rms_adamw"}, vectors={"optimizer": "AdamW", "lr": 1e-3}),
    "Lookahead": Recipe(around="AdamW"),
    "SAM": Recipe(around="AdamW"),
    "SparseAdam": Recipe(sparse=True),
    "Rprop": Recipe({"lr": 1e-3}, full_batch=True),
    # One iteration a step, so that each can be drawn. That costs an evaluation more than it would.
    "LBFGS": Recipe(
        {"line_search_fn": "strong_wolfe", "max_iter": 1, "max_eval": 25},
        full_batch=True,
        bar_epochs=60,
    ),
    # By default a rank of 128, which leaves nothing to project here.
    "GaLoreAdamW": Recipe({"rank": 16, "lr": 0.01}),
    "DAdaptAdam": Recipe({"lr": 0.5}),
    "Shampoo": Recipe(
        {"lr": 1e-3, "betas": (0.9, 0.999), "grafting": "adam", "precondition_frequency": 10}
    ),
}

# %%
# The search
# ----------
#
# One grid for all. A learning rate that diverges with another seed is no learning rate: what counts is
# the median over the seeds.

FACTORS = [10 ** (power / 2) for power in range(-4, 5)]
"""By which the documented learning rate is multiplied: 0.01 to 100, in steps of about 3."""
SEEDS = [0, 1, 2]
"""Where a function's descent begins; on the digits, first weights and the order of the images."""
SEARCH_SEED = 100  # of the digits, where one seed is all that the search has time for
BAR_SEEDS = [0, 1, 2, 3, 4]
EPOCHS, BAR_EPOCHS, BATCH = 6, 15, 32
HOPELESS = 20.0  # a loss at which a run is given up; that of chance is 2.3


def make(
    name: str, named: list[tuple[str, genesis.Parameter]], factor: float = 1.0, decay: bool = True
) -> genesis.optim.Optimizer:
    """An optimizer by its recipe, its learning rates times `factor`; without `decay`, undecayed."""
    recipe = RECIPES.get(name, Recipe())
    rule = getattr(genesis.optim, recipe.around or name)
    takes = inspect.signature(rule).parameters
    hyper = {"lr": takes["lr"].default, **recipe.hyper}
    hyper["lr"] *= factor
    if not decay and "weight_decay" in takes:
        hyper["weight_decay"] = 0
    biases = [(label, p) for label, p in named if p.ndim < 2]
    if recipe.vectors is None or not biases:
        optimizer = rule(named, **hyper)
    else:
        others = {"params": biases, **recipe.vectors}
        if "lr" in others:
            others["lr"] *= factor
        weights = {"params": [(label, p) for label, p in named if p.ndim >= 2]}
        if "optimizer" in others:
            return genesis.optim.Mixed([{**weights, "optimizer": name, **hyper}, others])
        optimizer = rule([weights, others], **hyper)
    return getattr(genesis.optim, name)(optimizer) if recipe.around else optimizer


def learning_rate(name: str, factor: float) -> float:
    """The learning rate of the (first group of the) optimizer that `make` makes."""
    p = genesis.Parameter(np.ones((2, 2)))
    return float(make(name, [("weight", p)], factor).param_groups[0]["lr"])


@contextmanager
def as_used(optimizer: genesis.optim.Optimizer) -> Iterator[None]:
    """Meanwhile parameters are those that one would keep: of Schedule-Free optimizers, the average."""
    averages = hasattr(optimizer, "eval")
    if averages:
        optimizer.eval()
    yield
    if averages:
        optimizer.train()


# %%
# Three functions
# ---------------
#
# Their variable is a matrix, so that optimizers for matrices take part: of shape (1, 2) in the plane,
# where to orthogonalize a step is to give it length 1; and of shape (5, 8) for the quadratic function.
# That one is rotated at random, so that neither its axes nor its rows and columns mean anything.


class Problem(NamedTuple):
    """A function to be minimized: its value and gradient, where to begin, and for how long."""

    name: str
    at: Callable[[np.ndarray], tuple[float, np.ndarray]]
    start: Callable[[np.random.Generator], np.ndarray]
    gradients: int


def rosenbrock(w: np.ndarray) -> tuple[float, np.ndarray]:
    """A curved valley of f = (1 - x)^2 + 100 (y - x^2)^2, and the minimum 0 at its flat end, (1, 1)."""
    x, y = w[0].tolist()
    off = y - x * x
    value = (1 - x) * (1 - x) + 100 * off * off  # a power of a float that is too large is an error
    return value, np.array([[2 * (x - 1) - 400 * x * off, 200 * off]])


def rastrigin(w: np.ndarray) -> tuple[float, np.ndarray]:
    """A bowl with a dent at every integer: f = sum(x^2 + 10 - 10 cos(2 pi x)), least, 0, at (0, 0)."""
    angle = 2 * math.pi * w
    return float(np.sum(w * w + 10 - 10 * np.cos(angle))), 2 * w + 20 * math.pi * np.sin(angle)


@lru_cache(maxsize=1)
def hessian() -> np.ndarray:
    """Of 40 variables: eigenvalues from 1 to 1e-4, evenly in their logarithm, along random axes."""
    axes, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))
    return axes * np.logspace(0, -4, 40) @ axes.T


def quadratic(w: np.ndarray) -> tuple[float, np.ndarray]:
    """f = w.T H w / 2, of condition number 10,000."""
    grad = hessian() @ w.ravel()
    return float(grad @ w.ravel()) / 2, grad.reshape(w.shape)


FUNCTIONS = [
    Problem("Rosenbrock", rosenbrock, lambda rng: rng.uniform([[-1.5, 0.5]], [[-0.5, 2.0]]), 500),
    Problem("Rastrigin", rastrigin, lambda rng: rng.uniform([[-4.0, 2.0]], [[-2.0, 4.0]]), 200),
    Problem("Quadratic", quadratic, lambda rng: rng.standard_normal((5, 8)), 600),
]


FAR = 1e9  # a value at which a descent is given up


class Descent(NamedTuple):
    """What one run has seen after each step: gradients so far, the function's value, where it was."""

    gradients: list[int]
    values: list[float]
    places: list[np.ndarray]

    @property
    def end(self) -> float:
        return self.values[-1]


def descend(problem: Problem, name: str, factor: float, seed: int, record: bool = True) -> Descent:
    """Minimize with one optimizer, by as many gradients as the problem allows.

    Unless it is to `record` every step, only the start and the end are looked at.
    """
    p = genesis.Parameter(problem.start(np.random.default_rng(seed)))
    optimizer = make(name, [("weight", p)], factor, decay=False)  # it would move the minimum
    sparse = RECIPES.get(name, Recipe()).sparse
    rows = np.arange(len(p.data))
    seen = 0

    def closure() -> float:
        nonlocal seen
        seen += 1
        value, grad = problem.at(p.data)
        p.grad = genesis.SparseGrad(rows, grad) if sparse else grad
        return value

    run = Descent([0], [problem.at(p.data)[0]], [p.data.copy()])
    with np.errstate(all="ignore"):  # a learning rate may be far too large
        while seen < problem.gradients:
            before = optimizer.step(closure)
            far = not before < FAR
            if not record and not far and seen < problem.gradients:
                continue
            with as_used(optimizer):
                run.gradients.append(seen)
                run.values.append(problem.at(p.data)[0])
                run.places.append(p.data.copy())
            if far or not run.end < FAR:
                run.values[-1] = math.inf
                break
    return run


def search(run: Callable[[float], Any], loss: Callable[[Any], float]) -> tuple[float, Any]:
    """The factor with the least loss, the smaller one of equals, and what it gave."""
    found = [(factor, run(factor)) for factor in FACTORS]
    return min(found, key=lambda pair: loss(pair[1]))


def search_function(problem: Problem, name: str) -> dict[str, Any]:
    """The learning rate that serves an optimizer best on a function, and where it ends."""

    def ends(factor: float) -> list[float]:
        return [descend(problem, name, factor, seed, record=False).end for seed in SEEDS]

    factor, found = search(ends, lambda values: float(np.median(values)))
    return {**chosen(name, factor), "losses": [short(value) for value in found]}


def chosen(name: str, factor: float) -> dict[str, Any]:
    return {"factor": short(factor), "lr": short(learning_rate(name, factor))}


def short(value: float) -> float:
    """Four digits of a number, which is what a table may need of it."""
    return float(f"{value:.4g}")


# %%
# The digits
# ----------
#
# The network of `examples/digits.py`, 64-256-128-10, in float32, without a schedule. The search trains
# on 1,078 images and looks at the loss on 269 others; then the learning rate found is run with three
# other seeds. The 450 test images have no part in it. The budget is gradients of a batch: SAM, which
# needs two for a step, makes half as many steps; a gradient of all images counts as one of each batch.


@lru_cache(maxsize=1)
def network_of_the_example() -> Any:
    """examples/digits.py, as a module."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    return digits


@lru_cache(maxsize=2)
def images(validate: bool) -> tuple[np.ndarray, ...]:
    """Images and labels to train on, others to look at, and the test images."""
    x, labels, test_x, test_labels = network_of_the_example().load()
    if not validate:
        return x, labels, test_x, test_labels, test_x, test_labels
    order = np.random.default_rng(0).permutation(len(x))
    train, other = order[len(x) // 5 :], order[: len(x) // 5]
    return x[train], labels[train], x[other], labels[other], test_x, test_labels


class Training(NamedTuple):
    losses: list[float]
    """On the images to look at, after each epoch."""
    accuracy: float
    """On the test images, at the end."""


def train(name: str, factor: float, seed: int, epochs: int, validate: bool = True) -> Training:
    """Train the network with one optimizer."""
    digits = network_of_the_example()
    x, labels, other_x, other_labels, test_x, test_labels = images(validate)
    rng = np.random.default_rng(seed)
    layers = [digits.Linear(*sizes, rng) for sizes in ((64, 256), (256, 128), (128, 10))]
    network = [layers[0], digits.ReLU(), layers[1], digits.ReLU(), layers[2]]
    named = [
        (f"{label}.{kind}", getattr(layer, kind))
        for label, layer in zip(("first", "hidden", "head"), layers)
        for kind in ("weight", "bias")
    ]
    recipe = RECIPES.get(name, Recipe())
    optimizer = make(name, named, factor)
    size = len(x) if recipe.full_batch else BATCH
    in_epoch = math.ceil(len(x) / size)
    seen, losses = 0, []

    def loss_and_gradients(batch: np.ndarray) -> float:
        nonlocal seen
        seen += 1
        loss, grad = digits.cross_entropy(digits.forward(network, x[batch]), labels[batch])
        digits.backward(network, grad)
        if recipe.sparse:
            for _, p in named:
                p.grad = genesis.SparseGrad(np.arange(len(p.grad)), p.grad)
        return loss

    with np.errstate(all="ignore"):
        while seen < epochs * in_epoch:
            order = rng.permutation(len(x))
            for batch in np.split(order, range(size, len(x), size)):
                optimizer.step(partial(loss_and_gradients, batch))
                optimizer.zero_grad()
                due = min(seen // in_epoch, epochs)
                if due > len(losses):
                    with as_used(optimizer):
                        loss, _ = digits.evaluate(network, other_x, other_labels)
                    losses += [float(loss)] * (due - len(losses))
                    if not loss < HOPELESS:
                        return Training(losses + [math.inf] * (epochs - len(losses)), 0.1)
                if due == epochs:
                    break
        with as_used(optimizer):
            _, accuracy = digits.evaluate(network, test_x, test_labels)
    return Training(losses, float(accuracy))


def search_digits(name: str) -> dict[str, Any]:
    """The learning rate that serves an optimizer best on the digits, and what it reaches."""
    factor, _ = search(
        lambda factor: train(name, factor, SEARCH_SEED, EPOCHS), lambda found: found.losses[-1]
    )
    runs = [train(name, factor, seed, EPOCHS) for seed in SEEDS]
    curve = np.median([run.losses for run in runs], axis=0)
    return {
        **chosen(name, factor),
        "curve": [short(loss) for loss in curve],
        "accuracies": [short(run.accuracy) for run in runs],
    }


def bar(name: str) -> list[float]:
    """Test accuracies by the recipe itself, for five seeds, trained on all images that are for it."""
    epochs = RECIPES.get(name, Recipe()).bar_epochs or BAR_EPOCHS
    runs = [train(name, 1.0, seed, epochs, validate=False) for seed in BAR_SEEDS]
    return [short(run.accuracy) for run in runs]


BELOW = 0.01
"""By how much the mean accuracy of an optimizer may be lower than AdamW's: one point."""

# %%
# Everything that is measured of one optimizer
# --------------------------------------------


def setup(name: str) -> dict[str, Any]:
    """All that results follow from, to tell those that are old."""
    recipe = RECIPES.get(name, Recipe())
    return json.loads(
        json.dumps(
            {
                "recipe": {**recipe._asdict(), "hyper": dict(recipe.hyper)},
                "factors": [short(factor) for factor in FACTORS],
                "seeds": [SEARCH_SEED, SEEDS, BAR_SEEDS],
                "gradients": {problem.name: problem.gradients for problem in FUNCTIONS},
                "epochs": [EPOCHS, BAR_EPOCHS, BATCH],
            }
        )
    )


def measure(name: str) -> dict[str, Any]:
    """Search on all problems, and the bar."""
    return {
        "setup": setup(name),
        **{problem.name: search_function(problem, name) for problem in FUNCTIONS},
        "Digits": search_digits(name),
        "bar": bar(name),
    }


def results() -> dict[str, Any]:
    """What was measured, by optimizer."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(found: dict[str, Any]) -> None:
    """One optimizer a line, so that two who add one each do not meet."""
    lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# %%
# Pictures
# --------
#
# A panel for each optimizer, in rows by family: blue is the optimizer, grey is AdamW.

COLUMNS, WIDTH, HEIGHT, GAP, TITLE, HEADING = (
    6,
    1.62,
    1.3,
    0.2,
    0.42,
    0.46,
)  # the last five in inches
BLUE, GREY, PAPER, INK = "#0060A8", "#8A8A8A", "#FFFFFF", "#202020"


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Those of the given optimizers that each family has."""
    there = set(names)
    sorted_in = {
        family: [name for name in members.split() if name in there]
        for family, members in FAMILIES.items()
    }
    return {family: members for family, members in sorted_in.items() if members}


def panels(found: dict[str, Any], title: str, legend: str) -> tuple[Any, dict[str, Any]]:
    """A figure with axes for each optimizer. Opaque paper: it reads the same on a dark page."""
    from matplotlib.figure import Figure

    rows = {
        family: [members[i : i + COLUMNS] for i in range(0, len(members), COLUMNS)]
        for family, members in families(found).items()
    }
    pitch = HEIGHT + TITLE
    high = 0.95 + sum(HEADING + pitch * len(lines) for lines in rows.values()) + 0.35
    wide = 0.55 + COLUMNS * WIDTH + (COLUMNS - 1) * GAP + 0.15
    figure = Figure(figsize=(wide, high), dpi=100, facecolor=PAPER)
    figure.text(0.2 / wide, 1 - 0.35 / high, title, size=15, weight="bold", color=INK)
    figure.text(0.2 / wide, 1 - 0.62 / high, legend, size=11, color=INK)
    axes, top = {}, high - 0.7
    for family, lines in rows.items():
        top -= HEADING
        figure.text(0.2 / wide, (top + 0.06) / high, family, size=13, color=INK, style="italic")
        for line in lines:
            top -= pitch
            for column, name in enumerate(line):
                left = 0.55 + column * (WIDTH + GAP)
                box = (left / wide, (top + 0.05) / high, WIDTH / wide, HEIGHT / high)
                axes[name] = figure.add_axes(box)
                axes[name].tick_params(labelsize=9, colors=INK, length=2, pad=2)
                if column:
                    axes[name].tick_params(labelleft=False)
                if name != family_foot(rows, name):
                    axes[name].tick_params(labelbottom=False)
    return figure, axes


def family_foot(rows: dict[str, list[list[str]]], name: str) -> str | None:
    """The optimizer itself if it stands in the last row of all, whose ticks have labels."""
    return name if name in list(rows.values())[-1][-1] else None


def entitle(axes: Any, name: str, beneath: str) -> None:
    """A panel's title: the name, and a line of figures beneath it."""
    size = 11 if len(name) < 15 else 9.5
    axes.annotate(
        name,
        (0, 1),
        xytext=(0, 14),
        xycoords="axes fraction",
        textcoords="offset points",
        size=size,
        weight="bold",
        color=BLUE,
    )
    axes.annotate(
        beneath,
        (0, 1),
        xytext=(0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        size=9,
        color=INK,
    )


def at_end(lr: float, value: float) -> str:
    """The line beneath a name in the pictures of functions."""
    return f"lr {shown(lr)}, " + (f"to {shown(value)}" if math.isfinite(value) else "diverges")


def shown(value: float) -> str:
    """A number as people write it: 0.003, 2e-09, 0."""
    if not math.isfinite(value):
        return "infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.0e}"


def draw_paths(
    problem: Problem, found: dict[str, Any], x: tuple, y: tuple, levels: Any, log: bool
) -> Any:
    """Paths over the contours of a function of the plane, with the first seed."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    runs = {
        name: descend(problem, name, found[name][problem.name]["factor"], SEEDS[0])
        for name in found
    }
    grid = np.meshgrid(np.linspace(*x, 161), np.linspace(*y, 121))
    height = np.array(
        [[problem.at(np.array([[a, b]]))[0] for a, b in zip(*line)] for line in zip(*grid)]
    )
    tints = colormaps["YlOrBr"](np.linspace(0.02, 0.38, len(levels) + 1))
    best = (1.0, 1.0) if problem.name == "Rosenbrock" else (0.0, 0.0)
    figure, panel = panels(
        found,
        f"{problem.name}'s function: paths of {problem.gradients} gradients",
        f"Blue: the optimizer. Grey: {REFERENCE}. Circle: the start. Cross: the minimum. "
        "Above: learning rate, and value at the end.",
    )
    for name, axes in panel.items():
        axes.contourf(
            *grid,
            np.log10(height + 1e-9) if log else height,
            levels=levels,
            cmap=ListedColormap(tints[1:-1]),
            norm=BoundaryNorm(levels, len(levels) - 1),
            extend="both",
            antialiased=False,
        )
        for other, color, width in ((REFERENCE, GREY, 1.2), (name, BLUE, 1.5)):
            path = np.array([place[0] for place in runs[other].places])
            with np.errstate(invalid="ignore"):
                axes.plot(*path.T, color=color, lw=width, solid_joinstyle="round")
            axes.plot(*path[-1], "o", color=color, ms=4.5, mec=PAPER, mew=0.6)
        axes.plot(*path[0], "o", color=PAPER, ms=4.5, mec=INK, mew=1)
        axes.plot(*best, "+", color=INK, ms=8, mew=1.4)
        axes.set(xlim=x, ylim=y)
        row = found[name][problem.name]
        entitle(axes, name, at_end(row["lr"], runs[name].end))
    return figure


def draw_quadratic(problem: Problem, found: dict[str, Any]) -> Any:
    """The value over the number of gradients, with the first seed."""
    figure, panel = panels(
        found,
        f"A quadratic function of condition number 10,000: value over {problem.gradients} gradients",
        f"Blue: the optimizer. Grey: {REFERENCE}. Above: learning rate, and value at the end.",
    )
    runs = {
        name: descend(problem, name, found[name][problem.name]["factor"], SEEDS[0])
        for name in found
    }
    for name, axes in panel.items():
        for other, color, width in ((REFERENCE, GREY, 1.4), (name, BLUE, 1.8)):
            run = runs[other]
            values = np.clip(run.values, 1e-12, None)
            axes.plot(run.gradients, values, color=color, lw=width)
        axes.set(yscale="log", xlim=(0, problem.gradients), ylim=(1e-9, 30))
        axes.set_yticks([1e-8, 1e-6, 1e-4, 1e-2, 1])
        axes.set_xticks([0, problem.gradients // 2, problem.gradients])
        grid_lines(axes)
        row = found[name][problem.name]
        entitle(axes, name, at_end(row["lr"], runs[name].end))
    return figure


def draw_digits(found: dict[str, Any]) -> Any:
    """The loss on images kept apart, over the epochs; the median of the seeds."""
    figure, panel = panels(
        found,
        f"Digits: loss on images kept apart, over {EPOCHS} epochs",
        f"Blue: the optimizer. Grey: {REFERENCE}. Above: learning rate, and accuracy on test images.",
    )
    for name, axes in panel.items():
        for other, color, width in ((REFERENCE, GREY, 1.4), (name, BLUE, 1.8)):
            curve = found[other]["Digits"]["curve"]
            axes.plot(range(1, len(curve) + 1), curve, color=color, lw=width)
        axes.set(yscale="log", xlim=(1, EPOCHS), ylim=(0.05, 2.5))
        axes.set_yticks([0.1, 0.3, 1], ["0.1", "0.3", "1"])
        axes.set_xticks([1, 3, 6])
        grid_lines(axes)
        row = found[name]["Digits"]
        entitle(axes, name, f"lr {shown(row['lr'])}, {np.mean(row['accuracies']):.1%}")
    return figure


def grid_lines(axes: Any) -> None:
    axes.minorticks_off()
    axes.grid(color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """All pictures, as PNG files of few colours."""
    plane, valley, quadratic_function = FUNCTIONS[1], FUNCTIONS[0], FUNCTIONS[2]
    figures = {
        "rosenbrock": draw_paths(
            valley, found, (-2, 2), (-0.9, 2.6), np.arange(-1.5, 3.6, 0.5), True
        ),
        "rastrigin": draw_paths(plane, found, (-5, 5), (-4, 5), np.arange(0, 81, 10), False),
        "quadratic": draw_quadratic(quadratic_function, found),
    }
    if all("Digits" in row for row in found.values()):
        figures["digits"] = draw_digits(found)
    folder.mkdir(exist_ok=True)
    return [write_png(figure, folder / f"{name}.png") for name, figure in figures.items()]


def write_png(figure: Any, path: Path) -> Path:
    """With a palette, which takes a third of the bytes and which no eye tells from the full colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    picture.quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


# %%
# Tables
# ------


def cell(name: str, row: dict[str, Any]) -> str:
    """A learning rate, marked where the grid ended, and where it led."""
    factor = row["factor"]
    edge = "*" if factor in (short(FACTORS[0]), short(FACTORS[-1])) else ""
    return f"{shown(row['lr'])}{edge} | {shown(float(np.median(row['losses'])))}"


def tables(found: dict[str, Any]) -> dict[str, list[str]]:
    """The tables of the page, by the name in their marks."""
    heads = [f"{problem.name}: lr | value" for problem in FUNCTIONS]
    search_lines = [
        f"| optimizer | {' | '.join(heads)} | Digits: lr | loss | test accuracy |",
        f"|---{'|---' * (2 * len(heads) + 3)}|",
    ]
    bar_lines = ["| optimizer | recipe | test accuracy, five seeds | lowest |", "|---|---|---|---|"]
    for name in sorted(found, key=str.lower):
        row = found[name]
        digits = row["Digits"]
        edge = "*" if digits["factor"] in (short(FACTORS[0]), short(FACTORS[-1])) else ""
        cells = [cell(name, row[problem.name]) for problem in FUNCTIONS]
        search_lines.append(
            f"| `{name}` | {' | '.join(cells)} | {shown(digits['lr'])}{edge} | "
            f"{digits['curve'][-1]:.3f} | {np.mean(digits['accuracies']):.1%} |"
        )
        bar_lines.append(
            f"| `{name}` | {told(name)} | {np.mean(row['bar']):.2%} | {min(row['bar']):.1%} |"
        )
    return {"search": search_lines, "bar": bar_lines}


def told(name: str) -> str:
    """A recipe in words."""
    recipe = RECIPES.get(name, Recipe())
    words = [f"`{key}={value!r}`" for key, value in recipe.hyper.items()]
    if recipe.around:
        words.append(f"around `{recipe.around}`")
    if recipe.vectors is not None:
        words.append("biases: " + " ".join(f"`{k}={v!r}`" for k, v in recipe.vectors.items()))
    if recipe.full_batch:
        words.append("all images at once")
    if recipe.bar_epochs:
        words.append(f"{recipe.bar_epochs} epochs")
    if recipe.sparse:
        words.append("gradients as rows")
    return ", ".join(words) or "defaults"


def with_tables(page: str, found: dict[str, Any]) -> str:
    """The page with its tables as they should be."""
    for name, lines in tables(found).items():
        begin, end = f"<!-- {name} table: begin -->\n", f"<!-- {name} table: end -->\n"
        before, rest = page.split(begin)
        page = before + begin + "\n".join([*lines, ""]) + end + rest.split(end)[1]
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Convergence of all optimizers: results, pictures, tables."
    )
    parser.add_argument("--again", nargs="+", default=[], help="optimizers to measure anew, or all")
    args = parser.parse_args(argv)
    from threadpoolctl import threadpool_limits

    names = catalogue()
    if unknown := set(args.again) - {*names, "all"}:
        parser.error(
            f"--again: {', '.join(sorted(unknown))}: no optimizer of genesis.optim, nor 'all'"
        )
    again = set(names) if "all" in args.again else set(args.again)
    found = {name: row for name, row in results().items() if name in names}
    with threadpool_limits(1):  # such small products gain nothing from threads
        genesis.set_num_threads(1)
        for name in names:
            if name in again or found.get(name, {}).get("setup") != setup(name):
                start = time.perf_counter()
                found[name] = measure(name)
                save(found)
                row = found[name]
                print(
                    f"{name}: {time.perf_counter() - start:.0f} s, digits {np.mean(row['bar']):.2%} by "
                    f"the recipe, {np.mean(row['Digits']['accuracies']):.2%} after the search",
                    flush=True,
                )
        save(found)
        for path in draw(found, PICTURES):
            print(f"{path.relative_to(HERE.parent)}: {path.stat().st_size // 1000} KB")
    if PAGE.exists():
        PAGE.write_text(with_tables(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
