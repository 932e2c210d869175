"""The object as JSON and back.

What JSON has stands for itself; anything else is an object with one key, a tag that begins with "$":

    {"$int": "0x..."}          an int of more than 64 bits; hexadecimal, as converting decimal
                               digits takes quadratic time
    {"$float": "7ff8..."}      inf or nan, the bits of a float64
    {"$str": "eda080..."}      a str with surrogates, which JSON would join to pairs
    {"$tuple": [...]}
    {"$dict": [[key, value]]}  a dict with keys that are no strings, or that begin with "$"
    {"$tensor": name}          an array
    {"$scalar": name}          a NumPy scalar
    {"$parameter": {...}}      a Parameter; {"$parameter": 3} is the fourth one in the file again
    {"$ordered": [pairs]}      an OrderedDict; torch's of a module has its metadata as a second item
    {"$torch": name}           a tensor of torch; {"$torch": [name, requires_grad]} a parameter of torch

Objects are made as JSON is parsed, from the innermost out, so that nothing is held twice.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from .. import buffers
from ..parameter import Parameter

_MAX_DEPTH = 100  # far below the recursion limit of Python and of its json module
_CONTAINERS = {dict, list, tuple, OrderedDict}
_METADATA = "_metadata"  # what torch notes of a module's state dict, as its attribute
_SURROGATES = re.compile("[\ud800-\udfff]")

CODES = {
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
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Source(NamedTuple):
    """A tensor to be written. Its values are fetched when their turn comes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]
    owner: Any  # keeps the array alive, and with it the id() that it is remembered by


def size(source: Source) -> int:
    """How many bytes the values take."""
    return math.prod(source.shape) * source.dtype.itemsize


def fetched(name: str, source: Source) -> np.ndarray:
    """The values, which may have another byte order; RuntimeError if they are others than before."""
    array = source.fetch()
    if native(array.dtype) != source.dtype or array.shape != source.shape:
        raise RuntimeError(f"the array {name!r} changed while it was being saved")
    return array


def copy_to(copy: np.ndarray, array: np.ndarray) -> None:
    """Copy every bit, as integers where the byte order is the same: NumPy copies bfloat16 slowly."""
    if array.dtype.isnative:
        bits = np.dtype(f"u{copy.itemsize}")
        copy, array = copy.view(bits), array.view(bits)
    np.copyto(copy, array)


