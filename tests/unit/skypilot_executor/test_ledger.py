"""What nodes cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snakemake_executor_plugin_skypilot.ledger import Ledger, Rent


def _rent(job: str = "a", node: str = "n0", price: float = 6.0, expected: float = 0.0) -> Rent:
    return Rent("run", job, node, "8x H100", price, expected, started=1_000_000.0)


def test_dollars_are_time_by_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs that run what they are expected to take counts, if that is more than they have taken."""
    monkeypatch.setattr("time.time", lambda: 1_000_000.0 + 600)
    ledger = Ledger(tmp_path / "costs.jsonl")
    short, long = ledger.open(_rent(expected=5)), ledger.open(_rent("b", "n1", price=3.0, expected=60))
    assert short.dollars == pytest.approx(1.0) and short.expected_dollars == pytest.approx(1.0)
    assert long.dollars == pytest.approx(0.5) and long.expected_dollars == pytest.approx(3.0)
    assert ledger.committed == pytest.approx(4.0)
    ledger.close(long, "failed")
    assert ledger.committed == pytest.approx(1.5)


def test_file_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rent is a line; a job that was lost once costs both its nodes."""
    monkeypatch.setattr("time.time", lambda: 1_000_000.0 + 1800)
    ledger = Ledger(tmp_path / "costs.jsonl")
    assert ledger.summary() is None
    for node, outcome in (("n0", "lost"), ("n1", "succeeded")):
        ledger.close(ledger.open(_rent(node=node)), outcome)
    written = [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert [(line["job"], line["node"], line["outcome"], line["dollars"]) for line in written] == [
        ("a", "n0", "lost", 3.0),
        ("a", "n1", "succeeded", 3.0),
    ]
    summary = ledger.summary()
    assert summary is not None
    assert summary.startswith("Rented 2 nodes for 60 minutes: $6.00") and summary.endswith("\n  a: $6.00")
    # A kept node waits, and costs.
    ledger.add_unused("run", "n1", "8x H100", 6.0, since=1_000_000.0 + 1800 - 600)
    summary = ledger.summary()
    assert summary is not None
    assert summary.startswith("Rented 2 nodes for 70 minutes: $7.00") and summary.endswith("\n  (no job): $1.00")
