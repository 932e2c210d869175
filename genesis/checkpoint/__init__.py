"""Checkpoints: nested Python objects in one safetensors file that is complete or absent.

Arrays become the tensors of the file, under names that follow their place in the object
(`optimizer.state.0.exp_avg`), so that any safetensors reader opens them. Everything else is JSON in
the file's `__metadata__`:

    checksum    "xxh3_128:" and 32 digits: that sum of the whole file, taken while they are zeros
    format      "genesis 2"
    structure   the object as JSON, `{"$tensor": name}` where an array stands

Files of format "genesis 1" have 64 digits of SHA-256 there, and are read too.

The modules follow a save: `codec` (the object as JSON and back), `background` (a copy of it, and a
thread), `file_format` (the bytes of the file), `atomic_file` (the file on the disk), `sharded` (several
files that belong together); the public
functions stand here. Nothing is pickled, and
what a file says is believed only after it was checked.

The file is written here and not by the `safetensors` package, which (0.8.0) wants every array in
host memory at once, writes wrong data for strided ones, leaves `.tmpXXXXXX` files of mode 0600 when
it is killed, and does not flush to the disk.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .. import buffers, regions, tree
from ..commit import assign, commit
from ..parameter import Parameter
from . import atomic_file, codec, file_format, sharded
from . import background as in_background

__all__ = [
    "CheckpointError",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
    "wait_for_save",
]


_WORTHWHILE = 1 << 16  # bytes of an array that is read straight into its place


class CheckpointError(RuntimeError):
    """A file is no checkpoint, or is damaged; the message names the file and says what is wrong."""


def save(obj: Any, path: str | os.PathLike[str], *, background: bool = False) -> None:
    """Save nested dicts, lists and tuples of numbers, strings, arrays and parameters to a file.

    `load` brings back the same structure, exactly: types, order of keys, every bit of a number.

    - Containers are dict, OrderedDict, list and tuple. Keys are str, int, float, bool, None or tuples
      of those.
    - Values are None, bool, int of any size, float (inf, nan and -0.0 too) and str.
    - Arrays and NumPy scalars are bool, (u)int8 to (u)int64, float16, float32, float64, and
      bfloat16 (`ml_dtypes.bfloat16`). Other dtypes (complex, longdouble, strings, dates, records,
      objects) are refused. An array may have any strides and byte order; it comes back C-contiguous
      and native. Arrays on a device, and memory-mapped ones, come back as plain host arrays.
    - A `Parameter` comes back as one, with its name and `requires_grad`. Its gradient is not saved.
    - Tensors of torch, of the same data types and in any memory layout, come back as tensors on the CPU
      that ask for no gradient, parameters of torch as parameters; where torch is not installed, both
      as arrays. A module's state dict keeps torch's `_metadata`.
    - An array, parameter or tensor that occurs twice is saved once and comes back as one object; so do
      tensors that are the same elements of memory, as tied weights are. Tensors that share a part of
      their memory come back with memory of their own.
    - Subclasses (defaultdict, namedtuple, masked arrays, enums, ...) are refused, as they would
      come back as something else.

    The file appears whole or not at all: it is written beside `path` under a temporary name
    (`.NAME.<16 hex digits>.tmp`), flushed to the disk and renamed. A failure or `kill -9` leaves
    the old file as it was, and the next save to the same path removes what a killed one left. An
    exception from a signal handler (Ctrl-C, an alarm) leaves the old file or the new one. A
    symbolic link is followed; a new file's mode follows the umask, an existing file's is kept.

    What is not in arrays is limited, so that a file from anybody is quick to load or to refuse:
    there is room for two million numbers, 150,000 dicts, or 60,000 arrays. Of an object that is
    mostly small containers the file is as long as a quarter of the memory that loading it takes.

    Beside the object, memory is needed for one array at a time, and only for arrays that are not
    contiguous or not on the host.

    With `background=True` the call returns as soon as everything is copied in memory, and a thread
    writes the file while the training goes on:

    - What comes later to the object is not in the file.
    - There is one such save at a time. The next call of a function of this module, in whatever thread,
      waits until the file is on the disk; so do `wait_for_save` and the end of the process.
    - If the file cannot be written, the old one stays, and the next such call raises the error, once,
      and does nothing else; at the end of the process it is printed, with its traceback. What is
      wrong with `obj` is raised at once.
    - The memory of the copy, as much as the file takes, is kept for the next one, as new memory takes
      three times as long to fill. `wait_for_save` gives it back.
    - A forked child does not wait, nor write. Where no thread can be started, as at the end of the
      process, the file is written before the call returns.

    Args:
        obj: the object to save.
        path: the file to write. Its directory must exist.
        background: whether a thread writes the file. Default: False.

    Raises:
        TypeError: something in `obj` cannot be saved; the message says where. Nothing is written.
        ValueError: `obj` contains itself, is nested more than 100 deep, is larger than the limits
            above, or has a dict with thousands of keys of one hash. Nothing is written.
        OSError: the file cannot be written, for example because the disk is full; or that of an
            earlier save in the background could not be.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from genesis.checkpoint import load, save
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save({"weights": [np.arange(3.0)], "betas": (0.9, 0.999), 7: None}, path)
        >>> load(path)
        {'weights': [array([0., 1., 2.])], 'betas': (0.9, 0.999), 7: None}
    """
    name = _path(path, "save(obj, path)", swapped=_is_path(obj))
    _check_flag(background)
    # In a context of its own: an exception from a signal handler cannot leave the caller's changed.
    contextvars.copy_context().run(_save, lambda: obj, name, background)


def _save(collect: Callable[[], Any], path: str, background: bool) -> None:
    """Save what `collect` returns, which is called when no other save is at work."""
    if not background or in_background.is_here():
        in_background.wait()
        header, sources = _encoded(collect())
        atomic_file.replace_file(path, lambda file: file_format.write(file, header, sources))
        return
    path = os.path.abspath(path)  # wherever the process goes meanwhile
    with in_background.turn:
        in_background.wait()
        header, sources = _encoded(collect())
        copies, memory = in_background.copied(sources)
        fill = partial(file_format.write, header=header, sources=copies, still=True)
        what = "the checkpoint in the background"
        in_background.begin(partial(atomic_file.replace_file, path, fill, what), memory)


def _encoded(obj: Any) -> tuple[bytes, dict[str, codec.Source]]:
    """The header of the file, and the tensors, in order."""
    regions.leave()  # what is saved of a parameter is itself, not its working copy
    encoder = codec.Encoder()
    structure = json.dumps(encoder.encode(obj), separators=(",", ":"))
    sources = dict(
        sorted(encoder.sources.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    )
    return file_format.make_header(structure, sources), sources


def _check_flag(background: Any) -> None:
    if type(background) is not bool:
        raise TypeError(
            f"background must be True or False, but got {codec.a(background)}: it says whether a thread "
            "writes the file, and is no name for an object"
        )


def wait_for_save() -> None:
    """Wait until a save with `background=True` is on the disk, and give the memory of its copy back.

    Without one, it returns at once.

    Raises:
        OSError: the file could not be written; the old one is as it was. It is raised once, here or by
            the next save or load.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from genesis.checkpoint import load, save, wait_for_save
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> weights = np.zeros(2)
        >>> save({"weights": weights}, path, background=True)
        >>> weights += 1
        >>> wait_for_save()
        >>> load(path)
        {'weights': array([0., 0.])}
    """
    in_background.forget_memory()


def load(path: str | os.PathLike[str]) -> Any:
    """Load what `save` has written.

    A checksum covers every bit of the file, so a damaged one is refused; and nothing in the file is
    run, so it is safe to load one from someone else. Arrays are new, writable and contiguous, and
    each owns its memory. Memory is needed for the file's contents once, and a file that would take
    more than 4 times its size and 16 MiB, or more than two seconds beside reading and summing its
    arrays, is refused, as is anything but a regular file (a FIFO, a device).

    Args:
        path: the file to read.

    Returns:
        The saved object.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a directory.
        CheckpointError: the file was not written by `save`, or is damaged.
        OSError: an earlier save in the background failed.

    Example:
        >>> import os, tempfile
        >>> from genesis.checkpoint import load, save
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save({"epoch": 3, "best": float("inf")}, path)
        >>> load(path)
        {'epoch': 3, 'best': inf}
    """
    with contextlib.ExitStack() as opened:
        return _read(_path(path, "load(path)"), opened).value


class _Read(NamedTuple):
    """What was read of a file, which is still open.

    Attributes:
        value: the saved object.
        file: the file.
        left: of tensors whose values were not kept, by the identity of their arrays in the object: the
            array, where it begins in the file, and how often the object has it.
    """

    value: Any
    file: io.BufferedReader
    left: dict[int, tuple[np.ndarray, int, int]]


def _read(
    path: str,
    opened: contextlib.ExitStack,
    leave: Callable[[str, np.ndarray], bool] | None = None,
) -> _Read:
    """Open a file, check it and make the object.

    Arrays that are to be left are left, if the system promises that the file stays as it is.
    """
    in_background.wait()
    try:
        file = opened.enter_context(atomic_file.open_to_read(path))
        if leave is not None and atomic_file.keep_writers_out(file):
            opened.callback(atomic_file.let_writers_in, file)
        else:
            leave = None
        contents = file_format.read(file, leave)
        decoder = codec.Decoder(contents.arrays)
        value = decoder.decode(contents.structure)
    except RecursionError as error:
        raise CheckpointError(f"cannot load {path!r}: it is nested too deeply") from error
    except MemoryError as error:
        raise CheckpointError(f"cannot load {path!r}: not enough memory") from error
    except (ValueError, OverflowError) as error:
        raise CheckpointError(f"cannot load {path!r}: {error}") from error
    left = {
        id(contents.arrays[name]): (contents.arrays[name], begin, decoder.mentions[name])
        for name, begin in contents.left.items()
    }
    return _Read(value, file, left)


def save_checkpoint(
    path: str | os.PathLike[str],
    /,
    *unnamed: NoReturn,
    background: bool = False,
    **objects: Any,
) -> None:
    """Save named objects to one file: an optimizer, its scheduler, arrays, counters.

    An object that has a `state_dict` method is saved through it, anything else as it is.

    Args:
        path: the file to write, as for `save`.
        background: whether a thread writes the file, as for `save`. Default: False.
        **objects: the objects, by the names that `load_checkpoint` gives them back under.

    Raises:
        TypeError, ValueError, OSError: as for `save`.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from genesis.checkpoint import load_checkpoint, save_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save_checkpoint(path, model={"weight": np.ones(2)}, epoch=3)
        >>> load_checkpoint(path)
        {'model': {'weight': array([1., 1.])}, 'epoch': 3}
    """
    _named(path, unnamed, "save_checkpoint(path, name=object, ...)")
    _check_flag(background)

    def states() -> dict[str, Any]:
        return {name: _state_of(value) for name, value in objects.items()}

    contextvars.copy_context().run(_save, states, os.fsdecode(path), background)


def _state_of(value: Any) -> Any:
    """An object's state dict, or itself; optimizers of this package give theirs without copying it."""
    lend = getattr(value, "_lent_state_dict", None)
    if lend is not None and not isinstance(value, type):
        return lend()
    return value.state_dict() if codec.has_method(value, "state_dict") else value


