"""A digest of all that can reach the machine code of a function.

A name, a file or the identity of a function object says little: two closures of one factory share
their file and name, and what a function calls may lie in another module and change there. So this
reads what Numba reads when it compiles: bytecode, constants, defaults, closure cells, and globals,
with all of that again for each function called. Nothing here needs a function's source.
"""

from __future__ import annotations

import builtins
import enum
import hashlib
import sys
from functools import lru_cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

PACKAGE = __package__.partition(".")[0] + "."

# What these hold is settled by their versions, which `specialise` adds. Not all of Python's own: a
# user's `code.py` or `test.py` would pass for it.
_LIBRARIES = {"builtins", "math", "cmath", "operator", "_operator"} | {
    "numpy", "numba", "numba_cuda", "llvmlite"
}  # fmt: skip

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice)
_MISSING = object()


class UnknownContentError(Exception):
    """A function refers to something of which it cannot be told what machine code it leads to."""


def digest(*values: Any) -> str:
    """A digest of functions, and of whatever else may be compiled into a kernel.

    Equal digests mean equal machine code, in this process and in others with the same versions of
    the libraries and of this package.

    Raises:
        UnknownContentError: with the name of what a function refers to and that cannot be read.
    """
    found = _Reader()
    for value in values:
        found.read(value, "a rule")
    return hashlib.blake2b("\n".join(found.parts).encode(), digest_size=16).hexdigest()


class _Reader:
    """Turns values into text. What was met before is named by its number, so that cycles end."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._met: dict[Any, int] = {}
        self._held: list[Any] = []  # so that no `id` in `_met` is used again meanwhile

    def read(self, value: Any, whose: str) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.parts.append(f"{kind.__name__}:{value!r}")
        elif not self._meet(id(value), value):
            pass
        elif kind is FunctionType:
            self._function(value, whose)
        elif kind is CodeType:
            self.parts.append(f"#code {_text(value)}")
        elif isinstance(value, (tuple, list)):
            self._class_of_many(value, whose)
            for element in value:
                self.read(element, whose)
        elif kind in (set, frozenset):
            self.parts.append(f"#{kind.__name__} {sorted(digest(element) for element in value)}")
        elif kind is dict:
            self.parts.append(f"#dict {len(value)}")
            for key, element in value.items():
                self.read(key, whose)
                self.read(element, whose)
        elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            content = hashlib.blake2b(value.tobytes())
            layout = getattr(value, "strides", None), value.flags.writeable, value.flags.aligned
            self.parts.append(
                f"#{kind.__name__} {value.dtype.descr} {value.shape} {layout} {content.hexdigest()}"
            )
        elif isinstance(value, np.dtype):
            self.parts.append(f"#dtype {value.descr} {value.alignment}")
        elif isinstance(value, enum.Enum):
            self.parts.append(f"#member {value.name}")
            self.read(kind, whose)
        elif isinstance(value, enum.EnumMeta) and issubclass(value, enum.Enum):
            bases = [base.__name__ for base in value.__mro__]  # an IntEnum is a number, an Enum not
            self.parts.append(f"#enum {bases} {len(value.__members__)}")
            for name, member in value.__members__.items():
                self.read(name, whose)
                self.read(member.value, whose)
        elif kind is type and value.__bases__ == (tuple,) and hasattr(value, "_fields"):
            self.parts.append(f"#namedtuple {value.__name__} {value._fields}")
        elif not self._of_numba(value, whose) and not self._of_a_library(value):
            raise UnknownContentError(f"{whose} refers to {_described(value)}")

    def _meet(self, key: Any, value: Any) -> bool:
        """Whether this is new; if it is not, say which it was."""
        if key in self._met:
            self.parts.append(f"#met {self._met[key]}")
            return False
        self._met[key] = len(self._met)
        self._held.append(value)
        return True

    def _class_of_many(self, value: Any, whose: str) -> None:
        kind = type(value)
        fields = getattr(kind, "_fields", None)
        if kind not in (tuple, list) and fields is None:
            raise UnknownContentError(f"{whose} refers to {_described(value)}")
        self.parts.append(f"#{kind.__name__} {fields} {len(value)}")

    def _function(self, function: FunctionType, whose: str) -> None:
        home = function.__globals__.get("__name__", "")
        at_home = getattr(sys.modules.get(home), "__dict__", None) is function.__globals__
        ours = at_home and home.startswith(PACKAGE)
        if not ours:
            if at_home and is_library(home) and _leads_to(home, function.__qualname__, function):
                self.parts.append(f"#library {home}.{function.__qualname__}")
                return
            if is_overloaded(function):
                what = f"{function.__qualname__}, in whose place Numba compiles something else"
                raise UnknownContentError(f"{whose} refers to {what}")
        whose = function.__qualname__
        self.parts.append(f"#function {_text(function.__code__)}")
        if function.__defaults__ or function.__kwdefaults__:
            self.read(function.__defaults__, whose)
            self.read(function.__kwdefaults__, whose)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            self.read(_content(cell), f"{name} of {whose}")
        if ours:  # it refers to nothing but this package and libraries
            return
        names = names_in(function.__code__)
        known = vars(builtins)
        for name in names:
            value = function.__globals__.get(name, known.get(name, _MISSING))
            if value is not _MISSING:
                self._named(name, value, names, whose)

    def _named(self, name: str, value: Any, names: tuple[str, ...], whose: str) -> None:
        """A global; of a module, all that the function may take from it."""
        self.parts.append(f"#name {name}")
        if not isinstance(value, ModuleType):
            self.read(value, f"{name} of {whose}")
        elif self._meet((id(value), names), value):
            self.parts.append(f"#module {value.__name__}")
            content = vars(value)
            for attribute in names:
                if attribute in content:
                    self._named(attribute, content[attribute], names, whose)
                elif "__getattr__" in content and not is_library(value.__name__):
                    made = getattr(value, attribute, _MISSING)
                    if made is not _MISSING:
                        self._named(attribute, made, names, whose)

    def _of_numba(self, value: Any, whose: str) -> bool:
        """A jitted function, an intrinsic or a type of Numba's."""
        kind = type(value)
        if is_dispatcher(value):
            self.parts.append(f"#jitted {kind.__name__}")
            self.read(value.py_func, whose)
            options = getattr(value, "targetoptions", {})
            self.read({name: options[name] for name in sorted(options)}, f"an option of {whose}")
            if not getattr(value, "_can_compile", True):
                self.parts.append(f"#signatures {value.nopython_signatures}")
            return True
        if is_library(kind.__module__) and kind.__name__ == "_Intrinsic":
            self.parts.append("#intrinsic")
            self.read(value._defn, whose)
            return True
        types = sys.modules.get("numba.core.types")
        if types is None or not isinstance(value, (types.Array, types.Number, types.Boolean)):
            return False
        self.parts.append(f"#type {value!r}")
        if isinstance(value, types.Array):
            self.read(value.dtype, whose)
        return True

    def _of_a_library(self, value: Any) -> bool:
        """Something that a library defines, and that can be found there by its name."""
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
        module = "numpy" if isinstance(value, np.ufunc) else getattr(value, "__module__", None)
        if not isinstance(name, str) or not isinstance(module, str) or not is_library(module):
            return False
        if not _leads_to(module, name, value):
            return False
        self.parts.append(f"#library {module}.{name}")
        return True


