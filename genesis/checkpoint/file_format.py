"""The bytes of the file: the length of the header, the header, the tensors.

The header begins with the checksum, so that its digits always stand at the same place, and it is
read as `make_header` writes it, piece by piece: a header of another form has another checksum, and
would be refused in the end. What a piece of another form has wrong with it is said, if finding out
costs little.

Two formats are read, which differ in their checksum only. The one that is written has 128 bits that
are made for speed; a checksum guards against damage, and none guards against whoever can write the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import xxhash

from . import atomic_file, codec
from .codec import short


class _Checksum(NamedTuple):
    """How the bytes of a file are summed up.

    Attributes:
        name: what it is called in messages.
        prefix: what the header has before the digits.
        digits: how many hexadecimal digits it has.
        new: begins a sum, with `update` and `hexdigest`.
    """

    name: str
    prefix: str
    digits: int
    new: Callable[[], Any]


_FORMATS = {
    "genesis 1": _Checksum("SHA-256", "", 64, hashlib.sha256),
    "genesis 2": _Checksum("xxh3_128", "xxh3_128:", 32, xxhash.xxh3_128),
}
_WRITTEN = "genesis 2"
_BEGINNING = b'{"__metadata__":{"checksum":"'
_MAX_HEADER = 100_000_000  # the limit that the safetensors package sets
_CHUNK = 1 << 18  # small enough to be written and summed from the processor's cache
_PIECE = 1 << 23  # of what is written from memory that nobody else changes, and of early flushing
_MOST = 1 << 30  # of what one call reads
_BLOCK = 1 << 14  # of header; small, as looking through it takes some times its size
_FOREIGN = (
    "genesis.save did not write it, or its beginning is damaged; if another program wrote it, "
    "safetensors.numpy.load_file opens it"
)

# A file is loaded in at most _TIMES its size of memory, and _SPARE, which is for files of the time
# before `make_header` knew of this: it makes the header of an object that takes more longer.
_TIMES = 4
_SPARE = 1 << 24

_METADATA = re.compile(
    rb'\{"__metadata__":\{"checksum":"([^"\\]{1,100})","format":"([^"\\]{0,60})","structure":"'
)
_TENSOR = re.compile(
    rb',("[^"\\]{0,3000}(?:\\.[^"\\]{0,3000}){0,1500}"):'
    rb'\{"dtype":"([^"\\]{1,8})","shape":\[((?:\d{1,20}(?:,\d{1,20}){0,63})?)\],'
    rb'"data_offsets":\[(\d{1,20}),(\d{1,20})\]\}'
)
_END = re.compile(rb"\} *\Z")


def make_header(structure: str, sources: dict[str, codec.Source]) -> bytes:
    """The header of a file with this structure and these tensors, in this order.

    Raises:
        ValueError: it would be longer, or have more parts, than `read` accepts.
    """
    checksum = _FORMATS[_WRITTEN]
    entries: dict[str, Any] = {
        "__metadata__": {
            "checksum": checksum.prefix + "0" * checksum.digits,
            "format": _WRITTEN,
            "structure": structure,
        }
    }
    end = tensors = 0
    of_torch = codec.TORCH in structure
    for name, source in sources.items():
        begin, end = end, end + codec.size(source)
        tensors += _memory_of_tensor(name, source.shape, of_torch)
        entries[name] = {
            "dtype": codec.CODES[source.dtype],
            "shape": source.shape,
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    parts = codec.parts(header)
    if parts > codec.MAX_PARTS:
        raise ValueError(
            f"the object's structure has {parts} parts (a number is one, a dict about ten, an array "
            f"thirty) and a checkpoint has room for {codec.MAX_PARTS}: keep long lists of numbers as "
            "arrays"
        )
    text = structure.encode()
    for times in (_TIMES, _TIMES - 1):  # a space may take memory itself: then the second is right
        room = _room(len(header), text, end) - tensors
        header += b" " * max(0, -(room // times))
    header += b" " * (-len(header) % 8)  # readers that map the file want the tensors aligned
    if len(header) > _MAX_HEADER:
        raise ValueError(
            f"the object's structure takes {len(header)} bytes and a safetensors file has room for "
            f"{_MAX_HEADER}: keep long lists of numbers as arrays"
        )
    return header


def _memory_of_tensor(name: str, shape: tuple[int, ...], of_torch: bool) -> int:
    """The array without its data, its name, and its place in two hash tables.

    If there are any `of_torch`, the shape may be there six times: torch keeps it with the strides, in a
    tensor, and in a parameter with and one without a gradient.
    """
    return 400 + 4 * len(name) + (96 if of_torch else 16) * len(shape)


def _room(header: int, structure: bytes | bytearray, data: int) -> int:
    """How much memory reading leaves for tensors, not counting their data, within the limit."""
    needed = max(header + len(structure) * 9 // 8, codec.memory(structure)) + data
    return _TIMES * (8 + header + data) + _SPARE - needed


def write(
    file: io.FileIO, header: bytes, sources: dict[str, codec.Source], *, still: bool = False
) -> None:
    """Fill a new file.

    Args:
        file: the file, empty.
        header: what `make_header` made of the sources.
        sources: the tensors.
        still: whether nobody can change the arrays meanwhile, so that they need not be copied.
    """
    checksum = _FORMATS[_WRITTEN]
    total = checksum.new()
    written = flushed = 0
    scratch = np.empty(_CHUNK, np.uint8)

    def put(chunk: Any) -> None:
        nonlocal written, flushed
        total.update(chunk)
        _write_all(file, chunk)
        written += len(chunk)
        if written - flushed >= _PIECE:
            # The disk works while the rest is summed and copied, not only in the end.
            atomic_file.begin_flushing(file, flushed, written - flushed)
            flushed = written

    put(struct.pack("<Q", len(header)))
    put(header)
    for name, source in sources.items():
        array = codec.fetched(name, source)
        data = raw(np.ascontiguousarray(array, dtype=source.dtype))
        step = _PIECE if still else _CHUNK
        for start in range(0, data.size, step):
            piece = data[start : start + step]
            if not still:
                # A copy, so that what is written is what was summed even if a thread changes the array.
                np.copyto(scratch[: piece.size], piece)
                piece = scratch[: piece.size]
            put(piece.data)
        del array, data  # before the next one is copied
    file.seek(8 + len(_BEGINNING) + len(checksum.prefix))
    _write_all(file, total.hexdigest().encode())


def _write_all(file: io.FileIO, chunk: Any) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8)


class Contents(NamedTuple):
    """What a file holds that agrees with its checksum.

    Attributes:
        structure: the object as JSON.
        arrays: the tensors by name.
        left: where in the file those tensors begin whose values were summed up, and not kept.
    """

    structure: str
    arrays: dict[str, np.ndarray]
    left: dict[str, int]


def read(
    file: io.BufferedReader, leave: Callable[[str, np.ndarray], bool] | None = None
) -> Contents:
    """The structure and the tensors, from a file that agrees with its checksum.

    Args:
        file: the file, at its beginning.
        leave: says of a tensor's name and its array, still to be filled, whether it is to stay so.

    Raises:
        ValueError: it does not, or no file that `make_header` and `write` made could be like this.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise ValueError("it is no safetensors file, or is cut off")
    header = file.read(length)
    if not header.startswith(_BEGINNING):
        raise ValueError(_FOREIGN if header.startswith(b"{") else "it is no safetensors file")
    checksum, structure, arrays = _read_header(header, size - 8 - length)
    before = len(_BEGINNING) + len(checksum.prefix)
    after = before + checksum.digits
    digits = header[before:after]
    total = checksum.new()
    total.update(start + header[:before] + b"0" * checksum.digits)
    total.update(memoryview(header)[after:])
    del header
    left: dict[str, int] = {}
    scratch = np.empty(_CHUNK, np.uint8)
    position = 8 + length
    for name, array in arrays.items():
        data = raw(array)
        if leave is not None and leave(name, array):
            left[name] = position
        position += data.size
        for begin in range(0, data.size, _CHUNK):
            chunk = data[begin : begin + _CHUNK]
            if name in left:
                chunk = scratch[: chunk.size]
            if file.readinto(chunk.data) != chunk.size:
                raise ValueError("it became shorter while it was read")
            total.update(chunk.data)
    if total.hexdigest().encode() != digits:
        raise ValueError(f"its {checksum.name} checksum does not match: the file is damaged")
    return Contents(structure.decode("ascii"), arrays, left)


