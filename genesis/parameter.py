"""`Parameter`: an array that an optimizer may change, and its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import buffers

_versions = itertools.count()
_data_edits = 0


def data_edits() -> int:
    """How often any parameter was given another array; hardly ever, so one number serves all."""
    return _data_edits


class Parameter(NDArrayOperatorsMixin):
    """An array to be optimized, shared with the caller, and the gradient that belongs to it.

    No copy is made: `parameter.data is data`, and `optimizer.step()` changes that array in place.
    A parameter is an operand of NumPy like the array it holds, and the result is a plain array.

    Args:
        data: numpy.ndarray of float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`), any
            shape, writable; it need not be contiguous (a contiguous one is updated faster).
        requires_grad: a note for the code that computes gradients. An optimizer goes by `grad`
            alone, as torch does: it skips a parameter whose `grad` is None. Default: True.
        name: a name for messages and `repr`. Default: None.

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
        "_data_layout",
        "_grad",
        "_grad_layout",
        "_version",
        "name",
        "requires_grad",
        "__weakref__",
    )

    def __init__(self, data: np.ndarray, requires_grad: bool = True, name: str | None = None):
        if isinstance(data, Parameter):
            raise TypeError("data is a Parameter already: use it as it is, or give parameter.data")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, but got {type(name).__name__}")
        _check_data(data)
        self.name = name
        self.requires_grad = bool(requires_grad)
        self._data = data
        self._data_layout = buffers.layout(data)
        self._grad: np.ndarray | None = None
        self._grad_layout: buffers.Layout | None = None
        self._version = next(_versions)

    @property
    def data(self) -> np.ndarray:
        """The array itself. Assigning one of the same shape and dtype makes that the array."""
        return self._data

    @data.setter
    def data(self, data: np.ndarray) -> None:
        if data is self._data:  # `p.data -= x` assigns the same array again
            return
        _check_data(data)
        if data.shape != self.shape or data.dtype != self.dtype:
            raise ValueError(
                f"data must keep shape {self.shape} and dtype {self.dtype}, but got shape "
                f"{data.shape} and dtype {data.dtype}: make a new Parameter for another array"
            )
        global _data_edits
        self._data = data
        self._data_layout = buffers.layout(data)
        self._version = next(_versions)
        _data_edits += 1

    @property
    def grad(self) -> np.ndarray | None:
        """The gradient, or None: an array of the parameter's shape and any accepted float type.

        The array is shared, not copied. A NumPy scalar is taken for a parameter of shape ().

        Raises:
            TypeError: not None and no array of an accepted type.
            ValueError: the shape is not the parameter's.
        """
        return self._grad

    @grad.setter
    def grad(self, grad: np.ndarray | None) -> None:
        if grad is self._grad and grad is not None:  # `p.grad += x` assigns the same array again
            return
        if grad is None:
            self._grad = self._grad_layout = None
            self._version = next(_versions)
            return
        if isinstance(grad, np.generic):  # what NumPy's reductions return for shape ()
            grad = np.asarray(grad)
        try:
            layout = buffers.layout(grad)
            if grad.shape != self._data.shape:
                raise ValueError(
                    f"the gradient{_of(self)} must have the parameter's shape {self.shape}, "
                    f"but got {grad.shape}"
                )
            if type(grad) is not np.ndarray:
                buffers.check(grad, f"the gradient{_of(self)}")
        except (AttributeError, KeyError, TypeError):
            buffers.check(grad, f"the gradient{_of(self)}")
            raise
        self._grad = grad
        self._grad_layout = layout
        # An optimizer keeps addresses between steps; a number that no parameter ever had before is
        # how it learns, without holding the arrays, that this one's have changed.
        self._version = next(_versions)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's data type."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def device(self) -> str:
        """Where the array lies: "cpu"."""
        return self._data_layout.device

    def numpy(self) -> np.ndarray:
        """The values as a host array: on the CPU the array itself, not a copy."""
        return self._data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy:
            return np.array(self._data, dtype=dtype)
        converted = np.asarray(self._data, dtype=dtype)
        if copy is False and converted is not self._data:
            raise ValueError(f"dtype {dtype} needs a copy of a parameter of dtype {self.dtype}")
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
        return len(self._data)

    def __getstate__(self) -> tuple:
        return self._data, self._grad, self.name, self.requires_grad

    def __setstate__(self, state: tuple) -> None:
        data, grad, name, requires_grad = state
        self.__init__(data, requires_grad, name)  # type: ignore[misc]
        self.grad = grad

    def __repr__(self) -> str:
        name = "" if self.name is None else f"name={self.name!r}, "
        grad = "None" if self._grad is None else str(self._grad.dtype)
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return (
            f"Parameter({name}shape={self.shape}, dtype={self.dtype}, device={self.device!r}, "
            f"grad={grad}{frozen})"
        )


def _check_data(data: Any) -> None:
    buffers.check(data, "data")
    buffers.check_writable(data, "data")


def _of(parameter: Parameter) -> str:
    return "" if parameter.name is None else f" of {parameter.name!r}"


def _unwrapped(operand: Any) -> Any:
    return operand._data if isinstance(operand, Parameter) else operand
