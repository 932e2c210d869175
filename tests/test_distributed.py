"""`genesis.distributed` on several ranks, beside the same steps in one process.

What ranks do is in rank_distributed.py, how they are started in mpi_runs.py.
"""

import importlib
import json
import random
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from devices import SIMULATED

import genesis
from genesis import checkpoint
from genesis.checkpoint import sharded
from genesis.distributed.agreement import differences, ranks
from genesis.distributed.shards import Division, Tensor

ROOT = Path(__file__).resolve().parents[1]

if SIMULATED:
    pytest.skip("about the CPU target", allow_module_level=True)


def test_import_says_what_to_install():
    """genesis.distributed is imported without mpi4py, which is missed when it is needed."""
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import numpy as np, genesis, genesis.distributed as d\n"
        "opt = genesis.optim.SGD([np.ones(2)], lr=0.1)\n"
        "try: d.DistributedOptimizer(opt)\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install mpi4py mpich" in done.stdout, done.stderr


def test_genesis_does_not_import_mpi():
    code = "import sys, genesis, genesis.distributed; print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


# ---- who owns what ----


def _division(count, sizes, whole=False, across=True, unit=100, can_be_cut=True, bucket=2000):
    division = Division(count, 4 * bucket, unit, whole, across)
    kind = np.dtype(np.float32)
    division.add([Tensor(n, size, kind, can_be_cut) for n, size in enumerate(sizes)])
    return division


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [False, True])
def test_every_element_has_one_owner(count, whole):
    sizes = [5300, 10, 0, 999, 100, 1, 2501, 64]
    division = _division(count, sizes, whole, across=not whole)
    owned = [np.zeros(size, int) for size in sizes]
    loads = [0] * count
    for bucket in division.buckets:
        at = 0
        for segment in bucket.segments:
            assert segment.at == at
            assert bucket.starts[segment.owner] <= at
            at += segment.size
            assert at <= bucket.starts[segment.owner + 1]
            assert whole <= segment.whole
            assert segment.start % 100 == 0 or not segment.start
            owned[segment.parameter][segment.start : segment.stop] += 1
            loads[segment.owner] += segment.size
        assert bucket.size == at
    assert all((each == 1).all() for each in owned)
    assert loads == division.loads


def test_shares_are_even():
    sizes = [7000, 3000, 12, 5000, 900, 64] * 3
    loads = _division(4, sizes).loads
    assert max(loads) <= sum(sizes) / 4 + 100
    assert max(_division(4, sizes, whole=True, across=False).loads) <= 1.2 * sum(sizes) / 4


def test_what_comes_later_leaves_owners_as_they_are():
    division = _division(3, [5300, 999])
    before = list(division.buckets)
    division.add([Tensor(2, 4000, np.dtype(np.float32), True)])
    assert division.buckets[: len(before)] == before
    assert max(division.loads) <= sum(division.loads) / 3 + 100


def test_what_cannot_be_cut_is_not():
    division = _division(4, [5300, 999, 700], can_be_cut=False)
    assert all(segment.whole for bucket in division.buckets for segment in bucket.segments)


def test_words():
    assert ranks([3]) == "rank 3"
    assert ranks([0, 1, 3, 5, 6, 7]) == "ranks 0, 1, 3 and 5 to 7"
    facts = {0: {"x": "1", "y": "2"}, 1: {"x": "1", "y": "3"}, 2: {"x": "1", "y": "2"}}
    assert differences(facts) == "y is 2 on ranks 0 and 2, 3 on rank 1"


# ---- on several ranks ----

WITHOUT_MPI = "needs mpi4py and an MPI with its mpiexec: pip install mpi4py mpich"

if find_spec("mpi4py") is not None:
    import mpi_runs
    from mpi_runs import same_bits
    from rank_distributed import (
        CASES,
        CHECKPOINTED,
        MAX_NORM,
        mean,
        mixed,
        optimizer_of,
        parameters,
        steps_of,
    )

needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or importlib.import_module("mpi_runs").launcher() is None,
    reason=WITHOUT_MPI,
)
RANKS = [1, 2, 3, 4]


