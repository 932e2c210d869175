"""Checkpoints: nested Python objects in one safetensors file that is complete or absent.

Arrays become the tensors of the file, under names that follow their place in the object
(`optimizer.state.0.exp_avg`), so that any safetensors reader opens them. Everything else is JSON in
the file's `__metadata__`:

    checksum    SHA-256 of the whole file, taken while these 64 digits are zeros
    format      "genesis 1"
    structure   the object as JSON, `{"$tensor": name}` where an array stands

The module follows a save from top to bottom: the public functions, the object as JSON and back, the
bytes of the file, the file on the disk. Nothing is pickled, and what a file says is believed only
after it was checked.

The file is written here and not by the `safetensors` package, which (0.8.0) wants every array in
host memory at once, writes wrong data for strided ones, leaves `.tmpXXXXXX` files of mode 0600 when
it is killed, and does not flush to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from . import regions
from .parameter import Parameter

try:
    import fcntl
except (
    ImportError
):  # not a POSIX system: the rest of genesis works there, save says that it does not
    fcntl = None  # type: ignore[assignment]

__all__ = ["CheckpointError", "load", "load_checkpoint", "save", "save_checkpoint"]


class CheckpointError(RuntimeError):
    """A file is no checkpoint, or is damaged; the message names the file and says what is wrong."""


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Save nested dicts, lists and tuples of numbers, strings, arrays and parameters to a file.

    `load` brings back the same structure, exactly: types, order of keys, every bit of a number.

    - Containers are dict, list and tuple. Keys are str, int, float, bool, None or tuples of those.
    - Values are None, bool, int of any size, float (inf, nan and -0.0 too) and str.
    - Arrays and NumPy scalars are bool, (u)int8 to (u)int64, float16, float32, float64, and
      bfloat16 (`ml_dtypes.bfloat16`). Other dtypes (complex, longdouble, strings, dates, records,
      objects) are refused. An array may have any strides and byte order; it comes back C-contiguous
      and native. Arrays on a device, and memory-mapped ones, come back as plain host arrays.
    - A `Parameter` comes back as one, with its name and `requires_grad`. Its gradient is not saved.
    - An array or parameter that occurs twice is saved once and comes back as one object.
    - Subclasses (OrderedDict, namedtuple, masked arrays, enums, ...) are refused, as they would
      come back as something else.

    The file appears whole or not at all: it is written beside `path` under a temporary name
    (`.NAME.<16 hex digits>.tmp`), flushed to the disk and renamed. A failure or `kill -9` leaves
    the old file as it was, and the next save to the same path removes what a killed one left. A
    symbolic link is followed; a new file's mode follows the umask, an existing file's is kept.

    Beside the object, memory is needed for one array at a time, and only for arrays that are not
    contiguous or not on the host.

    Args:
        obj: the object to save.
        path: the file to write. Its directory must exist.

    Raises:
        TypeError: something in `obj` cannot be saved; the message says where. Nothing is written.
        ValueError: `obj` contains itself, or is nested more than 100 deep. Nothing is written.
        OSError: the file cannot be written, for example because the disk is full, or the system is
            not a POSIX one.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from genesis.checkpoint import load, save
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save({"weights": [np.arange(3.0)], "betas": (0.9, 0.999), 7: None}, path)
        >>> load(path)
        {'weights': [array([0., 1., 2.])], 'betas': (0.9, 0.999), 7: None}
    """
    if fcntl is None:
        raise OSError("genesis.save needs a POSIX system: it locks the file that it writes")
    with regions.outside():  # what is saved of a parameter is itself, not its working copy
        encoder = _Encoder()
        structure = json.dumps(encoder.encode(obj), separators=(",", ":"))
        sources = dict(
            sorted(encoder.sources.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        )
        header = _make_header(structure, sources)
        _replace_file(os.fsdecode(path), lambda file: _write(file, header, sources))


def load(path: str | os.PathLike[str]) -> Any:
    """Load what `save` has written.

    A checksum covers every bit of the file, so a damaged one is refused; and nothing in the file is
    run, so it is safe to load one from someone else. Arrays are new, writable and contiguous, and
    each owns its memory. Memory is needed for the file's contents once.

    Args:
        path: the file to read.

    Returns:
        The saved object.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file was not written by `save`, or is damaged.

    Example:
        >>> import os, tempfile
        >>> from genesis.checkpoint import load, save
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> save({"epoch": 3, "best": float("inf")}, path)
        >>> load(path)
        {'epoch': 3, 'best': inf}
    """
    path = os.fsdecode(path)
    with open(path, "rb") as file:
        try:
            structure, arrays = _read(file)
            return _Decoder(arrays).decode_all(structure)
        except RecursionError as error:
            raise CheckpointError(f"cannot load {path!r}: it is nested too deeply") from error
        except MemoryError as error:
            raise CheckpointError(f"cannot load {path!r}: not enough memory") from error
        except (ValueError, OverflowError) as error:
            raise CheckpointError(f"cannot load {path!r}: {error}") from error


def save_checkpoint(path: str | os.PathLike[str], /, **objects: Any) -> None:
    """Save named objects to one file: an optimizer, its scheduler, arrays, counters.

    An object that has a `state_dict` method is saved through it, anything else as it is.

    Args:
        path: the file to write, as for `save`.
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
    states = {}
    for name, value in objects.items():
        states[name] = value.state_dict() if _has_method(value, "state_dict") else value
    save(states, path)


def load_checkpoint(path: str | os.PathLike[str], /, **objects: Any) -> dict[str, Any]:
    """Load what `save_checkpoint` has written, and restore the objects given by name.

    Each given object's `load_state_dict` receives the value saved under its name. Names and methods
    are checked before the first object is touched. If an object refuses its value, the objects that
    have a `state_dict` method are set back to what they were.

    Args:
        path: the file to read.
        **objects: the objects to restore; saved names that are not given are only returned.

    Returns:
        Every saved value, by name: state dicts, arrays and plain values.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file was not written by `save_checkpoint`, or is damaged.
        TypeError: an object has no `load_state_dict` method.
        ValueError: the file holds nothing under an object's name.

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
    for name, value in objects.items():
        if not _has_method(value, "load_state_dict"):
            raise TypeError(
                f"{name}: {_a(value)} has no load_state_dict method; "
                f"take its value from what load_checkpoint returns"
            )
    states = load(path)
    if type(states) is not dict or not all(type(name) is str for name in states):
        raise CheckpointError(
            f"cannot load {os.fsdecode(path)!r}: it does not hold values by name; "
            "use genesis.load for a file that genesis.save has written"
        )
    unknown = [name for name in objects if name not in states]
    if unknown:
        raise ValueError(
            f"{os.fsdecode(path)!r} holds nothing named {_quoted(unknown)}; "
            f"it holds {_quoted(states) or 'nothing'}"
        )
    before: list[tuple[Any, Any]] = []
    try:
        for name, value in objects.items():
            if _has_method(value, "state_dict"):
                before.append((value, value.state_dict()))
            value.load_state_dict(states[name])
    except BaseException:
        for value, state in reversed(before):
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                value.load_state_dict(state)
        raise
    return states


def _has_method(value: Any, name: str) -> bool:
    return callable(getattr(value, name, None)) and not isinstance(value, type)


def _a(value: Any) -> str:
    """The value's type with its article: "a set", "an enum.Enum"."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


# The object as JSON. What JSON has stands for itself; anything else is an object with one key, a
# tag that begins with "$":
#
#     {"$int": "0x..."}          an int of more than 64 bits; hexadecimal, as converting decimal
#                                digits takes quadratic time
#     {"$float": "7ff8..."}      inf or nan, the bits of a float64
#     {"$str": "eda080..."}      a str with surrogates, which JSON would join to pairs
#     {"$tuple": [...]}
#     {"$dict": [[key, value]]}  a dict with keys that are no strings, or that begin with "$"
#     {"$tensor": name}          an array
#     {"$scalar": name}          a NumPy scalar
#     {"$parameter": {...}}      a Parameter; {"$parameter": 3} is the fourth one in the file again

_MAX_DEPTH = 100  # far below the recursion limit of Python and of its json module
_SURROGATES = re.compile("[\ud800-\udfff]")

_CODES = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.int8): "I8",
    np.dtype(np.int16): "I16",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
    np.dtype(np.uint8): "U8",
    np.dtype(np.uint16): "U16",
    np.dtype(np.uint32): "U32",
    np.dtype(np.uint64): "U64",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float64): "F64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class _Source(NamedTuple):
    """A tensor to be written. Its values are fetched when their turn comes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]
    owner: Any  # keeps the array alive, and with it the id() that it is remembered by


