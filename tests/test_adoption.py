"""Arrays of other libraries as parameters and gradients: shared or refused, never copied."""

import array
import ctypes
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
from cases import BFLOAT16, DTYPES

import genesis
from genesis import buffers, dlpack


class Interface:
    """An array that shows its memory by `__array_interface__` alone."""

    def __init__(self, owned, **others):
        self.owned = owned
        self.__array_interface__ = {**owned.__array_interface__, **others}


class Exporting:
    """An array that exports itself by DLPack alone, as a library of its own would."""

    def __init__(self, owned, device=(1, 0), versioned=True):
        self.owned, self.device, self.versioned = owned, device, versioned

    def __dlpack__(self, **asked):
        if not self.versioned and asked:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        return self.owned.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self.device


NAME = b"dltensor_versioned"
EXPORTED = {}
"""By address what capsules own. Nothing else does, so a capsule that dies too early shows."""

new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def released(capsule):
    del EXPORTED[pointer_of(capsule, NAME)]


def capsule_of(owned, code=2, flags=0, major=1, lanes=1, strides=False):
    """A DLPack capsule over a host array, written by hand: any type, any flags."""
    managed = dlpack._ManagedVersioned(major=major, flags=flags)
    tensor = managed.tensor
    tensor.data, tensor.device_type, tensor.ndim = owned.ctypes.data, dlpack.CPU, owned.ndim
    tensor.code, tensor.bits, tensor.lanes = code, 8 * owned.itemsize, lanes
    extents = ctypes.c_int64 * owned.ndim
    shape, steps = extents(*owned.shape), extents(*(n // owned.itemsize for n in owned.strides))
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    if strides:
        tensor.strides = ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64))
    EXPORTED[ctypes.addressof(managed)] = managed, shape, steps, owned
    return new_capsule(ctypes.addressof(managed), NAME, ctypes.cast(released, ctypes.c_void_p))


class Handmade:
    """An array whose capsule says what the test wants."""

    def __init__(self, owned, **said):
        self.capsule = capsule_of(owned, **said)

    def __dlpack__(self, **asked):
        return self.capsule

    def __dlpack_device__(self):
        return dlpack.CPU, 0


def floats(dtype=np.float32, shape=(2, 3)):
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


NEEDS_DLPACK_1 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy exports no DLPack 1.0 before 2.1"
)


# ---- what is shared ----


def interface(owned):
    return Interface(owned)


def interface_of_a_buffer(owned):
    return Interface(owned, data=memoryview(owned).cast("B"), offset=0)


def buffer(owned):
    return memoryview(owned)


def capsule(owned):
    return Exporting(owned)


PROTOCOLS = [
    interface,
    interface_of_a_buffer,
    buffer,
    pytest.param(capsule, marks=NEEDS_DLPACK_1),
    Handmade,
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16], ids=str)
@pytest.mark.parametrize("shown_by", PROTOCOLS)
def test_writes_through_any_protocol(shown_by, dtype):
    owned = floats(dtype)
    p = genesis.Parameter(shown_by(owned))
    assert (p.shape, p.dtype) == ((2, 3), dtype)
    assert np.shares_memory(p.data, owned)
    p.data[0, 1] = 50
    owned[1, 2] = 60
    assert (owned[0, 1], p.data[1, 2]) == (50, 60)
    p.grad = shown_by(floats(dtype))
    genesis.optim.SGD([p], lr=1.0).step()
    np.testing.assert_array_equal(owned, [[0, 48, 0], [0, 0, 54]])


@pytest.mark.parametrize("shown_by", [interface, Handmade])
def test_bfloat16_through_protocols_that_have_it(shown_by):
    owned = floats(BFLOAT16)
    shown = shown_by(owned) if shown_by is interface else Handmade(owned, code=4)
    p = genesis.Parameter(shown)
    assert p.dtype == BFLOAT16
    p[0, 0] = 7
    assert owned[0, 0] == 7
    p.grad = shown_by(owned) if shown_by is interface else Handmade(owned, code=4)
    assert p.grad.dtype == BFLOAT16


