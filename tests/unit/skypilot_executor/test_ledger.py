"""What nodes cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot.ledger import Ledger, Rent


def _rent(job: str = "a", node: str = "n0", price: float = 6.0, expected: float = 0.0) -> Rent:
    return Rent("run", job, node, "8x H100", price, expected, started=1_000_000.0)


def _ledger(folder: Path) -> Ledger:
    return Ledger(folder / "costs.jsonl", pytest.fail)


def test_dollars_are_time_by_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs that run what they are expected to take counts, if that is more than they have taken."""
    monkeypatch.setattr("time.time", lambda: 1_000_000.0 + 600)
    ledger = _ledger(tmp_path)
    short, long = ledger.open(_rent(expected=5)), ledger.open(_rent("b", "n1", price=3.0, expected=60))
    assert short.dollars == pytest.approx(1.0) and short.expected_dollars == pytest.approx(1.0)
    assert long.dollars == pytest.approx(0.5) and long.expected_dollars == pytest.approx(3.0)
    # 1 is spent, 3 are committed, and the next is reckoned at 1 as well.
    with pytest.raises(WorkflowError, match=r"(?s)max-price-total.*\$5\.00 with this job"):
        ledger.open(_rent("c", "n2"), at_most=4.9)
    ledger.close(long, "failed")
    assert ledger.open(_rent("c", "n2"), at_most=2.6)


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """The run goes on, and the sum is told all the same."""
    said: list[str] = []
    ledger = Ledger(tmp_path / "no such folder/costs.jsonl", said.append)
    ledger.close(ledger.open(_rent()), "succeeded")
    assert "could not be noted" in said[0] and ledger.summary() is not None


def test_file_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rent is a line; a job that was lost once costs both its nodes."""
    monkeypatch.setattr("time.time", lambda: 1_000_000.0 + 1800)
    ledger = _ledger(tmp_path)
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
    ledger.add_unused("run", "n1", "8x H100", 6.0, since=1_000_000.0 + 1800 - 600, until=1_000_000.0 + 1800)
    summary = ledger.summary()
    assert summary is not None
    assert summary.startswith("Rented 2 nodes for 70 minutes: $7.00") and summary.endswith("\n  (no job): $1.00")
