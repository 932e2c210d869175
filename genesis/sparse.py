"""`SparseGrad`: the gradient of a large table of which few rows were used."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from . import buffers


class RowsView(np.ndarray):
    """The values of a `SparseGrad` in the place where a dense gradient has its view."""

    owner: SparseGrad
    indices: np.ndarray
    largest: int


class SparseGrad:
    r"""A gradient that is zero except in some rows, as of an embedding.

    It stands for the array :math:`g` of the parameter's shape with
    :math:`g_r = \sum_{i \,:\, \text{indices}_i = r} \text{values}_i`: repeated indices are summed.
    `SparseAdam`, `SGD` without momentum and weight decay, and `Adagrad` without weight decay take
    it, and then read and write only these rows of the parameter and its state.

    Args:
        indices: the rows, counted along the parameter's first axis: integers, 1-D, not negative, in
            any order. They are copied.
        values: a NumPy array of float64, float32, float16 or bfloat16 with one row for each index,
            so of shape `(len(indices), *parameter.shape[1:])`. It is shared, not copied: edits of
            its elements count. A shape or data type that is set on it later does not.

    Raises:
        TypeError: `indices` are no integers or masked, or `values` is no NumPy array of an accepted
            type.
        ValueError: `indices` is not 1-D or has a negative element, or the lengths differ. What does
            not fit a parameter is refused when it is assigned to `parameter.grad`.

    Example:
        >>> import numpy as np, genesis
        >>> table = np.zeros((5, 2))
        >>> p = genesis.Parameter(table)
        >>> p.grad = genesis.SparseGrad([3, 0, 3], np.array([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]]))
        >>> _ = genesis.optim.SGD([p], lr=1.0).step()
        >>> table
        array([[ -3.,  -4.],
               [  0.,   0.],
               [  0.,   0.],
               [-11., -22.],
               [  0.,   0.]])
    """

    __slots__ = ("_given", "_indices", "_largest", "_resize_guard", "_values")
    __array_ufunc__ = None  # `array + sparse_grad` is an error, not an array of objects

    def __init__(self, indices: Any, values: Any):
        if isinstance(indices, np.ma.MaskedArray):
            raise TypeError(
                "the indices of a SparseGrad must be a plain array, but got a masked array: "
                "take those that count, indices.compressed(), and their rows of the values"
            )
        rows = np.array(indices)  # what is checked is what is used, whoever edits the original
        if rows.size == 0 and not isinstance(indices, np.ndarray):
            rows = rows.astype(np.int64)  # [] has no integers that would tell its type
        if rows.dtype.kind not in "iu":
            raise TypeError(
                f"the indices of a SparseGrad must be integers, but got dtype {rows.dtype}"
            )
        if rows.ndim != 1:
            raise ValueError(
                f"the indices of a SparseGrad must be 1-D, but got shape {rows.shape}: "
                "for a batch, indices.ravel() and values.reshape(-1, ...)"
            )
        found = buffers.check(values, "the values of a SparseGrad")
        if isinstance(found, buffers.DeviceView):
            raise TypeError(
                "the values of a SparseGrad must be a NumPy array, but got one on "
                f"{buffers.layout(found).device}: copy it to the host"
            )
        # How the values lie is what it is now, whatever becomes of the caller's array: this view is
        # nobody else's, and NumPy refuses to resize memory while there is a weak reference to the
        # array that owns it (a view alone has no such effect).
        self._resize_guard = weakref.ref(buffers.owner_of_memory(found))
        view = np.ndarray.view(found, np.ndarray)
        if view.ndim == 0 or len(view) != len(rows):
            raise ValueError(
                f"a SparseGrad must have one row of values for each index, but got {len(rows)} "
                f"indices and values of shape {view.shape}"
            )
        if rows.size and rows.min() < 0:
            raise ValueError(
                f"the indices of a SparseGrad must not be negative, but got {rows.min()}"
            )
        largest = int(rows.max()) if rows.size else -1
        if largest > np.iinfo(np.int64).max:
            raise ValueError(f"the index {largest} of a SparseGrad is larger than any array")
        self._largest = largest
        # A kernel goes to the addresses that follow from these: nobody may change them afterwards.
        # An array over bytes cannot be made writable, and others see it through views of their own.
        self._indices = np.frombuffer(rows.astype(np.int64).tobytes(), np.int64)
        self._given, self._values = values, view

    @property
    def indices(self) -> np.ndarray:
        """The rows, int64, as given; read-only."""
        return self._indices.view()

    @property
    def values(self) -> np.ndarray:
        """The array of values, as given."""
        return self._given

    def coalesced(self) -> SparseGrad:
        """The same gradient with each row once, in ascending order.

        Returns:
            A new `SparseGrad` of float64 or, for values of at most 32 bits, float32: the sum of
            float16 numbers need be none.

        Example:
            >>> import numpy as np, genesis
            >>> grad = genesis.SparseGrad([3, 0, 3], np.array([1.0, 2.0, 10.0])).coalesced()
            >>> grad.indices, grad.values
            (array([0, 3]), array([ 2., 11.]))
        """
        rows, places = np.unique(self._indices, return_inverse=True)
        arithmetic = np.float64 if self._values.dtype == np.float64 else np.float32
        sums = np.zeros((len(rows), *self._values.shape[1:]), arithmetic)
        np.add.at(sums, places, self._values.astype(arithmetic))
        return SparseGrad(rows, sums)

    def to_dense(self, length: int) -> np.ndarray:
        """The gradient as an array of `length` rows, for an optimizer that needs it so.

        Returns:
            A new array with the dtype that `coalesced` gives its values.

        Raises:
            ValueError: an index is not less than `length`.

        Example:
            >>> import numpy as np, genesis
            >>> genesis.SparseGrad([3, 0, 3], np.array([1.0, 2.0, 10.0])).to_dense(5)
            array([ 2.,  0.,  0., 11.,  0.])
        """
        self._check_length(length)
        once = self.coalesced()
        dense = np.zeros((length, *self._values.shape[1:]), once._values.dtype)
        dense[once._indices] = once._values
        return dense

    def emptied(self) -> SparseGrad:
        """The gradient of the same kind that has no rows."""
        return SparseGrad(self._indices[:0], self._values[:0])

    def view_for(self, shape: tuple[int, ...], device: str, of: str) -> RowsView:
        """The values as a parameter keeps them; ValueError if they do not fit the parameter.

        Args:
            shape, device: the parameter's.
            of: how a message goes on after "the gradient".
        """
        if not shape or self._values.shape[1:] != shape[1:]:
            raise ValueError(
                f"the SparseGrad{of} must have values of shape "
                f"{(len(self._indices), *shape[1:])} for a parameter of shape {shape}, but got "
                f"{self._values.shape}"
                if shape
                else f"the gradient{of} cannot be a SparseGrad: a parameter of shape () has no rows"
            )
        if device != "cpu":
            raise ValueError(
                f"the gradient{of} cannot be a SparseGrad, as the parameter is on {device} and "
                "sparse gradients work on the CPU: move the parameter, or give the dense gradient"
            )
        self._check_length(shape[0])
        view = self._values.view(RowsView)
        view.owner, view.indices, view.largest = self, self._indices, self._largest
        return view

    def _check_length(self, length: int) -> None:
        if self._largest >= length:
            raise ValueError(
                f"the index {self._largest} of a SparseGrad is out of range for {length} rows"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __reduce__(self) -> tuple:
        return SparseGrad, (self._indices, self._values)

    def __repr__(self) -> str:
        return (
            f"SparseGrad({len(self)} rows of shape {self._values.shape[1:]}, "
            f"dtype={self._values.dtype})"
        )
