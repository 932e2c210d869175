"""Launches: kernels, the tensors that they work on, and the numbers that change from step to step.

The first launch for a kind of device imports its target, and Numba with it; this module does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import buffers
from ..commit import commit
from ..sparse import RowsView
from . import compiling, reductions
from .sums import Summing

if TYPE_CHECKING:
    from .combining import OfAll
    from .sums import Sums

Copy = Literal["copy", "master", None]
"""Whether a last column holds copies of the parameters, see `prepare`."""


class OverTable:
    """Something that runs kernels over a table of tensors."""

    def __init__(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        stream: Any,
        keys: Sequence[int] | None = None,
        numbers: int = 0,
        zeroes: bool = False,
        scales: Sequence[Sequence[np.ndarray]] = (),
    ):
        self._target = self._target_of(columns)
        self._stream = stream
        self._table = self._laid_out(columns, keys, numbers, zeroes, scales)
        self._reductions: dict[tuple[Callable, float], Callable[[], np.ndarray]] = {}

    def _target_of(self, columns: Sequence[Sequence[np.ndarray]]) -> Any:
        return compiling.target_named(buffers.layout(columns[0][0]).device)

    def _laid_out(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        keys: Sequence[int] | None,
        numbers: int,
        zeroes: bool,
        scales: Sequence[Sequence[np.ndarray]],
    ) -> Any:
        table = compiling.module_named("table")
        return table.Table(columns, self._target, self._stream, keys, numbers, zeroes, scales)

    def reduce(self, norm_type: float) -> tuple[np.ndarray, np.ndarray]:
        """What each chunk of the first column comes to, and the tensor that it belongs to."""
        reduction = reductions.reduction_for(norm_type)
        return self._reduction(reduction, norm_type)(), self._table.chunks[:, 0]

    @property
    def squares_may_overflow(self) -> bool:
        """Whether squares may overflow of numbers that the table's own arithmetic can hold."""
        if self._table.device == "cpu":  # where sums are float64
            return self._table.storages[0] == self._table.arithmetic == "float64"
        return self._table.storages[0] != "float16"

    def reduce_small(self) -> tuple[np.ndarray, float]:
        """Sums of squares that cannot overflow, and what the elements were multiplied by for it."""
        scale = reductions.SMALL[self._table.arithmetic]
        return self._reduction(reductions.small_squares, scale)(), scale

    def _reduction(self, reduction: Callable, exponent: float) -> Callable[[], np.ndarray]:
        """What reduces the first column, ready to be called."""
        key = reduction, exponent
        if key not in self._reductions:
            start = reductions.START.get(reduction, 0.0)
            bound = self._target.bind_reduction(reduction, self._table, start, exponent)
            self._reductions[key] = bound
        self._table.gather()
        return self._reductions[key]


