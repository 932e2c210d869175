"""Where tests keep their arrays: on the CPU, or on numba's simulated GPU if that is turned on.

The same tests run in both places: `NUMBA_ENABLE_CUDASIM=1 pytest` is the second run.
"""

import numpy as np
import pytest

import genesis
from genesis import buffers, cuda_driver

SIMULATED = cuda_driver.SIMULATED
DEVICE = "cuda:0" if SIMULATED else "cpu"

on_cpu_only = pytest.mark.skipif(SIMULATED, reason="about the CPU target")
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
