"""What stands around the package says the same in all places."""

import re
from pathlib import Path

import pytest

import genesis

ROOT = Path(__file__).resolve().parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.skipif(
    not (ROOT / ".github").is_dir(),
    reason="about the repository: a source distribution has no .github",
)
def test_forks_run_what_ci_runs():
    (here,) = re.findall(r"tox run -e (\S+)", read(".ci/run"))
    (forks,) = re.findall(r"environment: \[(.*)\]", read(".github/workflows/ci.yml"))
    assert {*here.split(",")} <= {*forks.split(", ")}
    (versions,) = re.findall(r"python: \[(.*)\]", read(".github/workflows/ci.yml"))
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    assert re.findall(r"3\.\d+", versions) == claimed


def test_every_check_of_ci_is_described():
    environments = re.findall(r"tox run -e (\S+)", read(".ci/run"))[0].split(",")
    page = read("CONTRIBUTING.md")
    assert [
        name for name in environments if f"`{name}`" not in page and f"-e {name}`" not in page
    ] == []


def test_the_lowest_versions_are_those_that_are_admitted():
    admitted = dict(
        re.findall(
            r'"(numba|numpy|ml-dtypes|safetensors|xxhash)>=([\d.]+)"', read("pyproject.toml")
        )
    )
    _, _, section = read("tox.ini").partition("[testenv:lowest]")
    tested = dict(re.findall(r"(numba|numpy|ml-dtypes|safetensors|xxhash)==([\d.]+)", section))
    assert len(admitted) == 5
    assert {name: version.removesuffix(".0") for name, version in tested.items()} == admitted


def test_the_version_and_the_licence_are_the_same_everywhere():
    citation = read("CITATION.cff")
    assert f"\nversion: {genesis.__version__}\n" in citation
    assert "\nlicense: Apache-2.0\n" in citation
    assert '\nlicense = "Apache-2.0"\n' in read("pyproject.toml")
    assert "Version 2.0, January 2004" in read("LICENSE")
    assert f"## {genesis.__version__}" in read("CHANGELOG.md")
