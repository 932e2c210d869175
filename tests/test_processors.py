"""The same bits on every processor: code for three kinds, run on this one."""

import hashlib
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from cases import BFLOAT16, ONE_EACH, Case
from devices import on_cpu_only

import genesis

pytestmark = [
    on_cpu_only,
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"),
        reason="compares kinds of x86-64 processors",
    ),
]

FEATURES = {
    "x86-64": "+sse2",
    "haswell": "+sse4.2,+avx,+avx2,+fma,+f16c",
}
"""What Numba is told of processors other than this one, by their names."""

PACKED = [
    Case("AdamW", {"state_dtype": "8bit"}),
    Case("SGD", {"lr": 0.1, "momentum": 0.9, "state_dtype": "8bit"}),
]

CASES = {
    "x86-64": [*ONE_EACH, *PACKED],
    "haswell": [*PACKED]
    + [case for case in ONE_EACH if case.name in ("AdamW", "LAMB", "NovoGrad", "Prodigy")],
}
"""What is compared. Sums could differ by the width of vectors, and of these there are few kinds."""


def digest(arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def trajectory(case):
    """All that an optimizer makes of a few tensors, of several chunks, in a few steps."""
    rng = np.random.default_rng(3)
    shapes = [(40, 500), (77,), (3, 4, 2)]
    values = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    params = [genesis.Parameter(value) for value in values]
    opt = case.make(params)
    for _ in range(3):
        for param, value in zip(params, values):
            param.grad = (0.1 * rng.standard_normal(value.shape) + 0.3 * value).astype(np.float32)
        opt.step(max_norm=3.0)
    states = (opt.state[param] for param in params)
    arrays = [a for state in states for a in state.values() if isinstance(a, np.ndarray)]
    return digest([*values, *arrays])


def norms(dtype):
    rng = np.random.default_rng(4)
    gradients = [rng.standard_normal(size) for size in (40_000, 129, 128, 127, 1)]
    params = [genesis.Parameter(np.zeros(gradient.size, dtype)) for gradient in gradients]
    for param, gradient in zip(params, gradients):
        param.grad = gradient.astype(dtype)
    found = genesis.nn.utils.get_total_norm
    return [float(found([param.grad for param in params], order)).hex() for order in (1.0, 2.0)]


def everything(kind):
    """What must be equal, line by line."""
    for dtype in (np.float64, np.float32, np.float16, BFLOAT16):
        yield " ".join(("norms", np.dtype(dtype).name, *norms(dtype)))
    for case in CASES[kind]:
        yield f"{case.id} {trajectory(case)}"


@pytest.mark.parametrize("kind", FEATURES)
def test_steps_and_norms_are_bit_identical_on_every_processor(kind):
    there = subprocess.Popen(
        [sys.executable, __file__, kind],
        env={**os.environ, "NUMBA_CPU_NAME": kind, "NUMBA_CPU_FEATURES": FEATURES[kind]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    here = list(everything(kind))
    found, error = there.communicate()
    assert there.returncode == 0, error
    assert found.splitlines() == here


if __name__ == "__main__":
    print(*everything(sys.argv[1]), sep="\n")
