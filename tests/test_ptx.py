"""Every update kernel as PTX, the GPU's assembly, read without a GPU.

The kernels are those that `genesis.kernels.cuda` launches, compiled for two generations of GPUs. What
a reader of the PTX would look for is checked here: no double precision where none is wanted, nothing
spilled to local memory, wide loads and stores, division and square root rounded as on the CPU.
"""

import math
import re
from functools import lru_cache, partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from cases import CASES
from devices import WITHOUT_NUMBA_CUDA

import genesis
from genesis import cuda_driver
from genesis.buffers import FLOAT_TYPES
from genesis.kernels import reductions, storage, transforms

if cuda_driver.SIMULATED:
    pytest.skip("numba's CUDA simulator compiles nothing", allow_module_level=True)
if find_spec("numba_cuda") is None:
    pytest.skip(WITHOUT_NUMBA_CUDA, allow_module_level=True)

import numba.cuda.dispatcher
from numba import cuda

from genesis.kernels.cuda import templates as target

CAPABILITIES = [(8, 0), (9, 0)]
DTYPES = list(FLOAT_TYPES.values())


def kernels_of(cases):
    """Every rule that a row of the table of cases uses: its buffers, its scalars, and its numbers of a
    tensor."""
    found = {}
    for case in cases:
        opt = case.make([genesis.Parameter(np.ones(1))])
        written = opt._recipe.written_for(opt.param_groups[0])
        found[written.rule.__name__] = (
            written.rule,
            len(written.states),
            written.count,
            written.numbers,
        )
    return found


KERNELS = kernels_of(CASES)
WIDEST = max(KERNELS, key=lambda name: KERNELS[name][1])
NARROW = {*kernels_of([case for case in CASES if case.peer == "torch"]), WIDEST}
"""For conversions, which know no formula: torch's rules, and that with the most buffers, where registers
could run out."""
MIXED = [  # gradient, parameter, state
    ("float16", "float32", "float32"),
    ("bfloat16", "float32", "float32"),
    ("float32", "float32", "bfloat16"),
]


@pytest.fixture(params=CAPABILITIES, ids=lambda version: "cc{}{}".format(*version))
def capability(request, monkeypatch):
    """A compute capability, which stands in for the device that numba-cuda would ask."""
    device = SimpleNamespace(compute_capability=request.param)
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: device)
    return request.param


def ptx_of(template, signature, capability):
    ptx, _ = cuda.compile_ptx(template, signature, cc=capability)
    assert ".target sm_{}{}".format(*capability) in ptx
    return ptx


@lru_cache(maxsize=None)
def template_of(rule, storages, scalars, capability, numbers):
    """As the target makes it, but anew for each capability: device functions are compiled for one."""
    return target.template_of(rule, storages, scalars, numbers)


def compiled(rule, storages, scalars, capability, numbers=0):
    return ptx_of(*template_of(rule, storages, scalars, capability, numbers), capability)


# ---- what is looked for: each function returns what it finds wrong ----


def instructions(ptx):
    """The lines of the kernel's body, without names, which may hold anything."""
    body = ptx[ptx.index("\n{") :]
    return [line.split("//")[0].strip() for line in body.splitlines()]


def double_precision(ptx):
    return [line for line in instructions(ptx) if ".f64" in line]


def spilled(ptx):
    return [line for line in instructions(ptx) if "__local_depot" in line or ".local" in line]


def calls(ptx):
    return [line for line in instructions(ptx) if re.match(r"(@\S+ )?call\b", line)]


def approximations(ptx):
    """Divisions and square roots that are not rounded to nearest, and numbers flushed to zero."""
    inexact = re.compile(r"\b(div|sqrt|rcp|rsqrt)\.(?!rn\.f(32|64)\b)(?=\S*f(32|64))|\.ftz\b")
    return [line for line in instructions(ptx) if inexact.search(line)]


WIDE = {"float64": "v2.f64", "float32": "v4.f32", "float16": "v4.u32", "bfloat16": "v4.u32"}


def narrow_columns(ptx, storages):
    """Kinds of access that have fewer 16-byte instructions than the columns need."""
    width = storage.lanes(storages)
    missing = []
    for access, columns in [("ld", storages), ("st", storages[1:])]:
        for form in set(WIDE.values()):
            needed = sum(
                width * storage.BYTES[dtype] // storage.VECTOR
                for dtype in columns
                if WIDE[dtype] == form
            )
            found = sum(f"{access}.global.{form}" in line for line in instructions(ptx))
            if found < needed:
                missing.append(f"{access}.global.{form}: {found} of {needed}")
    return missing


