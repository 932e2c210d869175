"""Compile a rule for NVIDIA GPUs and launch it.

A launch is one grid over the chunks of a table. Each block works through chunks, its threads side by
side on neighbouring vectors of 16 bytes a column; elements before the first aligned one and after the
last whole vector go one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from .. import buffers, cuda_driver
from . import cpu
from .specialise import announce, described, keeps_code, specialised

if cuda_driver.SIMULATED:
    from . import simulated as storage
else:
    from . import storage  # type: ignore[no-redef]

if TYPE_CHECKING:
    from .table import Table

cuda = cuda_driver.compiler()

CHUNK = 4096
"""Elements in a chunk: 6,000 of them for 25 million parameters, enough for the last wave of blocks
to be a small part of all."""

# In the simulator every thread is a Python thread; a few show the same logic as many.
THREADS = 4 if cuda_driver.SIMULATED else 256
BLOCKS_PER_MULTIPROCESSOR = 16

addresses = cpu.addresses  # of views, which are NumPy arrays wherever their memory is


# Names for which `_compiled` and `copy` put in functions (see `specialise`).
rule = row_of = read = write = update_lanes = first_aligned = LANES = None


def update(addresses, chunks, factor, scale, hyper):
    """Apply the rule to every element of every chunk.

    Args:
        addresses, chunks: the table, int64.
        factor: one number on the device by which gradients are multiplied, such as a clip factor.
        scale: another such number, known to the host.
        hyper: the rule's scalars.
    """
    thread = cuda.threadIdx.x
    threads = cuda.blockDim.x
    scale = scale * factor[0]
    for chunk in range(cuda.blockIdx.x, chunks.shape[0], cuda.gridDim.x):
        start = chunks[chunk, 1]
        stop = chunks[chunk, 2]
        tensors = row_of(addresses, chunks[chunk, 0])
        first = first_aligned(tensors, start, stop)
        last = first + (stop - first) // LANES * LANES
        for i in range(first + thread * LANES, last, threads * LANES):
            update_lanes(tensors, i, scale, hyper)
        before = first - start
        for single in range(thread, before + stop - last, threads):
            i = start + single if single < before else last + single - before
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * scale, values[2:], hyper)
            write(tensors[1:], i, (param,) + state)


def copy_strided(geometry, size, axes):
    """Copy an array element by element, whatever the strides of source and target.

    `geometry` holds source and target address, the shape, and the strides of both in bytes.
    """
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


class Bound:
    """A kernel and the device's copy of a table: calling it is a launch.

    Nothing here waits for the device: small tables go to it in the order of the stream, numbers with
    the launch itself.
    """

    def __init__(self, rule: Callable, table: Table, scalars: np.ndarray, stream: Any):
        self._table = table
        self._scalars = scalars
        self._stream = stream
        self._device = _device(table.device)
        with self._device:
            self._addresses = cuda.to_device(table.addresses, stream=_number(stream))
            self._chunks = cuda.to_device(table.chunks, stream=_number(stream))
            self._factor = cuda.to_device(np.ones(1, scalars.dtype), stream=_number(stream))
            kernel = _compiled(rule, table.storages, len(scalars) - 1)
            blocks = min(len(table.chunks), _blocks())
            self._launch = kernel[blocks, THREADS, _number(stream)] if blocks else None
        table.on_change = self._upload

    def _upload(self, rows: np.ndarray) -> None:
        """Send the changed rows of the table, and those between them, to the device."""
        if len(rows):
            first, last = rows[0], rows[-1] + 1
            with self._device:
                part = self._addresses[first:last]
                part.copy_to_device(self._table.addresses[first:last], stream=_number(self._stream))

    def __call__(self) -> None:
        if self._launch is None:  # nothing but empty tensors
            return
        scale, *hyper = self._scalars
        with self._device:
            others = self._other_streams()
            for other in others:
                _order(other, self._stream)
            self._launch(self._addresses, self._chunks, self._factor, scale, tuple(hyper))
            for other in others:
                _order(self._stream, other)

    def _other_streams(self) -> list[Any]:
        """The streams on which producers of the arrays say that they work."""
        return [cuda.external_stream(s) for s in self._table.streams if s != _number(self._stream)]


def bind(rule: Callable, table: Table, scalars: np.ndarray, stream: Any = None) -> Bound:
    """A function of no arguments that applies `rule` to a table, with the scalars then in force."""
    return Bound(rule, table, scalars, stream)


def copy(target: np.ndarray, source: np.ndarray, stream: Any = None) -> None:
    """Copy between device arrays of any strides, given their views."""
    if not target.size:
        return
    dtype = buffers.layout(target).dtype
    ends = [source.ctypes.data, target.ctypes.data]
    with _device(buffers.layout(target).device):
        geometry = cuda.to_device(
            np.array([*ends, *target.shape, *source.strides, *target.strides], np.int64),
            stream=_number(stream),
        )
        blocks = min(-(-target.size // THREADS), _blocks())
        kernel = _compiled_copy(dtype)
        kernel[blocks, THREADS, _number(stream)](geometry, target.size, target.ndim)


def _order(first: Any, then: Any) -> None:
    """Let what is put on stream `then` wait for what is on stream `first` now."""
    event = cuda.event(timing=False)
    event.record(first or cuda.default_stream())
    event.wait(then or cuda.default_stream())


def _number(stream: Any) -> Any:
    return 0 if stream is None else stream


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


@lru_cache(maxsize=None)
def _compiled(rule: Callable, storages: tuple[str, ...], scalars: int) -> Any:
    template, signature = template_of(rule, storages, scalars)
    return _compile(template, signature)


def template_of(
    rule: Callable, storages: tuple[str, ...], scalars: int
) -> tuple[Callable, types.Type]:
    """The update kernel for a rule and storage types, to be compiled, and its signature."""
    number = storage.arithmetic(storages[1])
    device_rule = cuda.jit(device=True)(rule)
    names = {
        "rule": device_rule,
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages, number, storage.GLOBAL),
        "write": storage.writer(storages[1:], number, storage.GLOBAL),
        "first_aligned": storage.first_aligned(storages),
        "update_lanes": storage.lane_updater(device_rule, storages, number),
        "LANES": storage.lanes(storages),
    }
    table = types.Array(types.int64, 2, "C")
    signature = types.void(
        table, table, types.Array(number, 1, "C"), number, types.UniTuple(number, scalars)
    )
    return specialised(update, described(rule, storages), names, rule), signature


@lru_cache(maxsize=None)
def _compiled_copy(dtype: str) -> Any:
    number = storage.arithmetic(dtype)
    names = {
        "read": storage.reader((dtype,), number, storage.GLOBAL),
        "write": storage.writer((dtype,), number, storage.GLOBAL),
    }
    signature = types.void(types.Array(types.int64, 1, "C"), types.int64, types.int64)
    return _compile(specialised(copy_strided, f"copy_{dtype}", names), signature)


def _compile(function: Callable, signature: types.Type) -> Any:
    kernel = cuda.jit(cache=keeps_code())(function)
    if not cuda_driver.SIMULATED:
        announce()
        kernel.compile(signature)
    return kernel
