"""Machine code on disk: verified when it is loaded, pruned when it has not been used for long.

Numba keeps an index and the code in two files and believes what it finds there: after a power cut it
raises from within pickle, and of a damaged instruction it would know nothing. Here each kernel is one
file that begins with a checksum; what does not agree with it is compiled anew. The folder is the one
that Numba chooses, so that `NUMBA_CACHE_DIR` and `NUMBA_CACHE_LOCATOR_CLASSES` mean what they always do.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import logging
import os
import pickle
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from types import FunctionType
from typing import Any

logger = logging.getLogger("genesis")

PREFIX = "genesis."
SUFFIX = ".nbc"

_DAY = 24 * 3600
KEPT_UNUSED = 60 * _DAY
"""Seconds after which a file that nobody has loaded is deleted."""
KEPT_IF_FORMER = 2 * _DAY
"""The same for code made from other sources of this package than those that run now."""


class _KernelFile:
    """One kernel's file: a checksum of the rest, then the code as Numba pickles it.

    Takes the place of Numba's `IndexDataCacheFile`.
    """

    def __init__(self, folder: str, name: str, sources: str, dumps: Any):
        self._folder, self._name, self._sources, self._dumps = Path(folder), name, sources, dumps
        self.saved = False  # by this process

    def _path(self, key: Any) -> Path:
        # The signature and the processor; Numba's types and tuples have a readable, stable repr.
        which = hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()
        return self._folder / f"{self._name}.{which}{SUFFIX}"

    def load(self, key: Any) -> Any:
        path = self._path(key)
        try:
            content = path.read_bytes()
            if time.time() - path.stat().st_mtime > _DAY / 4:
                os.utime(path)  # it is in use
        except OSError:
            return None
        checksum, payload = content[:_CHECKSUM], content[_CHECKSUM:]
        if checksum != _checksum(payload):
            logger.warning("%s is damaged: its code is compiled anew", path)
            return None
        try:
            return pickle.loads(payload)
        except Exception as error:
            logger.warning("%s cannot be loaded (%r): its code is compiled anew", path, error)
            return None

    def save(self, key: Any, data: Any) -> None:
        path = self._path(key)
        payload = self._dumps(data)
        beside = path.with_name(f"{path.name}.tmp.{uuid.uuid4().hex[:16]}")
        try:
            beside.write_bytes(_checksum(payload) + payload)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        self.saved = True
        _prune_once(self._folder, self._sources)

    def flush(self) -> None:
        """Nothing: a key's content never changes."""


_CHECKSUM = 16


def _checksum(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_CHECKSUM).digest()


@functools.lru_cache(maxsize=None)
def _verified(kind: Any) -> Any:
    """Numba's cache for a target, with files that are verified and a folder that is always found."""

    class Implementation(kind._impl_class):  # type: ignore[name-defined, misc]
        _locator_classes = (*kind._impl_class._locator_classes, _TemporaryLocator)

        def get_filename_base(self, fullname: str, abiflags: str) -> str:
            return PREFIX + super().get_filename_base(fullname, abiflags)

        def check_cachable(self, data: Any) -> bool:
            return not _is_incomplete(data) and super().check_cachable(data)

    class VerifiedCache(kind):  # type: ignore[misc]
        _impl_class = Implementation

        def __init__(self, function: Any):
            super().__init__(function)
            dumps = self._cache_file._dump  # type: ignore[has-type]
            name = self._impl.filename_base
            self._cache_file = _KernelFile(self._cache_path, name, function.sources, dumps)

        def save_overload(self, signature: Any, data: Any) -> None:
            try:
                super().save_overload(signature, data)
            except OSError as error:
                _say_unsaved(str(error))

    return VerifiedCache


def _is_incomplete(data: Any) -> bool:
    """Whether machine code calls what Numba looks up only where it has just compiled.

    Two functions that call each other do; from disk, such a call would jump to nowhere.
    """
    module = getattr(getattr(data, "library", None), "_final_module", None)
    variables = getattr(module, "global_variables", ())
    return any(variable.name.startswith(".numba.unresolved$") for variable in variables)


