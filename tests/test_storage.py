"""Conversions between storage and arithmetic, bit by bit."""

import numpy as np
import pytest
from cases import BFLOAT16
from devices import on_cpu_only

from genesis import kernels
from genesis.kernels import cpu, storage

pytestmark = on_cpu_only


def assign(param, grad, state, hyper):
    """A rule that only moves a gradient, converted, into the parameter."""
    return grad, state


# float16 is converted by the processor's instruction, and by integers as where it has none.
@pytest.fixture(
    params=[(np.dtype(np.float16), True), (np.dtype(np.float16), False), (BFLOAT16, False)],
    ids=["float16-processor", "float16-integers", "bfloat16"],
)
def half(request, monkeypatch):
    """A 16-bit type, in one of the ways to convert it."""
    kind, by_processor = request.param
    if not by_processor:
        monkeypatch.setattr(storage, "HAS_F16C", False)
    for made in (cpu.updating.compiled, storage.reader, storage.writer):
        made.cache_clear()
    yield kind
    monkeypatch.undo()
    for made in (cpu.updating.compiled, storage.reader, storage.writer):
        made.cache_clear()


def converted(values, dtype):
    target = np.zeros(values.shape, dtype)
    launch = kernels.prepare(assign, [[values], [target]], 0)
    launch.set_scalars(1.0, ())
    launch.run()
    return target


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_all_16_bit_patterns_widen_exactly(half, wide):
    halves = np.arange(65536, dtype=np.uint16).view(half)
    got, expected = converted(halves, np.dtype(wide)), halves.astype(wide)
    np.testing.assert_array_equal(got, expected)  # equal NaN positions too
    assert np.array_equal(np.signbit(got), np.signbit(expected))


def float32_patterns():
    """Every exponent and sign, with mantissas at and around every tie of both 16-bit types."""
    top = np.arange(0, 2**16, dtype=np.uint32)[:, None] << 16
    low = np.unique([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000])
    return (top | low.astype(np.uint32)).ravel().view(np.float32)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_float32_narrows_to_nearest_even(half):
    patterns = float32_patterns()
    got = converted(patterns, half).view(np.uint16)
    expected = patterns.astype(half).view(np.uint16)
    number = ~np.isnan(patterns)
    np.testing.assert_array_equal(got[number], expected[number])
    assert np.isnan(got[~number].view(half)).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_float32_narrows_to_nearest_even(half):
    for start in range(0, 2**32, 2**26):
        patterns = np.arange(start, start + 2**26, dtype=np.uint32).view(np.float32)
        got, expected = converted(patterns, half), patterns.astype(half)
        number = ~np.isnan(patterns)
        assert np.array_equal(got.view(np.uint16)[number], expected.view(np.uint16)[number])
        assert np.isnan(got[~number]).all()