@pytest.mark.parametrize("shown_by", PROTOCOLS[:1] + PROTOCOLS[2:4])
def test_strided_memory_stays_where_it_is(shown_by):
    owned = floats(shape=(4, 6))
    p = genesis.Parameter(shown_by(owned[::2, ::3]))
    assert p.shape == (2, 2)
    p.data[:] = 0
    assert (owned == 0).sum() == 4


def test_strides_of_a_capsule_count_elements():
    owned = floats(shape=(4, 6))
    p = genesis.Parameter(Handmade(owned.T, strides=True))
    assert p.data.strides == owned.T.strides
    np.testing.assert_array_equal(p, owned.T)


@pytest.mark.parametrize("kind", "df")
def test_standard_arrays_of_python(kind):
    owned = array.array(kind, [1.0, 2.0, 3.0])
    p = genesis.Parameter(owned)
    p -= 1
    assert list(owned) == [0, 1, 2]
    p.grad = array.array(kind, [1.0, 1.0, 1.0])
    genesis.optim.SGD([p], lr=1.0).step()
    assert list(owned) == [-1, 0, 1]
    with pytest.raises(BufferError):  # Python itself keeps the memory in place
        owned.append(4.0)


def test_arrays_of_ctypes():
    owned = (ctypes.c_float * 3)(1, 2, 3)
    genesis.Parameter(owned)[1] = 9
    assert list(owned) == [1, 9, 3]


@pytest.mark.parametrize("shown_by", PROTOCOLS)
def test_the_view_keeps_the_memory_alive(shown_by):
    owned = floats(shape=(1000,))
    gone = weakref.ref(owned)
    shown = shown_by(owned)
    p = genesis.Parameter(shown)
    del owned, shown
    gc.collect()
    assert gone() is not None
    assert p.sum() == 500500
    del p
    gc.collect()
    assert gone() is None


def test_another_array_can_take_its_place():
    p = genesis.Parameter(floats())
    owned = floats()
    p.data = interface(owned)
    p[0, 0] = -1
    assert owned[0, 0] == -1
    with pytest.raises(ValueError, match="keep shape"):
        p.data = array.array("f", [1.0])
    assert np.shares_memory(p.data, owned)


def test_optimizers_see_that_arrays_of_elsewhere_overlap():
    owned = floats(shape=(6,))
    first, second = (genesis.Parameter(memoryview(owned[i : i + 4])) for i in (0, 2))
    with pytest.raises(ValueError, match="share memory"):
        genesis.optim.SGD([first, second], lr=0.1)


# ---- gradients ----


@pytest.mark.parametrize("number", [2.0, np.float64(2), np.float32(2), BFLOAT16.type(2)], ids=repr)
def test_numbers_are_gradients_of_scalars(number):
    p = genesis.Parameter(np.zeros(()))
    p.grad = number
    assert (p.grad.shape, p.grad) == ((), 2)
    with pytest.raises(ValueError, match=r"shape \(3,\), but got \(\)"):
        genesis.Parameter(np.zeros(3)).grad = number


@pytest.mark.parametrize("number", [True, 2, "2.0", np.int64(2), np.bool_(True), 2j, np.str_("2")])
def test_other_numbers_are_not(number):
    p = genesis.Parameter(np.zeros(()))
    with pytest.raises(TypeError, match="the gradient must"):
        p.grad = number
    assert p.grad is None


@pytest.mark.parametrize("shown_by", PROTOCOLS)
def test_gradients_may_be_read_only(shown_by):
    if shown_by in (capsule, Handmade):
        shown = Handmade(floats(), flags=1)
    else:
        owned = floats()
        owned.flags.writeable = False
        shown = shown_by(owned)
    p = genesis.Parameter(floats())
    with pytest.raises(ValueError, match="read-only"):
        genesis.Parameter(shown)
    p.grad = shown
    assert not p.grad.flags.writeable
    genesis.optim.SGD([p], lr=1.0).step()
    np.testing.assert_array_equal(p, np.zeros((2, 3)))
    genesis.optim.SGD([p], lr=1.0).zero_grad(set_to_none=False)
    np.testing.assert_array_equal(p.grad, np.zeros((2, 3)))