class _Encoder:
    """Turns an object into JSON values and the tensors that they name."""

    def __init__(self) -> None:
        self.sources: dict[str, _Source] = {}
        self._path: list[Any] = []
        self._open: set[int] = set()
        self._names: dict[int, str] = {}
        self._repeats: dict[str, int] = {}
        self._parameters: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return _encode_plain(value)
        if kind is dict:
            return self._encode_dict(value)
        if kind is list:
            return self._encode_children(value, enumerate(value))
        if kind is tuple:
            return {"$tuple": self._encode_children(value, enumerate(value))}
        if kind is Parameter:
            return self._encode_parameter(value)
        if isinstance(value, np.generic):
            array = np.asarray(value)
            if kind is not array.dtype.type:
                self._refuse(value)
            return {"$scalar": self._add(array, array, lambda: array)}
        # A memory-mapped or device array differs from a plain one in where it lies, not in what it
        # means; other subclasses carry a meaning (a mask, a unit) that would be lost.
        if kind in (np.ndarray, np.memmap):
            return {"$tensor": self._add(value, value, lambda: value)}
        if _has_method(value, "copy_to_host"):
            return {"$tensor": self._add(value, value, value.copy_to_host)}
        self._refuse(value)

    def _encode_dict(self, value: dict) -> Any:
        keys = [self._encode_key(key) for key in value]
        children = self._encode_children(value, value.items())
        if all(type(key) is str and not key.startswith("$") for key in keys):
            return dict(zip(keys, children))
        return {"$dict": list(zip(keys, children))}

    def _encode_children(self, value: Any, children: Iterable[tuple[Any, Any]]) -> list[Any]:
        if id(value) in self._open:
            raise ValueError(f"{self._where()}: the object contains itself")
        if len(self._open) == _MAX_DEPTH:
            raise ValueError(f"{self._where()}: nested more than {_MAX_DEPTH} deep")
        self._open.add(id(value))
        encoded = []
        for key, child in children:
            self._path.append(key)
            encoded.append(self.encode(child))
            self._path.pop()
        self._open.remove(id(value))
        return encoded

    def _encode_key(self, key: Any, depth: int = 0) -> Any:
        if key is None or type(key) in (bool, int, float, str):
            return _encode_plain(key)
        if type(key) is tuple and depth < _MAX_DEPTH:
            return {"$tuple": [self._encode_key(item, depth + 1) for item in key]}
        raise TypeError(
            f"{self._where()}: cannot save {_a(key)} in a key; keys are str, int, float, "
            "bool, None or tuples of those"
        )

    def _encode_parameter(self, value: Parameter) -> Any:
        number = self._parameters.get(id(value))
        if number is not None:
            return {"$parameter": number}
        if value.name is not None and type(value.name) is not str:
            raise TypeError(f"{self._where()}: a parameter's name must be a str or None")
        self._parameters[id(value)] = len(self._parameters)
        tensor = self._add(value.data, value, value.numpy)
        return {
            "$parameter": {
                "tensor": tensor,
                "name": value.name,
                "requires_grad": bool(value.requires_grad),
            }
        }

    def _add(self, array: Any, described: Any, fetch: Callable[[], np.ndarray]) -> str:
        if id(array) in self._names:
            return self._names[id(array)]
        dtype = _native(described.dtype)
        if dtype not in _CODES:
            raise TypeError(
                f"{self._where()}: cannot save dtype {described.dtype}; accepted are "
                + ", ".join(str(accepted) for accepted in _CODES)
            )
        name = self._tensor_name()
        self.sources[name] = _Source(dtype, tuple(described.shape), fetch, array)
        self._names[id(array)] = name
        return name

    def _tensor_name(self) -> str:
        # At most 200 characters, the last ones, and only such as every reader can decode.
        name = ".".join(_label(key) for key in self._path)[-200:] or "value"
        name = name.encode("utf-8", "backslashreplace").decode("utf-8")
        unique = name
        while unique in self.sources or unique == "__metadata__":
            self._repeats[name] = self._repeats.get(name, 1) + 1
            unique = f"{name}#{self._repeats[name]}"
        return unique

    def _where(self) -> str:
        keys = (repr(key) if type(key) is str else _label(key) for key in self._path)
        return "obj" + "".join(f"[{key if len(key) <= 60 else key[:60] + '...'}]" for key in keys)

    def _refuse(self, value: Any) -> NoReturn:
        hint = ""
        if _has_method(value, "state_dict"):
            hint = "; save its state_dict()"
        elif hasattr(value, "__array__"):
            hint = "; convert it with numpy.asarray(...)"
        else:
            for base in (dict, list, tuple, str, int, float):
                if isinstance(value, base):
                    hint = f"; convert it with {base.__name__}(...)"
        raise TypeError(f"{self._where()}: cannot save {_a(value)}{hint}")


