"""Another process that measures: it says a line when it is ready, then one for each that it reads."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import Missing

HERE = Path(__file__).parent


class Worker:
    """A process that runs a file of this folder.

    Args:
        file: its name.
        *arguments: its arguments.
        patience: seconds after which it must be ready.
        **environment: variables of its own.

    Attributes:
        ready: the line that it said when it was ready.

    Raises:
        Missing: it ended, or was not ready in time; it is no longer there then.
    """

    def __init__(
        self, file: str, *arguments: str, patience: float | None = None, **environment: str
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / file), *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            if not select.select([self._process.stdout], [], [], patience)[0]:
                raise Missing(f"was not ready after {patience:.0f} s")
            self.ready = self._line()
        except BaseException:
            self.close()
            raise

    def ask(self, line: str = "") -> float:
        """What it answers to a line.

        Raises:
            Missing: it has ended.
        """
        asked = self._process.stdin
        assert asked is not None
        print(line, file=asked, flush=True)
        return float(self._line())

    def _line(self) -> str:
        answers = self._process.stdout
        assert answers is not None
        line = answers.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip()
            raise Missing(said.rsplit("\n", 1)[-1] or "ended without a word")
        return line

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._errors.close()
