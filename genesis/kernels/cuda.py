"""Compile a rule for NVIDIA GPUs and launch it.

A launch is one grid over the chunks of a table. Each block works through chunks, its threads side by
side on neighbouring vectors of 16 bytes a column; elements before the first aligned one and after the
last whole vector go one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from .. import buffers, cuda_driver
from . import reductions
from .cache import keep_code
from .compiling import Kept, once
from .copies import with_copy
from .reductions import EPSILON
from .specialise import anew, announce, described, specialised

if cuda_driver.SIMULATED:
    from . import simulated as storage
else:
    from . import storage  # type: ignore[no-redef]

if TYPE_CHECKING:
    from .table import Table

cuda = cuda_driver.compiler()
device_function = storage.device_function if cuda_driver.SIMULATED else cuda.jit(device=True)


def _device_rule(rule: Callable) -> Any:
    """A rule as kernels can call it; in the simulator it is a Python function, as all it calls."""
    if cuda_driver.SIMULATED:
        return device_function(rule)
    return device_function(anew(rule, lambda function, like: device_function(function)))


CHUNK = 4096
"""Elements in a chunk: 6,000 of them for 25 million parameters, enough for the last wave of blocks
to be a small part of all."""

# In the simulator every thread is a Python thread; a few show the same logic as many.
THREADS = 4 if cuda_driver.SIMULATED else 256
BLOCKS_PER_MULTIPROCESSOR = 16

_TABLE = types.Array(types.int64, 2, "C")

# Names for which specialised kernels have functions, types and numbers (see `specialise`).
rule = combined = row_of = read = write = update_lanes = first_aligned = LANES = NUMBER = None


def update(addresses, chunks, factor, scalars):
    """Apply the rule to every element of every chunk.

    Args:
        addresses, chunks: the table, int64.
        factor: one number on the device by which gradients are multiplied, such as a clip factor.
        scalars: another such number, known to the host, and the rule's scalars.
    """
    thread = cuda.threadIdx.x
    threads = cuda.blockDim.x
    scale = scalars[0] * factor[0]
    hyper = scalars[1:]
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:  # `range` would divide, in 64 bits, to count its rounds
        start = chunks[chunk, 1]
        stop = chunks[chunk, 2]
        tensors = row_of(addresses, chunks[chunk, 0])
        first = first_aligned(tensors, start, stop)
        last = first + (stop - first) // LANES * LANES
        i = first + thread * LANES
        while i < last:
            update_lanes(tensors, i, scale, hyper)
            i += threads * LANES
        before = first - start
        single = thread
        while single < before + stop - last:
            i = start + single if single < before else last + single - before
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * scale, values[2:], hyper)
            write(tensors[1:], i, (param,) + state)
            single += threads
        chunk += cuda.gridDim.x


def transform(addresses, chunks, scalars):
    """Replace every element of the first column by what a function of it and the scalars gives."""
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        tensors = row_of(addresses, chunks[chunk, 0])
        i = chunks[chunk, 1] + cuda.threadIdx.x
        while i < chunks[chunk, 2]:
            write(tensors, i, (rule(read(tensors, i)[0], scalars),))
            i += cuda.blockDim.x
        chunk += cuda.gridDim.x


def reduce(addresses, chunks, results, scalars):
    """Reduce the first column of each chunk to one number, always in the same order.

    `scalars` are what a total begins with, and an exponent.
    """
    totals = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    start, exponent = scalars
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        tensors = row_of(addresses, chunks[chunk, 0])
        total = start
        i = chunks[chunk, 1] + thread
        while i < chunks[chunk, 2]:
            total = rule(total, read(tensors, i)[0], exponent)
            i += THREADS
        totals[thread] = total
        cuda.syncthreads()
        half = THREADS // 2
        while half > 0:
            if thread < half:
                totals[thread] = combined(totals[thread], totals[thread + half], exponent)
            cuda.syncthreads()
            half //= 2
        if thread == 0:
            results[chunk] = totals[0]
        cuda.syncthreads()
        chunk += cuda.gridDim.x


def find_clip_factor(results, factors, norm, scalars):
    """From sums of squares find the norm and the factor that clips it; for one block.

    Row by row `results` holds an address and a count of sums, and `factors` the addresses where
    the factor is wanted. `scalars` are the largest norm allowed, torch's small number beside it,
    0 and 1.
    """
    totals = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    max_norm, epsilon, zero, one = scalars
    total = zero
    for row in range(results.shape[0]):
        sums = (results[row, 0],)
        i = thread
        while i < results[row, 1]:
            total = total + read(sums, i)[0]
            i += THREADS
    totals[thread] = total
    cuda.syncthreads()
    half = THREADS // 2
    while half > 0:
        if thread < half:
            totals[thread] = totals[thread] + totals[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread == 0:
        norm[0] = rule(totals[0])
        factor = max_norm / (norm[0] + epsilon)
        if factor > one:
            factor = one
        for row in range(factors.shape[0]):
            write((factors[row],), 0, (factor,))


def copy_strided(geometry, numbers):
    """Copy an array element by element, whatever the strides of source and target.

    `geometry` holds source and target address, the shape, and the strides of both in bytes;
    `numbers` how many elements there are and how many axes.
    """
    size, axes = numbers
    step = cuda.gridDim.x * cuda.blockDim.x
    begin = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for i in range(begin, size, step):
        rest = i
        source = geometry[0]
        target = geometry[1]
        for axis in range(axes - 1, -1, -1):
            position = rest % geometry[2 + axis]
            rest = rest // geometry[2 + axis]
            source += position * geometry[2 + axes + axis]
            target += position * geometry[2 + 2 * axes + axis]
        write((target,), 0, read((source,), 0))


class DeviceTable:
    """The device's copy of a table, and the stream on which kernels work through it.

    Nothing here waits for the device: small tables go to it in the order of the stream, numbers with
    the launch itself.
    """

    def __init__(self, table: Table, stream: Any):
        self.table = table
        self.device = _device(table.device)
        with self.device:
            self.stream = _queue(stream)
            if stream is not None:
                _order(_queue(None), self.stream)  # state was created on the default stream
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

    def launcher(self, kernel: tuple[Any, Any], *others: Any) -> Callable[[tuple], object]:
        """A function that launches a kernel on the table and other arrays, with given numbers."""
        blocks = min(len(self.table.chunks), _blocks())
        if not blocks:  # nothing but empty tensors
            return lambda numbers: None
        with self.device:
            launch = _launcher(
                kernel, blocks, self.stream, (self._addresses, self._chunks, *others)
            )

        def run(numbers: tuple) -> None:
            with self.device:
                if self.table.streams:  # of producers that may still be at work on the arrays
                    with _in_turn(self.stream, self.table.streams):
                        launch(numbers)
                else:
                    launch(numbers)

        return run


def on_device(table: Table, stream: Any) -> DeviceTable:
    """The one copy of a table on its device."""
    if table.mirror is None:
        table.mirror = DeviceTable(table, stream)
    return table.mirror


class Update:
    """A rule bound to a table: calling it is a launch, with the scalars then in force."""

    def __init__(self, rule: Callable, mirror: DeviceTable, scalars: np.ndarray):
        self._scalars = scalars
        kernel = _compiled(rule, mirror.table.storages, len(scalars) - 1)
        self._launch = mirror.launcher(kernel, mirror.array(np.ones(1, scalars.dtype)))
        self.factor = mirror.array(np.ones(1, scalars.dtype))
        self._launch_clipped = mirror.launcher(kernel, self.factor)
        self.clips_next = False
        """Whether the next launch multiplies gradients by what the device has in `factor`."""

    steady = True

    def actions(self) -> list[partial]:
        """The calls that put the update on the stream."""
        return [partial(self)]

    def __call__(self) -> None:
        launch = self._launch_clipped if self.clips_next else self._launch
        self.clips_next = False
        launch(tuple(self._scalars))


class Transform:
    """A transform bound to a table's first column and its scalars."""

    def __init__(self, launch: Callable[[tuple], object], scalars: tuple):
        self._actions = [partial(launch, scalars)]

    def actions(self) -> list[partial]:
        """The calls that put the transform on the stream."""
        return self._actions


