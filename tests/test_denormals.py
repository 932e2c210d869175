"""Denormal numbers as zeros, on request, and alike for however many threads."""

import threading

import numpy as np
import pytest
from devices import on_cpu_only

import genesis
from genesis.kernels import floating

pytestmark = [
    on_cpu_only,
    pytest.mark.skipif(not floating.KNOWN, reason="the setting of x86-64"),
]
NUMBER = 1_000_000  # chunks of 7, enough for all threads to get some


@pytest.fixture
def flushing():
    """Sets it for one test."""
    yield genesis.set_flush_denormal
    genesis.set_flush_denormal(False)


def after_a_step(dtype, result):
    """How many elements are not zero after a step that leads to `result`, a denormal number."""
    x = np.full(NUMBER, 4 * result, dtype)
    genesis.optim.SGD([x], lr=1.0).step(grads=[np.full(NUMBER, 3 * result, dtype)])
    return np.count_nonzero(x.view(np.uint32 if dtype == np.float32 else np.uint64))


DENORMAL = pytest.mark.parametrize(
    ("dtype", "result"), [(np.float32, 1e-38), (np.float64, 2e-308)], ids=["float32", "float64"]
)


@DENORMAL
def test_numbers_too_small_become_zeros_for_any_number_of_threads(
    dtype, result, flushing, small_chunks, num_threads
):
    for threads in (1, 3):
        num_threads(threads)
        for _ in range(3):  # helpers are there from the second step on
            assert after_a_step(dtype, result) == NUMBER
        assert flushing(True) is True
        for _ in range(3):
            assert after_a_step(dtype, result) == 0
        assert flushing(False) is True


def test_operands_count_as_zeros(flushing):
    x = np.full(3, 1e-40, np.float32)
    flushing(True)
    genesis.optim.SGD([x], lr=1.0).step(grads=[np.full(3, -1e-40, np.float32)])
    flushing(False)
    assert not x.any()


def test_it_is_a_setting_of_one_thread_and_of_numpy_there(flushing):
    def product():
        return np.float32(2e-38) * np.float32(0.25)

    found, go = [], threading.Event()
    other = threading.Thread(target=lambda: (go.wait(), found.append(product())))
    other.start()
    flushing(True)
    flushing(True)
    assert product() == 0
    go.set()
    other.join()
    flushing(False)  # for it is in comparisons, too, that they count as zeros
    assert found[0] > 0
    assert product() > 0


def test_refuses_what_is_no_flag():
    for value in (1, None, "on"):
        with pytest.raises(TypeError, match="set_flush_denormal takes True or False, but got"):
            genesis.set_flush_denormal(value)


def test_elsewhere_it_says_that_it_does_nothing(monkeypatch):
    monkeypatch.setattr(floating, "KNOWN", False)
    assert genesis.set_flush_denormal(True) is False
    assert np.float32(2e-38) * np.float32(0.25) > 0
