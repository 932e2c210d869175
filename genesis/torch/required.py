"""Which torch there has to be."""

from __future__ import annotations

OLDEST = 2, 13
"""The oldest torch with which this package is tested."""

_ADVICE = f"pip install 'torch>={OLDEST[0]}.{OLDEST[1]}'"


def check() -> None:
    """Raise ImportError, with the line that mends it, unless there is a torch that will do."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(
            f"genesis.torch needs PyTorch, which is not installed: {_ADVICE}"
        ) from error
    found = torch.__version__
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        raise ImportError(
            f"genesis.torch needs PyTorch {OLDEST[0]}.{OLDEST[1]} or newer, but this is {found}: "
            f"{_ADVICE}"
        )
