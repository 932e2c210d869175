"""What a module offers that compiles kernels for one kind of device and launches them there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from .combining import OfAll
    from .sums import Summing, Sums
    from .table import AddressTable, Table


class Update(Protocol):
    """A rule bound to a table; an update takes the scalars that are then in force."""

    @property
    def steady(self) -> bool:
        """Whether `actions` always gives the same calls, so that a list of them can be kept."""

    def actions(self) -> list[partial]:
        """The calls that update every tensor, for `commit`."""

    def measured(self) -> np.ndarray:
        """For each chunk the sums of squares of how far parameters moved in the last update, and of what
        they were before it, float64, shape (chunks, 2); of an update that `measures`. Waits for a GPU.
        """


class SummedUpdate(Update, Protocol):
    """A rule bound to a table that needs to know sums."""

    def summing(self) -> list[partial]:
        """Of the calls, those that sum up; they come first."""

    def updating(self) -> list[partial]:
        """The others, before which sums over all tensors are put together."""

    def pieces(self) -> np.ndarray:
        """Where the sums over all tensors lie that `summing` finds, int64, for each row of the table.

        The address of what its first chunk came to, the number of its chunks, how many bytes lie from
        one to the next, and how many bytes a number has.
        """


class Target(Protocol):
    """What `cpu` and `cuda` offer to tables and launches; `compiling.target_named` finds them.

    Work is put on the table's stream; None stands for the default one, and for all there is on the CPU.
    """

    CHUNK: int
    """How many elements of a tensor a table's chunk has."""

    def bind(
        self,
        rule: Callable,
        table: Table | AddressTable,
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
    ) -> Update | SummedUpdate:
        """Compile a rule for a table.

        Args:
            rule: the rule.
            table: the table; if rounding is `at_random` it has keys.
            scalars: the factor on gradients and the rule's scalars, looked at when the update is made.
            copy: the table's last column holds a copy of the parameter, see `copies.with_copy`.
            averages: the last column, or the one before the copy, holds an average of the parameter, see
                `averaging.averaged`.
            clips: elements of gradients are clipped to the last scalar, see `clipping.clipped`.
            moments: the number of the update, int64 of shape (1,), for what is rounded in a way that
                follows from it. Default: None, there is nothing.
            sums: what the rule needs to know of each tensor, or of all; the table has `numbers` for it.
                Default: None, nothing.
            measures: whether the update notes how far parameters move: those of the table's second
                column, as they are stored. Default: False.
            zeroes: whether the update leaves zeros where it has read gradients. Default: False.
            at_random: what is stored as bfloat16 is rounded at random. Default: False, to the nearest.
        """

    def bind_combination(
        self, pieces: np.ndarray, sums: Sums, of_all: OfAll, scalars: np.ndarray
    ) -> partial:
        """The call that puts together sums over all tensors, see `combining.Combination`.

        Args:
            pieces: where the sums of each tensor lie, see `Update.pieces`, in the order in which tensors
                are added.
            sums, of_all: see there.
            scalars: the number of all elements, and the scalars of `carry`, looked at when the call is
                made.
        """

    def bind_transform(
        self, function: Callable, table: Table, scalars: np.ndarray
    ) -> Callable[[], list[partial]]:
        """What gives calls that replace each element `x` of a first column by `function(x, scalars)`."""

    def bind_zero(self, table: Table) -> Callable[[], list[partial]]:
        """What gives calls that fill a first column with zeros."""

    def bind_reduction(
        self, reduction: Callable, table: Table, start: float, exponent: float
    ) -> Callable[[], np.ndarray]:
        """What reduces a table's first column, each chunk to one float64, beginning with `start`."""

    @property
    def bind_clip(self) -> Callable[..., Callable[[float], Callable[[], float]]] | None:
        """What clips a common norm without the host; None where all is done by the host.

        It takes updates and reductions to sums of squares, both bound here before, and the table of
        one of them. The result, given the largest norm allowed, lets the next call of each update
        clip, and returns a function that waits for the norm.
        """

    def numbers(self, values: np.ndarray, device: str, stream: Any) -> tuple[Any, int]:
        """Memory that begins with a copy of these numbers, and its address."""

    def stream_numbered(self, number: int) -> Any:
        """The stream that CUDA knows by a number, which somebody else has made."""

    def copying(self, target: np.ndarray, source: np.ndarray, stream: Any = None) -> partial:
        """The call that copies between arrays of any strides, given their views."""