class Launch(OverTable):
    """A rule, compiled, and the tensors that it is to update; kept from step to step.

    Made by `prepare`. A step is `set_scalars`, then `run()`, which updates every tensor. Where the
    update is part of something larger that is to happen whole or not at all, `gather()` comes in
    place of `run()`, and then the calls that `actions()` lists, with nothing between them.
    """

    def __init__(
        self,
        rule: Callable,
        columns: Sequence[Sequence[np.ndarray]],
        scalars: int,
        stream: Any,
        copy: Copy,
        averages: bool,
        clips: bool,
        keys: Sequence[int] | None,
        sums: Sums | None,
        kept: np.ndarray | None,
        of_all: OfAll | None,
        measures: bool = False,
        zeroes: bool = False,
        scales: Sequence[Sequence[np.ndarray]] = (),
    ):
        numbers = 0 if sums is None else sums.slots
        super().__init__(columns, stream, keys, numbers, zeroes, scales)
        # The kernel's first scalar is the factor on gradients, then come the rule's own, those of an
        # average, and the value to which gradients are clipped.
        self._scalars = np.empty(1 + scalars + 2 * averages + clips, self._table.arithmetic)
        self._pack = Struct(f"{len(self._scalars)}{self._scalars.dtype.char}").pack_into
        self._packed = self._scalars.data
        rounds = keys is not None or len(scales) > 0
        self._moments = np.zeros(1, np.int64) if rounds else None
        self._rule, self._sums = rule, None
        if sums is not None:
            if kept is None:
                kept = np.zeros((len(self._table.sizes), sums.kept))
            memory = self._target.numbers(kept, self._table.device, self._table.stream)
            wide = np.zeros(len(self._scalars))
            self._sums = Summing(sums, wide, memory, of_all)
        self._around = {
            "copy": copy,
            "averages": averages,
            "clips": clips,
            "measures": measures,
            "zeroes": zeroes,
            "at_random": keys is not None,
        }
        self._bind()

    def _bind(self) -> None:
        self._clip: Any = None
        self._zero: Any = None
        self._update = self._target.bind(
            self._rule,
            self._table,
            self._scalars,
            **self._around,
            moments=self._moments,
            sums=self._sums,
        )

    @property
    def steady(self) -> bool:
        """Whether `actions` always gives the same calls, so that a list of them can be kept."""
        writes_back = self._around["zeroes"] and self._table.has_copies  # to gradients that are new
        return self._update.steady and not writes_back

    @property
    def device(self) -> str:
        """Where the tensors are."""
        return self._table.device

    @property
    def elements(self) -> int:
        """How many elements all tensors have."""
        return sum(self._table.sizes)

    def kept(self) -> np.ndarray:
        """The numbers kept for each tensor, as they are now; on a GPU this waits for it."""
        assert self._sums is not None
        memory, _ = self._sums.kept
        shape = len(self._table.sizes), self._sums.sums.kept
        return buffers.host_copy(memory).reshape(shape)

    def pieces(self) -> np.ndarray:
        """See `target.Update`."""
        return self._update.pieces()

    @property
    def indirect(self) -> bool:
        """Whether `take_gradients` and `gather` have anything to do on the host."""
        return self._table.has_copies

    def gather(self) -> None:
        """Make ready what the update reads from copies of tensors."""
        self._table.gather()

    def once(self, columns: Sequence[Sequence[np.ndarray]]) -> list[partial]:
        """The calls that update every tensor, for `commit`, of a launch that is made for that alone.

        They keep alive all that kernels know by its address, gradients as well, and may follow others
        that write what they read.

        Args:
            columns: the tensors, as they were given to `prepare`.
        """
        gathering = self._table.gathering() if self._table.has_copies else []
        return [partial(id, (self, columns)), *gathering, *self.actions()]

    def actions(self) -> list[partial]:
        """The calls that update every tensor, for `commit`."""
        if self._sums is not None:
            return [*self.summing(), *self.updating()]
        return self.updating()

    def summing(self) -> list[partial]:
        """Of these calls those that sum up, which come first."""
        return [] if self._sums is None else self._update.summing()

    def updating(self) -> list[partial]:
        """The others, before which sums over all tensors are put together."""
        update = self._update
        actions = update.actions() if self._sums is None else update.updating()
        return [*actions, *self._table.scatter()] if self._table.has_copies else actions

    def run(self) -> None:
        """Update every tensor."""
        self._table.gather()
        commit(self.actions())

    def measured(self) -> np.ndarray:
        """How far parameters moved in the last update, by chunk, see `target.Update`."""
        return self._update.measured()

    def cells(self) -> np.ndarray:
        """Where the table can be told that gradients have moved, see `table.Table.cells`."""
        return self._table.cells()

    def take_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        """Take in what `cells` cannot say of gradients: those that do not lie flat, or on a device."""
        if self._table.device != "cpu":
            self._table.refresh(0, gradients)
        elif self._table.has_copies:
            self._table.set_sources(gradients)

    def release_gradients(self) -> None:
        """Hold no gradients that the parameters may not hold any more."""
        if self._table.has_copies:
            self._table.set_sources([None] * len(self._table.addresses))

    def refresh_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        """Take other gradients, of the same layouts, for the same tensors."""
        self._table.refresh(0, gradients)

    def set_scalars(self, scale: float, hyper: Sequence[float], moment: int = 0) -> None:
        """Set the factor on gradients and the rule's scalars, rounded once to its arithmetic.

        `moment` is the number of the update, of which only what is rounded by it makes use.

        Raises TypeError for what is no number, OverflowError for what float32 cannot hold.
        """
        try:
            self._pack(self._packed, 0, scale, *hyper)
        except struct_error:
            raise TypeError(f"hyper-parameters must be numbers, but they gave {hyper}") from None
        if self._sums is not None:
            self._sums.scalars[1:] = hyper
        if self._moments is not None:
            self._moments[0] = moment

    def multiply_gradients(self, factor: float) -> None:
        """Let the next `run` multiply gradients by one more factor."""
        self._scalars[0] *= factor

    def zero_gradients(self) -> list[partial] | None:
        """The calls that fill the gradients with zeros; None if they do not all lie flat."""
        if self._table.has_copies:
            return None
        if self._zero is None:
            self._zero = self._target.bind_zero(self._table)
        return self._zero()

    def clip_on_device(
        self, others: Sequence[Launch], max_norm: float
    ) -> Callable[[], float] | None:
        """Clip these launches' common norm without the host, if they are all on one GPU.

        Returns:
            A function that waits for the norm before clipping; None if this cannot be done.
        """
        launches = [self, *others]
        kinds = {(each._table.device, each._scalars.dtype, each._stream) for each in launches}
        if self._target.bind_clip is None or len(kinds) > 1:
            return None
        reduced = [launch._reduction(reductions.squares, 2.0) for launch in launches]
        if self._clip is None or self._clip[0] != launches:
            updates = [launch._update for launch in launches]
            self._clip = launches, self._target.bind_clip(updates, reduced, self._table)
        return self._clip[1](max_norm)


