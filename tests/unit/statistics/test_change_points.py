"""The change point against plain loops, the calibration of its tests, and the power that is claimed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from outlier_moe.statistics.change_points import (
    Alternative,
    allowed_splits,
    best_split,
    beyond_line_p_value,
    change_point_p_values,
    detectable_jump,
    resampled_locations,
    smallest_p_value,
)
from outlier_moe.statistics.permutations import Orders, orders

N_NULL = 1000


def change_point_p_value(y: np.ndarray, splits: np.ndarray, tried: Orders, alternative: Alternative) -> float:
    return change_point_p_values(y, splits, tried, (alternative,))[alternative]


def plain_statistic(x: np.ndarray, y: np.ndarray, alternative: Alternative) -> tuple[float, int]:
    """The largest two-sample t of known variance over all splits, and where it is."""
    best = (-np.inf, 0)
    for split in range(2, len(y) - 1):
        if x[split - 1] == x[split]:
            continue
        before, after = y[:split], y[split:]
        t = (after.mean() - before.mean()) / np.sqrt(1 / len(before) + 1 / len(after))
        best = max(best, (t if alternative == "rise" else abs(t), split), key=lambda found: found[0])
    return best


@given(
    x=st.lists(st.integers(0, 5), min_size=4, max_size=6),
    seed=st.integers(0, 999),
    alternative=st.sampled_from(["rise", "either"]),
)
@settings(max_examples=40, deadline=None)
def test_equals_plain_loops_over_all_orders(x: list[int], seed: int, alternative: Alternative) -> None:
    ascending = np.array(sorted(x), float)
    y = np.random.default_rng(seed).normal(size=len(x))
    splits = allowed_splits(ascending)
    observed, split = plain_statistic(ascending, y, alternative)
    assert (split == 0) == (not len(splits))
    if split:
        found = best_split(y, splits, alternative)
        assert found.split == split
        assert found.before == pytest.approx(y[:split].mean())
        assert found.rss == pytest.approx((y[:split].var() * split) + y[split:].var() * (len(y) - split))
        tried = orders(len(y), most=720, seed=0)
        every = [plain_statistic(ascending, y[order], alternative)[0] for order in tried.order]
        expected = np.mean(np.array(every) >= observed - 1e-9)
        assert change_point_p_value(y, splits, tried, alternative) == pytest.approx(expected)


def rejections(p_values: list[float]) -> int:
    return sum(p <= 0.05 for p in p_values)


def bounds(n: int) -> tuple[int, int]:
    """What 5 % of n tests stay within but for one time in ten thousand."""
    low, high = stats.binom.interval(0.9999, n, 0.05)
    return int(low), int(high)


@pytest.mark.parametrize(("n", "alternative"), [(10, "rise"), (22, "either")])
def test_rejects_noise_at_the_stated_rate(n: int, alternative: Alternative) -> None:
    """1,000 data sets without any change: so many tests at 5 % reject as the binomial distribution allows."""
    random = np.random.default_rng(n)
    splits = allowed_splits(np.arange(float(n)))
    p_values = []
    for i in range(N_NULL):
        # Heavy tails: nothing but exchange is assumed.
        y = random.standard_t(2, n)
        p_values.append(change_point_p_value(y, splits, orders(n, most=99, seed=i), alternative))
    low, high = bounds(N_NULL)
    assert low <= rejections(p_values) <= high


def test_never_rejects_too_often_where_values_are_tied() -> None:
    random = np.random.default_rng(0)
    splits = allowed_splits(np.arange(8.0))
    p_values = [
        change_point_p_value(random.integers(0, 3, 8).astype(float), splits, orders(8, most=99, seed=i), "either")
        for i in range(300)
    ]
    assert rejections(p_values) <= bounds(300)[1]


def test_a_line_is_no_jump_at_the_stated_rate() -> None:
    random = np.random.default_rng(1)
    x = np.sort(random.uniform(0, 1, 14))
    splits = allowed_splits(x)
    p_values = []
    for i in range(500):
        y = 5 * x + random.normal(0, 1, 14)
        p = beyond_line_p_value(x, y, splits, orders(14, most=99, seed=i), "either")
        assert p is not None
        p_values.append(p)
    # Permuted residuals are exact only as n grows: a third more than the binomial bound is let pass.
    low, high = bounds(500)
    assert low <= rejections(p_values) <= 4 * high / 3


def test_a_step_on_a_line_is_seen() -> None:
    random = np.random.default_rng(2)
    x = np.arange(20.0)
    y = x / 5 + 8 * (x >= 12) + random.normal(0, 1, 20)
    tried = orders(20, most=999, seed=0)
    p = beyond_line_p_value(x, y, allowed_splits(x), tried, "rise")
    assert p is not None and p < 0.01
    assert beyond_line_p_value(x, 2 * x, allowed_splits(x), tried, "rise") == 1


def test_of_two_sizes_a_step_and_a_line_are_one() -> None:
    x = np.array([1.0, 1, 1, 2, 2, 2])
    y = np.array([0.1, 0.2, 0.1, 0.9, 0.8, 1.0])
    assert beyond_line_p_value(x, y, allowed_splits(x), orders(6, most=999, seed=0), "rise") is None


def simulated_power(jump: float, at: int, n: int, tried: Orders, seed: int) -> float:
    random = np.random.default_rng(seed)
    splits = allowed_splits(np.arange(float(n)))
    found = 0
    for _ in range(400):
        y = random.standard_normal(n) + jump * (np.arange(n) >= at)
        found += change_point_p_value(y, splits, tried, "rise") <= 0.05
    return found / 400


def test_the_detectable_jump_is_found_as_often_as_claimed() -> None:
    tried = orders(14, most=299, seed=0)
    jump = detectable_jump(allowed_splits(np.arange(14.0)), 9, tried, "rise", seed=3)
    assert jump is not None
    # Three standard errors of 0.8 over 400, twice: in the claim and here.
    assert simulated_power(jump, 9, 14, tried, seed=4) == pytest.approx(0.8, abs=0.085)
    assert simulated_power(jump / 2, 9, 14, tried, seed=4) < 0.5


def test_more_models_see_smaller_jumps() -> None:
    jumps = []
    for n in (8, 14, 22):
        tried = orders(n, most=299, seed=0)
        jumps.append(detectable_jump(allowed_splits(np.arange(float(n))), n // 2, tried, "rise"))
    assert jumps == sorted(jumps, reverse=True)


def test_too_few_models_see_no_jump_at_all() -> None:
    few = allowed_splits(np.arange(4.0)), 2, orders(4, most=999, seed=0)
    assert detectable_jump(*few, "rise") is None
    assert smallest_p_value(*few, "rise") == pytest.approx(1 / 6)


def test_locations_of_resamples_equal_one_by_one() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 6, (200, 7)).astype(float)
    y = random.normal(size=(200, 7))
    x[0] = 3.0
    expected = []
    for xs, ys in zip(x, y, strict=True):
        order = np.argsort(xs, kind="stable")
        _, split = plain_statistic(xs[order], ys[order], "rise")
        if split:
            expected.append((xs[order][split - 1] + xs[order][split]) / 2)
    found = resampled_locations(x, y, "rise")
    assert found == pytest.approx(expected)
    assert len(found) < 200