def short_indices(ptx):
    """Places where 32 bits enter the arithmetic of addresses, other than a thread's own number."""
    thread = re.findall(r"mov\.u32\s+(%r\d+), %n?(?:tid|ctaid)\.x", ptx)
    widening = re.compile(r"(mul\.wide|mad\.wide|cvt\.[us]64)\.[us]32\b")
    return [
        line
        for line in instructions(ptx)
        if widening.match(line) and not set(thread) & set(re.findall(r"%r\d+", line))
    ]


def assert_good(ptx, storages):
    assert not spilled(ptx)
    assert not calls(ptx)
    assert not approximations(ptx)
    assert not narrow_columns(ptx, storages)
    assert not short_indices(ptx)
    if "float64" not in storages:
        assert not double_precision(ptx)


# ---- the kernels ----


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in KERNELS for dtype in DTYPES if "16" not in dtype),
        *((name, dtype) for name in sorted(NARROW) for dtype in DTYPES if "16" in dtype),
    ],
)
def test_kernels_of_one_data_type(name, dtype, capability):
    rule, buffers, scalars, numbers = KERNELS[name]
    storages = (dtype,) * (2 + buffers)
    assert_good(compiled(rule, storages, scalars, capability, numbers), storages)


@pytest.mark.slow
@pytest.mark.parametrize("types", MIXED, ids="-".join)
@pytest.mark.parametrize("name", sorted(NARROW))
def test_kernels_of_mixed_data_types(name, types, capability):
    rule, buffers, scalars, numbers = KERNELS[name]
    storages = (*types[:2], *types[2:] * buffers)
    assert_good(compiled(rule, storages, scalars, capability, numbers), storages)


@pytest.mark.parametrize("types", MIXED, ids="-".join)
def test_adamw_of_mixed_data_types(types, capability):
    rule, buffers, scalars, _ = next(k for name, k in KERNELS.items() if name.startswith("AdamW_"))
    storages = (*types[:2], *types[2:] * buffers)
    assert_good(compiled(rule, storages, scalars, capability), storages)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adamw_that_clips_elements(dtype, capability):
    rule, buffers, scalars, _ = next(k for name, k in KERNELS.items() if name.startswith("AdamW_"))
    storages = (dtype,) * (2 + buffers)
    clipping = target.rule_with_clip.__wrapped__(rule)  # anew: it is compiled for one capability
    assert_good(compiled(clipping, storages, scalars + 1, capability), storages)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adamw_that_averages(dtype, capability):
    rule, buffers, scalars, _ = next(k for name, k in KERNELS.items() if name.startswith("AdamW_"))
    storages = (dtype,) * (3 + buffers)
    averaging = target.rule_with_average.__wrapped__(rule)
    assert_good(compiled(averaging, storages, scalars + 2, capability), storages)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_adamw_that_is_measured(dtype, capability):
    rule, buffers, scalars, _ = next(k for name, k in KERNELS.items() if name.startswith("AdamW_"))
    storages = (dtype,) * (2 + buffers)
    template = target.template_of(rule, storages, scalars, measures=True)
    ptx = ptx_of(*template, capability)
    assert not spilled(ptx)
    assert not calls(ptx)
    assert not approximations(ptx)
    assert not narrow_columns(ptx, storages)
    assert dtype == "float64" or not double_precision(ptx)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_kernels_that_sum_up(dtype, capability):
    written = genesis.optim.LAMB._recipe.written_for({"bias_correction": True, "adapt": True})
    storages, sums = (dtype,) * 4, written.sums
    summand = target.summand_of.__wrapped__(sums.summand, sums.states, sums.scalars, None)
    scalars = written.count
    ptx = ptx_of(
        *target.sum_template_of(summand, storages, scalars, sums.totals, False), capability
    )
    assert not spilled(ptx)
    assert not calls(ptx)
    assert not approximations(ptx)
    assert dtype == "float64" or not double_precision(ptx)
    ptx = ptx_of(*target.finish_template_of(sums.finish, storages, scalars, sums), capability)
    assert not spilled(ptx)
    assert not calls(ptx)
    assert double_precision(ptx)  # sums of sums are to be wide


