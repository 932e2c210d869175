"""What comes back from a checkpoint, and which files are refused."""

import collections
import doctest
import enum
import gc
import hashlib
import json
import math
import os
import random
import re
import socket
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import xxhash
from devices import on_cpu_only
from safetensors import safe_open

import genesis.checkpoint
from genesis.checkpoint import (
    CheckpointError,
    codec,
    file_format,
    load,
    load_checkpoint,
    save,
    save_checkpoint,
)
from genesis.parameter import Parameter

pytestmark = on_cpu_only

DTYPES = [np.dtype(code) for code in "?bhilBHILefd"] + [np.dtype(ml_dtypes.bfloat16)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run.safetensors")


@pytest.fixture
def round_trip(path):
    def save_and_load(obj):
        save(obj, path)
        return load(path)

    return save_and_load


def some_bits(shape, dtype):
    """Every kind of value the dtype has, nan payloads and subnormals included."""
    rng = np.random.default_rng(0)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def assert_same(a, b):
    """Equal in structure, types and every bit."""
    assert type(a) is type(b), (type(a), type(b))
    if isinstance(a, dict):
        for x, y in zip(a, b):
            assert_same(x, y)
        assert len(a) == len(b)
        for x, y in zip(a.values(), b.values()):
            assert_same(x, y)
        assert getattr(a, "__dict__", None) == getattr(b, "__dict__", None)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif isinstance(a, (np.ndarray, np.generic)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    elif isinstance(a, Parameter):
        assert (a.name, a.requires_grad) == (b.name, b.requires_grad)
        assert_same(a.data, b.data)
    elif isinstance(a, float):
        assert struct.pack("d", a) == struct.pack("d", b)
    else:
        assert a == b


# Values.


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**63,
        -(2**63) - 1,
        2**64,
        -(10**5000),
        7**20_000,
        0.0,
        -0.0,
        0.1,
        5e-324,
        1.7976931348623157e308,
        math.inf,
        -math.inf,
        math.nan,
        -math.nan,
        struct.unpack("d", struct.pack("Q", 0x7FF8_0000_DEAD_BEEF))[0],
        "",
        "$tensor",
        'a "quoted" \\ line\n\t\0\x1f\x7f',
        "é 漢字 🙂",
        "\ud800",
        "\ud83d\ude42",
        "NaN",
        [],
        (),
        {},
        [[], [[]], ()],
        (1, (2.0, [None, ("x",)])),
        {"b": 1, "a": 2},
        collections.OrderedDict(),
        collections.OrderedDict([("b", 1), (2, collections.OrderedDict(a=(1,)))]),
        {"$tensor": "a"},
        {"$int": "0x1", "x": 1},
        {"$dict": [[1, 2]]},
        {"\ud800": 1},
        {"": "", "a.b": 1, "a": {"b": 2}},
        {1: "int", "1": "str", None: 0, True is None: "bool", 2.5: 0, -0.0 + 3: 1},
        {True: 1},
        {1.0: 1},
        {math.inf: 1, -math.inf: 2},
        {10**30: 1, ("a", (1, None, 2.5, True)): {"x": (1,)}, (): 0, ("\ud800", 2**70, -0.0): 1},
        np.random.default_rng(5).bit_generator.state,
    ],
    ids=lambda value: "" if isinstance(value, int) else ascii(value)[:30],
)
def test_values_come_back_exactly(value, round_trip):
    assert_same(round_trip(value), value)
    assert_same(round_trip({"x": [value, (value,)]}), {"x": [value, (value,)]})


def test_nan_as_a_key(round_trip):
    (key,) = round_trip({math.nan: 1})
    assert math.isnan(key)


@by_dtype
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5), (1,) * 32], ids=str)
def test_arrays_come_back_exactly(dtype, shape, round_trip):
    array = some_bits(shape, dtype)
    loaded = round_trip({"a": [array]})["a"][0]
    assert_same(loaded, array)


@by_dtype
def test_numpy_scalars_come_back_exactly(dtype, round_trip):
    for value in some_bits((5,), dtype):
        assert isinstance(value, np.generic)
        assert_same(round_trip([value])[0], value)


@by_dtype
def test_any_memory_layout(dtype, round_trip):
    base = some_bits((6, 8), dtype)
    unaligned = np.frombuffer(b"\0" + base.tobytes(), np.uint8)[1:].view(dtype).reshape(6, 8)
    layouts = {
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "strided": base[::2, 1::3],
        "reversed": base[::-1, ::-2],
        "broadcast": np.broadcast_to(base[:1], (4, 8)),
        "scalar broadcast": np.broadcast_to(base[0, 0], (3, 5)),
        "one column": base[:, 3],
        "empty slice": base[3:3, ::2],
        "0-d view": base[2, 3, ...],
        "read-only": base.view(),
        "unaligned": unaligned,
        "axes": base.reshape(2, 3, 8).transpose(2, 0, 1),
    }
    layouts["read-only"].flags.writeable = False
    loaded = round_trip(layouts)
    for name, array in layouts.items():
        assert_same(loaded[name], np.array(array, order="C"))


def test_other_byte_order_comes_back_native(round_trip):
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    loaded = round_trip({"a": array, "b": array[:, ::2], "c": np.array(3, ">u2")})
    assert loaded["a"].dtype.isnative
    assert loaded["a"].dtype == np.float32
    np.testing.assert_array_equal(loaded["a"], array)
    np.testing.assert_array_equal(loaded["b"], array[:, ::2])
    assert_same(loaded["c"], np.array(3, np.uint16))


def test_loaded_arrays_are_independent_and_ready_to_use(round_trip):
    arrays = {f"{dtype}{i}": some_bits((i,), dtype) for dtype in DTYPES for i in (0, 1, 3, 100)}
    arrays["0-d"] = np.array(1.5)
    arrays["F"] = np.asfortranarray(np.ones((3, 4)))
    for array in round_trip(arrays).values():
        flags = array.flags
        assert type(array) is np.ndarray
        assert all((flags.owndata, flags.writeable, flags.aligned, flags.c_contiguous))
        assert array.dtype.isnative


def test_parameters(round_trip):
    weight = Parameter(np.arange(6, dtype=np.float32).reshape(2, 3), name="weight")
    weight.grad = np.ones((2, 3), np.float32)
    frozen = Parameter(np.ones(3, ml_dtypes.bfloat16), requires_grad=False)
    strided = Parameter(np.arange(12.0)[::3])
    loaded = round_trip({"model": [weight, frozen], "strided": strided})
    assert_same(loaded, {"model": [weight, frozen], "strided": strided})
    assert loaded["model"][0].grad is None
    loaded["model"][0].data += 1


