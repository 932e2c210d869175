"""`Parameter`: sharing, gradients, use as a NumPy operand, and what it refuses."""

import copy
import pickle

import numpy as np
import pytest
from cases import BFLOAT16, DTYPES
from devices import in_simulator

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


def test_has_what_an_array_has():
    p = genesis.Parameter(np.arange(6, dtype=np.float32).reshape(2, 3))
    array = p.data
    for name in [name for name in dir(np.ndarray) if not name.startswith("_")]:
        if name != "resize" and hasattr(array, name):  # NumPy lists what it has no more
            assert hasattr(p, name), name
            assert name in dir(p)
    for got, expected in [
        (p.sum(), 15),
        (p.mean(axis=0), array.mean(axis=0)),
        (p.reshape(3, 2), array.reshape(3, 2)),
        (p.copy(), array),
        (p.astype(np.float64), array),
        (p.T, array.T),
        (p.real, array),
        (p.strides, (12, 4)),
        (p.tolist(), array.tolist()),
        (list(p), array),
        (list(p.flat), range(6)),
        (p @ p.T, array @ array.T),
        ((p.nbytes, p.itemsize), (24, 4)),
        (p.flags.c_contiguous, True),
        (p.max(), 5),
    ]:
        assert not isinstance(got, genesis.Parameter)
        np.testing.assert_array_equal(got, expected)
    assert p.copy() is not array
    assert np.shares_memory(p.reshape(6), array)
    assert 5 in p
    assert 6 not in p


def test_is_a_number_like_an_array():
    p = parameter(())
    p.fill(2.5)
    assert (float(p), int(p), bool(p), complex(p), p.item()) == (2.5, 2, True, 2.5, 2.5)
    assert (f"{p:.2f}", f"{p}") == ("2.50", repr(p))
    with pytest.raises(TypeError, match="0-d"):
        iter(p)
    many = parameter()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(many)
    with pytest.raises(TypeError):
        float(many)
    assert not bool(genesis.Parameter(np.zeros(1)))


def test_items_are_written_into_the_array():
    p, q = parameter(), parameter((3,))
    array = p.data
    p[0] = 5
    p[1, 1:] += 2
    p[:, 0] = [7, 8]
    np.testing.assert_array_equal(array, [[7, 5, 5], [8, 3, 3]])
    p[0] = q
    p[p > 4] = 0
    np.testing.assert_array_equal(array, [[1, 1, 1], [0, 3, 3]])
    p.sort(axis=0)
    np.testing.assert_array_equal(array, [[0, 1, 1], [1, 3, 3]])


def test_does_not_change_its_size_or_give_its_place_away():
    p = parameter()
    assert not hasattr(p, "resize")
    for name in ("shape", "strides", "dtype", "T", "flat"):
        with pytest.raises(AttributeError):
            setattr(p, name, getattr(p, name))


def test_hands_on_public_names_only():
    p = parameter()
    for protocol in (
        "__array_interface__",
        "__array_struct__",
        "__dlpack__",
        "__copy__",
        "__index__",
    ):
        assert not hasattr(p, protocol)
    with pytest.raises(AttributeError, match="'Parameter' object has no attribute 'gard'"):
        _ = p.gard
    unset = genesis.Parameter.__new__(genesis.Parameter)
    for name in ("sum", "data", "shape", "_view"):
        with pytest.raises(AttributeError):
            getattr(unset, name)
    q = copy.copy(p)
    assert q.data is p.data


def test_in_a_region_of_autocast_the_copy_is_read_only():
    p, whole = parameter(), parameter(autocast=False)
    with genesis.autocast("float16"):
        assert p.sum().dtype == np.float16
        for write in (lambda: p.__setitem__(0, 5), lambda: p.fill(5), lambda: np.copyto(p, 5)):
            with pytest.raises(ValueError, match="read-only"):
                write()
        whole[0] = 5
    p[0] = 5
    with genesis.autocast("float16"):
        assert p.max() == 5
    assert whole.max() == 5


@in_simulator
def test_on_a_device_it_hands_on_to_the_device_array():
    p = genesis.Parameter(np.arange(6, dtype=np.float32).reshape(2, 3)).to("cuda")
    assert p.strides == p.data.strides
    assert (np.linalg.norm(p) ** 2, np.sum(p), 5 in p) == (pytest.approx(55), 15, True)
    assert float(genesis.Parameter(np.array(2.5)).to("cuda")) == 2.5
    # NumPy sees a copy from the device: what it would write would be lost.
    for write in (
        lambda: np.multiply(p, 2, out=p),
        lambda: p.__isub__(1),
        lambda: np.sum(p, axis=0, out=p),
    ):
        with pytest.raises(TypeError, match="NumPy cannot write into a parameter on cuda:0"):
            write()
    for write in (lambda: np.copyto(p, 1), lambda: np.add.at(p, 0, 1)):
        with pytest.raises(ValueError, match="read-only"):
            write()
    np.testing.assert_array_equal(p.numpy(), np.arange(6).reshape(2, 3))
    p[0] = 5
    np.testing.assert_array_equal(p.numpy(), [[5, 5, 5], [3, 4, 5]])


def test_is_an_argument_of_numpys_functions():
    p, q = parameter(), parameter()
    q *= 2
    a, b = p.data, q.data
    for got, expected in [
        (np.concatenate([p, q]), np.concatenate([a, b])),
        (np.stack((p, b)), np.stack((a, b))),
        (np.block([[p, q], [p, q]]), np.block([[a, b], [a, b]])),
        (np.linalg.norm(p), np.linalg.norm(a)),
        (np.where(p > 0, p, 0), a),
        (np.where(True, 0, q), 0 * a),
        (np.einsum("ij,ij->i", p, q), [6, 6]),
        (np.dot(p, q.T), a @ b.T),
        (np.zeros_like(p), 0 * a),
        (np.clip(q, 0, a_max=p), a),
        (np.tensordot(p, q), 12),
        (np.shape(p), (2, 3)),
        (np.allclose(p, q), False),
        (np.split(p, 2)[0], a[:1]),
        (np.outer(p, q).shape, (6, 6)),
        (np.array([p, q]), np.array([a, b])),
    ]:
        assert not isinstance(got, genesis.Parameter)
        np.testing.assert_array_equal(got, expected)
    total = genesis.Parameter(np.zeros(3))
    assert np.sum(q, axis=0, out=total) is total
    np.testing.assert_array_equal(total, [4, 4, 4])
    np.copyto(p, 9)
    np.add.at(p, (0, 0), 1)
    np.testing.assert_array_equal(a, [[10, 9, 9], [9, 9, 9]])
    with pytest.raises(TypeError):
        np.linalg.norm(p, nonsense=q)


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
    # A float is a gradient, but of shape ().
    error_type, said = (ValueError, "shape") if isinstance(bad, float) else (TypeError, said)
    with pytest.raises(error_type, match=f"gradient of 'weight'.*{said}"):
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
