"""Saving and loading a checkpoint."""

from replay import contests


@contests(lambda name: name.startswith("checkpoint/"))
def test_checkpoint(show, workload, contender):
    show(workload, contender)
