"""What is said of figures along sizes: seen, not seen and what would have been, or that so few models cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.jumps import transition_findings
from outlier_moe.report.sentences import Finding
from outlier_moe.statistics.phase_transition import phase_transitions
from outlier_moe.statistics.reference import reference_table
from outlier_moe.statistics.transition import TransitionOptions
from tests.unit.statistics.comparison_rows import model_rows

PRESET = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)
QUICK = TransitionOptions(n_permutations=999, n_resamples=100, n_simulations=60)


def said(rows: list[dict[str, Any]], options: TransitionOptions = QUICK) -> Finding:
    [finding] = transition_findings(phase_transitions(model_rows(rows), options=options).transitions, PRESET)
    return finding


def models(n: int, **figures: Any) -> list[dict[str, Any]]:
    """Models each twice as large as the one before, all alike but for what is given, and without a perplexity."""
    alike = {"n_systematic": [3] * n, "layer_fraction_mean": [0.5] * n, "position_fraction_mean": [0.5] * n}
    figures = {**alike, "perplexity": [None] * n, **figures}
    named = [{"model": f"m{i}", "total_params_b": 2.0**i} for i in range(n)]
    return [{**row, **{name: values[i] for name, values in figures.items()}} for i, row in enumerate(named)]


def test_the_published_jump_is_told() -> None:
    table = reference_table("published_dettmers2022")
    rows = [
        {
            "model": row["model"],
            "total_params_b": row["params_b"],
            "perplexity": row["perplexity_c4"],
            "layer_fraction_mean": row["layer_pct"] / 100,
            "position_fraction_mean": row["position_pct"] / 100,
            "n_systematic": row["n_outlier_features"],
        }
        for row in table.iter_rows(named=True)
    ]
    found = said(rows, TransitionOptions(n_resamples=100, n_simulations=20))
    jumps, rises = found.sentence.split("; a rise without a jump that stands out in ")
    assert jumps.startswith(
        "There is a jump in the share of layers along total parameters and falling perplexity, and the share of"
        " positions along falling perplexity (q up to 0.0"
    )
    # By p-values alone positions would jump along parameters too: p = 0.044 for a step on a line, q = 0.052.
    assert rises.startswith(
        "the share of positions along total parameters, and the number of systematic features along"
    )
    assert found.basis.startswith("n = 10 models; permutation tests")
    assert "q over the 18 tests of the table's 6 figures" in found.basis
    assert "places: 95 % of the resampled models" in found.basis
    assert "the share of layers along total parameters, n = 10: jumps at 6.34 [" in found.details[0]
    assert (
        "from 41% to 100% (p = 0.02, q = 0.033; a step on a line p = 0.028, q = 0.043; Kendall's τ = +0.84, p ="
        in (found.details[0])
    )


def test_a_perfect_fall_is_told_as_a_fall() -> None:
    falling = models(16, layer_fraction_mean=0.9 - 0.04 * np.arange(16), perplexity=30.0 - np.arange(16))
    found = said(falling)
    assert found.sentence.startswith(
        "There is a fall in the share of layers along total parameters and falling perplexity (q up to "
    )
    assert "jump" not in found.sentence
    assert "n = 16: falls (p = 0.001, q = 0.0015; Kendall's τ = -1.00, p < 0.0001, q < 0.0001)" in found.details[0]


def test_a_step_down_is_a_fall() -> None:
    found = said(models(16, layer_fraction_mean=np.where(np.arange(16) < 8, 0.9, 0.2) + 0.01 * (np.arange(16) % 3)))
    assert found.sentence.startswith("There is a fall in the share of layers along total parameters (q = ")


def test_of_four_models_nothing_can_be_told() -> None:
    found = said(models(4, layer_fraction_mean=[0.25, 0.26, 0.99, 1.0]))
    assert found.sentence == (
        "Whether there is a jump in the share of layers along total parameters cannot be told: 4 models cannot give"
        " less than p = 0.17 there."
    )
    assert "cannot be told, so few cannot give less than p = 0.17 (p = 0.17, q = " in found.details[0]
    assert "Kendall's τ = +1.00, p = 0.083, q = 0.25)" in found.details[0]
    # Active parameters are the total ones here, and no perplexity is known: neither is named in vain.
    assert "active" not in str(found) and "perplexity: nothing can be said, 0 models" in found.details[-1]


def test_of_noise_it_is_said_what_would_have_been_seen() -> None:
    noise = [0.6, 0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4] * 2
    found = said(models(16, layer_fraction_mean=noise, n_systematic=[1, 5, 2, 4] * 4))
    assert found.sentence.startswith(
        "No jump, rise or fall is seen in the share of layers and the number of systematic features along total"
        " parameters, where a jump of "
    )
    assert found.sentence.endswith("systematic features would have given p ≤ 0.05 in 80% of such studies.")
    assert "points would give p ≤ 0.05 80% of the time" in found.details[0]


def test_a_jump_that_is_not_possible_is_no_limit() -> None:
    found = said(models(8, layer_fraction_mean=[0.0, 1, 0, 1, 0, 1, 0, 1]))
    assert found.sentence == (
        "No jump, rise or fall is seen in the share of layers along total parameters, though no possible jump in the"
        " share of layers would have given p ≤ 0.05 in 80% of such studies."
    )
    assert "no possible jump would give p ≤ 0.05 80% of the time" in found.details[0]


def test_what_allows_no_test_says_why_and_not_that_models_are_few() -> None:
    nothing = [None] * 16
    shares = {"layer_fraction_mean": nothing, "position_fraction_mean": nothing}
    found = said(models(16, n_systematic=[0] * 16, perplexity=30.0 - np.arange(16), **shares))
    assert found.sentence == (
        "Whether anything jumps, rises or falls with size cannot be told: for the share of layers and the share of"
        " positions, 0 models: a change point takes at least 4, 2 on either side; for the number of systematic"
        " features, the figure is the same for all models."
    )
    assert found.basis == "n = 0 to 16 models"


ROW: dict[str, Any] = {
    "preset": "dettmers2022",
    "first_token": "included",
    "group": "all",
    "x": "total_params_b",
    "y": "layer_fraction_mean",
    "n_models": 16,
    "reason": None,
    "verdict": "none",
    "level": 0.05,
    "power": 0.8,
    "location": 6.4,
    "location_low": 2.0,
    "location_high": 8.0,
    "before": 0.3,
    "after": 0.9,
    "p_value": 0.2,
    "q_value": 0.4,
    "p_value_either": 0.3,
    "q_value_either": 0.5,
    "p_value_beyond_line": 0.02,
    "q_value_beyond_line": None,
    "kendall_tau": 0.1,
    "kendall_p_value": 0.6,
    "kendall_q_value": 0.7,
    "detectable_jump": 0.25,
    "smallest_p_value": 0.001,
}


def told(*rows: dict[str, Any]) -> Finding:
    [finding] = transition_findings(pl.DataFrame([{**ROW, **row} for row in rows], infer_schema_length=None), PRESET)
    return finding


def test_several_verdicts_stand_in_one_sentence() -> None:
    found = told(
        {"verdict": "jump", "q_value": 0.01, "q_value_beyond_line": 0.04},
        {"x": "perplexity", "verdict": "rise", "q_value": 0.3, "kendall_q_value": 0.02},
        {"y": "n_systematic", "verdict": "fall", "q_value_either": 0.03, "kendall_q_value": 0.2, "kendall_tau": -0.3},
        {"y": "n_systematic", "x": "perplexity", "verdict": "mixed", "q_value": 0.004, "kendall_q_value": 0.03},
        {"y": "position_fraction_mean", "detectable_jump": 0.2},
        {"y": "position_fraction_mean", "x": "perplexity"},
        {"y": "position_fraction_mean", "x": "active_params_b", "verdict": "too_few", "smallest_p_value": 0.1},
    )
    assert found.sentence == (
        "There is a jump in the share of layers along total parameters (q = 0.01; for a step on a line, q = 0.04);"
        " a rise without a jump that stands out in the share of layers along falling perplexity (q = 0.02);"
        " a fall in the number of systematic features along total parameters (q = 0.03);"
        " a rise and a fall in the number of systematic features along falling perplexity (q = 0.03);"
        " none of these is seen in the share of positions along total parameters and falling perplexity, where a jump"
        " of 25 points in the share of positions would have given p ≤ 0.05 in 80% of such studies;"
        " whether there is a jump in the share of positions along active parameters cannot be told: 16 models cannot"
        " give less than p = 0.1 there."
    )
    # The change point's own q-value is not what a fall rests on.
    assert "falls (p = 0.3, q = 0.03; Kendall's τ = -0.30, p = 0.6, q = 0.2)" in found.details[2]


def test_only_tests_that_were_made_are_counted() -> None:
    silent = {"p_value": None, "q_value": None, "q_value_either": None, "kendall_q_value": None, "verdict": None}
    found = told({}, {"y": "n_systematic", **silent, "reason": "the figure is the same for all models"})
    assert "q over the 3 tests of the table's 1 figure," in found.basis


@pytest.mark.parametrize("table", [None, pl.DataFrame(), pl.DataFrame([{**ROW, "group": "moe"}])])
def test_without_such_a_table_nothing_is_said(table: pl.DataFrame | None) -> None:
    assert transition_findings(table, PRESET) == []