class Reduction:
    """A reduction bound to a table's first column; its results, one a chunk, are on the device."""

    def __init__(self, reduction: Callable, mirror: DeviceTable, start: float, exponent: float):
        kind = np.dtype(mirror.table.arithmetic).type
        self.results = mirror.array(np.zeros(len(mirror.table.chunks), kind))
        kernel = _compiled_reduction(reduction, mirror.table.storages, mirror.table.arithmetic)
        self._launch = mirror.launcher(kernel, self.results)
        self._scalars = kind(start), kind(exponent)

    def launch(self) -> None:
        """Put the reduction on the stream."""
        self._launch(self._scalars)

    def __call__(self) -> np.ndarray:
        """The results on the host, as float64; waits for them."""
        self.launch()
        return buffers.host_copy(self.results).astype(np.float64)


def bind(
    rule: Callable,
    table: Table,
    scalars: np.ndarray,
    stream: Any = None,
    *,
    copy: str | None = None,
    moments: np.ndarray | None = None,
) -> Update:
    """A function of no arguments that applies `rule` to a table, with the scalars then in force.

    Args: as `cpu.bind`.
    """
    if moments is not None:
        raise NotImplementedError(
            "stochastic_rounding works on the CPU only: use master_weights on a GPU"
        )
    if copy:
        rule = _with_copy(rule, copy, table.storages[-1])
    return Update(rule, on_device(table, stream), scalars)


