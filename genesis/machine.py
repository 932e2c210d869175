"""What there is on this machine that genesis makes use of, or would."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from . import cuda_driver, namesake
from ._version import __version__
from .kernels import cache, threads

REQUIRED = ("numba", "llvmlite", "numpy", "ml-dtypes", "safetensors", "xxhash")

OPTIONAL = {
    "numba-cuda": "GPUs: pip install 'genesis-optim[cu13]' or '[cu12]'",
    "torch": "genesis.torch, tensors as gradients",
    "jax": "arrays as gradients",
    "optree": "its nodes as trees of parameters",
    "autograd": "derivatives of functions of parameters",
    "cupy": "arrays on a GPU as parameters",
    "pandas": "frames as parameters",
    "xarray": "arrays with labels as parameters",
}
"""Packages that genesis can do without, and what it uses them for."""

_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")

FEATURES = (
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bf16",
    "amx-bf16",
    "neon",
    "sve",
)
"""What of a processor's features is told to people; `features` has them all."""


def facts() -> dict[str, Any]:
    """All of it, in types that JSON has."""
    return {
        "genesis": {
            "version": __version__,
            "folder": str(namesake.FOLDER),
            "owners": namesake.owners(),
            "others": [str(path) for path in namesake.places()],
        },
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "executable": sys.executable,
            "system": platform.platform(),
        },
        "packages": {name: _version(name) for name in REQUIRED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "processor": processor(),
        "cache": kept(),
        "cuda": cuda(),
    }


def _version(name: str) -> str | None:
    for each in _CUPY if name == "cupy" else (name,):
        try:
            return metadata.version(each)
        except metadata.PackageNotFoundError:
            continue
    return None


def processor() -> dict[str, Any]:
    """The processor, and how much of it steps may use."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return {
        "machine": platform.machine(),
        "name": binding.get_host_cpu_name(),
        "features": sorted(name for name, has in features.items() if has),
        "cores": os.cpu_count(),
        "cores_available": os.cpu_count() if available is None else len(available),
        "threads": threads.get_num_threads(),
    }


def kept() -> dict[str, Any]:
    """Where compiled code is kept, and how much of it there is."""
    sizes = [size for path in cache.files() if (size := _size(path)) is not None]
    return {
        "on": cache.keeps_code(),
        "folders": [str(folder) for folder in cache.folders()],
        "files": len(sizes),
        "bytes": sum(sizes),
    }


def _size(path: Any) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # another process has deleted it
        return None


def cuda() -> dict[str, Any]:
    """The driver, the toolkit and the devices, or why there is none."""
    found: dict[str, Any] = {
        "usable": False,
        "reason": None,
        "simulated": cuda_driver.SIMULATED,
        "driver": None,
        "toolkit": None,
        "devices": [],
    }
    try:
        module = cuda_driver.cuda()
    except Exception as error:  # of numba-cuda's many, whatever it is
        found["reason"] = " ".join(str(error).split())
        return found
    found["usable"] = True
    if cuda_driver.SIMULATED:
        found["devices"] = [{"name": "numba's simulator"}]
        return found
    found["driver"] = _asked(lambda: _dotted(module.cudadrv.driver.driver.get_version()))
    found["toolkit"] = _asked(lambda: _dotted(module.runtime.get_version()))
    found["devices"] = [_device(device) for device in module.gpus]
    return found


def _device(device: Any) -> dict[str, Any]:
    return {
        "name": _asked(lambda: _text(device.name)),
        "compute_capability": _asked(lambda: _dotted(device.compute_capability)),
    }


def _asked(question: Callable[[], str]) -> str | None:
    """An answer of the driver's; None if it has none, which is no reason to say nothing of the rest."""
    try:
        return question()
    except Exception:
        return None


def _dotted(version: Any) -> str:
    return ".".join(map(str, version))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


# ---- for people ----


def report(found: dict[str, Any]) -> str:
    """The facts as a table."""
    python, processor, kept, cuda = (found[key] for key in ("python", "processor", "cache", "cuda"))
    mine = found["genesis"]
    rows: list[tuple[str, str, str]] = [
        ("genesis", mine["version"], mine["folder"]),
        ("python", python["version"], f"{python['executable']}, {python['system']}"),
        *((name, version or "missing", "") for name, version in found["packages"].items()),
    ]
    foreign = [each for each in mine["owners"] if not each.startswith(f"{namesake.DISTRIBUTION} ")]
    rows += [
        *(("", "", f"the name genesis is also that of {each}") for each in foreign),
        *(("", "", f"another genesis is behind it, unused: {each}") for each in mine["others"]),
    ]
    rows.append(("", "", ""))
    rows += [(name, version or "-", OPTIONAL[name]) for name, version in found["optional"].items()]
    features = [name for name in FEATURES if name in processor["features"]]
    rows += [
        ("", "", ""),
        ("processor", processor["name"], " ".join([processor["machine"], *features])),
        ("threads", str(processor["threads"]), f"of {processor['cores_available']} cores"),
    ]
    where = ", ".join(kept["folders"]) or (
        "no lasting folder can be written: NUMBA_CACHE_DIR names one"
        if kept["on"]
        else "GENESIS_CACHE=0: nothing is kept"
    )
    rows.append(("cache", f"{kept['files']} files", f"{megabytes(kept['bytes'])}, {where}"))
    if not cuda["usable"]:
        rows.append(("cuda", "-", cuda["reason"]))
    else:
        made = f"driver {cuda['driver'] or 'unknown'}, toolkit {cuda['toolkit'] or 'unknown'}"
        rows.append(
            (
                "cuda",
                "simulated" if cuda["simulated"] else "usable",
                "" if cuda["simulated"] else made,
            )
        )
    for number, device in enumerate(cuda["devices"]):
        capability = device.get("compute_capability")
        more = "" if capability is None else f", compute capability {capability}"
        rows.append((f"cuda:{number}", "", f"{device['name']}{more}"))
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def megabytes(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 1e6:.1f} MB"
