"""`Parameter`: sharing, gradients, use as a NumPy operand, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest
from cases import BFLOAT16, DTYPES

import genesis


def parameter(shape=(2, 3), dtype=np.float32, **others):
    return genesis.Parameter(np.ones(shape, dtype), **others)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shares_the_array(dtype):
    array = np.ones((2, 3), dtype)
    p = genesis.Parameter(array)
    assert p.data is array
    assert p.numpy() is array
    assert np.asarray(p) is array
    assert (p.shape, p.dtype, p.ndim, p.size, p.device) == ((2, 3), dtype, 2, 6, "cpu")
    assert p.grad is None
    assert p.requires_grad
    assert p.name is None


def test_is_an_operand_of_numpy():
    p, x = parameter(), np.arange(2, dtype=np.float32)
    array = p.data
    for got, expected in [
        (x @ p, x @ array),
        (p @ np.ones(3), array @ np.ones(3)),
        (p * 2, array * 2),
        (2 - p, 2 - array),
        (np.sum(p), 6),
        (np.mean(p, axis=0), np.ones(3)),
        (np.exp(p), np.exp(array)),
        (np.concatenate([p, p]), np.ones((4, 3))),
        (np.add.reduce(p, axis=1), [3, 3]),
        (-p, -array),
        (p > 0, array > 0),
        (p == p, np.full((2, 3), True)),
        (np.array(p, dtype=np.float64), array),
        (p.T, array.T),
        (p[1], array[1]),
        (p[:, ::2], array[:, ::2]),
    ]:
        assert not isinstance(got, genesis.Parameter)
        np.testing.assert_array_equal(got, expected)
    assert len(p) == 2


def test_in_place_arithmetic_changes_the_array():
    p = parameter()
    array, before = p.data, p
    p -= 0.5
    p.data *= 2
    assert p is before
    assert p.data is array
    np.testing.assert_array_equal(array, np.ones((2, 3)))
    assert np.multiply(p, 3, out=p) is p
    np.testing.assert_array_equal(array, np.full((2, 3), 3))


def test_array_copies_where_it_must():
    p = parameter()
    assert np.array(p) is not p.data
    assert np.asarray(p, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="needs a copy"):
        p.__array__(np.float64, copy=False)


def test_is_its_own_key():
    p, q = parameter(), parameter()
    assert {p: 1, q: 2}[p] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_takes_gradients_of_any_float_type(dtype):
    p = parameter()
    for grad in (np.ones((2, 3), dtype), np.ones((3, 2), dtype).T, np.ones((2, 6), dtype)[:, ::2]):
        p.grad = grad
        assert p.grad is grad
    p.grad += np.ones((2, 3), dtype)
    np.testing.assert_array_equal(p.grad.astype(float), np.full((2, 3), 2))
    p.grad = None
    assert p.grad is None


def test_a_numpy_scalar_is_a_gradient_of_a_scalar():
    p = parameter(())
    p.grad = np.sum(np.ones(3))
    assert p.grad.shape == ()
    assert p.grad == 3


def test_repr_says_what_it_is():
    p = parameter(name="w", requires_grad=False)
    p.grad = np.ones((2, 3), BFLOAT16)
    assert repr(p) == (
        "Parameter(name='w', shape=(2, 3), dtype=float32, device='cpu', grad=bfloat16, "
        "requires_grad=False)"
    )


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_deepcopy_and_pickle_take_data_and_gradient_along(duplicate):
    p = parameter(name="w", dtype=BFLOAT16)
    p.grad = np.full((2, 3), 2.0)
    q = duplicate(p)
    p.data[:] = 5
    assert (q.name, q.requires_grad, q.dtype) == ("w", True, BFLOAT16)
    np.testing.assert_array_equal(q.data.astype(float), np.ones((2, 3)))
    np.testing.assert_array_equal(q.grad, p.grad)


BAD_ARRAYS = {
    "integer": (np.ones(3, int), "int64"),
    "bool": (np.ones(3, bool), "bool"),
    "complex": (np.ones(3, complex), "complex128"),
    "object": (np.ones(3, object), "object"),
    "longdouble": (np.ones(3, np.longdouble), np.dtype(np.longdouble).name),
    "big-endian": (np.ones(3, ">f4"), "byte order"),
    "masked": (np.ma.masked_array(np.ones(3), [0, 1, 0]), "masked"),
    "list": ([1.0, 2.0, 3.0], "list"),
    "float": (1.0, "float"),
    "string": ("abc", "str"),
}


@pytest.mark.parametrize(("bad", "said"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_refuses_arrays_of_other_types(bad, said):
    with pytest.raises(TypeError, match=said) as error:
        genesis.Parameter(bad)
    assert "float32" in str(error.value) or said in ("masked", "byte order")
    p = parameter((3,), name="weight")
    with pytest.raises(TypeError, match=f"gradient of 'weight'.*{said}"):
        p.grad = bad
    assert p.grad is None


def test_refuses_read_only_data():
    array = np.ones(3)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        genesis.Parameter(array)
    p = parameter((3,))
    p.grad = array  # a gradient is only read
    assert p.grad is array


def test_refuses_data_that_overlaps_itself():
    array = np.lib.stride_tricks.as_strided(np.ones(5), (3, 3), (8, 8))
    with pytest.raises(ValueError, match="share memory"):
        genesis.Parameter(array)


def test_refuses_wrong_shapes():
    p = parameter()
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*\(3, 2\)"):
        p.grad = np.ones((3, 2))
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        p.data = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="float32"):
        p.data = np.ones((2, 3))
    with pytest.raises(ValueError, match="shape"):
        p.grad = np.float64(1)


def test_refuses_what_is_no_data_at_all():
    with pytest.raises(TypeError, match="Parameter already"):
        genesis.Parameter(parameter())
    with pytest.raises(TypeError, match="name must be a string"):
        genesis.Parameter(np.ones(3), name=3)
    with pytest.raises(AttributeError):
        parameter().gard = np.ones((2, 3))
