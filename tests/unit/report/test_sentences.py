"""Numbers as sentences and tables write them."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.report.sentences import signed
from outlier_moe.report.tables import plain_table


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.00001, "0.0000"), (0.0, "0.0000"), (-0.0, "0.0000"), (0.00004, "0.0000"), (-0.00005001, "-0.0001")],
)
def test_what_rounds_to_nothing_has_no_sign(value: float, text: str) -> None:
    assert signed(value, 4) == text


def test_signs_of_the_rest() -> None:
    assert [signed(value, 2) for value in (0.5, -0.5)] == ["+0.50", "-0.50"]


def test_differences_name_both_models_first() -> None:
    frame = pl.DataFrame({"figure": ["n"], "estimate": [-0.0], "low": [None], "model": ["a"], "other": ["b"], "n": [2]})
    table = plain_table("differences", "", "", pl.concat([frame, frame.with_columns(low=0.5)], how="diagonal_relaxed"))
    assert [head for head, _ in table.heads] == ["model", "other", "figure", "estimate", "low", "n"]
    cells = table.rows[0]
    assert [cell.text for cell in cells] == ["a", "b", "n", "0", "–", "2"]
    # A figure that is missing stands where the others of its column do.
    assert cells[4].kind == "number"
