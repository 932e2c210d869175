"""The modules that compile for a kind of device: what each knows of the others."""

import subprocess
import sys

import pytest


def test_cuda_needs_nothing_of_the_cpus():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: genesis-optim[cu13]")
    code = (
        "import sys\n"
        "from genesis.kernels import compiling, headers, overlaps, table\n"
        "compiling.target_named('cuda:0')\n"
        "assert 'genesis.kernels.cuda' in sys.modules\n"
        "assert 'genesis.kernels.cpu' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
