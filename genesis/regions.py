"""Regions of low precision: where they are entered and left, for each thread by itself."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import numpy as np

from . import buffers

LOW = {"float16": np.dtype(np.float16), "bfloat16": buffers.BFLOAT16}
"""The types that a region may have."""


class Region(NamedTuple):
    """What holds inside a region."""

    entry: int
    """The number of the outermost region, by which parameters know how old their copies are."""
    dtype: np.dtype | None
    """The type asked for; None leaves it to the device."""
    enabled: bool


_current: ContextVar[Region | None] = ContextVar("genesis_autocast", default=None)
_entries = itertools.count(1)


def current() -> Region | None:
    """The region that this thread is in, or None outside and where casting is turned off."""
    region = _current.get()
    return region if region is not None and region.enabled else None


def leave() -> None:
    """As if no region had been entered, until the context that this is called in has ended."""
    _current.set(None)


def low_type(region: Region, device: str) -> np.dtype:
    """The type of working copies in a region, on a device."""
    return region.dtype or LOW["bfloat16" if device == "cpu" else "float16"]


def checked_type(dtype: Any) -> np.dtype:
    """A type given by name or as a NumPy type; ValueError unless it is one of `LOW`."""
    for name, low in LOW.items():
        if isinstance(dtype, str) and dtype == name:
            return low
        if not isinstance(dtype, str) and dtype in (low, low.type):
            return low
    known = ", ".join(repr(name) for name in LOW)
    raise ValueError(f"dtype must be one of {known}, but got {dtype!r}")


class autocast:  # noqa: N801, since torch's name is a lower-case one too
    """Inside, float32 parameters show themselves as read-only 16-bit copies.

    The forward and backward pass then run on the copies, while the optimizer reads and writes the
    float32 arrays, and refreshes the copies in the same pass. Outside, `parameter.data` is the
    float32 array as ever. On the CPU this halves the memory that a forward pass reads, and gives the
    numbers of a run on a GPU; NumPy's own 16-bit arithmetic is slow, so speed is to be had on GPUs.

    - Regions may be nested; the innermost one counts. Each thread has its own.
    - A copy is made anew when it is first looked at in an outermost region, since the float32 array
      may have been edited meanwhile: a pass over 6 bytes a parameter.
    - A copy is read-only: an edit raises ValueError instead of being lost.
    - Parameters that are not float32, or made with `autocast=False`, stay as they are.

    Args:
        dtype: "bfloat16", "float16" or the NumPy type. Default: None, bfloat16 on the CPU and
            float16 on a GPU.
        enabled: False makes a region in which parameters are themselves. Default: True. Setting
            `genesis.enable_autocast = False` turns all regions off.

    Raises:
        ValueError: another dtype.

    Example:
        >>> import numpy as np, genesis
        >>> p = genesis.Parameter(np.full(3, 1.001, np.float32))
        >>> with genesis.autocast("bfloat16"):
        ...     print(p.dtype, p.data[0])
        bfloat16 1
        >>> p.dtype
        dtype('float32')

    It is a decorator too:

        >>> @genesis.autocast()
        ... def forward(x):
        ...     return x * p
        >>> forward(np.ones(3, np.float16)).dtype == np.result_type(np.float16, p.data)
        True
    """

    def __init__(self, dtype: Any = None, enabled: bool = True):
        self._dtype = None if dtype is None else checked_type(dtype)
        self._enabled = bool(enabled)
        self._tokens: list[Token] = []

    def __enter__(self) -> autocast:
        outer = _current.get()
        switch = getattr(sys.modules["genesis"], "enable_autocast", True)
        entry = next(_entries) if outer is None else outer.entry
        region = Region(entry, self._dtype, self._enabled and bool(switch))
        self._tokens.append(_current.set(region))
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def cast(*args: Any, **kwargs: Any) -> Any:
            with autocast(self._dtype, self._enabled):
                return function(*args, **kwargs)

        return cast
