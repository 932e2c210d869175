"""Where an array of another library lies, read from what it exports by DLPack.

`numpy.from_dlpack` would not do: before NumPy 2.1 all that it gives is read-only, and it knows no
bfloat16. Reading the description takes nothing over: the capsule stays the owner, and whoever keeps
the capsule keeps the memory.

https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

CPU = 1
"""The number that DLPack has for memory of the host."""

_READ_ONLY, _COPIED = 0x1, 0x2
_ORDER = "<" if sys.byteorder == "little" else ">"
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_BFLOAT = 4


class Exported(NamedTuple):
    """What a capsule says."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """In bytes; None: C order."""
    typestr: str
    """As NumPy writes types, "V2" for bfloat16."""
    read_only: bool
    """True also where a capsule of before version 1.0 cannot say."""
    versioned: bool
    copied: bool
    capsule: Any


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Prototypes of our own: those of `ctypes.pythonapi` belong to everybody.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def exported(array: Any) -> Exported:
    """What `array.__dlpack__()` says of an array on the host.

    Raises:
        TypeError: it gives no capsule that can be read, or of a type that NumPy has no name for.
    """
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
    except TypeError:  # a library from before versions
        capsule = array.__dlpack__()
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _ManagedVersioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise TypeError(f"DLPack version {managed.major} was given, where 1 was asked for")
        tensor, flags, versioned = managed.tensor, managed.flags, True
    elif _is_valid(capsule, b"dltensor"):
        tensor = _Managed.from_address(_pointer(capsule, b"dltensor")).tensor
        flags, versioned = _READ_ONLY, False
    else:
        raise TypeError(f"__dlpack__() gave no DLPack capsule, but {type(capsule).__name__}")
    kind = _KINDS.get(tensor.code)
    if tensor.code == _BFLOAT and tensor.bits == 16:
        kind = "V"
    if kind is None or tensor.bits % 8 or tensor.lanes != 1:
        raise TypeError(
            f"DLPack type {tensor.code} of {tensor.bits} bits, {tensor.lanes} lanes, is not known"
        )
    size = tensor.bits // 8
    axes = range(tensor.ndim)
    return Exported(
        (tensor.data or 0) + tensor.byte_offset,
        tuple(tensor.shape[axis] for axis in axes),
        tuple(size * tensor.strides[axis] for axis in axes) if tensor.strides else None,
        f"{_ORDER}{kind}{size}",
        bool(flags & _READ_ONLY),
        versioned,
        bool(flags & _COPIED),
        capsule,
    )
