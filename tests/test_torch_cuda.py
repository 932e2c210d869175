"""genesis.torch on a GPU, as far as it goes without one: in the simulator, on the pretended driver."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import needs_numba_cuda, on_cpu_only
from test_driver import COMPILER, built_driver

torch = pytest.importorskip("torch")

HERE = Path(__file__).parent

pytestmark = [pytest.mark.torch, on_cpu_only, needs_numba_cuda]


def found_by(what, folder, **environment):
    """What torch_session.py finds."""
    result = subprocess.run(
        [sys.executable, HERE / "torch_session.py", what],
        env={
            **os.environ,
            "NUMBA_CACHE_DIR": str(folder),
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_kernels_in_the_simulator_give_torchs_numbers(tmp_path):
    found = found_by("simulator", tmp_path, NUMBA_ENABLE_CUDASIM="1")
    assert found == {
        "trajectories": [],
        "options": [],
        "refusal": "stochastic_rounding works on the CPU only: use master_weights on a GPU",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the pretended driver is for Linux")
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the pretended driver")
def test_a_step_on_the_pretended_driver(tmp_path):
    """Launches, waits and transfers of ten steps; the stream is torch's at that moment."""
    built_driver(tmp_path)
    found = found_by("driver", tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert found == {
        "steady": [10, 0, 0],
        "fresh": [10, 0, 10],
        "table": True,
        "clipped": [3, 0],  # the sums, the factor, the update
        "recorded before": [],
        "stream": 0x51EA4,
        "recorded": [60, 20],  # parameters and state, once, and gradients
        "default": None,
    }
