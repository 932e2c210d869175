"""Numbers that all tensors of an optimizer have in common, such as the step size that Prodigy finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .. import kernels
from ..formulas import Written
from . import arrays, members


class OfAllTensors:
    """Where the plans of a step find the numbers of all tensors.

    Args:
        state: that of the optimizer's parameters, which has them where `before` does not.
        stream: on a GPU the stream to work on, or None.
        before: those of the plans before, which hold the same numbers as the state; or None.
    """

    def __init__(
        self,
        state: Mapping[Any, Mapping[str, Any]],
        stream: Any,
        before: kernels.OfAll | None,
    ):
        self._state, self._stream, self._before = state, stream, before
        self._begins: list[float] | None = None
        self._new: kernels.OfAll | None = None

    def get(self, written: Written, initial: Mapping[str, Any], device: str) -> Any:
        """What a plan takes; None if nothing in its formula concerns all tensors.

        Args:
            written: the plan's.
            initial: what state begins with, by name.
            device: where its tensors are.

        Raises:
            ValueError: the tensors of all plans are not in one place, or do not have one number.
        """
        sums = written.sums
        if sums is None or not sums.concerns_all:
            return None
        begins = [initial[name] for name in written.of_all]
        if self._begins is not None and begins != self._begins:
            name, one, other = next(
                each for each in zip(written.of_all, self._begins, begins) if each[1] != each[2]
            )
            raise ValueError(
                f"{name!r} is one number for all tensors, but groups let it begin with {one} and with "
                f"{other}: let all groups have the same"
            )
        self._begins = begins
        like = kernels.likeness(sums, device, self._stream)
        if self._new is None and self._before is not None and self._before.likeness == like:
            self._new = self._before
        if self._new is None:
            found = agreed(self._state, written.of_all)
            kept = [found.get(name, begin) for name, begin in zip(written.of_all, begins)]
            self._new = kernels.OfAll(sums, kept, device, self._stream)
        if self._new.device != device:
            raise ValueError(
                "sums over all tensors need all of them on one device, but there are some on "
                f"{self._new.device} and some on {device}: move them with optimizer.to(device)"
            )
        if self._new.likeness != like:
            raise ValueError(
                "groups have other flags, and with these, sums over all tensors are of other things: "
                "let all groups have the same"
            )
        return self._new


def agreed(state: Mapping[Any, Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """The numbers that all parameters have in common; those that no state has are not there.

    Raises:
        TypeError: what a state has is no number.
        ValueError: two parameters have another one.
    """
    found: dict[str, tuple[float, str]] = {}
    wanted = tuple(names)
    for number, (parameter, entries) in enumerate(state.items() if wanted else ()):
        for name in wanted:
            if name not in entries:
                continue
            what = members.label(number, parameter.name)
            value = arrays.state_number(entries[name], name, what)
            before, whose = found.setdefault(name, (value, what))
            if value != before and not (value != value and before != before):
                raise ValueError(
                    f"state {name!r} is one number for all parameters, but {before} for {whose} and "
                    f"{value} for {what}: set it to the same for all"
                )
    return {name: value for name, (value, _) in found.items()}
