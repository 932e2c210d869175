"""A few steps of every optimizer on every device, compared with its formula."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from . import ahead, buffers, cuda_driver, machine, optim, trials
from .kernels import waiting
from .progress import Progress

STEPS = 3
"""Compared with the formula."""
TIMED = 20
TOLERANCE = 1e-4
"""The largest error that counts as right, relative to the largest element of the update. A CPU gives the
formula's own bits, but for sums over a tensor; a GPU fuses multiplications and additions; and a bit of a
parameter near 1 is 6e-6 of an update of 0.01."""


class Check(NamedTuple):
    """What came out for an optimizer on a device.

    Attributes:
        optimizer: its name.
        device: "cpu" or "cuda:N".
        status: "ok", "wrong", "failed", or "not here" for one that works on the CPU only.
        outcome: what was found, for people.
        error: the largest error relative to the largest update; None where no formula of an element
            says what is right.
        first_step: seconds that the first step took: compiling, or loading what was compiled before.
        step: seconds of a later one, the median.
    """

    optimizer: str
    device: str
    status: str
    outcome: str
    error: float | None = None
    first_step: float | None = None
    step: float | None = None


def devices() -> list[str]:
    """The devices that can be used."""
    found = ["cpu"]
    with suppress(Exception):  # what is missing is said elsewhere, see `machine.cuda`
        found += [f"cuda:{number}" for number in range(len(cuda_driver.cuda().gpus))]
    return found


def checked(
    names: Sequence[str] | None = None, on: Sequence[str] | None = None, shown: bool = True
) -> list[Check]:
    """Check optimizers, all of `genesis.optim` unless named, on devices, all unless named."""
    names = trials.names() if names is None else names
    jobs = [(name, device) for device in (devices() if on is None else on) for name in names]
    found = []
    with waiting.expected():
        for name, device in (
            bar := Progress(jobs, title="checking", unit="optimizers", shown=shown)
        ):
            bar.note = name if device == "cpu" else f"{name} on {device}"
            found.append(check(getattr(optim, name), device))
    return found


def check(kind: Callable, device: str = "cpu") -> Check:
    """Make a few steps in float32 and compare them with the formula, or see that they lead down."""
    name = getattr(kind, "__name__", repr(kind))
    try:
        return _check(kind, name, device)
    except Exception as error:
        if device != "cpu" and ahead.only_on_the_cpu(error):
            return Check(name, device, "not here", "works on the CPU only")
        reason = " ".join(str(error).split()) or repr(error)
        return Check(name, device, "failed", f"{type(error).__name__}: {reason}")


def _check(kind: Any, name: str, device: str) -> Check:
    trial = trials.Trial(kind, device=device)
    loss = trial.loss()
    begin = time.perf_counter()
    trials.Trial(kind, device=device).step()
    first_step = time.perf_counter() - begin
    error = None
    if hasattr(kind, "_recipe"):
        formula = _Formula(trial)
        error = float(np.max([formula.error_of_step() for _ in range(STEPS)]))  # NaN if one is
    seconds = []
    for _ in range(TIMED):
        begin = time.perf_counter()
        trial.step()
        seconds.append(time.perf_counter() - begin)
    taken = first_step, float(np.median(seconds))
    now = trial.loss()
    if error is not None:
        status = "ok" if error <= TOLERANCE else "wrong"
        return Check(name, device, status, f"its formula to {error:.0e}", error, *taken)
    status = "ok" if now < loss else "wrong"  # NaN is no less
    return Check(name, device, status, f"loss {loss:.5g} -> {now:.5g}", None, *taken)


class _Formula:
    """What an optimizer's formula, evaluated by Python, says of each next step."""

    def __init__(self, trial: trials.Trial):
        self._trial, self._optimizer = trial, trial.optimizer
        self._recipe = self._optimizer._recipe  # type: ignore[attr-defined]
        self._state: list[Any] = []
        self._carried = dict(self._recipe.carried)
        self._count = 0

    def error_of_step(self) -> float:
        """Make a step; returns its largest error, relative to the largest update."""
        self._count += 1
        before = self._trial.parameter.numpy().astype(np.float64)
        right, *state = self._optimizer.reference(  # type: ignore[attr-defined]
            self._trial.parameter.numpy(),
            self._trial.gradient(),
            *self._state,
            step=self._count,
            **self._carried,
            **self._trial.settings,
        )
        self._trial.step()
        # On from what there is now, so that errors do not add up.
        entries = self._optimizer.state[self._trial.parameter]
        self._state = [
            _host(entries, name, value) for name, value in zip(self._recipe.states, state)
        ]
        self._carried = {name: entries[name] for name in self._recipe.carried}
        error = np.max(np.abs(self._trial.parameter.numpy().astype(np.float64) - right))
        return float(error / np.max(np.abs(right - before))) if error else 0.0


def _host(entries: dict[str, Any], name: str, otherwise: Any) -> Any:
    """A state buffer on the host, or a number; one that is not needed is as the formula left it."""
    found = entries.get(name, otherwise)
    return buffers.host_copy(found) if buffers.is_array(found) else found


def table(checks: Sequence[Check]) -> str:
    """The checks as a table for people."""
    head = ("optimizer", "device", "check", "outcome", "first step", "a step")
    rows = [
        (
            check.optimizer,
            check.device,
            check.status,
            check.outcome,
            "" if check.first_step is None else f"{check.first_step:.2f} s",
            "" if check.step is None else f"{check.step * 1e6:.0f} us",
        )
        for check in checks
    ]
    return machine.aligned([head, *rows])
