"""Outlier tokens' routing against all flips counted by hand, and the calibration of its test."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.errors import StudyError
from outlier_moe.ladder import Ladder
from outlier_moe.schemas import moe as schemas_moe
from outlier_moe.statistics.routing import outlier_routing, sign_flip_p_value

LADDER = Ladder()


def rows_of(outliers: np.ndarray, rest: np.ndarray, **changed: Any) -> pl.DataFrame:
    """Rows of experts.parquet of one layer, from counts of [sequence, expert]; none for an expert without a token."""
    rows = []
    for sequence, expert in np.argwhere(outliers + rest > 0):
        n = int(outliers[sequence, expert])
        rows.append(
            {
                "layer": 3,
                "expert": expert,
                "sequence": sequence,
                "kind": "routed",
                "n_tokens": n + int(rest[sequence, expert]),
                "gate_sum": 1.0,
                # The edges from 3 to 6: only those tokens that reach 6 are outlier tokens here.
                "n_outlier_tokens": [n + int(rest[sequence, expert])] * 8 + [n] if n else [],
                "peak": 1.0,
                "peak_feature": 0,
                "peak_position": 0,
                "peak_gate": 0.5,
                "n_nonfinite": 0,
                **changed,
            }
        )
    return schemas_moe.Expert.validate(pl.DataFrame(rows, infer_schema_length=None), cast=True)


def routed(experts: pl.DataFrame, **options: Any) -> dict[str, Any]:
    table = outlier_routing(experts, ladder=LADDER, magnitude=options.pop("magnitude", 6.0), model="m", **options)
    return table.row(0, named=True)


@given(seed=st.integers(0, 999), n=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_equals_the_definition(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    outliers, rest = random.poisson(2, (n, 4)), random.poisson(9, (n, 4)) + 1
    outliers[:, 0] += 1
    found = routed(rows_of(outliers, rest))
    total = np.stack([outliers.sum(axis=0), rest.sum(axis=0)])
    expected = total.sum(axis=1, keepdims=True) * total.sum(axis=0) / total.sum()
    seen = expected > 0
    chi_square = ((total - expected)[seen] ** 2 / expected[seen]).sum()
    assert found["chi_square"] == pytest.approx(chi_square)
    assert found["cramers_v"] == pytest.approx(stats.contingency.association(total[:, total.any(axis=0)]))
    shares = total / total.sum(axis=1, keepdims=True)
    assert found["load_distance"] == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
    d = outliers / outliers.sum(axis=1, keepdims=True) - rest / rest.sum(axis=1, keepdims=True)
    lengths = [((np.array(signs) @ d) ** 2).sum() for signs in product([1, -1], repeat=n)]
    assert found["p_value"] == pytest.approx(np.mean(np.array(lengths) >= lengths[0] * (1 - 1e-9)))
    assert (found["n_outlier_pairs"], found["n_rest_pairs"]) == (outliers.sum(), rest.sum())


def test_one_way_in_every_sequence_is_found() -> None:
    outliers, rest = np.tile([9, 0, 0], (12, 1)), np.tile([10, 40, 50], (12, 1))
    found = routed(rows_of(outliers, rest))
    assert found["p_value"] == pytest.approx(2 / 2**12)
    assert found["is_exact"]
    assert found["load_distance"] == pytest.approx(0.9)


def test_alike_routing_is_rejected_at_the_stated_rate() -> None:
    """Sequences have routings of their own, which a chi-square test would take for a difference."""
    random = np.random.default_rng(0)
    n_tests, rejected, naive = 400, 0, 0
    for _ in range(n_tests):
        load = random.dirichlet([2.0] * 6, size=10)
        outliers = np.array([random.multinomial(random.integers(5, 60), p) for p in load])
        rest = np.array([random.multinomial(200, p) for p in load])
        d = outliers / outliers.sum(axis=1, keepdims=True) - rest / rest.sum(axis=1, keepdims=True)
        rejected += sign_flip_p_value(d)[0] <= 0.05
        naive += stats.chi2_contingency(np.stack([outliers.sum(axis=0), rest.sum(axis=0)])).pvalue <= 0.05  # type: ignore[attr-defined]
    low, high = stats.binom.interval(0.9999, n_tests, 0.05)
    assert low <= rejected <= high
    assert naive > high


def test_many_sequences_are_flipped_at_random() -> None:
    random = np.random.default_rng(0)
    p, is_exact = sign_flip_p_value(random.normal(0, 1, (16, 5)) + 0.9)
    assert not is_exact
    assert 1 / 10_000 <= p < 0.01


@pytest.mark.parametrize(
    ("outliers", "rest", "reason"),
    [
        ([[0, 0], [0, 0]], [[3, 4], [1, 2]], "no token is an outlier token"),
        ([[3, 4], [1, 2]], [[0, 0], [0, 0]], "no token is none"),
        ([[3], [1]], [[2], [2]], "one expert"),
        ([[3, 1], [0, 0]], [[2, 1], [2, 1]], "fewer than two sequences"),
    ],
)
def test_no_test_has_a_reason(outliers: list, rest: list, reason: str) -> None:
    found = routed(rows_of(np.array(outliers), np.array(rest)))
    assert found["p_value"] is None
    assert reason in found["reason"]


def test_shared_experts_and_other_thresholds() -> None:
    shared = rows_of(np.ones((2, 2), int), np.ones((2, 2), int), kind="shared")
    assert outlier_routing(shared, ladder=LADDER, magnitude=6.0, model="m").is_empty()
    with pytest.raises(StudyError, match="nearest edges"):
        routed(rows_of(np.ones((2, 2), int), np.ones((2, 2), int)), magnitude=6.7)
