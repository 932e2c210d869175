"""What an optimizer is supposed to do with whatever its user did to it, in plain NumPy.

A `World` knows the parameters, gradients, groups and state as the user left them. Before a step it
says what the step must do: be refused, with nothing written, or write these values, to 1e-12, and
nothing else. Formulas are those of `reference.py`. Everything is predicted from what lies in memory
before one step, so that rounding does not add up over many.
"""

import copy
import ctypes
import inspect

import numpy as np
from cases import BFLOAT16
from reference import REFERENCES

import genesis

ACCEPTED = {np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BFLOAT16}

NEEDED = {
    "SGD": lambda group: ("momentum_buffer",) * (group["momentum"] != 0),
    "Adam": lambda group: (
        "exp_avg",
        "exp_avg_sq",
        *(("max_exp_avg_sq",) * bool(group["amsgrad"])),
    ),
    "RMSprop": lambda group: ("square_avg", *(("momentum_buffer",) * (group["momentum"] > 0))),
    "Adagrad": lambda group: ("sum",),
}
NEEDED["AdamW"] = NEEDED["Adam"]
ALWAYS = {  # what a saved state must hold
    "SGD": (),
    "Adam": ("step", "exp_avg", "exp_avg_sq"),
    "AdamW": ("step", "exp_avg", "exp_avg_sq"),
    "RMSprop": ("step", "square_avg"),
    "Adagrad": ("step", "sum"),
}
BUFFERS = {
    "SGD": ("momentum_buffer",),
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "RMSprop": ("square_avg", "momentum_buffer"),
    "Adagrad": ("sum",),
}


def _number(value, below=np.inf):
    return isinstance(value, (int, float, np.floating, np.integer)) and 0 <= value < below


def possible(name, group):
    """Whether an optimizer can work with a group's hyper-parameters."""
    if not (_number(group["lr"]) and _number(group["weight_decay"])):
        return False
    if not isinstance(group["maximize"], bool):
        return False
    if name == "SGD":
        if not (_number(group["momentum"]) and _number(group["dampening"])):
            return False
        if not isinstance(group["nesterov"], bool):
            return False
        return not group["nesterov"] or (group["momentum"] != 0 and group["dampening"] == 0)
    if not _number(group["eps"]):
        return False
    if name == "RMSprop":
        return _number(group["alpha"]) and group["alpha"] <= 1 and _number(group["momentum"])
    if name == "Adagrad":
        return _number(group["lr_decay"]) and _number(group["initial_accumulator_value"])
    betas = group["betas"]
    return (
        isinstance(betas, (tuple, list))
        and len(betas) == 2
        and all(_number(beta, below=1) for beta in betas)
        and isinstance(group["amsgrad"], bool)
    )


# ---- memory ----