def reading(file: io.BufferedReader, array: np.ndarray, begin: int) -> list[tuple[partial, int]]:
    """Calls implemented in C that read a contiguous array's values from the file, and what they return.

    They are of Linux, whose one call reads less than 2 GiB.
    """
    data = raw(array)
    pieces = [(at, data[at : at + _MOST]) for at in range(0, data.size, _MOST)]
    return [
        (partial(os.preadv, file.fileno(), [piece.data], begin + at), piece.size)
        for at, piece in pieces
    ]


def _read_header(
    header: bytes, data_size: int
) -> tuple[_Checksum, bytearray, dict[str, np.ndarray]]:
    """The kind of checksum, the structure as it stands, and arrays still to be filled, in order."""
    if not header.isascii():
        raise ValueError("its header is not the part of utf-8 that genesis.save writes, ASCII")
    if codec.parts(header) > codec.MAX_PARTS:
        raise ValueError(f"it has more than the {codec.MAX_PARTS} parts that a checkpoint may have")
    metadata = _METADATA.match(header)
    if metadata is None:
        _refuse_metadata(header, data_size)
    version = metadata[2].decode()
    if version not in _FORMATS:
        _refuse_version(version)
    checksum = _FORMATS[version]
    digits = metadata[1].decode().removeprefix(checksum.prefix)
    if metadata[1].decode() != checksum.prefix + digits or len(digits) != checksum.digits:
        raise ValueError(f"its metadata is malformed: {version!r} has another kind of checksum")
    structure, at = _unescape(header, metadata.end())
    if header[at : at + 2] != b'"}':
        _refuse_metadata(header, data_size)
    at += 2
    room = _room(len(header), structure, data_size)
    of_torch = codec.TORCH.encode() in structure
    arrays: dict[str, np.ndarray] = {}
    end = 0
    while header[at : at + 1] == b",":
        entry = _TENSOR.match(header, at)
        if entry is None:
            _refuse_tensor(header, at, data_size)
        at = entry.end()
        name = json.loads(entry[1]) if b"\\" in entry[1] else entry[1][1:-1].decode()
        if name in arrays or name == "__metadata__":
            raise ValueError("its header has a key twice")
        dtype = _dtype(name, entry[2].decode())
        shape = tuple(map(int, entry[3].split(b","))) if entry[3] else ()
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        if int(entry[4]) != begin or int(entry[5]) != end:
            raise ValueError(
                f"its tensor {short(name)} lies at [{int(entry[4])}, {int(entry[5])}], "
                f"not at [{begin}, {end}]"
            )
        room -= _memory_of_tensor(name, shape, of_torch)
        if room < 0:
            break
        if end <= data_size:
            arrays[name] = _empty(name, shape, dtype)
    if room < 0:
        raise ValueError(
            f"what it holds beside the values of arrays would take more than {_TIMES} times the "
            "file's size of memory; if it is to be trusted, load it with the version of genesis "
            "that wrote it, and save its long lists as arrays"
        )
    if not _END.match(header, at):
        raise ValueError(f"its header is not JSON (it should end at byte {at})")
    if end != data_size:
        raise ValueError(f"its tensors take {end} bytes, but the file has {data_size} for them")
    return checksum, structure, arrays