def _results(what):
    """A fixture: what ranks have saved, and in which folder."""

    @pytest.fixture(scope="module", params=RANKS, ids=lambda count: f"{count} ranks")
    def results(request, tmp_path_factory):
        folder = tmp_path_factory.mktemp(what)
        return mpi_runs.run(request.param, what, folder), folder

    return results


trained, used = _results("train"), _results("use")


def _alone(case, steps, first=0, opt=None, params=None):
    """The parameters and the optimizer after steps in one process, of what all parts come to."""
    if params is None:
        params = parameters(CASES[case][2], matrices=case == "Muon")
        opt = optimizer_of(case, params)
    for number in range(first, first + steps):
        opt.step(grads=mean(params, number), max_norm=MAX_NORM)
    return params, opt


def _same(found, params, opt):
    """Whether ranks have found what one process has: parameters, state, norms."""
    same_bits(found["params"], params)
    expected = opt.state_dict()["state"]
    assert found["state"].keys() == expected.keys()
    for number, entries in expected.items():
        same_bits(found["state"][number], entries)
    assert found["grad_norm"] == opt.grad_norm
    assert found["update_norm"] == opt.update_norm


@pytest.fixture(scope="module")
def alone():
    """What one process finds, each case once."""
    return {case: _alone(case, steps_of(case)) for case in CASES} if mpi_runs.launcher() else {}


@needs_mpi
def test_bits_are_those_of_one_process(trained, alone):
    for each in trained[0]:
        for case in CASES:
            _same(each[case], *alone[case])


@needs_mpi
def test_ranks_share_the_state(trained):
    results, _ = trained
    for case, (_, _, _, others) in CASES.items():
        kept = [each[case]["kept"] for each in results]
        if others.get("shard_state", True):
            assert sum(kept) == pytest.approx(_bytes_of(results[0][case]["state"]), abs=0), (
                "each element is kept once"
            )
        else:
            assert len(set(kept)) == 1


def _bytes_of(state):
    return sum(v.nbytes for e in state.values() for v in e.values() if isinstance(v, np.ndarray))


@needs_mpi
def test_gradients_that_come_early(used):
    for each in used[0]:
        for name in ("ready", "ready some"):
            _same(each[name], *_alone("AdamW", 3))


@needs_mpi
@pytest.mark.parametrize("parts", [1, 5])
def test_parts_that_do_not_come_out_even(used, parts):
    params, opt = _alone("SGD", 0)
    for number in range(3):
        opt.step(grads=mean(params, number, parts), max_norm=MAX_NORM)
    for each in used[0]:
        _same(each[f"{parts} parts"], params, opt)


@needs_mpi
def test_gradients_are_set_to_zero_once_they_were_sent(used):
    params, opt = _alone("SGD", 0)
    for number in range(3):
        opt.step(grads=mean(params, number, len(used[0])), max_norm=MAX_NORM)
    for each in used[0]:
        _same(each["zeroed"], params, opt)


@needs_mpi
def test_an_inf_on_one_rank_skips_the_step_on_all(used):
    params, opt = _alone("SGD", 0)
    schedule = genesis.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    for number in (0, 2, 3):  # scales are powers of two, so that nothing is rounded
        opt.step(grads=mean(params, number), max_norm=MAX_NORM)
        schedule.step()
    for each in used[0]:
        same_bits(each["scaler"]["params"], params)
        assert each["scaler"]["grad_norm"] == opt.grad_norm
        assert each["scaler"]["more"] == (1, ["inner", "outer"] * 3, 0.1 * 0.5**3, 2.0)
        assert each["unscaled"] == (True, True)


@needs_mpi
def test_averages(used):
    params, opt = _alone("average", 2)
    _same_after = {name: array.copy() for name, array in params.items()}
    opt.swap_ema()
    for each in used[0]:
        same_bits(each["averages"]["more"], params)
        same_bits(each["averages"]["params"], _same_after)


