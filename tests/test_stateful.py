"""Random sequences of everything a user may do to an optimizer, against a model in plain NumPy.

A short run is part of the suite. A long one:

    pytest tests/test_stateful.py --long 60                  # minutes
    GENESIS_ATTACK_LOG=attack.log pytest ...  # each operation noted before it is done
    python tests/test_stateful.py attack.log            # do what such a file, or a failure, lists

A failure prints its sequence, one call a line.
"""

import contextlib
import copy
import faulthandler
import itertools
import os
import pickle
import re
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from attack_tools import Interrupted, interrupted_after, run_in_child, watchdog
from devices import on_cpu_only
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from stateful_model import ALWAYS, BUFFERS, Memory, Values, World, guarded, overlap, possible, root

import genesis

SHAPES = [(2, 3), (4,), (), (0,), (3, 2)]
OPTIMIZERS = [
    ("Adam", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.5}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.25, "amsgrad": True}),
    ("SGD", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "momentum": 0.5}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.25, "initial_accumulator_value": 0.5}),
    ("SGD", {"lr": 0.1, "momentum": 0.75, "nesterov": True, "weight_decay": 0.25}),
    ("RMSprop", {"weight_decay": 0.25}),
    ("Adam", {"weight_decay": 0.25, "maximize": True, "betas": (0.5, 0.75)}),
]
REFUSALS = (ValueError, TypeError)

HYPER = {
    "lr": [0.25, 0.0, "fast", float("nan"), None],
    "weight_decay": [0.0, 0.25, -1.0, "none"],
    "maximize": [True, False, "up"],
    "momentum": [0.0, 0.5, 0, -1.0, None],
    "dampening": [0.0, 0.25],
    "nesterov": [False, True, 3],
    "betas": [(0.5, 0.75), (0.0, 0.5), [0.9, 0.99], (1.5, 0.9), 0.9, (0.5, float("nan"))],
    "amsgrad": [True, False, "yes"],
    "alpha": [0.5, 0.0, 2.0],
    "eps": [1e-3, 1e-8, -1.0],
    "lr_decay": [0.0, 0.5, -1.0],
}

history = []
"""The calls of the sequence that is being done, as text."""


def note(line):
    history.append(line)
    path = os.environ.get("GENESIS_ATTACK_LOG")
    if path:
        with open(path, "w" if len(history) == 1 else "a") as file:
            file.write(line + "\n")


