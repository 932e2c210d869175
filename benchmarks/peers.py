"""The same update by genesis and by what else a user could pick: torch, optax, plain NumPy.

`trainer(name, case, shapes)` gives any of them one form: a few methods of no arguments. A peer that is
not installed, or lacks an optimizer, raises `Missing` with the reason, so that it can be reported.

Everyone gets the same numbers, in arrays that it allocates itself as its users' arrays are. Gradients
hold random numbers: zeros would in time make denormals of the averages, and these are slow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import genesis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cases import CASES, Case
from packages import PEERS as PEERS_IN_PACKAGES
from reference import REFERENCES

Shapes = Sequence[tuple[int, ...]]

MAX_NORM = 1.0
NO_LIMIT = 1e6
"""A norm that is never reached, so that nothing is left to do once it is known."""

ADAMW = Case("AdamW", {})

SCALE = 1024.0
"""A loss scale, for workloads that unscale."""

GRADIENT = 0.01
"""The size of gradients: their norm is far above MAX_NORM, so that clipping has to scale."""


class Missing(Exception):  # noqa: N818  (a peer being absent is no error)
    """A peer cannot do a piece of work here; the message says why."""


@lru_cache(maxsize=1)
def _noise(size: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(size, np.float32) * np.float32(GRADIENT)


def gradients(shapes: Shapes) -> list[np.ndarray]:
    """The gradients that everyone gets, freshly allocated."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    noise = _noise(sum(sizes))
    stops = np.cumsum(sizes)
    return [
        noise[stop - size : stop].reshape(shape).copy()
        for shape, size, stop in zip(shapes, sizes, stops)
    ]


def module(name: str) -> ModuleType:
    """Import a peer's module."""
    try:
        return __import__(name)
    except ImportError as error:
        raise Missing(f"{name} is not installed ({error})") from None


class Trainer:
    """Parameters of some shapes with gradients, and an optimizer of one kind for them.

    A method that a peer cannot offer raises `Missing`.
    """

    def step(self) -> None:
        """One update, with gradients that are there."""
        raise NotImplementedError

    def fresh(self) -> None:
        """Hand over gradients in other arrays than those of the last step."""
        raise Missing("has no fresh gradients")

    def refill(self) -> None:
        """Fill the gradients' arrays again with what they held."""

    def clip(self) -> None:
        """Clip the gradients' norm in place."""
        raise Missing("has no clipping")

    def clip_within(self) -> None:
        """The same for a norm that is within the limit."""
        raise Missing("has no clipping")

    def clip_step_zero(self) -> None:
        """A step with clipped gradients, which then are zeros."""
        raise Missing("has no clipping")

    def scaled_clip_step_zero(self) -> None:
        """The same where a loss scale has to be divided out, and inf and NaN to be noticed."""
        raise Missing("has no loss scaling")

    def zero(self) -> None:
        """Fill the gradients with zeros."""
        raise Missing("has no zeroing")


class Genesis(Trainer):
    """genesis itself.

    Args:
        case: optimizer and hyper-parameters.
        shapes: the parameters' shapes.
        dtype: the parameters' and gradients' data type.
        **options: more keyword arguments for the optimizer.
    """

    def __init__(self, case: Case, shapes: Shapes, dtype: Any = np.float32, **options: Any):
        self._shapes = shapes
        self._dtype = np.dtype(dtype)
        self.params = [genesis.Parameter(np.full(shape, 1.0, self._dtype)) for shape in shapes]
        self._sets: list[list[np.ndarray]] = []
        for param, grad in zip(self.params, self._gradients()):
            param.grad = grad
        self.optimizer = case.make(self.params, **options)
        self._source: list[np.ndarray] = []
        self._scaler: Any = None

    def _gradients(self) -> list[np.ndarray]:
        return [grad.astype(self._dtype, copy=False) for grad in gradients(self._shapes)]

    def step(self) -> None:
        self.optimizer.step()

    def fresh(self) -> None:
        if not self._sets:
            self._sets = [self._gradients() for _ in range(2)]
        self._sets.reverse()
        for param, grad in zip(self.params, self._sets[0]):
            param.grad = grad

    def refill(self) -> None:
        self._source = self._source or self._gradients()
        for param, grad in zip(self.params, self._source):
            np.copyto(param.grad, grad)

    def clip(self) -> None:
        genesis.nn.utils.clip_grad_norm_(self.params, MAX_NORM)

    def clip_within(self) -> None:
        genesis.nn.utils.clip_grad_norm_(self.params, NO_LIMIT)

    def clip_step_zero(self) -> None:
        self.optimizer.step(max_norm=MAX_NORM, zero_grad=True)

    def scaled_clip_step_zero(self) -> None:
        if self._scaler is None:
            if not hasattr(genesis, "amp") or not hasattr(genesis.amp, "GradScaler"):
                raise Missing("genesis.amp.GradScaler does not exist yet")
            self._scaler = genesis.amp.GradScaler(init_scale=SCALE)
        self._scaler.step(self.optimizer, max_norm=MAX_NORM, zero_grad=True)
        self._scaler.update()

    def zero(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)

    @property
    def columns(self) -> list[list[np.ndarray]]:
        """The arrays that a step moves: gradients, parameters, each state buffer; after a step."""
        states = [self.optimizer.state[param] for param in self.params]
        names = [name for name, value in states[0].items() if isinstance(value, np.ndarray)]
        return [
            [param.grad for param in self.params],
            [param.data for param in self.params],
            *([state[name] for state in states] for name in names),
        ]


