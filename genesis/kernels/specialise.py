"""Make one kernel out of a template, and keep its machine code on disk.

A template is a plain function in which some global names stand for what differs from kernel to
kernel: the rule, the reads and writes of certain storage types. A specialised copy has these names
bound. It can be cached, where a closure could not.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from importlib import metadata, resources
from types import CellType, FunctionType, ModuleType
from typing import Any

import numba
from numba.core import config, event
from numba.core.caching import FunctionCache

from .._version import __version__
from .cache import keep_code, keeps_code
from .digest import (
    PACKAGE,
    UnknownContentError,
    digest,
    is_dispatcher,
    is_library,
    is_overloaded,
    names_in,
)
from .waiting import timed

logger = logging.getLogger("genesis")

# Numba's settings that change machine code; a processor's name and features are in its own key.
_SETTINGS = (
    "OPT LOOP_VECTORIZE SLP_VECTORIZE ENABLE_AVX BOUNDSCHECK DEBUGINFO_DEFAULT FULL_TRACEBACKS "
    "DISABLE_PERFORMANCE_WARNINGS FASTMATH LLVM_REFPRUNE_PASS LLVM_REFPRUNE_FLAGS USE_RVSDG_FRONTEND "
    "INTEL_JIT_EVENTS DISABLE_INTEL_SVML ENABLE_PROFILING CUDA_USE_NVIDIA_BINDING CUDA_DEBUGINFO_DEFAULT"
).split()


def _contents(folder: Any) -> Iterator[bytes]:
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".pyc")):
            yield file.read_bytes()
        elif file.is_dir() and file.name != "__pycache__":
            yield from _contents(file)


def _sources() -> str | None:
    """A digest of this package's kernels as they were when they were imported; None without files."""
    content = b"".join(_contents(resources.files(__package__)))
    return hashlib.blake2b(content, digest_size=8).hexdigest() if content else None


_SOURCES = _sources()


@lru_cache(maxsize=None)
def _environment() -> str:
    """Versions and settings that reach machine code."""
    versions = [__version__, sys.version, sys.implementation.name]
    for package in ("numba", "llvmlite", "numpy", "numba-cuda"):
        try:
            versions.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            versions.append(getattr(sys.modules.get(package), "__version__", ""))
    return repr((versions, [repr(getattr(config, name, None)) for name in _SETTINGS]))


def specialised(template: Any, name: str, names: dict[str, Any]) -> Any:
    """A copy of `template` whose globals include `names`, ready for compilation with a cache.

    Numba finds a function's machine code again by its file, its qualified name and its code. What
    the globals hold is not part of that, so the name carries a digest of all that can be compiled
    in. The attribute `sources` is that part of the name which tells this package's kernels from
    others; None if the code is not to be kept on disk.
    """
    name = _identifier(name)
    function = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    content = _digest_or_unknown(function)
    function.sources = None if content == "unknown" else _SOURCES  # type: ignore[attr-defined]
    function.__qualname__ = f"{name}_{_SOURCES}_{content}"
    return function


def _digest_or_unknown(function: Any) -> str:
    try:
        return digest(function, _environment())
    except UnknownContentError:
        return "unknown"


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)[:100]


def anew(function: FunctionType, compiled: Callable) -> FunctionType:
    """A copy of a rule in which whatever it calls is still to be compiled.

    A jitted function keeps its machine code whatever becomes of what it refers to; a kernel made
    now is to hold what these functions are now, as its digest says.

    Args:
        function: the rule. It may call jitted functions, and plain ones.
        compiled: `compiled(function, like)` makes a function callable from a kernel; `like` is the
            jitted function of which it is a copy, or None.
    """
    return _Renewal(compiled).copy(function)


