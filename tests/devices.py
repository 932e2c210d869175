"""Where tests keep their arrays: on the CPU, or on numba's simulated GPU if that is turned on.

The same tests run in both places: `NUMBA_ENABLE_CUDASIM=1 pytest` is the second run.
"""

from importlib.util import find_spec

import numpy as np
import pytest

import genesis
from genesis import buffers, cuda_driver

SIMULATED = cuda_driver.SIMULATED
DEVICE = "cuda:0" if SIMULATED else "cpu"

WITHOUT_NUMBA_CUDA = "needs numba-cuda: pip install -e '.[test,ptx]'"
"""Why tests of what numba-cuda makes are skipped without it."""

on_cpu_only = pytest.mark.skipif(SIMULATED, reason="about the CPU target")
needs_numba_cuda = pytest.mark.skipif(find_spec("numba_cuda") is None, reason=WITHOUT_NUMBA_CUDA)
in_simulator = pytest.mark.skipif(not SIMULATED, reason="needs NUMBA_ENABLE_CUDASIM=1")


def on_device(array):
    """The array as a test's parameters and gradients hold it."""
    return buffers.put(np.asarray(array), DEVICE)


def parameter(array, **others):
    """A parameter with a copy of the array's values."""
    return genesis.Parameter(on_device(np.array(array)), **others)


def on_host(value):
    """A buffer's values as a host array; a number as it is."""
    return buffers.host_copy(value) if buffers.is_device_array(value) else value
