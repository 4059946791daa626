from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer, reachable_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that is reached at once: what waits between attempts does not."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with reachable_hub(monkeypatch, tmp_path / "hub_cache") as server:
        yield server
