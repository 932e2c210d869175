"""Lookahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import buffers, checks, hyper, kernels, packing
from ..commit import prepared
from ..kernels import rules
from ..parameter import Parameter
from . import arrays, members, options
from .gradient_optimizer import Ending, GradientOptimizer
from .schedule_free import ScheduleFree
from .wrapper import Wrapper

K = hyper.count(5, "how many steps are made before parameters return part of the way")
ALPHA = hyper.number(0.5, "how much of the way slow parameters go along", above=0, most=1)


class Lookahead(Wrapper):
    r"""Lookahead: an optimizer goes k steps ahead, then its parameters return part of the way.

    Beside the parameters :math:`\theta` that the inner optimizer updates, there are slow ones
    :math:`\phi`, which are :math:`\theta` at first. At every k-th step, after the update:

    .. math::
        \phi &\leftarrow \phi + \alpha \, (\theta - \phi) \\
        \theta &\leftarrow \phi

    It is done in one more pass over parameters and slow parameters, and belongs to the step: either all
    of it happens or nothing. The state of the inner optimizer goes on as it is, as in the paper. Slow
    parameters have the data type of the parameters, of 16-bit ones float32, and cost as much memory.

    All else is the inner optimizer's: groups, state, schedules, arguments of `step`. Parameters are best
    evaluated and saved when `since_sync` is 0, when they are the slow ones.

    Args:
        optimizer: the optimizer that makes the steps, `genesis.optim.AdamW(...)` for example; not a
            Schedule-Free one, nor `LBFGS`.
        k: how many steps are made before parameters return part of the way, at least 1. Default: 5.
        alpha: how much of the way slow parameters go along, in (0, 1]. Default: 0.5.

    Attributes:
        optimizer: as given.
        k, alpha: as given; may be changed between steps.
        since_sync: how many steps were made since parameters have returned the last time.

    Raises:
        TypeError, ValueError: arguments that are not as above.

    Example:
        >>> import numpy as np, genesis
        >>> x = np.array([1.0, -2.0])
        >>> p = genesis.Parameter(x)
        >>> opt = genesis.optim.Lookahead(genesis.optim.SGD([p], lr=0.25), k=2)
        >>> for _ in range(2):
        ...     p.grad = 2 * x  # the gradient of x @ x
        ...     _ = opt.step()
        >>> x  # half of the way from [1, -2] to [0.25, -0.5]
        array([ 0.625, -1.25 ])

    References:
        Zhang, Lucas, Hinton, Ba: Lookahead optimizer: k steps forward, 1 step back. NeurIPS 2019,
        https://arxiv.org/abs/1907.08610
    """

    _key = "lookahead"

    def __init__(self, optimizer: GradientOptimizer, k: int = 5, alpha: float = 0.5):
        super().__init__(optimizer)
        if isinstance(optimizer, ScheduleFree):
            raise TypeError(
                f"Lookahead does not support {type(optimizer).__name__}, whose parameters belong to an "
                "average that is kept elsewhere: use one of the two"
            )
        K.check("k", k)
        ALPHA.check("alpha", alpha)
        self.k, self.alpha = int(k), float(alpha)
        self.since_sync = 0
        self._slow: dict[Parameter, Any] = {}

    def _settings(self) -> Iterable[tuple[str, Any]]:
        return ("k", self.k), ("alpha", self.alpha)

    def to(self, device: str) -> Lookahead:
        place = buffers.parse_device(device)
        moved = {p: buffers.moved(slow, place) for p, slow in self._slow.items()}
        super().to(device)
        self._slow = moved
        return self

    to.__doc__ = Wrapper.to.__doc__

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        _ending: Ending | None = None,
        **given: Any,
    ) -> Any:
        K.check("k", self.k)
        ALPHA.check("alpha", self.alpha)

        def ending(actions: Iterable[partial]) -> None:
            both = [*actions, *self._afterwards()]
            prepared(both)() if _ending is None else _ending(both)

        return self._inner_step(closure, ending, **given)

    def _afterwards(self) -> list[partial]:
        """The calls that come after the inner optimizer's in a step; nothing is written so far."""
        slow = {p: self._slow[p] if p in self._slow else _begun(p) for p in self._parameters()}
        count = self.since_sync + 1
        actions = [] if count < self.k else self._returning(slow, count)
        return [
            *actions,
            partial(setattr, self, "_slow", {**self._slow, **slow}),
            partial(setattr, self, "since_sync", 0 if count >= self.k else count),
        ]

    def _returning(self, slow: dict[Parameter, Any], count: int) -> list[partial]:
        """The calls that let parameters return part of the way."""
        written: list[arrays.Used] = []
        rows: dict[tuple, list[tuple[int, list[Any]]]] = {}
        state, number = self._state, 0
        for group in self.param_groups:
            at_random = bool(group.get("stochastic_rounding", False))
            splits = options.of(group).splits
            called = members.names(group, group["params"])
            for parameter, name in zip(group["params"], called):
                what = members.label(number, name)
                entries = state.get(parameter) or {}
                if packing.LOWER in entries or (splits and parameter._view.itemsize == 2):
                    raise ValueError(
                        f"{what} has its master in two halves, which Lookahead does not set: give its "
                        "optimizer master_weights=True in place of 'split'"
                    )
                titled = {what: parameter._view, f"the slow array of {what}": slow[parameter]}
                if "master" in entries:  # which is the parameter, and the parameter its copy
                    titled[f"state 'master' of {what}"] = entries["master"]
                place = parameter.shape, parameter.device
                used = [arrays.Used(title, array, *place) for title, array in titled.items()]
                view, slowly, *masters = map(arrays.fitting, used)
                written += used
                updated = masters[0] if masters else view
                row = [updated, updated, slowly, *([view] if masters else [])]
                kinds = tuple(buffers.layout(each)[:2] for each in row)
                rows.setdefault((at_random, kinds), []).append((number, row))
                number += 1
                parameter.changed()
        arrays.usable(written, [])
        actions: list[partial] = []
        for (at_random, kinds), found in rows.items():
            columns = list(zip(*(each for _, each in found)))
            launch = kernels.prepare(
                rules.synchronize,
                columns,
                1,
                getattr(self.optimizer, "stream", None),
                copy="master" if len(kinds) == 4 else None,
                keys=[each for each, _ in found] if at_random else None,
            )
            launch.set_scalars(1.0, (self.alpha,), self._step_count)
            actions += launch.once(columns)
        return actions

    def __getstate__(self) -> dict[str, Any]:
        slow = {p: buffers.moved(slow, "cpu") for p, slow in self._slow.items()}
        return {**super().__getstate__(), "_slow": slow}  # device arrays cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._slow = {p: buffers.moved(slow, p.device) for p, slow in self._slow.items()}

    # ---- snapshots ----

    def _own_snapshot(self, number: dict[Parameter, int]) -> dict[str, Any]:
        return {
            "k": self.k,
            "alpha": self.alpha,
            "since_sync": self.since_sync,
            "slow": {
                i: buffers.host_copy_or_loan(self._slow[p])
                for p, i in number.items()
                if p in self._slow
            },
        }

    def _taking_over_own(self, own: dict[str, Any], owner: dict[Any, Parameter]) -> list[partial]:
        missing = {"k", "alpha", "since_sync", "slow"} - own.keys()
        if missing:
            raise ValueError(f"'lookahead' of the loaded state dict has no {sorted(missing)}")
        K.check("k", own["k"])
        ALPHA.check("alpha", own["alpha"])
        hyper.count(least=0).check("since_sync", own["since_sync"])
        slow: dict[Parameter, Any] = {}
        for number, value in own["slow"].items():
            if number not in owner:
                raise ValueError(
                    f"loaded 'lookahead' has an array for {number!r}, which no group names"
                )
            parameter = owner[number]
            title = f"loaded slow array of {members.label(number, parameter.name)}"
            array = buffers.as_host(value, title)
            if array.shape != parameter.shape:
                raise ValueError(
                    f"{title} has shape {array.shape}, but the parameter has {parameter.shape}"
                )
            slow[parameter] = buffers.copy_beside(array, parameter._view)
        loaded = {
            "k": int(own["k"]),
            "alpha": checks.plain(own["alpha"]),
            "since_sync": int(own["since_sync"]),
            "_slow": slow,
        }
        return [partial(setattr, self, name, value) for name, value in loaded.items()]


def _begun(parameter: Parameter) -> Any:
    """A parameter's slow array, which begins as the parameter is."""
    array = buffers.host_copy(buffers.given(parameter._view))
    wide = array.astype(np.float32) if array.itemsize == 2 else array
    return buffers.copy_beside(wide, parameter._view)
