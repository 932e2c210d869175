"""Lets every allocation of a step fail, one after the other; run by test_per_tensor.py.

The k-th allocation (Python's or NumPy's own, through CPython's allocators) and some that follow it
fail, for k = 1, 2, ... (or at a distance that is given) until a step needs no more. Each k has a
process of its own, since NumPy does not survive the loss of every allocation
(`ndarray.__array_interface__` for one crashes). Not all that follow fail, since CPython 3.11 cannot
leave a `with` block without memory: it tries for ever. Prints
in how many steps MemoryError was raised, and in how many NumPy died; fails if a step was neither
complete nor not begun, or if too few could be tried.
"""

import gc
import os
import sys
from _testcapi import remove_mem_hooks, set_nomemory

import numpy as np
from interrupts import everything

import genesis


def optimizer(name: str) -> genesis.optim.Optimizer:
    rng = np.random.default_rng(1)
    shapes = [(3, 2), (2, 3), (5,) if name == "Adafactor" else (2, 2)]
    parameters = []
    for i, shape in enumerate(shapes):
        dtype = (np.float32, np.float64, np.float16)[i % 3]
        parameters.append(genesis.Parameter(np.array(rng.standard_normal(shape), dtype)))
        parameters[-1].grad = np.array(rng.standard_normal(shape), dtype)
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}]
    return getattr(genesis.optim, name)(groups)


def starve(name: str, steps_before: int, failing: int, distance: int) -> tuple[int, int]:
    """The number of steps that failed, and of those in which NumPy or the interpreter came to grief.

    As many allocations as `failing` says fail, one after the other; then others, at a distance.
    """
    attacked, twin = optimizer(name), optimizer(name)
    for _ in range(steps_before):
        attacked.step()
        twin.step()
    before = everything(twin)
    twin.step()
    after = everything(twin)
    failed = dead = complete = k = 0
    while complete < 20:  # in a row: NumPy can do without some
        k += distance
        process = os.fork()
        if process == 0:
            os._exit(starved(attacked, k, k + failing, before, after))
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == DAMAGED:
            dead += 1
            continue
        complete = complete + 1 if os.WEXITSTATUS(status) == COMPLETE else 0
        failed += os.WEXITSTATUS(status) == NOT_BEGUN
        if os.WEXITSTATUS(status) not in (COMPLETE, NOT_BEGUN):
            sys.exit(f"{name}: allocation {k} after {steps_before} steps left half a step")
    return failed, dead


COMPLETE, NOT_BEGUN, HALF, DAMAGED = 10, 11, 12, 13


def starved(attacked: genesis.optim.Optimizer, k: int, stop: int, before: dict, after: dict) -> int:
    failed = False
    set_nomemory(k, stop)
    try:
        attacked.step()
    except (MemoryError, SystemError, AttributeError, TypeError):
        # The second is NumPy's where it forgets to say what is wrong, the others CPython's where it has
        # no memory to look for an attribute, or (3.13) for its name.
        failed = True
    finally:
        remove_mem_hooks()
    found = everything(attacked)
    if found == after and not failed:
        return COMPLETE
    if found == before and failed:
        try:
            attacked.step()  # and it can go on
        except TypeError as error:
            if "attribute name must be string" not in str(error):
                raise
            return DAMAGED  # CPython 3.13 has lost a name that it was about to look up
        return NOT_BEGUN if everything(attacked) == after else HALF
    return HALF


if __name__ == "__main__":
    gc.disable()
    for steps_before, failing in ((0, 30), (2, 1)):
        distance = int(sys.argv[2])
        failed, dead = starve(sys.argv[1], steps_before, failing, distance)
        print(failed, dead)
        if failed < 100 / distance or dead > failed / 10:
            sys.exit(f"{dead} of {failed + dead} attempts ended in NumPy")
