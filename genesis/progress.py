"""Progress: a bar on a terminal, and one tidy line a second everywhere else.

A bar is drawn again and again over itself, which in a log file, a notebook's cell or the output of a
scheduler is a heap of control characters. There, lines say the same.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TextIO, TypeVar

Thing = TypeVar("Thing")

REDRAWN = 0.1
"""Seconds between two pictures of a bar."""
WRITTEN = 1.0
"""Seconds between two lines, where there is no terminal."""

clock = time.monotonic


class Progress(Generic[Thing]):
    """Goes through things, as a `for` loop does, and shows on standard error how far it has come.

    Where that is no terminal, at most one line a second is written, and one at the end.

    Args:
        things: what to go through.
        title: what is being done. Default: "", nothing is said of it.
        unit: what one of the things is called. Default: "", nothing is said of it.
        total: how many there are. Default: None, `len(things)`, or unknown if it has none.
        shown: whether anything is shown at all. Default: True.

    Attributes:
        note: what is said behind the bar, of the thing at hand for example; may be set at any time.

    Example:
        >>> from genesis.progress import Progress
        >>> for epoch in (bar := Progress(range(3), title="training", unit="epochs")):
        ...     bar.note = f"loss {1 / (1 + epoch):.2f}"
        >>> bar.done
        3
    """

    def __init__(
        self,
        things: Iterable[Thing],
        *,
        title: str = "",
        unit: str = "",
        total: int | None = None,
        shown: bool = True,
    ):
        self._things, self._title, self._unit = things, title, unit
        length: Any = getattr(things, "__len__", None)
        self._total = length() if total is None and length is not None else total
        self._file: TextIO | None = sys.stderr if shown else None
        self._redraws = _is_terminal(self._file)
        self._note = ""
        self._begun = self._last = clock()
        self._drawn = False
        self._said = -1
        self.done = 0

    def __iter__(self) -> Iterator[Thing]:
        self._begun = self._last = clock()
        if self._redraws:
            self._show()
        try:
            for thing in self._things:
                yield thing
                self.done += 1
                self._show_if_due()
        finally:
            self._finish()

    @property
    def note(self) -> str:
        """What is said behind the bar."""
        return self._note

    @note.setter
    def note(self, note: str) -> None:
        self._note = note
        self._show_if_due()

    def write(self, text: str) -> None:
        """Print a line to standard output, above the bar."""
        if self._drawn:
            self._put("\r\x1b[K")
        print(text, flush=True)
        if self._drawn:
            self._show()

    def _show_if_due(self) -> None:
        if clock() - self._last >= (REDRAWN if self._redraws else WRITTEN):
            self._show()

    def _finish(self) -> None:
        if self._redraws or self._said != self.done:
            self._show()
        if self._redraws:
            self._put("\n")
            self._drawn = False

    def _show(self) -> None:
        self._last = clock()
        if self._redraws:
            # One column stays free: in some terminals a full line moves on to the next.
            room = shutil.get_terminal_size().columns - 1
            self._put(f"\r{self._picture()[:room]}\x1b[K")
            self._drawn = True
        else:
            self._put(f"{self._picture()}\n")
            self._said = self.done

    def _picture(self) -> str:
        title = f"{self._title}: " if self._title else ""
        unit = f" {self._unit}" if self._unit else ""
        seconds = self._last - self._begun
        times = _time(seconds)
        if self._total is None:
            amount = f"{self.done}{unit}"
        else:
            share = self.done / self._total if self._total else 1.0
            bar = f"|{'#' * int(20 * share):20}| " if self._redraws else ""
            amount = f"{int(100 * share):3}% {bar}{self.done} of {self._total}{unit}"
            if 0 < self.done < self._total:
                times += f", {_time(seconds / self.done * (self._total - self.done))} left"
        return f"{title}{amount}, {times}{f', {self._note}' if self._note else ''}"

    def _put(self, text: str) -> None:
        if self._file is not None:
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):  # it has been closed: nobody watches any more
                self._file = None


def _is_terminal(file: TextIO | None) -> bool:
    try:
        return file is not None and file.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def _time(seconds: float) -> str:
    """A duration as people read it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
