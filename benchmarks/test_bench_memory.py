"""Memory: nothing but the state may grow with the parameters."""

import bars
from contest import measure
from workloads import WORKLOADS


def test_memory():
    result = measure(WORKLOADS["memory"], 0.0)
    verdicts = bars.judge({"memory": result})
    assert [v.holds for v in verdicts if v.figure is not None] == [True, True]
