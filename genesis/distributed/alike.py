"""What ranks must have alike of an optimizer: short, to be compared, and in words, if it differs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..optim import members
from ..optim.optimizer import Optimizer
from ..parameter import Parameter


def labels(optimizer: Optimizer) -> list[str]:
    """What messages call each parameter."""
    return members.labels(optimizer.param_groups)


def names(optimizer: Optimizer) -> list[str | None]:
    """What each parameter is called by its group, or by itself."""
    groups = optimizer.param_groups
    return [name for group in groups for name in members.names(group, group["params"])]


def settings(optimizer: Optimizer) -> list[dict[str, str]]:
    """What each group has besides parameters."""
    return [
        {str(key): _said(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def _said(value: Any) -> str:
    """A setting as it is compared: a function by its name, since its address differs."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)


def shapes(optimizer: Optimizer) -> list[str]:
    """What each parameter is like, as far as it decides how it is divided."""
    return [
        f"of shape {p.shape} and {p._view.dtype}"
        + ("" if p._view.flags.c_contiguous else ", not C-contiguous")
        for p in optimizer._parameters()
    ]


def checksum(parameter: Parameter) -> str:
    """Equal for parameters of the same bits, and, but by chance, for no others."""
    data = np.ascontiguousarray(parameter._view).reshape(-1).view(np.uint8)
    return f"of checksum {zlib.crc32(data.data):08x}"


def described(optimizer: Optimizer) -> tuple:
    """All that has to be alike when optimizers begin to work together."""
    return type(optimizer).__name__, settings(optimizer), shapes(optimizer)


def facts(optimizer: Optimizer) -> dict[str, str]:
    """What `described` says, by what it is about."""
    found: Mapping[str, str] = {
        "the optimizer": type(optimizer).__name__,
        "the number of parameters": str(len(optimizer._parameters())),
        **{
            f"{key!r} of group {i}": value
            for i, group in enumerate(settings(optimizer))
            for key, value in group.items()
        },
        **dict(zip(labels(optimizer), shapes(optimizer))),
    }
    return dict(found)
