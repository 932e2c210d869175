"""Exceptions at any moment: alarms at random, or after each bytecode at which Python takes signals."""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import genesis

PACKAGE = os.path.dirname(genesis.__file__)


class AlarmError(Exception):
    """What a handler raises that is neither KeyboardInterrupt nor SystemExit."""


def _attacked(action: Callable[[], Any]) -> None:
    action()


def interrupted(
    action: Callable[[], Any], after: float, error: type[BaseException], times: int = 1
) -> BaseException | None:
    """Call `action()` and let a signal handler raise `error` in it, `after` seconds from now.

    With `times` greater than 1, more alarms follow closely, in whatever handles the first. None
    comes outside of `action`.

    Returns:
        The exception that ended `action`, or None.
    """
    left = times

    def handler(number: int, frame: Any) -> None:
        nonlocal left
        while frame is not None:
            if frame.f_code is _attacked.__code__ and left:
                left -= 1
                if left:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5)
                raise error
            frame = frame.f_back

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        _attacked(action)
        return None
    except BaseException as ended:
        return ended
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@lru_cache(maxsize=None)
def _taking_signals(code: Any) -> frozenset[int]:
    """Where in a function's code signal handlers may run."""
    return frozenset(
        i.offset
        for i in dis.get_instructions(code)
        if i.opname.startswith(("CALL", "RESUME")) or "JUMP" in i.opname
    )


@lru_cache(maxsize=None)
def _beginnings(code: Any) -> frozenset[int]:
    """Where in a function's code a frame begins, or goes on after a `yield`."""
    resumed = (i.offset for i in dis.get_instructions(code) if i.opname == "RESUME")
    return frozenset((0, *resumed))


class Moments:
    """Raises an exception at the n-th moment at which Python could have run a signal handler.

    That is after calls, at jumps and at the beginning of functions, in the code of genesis. Instructions
    are watched by `sys.monitoring` where there is one: `sys.settrace` there passes over most of them.
    """

    def __init__(self, n: int | None = None):
        self.count = 0
        self._n = n
        self._took: dict[
            int, bool
        ] = {}  # by the identity of a frame, which the next one may inherit

    def _before(self, frame: Any, offset: int) -> None:
        """An instruction is about to run; perhaps it never will."""
        took = self._took.get(id(frame), False) and offset not in _beginnings(frame.f_code)
        self._took[id(frame)] = offset in _taking_signals(frame.f_code)
        if took:
            self.count += 1
            if self.count == self._n:
                raise AlarmError

    def attack(self, action: Callable[[], Any]) -> BaseException | None:
        """Call `action()`; what ended it, or None."""
        watching = self._monitored if hasattr(sys, "monitoring") else self._traced
        with watching():
            try:
                action()
                return None
            except BaseException as ended:
                return ended

    @contextmanager
    def _traced(self) -> Iterator[None]:
        def at_call(frame: Any, event: str, _: Any) -> Any:
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            return at_opcode

        def at_opcode(frame: Any, event: str, _: Any) -> Any:
            if event == "opcode":
                self._before(frame, frame.f_lasti)
            return at_opcode

        before = sys.gettrace()
        sys.settrace(at_call)
        try:
            yield
        finally:
            sys.settrace(before)

    @contextmanager
    def _monitored(self) -> Iterator[None]:
        monitoring = sys.monitoring
        tool, event = monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION

        def at_instruction(code: Any, offset: int) -> Any:
            if not code.co_filename.startswith(PACKAGE):
                return monitoring.DISABLE
            self._before(sys._getframe(1), offset)

        monitoring.use_tool_id(tool, "moments")
        monitoring.register_callback(tool, event, at_instruction)
        monitoring.set_events(tool, event)
        try:
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)


def everything(optimizer: genesis.optim.Optimizer) -> dict[str, Any]:
    """A copy of all that a step may change, in bytes, which compare without regard to NaN."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    snapshot = optimizer.state_dict()
    return {
        "parameters": [(p._view.tobytes(), p._view.dtype, p._view.shape) for p in parameters],
        "state": _frozen(snapshot["state"]),
        "groups": _frozen(snapshot["param_groups"]),
        "steps": optimizer._step_count,
    }


def _frozen(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        return value.tobytes(), str(value.dtype), value.shape
    if isinstance(value, dict):
        return {name: _frozen(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_frozen(item) for item in value]
    return value
