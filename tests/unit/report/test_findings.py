"""The sentences of a report carry the numbers and verdicts of its tables, and no more caveats than two."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from outlier_moe.report.findings import confidence_level, findings, how_much_text
from outlier_moe.report.inputs import ReportInputs, read_contents
from outlier_moe.report.sentences import Finding
from outlier_moe.report.tested import dense_and_moe, experts_of_outliers, jumps, published


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[-+]?\d[\d,]*\.?\d*", text)]


def said(inputs: ReportInputs) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings(inputs, read_contents(inputs))}


def table(usual: dict[str, Any], *rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{**usual, **row} for row in rows], infer_schema_length=None)


def test_the_numbers_are_those_of_the_comparison(study: ReportInputs) -> None:
    found = said(study)
    rows = study.models.filter(preset="dettmers2022", first_token="included").sort("n_systematic")
    told = numbers(found["How many"].sentence)
    assert told == [6, 25, 6, rows["n_systematic"][0], rows["n_systematic"][-1], rows["n_systematic"].median()]
    assert all(rows["model"][place] in found["How many"].sentence for place in (0, -1))
    shares = numbers(found["How far they reach"].sentence)
    expected = [rows[f"{of}_fraction_mean"] for of in ("layer", "position")]
    assert shares == [round(100 * end, 1) for of in expected for end in (of.min(), of.max())]  # type: ignore[operator,arg-type]
    medians = [rows.filter(kind=kind)["n_systematic"].median() for kind in ("moe", "dense")]
    assert numbers(found["Dense against MoE"].sentence) == medians
    massive = study.models.filter(preset="sun2024", first_token="included")
    assert massive["peak_largest"].max() == pytest.approx(numbers(found["Massive activations"].sentence)[-1], rel=1e-3)


def test_an_interval_stands_behind_its_figure(study: ReportInputs) -> None:
    row = study.models.filter(preset="dettmers2022", first_token="included").sort("n_systematic").row(0, named=True)
    key = {"preset": "dettmers2022", "first_token": "included", "figure": "n_systematic", "model": row["model"]}
    n = row["n_systematic"]
    intervals = pl.DataFrame([{**key, "low": n - 1.0, "high": n + 2.0, "confidence_level": 0.9}])
    found = said(replace(study, statistics={"intervals": intervals}))
    assert f"{n} [{n - 1} to {n + 2}]" in found["How many"].sentence
    assert confidence_level(intervals) == 0.9


def test_first_tokens_that_matter_are_counted(study: ReportInputs) -> None:
    is_one = (pl.col("model") == "small-moe") & (pl.col("first_token").cast(pl.String) == "excluded")
    fewer = study.models.with_columns(n_systematic=pl.when(is_one).then(1).otherwise("n_systematic").cast(pl.UInt32))
    assert numbers(said(replace(study, models=fewer))["First tokens"].sentence) == [1, 4, 4, 1]


def test_there_are_at_most_two_caveats(study: ReportInputs) -> None:
    odd = {"d_model_share": 1.0, "n_nonfinite": pl.lit(3, pl.UInt64)}
    found = findings(whole := replace(study, models=study.models.with_columns(**odd)), read_contents(whole))  # type: ignore[arg-type]
    caveats = [finding for finding in found if finding.is_caveat]
    assert [finding.topic for finding in caveats] == ["In no test", "How much text"] and len(found) <= 12


@pytest.mark.parametrize(
    ("n", "level", "expected"), [(16, 0.95, [16, 95, 74, 91]), (16, 0.9, [16]), (3, 0.95, [3]), (64, 0.95, [64])]
)
def test_only_what_was_simulated_has_numbers(n: int, level: float, expected: list[int]) -> None:
    rows = pl.DataFrame({"model": ["a", "b"], "n_sequences": [n, n]})
    sentence = how_much_text(rows, level).sentence
    assert numbers(sentence) == expected
    assert ("narrow" in sentence) == (n < 30)
    assert "narrow" not in how_much_text(rows, None).sentence


TEST: dict[str, Any] = {
    "y": "n_systematic",
    "test": "mann_whitney",
    "n_moe": 9,
    "n_dense": 8,
    "n_pairs": None,
    "effect": -0.5,
    "low": -0.8,
    "high": 0.1,
    "q_value": 0.4,
}
MODELS = pl.DataFrame({"kind": ["dense", "moe"], "n_systematic": [4, 2]})


def test_each_question_has_its_verdict() -> None:
    tests = table(
        TEST,
        {"question": "dense_against_moe", "verdict": "none"},
        {"question": "matched_perplexity", "verdict": "too_few", "n_pairs": 3},
        {"question": "sparsity_of_moe", "verdict": "higher", "test": "kendall", "n_dense": 0},
        {"question": "sparsity_of_moe", "verdict": "higher", "test": "spearman"},
        {"question": "matched_active_params_b", "verdict": None, "q_value": None},
    )
    found = dense_and_moe(MODELS, tests)
    assert found is not None
    verdicts = ["no difference seen", "too few to tell", "more features"]
    assert len(found.details) == 3
    for detail, verdict, n in zip(found.details, verdicts, (17, 3, 9), strict=True):
        assert verdict in detail and numbers(detail) == [n, -0.5, -0.8, 0.1, 0.4]
    assert dense_and_moe(MODELS.head(1), tests) is None


ALONG: dict[str, Any] = {
    "group": "all",
    "x": "total_params_b",
    "y": "layer_fraction_mean",
    "n_models": 16,
    "verdict": "none",
    "power": 0.8,
    "location": 6.4,
    "location_low": 2.0,
    "location_high": 8.0,
    "before": 0.3,
    "after": 0.9,
    "q_value": 0.04,
    "q_value_either": 0.5,
    "q_value_beyond_line": None,
    "kendall_q_value": 0.7,
    "detectable_jump": 0.25,
}


def test_jumps_are_counted_by_verdict_with_their_places() -> None:
    rows = table(
        ALONG,
        {"verdict": "jump", "q_value_beyond_line": 0.03},
        {"x": "perplexity"},
        {"y": "n_systematic", "verdict": "too_few"},
        {"x": "active_params_b", "verdict": "fall"},
    )
    found = jumps(rows)
    assert found is not None and numbers(found.sentence) == [1, 4, 1, 4]
    assert numbers(found.details[0]) == [6.4, 2, 8, 30, 90, 0.04, 0.03, 0.7]
    assert numbers(found.details[1]) == [25, 80, 0.04, 0.7]
    [fall] = [line for line in found.details if "fall" in line and "falling" not in line]
    assert numbers(fall) == [0.5, 0.7], "the change is one in either direction"
    assert jumps(rows.with_columns(verdict=pl.lit(None, pl.String))) is None, "nothing was tested"
    assert jumps(None) is None


LAYER: dict[str, Any] = {"model": "a", "n_sequences": 16, "cramers_v": 0.2, "verdict": "differs"}


def test_layers_that_route_outliers_elsewhere_are_counted() -> None:
    found = experts_of_outliers(table(LAYER, {}, {"verdict": "none"}, {"verdict": "too_few"}, {"verdict": None}))
    assert found is not None and numbers(found.sentence) == [1, 3, 1]
    assert numbers(found.details[0]) == [1, 3, 1, 0.2]
    assert experts_of_outliers(table(LAYER, {"verdict": None})) is None


def test_published_figures_are_counted_without_our_own() -> None:
    claim = {"model": "a", "claim": "a feature", "verdict": "reproduced", "source": "arXiv 2402.17762"}
    own = {"source": "measured here on 4-bit weights", "verdict": "not reproduced"}
    held = table(claim, {}, {"verdict": "not reproduced", "claim": "a peak"}, {"verdict": "not comparable"}, own)
    found = published(held)
    assert found is not None and numbers(found.sentence) == [2, 1] and numbers(found.basis) == [1]
    assert found.details == ("not reproduced in a: a peak",)
    assert published(held.filter(verdict="not comparable")) is None


def test_super_experts_are_named(study: ReportInputs, tmp_path: Path) -> None:
    expert = {"model": "a", "layer": 1, "expert": 7, "peak": 900.0, "is_super": True}
    experts = table(expert, *({"layer": layer} for layer in range(4)), {"model": "b", "is_super": False})
    found = said(replace(study, statistics={"super_experts": experts}))["Super experts"]
    assert numbers(found.sentence) == [1, 2] and numbers(found.basis) == [5, 2]
    assert found.details == ("a: L0 E7 (900), L1 E7 (900), L2 E7 (900) and 1 more",)