class Torch(Trainer):
    """torch on the CPU, on as many threads as genesis.

    Args:
        case, shapes: as for genesis.
        path: "for-loop", "foreach" or "fused".
        dtype: the name of the parameters' data type.
    """

    def __init__(self, case: Case, shapes: Shapes, path: str, dtype: str = "float32"):
        self._torch = torch = module("torch")
        torch.set_num_threads(genesis.get_num_threads())
        self._check(case)
        self._shapes = shapes
        self._dtype = getattr(torch, dtype)
        self._foreach = path != "for-loop"
        self.params = [torch.ones(shape, dtype=self._dtype, requires_grad=True) for shape in shapes]
        self.optimizer = self._make(case, path)
        self._sets: list[list[Any]] = []
        for param, grad in zip(self.params, self._gradients()):
            param.grad = grad
        self._source: list[Any] = []
        self._scaler: Any = None

    def _check(self, case: Case) -> None:
        """Raise `Missing` unless there is such an optimizer."""
        if case.peer != "torch" or not hasattr(self._torch.optim, case.name):
            raise Missing(f"torch has no {case.name}")

    def _make(self, case: Case, path: str) -> Any:
        options = {
            "for-loop": {"foreach": False},
            "foreach": {"foreach": True},
            "fused": {"fused": True},
        }
        make = getattr(self._torch.optim, case.name)
        try:
            return make(self.params, **case.hyper, **options[path])
        except TypeError as error:
            if path != "for-loop" or "foreach" not in str(error):
                raise Missing(f"torch's {case.name} has no {path} path") from None
            return make(self.params, **case.hyper)
        except RuntimeError as error:
            raise Missing(f"torch's {case.name} refuses {path}: {error}") from None

    def _gradients(self) -> list[Any]:
        torch = self._torch
        return [
            torch.empty(grad.shape, dtype=self._dtype).copy_(torch.from_numpy(grad))
            for grad in gradients(self._shapes)
        ]

    def step(self) -> None:
        self.optimizer.step()

    def fresh(self) -> None:
        if not self._sets:
            self._sets = [self._gradients() for _ in range(2)]
        self._sets.reverse()
        for param, grad in zip(self.params, self._sets[0]):
            param.grad = grad

    def refill(self) -> None:
        self._source = self._source or self._gradients()
        self._torch._foreach_copy_([param.grad for param in self.params], self._source)

    def clip(self, max_norm: float = MAX_NORM) -> None:
        clip = self._torch.nn.utils.clip_grad_norm_
        clip(self.params, max_norm, foreach=self._foreach)

    def clip_within(self) -> None:
        self.clip(NO_LIMIT)

    def clip_step_zero(self) -> None:
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def scaled_clip_step_zero(self) -> None:
        if self._scaler is None:
            self._scaler = self._torch.amp.GradScaler("cpu", init_scale=SCALE)
            self._scaler.scale(self._torch.zeros(()))  # makes it ready
        self._scaler.unscale_(self.optimizer)
        self.clip()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=False)

    def zero(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)


