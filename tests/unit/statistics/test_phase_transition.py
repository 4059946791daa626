"""The published transition is found, noise gives none, and what cannot be said has a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from outlier_moe.reference import reference_table
from outlier_moe.schemas.comparison import ModelResample
from outlier_moe.statistics.phase_transition import MEASURES, phase_transitions
from outlier_moe.statistics.transition import Transition, TransitionOptions, transition
from tests.unit.statistics.comparison_rows import model_rows

QUICK = TransitionOptions(n_permutations=499, n_resamples=200, n_simulations=100)


def published(x: str, y: str) -> Transition:
    table = reference_table("published_dettmers2022")
    size = {"params_b": np.log10(table["params_b"].to_numpy()), "perplexity_c4": -table["perplexity_c4"].to_numpy()}
    return transition(size[x], table[y].to_numpy().astype(float))


@pytest.mark.parametrize("x", ["params_b", "perplexity_c4"])
@pytest.mark.parametrize("y", ["layer_pct", "position_pct"])
def test_the_published_transition_is_found(x: str, y: str) -> None:
    found = published(x, y)
    assert found.p_value is not None and found.p_value <= 0.05
    assert found.p_value_beyond_line is not None and found.p_value_beyond_line <= 0.05
    assert found.verdict == "jump"
    assert found.location is not None
    # Between GPT-J-6B (perplexity 13.8) and FSEQ-6.7B (13.3).
    if x == "params_b":
        assert 6.0 < 10**found.location < 6.7
    else:
        assert 13.3 < -found.location < 13.8
    assert found.after is not None and found.before is not None and found.after - found.before > 40
    assert found.kendall_p_value is not None and found.kendall_p_value < 0.05


def test_the_published_positions_jump_and_the_number_of_features_grows() -> None:
    positions = published("params_b", "position_pct").best
    assert positions is not None and positions.model == "change_point"
    assert published("params_b", "n_outlier_features").verdict == "trend"


def test_ten_models_cannot_see_a_small_jump() -> None:
    found = published("params_b", "position_pct")
    assert found.detectable_jump_sd is not None and found.detectable_jump_sd > 2
    assert found.smallest_p_value == pytest.approx(1 / 45, abs=0.02)


def test_noise_has_no_transition() -> None:
    random = np.random.default_rng(0)
    verdicts = [transition(np.arange(12.0), random.normal(size=12), options=QUICK).verdict for _ in range(60)]
    assert verdicts.count("none") >= 52


def test_sequences_widen_the_place_of_the_jump() -> None:
    random = np.random.default_rng(0)
    x = np.arange(12.0)
    y = np.where(x >= 6, 1.0, 0.0) + random.normal(0, 0.05, 12)
    certain = transition(x, y, options=QUICK)
    draws = y[:, None] + random.normal(0, 0.8, (12, 300))
    draws[:, 0] = np.nan
    uncertain = transition(x, y, options=QUICK, draws=draws)
    assert certain.location == uncertain.location == 5.5

    def width(found: Transition) -> float:
        assert found.location_high is not None and found.location_low is not None
        return found.location_high - found.location_low

    assert width(uncertain) > width(certain)


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "0 models"),
        ([1.0, 2, 3], [1.0, 2, 3], "3 models"),
        ([1.0, 1, 1, 1], [1.0, 2, 3, 4], "no split"),
        ([1.0, 2, 3, 4], [5.0, 5, 5, 5], "same for all"),
    ],
)
def test_what_cannot_be_tested_says_why(x: list[float], y: list[float], reason: str) -> None:
    found = transition(np.array(x), np.array(y), options=QUICK)
    assert found.p_value is None
    assert reason in str(found.reason)


def test_few_models_are_tested_by_all_orders() -> None:
    found = transition(np.arange(5.0), np.array([0.0, 0, 0, 9, 9]), options=QUICK)
    assert found.is_exact
    # 9 9 at the end is one of ten places that they can have.
    assert found.p_value == pytest.approx(1 / 10)
    assert found.detectable_jump_sd is None


def sizes(n: int, **figures: Any) -> list[dict[str, Any]]:
    return [
        {
            "model": f"m{i}",
            "total_params_b": 2.0**i,
            "perplexity": 30.0 - i,
            **{name: values[i] for name, values in figures.items()},
        }
        for i in range(n)
    ]


def test_every_question_has_a_row() -> None:
    jump = [0.1 + 0.01 * (i % 2) for i in range(5)] + [0.9 - 0.01 * (i % 3) for i in range(5)]
    dense = sizes(10, layer_fraction_mean=jump)
    moe = [{**row, "model": f"e{i}", "kind": "moe", "active_params_b": 0.5 + i} for i, row in enumerate(dense[:3])]
    found = phase_transitions(model_rows(dense + moe), options=QUICK)
    keys = found.transitions.select("group", "x", "y").rows()
    # Dense models have no active parameters of their own.
    assert len(keys) == 3 * 3 * len(MEASURES) - len(MEASURES)
    row = found.transitions.row(
        by_predicate=(pl.col("group") == "dense") & (pl.col("x") == "total_params_b") & (pl.col("y") == MEASURES[0]),
        named=True,
    )
    assert row["verdict"] == "jump"
    assert row["location"] == pytest.approx(2**4.5)
    assert row["jump"] == pytest.approx(np.mean(jump[5:]) - np.mean(jump[:5]))
    assert row["detectable_jump"] == pytest.approx(row["detectable_jump_sd"] * row["residual_sd"])
    assert row["p_value"] <= row["q_value"]
    by_perplexity = found.transitions.row(
        by_predicate=(pl.col("group") == "dense") & (pl.col("x") == "perplexity") & (pl.col("y") == MEASURES[0]),
        named=True,
    )
    assert by_perplexity["location"] == pytest.approx(30 - 4.5)
    assert by_perplexity["location_low"] <= by_perplexity["location_high"]
    assert by_perplexity["kendall_tau"] > 0
    few = found.transitions.filter(group="moe")
    assert few["reason"].str.contains("3 models").all()
    weights = found.trends.filter(pl.col("weight").is_not_null()).group_by("group", "x", "y").agg(pl.sum("weight"))
    assert weights["weight"].to_list() == pytest.approx([1.0] * len(weights))


def test_other_texts_are_left_out_and_missing_figures_counted() -> None:
    rows = sizes(6, layer_fraction_mean=[0.1, 0.2, None, 0.3, 0.5, 0.4])
    rows[5]["corpus_sha256"] = "b" * 64
    rows[0]["perplexity"] = None
    found = phase_transitions(model_rows(rows), options=QUICK)
    assert found.left_out["model"].to_list() == ["m5"]
    assert "bbbbbbbbbbbb" in found.left_out["reason"][0]
    missing = {(r["x"], r["y"]): r["n_missing"] for r in found.transitions.iter_rows(named=True)}
    assert missing["total_params_b", "layer_fraction_mean"] == 1
    assert missing["perplexity", "layer_fraction_mean"] == 2
    assert missing["perplexity", "n_systematic"] == 1


def test_no_models_and_one_model() -> None:
    nothing = phase_transitions(model_rows(sizes(1)).clear(), options=QUICK)
    assert nothing.transitions.is_empty()
    one = phase_transitions(model_rows(sizes(1)), options=QUICK).transitions
    assert one["reason"].str.starts_with("1 model: ").all()


def test_resamples_enter_the_interval() -> None:
    rows = model_rows(sizes(8, layer_fraction_mean=[0.1] * 4 + [0.9] * 4))
    random = np.random.default_rng(0)
    draws = [
        {
            "model": row["model"],
            "preset": "dettmers2022",
            "first_token": "included",
            "figure": "layer_fraction_mean",
            "estimate": row["layer_fraction_mean"],
            "resamples": list(row["layer_fraction_mean"] + random.normal(0, 2, 100)),
            "leave_one_out": [0.1],
            "n_sequences": 16,
            "seed": 0,
            "corpus_sha256": "a" * 64,
            "text_sha256": "c" * 64,
        }
        for row in rows.iter_rows(named=True)
    ]
    resamples = ModelResample.validate(pl.DataFrame(draws), cast=True)
    chosen = (pl.col("x") == "total_params_b") & (pl.col("y") == "layer_fraction_mean")

    def width(table: pl.DataFrame) -> float:
        row = table.row(by_predicate=chosen, named=True)
        return row["location_high"] / row["location_low"]

    options = replace(QUICK, n_resamples=500)
    without = phase_transitions(rows, options=options).transitions
    with_sequences = phase_transitions(rows, resamples=resamples, options=options).transitions
    assert width(with_sequences) > width(without)
