"""Alarms at random moments: whatever their handlers raise, a step is done or has not begun.

    pytest tests/test_interrupts.py --interrupts 10000 --busy 4

sets so many alarms for `KeyboardInterrupt`, a tenth for each of two other exceptions, beside so many
processes that keep the cores busy. Exceptions at every single line are in `test_attacks.py`.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from attack_tools import KINDS, interrupted_after, picture, same, watchdog
from cases import BFLOAT16, ONE_EACH, Case
from devices import on_cpu_only

import genesis
from genesis.kernels import cpu, threads

pytestmark = [
    on_cpu_only,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHAPES = [(40, 30), (7,), (300,), (2, 3)]


class Subject:
    """An optimizer and its twin, which is never interrupted."""

    def __init__(self, case, dtypes=(np.float64,), shapes=SHAPES, groups=1, **options):
        self.name = f"{case.id} {[np.dtype(t).name for t in dtypes]} {groups} {options}"
        rng = np.random.default_rng(9)
        start = [rng.standard_normal(shape) for shape in shapes]
        self.twins = []
        for _ in range(2):
            made = [
                genesis.Parameter(value.astype(dtypes[i % len(dtypes)]))
                for i, value in enumerate(start)
            ]
            members = [made[i::groups] for i in range(groups)]
            self.twins.append((case.make([{"params": m} for m in members], **options), made))
        self.rng = rng
        self.saved = None
        self.duration = 1e-4

    def give_gradients(self):
        for p, other in zip(*(made for _, made in self.twins)):
            grad = self.rng.standard_normal(p.shape)
            # The array of the last step as often as a fresh one.
            for each in (p, other):
                if each.grad is not None and self.rng.integers(2):
                    each.grad[...] = grad
                else:
                    each.grad = grad.astype(p.dtype)

    def calls(self):
        """What may be interrupted: (name, call on an optimizer)."""
        scaler = genesis.amp.GradScaler

        def load(opt):
            opt.load_state_dict(self.saved)

        calls = [
            ("step", lambda opt: opt.step()),
            ("step", lambda opt: opt.step()),
            ("step(grads)", lambda opt: opt.step(grads=[p.grad for p in opt._parameters()])),
            ("step(max_norm)", lambda opt: opt.step(max_norm=1.0)),
            ("scaler.step", lambda opt: scaler(init_scale=2.0).step(opt)),
        ]
        return calls + [("load_state_dict", load)] * (self.saved is not None)

    def attack(self, kind):
        """One call with an alarm in it; returns whether that came before the call had ended."""
        (opt, made), (twin, others) = self.twins
        self.give_gradients()
        if self.rng.integers(20) == 0:
            self.saved = twin.state_dict()
        if self.rng.integers(30) == 0:  # the next step makes everything anew
            for each in (opt, twin):
                each.param_groups.reverse()
            self.saved = None  # it fits no longer
        calls = self.calls()
        name, call = calls[self.rng.integers(len(calls))]
        before = picture(opt, made)
        begin = time.perf_counter()
        call(twin)
        self.duration = 0.8 * self.duration + 0.2 * (time.perf_counter() - begin)
        after = picture(twin, others)
        delay = max(2e-6, self.rng.uniform(0, 1.3 * self.duration))
        raised = interrupted_after(lambda: call(opt), delay, kind)
        now = picture(opt, made)
        done, undone = same(now, after), same(now, before)
        assert done or raised, f"{self.name}: {name} went wrong without an interruption"
        assert done or undone, f"{self.name}: {name} is half done after an interruption"
        if raised and self.rng.integers(10) == 0:
            time.sleep(0.001)
            stayed = same(picture(opt, made), now)
            assert stayed, f"{self.name}: {name} goes on after it has ended"
        if not done:
            call(opt)
            right = same(picture(opt, made), after)
            assert right, f"{self.name}: {name} is not done right after an interruption"
        return raised


def subjects():
    """Every optimizer; some with several groups, data types and options."""
    every = [Subject(case) for case in ONE_EACH]
    every += [
        Subject(Case(name, {})) for name in ("Adafactor", "AdamMini", "SOAP", "Shampoo", "Kron")
    ]
    every.append(Subject(Case("GaLoreAdamW", {"rank": 2, "update_proj_gap": 2})))
    every.append(Subject(Case("Muon", {}), shapes=[(20, 10), (3, 4)], groups=2))
    adamw, sgd = Case("AdamW", {}), Case("SGD", {"lr": 0.1, "momentum": 0.9})
    every += [
        Subject(adamw, (np.float64, np.float32, np.float16, BFLOAT16), groups=3),
        Subject(sgd, (np.float32, np.float64), groups=4),
        Subject(adamw, (BFLOAT16,), master_weights=True, ema_decay=0.9),
        Subject(adamw, (BFLOAT16,), groups=2, stochastic_rounding=True),
        Subject(sgd, (np.float32,), shapes=[(20_000,), (5,), (10_000,)], groups=2),
    ]
    return every


@pytest.fixture
def busy(request):
    """Processes that do nothing but keep the cores busy."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(request.config.getoption("--busy"))]
    yield
    for other in others:
        other.kill()
        other.wait()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_alarms_at_random_moments(kind, request, monkeypatch, num_threads):
    alarms = request.config.getoption("--interrupts")
    long = alarms is not None
    alarms = 200 if alarms is None else alarms
    if kind is not KeyboardInterrupt:
        alarms = max(60, alarms // 10)
    every = subjects()
    with watchdog(180 if not long else 180 + alarms / 5):  # compiling is a part of it
        for subject in every:  # compiled before, so that the alarms meet steps and not the compiler
            subject.give_gradients()
            for opt, _ in subject.twins:
                opt.step(max_norm=1.0)
        came = made = 0
        for helpers in (1, 3):
            num_threads(helpers)
            if helpers > 1:
                monkeypatch.setattr(threads, "MINIMUM_BYTES", 1)
                monkeypatch.setattr(cpu, "CHUNK", 64)
                every = subjects()
                for subject in every:
                    subject.give_gradients()
                    for opt, _ in subject.twins:
                        opt.step(max_norm=1.0)
            wanted = alarms * helpers // 3 if helpers == 1 else alarms
            while came < wanted:
                came += every[made % len(every)].attack(kind)
                made += 1
                assert made < 50 * alarms, "alarms do not come while a call lasts"
    if long:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{kind.__name__}: {made} calls, {came} interrupted, on {os.cpu_count()} cores")
