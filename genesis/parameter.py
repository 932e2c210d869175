"""`Parameter`: an array that an optimizer may change, and its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import buffers, kernels, regions
from .kernels import rules
from .sparse import SparseGrad

_versions = itertools.count()
_data_edits = 0


def data_edits() -> int:
    """How often any parameter was given another array; hardly ever, so one number serves all."""
    return _data_edits


class Parameter(NDArrayOperatorsMixin):
    """An array to be optimized, shared with the caller, and the gradient that belongs to it.

    No copy is made: `parameter.data is data`, and `optimizer.step()` changes that array in place.
    On the CPU a parameter is an operand of NumPy like the array it holds, and the result is a plain
    array.

    Args:
        data: array of float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`), any shape,
            writable: a numpy.ndarray, a Numba device array, or any object with a
            `__cuda_array_interface__` (CuPy arrays, CUDA tensors of torch). It need not be
            contiguous (a contiguous one is updated faster).
        requires_grad: a note for the code that computes gradients. An optimizer goes by `grad`
            alone, as torch does: it skips a parameter whose `grad` is None. Default: True.
        name: a name for messages and `repr`. Default: None.
        autocast: whether a float32 parameter shows a 16-bit copy of itself in a region of
            `genesis.autocast`. Default: True.

    Raises:
        TypeError: `data` is no array of an accepted type.
        ValueError: `data` is read-only, or some of its elements share memory.

    Example:
        >>> import numpy as np, genesis
        >>> weight = np.ones((2, 3), np.float32)
        >>> p = genesis.Parameter(weight, name="weight")
        >>> p.data is weight
        True
        >>> np.ones(2, np.float32) @ p
        array([2., 2., 2.], dtype=float32)
        >>> p.grad = np.full((2, 3), 0.5)
        >>> p
        Parameter(name='weight', shape=(2, 3), dtype=float32, device='cpu', grad=float64)
    """

    __slots__ = (
        "_data",
        "_grad",
        "_grad_layout",
        "_grad_view",
        "_layout",
        "_autocast",
        "_entry",
        "_token",
        "_version",
        "_view",
        "_working",
        "name",
        "requires_grad",
        "__weakref__",
    )

    def __init__(
        self,
        data: Any,
        requires_grad: bool = True,
        name: str | None = None,
        *,
        autocast: bool = True,
    ):
        if isinstance(data, Parameter):
            raise TypeError("data is a Parameter already: use it as it is, or give parameter.data")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, but got {type(name).__name__}")
        view = _checked_data(data)
        self.name = name
        self.requires_grad = bool(requires_grad)
        self._autocast = bool(autocast) and view.dtype == np.float32
        self._working: Any = None
        self._entry = 0
        self._grad: Any = None
        self._grad_view: np.ndarray | None = None
        self._grad_layout: buffers.Layout | None = None
        self._set_data(data, view)

    @property
    def data(self) -> Any:
        """The array itself. Assigning one of the same shape, dtype and device makes it the array.

        In a region of `genesis.autocast` it is a read-only copy in 16 bits.
        """
        region = regions.current()
        if region is None or not self._autocast:
            return self._data
        return self._working_copy(region)

    @data.setter
    def data(self, data: Any) -> None:
        if data is self._data:  # `p.data -= x` assigns the same array again
            return
        view = _checked_data(data)
        new, old = buffers.layout(view), self._layout
        if view.shape != self.shape or new.dtype != old.dtype or new.device != old.device:
            raise ValueError(
                f"data must keep shape {self.shape}, dtype {old.dtype} and device {old.device}, but "
                f"got shape {view.shape}, dtype {new.dtype} and device {new.device}: make a new "
                "Parameter for another array"
            )
        self._set_data(data, view)

    def _set_data(self, data: Any, view: np.ndarray) -> None:
        self._data = data
        self._view = view
        self._layout = buffers.layout(view)
        self._working = None
        self._rearranged()

    def _rearranged(self) -> None:
        """Other arrays are in use from now on."""
        global _data_edits
        _data_edits += 1
        self._token = object()
        self._version = next(_versions)

    def _working_copy(self, region: regions.Region) -> Any:
        """The 16-bit copy for a region, made or brought up to date if need be."""
        dtype = regions.low_type(region, self.device.partition(":")[0])
        if self._working is None or buffers.view(self._working).dtype != dtype:
            order = buffers.flat_order(self._view)
            self._working = buffers.empty(self.shape, self._view, order, dtype)
            self._entry = 0
            self._rearranged()
        if self._entry != region.entry:  # the array may have been edited since the last region
            copying = kernels.prepare(rules.copy, [[self._view], [buffers.view(self._working)]], 0)
            copying.set_scalars(1.0, ())
            copying.run()
            self._entry = region.entry
        return buffers.read_only(self._working)

    @property
    def grad(self) -> Any:
        """The gradient, or None: an array of the parameter's shape and any accepted float type.

        The array is shared, not copied. A NumPy scalar is taken for a parameter of shape (). It may
        also be a `SparseGrad`, which some optimizers take.

        Raises:
            TypeError: not None and no array of an accepted type.
            ValueError: the shape or the device is not the parameter's, or a `SparseGrad` does not fit.
        """
        return self._grad

    @grad.setter
    def grad(self, grad: Any) -> None:
        if grad is self._grad and grad is not None:  # `p.grad += x` assigns the same array again
            return
        if grad is None:
            self._grad = self._grad_view = self._grad_layout = None
            self._version = next(_versions)
            return
        if type(grad) is np.ndarray and grad.dtype in buffers.FLOAT_TYPES:
            view = grad
        elif isinstance(grad, SparseGrad):
            self._set_sparse_grad(grad)
            return
        else:
            if isinstance(grad, np.generic):  # what NumPy's reductions return for shape ()
                grad = np.asarray(grad)
            view = buffers.check(grad, f"the gradient{_of(self)}")
        layout = buffers.layout(view)
        if view.shape != self._view.shape:
            raise ValueError(
                f"the gradient{_of(self)} must have the parameter's shape {self.shape}, "
                f"but got {view.shape}"
            )
        if layout.device != self._layout.device:
            raise ValueError(
                f"the gradient{_of(self)} must be on the parameter's device {self.device}, but is "
                f"on {layout.device}: move one of them, for example with parameter.to(...)"
            )
        self._grad = grad
        self._grad_view = view
        self._grad_layout = layout
        # An optimizer keeps addresses between steps; a number that no parameter ever had before is
        # how it learns, without holding the arrays, that this one's have changed.
        self._version = next(_versions)

    def _set_sparse_grad(self, grad: SparseGrad) -> None:
        view = grad.view_for(self.shape, self.device, _of(self))
        self._grad = grad
        self._grad_view = view
        self._grad_layout = buffers.layout(view)._replace(order="rows")
        self._version = next(_versions)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._view.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's data type, in a region of `genesis.autocast` that of the copy."""
        region = regions.current()
        if region is None or not self._autocast:
            return self._view.dtype
        return regions.low_type(region, self.device.partition(":")[0])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._view.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._view.size

    @property
    def device(self) -> str:
        """Where the array lies: "cpu" or "cuda:N"."""
        return self._layout.device

    def numpy(self) -> np.ndarray:
        """The values as a host array: on the CPU the array itself, from a device a copy."""
        return self.data if self.device == "cpu" else buffers.host_copy(self.data)

    def to(self, device: str) -> Parameter:
        """A parameter on another device with the same values and gradient.

        Args:
            device: "cpu", "cuda" (the first GPU) or "cuda:N".

        Returns:
            A new `Parameter` whose arrays are copies, Numba device arrays on a GPU; this one itself
            if it is on that device already.

        Raises:
            RuntimeError: CUDA cannot be used here; the message says what is missing.
            ValueError: no such device, or the gradient is a `SparseGrad`.

        Example:
            >>> import numpy as np, genesis
            >>> p = genesis.Parameter(np.ones(3))
            >>> p.to("cpu") is p
            True
        """
        device = buffers.parse_device(device)
        if device == self.device:
            return self
        if isinstance(self._grad, SparseGrad):
            raise ValueError(
                f"the gradient{_of(self)} is a SparseGrad, which works on the CPU: set it to None "
                f"before the parameter moves to {device}"
            )
        moved = Parameter(
            buffers.moved(self._data, device),
            self.requires_grad,
            self.name,
            autocast=self._autocast,
        )
        if self._grad is not None:
            moved.grad = buffers.moved(self._grad, device)
        return moved

    def become(self, other: Parameter) -> None:
        """Take over another parameter's array and gradient, on whatever device, and stay oneself."""
        self._grad, self._grad_view = other._grad, other._grad_view
        self._grad_layout = other._grad_layout
        self._set_data(other._data, other._view)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if copy and self.device == "cpu":
            return np.array(array, dtype=dtype)
        converted = np.asarray(array, dtype=dtype)
        if copy is False and (converted is not array or self.device != "cpu"):
            raise ValueError(
                f"an array of dtype {np.dtype(dtype) if dtype else self.dtype} on the host needs a "
                f"copy of a parameter of dtype {self.dtype} on {self.device}"
            )
        return converted

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        targets = kwargs.get("out")
        if targets is not None:
            kwargs["out"] = tuple(_unwrapped(target) for target in targets)
        result = getattr(ufunc, method)(*map(_unwrapped, inputs), **kwargs)
        # `p -= x` must leave p a Parameter, so an `out` comes back as what was given.
        return targets[0] if targets is not None and ufunc.nout == 1 else result

    # NDArrayOperatorsMixin compares elementwise, as arrays do; a parameter is still itself as the
    # key of a dict, which is how an optimizer finds its state.
    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def changed(self) -> None:
        """Let autocast's copy be made anew when it is next asked for."""
        self._entry = 0

    @property
    def T(self) -> Any:  # noqa: N802, as NumPy calls it
        """The array, transposed."""
        return self.data.T

    def __getstate__(self) -> tuple:
        arrays = [self._data, self._grad]
        if self.device != "cpu":
            arrays = [None if array is None else buffers.host_copy(array) for array in arrays]
        return *arrays, self.name, self.requires_grad, self._autocast, self.device

    def __setstate__(self, state: tuple) -> None:
        data, grad, name, requires_grad, autocast, device = state
        self.__init__(  # type: ignore[misc]
            buffers.put(data, device), requires_grad, name, autocast=autocast
        )
        self.grad = None if grad is None else buffers.put(grad, device)

    def __repr__(self) -> str:
        name = "" if self.name is None else f"name={self.name!r}, "
        grad = None if self._grad_layout is None else self._grad_layout.dtype
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return (
            f"Parameter({name}shape={self.shape}, dtype={self.dtype}, device={self.device!r}, "
            f"grad={grad}{frozen})"
        )


def _checked_data(data: Any) -> np.ndarray:
    view = buffers.check(data, "data")
    buffers.check_writable(view, "data")
    return view


def _of(parameter: Parameter) -> str:
    return "" if parameter.name is None else f" of {parameter.name!r}"


def _unwrapped(operand: Any) -> Any:
    return operand.numpy() if isinstance(operand, Parameter) else operand