def bind_transform(
    function: Callable, table: Table, scalars: np.ndarray, stream: Any = None
) -> Transform:
    """What replaces each element `x` of a table's first column by `function(x, scalars)`."""
    kernel = _compiled_transform(function, table.storages, scalars.dtype.name, len(scalars))
    return Transform(on_device(table, stream).launcher(kernel), tuple(scalars))


def bind_reduction(
    reduction: Callable, table: Table, start: float, exponent: float, stream: Any = None
) -> Reduction:
    """A function of no arguments that reduces a table's first column, chunk by chunk."""
    return Reduction(reduction, on_device(table, stream), start, exponent)


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
            kernel = _compiled_clip(kind.name)
            self._launch = _launcher(kernel, 1, mirror.stream, (*arrays, self._norm))

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


@Kept
def _with_copy(rule: Callable, copy: str, storage_type: str) -> Callable:
    edited = storage.edited(storage_type, False, storage.GLOBAL)
    return with_copy(rule, copy, edited, _device_rule)


def copying(target: np.ndarray, source: np.ndarray, stream: Any = None) -> partial:
    """The call that copies between device arrays of any strides, given their views."""
    return partial(_copy, target, source, stream)


def _copy(target: np.ndarray, source: np.ndarray, stream: Any) -> None:
    if not target.size:
        return
    layout = buffers.layout(target)
    ends = source.ctypes.data, target.ctypes.data
    geometry = *ends, *target.shape, *source.strides, *target.strides
    producers = {view.stream for view in (target, source)} - {None}  # type: ignore[attr-defined]
    with _device(layout.device):
        queue = _queue(stream)
        blocks = min(-(-target.size // THREADS), _blocks())
        arrays = (_uploaded(geometry, layout.device, queue),)
        launch = _launcher(_compiled_copy(layout.dtype), blocks, queue, arrays)
        with _in_turn(queue, producers):
            launch((target.size, target.ndim))


@lru_cache(maxsize=4096)
def _uploaded(numbers: tuple[int, ...], device: str, stream: Any) -> Any:
    """Numbers as an array on the device, kept for the next step: to free it would wait for that."""
    return cuda.to_device(np.array(numbers, np.int64), stream=stream)


@contextmanager
def _in_turn(stream: Any, others: set[int]) -> Iterator[None]:
    """Put work on `stream` after what is on other streams now, and before what comes there."""
    external = [cuda.external_stream(other) for other in others if other != _handle(stream)]
    for other in external:
        _order(other, stream)
    yield
    for other in external:
        _order(stream, other)


def _order(first: Any, then: Any) -> None:
    """Let what is put on stream `then` wait for what is on stream `first` now."""
    event = cuda.event() if cuda_driver.SIMULATED else cuda.event(timing=False)
    event.record(first)
    event.wait(then)


@lru_cache(maxsize=None)
def _default_stream() -> Any:
    return cuda.default_stream()


def _queue(stream: Any) -> Any:
    """The stream, which for None is the default one.

    As an object: the 0 by which numba-cuda knows it too would make each copy wait for the device.
    """
    return _default_stream() if stream is None else stream


def _handle(stream: Any) -> int:
    """A stream's number as `__cuda_array_interface__` gives it, where 1 is the default stream."""
    return int(getattr(stream, "handle", 0) or 1)


def _device(name: str) -> Any:
    """A context in which a device is the current one."""
    if len(cuda.gpus) == 1:
        return nullcontext()
    return cuda.gpus[int(name.partition(":")[2])]


def _blocks() -> int:
    """How many blocks keep every multiprocessor of the current device busy."""
    if cuda_driver.SIMULATED:
        return 2
    return BLOCKS_PER_MULTIPROCESSOR * cuda.get_current_device().MULTIPROCESSOR_COUNT


@Kept
def _compiled(rule: Callable, storages: tuple[str, ...], scalars: int) -> Any:
    template, signature = template_of(rule, storages, scalars)
    return _compile(template, signature)


def template_of(
    rule: Callable, storages: tuple[str, ...], scalars: int
) -> tuple[Callable, types.Type]:
    """The update kernel for a rule and storage types, to be compiled, and its signature."""
    number = storage.arithmetic(storages[1])
    device_rule = _device_rule(rule)
    names = {
        "rule": device_rule,
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages, number, storage.GLOBAL),
        "write": storage.writer(storages[1:], number, storage.GLOBAL),
        "first_aligned": storage.first_aligned(storages),
        "update_lanes": storage.lane_updater(device_rule, storages, number),
        "LANES": storage.lanes(storages),
    }
    signature = types.void(
        _TABLE, _TABLE, types.Array(number, 1, "C"), types.UniTuple(number, 1 + scalars)
    )
    return specialised(update, described(rule, storages), names), signature


@Kept
def _compiled_transform(
    function: Callable, storages: tuple[str, ...], arithmetic: str, scalars: int
) -> Any:
    return _compile(*transform_template_of(function, storages, arithmetic, scalars))


def transform_template_of(
    function: Callable, storages: tuple[str, ...], arithmetic: str, scalars: int
) -> tuple[Callable, types.Type]:
    """The kernel that transforms a first column, to be compiled, and its signature."""
    number = getattr(types, arithmetic)
    names = {
        "rule": _device_rule(function),
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages[:1], number, storage.GLOBAL),
        "write": storage.writer(storages[:1], number, storage.GLOBAL),
    }
    signature = types.void(_TABLE, _TABLE, types.UniTuple(number, scalars))
    name = f"transform_in_{arithmetic}_{described(function, storages)}"
    return specialised(transform, name, names), signature


