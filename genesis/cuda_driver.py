"""The one place that imports numba-cuda, and says what is missing where it cannot be used."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

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


def device_of(pointer: int) -> int:
    """The number of the device on which an address lies."""
    if SIMULATED or len(cuda().gpus) == 1:
        return 0
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, ordinal = driver.cuPointerGetAttribute(attribute, pointer)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA does not know the device of address {pointer:#x}: {error}")
    return int(ordinal)
