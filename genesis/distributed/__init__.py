"""Training on many machines: data-parallel over MPI, with state and update shared by the ranks.

    optimizer = genesis.distributed.DistributedOptimizer(genesis.optim.AdamW(params, lr=1e-3))

and then, in each process of `mpiexec -n 4 python train.py`, steps as with the optimizer alone. It needs
mpi4py and an MPI library, `pip install mpi4py mpich`, which are imported when the first such optimizer
is made. `genesis.distributed` itself is imported when it is asked for.

The modules follow a step: `agreement` and `alike` (all ranks are about to do the same, with the same),
`shards` (which rank owns what), `buckets` (gradients there, parameters back), `parts` (the parts of the
global batch as they come in), `share` (what a rank updates, and by which optimizer), `optimizer`.
`checkpoint` has the files of all ranks, `failure` what becomes of a job in which one rank fails,
`required` mpi4py.
"""

from .checkpoint import load_checkpoint, save_checkpoint
from .optimizer import DistributedOptimizer

__all__ = ["DistributedOptimizer", "load_checkpoint", "save_checkpoint"]
