"""The parts of the global batch as they come in during a step, one round after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import buffers
from ..optim import gradients
from ..sparse import RowsView
from . import alike
from .agreement import Agreement, differences
from .buckets import Exchange
from .shards import Bucket
from .share import Share


class Parts:
    """What this rank has given of a step, and the sums that all ranks are making.

    Args:
        share: what this rank updates.
        exchange: what sends gradients and sums them up.
        comm: an intracommunicator of mpi4py for what ranks agree on.

    Attributes:
        agreement: what all ranks go on by.
        round: how many rounds have been summed up.
        given: for each parameter whether it has a gradient in this step; None before the first round.
    """

    def __init__(self, share: Share, exchange: Exchange, comm: Any):
        self._share, self._exchange = share, exchange
        self.agreement = Agreement(comm, self._sent, self._give_up)
        self._are_alike = False
        self.forget()

    def forget(self) -> None:
        """Let nothing be known of gradients: a new step begins."""
        self.round = 0
        self.given: np.ndarray | None = None
        self._begin_part()

    def _begin_part(self) -> None:
        count = self._share.count
        self._views: list[Any] = [None] * count
        self._ready = [False] * count
        self._has_begun = False

    def compare_values(self, again: bool = True) -> None:
        """Let ranks compare what parameters hold, in the next step; or not, since it is alike."""
        self._are_alike = not again

    @property
    def mine(self) -> bool:
        """Whether this rank has a part in the round that is next."""
        rounds, rank = self._exchange.rounds, self.agreement.rank
        return self.round < rounds and rank < self._exchange.contributors(self.round)

    def wants(self, bucket: Bucket) -> bool:
        """Whether something in a bucket has a gradient."""
        given = self.given
        return given is not None and any(given[parameter] for parameter in bucket.parameters)

    # ---- what this rank gives ----

    def ready(self, number: int, view: Any) -> None:
        """Take a parameter's gradient of the next part, and send what can be sent.

        Raises:
            TypeError, ValueError: it cannot be one, or comes once more.
        """
        self._share.follow()
        label = alike.labels(self._share.inner)[number]
        if not self.mine:
            raise ValueError("all of this rank's parts were given by now: step is next")
        if self._ready[number]:
            raise ValueError(f"{label} is ready already: it can be so once in each part")
        if view is None:
            raise ValueError(f"{label} is said to be ready, but has no gradient")
        self._views[number] = self._checked(number, view)
        self._ready[number] = True
        if not self._has_begun:
            self._has_begun = True
            self._exchange.begin(self.round)
        self._exchange.go_on(self._views, self._ready)

    def views(self, given: list[gradients.Views] | None) -> list[Any]:
        """For each parameter its gradient in the next part, or None.

        Args:
            given: for each group the gradients; None, those that parameters hold. What was `ready`
                stands.

        Raises:
            TypeError, ValueError: one cannot be a gradient, or it was given in two ways.
        """
        self._share.follow()
        if given is not None and any(self._ready):
            raise ValueError(
                "give the gradients of a part by ready() or by grads=, but not by both"
            )
        if given is None:
            found = [parameter._grad_view for parameter in self._share.inner._parameters()]
        else:
            found = [view for each in given for view in each]
        for number, is_ready in enumerate(self._ready):
            if is_ready:
                found[number] = self._views[number]
            elif found[number] is not None:
                found[number] = self._checked(number, found[number])
        return found

    def _checked(self, number: int, view: Any) -> Any:
        """A gradient's view, if it is one that can be sent."""
        shape = self._share.inner._parameters()[number].shape
        if not isinstance(view, RowsView):
            if view.shape == shape and view.dtype in buffers.FLOAT_TYPES:
                return view
            raise ValueError(
                f"the gradient of {alike.labels(self._share.inner)[number]} must have the parameter's "
                f"shape {shape} and a float type, but got {view.shape} and {view.dtype}"
            )
        raise TypeError(
            "DistributedOptimizer does not support sparse gradients, but that of "
            f"{alike.labels(self._share.inner)[number]} is a SparseGrad: give the dense gradient, "
            "grad.to_dense(len(parameter))"
        )

    # ---- what all ranks do with it ----

    def add(
        self,
        doing: str,
        views: list[Any] | None,
        error: Exception | None = None,
        arguments: dict[str, str] | None = None,
    ) -> None:
        """Make a round, once all ranks agree on it.

        Args:
            doing, error, arguments: see `agree`.
            views: this rank's gradients, or None if it has no part in the round.
        """
        self.agree(doing, error, arguments, views)
        if not self._has_begun:
            self._exchange.begin(self.round)
        self._exchange.finish([None] * self._share.count if views is None else views, self.wants)
        self.round += 1
        self._begin_part()

    def agree(
        self,
        doing: str,
        error: Exception | None = None,
        arguments: dict[str, str] | None = None,
        views: list[Any] | None = None,
    ) -> None:
        """Go on if all ranks are about to do the same, with groups and gradients alike.

        Args:
            doing: what that is.
            error: what went wrong here. Default: None, nothing.
            arguments: what else has to be alike, by name. Default: None, nothing.
            views: this rank's gradients. Default: None, it has no part in this.

        Raises:
            Exception: they are not, or one has an error. What was given of this step is forgotten.
        """
        try:
            self._share.follow()
            check_writable(self._share)
        except Exception as caught:
            error = error or caught
        inner = self._share.inner
        values: list[str] = []
        if not self._are_alike:
            values = [alike.checksum(parameter) for parameter in inner._parameters()]
        packed = None
        if views is not None:
            packed = np.packbits([view is not None for view in views]).tobytes()

        def facts() -> dict[str, str]:
            more = dict(zip((f"the values of {label}" for label in alike.labels(inner)), values))
            so_far = {"the number of parts given": str(self.round)}
            return {**(arguments or {}), **so_far, **alike.facts(inner), **more}

        notes = self.agreement.reach(
            doing,
            (arguments, alike.settings(inner), values, self.round),
            facts,
            error=error,
            note=(self._sent(), packed),
        )
        self._are_alike = True
        self._note_given(notes)

    def _sent(self) -> int:
        """How many buckets of the round this rank has sent."""
        return self._exchange.started if self._has_begun else 0

    def _give_up(self, sent: int) -> None:
        """Let the buckets arrive that some rank has sent, and begin the step anew."""
        if not self._has_begun:
            self._exchange.begin(self.round)
        self._exchange.drain(sent, [None] * self._share.count)
        self.forget()

    def _note_given(self, notes: Sequence[tuple[int, bytes | None]]) -> None:
        """Take down which parameters have a gradient, which all parts of a step must have alike.

        Raises:
            ValueError: they do not.
        """
        count = len(self._ready)
        sets = {
            rank: np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(bool)
            for rank, (_, packed) in enumerate(notes)
            if packed is not None
        }
        if not sets:
            return
        one = next(iter(sets.values())) if self.given is None else self.given
        if all(np.array_equal(each, one) for each in sets.values()):
            self.given = one
            return
        self._give_up(max(sent for sent, _ in notes))
        called = [f"the gradient of {label}" for label in alike.labels(self._share.inner)]
        told = {
            rank: {name: "given" if there else "missing" for name, there in zip(called, each)}
            for rank, each in sets.items()
        }
        raise ValueError(
            "all parts of a step must have gradients of the same parameters, but "
            + (differences(told) or "the parts before had those of others")
            + ": give zeros, or None in all of them to leave a parameter as it is"
        )


def check_writable(share: Share) -> None:
    """Raise ValueError unless all parameters can be written, which is done here for other ranks, too."""
    inner = share.inner
    for number, parameter in enumerate(inner._parameters()):
        if not parameter._view.flags.writeable:
            buffers.check_writable(parameter._view, alike.labels(inner)[number])
