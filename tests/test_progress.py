"""Progress bars: a picture on a terminal, a line a second elsewhere."""

import io
import sys

import pytest

from genesis import progress
from genesis.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time(monkeypatch):
    """A clock that goes on when it is told to."""
    now = [100.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def run(monkeypatch, file, time, seconds, number=50, **others):
    monkeypatch.setattr(sys, "stderr", file)
    bar = Progress(range(number), title="work", unit="parts", **others)
    for i in bar:
        bar.note = f"part {i}"
        time(seconds)
    return file.getvalue()


def test_one_line_a_second_where_there_is_no_terminal(monkeypatch, time):
    said = run(monkeypatch, io.StringIO(), time, 0.125, number=40)
    lines = said.splitlines()
    assert 5 <= len(lines) <= 6  # in 5 seconds, and at the end
    assert "\r" not in said
    assert "\x1b" not in said
    assert lines[0] == "work:  20% 8 of 40 parts, 1 s, 4 s left, part 7"
    assert lines[-1] == "work: 100% 40 of 40 parts, 5 s, part 39"


def test_what_takes_no_second_is_one_line(monkeypatch, time):
    said = run(monkeypatch, io.StringIO(), time, 0.001)
    assert said == "work: 100% 50 of 50 parts, 0 s, part 49\n"


def test_slow_parts_have_a_line_each(monkeypatch, time):
    lines = run(monkeypatch, io.StringIO(), time, 90, number=2).splitlines()
    assert lines[0] == "work:  50% 1 of 2 parts, 1:30 min, 1:30 min left, part 0"
    assert lines[-1] == "work: 100% 2 of 2 parts, 3:00 min, part 1"


def test_a_bar_on_a_terminal(monkeypatch, time):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    said = run(monkeypatch, Terminal(), time, 0.5, number=4)
    assert said.count("\n") == 1
    assert said.endswith("\n")
    assert "work:  50% |##########          | 2 of 4 parts, 1 s, 1 s left" in said
    monkeypatch.setenv("COLUMNS", "20")
    said = run(monkeypatch, Terminal(), time, 0.5, number=4)
    assert max(len(part.removesuffix("\x1b[K")) for part in said.strip().split("\r")) == 19


def test_a_line_above_the_bar(monkeypatch, time, capsys):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    for _ in (bar := Progress(range(2))):
        bar.write("epoch")
    assert capsys.readouterr().out == "epoch\nepoch\n"
    assert "\r\x1b[K" in file.getvalue()


def test_a_loop_that_is_left_ends_its_line(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())

    def leave():
        for i in Progress(iter("abc"), unit="letters"):
            if i == "b":
                raise RuntimeError

    with pytest.raises(RuntimeError):
        leave()
    assert file.getvalue() == "1 letters, 0 s\n"


def test_nothing_is_shown_where_nobody_watches(monkeypatch, time):
    assert run(monkeypatch, io.StringIO(), time, 5, shown=False) == ""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(Progress([1, 2])) == [1, 2]
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    bar = Progress([1, 2])
    closed.close()
    assert list(bar) == [1, 2]
