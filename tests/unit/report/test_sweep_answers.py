"""What stands out of a sweep is said of both moments, and never more than tests and intervals hold."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from outlier_moe.report.sweep_answers import answer_tables, difference_questions, standing_out, trend_questions

_NUMBERS = {
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
    "q_value": pl.Float64,
}


def pair(figure: str, moment: str, difference: float, q: float | None, **changes: Any) -> dict[str, Any]:
    whose = {"optimizer": "adamw", "other": "muon", "scale": "all", "n_seeds": 3, "n_pairs": 9, "reason": None}
    numbers = {"difference": difference, "low": difference - 0.1, "high": difference + 0.1, "p_value": q, "q_value": q}
    return {"figure": figure, "moment": moment, **whose, **numbers, **changes}


def said(*rows: dict[str, Any]) -> list[str]:
    [statement] = standing_out(difference_questions(pl.DataFrame(rows, schema_overrides=_NUMBERS)))
    return statement.lines


def test_what_is_found_in_both_moments_is_said_with_its_direction() -> None:
    rows = [
        pair(name, moment, sign * 0.3, 0.01)
        for name, sign in (("hoyer", 1), ("peak", -1))
        for moment in ("end", "matched")
    ]
    assert said(*rows) == ["Both at the end and at matched loss: higher Hoyer's sparseness; lower largest |x|."]


def test_a_difference_that_changes_its_sign_is_not_said_to_be_in_both() -> None:
    [line] = said(pair("hoyer", "end", 0.3, 0.01), pair("hoyer", "matched", -0.3, 0.02))
    assert line == "At the end, and at matched loss the other way round: higher Hoyer's sparseness."


@pytest.mark.parametrize(
    ("matched", "end"),
    [
        (0.3, " At matched loss, too, the interval holds no 0: Hoyer's sparseness."),
        (-0.3, " At matched loss the interval lies beyond 0: Hoyer's sparseness."),
        (0.05, ""),
    ],
)
def test_what_is_not_found_in_the_other_moment_is_not_said_to_be_gone(matched: float, end: str) -> None:
    [line] = said(pair("hoyer", "end", 0.3, 0.01), pair("hoyer", "matched", matched, 0.2))
    assert line == f"At the end, and not found at matched loss: higher Hoyer's sparseness.{end}"
    assert "gone" not in line


def test_what_lies_between_two_checkpoints_is_no_finding() -> None:
    turned = pair("peak", "matched", 0.3, 0.01, bracket_low=-0.2, bracket_high=0.8)
    sure = pair("hoyer", "matched", 0.3, 0.01, bracket_low=0.2, bracket_high=0.8)
    either = "With q ≤ 0.05 at matched loss, but of either sign by what lies between two checkpoints: largest |x|."
    assert said(turned, sure) == [
        "At matched loss (at the end there is no test): higher Hoyer's sparseness.",
        either,
        "In neither moment: the other 1 figure of 2.",
    ]
    assert said(turned) == [either, "In neither moment: the other 1 figure of 1."]


def test_a_test_of_pairs_whose_interval_of_seeds_holds_0_is_told() -> None:
    [line] = said(pair("hoyer", "end", 0.05, 0.01))
    assert line.startswith("At the end (at matched loss there is no test): higher Hoyer's sparseness.")
    assert line.endswith("The interval over seeds holds 0 all the same: Hoyer's sparseness.")


def test_what_no_test_finds_is_counted_with_the_least_q() -> None:
    lines = said(pair("hoyer", "end", 0.3, 0.07), pair("peak", "end", 0.05, 0.6), pair("peak", "matched", 0.3, 0.2))
    assert lines == [
        "Of 2 figures none has q ≤ 0.05 in either moment; the least q is 0.07.",
        "Intervals that hold no 0: at the end 1 of 2, at matched loss 1 of 1.",
    ]


def test_what_cannot_be_tested_says_why() -> None:
    lines = said(pair("hoyer", "end", 0.3, None, scale="w8", n_seeds=1, n_pairs=1, low=None, reason="1 pair"))
    assert lines == ["Nothing is tested: 1 pair.", "The table has single numbers."]


def test_the_pairs_of_all_scales_are_asked_where_there_are_several() -> None:
    rows = [pair("hoyer", "end", 0.3, 0.01), pair("hoyer", "end", 9.0, 0.5, scale="w8", n_pairs=3)]
    for order in (rows, rows[::-1]):
        [question] = difference_questions(pl.DataFrame(order, schema_overrides=_NUMBERS))
        assert question.rows["hoyer"]["end"]["difference"] == 0.3
        assert question.basis == "9 pairs of runs: 3 seeds at 3 scales"


def test_the_tables_mark_what_is_found_and_have_both_moments_beside_each_other() -> None:
    comparisons = pl.DataFrame(
        [pair("peak", "end", 0.3, 0.01), pair("hoyer", "matched", -0.3, 0.5)], schema_overrides=_NUMBERS
    )
    columns = ["figure", "moment", "optimizer", "n_scales", "n_seeds", "slope", "low", "high", "p_value", "q_value"]
    trends = pl.DataFrame(schema={name: comparisons.schema.get(name, pl.Float64) for name in columns})
    assert trend_questions(trends) == []
    [table] = answer_tables("sweep", comparisons, trends)
    # In the order of the pictures.
    assert [row[0].text for row in table.rows] == ["Hoyer's sparseness", "largest |x|"]
    assert [cell.text for cell in table.rows[0]][2:] == ["–", "–", "–", "-0.300", "0.5", "0.5"]
    assert [cell.kind for cell in table.rows[1]][2:5] == ["number strong", "number", "number strong"]
    assert table.rows[1][2].interval == "+0.200 to +0.400"