class Encoder:
    """Turns an object into JSON values and the tensors that they name."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self._path: list[Any] = []
        self._open: set[int] = set()
        self._parts = 0
        self._collisions = 0
        self._names: dict[Any, str] = {}
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
        if kind is OrderedDict:
            return self._encode_ordered(value)
        if kind is Parameter:
            return self._encode_parameter(value)
        if buffers.is_torchs(value):
            return self._encode_torchs(value)
        if isinstance(value, np.generic):
            array = np.asarray(value)
            if kind is not array.dtype.type:
                self._refuse(value)
            return {"$scalar": self._add(array, array, lambda: array)}
        # A memory-mapped or device array differs from a plain one in where it lies, not in what it
        # means; other subclasses carry a meaning (a mask, a unit) that would be lost.
        if kind in (np.ndarray, np.memmap):
            return {"$tensor": self._add(value, value, lambda: value)}
        if has_method(value, "copy_to_host"):
            return {"$tensor": self._add(value, value, value.copy_to_host)}
        self._refuse(value)

    def _encode_dict(self, value: dict) -> Any:
        keys, children = self._encode_items(value)
        if all(type(key) is str and not key.startswith("$") for key in keys):
            return dict(zip(keys, children))
        return {"$dict": list(zip(keys, children))}

    def _encode_items(self, value: dict) -> tuple[list[Any], list[Any]]:
        keys = [self._encode_key(key) for key in value]
        self._collisions += collisions(list(value))
        if self._collisions > MAX_COLLISIONS:
            raise ValueError(f"{self._where()}: too many keys of one hash; load would refuse them")
        return keys, self._encode_children(value, value.items())

    def _encode_ordered(self, value: OrderedDict) -> Any:
        others = vars(value).keys() - {_METADATA}
        if others:
            raise TypeError(
                f"{self._where()}: cannot save an OrderedDict with the attribute {min(others)!r}; "
                "convert it with dict(...)"
            )
        pairs = list(zip(*self._encode_items(value)))
        return {"$ordered": [pairs, *self._encode_children(vars(value), vars(value).items())]}

    def _encode_torchs(self, value: Any) -> Any:
        found = import_module("genesis.torch.exchange").described(value)
        if isinstance(found, str):
            raise TypeError(f"{self._where()}: cannot save {a(value)}: {found}")
        name = self._add(value, found, found.fetch, found.place)
        return {"$torch": [name, found.requires_grad] if found.is_parameter else name}

    def _encode_children(self, value: Any, children: Iterable[tuple[Any, Any]]) -> list[Any]:
        self._parts += len(value)
        if self._parts > MAX_PARTS:  # before what is encoded of them fills the memory
            raise ValueError(
                f"{self._where()}: more than {MAX_PARTS} values; keep long lists of numbers as arrays"
            )
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
            f"{self._where()}: cannot save {a(key)} in a key; keys are str, int, float, "
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

    def _add(
        self, array: Any, described: Any, fetch: Callable[[], np.ndarray], place: Any = None
    ) -> str:
        place = id(array) if place is None else place
        if place in self._names:
            return self._names[place]
        dtype = native(described.dtype)
        if dtype not in CODES:
            raise TypeError(
                f"{self._where()}: cannot save dtype {described.dtype}; accepted are "
                + ", ".join(str(accepted) for accepted in CODES)
            )
        name = self._tensor_name()
        self.sources[name] = Source(dtype, tuple(described.shape), fetch, array)
        self._names[place] = name
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
        if has_method(value, "state_dict"):
            hint = "; save its state_dict()"
        elif hasattr(value, "bit_generator"):
            hint = "; save its bit_generator.state"
        elif hasattr(value, "__array__"):
            hint = "; convert it with numpy.asarray(...)"
        else:
            for base in (dict, list, tuple, str, int, float):
                if isinstance(value, base):
                    hint = f"; convert it with {base.__name__}(...)"
        raise TypeError(f"{self._where()}: cannot save {a(value)}{hint}")


def _encode_plain(value: Any) -> Any:
    if type(value) is int and not -(2**63) <= value < 2**63:
        return {"$int": hex(value)}
    if type(value) is float and not math.isfinite(value):
        return {"$float": struct.pack(">d", value).hex()}
    if type(value) is str and not value.isascii() and _SURROGATES.search(value):
        return {"$str": value.encode("utf-8", "surrogatepass").hex()}
    return value


def native(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _label(key: Any) -> str:
    try:
        return str(key)
    except ValueError:  # an int of more digits than Python converts
        return "int"


class Decoder:
    """Turns JSON back into the object; ValueError for what `Encoder` does not make."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.mentions: Counter[str] = Counter()
        """How often the object has each tensor."""
        self._parameters: list[Parameter] = []
        self._tensors_of_parameters: list[str] = []
        self._torchs: dict[tuple[str, bool | None], Any] = {}
        self._collisions = 0
        self._tags: dict[str, Callable[[Any], Any]] = {
            "$int": self._int,
            "$float": self._float,
            "$str": self._str,
            "$tuple": self._tuple,
            "$dict": self._dict,
            "$tensor": self._tensor,
            "$scalar": self._scalar,
            "$parameter": self._parameter,
            "$ordered": self._ordered,
            "$torch": self._torch,
        }

    def decode(self, structure: str) -> Any:
        result, end = parse_json(structure, "structure", self._object)
        if end != len(structure):
            raise ValueError(f"its structure is not JSON (it goes on at character {end})")
        _check_depth(result)
        unused = self._arrays.keys() - self.mentions.keys()
        if unused:
            raise ValueError(f"its structure does not mention the tensor {short(min(unused))}")
        return result

    def _object(self, pairs: list[tuple[str, Any]]) -> Any:
        """What an object of JSON stands for, its values being made already."""
        if len(pairs) == 1:
            [(tag, content)] = pairs
            if tag in self._tags:
                return self._tags[tag](content)
        result = unique(pairs)
        if any(map(str.startswith, result, itertools.repeat("$"))):
            raise ValueError(f"its structure has the unknown form {short(list(result))}")
        return result

    def _int(self, content: Any) -> int:
        if type(content) is not str or not re.fullmatch("-?0x[0-9a-f]+", content):
            raise ValueError(f"its structure has the malformed int {short(content)}")
        return int(content, 16)

    def _float(self, content: Any) -> float:
        if type(content) is not str or not re.fullmatch("[0-9a-f]{16}", content):
            raise ValueError(f"its structure has the malformed float {short(content)}")
        return struct.unpack(">d", bytes.fromhex(content))[0]

    def _str(self, content: Any) -> str:
        if type(content) is not str or not re.fullmatch("[0-9a-f]*", content):
            raise ValueError(f"its structure has the malformed str {short(content)}")
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")

    def _tuple(self, content: Any) -> tuple:
        if type(content) is not list:
            raise ValueError("its structure has a malformed tuple")
        return tuple(content)

    def _dict(self, content: Any) -> dict:
        return self._of_pairs(content, {})

    def _ordered(self, content: Any) -> OrderedDict:
        if type(content) is not list or len(content) not in (1, 2):
            raise ValueError("its structure has a malformed ordered dict")
        result = self._of_pairs(content[0], OrderedDict())
        for metadata in content[1:]:
            _check_depth(metadata)
            vars(result)[_METADATA] = metadata
        return result

    def _of_pairs(self, content: Any, result: Any) -> Any:
        if type(content) is not list or not all(type(p) is list and len(p) == 2 for p in content):
            raise ValueError("its structure has a malformed dict")
        for key, _ in content:
            _check_key(key)
        self._collisions += collisions([key for key, _ in content])
        if self._collisions > MAX_COLLISIONS:
            raise ValueError("its structure has too many keys of one hash")
        size = len(content)
        content.reverse()
        while content:  # each pair is freed when its place in the dict is made
            key, child = content.pop()
            result[key] = child
        if len(result) != size:
            raise ValueError("its structure has a key twice")
        return result

    def _tensor(self, content: Any) -> np.ndarray:
        if type(content) is not str or content not in self._arrays:
            raise ValueError(f"its structure mentions the missing tensor {short(content)}")
        self.mentions[content] += 1
        return self._arrays[content]

    def _scalar(self, content: Any) -> Any:
        array = self._tensor(content)
        if array.shape != ():
            raise ValueError(f"its scalar {short(content)} has the shape {array.shape}")
        return array[()]

    def _parameter(self, content: Any) -> Parameter:
        if type(content) is int and 0 <= content < len(self._parameters):
            self.mentions[self._tensors_of_parameters[content]] += 1
            return self._parameters[content]
        if type(content) is not dict or content.keys() != {"tensor", "name", "requires_grad"}:
            raise ValueError("its structure has a malformed parameter")
        name, requires_grad = content["name"], content["requires_grad"]
        if not (name is None or type(name) is str) or type(requires_grad) is not bool:
            raise ValueError("its structure has a malformed parameter")
        data = self._tensor(content["tensor"])
        try:
            parameter = Parameter(data, requires_grad=requires_grad, name=name)
        except TypeError as error:
            raise ValueError(f"{short(content['tensor'])} is no parameter: {error}") from error
        self._parameters.append(parameter)
        self._tensors_of_parameters.append(content["tensor"])
        return parameter

    def _torch(self, content: Any) -> Any:
        """A tensor of torch; the array, where torch is not installed."""
        name, asks = content, None
        if type(content) is list and len(content) == 2 and type(content[1]) is bool:
            name, asks = content
        array = self._tensor(name)
        if (name, asks) not in self._torchs:
            value: Any = array
            if find_spec("torch") is not None:
                value = import_module("genesis.torch.exchange").to_tensor(array)
                if asks is not None:
                    try:
                        value = import_module("torch").nn.Parameter(value, requires_grad=asks)
                    except RuntimeError as error:
                        raise ValueError(f"{short(name)} is no parameter: {error}") from error
            self._torchs[name, asks] = value
        return self._torchs[name, asks]


