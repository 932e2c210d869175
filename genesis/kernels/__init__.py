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
from ..sparse import RowsView
from . import compiling, reductions, transforms


class _OverTable:
    """Something that runs kernels over a table of tensors."""

    def __init__(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        stream: Any,
        keys: Sequence[int] | None = None,
    ):
        device = buffers.layout(columns[0][0]).device
        self._target = compiling.target_named(device)
        self._stream = stream
        self._table = self._laid_out(columns, keys)
        self._reductions: dict[Any, Callable[[], np.ndarray]] = {}

    def _laid_out(self, columns: Sequence[Sequence[np.ndarray]], keys: Sequence[int] | None) -> Any:
        return import_module(".table", __name__).Table(columns, self._target, self._stream, keys)

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
        return self._reduction(norm_type)(), self._table.chunks[:, 0]

    def _reduction(self, norm_type: float) -> Callable[[], np.ndarray]:
        """What reduces the first column, ready to be called."""
        if norm_type not in self._reductions:
            reduction = reductions.reduction_for(norm_type)
            start = reductions.START.get(reduction, 0.0)
            self._reductions[norm_type] = self._target.bind_reduction(
                reduction, self._table, start, norm_type, self._stream
            )
        self._table.gather()
        return self._reductions[norm_type]


class Launch(_OverTable):
    """A rule, compiled, and the tensors that it is to update; kept from step to step.

    Made by `prepare`. A step is `set_scalars`, then `run()`, which updates every tensor.
    """

    def __init__(
        self,
        rule: Callable,
        columns: Sequence[Sequence[np.ndarray]],
        scalars: int,
        stream: Any,
        with_copy: bool,
        keys: Sequence[int] | None,
    ):
        super().__init__(columns, stream, keys)
        # The kernel's first scalar is the factor on gradients, then comes the number of the update
        # if it rounds at random, then the rule's own.
        self._at_random = keys is not None
        count = 1 + self._at_random + scalars
        self._scalars = np.empty(count, self._table.arithmetic)
        self._pack = Struct(f"{count}{self._scalars.dtype.char}").pack_into
        self._rule, self._with_copy = rule, with_copy
        self._bind()

    def _bind(self) -> None:
        self._clip: Any = None
        self._zero: Callable[[], object] | None = None
        self._update = update = self._target.bind(
            self._rule,
            self._table,
            self._scalars,
            self._stream,
            with_copy=self._with_copy,
            at_random=self._at_random,
        )
        self.run = self._with_copies(update)

    def refresh_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        """Take other gradients, of the same layouts, for the same tensors."""
        self._table.refresh(0, gradients)

    def set_scalars(self, scale: float, hyper: Sequence[float], moment: int = 0) -> None:
        """Set the factor on gradients and the rule's scalars, rounded once to its arithmetic.

        `moment` is the number of the update, of which only random rounding makes use.

        Raises TypeError for what is no number, OverflowError for what float32 cannot hold.
        """
        try:
            if self._at_random:
                self._pack(self._scalars.data, 0, scale, moment, *hyper)
            else:
                self._pack(self._scalars.data, 0, scale, *hyper)
        except struct_error:
            raise TypeError(f"hyper-parameters must be numbers, but they gave {hyper}") from None

    def multiply_gradients(self, factor: float) -> None:
        """Let the next `run` multiply gradients by one more factor."""
        self._scalars[0] *= factor

    def zero_gradients(self) -> bool:
        """Fill the gradients with zeros; False, and nothing is done, if they do not lie flat."""
        if self._table.has_copies:
            return False
        if self._zero is None:
            zero = np.zeros(1, self._table.arithmetic)
            self._zero = self._target.bind_transform(
                transforms.fill, self._table, zero, self._stream
            )
        self._zero()
        return True

    def clip_on_device(
        self, others: Sequence[Launch], max_norm: float
    ) -> Callable[[], float] | None:
        """Clip these launches' common norm without the host, if they are all on one GPU.

        Returns:
            A function that waits for the norm before clipping; None if this cannot be done.
        """
        launches = [self, *others]
        kinds = {
            (launch._table.device, launch._scalars.dtype, launch._stream) for launch in launches
        }
        if self._table.device == "cpu" or len(kinds) > 1:
            return None
        kept = None if self._clip is None else self._clip[0]
        reduced = [launch._reduction(2.0) for launch in launches]
        if kept != launches:
            updates = [launch._update for launch in launches]
            mirror = self._target.on_device(self._table, self._stream)
            self._clip = launches, self._target.Clip(updates, reduced, mirror)
        return self._clip[1](max_norm)


class RowLaunch(Launch):
    """The launch for one tensor with a sparse gradient: it is laid out anew for other rows."""

    def _laid_out(self, columns: Sequence[Sequence[np.ndarray]], keys: Sequence[int] | None) -> Any:
        self._columns, self._keys = columns, keys
        (gradient,), *tensors = columns
        key = None if keys is None else keys[0]
        table = import_module(".table", __name__)
        return table.RowTable(gradient, [tensor for (tensor,) in tensors], self._target, key)

    def zero_gradients(self) -> bool:
        return False

    def refresh_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        self._table = self._laid_out([gradients, *self._columns[1:]], self._keys)
        self._reductions = {}
        self._bind()


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


def clip(
    launches: Sequence[Launch], max_norm: float | None, inverse_scale: float | None = None
) -> float | Callable[[], float]:
    """Let the next `run` of all launches unscale gradients and clip their common norm.

    No gradient is written: the factor goes into the update.

    Args:
        launches: the launches whose gradients belong together.
        max_norm: the norm that unscaled gradients may have at most; None, any.
        inverse_scale: what gradients are to be multiplied by before anything else. Default: None,
            they are not scaled.

    Returns:
        The norm of the unscaled gradients before clipping; inf or NaN if any of them is. Where
        everything happens on one GPU, a function that waits for it, since nothing here does.
    """
    if launches and max_norm is not None and inverse_scale is None:
        norm = launches[0].clip_on_device(launches[1:], max_norm)
        if norm is not None:
            return norm
    reduced = [launch.reduce(2.0) for launch in launches]
    total = reductions.norm(2.0, [r for r, _ in reduced], [owners for _, owners in reduced])
    factor = 1.0 if inverse_scale is None else inverse_scale
    total *= factor
    if max_norm is not None:
        factor *= reductions.clip_factor(max_norm, total)
    for launch in launches:
        launch.multiply_gradients(factor)
    return total


def prepare(
    rule: Callable,
    columns: Sequence[Sequence[np.ndarray]],
    scalars: int,
    stream: Any = None,
    *,
    with_copy: bool = False,
    keys: Sequence[int] | None = None,
) -> Launch:
    """Compile a rule for the place where the columns lie, and lay out its launch.

    Args:
        rule: a function `(param, grad, state, hyper) -> (param, state)`, see `rules`.
        columns: the tensors: gradients, parameters, then each of the rule's state buffers, as views
            (see `buffers.view`) that share device and data type in each column. A gradient that is
            the view of a `SparseGrad` is alone in its column.
        scalars: how many numbers the rule takes apart from `hyper`.
        stream: on a GPU the stream to work on. Default: None, the default stream.
        with_copy: the last column is no state, but is to hold the new parameters in another storage
            type. Default: False.
        keys: a number for each tensor, from which follow the random bits by which bfloat16 is then
            rounded. Default: None, it is rounded to the nearest.
    """
    launch = RowLaunch if isinstance(columns[0][0], RowsView) else Launch
    return launch(rule, columns, scalars, stream, with_copy, keys)