@needs_mpi
def test_a_group_that_comes_later(used):
    params = {n: a for n, a in parameters(np.float32).items() if n != "bias"}
    opt = genesis.optim.AdamW(params, lr=1e-2)
    opt.step(grads=mean(params, 0), max_norm=MAX_NORM)
    params = {**params, "bias": parameters(np.float32)["bias"]}
    opt.add_param_group({"params": {"bias": params["bias"]}, "lr": 1e-1})
    opt.step(grads=mean(params, 1), max_norm=MAX_NORM)
    for each in used[0]:
        _same(each["later"], params, opt)


@needs_mpi
def test_an_optimizer_that_has_state_already(used):
    for each in used[0]:
        _same(each["begun"], *_alone("AdamW", 2))


@needs_mpi
def test_wrappers_and_mixed_rules(used):
    params, inner = _alone("SGD", 0)
    around = genesis.optim.Lookahead(inner, k=2)
    for number in range(3):
        around.step(grads=mean(params, number), max_norm=MAX_NORM)
    other = parameters(np.float32)
    opt = mixed(other)
    for number in range(3):
        opt.step(grads=mean(other, number), max_norm=MAX_NORM)
    for each in used[0]:
        _same(each["Lookahead"], params, around)
        _same(each["Mixed"], other, opt)


@needs_mpi
def test_other_ways_to_sum_up_are_near(used):
    start = parameters(np.float32)
    params, _ = _alone("SGD", 3)
    results, _ = used
    # Rounded once in another order; and each part to 8 bits, which errs by 2**-9, less on average.
    for name, error in (("reduced", 1e-5), ("reduced all", 1e-5), ("bfloat16", 2**-8)):
        for each in results:
            same_bits(each[name]["params"], results[0][name]["params"])
        for key, array in params.items():
            moved = array - start[key]
            if moved.size:
                off = results[0][name]["params"][key] - array
                assert np.linalg.norm(off) <= error * np.linalg.norm(moved), (name, key)
    assert results[0]["bfloat16"]["params"]["weight"].tobytes() != params["weight"].tobytes()


@needs_mpi
def test_parameters_of_one_rank_for_all(used):
    results, _ = used
    for each in results:
        for name, array in parameters(np.float32).items():
            assert np.array_equal(each["broadcast"][name], array + (len(results) - 1))


# ---- what ranks do not have alike ----

# What is said where rank 1 is the odd one out.
REFUSED = {
    "shapes": ("ValueError", r"parameter 1 \('b'\) is of shape \(3, 4\) .* 0, of shape \(4, 3\)"),
    "types": ("ValueError", r"parameter 1 \('b'\) is .*float64 on rank 0, .*float32 on rank 1"),
    "memory": ("ValueError", r"parameter 1 \('b'\) is .* on rank 0, .*, not C-contiguous on rank 1"),
    "rates": ("ValueError", r"'lr' of group 0 is 0\.1 on rank 0, 0\.2 on rank 1"),
    "classes": ("ValueError", r"the optimizer is Adam on rank 0, AdamW on rank 1"),
    "arguments": ("ValueError", r"bucket_mb is 6 on rank 0, 5 on rank 1"),
    "impossible on one": ("ValueError", r"parts must be an integer of at least 1"),
    "LBFGS": ("TypeError", r"LBFGS"),
    "LBFGS on one": ("TypeError", r"LBFGS"),
    "Prodigy": ("TypeError", r"Prodigy sums over all tensors, .*shard_state=False"),
    "Lookahead": ("TypeError", r"Lookahead\(DistributedOptimizer\(optimizer\)\)"),
    "values": ("ValueError", r"the values of parameter 1 \('b'\) is of checksum \w+ on rank 0"),
    "missing": ("ValueError", r"gradient of parameter 1 \('b'\) is given on rank 0, missing on rank 1"),
    "wrong shape": ("ValueError", r"gradient of parameter 1 \('b'\) must have the parameter's shape"),
    "sparse": ("TypeError", r"parameter 1 \('b'\) is a SparseGrad: give the dense gradient"),
    "sparse on one": ("TypeError", r"parameter 1 \('b'\) is a SparseGrad: give the dense gradient"),
    "other arguments": ("ValueError", r"max_norm is 1\.0 on rank 0, 2\.0 on rank 1"),
    "negative norm": ("ValueError", r"max_norm must be at least 0, but got -1\.0"),
    "closure": ("RuntimeError", r"on rank 1, .*ZeroDivisionError: division by zero"),
    "other calls": ("ValueError", r"the call is step on rank 0, state_dict on rank 1"),
    "ready on one": ("ValueError", r"of parameter 1 \('b'\) is missing on rank 0, given on rank 1"),
    "locked gradient": ("ValueError", r"gradient of parameter 1 \('b'\), which zero_grad=True .* read"),
    "edited": ("ValueError", r"'lr' of group 0 is 0\.1 on rank 0, 0\.3 on rank 1"),
    "added": ("ValueError", r"the groups have 3 parameters, but 2 are divided among ranks"),
    "read-only": ("ValueError", r"parameter 1 \('b'\) is read-only"),
    "added by a call": ("ValueError", r"the call is step on rank 0, add_param_group on rank 1"),
    "paths": ("ValueError", r"the path is \S*/0 on rank 0, \S*/1 on rank 1"),
    "no folder": ("FileNotFoundError", r"No such file or directory"),
    "no optimizer": ("TypeError", r"one of the objects must be a DistributedOptimizer"),
    "no file": ("FileNotFoundError", r"No such file or directory"),
    "unsaved": ("TypeError", r"cannot save an object"),
}  # fmt: skip


