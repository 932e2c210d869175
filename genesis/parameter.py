"""`Parameter`: an array that an optimizer may change, and its gradient."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import boxes, buffers, kernels, regions
from .kernels import rules
from .sparse import SparseGrad


class Parameter(NDArrayOperatorsMixin):
    """An array to be optimized, shared with the caller, and the gradient that belongs to it.

    No copy is made: `parameter.data is data`, and `optimizer.step()` changes that array in place.
    On the CPU a parameter is used like the array it holds: as an operand, as an argument of NumPy's
    functions, by an array's methods and attributes, and `p[0] = 5` writes into the array. Results are
    plain arrays. Only `resize` is missing, and what would put another array in place of this one.

    An array of another library is shared, too: `parameter.data` is then a NumPy array over its
    memory, which lives as long as that. What could be had as a copy only is refused.

    HIPS autograd takes parameters for arrays (`autograd.grad(loss)(p)`, also of a dict or a list of
    them), and their gradients are arrays. It learns of parameters when one is made while autograd is
    imported: import autograd before you make them. One that was made earlier is known as soon as
    another is made.

    Args:
        data: array of float64, float32, float16 or bfloat16 (`ml_dtypes.bfloat16`), any shape,
            writable: a numpy.ndarray, a Numba device array, or any object with a
            `__cuda_array_interface__` (CuPy arrays, CUDA tensors of torch); on the CPU also any with
            an `__array_interface__`, the buffer protocol (memoryview, array.array) or DLPack of
            version 1, and a pandas or xarray object whose one array can be written. It need not be
            contiguous (a contiguous one is updated faster).
        requires_grad: a note for the code that computes gradients. An optimizer goes by `grad`
            alone, as torch does: it skips a parameter whose `grad` is None. Default: True.
        name: a name for messages and `repr`. Default: None.
        autocast: whether a float32 parameter shows a 16-bit copy of itself in a region of
            `genesis.autocast`. Default: True.

    Raises:
        TypeError: `data` is no array of an accepted type, or none that can be shared without a copy.
        ValueError: `data` is read-only, or some of its elements share memory.

    Example:
        >>> import numpy as np, genesis
        >>> weight = np.ones((2, 3), np.float32)
        >>> p = genesis.Parameter(weight, name="weight")
        >>> p.data is weight
        True
        >>> np.ones(2, np.float32) @ p
        array([2., 2., 2.], dtype=float32)
        >>> p[0] = 5
        >>> p.sum(axis=1)
        array([15.,  3.], dtype=float32)
        >>> p.grad = np.full((2, 3), 0.5)
        >>> p
        Parameter(name='weight', shape=(2, 3), dtype=float32, device='cpu', grad=float64)
    """

    # Whatever belongs together is in one slot, so that it changes as one: the array and the gradient
    # as views (see `buffers.view`), and the working copies, which know whose copies they are. A step
    # reads these three slots itself and believes nothing that it has kept of them.
    __slots__ = (
        "_autocast",
        "_grad_view",
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
        view = buffers.adopted(data, "data")
        if "autograd" in sys.modules and type(self) not in boxes.known:
            boxes.register(type(self))
        self.name = name
        self.requires_grad = bool(requires_grad)
        self._autocast = bool(autocast) and view.dtype == np.float32
        self._working: WorkingCopies | None = None
        self._grad_view: np.ndarray | None = None
        self._view = view

    @property
    def data(self) -> Any:
        """The array itself. Assigning one of the same shape, dtype and device makes it the array.

        In a region of `genesis.autocast` it is a read-only copy in 16 bits.
        """
        region = regions.current()
        if region is None or not self._autocast:
            return buffers.given(self._view)
        return self._working_copy(region)

    @data.setter
    def data(self, data: Any) -> None:
        if data is buffers.given(self._view):  # `p.data -= x` assigns the same array again
            return
        view = buffers.adopted(data, "data")
        new, old = buffers.layout(view), buffers.layout(self._view)
        if view.shape != self.shape or new.dtype != old.dtype or new.device != old.device:
            raise ValueError(
                f"data must keep shape {self.shape}, dtype {old.dtype} and device {old.device}, but "
                f"got shape {view.shape}, dtype {new.dtype} and device {new.device}: make a new "
                "Parameter for another array"
            )
        self._view = view

    def _working_copy(self, region: regions.Region) -> Any:
        """The 16-bit copy for a region, made or brought up to date if need be."""
        dtype = regions.low_type(region, self.device.partition(":")[0])
        view, copies = self._view, self._working
        if copies is None or copies.of is not view or dtype not in copies.by_type:
            order = buffers.flat_order(view)
            made = WorkingCopy(buffers.empty(view.shape, view, order, dtype))
            others = copies.by_type if copies is not None and copies.of is view else {}
            self._working = copies = WorkingCopies(view, {**others, dtype: made})
        copy = copies.by_type[dtype]
        if copy.entry != region.entry:  # the array may have been edited since the last region
            copying = kernels.prepare(rules.copy, [[view], [buffers.view(copy.array)]], 0)
            copying.set_scalars(1.0, ())
            copying.run()
            copy.entry = region.entry
        return buffers.read_only(copy.array)

    def changed(self) -> None:
        """Say that the array was written, so that copies of it are out of date."""
        if self._working is not None:
            for copy in self._working.by_type.values():
                copy.entry = 0

    @property
    def grad(self) -> Any:
        """The gradient, or None: an array of the parameter's shape and any accepted float type.

        The array is shared, not copied, be it read-only or not. One of another library (a torch
        tensor, a JAX array, what `data` may be) is read where it lies, and the gradient is then a
        NumPy array over its memory. A float or a NumPy scalar is taken for a parameter of shape ().
        It may also be a `SparseGrad`, which some optimizers take.

        Raises:
            TypeError: not None and no array of an accepted type, or one that needs a copy to be read.
            ValueError: the shape or the device is not the parameter's, or a `SparseGrad` does not fit.
        """
        return buffers.given(self._grad_view)

    @grad.setter
    def grad(self, grad: Any) -> None:
        if grad is None:
            self._grad_view = None
            return
        if type(grad) is np.ndarray and grad.dtype in buffers.FLOAT_TYPES:
            view = grad
        elif not isinstance(grad, np.ndarray) and grad is self.grad:
            return  # `p.grad += x` assigns the same array again
        elif isinstance(grad, SparseGrad):
            self._grad_view = grad.view_for(self.shape, self.device, _of(self))
            return
        else:
            view = buffers.readable(grad, f"the gradient{_of(self)}")
        if view.shape != self._view.shape:
            raise ValueError(
                f"the gradient{_of(self)} must have the parameter's shape {self.shape}, "
                f"but got {view.shape}"
            )
        if type(view) is not np.ndarray or type(self._view) is not np.ndarray:
            device = buffers.layout(view).device
            if device != self.device:
                raise ValueError(
                    f"the gradient{_of(self)} must be on the parameter's device {self.device}, but "
                    f"is on {device}: move one of them, for example with parameter.to(...)"
                )
        self._grad_view = view

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
        return buffers.device_of(self._view)

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
        if isinstance(self.grad, SparseGrad):
            raise ValueError(
                f"the gradient{_of(self)} is a SparseGrad, which works on the CPU: set it to None "
                f"before the parameter moves to {device}"
            )
        moved = Parameter(
            buffers.moved(buffers.given(self._view), device),
            self.requires_grad,
            self.name,
            autocast=self._autocast,
        )
        if self.grad is not None:
            moved.grad = buffers.moved(self.grad, device)
        return moved

    def becoming(self, other: Parameter) -> list[partial]:
        """The calls, for `commit`, by which it takes over another one's array and gradient."""
        return [
            partial(setattr, self, "_view", other._view),
            partial(setattr, self, "_grad_view", other._grad_view),
        ]

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
            kwargs["out"] = tuple(map(_target, targets))
        inputs = tuple(map(_unwrapped, inputs))
        if boxes.known and method == "__call__" and boxes.among(inputs):
            return boxes.call(ufunc, inputs, kwargs)
        result = getattr(ufunc, method)(*inputs, **kwargs)
        # `p -= x` must leave p a Parameter, so an `out` comes back as what was given.
        return targets[0] if targets is not None and ufunc.nout == 1 else result

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        target = kwargs.get("out")
        if isinstance(target, Parameter):
            kwargs = {**kwargs, "out": _target(target)}
        named = {name: _all_unwrapped(value) for name, value in kwargs.items()}
        result = function(*_all_unwrapped(args), **named)
        return target if isinstance(target, Parameter) else result

    # NDArrayOperatorsMixin compares elementwise, as arrays do; a parameter is still itself as the
    # key of a dict, which is how an optimizer finds its state.
    __hash__ = object.__hash__

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[key] = value

    def __iter__(self) -> Iterator:
        return iter(self.data)

    def __contains__(self, value: Any) -> bool:
        return value in self.numpy()

    def __bool__(self) -> bool:
        return bool(self.numpy())

    def __int__(self) -> int:
        return int(self.numpy())

    def __float__(self) -> float:
        return float(self.numpy())

    def __complex__(self) -> complex:
        return complex(self.numpy())

    def __format__(self, spec: str) -> str:
        return format(self.numpy(), spec) if spec else str(self)

    if TYPE_CHECKING:  # what `_hand_on` adds

        def __getattr__(self, name: str) -> Any: ...

    def __getstate__(self) -> tuple:
        arrays = [buffers.given(self._view), self.grad]
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
        grad = None if self._grad_view is None else self._grad_view.dtype
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return (
            f"Parameter({name}shape={self.shape}, dtype={self.dtype}, device={self.device!r}, "
            f"grad={grad}{frozen})"
        )


