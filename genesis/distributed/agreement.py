"""What all ranks must have alike is compared before anything depends on it.

Ranks that are not alike would wait for messages that nobody sends, or go on with different models. So
each call that all ranks make begins with one small message: a digest of what has to be alike, and what
went wrong so far, if anything did. Every rank sees the messages of all, so all of them go on, or all of
them raise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

_Result = TypeVar("_Result")

MOST = 5
"""How many differences a message names."""

_RAISED = {kind.__name__: kind for kind in (TypeError, ValueError, RuntimeError, OSError)}
"""Exceptions that other ranks raise as the one does in which they come up."""


class Said(NamedTuple):
    """What a rank says of itself.

    Attributes:
        digest: of what all have to have alike.
        error: the type and the text of what was raised in it, or None.
        sent: how many messages it has sent beside, which wait to be received.
        note: whatever else the others are to know.
    """

    digest: bytes
    error: tuple[str, str] | None
    sent: int
    note: Any


class Agreement:
    """The ranks of a communicator, which go on together or not at all.

    Args:
        comm: an intracommunicator of mpi4py; on it nothing else must be sent.
        sent: tells how many messages this rank has sent beside, on another communicator, in an order
            that all ranks have alike. Default: none.
        give_up: is called before something is raised, with the largest such number: there are that
            many to be received. Default: nothing is to be done.
    """

    def __init__(
        self,
        comm: Any,
        sent: Callable[[], int] = int,
        give_up: Callable[[int], None] = lambda sent: None,
    ):
        self.comm, self._sent, self._give_up = comm, sent, give_up
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def reach(
        self,
        doing: str,
        alike: Any = None,
        facts: Callable[[], Mapping[str, str]] = dict,
        *,
        error: Exception | None = None,
        note: Any = None,
    ) -> list[Any]:
        """The notes of all ranks, once these agree.

        Args:
            doing: what this is about.
            alike: what has to be alike, something with a `repr` that says it all.
            facts: makes the same into texts by what they are about, if ranks turn out to differ.
            error: what went wrong in this rank. Default: None, nothing.
            note: what other ranks get to know, something that can be pickled. Default: None.

        Raises:
            Exception: the error, in the rank in which it came up.
            TypeError, ValueError, OSError, RuntimeError: the same in other ranks.
            ValueError: ranks differ; says in what, and which.
        """
        digest = hashlib.blake2b(repr((doing, alike)).encode(), digest_size=16).digest()
        failure = None if error is None else (type(error).__name__, str(error))
        own = digest, failure, self._sent(), note
        everyone = [Said(*said) for said in self.comm.allgather(own)]
        failed = {rank: said.error for rank, said in enumerate(everyone) if said.error is not None}
        differ = len({said.digest for said in everyone}) > 1
        if failed or differ:
            self._give_up(max(said.sent for said in everyone))
        if error is not None:
            raise _known_everywhere(error)
        if failed:
            kind, text = next(iter(failed.values()))
            raise _known_everywhere(
                _RAISED.get(kind, RuntimeError)(
                    f"{doing} has failed on {ranks(list(failed))}, so nothing was done on any: "
                    f"{kind}: {text}"
                )
            )
        if differ:
            told = self.comm.allgather((doing, facts()))
            calls = differences({rank: {"the call": call} for rank, (call, _) in enumerate(told)})
            found = calls or differences({rank: each for rank, (_, each) in enumerate(told)})
            raise _known_everywhere(
                ValueError(f"{doing}: ranks differ, so nothing was done: {found}")
            )
        return [said.note for said in everyone]

    def attempt(self, doing: str, function: Callable[[], _Result], alike: Any = None) -> _Result:
        """What a function returns that all ranks call, once it has succeeded in each of them.

        Raises:
            Exception: what it has raised in one of them, see `reach`.
        """
        result: Any = None
        error: Exception | None = None
        try:
            result = function()
        except Exception as caught:
            if is_known_everywhere(caught):  # the others have raised, too, and are gone
                raise
            error = caught
        self.reach(doing, alike, lambda: {"arguments": repr(alike)}, error=error)
        return result


def _known_everywhere(error: Exception) -> Exception:
    """Note that all ranks raise an error, or one that tells of it."""
    error.__dict__["_genesis_on_all_ranks"] = True
    return error


def is_known_everywhere(error: Exception) -> bool:
    """Whether an error has been raised on all ranks."""
    return "_genesis_on_all_ranks" in error.__dict__


def differences(facts: Mapping[int, Mapping[str, str]]) -> str:
    """In what ranks differ, given what each of them says of itself."""
    found = []
    for about in dict.fromkeys(about for each in facts.values() for about in each):
        whose: dict[str, list[int]] = {}
        for rank, each in facts.items():
            whose.setdefault(each.get(about, "not there"), []).append(rank)
        if len(whose) > 1:
            said = ", ".join(f"{value} on {ranks(each)}" for value, each in whose.items())
            found.append(f"{about} is {said}")
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(found[:MOST]) + more


def ranks(numbers: Sequence[int]) -> str:
    """Ranks by their numbers, in words: "rank 3", "ranks 0, 2 and 5 to 8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [
        word
        for first, last in runs
        for word in (
            [f"{first} to {last}"]
            if last > first + 1
            else [str(each) for each in range(first, last + 1)]
        )
    ]
    if len(numbers) == 1:
        return f"rank {words[0]}"
    together = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"ranks {together}"