@Kept
def _compiled_reduction(reduction: Callable, storages: tuple[str, ...], arithmetic: str) -> Any:
    return _compile(*reduction_template_of(reduction, storages, arithmetic))


def reduction_template_of(
    reduction: Callable, storages: tuple[str, ...], arithmetic: str
) -> tuple[Callable, types.Type]:
    """The kernel that reduces a first column, to be compiled, and its signature."""
    number = getattr(types, arithmetic)
    names = {
        "rule": _device_rule(reduction),
        "combined": device_function(reductions.COMBINED.get(reduction, reductions.added)),
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages[:1], number, storage.GLOBAL),
        "NUMBER": number,
    }
    results = types.Array(number, 1, "C")
    signature = types.void(_TABLE, _TABLE, results, types.UniTuple(number, 2))
    name = f"reduce_in_{arithmetic}_{described(reduction, storages)}"
    return specialised(reduce, name, names), signature


@once
def _compiled_clip(kind: str) -> Any:
    return _compile(*clip_template_of(kind))


def clip_template_of(kind: str) -> tuple[Callable, types.Type]:
    """The kernel that finds a clip factor, to be compiled, and its signature."""
    number = getattr(types, kind)
    names = {
        "rule": device_function(reductions.root),
        "read": storage.reader((kind,), number, storage.GLOBAL),
        "write": storage.writer((kind,), number, storage.GLOBAL),
        "NUMBER": number,
    }
    signature = types.void(
        _TABLE,
        types.Array(types.int64, 1, "C"),
        types.Array(number, 1, "C"),
        types.UniTuple(number, 4),
    )
    return specialised(find_clip_factor, f"find_clip_factor_{kind}", names), signature