def _hand_on() -> None:
    """Give parameters what else an array has: its public names, but for a change of its size.

    Each is a property of the class. A `__getattr__` would do with less, but Python reads every
    attribute of a class with one more slowly, and a step reads many.
    """
    for name in dir(np.ndarray):
        if not (name.startswith("_") or name == "resize" or hasattr(Parameter, name)):
            doc = f"That of the array: see `numpy.ndarray.{name}`."
            setattr(Parameter, name, property(attrgetter(f"data.{name}"), doc=doc))


_hand_on()


class WorkingCopy:
    """A copy of a parameter in 16 bits.

    Attributes:
        array: the copy.
        entry: the number of the outermost region in which it was last brought up to date; 0, never.
    """

    __slots__ = ("array", "entry")

    def __init__(self, array: Any):
        self.array = array
        self.entry = 0


class WorkingCopies(NamedTuple):
    """The working copies of a parameter, one for each type that regions asked for.

    It is never changed: another type makes another object, by which a step knows that its plan no
    longer fits.
    """

    of: np.ndarray
    """The view of the array whose copies they are."""
    by_type: dict[np.dtype, WorkingCopy]


def _of(parameter: Parameter) -> str:
    return "" if parameter.name is None else f" of {parameter.name!r}"


def _unwrapped(operand: Any) -> Any:
    """A parameter as an array of the host; from a device it is a copy, so it cannot be written."""
    if not isinstance(operand, Parameter):
        return operand
    array = operand.data
    return array if isinstance(array, np.ndarray) else buffers.read_only(operand.numpy())


def _all_unwrapped(tree: Any) -> Any:
    """The same with the parameters in it unwrapped, also those in lists and tuples."""
    if isinstance(tree, list):
        return [_all_unwrapped(value) for value in tree]
    if isinstance(tree, tuple):
        return tuple(_all_unwrapped(value) for value in tree)
    return _unwrapped(tree)


def _target(out: Any) -> Any:
    """What NumPy writes into in place of a parameter."""
    if isinstance(out, Parameter) and out.device != "cpu":
        raise TypeError(
            f"NumPy cannot write into a parameter{_of(out)} on {out.device}: write into "
            "parameter.data with that device's library, or use parameter.to('cpu')"
        )
    return _unwrapped(out)
