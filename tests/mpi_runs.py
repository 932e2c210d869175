"""Runs of rank_distributed.py on several ranks, and what becomes of them if ranks are killed.

    python tests/mpi_runs.py --kills 100

kills a random rank at a random moment, so often, looks how long the job takes to end and whether the
checkpoint is whole, and lets the next job go on from there.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import rank_distributed

import genesis

SCRIPT = Path(rank_distributed.__file__)
TIMEOUT = 180.0
"""Seconds after which a run hangs."""
PATIENCE = 10.0
"""Seconds that a job may take to end when a rank was killed."""


@lru_cache(maxsize=None)
def launcher():
    """The command that starts ranks; None if there is none."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("mpiexec", path=beside)
    if found is None:
        return None
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    # Open MPI refuses to run more ranks than cores, and to run as root, unless it is told to.
    of_openmpi = "Open MPI" in version or "OpenRTE" in version
    return [found, *(["--allow-run-as-root", "--oversubscribe"] if of_openmpi else [])]


def command(ranks, *script):
    return [*launcher(), "-n", str(ranks), sys.executable, *map(str, script)]


def environment():
    """Each rank has one thread, as ranks share the cores."""
    return {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def run(ranks, what, folder):
    """What each rank has saved, see rank_distributed.py."""
    done = subprocess.run(
        command(ranks, SCRIPT, what, folder),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    files = [folder / f"{what}-{ranks}-{rank}.npy" for rank in range(ranks)]
    return [np.load(file, allow_pickle=True)[0] for file in files]


def kill_one(ranks, folder, saves, moment, victim):
    """Start a job, kill one of its ranks, and tell how many seconds later the job had ended.

    Args:
        saves: of how many checkpoints the job is to have begun the next step.
        moment: how many seconds after that, or after the start of the last rank.
        victim: which rank.
    """
    for file in folder.glob("pid-*"):
        file.unlink()
    job = subprocess.Popen(
        command(ranks, SCRIPT, "endure", folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        began = time.monotonic()
        files = [folder / f"pid-{rank}" for rank in range(ranks)]
        while not all(file.exists() and file.read_text() for file in files):
            assert job.poll() is None, f"the job has ended by itself, with {job.returncode}"
            assert time.monotonic() - began < TIMEOUT
            time.sleep(0.01)
        pids = [int(file.read_text()) for file in files]
        index = folder / "endured.safetensors"
        for _ in range(saves):
            before = index.stat().st_ino if index.exists() else None
            while not index.exists() or index.stat().st_ino == before:
                assert time.monotonic() - began < TIMEOUT
                time.sleep(0.001)
        time.sleep(moment)
        assert job.poll() is None, f"the job has ended by itself, with {job.returncode}"
        os.kill(pids[victim], signal.SIGKILL)
        killed = time.monotonic()
        job.wait(PATIENCE)
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() - killed < PATIENCE, "a rank has outlived its job"
            time.sleep(0.01)
        return time.monotonic() - killed
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


class Endured:
    """What the job's checkpoints have to be, computed by an optimizer in one process."""

    def __init__(self):
        self.params = rank_distributed.parameters(np.float32)
        self.optimizer = rank_distributed.optimizer_of("AdamW", self.params)
        self.epoch = 0

    def check(self, folder):
        """Check the checkpoint, if there is one; returns after how many steps it was saved."""
        file = folder / "endured.safetensors"
        if not file.exists():
            return 0
        loaded = genesis.load_checkpoint(file)
        while self.epoch < loaded["epoch"]:
            grads = rank_distributed.mean(self.params, self.epoch, parts=4)
            self.optimizer.step(grads=grads, max_norm=rank_distributed.MAX_NORM)
            self.epoch += 1
        same_bits(loaded["model"], self.params)
        expected = self.optimizer.state_dict()["state"]
        assert loaded["optimizer"]["state"].keys() == expected.keys()
        for number, entries in expected.items():
            same_bits(loaded["optimizer"]["state"][number], entries)
        return self.epoch


def same_bits(some, others):
    """Compare dicts of arrays and numbers to the last bit."""
    assert some.keys() == others.keys()
    for name, one in some.items():
        one, other = np.asarray(one), np.asarray(others[name])
        assert one.shape == other.shape, name
        assert one.dtype == other.dtype, name
        assert one.tobytes() == other.tobytes(), name


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--ranks", type=int, default=3, help="of how many ranks (default: 3)")
    parser.add_argument("--longest", type=float, default=0.3, help="seconds until a kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, endured, times = random.Random(arguments.seed), Endured(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in range(1, arguments.kills + 1):
            saves, moment = rng.choice([0, 1, 2]), rng.uniform(0, arguments.longest)
            victim = rng.randrange(arguments.ranks)
            times.append(kill_one(arguments.ranks, folder, saves, moment, victim))
            epoch = endured.check(folder)
            if count % 10 == 0:
                print(
                    f"{count} kills, {epoch} steps, at most {max(times):.2f} s to end", flush=True
                )
        print(f"{arguments.kills} kills of one of {arguments.ranks} ranks: no bad checkpoint in "
              f"{endured.epoch} steps, jobs ended within {max(times):.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