def test_what_occurs_twice_comes_back_as_one(round_trip, path):
    array, tied = np.ones(1000), Parameter(np.ones(1000), name="tied")
    loaded = round_trip(
        {"a": [array, array], "b": array, "p": tied, "q": [tied], "data": tied.data,
         "other": Parameter(tied.data, name="other")}
    )  # fmt: skip
    assert loaded["a"][0] is loaded["a"][1] is loaded["b"]
    assert loaded["p"] is loaded["q"][0]
    assert loaded["p"].data is loaded["data"] is loaded["other"].data
    assert (loaded["other"].name, loaded["p"].name) == ("other", "tied")
    assert os.path.getsize(path) < 2 * 8000 + 2000
    # Different views of one memory are different arrays.
    x, y = round_trip([array[:3], array[:3]])
    assert x is not y


class DeviceArray:
    """Stands for a Numba device array."""

    def __init__(self, host):
        self._host = host
        self.dtype, self.shape = host.dtype, host.shape
        self.__cuda_array_interface__ = {"data": (0, False), "shape": host.shape, "version": 3}

    def copy_to_host(self):
        return self._host.copy()


def test_device_arrays_come_back_on_the_host(round_trip):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert_same(round_trip([DeviceArray(array)]), [array])


def test_memory_mapped_arrays_come_back_plain(round_trip, tmp_path):
    mapped = np.memmap(tmp_path / "data", np.float32, "w+", shape=(5,))
    mapped[:] = range(5)
    assert_same(round_trip([mapped]), [np.arange(5, dtype=np.float32)])


def test_100_levels_work_and_101_are_refused(path, round_trip):
    def nested(make, levels):
        obj = make(1)
        for _ in range(levels - 1):
            obj = make(obj)
        return obj

    for make in (lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: {0: x}):
        assert_same(round_trip(nested(make, 100)), nested(make, 100))
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            save(nested(make, 101), path)
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            save(nested(make, 50_000), path)


def test_random_objects(round_trip):
    rng = random.Random(0)

    def value(depth):
        kind = rng.randrange(12 if depth < 5 else 8)
        if kind == 0:
            return rng.choice([None, True, False, math.nan, -0.0, math.inf, "", "$int", "\udcff"])
        if kind == 1:
            return rng.randrange(-(2**80), 2**80) >> rng.randrange(80)
        if kind == 2:
            return struct.unpack("d", rng.randbytes(8))[0]
        if kind == 3:
            return "".join(chr(rng.randrange(1, 0x300)) for _ in range(rng.randrange(9)))
        if kind in (4, 5):
            shape = tuple(rng.randrange(4) for _ in range(rng.randrange(4)))
            return some_bits(shape, rng.choice(DTYPES))
        if kind == 6:
            return some_bits((1,), rng.choice(DTYPES))[0]
        if kind == 7:
            return Parameter(np.ones(rng.randrange(3)), requires_grad=rng.random() < 0.5)
        if kind == 8:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 9:
            return tuple(value(depth + 1) for _ in range(rng.randrange(4)))
        if kind == 10:
            return {key(): value(depth + 1) for _ in range(rng.randrange(5))}
        return {str(i): value(depth + 1) for i in range(rng.randrange(5))}

    def key():
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice([None, True, "", "$dict", "a.b", 1.5, math.inf])
        if kind == 1:
            return rng.randrange(-(2**70), 2**70)
        if kind == 2:
            return tuple(key() for _ in range(rng.randrange(3)))
        return rng.choice("abc")

    for _ in range(300):
        obj = value(0)
        assert_same(round_trip(obj), obj)


# The file as others see it.


def test_any_safetensors_reader_opens_the_tensors(path):
    obj = {
        "model": [np.ones((2, 3), np.float32)[:, ::2], Parameter(np.arange(3.0), name="b")],
        "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float16), "step": 3}}},
        "half": np.ones(3, ml_dtypes.bfloat16),
        "flag": np.True_,
    }
    save(obj, path)
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
        metadata = file.metadata()
    assert set(tensors) == {
        "model.0", "model.1", "optimizer.state.0.exp_avg", "half", "flag"
    }  # fmt: skip
    assert_same(tensors["model.0"], np.ones((2, 2), np.float32))
    assert_same(tensors["optimizer.state.0.exp_avg"], np.ones(3, np.float16))
    assert_same(tensors["half"], obj["half"])
    assert set(metadata) == {"checksum", "format", "structure"}
    assert json.loads(metadata["structure"])["optimizer"] == {
        "state": {"$dict": [[0, {"exp_avg": {"$tensor": "optimizer.state.0.exp_avg"}, "step": 3}]]}
    }
    # The data follow one another without a hole and each is aligned for its type.
    header, start = header_of(path)
    assert start % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].itemsize == 0


def header_of(path):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    del header["__metadata__"]
    return header, 8 + length


def test_tensor_names_are_unique_and_readable_whatever_the_keys(path):
    def array(n):
        return np.full(2, float(n))

    obj = {
        "a.b": array(0), "a": {"b": array(1)}, "a.b#2": array(2), "__metadata__": array(3),
        "": array(4), 1: array(5), "1": array(6), ("x", 2): array(7), "\ud800": array(8),
        "é\0\n": array(9), 10**5000: array(10), "long" * 1000: array(11), "$": array(12),
    }  # fmt: skip
    save(obj, path)
    assert_same(load(path), obj)
    tensors = safetensors.numpy.load_file(path)
    assert sorted(t[0] for t in tensors.values()) == list(range(13))
    assert max(map(len, tensors)) < 210
    save(array(0), path)
    assert list(safetensors.numpy.load_file(path)) == ["value"]


