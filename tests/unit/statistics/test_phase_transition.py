"""The published transition is found, noise gives none, and what cannot be said has a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from outlier_moe.statistics.phase_transition import MEASURES, corrected, phase_transitions
from outlier_moe.statistics.reference import reference_table
from outlier_moe.statistics.transition import Evidence, Transition, TransitionOptions, transition, verdict_of
from outlier_moe.statistics.trend_models import TrendFit
from outlier_moe.tables.comparison import ModelResample
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
    assert published("params_b", "n_outlier_features").verdict == "rise"


def test_ten_models_cannot_see_a_small_jump() -> None:
    found = published("params_b", "position_pct")
    assert found.detectable_jump_sd is not None and found.detectable_jump_sd > 2
    assert found.smallest_p_value == pytest.approx(1 / 45, abs=0.005)


@pytest.mark.parametrize(
    ("y", "verdict"),
    [
        (0.9 - 0.04 * np.arange(16), "fall"),
        (np.where(np.arange(16) < 8, 0.9, 0.2) + 0.01 * (np.arange(16) % 3), "fall"),
        (0.1 + 0.04 * np.arange(16), "rise"),
        (np.where(np.arange(16) < 8, 0.2, 0.9) + 0.01 * (np.arange(16) % 3), "jump"),
        (np.array([0.1, 0.1, 0.1, *np.linspace(0.9, 0.5, 21)]), "mixed"),
        (np.array([0.6, 0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4] * 2), "none"),
        (np.array([0.25, 0.26, 0.99, 1.0]), "too_few"),
    ],
)
def test_what_is_known_is_called_by_its_name(y: np.ndarray, verdict: str) -> None:
    assert transition(np.arange(float(len(y))), y, options=QUICK).verdict == verdict


def test_a_jump_takes_more_than_a_line() -> None:
    found = transition(
        np.arange(16.0), np.where(np.arange(16) < 8, 0.2, 0.9) + 0.01 * (np.arange(16) % 3), options=QUICK
    )
    sure = found.evidence
    assert verdict_of(found, sure, level=0.05) == "jump"
    assert verdict_of(found, sure._replace(beyond_line=0.06), level=0.05) == "rise"
    assert verdict_of(found, sure._replace(beyond_line=None), level=0.05) == "rise"
    assert verdict_of(found._replace(is_abrupt=False), sure, level=0.05) == "rise"
    # Kendall's tau alone says nothing of a jump.
    assert verdict_of(found, sure._replace(change=0.06), level=0.05) == "rise"
    assert verdict_of(found, Evidence(0.06, 0.06, 0.06, 0.01), level=0.05) == "none"


def test_a_jump_of_some_size_is_found_wherever_its_p_value_can_be_small() -> None:
    for n in range(4, 10):
        for at in range(2, n - 1):
            found = transition(np.arange(float(n)), (np.arange(n) >= at) + 0.01 * (np.arange(n) % 2), options=QUICK)
            assert found.smallest_p_value is not None
            assert (found.detectable_jump_sd is None) == (found.smallest_p_value > 0.05)


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
    assert found.verdict == "too_few"


N_STUDIES = 80
"""Of 20 models each, with 9 figures along axes: 720 figures, each with four p-values."""


def made_up(random: np.random.Generator, slope: float, options: TransitionOptions) -> list[Transition]:
    """A study whose figures follow a line over the logarithm of the size, or nothing, with one noise a figure."""
    size = random.uniform(-1, 2.5, 20)
    active = size + np.log10(random.uniform(0.05, 1, 20))
    perplexity = 20 - 3 * size + random.normal(0, 1, 20)
    figures = [slope * size + random.normal(0, 0.25, 20) for _ in MEASURES]
    # Counts are whole numbers, with ties.
    figures[2] = np.round(10 + 8 * figures[2])
    return [transition(x, y, options=options) for x in (size, active, -perplexity) for y in figures]


@pytest.mark.parametrize(
    ("slope", "claims"),
    [(0.0, {"jump", "rise", "fall", "mixed"}), (0.3, {"jump", "fall", "mixed"})],
    ids=["noise", "gradual"],
)
def test_a_study_claims_what_is_not_there_at_most_as_often_as_it_says(
    slope: float, claims: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of studies of noise at most one in twenty says anything, and of those that rise gradually that there is a jump.

    By the p-values of each figure alone it would be about 40 and 30 %.
    """
    # The best description takes longest, and can but turn a jump into a rise.
    step = TrendFit("change_point", 4, 0.0, 0.0, 0.0, 1.0, 0.0, None, None)
    monkeypatch.setattr("outlier_moe.statistics.transition.fit_trends", lambda x, y: [step])
    random = np.random.default_rng(0)
    options = TransitionOptions(n_permutations=999, n_resamples=2, n_simulations=2)
    wrong = by_itself = 0
    for _ in range(N_STUDIES):
        found = made_up(random, slope, options)
        wrong += not claims.isdisjoint(of.verdict for of in corrected(found, level=0.05))
        by_itself += not claims.isdisjoint(of.verdict for of in found)
    # What one study in twenty stays below but for one time in ten thousand: 12 of 80.
    most = stats.binom.ppf(0.9999, N_STUDIES, 0.05)
    assert wrong <= most < by_itself


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
    assert row["p_value"] <= row["q_value"] <= 0.05
    assert row["p_value_beyond_line"] <= row["q_value_beyond_line"] <= 0.05
    is_rising = found.transitions["verdict"].is_in(["jump", "rise"])
    assert (found.transitions["q_value_beyond_line"].is_not_null() == is_rising).all()
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
