"""Numbers as sentences and tables write them."""

from __future__ import annotations

import polars as pl

from outlier_moe.report.tables import plain_table


def test_differences_name_both_models_first() -> None:
    frame = pl.DataFrame({"figure": ["n"], "estimate": [-0.0], "low": [None], "model": ["a"], "other": ["b"], "n": [2]})
    table = plain_table("differences", "", "", pl.concat([frame, frame.with_columns(low=0.5)], how="diagonal_relaxed"))
    assert [head for head, _ in table.heads] == ["model", "other", "figure", "estimate", "low", "n"]
    cells = table.rows[0]
    assert [cell.text for cell in cells] == ["a", "b", "n", "0", "–", "2"]
    # A figure that is missing stands where the others of its column do.
    assert cells[4].kind == "number"


def test_an_estimate_in_a_table_has_the_digits_of_its_ends() -> None:
    frame = pl.DataFrame({"model": ["a"], "estimate": [1234.0], "low": [1200.5], "high": [1.3e6], "p_value": [3e-7]})
    cells = plain_table("differences", "", "", frame).rows[0]
    assert [cell.text for cell in cells] == ["a", "1,234", "1,200", "1,300,000", "< 0.0001"]
