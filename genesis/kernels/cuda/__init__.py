"""Launch rules on NVIDIA GPUs: each launch is one grid over the chunks of a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import buffers, cuda_driver
from .. import transforms
from ..reductions import EPSILON
from . import launching, streams, templates

if TYPE_CHECKING:
    from ..combining import OfAll
    from ..sums import Summing, Sums
    from ..table import Table

cuda = cuda_driver.compiler()

CHUNK = 4096
"""Elements in a chunk: 6,000 of them for 25 million parameters, enough for the last wave of blocks
to be a small part of all."""


class DeviceTable:
    """The device's copy of a table, and the stream on which kernels work through it.

    Nothing here waits for the device: small tables go to it in the order of the stream, numbers with
    the launch itself.
    """

    def __init__(self, table: Table):
        self.table = table
        self.device = streams.device(table.device)
        with self.device:
            self.stream = streams.queue(table.stream)
            if table.stream is not None:
                # State was created on the default stream.
                streams.order(streams.queue(None), self.stream)
            self._addresses = cuda.to_device(table.addresses, stream=self.stream)
            self._chunks = cuda.to_device(table.chunks, stream=self.stream)
        table.on_change = self._upload

    def _upload(self, rows: np.ndarray) -> None:
        """Send the changed rows of the table, and those between them, to the device."""
        if not len(rows):
            return
        first, last = int(rows[0]), int(rows[-1]) + 1
        changed = self.table.addresses[first:last]
        with self.device:
            if cuda_driver.SIMULATED:
                self._addresses[first:last].copy_to_device(changed)
            else:  # a slice of a device array would take 70 us, this takes 5
                cuda_driver.need_context()
                address = self._addresses.device_ctypes_pointer.value + first * changed.strides[0]
                cuda_driver.send(changed, address, self.stream)

    def array(self, host: np.ndarray) -> Any:
        """A host array's copy on the device."""
        with self.device:
            return cuda.to_device(host, stream=self.stream)

    def launcher(
        self, kernel: tuple[Any, Any], *others: Any, by_row: bool = False
    ) -> Callable[[tuple], object]:
        """A function that launches a kernel on the table and other arrays, with given numbers.

        A block works on a chunk at a time, or `by_row` each of its threads on a row, empty ones too.
        """
        chunks, rows = len(self.table.chunks), len(self.table.sizes)
        blocks = min(-(-rows // templates.THREADS) if by_row else chunks, launching.blocks())
        if not blocks:  # nothing but empty tensors
            return lambda numbers: None
        arrays = self._addresses, self._chunks, *others
        with self.device:
            launch = launching.launcher(kernel, blocks, self.stream, arrays)

        def run(numbers: tuple) -> None:
            with self.device:
                if self.table.streams:  # of producers that may still be at work on the arrays
                    with streams.in_turn(self.stream, self.table.streams):
                        launch(numbers)
                else:
                    launch(numbers)

        return run


def on_device(table: Table) -> DeviceTable:
    """The one copy of a table on its device."""
    if table.mirror is None:
        table.mirror = DeviceTable(table)
    return table.mirror


class Update:
    """A rule bound to a table: calling it is a launch, with the scalars then in force."""

    def __init__(
        self,
        rule: Callable,
        mirror: DeviceTable,
        scalars: np.ndarray,
        numbers: int = 0,
        measures: bool = False,
    ):
        self._scalars = scalars
        storages, count = mirror.table.storages, len(scalars) - 1
        kernel = launching.compiled(rule, templates.template_of, storages, count, numbers, measures)
        results = []
        if measures:
            results = [mirror.array(np.zeros(2 * len(mirror.table.chunks), scalars.dtype))]
        self._results = results
        self._launch = mirror.launcher(kernel, *results, mirror.array(np.ones(1, scalars.dtype)))
        self.factor = mirror.array(np.ones(1, scalars.dtype))
        self._launch_clipped = mirror.launcher(kernel, *results, self.factor)
        self.clips_next = False
        """Whether the next launch multiplies gradients by what the device has in `factor`."""
        self.afterwards: list[partial] = []
        """What belongs to the update and comes behind it on the stream."""

    steady = True

    def actions(self) -> list[partial]:
        """The calls that put the update on the stream."""
        return [partial(self), *self.afterwards]

    def measured(self) -> np.ndarray:
        """See `target.Update`."""
        (results,) = self._results
        return buffers.host_copy(results).astype(np.float64).reshape(-1, 2)

    def __call__(self) -> None:
        launch = self._launch_clipped if self.clips_next else self._launch
        self.clips_next = False
        launch(tuple(self._scalars))


class Summed:
    """A rule that needs to know sums: a launch that finds them by chunk, one by row, and the update.

    Attributes:
        factor: see `Update`.
    """

    def __init__(
        self,
        summing: Summing,
        mirror: DeviceTable,
        scalars: np.ndarray,
        has_masters: bool,
        clips: bool,
        update: Update,
    ):
        table, count, sums = mirror.table, len(scalars) - 1, summing.sums
        storages = table.storages
        self._scalars, self._wide = scalars, summing.scalars
        self._update, self.factor = update, update.factor
        self._sums, self._held = sums, summing
        master = storages[-1] if has_masters else None
        results = mirror.array(np.zeros(max(1, len(table.chunks) * sums.summed), scalars.dtype))
        self._results = results
        self._sum_up = self._sum_up_clipped = None
        if sums.summed:
            own = sums.states, sums.early + sums.scalars
            summand = templates.summand_of(sums.summand, *own, master)
            template = templates.sum_template_of
            kernel = launching.compiled(
                summand, template, storages, count, sums.summed, clips, sums.early
            )
            one = mirror.array(np.ones(1, scalars.dtype))
            self._sum_up = mirror.launcher(kernel, results, one)
            self._sum_up_clipped = mirror.launcher(kernel, results, self.factor)
        sizes = np.array(table.sizes, np.float64)
        self._rows = np.searchsorted(table.chunks[:, 0], np.arange(len(sizes) + 1))
        _, kept = summing.kept
        places = np.array([kept, 0 if summing.of_all is None else summing.of_all.address])
        arrays = self._rows.astype(np.int64), sizes, places
        arrays = results, *map(mirror.array, arrays)
        # What goes through rows is known by numbers alone: functions are no part of a key.
        shape = sums._replace(summand=None, finish=None, begin=None, carry=None)  # type: ignore[arg-type]
        kernel = launching.compiled(
            sums.finish, templates.finish_template_of, storages, count, shape
        )
        self._finish = mirror.launcher(kernel, *arrays, by_row=True)
        self._begin = None
        if sums.begin is not None:
            kernel = launching.compiled(
                sums.begin, templates.begin_template_of, storages, count, shape
            )
            self._begin = mirror.launcher(kernel, *arrays, by_row=True)

    steady = True

    @property
    def clips_next(self) -> bool:
        return self._update.clips_next

    @clips_next.setter
    def clips_next(self, clips: bool) -> None:
        self._update.clips_next = clips

    def pieces(self) -> np.ndarray:
        """See `target.SummedUpdate`."""
        sums, size = self._sums, self._scalars.itemsize
        stride = size * sums.summed
        found = np.empty((len(self._rows) - 1, 4), np.int64)
        begins = buffers.view(self._results).ctypes.data + size * sums.totals
        found[:, 0] = begins + stride * self._rows[:-1]
        found[:, 1] = np.diff(self._rows)
        found[:, 2:] = stride, size
        return found

    def summing(self) -> list[partial]:
        return [partial(self._sum)]

    def updating(self) -> list[partial]:
        return [partial(self._finish_rows), *self._update.actions()]

    def actions(self) -> list[partial]:
        """The calls that put all of it on the stream."""
        return [*self.summing(), *self.updating()]

    def measured(self) -> np.ndarray:
        """See `target.Update`."""
        return self._update.measured()

    def _sum(self) -> None:
        if self._begin is not None:
            self._begin(tuple(self._wide))
        sum_up = self._sum_up_clipped if self.clips_next else self._sum_up
        if sum_up is not None:
            sum_up(tuple(self._scalars))

    def _finish_rows(self) -> None:
        self._finish(tuple(self._wide))


class Reduction:
    """A reduction bound to a table's first column; its results, one a chunk, are on the device."""

    def __init__(self, reduction: Callable, mirror: DeviceTable, start: float, exponent: float):
        table = mirror.table
        kind = np.dtype(table.arithmetic).type
        self.results = mirror.array(np.zeros(len(table.chunks), kind))
        kernel = launching.compiled(
            reduction, templates.reduction_template_of, table.storages, table.arithmetic
        )
        self._launch = mirror.launcher(kernel, self.results)
        self._scalars = kind(start), kind(exponent)

    def launch(self) -> None:
        """Put the reduction on the stream."""
        self._launch(self._scalars)

    def __call__(self) -> np.ndarray:
        """The results on the host, as float64; waits for them."""
        self.launch()
        return buffers.host_copy(self.results).astype(np.float64)


class Clip:
    """Clips the norm that the gradients of several updates have together, all on the device.

    One launch for each table reduces its gradients, one more turns the results into the factor that
    the updates then find on the device. The host learns the norm when it asks for it.
    """

    def __init__(self, updates: list[Update], reductions: list[Reduction], mirror: DeviceTable):
        self._updates, self._reductions = updates, reductions
        kind = reductions[0].results.dtype
        self._kind = kind.type
        self._norm = mirror.array(np.zeros(1, kind))
        views = [buffers.view(reduction.results) for reduction in reductions]
        sums = [[view.ctypes.data, view.size] for view in views]
        factors = [buffers.view(update.factor).ctypes.data for update in updates]
        arrays = mirror.array(np.array(sums, np.int64)), mirror.array(np.array(factors, np.int64))
        self._device = mirror.device
        with self._device:
            kernel = launching.compiled_for(kind.name, templates.clip_template_of)
            self._launch = launching.launcher(kernel, 1, mirror.stream, (*arrays, self._norm))

    def __call__(self, max_norm: float) -> Callable[[], float]:
        """Put everything on the stream; returns a function that waits for the norm."""
        for reduction in self._reductions:
            reduction.launch()
        numbers = max_norm, EPSILON, 0.0, 1.0
        with self._device:
            self._launch(tuple(self._kind(number) for number in numbers))
        for update in self._updates:
            update.clips_next = True
        return lambda: float(buffers.host_copy(self._norm)[0])


def bind(
    rule: Callable,
    table: Table,
    scalars: np.ndarray,
    *,
    copy: str | None = None,
    averages: bool = False,
    clips: bool = False,
    moments: np.ndarray | None = None,
    sums: Summing | None = None,
    measures: bool = False,
    zeroes: bool = False,
    at_random: bool = False,
) -> Update | Summed:
    """See `target.Target`, as for the functions below."""
    if at_random:
        raise NotImplementedError(
            "stochastic_rounding works on the CPU only: use master_weights on a GPU"
        )
    if averages:
        rule = templates.rule_with_average(rule)
    if clips:
        rule = templates.rule_with_clip(rule)
    if copy:
        rule = templates.rule_with_copy(rule, copy, table.storages[-1])
    mirror = on_device(table)
    numbers = 0 if sums is None else sums.sums.numbers
    update = Update(rule, mirror, scalars, numbers, measures)
    if zeroes:
        update.afterwards = bind_zero(table)()
    if sums is None:
        return update
    return Summed(sums, mirror, scalars, copy == "master", clips, update)


def bind_combination(pieces: np.ndarray, sums: Sums, of_all: OfAll, scalars: np.ndarray) -> partial:
    return partial(Combining(pieces, sums, of_all, scalars))


class Combining:
    """Calling it puts together sums over all tensors, see `combining.Combination`."""

    def __init__(self, pieces: np.ndarray, sums: Sums, of_all: OfAll, scalars: np.ndarray):
        self._scalars, self._of_all = scalars, of_all
        carry = templates.nothing_to_carry if sums.carry is None else sums.carry
        self._device = streams.device(of_all.device)
        with self._device:
            queue = streams.queue(of_all.stream)
            arrays = (
                cuda.to_device(pieces, stream=queue),
                cuda.to_device(np.array([of_all.address]), stream=queue),
            )
            kernel = launching.compiled(
                carry,
                templates.combine_template_of,
                sums.totals_of_all,
                sums.kept_of_all,
                sums.scalars_of_all,
            )
            self._launch = launching.launcher(kernel, 1, queue, arrays)

    def __call__(self) -> None:
        with self._device:
            self._launch(tuple(self._scalars))


def numbers(values: np.ndarray, device: str, stream: Any) -> tuple[Any, int]:
    flat = values.ravel() if values.size else np.zeros(1, values.dtype)
    with streams.device(device):
        found = cuda.to_device(flat, stream=streams.queue(stream))
    return found, buffers.view(found).ctypes.data


stream_numbered = streams.numbered


def bind_transform(
    function: Callable, table: Table, scalars: np.ndarray
) -> Callable[[], list[partial]]:
    kernel = launching.compiled(
        function, templates.transform_template_of, table.storages, scalars.dtype.name, len(scalars)
    )
    call = partial(on_device(table).launcher(kernel), tuple(scalars))
    return lambda: [call]


def bind_zero(table: Table) -> Callable[[], list[partial]]:
    return bind_transform(transforms.fill, table, np.zeros(1, table.arithmetic))


def bind_reduction(reduction: Callable, table: Table, start: float, exponent: float) -> Reduction:
    return Reduction(reduction, on_device(table), start, exponent)


def bind_clip(updates: list[Update], reductions: list[Reduction], table: Table) -> Clip:
    return Clip(updates, reductions, on_device(table))


def copying(target: np.ndarray, source: np.ndarray, stream: Any = None) -> partial:
    return partial(_copy, target, source, stream)


def _copy(target: np.ndarray, source: np.ndarray, stream: Any) -> None:
    if not target.size:
        return
    layout = buffers.layout(target)
    ends = source.ctypes.data, target.ctypes.data
    geometry = *ends, *target.shape, *source.strides, *target.strides
    producers = {view.stream for view in (target, source)} - {None}  # type: ignore[attr-defined]
    with streams.device(layout.device):
        queue = streams.queue(stream)
        blocks = min(-(-target.size // templates.THREADS), launching.blocks())
        arrays = (_uploaded(geometry, layout.device, queue),)
        kernel = launching.compiled_for(layout.dtype, templates.copy_template_of)
        launch = launching.launcher(kernel, blocks, queue, arrays)
        with streams.in_turn(queue, producers):
            launch((target.size, target.ndim))


@lru_cache(maxsize=4096)
def _uploaded(numbers: tuple[int, ...], device: str, stream: Any) -> Any:
    """Numbers as an array on the device, kept for the next step: to free it would wait for that."""
    return cuda.to_device(np.array(numbers, np.int64), stream=stream)
