"""The CUDA target: arrays on a device, how a step is launched there, and what is said without one.

Most tests run in numba's CUDA simulator, `NUMBA_ENABLE_CUDASIM=1 pytest`, which shows the logic but
not the types: those show in test_ptx.py. The last ones need neither device nor simulator.
"""

import copy
import pickle
import threading
import time

import ml_dtypes
import numba
import numpy as np
import pytest
from cases import BFLOAT16, DTYPES, ONE_EACH
from devices import DEVICE, in_simulator, needs_numba_cuda, on_cpu_only, on_device, parameter

import genesis
from genesis import buffers, cuda_driver
from genesis.kernels import simulated, storage, table
from genesis.optim import SGD, Adam, AdamW, RMSprop

each_optimizer = pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.id)
SHAPES = [(3, 4), (5,), (), (0,)]


def parameters(*shapes, dtype=np.float64, device=DEVICE, seed=0):
    rng = np.random.default_rng(seed)
    return [genesis.Parameter(rng.standard_normal(s).astype(dtype)).to(device) for s in shapes]


def give_gradients(params, seed=1):
    rng = np.random.default_rng(seed)
    for p in params:
        p.grad = buffers.put(rng.standard_normal(p.shape), p.device)


def run(opt, params, steps=3, seed=1):
    for step in range(steps):
        give_gradients(params, seed + step)
        opt.step()
    return [p.numpy().copy() for p in params]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(left, right, rtol=1e-13):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


@pytest.fixture
def chunks(monkeypatch):
    """Set the number of elements in a chunk on the device."""
    from genesis.kernels import cuda

    return lambda number: monkeypatch.setattr(cuda, "CHUNK", number)


@in_simulator
def test_the_threads_of_a_block_have_one_shared_array():
    """However slow the first is that asks for it: each would sum up in an array of its own."""
    from numba.core import types
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    from genesis.kernels.cuda import templates

    assert templates.storage is simulated

    class Slow(dict):
        def get(self, key, default=None):
            found = super().get(key, default)
            time.sleep(0.05)
            return found

    shared = FakeCUDAShared(0)
    shared._allocations = Slow()
    arrays = []
    threads = [
        threading.Thread(target=lambda: arrays.append(shared.array(4, types.float64)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(array) for array in arrays}) == 1
    assert (arrays[0].shape, arrays[0].dtype) == ((4,), np.float64)


@pytest.fixture
def launches(monkeypatch):
    """The arguments of every launch of a kernel."""
    from genesis.kernels.cuda import launching

    found = []
    make = launching.launcher

    def launcher(kernel, blocks, stream, arrays):
        launch = make(kernel, blocks, stream, arrays)
        return lambda numbers: (found.append((*arrays, *numbers)), launch(numbers))

    monkeypatch.setattr(launching, "launcher", launcher)
    return found


@pytest.fixture
def uploads(monkeypatch):
    """The rows of every change to the table on the device."""
    from genesis.kernels import cuda

    found = []
    upload = cuda.DeviceTable._upload

    def spy(self, rows):
        found.append(list(rows))
        upload(self, rows)

    monkeypatch.setattr(cuda.DeviceTable, "_upload", spy)
    return found


@pytest.fixture
def waits(monkeypatch):
    """The name of everything that was called and could wait for the device."""
    from numba import cuda
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    found = []

    def spy(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **others):
            found.append(name)
            return original(*arguments, **others)

        monkeypatch.setattr(owner, name, call)

    spy(cuda, "synchronize")
    spy(cuda.stream, "synchronize")
    spy(cuda.event, "synchronize")
    spy(FakeCUDAArray, "copy_to_host")
    return found


# ---- parameters ----


@in_simulator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parameter_to_a_device_and_back(shape, dtype):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    p = genesis.Parameter(array, requires_grad=False, name="w")
    p.grad = np.asarray(array + array)
    q = p.to("cuda")
    assert (p.device, q.device) == ("cpu", "cuda:0")
    assert (q.shape, q.dtype, q.name, q.requires_grad) == (shape, dtype, "w", False)
    assert not isinstance(q.data, np.ndarray)
    assert not isinstance(q.grad, np.ndarray)
    assert q.to("cuda") is q
    assert q.to("cuda:0") is q
    back = q.to("cpu")
    for values, expected in [(q.numpy(), array), (back.data, array), (back.grad, p.grad)]:
        assert type(values) is np.ndarray
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, expected)
    assert back.data is not array


