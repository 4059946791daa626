"""What the executor's tests share."""

from __future__ import annotations

import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def sky() -> Any:
    """SkyPilot; where it is not installed the test is skipped."""
    with warnings.catch_warnings():
        # Of old interfaces that SkyPilot's own imports use.
        warnings.simplefilter("ignore")
        pytest.importorskip("sky", reason="SkyPilot is not installed here: make test-cloud")
        from snakemake_executor_plugin_skypilot.cloud import import_sky

        return import_sky()