def _check_key(key: Any, depth: int = 0) -> None:
    if type(key) is tuple and depth <= _MAX_DEPTH:
        for item in key:
            _check_key(item, depth + 1)
    elif key is not None and type(key) not in (bool, int, float, str):
        raise ValueError("its structure has a malformed key")


def _check_depth(obj: Any) -> None:
    level = [obj] if type(obj) in _CONTAINERS else []
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if type(child) in _CONTAINERS
        ]
    if level:
        raise ValueError(f"its structure is nested more than {_MAX_DEPTH} deep")


# What reading may cost.

# A part is a comma or a bracket. A key counts as two, an object as some, as Python code deals with
# it, and a backslash as a piece of one. This many take about a second.
MAX_PARTS = 2_500_000
_PARTS_OF_A_KEY = 2
_PARTS_OF_AN_OBJECT = 8
_BACKSLASHES_OF_A_PART = 8
MAX_COLLISIONS = 10_000_000
TORCH = "$torch"
_OF_TORCH = 1000
_OF_ORDERED = 600


def parts(header: bytes) -> int:
    """How much work it is to read a header, structure and tensors.

    Brackets and commas in texts are counted too, which makes it a bound.
    """
    commas, brackets, colons, braces, slashes = count(header, ",[:{\\")
    return (
        commas
        + brackets
        + _PARTS_OF_A_KEY * colons
        + _PARTS_OF_AN_OBJECT * braces
        + slashes // _BACKSLASHES_OF_A_PART
    )