def keep_code(dispatcher: Any, kind: type) -> None:
    """Let a dispatcher load its machine code from disk, and save it there.

    Args:
        dispatcher: what Numba has made of a function of `specialise.specialised`.
        kind: the target's class of caches, `numba.core.caching.FunctionCache` or CUDA's own.
    """
    if not keeps_code() or dispatcher.py_func.sources is None:
        return
    try:
        dispatcher._cache = _verified(kind)(dispatcher.py_func)
    except (RuntimeError, OSError) as error:  # locators named by NUMBA_CACHE_LOCATOR_CLASSES
        _say_unsaved(str(error))


def kept_in(dispatcher: Any) -> str | None:
    """The folder in which code that a dispatcher has just made is kept for later runs, if it is."""
    cache = dispatcher._cache
    if not getattr(getattr(cache, "_cache_file", None), "saved", False):
        return None
    folder = cache._cache_path
    return None if isinstance(cache._impl.locator, _TemporaryLocator) else folder


def keeps_code() -> bool:
    """Whether compiled code is to be kept on disk."""
    return os.environ.get("GENESIS_CACHE", "1") != "0"


@functools.lru_cache(maxsize=None)
def _say_unsaved(reason: str) -> None:
    logger.warning("compiled code is not kept on disk: %s", reason)


class _TemporaryLocator:
    """A last resort, in the style of Numba's locators of a cache's folder."""

    def __init__(self, function: Any, file: str):
        self._py_file, self._line = file, function.__code__.co_firstlineno
        self._folder = temporary_folder()

    def ensure_cache_path(self) -> None:
        """Nothing: a forked child whose parent has gone, and the folder with it, writes nowhere."""

    def get_cache_path(self) -> str:
        return self._folder

    def get_source_stamp(self) -> str:
        return ""

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Any, file: str) -> _TemporaryLocator:
        return cls(function, file)


@functools.lru_cache(maxsize=None)
def temporary_folder() -> str:
    """A folder for this process and those it forks, which goes when it ends."""
    folder = tempfile.mkdtemp(prefix="genesis-")
    logger.warning(
        "neither the folder of the package nor one in the home folder can be written: compiled code "
        "is kept in %s until this process ends (NUMBA_CACHE_DIR names a lasting place)",
        folder,
    )
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not in a forked child
        shutil.rmtree(folder, ignore_errors=True)


def prune(folder: Path, sources: str) -> None:
    """Delete kernels that have not been loaded for long.

    Whoever was about to load one finds no file and compiles; one that was opened is read to its end.

    Args:
        folder: where kernels are kept.
        sources: what the names of those contain that were made from this package as it is.
    """
    now = time.time()
    for path in folder.glob(f"{PREFIX}*{SUFFIX}*"):
        current = sources in path.name and path.name.endswith(SUFFIX)
        try:
            if now - path.stat().st_mtime > (KEPT_UNUSED if current else KEPT_IF_FORMER):
                path.unlink()
        except OSError:
            pass  # another process was first, or it may not be deleted


_prune_once = functools.lru_cache(maxsize=None)(prune)


# ---- for people ----


def folders() -> list[Path]:
    """Where code is kept for later runs; none if no lasting place can be written, or none is wanted."""
    if not keeps_code():
        return []
    from numba.core.caching import FunctionCache

    here = Path(__file__).parent
    found = []
    for source in (
        here / "headers.py",
        here / "cpu" / "working.py",
        here / "cuda" / "templates.py",
    ):
        # Numba asks where the function was written; the code of this one is of no account.
        code = _checksum.__code__.replace(co_filename=str(source))
        try:
            kept = FunctionCache._impl_class(FunctionType(code, {}, "kernel"))
        except (RuntimeError, OSError):  # no locator finds a place
            continue
        found.append(Path(kept.locator.get_cache_path()))
    return list(dict.fromkeys(found))


def files() -> list[Path]:
    """The files of code that is kept."""
    return [path for folder in folders() for path in folder.glob(f"{PREFIX}*{SUFFIX}*")]
