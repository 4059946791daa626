"""What the tests with pods share: one laboratory, and a small workflow."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.lab import TOKENS, Driver, Lab, Start, why_not

# Made once, and kept between runs of the tests.
IMAGE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "outlier-moe-cloud/image")


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A laboratory; on a disk, as an overlay's upper layer cannot lie on another overlay."""
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="cloud-lab-", dir="/var/tmp"))
    laboratory = Lab(folder, IMAGE)
    try:
        laboratory.start()
        yield laboratory
    finally:
        laboratory.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(lab: Lab, request: pytest.FixtureRequest) -> Path:
    """A folder with the small workflow; below the laboratory's, which pods do not see."""
    lab.steer("anew")
    made = lab.folder / request.node.name
    shutil.copytree(Path(__file__).parent / "workflow", made)
    (made / "data").mkdir()
    (made / "data/in.bin").write_bytes(os.urandom(300_000))
    (made / "data/token.sha").write_text(hashlib.sha256(TOKENS["HF_TOKEN"].encode()).hexdigest()[:8] + "\n")
    (made / ".env").write_text("WORKFLOW_TOKEN={WORKFLOW_TOKEN}\n".format(**TOKENS))
    return made


@pytest.fixture
def start(lab: Lab, folder: Path) -> Iterator[Start]:
    """Starts Snakemake in that folder; what is left of it in the end is killed."""
    drivers: list[Driver] = []

    def started(*arguments: str, **extra: str) -> Driver:
        # Pods see this machine's files, so that they have this environment without installing it.
        prelude = f"export PATH={Path(sys.executable).parent}:$PATH"
        settings = ["--skypilot-prelude", prelude, "--skypilot-secrets", "HF_TOKEN", "--skypilot-idle-minutes", "1"]
        drivers.append(lab.snakemake(folder, "--jobs", "4", *settings, *arguments, **TOKENS | extra))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.signal(signal.SIGKILL)
        driver.wait()
    for pod in lab.pods:
        lab.steer("preempt", id=pod["id"])