@in_simulator
def test_a_device_parameter_shares_the_array():
    data = on_device(np.ones(3))
    p = genesis.Parameter(data)
    assert p.data is data
    p.grad = grad = on_device(np.ones(3))
    assert p.grad is grad
    SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(data.copy_to_host(), np.full(3, 0.5))
    assert "device='cuda:0'" in repr(p)


@in_simulator
def test_a_gradient_on_another_device_is_refused():
    p = parameter(np.ones(3))
    with pytest.raises(ValueError, match=r"on the parameter's device cuda:0, but is on cpu"):
        p.grad = np.ones(3)
    assert p.grad is None
    p = genesis.Parameter(np.ones(3), name="w")
    with pytest.raises(ValueError, match=r"gradient of 'w'.*device cpu, but is on cuda:0"):
        p.grad = on_device(np.ones(3))
    with pytest.raises(ValueError, match="device"):
        p.data = on_device(np.ones(3))


@in_simulator
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_deepcopy_and_pickle_stay_on_the_device(duplicate):
    params = parameters((3, 4), (5,), dtype=BFLOAT16)
    opt = Adam(params)
    run(opt, params)
    other = duplicate(opt)
    others = other.param_groups[0]["params"]
    assert [p.device for p in others] == ["cuda:0"] * 2
    assert buffers.is_device_array(other.state[others[0]]["exp_avg"])
    assert_same(run(opt, params), run(other, others))


@in_simulator
def test_save_and_load_of_device_parameters(tmp_path):
    params = parameters((3, 4), (5,), dtype=np.float32)
    genesis.save({"a": params[0], "b": params[1]}, tmp_path / "model.safetensors")
    loaded = genesis.load(tmp_path / "model.safetensors")
    assert_same([loaded["a"], loaded["b"]], [p.numpy() for p in params])


# ---- the step ----


@in_simulator
@each_optimizer
def test_a_device_computes_what_the_cpu_computes(case):
    """In float32; in float64 a device follows the references themselves (tests/test_updates.py)."""
    there = parameters(*SHAPES, dtype=np.float32)
    here = parameters(*SHAPES, dtype=np.float32, device="cpu")
    starts = [p.numpy().copy() for p in here]
    got, expected = run(case.make(there), there, 5), run(case.make(here), here, 5)
    for g, e, start in zip(got, expected, starts):
        moved = np.abs(e - start).max(initial=0)
        assert np.abs(g - e).max(initial=0) <= 8 * np.finfo(np.float32).eps * max(moved, 1)


@in_simulator
def test_state_lives_on_the_device_and_snapshots_on_the_host():
    params = parameters((3, 4), (5,))
    opt = Adam(params)
    run(opt, params)
    for p in params:
        assert type(opt.state[p]["step"]) is int
        for name in ("exp_avg", "exp_avg_sq"):
            assert buffers.is_device_array(opt.state[p][name])
    entries = opt.state_dict()["state"][0]
    assert type(entries["exp_avg"]) is np.ndarray
    kept = entries["exp_avg"].copy()
    run(opt, params)
    np.testing.assert_array_equal(entries["exp_avg"], kept)


@in_simulator
@each_optimizer
@pytest.mark.parametrize(
    "places", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")], ids="-".join
)
def test_a_run_resumes_on_another_device(case, places):
    first, second = places
    params = parameters(*SHAPES, device=first)
    opt = case.make(params)
    run(opt, params)
    resumed = [genesis.Parameter(p.numpy().copy()).to(second) for p in params]
    other = case.make(resumed, lr=77)
    other.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())))
    for p in resumed:
        for value in other.state.get(p, {}).values():
            if buffers.is_array(value):
                assert buffers.is_device_array(value) == (second == "cuda")
    left, right = opt.state_dict()["state"], other.state_dict()["state"]
    for number, entries in left.items():  # what was handed over is the same to the last bit
        for name, value in entries.items():
            np.testing.assert_array_equal(value, right[number][name])
    results = run(opt, params, seed=9), run(other, resumed, seed=9)
    (assert_same if first == second else assert_close)(*results)