def _encode_plain(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return {"$int": hex(value)}
    if type(value) is float and not math.isfinite(value):
        return {"$float": struct.pack(">d", value).hex()}
    if type(value) is str and not value.isascii() and _SURROGATES.search(value):
        return {"$str": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _native(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _label(key: Any) -> str:
    try:
        return str(key)
    except ValueError:  # an int of more digits than Python converts
        return "int"


class _Decoder:
    """Turns JSON values back into the object; ValueError for what `_Encoder` does not make."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self._used: set[str] = set()
        self._parameters: list[Parameter] = []
        self._tags: dict[str, Callable[[Any, int], Any]] = {
            "$int": self._int,
            "$float": self._float,
            "$str": self._str,
            "$tuple": self._tuple,
            "$dict": self._dict,
            "$tensor": self._tensor,
            "$scalar": self._scalar,
            "$parameter": self._parameter,
        }

    def decode_all(self, structure: str) -> Any:
        result = self._decode(_parse_json(structure, "structure"), 0)
        unused = self._arrays.keys() - self._used
        if unused:
            raise ValueError(f"its structure does not mention the tensor {_short(min(unused))}")
        return result

    def _decode(self, node: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"its structure is nested more than {_MAX_DEPTH} deep")
        if type(node) is list:
            return [self._decode(item, depth + 1) for item in node]
        if type(node) is not dict:
            return node
        if len(node) == 1:
            [(tag, content)] = node.items()
            if tag in self._tags:
                return self._tags[tag](content, depth)
        if any(key.startswith("$") for key in node):
            raise ValueError(f"its structure has the unknown form {_short(list(node))}")
        return {key: self._decode(child, depth + 1) for key, child in node.items()}

    def _int(self, content: Any, depth: int) -> int:
        if type(content) is not str or not re.fullmatch("-?0x[0-9a-f]+", content):
            raise ValueError(f"its structure has the malformed int {_short(content)}")
        return int(content, 16)

    def _float(self, content: Any, depth: int) -> float:
        if type(content) is not str or not re.fullmatch("[0-9a-f]{16}", content):
            raise ValueError(f"its structure has the malformed float {_short(content)}")
        return struct.unpack(">d", bytes.fromhex(content))[0]

    def _str(self, content: Any, depth: int) -> str:
        if type(content) is not str or not re.fullmatch("[0-9a-f]*", content):
            raise ValueError(f"its structure has the malformed str {_short(content)}")
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")

    def _tuple(self, content: Any, depth: int) -> tuple:
        if type(content) is not list:
            raise ValueError("its structure has a malformed tuple")
        return tuple([self._decode(item, depth + 1) for item in content])

    def _dict(self, content: Any, depth: int) -> dict:
        if type(content) is not list or not all(type(p) is list and len(p) == 2 for p in content):
            raise ValueError("its structure has a malformed dict")
        result = {self._key(key): self._decode(child, depth + 1) for key, child in content}
        if len(result) != len(content):
            raise ValueError("its structure has a key twice")
        return result

    def _key(self, node: Any, depth: int = 0) -> Any:
        if type(node) is not dict and type(node) is not list:
            return node
        if type(node) is dict and len(node) == 1 and depth <= _MAX_DEPTH:
            [(tag, content)] = node.items()
            if tag in ("$int", "$float", "$str"):
                return self._tags[tag](content, depth)
            if tag == "$tuple" and type(content) is list:
                return tuple([self._key(item, depth + 1) for item in content])
        raise ValueError("its structure has a malformed key")

    def _tensor(self, content: Any, depth: int) -> np.ndarray:
        if type(content) is not str or content not in self._arrays:
            raise ValueError(f"its structure mentions the missing tensor {_short(content)}")
        self._used.add(content)
        return self._arrays[content]

    def _scalar(self, content: Any, depth: int) -> Any:
        array = self._tensor(content, depth)
        if array.shape != ():
            raise ValueError(f"its scalar {_short(content)} has the shape {array.shape}")
        return array[()]

    def _parameter(self, content: Any, depth: int) -> Parameter:
        if type(content) is int and 0 <= content < len(self._parameters):
            return self._parameters[content]
        if type(content) is not dict or content.keys() != {"tensor", "name", "requires_grad"}:
            raise ValueError("its structure has a malformed parameter")
        name, requires_grad = content["name"], content["requires_grad"]
        if not (name is None or type(name) is str) or type(requires_grad) is not bool:
            raise ValueError("its structure has a malformed parameter")
        data = self._tensor(content["tensor"], depth)
        try:
            parameter = Parameter(data, requires_grad=requires_grad, name=name)
        except TypeError as error:
            raise ValueError(f"{_short(content['tensor'])} is no parameter: {error}") from error
        self._parameters.append(parameter)
        return parameter


def _parse_json(text: str, what: str) -> Any:
    """Parse JSON that `json.dumps` could have written: a hostile number costs no time."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError(f"its {what} has a key twice")
        return result

    def number(kind: type) -> Callable[[str], Any]:
        def parse(digits: str) -> Any:
            value = kind(digits) if len(digits) <= 32 else math.inf
            if not math.isfinite(value):
                raise ValueError(f"its {what} has the number {_short(digits)}")
            return value

        return parse

    try:
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=number(int),
            parse_float=number(float),
            parse_constant=number(float),
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"its {what} is not JSON ({error})") from error


def _short(value: Any) -> str:
    text = repr(value[:60] if type(value) is str else value)
    return text if len(text) <= 80 else text[:80] + "..."


# The bytes of the file: the length of the header, the header, the tensors. The header begins with
# the checksum, so that its digits always stand at the same place.

_FORMAT = "genesis 1"
_DIGITS = 64
_BEGINNING = b'{"__metadata__":{"checksum":"'
_MAX_HEADER = 100_000_000  # the limit that the safetensors package sets
_CHUNK = 1 << 20
_FOREIGN = (
    "genesis.save did not write it, or its beginning is damaged; if another program wrote it, "
    "safetensors.numpy.load_file opens it"
)


def _make_header(structure: str, sources: dict[str, _Source]) -> bytes:
    entries: dict[str, Any] = {
        "__metadata__": {"checksum": "0" * _DIGITS, "format": _FORMAT, "structure": structure}
    }
    end = 0
    for name, source in sources.items():
        begin, end = end, end + math.prod(source.shape) * source.dtype.itemsize
        entries[name] = {
            "dtype": _CODES[source.dtype],
            "shape": source.shape,
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # readers that map the file want the tensors aligned
    if len(header) > _MAX_HEADER:
        raise ValueError(
            f"the object's structure takes {len(header)} bytes and a safetensors file has room for "
            f"{_MAX_HEADER}: keep long lists of numbers as arrays"
        )
    return header


def _write(file: io.FileIO, header: bytes, sources: dict[str, _Source]) -> None:
    digest = hashlib.sha256()

    def put(chunk: bytes) -> None:
        digest.update(chunk)
        _write_all(file, chunk)

    put(struct.pack("<Q", len(header)))
    put(header)
    for name, source in sources.items():
        array = source.fetch()
        if _native(array.dtype) != source.dtype or array.shape != source.shape:
            raise RuntimeError(f"the array {name!r} changed while it was being saved")
        data = _raw(np.ascontiguousarray(array, dtype=source.dtype))
        for start in range(0, data.size, _CHUNK):
            # A copy, so that what is written is what was summed even if a thread changes the array.
            put(data[start : start + _CHUNK].tobytes())
        del array, data  # before the next one is copied
    file.seek(8 + len(_BEGINNING))
    _write_all(file, digest.hexdigest().encode())


def _write_all(file: io.FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8)


def _read(file: io.BufferedReader) -> tuple[str, dict[str, np.ndarray]]:
    """The structure and the tensors, from a file that agrees with its checksum."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("it is no safetensors file, or is cut off")
    header = file.read(length)
    if not header.startswith(_BEGINNING):
        raise ValueError(_FOREIGN if header.startswith(b"{") else "it is no safetensors file")
    structure, layout = _parse_header(header, size - 8 - length)
    before = len(_BEGINNING)
    digits, after = header[before : before + _DIGITS], header[before + _DIGITS :]
    digest = hashlib.sha256(start + header[:before] + b"0" * _DIGITS + after)
    arrays = {}
    for name, (dtype, shape) in layout.items():
        try:
            arrays[name] = np.empty(shape, dtype)
        except ValueError as error:
            raise ValueError(f"its tensor {_short(name)} has the shape {_short(shape)}") from error
        data = _raw(arrays[name])
        for begin in range(0, data.size, _CHUNK):
            chunk = data[begin : begin + _CHUNK].data
            if file.readinto(chunk) != len(chunk):
                raise ValueError("it became shorter while it was read")
            digest.update(chunk)
    if digest.hexdigest().encode() != digits:
        raise ValueError("its checksum does not match: the file is damaged")
    return structure, arrays


def _parse_header(
    header: bytes, data_size: int
) -> tuple[str, dict[str, tuple[np.dtype, tuple[int, ...]]]]:
    """The structure, and each tensor's dtype and shape in the order of the data."""
    entries = _parse_json(header.decode("utf-8"), "header")
    metadata = entries.pop("__metadata__")
    version = metadata.get("format") if type(metadata) is dict else None
    if type(version) is not str:
        raise ValueError(_FOREIGN)
    if version != _FORMAT:
        raise ValueError(f"its format is {_short(version)}, and this version reads {_FORMAT!r}")
    structure = metadata.get("structure")
    if metadata.keys() != {"checksum", "format", "structure"} or type(structure) is not str:
        raise ValueError("its metadata is malformed")
    layout = {}
    end = 0
    for name, entry in entries.items():
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"its tensor {_short(name)} is malformed")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(code) is not str or code not in _DTYPES:
            raise ValueError(f"its tensor {_short(name)} has the unknown dtype {_short(code)}")
        # 64 is NumPy's limit; without one, the product below could be made to take minutes.
        if not _is_sizes(shape) or len(shape) > 64:
            raise ValueError(f"its tensor {_short(name)} has the shape {_short(shape)}")
        begin, end = end, end + math.prod(shape) * _DTYPES[code].itemsize
        if not _is_sizes(offsets) or offsets != [begin, end]:
            raise ValueError(
                f"its tensor {_short(name)} lies at {_short(offsets)}, not at [{begin}, {end}]"
            )
        layout[name] = (_DTYPES[code], tuple(shape))
    if end != data_size:
        raise ValueError(f"its tensors take {end} bytes, but the file has {data_size} for them")
    return structure, layout


def _is_sizes(value: Any) -> bool:
    return type(value) is list and all(type(item) is int and item >= 0 for item in value)


# The file on the disk.


def _replace_file(path: str, write: Callable[[io.FileIO], None]) -> None:
    """Let `write` fill a new file, and put it in the place of `path` once it is on the disk."""
    target = os.path.realpath(path)
    try:
        status = _check_target(target)
        _sweep(target)
        file, temporary = _create_temporary(target, status)
        try:
            with file:
                write(file)
                os.fsync(file.fileno())
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_directory(os.path.dirname(target))
    except OSError as error:
        if error.errno is None:
            raise
        # The same type again, as OSError picks it by the number.
        message = f"cannot save the checkpoint: {error.strerror}"
        raise OSError(error.errno, message, path) from error


def _check_target(target: str) -> os.stat_result | None:
    """The status of the file to be replaced, None if there is none."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    # A rename would put a file in the place of /dev/null, and would overrule a write protection.
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return status


# Whoever writes a temporary file holds a lock on it, which the kernel drops when the process ends,
# however it ends. A lock that can be had marks a leftover. (A process number in the name would be
# wrong after a restart, in another container and on another host.) Where a file system has no
# locks, saving works and leftovers stay.


def _create_temporary(target: str, status: os.stat_result | None) -> tuple[io.FileIO, str]:
    mode = 0o666 if status is None else stat.S_IMODE(status.st_mode)
    while True:
        temporary = _temporary_start(target) + secrets.token_hex(8) + ".tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        file = io.FileIO(descriptor, "r+")
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        file.close()  # another process swept it away before it was locked
    if status is not None:
        with contextlib.suppress(OSError):  # only root may give files away
            os.fchown(descriptor, status.st_uid, status.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, mode)
    return file, temporary


def _temporary_start(target: str) -> str:
    directory, name = os.path.split(target)
    # File systems allow 255 bytes. Where two long names begin alike, each save sweeps for both.
    return os.path.join(directory, f".{os.fsdecode(os.fsencode(name)[:200])}.")


def _sweep(target: str) -> None:
    """Remove the temporary files of saves to `target` that were killed."""
    start = _temporary_start(target)
    for leftover in _matching(start):
        # Whatever goes wrong here is no reason to fail the save.
        with contextlib.suppress(OSError):
            descriptor = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(leftover)
            finally:
                os.close(descriptor)


def _matching(start: str) -> Iterator[str]:
    directory, name = os.path.split(start)
    pattern = re.compile(re.escape(name) + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(PermissionError):  # one may write to a directory and not list it
        for entry in os.listdir(directory):
            if pattern.fullmatch(entry):
                yield os.path.join(directory, entry)


def _sync_directory(directory: str) -> None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # no such operation there
            raise
    finally:
        os.close(descriptor)
