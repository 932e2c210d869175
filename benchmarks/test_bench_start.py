"""What a new process waits for: imports, and the first step, cold and from the cache."""

from replay import contests


@contests(lambda name: name.startswith("start/"))
def test_start(show, workload, contender):
    show(workload, contender)
