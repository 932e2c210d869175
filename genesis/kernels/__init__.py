"""Kernels: rules, and what it takes to run one over many tensors in one launch.

Nothing here knows what an optimizer is. `prepare` is the way in: it picks the target by the device on
which the tensors lie. Numba is imported when the first launch is prepared, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from struct import Struct
from struct import error as struct_error
from typing import Any

import numpy as np

from .. import buffers
from . import reductions


class _OverTable:
    """Something that runs kernels over a table of tensors."""

    def __init__(self, columns: Sequence[Sequence[np.ndarray]], stream: Any):
        device = buffers.layout(columns[0][0]).device
        self._target = import_module(f".{device.partition(':')[0]}", __name__)
        self._table = import_module(".table", __name__).Table(columns, self._target, stream)
        self._stream = stream
        self._reductions: dict[Any, Callable[[], np.ndarray]] = {}

    def _with_copies(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run` itself, or if some tensors need flat copies, a function that keeps these in step."""
        table = self._table
        if not table.has_copies:
            return run

        def run_with_copies() -> None:
            table.gather()
            run()
            table.scatter()

        return run_with_copies

    def reduce(self, norm_type: float) -> tuple[np.ndarray, np.ndarray]:
        """What each chunk of the first column comes to, and the tensor that it belongs to."""
        if norm_type not in self._reductions:
            reduction = reductions.reduction_for(norm_type)
            start = reductions.START.get(reduction, 0.0)
            self._reductions[norm_type] = self._target.bind_reduction(
                reduction, self._table, start, norm_type, self._stream
            )
        self._table.gather()
        return self._reductions[norm_type](), self._table.chunks[:, 0]


class Launch(_OverTable):
    """A rule, compiled, and the tensors that it is to update; kept from step to step.

    Made by `prepare`. A step is `set_scalars`, then `run()`, which updates every tensor.
    """

    def __init__(
        self, rule: Callable, columns: Sequence[Sequence[np.ndarray]], scalars: int, stream: Any
    ):
        super().__init__(columns, stream)
        # The kernel's first scalar is the factor on gradients, the rest are the rule's own.
        self._scalars = np.empty(1 + scalars, self._table.arithmetic)
        self._pack = Struct(f"{1 + scalars}{self._scalars.dtype.char}").pack_into
        self.run = self._with_copies(self._target.bind(rule, self._table, self._scalars, stream))

    def refresh_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        """Take other gradients, of the same layouts, for the same tensors."""
        self._table.refresh(0, gradients)

    def set_scalars(self, scale: float, hyper: Sequence[float]) -> None:
        """Set the factor on gradients and the rule's scalars, rounded once to its arithmetic.

        Raises TypeError for what is no number, OverflowError for what float32 cannot hold.
        """
        try:
            self._pack(self._scalars.data, 0, scale, *hyper)
        except struct_error:
            raise TypeError(f"hyper-parameters must be numbers, but they gave {hyper}") from None

    def multiply_gradients(self, factor: float) -> None:
        """Let the next `run` multiply gradients by one more factor."""
        self._scalars[0] *= factor


class Batch(_OverTable):
    """Tensors of one device and data type that are reduced, or worked on in place.

    Args:
        tensors: their views (see `buffers.view`).
        stream: on a GPU the stream to work on. Default: None, the default stream.
    """

    def __init__(self, tensors: Sequence[np.ndarray], stream: Any = None):
        super().__init__([tensors], stream)

    def transform(self, function: Callable, scalars: Sequence[float]) -> None:
        """Replace every element `x` by `function(x, scalars)`, see `transforms`."""
        values = np.array(scalars, self._table.arithmetic)
        run = self._target.bind_transform(function, self._table, values, self._stream)
        self._with_copies(run)()


def clip(launches: Sequence[Launch], max_norm: float) -> float:
    """Let the next `run` of all launches clip the norm that their gradients have together.

    No gradient is written: the factor goes into the update.

    Returns:
        The norm before clipping.
    """
    reduced = [launch.reduce(2.0) for launch in launches]
    total = reductions.norm(2.0, [r for r, _ in reduced], [owners for _, owners in reduced])
    for launch in launches:
        launch.multiply_gradients(reductions.clip_factor(max_norm, total))
    return total


def prepare(
    rule: Callable, columns: Sequence[Sequence[np.ndarray]], scalars: int, stream: Any = None
) -> Launch:
    """Compile a rule for the place where the columns lie, and lay out its launch.

    Args:
        rule: a function `(param, grad, state, hyper) -> (param, state)`, see `rules`.
        columns: the tensors: gradients, parameters, then each of the rule's state buffers, as views
            (see `buffers.view`) that share device and data type in each column.
        scalars: how many numbers the rule takes apart from `hyper`.
        stream: on a GPU the stream to work on. Default: None, the default stream.
    """
    return Launch(rule, columns, scalars, stream)