class RowLaunch(Launch):
    """The launch for one tensor with a sparse gradient: it is laid out anew for other rows."""

    def _laid_out(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        keys: Sequence[int] | None,
        numbers: int,
        zeroes: bool,
        scales: Sequence[Sequence[np.ndarray]],
    ) -> Any:
        assert not numbers  # a rule that sums takes no sparse gradients
        assert not zeroes  # nor does a step that sets them to zero
        assert not scales  # nor an update of blocks
        self._columns, self._keys = columns, keys
        (gradient,), *tensors = columns
        key = None if keys is None else keys[0]
        table = compiling.module_named("table")
        return table.RowTable(gradient, [tensor for (tensor,) in tensors], self._target, key)

    steady = False
    indirect = True

    def zero_gradients(self) -> None:
        return None

    def cells(self) -> np.ndarray:
        return np.zeros(1, np.int64)

    def take_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        if gradients[0] is not self._columns[0][0]:
            self.refresh_gradients(gradients)

    def release_gradients(self) -> None:
        """The rows of the gradient are what the table was laid out for: they stay."""

    def refresh_gradients(self, gradients: Sequence[np.ndarray]) -> None:
        self._table = self._laid_out([gradients, *self._columns[1:]], self._keys, 0, False, ())
        self._reductions = {}
        self._bind()


class FlatLaunch(Launch):
    """The launch for flat tensors of another library; made by `prepare_flat`.

    Attributes:
        addresses: for each row where its gradient, its parameter and each of its state buffers lie:
            whoever launches writes them down, calls `follow`, and keeps them alive until it is over.
    """

    def __init__(
        self,
        rule: Callable,
        sizes: Sequence[int],
        storages: Sequence[str],
        scalars: int,
        device: str,
        stream: Any,
        copy: Copy,
        averages: bool,
        keys: Sequence[int] | None,
        sums: Sums | None,
        measures: bool,
    ):
        self._sizes, self._storages, self._device = sizes, storages, device
        super().__init__(
            rule, (), scalars, stream, copy, averages, False, keys, sums, None, None, measures
        )
        self.addresses = self._table.addresses[:, : len(storages)]

    def _target_of(self, columns: Sequence[Sequence[np.ndarray]]) -> Any:
        return compiling.target_named(self._device)

    def follow(self) -> None:
        """Take over what has been written into `addresses`."""
        self._table.follow()

    def _laid_out(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        keys: Sequence[int] | None,
        numbers: int,
        zeroes: bool,
        scales: Sequence[Sequence[np.ndarray]],
    ) -> Any:
        table = compiling.module_named("table")
        return table.FlatTable(
            self._sizes, self._storages, self._target, self._device, self._stream, keys, numbers
        )


class Batch(OverTable):
    """Tensors of one device and data type that are reduced, or worked on in place.

    Args:
        tensors: their views (see `buffers.view`).
        stream: on a GPU the stream to work on. Default: None, the default stream.
    """

    def __init__(self, tensors: Sequence[np.ndarray], stream: Any = None):
        super().__init__([tensors], stream)

    def transforming(self, function: Callable, scalars: Sequence[float]) -> list[partial]:
        """The calls that replace every element `x` by `function(x, scalars)`, for `commit`.

        See `transforms`. What they read of tensors that do not lie flat is copied here and now.
        """
        values = np.array(scalars, self._table.arithmetic)
        calls = self._target.bind_transform(function, self._table, values)
        self._table.gather()
        return [*calls(), *self._table.scatter()]


