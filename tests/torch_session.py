"""What test_torch_cuda.py runs in processes of their own: genesis.torch on a GPU that is none.

Torch for the CPU has no tensors of a GPU, so its own are taken for such: in numba's simulator, whose
kernels reach them by address and really run, and on the pretended driver, where no kernel runs and
launches, transfers and waits are counted. Prints what it found as JSON.
"""

import copy
import ctypes
import json
import sys
import warnings

import numpy as np
import torch

import genesis
import genesis.torch as ours
from genesis.torch import plan, tensors

Parameter = torch.nn.Parameter
SHAPES = [(7, 5), (), (0,), (3, 2, 2, 2)]
streams = [0]
recorded = []


def pretend():
    """Let torch's tensors on the CPU, but for numbers in the state, be on a GPU."""

    def about(self, place):
        return self.functions, self.within, self.kinds, (self.devices["cpu"], -1)

    tensors.Handles.about = about
    tensors._out_of_reach = lambda kind: None
    for module in (tensors, plan):
        module.place_of = lambda tensor: "cuda:0"
        module.stream_of = lambda place: streams[0]
    plan.record = lambda some, place: recorded.append(len(list(some)))


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    made = [Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES]
    made[3].data = made[3].data.contiguous(memory_format=torch.channels_last)
    return made


def set_gradients(step, *lists):
    generator = torch.Generator().manual_seed(100 + step)
    for params in zip(*lists):
        grad = torch.randn(params[0].shape, generator=generator)
        for param in params:
            param.grad = grad.to(param.dtype, copy=True)


def far(some, others, tolerance):
    return [
        i
        for i, (a, b) in enumerate(zip(some, others))
        if not torch.allclose(
            a.detach().float(), b.detach().float(), rtol=tolerance, atol=tolerance
        )
    ]


def trajectories():
    """Which of torch's optimizers, on which types, step elsewhere than torch does."""
    wrong = []
    settings = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 0.1}, "NAdam": {"lr": 0.1}}
    for name, given in settings.items():
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
            params, others = parameters(dtype), parameters(dtype)
            optimizer = getattr(ours, name)(params, strict=True, **given)
            peer = getattr(torch.optim, name)(others, **given)
            for step in range(3):
                set_gradients(step, params, others)
                if step == 2:
                    torch.nn.utils.clip_grad_norm_(others, 0.5)
                optimizer.step(max_norm=0.5 if step == 2 else None)
                peer.step()
                if step == 0 and dtype == torch.float32:  # in the middle, there and back
                    peer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
            if far(params, others, tolerance) or optimizer.fast != (4, 0, 0, {}):
                wrong.append([name, str(dtype), str(optimizer.fast)])
            if optimizer.grad_norm is None or not optimizer.grad_norm > 0.5:
                wrong.append([name, "norm", optimizer.grad_norm])
    return wrong


def options():
    """Masters and averages: the same as on the CPU, where they have tests of their own."""
    params = parameters(torch.bfloat16)
    arrays = [genesis.Parameter(p.detach().float().numpy().copy()) for p in params]
    optimizer = ours.AdamW(params, lr=0.1, master_weights=True, ema_decay=0.5)
    other = genesis.optim.AdamW(arrays, lr=0.1, ema_decay=0.5)
    for step in range(3):
        set_gradients(step, params)
        for param, array in zip(params, arrays):
            array.grad = param.grad.float().numpy()
        optimizer.step()
        other.step()
    wrong = []
    for param, array in zip(params, arrays):
        entries = optimizer.state[param]
        for name, value in (("master", array.data), ("ema", other.state[array]["ema"])):
            if not np.allclose(entries[name].numpy(), np.asarray(value), rtol=2e-6, atol=2e-6):
                wrong.append(name)
        if not torch.equal(param, entries["master"].bfloat16()):
            wrong.append("parameter")
    return wrong


def refusal():
    """Random rounding is for the CPU only: an error before anything is written."""
    (param,) = parameters(torch.bfloat16)[:1]
    before = param.detach().clone()
    optimizer = ours.SGD([param], lr=0.1, stochastic_rounding=True)
    set_gradients(0, [param])
    try:
        optimizer.step()
    except NotImplementedError as error:
        return str(error) if torch.equal(param, before) else "written"
    return "nothing"


def on_the_driver():
    """Launches, waits and transfers of steps, their streams, and whether tables follow."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_argument.restype = ctypes.c_uint64
    driver.fake_stream.restype = ctypes.c_void_p
    for function in (driver.fake_launched, driver.fake_waited, driver.fake_sent):
        function.restype = ctypes.c_long

    def counts():
        return np.array([driver.fake_launched(), driver.fake_waited(), driver.fake_sent()])

    params = [Parameter(torch.ones(544 + i)) for i in range(20)]
    optimizer = ours.AdamW(params, lr=0.1, strict=True)
    for _ in range(2):
        set_gradients(0, params)
        optimizer.step()
    before = counts()
    for _ in range(10):
        optimizer.step()
    found = {"steady": (counts() - before).tolist()}
    before, follows = counts(), []
    for step in range(10):
        set_gradients(step, params)
        driver.fake_watch(26)
        optimizer.step()
        driver.fake_watch(0)
        table = (ctypes.c_int64 * 80).from_address(driver.fake_argument(4))
        there = np.ctypeslib.as_array(table).reshape(20, 4)
        here = [[p.grad.data_ptr(), p.data_ptr()] for p in params]
        follows.append(np.array_equal(there[:, :2], here))
    found["fresh"] = (counts() - before).tolist()
    found["table"] = all(follows)
    before = counts()
    optimizer.step(max_norm=1.0)
    found["clipped"] = (counts() - before).tolist()[:2]
    found["recorded before"] = list(recorded)
    streams[0] = 0x51EA4
    optimizer.step()
    found["stream"] = driver.fake_stream()
    found["recorded"] = list(recorded)
    streams[0] = 0
    optimizer.step()
    found["default"] = driver.fake_stream()
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "__int__ returned non-int")  # numba-cuda's own, of streams
    pretend()
    if sys.argv[1] == "driver":
        print(json.dumps(on_the_driver()))
    else:
        everything = {f.__name__: f() for f in (trajectories, options, refusal)}
        print(json.dumps(everything))
