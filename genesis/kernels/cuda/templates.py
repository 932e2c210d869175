"""The code that runs on a GPU, and what makes it into kernels for certain rules and storage types.

Each block works through chunks of a table, its threads side by side on neighbouring vectors of 16 bytes
a column; elements before the first aligned one and after the last whole vector go one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from ... import cuda_driver
from .. import reductions
from ..averaging import averaged
from ..clipping import clipped
from ..compiling import Kept
from ..copies import with_copy
from ..specialise import anew, described, specialised
from ..summing import of_columns, whole, within

if TYPE_CHECKING:
    from ..sums import Sums

if cuda_driver.SIMULATED:
    from .. import simulated as storage

    storage.share_arrays()
else:
    from .. import storage  # type: ignore[no-redef]

cuda = cuda_driver.compiler()
device_function = storage.device_function if cuda_driver.SIMULATED else cuda.jit(device=True)


def _device_rule(rule: Callable) -> Any:
    """A rule as kernels can call it; in the simulator it is a Python function, as all it calls."""
    if cuda_driver.SIMULATED:
        return device_function(rule)
    return device_function(anew(rule, lambda function, like: device_function(function)))


# In the simulator every thread is a Python thread; a few show the same logic as many.
THREADS = 4 if cuda_driver.SIMULATED else 256

_TABLE = types.Array(types.int64, 2, "C")

# Names for which specialised kernels have functions, types and numbers (see `specialise`).
rule = combined = row_of = read = write = update_lanes = first_aligned = LANES = NUMBER = None
given = add = clip = numbers_of = totals_of = write_numbers = None
begin = finish = carry = kept_of = all_of = write_kept = read_wide = None
stored = read_back = SIZE = None
COUNT = SCALARS = TOTALS = NUMBERS = ZEROS = WIDE_ZERO = WIDE_ZEROS = KEPT = NOW = None


def update(addresses, chunks, factor, scalars):
    """Apply the rule to every element of every chunk.

    Args:
        addresses, chunks: the table, int64.
        factor: one number on the device by which gradients are multiplied, such as a clip factor.
        scalars: another such number, known to the host, and the rule's scalars.
    """
    thread = cuda.threadIdx.x
    threads = cuda.blockDim.x
    scale = scalars[0] * factor[0]
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:  # `range` would divide, in 64 bits, to count its rounds
        start = chunks[chunk, 1]
        stop = chunks[chunk, 2]
        tensors = row_of(addresses, chunks[chunk, 0])
        hyper = given(addresses, chunks[chunk, 0], scalars)
        first = first_aligned(tensors, start, stop)
        last = first + (stop - first) // LANES * LANES
        i = first + thread * LANES
        while i < last:
            update_lanes(tensors, i, scale, hyper)
            i += threads * LANES
        before = first - start
        single = thread
        while single < before + stop - last:
            i = start + single if single < before else last + single - before
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * scale, values[2:], hyper)
            write(tensors[1:], i, (param,) + state)
            single += threads
        chunk += cuda.gridDim.x


def update_and_measure(addresses, chunks, results, factor, scalars):
    """As `update`, and sum up, over each chunk, the squares of how far parameters moved and of what they
    were, always in the same order.

    Args:
        addresses, chunks, factor, scalars: see `update`.
        results: the two sums of each chunk.
    """
    shared = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    threads = cuda.blockDim.x
    scale = scalars[0] * factor[0]
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        start = chunks[chunk, 1]
        stop = chunks[chunk, 2]
        tensors = row_of(addresses, chunks[chunk, 0])
        hyper = given(addresses, chunks[chunk, 0], scalars)
        totals = ZEROS
        first = first_aligned(tensors, start, stop)
        last = first + (stop - first) // LANES * LANES
        i = first + thread * LANES
        while i < last:
            totals = add(totals, update_lanes(tensors, i, scale, hyper))
            i += threads * LANES
        before = first - start
        single = thread
        while single < before + stop - last:
            i = start + single if single < before else last + single - before
            values = read(tensors, i)
            param, state = rule(values[1], values[0] * scale, values[2:], hyper)
            write(tensors[1:], i, (param,) + state)
            change = stored(tensors, i, param) - values[1]
            totals = add(totals, (change * change, values[1] * values[1]))
            single += threads
        for k in range(TOTALS):
            shared[thread] = totals[k]
            cuda.syncthreads()
            half = THREADS // 2
            while half > 0:
                if thread < half:
                    shared[thread] = shared[thread] + shared[thread + half]
                cuda.syncthreads()
                half //= 2
            if thread == 0:
                results[chunk * TOTALS + k] = shared[0]
            cuda.syncthreads()
        chunk += cuda.gridDim.x


def as_computed(tensors, i, param):
    """What a parameter is after an update that stores it as it was computed."""
    return param


def as_stored(tensors, i, param):
    """What a parameter is after an update, where it was rounded when it was stored."""
    return read_back(tensors[1:2], i)[0]


def scalars_alone(addresses, row, scalars):
    """What a rule takes besides elements: its scalars, which come behind the factor on gradients."""
    return scalars[1:]


def numbers_and_scalars(addresses, row, scalars):
    """As `scalars_alone`, with the numbers of the tensor before, whose address is behind its own."""
    return numbers_of(addresses[row, COUNT]) + scalars[1:]


def sum_up(addresses, chunks, results, factor, scalars):
    """Sum up, over each chunk, what a rule needs to know of its tensor, always in the same order.

    Args:
        addresses, chunks, factor, scalars: see `update`.
        results: the sums of each chunk.
    """
    shared = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    scale = scalars[0] * factor[0]
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        tensors = row_of(addresses, chunks[chunk, 0])
        hyper = given(addresses, chunks[chunk, 0], scalars)
        totals = ZEROS
        i = chunks[chunk, 1] + thread
        while i < chunks[chunk, 2]:
            values = read(tensors, i)
            gradient = clip(values[0] * scale, scalars)
            totals = add(totals, rule(values[1], gradient, values[2:], hyper))
            i += THREADS
        for k in range(TOTALS):
            shared[thread] = totals[k]
            cuda.syncthreads()
            half = THREADS // 2
            while half > 0:
                if thread < half:
                    shared[thread] = shared[thread] + shared[thread + half]
                cuda.syncthreads()
                half //= 2
            if thread == 0:
                results[chunk * TOTALS + k] = shared[0]
            cuda.syncthreads()
        chunk += cuda.gridDim.x


def begin_rows(addresses, chunks, results, firsts, sizes, places, scalars):
    """For each row find the numbers that what is summed makes use of.

    The arguments are those of `finish_rows`.
    """
    hyper = scalars[1:SCALARS]
    now = all_of(places[1] + NOW)
    row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while row < sizes.shape[0]:
        known = kept_of(places[0] + row * KEPT) + now
        write_numbers(addresses[row, COUNT], begin(known, sizes[row], hyper))
        row += cuda.gridDim.x * cuda.blockDim.x


def finish_rows(addresses, chunks, results, firsts, sizes, places, scalars):
    """For each row put together what its chunks came to, and find the numbers for its update.

    Args:
        addresses, chunks: see `update`.
        results: the sums of each chunk.
        firsts: for each row its first chunk, and behind the last one the number of all.
        sizes: for each row its number of elements, float64.
        places: where the numbers kept for rows are, and the numbers of all tensors.
        scalars: as for `update`, but float64.
    """
    hyper = scalars[1:SCALARS]
    of_all = all_of(places[1])
    row = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while row < sizes.shape[0]:
        totals = WIDE_ZEROS
        chunk = firsts[row]
        while chunk < firsts[row + 1]:
            totals = add(totals, totals_of(results, chunk))
            chunk += 1
        known = totals[:TOTALS] + kept_of(places[0] + row * KEPT) + of_all
        found = finish(known, sizes[row], hyper)
        write_numbers(addresses[row, COUNT], found[:NUMBERS])
        write_kept(places[0] + row * KEPT, found[NUMBERS:])
        row += cuda.gridDim.x * cuda.blockDim.x


def combine(pieces, places, scalars):
    """Put together sums over all tensors, and find what becomes of numbers kept for all; for one block.

    Args:
        pieces: where the sums of each tensor are, see `target.SummedUpdate.pieces`.
        places: where the numbers of all are, see `combining.OfAll`.
        scalars: the number of all elements, and the scalars of `carry`, float64.
    """
    shared = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    for k in range(TOTALS):
        total = WIDE_ZERO
        i = thread
        while i < pieces.shape[0]:
            size = pieces[i, 3]
            address = pieces[i, 0] + k * size
            own = WIDE_ZERO
            left = pieces[i, 1]
            while left > 0:
                own = own + (read_wide((address,), 0)[0] if size == 8 else read((address,), 0)[0])
                address += pieces[i, 2]
                left -= 1
            total = total + own
            i += THREADS
        shared[thread] = total
        cuda.syncthreads()
        half = THREADS // 2
        while half > 0:
            if thread < half:
                shared[thread] = shared[thread] + shared[thread + half]
            cuda.syncthreads()
            half //= 2
        if thread == 0:
            write((places[0] + 8 * k,), 0, (shared[0],))
        cuda.syncthreads()
    if thread == 0:
        totals = totals_of(places[0])
        before = kept_of(places[0] + NOW)
        write_numbers(places[0], totals + scalars[:1] + before)
        write_kept(places[0] + NOW, carry(totals + scalars[:1] + before, scalars[1:]))


def nothing_to_carry(known, hyper):
    """Where no numbers are kept for all."""
    return ()


def transform(addresses, chunks, scalars):
    """Replace every element of the first column by what a function of it and the scalars gives."""
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        tensors = row_of(addresses, chunks[chunk, 0])
        i = chunks[chunk, 1] + cuda.threadIdx.x
        while i < chunks[chunk, 2]:
            write(tensors, i, (rule(read(tensors, i)[0], scalars),))
            i += cuda.blockDim.x
        chunk += cuda.gridDim.x


def reduce(addresses, chunks, results, scalars):
    """Reduce the first column of each chunk to one number, always in the same order.

    `scalars` are what a total begins with, and an exponent.
    """
    totals = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    start, exponent = scalars
    chunk = cuda.blockIdx.x
    while chunk < chunks.shape[0]:
        tensors = row_of(addresses, chunks[chunk, 0])
        total = start
        i = chunks[chunk, 1] + thread
        while i < chunks[chunk, 2]:
            total = rule(total, read(tensors, i)[0], exponent)
            i += THREADS
        totals[thread] = total
        cuda.syncthreads()
        half = THREADS // 2
        while half > 0:
            if thread < half:
                totals[thread] = combined(totals[thread], totals[thread + half], exponent)
            cuda.syncthreads()
            half //= 2
        if thread == 0:
            results[chunk] = totals[0]
        cuda.syncthreads()
        chunk += cuda.gridDim.x


def find_clip_factor(results, factors, norm, scalars):
    """From sums of squares find the norm and the factor that clips it; for one block.

    Row by row `results` holds an address and a count of sums, and `factors` the addresses where
    the factor is wanted. `scalars` are the largest norm allowed, torch's small number beside it,
    0 and 1.
    """
    totals = cuda.shared.array(THREADS, NUMBER)
    thread = cuda.threadIdx.x
    max_norm, epsilon, zero, one = scalars
    total = zero
    for row in range(results.shape[0]):
        sums = (results[row, 0],)
        i = thread
        while i < results[row, 1]:
            total = total + read(sums, i)[0]
            i += THREADS
    totals[thread] = total
    cuda.syncthreads()
    half = THREADS // 2
    while half > 0:
        if thread < half:
            totals[thread] = totals[thread] + totals[thread + half]
        cuda.syncthreads()
        half //= 2
    if thread == 0:
        norm[0] = rule(totals[0])
        factor = max_norm / (norm[0] + epsilon)
        if factor > one:
            factor = one
        for row in range(factors.shape[0]):
            write((factors[row],), 0, (factor,))


def copy_strided(geometry, numbers):
    """Copy an array element by element, whatever the strides of source and target.

    `geometry` holds source and target address, the shape, and the strides of both in bytes;
    `numbers` how many elements there are and how many axes.
    """
    size, axes = numbers
    step = cuda.gridDim.x * cuda.blockDim.x
    begin = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    for i in range(begin, size, step):
        rest = i
        source = geometry[0]
        target = geometry[1]
        for axis in range(axes - 1, -1, -1):
            position = rest % geometry[2 + axis]
            rest = rest // geometry[2 + axis]
            source += position * geometry[2 + axes + axis]
            target += position * geometry[2 + 2 * axes + axis]
        write((target,), 0, read((source,), 0))


@Kept
def rule_with_average(rule: Callable) -> Callable:
    """A rule that takes its parameter into an average, see `averaging.averaged`."""
    return averaged(rule, _device_rule)


@Kept
def rule_with_clip(rule: Callable) -> Callable:
    """A rule that clips elements of the gradient, see `clipping.clipped`."""
    return clipped(rule, _device_rule)


@Kept
def rule_with_copy(rule: Callable, copy: str, storage_type: str) -> Callable:
    """A rule that also gives a copy of the parameter in a storage type, see `copies.with_copy`."""
    edited = storage.edited(storage_type, False, storage.GLOBAL)
    return with_copy(rule, copy, edited, _device_rule)


@Kept
def summand_of(function: Callable, states: int, scalars: int, master: str | None) -> Callable:
    """What a rule sums up, see `sums.of_columns`."""
    edited = None if master is None else storage.edited(master, False, storage.GLOBAL)
    return of_columns(function, states, scalars, edited, _device_rule)


def template_of(
    rule: Callable,
    storages: tuple[str, ...],
    scalars: int,
    numbers: int = 0,
    measures: bool = False,
) -> tuple[Callable, types.Type]:
    """The update kernel for a rule and storage types, to be compiled, and its signature."""
    number = storage.arithmetic(storages[1])
    device_rule = _device_rule(rule)
    names = {
        "given": _given(numbers, number, len(storages)),
        "rule": device_rule,
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages, number, storage.GLOBAL),
        "write": storage.writer(storages[1:], number, storage.GLOBAL),
        "first_aligned": storage.first_aligned(storages),
        "update_lanes": storage.lane_updater(device_rule, storages, number, measures=measures),
        "LANES": storage.lanes(storages),
    }
    vector = types.Array(number, 1, "C")
    signature = types.void(_TABLE, _TABLE, vector, types.UniTuple(number, 1 + scalars))
    name = described(rule, storages) + f"_{numbers}_numbers" * (numbers > 0)
    if not measures:
        return specialised(update, name, names), signature
    kept: Callable = as_computed
    if storages[1] != number.name:
        back = {"read_back": storage.reader(storages[1:2], number, storage.GLOBAL)}
        kept = specialised(as_stored, f"stored_as_{storages[1]}", back)
    names["stored"] = device_function(kept)
    names["add"] = storage.adder(2, number, number)
    names["ZEROS"] = (np.dtype(number.name).type(0),) * 2
    names["TOTALS"], names["NUMBER"] = 2, number
    signature = types.void(_TABLE, _TABLE, vector, vector, types.UniTuple(number, 1 + scalars))
    return specialised(update_and_measure, f"measured_{name}", names), signature


def _given(numbers: int, number: types.Type, columns: int) -> Any:
    """What a rule takes besides elements, with so many numbers of its tensor behind the columns."""
    if not numbers:
        return device_function(scalars_alone)
    read = storage.scalars(numbers, number, storage.GLOBAL)
    own = {"numbers_of": read, "COUNT": columns}
    name = f"{numbers}_numbers_after_{columns}"
    return device_function(specialised(numbers_and_scalars, name, own))


def sum_template_of(
    summand: Callable,
    storages: tuple[str, ...],
    scalars: int,
    totals: int,
    clips: bool,
    early: int = 0,
) -> tuple[Callable, types.Type]:
    """The kernel that sums up, to be compiled, and its signature.

    `summand` is by `summand_of`, and takes `early` numbers of its tensor.
    """
    number = storage.arithmetic(storages[1])
    names = {
        "rule": _device_rule(summand),
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages, number, storage.GLOBAL),
        "add": storage.adder(totals, number, number),
        "clip": device_function(within if clips else whole),
        "given": _given(early, number, len(storages)),
        "TOTALS": totals,
        "ZEROS": (np.dtype(number.name).type(0),) * totals,
        "NUMBER": number,
    }
    vector = types.Array(number, 1, "C")
    signature = types.void(_TABLE, _TABLE, vector, vector, types.UniTuple(number, 1 + scalars))
    name = f"sum_up_{described(summand, storages)}" + "_clipped" * clips
    return specialised(sum_up, name, names), signature


def begin_template_of(
    begin: Callable, storages: tuple[str, ...], scalars: int, sums: Sums
) -> tuple[Callable, types.Type]:
    """The kernel that makes numbers of each row before sums, to be compiled, and its signature."""
    number = storage.arithmetic(storages[1])
    names = {
        "begin": _device_rule(begin),
        "kept_of": storage.scalars(sums.kept, types.float64, storage.GLOBAL),
        "all_of": storage.scalars(sums.kept_of_all, types.float64, storage.GLOBAL),
        "write_numbers": storage.numbers_writer(sums.early, number, storage.GLOBAL),
        "COUNT": len(storages),
        "SCALARS": 1 + sums.scalars,
        "KEPT": 8 * sums.kept,
        "NOW": 8 * sums.known_of_all,
    }
    name = f"begin_{described(begin, storages)}"
    return specialised(begin_rows, name, names), _of_rows(number, scalars)


def finish_template_of(
    finish: Callable, storages: tuple[str, ...], scalars: int, sums: Sums
) -> tuple[Callable, types.Type]:
    """The kernel that makes numbers of each row of the sums, to be compiled, and its signature."""
    number = storage.arithmetic(storages[1])
    names = {
        "finish": _device_rule(finish),
        "add": storage.adder(sums.summed, number, types.float64),
        "totals_of": storage.part(sums.summed, number),
        "kept_of": storage.scalars(sums.kept, types.float64, storage.GLOBAL),
        "all_of": storage.scalars(sums.known_of_all, types.float64, storage.GLOBAL),
        "write_numbers": storage.numbers_writer(sums.numbers, number, storage.GLOBAL),
        "write_kept": storage.numbers_writer(sums.kept, types.float64, storage.GLOBAL),
        "COUNT": len(storages),
        "SCALARS": 1 + sums.scalars,
        "TOTALS": sums.totals,
        "NUMBERS": sums.numbers,
        "KEPT": 8 * sums.kept,
        "WIDE_ZEROS": (np.float64(0),) * sums.summed,
    }
    name = f"finish_{described(finish, storages)}"
    return specialised(finish_rows, name, names), _of_rows(number, scalars)


def _of_rows(number: types.Type, scalars: int) -> types.Type:
    """The signature of what goes through rows."""
    results, firsts, sizes, places = (
        types.Array(kind, 1, "C") for kind in (number, types.int64, types.float64, types.int64)
    )
    wide = types.UniTuple(types.float64, 1 + scalars)
    return types.void(_TABLE, _TABLE, results, firsts, sizes, places, wide)


def combine_template_of(
    carry: Callable, totals: int, kept: int, scalars: int
) -> tuple[Callable, types.Type]:
    """The kernel that puts together sums over all tensors, to be compiled, and its signature."""
    wide, known = types.float64, totals + 1 + kept
    names = {
        "carry": _device_rule(carry),
        "read": storage.reader(("float32",), wide, storage.GLOBAL),
        "read_wide": storage.reader(("float64",), wide, storage.GLOBAL),
        "write": storage.writer(("float64",), wide, storage.GLOBAL),
        "totals_of": storage.scalars(totals, wide, storage.GLOBAL),
        "kept_of": storage.scalars(kept, wide, storage.GLOBAL),
        "write_numbers": storage.numbers_writer(known, wide, storage.GLOBAL),
        "write_kept": storage.numbers_writer(kept, wide, storage.GLOBAL),
        "NUMBER": wide,
        "TOTALS": totals,
        "WIDE_ZERO": np.float64(0),
        "NOW": 8 * known,
    }
    places = types.Array(types.int64, 1, "C")
    signature = types.void(_TABLE, places, types.UniTuple(wide, 1 + scalars))
    return specialised(combine, f"combine_{carry.__name__}_of_{totals}", names), signature


def transform_template_of(
    function: Callable, storages: tuple[str, ...], arithmetic: str, scalars: int
) -> tuple[Callable, types.Type]:
    """The kernel that transforms a first column, to be compiled, and its signature."""
    number = getattr(types, arithmetic)
    names = {
        "rule": _device_rule(function),
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages[:1], number, storage.GLOBAL),
        "write": storage.writer(storages[:1], number, storage.GLOBAL),
    }
    signature = types.void(_TABLE, _TABLE, types.UniTuple(number, scalars))
    name = f"transform_in_{arithmetic}_{described(function, storages)}"
    return specialised(transform, name, names), signature


def reduction_template_of(
    reduction: Callable, storages: tuple[str, ...], arithmetic: str
) -> tuple[Callable, types.Type]:
    """The kernel that reduces a first column, to be compiled, and its signature."""
    number = getattr(types, arithmetic)
    names = {
        "rule": _device_rule(reduction),
        "combined": device_function(reductions.COMBINED.get(reduction, reductions.added)),
        "row_of": storage.addresses(len(storages)),
        "read": storage.reader(storages[:1], number, storage.GLOBAL),
        "NUMBER": number,
    }
    results = types.Array(number, 1, "C")
    signature = types.void(_TABLE, _TABLE, results, types.UniTuple(number, 2))
    name = f"reduce_in_{arithmetic}_{described(reduction, storages)}"
    return specialised(reduce, name, names), signature


def clip_template_of(kind: str) -> tuple[Callable, types.Type]:
    """The kernel that finds a clip factor, to be compiled, and its signature."""
    number = getattr(types, kind)
    names = {
        "rule": device_function(reductions.root),
        "read": storage.reader((kind,), number, storage.GLOBAL),
        "write": storage.writer((kind,), number, storage.GLOBAL),
        "NUMBER": number,
    }
    vectors = types.Array(types.int64, 1, "C"), types.Array(number, 1, "C")
    signature = types.void(_TABLE, *vectors, types.UniTuple(number, 4))
    return specialised(find_clip_factor, f"find_clip_factor_{kind}", names), signature


def copy_template_of(dtype: str) -> tuple[Callable, types.Type]:
    """The kernel that copies between strides, to be compiled, and its signature."""
    number = storage.arithmetic(dtype)
    names = {
        "read": storage.reader((dtype,), number, storage.GLOBAL),
        "write": storage.writer((dtype,), number, storage.GLOBAL),
    }
    signature = types.void(types.Array(types.int64, 1, "C"), types.UniTuple(types.int64, 2))
    return specialised(copy_strided, f"copy_{dtype}", names), signature
