"""What stands out of a sweep follows from its verdicts, and its caveats are those that change how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from outlier_moe.report.sweep_answers import answer_tables, caveats, differences, slopes, standing_out
from outlier_moe.report.sweeps import Sweep
from outlier_moe.tables.sweeps import SweepTrend
from tests.swept_tables import made_up_sweep

_NUMBERS = dict.fromkeys(["difference", "low", "high", "p_value", "q_value"], pl.Float64) | {"verdict": pl.String}
WHO = "adamw less muon"


def pair(figure: str, moment: str, difference: float, verdict: str | None, **changes: Any) -> dict[str, Any]:
    whose = {"optimizer": "adamw", "other": "muon", "scale": "all"}
    q = {"higher": 0.01, "lower": 0.01, "none": 0.2}.get(verdict or "")
    numbers = {"difference": difference, "low": difference - 0.1, "high": difference + 0.1, "p_value": q, "q_value": q}
    return {"figure": figure, "moment": moment, **whose, **numbers, "verdict": verdict, **changes}


def compared(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides=_NUMBERS)


def found(comparisons: pl.DataFrame) -> dict[str, str]:
    return standing_out({"comparisons": comparisons, "trends": SweepTrend.create_empty()})


def test_what_is_found_is_said_with_its_moments_and_direction() -> None:
    rows = [pair(name, moment, 0.3, "higher") for name in ("hoyer", "peak") for moment in ("end", "matched")]
    turned = [
        pair("kurtosis_of_feature_rms", "end", 0.3, "higher"),
        pair("kurtosis_of_feature_rms", "matched", -1, "lower"),
    ]
    parts = found(compared(*rows, *turned))[WHO].split("; ")
    assert sorted(parts) == [
        "at matched loss lower: kurtosis of feature RMS",
        "at the end and at matched loss higher: Hoyer's sparseness and largest |x|",
        "at the end higher: kurtosis of feature RMS",
    ]


def test_what_no_test_finds_is_counted_with_the_least_q_and_what_is_not_tested_is_not_spoken_of() -> None:
    lines = found(compared(pair("hoyer", "end", 0.3, "none"), pair("peak", "end", 0.1, "none")))
    assert "2 figures" in lines[WHO] and lines[WHO].endswith("0.2")
    assert found(compared(pair("hoyer", "end", 0.3, None))) == {}
    turned = pair("peak", "matched", 0.3, "either_sign", q_value=0.01)
    assert "largest" not in found(compared(turned))[WHO]


def test_the_pairs_of_all_scales_are_asked_where_there_are_several() -> None:
    rows = [pair("hoyer", "end", 0.3, "higher"), pair("hoyer", "end", 9.0, "none", scale="w8")]
    for order in (rows, rows[::-1]):
        assert differences(compared(*order))["estimate"].to_list() == [0.3]
    assert differences(compared(rows[1]))["estimate"].to_list() == [9.0]


def test_the_tables_mark_what_is_found_and_have_both_moments_beside_each_other() -> None:
    comparisons = compared(pair("peak", "end", 0.3, "higher"), pair("hoyer", "matched", -0.3, "none"))
    nothing = SweepTrend.create_empty()
    assert slopes(nothing).is_empty()
    [table] = answer_tables("sweep", {"comparisons": comparisons, "trends": nothing})
    # In the order of the pictures.
    assert [row[0].text for row in table.rows] == ["Hoyer's sparseness", "largest |x|"]
    assert [cell.text for cell in table.rows[0]][2:] == ["–", "–", "–", "-0.300", "0.2", "0.2"]
    assert [cell.kind for cell in table.rows[1]][2:5] == ["number strong", "number", "number strong"]
    assert table.rows[1][2].interval == "+0.200 to +0.400"


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("repeated"), n_seeds=3, diverges=False)


def of_rates(tables: Sweep, n_tried: int) -> str:
    said = caveats("lm_scale_sweep", tables, {"lm_scale_sweep": {"multiples": [1.0] * n_tried}})
    assert len(said) <= 2
    return said[0] if said else ""


def test_rates_that_were_not_tried_at_an_edge_or_moving_with_size_are_a_caveat(repeated: Sweep) -> None:
    summary = repeated["summary"].with_columns(grid_edge=pl.lit(None, pl.String))
    inside = {**repeated, "summary": summary}
    assert "No other learning rates" in of_rates(inside, 1)
    assert of_rates(inside, 3) == ""
    assert "muon at w16 (at its highest, 0.1)" in of_rates(repeated, 3)
    is_one = (pl.col("scale") == "w16") & (pl.col("optimizer") == "muon")
    moved = summary.with_columns(learning_rate=pl.when(is_one).then(0.02).otherwise("learning_rate"))
    assert "muon" in (text := of_rates({**repeated, "summary": moved}, 3)) and "adamw" not in text


def test_a_matched_loss_near_the_start_is_a_caveat(repeated: Sweep, tmp_path: Path) -> None:
    study = {"scale_sweep": {"multiples": [0.3, 1.0]}}
    assert not any("matched loss" in said for said in caveats("scale_sweep", repeated, study))
    near = pl.when(scale="w8").then(1.95).otherwise("target_loss_nats")
    tables = {
        **repeated,
        **{name: repeated[name].with_columns(target_loss_nats=near) for name in ("summary", "comparisons")},
    }
    *_, said = caveats("scale_sweep", tables, study)
    assert said.endswith("): w8, adamw and muon at w8.")
