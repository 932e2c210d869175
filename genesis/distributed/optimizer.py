"""`DistributedOptimizer`: one optimizer on many ranks, which average gradients and share the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np

from .. import buffers, checks, kernels, tree
from ..checkpoint.sharded import Piece, whole
from ..commit import commit
from ..kernels import reductions
from ..optim import arrays, gradients, hooks, measured
from ..optim.gradient_optimizer import Ending, GradientOptimizer
from ..optim.state import State
from ..optim.wrapper import Wrapper
from . import alike
from .agreement import Agreement
from .buckets import Exchange
from .failure import end_the_job_with_a_rank
from .parts import Parts, check_writable
from .required import mpi
from .shards import Bucket, Division, Tensor
from .share import Share, can_cut, why_not_divided

MIB = 1 << 20


class DistributedOptimizer(Wrapper):
    r"""An optimizer whose gradients are averaged over MPI ranks, and whose work and state they share.

    Each rank computes gradients of its part of the global batch. `step` then does, on all ranks:

    .. math::
        \bar g &= \tfrac{1}{P} \, (g_0 + g_1 + \dots + g_{P-1}) && \text{summed in this order} \\
        \theta_r, s_r &\leftarrow \text{update}(\theta_r, s_r, \bar g_r)
            && \text{rank } r \text{ its share} \\
        \theta &\leftarrow (\theta_0, \theta_1, \dots) && \text{exchanged}

    where part :math:`p` is computed by rank :math:`p \bmod n`. With `deterministic=True` results are the
    same to the last bit for any number of ranks, as long as the global batch is divided into the same
    parts: one process with `parts=4` and four processes with a part each compute the same. The norm
    for `max_norm` is, too.

    With `shard_state=True` each rank keeps 1/n of the state (ZeRO-1) and does 1/n of the update. Rules
    of one element share tensors evenly, by elements; optimizers that see a tensor as a whole (`LAMB`,
    `Muon`, `Adafactor`, `SOAP`, ...), and those with `stochastic_rounding=True`, by tensors. With
    `shard_state=False` each rank keeps everything.

    Groups, schedules and hooks are the inner optimizer's, and all ranks have to treat them alike. All
    ranks call `step`, `accumulate`, `broadcast_parameters`, `add_param_group`, `state_dict`,
    `load_state_dict` and `swap_ema` together. What differs between ranks, and what goes wrong in one of
    them, is raised on all of them before anything is written: none waits for ever. An exception that
    nobody catches ends the job (`sys.excepthook`).

    Args:
        optimizer: the optimizer, `genesis.optim.AdamW(params, lr=1e-3)` for example, made alike on all
            ranks, with parameters on the CPU. Not one that works through another: put `Lookahead` or
            `SAM` around this one.
        comm: the ranks, an intracommunicator of mpi4py. Default: None, `MPI.COMM_WORLD`.
        shard_state: whether ranks share state and update. Default: True.
        deterministic: sum in the order of parts, by an exchange; False lets MPI's own reduction choose
            the order, whose results depend on the number of ranks. Default: True.
        bucket_mb: how many MiB of gradient travel at once. Two times that is needed beside the sums.
            Default: 25.
        parts: into how many parts the global batch is divided, at least 1. If there are more than
            ranks, a rank computes several, `my_parts`, and gives them to `accumulate`. Default: None,
            the number of ranks.
        communication: "bfloat16" rounds gradients to it before they are sent, which halves what is sent;
            they are summed in float32 all the same. Default: None, nothing is rounded.
        flatten: let the parameters' arrays be views of one piece of memory, so that buckets need no
            copies. The arrays that were given are then not the parameters' any more: read
            `parameter.data`, or replace a tree of arrays by `flattened(tree)`. Default: False.

    Attributes:
        optimizer: as given. Its own `step` goes past the other ranks.
        rank, size: this rank's number, and how many there are.
        parts: as given.
        my_parts: the numbers of the parts that this rank computes, a range.
        state: what this rank keeps. Where a tensor is cut, the key is a `Parameter` that is a part of
            it, named "weight[0:16384]".

    Raises:
        ImportError: there is no mpi4py; says how to install it.
        TypeError: `optimizer` is none that can be distributed (`LBFGS`, wrappers), or not with
            `shard_state=True` (Schedule-Free optimizers, and sums over all tensors: `Prodigy`, `DoG`,
            ...), or other arguments are not as above.
        ValueError: ranks differ in parameters, shapes, data types, hyper-parameters or arguments.

    Example:
        >>> import numpy as np, genesis, genesis.distributed
        >>> params = {"x": np.array([3.0, 4.0])}
        >>> opt = genesis.distributed.DistributedOptimizer(genesis.optim.SGD(params, lr=0.5), parts=2)
        >>> opt.broadcast_parameters(root=0)
        >>> for part in opt.my_parts:  # in one process both parts
        ...     opt.accumulate({"x": np.array([2.0, 0.0]) * part})
        >>> _ = opt.step()
        >>> params["x"]
        array([2.5, 4. ])

    References:
        Sergeev, Del Balso: Horovod: fast and easy distributed deep learning in TensorFlow. 2018,
        https://arxiv.org/abs/1802.05799

        Rajbhandari, Rasley, Ruwase, He: ZeRO: Memory optimizations toward training trillion parameter
        models. SC 2020, https://arxiv.org/abs/1910.02054
    """

    def __init__(
        self,
        optimizer: GradientOptimizer,
        comm: Any = None,
        shard_state: bool = True,
        deterministic: bool = True,
        bucket_mb: float = 25,
        parts: int | None = None,
        communication: str | None = None,
        flatten: bool = False,
    ):
        MPI = mpi()
        comm = MPI.COMM_WORLD if comm is None else comm
        if not hasattr(comm, "allgather"):
            raise TypeError(
                f"comm must be a communicator of mpi4py, but got {type(comm).__name__}: leave it out "
                "for MPI.COMM_WORLD"
            )
        end_the_job_with_a_rank(comm)
        beginning = Agreement(comm)
        settings = {
            "shard_state": shard_state,
            "deterministic": deterministic,
            "bucket_mb": bucket_mb,
            "parts": beginning.size if parts is None else parts,
            "communication": communication,
            "flatten": flatten,
        }

        def checked() -> tuple:
            super(DistributedOptimizer, self).__init__(optimizer)
            _check_settings(**settings)
            _check_inner(optimizer, shard_state)
            return alike.described(optimizer)

        described = beginning.attempt("DistributedOptimizer", checked)
        beginning.reach(
            "DistributedOptimizer",
            (settings, described),
            lambda: {**{n: repr(v) for n, v in settings.items()}, **alike.facts(optimizer)},
        )
        self.shard_state, self.deterministic = bool(shard_state), bool(deterministic)
        self.rank, self.size = beginning.rank, beginning.size
        self.communication = communication
        self.parts = self.size if parts is None else int(parts)
        self.my_parts = range(self.rank, self.parts, self.size)
        self._flatten = bool(flatten)
        self._measured: measured.Changes | None = None
        self._has_joined = False
        cuts = self.shard_state and can_cut(optimizer)
        self._division = Division(
            self.size,
            int(bucket_mb * MIB),
            kernels.chunk_length(),
            whole=self.shard_state and not cuts,
            across=cuts,
        )
        self._exchange = Exchange(
            comm.Dup(),
            self._division,
            self.parts,
            self.deterministic,
            communication is not None,
            everything=not self.shard_state,
        )
        self._share = Share(optimizer, self.rank, self.shard_state, cuts)
        self._divide(0)
        self._gradients = Parts(self._share, self._exchange, comm.Dup())
        self._agreement = self._gradients.agreement
        if self.shard_state and optimizer.state:
            state = optimizer._snapshot()
            optimizer.state = {}  # type: ignore[assignment]
            commit(self._taking_over(state))

    def _divide(self, first: int) -> None:
        """Divide the parameters from `first` on among ranks."""
        everyone = self._parameters()
        tensors = [
            # Of sums that all ranks have, any part is an array.
            Tensor(
                number,
                parameter.size,
                parameter._view.dtype,
                parameter._view.flags.c_contiguous or self._flatten or not self.shard_state,
            )
            for number, parameter in enumerate(everyone)
            if number >= first
        ]
        buckets = self._division.add(tensors)
        self._exchange.follow()
        if self._flatten:
            views = [parameter._view for parameter in everyone]
            made = self._exchange.flatten(views, buckets)
            # The old arrays are kept, so that no other array gets the id of one.
            self._replaced = {
                **getattr(self, "_replaced", {}),
                **{id(views[number]): (views[number], array) for number, array in made.items()},
            }
            for number, array in made.items():
                everyone[number]._view = buffers.view(array)
                everyone[number].changed()
        self._share.add(
            first, buckets, self._exchange.sums[len(self._exchange.sums) - len(buckets) :]
        )

    # ---- parameters ----

    def broadcast_parameters(self, root: int = 0) -> None:
        """Let all ranks have the parameters as one of them has them.

        Args:
            root: that rank. Default: 0.

        Raises:
            ValueError: there is no such rank, or ranks were given different ones.
        """

        def checked() -> None:
            if checks.integer("root", root, 0) >= self.size:
                raise ValueError(f"root must be a rank, 0 to {self.size - 1}, but got {root}")
            self._share.follow()
            check_writable(self._share)

        self._agreement.attempt("broadcast_parameters", checked, root)
        everyone = self._parameters()
        self._exchange.broadcast([parameter._view for parameter in everyone], root)
        for parameter in everyone:
            parameter.changed()
        self._gradients.compare_values(again=False)

    def flattened(self, params: Any) -> Any:
        """A tree of arrays with those that `flatten=True` gave parameters, in place of those they had.

        Args:
            params: a tree in which parameters' arrays are, for example the one that the optimizer was
                made of.

        Returns:
            A tree like it.

        Raises:
            RuntimeError: made with `flatten=False`.

        Example:
            >>> import numpy as np, genesis, genesis.distributed
            >>> params = {"x": np.ones(2), "y": np.ones(1)}
            >>> opt = genesis.distributed.DistributedOptimizer(
            ...     genesis.optim.SGD(params, lr=0.5), flatten=True
            ... )
            >>> params = opt.flattened(params)
            >>> _ = opt.step(grads={"x": np.ones(2), "y": np.ones(1)})
            >>> params["x"], params["x"].base is params["y"].base
            (array([0.5, 0.5]), True)
        """
        if not self._flatten:
            raise RuntimeError(
                "flattened() is of use with flatten=True; parameters have kept their arrays"
            )

        def now(leaf: Any) -> Any:
            before, after = self._replaced.get(id(leaf), (None, None))
            return leaf if before is None else after

        return tree.map(now, params)

    # ---- gradients ----

    def ready(self, parameter: Any, grad: Any = None) -> None:
        """Say that a gradient is there, while the backward pass goes on with others.

        As soon as all gradients of a bucket are there, and those of the buckets before it, it is sent;
        the last parameters of the optimizer are in the first bucket. Nothing waits in here. From now
        until the step the gradient must not be written. MPI moves data while it is called, so that calls
        help those before along.

        Args:
            parameter: the `Parameter`, its array, or its name.
            grad: the gradient, an array. Default: None, the one that the parameter holds.

        Raises:
            TypeError: the gradient is a `SparseGrad`, or no array that can be read where it lies.
            ValueError: there is no such parameter, or it has no gradient, or one of another shape; or it
                is ready already.

        Example:
            >>> import numpy as np, genesis, genesis.distributed
            >>> W, b = np.ones((2, 2)), np.ones(2)
            >>> opt = genesis.distributed.DistributedOptimizer(
            ...     genesis.optim.SGD({"W": W, "b": b}, lr=0.5)
            ... )
            >>> opt.ready("b", np.ones(2))
            >>> opt.ready("W", np.ones((2, 2)))
            >>> _ = opt.step()
            >>> b
            array([0.5, 0.5])
        """
        number = self._number(parameter)
        own = self._parameters()[number]
        label = alike.labels(self)[number]
        view = own._grad_view if grad is None else gradients._view(grad, own, label)
        self._gradients.ready(number, view)

    def _number(self, parameter: Any) -> int:
        everyone = self._parameters()
        for number, each in enumerate(everyone):
            if each is parameter or buffers.given(each._view) is parameter:
                return number
        if isinstance(parameter, str) and parameter in alike.names(self):
            return alike.names(self).index(parameter)
        raise ValueError(
            "ready() takes a Parameter of the optimizer, its array or its name, but got "
            + (repr(parameter) if isinstance(parameter, str) else type(parameter).__name__)
        )

    def accumulate(self, grads: Any = None) -> None:
        """Add this rank's gradients of its next part to the sum that the step will update with.

        For `parts` other than the number of ranks; `step` comes after the last one.

        Args:
            grads: the gradients, a tree as for `step`. Default: None, those that parameters hold, or
                that were `ready`. They are not needed any more afterwards.

        Raises:
            TypeError, ValueError: as for `step`; also if all parts were given by now. The parts of this
                step that came before do not count any more.
        """
        doing = f"accumulate, round {self._gradients.round}"
        views, error = None, None
        try:
            if not self._gradients.mine:
                raise ValueError(
                    f"all of this rank's parts, {list(self.my_parts)}, were given by now: step is next"
                )
            views = self._gradients.views(None if grads is None else self._given(grads))
        except Exception as caught:
            error = caught
        self._gradients.add(doing, views, error)

    # ---- the step ----

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        _ending: Ending | None = None,
        **given: Any,
    ) -> Any:
        self._has_joined = False
        try:
            return super()._step(closure, **given, _ending=_ending)
        except Exception as error:
            if (
                not self._has_joined
            ):  # the others are in a step, and wait for what this rank has to say
                self._gradients.agree("step", error)
            raise

    def _apply(
        self,
        given: list[gradients.Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
        zeroes: bool = False,
    ) -> None:
        is_divided = self._share.local is not self.optimizer
        if ending and is_divided and any(g.get("master_weights") for g in self.param_groups):
            raise ValueError(
                "an optimizer around a DistributedOptimizer that moves parameters does not find their "
                "masters, which are divided among ranks: give shard_state=False"
            )
        self._sum_up(
            given,
            {
                "max_norm": str(max_norm),
                "clip_value": str(clip_value),
                "the inverse scale": str(inverse_scale),
                "the factor": str(factor),
                "zero_grad": str(zeroes),
            },
            zeroes,
        )
        if not self._present.any():
            self._say_no_gradients()
        self.optimizer._grad_norm = None
        if not self.shard_state:
            self._exchange.share_sums(self._gradients.wants)
        elif max_norm is not None or inverse_scale is not None:
            factor *= inverse_scale or 1.0
            batches = self._share.batches(self._present)
            norm, finite = kernels.norm_and_finite(batches, factor, self._together)
            self.optimizer._grad_norm = norm
            if inverse_scale is not None and not finite:
                self._leave_out()
                return
            if max_norm is not None:
                factor *= reductions.clip_factor(max_norm, norm)
            max_norm = inverse_scale = None
        self._update(max_norm, clip_value, inverse_scale, factor, ending or commit, zeroes)
        self._measured = self._measured_everywhere()
        self._gradients.forget()

    @property
    def _present(self) -> np.ndarray:
        """For each parameter whether it has a gradient in this step."""
        given = self._gradients.given
        return np.zeros(len(self._parameters()), bool) if given is None else given

    def _sum_up(
        self, given: list[gradients.Views] | None, arguments: dict[str, str], zeroes: bool
    ) -> None:
        """Add this rank's last part, if it has not been added yet; all ranks agree on the step.

        Raises:
            Exception: they do not, see `Parts.agree`; or parts are missing, or were given twice.
        """
        parts, last = self._gradients, self._exchange.rounds - 1
        missing = list(self.my_parts)[parts.round :]
        views, error = None, None
        try:
            for number, parameter in enumerate(self._parameters() if zeroes else ()):
                if parameter._grad_view is not None:
                    arrays.erasable(parameter._grad_view, alike.labels(self)[number])
            if len(missing) > 1:
                raise ValueError(
                    f"a step of {self.parts} parts needs those numbered {missing} from this rank: call "
                    "accumulate(grads) with each"
                )
            if missing:
                views = parts.views(given)
            elif given is not None:
                raise ValueError(
                    "the step was given gradients, but this rank's parts were all accumulated: call "
                    "step() without"
                )
        except Exception as caught:
            error = caught
        self._has_joined = True
        while error is None and parts.round <= last:
            if parts.round == last and self._exchange.contributors(last) == self.size:
                parts.add("step", views, None, arguments)
                return
            # Ranks that have a part in the last round may give it to `accumulate`, a call of its own.
            parts.add(f"accumulate, round {parts.round}", views if parts.mine else None)
        parts.agree("step", error, arguments)

    def _leave_out(self) -> None:
        """End a step in which gradients are not finite."""
        self.step_skipped = self.optimizer.step_skipped = True
        measures = [group.get("measure_updates") for group in self.param_groups]
        if any(measures):
            self._measured = [measured.NOTHING if each else None for each in measures]
        self._gradients.forget()

    def _update(
        self,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        factor: float,
        outer: Ending,
        zeroes: bool,
    ) -> None:
        """Let each rank's optimizer make its step, in one commit, and all have what came of it.

        If one cannot, none does.
        """
        inner, local = self.optimizer, self._share.local
        has_agreed = False

        def agree() -> None:
            nonlocal has_agreed
            has_agreed = True
            self._agreement.reach("step, about to write")

        def ending(actions: Iterable[partial]) -> None:
            send = partial(self._send_parameters, self._gradients.wants)
            # Gradients were sent by now: what parameters hold of them nobody reads any more.
            held = [p._grad_view for p in self._parameters() if p._grad_view is not None]
            wipes = [arrays.erasing(view) for view in held if zeroes]
            outer([partial(agree), *actions, *wipes, send])

        def step(*_: Any, **__: Any) -> Any:
            local.step_skipped = False
            sums = self._share.sums(self._present)
            local._apply(sums, max_norm, clip_value, inverse_scale, ending, factor)
            self.step_skipped = inner.step_skipped = local.step_skipped
            return inner

        try:
            hooks.call(step, (inner,), {}, within=True)
            if not has_agreed:  # the step is left out, on all ranks
                agree()
        except Exception as error:
            self._gradients.forget()
            if not has_agreed:
                self._agreement.reach("step, about to write", error=error)
            raise
        if local is not inner:
            inner._step_count = local._step_count

    def _send_parameters(self, wanted: Callable[[Bucket], bool]) -> None:
        """Let all ranks have what each has written of the parameters in some buckets."""
        everyone = self._parameters()
        if self.shard_state:
            self._exchange.share_parameters([parameter._view for parameter in everyone], wanted)
        for parameter in everyone:
            parameter.changed()

    def _together(self, numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Numbers of all ranks, given those of this one."""
        return self._agreement.comm.allgather(np.concatenate([np.empty(0), *numbers]))

    def _measured_everywhere(self) -> measured.Changes | None:
        changes = self._share.local._changes()
        if not self.shard_state or not any(g.get("measure_updates") for g in self.param_groups):
            return changes
        found = self._agreement.comm.allgather(changes or [None] * len(self.param_groups))
        return [
            np.concatenate([measured.NOTHING, *(part for part in each if part is not None)])
            if group.get("measure_updates")
            else None
            for group, each in zip(self.param_groups, zip(*found))
        ]

    def _changes(self) -> measured.Changes | None:
        return self._measured

    def _finite_everywhere(self, finite: bool) -> bool:
        return all(self._agreement.reach("a look at gradients", note=finite))

    # ---- averages ----

    def swap_ema(self) -> None:
        """Let parameters show their averages, on all ranks; the second call puts them back.

        See `genesis.optim.AdamW.swap_ema`.

        Raises:
            RuntimeError: no parameter has an average.
            TypeError: the inner optimizer keeps none.
        """
        local = self._share.local
        entries = [local.state.get(each.piece) or {} for each in self._share.owned]
        has = any(name in each for each in entries for name in ("ema", "trained"))

        def swapping() -> list[partial]:
            if not hasattr(local, "_swapping_ema"):
                raise TypeError(f"{type(self.optimizer).__name__} keeps no averages")
            self._share.follow()
            check_writable(self._share)
            return local._swapping_ema() if has or not any(anywhere) else []

        anywhere = self._agreement.reach("swap_ema", note=has)
        commit(self._agreement.attempt("swap_ema", swapping))
        self._send_parameters(lambda bucket: True)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, alike on all ranks; which rank owns the others stays as it is.

        Args:
            param_group: as for the inner optimizer.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is as it was before.
        """
        inner, before = self.optimizer, list(self.param_groups)
        first = len(self._parameters())

        def added() -> tuple:
            inner.add_param_group(param_group)
            _check_inner(inner, self.shard_state)
            return alike.described(inner)

        try:
            described = self._agreement.attempt("add_param_group", added)
            self._agreement.reach("add_param_group", described, lambda: alike.facts(inner))
        except Exception:
            inner.param_groups = before
            raise
        self._divide(first)
        self._gradients.forget()
        self._gradients.compare_values()

    # ---- state ----

    @property
    def state(self) -> State:
        """What this rank keeps of the state."""
        return self._share.local.state

    @state.setter
    def state(self, state: Any) -> None:
        self._share.local.state = state

    @property
    def _state(self) -> State:  # type: ignore[override]
        return self._share.local._state

    def to(self, device: str) -> NoReturn:  # type: ignore[override]
        """Not here: what ranks share is on the CPU."""
        raise RuntimeError(
            "DistributedOptimizer works on the CPU, so that it cannot move to a device"
        )

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a DistributedOptimizer cannot be copied or pickled, since its communicator cannot: keep "
            "its state_dict(), or use genesis.distributed.save_checkpoint"
        )

    def _settings(self) -> Iterable[tuple[str, Any]]:
        return (
            ("ranks", self.size),
            ("parts", self.parts),
            ("shard_state", self.shard_state),
            ("deterministic", self.deterministic),
        )

    # ---- snapshots ----

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of all ranks' state together, as the inner optimizer by itself would return it.

        All of it is put together in each rank's memory; `genesis.distributed.save_checkpoint` does
        without that.
        """
        self._agreement.reach("state_dict")
        return super().state_dict()

    def _snapshot(self) -> dict[str, Any]:
        if not self.shard_state:
            return self.optimizer._snapshot()
        found = self._agreement.comm.allgather(self._share.pieces())
        state = whole(piece for pieces in found for piece in pieces)
        return {"state": state, "param_groups": self._saved_groups(self._last_steps)}

    def _saved_groups(self, last_steps: Callable[[], list[int]]) -> list[dict[str, Any]]:
        return self.optimizer._saved_groups(last_steps)

    def _last_steps(self) -> list[int]:
        known = self._agreement.comm.allgather(self._share.local._last_steps())
        return [max(each) for each in zip(*known)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and hyper-parameters; each rank takes its share of the state.

        Args:
            state_dict: what `state_dict()` has returned, here or of the inner optimizer by itself, in
                whatever number of processes. The same on all ranks.

        Raises:
            TypeError, ValueError: as for the inner optimizer; on all ranks, which keep what they had.
        """
        self._take_over(lambda: self._loading(state_dict))

    def _take_over(self, loading: Callable[[], list[partial]]) -> None:
        """Make the calls that take over a state, once all ranks have them."""
        commit(self._agreement.attempt("load_state_dict", loading))
        self._gradients.forget()
        self._loaded()

    def _taking_over(self, state_dict: dict[str, Any]) -> list[partial]:
        if not self.shard_state:
            return self.optimizer._taking_over(state_dict)
        _, owner = self.optimizer._loaded_groups(state_dict["param_groups"])
        pieces = []
        for number, entries in state_dict["state"].items():
            if number not in owner:
                raise ValueError(
                    f"loaded state dict has state for {number!r}, which no group names"
                )
            shape = owner[number].shape
            arrays = {
                name: buffers.as_host(value, f"loaded state {name!r} of parameter {number}")
                if getattr(value, "shape", ()) != ()
                else value
                for name, value in entries.items()
            }
            pieces.append(Piece(number, shape, 0, math.prod(shape), arrays))
        return self._share.taking_over(state_dict, pieces)


def _check_settings(
    shard_state: Any,
    deterministic: Any,
    bucket_mb: Any,
    parts: Any,
    communication: Any,
    flatten: Any,
) -> None:
    """Raise TypeError or ValueError unless the constructor's arguments are possible."""
    flags = {"shard_state": shard_state, "deterministic": deterministic, "flatten": flatten}
    for name, value in flags.items():
        if not checks.is_flag(value):
            raise TypeError(f"{name} must be True or False, but got {value!r}")
    if not checks.is_number(bucket_mb) or not 0 < bucket_mb < math.inf:
        raise ValueError(f"bucket_mb must be a finite number above 0, but got {bucket_mb!r}")
    checks.integer("parts", parts, 1)
    if communication not in (None, "bfloat16"):
        raise ValueError(f"communication must be 'bfloat16' or None, but got {communication!r}")
    if communication and not deterministic:
        raise ValueError(
            "communication='bfloat16' needs deterministic=True, since MPI itself cannot sum bfloat16"
        )


def _check_inner(optimizer: GradientOptimizer, shard_state: bool) -> None:
    """Raise TypeError unless an optimizer can be distributed in the way asked for."""
    title = type(optimizer).__name__
    if isinstance(optimizer, Wrapper):
        raise TypeError(
            f"DistributedOptimizer does not work through {title}: put that around this one, "
            f"{title}(DistributedOptimizer(optimizer))"
        )
    for label, parameter in zip(alike.labels(optimizer), optimizer._parameters()):
        if parameter.device != "cpu":
            raise TypeError(
                f"DistributedOptimizer works on the CPU, but {label} is on {parameter.device}"
            )
    why = why_not_divided(optimizer) if shard_state else None
    if why is not None:
        raise TypeError(f"{title} {why}: give shard_state=False")