@needs_mpi
def test_what_differs_is_raised_on_all_ranks(tmp_path):
    """Nothing is written then, and the next step is as if nothing had been."""
    results = mpi_runs.run(2, "refuse", tmp_path)
    for rank, said in enumerate(results):
        for name, (kind, text) in REFUSED.items():
            got, message, *well = said.pop(name)
            assert got == kind or (rank and name == "closure" and got == "ZeroDivisionError"), name
            assert re.search(text, message) or (rank and name == "closure"), (name, rank, message)
            assert all(well), (name, rank)
        assert said.pop("files") == []
        assert not said, "a case that nobody judges"


@needs_mpi
def test_an_exception_in_one_rank_ends_the_job(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        mpi_runs.command(2, mpi_runs.SCRIPT, "fail", tmp_path),
        env=mpi_runs.environment(),
        capture_output=True,
        text=True,
        timeout=mpi_runs.TIMEOUT,
    )
    assert done.returncode != 0
    assert "rank 1 has failed, so the job ends" in done.stderr
    assert "KeyError: 'the data of rank 1'" in done.stderr
    assert time.monotonic() - began < 60, "with what it takes to start"


# ---- checkpoints ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return mpi_runs.run(4, "save", folder), folder


@needs_mpi
def test_checkpoints_of_four_go_on_on_two_and_three(saved):
    """3 steps on 4 ranks, 3 on 2, 3 on 3, and one process reads what came of it."""
    results, folder = saved
    index, *shards = results[0]
    assert index == "AdamW.safetensors"
    assert [each[-7:] for each in shards] == [f"-{rank}-of-4"[-7:] for rank in range(4)]
    for count, steps in ((2, 6), (3, 9)):
        for each in mpi_runs.run(count, "resume", folder):
            for case in CHECKPOINTED:
                assert each[case]["epoch"] == steps
                _same(each[case], *_alone(case, steps))
    for case in CHECKPOINTED:
        expected, before = _alone(case, 9)
        params = parameters(CASES[case][2])
        opt = optimizer_of(case, params)
        file = folder / f"{case}.safetensors"
        assert genesis.load_checkpoint(file, optimizer=opt, model=params)["epoch"] == 9
        same_bits(params, expected)
        _alone(case, 1, 9, opt, params)
        _alone(case, 1, 9, before, expected)
        same_bits(params, expected)


