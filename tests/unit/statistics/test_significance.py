"""The verdict of a test, by its q-value and by what so many values can show at all."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.statistics.significance import LEVEL, verdict


@pytest.mark.parametrize(
    ("effect", "p", "q", "smallest", "expected"),
    [
        (0.5, 0.001, LEVEL, 0.001, "higher"),
        (-0.5, 0.001, LEVEL, 0.001, "lower"),
        (0.0, 0.001, 0.01, 0.001, "differs"),
        (None, 0.001, 0.01, 0.001, "differs"),
        (0.5, 0.04, 0.06, 0.001, "none"),
        (0.5, 0.33, None, 0.33, "too_few"),
        (0.5, 0.33, 0.4, 0.33, "too_few"),
        (None, None, None, None, None),
    ],
)
def test_verdicts(
    effect: float | None, p: float | None, q: float | None, smallest: float | None, expected: str | None
) -> None:
    columns = {"effect": effect, "p_value": p, "q_value": q, "smallest_p_value": smallest}
    row = pl.DataFrame([columns], schema=dict.fromkeys(columns, pl.Float64))
    assert row.select(verdict(pl.col("effect"))).item() == expected
    if expected in ("higher", "lower"):
        assert row.select(verdict()).item() == "differs"
