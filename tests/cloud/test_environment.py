"""A node's own environment from pinned requirements, installed from a wheelhouse in place of an index."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from tests.cloud.lab import Lab, Start

pytestmark = pytest.mark.pods

REQUIREMENTS = "requirements.lock"


def test_installed_once(lab: Lab, folder: Path, start: Start) -> None:
    """Jobs run in it, and the second one on the same node does not install it again."""
    version = importlib.metadata.version("snakemake")
    lab.serve_wheels(f"snakemake=={version}")
    (folder / REQUIREMENTS).write_text(f"snakemake=={version}\n")
    targets = ["results/python-1.txt", "results/python-2.txt"]
    settings = ["--skypilot-requirements", REQUIREMENTS, "--skypilot-setup", "echo it is set up"]
    # Without the prelude that shows jobs this machine's environment.
    settings += ["--skypilot-prelude", "", "--skypilot-reuse", "1", "--skypilot-idle-minutes", "10"]
    n_before = len(lab.events("created"))
    driver = start(*targets, *settings)
    assert driver.wait() == 0, driver.all_said

    first, second = ((folder / target).read_text().strip() for target in targets)
    assert first == second and "/.snakemake-environments/" in first
    logs = [path.read_text() for path in (folder / ".snakemake/skypilot/logs").rglob("*.log")]
    assert sorted("it is set up" in log for log in logs) == [False, True]
    assert len(lab.events("created")) == n_before + 1 and lab.pods == []