@once
def _compiled_copy(dtype: str) -> Any:
    return _compile(*copy_template_of(dtype))


def copy_template_of(dtype: str) -> tuple[Callable, types.Type]:
    """The kernel that copies between strides, to be compiled, and its signature."""
    number = storage.arithmetic(dtype)
    names = {
        "read": storage.reader((dtype,), number, storage.GLOBAL),
        "write": storage.writer((dtype,), number, storage.GLOBAL),
    }
    signature = types.void(types.Array(types.int64, 1, "C"), types.UniTuple(types.int64, 2))
    return specialised(copy_strided, f"copy_{dtype}", names), signature


def _compile(function: Callable, signature: types.Type) -> tuple[Any, Any]:
    """A kernel, and its one compiled form (the simulator has none)."""
    kernel = cuda.jit(function)
    if cuda_driver.SIMULATED:
        return kernel, None
    from numba.cuda.dispatcher import CUDACache

    keep_code(kernel, CUDACache)
    announce()
    return kernel, kernel.compile(signature)


def _launcher(
    kernel: tuple[Any, Any], blocks: int, stream: Any, arrays: tuple
) -> Callable[[tuple], object]:
    """A function that launches a kernel on these arrays and a tuple of numbers.

    The numbers must have the type for which the kernel was compiled.
    """
    dispatcher, compiled = kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba-cuda warns of small grids; small models need them
        configured = dispatcher[blocks, THREADS, stream]
    if compiled is None:
        return lambda numbers: configured(*arrays, numbers)
    # Straight to the compiled form: the dispatcher would look at the type of every argument.
    shape = configured.griddim, configured.blockdim, configured.stream
    try:
        return _prepared(compiled, shape, arrays)
    except (AttributeError, ImportError, TypeError):  # another version of numba-cuda
        return lambda numbers: compiled.launch((*arrays, numbers), *shape)


def _prepared(compiled: Any, shape: tuple, arrays: tuple) -> Callable[[tuple], object]:
    """What `compiled.launch` does, with all done beforehand that is the same each time.

    For AdamW it takes 6 us rather than 30.
    """
    from cuda.core import LaunchConfig, launch

    grid, block, stream = shape
    config = LaunchConfig(grid=grid, block=block)
    function = compiled.library.get_cufunc().kernel
    fixed: list[Any] = []
    for kind, array in zip(compiled.argument_types, arrays):
        compiled._prepare_args(kind, array, stream, [], fixed)

    def run(numbers: tuple, kept: tuple = arrays) -> None:  # `fixed` holds but their addresses
        cuda_driver.need_context()
        launch(stream, config, function, *fixed, *numbers)

    return run