def test_an_old_capsule_does_not_say_whether_it_may_be_written():
    shown = Exporting(floats(), versioned=False)
    p = genesis.Parameter(floats())
    p.grad = shown
    np.testing.assert_array_equal(p.grad, floats())
    with pytest.raises(ValueError, match=r"before 1\.0"):
        genesis.Parameter(shown)


# ---- what is refused ----


class OnlyArray:
    """What NumPy can read by asking for a copy."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(3)


class Failing(Exporting):
    def __dlpack__(self, **asked):
        raise BufferError("not today")


REFUSED = {
    "integers": (lambda: array.array("i", [1]), "format 'i'"),
    "bytes": (lambda: bytearray(12), "frombuffer"),
    "integer interface": (lambda: Interface(np.ones(3, int)), "int64"),
    "complex interface": (lambda: Interface(np.ones(3, complex)), "complex128"),
    "masked interface": (lambda: Interface(np.ones(3), mask=np.ones(3, bool)), "mask"),
    "big-endian interface": (lambda: Interface(np.ones(3, ">f4")), "byte order"),
    "interface of nothing": (lambda: Interface(np.ones(3), data=None), "gives no buffer"),
    "integer capsule": (lambda: Handmade(np.ones(3, int), code=0), "int64"),
    "complex capsule": (lambda: Handmade(np.ones(3, complex), code=5), "complex128"),
    "unknown capsule": (lambda: Handmade(np.ones(3), code=17), "is not known"),
    "capsule of vectors": (lambda: Handmade(np.ones(3), lanes=4), "is not known"),
    "capsule of version 2": (lambda: Handmade(np.ones(3), major=2), "version 2"),
    "capsule of a copy": (lambda: Handmade(np.ones(3), flags=2), "exports a copy"),
    "failing capsule": (lambda: Failing(np.ones(3)), "not today"),
    "another device": (lambda: Exporting(np.ones(3), device=(8, 1)), r"\(8, 1\)"),
    "needs a copy": (OnlyArray, "OnlyArray"),
    "class": (lambda: np.ndarray, "type"),
    "parameter": (lambda: genesis.Parameter(np.ones(3)), "Parameter"),
}


@pytest.mark.parametrize(("made", "said"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_cannot_be_shared(made, said):
    bad = made()
    with pytest.raises(TypeError, match=said):
        genesis.Parameter(bad)
    p = genesis.Parameter(np.ones(3), name="w")
    with pytest.raises(TypeError, match=f"gradient of 'w'.*{said}"):
        p.grad = bad
    with pytest.raises(TypeError, match=said):
        p.data = bad
    assert p.grad is None


@pytest.mark.parametrize("number", [np.float32(1), 1.0, np.float64(1), [1.0], "1"], ids=repr)
def test_a_number_is_no_parameter(number):
    with pytest.raises(TypeError, match=r"data must be .* got .*asarray"):
        genesis.Parameter(number)


def test_refuses_data_that_overlaps_itself():
    owned = np.lib.stride_tricks.as_strided(np.ones(5), (3, 3), (8, 8))
    with pytest.raises(ValueError, match="share memory"):
        genesis.Parameter(Interface(owned))


# ---- torch ----


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_gradients(dtype, requires_grad):
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, 3, dtype=getattr(torch, dtype.name), requires_grad=requires_grad)
    p = genesis.Parameter(np.ones((2, 3), np.float32))
    p.grad = tensor
    assert p.grad.dtype == dtype
    assert p.grad.ctypes.data == tensor.data_ptr()
    with torch.no_grad():
        tensor *= 4
    assert (p.grad == 4).all()
    p.grad[0, 0] = 5
    assert tensor[0, 0] == 5
    del tensor
    gc.collect()
    genesis.optim.SGD([p], lr=1.0).step()
    assert p[1, 1] == -3
    p.grad = torch.ones(3, 2, dtype=getattr(torch, dtype.name)).T
    assert p.grad.strides == (dtype.itemsize, 2 * dtype.itemsize)
    with pytest.raises(ValueError, match="shape"):
        p.grad = torch.ones(3)


def test_torch_scalars_and_subclasses():
    torch = pytest.importorskip("torch")

    class Mine(torch.Tensor):
        pass

    p = genesis.Parameter(np.ones(()))
    for tensor in (torch.tensor(3.0), torch.tensor(3.0, dtype=torch.bfloat16)):
        p.grad = tensor
        assert p.grad == 3
        p.grad = tensor.as_subclass(Mine)
        assert p.grad == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda torch: torch.ones(3).to_sparse(), "to_dense"),
        (lambda torch: torch.ones(3, dtype=torch.int32), "int32"),
        (lambda torch: torch.ones(3, dtype=torch.complex64), "complex64"),
        (lambda torch: torch.ones(3, device="meta"), "meta"),
        (lambda torch: torch.ones(3).to(torch.float8_e5m2), "Float8"),
        (lambda torch: torch.ones(3, dtype=torch.complex64).conj().imag, "resolve_neg"),
    ],
)
def test_refuses_torch_gradients_that_are_no_plain_floats(make, said):
    torch = pytest.importorskip("torch")
    p = genesis.Parameter(np.ones(3), name="w")
    with pytest.raises(TypeError, match=f"gradient of 'w' .*{said}"):
        p.grad = make(torch)
    assert p.grad is None


def test_refuses_torch_parameters_and_says_how():
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.ones(3))
    for bad in (tensor, tensor.detach()):
        with pytest.raises(TypeError, match=r"torch .*: give tensor\.detach\(\)\.numpy\(\)"):
            genesis.Parameter(bad)
    p = genesis.Parameter(tensor.detach().numpy())
    p -= 1
    assert (tensor == 0).all()
    half = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"view\(torch\.int16\)\.numpy\(\)\.view\(ml_dtypes"):
        genesis.Parameter(half)
    q = genesis.Parameter(half.detach().view(torch.int16).numpy().view(BFLOAT16))
    q[0] = 2
    assert half[0] == 2


def test_refuses_a_torch_parameter_on_a_gpu_until_it_is_detached():
    torch = pytest.importorskip("torch")

    class OnCuda(torch.Tensor):
        device = property(lambda self: torch.device("cuda:0"))

    with pytest.raises(TypeError, match=r"give tensor\.detach\(\), which shares it"):
        genesis.Parameter(torch.ones(3, requires_grad=True).as_subclass(OnCuda))


# ---- jax ----


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != np.float64], ids=str)
def test_jax_gradients(dtype):
    jnp = pytest.importorskip("jax.numpy")
    gradient = jnp.arange(1, 7, dtype=dtype).reshape(2, 3)
    p = genesis.Parameter(np.zeros((2, 3), np.float32))
    p.grad = gradient
    assert p.grad.dtype == dtype
    assert p.grad.ctypes.data == gradient.unsafe_buffer_pointer()
    assert not p.grad.flags.writeable
    gradient.delete()
    del gradient
    gc.collect()
    genesis.optim.SGD([p], lr=1.0).step()
    np.testing.assert_array_equal(p, -floats())


def test_the_gradient_that_jax_computes():
    jax = pytest.importorskip("jax")
    p = genesis.Parameter(np.float32([1, 2]))
    p.grad = jax.grad(lambda x: (x**2).sum())(p.numpy())
    np.testing.assert_array_equal(p.grad, [2, 4])
    q = genesis.Parameter(np.zeros((), np.float32))
    q.grad = jax.grad(lambda x: 3 * x)(q.numpy())
    assert q.grad == 3


def test_refuses_jax_parameters_and_what_is_no_array():
    jax = pytest.importorskip("jax")
    array = jax.numpy.ones(3)
    with pytest.raises(TypeError, match=r"JAX array, which never changes.*numpy\.array\(x\)"):
        genesis.Parameter(array)
    p = genesis.Parameter(np.ones(3), name="w")
    for bad in (array.astype(int), array.astype(complex), jax.random.key(0)):
        with pytest.raises(TypeError, match="gradient of 'w'"):
            p.grad = bad

    @jax.jit
    def traced(x):
        p.grad = x
        return x

    with pytest.raises(TypeError, match=r"gradient of 'w'.*jitted"):
        traced(array)
    assert p.grad is None


SEVERAL_DEVICES = """
import jax, numpy, genesis
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(numpy.array(jax.devices()), ("a",))
p = genesis.Parameter(numpy.ones(4, numpy.float32))
x = jax.device_put(numpy.ones(4, numpy.float32), NamedSharding(mesh, PartitionSpec("a")))
try:
    p.grad = x
