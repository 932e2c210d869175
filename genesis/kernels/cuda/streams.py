"""Which device work goes to, and after what and before what it has its turn there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from ... import cuda_driver

cuda = cuda_driver.compiler()


@contextmanager
def in_turn(stream: Any, others: set[int]) -> Iterator[None]:
    """Put work on `stream` after what is on other streams now, and before what comes there."""
    external = [cuda.external_stream(other) for other in others if other != _handle(stream)]
    for other in external:
        order(other, stream)
    yield
    for other in external:
        order(stream, other)


def order(first: Any, then: Any) -> None:
    """Let what is put on stream `then` wait for what is on stream `first` now."""
    event = cuda.event() if cuda_driver.SIMULATED else cuda.event(timing=False)
    event.record(first)
    event.wait(then)


@lru_cache(maxsize=None)
def _default_stream() -> Any:
    return cuda.default_stream()


def queue(stream: Any) -> Any:
    """The stream, which for None is the default one.

    As an object: the 0 by which numba-cuda knows it too would make each copy wait for the device.
    """
    return _default_stream() if stream is None else stream


@lru_cache(maxsize=64)
def numbered(number: int) -> Any:
    """The stream of somebody else that CUDA knows by a number."""
    return cuda.external_stream(number)


def _handle(stream: Any) -> int:
    """A stream's number as `__cuda_array_interface__` gives it, where 1 is the default stream."""
    return int(getattr(stream, "handle", 0) or 1)


def device(name: str) -> Any:
    """A context in which a device is the current one."""
    if len(cuda.gpus) == 1:
        return nullcontext()
    return cuda.gpus[int(name.partition(":")[2])]