@in_simulator
@each_optimizer
def test_optimizer_to_moves_the_same_parameters(case):
    params = parameters(*SHAPES, device="cpu")
    still = parameters(*SHAPES, device="cpu")
    opt, other = case.make(params), case.make(still)
    assert_same(run(opt, params), run(other, still))
    assert opt.to("cuda") is opt
    assert opt.param_groups[0]["params"] == params
    assert {p.device for p in params} == {"cuda:0"}
    assert all(buffers.is_device_array(p.grad) for p in params)
    assert_close(run(opt, params, seed=5), run(other, still, seed=5), 1e-12)
    opt.to("cpu")
    assert all(type(p.data) is np.ndarray and type(p.grad) is np.ndarray for p in params)
    assert_close(run(opt, params, seed=8), run(other, still, seed=8), 1e-12)
    assert opt.to("cpu") is opt


@in_simulator
def test_a_group_may_mix_devices(launches):
    mixed = [*parameters((3,), (4,)), *parameters((3,), (4,), device="cpu")]
    opt = AdamW(mixed)
    results = run(opt, mixed, steps=2)
    (step,) = opt._plans
    (plan,) = step.plans
    assert len(plan.buckets) == 2
    assert len(launches) == 2
    for p in mixed:
        assert buffers.is_device_array(opt.state[p]["exp_avg"]) == (p.device != "cpu")
    alone = [*parameters((3,), (4,), device="cpu"), *parameters((3,), (4,), device="cpu")]
    assert_close(results, run(AdamW(alone), alone, steps=2))


@in_simulator
def test_missing_gradients_are_skipped():
    p, q = parameters((3,), (3,))
    opt = Adam([p, q])
    before = q.numpy()
    give_gradients([p])
    opt.step()
    np.testing.assert_array_equal(q.numpy(), before)
    assert opt.state.get(q) is None
    give_gradients([q])
    opt.step()
    assert (opt.state[p]["step"], opt.state[q]["step"]) == (2, 1)
    opt.zero_grad()
    assert p.grad is None


@in_simulator
def test_zero_grad_fills_the_array_that_is_there():
    (p,) = parameters((3,))
    p.grad = kept = on_device(np.ones(3))
    opt = SGD([p], lr=1)
    opt.zero_grad(set_to_none=False)
    assert p.grad is kept
    np.testing.assert_array_equal(kept.copy_to_host(), np.zeros(3))
    p.grad = on_device(np.ones(6))[::2]
    opt.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(p.grad.copy_to_host(), np.zeros(3))


@in_simulator
def test_running_out_of_device_memory_changes_nothing(monkeypatch):
    from numba import cuda

    params = parameters((3,), (4,))
    opt = Adam(params)
    give_gradients(params)
    before = [p.numpy() for p in params]
    made = []

    def allocate(*arguments, **others):
        made.append(1)
        if len(made) == 3:
            raise MemoryError("out of device memory")
        return device_array(*arguments, **others)

    device_array = cuda.device_array
    monkeypatch.setattr(cuda, "device_array", allocate)
    with pytest.raises(MemoryError, match="device memory"):
        opt.step()
    monkeypatch.undo()
    assert len(made) == 3
    assert not opt.state
    assert_same([p.numpy() for p in params], before)
    opt.step()
    assert opt.state[params[0]]["step"] == 1


@in_simulator
def test_moving_without_room_moves_nothing(monkeypatch):
    from numba import cuda

    params = parameters((3,), (4,), device="cpu")
    opt = Adam(params)
    run(opt, params)
    made = []

    def send(*arguments, **others):
        made.append(1)
        if len(made) == 3:
            raise MemoryError
        return to_device(*arguments, **others)

    to_device = cuda.to_device
    monkeypatch.setattr(cuda, "to_device", send)
    with pytest.raises(MemoryError):
        opt.to("cuda")
    monkeypatch.undo()
    assert {p.device for p in params} == {"cpu"}
    run(opt, params)
    assert opt.state[params[0]]["step"] == 6


# ---- memory ----


