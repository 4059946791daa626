"""Rank tests against all arrangements counted by hand, scipy, and the coverage of their intervals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.statistics.rank_tests import RankTest, correlated, paired, several, unpaired

few = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=4)


def plain_delta(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([np.sign(x - y) for x in a for y in b]))


@given(a=few, b=few)
@settings(max_examples=60)
def test_unpaired_equals_all_arrangements(a: list[float], b: list[float]) -> None:
    found = unpaired(np.array(a), np.array(b))
    values = np.array(a + b)
    assert found.effect == pytest.approx(plain_delta(values[: len(a)], values[len(a) :]))
    every = []
    for chosen in combinations(range(len(values)), len(a)):
        rest = [i for i in range(len(values)) if i not in chosen]
        every.append(plain_delta(values[list(chosen)], values[rest]))
    assert found.effect is not None
    tails = [np.mean([sign * d >= sign * found.effect - 1e-9 for d in every]) for sign in (1, -1)]
    assert found.p_value == pytest.approx(min(1, 2 * min(tails)))
    assert found.is_exact
    assert found.smallest_p_value is not None and found.p_value is not None
    assert found.p_value >= found.smallest_p_value - 1e-12
    assert found.low is not None and found.high is not None
    assert -1 <= found.low <= found.effect + 1e-9 and found.effect - 1e-9 <= found.high <= 1


def test_the_interval_of_cliffs_delta_covers_it() -> None:
    random = np.random.default_rng(0)
    shift = 1.0
    truth = 2 * stats.norm.cdf(shift / np.sqrt(2)) - 1
    covered = 0
    for _ in range(300):
        found = unpaired(random.normal(shift, 1, 7), random.normal(0, 1, 9))
        assert found.low is not None and found.high is not None
        covered += bool(found.low <= truth <= found.high)
    # Four standard errors of 0.95 over 300 are 0.05.
    assert 0.90 <= covered / 300 <= 0.997


def test_complete_separation_has_an_interval() -> None:
    found = unpaired(np.array([4.0, 5, 6]), np.array([1.0, 2, 3]))
    assert found.effect == 1
    assert found.high == 1
    assert found.low is not None and 0 < found.low < 1
    assert found.p_value == pytest.approx(2 / 20)


def plain_signed_rank(differences: np.ndarray) -> float:
    """Pratt's sum: zeros are ranked, and then left out."""
    ranks = stats.rankdata(np.abs(differences))
    return float(sum(rank for rank, d in zip(ranks, differences, strict=True) if d > 0))


@given(differences=st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=6))
@settings(max_examples=40)
def test_paired_equals_all_signs(differences: list[float]) -> None:
    d = np.array(differences)
    found = paired(d)
    assert found.effect == pytest.approx((d > 0).mean() - (d < 0).mean())
    if not d.any():
        assert found.reason == "no pair differs"
        return
    every = [plain_signed_rank(d * np.array(signs)) for signs in product([1, -1], repeat=len(d))]
    observed = plain_signed_rank(d)
    tails = [np.mean([sign * w >= sign * observed - 1e-9 for w in every]) for sign in (1, -1)]
    assert found.p_value == pytest.approx(min(1, 2 * min(tails)))
    assert found.low is not None and found.high is not None and found.effect is not None
    assert found.low <= found.effect <= found.high


def test_all_pairs_one_way_have_an_interval() -> None:
    found = paired(np.array([1.0, 2, 3, 4, 5]))
    assert found.p_value == pytest.approx(2 / 2**5) == found.smallest_p_value
    assert (found.effect, found.high) == (1, 1)
    # Clopper and Pearson's lower bound of 5 out of 5.
    assert found.low == pytest.approx(2 * 0.025 ** (1 / 5) - 1)


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_the_interval_of_a_correlation_covers_it(kind: str) -> None:
    random = np.random.default_rng(1)
    rho = 0.6
    truth = (2 if kind == "kendall" else 6) / np.pi * np.arcsin(rho if kind == "kendall" else rho / 2)
    covered = 0
    for _ in range(300):
        x = random.normal(size=15)
        y = rho * x + np.sqrt(1 - rho**2) * random.normal(size=15)
        found = correlated(x, y, kind=kind)
        assert found.low is not None and found.high is not None
        covered += bool(found.low <= truth <= found.high)
    assert 0.89 <= covered / 300 <= 0.995


def test_perfect_order_has_a_p_value_and_no_interval() -> None:
    found = correlated(np.arange(5.0), np.arange(5.0), kind="kendall")
    assert found.effect == pytest.approx(1)
    assert found.p_value == pytest.approx(2 / 120) == found.smallest_p_value
    assert found.low is None


@given(groups=st.lists(st.lists(st.integers(0, 3).map(float), min_size=1, max_size=3), min_size=2, max_size=3))
@settings(max_examples=15, deadline=None)
def test_several_equals_scipys_statistic_over_all_orders(groups: list[list[float]]) -> None:
    samples = [np.array(group) for group in groups]
    values = np.concatenate(samples)
    if len(values) > 5:
        return
    found = several(samples)
    if max(map(len, groups)) < 2:
        assert "two groups" in str(found.reason)
        return
    if np.ptp(values) == 0:
        assert "same for all" in str(found.reason)
        return
    bounds = np.cumsum([len(sample) for sample in samples])[:-1]

    def h(order: tuple[float, ...] | np.ndarray) -> float:
        return float(stats.kruskal(*np.split(np.array(order), bounds))[0])

    assert found.effect == pytest.approx(h(values) / (len(values) - 1))
    expected = np.mean([h(order) >= h(values) - 1e-9 for order in permutations(values)])
    assert found.p_value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (lambda: unpaired(np.array([1.0]), np.array([1.0, 2.0])), "1 of one kind against 2"),
        (lambda: paired(np.array([1.0])), "1 pair"),
        (lambda: correlated(np.array([1.0, 2]), np.array([1.0, 2]), kind="kendall"), "2 models"),
        (lambda: correlated(np.ones(4), np.arange(4.0), kind="spearman"), "same for all"),
        (lambda: several([np.array([1.0, 2])]), "two groups"),
    ],
)
def test_no_test_has_a_reason(test: Callable[[], RankTest], reason: str) -> None:
    found = test()
    assert found.p_value is None
    assert reason in str(found.reason)
