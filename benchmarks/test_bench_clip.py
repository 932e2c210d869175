"""Everything around the step: clipping, unscaling, zeroing, alone and together with it."""

from replay import contests


@contests(lambda name: name.startswith(("clip", "scaled", "zero")))
def test_clip(show, workload, contender):
    show(workload, contender)
