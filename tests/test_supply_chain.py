"""The lock file says what `pyproject.toml` asks for, by hash, and names no place."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
LEFT = {"torch"}  # by version, in the Makefile: docs/supply-chain.md


def locked(path):
    """Each requirement of a lock file, with how many hashes it has."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [(Requirement(line.split("--hash")[0]), line.count("--hash=sha256:")) for line in lines]


def wanted(extras):
    """The requirements of easyfn and of some of its extras, which name each other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, ahead = [Requirement(r) for r in project["dependencies"]], list(extras)
    while ahead:
        for requirement in map(Requirement, project["optional-dependencies"][ahead.pop()]):
            if requirement.name == project["name"]:
                ahead += requirement.extras
            else:
                found.append(requirement)
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_holds_what_the_project_asks_for(python):
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions = {}
    for requirement, _ in locked(ROOT / "requirements/lock.txt"):
        if requirement.marker is None or requirement.marker.evaluate(here):
            (pin,) = requirement.specifier
            assert pin.operator == "==" and versions.setdefault(requirement.name, pin.version) == pin.version
    for requirement in wanted(["test", "lint", "docs"]):
        name = canonicalize_name(requirement.name)
        if name not in LEFT:
            fits = name in versions and requirement.specifier.contains(versions[name], prereleases=True)
            assert fits, f"{requirement} is not in requirements/lock.txt: make lock"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_has_its_hashes_and_no_place(path):
    assert all(hashes for _, hashes in locked(path))
    assert not re.search(r"://|file:|@ |^-|/", path.read_text(), re.MULTILINE)