@genesis.rule
def OfAll(param, grad, v=genesis.per_tensor(), d=genesis.overall(), *, lr=0.1):
    d = d + genesis.total(d * grad + v * param, over="all") / lr
    v = v + genesis.total(grad * grad)
    return param - d * grad / math.sqrt(v), v, d


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_of_numbers_of_tensors_and_of_all(dtype, capability):
    written = OfAll._recipe.written_for({})
    storages, sums = (dtype,) * 2, written.sums
    own = sums.states, sums.early + sums.scalars
    summand = target.summand_of.__wrapped__(sums.summand, *own, None)
    what = written.count, sums.summed, False, sums.early
    of_all = sums.totals_of_all, sums.kept_of_all, sums.scalars_of_all
    made = [
        target.sum_template_of(summand, storages, *what),
        target.begin_template_of(sums.begin, storages, written.count, sums),
        target.finish_template_of(sums.finish, storages, written.count, sums),
        target.combine_template_of(sums.carry, *of_all),
    ]
    for i, (template, signature) in enumerate(made):
        ptx = ptx_of(template, signature, capability)
        assert not spilled(ptx)
        assert not calls(ptx)
        assert not approximations(ptx)
        # What is summed up is as wide as the tensors, what follows from it is wide.
        assert bool(double_precision(ptx)) is (i > 0 or dtype == "float64")


def other_kernels():
    """Every kernel that is no update: its name, template and signature, and its arithmetic."""
    for dtype in DTYPES:
        number = storage.arithmetic(dtype).name
        yield f"copy-{dtype}", partial(target.copy_template_of, dtype), number
        for function in (transforms.fill, transforms.scale, transforms.clamp):
            scalars = 2 if function is transforms.clamp else 1
            make = partial(target.transform_template_of, function, (dtype,), number, scalars)
            yield f"{function.__name__}-{dtype}", make, number
        for norm_type in (2.0, 1.0, np.inf, -np.inf, 0.0, 3.0):
            reduction = reductions.reduction_for(norm_type)
            make = partial(target.reduction_template_of, reduction, (dtype,), number)
            yield f"norm{norm_type:g}-{dtype}", make, number
        make = partial(target.reduction_template_of, reductions.small_squares, (dtype,), number)
        yield f"small-norm2-{dtype}", make, number
    for number in ("float32", "float64"):
        yield f"clip-{number}", partial(target.clip_template_of, number), number


OTHERS = {name: (make, number) for name, make, number in other_kernels()}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels(name, capability):
    make, number = OTHERS[name]
    ptx = ptx_of(*make(), capability)
    assert not spilled(ptx)
    if not name.startswith("norm3"):  # whose power is a function of CUDA's, in its own precision
        assert not calls(ptx)
        assert not approximations(ptx)
        assert number == "float64" or not double_precision(ptx)


# ---- the checks themselves: each sees what it is there to see ----


def threshold(param, grad, state, hyper):
    return (param - grad if grad > 0.1 else param), state


def literal(param, grad, state, hyper):
    return param - grad * 0.1, state


def test_a_literal_in_a_rule_is_seen(capability):
    storages = ("float32", "float32")
    assert double_precision(compiled(threshold, storages, 1, capability))
    with pytest.raises(AssertionError):
        assert_good(compiled(threshold, storages, 1, capability), storages)
    with pytest.raises(TypeError, match="float not double"):
        compiled(literal, storages, 1, capability)


def plain(numbers, more, position):
    i = cuda.grid(1)
    numbers[i] = (numbers[i] + more[i]) / more[i + 1]


def spilling(numbers, more, position):
    kept = cuda.local.array(16, numba.float32)
    for k in range(16):
        kept[k] = numbers[k]
    numbers[0] = kept[position]


def numba_array():
    return numba.types.Array(numba.float32, 1, "C")


def short(numbers, more, position):
    i = numba.int32(position) * numba.int32(3)
    numbers[i] = more[i]


def test_short_indices_are_seen(capability):
    signature = numba.void(numba_array(), numba_array(), numba.int64)
    assert short_indices(ptx_of(short, signature, capability))
    assert not short_indices(ptx_of(plain, signature, capability))


def test_spilling_and_narrow_access_are_seen(capability):
    signature = numba.void(numba_array(), numba_array(), numba.int64)
    assert spilled(ptx_of(spilling, signature, capability))
    ptx = ptx_of(plain, signature, capability)
    assert not spilled(ptx)
    assert narrow_columns(ptx, ("float32", "float32"))


def test_approximate_division_is_seen(capability):
    signature = numba.void(numba_array(), numba_array(), numba.int64)
    fast, _ = cuda.compile_ptx(plain, signature, cc=capability, fastmath=True)
    assert approximations(fast)
    assert not approximations(ptx_of(plain, signature, capability))


def test_calls_are_seen():
    assert calls("\n{\n\tcall.uni (retval0), __nv_powf, ();\n}")
    assert not calls("\n{\n\tmov.u32 %r1, %r2; // callseq\n}")
