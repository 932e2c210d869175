"""Compile a rule for the CPU and launch it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...commit import assign, commit
from .. import transforms
from . import summing, updating
from .summing import Summed
from .working import Bound

if TYPE_CHECKING:
    from ..combining import OfAll
    from ..sums import Summing, Sums
    from ..table import Table


CHUNK = 16384
"""Elements in a chunk. At 28 bytes an element a chunk is 10 to 25 microseconds of work: little enough
to share out evenly, enough to make the cost of claiming it vanish."""

STREAMED = 1 << 25
"""From how many bytes on zeros go past the cache, where nobody would find them when they are read."""


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
) -> Bound | Summed:
    """See `target.Target`, as for the functions below."""
    if averages:
        rule = updating.averaging(rule)
    if clips:
        rule = updating.clipping(rule)
    if copy:
        rule = updating.copying(rule, copy, table.storages[-1], at_random)
    process = updating.update_at_random if at_random else updating.update
    arithmetic, count = scalars.dtype.name, len(scalars)
    numbers = 0 if sums is None else sums.sums.numbers
    kernel = updating.compiled(
        rule, process, table.storages, arithmetic, count, table.scattered, numbers, measures, zeroes
    )
    results = np.zeros((len(table.chunks), 2)) if measures else None
    moved = table.bytes_moved + table.bytes_of_column[0] * zeroes
    bound = Bound(kernel, table, scalars, moved, moments, results)
    if sums is None:
        return bound
    return Summed(sums, table, scalars, copy == "master", at_random, clips, bound)


def bind_combination(pieces: np.ndarray, sums: Sums, of_all: OfAll, scalars: np.ndarray) -> partial:
    carry = summing.nothing_to_carry if sums.carry is None else sums.carry
    shape = sums.totals_of_all, sums.kept_of_all, sums.scalars_of_all
    addresses = pieces.ctypes.data, len(pieces), of_all.address, scalars.ctypes.data
    call = partial(summing.combining(carry, *shape), *addresses)
    call.kept = pieces, of_all, scalars  # type: ignore[attr-defined]
    return call


def numbers(values: np.ndarray, device: str, stream: Any) -> tuple[Any, int]:
    found = values.copy()
    return found, found.ctypes.data


def bind_transform(
    function: Callable, table: Table, scalars: np.ndarray
) -> Callable[[], list[partial]]:
    first = table.storages[:1]
    kernel = updating.compiled(
        function, updating.transform, first, scalars.dtype.name, len(scalars)
    )
    return Bound(kernel, table, scalars, 2 * table.bytes_of_column[0]).actions


def bind_zero(table: Table) -> Callable[[], list[partial]]:
    zero = np.zeros(1, table.arithmetic)
    if table.bytes_of_column[0] < STREAMED:
        return bind_transform(transforms.fill, table, zero)
    kernel = updating.streaming(table.storages[0], table.arithmetic)
    return Bound(kernel, table, zero, table.bytes_of_column[0]).actions


def bind_reduction(
    reduction: Callable, table: Table, start: float, exponent: float
) -> Callable[[], np.ndarray]:
    results = np.empty(len(table.chunks))
    kernel = updating.compiled(reduction, updating.reduce, table.storages[:1], "float64", 2)
    scalars = np.array([start, exponent])
    bound = Bound(kernel, table, scalars, table.bytes_of_column[0], results=results)

    def reduced() -> np.ndarray:
        commit(bound.actions())
        return results

    return reduced


bind_clip = None  # sums are in the memory of the host, which finds the factor in no time


def stream_numbered(number: int) -> None:
    return None


def copying(target: np.ndarray, source: np.ndarray, stream: None = None) -> partial:
    return assign(target, source)
