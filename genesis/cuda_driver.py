"""The one place that imports numba-cuda, and says what is missing where it cannot be used."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
"""Whether numba's CUDA simulator stands in for a GPU."""

_INSTALL = "pip install 'genesis-optim[cu13]' (CUDA 13) or 'genesis-optim[cu12]' (CUDA 12)"


def compiler() -> Any:
    """The module `numba.cuda`, which compiles without a device too.

    Raises:
        RuntimeError: numba-cuda is not installed.
    """
    if find_spec("numba_cuda") is None:
        raise RuntimeError(f"CUDA needs the package numba-cuda, which is not installed: {_INSTALL}")
    from numba import cuda

    return cuda


@lru_cache(maxsize=None)
def cuda() -> Any:
    """The module `numba.cuda`, with a device to use.

    Raises:
        RuntimeError: numba-cuda is not installed, or finds no driver or no device.
    """
    cuda = compiler()
    if not SIMULATED and not cuda.is_available():
        reason = " ".join(str(cuda.cuda_error() or "no device was found").split())
        raise RuntimeError(
            f"no CUDA device can be used: {reason} (needed are an NVIDIA driver and the toolkit "
            f"that comes with {_INSTALL}; NUMBA_ENABLE_CUDASIM=1 simulates a device)"
        )
    return cuda


def device_of(array: Any, pointer: int) -> int:
    """The number of the device on which an array lies, whose first element is at `pointer`."""
    if SIMULATED or len(cuda().gpus) == 1:
        return 0
    memory = getattr(array, "gpu_data", None)  # of Numba's arrays
    if memory is not None:
        return int(memory.context.device.id)
    if not pointer:  # an array without elements
        return int(cuda().get_current_device().id)
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, ordinal = driver.cuPointerGetAttribute(attribute, pointer)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA does not know the device of address {pointer:#x}: {error}")
    return int(ordinal)


def need_context() -> None:
    """Make a context current if this thread has none, as one that never used CUDA before."""
    from cuda.bindings import driver

    if not int(driver.cuCtxGetCurrent()[1]):
        cuda().current_context()


def send(array: np.ndarray, address: int, stream: Any) -> None:
    """Put a contiguous host array's bytes at an address, in a stream's order, without waiting.

    The array may be changed as soon as this returns.
    """
    from cuda.bindings import driver

    size = array.nbytes
    (error,) = driver.cuMemcpyHtoDAsync(address, array.ctypes.data, size, stream.handle)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"{size} bytes could not be sent to a CUDA device: {error}")
