"""What the tests with pods share: one laboratory, and a small workflow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.lab import Lab, why_not

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
