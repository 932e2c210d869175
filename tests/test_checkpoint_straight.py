"""Arrays that are read straight into their places, and what becomes of them where that fails."""

import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis import checkpoint
from genesis.checkpoint import CheckpointError, atomic_file, load_checkpoint, save_checkpoint

pytestmark = on_cpu_only

ROOT = Path(__file__).resolve().parent.parent
leases = pytest.mark.skipif(
    not hasattr(atomic_file.fcntl, "F_SETLEASE"), reason="needs leases of Linux"
)


@pytest.fixture(params=["straight", "copied"])
def path(request, tmp_path, monkeypatch):
    """A file, from which even small arrays are read straight, or none."""
    monkeypatch.setattr(checkpoint, "_WORTHWHILE", 1)
    if request.param == "copied":
        monkeypatch.setattr(atomic_file, "keep_writers_out", lambda _: False)
    return str(tmp_path / "run.safetensors")


@pytest.fixture
def reads(monkeypatch):
    """How many bytes each second reading brought."""
    found = []
    preadv = os.preadv

    def counted(*args):
        found.append(preadv(*args))
        return found[-1]

    monkeypatch.setattr(os, "preadv", counted)
    return found


def places():
    """Arrays of all layouts and types, of zeros."""
    return {
        "plain": np.zeros((5, 3), np.float32),
        "fortran": np.zeros((3, 4), order="F"),
        "strided": np.zeros(20)[::2],
        "bfloat16": np.zeros(7, ml_dtypes.bfloat16),
        "bool": np.zeros(3, bool),
        "empty": np.zeros((0, 3)),
        "0-d": np.zeros(()),
        "unaligned": np.zeros(41, np.uint8)[1:].view(np.float64),
        "nested": [{"p": genesis.Parameter(np.zeros(3, np.float32))}, np.zeros(4, np.int8)],
    }


def arrays(tree):
    return [
        leaf.data if isinstance(leaf, genesis.Parameter) else leaf
        for _, leaf in genesis.tree.flatten_with_path(tree)
    ]


def filled(tree):
    rng = np.random.default_rng(1)
    for array in arrays(tree):
        bits = rng.integers(0, 2 if array.dtype == bool else 256, array.nbytes, np.uint8)
        array[...] = bits.view(array.dtype).reshape(array.shape)
    return tree


def bits(tree):
    return [array.tobytes() for array in arrays(tree)]


@leases
def test_every_layout_and_type(path, reads, request):
    saved, given = filled(places()), places()
    save_checkpoint(path, params=saved, n=3)
    found = load_checkpoint(path, params=given)
    assert bits(given) == bits(saved)
    assert found["params"] is given
    assert found["n"] == 3
    if "straight" in request.node.name:
        # Those that are not contiguous are read a second time too, but by way of a copy.
        assert sum(reads) == sum(array.nbytes for array in arrays(given))
    else:
        assert reads == []


def test_what_is_elsewhere_in_the_file_too_is_there(path):
    w = np.arange(6.0)
    tied = genesis.Parameter(np.arange(3.0))
    save_checkpoint(path, params=[w, tied, tied], best={"w": w}, last=tied, other=[tied, 1])
    given = [np.zeros(6), np.zeros(3), genesis.Parameter(np.zeros(3))]
    found = load_checkpoint(path, params=given)
    for array in (given[0], found["best"]["w"]):
        np.testing.assert_array_equal(array, w)
    for array in (given[1], given[2].data, found["last"].data, found["other"][0].data):
        np.testing.assert_array_equal(array, tied.data)
    assert not np.shares_memory(found["best"]["w"], given[0])
    save_checkpoint(path, params=[tied, tied])
    given = [np.zeros(3), np.zeros(3)]
    load_checkpoint(path, params=given)
    assert [array.tolist() for array in given] == [[0, 1, 2]] * 2


def test_a_tree_is_found_by_its_place_not_by_its_name(path):
    """Tensors of like names are those of other objects."""
    a, b = np.arange(4.0), np.arange(4.0) + 10
    save_checkpoint(path, **{"x.y": [a], "x": {"y": [b]}, "": [a + 20]})
    given = {"x.y": [np.zeros(4)], "x": {"y": [np.zeros(4)]}, "": [np.zeros(4)]}
    load_checkpoint(path, **given)
    assert (given["x.y"][0] == a).all()
    assert (given["x"]["y"][0] == b).all()
    assert (given[""][0] == a + 20).all()


class Stateful:
    def __init__(self, number, refuse=False):
        self.number, self.refuse = number, refuse

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        if self.refuse and state["number"] != self.number:
            raise ValueError("refused")
        self.number = state["number"]


