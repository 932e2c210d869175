"""Where tests keep their arrays: on the CPU, or on numba's simulated GPU if that is turned on.

The same tests run in both places: `NUMBA_ENABLE_CUDASIM=1 pytest` is the second run.
"""

import numpy as np

import genesis
from genesis import buffers, cuda_driver

DEVICE = "cuda:0" if cuda_driver.SIMULATED else "cpu"


def on_device(array):
    """The array as a test's parameters and gradients hold it."""
    return buffers.put(np.asarray(array), DEVICE)


def parameter(array, **others):
    """A parameter with a copy of the array's values."""
    return genesis.Parameter(on_device(np.array(array)), **others)
