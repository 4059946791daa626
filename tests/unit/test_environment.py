"""pyproject.toml, both locks and environment.yml say the same; annotations are checked while tests run."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from outlier_moe.errors import nearest

ROOT = Path(__file__).parent.parent.parent
LOCKS = {"requirements.lock": ("dev",), "requirements-cloud.lock": ("cloud", "slurm", "test")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What torch's builds for CUDA pin themselves, and what an environment brings along.
UNLOCKED = re.compile(r"outlier-moe|pip|triton|(nvidia|cuda)-.*")


def pin_lines(lock: str) -> list[str]:
    return [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]


def pins(lock: str) -> dict[str, str]:
    return dict(line.split("==") for line in pin_lines(lock))


def declared(extras: tuple[str, ...]) -> list[Requirement]:
    """The project's dependencies with these extras, and the extras that an extra names."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in lines]
    named = [extra for requirement in requirements if requirement.name == "outlier-moe" for extra in requirement.extras]
    own = [requirement for requirement in requirements if requirement.name != "outlier-moe"]
    return own + [Requirement(line) for extra in named for line in PROJECT["optional-dependencies"][extra]]


@pytest.mark.parametrize(("lock", "extras"), LOCKS.items())
def test_every_dependency_is_locked_within_its_range(lock: str, extras: tuple[str, ...]) -> None:
    locked = pins(lock)
    for requirement in declared(extras):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} of pyproject.toml is missing in {lock}: run `make lock`"
        assert requirement.specifier.contains(version), f"{lock} has {version} for {requirement}: run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_plain_exact_pins_without_a_build_or_an_address(lock: str) -> None:
    lines = pin_lines(lock)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(pins(lock)) == len(lines)
    # Their import fails beside the CPU build of torch, and takes that of transformers with it.
    assert not {"torchvision", "timm"} & set(pins(lock))


@pytest.mark.skipif(
    (sys.platform, sys.version_info[:2]) != ("linux", (3, 11)), reason="the locks are made on Linux with Python 3.11"
)
def test_the_lock_holds_whatever_its_packages_need() -> None:
    lock = "requirements-cloud.lock" if is_installed("skypilot") else "requirements.lock"
    locked = pins(lock)
    queue = declared(LOCKS[lock])
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or UNLOCKED.fullmatch(name):
            continue
        seen.add(key)
        assert name in locked, f"{name} is missing in {lock}: run `make lock`"
        if is_installed(name) and distribution(name).version.split("+")[0] == locked[name]:
            queue += needs(requirement)
    assert {name for name, _ in seen} == set(locked), f"{lock} pins what nothing needs: run `make lock`"


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def needs(requirement: Requirement) -> list[Requirement]:
    """What an installed package requires here, with the extras asked for."""
    requirements = [Requirement(line) for line in distribution(requirement.name).requires or []]
    extras = requirement.extras or {""}
    return [
        needed
        for needed in requirements
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_the_conda_environment_is_the_cloud_lock() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["--editable .", *pin_lines("requirements-cloud.lock")]}


def test_a_wrong_argument_is_noticed_while_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        nearest(3, ["a", "b"])  # pyright: ignore[reportArgumentType]