def _unescape(header: bytes, at: int) -> tuple[bytearray, int]:
    """A text that begins at `at`, and where the quote stands that ends it.

    What is JSON and ASCII itself needs two escapes, of quotes and of backslashes; others are
    refused, since one of them makes every character of a text take four bytes.
    """
    data = np.frombuffer(header, np.uint8)
    text = bytearray()
    while at < data.size:
        quote, slash = header.find(b'"', at, at + _BLOCK), header.find(b"\\", at, at + _BLOCK)
        if slash < 0 or 0 <= quote < slash:
            end = quote if quote >= 0 else min(at + _BLOCK, data.size)
            text += header[at:end]
            at = end
            if quote >= 0:
                return text, at
            continue
        block = data[at : at + _BLOCK]
        escapes = _escapes(block)
        dangling = escapes[-1] == block.size - 1
        after = (escapes[:-1] if dangling else escapes) + 1
        quotes = block == ord('"')
        quotes[after] = False
        ends = np.flatnonzero(quotes)
        length = int(ends[0]) if ends.size else block.size
        escaped = block[after[after < length]]
        if not np.all((escaped == ord('"')) | (escaped == ord("\\"))):
            raise ValueError("its structure has escapes that genesis.save does not write")
        kept = np.ones(block.size, bool)
        kept[escapes] = False
        text += block[:length][kept[:length]].tobytes()
        at += length
        if ends.size:
            return text, at
        if dangling:
            if header[at : at + 1] not in (b'"', b"\\"):
                break
            text += header[at : at + 1]
            at += 1
    raise ValueError("its header is not JSON (a text does not end)")


