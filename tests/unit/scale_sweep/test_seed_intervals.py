"""Intervals over seeds: scipy's where scipy has them, a reason where there are none, and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from outlier_moe.scale_sweep.seed_intervals import N_RESAMPLES, SIMULATED, SeedCoverage, seed_intervals

N_STUDIES = 250


@pytest.mark.parametrize("n", [2, 3, 8])
def test_equals_scipy(n: int) -> None:
    # Sums of sixty-fourths are exact: elsewhere the last digit decides which resamples scipy takes to be below.
    values = np.round(64 * np.random.default_rng(n).exponential(size=n)) / 64
    found = seed_intervals(values, confidence_level=0.9)
    student = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((student.low, student.high))
    options = {"n_resamples": N_RESAMPLES, "confidence_level": 0.9, "rng": 0, "method": "BCa"}
    bootstrap = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx((bootstrap.low, bootstrap.high), rel=0.1)
    assert found.reason is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [([1.0], "fewer than two seeds"), ([0.1 + 0.2, 0.3, 0.3], "all seeds give the same figure")],
)
def test_no_interval_has_a_reason(values: list[float], reason: str) -> None:
    found = seed_intervals(np.array(values))
    assert found[:4] == (None, None, None, None)
    assert reason in str(found.reason)


def test_a_bootstrap_that_fails_leaves_the_other_interval() -> None:
    # One of a hundred differs: what leaving out shows is all skew.
    found = seed_intervals(np.array([0.0] * 99 + [1.0]), confidence_level=1 - 1e-10)
    assert found.low is not None and found.bootstrap_low is None
    assert str(found.reason).startswith("no bootstrap interval: ")
    assert "sequence" not in str(found.reason)


def coverage(n_seeds: int, *, is_skewed: bool) -> tuple[float, float]:
    """How often intervals of 95 % hold the true mean: Student's, and the bootstrap's."""
    random = np.random.default_rng(n_seeds)
    truth, held = float(is_skewed), []
    for _ in range(N_STUDIES):
        values = random.exponential(size=n_seeds) if is_skewed else random.normal(size=n_seeds)
        found = seed_intervals(values)
        assert found.low is not None and found.high is not None
        assert found.bootstrap_low is not None and found.bootstrap_high is not None
        held.append((found.low <= truth <= found.high, found.bootstrap_low <= truth <= found.bootstrap_high))
    student, bootstrap = np.mean(held, axis=0)
    return float(student), float(bootstrap)


@pytest.mark.parametrize("known", SIMULATED, ids=lambda known: f"{known.n_seeds} seeds")
def test_coverage_is_what_is_said(known: SeedCoverage) -> None:
    student, bootstrap = coverage(known.n_seeds, is_skewed=False)
    student_skewed, bootstrap_skewed = coverage(known.n_seeds, is_skewed=True)
    found = (student, student_skewed, bootstrap, bootstrap_skewed)
    # Of so few studies; of 10,000 the numbers are those to the digits that they have.
    assert found == pytest.approx(known[1:], abs=0.08)
