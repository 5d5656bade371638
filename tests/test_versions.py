"""The version policy: what pyproject.toml allows, the lowest set, the newest set that was tried, and what the doctor knows of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fourdfy_cli import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
TEST, OPTIONAL = EXTRAS["test"], [one for texts in EXTRAS.values() for one in texts if one.name != "fourdfy"]


def pins(name: str) -> dict[str, Version]:
    """Version by package of a file that holds nothing but comments and NAME==VERSION."""
    lines = [line for line in (ROOT / ".ci" / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = {}
    for line in lines:
        package, version = line.split("==")
        assert canonicalize_name(package) not in found
        found[canonicalize_name(package)] = Version(version)
    return found


def bound(requirement: Requirement) -> Version:
    """The one lower bound."""
    (version,) = (clause.version for clause in requirement.specifier if clause.operator in (">=", "=="))
    return Version(version)


@pytest.mark.parametrize("requirement", [*DIRECT, *TEST], ids=str)
def test_each_lower_bound_is_the_lowest_that_was_tried(requirement: Requirement):
    assert pins("lowest.txt")[canonicalize_name(requirement.name)] == bound(requirement)


@pytest.mark.parametrize("requirement", [*DIRECT, *OPTIONAL], ids=str)
def test_the_newest_set_is_allowed(requirement: Requirement):
    if requirement.marker is not None and not requirement.marker.evaluate({"python_version": "3.11"}):
        pytest.skip("not on the Python that the set is for")
    assert pins("tried.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_lowest_are_not_above_the_newest():
    lowest, tried = pins("lowest.txt"), pins("tried.txt")
    assert set(lowest) - set(tried) <= {"tomli"} and all(lowest[name] <= tried[name] for name in set(lowest) & set(tried))


def test_the_doctor_knows_the_newest_set():
    assert {canonicalize_name(name): Version(version) for name, version in doctor.tried().items()} == pins("tried.txt")