def test_equal_objects_make_equal_files(tmp_path):
    for name in "ab":
        save({"x": [np.ones(3), 1], "y": np.zeros(2, np.int8)}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# What cannot be saved.


Point = collections.namedtuple("Point", "x y")


class Color(enum.IntEnum):
    RED = 1


class Stateful:
    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        if "poison" in state:
            self.state = {"half": "loaded"}
            raise ValueError("poisoned")
        self.state = dict(state)


def labelled(obj):
    obj.label = "x"
    return obj


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"model": [0, 1, 2, {3}]}, r"obj\['model'\]\[3\]: cannot save a set"),
        ({"a": ({1: b"x"},)}, r"obj\['a'\]\[0\]\[1\]: cannot save a bytes"),
        (object(), "obj: cannot save an object"),
        (np.random.default_rng(0), "Generator; save its bit_generator.state"),
        ([1j], r"obj\[0\]: cannot save a complex"),
        ([len], r"obj\[0\]: cannot save a builtin_function"),
        ([float], r"obj\[0\]: cannot save a type"),
        (collections.defaultdict(int, a=1), "collections.defaultdict; convert it with dict"),
        (labelled(collections.OrderedDict()), "with the attribute 'label'; convert it with dict"),
        (type("Items", (list,), {})([1]), "Items; convert it with list"),
        ([Point(1, 2)], r"obj\[0\]: cannot save a .*Point; convert it with tuple"),
        ({"c": Color.RED}, r"obj\['c'\]: cannot save a .*Color; convert it with int"),
        (type("Text", (str,), {})("x"), "convert it with str"),
        (type("Number", (float,), {})(1), "convert it with float"),
        (np.str_("x"), "cannot save dtype <U1"),
        (np.ma.masked_array([1.0]), "MaskedArray; convert it with numpy.asarray"),
        (np.zeros(2).view(np.recarray), "recarray; convert it with numpy.asarray"),
        (np.zeros(2, complex), "cannot save dtype complex128; accepted are bool, .*bfloat16"),
        (np.zeros(2, np.complex64), "cannot save dtype complex64"),
        (np.zeros(2, np.longdouble), "cannot save dtype float128"),
        (np.zeros(2, object), "cannot save dtype object"),
        (np.zeros(2, "M8[s]"), "cannot save dtype datetime64"),
        (np.zeros(2, "i4,f4"), "cannot save dtype"),
        (np.zeros(2, ml_dtypes.float8_e5m2), "cannot save dtype float8_e5m2"),
        (DeviceArray(np.zeros(2, complex)), "cannot save dtype complex128"),
        ({"a": {(1, frozenset()): 1}}, r"obj\['a'\]: cannot save a frozenset in a key"),
        ({np.int64(1): 1}, "cannot save a numpy.int64 in a key"),
        ({b"x": 1}, "cannot save a bytes in a key"),
        (
            {"opt": Stateful(a=1)},
            r"obj\['opt'\]: cannot save a .*Stateful; save its state_dict\(\)",
        ),
        ({"k" * 1000: {1}}, r"obj\['k{59}\.\.\.\]: cannot"),
        ({10**5000: {1}}, r"obj\[int\]: cannot"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(obj, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save(obj, tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_parameter_with_an_unusable_name(path):
    parameter = Parameter(np.ones(2))
    parameter.name = 3
    with pytest.raises(TypeError, match=r"obj\[0\]: a parameter's name"):
        save([parameter], path)


def test_objects_that_contain_themselves(tmp_path):
    items = [1]
    items.append({"a": (items,)})
    state = {}
    state["self"] = state
    for obj, place in ((items, r"obj\[1\]\['a'\]\[0\]"), (state, r"obj\['self'\]")):
        with pytest.raises(ValueError, match=place + ": the object contains itself"):
            save(obj, tmp_path / "run")
    assert os.listdir(tmp_path) == []
    shared = [1, 2]  # twice, but not inside itself
    save([shared, shared], tmp_path / "run")
    assert load(tmp_path / "run") == [[1, 2], [1, 2]]


def test_more_structure_than_a_header_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(file_format, "_MAX_HEADER", 10_000)
    with pytest.raises(ValueError, match="keep long lists of numbers as arrays"):
        save(list(range(10_000)), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_an_array_that_changes_its_shape_meanwhile(tmp_path):
    class Shifty(DeviceArray):
        def copy_to_host(self):
            return np.zeros(3)

    with pytest.raises(RuntimeError, match="'x' changed while it was being saved"):
        save({"x": Shifty(np.zeros(4))}, tmp_path / "run")
    assert os.listdir(tmp_path) == []


# Files that are refused.


def test_missing_file_and_wrong_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing here"):
        load(tmp_path / "nothing here")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(TypeError):
        load(None)
    with pytest.raises(TypeError):
        save(1, None)


def small_checkpoint(path):
    save(
        {
            "w": Parameter(np.arange(3, dtype=np.float32), name="w"),
            "state": {0: {"step": 7, "m": np.arange(4, dtype=np.float16)}},
            "big": 2**70,
            "betas": (0.9, math.inf),
        },
        path,
    )
    with open(path, "rb") as file:
        return file.read()


def test_every_flipped_bit_is_refused(path):
    content = small_checkpoint(path)
    with open(path, "r+b", buffering=0) as file:
        for i in range(len(content)):
            for bit in range(8):
                file.seek(i)
                file.write(bytes([content[i] ^ 1 << bit]))
                with pytest.raises(CheckpointError):
                    load(path)
            file.seek(i)
            file.write(content[i : i + 1])
    load(path)


def test_every_truncation_is_refused(path):
    content = small_checkpoint(path)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(CheckpointError):
            load(path)


def test_added_removed_and_swapped_bytes_are_refused(path):
    content = small_checkpoint(path)
    rng = random.Random(0)
    broken = [content + b"\0", content + b" ", content + content, b"\0" + content, content[1:]]
    for _ in range(300):
        i, j = sorted(rng.sample(range(len(content)), 2))
        broken.append(content[:i] + content[j:])
        broken.append(content[:i] + rng.randbytes(j - i) + content[j:])
        broken.append(content[:i] + content[i:j] + content[i:])
        broken.append(content[:i] + content[i + 8 :] + content[i : i + 8])
    for data in broken:
        if data != content:
            with open(path, "wb") as file:
                file.write(data)
            with pytest.raises(CheckpointError):
                load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file, or is cut off"),
        (b"12345678", "no safetensors file, or is cut off"),
        (b"\0" * 8, "no safetensors file"),
        (b"\x80\x04\x95" + b"pickle" * 100, "no safetensors file"),
        (b"PK\3\4" + b"zip" * 100, "no safetensors file"),
        (safetensors.numpy.save({"a": np.ones(3)}), "safetensors.numpy.load_file opens it"),
        (
            safetensors.numpy.save({"a": np.ones(3)}, metadata={"checksum": "x"}),
            "safetensors.numpy.load_file opens it",
        ),
    ],
    ids=["empty", "short", "zeros", "pickle", "zip", "safetensors", "safetensors with metadata"],
)
def test_foreign_files_are_refused_with_a_reason(content, message, path):
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert repr(path) in str(caught.value)


def test_damage_is_named(path):
    content = small_checkpoint(path)
    with open(path, "wb") as file:
        file.write(content[:-1] + b"\xff")
    with pytest.raises(
        CheckpointError, match="its xxh3_128 checksum does not match: the file is damaged"
    ):
        load(path)
    with open(path, "wb") as file:
        file.write(content[:-1])
    with pytest.raises(CheckpointError, match="take 20 bytes, but the file has 19"):
        load(path)


ZEROS = "xxh3_128:" + "0" * 32
"""In the place of the checksum, while it is taken."""


def forge(path, structure="null", tensors="", data=b"", metadata=None, header=None, length=None):
    """Write a file with a correct checksum, whatever else is wrong with it."""
    if not isinstance(structure, str):
        structure = json.dumps(structure)
    if metadata is None:
        metadata = f',"format":"genesis 2","structure":{json.dumps(structure)}'
    if header is None:
        header = '{"__metadata__":{"checksum":"' + ZEROS + f'"{metadata}}}{tensors}}}'
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    start = struct.pack("<Q", len(header) if length is None else length)
    digits = xxhash.xxh3_128(start + header + data).hexdigest()
    with open(path, "wb") as file:
        file.write(start + header.replace(b"0" * 32, digits.encode(), 1) + data)


def tensor(name="a", dtype="F32", shape="[1]", offsets="[0,4]", more=""):
    return f',"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def forge_of_0_1(path, structure, tensors="", data=b""):
    """Write a file as version 0.1 did, whose checksum was SHA-256 and the rest the same."""
    header = (
        '{"__metadata__":{"checksum":"' + "0" * 64 + '","format":"genesis 1","structure":'
        f"{json.dumps(json.dumps(structure))}}}{tensors}}}"
    ).encode()
    start = struct.pack("<Q", len(header))
    digits = hashlib.sha256(start + header + data).hexdigest().encode()
    with open(path, "wb") as file:
        file.write(start + header.replace(b"0" * 64, digits, 1) + data)


A = {"$tensor": "a"}


def one(size=4, **entry):
    """A file with the tensor "a" and nothing else."""
    return {"structure": A, "tensors": tensor(**entry), "data": bytes(size)}


def test_the_forger_makes_valid_files(path):
    forge(path, {"x": [1, A]}, tensor(), struct.pack("<f", 2))
    assert_same(load(path), {"x": [1, np.array([2], np.float32)]})
    forge(path, [A, {"$parameter": {"tensor": "b", "name": None, "requires_grad": True}}],
          tensor() + tensor("b", offsets="[4,8]"), bytes(8))  # fmt: skip
    assert type(load(path)[1]) is Parameter


def test_files_of_0_1_are_read_and_their_damage_is_found(path):
    forge_of_0_1(path, {"x": [1, A]}, tensor(), struct.pack("<f", 2))
    assert_same(load(path), {"x": [1, np.array([2], np.float32)]})
    with open(path, "rb") as file:
        content = file.read()
    for i in range(len(content)):
        with open(path, "wb") as file:
            file.write(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        with pytest.raises(CheckpointError):
            load(path)
    with open(path, "wb") as file:
        file.write(content[:-1] + b"\1")
    with pytest.raises(CheckpointError, match="its SHA-256 checksum does not match"):
        load(path)


def test_a_file_says_which_checksum_it_has(path):
    """By bytes put together here, so that what is summed up, and how, cannot change unseen."""
    save({"x": np.arange(3, dtype=np.float32)}, path)
    with open(path, "rb") as file:
        content = file.read()
    checksum = re.search(rb'"checksum":"xxh3_128:([0-9a-f]{32})","format":"genesis 2"', content)[1]
    summed = content.replace(checksum, b"0" * 32, 1)
    assert xxhash.xxh3_128_hexdigest(summed).encode() == checksum


HOSTILE = {
    # The length and the header as such.
    "length 2**64-1": ({"length": 2**64 - 1}, "cut off"),
    "length 2**63": ({"length": 2**63}, "cut off"),
    "length one too large": ({"header": "{}", "length": 3}, "cut off"),
    "length too small": ({"length": 100}, "not JSON"),
    "length 0": ({"length": 0}, "no safetensors file"),
    "not UTF-8": ({"metadata": ',"format":"\ud800"'}, "utf-8"),
    "deep header": ({"tensors": ',"a":' + "[" * 100_000}, "nested too deeply"),
    "deep objects": ({"tensors": ',"a":' + '{"a":' * 100_000}, "nested too deeply"),
    "giant int in the header": ({"tensors": tensor(shape="[" + "9" * 10**6 + "]")}, "number"),
    "giant float in the header": ({"tensors": tensor(shape="[1." + "9" * 10**6 + "]")}, "number"),
    "NaN in the header": ({"tensors": tensor(shape="[NaN]")}, "number"),
    "text after it": ({"metadata": ',"format":"genesis 2","structure":"1"}} x'}, "not JSON"),
    # Metadata.
    "no format": ({"metadata": ""}, "did not write it"),
    "newer format": ({"metadata": ',"format":"genesis 3","structure":"1"'}, "'genesis 3'.*reads"),
    "format is a list": ({"metadata": ',"format":[]'}, "did not write it"),
    "the other checksum": ({"metadata": ',"format":"genesis 1","structure":"1"'}, "another kind"),
    "no structure": ({"metadata": ',"format":"genesis 2"'}, "metadata is malformed"),
    "structure is no text": ({"metadata": ',"format":"genesis 2","structure":3'}, "malformed"),
    "more metadata": ({"metadata": ',"format":"genesis 2","structure":"1","x":"y"'}, "malformed"),
    "format twice": (
        {"metadata": ',"format":"genesis 2","format":"genesis 2","structure":"1"'}, "key twice"
    ),
    "metadata twice": ({"tensors": ',"__metadata__":{}'}, "key twice"),
    # Tensors.
    "tensor twice": ({"structure": A, "tensors": tensor() * 2, "data": bytes(4)}, "key twice"),
    "tensor is a list": ({"tensors": ',"a":[]'}, "tensor 'a' is malformed"),
    "tensor is null": ({"tensors": ',"a":null'}, "tensor 'a' is malformed"),
    "tensor without shape": ({"tensors": ',"a":{"dtype":"F32","data_offsets":[0,4]}'}, "malformed"),
    "tensor with more": (one(more=',"x":1'), "malf"),
    "unknown dtype": ({"structure": A, "tensors": tensor(dtype="F8_E5M2")}, "unknown dtype"),
    "dtype is a list": ({"tensors": tensor().replace('"F32"', "[]")}, "unknown dtype"),
    "negative size": ({"tensors": tensor(shape="[-1]")}, "has the shape"),
    "two negative sizes": (one(shape="[-1,-1]"), "has the shape"),
    "true as a size": (one(shape="[true]"), "shape"),
    "float as a size": (one(shape="[1.0]"), "shape"),
    "shape is a text": (one(shape='"1"'), "shape"),
    "shape is a number": ({"tensors": tensor(shape="1")}, "has the shape"),
    "huge shape": ({"tensors": tensor(shape="[1099511627776]")}, "lies at"),
    "huge shape, huge offsets": (
        {"tensors": tensor(shape="[1099511627776]", offsets="[0,4398046511104]")}, "take 43980"
    ),
    "overflowing shape": ({"tensors": tensor(shape="[4294967296,4294967296,4]")}, "lies at"),
    "overflow to the right size": (one(shape="[4611686018427387905]"), "lies at"),
    "huge empty shape": (
        {"structure": A, "tensors": tensor(shape="[0,9223372036854775808]", offsets="[0,0]")},
        "has the shape",
    ),
    "huge empty shape 2": (
        {"structure": A, "tensors": tensor(shape="[4611686018427387904,4,0]", offsets="[0,0]")},
        "has the shape",
    ),
    "too many axes": (one(shape=str([1] * 65)), "has the shape"),
    "very many axes": ({"tensors": tensor(shape=str([2**60] * 100_000))}, "has the shape"),
    "hole before": (one(offsets="[4,8]", size=8), "lies at"),
    "hole between": (
        {"tensors": tensor() + tensor("b", offsets="[8,12]"), "data": bytes(12)}, "lies at"
    ),
    "hole after": (one(size=5), "file has 5"),
    "overlap": ({"tensors": tensor() + tensor("b", offsets="[2,6]"), "data": bytes(6)}, "lies at"),
    "same place": ({"tensors": tensor() + tensor("b"), "data": bytes(4)}, "lies at"),
    "wrong order": (
        {"tensors": tensor(offsets="[4,8]") + tensor("b", offsets="[0,4]"), "data": bytes(8)}, "lies"
    ),
    "offsets reversed": ({"tensors": tensor(offsets="[4,0]"), "data": bytes(4)}, "lies at"),
    "offsets too long": (one(offsets="[0,8]", size=8), "lies"),
    "three offsets": ({"tensors": tensor(offsets="[0,4,4]"), "data": bytes(4)}, "lies at"),
    "negative offset": ({"tensors": tensor(offsets="[-4,0]"), "data": bytes(4)}, "lies at"),
    "false as an offset": (one(offsets="[false,4]"), "lies at"),
    "beyond the end": ({"structure": A, "tensors": tensor()}, "file has 0"),
    # The structure.
    "empty structure": ({"structure": ""}, "structure is not JSON"),
    "two values": ({"structure": "1 2"}, "structure is not JSON"),
    "deep structure": ({"structure": "[" * 100_000 + "]" * 100_000}, "nested too deeply"),
    "deep unclosed": ({"structure": '{"a":' * 100_000}, "nested too deeply"),
    "101 levels": ({"structure": "[" * 102 + "]" * 102}, "nested more than 100"),
    "deep tuples": ({"structure": '{"$tuple":[' * 150 + "]}" * 150}, "nested more than 100"),
    "deep key": (
        {"structure": '{"$dict":[[' + '{"$tuple":[' * 150 + "]}" * 150 + ",1]]}"}, "malformed key"
    ),
    "giant int": ({"structure": "1" * 5_000_000}, "structure has the number"),
    "giant negative int": ({"structure": "-" + "1" * 5_000_000}, "structure has the number"),
    "giant float": ({"structure": "1." + "1" * 5_000_000}, "structure has the number"),
    "infinite float": ({"structure": "1e999"}, "structure has the number"),
    "NaN": ({"structure": "NaN"}, "structure has the number"),
    "Infinity": ({"structure": "[-Infinity]"}, "structure has the number"),
    "key twice": ({"structure": '{"a":1,"a":2}'}, "key twice"),
    "key twice in a dict": ({"structure": {"$dict": [[1, 2], [1, 3]]}}, "key twice"),
    "equal keys": ({"structure": {"$dict": [[1, 2], [True, 3]]}}, "key twice"),
    "unknown tag": ({"structure": {"$object": "os.system"}}, "unknown form"),
    "tag beside a key": ({"structure": {"$int": "0x1", "a": 1}}, "unknown form"),
    "int that is a number": ({"structure": {"$int": 1}}, "malformed int"),
    "decimal int": ({"structure": {"$int": "1" * 1_000_000}}, "malformed int"),
    "int with underscores": ({"structure": {"$int": "0x1_0"}}, "malformed int"),
    "empty int": ({"structure": {"$int": "0x"}}, "malformed int"),
    "short float": ({"structure": {"$float": "7ff0"}}, "malformed float"),
    "float that is a list": ({"structure": {"$float": [1]}}, "malformed float"),
    "str that is null": ({"structure": {"$str": None}}, "malformed str"),
    "str not hexadecimal": ({"structure": {"$str": "xy"}}, "malformed str"),
    "str not UTF-8": ({"structure": {"$str": "ff"}}, "utf-8"),
    "tuple that is a dict": ({"structure": {"$tuple": {"a": 1}}}, "malformed tuple"),
    "dict that is a dict": ({"structure": {"$dict": {"a": 1}}}, "malformed dict"),
    "dict of triples": ({"structure": {"$dict": [[1, 2, 3]]}}, "malformed dict"),
    "list as a key": ({"structure": {"$dict": [[[], 1]]}}, "malformed key"),
    "dict as a key": ({"structure": {"$dict": [[{"a": 1}, 1]]}}, "malformed key"),
    "array as a key": (
        {"structure": {"$dict": [[A, 1]]}, "tensors": tensor(), "data": bytes(4)}, "malformed key"
    ),
    "array in a tuple as a key": (
        {"structure": {"$dict": [[{"$tuple": [A]}, 1]]}, "tensors": tensor(), "data": bytes(4)},
        "malformed key",
    ),
    "tuple of null as a key": ({"structure": {"$dict": [[{"$tuple": None}, 1]]}}, "malformed tuple"),
    "ordered dict that is a dict": ({"structure": {"$ordered": {"a": 1}}}, "malformed ordered dict"),
    "ordered dict of nothing": ({"structure": {"$ordered": []}}, "malformed ordered dict"),
    "ordered dict of three": ({"structure": {"$ordered": [[], {}, {}]}}, "malformed ordered dict"),
    "ordered dict of triples": ({"structure": {"$ordered": [[[1, 2, 3]]]}}, "malformed dict"),
    "ordered key twice": ({"structure": {"$ordered": [[[1, 2], [1, 3]]]}}, "key twice"),
    "deep metadata": (
        {"structure": '{"$ordered":[[],' + "[" * 102 + "]" * 102 + "]}"}, "nested more than 100"
    ),
    "missing tensor of torch": ({"structure": {"$torch": "b"}}, "missing tensor 'b'"),
    "tensor of torch by list": ({"structure": {"$torch": ["a"]}}, "missing tensor"),
    "parameter of torch that asks 1": ({"structure": {"$torch": ["a", 1]}}, "missing tensor"),
    "missing tensor": ({"structure": {"x": {"$tensor": "b"}}}, "missing tensor 'b'"),
    "metadata as a tensor": ({"structure": {"$tensor": "__metadata__"}}, "missing tensor"),
    "tensor by number": ({"structure": {"$tensor": 0}}, "missing tensor"),
    "tensor by list": ({"structure": {"$tensor": []}}, "missing tensor"),
    "long missing name": ({"structure": {"$tensor": "x" * 1_000_000}}, "missing tensor"),
    "unused tensor": ({"tensors": tensor(), "data": bytes(4)}, "does not mention the tensor 'a'"),
    "scalar with an axis": (
        {"structure": {"$scalar": "a"}, "tensors": tensor(), "data": bytes(4)}, "has the shape"
    ),
    "parameter before its time": ({"structure": {"$parameter": 0}}, "malformed parameter"),
    "parameter by bool": ({"structure": {"$parameter": True}}, "malformed parameter"),
    "parameter -1": ({"structure": {"$parameter": -1}}, "malformed parameter"),
    "parameter without a name": (
        {"structure": {"$parameter": {"tensor": "a", "requires_grad": True}}}, "malformed parameter"
    ),
    "parameter with a list as name": (
        {"structure": {"$parameter": {"tensor": "a", "name": [], "requires_grad": True}}},
        "malformed parameter",
    ),
    "parameter of a missing tensor": (
        {"structure": {"$parameter": {"tensor": "b", "name": None, "requires_grad": True}}},
        "missing tensor",
    ),
    "integer parameter": (
        {"structure": {"$parameter": {"tensor": "a", "name": None, "requires_grad": True}},
         "tensors": tensor(dtype="I32"), "data": bytes(4)},
        "'a' is no parameter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_quickly_with_little_memory(case, path):
    content, message = HOSTILE[case]
    forge(path, **content)
    size = os.path.getsize(path)
    tracemalloc.start()
    try:
        begin = time.process_time()
        with pytest.raises(CheckpointError, match=message) as caught:
            load(path)
        elapsed = time.process_time() - begin
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert elapsed < 15  # of the processor's; some would take hours
    assert peak < 500_000 + 4 * size
    assert len(str(caught.value)) < 500 + len(path)


# Files whose size hides how much there is to do.

PRIME = 2**61 - 1  # the hash of an int is its remainder


def keyed(keys):
    return '{"$dict":[' + ",".join(f"[{key},0]" for key in keys) + "]}"


def traced_load(path):
    """What is loaded, and how much memory was in use for it at most."""
    tracemalloc.start()
    try:
        loaded = load(path)
        return loaded, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def empty_tensors(n, shape="[0]"):
    """A file of n tensors without elements."""
    return {
        "structure": "[" + ",".join(f'{{"$tensor":"{i}"}}' for i in range(n)) + "]",
        "tensors": "".join(tensor(f"{i}", "U8", shape, "[0,0]") for i in range(n)),
    }


DENSE = {
    "ints of one hash": (
        {"structure": keyed(f'{{"$int":"{hex(i * PRIME)}"}}' for i in range(1, 6000))},
        "too many keys of one hash",
    ),
    "short ints of one hash": (
        {"structure": keyed(i * PRIME for i in range(1, 6000))}, "too many keys of one hash"
    ),
    "ints of one hash in several dicts": (
        {"structure": "[" + ",".join([keyed(i * PRIME for i in range(1, 1000))] * 21) + "]"},
        "too many keys of one hash",
    ),
    "tuples of one hash": (  # -1 and -2 have one hash
        {"structure": keyed(
            '{"$tuple":[' + ",".join(f"-{1 + (i >> bit & 1)}" for bit in range(12)) + "]}"
            for i in range(1500)
        )},
        "too many keys of one hash",
    ),
    "long tuples of one hash": (
        {"structure": keyed(
            '{"$tuple":[' + "7," * 500 + ",".join(f"-{1 + (i >> bit & 1)}" for bit in range(8)) + "]}"
            for i in range(256)
        )},
        "too many keys of one hash",
    ),
    "empty lists": ({"structure": "[" + "[]," * 300_000 + "0]"}, "4 times the file's size"),
    "lists of one": ({"structure": "[" + "[0]," * 250_000 + "0]"}, "4 times the file's size"),
    "lists in lists": (
        {"structure": "[" + ("[" * 50 + "]" * 50 + ",") * 9000 + "0]"}, "4 times the file's size"
    ),
    "empty dicts": ({"structure": "[" + "{}," * 270_000 + "0]"}, "4 times the file's size"),
    "dicts of one": ({"structure": "[" + '{"a":1},' * 100_000 + "0]"}, "4 times the file's size"),
    "one wide dict": (
        {"structure": "{" + ",".join(f'"{i:x}":1' for i in range(100_000)) + "}"},
        "4 times the file's size",
    ),
    "very many lists": ({"structure": "[" + "[]," * 2_000_000 + "0]"}, "parts that a checkpoint"),
    "very many dicts": ({"structure": "[" + "{}," * 300_000 + "0]"}, "parts that a checkpoint"),
    "very many backslashes": ({"structure": '"' + "\\" * 12_000_000 + '"'}, "parts that a check"),
    "empty tensors": (empty_tensors(60_000), "4 times the file's size"),
    "tensors of many axes": (
        empty_tensors(25_000, "[" + "0," * 63 + "0]"), "4 times the file's size"
    ),
    "lists in the place of a tensor": (
        {"tensors": ',"a":[' + "[]," * 1_000_000 + "0]"}, "header is malformed"
    ),
    "a long name": ({"tensors": ',"' + "x" * 5_000_000 + '":0'}, "tensor 'x*'... is malformed|mal"),
    "a long escaped name": ({"tensors": ',"' + "\\n" * 2_500_000 + '":0'}, "malformed"),
    "a wide name": ({"tensors": ',"' + "x" * 5_000_000 + '\\ud83d\\ude42":0'}, "malformed"),
    "a wide text": (
        {"structure": '"' + "x" * 8_000_000 + '\\ud83d\\ude42"'}, "4 times the file's size"
    ),
    "a wide text by another way": (
        {"metadata": ',"format":"genesis 2","structure":"\'' + "x" * 500_000 + '\\ud83d\\ude42"'},
        "escapes that genesis.save does not write",
    ),
    "a huge int in the place of a float": (
        {"structure": '{"$float":{"$int":"0x' + "f" * 1_000_000 + '"}}'}, "malformed float an int"
    ),
    "lists in the place of a float": (
        {"structure": '{"$float":[[' + "1," * 100_000 + "1]]}"}, "malformed float .a list"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DENSE)
def test_files_that_ask_for_too_much_are_refused(case, path):
    content, message = DENSE[case]
    forge(path, **content)
    size = os.path.getsize(path)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Keys and axes are known only one by one, and those before may take the spare memory.
    spare = 16 << 20 if "one hash" in message or "axes" in case else 1_500_000
    assert peak < spare + 4 * size
    assert len(str(caught.value)) < 500 + len(path)


def test_too_much_is_refused_before_it_is_parsed(path, monkeypatch):
    """The time that 90 MB of lists took was the parser's and that of the objects it made."""

    def parse_json(*_):
        raise AssertionError("it was parsed")

    monkeypatch.setattr(codec, "parse_json", parse_json)
    for structure in ("[" + "[]," * 30_000_000 + "0]", "[" + "[]," * 300_000 + "0]"):
        forge(path, structure)
        with pytest.raises(CheckpointError, match=r"4 times the file's size|parts that"):
            load(path)


KINDS = {
    "ints": "[" + "1000," * 50_000 + "0]",
    "floats": "[" + "1.5," * 50_000 + "0]",
    "texts": "[" + '"ab",' * 50_000 + "0]",
    "one text": '"' + "ab" * 500_000 + '"',
    "one text with escapes": '"' + "ab\\n" * 200_000 + '"',
    "one text of two bytes": '"' + "ab" * 500_000 + '\\u6f22"',
    "one text of four bytes": '"' + "ab" * 500_000 + '\\ud83d\\ude42"',
    "one text in hexadecimal": '{"$str":"' + "61" * 500_000 + 'f09f9982"}',
    "a huge int": '{"$int":"0x' + "f" * 1_000_000 + '"}',
    "empty lists": "[" + "[]," * 50_000 + "0]",
    "lists of one": "[" + "[0]," * 50_000 + "0]",
    "lists of five": "[" + "[0,0,0,0,0]," * 20_000 + "0]",
    "nested lists": "[" + ("[" * 50 + "]" * 50 + ",") * 1000 + "0]",
    "tuples": "[" + '{"$tuple":[1]},' * 50_000 + "0]",
    "empty dicts": "[" + "{}," * 50_000 + "0]",
    "dicts of one": "[" + '{"a":1},' * 50_000 + "0]",
    "dicts of one other key": "[" + ",".join(f'{{"{i:x}":1}}' for i in range(50_000)) + "]",
    "dicts of six": "[" + '{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1},' * 10_000 + "0]",
    **{
        f"dict of {n}": "{" + ",".join(f'"{i:x}":1' for i in range(n)) + "}"
        for n in (10_000, 43_000, 43_700, 87_000, 88_000)  # where a dict grows, and between
    },
    **{f"dict of {n} ints": keyed(range(1000, 1000 + n)) for n in (43_700, 88_000)},
    "dict of tuples": keyed(f'{{"$tuple":[{i},{i}]}}' for i in range(30_000)),
    "empty ordered dicts": "[" + '{"$ordered":[[]]},' * 20_000 + "0]",
    "ordered dicts of one": "[" + '{"$ordered":[[["a",1]]]},' * 20_000 + "0]",
    "ordered dicts with metadata": "[" + '{"$ordered":[[["a",1]],{}]},' * 20_000 + "0]",
    **{
        f"ordered dict of {n}": '{"$ordered":[['
        + ",".join(f'["{i:x}",1]' for i in range(n))
        + "]]}"
        for n in (43_700, 88_000)
    },
    "random numbers": "[" + '{"$float":"7ff0000000000000"},' * 20_000 + "0]",
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_memory_is_used_than_was_foreseen(kind, path, monkeypatch):
    monkeypatch.setattr(file_format, "_SPARE", 1 << 40)
    forge(path, KINDS[kind])
    load(path)
    loaded, peak = traced_load(path)
    del loaded
    structure = KINDS[kind].encode()
    foreseen = max(os.path.getsize(path) + len(structure) * 9 // 8, codec.memory(structure))
    assert peak < foreseen + 300_000


@pytest.mark.parametrize("shape", ["[0]", "[]", "[" + "0," * 31 + "0]"])
def test_no_more_memory_is_used_for_tensors_than_was_foreseen(shape, path):
    content = empty_tensors(5000, shape)
    if shape == "[]":
        for i in range(5000):
            content["tensors"] = content["tensors"].replace("[0,0]", f"[{i},{i + 1}]", 1)
        content["data"] = bytes(5000)
    forge(path, **content)
    loaded, peak = traced_load(path)
    assert len(loaded) == 5000
    structure = content["structure"].encode()
    tensors = 5000 * (400 + 4 * 4 + 16 * loaded[0].ndim)
    foreseen = max(os.path.getsize(path) + len(structure) * 9 // 8, codec.memory(structure))
    assert peak < foreseen + tensors + 300_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: [[] for _ in range(20_000)],
        lambda: [{"step": i, "loss": i / 7} for i in range(20_000)],
        lambda: {f"word {i}": i for i in range(20_000)},
        lambda: {i: (i, None) for i in range(20_000)},
        lambda: list(range(50_000)),
        lambda: "x" * 100_000 + "🙂",
        lambda: [np.ones(0, np.int8) for _ in range(5000)],
        lambda: {"é\0\n" * 50 + str(i): np.ones((1,) * 32) for i in range(1000)},
        lambda: [Parameter(np.ones(1, np.float32)) for _ in range(2000)],
    ],
    ids="lists records words ints-as-keys ints text tensors names parameters".split(),
)
def test_what_save_writes_takes_four_times_its_size_without_the_spare(make, path, monkeypatch):
    """The file is made longer where that is needed, and by no more than that."""
    obj = make()
    monkeypatch.setattr(file_format, "_SPARE", 0)
    save(obj, path)
    loaded, peak = traced_load(path)
    size = os.path.getsize(path)
    assert_same(loaded, obj)
    assert peak < 4 * size + 500_000
    assert len(safetensors.numpy.load_file(path)) == sum(
        isinstance(value, (np.ndarray, Parameter))
        for value in (obj.values() if isinstance(obj, dict) else obj)
    )
    with open(path, "rb") as file:
        content = file.read()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    if (spaces := len(header) - len(header.rstrip())) > 8:
        shorter = header.rstrip() + b" " * (spaces - 16)
        digits = header[38:70]
        forge(
            path,
            header=shorter.replace(digits, b"0" * 32).decode(),
            data=content[8 + len(header) :],
        )
        with pytest.raises(CheckpointError, match="4 times the file's size"):
            load(path)


def test_the_limits_hold_for_save_too(path, monkeypatch):
    keys = {i * PRIME: 0 for i in range(1, 6000)}
    with pytest.raises(ValueError, match=r"obj\['x'\]: too many keys of one hash"):
        save({"x": keys}, path)
    grid = {(x, y, z): 0 for x in range(-9, 9) for y in range(-9, 9) for z in range(-9, 9)}
    save(grid, path)
    assert load(path) == grid
    few = {i * PRIME: 0 for i in range(1, 4000)}
    save(few, path)
    assert load(path) == few
    before = os.stat(path)
    monkeypatch.setattr(codec, "MAX_PARTS", 1000)
    shared = [0]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(ValueError, match="more than 1000 values; keep long lists"):
        save(shared, path)
    for obj in (["a,b"] * 500, [{}] * 112, [np.ones(1)] + [np.ones(0) for _ in range(50)]):
        with pytest.raises(ValueError, match="and a checkpoint has room for 1000"):
            save(obj, path)
    assert os.stat(path) == before


def test_ten_thousand_tensors(path):
    """As many as a large model with its optimizer has, in a file that is not padded for them."""
    state = {f"layers.{i}.weight": {"exp_avg": np.ones(3), "step": 7} for i in range(10_000)}
    save(state, path)
    assert_same(load(path), state)
    with open(path, "rb") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
    assert len(header) - len(header.rstrip()) < 8


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_only_regular_files_are_read(tmp_path):
    """In a process of its own, which would wait for ever for somebody to write to the FIFO."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("fifo")
    code = """
        import os, sys
        from genesis.checkpoint import CheckpointError, load, load_checkpoint
        os.chdir(sys.argv[1])
        for path in ("fifo", "link", "socket", "/dev/null", "/dev/zero"):
            try:
                (load_checkpoint if path == "link" else load)(path)
            except CheckpointError as error:
                print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines() == [
        "cannot load 'fifo': it is no regular file but a FIFO",
        "cannot load 'link': it is no regular file but a FIFO",
        "cannot load 'socket': it is no regular file but a socket",
        "cannot load '/dev/null': it is no regular file but a device",
        "cannot load '/dev/zero': it is no regular file but a device",
    ], result.stderr


def test_no_mutation_of_the_structure_escapes(path):
    """Anything but CheckpointError would be a hole: TypeError, KeyError, IndexError, ..."""
    small_checkpoint(path)
    with safe_open(path, "np") as file:
        structure = json.loads(file.metadata()["structure"])
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        del header["__metadata__"]
        data = file.read()
    rng = random.Random(0)
    atoms = [None, True, 0, 1, -1, 2.5, "", "w", "$int", "0x1", [], {}, [[]], [[1, 2]], 10**30]
    tags = [
        "$int",
        "$float",
        "$str",
        "$tuple",
        "$dict",
        "$tensor",
        "$scalar",
        "$parameter",
        "$ordered",
        "$torch",
        "$",
        "a",
    ]

    def mutate(node):
        choice = rng.randrange(12)
        if choice == 0:
            return rng.choice(atoms)
        if choice == 1:
            return {rng.choice(tags): node}
        if isinstance(node, dict) and node:
            key = rng.choice(list(node))
            if choice == 2:
                return {k: v for k, v in node.items() if k != key}
            if choice == 3:
                return {(rng.choice(tags) if k == key else k): v for k, v in node.items()}
            return {k: (mutate(v) if k == key else v) for k, v in node.items()}
        if isinstance(node, list) and node:
            i = rng.randrange(len(node))
            return node[:i] + ([] if choice == 2 else [mutate(node[i])]) + node[i + 1 :]
        return rng.choice(atoms)

    refused = 0
    for _ in range(4000):
        tree, entries = structure, header
        if rng.random() < 0.7:
            tree = mutate(structure)
        else:
            name = rng.choice(list(header))
            entries = {**header, name: mutate(header[name])}
        metadata = {"checksum": ZEROS, "format": "genesis 2", "structure": json.dumps(tree)}
        text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"))
        forge(path, header=text, data=data)
        try:
            load(path)
        except CheckpointError:
            refused += 1
    assert 2000 < refused < 4000


# `open` itself may run out of stack, and leaves a file to the garbage collector then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_caller_deep_in_the_stack_gets_a_clear_error(path):
    save([[[[[[1]]]]]], path)

    def deep(levels):
        return load(path) if levels == 0 else deep(levels - 1)

    outcomes = set()
    for levels in range(700, 1000):
        try:
            outcomes.add(str(deep(levels)))
        except CheckpointError as error:
            outcomes.add(str(error))
        except RecursionError:  # before load was reached
            outcomes.add("too deep anyway")
    assert outcomes == {
        "[[[[[[1]]]]]]",
        f"cannot load {path!r}: it is nested too deeply",
        "too deep anyway",
    }


def test_a_lack_of_memory_is_reported(path, monkeypatch):
    save(np.ones(3), path)

    def empty(*_):
        raise MemoryError

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(CheckpointError, match="not enough memory"):
        load(path)


# Several objects in one file.


def test_checkpoint_of_several_objects(path):
    weight = Parameter(np.arange(3.0))
    optimizer, scheduler = Stateful(step=3, m=np.ones(3)), Stateful(last_epoch=2)
    save_checkpoint(
        path, model={"w": weight}, optimizer=optimizer, scheduler=scheduler, epoch=3, path="x"
    )
    loaded = load_checkpoint(path)
    assert list(loaded) == ["model", "optimizer", "scheduler", "epoch", "path"]
    assert_same(loaded["optimizer"], {"step": 3, "m": np.ones(3)})
    new_optimizer, new_scheduler = Stateful(), Stateful()
    rest = load_checkpoint(path, optimizer=new_optimizer, scheduler=new_scheduler)
    assert_same(new_optimizer.state, optimizer.state)
    assert_same(new_scheduler.state, scheduler.state)
    assert rest["epoch"] == 3
    assert "optimizer.m" in safetensors.numpy.load_file(path)


def test_objects_are_checked_before_any_is_loaded(path):
    optimizer = Stateful(step=1)
    save_checkpoint(path, optimizer=Stateful(step=2), epoch=1)
    with pytest.raises(ValueError, match="holds nothing named 'scaler'; it holds 'optimizer', 'ep"):
        load_checkpoint(path, optimizer=optimizer, scaler=Stateful())
    with pytest.raises(TypeError, match="epoch: an int has no load_state_dict method"):
        load_checkpoint(path, optimizer=optimizer, epoch=1)
    assert optimizer.state == {"step": 1}


def test_objects_are_restored_when_a_later_one_refuses(path):
    save_checkpoint(path, a=Stateful(x=1), b=Stateful(poison=1), c=Stateful(x=2))
    a, b, c = Stateful(old="a"), Stateful(old="b"), Stateful(old="c")
    with pytest.raises(ValueError, match="poisoned"):
        load_checkpoint(path, a=a, b=b, c=c)
    assert [x.state["old"] for x in (a, b, c)] == ["a", "b", "c"]


@pytest.mark.parametrize("obj", [[1], 3, {1: 2}, np.ones(2)], ids=str)
def test_a_file_without_names_is_no_checkpoint_of_objects(obj, path):
    save(obj, path)
    with pytest.raises(CheckpointError, match="does not hold values by name"):
        load_checkpoint(path)


def test_a_class_is_not_taken_for_its_instance(path):
    with pytest.raises(TypeError, match=r"obj\['optimizer'\]: cannot save a type"):
        save_checkpoint(path, optimizer=Stateful)


def test_examples():
    results = doctest.testmod(genesis.checkpoint)
    assert results.failed == 0
    assert results.attempted > 10


def test_nothing_is_kept_after_a_load(path):
    """The arrays can be freed one by one, and the exception of a refused file holds none."""
    save({"a": np.ones(1_000_000), "b": np.ones(1_000_000)}, path)
    tracemalloc.start()
    loaded = load(path)
    both = tracemalloc.get_traced_memory()[0]
    del loaded["a"]
    gc.collect()
    one = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert both - one > 7_900_000
