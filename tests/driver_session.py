"""What test_driver.py runs in a process of its own, where `libcuda.so.1` is fake_driver.c.

Prints what it found as JSON. No kernel runs, so no number that an update gives means anything.
"""

import ctypes
import gc
import json
import threading
import warnings

import numpy as np
from attack_tools import lines_run
from cases import BFLOAT16, DTYPES
from numba import cuda

import genesis
from genesis import buffers

driver = None  # the pretended one, once it is loaded


def counts():
    return np.array([driver.fake_launched(), driver.fake_waited(), driver.fake_sent()])


def model(tensors, dtype=np.float32, size=544):
    params = [genesis.Parameter(np.ones(size + i, dtype)).to("cuda") for i in range(tensors)]
    for p in params:
        p.grad = on_device(np.ones(p.shape, dtype))
    return params, genesis.optim.AdamW(params)


def on_device(array):
    return buffers.put(array, "cuda:0")


def arrays_survive_the_way():
    wrong = []
    for dtype in DTYPES:
        for shape in [(3, 4), (5,), (), (0,), (0, 3)]:
            for order in "CF":
                array = (
                    np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype, order=order)
                )
                p = genesis.Parameter(array)
                p.grad = array + array
                q = p.to("cuda")
                back = q.to("cpu")
                opt = genesis.optim.AdamW([q])
                opt.step()
                state = opt.state_dict()["state"][0]["exp_avg"]
                same = (
                    q.dtype == q.data.dtype == back.dtype == dtype
                    and np.array_equal(q.numpy(), array)
                    and np.array_equal(back.data, array)
                    and np.array_equal(back.grad, p.grad)
                    and np.array_equal(state, np.zeros(shape))
                )
                grad = q.grad
                # After a step zeros come from a kernel, which is not executed here; before, from memset.
                genesis.optim.AdamW([q]).zero_grad(set_to_none=False)
                same &= q.grad is grad and not buffers.host_copy(grad).any()
                opt.to("cpu").step()
                if not same:
                    wrong.append(f"{dtype} {shape} {order}")
    return wrong


def views_say_what_numba_says():
    base = on_device(np.arange(24, dtype=np.float32).reshape(4, 6))
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    wrong = []
    everything = slice(None)
    for key in [
        (everything, slice(None, None, 2)),
        slice(1, 3),
        (everything, 1),
        slice(None, None, -1),
        slice(None, None, 2),
        slice(3, 1),
    ]:
        if not np.array_equal(buffers.view(base[key]).view(np.ndarray), host[key]):
            wrong.append(str(key))
    spread = buffers.view(cuda.to_device(np.broadcast_to(np.float32(2), (4, 6))))
    if spread.strides != (0, 0):
        wrong.append("broadcast")
    return wrong


def launch_arguments(dtype):
    """Whether a launch gets the table, the chunks and the scalars as a kernel expects them."""
    _, opt = model(1, dtype, size=300_000)
    driver.fake_watch(26)
    opt.step()
    driver.fake_watch(0)
    (bucket,) = opt._plans[0].plans[0].buckets
    scalars, chunks = bucket.launch._scalars, bucket.launch._table.chunks
    got = [driver.fake_argument(i) for i in range(26)]
    size = scalars.itemsize
    gc.collect()
    cuda.current_context().deallocations.clear()
    factor = np.ctypeslib.as_array((ctypes.c_char * size).from_address(got[22])).view(scalars.dtype)
    shown = np.array(got[25:26], np.uint64).view(scalars.dtype)[0]
    pointers = got[4], got[13], got[22]
    return {
        "grid": [driver.fake_grid(0), driver.fake_grid(1)],
        "chunks": len(chunks),
        "shapes": [got[2:4], got[5:9], got[11:13], got[14:18], got[20:22], got[23:25]],
        "expected": [
            [4, 8],
            [1, 4, 32, 8],
            [3 * len(chunks), 8],
            [len(chunks), 3, 24, 8],
            [1, size],
            [1, size],
        ],
        "table": np.array_equal(
            np.ctypeslib.as_array((ctypes.c_int64 * 4).from_address(pointers[0])),
            bucket.launch._table.addresses[0],
        ),
        "chunk table": np.array_equal(
            np.ctypeslib.as_array((ctypes.c_int64 * 3).from_address(pointers[1])), chunks[0]
        ),
        "scale": float(shown),
        "factor": float(factor[0]),
    }


def steps(tensors):
    """Launches, waits and transfers of steps, and the host's work, by kind of gradients."""
    params, opt = model(tensors)
    opt.step()
    before = counts()
    for _ in range(10):
        opt.step()
    steady = (counts() - before).tolist()
    lines = lines_run(opt.step)
    sets = [[on_device(np.ones(p.shape, np.float32)) for p in params] for _ in range(2)]
    before = counts()
    for i in range(10):
        for p, grad in zip(params, sets[i % 2]):
            p.grad = grad
        opt.step()
    return {
        "steady": steady,
        "fresh": (counts() - before).tolist(),
        "lines": lines,
    }


def table_follows():
    params, opt = model(20)
    kept, same = [], []
    for step in range(5):
        for i, p in enumerate(params):
            if (i * 7 + step) % 3 == 0:
                p.grad = on_device(np.ones(p.shape, np.float32))
                kept.append(p.grad)
        driver.fake_watch(26)
        opt.step()
        driver.fake_watch(0)
        table = ctypes.c_int64 * 80
        there = np.ctypeslib.as_array(table.from_address(driver.fake_argument(4))).reshape(20, 4)
        here = [p.grad.device_ctypes_pointer.value for p in params]
        same.append(np.array_equal(there[:, 0], here))
    return all(same)


def strided():
    base = on_device(np.ones((4, 6), np.float32))
    p = genesis.Parameter(base[:, ::2])
    p.grad = on_device(np.ones((3, 4), BFLOAT16).T)
    opt = genesis.optim.SGD([p], lr=1)
    opt.step()
    before = counts()
    opt.step()
    return (counts() - before).tolist()


def other_threads_and_streams():
    _, opt = model(1)
    errors = []

    def work():
        try:
            opt.step()
        except BaseException as error:
            errors.append(repr(error))

    with cuda.gpus[0]:
        opt.step()
    opt.step()
    before = counts()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    opt.stream = stream = cuda.stream()
    opt.step()
    on_stream = driver.fake_stream() == int(stream.handle)
    opt.stream = None
    opt.step()
    return {
        "errors": errors,
        "on stream": on_stream,
        "on default": not driver.fake_stream(),
        "launches": int((counts() - before)[0]),
    }


def main():
    global driver
    warnings.simplefilter("error")
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_argument.restype = ctypes.c_uint64
    driver.fake_stream.restype = ctypes.c_void_p
    for function in (driver.fake_launched, driver.fake_waited, driver.fake_sent):
        function.restype = ctypes.c_long
    print(
        json.dumps(
            {
                "arrays": arrays_survive_the_way(),
                "views": views_say_what_numba_says(),
                "arguments": [launch_arguments(dtype) for dtype in (np.float32, np.float64)],
                "steps": {tensors: steps(tensors) for tensors in (1, 100)},
                "table": table_follows(),
                "strided": strided(),
                "others": other_threads_and_streams(),
            }
        )
    )


if __name__ == "__main__":
    main()
