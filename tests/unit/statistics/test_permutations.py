"""P-values and rank correlations against enumeration by hand and scipy."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.statistics.permutations import kendall, orders, p_value, spearman


def plain_tau(x: np.ndarray, y: np.ndarray) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    concordance = sum(a * b for a, b in signs)
    return concordance / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))


def test_all_orders_where_there_are_few() -> None:
    few = orders(4, most=24, seed=0)
    assert few.is_exact
    assert sorted(map(tuple, few.order)) == sorted(permutations(range(4)))
    many = orders(4, most=23, seed=0)
    assert not many.is_exact
    assert many.order.shape == (23, 4)


def test_random_orders_count_the_observed_one() -> None:
    permuted = np.array([1.0, 2.0, 3.0, 3.0])
    assert p_value(3.0, permuted, is_exact=True) == 2 / 4
    assert p_value(3.0, permuted, is_exact=False) == 3 / 5
    assert p_value(9.0, permuted, is_exact=False) == 1 / 5
    assert p_value(3.0 + 1e-12, permuted, is_exact=True) == 2 / 4


@given(
    values=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=6),
)
@settings(max_examples=60)
def test_correlations_equal_all_orders_counted(values: list[tuple[int, int]]) -> None:
    x, y = np.array(values, float).T
    found = kendall(x, y), spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found == (None, None)
        return
    ranks = stats.rankdata(x), stats.rankdata(y)
    plain = (plain_tau, x, y), (lambda a, b: float(np.corrcoef(a, b)[0, 1]), *ranks)
    for association, (statistic, a, b) in zip(found, plain, strict=True):
        assert association is not None
        observed = statistic(a, b)
        every = [abs(statistic(a, np.array(order))) for order in permutations(b)]
        expected = np.mean([value >= abs(observed) - 1e-9 for value in every])
        assert association.coefficient == pytest.approx(observed)
        assert association.p_value == pytest.approx(expected)
        assert association.smallest_p_value == pytest.approx(np.mean([value >= max(every) - 1e-9 for value in every]))
        assert association.is_exact


def test_kendall_with_ties_among_many() -> None:
    random = np.random.default_rng(0)
    x = np.arange(12.0)
    y = np.round(x / 3 + random.normal(0, 2, 12))
    found = kendall(x, y)
    assert found is not None
    assert not found.is_exact
    expected = stats.permutation_test(
        (x,), lambda a: stats.kendalltau(a, y)[0], permutation_type="pairings", n_resamples=4000, rng=1
    )
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize(
    ("x", "y", "smallest"),
    [
        # Two values at each of two places: 2 of the 6 ways to share them out are as ordered as can be.
        ([0, 0, 1, 1], [1, 2, 3, 4], 1 / 3),
        ([0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6], 1 / 10),
        # Of random orders the observed one is counted: no smaller value can come of 9999.
        (np.repeat([0, 1, 2], 5), np.arange(15), 1e-4),
        # Only one differs, and it is at one of two places.
        (np.repeat([0, 1], 5), [0] * 9 + [1], 1),
    ],
)
def test_the_smallest_p_value_is_that_of_the_best_order(x: Any, y: Any, smallest: float) -> None:
    found = kendall(np.array(x, float), np.array(y, float))
    assert found is not None
    assert found.smallest_p_value == pytest.approx(smallest)
