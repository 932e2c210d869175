"""Averages of parameters over time: stochastic weight averaging (SWA) and exponential averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from .. import buffers, kernels
from ..kernels import rules
from ..parameter import Parameter
from . import checks
from .lr_scheduler import SWALR

__all__ = ["SWALR", "AveragedParameters", "get_ema_weight_fn", "get_swa_weight_fn"]


def get_swa_weight_fn() -> Callable[[int], float]:
    """The weight of the newest parameters in a running mean: `1 / (n + 1)` after `n` others.

    Returns:
        A function from the number of parameters averaged so far to the weight.

    Example:
        >>> from genesis.optim.swa_utils import get_swa_weight_fn
        >>> get_swa_weight_fn()(3)
        0.25
    """
    return _swa_weight


def get_ema_weight_fn(decay: float = 0.999) -> Callable[[int], float]:
    """The weight of the newest parameters in an exponential average: `1 - decay`.

    Args:
        decay: how much of the average stays, in [0, 1]. Default: 0.999.

    Returns:
        A function from the number of parameters averaged so far to the weight.

    Raises:
        ValueError: `decay` is not in [0, 1].

    Example:
        >>> from genesis.optim.swa_utils import get_ema_weight_fn
        >>> get_ema_weight_fn(0.75)(3)
        0.25
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"Invalid decay value {decay}, expected a number in [0, 1]")
    return partial(_ema_weight, decay)


class AveragedParameters:
    r"""An average of parameters over time, in arrays of its own.

    With parameter :math:`\theta` and average :math:`a`, the first update copies, and each later one
    is

    .. math:: a \leftarrow a + w_n (\theta - a)

    where :math:`w_n = 1 / (n + 1)` after :math:`n` updates gives the running mean (SWA) and
    :math:`w = 1 - \text{decay}` an exponential average (EMA). All tensors of one type are one launch.

    Args:
        params: an iterable of `Parameter`s, or of `(name, Parameter)` pairs.
        weight_fn: a function from the number of updates so far to the weight of the newest
            parameters: `get_swa_weight_fn()` or `get_ema_weight_fn(decay)`. Default: None, the
            running mean.

    Attributes:
        averages: the averages, `Parameter`s in the order of `params`, on the same devices.
        n_averaged: the number of updates so far.

    Raises:
        TypeError, ValueError: `params` is not as above.

    Example:
        >>> import numpy as np, genesis
        >>> from genesis.optim.swa_utils import AveragedParameters
        >>> p = genesis.Parameter(np.array([1.0]))
        >>> mean = AveragedParameters([p])
        >>> for value in (1.0, 2.0, 6.0):
        ...     p.data[:] = value
        ...     mean.update()
        >>> mean.averages[0].data
        array([3.])

    References:
        Izmailov, Podoprikhin, Garipov, Vetrov, Wilson: Averaging weights leads to wider optima and
        better generalization. UAI 2018, https://arxiv.org/abs/1803.05407
    """

    def __init__(self, params: Iterable, weight_fn: Callable[[int], float] | None = None):
        [group] = checks.groups(params)
        self._params, self.names = checks.members(group["params"])
        self.averages = [
            Parameter(buffers.copy_beside(buffers.host_copy(p._data), p._view), name=p.name)
            for p in self._params
        ]
        self.n_averaged = 0
        self._weight_fn = weight_fn or get_swa_weight_fn()
        self._launches: list[kernels.Launch] = []
        self._versions: list[int] = []

    def update(self) -> None:
        """Take the parameters' present values into the average."""
        if self.n_averaged == 0:
            for columns in self._columns():
                launch = kernels.prepare(rules.copy, columns, 0)
                launch.set_scalars(1.0, ())
                launch.run()
            self.n_averaged = 1
            return
        weight = float(self._weight_fn(self.n_averaged))
        versions = [p._version for p in self._params + self.averages]
        if versions != self._versions:
            self._launches = [
                kernels.prepare(rules.average, columns, 2) for columns in self._columns()
            ]
            self._versions = versions
        for launch in self._launches:
            launch.set_scalars(1.0, (1 - weight, weight))
        for launch in self._launches:
            launch.run()
        self.n_averaged += 1

    def _columns(self) -> list[Sequence[Sequence[Any]]]:
        """Parameters and their averages, by device and data type."""
        sorted_: dict[tuple, list[tuple]] = {}
        for p, average in zip(self._params, self.averages):
            sorted_.setdefault(p._layout[:2], []).append((p._view, average._view))
        return [list(zip(*pairs)) for pairs in sorted_.values()]

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: "n_averaged" and "averages", a list of host arrays."""
        return {
            "n_averaged": self.n_averaged,
            "averages": [buffers.host_copy(average._data) for average in self.averages],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned.

        Raises:
            ValueError, TypeError: it does not fit these parameters; nothing has changed.
        """
        if not isinstance(state_dict, dict) or {"n_averaged", "averages"} != state_dict.keys():
            raise ValueError("state_dict must be a dict with 'n_averaged' and 'averages'")
        count, arrays = state_dict["n_averaged"], state_dict["averages"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"n_averaged must be a number of updates, but got {count!r}")
        if len(arrays) != len(self.averages):
            raise ValueError(
                f"state_dict has {len(arrays)} averages, but there are {len(self.averages)} parameters"
            )
        loaded = []
        for i, (average, array) in enumerate(zip(self.averages, arrays)):
            host = buffers.as_host(array, f"average {i}")
            if host.shape != average.shape or host.dtype != average._view.dtype:
                raise ValueError(
                    f"average {i} has shape {host.shape} and dtype {host.dtype}, but the parameter "
                    f"has {average.shape} and {average._view.dtype}"
                )
            loaded.append(buffers.copy_beside(host, average._view))
        for average, array in zip(self.averages, loaded):
            average.data = array
        self.n_averaged = count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_launches": [], "_versions": []}


def _swa_weight(n_averaged: int) -> float:
    return 1 / (n_averaged + 1)


def _ema_weight(decay: float, n_averaged: int) -> float:
    return 1 - decay
