"""A search along a line for a point that satisfies the strong Wolfe conditions."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np


class Point(NamedTuple):
    """A point on a line: its distance from the start, and what is known there."""

    length: float
    loss: float
    gradient: np.ndarray
    slope: float


class Line(Protocol):
    """The points that are reached from one point in one direction.

    Attributes:
        size: the largest magnitude in the direction.
    """

    size: float

    def at(self, length: float) -> Point:
        """Go there, and look."""


_SUFFICIENT = 1e-4
"""The decrease that is asked for, as a part of what the slope at the start promises."""

_FLAT = 0.9
"""How flat it must be where the search ends, as a part of the slope at the start."""


def strong_wolfe(
    line: Line, start: Point, length: float, tolerance_change: float, most: int
) -> Point:
    """A point on the line that satisfies the strong Wolfe conditions, or the best one found.

    Args:
        line: the line; its direction goes down at the start.
        start: where it starts.
        length: the first distance to try.
        tolerance_change: no smaller interval is searched.
        most: the number of trials after the first.
    """

    def too_high(point: Point) -> bool:
        return point.loss > start.loss + _SUFFICIENT * point.length * start.slope

    def flat(point: Point) -> bool:
        return abs(point.slope) <= -_FLAT * start.slope

    # Go further until an interval is found that must contain a good point.
    before, now = start, line.at(length)
    trials = 0
    while True:
        if trials >= most:
            return now if now.loss < start.loss else start
        if too_high(now) or (trials > 1 and now.loss >= before.loss):
            break
        if flat(now):
            return now
        if now.slope >= 0:
            break
        nearest = now.length + 0.01 * (now.length - before.length)
        length = between(before, now, nearest, 10 * now.length)
        before, now = now, line.at(length)
        trials += 1

    # Make it smaller around its lower end.
    ends = [before, now]
    low = 0 if before.loss <= now.loss else 1
    size = line.size
    close_before = False
    while trials < most:
        left, right = sorted(end.length for end in ends)
        if (right - left) * size < tolerance_change:
            break
        length = between(ends[0], ends[1], left, right)
        # Twice close to an end, or outside: go a tenth of the way in from the nearer one.
        margin = 0.1 * (right - left)
        close = min(right - length, length - left) < margin
        if close and (close_before or length >= right or length <= left):
            length = right - margin if right - length < length - left else left + margin
            close = False
        close_before = close

        now = line.at(length)
        trials += 1
        if too_high(now) or now.loss >= ends[low].loss:
            ends[1 - low] = now
            low = 0 if ends[0].loss <= ends[1].loss else 1
        elif flat(now):
            return now
        else:
            if now.slope * (ends[1 - low].length - ends[low].length) >= 0:
                ends[1 - low] = ends[low]
            ends[low] = now
    return ends[low]


def between(a: Point, b: Point, lowest: float, highest: float) -> float:
    """Where the cubic through two points has its minimum, within bounds; their middle if nowhere."""
    left, right = (a, b) if a.length <= b.length else (b, a)
    width = right.length - left.length
    if width > 0:
        bend = left.slope + right.slope - 3 * (right.loss - left.loss) / width
        square = bend * bend - left.slope * right.slope
        if square >= 0:
            root = math.sqrt(square)
            spread = right.slope - left.slope + 2 * root
            if spread != 0:
                found = right.length - width * (right.slope + root - bend) / spread
                return min(max(found, lowest), highest)
    return (lowest + highest) / 2