def collisions(keys: list[Any]) -> int:
    """At most how many parts of keys a dict compares because keys of one hash meet in it.

    Anybody can find ints, and tuples of ints, of one hash, and n of them are compared n * n times.
    """
    if len(keys) <= 64:  # too few to matter
        return 0
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    counts = np.unique(hashes, return_counts=True)[1].astype(object)
    pairs = int(np.sum(counts * (counts - 1)) // 2)
    return pairs * max(map(_weight, keys)) if pairs else 0


def _weight(key: Any) -> int:
    """About how many parts a comparison of two such keys has to look at."""
    if type(key) is tuple:
        return 1 + sum(map(_weight, key))
    if type(key) is str:
        return 1 + len(key) // 256
    return 1 + key.bit_length() // 1024 if type(key) is int else 1


def count(text: bytes | bytearray | memoryview, characters: str) -> list[int]:
    """How often each of some characters occurs."""
    data = np.frombuffer(text, np.uint8)
    counts = [0] * len(characters)
    for start in range(0, data.size, 1 << 16):
        block = data[start : start + (1 << 16)]
        for i, character in enumerate(characters):
            counts[i] += int(np.count_nonzero(block == ord(character)))
    return counts


def memory(structure: bytes | bytearray | memoryview) -> int:
    """How many bytes, at most, the text and what is made of it take together."""
    brackets, closed, braces, finished, colons, commas, quotes = count(structure, '[]{}:,"')
    # What is opened and never closed is not made, beyond the depth at which the parser gives up.
    lists = min(brackets, closed)
    dicts = min(braces, finished)
    pairs = min(colons, commas + finished)
    # A list with room for four; a dict; a place in a dict with the pair that it is made from and
    # the parser's note of the key (or a dict's places for its first five); a number in a list;
    # half a str. CPython 3.10 to 3.13 on 64 bits. What stands in a str is counted, too.
    objects = 104 * lists + 64 * dicts + 268 * pairs + 41 * commas + 32 * quotes
    # A tensor of torch with its storage, over an array that is counted elsewhere; and what an
    # OrderedDict has more than a dict, of which there are three pairs to each of its own.
    objects += _OF_TORCH * len(re.findall(rb"\$torch", structure))
    objects += _OF_ORDERED * len(re.findall(rb"\$ordered", structure))
    return len(structure) + objects + int(len(structure) * _text_growth(structure))


def _text_growth(structure: bytes | bytearray | memoryview) -> float:
    """How many times its length a text may take, once it is made of the structure.

    The parser makes room for a quarter more when there are escapes, and begins anew, keeping the
    old one meanwhile, when it finds that a text needs two or four bytes for each character.
    """
    if re.search(rb"\\u[dD]", structure):
        return 6
    if re.search(rb"\\u", structure):
        return 3.5
    return 4 if re.search(rb'"\$str"', structure) else 1.25


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON as it stands."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it has a key twice")
    return result


def parse_json(
    text: str, what: str, make: Callable[[list[tuple[str, Any]]], Any]
) -> tuple[Any, int]:
    """The JSON value that a text begins with, and where it ends.

    A number that `json.dumps` does not write is refused before it costs time.

    Args:
        what: what the text is, for messages.
        make: makes what an object stands for, out of its pairs.
    """

    def number(kind: type) -> Callable[[str], Any]:
        def parse(digits: str) -> Any:
            value = kind(digits) if len(digits) <= 32 else math.inf
            if not math.isfinite(value):
                raise ValueError(f"its {what} has the number {short(digits)}")
            return value

        return parse

    decoder = json.JSONDecoder(
        object_pairs_hook=make,
        parse_int=number(int),
        parse_float=number(float),
        parse_constant=number(float),
    )
    try:
        return decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        # Not `from error`, which holds the text.
        raise ValueError(f"its {what} is not JSON ({error})") from None


def short(value: Any) -> str:
    """The value for a message, at no cost whatever it is."""
    if type(value) in (list, tuple):
        text = "[" + ", ".join(_short_atom(item) for item in value[:20]) + "]"
    else:
        text = _short_atom(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _short_atom(value: Any) -> str:
    if type(value) is str:
        return repr(value[:60])
    if value is None or type(value) in (bool, float):
        return repr(value)
    # Making digits of an int takes quadratic time.
    return repr(value) if type(value) is int and value.bit_length() < 200 else a(value)


def has_method(value: Any, name: str) -> bool:
    return callable(getattr(value, name, None)) and not isinstance(value, type)


def a(value: Any) -> str:
    """The value's type with its article: "a set", "an enum.Enum"."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"