class _Renewal:
    """Copies functions, each once, with the globals and cells to which they refer."""

    def __init__(self, compiled: Callable):
        self._compiled = compiled
        self._made: dict[Any, Any] = {}
        self._held: list[Any] = []
        self._with_signatures: list[tuple[Any, Any]] = []

    def copy(self, function: FunctionType) -> FunctionType:
        made = self._filled(self._empty(function), function)
        for new, old in self._with_signatures:
            for signature in old.nopython_signatures:
                new.compile(signature)
            new.disable_compile()
        return made

    def _empty(self, function: FunctionType) -> FunctionType:
        cells = tuple(CellType() for _ in function.__closure__ or ())
        made = FunctionType(
            function.__code__, dict(function.__globals__), function.__name__,
            function.__defaults__, cells or None,
        )  # fmt: skip
        made.__kwdefaults__ = function.__kwdefaults__
        # Numba looks the module up when it loads machine code, and names symbols in that by module
        # and qualified name: of equal ones in two kernels LLVM takes the first for both.
        made.__module__ = made.__globals__["__name__"] = __name__
        made.__qualname__ = f"{_identifier(function.__name__)}_{_digest_or_unknown(function)}"
        return made

    def _filled(self, made: FunctionType, function: FunctionType) -> FunctionType:
        names = names_in(function.__code__)
        for name in names:
            if name in made.__globals__:
                made.__globals__[name] = self._value(made.__globals__[name], names)
        for new, old in zip(made.__closure__ or (), function.__closure__ or ()):
            with suppress(ValueError):  # the cell is empty
                new.cell_contents = self._value(old.cell_contents, names)
        return made

    def _value(self, value: Any, names: tuple[str, ...]) -> Any:
        if isinstance(value, ModuleType):
            return value if is_library(value.__name__) else self._module(value, names)
        jitted: Any = value if is_dispatcher(value) else None
        function = value if jitted is None else value.py_func
        if type(function) is not FunctionType or not _is_users(function):
            return value
        if id(value) not in self._made:
            empty = self._empty(function)
            self._made[id(value)] = self._compiled(empty, jitted)  # first, for it may call itself
            self._held.append(value)
            self._filled(empty, function)
            new = self._made[id(value)]
            if type(new) is type(jitted) and not jitted._can_compile:
                self._with_signatures.append((new, jitted))
        return self._made[id(value)]

    def _module(self, module: ModuleType, names: tuple[str, ...]) -> ModuleType:
        """The module, or one like it if something in it that `names` may mean is to be another."""
        key = id(module), names
        if key not in self._made:
            self._made[key] = other = ModuleType(module.__name__)  # first, for it may hold itself
            content = vars(module)
            vars(other).update(content)
            values = {name: self._value(content[name], names) for name in names if name in content}
            vars(other).update(values)
            if all(value is content[name] for name, value in values.items()):
                self._made[key] = module
        return self._made[key]


def _is_users(function: FunctionType) -> bool:
    """Whether a function comes from outside, and Numba would compile it as it stands."""
    home = function.__globals__.get("__name__", "")
    return not (is_library(home) or home.startswith(PACKAGE) or is_overloaded(function))


@lru_cache(maxsize=None)
def announce() -> None:
    """Say, once in a process, that machine code is being made rather than loaded."""
    kept = (
        "the result is kept on disk, so that later runs need not wait (GENESIS_CACHE=0 turns that "
    )
    logger.info(
        "compiling update kernels for this machine; %s",
        f"{kept}off)" if keeps_code() else "GENESIS_CACHE=0: nothing is kept on disk",
    )


class _Announcer(event.Listener):
    has_compiled = False

    def on_start(self, _) -> None:
        self.has_compiled = True
        announce()

    def on_end(self, _) -> None:
        pass


def compile_function(
    function: Callable, signature: Any, nogil: bool = True, what: str | None = None
) -> Callable:
    """A function's machine code for this processor and one signature, from the disk if it is there.

    Args:
        function: what `specialised` has made.
        signature: what Numba's types of its arguments and of its result are.
        nogil: whether other threads of Python run while it does. Default: True.
        what: what it is, for people. Default: None, the function's name says it.
    """
    options: Any = {"nogil": nogil, "error_model": "numpy", "no_cfunc_wrapper": True}
    dispatcher = numba.njit(**options)(function)
    keep_code(dispatcher, FunctionCache)
    announcer = _Announcer()
    with event.install_listener("numba:compile", announcer):
        # The entry point for this one signature: calling it spares the look at argument types.
        return timed(
            what or function.__name__,
            dispatcher,
            partial(dispatcher.compile, signature),
            lambda: announcer.has_compiled,
        )


def title(rule: Callable, storages: tuple[str, ...]) -> str:
    """What people call the kernel for a rule and the storage types of a table's columns."""
    name = re.sub(r"_[0-9a-f]{16}$", "", rule.__name__)  # without a written formula's digest
    return f"{name} for {', '.join(dict.fromkeys(storages))}"


def described(rule: Callable, storages: tuple[str, ...]) -> str:
    """The name of the kernel for a rule and the storage types of a table's columns."""
    return "_".join((rule.__name__, *storages))
