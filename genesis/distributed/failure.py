"""What becomes of a job in which one rank fails: it ends, and says why."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_installed = False

_FORWARDING = 0.5
"""How many seconds a launcher has to pass on what was printed: what it has not read when the job ends is
lost."""


def end_the_job_with_a_rank(comm: Any) -> None:
    """Let an exception that nobody catches end all ranks, not only the one in which it was raised.

    The others would wait for it for ever, since MPI learns of a rank that has died, and not of one that
    is about to leave. The traceback is printed as usual, and the job ends with status 1. Further calls
    do nothing. A job of one rank is left alone.
    """
    global _installed
    if _installed or comm.Get_size() == 1:
        return
    _installed = True
    before, rank = sys.excepthook, comm.Get_rank()

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        print(f"rank {rank} has failed, so the job ends:", file=sys.stderr)
        before(kind, error, traceback)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(_FORWARDING)
        comm.Abort(1)

    sys.excepthook = hook