def device_layouts(array):
    """Device arrays of equal values that lie in memory in every way that Numba's arrays know."""
    wide = on_device(np.repeat(array, 2, axis=-1))
    tall = on_device(np.repeat(array, 2, axis=0))
    turned = on_device(np.ascontiguousarray(array.T))
    shifted = on_device(np.concatenate([array.ravel()[:1], array.ravel()]))
    return [
        on_device(array),
        wide[:, ::2],
        tall[::2],
        turned.T,
        on_device(np.asfortranarray(array)),
        shifted[1:].reshape(array.shape),
        on_device(array[::-1].copy())[::-1],
    ]


@in_simulator
@pytest.mark.parametrize("dtype", [np.float64, np.float32, BFLOAT16], ids=str)
def test_any_memory_layout_gives_the_same_result(dtype):
    rng = np.random.default_rng(0)
    data, *grads = (rng.standard_normal((5, 6)).astype(dtype) for _ in range(3))
    plain = parameter(data)
    opt = Adam([plain])
    for grad in grads:
        plain.grad = on_device(grad)
        opt.step()
    variants = [genesis.Parameter(array) for array in device_layouts(data)]
    variants += [parameter(data) for _ in variants]
    assert {buffers.layout(p._view).order for p in variants} == {"C", "F", None}
    opt = Adam(variants)
    for grad in grads:
        forms = device_layouts(grad)
        for i, p in enumerate(variants):
            p.grad = forms[(i + i // len(forms)) % len(forms)]
        opt.step()
    for p in variants:
        np.testing.assert_array_equal(buffers.view(p.data).view(np.ndarray), plain.numpy())


@in_simulator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_chunks_and_alignment_change_no_bit(chunk, dtype, chunks):
    def trained():
        base = np.random.default_rng(3).standard_normal(140).astype(dtype)
        # Starts at every distance from a multiple of 16 bytes, gradients elsewhere than parameters.
        params = [genesis.Parameter(on_device(base)[i : i + 30 + i]) for i in range(8)]
        opt = RMSprop(params)
        for step in range(2):
            for i, p in enumerate(params):
                p.grad = on_device(base * (step + 1))[i % 3 * i : i % 3 * i + 30 + i]
            opt.step()
        return [p.numpy() for p in params]

    expected = trained()
    chunks(chunk)
    assert_same(trained(), expected)


@in_simulator
def test_vectors_are_used_where_all_columns_are_aligned(monkeypatch):
    """The head and tail one by one, the middle in vectors; one by one where columns disagree."""
    vectors, singles = [], []
    update_lanes, write = simulated.lane_updater, simulated.writer

    def lane_updater(rule, dtypes, number, space=1, measures=False):
        update = update_lanes(rule, dtypes, number, space, measures)
        return lambda tensors, i, *others: (vectors.append(int(i)), update(tensors, i, *others))

    def writer(dtypes, number, space=1):
        store = write(dtypes, number, space)
        return lambda tensors, i, values: (singles.append(int(i)), store(tensors, i, values))

    monkeypatch.setattr(simulated, "lane_updater", lane_updater)
    monkeypatch.setattr(simulated, "writer", writer)

    def step(offset, grad_offset):
        from genesis.kernels.cuda import launching

        launching.compiled.cache_clear()
        vectors.clear(), singles.clear()
        memory = on_device(np.zeros(64, np.float32))
        base = -buffers.view(memory).ctypes.data // 4 % 4  # elements up to a multiple of 16 bytes
        p = genesis.Parameter(memory[base + offset : base + offset + 13])
        more = on_device(np.ones(64, np.float32))
        base = -buffers.view(more).ctypes.data // 4 % 4
        p.grad = more[base + grad_offset : base + grad_offset + 13]
        SGD([p], lr=1).step()
        np.testing.assert_array_equal(p.numpy(), -np.ones(13))
        launching.compiled.cache_clear()
        return sorted(vectors), sorted(singles)

    assert step(0, 0) == ([0, 4, 8], [12])
    assert step(3, 3) == ([1, 5, 9], [0])
    assert step(2, 2) == ([2, 6], [0, 1, 10, 11, 12])
    assert step(1, 2) == ([], list(range(13)))


# ---- launches ----


@in_simulator
def test_one_launch_of_three_arrays_a_bucket_and_no_waiting(launches, waits):
    params = parameters(*[(i % 5,) for i in range(50)], dtype=np.float32)
    opt = AdamW(params)
    give_gradients(params)
    opt.step()
    assert len(launches) == 1
    for arguments in launches:
        assert sum(buffers.is_device_array(argument) for argument in arguments) <= 3
    waits.clear()
    for step in range(3):
        opt.step()
        give_gradients(params, seed=step)
        opt.step()
    assert len(launches) == 7
    assert waits == []
    params[0].numpy()
    assert waits == ["synchronize", "copy_to_host"]  # the spies do see


@in_simulator
def test_strided_arrays_need_no_waiting_either(launches, waits, monkeypatch):
    from numba import cuda

    base = on_device(np.ones((4, 6)))
    p = genesis.Parameter(base[:, ::2])
    p.grad = on_device(np.ones((3, 4))).T
    opt = SGD([p], lr=1)
    opt.step()
    waits.clear()
    sent = []
    to_device = cuda.to_device
    monkeypatch.setattr(cuda, "to_device", lambda *a, **k: (sent.append(a), to_device(*a, **k))[1])
    opt.step()
    assert waits == sent == []
    np.testing.assert_array_equal(base.copy_to_host()[:, ::2], np.full((4, 3), -1))
    np.testing.assert_array_equal(base.copy_to_host()[:, 1::2], np.ones((4, 3)))


@in_simulator
def test_only_changed_rows_are_sent(uploads):
    params = parameters(*[(4,)] * 10)
    opt = Adam(params)
    give_gradients(params)
    opt.step()
    opt.step()
    assert [rows for rows in uploads if rows] == []
    uploads.clear()
    params[3].grad = on_device(np.zeros(4))
    params[6].grad = on_device(np.zeros(4))
    opt.step()
    assert uploads == [[3, 6]]


@in_simulator
def test_new_gradient_arrays_are_those_used():
    """The device's copy of the table holds the new addresses, not those before."""
    params = parameters(*[(7,)] * 20)
    others = parameters(*[(7,)] * 20, device="cpu")
    opt, reference = Adam(params), Adam(others)
    kept = []
    for step in range(6):
        for i, (p, q) in enumerate(zip(params, others)):
            if (step + i) % 3:
                q.grad = np.full(7, float(step * i + 1))
                p.grad = on_device(q.grad)
                kept.append(p.grad)  # so that no two arrays have the same address
        opt.step()
        reference.step()
    assert_close([p.numpy() for p in params], [q.data for q in others])


@in_simulator
def test_a_stream_is_the_one_worked_on(monkeypatch):
    from numba import cuda

    from genesis.kernels.cuda import launching

    used = []
    make = launching.launcher

    def launcher(kernel, blocks, stream, arrays):
        used.append(stream)
        return make(kernel, blocks, stream, arrays)

    monkeypatch.setattr(launching, "launcher", launcher)
    params = parameters((3,))
    opt = Adam(params)
    assert opt.stream is None
    run(opt, params, 1)
    default = set(used)
    used.clear()
    opt.stream = stream = cuda.stream()
    assert opt.stream is stream
    assert stream not in default
    run(opt, params, 1)
    assert set(used) == {stream}
    assert copy.deepcopy(opt).stream is None  # a stream cannot be copied
    assert opt.state[params[0]]["step"] == 2


# ---- arrays of other libraries ----


class Foreign:
    """An array of another library: all that is known is its interface. Its memory is the host's."""

    def __init__(
        self, memory, shape, strides=None, typestr="<f4", offset=0, read_only=False, **more
    ):
        self.memory = memory
        pointer = memory if isinstance(memory, int) else memory.ctypes.data
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
            "data": (pointer + offset, read_only),
            "version": 3,
            **more,
        }


@pytest.fixture
def one_device(monkeypatch):
    """Let an address be taken for one on the first device, where there is no driver to ask."""
    monkeypatch.setattr(cuda_driver, "device_of", lambda array, pointer: 0)


NOWHERE = 16 * 1_000_003  # an address that must not be touched


@pytest.mark.parametrize(
    ("shape", "strides", "order"),
    [
        ((2, 3), None, "C"),
        ((2, 3), (12, 4), "C"),
        ((2, 3), (4, 8), "F"),
        ((2, 3), (24, 8), None),
        ((2, 3), (-12, 4), None),
        ((2, 3), (0, 4), None),
        ((), None, "any"),
        ((5,), None, "any"),
        ((0, 3), None, "any"),
    ],
)
def test_a_view_says_how_an_array_lies_without_touching_it(shape, strides, order, one_device):
    found = buffers.view(Foreign(NOWHERE, shape, strides))
    assert (found.shape, found.dtype) == (shape, np.float32)
    layout = buffers.layout(found)
    assert (layout.device, layout.dtype, layout.order) == ("cuda:0", "float32", order)
    if found.size:
        assert found.ctypes.data == NOWHERE
    if strides:
        assert found.strides == strides
    assert found.flags.writeable
    assert found.stream is None


def test_a_view_knows_types_alignment_streams_and_protection(one_device):
    kinds = {"<f8": np.float64, "<f4": np.float32, "<f2": np.float16}
    kinds.update(dict.fromkeys(["<V2", "|V2"], ml_dtypes.bfloat16))
    for typestr, dtype in kinds.items():
        assert buffers.view(Foreign(NOWHERE, (3,), typestr=typestr)).dtype == dtype
    assert buffers.layout(buffers.view(Foreign(NOWHERE + 1, (3,)))).order is None
    assert buffers.view(Foreign(NOWHERE, (3,), stream=7)).stream == 7
    protected = Foreign(NOWHERE, (3,), read_only=True)
    assert not buffers.view(protected).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        genesis.Parameter(protected)
    with pytest.raises(ValueError, match="share memory"):
        genesis.Parameter(Foreign(NOWHERE, (3, 3), (4, 4)))
    with pytest.raises(TypeError, match="int32"):
        genesis.Parameter(Foreign(NOWHERE, (3,), typestr="<i4"))
    assert genesis.Parameter(Foreign(0, (2, 0))).shape == (2, 0)
    with pytest.raises(ValueError, match=r"shape \(3,\) must have memory, but says address 0"):
        genesis.Parameter(Foreign(0, (3,)))


def test_overlapping_device_arrays_are_refused(one_device):
    p = genesis.Parameter(Foreign(NOWHERE, (4, 6)))
    inside = genesis.Parameter(Foreign(NOWHERE, (4, 3), (24, 8), offset=4))
    with pytest.raises(ValueError, match="share memory"):
        SGD([p, inside], lr=1)
    even = genesis.Parameter(Foreign(NOWHERE, (4, 3), (24, 8)))
    SGD([even, inside], lr=1)
    host = genesis.Parameter(np.ones(3))
    SGD([p, host, genesis.Parameter(Foreign(0, (0,)))], lr=1)


@in_simulator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_foreign_arrays_are_updated_where_they_lie(dtype):
    typestr = "<V2" if dtype == BFLOAT16 else dtype.str
    memory = np.zeros((4, 6), dtype)
    size = memory.itemsize
    forms = [
        ((4, 6), None),
        ((6, 4), (size, 6 * size)),
        ((4, 3), (6 * size, 2 * size)),
        ((0,), None),
    ]
    for shape, strides in forms:
        memory[...] = 1
        data = Foreign(memory, shape, strides, typestr)
        p = genesis.Parameter(data)
        p.grad = Foreign(np.full(shape, 2, dtype), shape, None, typestr)
        assert p.data is data
        SGD([p], lr=0.25).step()
        expected = np.ones((4, 6))
        if shape != (0,):
            expected[:, :: 2 if shape == (4, 3) else 1] = 0.5
        np.testing.assert_array_equal(memory.astype(float), expected)


@in_simulator
def test_work_waits_for_the_producers_stream_and_lets_it_wait(monkeypatch, launches):
    from numba import cuda

    log = []

    class Event:
        def record(self, stream):
            log.append(("record", stream))

        def wait(self, stream):
            log.append(("wait", stream))

    class Stream:
        def __init__(self, handle):
            self.handle = handle

    monkeypatch.setattr(cuda, "event", Event)
    monkeypatch.setattr(cuda, "external_stream", lambda number: number)
    stream = Stream(99)
    memory = np.zeros(3, np.float32)
    p = genesis.Parameter(Foreign(memory, (3,), stream=7))
    p.grad = Foreign(np.ones(3, np.float32), (3,), stream=1)
    opt = SGD([p], lr=1)
    opt.step()  # on the default stream, which is stream 1
    mine = log[1][1]
    expected = [("record", 7), ("wait", mine), ("record", mine), ("wait", 7)]
    assert log == expected
    log.clear()
    opt.step()
    assert log == expected
    log.clear()
    opt.stream = stream
    opt.step()
    default = log[0]  # first of all, what was created on the default stream
    assert log[:2] == [("record", default[1]), ("wait", stream)]
    assert sorted(map(str, log[2:])) == sorted(
        str(entry)
        for other in (1, 7)
        for entry in [("record", other), ("wait", stream), ("record", stream), ("wait", other)]
    )
    np.testing.assert_array_equal(memory, np.full(3, -3))
    log.clear()
    opt.stream = Stream(7)  # there, only the gradient's producer needs to be waited for
    opt.step()
    assert [number for _, number in log[2:]] == [1, opt.stream, opt.stream, 1]
    log.clear()
    # Arrays that are not flat are copied first: that too waits its turn.
    strided = genesis.Parameter(Foreign(np.zeros(6, np.float32), (3,), (8,), stream=7))
    strided.grad = Foreign(np.ones(3, np.float32), (3,))
    launches.clear()
    SGD([strided], lr=1).step()
    assert len(launches) == 3
    assert log == expected * 3


# ---- 64 bits ----


def test_chunks_are_counted_in_64_bits():
    sizes = [2**31 + 5, 3, 2**33]
    chunks = table.cut(sizes, 2**28)
    assert chunks.dtype == np.int64
    assert chunks[-1].tolist() == [2, 2**33 - 2**28, 2**33]
    assert (chunks[:, 2] - chunks[:, 1]).sum() == sum(sizes)
    assert len(chunks) == 9 + 1 + 32


FAR = 2**33 + 40


@pytest.mark.parametrize("dtype", list(storage.BYTES))
@pytest.mark.parametrize("place", [storage, simulated], ids=["compiled", "simulated"])
def test_elements_beyond_32_bits_are_found(place, dtype):
    """Element FAR of an array that begins FAR elements before the memory that there is."""
    compiler = numba.njit if place is storage else lambda function: function
    number = storage.arithmetic(dtype)
    kind = next(t for t, name in buffers.FLOAT_TYPES.items() if name == dtype)
    memory = np.arange(64).astype(kind)
    origin = memory.ctypes.data - FAR * memory.itemsize
    read, write = place.reader((dtype,), number, 0), place.writer((dtype,), number, 0)
    first_aligned = place.first_aligned((dtype,))

    @compiler
    def double(tensors, i):
        (value,) = read(tensors, i)
        write(tensors, i + 1, (value + value,))
        return first_aligned(tensors, i, i + 40)

    aligned = double((origin,), FAR + 20)
    assert memory[21] == 40
    assert FAR + 20 <= aligned < FAR + 36
    assert (origin + aligned * memory.itemsize) % 16 == 0


# ---- vectors of 16 bytes, on the CPU ----


def adam_like(param, grad, state, hyper):
    average, square = state
    lr, beta = hyper
    average = average + beta * (grad - average)
    square = square * beta + grad * grad
    return param - lr * average / square, (average, square)


VECTOR_TYPES = [
    *((dtype,) * 4 for dtype in storage.BYTES),
    ("float16", "float32", "float32", "bfloat16"),
    ("float32", "bfloat16", "float32", "float64"),
    ("bfloat16", "float64", "float64", "float32"),
]


@pytest.mark.parametrize("dtypes", VECTOR_TYPES, ids="-".join)
def test_vectors_compute_what_single_elements_compute(dtypes):
    """The code that a GPU runs for aligned elements, compiled for the CPU."""
    number = storage.arithmetic(dtypes[1])
    width = storage.lanes(dtypes)
    rule = numba.njit(adam_like, error_model="numpy")
    update = storage.lane_updater(rule, dtypes, number, 0)
    read, write = storage.reader(dtypes, number), storage.writer(dtypes[1:], number)

    @numba.njit
    def in_vectors(tensors, scale, hyper):
        for i in range(0, 4 * width, width):
            update(tensors, i, scale, hyper)

    @numba.njit
    def one_by_one(tensors, scale, hyper):
        for i in range(4 * width):
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * scale, values[2:], hyper)
            write(tensors[1:], i, (param,) + state)

    kinds = {name: kind for kind, name in buffers.FLOAT_TYPES.items()}
    rng = np.random.default_rng(0)
    start = [(rng.random(4 * width) + 0.5).astype(kinds[dtype]) for dtype in dtypes]
    scalar = np.dtype(number.name).type
    results = []
    for run_ in (in_vectors, one_by_one):
        memory = [np.zeros(len(a) + 16, a.dtype) for a in start]  # room for alignment
        columns = []
        for room, values in zip(memory, start):
            first = -room.ctypes.data % 16 // room.itemsize
            columns.append(room[first : first + len(values)])
            columns[-1][:] = values
        addresses = tuple(column.ctypes.data for column in columns)
        run_(addresses, scalar(0.5), (scalar(0.1), scalar(0.9)))
        results.append([column.view(f"u{column.itemsize}").copy() for column in columns])
    assert_same(*results)
    for before, after in zip(start[1:], results[0][1:]):
        assert (before.view(after.dtype) != after).mean() > 0.8