def _sharded_checkpoint(path, save="0123456789abcdef"):
    """A checkpoint as three ranks would write it, of a parameter of six elements."""
    names = [sharded.shard_name(str(path), save, rank, 3) for rank in range(3)]
    group = {**genesis.optim.Adam([np.ones(6)], lr=0.5).state_dict()["param_groups"][0]}
    for rank, name in enumerate(names):
        each = np.full(2, rank, float)
        piece = sharded.Piece(
            0, (6,), 2 * rank, 2 * rank + 2, {"step": 4, "exp_avg": each, "exp_avg_sq": each}
        )
        values = {"epoch": 7} if rank == 0 else {}
        written = sharded.shard(save, rank, values, {"optimizer": [piece]})
        checkpoint.save(written, path.parent / name)
    checkpoint.save(sharded.index(save, names, {"optimizer": {"param_groups": [group]}}), path)
    return [path.parent / name for name in names]


def test_one_process_reads_shards(tmp_path):
    path = tmp_path / "run.safetensors"
    _sharded_checkpoint(path)
    opt = genesis.optim.Adam([np.ones(6)], lr=0.1)
    assert genesis.load_checkpoint(path, optimizer=opt)["epoch"] == 7
    entries = opt.state_dict()["state"][0]
    assert entries["exp_avg"].tolist() == [0, 0, 1, 1, 2, 2]
    assert entries["step"] == 4
    assert opt.param_groups[0]["lr"] == 0.5


def _damage(shards):
    data = bytearray(shards[1].read_bytes())
    data[-3] ^= 1
    shards[1].write_bytes(data)


def _exchange(shards):
    other = shards[0].parent / "other"
    other.mkdir()
    _sharded_checkpoint(other / "run.safetensors", "fedcba9876543210")
    (other / shards[1].name.replace("0123456789abcdef", "fedcba9876543210")).replace(shards[1])


def _swap(shards):
    data = [each.read_bytes() for each in shards]
    shards[1].write_bytes(data[2])


WRONG = {
    "missing": (lambda shards: shards[1].unlink(), r"its shard '\S+-1-of-3' is missing"),
    "damaged": (_damage, r"-1-of-3'.*checksum does not match"),
    "foreign": (_exchange, r"its shard '\S+-1-of-3' was not written with it"),
    "another rank's": (_swap, r"its shard '\S+-1-of-3' was not written with it"),
    "renamed": (lambda shards: None, r"as a shard, which belongs to another file"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_shards_that_are_not_as_they_were(wrong, tmp_path):
    path = tmp_path / "run.safetensors"
    shards = _sharded_checkpoint(path)
    act, message = WRONG[wrong]
    act(shards)
    if wrong == "renamed":
        path = path.rename(tmp_path / "best.safetensors")
    array = np.ones(6)
    opt = genesis.optim.Adam([array], lr=0.1)
    with pytest.raises(genesis.CheckpointError, match=message):
        genesis.load_checkpoint(path, optimizer=opt)
    assert not opt.state
    assert opt.param_groups[0]["lr"] == 0.1


def test_pieces_that_do_not_cover_a_parameter():
    piece = sharded.Piece(0, (6,), 0, 2, {"exp_avg": np.ones(2)})
    with pytest.raises(ValueError, match="for 2 of 6 elements: pieces of it are missing"):
        sharded.whole([piece])


def test_the_index_is_json_that_anybody_can_read(tmp_path):
    path = tmp_path / "run.safetensors"
    shards = _sharded_checkpoint(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    structure = json.loads(header["__metadata__"]["structure"])
    assert structure["shards"] == [each.name for each in shards]


# ---- ranks that are killed ----


@needs_mpi
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes under /proc")
def test_a_rank_that_is_killed_ends_the_job_and_the_next_goes_on(tmp_path):
    """`python tests/mpi_runs.py` does it a hundred times."""
    rng, endured, epochs = random.Random(5), mpi_runs.Endured(), []
    for saves in (0, 1, 2):
        moment, victim = rng.uniform(0, 0.1), rng.randrange(3)
        assert mpi_runs.kill_one(3, tmp_path, saves, moment, victim) < mpi_runs.PATIENCE
        epochs.append(endured.check(tmp_path))
    assert epochs[1] >= epochs[0] + 1
    assert epochs[2] >= epochs[1] + 2
