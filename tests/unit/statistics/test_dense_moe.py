"""Matched pairs against all assignments, and the questions that few or one-sided models leave open."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outlier_moe.statistics.dense_moe import MEASURES, compare_dense_moe
from outlier_moe.statistics.matching import match
from tests.unit.statistics.comparison_rows import model_rows

size = st.floats(0.1, 1000)


def plain_assignment(moe: np.ndarray, dense: np.ndarray, most: float) -> tuple[int, float]:
    """The most pairs that can be had within the factor, and their smallest total distance, by trying all."""
    best = (0, 0.0)
    padded = [*range(len(dense)), *[None] * len(moe)]
    for chosen in set(permutations(padded, len(moe))):
        pairs = [(m, d) for m, d in enumerate(chosen) if d is not None]
        distances = [abs(np.log(moe[m] / dense[d])) for m, d in pairs]
        # Two sizes a factor of 1.5 apart, as 3 and 2, may be a rounding further apart in logarithms.
        if all(distance <= np.log(most) + 1e-9 for distance in distances):
            best = max(best, (len(pairs), -float(sum(distances))), key=lambda found: (found[0], round(found[1], 9)))
    return best[0], -best[1]


@given(
    moe=st.lists(size, min_size=1, max_size=3),
    dense=st.lists(size, min_size=1, max_size=3),
    most=st.sampled_from([1.5, 2.0, 10.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_tested_pairs_are_the_best_of_all(moe: list[float], dense: list[float], most: float) -> None:
    found = [pair for pair in match(np.array(moe), np.array(dense), n_nearest=1, most_factor=most) if pair.is_matched]
    assert len({pair.moe for pair in found}) == len({pair.dense for pair in found}) == len(found)
    n, total = plain_assignment(np.array(moe), np.array(dense), most)
    assert len(found) == n
    assert sum(np.log(pair.factor) for pair in found) == pytest.approx(total, abs=1e-6)


def registry() -> list[dict[str, Any]]:
    """Some of the study's models, with figures that fall from dense to MoE."""
    dense = [("qwen3-0.6b", 0.6), ("qwen3-1.7b", 1.7), ("qwen3-4b", 4.0), ("qwen3-8b", 8.0), ("gemma-3-27b", 27.0)]
    moe = [("olmoe-1b-7b", 7.0, 1.3, "a"), ("qwen3-30b-a3b", 30.5, 3.3, "b"), ("mixtral", 46.7, 12.9, "b")]
    rows: list[dict[str, Any]] = [
        {"model": name, "total_params_b": total, "family": "dense", "n_systematic": 100 + i, "perplexity": 20.0 - i}
        for i, (name, total) in enumerate(dense)
    ]
    for i, (name, total, active, routing) in enumerate(moe):
        figures = {"n_systematic": 5 + i, "perplexity": 15.0 - i}
        facts = {"kind": "moe", "total_params_b": total, "active_params_b": active, "routing": routing}
        rows.append({"model": name, "family": "moe", **facts, **figures})
    return rows


def test_the_nearest_pairs_are_listed_with_their_distance() -> None:
    pairs = compare_dense_moe(model_rows(registry())).pairs.filter(y="n_systematic")
    active = pairs.filter(matched_by="active_params_b", moe="qwen3-30b-a3b").sort("rank")
    assert active["dense"].to_list() == ["qwen3-4b", "qwen3-1.7b"]
    assert active["factor"].to_list() == pytest.approx([4 / 3.3, 3.3 / 1.7])
    assert active["is_matched"].to_list() == [True, False]
    assert active["difference"].to_list() == [6 - 102, 6 - 101]
    total = pairs.filter(matched_by="total_params_b", rank=1)
    nearest = dict(zip(total["moe"], total["dense"], strict=True))
    assert nearest == {"olmoe-1b-7b": "qwen3-8b", "qwen3-30b-a3b": "gemma-3-27b", "mixtral": "gemma-3-27b"}
    # Mixtral is within a factor of 2 of gemma-3-27b, which qwen3-30b-a3b is nearer to.
    assert not total.filter(moe="mixtral")["is_matched"].item()


