"""`DistributedOptimizer`: one optimizer on many ranks, which average gradients and share the update."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np

from .. import buffers, checks, kernels, tree
from ..checkpoint import sharded
from ..commit import commit
from ..kernels import reductions
from ..optim import gradients, hooks, measured, members, options
from ..optim.gradient_optimizer import Ending, GradientOptimizer
from ..optim.rule_optimizer import RuleOptimizer
from ..optim.schedule_free import ScheduleFree
from ..optim.state import State
from ..optim.wrapper import Wrapper
from ..parameter import Parameter
from ..sparse import RowsView
from .agreement import Agreement, differences
from .buckets import Exchange
from .failure import end_the_job_with_a_rank
from .required import mpi
from .shards import Bucket, Division, Segment, Tensor

MIB = 1 << 20

_NAMES = "params", "param_names"
"""What groups have besides settings."""


class Owned(NamedTuple):
    """What this rank updates of a parameter.

    Attributes:
        segment: which elements.
        piece: the parameter itself, or a part of it.
        sum: where the mean of gradients is once all parts were added.
    """

    segment: Segment
    piece: Parameter
    sum: np.ndarray


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
        outside = Agreement(comm)
        error: Exception | None = None
        try:
            super().__init__(optimizer)
            self.shard_state = _flag("shard_state", shard_state)
            self.deterministic = _flag("deterministic", deterministic)
            self._flatten = _flag("flatten", flatten)
            self._bucket_bytes = int(_positive("bucket_mb", bucket_mb) * MIB)
            self.parts = outside.size if parts is None else checks.integer("parts", parts, 1)
            if communication not in (None, "bfloat16"):
                raise ValueError(
                    f"communication must be 'bfloat16' or None, but got {communication!r}"
                )
            if communication and not deterministic:
                raise ValueError(
                    "communication='bfloat16' needs deterministic=True, since MPI cannot sum bfloat16"
                )
            self.communication = communication
            self._check_inner()
            self._by_tensor = not _splits(optimizer)
            optimizer._check_group(optimizer.defaults)
        except Exception as caught:
            error = caught
        arguments = (shard_state, deterministic, bucket_mb, parts, communication, flatten)
        alike = (
            arguments,
            None if error else (type(optimizer).__name__, self._described()),
        )
        outside.reach(
            "DistributedOptimizer",
            alike,
            lambda: {"the constructor's arguments": repr(arguments), **self._facts()},
            error=error,
        )
        self.rank, self.size = outside.rank, outside.size
        self.my_parts = range(self.rank, self.parts, self.size)
        self._agreement = Agreement(comm.Dup())
        self._set_up(comm.Dup())
        self._take_over_state()

    def _check_inner(self) -> None:
        """Raise TypeError unless the inner optimizer can be distributed in the way asked for."""
        inner, title = self.optimizer, type(self.optimizer).__name__
        if isinstance(inner, Wrapper):
            raise TypeError(
                f"DistributedOptimizer does not work through {title}: put it around this one, "
                f"{title}(DistributedOptimizer(optimizer))"
            )
        for number, parameter in enumerate(self._parameters()):
            if parameter.device != "cpu":
                raise TypeError(
                    f"DistributedOptimizer works on the CPU, but {self._label(number)} is on "
                    f"{parameter.device}"
                )
        if not self.shard_state:
            return
        of_all = isinstance(inner, RuleOptimizer) and inner._recipe.sums_over_all
        if isinstance(inner, ScheduleFree) or of_all:
            why = (
                "sums over all tensors, of which a rank would see its own only"
                if of_all
                else "shows averages in place of parameters, which all ranks have to have"
            )
            raise TypeError(f"{title} {why}: give shard_state=False")

    def _set_up(self, comm: Any) -> None:
        """Divide the parameters, and make the optimizer that updates this rank's share."""
        unit = kernels.chunk_length()
        cut = self.shard_state and not self._by_tensor
        self._division = Division(
            self.size, self._bucket_bytes, unit, self.shard_state and self._by_tensor, across=cut
        )
        everyone = self._parameters()
        self._division.add([self._tensor(n, p) for n, p in enumerate(everyone)])
        self._exchange = Exchange(
            comm,
            self._division,
            self.parts,
            self.deterministic,
            self.communication is not None,
            everything=not self.shard_state,
        )
        if self._flatten:
            self._flatten_parameters()
        self._own: list[Owned] = []
        self._local = self._clone() if cut else self.optimizer
        self._local._said_no_gradients = True  # it is said here, of all ranks
        self._measured: measured.Changes | None = None
        self._began = False
        self._forget()
        self._take_in(0, self._division.buckets)

    def _forget(self) -> None:
        """Let nothing be known of gradients for the next step."""
        count = len(self._parameters())
        self._round = 0
        self._given_by_now: np.ndarray | None = None
        self._part: list[Any] = [None] * count
        self._ready = [False] * count
        self._in_round = False

    def _tensor(self, number: int, parameter: Parameter) -> Tensor:
        flat = parameter._view.flags.c_contiguous or self._flatten
        return Tensor(number, parameter.size, parameter._view.dtype, flat or not self.shard_state)

    def _flatten_parameters(self) -> None:
        """Let parameters' arrays lie in one piece of memory."""
        everyone = self._parameters()
        views = [parameter._view for parameter in everyone]
        made = self._exchange.flatten(views, self._division.buckets)
        self._replaced = {id(views[n]): (views[n], array) for n, array in made.items()}
        for number, array in made.items():
            everyone[number]._view = buffers.view(array)
            everyone[number].changed()

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

    # ---- the optimizer of this rank's share ----

    def _clone(self) -> GradientOptimizer:
        """An optimizer like the inner one, with the same groups and no parameters so far."""
        inner = self.optimizer
        local = object.__new__(type(inner))
        local.__dict__.update(
            {**inner.__getstate__(), "_state": State(), "param_groups": [], "_matching": None}
        )
        return cast(GradientOptimizer, local)

    def _take_in(self, first: int, buckets: Sequence[Bucket]) -> None:
        """Let this rank own what is its own of some buckets, and of parameters from `first` on."""
        everyone, local = self._parameters(), self._local
        group_of = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        self._exchange.follow()
        found: list[tuple[Segment, np.ndarray]] = []
        for bucket, sums in zip(buckets, self._exchange.sums[-len(buckets) :] if buckets else ()):
            begin = bucket.starts[self.rank] if self.shard_state else 0
            for segment in bucket.segments:
                if not self.shard_state and segment.start == 0:
                    segment = segment._replace(stop=everyone[segment.parameter].size, whole=True)
                elif segment.owner != self.rank or not self.shard_state:
                    continue
                at = segment.at - begin
                found.append((segment, sums[at : at + segment.size]))
        for number in range(first, len(everyone)):
            if not everyone[number].size and (self.rank == 0 or not self.shard_state):
                found.append((Segment(number, 0, 0, 0, 0, True), np.empty(0, np.float32)))
        found.sort(key=lambda each: each[0][:2])
        if local is not self.optimizer:
            for like in self.param_groups[len(local.param_groups) :]:
                local.param_groups.append({**like, "params": [], "param_names": []})
        for segment, sum_ in found:
            piece = parameter = everyone[segment.parameter]
            if local is not self.optimizer:
                name = self._name(segment.parameter) or f"parameter {segment.parameter}"
                if not segment.whole:
                    name += f"[{segment.start}:{segment.stop}]"
                    flat = parameter._view.reshape(-1)[segment.start : segment.stop]
                    piece = Parameter(flat, name=name)
                group = local.param_groups[group_of[segment.parameter]]
                group["params"].append(piece)
                group["param_names"].append(name)
            shape = piece.shape
            self._own.append(Owned(segment, piece, sum_.reshape(shape)))
        self._arrays = [parameter._view for parameter in everyone]
        self._batches: dict[bytes, list[kernels.Batch]] = {}

    def _follow(self) -> None:
        """Let this rank's optimizer have the groups' settings, and the arrays that parameters have now.

        Raises:
            ValueError: parameters were added or removed otherwise than by `add_param_group`, or arrays
                do not lie in memory as they did.
        """
        everyone = self._parameters()
        if len(everyone) != len(self._arrays):
            raise ValueError(
                f"the groups have {len(everyone)} parameters, but {len(self._arrays)} are divided among "
                "ranks: add parameters by add_param_group"
            )
        moved = {
            number
            for number, (parameter, array) in enumerate(zip(everyone, self._arrays))
            if parameter._view is not array
        }
        for number in moved:
            if self._flatten:
                raise ValueError(
                    f"{self._label(number)} has another array now, but with flatten=True it has to keep "
                    "that of the flat memory: write into it, parameter.data[...] = array"
                )
        if self._local is self.optimizer:
            self._arrays = [parameter._view for parameter in everyone]
            return
        for segment, piece, _ in self._own if moved else ():
            if segment.parameter in moved and not segment.whole:
                view = everyone[segment.parameter]._view
                if not view.flags.c_contiguous:
                    raise ValueError(
                        f"{self._label(segment.parameter)} has another array now, which is not "
                        "C-contiguous, but is divided among ranks: give np.ascontiguousarray(array)"
                    )
                piece._view = view.reshape(-1)[segment.start : segment.stop]
        self._arrays = [parameter._view for parameter in everyone]
        for mine, theirs in zip(self._local.param_groups, self.param_groups):
            if theirs.get("stochastic_rounding"):
                raise ValueError(
                    "stochastic_rounding=True divides optimizers by whole tensors: set it before the "
                    "optimizer is distributed"
                )
            settings = {key: value for key, value in theirs.items() if key not in _NAMES}
            if settings != {key: value for key, value in mine.items() if key not in _NAMES}:
                dict.update(mine, settings)

    # ---- what all ranks have to have alike ----

    def _described(self) -> Any:
        """The settings of groups, and what parameters are like."""
        shapes = [(p.shape, str(p._view.dtype)) for p in self._parameters()]
        return self._settings_of_groups(), shapes

    def _settings_of_groups(self) -> list[dict[str, str]]:
        return [
            {str(key): _said(value) for key, value in group.items() if key != "params"}
            for group in self.param_groups
        ]

    def _facts(self) -> dict[str, str]:
        """What `_described` says, by what it is about."""
        if not isinstance(getattr(self, "optimizer", None), GradientOptimizer):
            return {}
        facts = {"the optimizer": type(self.optimizer).__name__}
        facts["the number of parameters"] = str(len(self._parameters()))
        for i, settings in enumerate(self._settings_of_groups()):
            facts.update({f"{key!r} of group {i}": value for key, value in settings.items()})
        for number, parameter in enumerate(self._parameters()):
            about = self._label(number)
            facts[about] = f"of shape {parameter.shape} and {parameter._view.dtype}"
        return facts

    def _name(self, number: int) -> str | None:
        names = [
            name for group in self.param_groups for name in members.names(group, group["params"])
        ]
        return names[number]

    def _label(self, number: int) -> str:
        return members.label(number, self._name(number))

    def broadcast_parameters(self, root: int = 0) -> None:
        """Let all ranks have the parameters as one of them has them.

        Args:
            root: that rank. Default: 0.

        Raises:
            ValueError: there is no such rank, or ranks were given different ones.
        """

        def checked() -> None:
            if not 0 <= checks.integer("root", root, 0) < self.size:
                raise ValueError(f"root must be a rank, 0 to {self.size - 1}, but got {root}")
            self._follow()
            self._writable()

        self._agreement.attempt("broadcast_parameters", checked, root)
        everyone = self._parameters()
        self._exchange.broadcast([parameter._view for parameter in everyone], root)
        for parameter in everyone:
            parameter.changed()
        self._began = True

    def _writable(self) -> None:
        """Raise ValueError unless all parameters can be written, which other ranks may do here."""
        for number, parameter in enumerate(self._parameters()):
            buffers.check_writable(parameter._view, self._label(number))

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
        if self._ready[number]:
            raise ValueError(
                f"{self._label(number)} is ready already: it is so once a step, or a part"
            )
        if self._round >= self._exchange.rounds or not self._contributes:
            raise ValueError(
                f"all of this rank's parts, {list(self.my_parts)}, were given by now: step"
            )
        own = self._parameters()[number]
        view = own._grad_view if grad is None else self._view(number, grad)
        if view is None:
            raise ValueError(f"{self._label(number)} is ready, but has no gradient")
        self._part[number] = self._checked(number, view)
        self._ready[number] = True
        if not self._in_round:
            self._in_round = True
            self._exchange.begin(self._round)
        self._exchange.go_on(self._part, self._ready)

    def _number(self, parameter: Any) -> int:
        everyone = self._parameters()
        for number, each in enumerate(everyone):
            if each is parameter or buffers.given(each._view) is parameter:
                return number
        if isinstance(parameter, str):
            for number in range(len(everyone)):
                if self._name(number) == parameter:
                    return number
        raise ValueError(
            "ready() takes a Parameter of the optimizer, its array or its name, but got "
            + (repr(parameter) if isinstance(parameter, str) else type(parameter).__name__)
        )

    def _view(self, number: int, grad: Any) -> Any:
        return gradients._view(grad, self._parameters()[number], self._label(number))

    def _checked(self, number: int, view: Any) -> Any:
        """A gradient's view, if it fits."""
        if isinstance(view, RowsView):
            raise TypeError(
                f"DistributedOptimizer does not support sparse gradients, but that of "
                f"{self._label(number)} is a SparseGrad: give the dense gradient, "
                "grad.to_dense(len(parameter))"
            )
        shape = self._parameters()[number].shape
        if view.shape != shape:
            raise ValueError(
                f"the gradient of {self._label(number)} must have the parameter's shape {shape}, but "
                f"got {view.shape}"
            )
        if view.dtype not in buffers.FLOAT_TYPES:
            raise TypeError(
                f"the gradient of {self._label(number)} must be of a float type, but got {view.dtype}"
            )
        return view

    @property
    def _contributes(self) -> bool:
        """Whether this rank has a part in the next round."""
        return self.rank < self._exchange.contributors(self._round)

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
        views, error = None, None
        try:
            if self._round >= self._exchange.rounds or not self._contributes:
                raise ValueError(
                    f"all of this rank's parts, {list(self.my_parts)}, were given by now: step is next"
                )
            views = self._views_of_part(None if grads is None else self._given(grads))
        except Exception as caught:
            error = caught
        self._add_part(f"accumulate, round {self._round}", views, error)

    def _views_of_part(self, given: list[gradients.Views] | None) -> list[Any]:
        """The gradients of this rank's next part, one for each parameter or None, checked."""
        if given is not None and any(self._ready):
            raise ValueError("give gradients by ready() or by grads=, but not both for one part")
        found = (
            [parameter._grad_view for parameter in self._parameters()]
            if given is None
            else [view for each in given for view in each]
        )
        return [
            self._part[number]
            if self._ready[number]
            else None
            if view is None
            else self._checked(number, view)
            for number, view in enumerate(found)
        ]

    def _add_part(
        self,
        doing: str,
        views: list[Any] | None,
        error: Exception | None,
        alike: Any = None,
        facts: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """A round, once all ranks agree on it: this rank's part, if it has one, and those of others."""
        self._agree(doing, error, views, alike, facts)
        if not self._in_round:
            self._exchange.begin(self._round)
        self._exchange.finish(self._nothing if views is None else views, self._wants)
        self._round += 1
        self._part, self._ready = self._nothing, [False] * len(self._ready)
        self._in_round = False

    def _agree(
        self,
        doing: str,
        error: Exception | None,
        views: list[Any] | None,
        alike: Any,
        facts: Callable[[], dict[str, str]],
    ) -> None:
        """Go on if all ranks are about to do the same, with parameters and settings alike.

        Raises:
            Exception: they are not, or one has an error; gradients given for this step are forgotten.
        """
        try:
            self._follow()
            self._writable()
        except Exception as caught:
            error = error or caught
        values = None if self._began else self._values()
        settings = self._settings_of_groups()
        given = None if views is None else np.array([view is not None for view in views], bool)
        started = self._exchange.started if self._in_round else 0

        def told() -> dict[str, str]:
            found = {**facts(), **self._facts(), "the number of parts given": str(self._round)}
            for number, value in enumerate(values or ()):
                found[f"the values of {self._label(number)}"] = f"of checksum {value:08x}"
            return found

        def stop(notes: list[Any]) -> None:
            if not self._in_round:
                self._exchange.begin(self._round)
            self._exchange.drain(max(begun for begun, _ in notes))
            self._forget()

        notes = self._agreement.reach(
            doing,
            (alike, settings, values, self._round),
            told,
            error=error,
            note=(started, None if given is None else np.packbits(given).tobytes()),
            before_raising=stop,
        )
        self._began = True
        self._check_gradient_sets([packed for _, packed in notes], stop, notes)

    @property
    def _nothing(self) -> list[Any]:
        return [None] * len(self._ready)

    def _values(self) -> list[int]:
        """Checksums of the parameters, which all ranks must have alike in the first step."""
        return [
            zlib.crc32(np.ascontiguousarray(p._view).reshape(-1).view(np.uint8).data)
            for p in self._parameters()
        ]

    def _check_gradient_sets(
        self, packed: list[bytes | None], stop: Callable[[list[Any]], None], notes: list[Any]
    ) -> None:
        """Take down which parameters have a gradient, which all parts of a step must have alike.

        Raises:
            ValueError: they do not.
        """
        count = len(self._ready)
        sets = {
            rank: np.unpackbits(np.frombuffer(each, np.uint8), count=count).astype(bool)
            for rank, each in enumerate(packed)
            if each is not None
        }
        before = self._given_by_now
        one = next(iter(sets.values())) if before is None else before
        if all(np.array_equal(each, one) for each in sets.values()):
            self._given_by_now = one
            return
        stop(notes)
        told = {
            rank: {
                f"the gradient of {self._label(number)}": "there" if each[number] else "missing"
                for number in range(count)
            }
            for rank, each in sets.items()
        }
        differing = differences(told) or "it was not so in the parts before, of the same step"
        raise ValueError(
            f"all parts of a step must have gradients of the same parameters, but {differing}: give "
            "zeros, or None on all ranks to leave a parameter as it is"
        )

    def _wants(self, bucket: Bucket) -> bool:
        """Whether there is a gradient for something in a bucket."""
        given = self._given_by_now
        return given is not None and any(given[parameter] for parameter in bucket.parameters)

    # ---- the step ----

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        _ending: Ending | None = None,
        **given: Any,
    ) -> Any:
        self._joined = False
        try:
            return super()._step(closure, **given, _ending=_ending)
        except Exception as error:
            if not self._joined:  # the others wait in a step for what this rank has to say
                self._add_part("step", None, error)
            raise

    def _apply(
        self,
        given: list[gradients.Views] | None,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        ending: Ending | None = None,
        factor: float = 1.0,
    ) -> None:
        arguments = {
            "max_norm": max_norm,
            "clip_value": clip_value,
            "the inverse scale": inverse_scale,
            "the factor": factor,
        }
        self._complete_sums(given, arguments)
        if self._given_by_now is None or not self._given_by_now.any():
            self._say_no_gradients()
        self.optimizer._grad_norm = None
        if not self.shard_state:
            self._exchange.share_sums(self._wants)
        elif max_norm is not None or inverse_scale is not None:
            factor *= inverse_scale or 1.0
            norm, finite = kernels.norm_and_finite(self._batched(), factor, self._together)
            self.optimizer._grad_norm = norm
            if inverse_scale is not None and not finite:
                self.step_skipped = self.optimizer.step_skipped = True
                if self._measured is not None:
                    self._measured = [
                        None if each is None else measured.NOTHING for each in self._measured
                    ]
                self._forget()
                return
            if max_norm is not None:
                factor *= reductions.clip_factor(max_norm, norm)
            max_norm = inverse_scale = None
        self._update(max_norm, clip_value, inverse_scale, factor)
        if not self.step_skipped:
            self._share_parameters(self._wants)
            self._measured = self._changes_everywhere()
        self._forget()
        if ending is not None and not self.step_skipped:
            ending([])

    def _share_parameters(self, wanted: Callable[[Bucket], bool]) -> None:
        """Let all ranks have what each has written of the parameters in some buckets."""
        everyone = self._parameters()
        if self.shard_state:
            self._exchange.share_parameters([parameter._view for parameter in everyone], wanted)
        for parameter in everyone:
            parameter.changed()

    def _complete_sums(
        self, given: list[gradients.Views] | None, arguments: dict[str, float | None]
    ) -> None:
        """Add this rank's last part, if it has not been added yet; all ranks agree on the step.

        Raises:
            ValueError: parts are missing, or were given twice.
        """
        last, size = self._exchange.rounds - 1, self.size
        views, error = None, None
        try:
            if self._round < last:
                raise ValueError(
                    f"a step of {self.parts} parts needs those numbered {list(self.my_parts)} from this "
                    f"rank, but it has given {self._round}: accumulate(grads) those before the last"
                )
            if self._round == last and self._contributes:
                views = self._views_of_part(given)
            elif given is not None:
                raise ValueError(
                    "the step was given gradients, but all of this rank's parts were accumulated: "
                    "call step() without"
                )
        except Exception as caught:
            error = caught
        self._joined = True
        told = {name: str(value) for name, value in arguments.items()}
        alike = tuple(arguments.values())
        if self._round == last:
            if self._exchange.contributors(last) == size or error is not None:
                self._add_part("step", views, error, alike, lambda: told)
                return
            # Ranks that have a part in this round may have accumulated it, each in a call of its own.
            self._add_part(f"accumulate, round {last}", views, None)
        self._agree("step", error, None, alike, lambda: told)

    def _update(
        self,
        max_norm: float | None,
        clip_value: float | None,
        inverse_scale: float | None,
        factor: float,
    ) -> None:
        """Let this rank's optimizer make its step, in one commit; none does if one cannot."""
        inner, local = self.optimizer, self._local
        has_agreed = False

        def ending(actions: Iterable[partial]) -> None:
            nonlocal has_agreed
            prepared = list(actions)
            has_agreed = True
            self._agreement.reach("step, about to write")
            commit(prepared)

        def step(_: Any, *args: Any, **kwargs: Any) -> Any:
            local.step_skipped = False
            local._apply(self._sums(), max_norm, clip_value, inverse_scale, ending, factor)
            inner.step_skipped = local.step_skipped
            return inner

        try:
            hooks.call(step, (inner,), {}, within=True)
        except Exception as error:
            if not has_agreed:
                self._forget()
                self._agreement.reach("step, about to write", error=error)
            raise
        if not has_agreed:
            self._agreement.reach("step, about to write")
        self.step_skipped = inner.step_skipped
        if local is not inner:
            inner._step_count = local._step_count

    def _sums(self) -> list[gradients.Views]:
        """For each group of this rank's optimizer the means of gradients, or None."""
        given = self._given_by_now
        sums = {
            each.piece: each.sum
            for each in self._own
            if given is not None and given[each.segment.parameter]
        }
        return [[sums.get(p) for p in group["params"]] for group in self._local.param_groups]

    def _batched(self) -> list[kernels.Batch]:
        """This rank's means of gradients, as they are summed up for a norm."""
        given = cast(np.ndarray, self._given_by_now)
        key = given.tobytes()
        if key not in self._batches:
            by_type: dict[np.dtype, list[np.ndarray]] = {}
            for each in self._own:
                if given[each.segment.parameter] and each.sum.size:
                    by_type.setdefault(each.sum.dtype, []).append(each.sum)
            self._batches = {key: [kernels.Batch(arrays) for arrays in by_type.values()]}
        return self._batches[key]

    def _together(self, numbers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Numbers of all ranks, given those of this one."""
        return self._agreement.comm.allgather(np.concatenate([np.empty(0), *numbers]))

    def _changes_everywhere(self) -> measured.Changes | None:
        changes = self._local._changes()
        if changes is None or not self.shard_state:
            return changes
        found = self._agreement.comm.allgather(changes)
        return [None if each[0] is None else np.concatenate(each) for each in zip(*found)]

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
        entries = [self._local.state.get(each.piece) or {} for each in self._own]
        has = any(name in each for each in entries for name in ("ema", "trained"))

        def swapping() -> list[partial]:
            if not hasattr(self._local, "_swapping_ema"):
                raise TypeError(f"{type(self.optimizer).__name__} keeps no averages")
            self._follow()
            self._writable()
            return self._local._swapping_ema() if has or not any(anywhere) else []

        anywhere = self._agreement.reach("swap_ema", note=has)
        commit(self._agreement.attempt("swap_ema", swapping))
        self._share_parameters(lambda bucket: True)

    # ---- groups ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, alike on all ranks; which rank owns the others stays as it is.

        Args:
            param_group: as for the inner optimizer.

        Raises:
            TypeError, ValueError: as the constructor; the optimizer is as it was before.
        """
        inner, before = self.optimizer, list(self.param_groups)
        first, error = len(self._parameters()), None
        try:
            inner.add_param_group(param_group)
            self._check_inner()
        except Exception as caught:
            error = caught
        try:
            self._agreement.reach(
                "add_param_group", None if error else self._described(), self._facts, error=error
            )
        except Exception:
            inner.param_groups = before
            raise
        everyone = self._parameters()
        made = self._division.add(
            [self._tensor(n, p) for n, p in enumerate(everyone) if n >= first]
        )
        self._take_in(first, made)
        self._forget()
        self._began = False

    # ---- state ----

    @property
    def state(self) -> State:
        """What this rank keeps of the state."""
        return self._local.state

    @state.setter
    def state(self, state: Any) -> None:
        self._local.state = state

    @property
    def _state(self) -> State:  # type: ignore[override]
        return self._local._state

    def _take_over_state(self) -> None:
        """Let this rank's optimizer have its share of the state that the inner one has had so far."""
        inner = self.optimizer
        if not self.shard_state or not inner.state:
            return
        state = inner._snapshot()
        inner.state = State()
        commit(self._taking_over(state))

    def to(self, device: str) -> NoReturn:  # type: ignore[override]
        """Not here: parameters that are divided among ranks are on the CPU."""
        raise RuntimeError(
            "DistributedOptimizer works on the CPU, so that it cannot move to a device"
        )

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a DistributedOptimizer cannot be copied or pickled, since its communicator cannot: keep "
            "its state_dict(), or genesis.distributed.save_checkpoint()"
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

        It is put together in each rank's memory. `genesis.distributed.save_checkpoint` does without.
        """
        self._agreement.reach("state_dict")
        return super().state_dict()

    def _snapshot(self) -> dict[str, Any]:
        if not self.shard_state:
            return self.optimizer._snapshot()
        found = self._agreement.comm.allgather(self._own_pieces())
        state = sharded.whole(piece for pieces in found for piece in pieces)
        return {"state": state, "param_groups": self._saved_groups(self._last_steps)}

    def _own_pieces(self) -> list[sharded.Piece]:
        """Copies of what this rank keeps of the state, for a checkpoint."""
        everyone, state = self._parameters(), self._local.state
        pieces = []
        for segment, piece, _ in self._own:
            number = segment.parameter
            entries = {
                name: buffers.host_copy(value) if buffers.is_array(value) else value
                for name, value in (state.get(piece) or {}).items()
            }
            if entries:
                shape = everyone[number].shape
                pieces.append(sharded.Piece(number, shape, segment.start, segment.stop, entries))
        return pieces

    def _saved_groups(self, last_steps: Callable[[], list[int]]) -> list[dict[str, Any]]:
        return self.optimizer._saved_groups(last_steps)

    def _last_steps(self) -> list[int]:
        known = self._agreement.comm.allgather(self._local._last_steps())
        return [max(each) for each in zip(*known)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over state and hyper-parameters; each rank takes its share of the state.

        Args:
            state_dict: what `state_dict()` returned, here or of the inner optimizer by itself, in
                whatever number of processes. The same on all ranks.

        Raises:
            TypeError, ValueError: as for the inner optimizer; on all ranks, which keep what they had.
        """
        self._load(lambda: self._loading(state_dict))

    def _load(self, loading: Callable[[], list[partial]]) -> None:
        """Make the calls that take over a state, once all ranks have them."""
        actions = self._agreement.attempt("load_state_dict", loading)
        commit(actions)
        self._forget()
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
            parameter = owner[number]
            read = {
                name: buffers.as_host(value, f"loaded state {name!r}")
                if getattr(value, "shape", ()) != ()
                else value
                for name, value in entries.items()
            }
            pieces.append(sharded.Piece(number, parameter.shape, 0, parameter.size, read))
        return self._taking_over_pieces(state_dict, pieces)

    def _taking_over_pieces(
        self, saved: dict[str, Any], pieces: Iterable[sharded.Piece]
    ) -> list[partial]:
        """The calls, for `commit`, that take over this rank's share of what was saved.

        Args:
            saved: of a state dict the "param_groups".
            pieces: the state, in pieces of whatever sizes, one after the other.
        """
        inner, local = self.optimizer, self._local
        groups, owner = inner._loaded_groups(saved["param_groups"])
        numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        covers: dict[int, list[tuple[Owned, sharded.Cover]]] = {}
        for each in self._own:
            number, begin, end = each.segment[:3]
            shape = self._parameters()[number].shape
            cover = sharded.Cover(self._label(number), shape, begin, end)
            covers.setdefault(number, []).append((each, cover))
        known = {number: numbers[parameter] for number, parameter in owner.items()}
        for piece in pieces:
            if piece.parameter not in known:
                raise ValueError(
                    f"loaded state dict has state for {piece.parameter!r}, which no group names"
                )
            for _, cover in covers.get(known[piece.parameter], ()):
                cover.add(piece)
        if local is inner:
            own = {
                number: cover.entries()
                for number, place in known.items()
                for _, cover in covers.get(place, ())
            }
            return inner._taking_over(
                {**saved, "state": {n: entries for n, entries in own.items() if entries}}
            )
        state = {}
        for found in covers.values():
            for each, cover in found:
                entries = cover.entries()
                if entries:
                    title = self._label(each.segment.parameter)
                    state[each.piece] = local._loaded_state(title, each.piece, entries)
        return [
            partial(setattr, inner, "param_groups", groups),
            partial(setattr, local, "_state", State(state)),
        ]


def _splits(optimizer: GradientOptimizer) -> bool:
    """Whether an update of a part of a tensor needs nothing but that part.

    So it is if the class is what a formula of one element makes, and neither sums nor random numbers,
    which follow from an element's place in its tensor, are in it.
    """
    kind = type(optimizer)
    return (
        isinstance(optimizer, RuleOptimizer)
        and kind._apply is RuleOptimizer._apply
        and kind._step is RuleOptimizer._step
        and not optimizer._recipe.sums
        and not any(options.of(group).stochastic_rounding for group in optimizer.param_groups)
    )


def _said(value: Any) -> str:
    """A setting as it is compared: a function by its name, since its address differs."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)


def _flag(name: str, value: Any) -> bool:
    if not checks.is_flag(value):
        raise TypeError(f"{name} must be True or False, but got {value!r}")
    return bool(value)


def _positive(name: str, value: Any) -> float:
    if not checks.is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, but got {value!r}")
    return float(value)
