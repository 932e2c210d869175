"""The kernels of published optimizers, written with `rule` and `chain`, as PTX: see `test_ptx`."""

import math

import pytest
from published import PUBLISHED
from test_ptx import DTYPES, MIXED, assert_good, capability, compiled, double_precision

import genesis
from genesis import transforms as T

__all__ = ["capability"]  # a fixture


def kernel_of(name):
    """A rule, the number of its state buffers and of its scalars."""
    made, _, settings = PUBLISHED[name]
    written = made._recipe.written_for({"amsgrad": False, **settings})
    return written.rule, len(written.states), written.count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_kernels_of_one_data_type(name, dtype, capability):
    rule, buffers, scalars = kernel_of(name)
    storages = (dtype,) * (2 + buffers)
    assert_good(compiled(rule, storages, scalars, capability), storages)


@pytest.mark.parametrize("types", MIXED, ids="-".join)
def test_kernels_of_mixed_data_types(types, capability):
    rule, buffers, scalars = kernel_of("AdamW amsgrad")
    storages = (*types[:2], *types[2:] * buffers)
    assert_good(compiled(rule, storages, scalars, capability), storages)


@genesis.rule
def Functions(param, grad, *, lr=0.1):
    size = math.exp(-abs(grad)) + math.tanh(grad) + math.log1p(grad * grad) + math.erf(grad)
    size = math.copysign(size, grad) if math.isfinite(size) else 1
    return min(param, 2) - lr * size * (1 if grad > 0 else 0.5) + grad**3


def test_functions_of_math_are_in_single_precision(capability):
    written = Functions._recipe.written[()]
    ptx = compiled(written.rule, ("float32",) * 2, written.count, capability)
    assert not double_precision(ptx)


def test_all_ready_transforms_together(capability):
    made = genesis.chain(
        T.clip_value, T.momentum, T.nesterov.prefixed("n_"), T.scale_by_rms, T.cautious, T.sign,
        T.add_decayed_weights, T.scale_by_lr, name="All",
    )  # fmt: skip
    written = made._recipe.written[()]
    storages = ("float32",) * (2 + len(written.states))
    assert_good(compiled(written.rule, storages, written.count, capability), storages)
