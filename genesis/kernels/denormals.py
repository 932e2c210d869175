"""Numbers too small to have all their digits, with which some processors compute very slowly."""

from __future__ import annotations

from .. import checks
from .compiling import module_named


def set_flush_denormal(mode: bool) -> bool:
    """Let the calling thread take denormal numbers for zeros, or compute with them again; as in torch.

    Denormal numbers are nearer to 0 than 1.2e-38 in float32, 2.2e-308 in float64. A parameter that gets
    gradients of zero for a thousand steps has averages of that size, and processors compute with them
    up to a hundred times more slowly than with others.

    It is a setting of the processor for this thread and all that it computes, in NumPy as well. Threads
    that help with a step compute as the one does that makes the step, whoever has set it, so that
    results do not depend on their number. Off at start; a thread begins with what the one had set that
    started it.

    Args:
        mode: True, denormal operands count as zeros, and denormal results become zeros; False, they
            do not.

    Returns:
        Whether this processor has such a setting. If not, as on others than x86-64, nothing is done.

    Raises:
        TypeError: not True or False.

    Example:
        >>> import numpy as np, genesis
        >>> small = np.array([1e-40], np.float32)
        >>> if genesis.set_flush_denormal(True):
        ...     assert not (small * np.float32(0.5)).any()
        ...     _ = genesis.set_flush_denormal(False)
    """
    if not checks.is_flag(mode):
        raise TypeError(f"set_flush_denormal takes True or False, but got {mode!r}")
    floating = module_named("floating")
    if floating.KNOWN:
        floating.change()(floating.FLUSHES, floating.FLUSHES if mode else 0)
    return bool(floating.KNOWN)