def test_every_question_has_a_row_with_its_n() -> None:
    tests = compare_dense_moe(model_rows(registry())).tests
    assert len(tests) == len(MEASURES) * 10
    rows = {(row["question"], row["test"]): row for row in tests.filter(y="n_systematic").iter_rows(named=True)}
    unmatched = rows["dense_against_moe", "mann_whitney"]
    assert (unmatched["n_moe"], unmatched["n_dense"], unmatched["effect"]) == (3, 5, -1)
    assert unmatched["p_value"] == pytest.approx(2 / 56)
    assert rows["matched_total_params_b", "signed_rank"]["n_pairs"] == 2
    assert rows["matched_total_params_b", "signed_rank"]["p_value"] == 0.5
    sparsity = rows["sparsity_of_moe", "kendall"]
    assert (sparsity["n_moe"], sparsity["n_dense"]) == (3, 0)
    ratios = [1.3 / 7, 3.3 / 30.5, 12.9 / 46.7]
    concordant = [np.sign(ratios[i] - ratios[j]) for i in range(3) for j in range(i)]
    assert sparsity["effect"] == pytest.approx(np.mean(concordant))
    assert rows["by_routing", "kruskal_wallis"]["p_value"] is not None
    constant = tests.filter(y="layer_fraction_mean", question="by_family")
    assert "same for all" in constant["reason"].item()


def test_groups_say_how_many_models_they_have() -> None:
    groups = compare_dense_moe(model_rows(registry())).groups.filter(y="n_systematic")
    routing = {row["group"]: row for row in groups.filter(by="routing").iter_rows(named=True)}
    assert {name: row["n_models"] for name, row in routing.items()} == {"dense": 5, "a": 1, "b": 2}
    assert (routing["b"]["median"], routing["b"]["smallest"], routing["b"]["largest"]) == (6.5, 6, 7)


@pytest.mark.parametrize(("kind", "asked"), [("dense", set()), ("moe", {"sparsity_of_moe", "by_routing"})])
def test_one_kind_is_asked_what_one_kind_can_answer(kind: str, asked: set[str]) -> None:
    rows = [row for row in registry() if row.get("kind", "dense") == kind]
    found = compare_dense_moe(model_rows(rows))
    assert found.pairs.is_empty()
    assert set(found.tests["question"]) == asked
    assert set(found.groups["by"]) == {question[3:] for question in asked if question.startswith("by_")}


def test_a_figure_that_one_kind_lacks_is_told() -> None:
    rows = [row | {"peak_median": None} if row.get("kind") == "moe" else row for row in registry()]
    tests = compare_dense_moe(model_rows(rows)).tests.filter(y="peak_median", question="dense_against_moe")
    assert "no MoE model has" in tests["reason"].item()


def test_one_model_and_none() -> None:
    alone = compare_dense_moe(model_rows(registry()[:1]))
    assert alone.tests.is_empty() and alone.pairs.is_empty() and alone.groups.is_empty()
    nothing = compare_dense_moe(model_rows(registry()[:1]).clear())
    assert nothing.tests.is_empty() and nothing.pairs.is_empty() and nothing.groups.is_empty()


def test_a_model_without_perplexity_is_in_no_pair_by_it() -> None:
    rows = registry()
    rows[-1]["perplexity"] = None
    pairs = compare_dense_moe(model_rows(rows)).pairs
    assert "mixtral" not in pairs.filter(matched_by="perplexity")["moe"]
    assert "mixtral" in pairs.filter(matched_by="total_params_b")["moe"]


def test_models_on_another_text_are_left_out() -> None:
    rows = registry()
    rows[0]["n_tokens"] = 1000
    found = compare_dense_moe(model_rows(rows))
    assert found.left_out["model"].to_list() == ["qwen3-0.6b"]
    assert "1000 tokens" in found.left_out["reason"][0]
