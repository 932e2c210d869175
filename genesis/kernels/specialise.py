"""Make one kernel out of a template, and keep its machine code on disk.

A template is a plain function in which some global names stand for what differs from kernel to
kernel: the rule, the reads and writes of certain storage types. A specialised copy has these names
bound. It can be cached, where a closure could not.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from .._version import __version__

logger = logging.getLogger("genesis")

_HERE = Path(__file__).parent
_SOURCES = __version__.encode() + b"".join(path.read_bytes() for path in sorted(_HERE.glob("*.py")))
_said = False


def specialised(template: Any, name: str, names: dict[str, Any], rule: Any = None) -> Any:
    """A copy of `template` whose globals include `names`, ready for compilation with a cache.

    Numba finds a function's machine code again by its file, its qualified name and its code. What
    the globals hold is not part of that, so the name carries a digest of all that can be compiled
    in: this package's kernels and, if it comes from elsewhere, the file of the rule.
    """
    function = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    source = b""
    if rule is not None and not rule.__module__.startswith(__package__):
        source = inspect.getsource(inspect.getmodule(rule) or rule).encode()
    digest = hashlib.blake2b(_SOURCES + source, digest_size=8).hexdigest()
    function.__qualname__ = f"{name}_{digest}"
    return function


def keeps_code() -> bool:
    """Whether compiled code is to be kept on disk."""
    return os.environ.get("GENESIS_CACHE", "1") != "0"


def announce() -> None:
    """Say, once in a process, that machine code is being made rather than loaded."""
    global _said
    if not _said:
        _said = True
        kept = (
            "the result is kept on disk, so that later runs need not wait (GENESIS_CACHE=0 turns "
        )
        logger.info(
            "compiling update kernels for this machine; %s",
            f"{kept}that off)" if keeps_code() else "GENESIS_CACHE=0: nothing is kept on disk",
        )


def described(rule: Callable, storages: tuple[str, ...]) -> str:
    """The name of the kernel for a rule and the storage types of a table's columns."""
    return "_".join((rule.__name__, *storages))
