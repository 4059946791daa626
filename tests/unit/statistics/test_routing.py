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

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.errors import StudyError
from outlier_moe.statistics.routing import expert_routing, most_striking, outlier_routing, sign_flip_p_value
from outlier_moe.tables import moe as schemas_moe

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
    assert found["p_value"] == found["smallest_p_value"] == pytest.approx(2 / 2**12)
    assert found["is_exact"] and found["verdict"] == "differs"
    assert found["load_distance"] == pytest.approx(0.9)
    few = routed(rows_of(outliers[:5], rest[:5]))
    assert few["smallest_p_value"] == 2 / 2**5 and few["verdict"] == "too_few"


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


def routers_of(experts: pl.DataFrame, n_choices: int) -> pl.DataFrame:
    """Rows of routers.parquet whose tokens are those of the experts' rows, each sent to so many."""
    sums = experts.group_by("layer", "sequence", maintain_order=True).agg(
        n_tokens=pl.col("n_tokens").sum() // n_choices,
        # As `rows_of` writes them: all that have any are counted at the edge of 6.
        n_outliers=pl.col("n_outlier_tokens").list.get(8, null_on_oob=True).fill_null(0).sum() // n_choices,
    )
    counts = pl.concat_list([pl.col("n_outliers")] * 9)
    table = sums.select(
        "layer",
        "sequence",
        "n_tokens",
        n_experts=pl.lit(4),
        n_choices=pl.lit(n_choices),
        n_dead=pl.lit(0),
        load_entropy=pl.lit(1.0),
        load_cv=pl.lit(0.0),
        top_gate_share_sum=pl.lit(1.0),
        n_outlier_tokens=counts,
        outlier_top_gate_share_sum=counts.cast(pl.List(pl.Float64)),
    )
    return schemas_moe.Router.validate(table.select(schemas_moe.Router.column_names()), cast=True)


def test_which_experts_the_outlier_tokens_are_routed_to() -> None:
    # Of 20 outlier tokens 18 go to expert 0, and 2 to expert 1; of 180 others 18, 72 and 90.
    experts = rows_of(np.array([[9, 1, 0], [9, 1, 0]]), np.array([[9, 36, 45], [9, 36, 45]]))
    table = expert_routing(experts, routers_of(experts, 1), ladder=LADDER, magnitude=6.0, model="m")
    assert table["outlier_share"].to_list() == pytest.approx([0.9, 0.1, 0.0])
    assert table["rest_share"].to_list() == pytest.approx([0.1, 0.4, 0.5])
    assert table["outlier_lift"].to_list() == pytest.approx([9.0, 0.25, 0.0])
    assert table.select("n_outlier_tokens", "n_layer_outlier_tokens", "n_tokens", "n_layer_tokens").rows() == [
        (18, 20, 36, 200),
        (2, 20, 74, 200),
        (0, 20, 90, 200),
    ]
    assert most_striking(table)["expert"].to_list() == [0, 2, 1]


def test_one_outlier_token_is_less_striking_than_many() -> None:
    many = rows_of(np.array([[40, 10]]), np.array([[50, 50]]), layer=1)
    one = rows_of(np.array([[1, 0]]), np.array([[50, 50]]), layer=2)
    shared = rows_of(np.array([[0, 0, 50]]), np.array([[0, 0, 100]]), layer=1, kind="shared")
    experts = pl.concat([many, one, shared])
    routers = routers_of(pl.concat([many, one]), 1)
    table = most_striking(expert_routing(experts, routers, ladder=LADDER, magnitude=6.0, model="m"))
    assert table["layer"].to_list() == [1, 1, 2, 2, 1]
    assert table["kind"].to_list()[-1] == "shared", "all tokens of the layer go through it"
    # Without an outlier token in it, a layer says nothing.
    none = rows_of(np.array([[0, 0]]), np.array([[50, 50]]))
    quiet = expert_routing(none, routers_of(none, 1), ladder=LADDER, magnitude=6.0, model="m")
    assert quiet["outlier_share"].to_list() == [None, None]
    assert most_striking(quiet).is_empty()


def test_shared_experts_and_other_thresholds() -> None:
    shared = rows_of(np.ones((2, 2), int), np.ones((2, 2), int), kind="shared")
    assert outlier_routing(shared, ladder=LADDER, magnitude=6.0, model="m").is_empty()
    with pytest.raises(StudyError, match="nearest edges"):
        routed(rows_of(np.ones((2, 2), int), np.ones((2, 2), int)), magnitude=6.7)