except TypeError as error:
    assert "not one block" in str(error), error
    print("refused")
"""


def test_refuses_jax_arrays_on_several_devices(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    run = subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES], capture_output=True, text=True, check=False
    )
    assert run.stdout == "refused\n", run.stderr


# ---- pandas and xarray ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
def test_pandas_by_its_array(dtype):
    pandas = pytest.importorskip("pandas")
    for frame in (pandas.Series(floats(dtype)[0]), pandas.DataFrame(floats(dtype))):
        p = genesis.Parameter(np.zeros(frame.shape, dtype))
        p.grad = frame
        assert np.shares_memory(p.grad, frame.to_numpy())
        if frame.to_numpy().flags.writeable:  # before pandas 3
            q = genesis.Parameter(frame)
            q.data[...] = 7
            assert (frame.to_numpy() == 7).all()
        else:
            with pytest.raises(ValueError, match=r"copy-on-write.*to_numpy\(copy=True\)"):
                genesis.Parameter(frame)
        genesis.Parameter(frame.to_numpy(copy=True))


def test_writes_into_a_pandas_array_that_can_be_written():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([1.0, 2.0], dtype="Float64")
    if not np.shares_memory(series.to_numpy(), series.to_numpy()):
        pytest.skip("this pandas gives a copy of a nullable Series")
    p = genesis.Parameter(series)
    p[0] = 5
    del p
    assert series[0] == 5


def test_refuses_pandas_objects_of_several_arrays():
    pandas = pytest.importorskip("pandas")
    mixed = pandas.DataFrame({"a": np.ones(3), "b": np.ones(3, np.float32)})
    grown = pandas.DataFrame({"a": np.ones(3)})
    grown["b"] = 1.0
    p = genesis.Parameter(np.ones((3, 2)))
    for frame in (mixed, grown):
        with pytest.raises(TypeError, match=r"in one array.*to_numpy\(copy=True\)"):
            genesis.Parameter(frame)
        with pytest.raises(TypeError, match="in one array"):
            p.grad = frame
    with pytest.raises(TypeError, match="object"):
        p.grad = pandas.DataFrame({"a": np.ones(3), "b": list("abc")})
    with pytest.raises(TypeError, match="int64"):
        genesis.Parameter(pandas.Series([1, 2]))


def test_xarray_by_its_array():
    xarray = pytest.importorskip("xarray")
    labelled = xarray.DataArray(floats())
    p = genesis.Parameter(labelled)
    assert p.data is labelled.data
    p[0, 0] = 7
    assert labelled[0, 0] == 7
    p.grad = xarray.DataArray(floats())
    genesis.optim.SGD([p], lr=1.0).step()
    assert labelled[0, 0] == 6
    labelled.data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        genesis.Parameter(labelled)
    p.grad = labelled
    with pytest.raises(TypeError, match="int64"):
        p.grad = xarray.DataArray(np.ones((2, 3), int))


def test_refuses_xarray_objects_that_make_their_values_when_asked():
    xarray = pytest.importorskip("xarray")

    class Lazy(xarray.DataArray):
        __slots__ = ()
        data = property(lambda self: np.ones(3))

    p = genesis.Parameter(np.ones(3), name="w")
    for take in (genesis.Parameter, lambda labelled: setattr(p, "grad", labelled)):
        with pytest.raises(TypeError, match=r"must have its values in memory.*labelled\.load\(\)"):
            take(Lazy(np.ones(3)))
    assert p.grad is None


# ---- cost, and what is not imported ----


def test_a_numpy_array_is_taken_as_it_is():
    owned = floats()
    assert buffers.adopted(owned, "data") is owned
    assert buffers.readable(owned, "the gradient") is owned


def test_no_library_is_imported():
    others = "torch jax pandas xarray autograd".split()
    said = (
        "import sys, array, genesis; p = genesis.Parameter(array.array('d', [1.0]));"
        "p.grad = memoryview(array.array('d', [1.0])); genesis.optim.SGD([p], lr=1.0).step();"
        f"print([name for name in {others} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
