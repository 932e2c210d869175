"""What a workload is, and how it is measured: contenders in turns, and what each came to.

A workload names its contenders, and `build` makes them: functions of no arguments that do the work.
`measure` lets them take turns. What a contender cannot do here is in the result as missing, with the
reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peers import Missing
from timing import Call, Summary, alternate, alternate_measured, median

PRANGE, TABLE = "roofline (prange)", "roofline (table)"
ROOFLINES = (PRANGE, TABLE)


@dataclass
class Contest:
    """Contenders that are ready to run.

    Attributes:
        contenders: functions of no arguments, by name.
        before: for some of them a function to be called, untimed, before each call.
        missing: the contenders that cannot take part, and why.
        samples: what was measured while the contest was made, of contenders that take minutes.
        close: to be called at the end.
    """

    contenders: dict[str, Call] = field(default_factory=dict)
    before: dict[str, Call] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    close: Call = lambda: None


@dataclass(frozen=True)
class Workload:
    """A piece of work.

    Attributes:
        name: by which bars and results know it.
        title: by which people do.
        contenders: who takes part; genesis, if it does, first.
        build: makes a contest of those contenders that are wanted.
        seconds: how long the measurement takes.
        quick: whether it belongs to the quick suite.
        unit: "s", or the unit of what contenders return where they measure themselves.
        itself: whether the contenders return a measurement, rather than being timed.
        memory: bytes that it needs.
        settling: seconds of untimed calls at the start of a turn; None, as `timing.SETTLING`.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    build: Callable[[Sequence[str]], Contest]
    seconds: float = 6.0
    quick: bool = False
    unit: str = "s"
    itself: bool = False
    memory: int = 0
    settling: float | None = None


@dataclass
class Result:
    """What a workload came to.

    Attributes:
        samples: what was measured, by contender.
        missing: as in a contest.
        error: why there are no samples, if there are none.
        failed: whether that was a failure, rather than something that this machine lacks.
        load: the machine's load before the workload.
    """

    workload: Workload
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    error: str = ""
    failed: bool = False
    load: float = 0.0

    def median(self, contender: str) -> float | None:
        return median(self.samples[contender]) if self.samples.get(contender) else None

    @property
    def roofline(self) -> float | None:
        """The faster roofline's median."""
        return min((m for name in ROOFLINES if (m := self.median(name)) is not None), default=None)

    @property
    def fraction(self) -> float | None:
        """How near genesis comes to the roofline."""
        ours = self.median("genesis")
        return None if ours is None or self.roofline is None else self.roofline / ours

    def ratio(self, contender: str, ours: str = "genesis") -> float | None:
        """How many times as long a contender takes as genesis."""
        theirs, mine = self.median(contender), self.median(ours)
        return None if theirs is None or mine is None else theirs / mine

    @property
    def drift(self) -> float:
        """How far the roofline's median in any third of the run is from that in another."""
        names = [name for name in ROOFLINES if len(self.samples.get(name, ())) >= 6]
        if not names:
            return 0.0
        best = min(names, key=lambda name: median(self.samples[name]))
        thirds = [median(list(part)) for part in np.array_split(self.samples[best], 3)]
        return max(thirds) / min(thirds) - 1

    def record(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "title": self.workload.title,
            "unit": self.workload.unit,
            "contenders": {name: Summary(times) for name, times in self.samples.items()},
            "missing": self.missing,
            "error": self.error,
            "roofline": self.roofline,
            "fraction_of_roofline": self.fraction,
            "ratio": {
                name: self.ratio(name)
                for name in self.samples
                if name != "genesis" and name not in ROOFLINES and self.ratio(name) is not None
            },
            "roofline_drift": self.drift,
            "load": self.load,
        }


def measure(workload: Workload, share: float = 1.0, leave_out: Sequence[str] = ()) -> Result:
    """Run a workload.

    Args:
        workload: what to run.
        share: the part of its usual time that it may take.
        leave_out: contenders to be reported as missing, to save time.
    """
    result = Result(workload, load=os.getloadavg()[0])
    if workload.memory > available_memory():
        result.error = f"needs {workload.memory / 2**30:.0f} GiB of memory"
        return result
    try:
        wanted = [name for name in workload.contenders if name not in leave_out]
        contest = workload.build(wanted)
    except Missing as missing:
        result.error = str(missing)
        return result
    try:
        result.missing = dict(contest.missing)
        for name in workload.contenders:
            if name not in wanted:
                contest.contenders.pop(name, None)
                result.missing[name] = "left out, to save time"
        seconds = workload.seconds * share
        if workload.itself:
            found = alternate_measured(contest.contenders, seconds)
        else:
            settling = workload.settling
            found = alternate(contest.contenders, seconds, contest.before, settling=settling)
        found |= contest.samples
        result.samples = {name: found[name] for name in workload.contenders if name in found}
    finally:
        contest.close()
    return result


def available_memory() -> int:
    """Bytes that this process could still take."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return 1 << 62