def is_dispatcher(value: Any) -> bool:
    """Whether this is a function that Numba compiles when it is called."""
    return (
        is_library(type(value).__module__)
        and isinstance(getattr(value, "py_func", None), FunctionType)
        and "ispatcher" in type(value).__name__
    )


def is_overloaded(function: Any) -> bool:
    """Whether Numba puts something else in the place of a plain function."""
    templates = sys.modules.get("numba.core.typing.templates")
    if templates is None:
        return False
    registered = templates.builtin_registry.globals  # Numba only ever adds to this list
    return id(function) in _identities(id(registered), len(registered))


@lru_cache(maxsize=1)
def _identities(registry: int, length: int) -> frozenset[int]:
    registered = sys.modules["numba.core.typing.templates"].builtin_registry.globals
    return frozenset(id(known) for known, _ in registered)


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """All names by which a function, and those within it, refer to globals and attributes."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names.update(dict.fromkeys(names_in(constant)))
    return tuple(names)


@lru_cache(maxsize=4096)
def _text(code: CodeType) -> str:
    """What the bytecode means; not where it stands, which errors mention and results do not."""
    signature = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    jumps = getattr(code, "co_exceptiontable", b"")
    constants = [
        _text(constant) if isinstance(constant, CodeType) else _constant(constant)
        for constant in code.co_consts
    ]
    content = code.co_name, signature, code.co_code, names, jumps, constants
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


def _constant(value: Any) -> str:
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(element) for element in value]}"
    return f"{type(value).__name__} {value!r}"


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def is_library(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _leads_to(module: str, name: str, value: Any) -> bool:
    found: Any = sys.modules.get(module)
    for attribute in name.split("."):
        found = getattr(found, attribute, None)
    return found is value


def _described(value: Any) -> str:
    return f"an object of type {type(value).__module__}.{type(value).__qualname__}"