def load_checkpoint(
    path: str | os.PathLike[str], /, *unnamed: NoReturn, **objects: Any
) -> dict[str, Any]:
    """Load what `save_checkpoint` has written, and restore the objects given by name.

    Each given object's `load_state_dict` receives the value saved under its name, and the arrays of a
    given tree what was saved under their paths. Names, methods, and the trees' paths, shapes and types
    are checked before the first object is touched. If an object refuses its value, the objects that
    have a `state_dict` method are set back to what they were.

    Args:
        path: the file to read.
        **objects: the objects to restore: those with a `load_state_dict` method, and trees (see
            `genesis.tree`) of NumPy arrays or `Parameter`s on the CPU, which are written in place.
            Saved names that are not given are only returned.

    Large arrays of a tree are read straight into their places, without a copy in memory, on Linux, from
    files of one's own that nobody has open to write into. First the file is read once and found
    undamaged; the system keeps whoever would write into it waiting until it has been read again. Whoever
    puts another file in its place, as `save` does, need not wait. Elsewhere they come by way of a copy.

    Returns:
        Every saved value, by name: state dicts, arrays and plain values. Under the name of a tree that
        was given, that tree.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file was not written by `save_checkpoint`, or is damaged. Nothing is
            written, unless the message says so: the disk failed after the file was found undamaged.
        TypeError: an object has no `load_state_dict` method and is no tree of arrays.
        ValueError: the file holds nothing under an object's name, or no array of the same shape and type
            under the path of one in a tree, or one more.

    Example:
        >>> import os, tempfile
        >>> from genesis.checkpoint import load_checkpoint, save_checkpoint
        >>> class Counter:
        ...     count = 0
        ...     def state_dict(self):
        ...         return {"count": self.count}
        ...     def load_state_dict(self, state):
        ...         self.count = state["count"]
        >>> counter = Counter()
        >>> counter.count = 5
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save_checkpoint(path, counter=counter, epoch=3)
        >>> restored = Counter()
        >>> load_checkpoint(path, counter=restored)["epoch"]
        3
        >>> restored.count
        5
    """
    _named(path, unnamed, "load_checkpoint(path, name=object, ...)")
    trees = _trees_among(objects)
    try:
        with contextlib.ExitStack() as opened:
            return _restored(os.fsdecode(path), opened, objects, trees)
    except _DisturbedError:
        with contextlib.ExitStack() as opened:
            return _restored(os.fsdecode(path), opened, objects, trees, straight=False)


