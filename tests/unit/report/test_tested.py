"""What is said of tests over models and of routing: apart, not apart, or that so few could not be told apart."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.sentences import Finding
from outlier_moe.report.tested import (
    dense_moe_findings,
    pair_findings,
    routing_findings,
    super_expert_findings,
    verification_findings,
)

PRESET = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)
KEY: dict[str, Any] = {"preset": "dettmers2022", "first_token": "included", "y": "n_systematic"}

TEST: dict[str, Any] = {
    **KEY,
    "question": "dense_against_moe",
    "test": "mann_whitney",
    "n_moe": 9,
    "n_dense": 8,
    "n_pairs": None,
    "effect": -0.5,
    "low": -0.8,
    "high": 0.1,
    "p_value": 0.2,
    "q_value": 0.4,
    "smallest_p_value": 0.0001,
    "reason": None,
}
SILENT = {"p_value": None, "q_value": None, "effect": None, "smallest_p_value": None}


def table(usual: dict[str, Any], *rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{**usual, **row} for row in rows], infer_schema_length=None)


def dense_moe(*rows: dict[str, Any]) -> list[Finding]:
    return dense_moe_findings(table(TEST, *rows), PRESET)


def test_models_that_are_not_told_apart() -> None:
    silent = {"question": "matched_perplexity", "n_pairs": 1, **SILENT, "reason": "1 pair: at least two are needed"}
    [found] = dense_moe({}, silent)
    assert found.sentence == (
        "Dense and MoE models are not told apart by how many systematic features they have over all models."
    )
    assert found.basis.endswith("q over the 1 test of the table"), "a row without a p-value is no test"
    assert found.details == (
        "all models (8 dense, 9 MoE): effect -0.50 [-0.80 to +0.10], p = 0.2, q = 0.4",
        "pairs of like perplexity: not tested, 1 pair: at least two are needed",
    )


def test_models_that_are_apart_those_that_are_not_and_those_too_few_to_tell() -> None:
    [found] = dense_moe(
        {"q_value": 0.01},
        {"question": "matched_total_params_b", "test": "signed_rank", "n_pairs": 8, "effect": 0.9, "q_value": 0.03},
        {"question": "matched_active_params_b", "test": "signed_rank", "n_pairs": 7},
        {"question": "matched_perplexity", "test": "signed_rank", "n_pairs": 3, "smallest_p_value": 0.25},
    )
    assert found.sentence == (
        "MoE models have fewer systematic features over all models (q = 0.01) and more systematic features over pairs"
        " of like total parameters (q = 0.03); over pairs of like active parameters they are not told apart;"
        " over pairs of like perplexity there are too few to tell."
    )
    assert "(3 pairs): effect" in found.details[3]
    assert found.details[3].endswith("and so few cannot give less than p = 0.25")


def test_so_few_models_cannot_be_told_apart() -> None:
    [found] = dense_moe(
        {"n_moe": 2, "n_dense": 2, "smallest_p_value": 1 / 3},
        {"question": "matched_total_params_b", "test": "signed_rank", "n_pairs": 2, "smallest_p_value": 0.5},
    )
    assert found.sentence == (
        "Whether dense and MoE models differ in how many systematic features they have cannot be told: so few cannot"
        " give less than p = 0.33."
    )


def test_no_test_at_all() -> None:
    [found] = dense_moe({**SILENT, "reason": "0 against 2 models: at least two of each are needed"})
    assert found.sentence == "These models allow no test of dense against MoE."


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"effect": 0.6, "q_value": 0.02}, "fewer systematic features among MoE models (q = 0.02)"),
        ({"effect": -0.6, "q_value": 0.02}, "more systematic features among MoE models (q = 0.02)"),
        ({}, "neither fewer nor more systematic features, as far as is seen, among MoE models (q = 0.4)"),
        (
            {"smallest_p_value": 1 / 3},
            "fewer or more systematic features among MoE models, which cannot be told: so few cannot give less than"
            " p = 0.33",
        ),
    ],
)
def test_sparsity(row: dict[str, Any], words: str) -> None:
    of_moe = {"question": "sparsity_of_moe", "test": "kendall", "n_dense": 0, **row}
    spearman = {"question": "sparsity_of_moe", "test": "spearman", "q_value": 0.001}
    _, found = dense_moe({}, of_moe, spearman)
    assert found.sentence == f"Sparser models have {words}."
    assert found.basis.endswith("q over the 3 tests of the table")
    assert found.details[0].startswith("among MoE models (9 models): Kendall's τ with the active share ")


PAIR: dict[str, Any] = {
    **KEY,
    "is_matched": True,
    "matched_by": "active_params_b",
    "moe": "a",
    "dense": "b",
    "factor": 1.2,
    "moe_y": 5.0,
    "dense_y": 9.0,
}


def test_pairs_are_told_with_their_counts() -> None:
    pairs = table(PAIR, {}, {"moe": "c", "dense": "d", "factor": 1.9, "dense_y": 2.0})
    [found] = pair_findings(pairs, PRESET)
    assert found.sentence == (
        "Beside the dense model with as many active parameters, 1 of 2 MoE models have fewer features."
    )
    assert found.basis == "n = 2 pairs, at most a factor of 1.9 apart"
    assert found.details == ("a 5, b 9", "c 5, d 2")


def test_super_experts_are_named() -> None:
    expert = {"model": "a", "layer": 1, "expert": 7, "peak": 900.0, "is_super": True}
    experts = table(expert, *({"layer": layer} for layer in range(4)), {"model": "b", "is_super": False})
    [found] = super_expert_findings(experts)
    assert found.sentence.startswith("1 of 2 models with recorded experts have super experts")
    assert found.details == ("a: L0 E7 (900), L1 E7 (900), L2 E7 (900) and 1 more",)
    assert found.basis == "n = 5 experts of 2 models"


LAYER: dict[str, Any] = {
    "model": "a",
    "layer": 0,
    "n_sequences": 16,
    "cramers_v": 0.2,
    "p_value": 0.01,
    "q_value": 0.02,
}


def test_layers_that_route_outliers_elsewhere() -> None:
    layers = table(
        LAYER, {}, {"layer": 1, "p_value": 0.5, "q_value": 0.6}, {"layer": 2, "n_sequences": 4}, {"q_value": None}
    )
    [found] = routing_findings(layers)
    assert found.sentence == (
        "Tokens that carry outliers are seen to go to other experts than the rest in 1 of 2 layers; in 1 more, too few"
        " sequences have both to tell."
    )
    assert found.details == ("a: 1 of 2 layers, median Cramér's V 0.20, least p = 0.01, q = 0.02, n = 16 sequences",)
    assert found.basis.startswith("n = 4 to 16 sequences a layer")


@pytest.mark.parametrize(("n", "least"), [(2, "0.5"), (5, "0.062")])
def test_sign_flips_of_so_few_sequences_tell_nothing(n: int, least: str) -> None:
    [found] = routing_findings(table(LAYER, *({"layer": i, "n_sequences": n, "cramers_v": 0.9} for i in range(16))))
    assert found.sentence == (
        "Whether tokens that carry outliers go to other experts than the rest cannot be told: sign flips of so few"
        f" sequences cannot give less than p = {least}."
    )
    assert found.details[0].startswith("a: cannot be told in 16 layers, median Cramér's V 0.90")


def test_published_figures_that_were_not_reproduced_are_named() -> None:
    claim = {"model": "a", "claim": "a feature", "verdict": "reproduced", "source": "arXiv 2402.17762"}
    held = table(claim, {}, {"verdict": "not reproduced", "claim": "a peak"}, {"verdict": "not comparable"})
    [found] = verification_findings(held)
    assert found.sentence == "Of 2 published figures that can be compared, 1 reproduced."
    assert found.details == ("not reproduced in a: a peak",)
    assert found.basis == "n = 3 published figures, 1 not comparable"
    [none] = verification_findings(held.filter(verdict="not comparable"))
    assert none.sentence == "None of 1 published figure can be compared with these recordings."


def test_what_this_project_measured_itself_is_no_published_figure() -> None:
    claim = {"model": "a", "claim": "a feature", "verdict": "reproduced", "source": "measured here on 4-bit weights"}
    others = {"source": "arXiv 2402.17762"}
    [found] = verification_findings(table(claim, {}, {"verdict": "not reproduced"}, others))
    assert found.sentence == "Of 1 published figure that can be compared, 1 reproduced."
    assert "1 of 2 found again" in found.basis
    [alone] = verification_findings(table(claim, {}))
    assert "reproduced" not in alone.sentence


def test_without_tables_nothing_is_said() -> None:
    for nothing in (None, pl.DataFrame()):
        assert dense_moe_findings(nothing, PRESET) == pair_findings(nothing, PRESET) == []
        assert super_expert_findings(nothing) == routing_findings(nothing) == verification_findings(nothing) == []
    assert dense_moe_findings(table(TEST, {"preset": "residual"}), PRESET) == []
    assert pair_findings(table(PAIR, {"is_matched": False}, {"dense_y": None}), PRESET) == []
    assert routing_findings(table({**LAYER, "q_value": None}, {})) == []
