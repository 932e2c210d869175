"""Compile kernels for the current device and launch them: a grid of blocks, arrays and numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ... import cuda_driver
from ..cache import keep_code
from ..compiling import Kept, once
from ..specialise import announce
from ..waiting import timed
from .templates import THREADS

cuda = cuda_driver.compiler()

BLOCKS_PER_MULTIPROCESSOR = 16


def blocks() -> int:
    """How many blocks keep every multiprocessor of the current device busy."""
    if cuda_driver.SIMULATED:
        return 2
    return BLOCKS_PER_MULTIPROCESSOR * cuda.get_current_device().MULTIPROCESSOR_COUNT


@Kept
def compiled(rule: Callable, template_of: Callable, *others: Any) -> tuple[Any, Any]:
    """The kernel that one of `templates`' functions makes of a rule."""
    return _compile(*template_of(rule, *others))


@once
def compiled_for(dtype: str, template_of: Callable) -> tuple[Any, Any]:
    """The kernel that one of `templates`' functions makes for a data type."""
    return _compile(*template_of(dtype))


def _compile(function: Callable, signature: Any) -> tuple[Any, Any]:
    """A kernel, and its one compiled form (the simulator has none)."""
    kernel = cuda.jit(function)
    if cuda_driver.SIMULATED:
        return kernel, None
    from numba.cuda.dispatcher import CUDACache

    keep_code(kernel, CUDACache)
    announce()
    before = sum(kernel.stats.cache_hits.values())
    compiled = timed(
        function.__name__,
        kernel,
        lambda: kernel.compile(signature),
        lambda: sum(kernel.stats.cache_hits.values()) == before,
    )
    return kernel, compiled


def launcher(
    kernel: tuple[Any, Any], blocks: int, stream: Any, arrays: tuple
) -> Callable[[tuple], object]:
    """A function that launches a kernel on these arrays and a tuple of numbers.

    The numbers must have the type for which the kernel was compiled.
    """
    dispatcher, compiled = kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba-cuda warns of small grids; small models need them
        configured = dispatcher[blocks, THREADS, stream]
    if compiled is None:
        return lambda numbers: configured(*arrays, numbers)
    # Straight to the compiled form: the dispatcher would look at the type of every argument.
    shape = configured.griddim, configured.blockdim, configured.stream
    try:
        return _prepared(compiled, shape, arrays)
    except (AttributeError, ImportError, TypeError):  # another version of numba-cuda
        return lambda numbers: compiled.launch((*arrays, numbers), *shape)


def _prepared(compiled: Any, shape: tuple, arrays: tuple) -> Callable[[tuple], object]:
    """What `compiled.launch` does, with all done beforehand that is the same each time.

    For AdamW it takes 6 us rather than 30.
    """
    from cuda.core import LaunchConfig, launch

    grid, block, stream = shape
    config = LaunchConfig(grid=grid, block=block)
    function = compiled.library.get_cufunc().kernel
    fixed: list[Any] = []
    for kind, array in zip(compiled.argument_types, arrays):
        compiled._prepare_args(kind, array, stream, [], fixed)

    def run(numbers: tuple, kept: tuple = arrays) -> None:  # `fixed` holds but their addresses
        cuda_driver.need_context()
        launch(stream, config, function, *fixed, *numbers)

    return run