class FlatBatch(Batch):
    """Flat tensors of another library, of one data type, that are reduced or worked on in place.

    Args:
        sizes: how many elements each has.
        storage: their storage type.

    Attributes:
        sizes: as given.
        addresses: where each lies, in one column: whoever launches writes that down before, and keeps
            the memory alive until it is over.
    """

    def __init__(self, sizes: Sequence[int], storage: str):
        self.sizes, self._storage = sizes, storage
        OverTable.__init__(self, (), None)
        self.addresses = self._table.addresses
        self._transforms: dict[Callable, tuple[np.ndarray, Callable]] = {}

    def transforming(self, function: Callable, scalars: Sequence[float]) -> list[partial]:
        """As a batch's; it is one of those that are kept, so that calls are made only once."""
        if function not in self._transforms:
            values = np.array(scalars, self._table.arithmetic)
            calls = self._target.bind_transform(function, self._table, values)
            self._transforms[function] = values, calls
        values, calls = self._transforms[function]
        values[:] = scalars
        return calls()

    def _target_of(self, columns: Sequence[Sequence[np.ndarray]]) -> Any:
        return compiling.target_named("cpu")

    def _laid_out(
        self,
        columns: Sequence[Sequence[np.ndarray]],
        keys: Sequence[int] | None,
        numbers: int,
        zeroes: bool,
        scales: Sequence[Sequence[np.ndarray]],
    ) -> Any:
        table = compiling.module_named("table")
        return table.FlatTable(self.sizes, [self._storage], self._target)


def prepare(
    rule: Callable,
    columns: Sequence[Sequence[np.ndarray]],
    scalars: int,
    stream: Any = None,
    *,
    copy: Copy = None,
    averages: bool = False,
    clips: bool = False,
    keys: Sequence[int] | None = None,
    sums: Sums | None = None,
    kept: np.ndarray | None = None,
    of_all: OfAll | None = None,
    measures: bool = False,
    zeroes: bool = False,
    scales: Sequence[Sequence[np.ndarray]] = (),
) -> Launch:
    """Compile a rule for the place where the columns lie, and lay out its launch.

    Args:
        rule: a function `(param, grad, state, hyper) -> (param, state)`, see `rules`.
        columns: the tensors: gradients, parameters, then each of the rule's state buffers, as views
            (see `buffers.view`) that share device and data type in each column. A gradient that is
            the view of a `SparseGrad` is alone in its column.
        scalars: how many numbers the rule takes apart from `hyper`.
        stream: on a GPU the stream to work on. Default: None, the default stream.
        copy: the last column is no state, but holds the new parameters in another storage type. Of a
            "copy" nobody reads what it held before; if it is the "master"'s copy, elements that were
            edited since the last update are taken over into the master. Default: None.
        averages: the last column, but for the copy, is an average of the new parameters over time.
            How much of it is kept, and the weight of the parameters, are two more scalars behind the
            rule's own. Default: False.
        clips: whether elements of gradients are clipped, to one more scalar behind all others. What is
            multiplied into gradients, is before. Default: False.
        keys: a number for each tensor, from which follow the random bits by which bfloat16 is then
            rounded. Default: None, it is rounded to the nearest.
        sums: what the rule needs to know of each tensor as a whole, and of all. Default: None, nothing.
        kept: the numbers kept for each tensor, float64 of shape (tensors, numbers). Default: None,
            zeros.
        of_all: where the numbers of all tensors are, if `sums` concern all. Default: None.
        measures: whether an update notes how far the parameters of the second column move, for
            `measured`. Default: False.
        zeroes: whether an update sets gradients to zero, which then are written like all else; on the
            CPU in its own pass. Default: False.
        scales: for each column of codes (see `genesis.packing`), in their order, the scales of all
            tensors; on the CPU only. Default: none. A last column of the lower halves of masters needs
            none.
    """
    launch = RowLaunch if isinstance(columns[0][0], RowsView) else Launch
    around = copy, averages, clips, keys
    known = sums, kept, of_all
    return launch(rule, columns, scalars, stream, *around, *known, measures, zeroes, scales)


def prepare_flat(
    rule: Callable,
    sizes: Sequence[int],
    storages: Sequence[str],
    scalars: int,
    *,
    device: str = "cpu",
    stream: int = 0,
    copy: Copy = None,
    averages: bool = False,
    keys: Sequence[int] | None = None,
    sums: Sums | None = None,
    measures: bool = False,
) -> FlatLaunch:
    """As `prepare`, for tensors of which only addresses are known.

    Args:
        rule: a function `(param, grad, state, hyper) -> (param, state)`, see `rules`.
        sizes: how many elements each row has, which lie flat in every column.
        storages: the storage types of gradients, parameters, and each of the rule's state buffers.
        scalars: how many numbers the rule takes apart from `hyper`.
        device: where they are. Default: "cpu".
        stream: on a GPU the stream to work on, by the number that CUDA has for it. Default: 0, the
            default stream.
        copy, averages, keys, sums, measures: see `prepare`.
    """
    queue = compiling.target_named(device).stream_numbered(stream) if stream else None
    return FlatLaunch(
        rule, sizes, storages, scalars, device, queue, copy, averages, keys, sums, measures
    )