@pytest.mark.parametrize("dtypes", VECTOR_TYPES, ids="-".join)
def test_the_first_aligned_element(dtypes):
    """The compiled search, beside the simulator's, which tries one element after the other."""
    find, expected = storage.first_aligned(dtypes), simulated.first_aligned(dtypes)
    compiled = numba.njit(lambda tensors, start, stop: find(tensors, start, stop))
    rng = np.random.default_rng(0)
    aligned = 0
    for _ in range(400):
        common = int(rng.integers(0, 16))
        tensors = tuple(
            4096 * (k + 1)
            + storage.BYTES[d] * (common if rng.random() < 0.8 else int(rng.integers(16)))
            for k, d in enumerate(dtypes)
        )
        start = int(rng.integers(0, 40))
        stop = start + int(rng.integers(0, 40))
        found = compiled(tensors, start, stop)
        assert found == expected(tensors, start, stop), (tensors, start, stop)
        aligned += found < stop
    assert aligned > 50


# ---- without a device ----


@pytest.fixture
def forgotten():
    """Let what was found out about CUDA be found out again."""
    cuda_driver.cuda.cache_clear()
    yield
    cuda_driver.cuda.cache_clear()


def test_unknown_devices_are_refused():
    p = genesis.Parameter(np.ones(3))
    for bad in ("gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", "", 0, None):
        with pytest.raises(ValueError, match='device must be "cpu", "cuda" or "cuda:N"'):
            p.to(bad)
        with pytest.raises(ValueError, match="device must be"):
            SGD([p], lr=1).to(bad)
    assert p.to("cpu") is p