def root(array):
    """The array that owns the memory in which `array` lies."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def address(array):
    return array.__array_interface__["data"][0]


class Memory:
    """A copy of every byte of the memory that some arrays lie in, guards around them included."""

    def __init__(self, arrays):
        self.roots = {id(root(array)): root(array) for array in arrays}
        self.bytes = {key: self._now(array) for key, array in self.roots.items()}

    def _now(self, array):
        return ctypes.string_at(address(array), array.nbytes) if array.nbytes else b""

    def changed(self, written=()):
        """The roots that have changed elsewhere than in the arrays `written`."""
        expected = dict(self.bytes)
        for array in written:
            owner = root(array)
            if array.size == 0 or id(owner) not in expected:
                continue
            patched = bytearray(expected[id(owner)])
            start = address(array) - address(owner)
            view = np.ndarray(array.shape, array.dtype, patched, start, array.strides)
            view[...] = array
            expected[id(owner)] = bytes(patched)
        return [array for key, array in self.roots.items() if self._now(array) != expected[key]]


def guarded(values, dtype=np.float64, order="C"):
    """An array with these values in the middle of a larger block, which shows stray writes."""
    values = np.asarray(values)
    size = values.size * np.dtype(dtype).itemsize
    block = np.full(size + 128, 0xAB, np.uint8)
    array = block[64 : 64 + size].view(dtype).reshape(values.shape, order=order)
    array[...] = values
    return array


def overlap(a, b):
    return a.size > 0 and b.size > 0 and np.shares_memory(a, b)


# ---- predictions ----


class Values:
    """Values that an array must have: within `within` of `values`, and of a shape and data type."""

    def __init__(self, values, within, dtype):
        self.values, self.within, self.dtype = values, within, np.dtype(dtype)

    def problem(self, array):
        """What is wrong with an array; None if nothing is."""
        if not isinstance(array, np.ndarray):
            return f"is {array!r}, no array"
        if array.shape != np.shape(self.values) or array.dtype != self.dtype:
            expected = np.shape(self.values), self.dtype
            return f"has {array.shape, array.dtype} where {expected} is right"
        with np.errstate(all="ignore"):
            actual = array.astype(np.float64)
            finite = np.isfinite(np.asarray(self.values).astype(self.dtype).astype(np.float64))
            close = np.abs(actual - self.values) <= self.within  # false for NaN
        wrong = np.where(finite, ~close, np.isfinite(actual))
        if wrong.any():
            return f"has {actual[wrong][:4]} where {np.asarray(self.values)[wrong][:4]} is right"
        return None


class Slot:
    """One parameter and what the user gave it, each array being the very object that was given."""

    def __init__(self, array, number):
        self.p = genesis.Parameter(array, name=f"p{number}")
        self.array = array
        self.grad = None
        self.state = {}


class Prediction:
    """What a step must do if it is not refused."""

    def __init__(self):
        self.written = []  # (array, Values)
        self.states = {}  # id(slot) -> the entries after it: an array, a number, or Values
        self.skipped = False


class World:
    """An optimizer, its parameters, and what is right."""

    def __init__(self, name, hyper, shapes, dtypes, groups, seed):
        rng = np.random.default_rng(seed)
        self.name = name
        self.slots = []
        self.graves = []  # arrays that were in use once: nobody may write there
        for shape, dtype in zip(shapes, dtypes):
            self.new_slot(rng.standard_normal(shape).astype(dtype))
        members = [[] for _ in range(groups)]
        for i, slot in enumerate(self.slots):
            members[i % groups].append(slot.p)
        self.opt = getattr(genesis.optim, name)(
            [{"params": list(m)} for m in members if m], **hyper
        )
        self.groups = [self._settings(group) for group in self.opt.param_groups]
        self.signature = inspect.signature(REFERENCES[name]).parameters

    def new_slot(self, values, guard=None):
        guard = len(self.slots) % 2 == 0 if guard is None else guard
        array = guarded(values, values.dtype) if guard else np.array(values)
        self.slots.append(Slot(array, len(self.slots)))
        return self.slots[-1]

    @staticmethod
    def _settings(group):
        return {**copy.deepcopy({k: v for k, v in group.items() if k != "params"}),
                "params": list(group["params"])}  # fmt: skip

    def note_groups(self):
        """Take what the lists now say for what is right."""
        self.groups = [self._settings(group) for group in self.opt.param_groups]

    def slot_of(self, parameter):
        return next(slot for slot in self.slots if slot.p is parameter)

    def arrays(self):
        found = list(self.graves)
        for slot in self.slots:
            found += [slot.array, *([] if slot.grad is None else [slot.grad])]
            found += [v for v in slot.state.values() if isinstance(v, np.ndarray)]
        return found

    def bury(self, array):
        if isinstance(array, np.ndarray):
            self.graves = [*self.graves[-20:], array]

    # ---- what is to be refused ----

    def listed(self):
        """The slots that the groups list, in order, with their groups."""
        return [
            (self.slot_of(p), group)
            for group in self.opt.param_groups
            for p in group["params"]
            if isinstance(p, genesis.Parameter)
        ]

    def trouble(self):
        """Why the next step must be refused: (kind, what it is about), or None.

        A kind that ends in "?" may be refused or not.
        """
        members = [p for group in self.opt.param_groups for p in group["params"]]
        for p in members:
            if not isinstance(p, genesis.Parameter):
                return "no parameter", p
        if len({id(p) for p in members}) < len(members):
            return "listed twice", members
        for group in self.opt.param_groups:
            if not possible(self.name, group):
                return "hyper-parameter", group
        live = [(slot, group) for slot, group in self.listed() if slot.grad is not None]
        doubts = []
        for slot, group in live:
            for found in self._troubles_of(slot, group):
                if not found[0].endswith("?"):
                    return found
                doubts.append(found)
        written = []
        for slot, group in live:
            written.append((slot, slot.array))
            names = NEEDED[self.name](group)
            written += [(slot, slot.state[name]) for name in names if name in slot.state]
        for i, (slot, array) in enumerate(written):
            if any(overlap(array, other) for _, other in written[:i]):
                return "written twice", slot
        for slot, _ in live:
            if any(overlap(slot.grad, array) for _, array in written):
                return "gradient shares memory", slot
        return doubts[0] if doubts else self._doubt(live, written)

    def _troubles_of(self, slot, group):
        array, grad = slot.array, slot.grad
        if array.dtype not in ACCEPTED:
            yield "parameter's dtype", slot
        if not array.flags.writeable:
            yield "read-only" + "?" * (array.size == 0), slot
        if grad.dtype not in ACCEPTED:
            yield "gradient's dtype", slot
        if grad.shape != array.shape:
            yield "gradient's shape", slot
        for name in NEEDED[self.name](group):
            if name not in slot.state:
                continue
            value = slot.state[name]
            if not isinstance(value, np.ndarray) or value.dtype not in ACCEPTED:
                yield "state's type", slot
            if value.shape != array.shape:
                yield "state's shape", slot
            if not value.flags.writeable:
                yield "state read-only" + "?" * (value.size == 0), slot

    def _doubt(self, live, written):
        """Faults of what this step neither reads nor writes: refusing them is as good as not."""
        idle = [slot for slot, _ in self.listed() if slot.grad is None]
        for i, slot in enumerate(idle):
            array = slot.array
            if array.dtype not in ACCEPTED or not array.flags.writeable:
                return "idle?", slot
            others = [other for _, other in written] + [other.array for other in idle[:i]]
            if any(overlap(array, other) for other in others):
                return "idle shares memory?", slot
        for slot, group in self.listed():
            for name, value in slot.state.items():
                if name == "step":
                    continue
                if slot.grad is not None and name in NEEDED[self.name](group):
                    continue
                if (
                    not isinstance(value, np.ndarray)
                    or value.dtype not in ACCEPTED
                    or value.shape != slot.array.shape
                    or not value.flags.writeable
                    or any(overlap(value, other) for _, other in written)
                ):
                    return "idle state?", slot
        return None

    # ---- what is to be done ----

    def predict(self, max_norm=None, inverse_scale=None):
        """What the next step must do, given that it is not refused."""
        prediction = Prediction()
        live = [(slot, group) for slot, group in self.listed() if slot.grad is not None]
        factor = 1.0 if inverse_scale is None else inverse_scale
        norm = 0.0
        for slot, _ in live:
            norm += np.sum(np.square(slot.grad.astype(np.longdouble)))
        norm = float(np.sqrt(norm)) * factor
        if inverse_scale is not None and not np.isfinite(norm):
            prediction.skipped = True
            return prediction
        if max_norm is not None:
            factor *= min(1.0, max_norm / (norm + 1e-6))
        for slot, group in live:
            self._predict_one(prediction, slot, group, factor)
        return prediction

    def _predict_one(self, prediction, slot, group, factor):
        names = NEEDED[self.name](group)
        hyper = {name: group[name] for name in self.signature if name in group}
        inputs = {"param": slot.array.astype(np.float64)}
        inputs["grad"] = slot.grad.astype(np.float64) * factor
        for name in names:
            if name in slot.state:
                inputs[name] = slot.state[name].astype(np.float64)
        step = slot.state.get("step", 0) + 1

        def updated(**others):
            values = {**inputs, **others}
            state = {name: values[name] for name in names if name in values}
            with np.errstate(all="ignore"):
                param, state = REFERENCES[self.name](
                    values["param"], values["grad"], state, step, **hyper
                )
            return {"param": param, **{name: state[name] for name in names}}

        # How far rounding may lead away is seen by what small errors in the inputs lead to.
        small = 1e-12 if slot.array.dtype == np.float64 else 4e-6
        right = updated()
        with np.errstate(all="ignore"):
            within = {
                name: small * (np.abs(value) + np.abs(inputs.get(name, 0)))
                for name, value in right.items()
            }
        for name in inputs:
            other = updated(**{name: inputs[name] * (1 + small)})
            with np.errstate(all="ignore"):
                for result in right:
                    within[result] = within[result] + 4 * np.abs(other[result] - right[result])
        entries = dict(slot.state)
        for name, value in right.items():
            before = slot.array if name == "param" else slot.state.get(name)
            dtype = slot.array.dtype if before is None else before.dtype
            if dtype != np.float64:
                info = np.finfo(np.float32)
                with np.errstate(all="ignore"):
                    within[name] = within[name] + np.abs(value) * info.eps + info.tiny
            values = Values(value, within[name] + 1e-300, dtype)
            if before is None:
                entries[name] = values
            else:
                prediction.written.append((before, values))
        if self.name != "SGD":
            entries["step"] = step
        prediction.states[id(slot)] = entries

    # ---- what was done ----

    def problem_before(self, memory):
        """What differs from a world in which nothing was done; None if nothing does."""
        changed = memory.changed()
        if changed:
            return f"memory was written: {self.whose(changed)}"
        return self.structure_problem({})

    def problem_after(self, memory, prediction):
        """What differs from a world in which the step was done right; None if nothing does."""
        changed = memory.changed([array for array, _ in prediction.written])
        if changed:
            return f"memory was written that is not the step's: {self.whose(changed)}"
        for array, values in prediction.written:
            wrong = values.problem(array)
            if wrong:
                return f"{self.whose([array])} {wrong}"
        return self.structure_problem(prediction.states)

    def structure_problem(self, states):
        """What differs in groups, arrays and state from what is right."""
        groups = self.opt.param_groups
        if len(groups) != len(self.groups):
            return f"{len(groups)} groups where {len(self.groups)} are right"
        for i, (group, right) in enumerate(zip(groups, self.groups)):
            if [*map(id, group["params"])] != [*map(id, right["params"])]:
                return f"group {i} lists other parameters"
            for name in right:
                if name != "params" and not _same(group.get(name), right[name]):
                    return f"group {i} has {name}={group.get(name)!r} instead of {right[name]!r}"
        for slot in self.slots:
            if slot.p.data is not slot.array:
                return f"{slot.p.name} has another array"
            if slot.p.grad is not slot.grad:
                return f"{slot.p.name} has another gradient"
            wrong = self._state_problem(slot, states.get(id(slot), slot.state))
            if wrong:
                return f"the state of {slot.p.name} {wrong}"
        if {id(p) for p in self.opt.state} - {id(slot.p) for slot in self.slots}:
            return "there is state for unknown parameters"
        return None

    def _state_problem(self, slot, right):
        found = self.entries(slot)
        if found.keys() != right.keys():
            return f"has {sorted(found)} where {sorted(right)} is right"
        for name, value in right.items():
            if isinstance(value, Values):
                wrong = value.problem(found[name])
                if wrong:
                    return f"{name!r} {wrong}"
            elif isinstance(value, np.ndarray):
                if found[name] is not value:
                    return f"{name!r} is another array"
            elif found[name] is not value and (
                type(found[name]) is not type(value) or found[name] != value
            ):
                return f"{name!r} is {found[name]!r} where {value!r} is right"
        return None

    def entries(self, slot):
        return dict(self.opt.state[slot.p].items()) if slot.p in self.opt.state else {}

    def adopt(self, prediction):
        """Go on from a step that was done right."""
        for slot in self.slots:
            if id(slot) in prediction.states:
                found = self.entries(slot)
                slot.state = {name: found[name] for name in prediction.states[id(slot)]}

    def adopt_all(self):
        """Take what there is for what is right."""
        for slot in self.slots:
            slot.array, slot.grad, slot.state = slot.p.data, slot.p.grad, self.entries(slot)
        self.note_groups()

    def whose(self, arrays):
        """Names of what lies in some memory."""
        names = []
        for array in arrays:
            for slot in self.slots:
                every = {"the array": slot.array, "the gradient": slot.grad, **slot.state}
                for what, other in every.items():
                    if isinstance(other, np.ndarray) and root(other) is root(array):
                        names.append(f"{what} of {slot.p.name}")
        return ", ".join(dict.fromkeys(names)) or "an array that is not in use any more"


def _same(a, b):
    return a is b or (type(a) is type(b) and (a == b or (a != a and b != b)))