def test_damage_is_found_before_anything_is_written(path):
    saved = filled(places())
    save_checkpoint(path, params=saved, object=Stateful(1))
    content = Path(path).read_bytes()
    for i in range(len(content)):
        Path(path).write_bytes(content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :])
        given, other = places(), Stateful(2)
        before = bits(given)
        with pytest.raises(CheckpointError):
            load_checkpoint(path, params=given, object=other)
        assert bits(given) == before, i
        assert other.number == 2


@pytest.mark.parametrize("wrong", ["dtype", "shape", "missing", "more", "read-only", "refused"])
def test_what_does_not_fit_is_refused_before_anything_is_written(wrong, path):
    save_checkpoint(path, params=filled(places()), object=Stateful(1))
    given, other = places(), Stateful(2, refuse=wrong == "refused")
    error = ValueError
    if wrong == "dtype":
        given["plain"] = given["plain"].astype(np.int32)
    elif wrong == "shape":
        given["nested"][1] = np.zeros(5, np.int8)
    elif wrong == "missing":
        del given["bool"]
    elif wrong == "more":
        given["zz"] = np.zeros(3)
    elif wrong == "read-only":
        given["plain"].flags.writeable = False
        error = TypeError
    before = bits(given)
    with pytest.raises(error):
        load_checkpoint(path, params=given, object=other)
    assert bits(given) == before
    assert other.number == 2


@leases
def test_somebody_who_would_write_into_the_file_waits(tmp_path, monkeypatch):
    """A program that opens the file to overwrite it gets to do so after the load, which reads again."""
    path = str(tmp_path / "run.safetensors")
    array = np.arange(100_000.0)
    save_checkpoint(path, w=[array], object=Stateful(1))
    code = """
        import os, sys
        print("begun", flush=True)
        file = os.open(sys.argv[1], os.O_RDWR)
        os.pwrite(file, bytes(1000), os.fstat(file).st_size - 1000)
        print("written", flush=True)
    """

    class Disturbing(Stateful):
        writer = None
        tries = 0

        def load_state_dict(self, state):
            super().load_state_dict(state)
            Disturbing.tries += 1
            if Disturbing.writer is None:
                Disturbing.writer = subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(code), path], stdout=subprocess.PIPE
                )
                assert Disturbing.writer.stdout.readline() == b"begun\n"
                while atomic_file.are_writers_out(held[0]):
                    pass

    held = []
    keep = atomic_file.keep_writers_out
    monkeypatch.setattr(
        atomic_file, "keep_writers_out", lambda file: held.append(file) or keep(file)
    )
    given = [np.zeros(100_000)]
    damaged = ""
    try:
        load_checkpoint(path, w=given, object=Disturbing(0))
    except CheckpointError as error:  # the writer was faster than the second try
        damaged = str(error)
    assert not damaged or "the file is damaged" in damaged
    assert (given[0] == (0 if damaged else array)).all()
    assert Disturbing.tries == (2 if damaged else 3)  # one of them to set it back
    with Disturbing.writer as writer:
        assert writer.stdout.readline() == b"written\n"
    before = given[0].copy()
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path, w=given)
    assert (given[0] == before).all()


@leases
def test_a_file_that_somebody_has_open_to_write_is_copied(tmp_path, reads):
    path = str(tmp_path / "run.safetensors")
    array = np.arange(100_000.0)
    save_checkpoint(path, w=[array])
    given = np.zeros(100_000)
    with open(path, "r+b"):
        load_checkpoint(path, w=[given])
    assert (given == array).all()
    assert reads == []
    load_checkpoint(path, w=[given])
    assert reads == [800_000]


@leases
def test_a_second_reading_that_fails_is_reported(tmp_path, monkeypatch):
    path = str(tmp_path / "run.safetensors")
    save_checkpoint(path, w=[np.ones(100_000)], object=Stateful(1))

    def fail(*_):
        raise OSError(5, "Input/output error")

    for read in (fail, lambda *_: 3):
        monkeypatch.setattr(os, "preadv", read)
        with pytest.raises(CheckpointError, match="could not be read a second time: arrays that"):
            load_checkpoint(path, w=[np.zeros(100_000)])


@leases
def test_no_memory_is_needed_for_arrays_that_have_a_place(tmp_path):
    path = str(tmp_path / "run.safetensors")
    save_checkpoint(path, w=[np.ones(4_000_000)])
    given = np.zeros(4_000_000)
    code = """
        import re, sys
        import numpy as np
        from genesis.checkpoint import load_checkpoint

        def resident(what):
            status = open("/proc/self/status").read()
            return int(re.search(rf"{what}:\\s*(\\d+) kB", status)[1]) / 1024

        given = np.zeros(4_000_000)
        given[:] = 3
        load_checkpoint(sys.argv[1], w=[given])
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS")
        load_checkpoint(sys.argv[1], w=[given])
        print(resident("VmHWM") - before)
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(printed) < 8  # of 31 MiB
    tracemalloc.start()
    load_checkpoint(path, w=[given])
    tracemalloc.stop()
    assert given.all()
