"""Averages of parameters over time: stochastic weight averaging (SWA) and exponential averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .. import buffers, kernels
from ..commit import commit
from ..kernels import rules
from ..parameter import Parameter
from . import arrays, members, shown
from .lr_scheduler import SWALR
from .plan import parameter_slots

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
        params: a tree of arrays or `Parameter`s, or an iterable of `(name, Parameter)` pairs.
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
        [group] = members.groups(params)
        self._params, self.names = members.of_group(group["params"])
        self.averages = [
            Parameter(
                buffers.copy_beside(buffers.host_copy(buffers.given(p._view)), p._view), name=p.name
            )
            for p in self._params
        ]
        self.n_averaged = 0
        self._weight_fn = weight_fn or get_swa_weight_fn()
        # Taken out by an update and put back at its end, as an optimizer does with its plans.
        self._plans: list[_Plan] = []

    def update(self) -> None:
        """Take the parameters' present values into the average.

        Raises:
            TypeError, ValueError: an average can no longer be written, or does not fit its parameter.
        """
        count = self.n_averaged
        scalars: tuple[float, ...] = ()
        if count > 0:
            weight = float(self._weight_fn(count))
            scalars = 1 - weight, weight
        plan = self._plans.pop() if self._plans else None
        if plan is None or not plan.fits(self._params, self.averages, count == 0):
            plan = _Plan(self._params, self.averages, count == 0)
        actions = plan.actions(scalars)
        commit([*actions, partial(setattr, self, "n_averaged", count + 1)])
        self._plans.append(plan)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: "n_averaged" and "averages", a list of host arrays."""
        return {
            "n_averaged": self.n_averaged,
            "averages": [
                buffers.host_copy(buffers.given(average._view)) for average in self.averages
            ],
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
        views = [buffers.view(array) for array in loaded]
        commit(
            [
                *(partial(setattr, a, "_view", view) for a, view in zip(self.averages, views)),
                partial(setattr, self, "n_averaged", count),
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": []}

    def _described(self) -> str:
        function = self._weight_fn
        if function is _swa_weight:
            kind = "running mean"
        elif isinstance(function, partial) and function.func is _ema_weight:
            kind = f"exponential average, decay {shown.value(function.args[0])},"
        else:
            kind = f"average by {shown.value(function)}"
        updates = shown.count(self.n_averaged, "update")
        return f"{type(self).__name__}: {kind} of {shown.size(self.averages)}, {updates}"

    __repr__ = shown.never_failing(_described)


class _Plan:
    """How averages are brought up to date, and what the arrays were like when it was made."""

    def __init__(self, params: list[Parameter], averages: list[Parameter], first: bool):
        self._first = first
        owners = [*params, *averages]
        views = [owner._view for owner in owners]
        workings = [owner._working for owner in owners]
        self._outdated = [
            copy
            for working in workings[len(params) :]
            if working is not None
            for copy in working.by_type.values()
        ]
        whose = []
        pairs_of: dict[tuple, list[tuple]] = {}
        for i, (parameter, average) in enumerate(zip(params, averages)):
            what = members.label(i, parameter.name)
            view = buffers.check(parameter._view, f"the array of {what}")
            mean = arrays.buffer(buffers.given(average._view), "average", what, view)
            whose.append((what, "average"))
            kinds = buffers.layout(view)[:2], buffers.layout(mean)[:2]
            pairs_of.setdefault(kinds, []).append((view, mean))
        rule, scalars = (rules.copy, 0) if first else (rules.average, 2)
        self._launches = [
            kernels.prepare(rule, list(zip(*pairs)), scalars) for pairs in pairs_of.values()
        ]
        self._watch = kernels.watch(
            owners,
            (*parameter_slots()[:2], parameter_slots()[0]),
            (views, workings),
            views,
            [-1] * len(owners),
            [0] * len(owners),
            views,
        )
        if kernels.regions([self._watch.bounds]).met:
            arrays.apart(views, [(what, "") for what, _ in whose] + whose)

    def fits(self, params: list[Parameter], averages: list[Parameter], first: bool) -> bool:
        """Whether everything is as it was."""
        owners = [*params, *averages]
        self._watch.release()
        return first == self._first and self._watch.compare(id(owners), 0) == 0

    def actions(self, scalars: tuple[float, ...]) -> list[partial]:
        """The calls, for `commit`, that do the update."""
        actions: list[partial] = []
        for launch in self._launches:
            launch.set_scalars(1.0, scalars)
            launch.gather()
            actions += launch.actions()
        return [*actions, *(partial(setattr, copy, "entry", 0) for copy in self._outdated)]


def _swa_weight(n_averaged: int) -> float:
    return 1 / (n_averaged + 1)


def _ema_weight(decay: float, n_averaged: int) -> float:
    return 1 - decay