@in_simulator
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'cuda:1' is not among the 1 devices here"):
        genesis.Parameter(np.ones(3)).to("cuda:1")


def test_without_numba_cuda_the_error_names_the_extra(monkeypatch, forgotten):
    monkeypatch.setattr(cuda_driver, "find_spec", lambda name: None)
    p = genesis.Parameter(np.ones(3))
    p.grad = np.ones(3)
    opt = Adam([p])
    opt.step()
    for move in (p.to, opt.to):
        with pytest.raises(RuntimeError, match=r"numba-cuda.* not installed.*genesis-optim\[cu1"):
            move("cuda")
    assert p.device == "cpu"
    opt.step()
    assert opt.state[p]["step"] == 2


@on_cpu_only
@needs_numba_cuda
def test_without_a_driver_the_error_says_so_and_names_the_extra(forgotten):
    from numba import cuda

    if cuda.is_available():
        pytest.skip("there is a device here")
    p = genesis.Parameter(np.ones(3))
    for device in ("cuda", "cuda:0", "cuda:7"):
        with pytest.raises(
            RuntimeError, match=r"no CUDA device.*driver.*genesis-optim\[cu1"
        ) as error:
            p.to(device)
        assert "\n" not in str(error.value)
    Adam([p]).step(grads=[np.ones(3)])