def _escapes(block: np.ndarray) -> np.ndarray:
    """Where the backslashes stand that escape what comes after them.

    These are the first, third, ... in a run, if no backslash before the block escapes its start.
    """
    slashes = np.flatnonzero(block == ord("\\"))
    begins = np.diff(slashes, prepend=-2) != 1
    if begins.all():
        return slashes
    runs = np.flatnonzero(begins)
    in_run = np.arange(slashes.size) - np.repeat(runs, np.diff(runs, append=slashes.size))
    return slashes[in_run & 1 == 0]


def _dtype(name: str, code: Any) -> np.dtype:
    if type(code) is not str or code not in codec.DTYPES:
        raise ValueError(f"its tensor {short(name)} has the unknown dtype {short(code)}")
    return codec.DTYPES[code]


def _empty(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        raise ValueError(f"its tensor {short(name)} has the shape {short(shape)}") from error


# What is said of a piece of another form than `make_header` gives it. To find out, it is read as
# JSON of any kind, unless that could take too much memory.


def _refuse_metadata(header: bytes, data_size: int) -> NoReturn:
    metadata, _ = _parse_any(header, len(b'{"__metadata__":'), data_size)
    version = metadata.get("format") if type(metadata) is dict else None
    if type(version) is not str:
        raise ValueError(_FOREIGN)
    if version not in _FORMATS:
        _refuse_version(version)
    raise ValueError("its metadata is malformed")


def _refuse_version(version: str) -> NoReturn:
    known = " and ".join(map(repr, _FORMATS))
    raise ValueError(f"its format is {short(version)}, and this version reads {known}")


def _refuse_tensor(header: bytes, at: int, data_size: int) -> NoReturn:
    name, colon = _parse_any(header, at + 1, data_size)
    if type(name) is not str or header[colon : colon + 1] != b":":
        raise ValueError(f"its header is not JSON (it should have a name at byte {at + 1})")
    if name == "__metadata__":
        raise ValueError("its header has a key twice")
    entry, _ = _parse_any(header, colon + 1, data_size)
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its tensor {short(name)} is malformed")
    _dtype(name, entry["dtype"])
    for key, what, most in (("shape", "has the shape", 64), ("data_offsets", "lies at", 2)):
        value = entry[key]
        sizes = type(value) is list and all(type(item) is int and item >= 0 for item in value)
        if not sizes or len(value) > most:  # 64 is NumPy's limit of axes
            raise ValueError(f"its tensor {short(name)} {what} {short(value)}")
    raise ValueError(f"its tensor {short(name)} is malformed")


def _parse_any(header: bytes, at: int, data_size: int) -> tuple[Any, int]:
    """A JSON value of any form that begins at `at`, and where it ends."""
    rest = memoryview(header)[at:]
    memory = len(header) + 2 * len(rest) + codec.memory(rest)
    if memory > _TIMES * (8 + len(header) + data_size) + _SPARE:
        raise ValueError("its header is malformed")
    value, end = codec.parse_json(str(rest, "ascii"), "header", codec.unique)
    return value, at + end