class UnderTorch(Torch):
    """genesis as torch's users have it: `genesis.torch` on torch's tensors."""

    def __init__(self, case: Case, shapes: Shapes):
        super().__init__(case, shapes, "genesis")

    def _make(self, case: Case, path: str) -> Any:
        module("genesis.torch")
        return getattr(genesis.torch, case.name)(self.params, **case.hyper, strict=True)

    def clip(self, max_norm: float = MAX_NORM) -> None:
        genesis.nn.utils.clip_grad_norm_(self.params, max_norm)

    @property
    def columns(self) -> list[list[np.ndarray]]:
        """The arrays that a step moves: gradients, parameters, each state buffer; after a step."""
        states = [self.optimizer.state.get(param, {}) for param in self.params]
        names = [name for name, value in states[0].items() if value.shape == self.params[0].shape]
        columns = [
            [param.grad for param in self.params],
            self.params,
            *([state[name] for state in states] for name in names),
        ]
        return [[tensor.detach().numpy() for tensor in column] for column in columns]


class Package(Torch):
    """The package from which people take an optimizer that torch has not, on torch's tensors."""

    def __init__(self, case: Case, shapes: Shapes):
        super().__init__(case, shapes, "for-loop")

    def _check(self, case: Case) -> None:
        if case.peer in ("torch", None):
            raise Missing(f"{case.name} is not taken from a package")
        module(str(case.peer))

    def _make(self, case: Case, path: str) -> Any:
        peer = PEERS_IN_PACKAGES[case.name]
        return peer.make(self.params, {**case.hyper, **peer.apart})


_OPTAX: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "SGD": lambda o, h: o.sgd(h["lr"], h["momentum"] or None, h["nesterov"]),
    "Adam": lambda o, h: o.adam(h["lr"], *h["betas"], h["eps"]),
    "AdamW": lambda o, h: o.adamw(h["lr"], *h["betas"], h["eps"], weight_decay=h["weight_decay"]),
    "RMSprop": lambda o, h: o.rmsprop(h["lr"], h["alpha"], h["eps"]),
    "Adagrad": lambda o, h: o.adagrad(h["lr"], h["initial_accumulator_value"], h["eps"]),
    "Adadelta": lambda o, h: o.adadelta(h["lr"], h["rho"], h["eps"]),
    "Adamax": lambda o, h: o.adamax(h["lr"], *h["betas"], h["eps"]),
    "NAdam": lambda o, h: o.nadam(h["lr"], *h["betas"], h["eps"]),
    "RAdam": lambda o, h: o.radam(h["lr"], *h["betas"], h["eps"]),
    "Rprop": lambda o, h: o.rprop(h["lr"], *h["etas"], *h["step_sizes"]),
    "Adafactor": lambda o, h: o.adafactor(h["lr"]),
    "Muon": lambda o, h: o.contrib.muon(h["lr"]),
}


class Optax(Trainer):
    """optax under `jax.jit`, with parameters and state donated so that they are updated in place.

    A gradient is never written: in JAX every backward pass makes new ones, so none is zeroed.
    """

    def __init__(self, case: Case, shapes: Shapes):
        self._optax = optax = module("optax")
        self._jax = jax = module("jax")
        if case.name not in _OPTAX:
            raise Missing(f"optax has no {case.name}")
        dummy = [genesis.Parameter(np.zeros((2, 2), np.float32))]
        transformation = _OPTAX[case.name](optax, case.make(dummy).defaults)
        self._shapes = shapes
        self._transformation = transformation
        self._params = tuple(jax.numpy.ones(shape, np.float32) for shape in shapes)
        self._state = transformation.init(self._params)
        self._sets = [tuple(jax.numpy.asarray(grad) for grad in gradients(shapes))]
        self._step = self._compiled(transformation)
        self._clipped: Any = None
        self._clip: Any = None

    def _compiled(self, transformation: Any) -> Callable:
        def step(params, state, grads):
            updates, state = transformation.update(grads, state, params)
            return self._optax.apply_updates(params, updates), state

        return self._jax.jit(step, donate_argnums=(0, 1))

    def step(self) -> None:
        self._params, self._state = self._step(self._params, self._state, self._sets[0])
        self._jax.block_until_ready(self._params)

    def fresh(self) -> None:
        if len(self._sets) == 1:
            self._sets.append(
                tuple(self._jax.numpy.asarray(grad) for grad in gradients(self._shapes))
            )
        self._sets.reverse()

    def clip(self) -> None:
        if self._clip is None:
            clipping = self._optax.clip_by_global_norm(MAX_NORM)
            state = clipping.init(self._params)
            self._clip = self._jax.jit(lambda g: clipping.update(g, state)[0], donate_argnums=0)
        self._sets[0] = self._clip(self._sets[0])
        self._jax.block_until_ready(self._sets[0])

    def clip_step_zero(self) -> None:
        if self._clipped is None:
            optax = self._optax
            chain = optax.chain(optax.clip_by_global_norm(MAX_NORM), self._transformation)
            self._state = chain.init(self._params)
            self._clipped = self._compiled(chain)
        self._params, self._state = self._clipped(self._params, self._state, self._sets[0])
        self._jax.block_until_ready(self._params)


