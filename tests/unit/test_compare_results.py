"""The script that holds two results folders against each other finds what differs, and that alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent.parent


def test_what_differs_is_found_and_times_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import compare_results  # pyright: ignore[reportMissingImports]

    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    table = pl.DataFrame({"metric": ["loss", "time_s"], "value": [float("nan"), 1.0], "time_s": [1.0, 2.0]})
    table.write_parquet(before / "table.parquet")
    table.write_ipc(before / "layer.arrow")
    save_file({"weight": np.zeros(3, np.float32)}, before / "model.safetensors")
    (before / "run.json").write_text(json.dumps({"d_model": 8, "versions": {"torch": "1"}}))
    shutil.copytree(before, after)

    def compared() -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare_results.py", str(before), str(after)])
        return compare_results.main(), capsys.readouterr().out

    # Of a long table the rows that are times, and of all others the columns and keys.
    table.with_columns(value=pl.Series([float("nan"), 9.0]), time_s=pl.lit(0.5)).write_parquet(after / "table.parquet")
    (after / "run.json").write_text(json.dumps({"d_model": 8, "versions": {"torch": "2"}}))
    assert compared() == (0, "4 files in both folders, 0 that differ\n")
    table.with_columns(value=pl.Series([2.0, 1.0])).write_ipc(after / "layer.arrow")
    # Zero and minus zero are equal, and other bits.
    save_file({"weight": -np.zeros(3, np.float32)}, after / "model.safetensors")
    (after / "run.json").write_text(json.dumps({"d_model": 9}))
    (after / "more.json").write_text("{}")
    status, told = compared()
    assert status == 1 and told.endswith("4 files in both folders, 4 that differ\n")
    for line in (
        "layer.arrow: column value: 1 of 1",
        "tensor weight",
        "key d_model: 8 before, 9 after",
        "more.json: only",
    ):
        assert line in told
