"""The history of a run: one JSON line a step while it runs, the same as Parquet at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.tables.files import write_table
from outlier_moe.tables.whole_outputs import whole_file

LINES = "training_history.jsonl"
TABLE = "training_history.parquet"


class TrainingHistory:
    """The lines of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LINES
        folder.mkdir(parents=True, exist_ok=True)

    def cut(self, n_done: int) -> None:
        """Keep the lines of so many steps: what a killed run wrote behind its last checkpoint is done again."""
        kept = [row for row in self.rows() if row["step"] < n_done]
        with whole_file(self.path) as partial:
            partial.write_text("".join(map(_line, kept)), encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the line of a step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rows(self) -> list[dict[str, Any]]:
        """The lines so far; one that a kill cut short is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def finish(self) -> pl.DataFrame:
        """Write the lines as Parquet too."""
        table = pl.DataFrame(self.rows(), infer_schema_length=None)
        with whole_file(self.folder / TABLE) as partial:
            write_table(table, partial)
        return table


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN and no infinity.
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite) + "\n"
