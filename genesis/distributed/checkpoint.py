"""Checkpoints of many ranks: each writes what it keeps, and any number of them reads it."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from .. import checkpoint
from ..checkpoint import CheckpointError, codec, sharded
from .agreement import Agreement
from .optimizer import DistributedOptimizer


def save_checkpoint(path: str | os.PathLike[str], /, *unnamed: NoReturn, **objects: Any) -> None:
    """Save named objects, an optimizer's state where it is kept: one file from each rank, and an index.

    Called by all ranks, with a path in a directory that all of them see. Rank r of n writes
    `NAME.<16 hex digits>-r-of-n`; when all are on the disk, rank 0 puts the index in the place of
    `path`, and removes the files of the save before. Whatever ends the job, `path` is the old checkpoint
    or the new one, whole.

    Other objects than a `DistributedOptimizer` with `shard_state=True` are saved as rank 0 has them;
    their `state_dict` is called on all ranks. `load_checkpoint` reads the files on any number of ranks,
    and `genesis.load_checkpoint` in one process without MPI. The files may be moved together, but not
    renamed.

    Args:
        path: the file to write.
        **objects: the objects, by the names that `load_checkpoint` gives them back under: at least one
            `DistributedOptimizer`, whose ranks they are.

    Raises:
        TypeError: no `DistributedOptimizer` is among the objects; else as for `genesis.save_checkpoint`.
        ValueError: ranks were given other paths or names; else as for `genesis.save_checkpoint`.
        OSError: a rank cannot write its file. All of these are raised on all ranks, and `path` is as it
            was.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, genesis, genesis.distributed
        >>> params = {"x": np.ones(2)}
        >>> opt = genesis.distributed.DistributedOptimizer(genesis.optim.Adam(params, lr=0.1))
        >>> _ = opt.step(grads={"x": np.ones(2)})
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> genesis.distributed.save_checkpoint(path, optimizer=opt, model=params, epoch=1)
        >>> alone = genesis.optim.Adam({"x": params["x"].copy()}, lr=0.1)
        >>> genesis.load_checkpoint(path, optimizer=alone)["epoch"]
        1
    """
    checkpoint._named(path, unnamed, "save_checkpoint(path, name=object, ...)")
    name = os.path.realpath(os.fsdecode(path))
    agreement = _ranks_of(objects)
    asked = {"the path": name, "what is saved": ", ".join(objects)}
    number = secrets.token_hex(8)
    save = agreement.reach("save_checkpoint", asked, lambda: asked, note=number)[0]
    plain: dict[str, Any] = {}
    pieces: dict[str, list[sharded.Piece]] = {}
    values: dict[str, Any] = {}
    for title, value in objects.items():
        if _is_divided(value):
            pieces[title] = value._share.pieces()
            values[title] = {"param_groups": value._saved_groups(value._last_steps)}
        elif codec.has_method(value, "state_dict"):
            plain[title] = value.state_dict()
        else:
            plain[title] = value
    rank, size = agreement.rank, agreement.size
    names = [sharded.shard_name(name, save, each, size) for each in range(size)]
    own = os.path.join(os.path.dirname(name), names[rank])
    index = sharded.index(save, names, values)
    try:
        shard = sharded.shard(save, rank, plain if rank == 0 else {}, pieces)
        agreement.attempt("save_checkpoint", partial(checkpoint.save, shard, own))
        put = partial(checkpoint.save, index, name) if rank == 0 else lambda: None
        agreement.attempt("save_checkpoint", put)
    except Exception:
        with suppress(OSError):
            os.unlink(own)
        raise
    if rank == 0:
        sharded.sweep(name, save)


def load_checkpoint(
    path: str | os.PathLike[str], /, *unnamed: NoReturn, **objects: Any
) -> dict[str, Any]:
    """Load what `save_checkpoint` has written, here on any number of ranks, or in one process.

    Called by all ranks. Each reads one file after the other and keeps what it needs: its own share of
    the state of a `DistributedOptimizer`, and all of everything else.

    Args:
        path: the file to read, see `save_checkpoint`; or one that `genesis.save_checkpoint` has written.
        **objects: the objects to restore, as for `genesis.load_checkpoint`: at least one
            `DistributedOptimizer`, whose ranks they are.

    Returns:
        Every saved value, by name; of what is restored in shares its "param_groups" only.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a file is damaged or missing, or belongs to another save; names it.
        TypeError, ValueError: what was saved does not fit, see `genesis.load_checkpoint`. All of these
            are raised on all ranks; what was restored before stays restored then.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, genesis, genesis.distributed
        >>> params = {"x": np.ones(2)}
        >>> opt = genesis.distributed.DistributedOptimizer(genesis.optim.Adam(params, lr=0.1))
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> genesis.distributed.save_checkpoint(path, optimizer=opt, model=params, epoch=1)
        >>> params["x"][:] = 0
        >>> genesis.distributed.load_checkpoint(path, optimizer=opt, model=params)["epoch"]
        1
        >>> params["x"]
        array([1., 1.])
    """
    checkpoint._named(path, unnamed, "load_checkpoint(path, name=object, ...)")
    name = os.path.realpath(os.fsdecode(path))
    agreement = _ranks_of(objects)
    asked = {"the path": name, "what is restored": ", ".join(objects)}
    agreement.reach("load_checkpoint", asked, lambda: asked)

    def read() -> tuple[dict[str, Any], dict[str, Any], dict[str, list[partial]]]:
        """The values, of what was saved in shares the groups, and what takes over this rank's shares."""
        loaded = checkpoint.load(name)
        if not sharded.is_index(loaded):
            return checkpoint._by_name(name, loaded), {}, {}
        actions = {}
        try:
            first = next(sharded.shards(name, loaded, checkpoint.load))
            for title, saved in loaded["values"].items():
                value: Any = objects.get(title)
                if not _is_divided(value):
                    continue
                found = sharded.shards(name, loaded, checkpoint.load)
                pieces = (piece for each in found for piece in sharded.pieces(each, title))
                actions[title] = value._share.taking_over(saved, pieces)
        except sharded.ShardError as error:
            raise CheckpointError(f"cannot load {name!r}: {error}") from error
        if loaded["values"].keys() <= actions.keys():
            return first["values"], loaded["values"], actions
        return sharded.assembled(name, loaded, checkpoint.load), loaded["values"], actions

    values, divided, actions = agreement.attempt("load_checkpoint", read)
    others = {title: value for title, value in objects.items() if title not in actions}
    trees = agreement.attempt("load_checkpoint", partial(checkpoint._trees_among, others))
    restore = partial(checkpoint._restore, name, values, others, trees)
    agreement.attempt("load_checkpoint", restore)
    for title, taking_over in actions.items():
        objects[title]._take_over(lambda calls=taking_over: calls)
    return {**values, **{title: divided[title] for title in actions}}


def _is_divided(value: Any) -> bool:
    """Whether each rank has a share of an object's state."""
    return isinstance(value, DistributedOptimizer) and value.shard_state


def _ranks_of(objects: dict[str, Any]) -> Agreement:
    """The ranks of the first optimizer among objects that has some.

    Raises:
        TypeError: none has.
    """
    for value in objects.values():
        while value is not None:
            if isinstance(value, DistributedOptimizer):
                return value._agreement
            value = getattr(value, "optimizer", None)
    raise TypeError(
        "one of the objects must be a DistributedOptimizer, since these are its ranks' checkpoints: "
        "genesis.save_checkpoint and load_checkpoint are for one process"
    )
