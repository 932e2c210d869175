"""The way to a GPU and back, on numba-cuda's own code and a driver that only pretends.

The simulator replaces numba-cuda; here it runs, on fake_driver.c, whose memory is the host's and which
counts launches instead of running them. So this sees what the host does: transfers, arguments of
launches, streams, contexts, and whether anything waits.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from devices import needs_numba_cuda, on_cpu_only

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    on_cpu_only,
    needs_numba_cuda,
    pytest.mark.skipif(sys.platform != "linux", reason="the pretended driver is for Linux"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the pretended driver"),
]


def built_driver(folder):
    """Put the pretended driver into a folder, which LD_LIBRARY_PATH is to name."""
    library = folder / "libcuda.so.1"
    build = [COMPILER, "-shared", "-fPIC", "-w", "-o", library, HERE / "fake_driver.c"]
    subprocess.run(build, check=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What driver_session.py found."""
    folder = tmp_path_factory.mktemp("driver")
    built_driver(folder)
    result = subprocess.run(
        [sys.executable, HERE / "driver_session.py"],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(folder),
            "NUMBA_CACHE_DIR": str(folder),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_arrays_of_every_type_and_shape_survive_the_way(found):
    assert found["arrays"] == []


def test_views_lie_where_numbas_arrays_do(found):
    assert found["views"] == []


def test_a_kernel_gets_the_arguments_it_was_compiled_for(found):
    for launch in found["arguments"]:
        assert launch["shapes"] == launch["expected"]
        assert launch["grid"] == [min(launch["chunks"], 1600), 256]
        assert launch["table"]
        assert launch["chunk table"]
        assert launch["scale"] == 1
        assert launch["factor"] == 1  # still there


@pytest.mark.parametrize("tensors", ["1", "100"])
def test_a_step_is_one_launch_and_waits_for_nothing(found, tensors):
    launches, waits, transfers = found["steps"][tensors]["steady"]
    assert (launches, waits, transfers) == (10, 0, 0)
    launches, waits, transfers = found["steps"][tensors]["fresh"]
    assert (launches, waits, transfers) == (10, 0, 10)


def test_the_hosts_work_in_a_step(found):
    """A hundred lines of Python, and three for each tensor."""
    one, hundred = (found["steps"][tensors]["lines"] for tensors in ("1", "100"))
    assert one < 150
    assert hundred - one < 4 * 99


def test_the_table_on_the_device_follows_the_gradients(found):
    assert found["table"]


def test_strided_arrays_are_copied_without_waiting(found):
    launches, waits, transfers = found["strided"]
    assert (launches, waits, transfers) == (4, 0, 0)  # two copies there, the update, one back


def test_other_threads_and_streams(found):
    assert found["others"] == {
        "errors": [],
        "on stream": True,
        "on default": True,
        "launches": 3,
    }
