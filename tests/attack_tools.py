"""What the attacks share: exceptions at chosen and at random moments, children that may die, snapshots.

An attack on memory may end the process. So that one test's end is not the end of all, and says which
test it was, such tests run in a forked child (`in_child`).
"""

import contextlib
import faulthandler
import functools
import os
import select
import signal
import sys
import time
import traceback
import warnings

import numpy as np
import pytest

import genesis

PACKAGE = os.path.dirname(genesis.__file__) + os.sep
HANGS_AFTER = 120.0
"""Seconds after which a test that has not ended is taken to hang."""


class Interrupted(BaseException):
    """An exception of a class that the library cannot know."""


KINDS = [KeyboardInterrupt, SystemExit, Interrupted]


# ---- moments ----


def interrupted_at(call, moment, kind=Interrupted):
    """Run `call`, raising `kind` at one of the lines of genesis that it comes to.

    Moments are counted from 0: each line, each entry and each return of a function. Those are more
    places than signal handlers of today's CPython can raise at, and as many as those of older ones.

    Returns:
        Whether it was raised: False if the call ended before.
    """
    passed = 0

    def within(frame, event, argument):
        nonlocal passed
        passed += 1
        if passed == moment + 1:
            raise kind
        return within

    def trace(frame, event, argument):
        if frame.f_code.co_filename.startswith(PACKAGE):
            return within(frame, event, argument)
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except kind:
        return True
    finally:
        sys.settrace(before)
    return False


def interrupted_after(call, delay, kind=Interrupted):
    """Run `call`, with an alarm after `delay` seconds whose handler raises `kind`.

    Returns:
        Whether it was raised. A handler that comes before the call begins, or after it has ended,
        does nothing.
    """

    def inside():
        signal.setitimer(signal.ITIMER_REAL, delay)
        call()

    def handler(number, frame):
        while frame is not None:
            if frame.f_code is inside.__code__:
                raise kind
            frame = frame.f_back

    before = signal.signal(signal.SIGALRM, handler)
    try:
        inside()
    except kind:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


@contextlib.contextmanager
def watchdog(seconds=HANGS_AFTER):
    """End the process, with the stacks of all threads, if what follows takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def lines_run(call):
    """How many lines of genesis a call runs: its work, on whatever machine."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


# ---- children ----


def run_in_child(body, seconds=HANGS_AFTER):
    """Run `body` in a forked child; AssertionError if it fails there, dies, or does not end."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # helper threads run, and are made anew
        child = os.fork()
    if child == 0:
        said = b""
        try:
            os.close(reader)
            for number in (signal.SIGALRM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            faulthandler.disable()
            body()
        except BaseException:
            said = traceback.format_exc().encode()
        finally:
            with contextlib.suppress(BaseException):
                while said:
                    said = said[os.write(writer, said) :]
            os._exit(0)
    os.close(writer)
    said = b""
    until = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reader], [], [], max(0, until - time.monotonic()))
        block = os.read(reader, 65536) if ready else None
        if not block:
            break
        said += block
    os.close(reader)
    if block is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert block is not None, f"the child process hangs: it did not end in {seconds:g} seconds"
    code = os.waitstatus_to_exitcode(status)
    assert code >= 0, f"the child process died of {signal.Signals(-code).name}"
    assert not said, f"in the child process:\n{said.decode()}"


def in_child(test):
    """The test, run in a forked child."""

    @functools.wraps(test)
    def run(**fixtures):
        run_in_child(lambda: test(**fixtures))

    return pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")(run)


# ---- what there is ----


def entries_of(opt, parameter):
    """A parameter's state as a plain dict; asking leaves nothing behind."""
    return dict(opt.state[parameter].items()) if parameter in opt.state else {}


def picture(opt, parameters=None):
    """Copies of all that a step may write: parameters, state buffers, numbers; nothing else."""
    if parameters is None:
        parameters = [p for group in opt.param_groups for p in group["params"]]
    seen = []
    for p in parameters:
        entries = {}
        for name, value in sorted(entries_of(opt, p).items()):
            entries[name] = value.copy() if isinstance(value, np.ndarray) else value
        seen.append((p.data.copy(), entries))
    return seen


def same(left, right):
    """Whether two pictures are the same to the last bit."""
    if len(left) != len(right):
        return False
    for (a, a_entries), (b, b_entries) in zip(left, right):
        if not _equal(a, b) or a_entries.keys() != b_entries.keys():
            return False
        if not all(_equal(a_entries[name], b_entries[name]) for name in a_entries):
            return False
    return True


def _equal(a, b):
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def refused(call, opt, *said, parameters=None, errors=(ValueError, TypeError)):
    """Assert that `call` is refused with a message that matches, and that nothing was written."""
    before = picture(opt, parameters)
    with pytest.raises(errors) as caught:
        call()
    assert same(picture(opt, parameters), before), f"something was written before: {caught.value}"
    for word in said:
        assert word in str(caught.value), f"{word!r} is not in the message: {caught.value}"
