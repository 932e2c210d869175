"""pytest-benchmark shows what `workloads.measure` finds.

Contenders must take turns, so a workload is measured as a whole, when its first contender's test
asks; each contender's test then hands its samples to pytest-benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from contest import Result, measure  # noqa: E402
from replay import replay  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share", type=float, default=0.5, help="part of each workload's usual time (default: 0.5)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # jax and torch warn of this and that when they are imported
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def _kept() -> dict[str, Result]:
    return {}


@pytest.fixture
def show(benchmark, request, _kept) -> Callable[[str, str], Result]:
    """A function that measures a workload, once, and shows a contender's samples."""

    def show(workload: str, contender: str) -> Result:
        if workload not in _kept:
            _kept.clear()
            share = request.config.getoption("--share", 0.5)
            _kept[workload] = measure(WORKLOADS[workload], share)
        result = _kept[workload]
        if result.error or contender not in result.samples:
            pytest.skip(result.error or f"{contender}: {result.missing.get(contender)}")
        record = result.record()
        benchmark.group = f"{workload}: {record['title']}"
        benchmark.extra_info.update(
            ratio_to_genesis=record["ratio"].get(contender),
            roofline=record["roofline"],
            fraction_of_roofline=record["fraction_of_roofline"],
            roofline_drift=record["roofline_drift"],
            load=record["load"],
        )
        replay(benchmark, result.samples[contender])
        return result

    return show
