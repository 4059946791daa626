"""Intervals of a mean over seeds: Student's, which is right for few seeds, and the bootstrap's, which is too narrow.

Of three seeds there are ten different resamples, and none of them lies outside of the seeds: a bootstrap interval of
95 % from so few is less than half as wide as it has to be. One that is studentised has no end at all there, since one
resample in nine has no spread. Student's interval takes the seeds' values for normal, and of skewed ones it holds less.
What both are worth stands in `SIMULATED`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import stdtrit

from outlier_moe.statistics.intervals import ROUNDING, bca_interval

N_RESAMPLES = 2000

OfSeeds = Float64[np.ndarray, " seed"]


class SeedIntervals(NamedTuple):
    """The intervals of a mean over seeds; None where there is none."""

    low: float | None = None
    high: float | None = None
    """Student's."""
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    """BCa, over resampled seeds."""
    reason: str | None = None
    """Why one of them, or both, do not exist."""


class SeedCoverage(NamedTuple):
    """How often intervals of 95 % hold the true mean."""

    n_seeds: int
    student: float
    """Student's, where seeds are normal."""
    student_skewed: float
    """Where they are exponential."""
    bootstrap: float
    """The bootstrap's, where seeds are normal."""
    bootstrap_skewed: float
    """Where they are exponential."""


SIMULATED = (
    SeedCoverage(2, student=0.95, student_skewed=0.91, bootstrap=0.49, bootstrap_skewed=0.46),
    SeedCoverage(3, student=0.95, student_skewed=0.89, bootstrap=0.72, bootstrap_skewed=0.68),
    SeedCoverage(4, student=0.95, student_skewed=0.88, bootstrap=0.79, bootstrap_skewed=0.76),
    SeedCoverage(5, student=0.95, student_skewed=0.87, bootstrap=0.84, bootstrap_skewed=0.79),
    SeedCoverage(6, student=0.95, student_skewed=0.88, bootstrap=0.85, bootstrap_skewed=0.82),
    SeedCoverage(10, student=0.95, student_skewed=0.90, bootstrap=0.91, bootstrap_skewed=0.87),
)
"""What the simulation of tests/unit/scale_sweep/test_seed_intervals.py finds, of 10,000 studies each."""


def seed_intervals(values: OfSeeds, *, seed: int = 0, confidence_level: float = 0.95) -> SeedIntervals:
    """The intervals of the mean of one value for each seed.

    Args:
        values: One for each seed.
        seed: Decides the resamples.
        confidence_level: Between 0 and 1.
    """
    n = len(values)
    if n < 2:
        return SeedIntervals(reason="fewer than two seeds: there is no spread to see")
    # The order of a sum moves its last digits, which is no difference.
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return SeedIntervals(reason="all seeds give the same figure")
    mean = float(values.mean())
    half = float(stdtrit(n - 1, (1 + confidence_level) / 2) * values.std(ddof=1) / np.sqrt(n))
    draws: Int64[np.ndarray, "resample seed"] = np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))
    # Sorted, so that the same seeds drawn in another order have the same mean to the last digit.
    resamples = values[np.sort(draws, axis=1)].mean(axis=1)
    left_out = (values.sum() - values) / (n - 1)
    found = bca_interval(mean, resamples, [left_out], confidence_level=confidence_level)
    # What is resampled are seeds here.
    why = None if found.reason is None else f"no bootstrap interval: {found.reason.replace('sequence', 'seed')}"
    return SeedIntervals(mean - half, mean + half, found.low, found.high, why)