def _trees_among(objects: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of those objects that are trees, by their paths.

    Raises:
        TypeError: something can be restored neither so nor by a `load_state_dict`.
    """
    trees = {name: _arrays_of(value) for name, value in objects.items()}
    for name, value in objects.items():
        if not codec.has_method(value, "load_state_dict") and not trees[name]:
            raise TypeError(
                f"{name}: {codec.a(value)} has no load_state_dict method and is no tree of writable "
                f"arrays; take its value from what load_checkpoint returns"
            )
    return trees


class _DisturbedError(Exception):
    """Somebody is about to write into a file that was to be read straight into arrays."""


def _restored(
    path: str,
    opened: contextlib.ExitStack,
    objects: dict[str, Any],
    trees: dict[str, dict[str, np.ndarray]],
    straight: bool = True,
) -> dict[str, Any]:
    """What `load_checkpoint` returns, of objects and trees that are such.

    A file must be found undamaged before the first array is written. So large arrays of trees are read
    twice: first only to be summed up, then straight into their places, which takes less time than new
    memory for them would, and none of that memory.
    """
    beginnings = tuple(f"{name}." for name, arrays in trees.items() if arrays and straight)

    def leave(name: str, array: np.ndarray) -> bool:
        """Whether a tensor is likely to be that of an array in a tree, by its name."""
        return array.nbytes >= _WORTHWHILE and f"{name}.".startswith(beginnings)

    found = _read(path, opened, leave if beginnings else None)
    states = _by_name(path, found.value)
    _restore(path, states, objects, trees, found)
    return states


def _by_name(path: str, loaded: Any) -> dict[str, Any]:
    """The values that `save_checkpoint` has written, here or in several processes together.

    `loaded` is what the file at this path holds.
    """
    if sharded.is_index(loaded):
        try:
            return sharded.assembled(path, loaded, load)
        except sharded.ShardError as error:
            raise CheckpointError(f"cannot load {path!r}: {error}") from error
    if type(loaded) is not dict or not all(type(name) is str for name in loaded):
        raise CheckpointError(
            f"cannot load {path!r}: it does not hold values by name; "
            "use genesis.load for a file that genesis.save has written"
        )
    return loaded


def _restore(
    path: str,
    states: dict[str, Any],
    objects: dict[str, Any],
    trees: dict[str, dict[str, np.ndarray]],
    found: _Read | None = None,
) -> None:
    """Give objects back what was saved of them; all of them, or none that can be set back.

    Args:
        path: what messages call the file.
        states: what was saved, by name; those of trees become the trees.
        objects, trees: see `_trees_among`.
        found: the file, if arrays are left in it. Default: None, everything is in `states`.
    """
    unknown = [name for name in objects if name not in states]
    if unknown:
        raise ValueError(
            f"{path!r} holds nothing named {_quoted(unknown)}; it holds {_quoted(states) or 'nothing'}"
        )
    pairs = [
        pair
        for name, arrays in trees.items()
        for pair in _pairs(f"{name} in {path!r}", arrays, states[name])
    ]
    reading = {} if found is None else _straight(found, pairs, path)
    writes: list[tuple[partial, Any]] = [
        (assign(array, saved), None) for array, saved in pairs if id(saved) not in reading
    ]
    writes += [call for calls in reading.values() for call in calls]
    before: list[tuple[Any, Any]] = []
    writes.append((partial(before.clear), None))  # with the arrays, so that objects agree with them
    try:
        for name, value in objects.items():
            if trees[name]:
                states[name] = value
                continue
            if codec.has_method(value, "state_dict"):
                before.append((value, _snapshot(value)))
            value.load_state_dict(states[name])
        if found is not None and reading and not atomic_file.are_writers_out(found.file):
            raise _DisturbedError
        if not _done(writes):
            raise CheckpointError(
                f"{path!r} could not be read a second time: arrays that were to be restored hold a part "
                "of it now; load another file into them"
            )
    except BaseException:
        for value, state in reversed(before):
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                value.load_state_dict(state)
        raise


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _path(path: Any, call: str, *, swapped: bool = False) -> str:
    """A path as a string; the error for anything else says how the function is called."""
    if not _is_path(path):
        raise TypeError(
            f"path must be a string or a path, but got {codec.a(path)}: the call is {call}"
            + ", and these arguments are the other way round" * swapped
        )
    return os.fsdecode(path)


def _named(path: Any, unnamed: tuple, call: str) -> None:
    """Raise TypeError unless the path comes first and all objects have names."""
    _path(path, call, swapped=any(map(_is_path, unnamed)))
    if unnamed:
        raise TypeError(
            f"each object needs a name, but {codec.a(unnamed[0])} has none: the call is {call}"
        )


def _arrays_of(value: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths; none if it is something else, or holds something else."""
    if codec.has_method(value, "load_state_dict") or tree.opened(value) is None:
        return {}
    arrays = {
        path: leaf._view if isinstance(leaf, Parameter) else leaf
        for path, leaf in tree.flatten_with_path(value)
    }
    are_arrays = all(
        type(array) is np.ndarray and array.flags.writeable for array in arrays.values()
    )
    return arrays if are_arrays else {}


def _straight(
    found: _Read, pairs: list[tuple[np.ndarray, np.ndarray]], path: str
) -> dict[int, list[tuple[partial, int]]]:
    """The calls that read arrays straight from the file, for `_done`, by the saved array's identity.

    Arrays that were left, and are not for a tree alone or have no contiguous place, are filled here.
    """
    places: dict[int, list[np.ndarray]] = {}
    for array, saved in pairs:
        places.setdefault(id(saved), []).append(array)
    reading = {}
    for identity, (saved, begin, mentions) in found.left.items():
        arrays = places.get(identity, [])
        if len(arrays) == mentions and all(array.flags.c_contiguous for array in arrays):
            calls = [file_format.reading(found.file, array, begin) for array in arrays]
            reading[identity] = list(chain(*calls))
        elif not _done(file_format.reading(found.file, saved, begin)):
            raise CheckpointError(f"cannot load {path!r}: it could not be read a second time")
    return reading


def _done(calls: Sequence[tuple[partial, Any]]) -> bool:
    """Commit calls; whether each returned what stands beside it, and the system refused none."""
    try:
        return commit([call for call, _ in calls]) == [result for _, result in calls]
    except OSError as error:
        if error.errno is None:  # not the system's, but an alarm's
            raise
        return False


def _pairs(
    what: str, arrays: dict[str, np.ndarray], saved: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The arrays of a tree, each with what was saved of it.

    Raises:
        ValueError: it does not fit.
    """
    found = dict(tree.flatten_with_path(saved)) if arrays else {}
    missing, unknown = sorted(arrays.keys() - found.keys()), sorted(found.keys() - arrays.keys())
    if missing or unknown:
        wrong = f"nothing at {_quoted(missing)}" if missing else f"more, at {_quoted(unknown)}"
        raise ValueError(f"{what} is not like the tree to be restored: it has {wrong}")
    for place, array in arrays.items():
        leaf = found[place]
        value = found[place] = leaf.data if isinstance(leaf, Parameter) else np.asarray(leaf)
        if value.shape != array.shape or value.dtype != array.dtype:
            raise ValueError(
                f"{what} has at {place!r} an array of shape {value.shape} and dtype {value.dtype}, but "
                f"the one to be restored has shape {array.shape} and dtype {array.dtype}"
            )
    return [(array, found[place]) for place, array in arrays.items()]


def _snapshot(value: Any) -> Any:
    """An object's state dict as it is now: those of torch's modules and optimizers share memory."""
    state = value.state_dict()
    if "torch" not in sys.modules:
        return state
    level: list[Any] = [state]
    seen: set[int] = set()
    while level:
        if any(map(buffers.is_torchs, level)):
            return deepcopy(state)
        containers = [
            each for each in level if isinstance(each, (dict, list, tuple)) and id(each) not in seen
        ]
        seen.update(map(id, containers))
        level = [
            child
            for each in containers
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return state


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
