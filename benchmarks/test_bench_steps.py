"""A step: every optimizer of the table, on models and on single tensors, beside all peers."""

import pytest
from replay import contests
from workloads import WORKLOADS

KINDS = (
    "train",
    "loop",
    "compiled",
    "step",
    "fresh",
    "size",
    "given",
    "torch",
    "bfloat16",
    "sparse",
    "busy",
)


@contests(lambda name: name.partition("/")[0] in KINDS)
def test_step(show, workload, contender):
    show(workload, contender)


def test_every_elementwise_optimizer_has_a_workload():
    peers = pytest.importorskip("peers")
    for name in peers.first_cases():
        assert f"step/{name}/resnet50" in WORKLOADS
