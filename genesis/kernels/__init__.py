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


class Launch:
    """A rule, compiled, and the tensors that it is to update; kept from step to step.

    Made by `prepare`. A step is `set_scalars`, then `run()`, which updates every tensor.
    """

    def __init__(
        self, rule: Callable, columns: Sequence[Sequence[np.ndarray]], scalars: int, stream: Any
    ):
        target = import_module(
            f".{buffers.layout(columns[1][0]).device.partition(':')[0]}", __name__
        )
        self._table = import_module(".table", __name__).Table(columns, target, stream)
        # The kernel's first scalar is the factor on gradients, the rest are the rule's own.
        self._scalars = np.empty(1 + scalars, self._table.arithmetic)
        self._pack = Struct(f"{1 + scalars}{self._scalars.dtype.char}").pack_into
        self._run = target.bind(rule, self._table, self._scalars, stream)
        self.run = self._run_with_copies if self._table.has_copies else self._run

    def _run_with_copies(self) -> None:
        self._table.gather()
        self._run()
        self._table.scatter()

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