class PlainNumpy(Trainer):
    """The formula as one writes it down in NumPy: the tests' reference, in float32."""

    def __init__(self, case: Case, shapes: Shapes):
        if case.name not in REFERENCES:
            raise Missing(f"there is no plain NumPy {case.name}")
        self._rule = REFERENCES[case.name]
        defaults = case.make([genesis.Parameter(np.zeros((2, 2), np.float32))]).defaults
        names = self._rule.__kwdefaults__ or {}
        self._hyper = {**{k: v for k, v in defaults.items() if k in names}, **case.hyper}
        self._shapes = shapes
        self._params = [np.ones(shape, np.float32) for shape in shapes]
        self._grads = gradients(shapes)
        self._states: list[dict] = [{} for _ in shapes]
        self._count = 0

    def step(self) -> None:
        self._count += 1
        for i, (param, grad) in enumerate(zip(self._params, self._grads)):
            self._params[i], self._states[i] = self._rule(
                param, grad, self._states[i], self._count, **self._hyper
            )

    def fresh(self) -> None:
        pass  # it has no addresses to look up: fresh gradients are like any others

    def refill(self) -> None:
        for grad, source in zip(self._grads, gradients(self._shapes)):
            np.copyto(grad, source)

    def clip_within(self) -> None:
        self.clip(NO_LIMIT)

    def clip(self, max_norm: float = MAX_NORM) -> None:
        norm = float(np.sqrt(sum(float(np.vdot(grad, grad)) for grad in self._grads)))
        factor = np.float32(min(1.0, max_norm / (norm + 1e-6)))
        for grad in self._grads:
            grad *= factor

    def zero(self) -> None:
        for grad in self._grads:
            grad.fill(0)

    def clip_step_zero(self) -> None:
        self.clip()
        self.step()
        self.zero()

    def scaled_clip_step_zero(self) -> None:
        finite = True
        for grad in self._grads:
            grad *= np.float32(1 / SCALE)
            finite = finite and bool(np.isfinite(grad).all())
        if finite:
            self.clip_step_zero()


PEERS: dict[str, Callable[[Case, Shapes], Trainer]] = {
    "torch fused": lambda case, shapes: Torch(case, shapes, "fused"),
    "torch foreach": lambda case, shapes: Torch(case, shapes, "foreach"),
    "torch for-loop": lambda case, shapes: Torch(case, shapes, "for-loop"),
    "package": Package,
    "optax": Optax,
    "NumPy": PlainNumpy,
}


def trainer(name: str, case: Case, shapes: Shapes) -> Trainer:
    """The trainer of a peer or of genesis.

    Raises:
        Missing: that peer cannot do it here.
    """
    return Genesis(case, shapes) if name == "genesis" else PEERS[name](case, shapes)


NOT_ELEMENTWISE = {
    "LBFGS": "needs a closure that is called many times",
    "SparseAdam": "takes gradients of rows: see the workload of its own",
    "Muon": "takes matrices only, and is bound by their products",
    "SOAP": "is bound by products of matrices",
    "Shampoo": "is bound by products of matrices",
    "Kron": "is bound by products of matrices",
    "Adafactor": "keeps sums of rows and columns: its traffic is not that of an elementwise rule",
    "CAME": "keeps sums of rows and columns, as Adafactor",
    "AdamMini": "keeps sums of blocks",
    "GaLoreAdamW": "projects matrices, and is bound by their products",
}
"""Optimizers whose step is not one pass over memory, and why."""


def first_cases() -> dict[str, Case]:
    """Of each elementwise optimizer the first row that a peer knows, or its first; SGD with momentum."""
    found: dict[str, Case] = {}
    for case in sorted(CASES, key=lambda case: case.peer is None):  # in their order otherwise
        if case.name not in NOT_ELEMENTWISE:
            found.setdefault(case.name, case)
    found["SGD-momentum"] = Case("SGD", {"lr": 0.1, "momentum": 0.9})
    return found
