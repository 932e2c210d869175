"""Exceptions at any moment: alarms at random, or after each bytecode at which Python takes signals."""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable
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


class Moments:
    """Raises an exception at the n-th moment at which Python could have run a signal handler.

    That is after calls, at jumps and at the beginning of functions, in the code of genesis.
    """

    def __init__(self, n: int | None = None):
        self.count = 0
        self._n = n

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        takes, after = _taking_signals(frame.f_code), False

        def at_opcode(frame: Any, event: str, _: Any) -> Any:
            nonlocal after
            if event == "opcode":
                if after:
                    self.count += 1
                    if self.count == self._n:
                        raise AlarmError
                after = frame.f_lasti in takes
            return at_opcode

        return at_opcode

    def attack(self, action: Callable[[], Any]) -> BaseException | None:
        """Call `action()`; what ended it, or None."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            action()
            return None
        except BaseException as ended:
            return ended
        finally:
            sys.settrace(before)


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