class Attack:
    """The operations. Their arguments are small integers, so that any sequence of calls makes sense."""

    totals = (0, 0)
    """How many sequences were begun, and how many operations done, by all attacks."""

    def __init__(self, kind, members, groups, seed):
        history.clear()
        note(f"start({kind}, {members}, {groups}, {seed})")
        Attack.totals = Attack.totals[0] + 1, Attack.totals[1]
        name, hyper = OPTIMIZERS[kind % len(OPTIMIZERS)]
        shapes = [SHAPES[(i + seed) % len(SHAPES)] for i in range(1 + members % 4)]
        dtypes = [np.float32 if seed % 4 == 3 and i == 1 else np.float64 for i in range(9)]
        self.world = World(name, hyper, shapes, dtypes, 1 + groups % 3, seed)
        self.side = World("SGD", {"lr": 0.1, "momentum": 0.5}, [(3,)], [np.float64], 1, seed)
        self.snapshots = []
        self.memory = Memory(self.world.arrays())

    def do(self, name, arguments):
        """One operation, with everything looked at before and after."""
        note(f"{name}({', '.join(map(str, arguments))})")
        Attack.totals = Attack.totals[0], Attack.totals[1] + 1
        changed = self.memory.changed()
        assert not changed, f"written between two calls: {self.world.whose(changed)}"
        getattr(self, name)(*arguments)
        self.memory = Memory(self.world.arrays())

    # ---- what is there ----

    def slot(self, i):
        return self.world.slots[i % len(self.world.slots)]

    def group(self, i):
        groups = self.world.opt.param_groups
        return groups[i % len(groups)] if groups else None

    def sound(self):
        return self.world.trouble() is None

    def tidy(self):
        """Whether nothing is wrong even with parameters and state that no group lists."""
        arrays = [v for slot in self.world.slots for v in (slot.array, *slot.state.values())]
        kinds = {v.dtype if isinstance(v, np.ndarray) else type(v) for v in arrays}
        return self.sound() and kinds <= {np.dtype(np.float64), np.dtype(np.float32), int}

    def check(self, prediction=None):
        """Assert that what there is, is right: nothing was done, or what is predicted."""
        self.memory_is(self.memory, prediction)

    def memory_is(self, memory, prediction=None, world=None):
        world = world or self.world
        if prediction is None or prediction.skipped:
            wrong = world.problem_before(memory)
        else:
            wrong = world.problem_after(memory, prediction)
        assert wrong is None, wrong
        if prediction is not None and not prediction.skipped:
            world.adopt(prediction)

    # ---- steps ----

    def _step(self, call, max_norm=None, inverse_scale=None):
        """A call that takes a step, and what must have come of it."""
        world = self.world
        trouble = world.trouble()
        prediction = None
        if trouble is None or trouble[0].endswith("?"):
            prediction = world.predict(max_norm, inverse_scale)
        self.memory = Memory(world.arrays())
        error = refusal(call)
        if error is not None:
            assert trouble is not None, f"refused: {type(error).__name__}: {error}"
            self.check()
        else:
            assert prediction is not None, f"not refused: {trouble[0]} of {name_of(trouble[1])}"
            self.check(prediction)

    def step(self):
        self._step(self.world.opt.step)

    def step_clipped(self, i):
        max_norm = [0.5, 1e3, 0.0, 1.0][i % 4]
        self._step(lambda: self.world.opt.step(max_norm=max_norm), max_norm)

    def step_given(self, i):
        """A step with gradients that parameters do not hold, in a list."""
        opt, max_norm = self.world.opt, [None, 1.0][i % 2]
        holders = [p for group in opt.param_groups for p in group["params"]]
        held = [(p, p._grad_view) for p in holders if isinstance(p, genesis.Parameter)]
        grads = [getattr(p, "grad", None) for p in holders]

        def given():
            for p, _ in held:
                p.grad = None
            try:
                opt.step(grads=grads, max_norm=max_norm)
            finally:
                for p, view in held:
                    p._grad_view = view

        self._step(given, max_norm)

    def step_scaled(self, i):
        scaler = genesis.amp.GradScaler(init_scale=4.0)
        max_norm = [None, 1.0][i % 2]
        spoiled = None
        if i % 3 == 2:
            for slot, _ in self.world.listed():
                if self._may_edit(slot.grad):
                    spoiled, before = slot.grad, slot.grad.flat[0]
                    spoiled.flat[0] = [np.inf, np.nan][i % 2]
                    break
        self._step(lambda: scaler.step(self.world.opt, max_norm=max_norm), max_norm, 0.25)
        if spoiled is not None:
            spoiled.flat[0] = before

    def _may_edit(self, array):
        """Whether it is an array of floats whose values are nothing else's."""
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float64, np.float32):
            return False
        others = [other for other in self.world.arrays() if other is not array]
        free = array.size and not any(overlap(array, other) for other in others)
        return bool(free and array.flags.writeable)

    def step_interrupted(self, delay, i):
        """A step with an alarm in it: it is done, or has not begun."""
        if not self.sound():
            return
        world, prediction = self.world, self.world.predict()
        self._interrupted([world.opt.step, lambda: world.opt.step(max_norm=1e9)][i % 2], delay,
                          prediction)  # fmt: skip

    def _interrupted(self, call, delay, prediction):
        memory = Memory(self.world.arrays())
        kind = [Interrupted, KeyboardInterrupt, SystemExit][delay % 3]
        raised = interrupted_after(call, 2e-6 + delay * 2e-6, kind)
        before = self.world.problem_before(memory)
        after = self.world.problem_after(memory, prediction)
        assert after is None or (raised and before is None), (
            f"{'interrupted' if raised else 'ended'}; from before it differs in: {before}; "
            f"from after: {after}"
        )
        if after is None:
            self.world.adopt(prediction)

    # ---- gradients ----

    def gradients(self, seed):
        rng = np.random.default_rng(seed)
        for slot in self.world.slots:
            if slot.array.dtype in (np.float64, np.float32):
                self._assign(slot, rng.standard_normal(slot.array.shape))

    def _assign(self, slot, grad, legal=True):
        error = refusal(lambda: setattr(slot.p, "grad", grad))
        if error is not None:
            assert not legal, f"a gradient is refused: {error}"
            assert slot.p.grad is slot.grad
        else:
            assert legal, f"a gradient is taken: {type(grad)}"
            self.world.bury(slot.grad)
            slot.grad = grad

    def gradient(self, i, how, j, seed):
        slot, other = self.slot(i), self.slot(j)
        rng = np.random.default_rng(seed)
        shape = slot.array.shape
        legal = True
        match how % 16:
            case 0:
                grad = None
            case 1:
                grad = guarded(rng.standard_normal(shape))
            case 2:  # the same again: what became of it in place counts
                grad = slot.grad
                legal = grad is None or (
                    grad.shape == shape and grad.dtype in (np.float64, np.float32)
                )
            case 3:
                grad = rng.standard_normal((*shape, 2))[..., 1]
            case 4:
                grad = np.array(rng.standard_normal(shape), order="F")
            case 5:
                grad = rng.standard_normal(shape).astype(np.float32)
            case 6:
                grad = rng.standard_normal(shape)
                grad.flags.writeable = False
            case 7:
                grad = np.broadcast_to(np.float64(0.5), shape)
            case 8:  # the parameter's own array, or another's
                grad = other.array if other.array.shape == shape else slot.array
                legal = grad.dtype in (np.float64, np.float32)
            case 9:  # another parameter's gradient too
                grad = other.grad
                if grad is None or grad.shape != shape or grad.dtype != np.float64:
                    return
            case 10:  # memory that overlaps the parameter's in part
                grad = self._shifted(slot)
            case 11:  # two gradients that overlap
                block = rng.standard_normal(slot.array.size + 1)
                self._assign(slot, block[1:].reshape(shape), True)
                if other.array.size <= slot.array.size and other is not slot:
                    size = other.array.size
                    self._assign(other, block[:size].reshape(other.array.shape), True)
                return
            case 12:
                grad, legal = np.ones(shape, np.int64), False
            case 13:
                grad, legal = np.ones((*shape, 7)), False
            case 14:
                grad, legal = [0.5], False
            case 15:  # a state buffer
                buffers = [v for v in slot.state.values() if isinstance(v, np.ndarray)]
                if not buffers or buffers[0].shape != shape or buffers[0].dtype != np.float64:
                    return
                grad = buffers[0]
        if slot.array.dtype not in (np.float64, np.float32) and grad is not None:
            return
        self._assign(slot, grad, legal)

    def _shifted(self, slot):
        """An array that overlaps the slot's in part if its memory allows that."""
        owner = root(slot.array)
        size = slot.array.size * 8
        if owner.dtype == np.uint8 and 0 < size <= owner.nbytes - 72:
            return owner[72 : 72 + size].view(np.float64).reshape(slot.array.shape)
        return slot.array[...]

    def zero(self, to_none):
        world = self.world
        kept = {}
        doubt = any(not isinstance(p, genesis.Parameter) for g in world.opt.param_groups
                    for p in g["params"])  # fmt: skip
        slots = list({id(slot): slot for slot, _ in world.listed()}.values())
        written = []
        for slot in slots:
            grad = slot.grad
            if grad is None:
                continue
            doubt = doubt or grad.dtype not in (np.float64, np.float32)
            if grad.flags.writeable:
                written.append(grad)
                others = [s.array for s in world.slots] + [
                    v for s in world.slots for v in s.state.values() if isinstance(v, np.ndarray)
                ]
                doubt = doubt or any(overlap(grad, other) for other in others)
            else:
                kept[id(slot)] = grad
                doubt = doubt or grad.shape != slot.array.shape
        memory = Memory(world.arrays())
        try:
            world.opt.zero_grad(set_to_none=bool(to_none % 2))
        except Exception:
            if not doubt:
                raise
        for slot in slots:
            grad = slot.p.grad
            if to_none % 2:
                assert doubt or grad is None, f"{slot.p.name} has a gradient still"
            elif slot.grad is not None and not doubt:
                assert (grad is slot.grad) == (id(slot) not in kept), slot.p.name
                assert grad.shape == slot.grad.shape
                assert not np.any(grad), f"the gradient of {slot.p.name} is not 0"
            self.world.bury(slot.grad if grad is not slot.grad else None)
            slot.grad = grad
        changed = memory.changed([] if to_none % 2 else written)
        assert not changed, f"zero_grad wrote {world.whose(changed)}"

    def clip(self, i):
        world = self.world
        if not self.sound():
            return
        slots = [slot for slot, _ in world.listed() if slot.grad is not None]
        grads = [slot.grad for slot in slots]
        if any(overlap(a, b) for a, b in itertools.combinations(grads, 2)):
            return
        # A gradient may be memory that this step does not write, yet is in use: it is scaled, too.
        if any(overlap(g, a) for g in grads for a in world.arrays() if a is not g):
            return
        max_norm = [0.5, 1e3][i % 2]
        norm = float(np.sqrt(sum(np.sum(np.square(g.astype(np.float64))) for g in grads)))
        factor = min(1.0, max_norm / (norm + 1e-6))
        expected = []
        for g in grads:
            values = g.astype(np.float64) * factor
            small = 1e-12 if g.dtype == np.float64 else 1e-6
            expected.append(Values(values, np.abs(values) * small + 1e-300, g.dtype))
        refuse = any(not g.flags.writeable for g in grads)
        memory = Memory(world.arrays())
        try:
            found = genesis.nn.utils.clip_grad_norm_([slot.p for slot in slots], max_norm)
        except ValueError:
            assert refuse
            assert not memory.changed()
        else:
            assert not refuse or all(g.flags.writeable or g.size == 0 for g in grads)
            np.testing.assert_allclose(found, norm, rtol=1e-12, atol=0)
            changed = memory.changed(grads)
            assert not changed, f"clipping wrote {world.whose(changed)}"
            for slot, values in zip(slots, expected):
                wrong = values.problem(slot.grad)
                assert wrong is None, f"the clipped gradient of {slot.p.name} {wrong}"

    # ---- groups ----

    def groups(self, how, i, j):
        world = self.world
        groups, group = world.opt.param_groups, self.group(i)
        slot = self.slot(j)
        if group is None:
            how = 9
        members = group["params"] if group is not None else []
        match how % 14:
            case 0:
                if len(groups) > 1:
                    del groups[i % len(groups)]
            case 1:
                groups.reverse()
            case 2:
                groups[:] = [groups[-1], *groups[:-1]]
            case 3:
                members.reverse()
            case 4:
                if members:
                    members[j % len(members)] = slot.p
            case 5:
                if members:
                    del members[j % len(members)]
            case 6:
                members.append(slot.p)
            case 7:
                group["params"] = [slot.p]
            case 8:
                world.opt.param_groups = [dict(group) for group in groups]
            case 9:
                new = world.new_slot(np.full(SHAPES[j % 5], 0.5)) if len(world.slots) < 8 else slot
                try:
                    world.opt.add_param_group({"params": [new.p], "lr": 0.5})
                except (*REFUSALS, AttributeError):
                    ill = any(not isinstance(p, genesis.Parameter) for g in groups
                              for p in g["params"])  # fmt: skip
                    ill = ill or any(overlap(new.array, s.array) for s, _ in world.listed())
                    ill = ill or world.trouble() is not None
                    assert ill or any(s is new for s, _ in world.listed())
            case 10:
                new = world.new_slot(np.full(SHAPES[j % 5], 2.0)) if len(world.slots) < 8 else slot
                members.insert(j % (1 + len(members)), new.p)
            case 11:
                members.append([None, slot.array, 3.0][j % 3])
            case 12:
                if len(groups) > 1 and members:
                    groups[(i + 1) % len(groups)]["params"].append(members.pop())
            case 13:
                settings_ = {k: v for k, v in group.items() if k != "params"}
                groups.append({**settings_, "params": [slot.p], "lr": 0.25})
        world.note_groups()
        self.check()

    def hyper(self, i, which, value):
        group = self.group(i)
        if group is None:
            return
        names = [name for name in HYPER if name in group]
        name = names[which % len(names)]
        # Past the group's own check: it is the step that is under test here.
        dict.__setitem__(group, name, HYPER[name][value % len(HYPER[name])])
        self.world.note_groups()

    # ---- state ----

    def state(self, how, i, which, j):
        world = self.world
        slot, other = self.slot(i), self.slot(j)
        names = BUFFERS[world.name]
        name = names[which % len(names)]
        opt, shape = world.opt, slot.array.shape
        there = slot.p in opt.state
        assert there or not slot.state
        match how % 20:
            case 0:
                if there:
                    del opt.state[slot.p]
                    slot.state = {}
            case 1:
                if name in slot.state:
                    del opt.state[slot.p][name]
                    self.world.bury(slot.state.pop(name))
            case 2:
                if "step" in slot.state:
                    del opt.state[slot.p]["step"]
                    del slot.state["step"]
            case 3:
                if world.name != "SGD":
                    opt.state[slot.p]["step"] = slot.state["step"] = j % 5
            case 4:
                self._set_state(slot, name, np.full(shape, 0.5))
            case 5:
                self._set_state(slot, name, np.full(shape, 0.25, order="F"))
            case 6:
                self._set_state(slot, name, np.full(shape, 0.25, np.float32))
            case 7:
                self._set_state(slot, name, np.ones((*shape, 3)))
            case 8:
                self._set_state(slot, name, np.ones(shape, np.int64))
            case 9:
                self._set_state(slot, name, [[1.0], 0.5, "x"][j % 3])
            case 10:
                self._set_state(slot, name, np.broadcast_to(np.float64(0.5), shape))
            case 11:
                self._set_state(slot, name, slot.array)
            case 12:
                if name in other.state and isinstance(other.state[name], np.ndarray):
                    self._set_state(slot, name, other.state[name])
            case 13:
                if slot.grad is not None:
                    self._set_state(slot, name, slot.grad)
            case 14:
                if self._may_edit(slot.state.get(name)):
                    slot.state[name][...] = 0.75
                    self.memory = Memory(world.arrays())
            case 15:
                opt.state.clear()
                for each in world.slots:
                    each.state = {}
            case 16:  # plain dicts, of some parameters
                keep = [each for each in world.slots if each.state and each is not slot]
                opt.state = {each.p: dict(each.state) for each in keep}
                for each in world.slots:
                    if all(each is not k for k in keep):
                        each.state = {}
            case 17:
                before = opt.state.pop(slot.p, None)
                assert (before is None) == (not there)
                slot.state = {}
            case 18:
                if other.array.shape == shape:  # another parameter's buffers, copied
                    slot.state = copy.deepcopy(other.state)
                    opt.state[slot.p] = slot.state
                    slot.state = dict(slot.state)
            case 19:
                given = {name: np.full(shape, 0.125), "step": 2}
                if world.name == "SGD":
                    del given["step"]
                opt.state[slot.p].update(given)
                slot.state.update(given)
        self.check()

    def _set_state(self, slot, name, value):
        self.world.opt.state[slot.p][name] = value
        self.world.bury(slot.state.get(name))
        slot.state[name] = value

    def look(self):
        """Everything there is to be read."""
        self.check()
        repr(self.world.opt)

    # ---- arrays ----

    def header(self, role, i, which, how):
        """Shape, type, size and flags of an array, changed where it is."""
        slot = self.slot(i)
        buffers = [v for v in slot.state.values() if isinstance(v, np.ndarray)]
        array = [slot.array, slot.grad, buffers[which % len(buffers)] if buffers else None][
            role % 3
        ]
        if array is None:
            return
        owned = array.flags.owndata and array.base is None
        alone = not any(root(other) is array for other in self.world.arrays() if other is not array)
        with contextlib.suppress(ValueError, AttributeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            match how % 10:
                case 0 | 1:
                    if owned and alone:
                        array.resize(array.size + 40000, refcheck=False)
                case 2:
                    if owned and alone:
                        array.resize(max(array.size - 1, 0), refcheck=False)
                case 3:
                    array.shape = (array.size,)
                case 4:
                    array.shape = array.shape[::-1]
                case 5:
                    array.dtype = np.float32
                case 6:
                    array.dtype = np.int64
                case 7:
                    array.flags.writeable = False
                case 8:
                    array.flags.writeable = True
                case 9:
                    array.dtype = np.float64

    def data(self, i, how, j):
        slot, other = self.slot(i), self.slot(j)
        shape = slot.array.shape
        legal = slot.array.dtype in (np.float64, np.float32)
        match how % 7:
            case 0 | 1:
                new = guarded(np.full(shape, 1.5), slot.array.dtype, "CF"[j % 2])
            case 2:
                new = slot.array
                legal = True
            case 3:  # aliases
                new = other.array
                legal = legal and new.shape == shape and new.dtype == slot.array.dtype
                legal = (legal and new.flags.writeable) or new is slot.array
            case 4:
                new = self._shifted(other)
                legal = legal and new.shape == shape and new.dtype == slot.array.dtype
                legal = legal and new.flags.writeable
            case 5:
                new, legal = np.ones((*shape, 2)), False
            case 6:
                new, legal = np.ones(shape), False
                new.flags.writeable = False
        try:
            slot.p.data = new
        except (*REFUSALS, KeyError):
            assert not legal
        else:
            assert legal, "data that does not fit is taken"
            self.world.bury(slot.array)
            slot.array = new
        self.check()

    # ---- snapshots ----

    def snapshot(self):
        if not self.sound():
            return
        world = self.world
        taken = world.opt.state_dict()
        numbers = [id(p) for group in world.opt.param_groups for p in group["params"]]
        for slot in world.slots:
            if id(slot.p) not in numbers or not slot.state:
                continue
            found = taken["state"][numbers.index(id(slot.p))]
            assert found.keys() == slot.state.keys()
            for name, value in slot.state.items():
                if isinstance(value, np.ndarray):
                    assert not overlap(found[name], value)
                np.testing.assert_array_equal(found[name], value)
        self.snapshots = [*self.snapshots[-3:], (taken, copy.deepcopy(taken))]
        self.check()

    def load(self, i, delay):
        """Load a snapshot; for a delay that is not 0, with an alarm meanwhile."""
        if not self.snapshots or not self.sound():
            return
        world = self.world
        given, saved = self.snapshots[i % len(self.snapshots)]
        memory = Memory(world.arrays())
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        legal = sizes == [len(group["params"]) for group in world.opt.param_groups]
        legal = legal and all(possible(world.name, group) for group in saved["param_groups"])
        states, groups = {}, []
        if legal:
            members = [p for group in world.opt.param_groups for p in group["params"]]
            owner = dict(zip((n for g in saved["param_groups"] for n in g["params"]), members))
            states = {id(slot): {} for slot in world.slots}
            for number, entries in saved["state"].items():
                slot = world.slot_of(owner[number])
                legal = legal and not (entries and set(ALWAYS[world.name]) - entries.keys())
                for name, value in entries.items():
                    if isinstance(value, np.ndarray):
                        legal = legal and value.shape == slot.array.shape
                        entries = {**entries, name: Values(value.astype(float), 0.0, value.dtype)}
                states[id(slot)] = entries
            for own, group in zip(world.opt.param_groups, saved["param_groups"]):
                settings_ = {k: v for k, v in copy.deepcopy(group).items() if k != "params"}
                groups.append({**settings_, "params": list(own["params"])})
        raised = False

        def load():
            nonlocal raised
            if delay:
                raised = interrupted_after(lambda: world.opt.load_state_dict(given), delay * 2e-6)
            else:
                world.opt.load_state_dict(given)

        error = refusal(load)
        if error is not None:
            assert not legal, f"a snapshot is refused: {error}"
            self.memory_is(memory)
            return
        before = world.problem_before(memory)
        if not legal:
            assert raised, "a snapshot that does not fit is loaded"
            assert before is None, before
            return
        old, world.groups = world.groups, groups
        prediction = world.predict()
        prediction.written, prediction.states = [], states
        after = world.problem_after(memory, prediction)
        assert after is None or (raised and before is None), (
            f"{'interrupted' if raised else 'ended'}; from before it differs in: {before}; "
            f"from after: {after}"
        )
        if after is None:
            world.adopt(prediction)
        else:
            world.groups = old

    def move(self):
        if self.tidy():
            assert self.world.opt.to("cpu") is self.world.opt
            self.check()

    def copy(self, how):
        """Go on with a copy of everything."""
        world = self.world
        if not self.tidy():
            return
        for slot in world.slots:
            grads = slot.array if slot.grad is None else slot.grad
            if slot.array.dtype not in (np.float64, np.float32) or grads.shape != slot.array.shape:
                return
            if grads.dtype not in (np.float64, np.float32):
                return
        given = world.opt, [slot.p for slot in world.slots]
        if how % 2:
            opt, parameters = pickle.loads(pickle.dumps(given))
        else:
            opt, parameters = copy.deepcopy(given)
        self.check()
        for slot, p in zip(world.slots, parameters):
            assert not overlap(p.data, slot.array)
            np.testing.assert_array_equal(p.data, slot.array)
            assert (p.grad is None) == (slot.grad is None)
            if p.grad is not None:
                np.testing.assert_array_equal(p.grad, slot.grad)
            entries = dict(opt.state[p].items()) if p in opt.state else {}
            assert entries.keys() == slot.state.keys()
            for name, value in slot.state.items():
                assert type(entries[name]) is type(value)
                np.testing.assert_array_equal(entries[name], value)
        numbers = {id(slot.p): i for i, slot in enumerate(world.slots)}
        for group, other in zip(world.opt.param_groups, opt.param_groups, strict=True):
            expected = [id(parameters[numbers[id(p)]]) for p in group["params"]]
            assert [*map(id, other["params"])] == expected
        for slot, p in zip(world.slots, parameters):
            slot.p = p
        world.opt = opt
        world.graves = []
        world.adopt_all()

    # ---- other threads, other processes ----

    def fork(self):
        """A step in a forked child, and then here."""
        if not self.sound():
            return
        memory = Memory(self.world.arrays())
        run_in_child(self.step, 60)
        self.memory_is(memory)
        self.step()

    def two_optimizers(self, seed):
        """Two optimizers take their steps at the same time."""
        if not self.sound():
            return
        side = self.side
        rng = np.random.default_rng(seed)
        side.slots[0].grad = side.slots[0].p.grad = rng.standard_normal(3)
        worlds = [self.world, side]
        memories = [Memory(world.arrays()) for world in worlds]
        predictions = [world.predict() for world in worlds]
        self._together([world.opt.step for world in worlds])
        for world, memory, prediction in zip(worlds, memories, predictions):
            self.memory_is(memory, prediction, world)

    def _together(self, calls):
        errors = []
        ready = threading.Barrier(len(calls))

        def run(call):
            ready.wait()
            try:
                call()
            except BaseException as error:
                errors.append(error)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [threading.Thread(target=run, args=(call,)) for call in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a thread hangs"
        finally:
            sys.setswitchinterval(interval)
        if errors:
            raise errors[0]

    def one_optimizer_in_two_threads(self):
        """Values may be anything then, but nothing breaks."""
        if not self.sound():
            return
        self._together([self.world.opt.step] * 2)
        self.world.adopt_all()
        assert self.sound()

    def assigned_meanwhile(self, i):
        """Another thread assigns gradients during steps."""
        slot = self.slot(i)
        shape = slot.array.shape
        if slot.array.dtype not in (np.float64, np.float32):
            return
        self._assign(slot, np.full(shape, 0.5))  # with it the parameter is one that a step writes
        if not self.sound():
            return
        ended = threading.Event()

        def assign():
            while not ended.is_set():
                slot.p.grad = np.full(shape, 0.5)
                slot.p.grad = np.full(shape, 0.25)

        def steps():
            try:
                for _ in range(10):
                    self.world.opt.step()
            finally:
                ended.set()

        self._together([assign, steps])
        self.world.adopt_all()

    # ---- a way out ----

    def mend(self):
        """Put right whatever makes steps be refused."""
        world = self.world
        for _ in range(60):
            trouble = world.trouble()
            if trouble is None:
                break
            kind, what = trouble
            if kind in ("no parameter", "listed twice"):
                once = set()
                for group in world.opt.param_groups:
                    members = [p for p in group["params"] if isinstance(p, genesis.Parameter)]
                    members = list({id(p): p for p in members if id(p) not in once}.values())
                    once |= set(map(id, members))
                    group["params"] = members
            elif kind == "hyper-parameter":
                what.update(world.opt.defaults)
            elif "state" in kind or kind == "written twice":
                if what.state:
                    del world.opt.state[what.p]
                    what.state = {}
                else:
                    self._unlist(what)
            elif "gradient" in kind:
                what.p.grad = what.grad = None
            else:
                self._unlist(what)
        assert world.trouble() is None, "the test cannot mend this"
        world.note_groups()
        self.check()

    def _unlist(self, slot):
        slot.p.grad = slot.grad = None
        for group in self.world.opt.param_groups:
            group["params"] = [p for p in group["params"] if p is not slot.p]


def refusal(call):
    """The error with which `call` is refused, or None."""
    try:
        call()
    except REFUSALS as error:
        return error
    return None


def name_of(what):
    return getattr(getattr(what, "p", None), "name", what)


# ---- sequences ----

OPERATIONS = {
    "gradients": 1,
    "step": 0,
    "step_clipped": 1,
    "step_given": 1,
    "step_scaled": 1,
    "step_interrupted": 2,
    "gradient": 4,
    "zero": 1,
    "clip": 1,
    "groups": 3,
    "hyper": 3,
    "state": 4,
    "look": 0,
    "header": 4,
    "data": 3,
    "snapshot": 0,
    "load": 2,
    "move": 0,
    "copy": 1,
    "fork": 0,
    "two_optimizers": 1,
    "one_optimizer_in_two_threads": 0,
    "assigned_meanwhile": 1,
    "mend": 0,
}
"""The operations, and how many numbers each takes."""

BENIGN = (
    "gradients step step_clipped step_given step_scaled zero clip look snapshot move copy".split()
)
RARE = "fork two_optimizers one_optimizer_in_two_threads assigned_meanwhile copy".split()
OFTEN = "gradients step step mend".split()

small = st.integers(0, 59)


def machine(operations):
    """A machine that Hypothesis can drive, with a rule for each operation."""

    class Machine(RuleBasedStateMachine):
        @initialize(kind=small, members=small, groups=small, seed=small)
        def start(self, kind, members, groups, seed):
            self.attack = Attack(kind, members, groups, seed)

    def added(name, count):
        names = "abcd"[:count]

        def operation(self, **values):
            with told():
                self.attack.do(name, list(values.values()))

        operation.__name__ = name
        return rule(**dict.fromkeys(names, small))(operation)

    for number, name in enumerate([*operations, *OFTEN]):
        if name in operations:
            setattr(Machine, f"rule{number}_{name}", added(name, OPERATIONS[name]))
    Machine.TestCase = None
    return Machine


@contextlib.contextmanager
def told():
    """Say after an error what led to it."""
    try:
        yield
    except Exception as error:
        sequence = "\n".join(history)
        raise AssertionError(
            f"{type(error).__name__}: {error}\nafter this sequence, which "
            f"`python tests/test_stateful.py FILE` repeats:\n{sequence}"
        ) from error


def replay(lines):
    """Do what the lines say: those of a failure or of GENESIS_ATTACK_LOG."""
    attack = None
    for line in lines:
        found = re.fullmatch(r"\s*(\w+)\(([\d, ]*)\)\s*", line)
        if not found:
            continue
        name, values = found[1], [int(value) for value in found[2].split(",") if value.strip()]
        if name == "start":
            attack = Attack(*values)
        else:
            attack.do(name, values)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def run(operations, **options):
    options = {
        "deadline": None,
        "database": None,
        "suppress_health_check": QUIET,
        "print_blob": False,
        **options,
    }
    with watchdog(3600 * 24 if "max_examples" not in options else 900):
        run_state_machine_as_test(machine(operations), settings=settings(**options))


pytestmark = [
    on_cpu_only,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    # An exception from a signal handler in a callback of Python's own, which can only be printed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*no parameter has a gradient"),
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]


@pytest.mark.parametrize("kind", range(len(OPTIMIZERS)))
def test_what_every_user_does(kind):
    """Nothing here is an attack: if this fails, suspect the model."""
    rng = np.random.default_rng(kind)
    with told():
        attack = Attack(kind, 3, 1, kind)
        attack.do("gradients", [0])
        for _ in range(60):
            name = BENIGN[rng.integers(len(BENIGN))]
            attack.do(name, rng.integers(0, 60, OPERATIONS[name]).tolist())
            if rng.integers(3) == 0:
                attack.do("gradients", [int(rng.integers(60))])


def test_random_sequences(request):
    """A short run that is always the same, or with --long MINUTES a long one."""
    minutes = request.config.getoption("--long") or float(
        os.environ.get("GENESIS_ATTACK_MINUTES", 0)
    )
    operations = dict(OPERATIONS)
    Attack.totals = 0, 0
    if not minutes:
        run(operations, max_examples=30, stateful_step_count=25, derandomize=True)
        return
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        run(operations, max_examples=100, stateful_step_count=60, derandomize=False)
    sequences, steps = Attack.totals
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{sequences} sequences of {steps} operations, no finding")


if __name__ == "__main__":
    faulthandler.enable()
    with open(sys.argv[1]) as file:
        replay(file)
    print("the sequence ends well")
