"""Bias-corrected and accelerated (BCa) bootstrap intervals from values that are already computed.

`scipy.stats.bootstrap` calls its statistic anew for every figure, and has no interval for one that a single resample
lacks. Here one pass gives the values of all figures; the interval is scipy's to the last digit (Efron and Tibshirani
1993, equation 14.10), and where there is none, the reason.

What few sequences are worth stands in `SIMULATED`: an interval from them is too narrow, most of all for the count,
where a feature near a threshold is in or out, which resampling follows only coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

_NORMAL = NormalDist()

LEAST_DEFINED = 0.95
"""Least share of the resamples in which a figure must exist: its interval speaks of those alone."""

MOST_ONE_SIDED = 0.975
"""Largest share of the resamples on one side of the estimate. Where sequences are pooled by union, drawing some of them
twice pulls a figure to one side; beyond this an interval would be made of the correction for it and little else."""

ROUNDING = 1e-12
"""Relative difference below which two values are the same."""


class Coverage(NamedTuple):
    """How often intervals hold what they are to hold, over several kinds of text and several figures."""

    n_sequences: int
    confidence_level: float
    least: float
    most: float


SIMULATED = (
    Coverage(n_sequences=8, confidence_level=0.95, least=0.62, most=0.88),
    Coverage(n_sequences=16, confidence_level=0.95, least=0.74, most=0.91),
)
"""What tests/unit/statistics/test_intervals.py finds: for sums, means and counts, where sequences differ as wholes and
where each feature varies by itself, little or much."""


class Interval(NamedTuple):
    """A confidence interval and what it stands on."""

    low: float | None
    high: float | None
    standard_error: float | None
    """Standard deviation over the resamples."""
    share_below: float | None
    """Resamples below the estimate. What is pooled by union or maximum can only fall when sequences are drawn twice,
    so that nearly all of its resamples lie below."""
    share_above: float | None
    """Resamples above the estimate."""
    n_resamples: int
    """Resamples in which the figure exists."""
    reason: str | None
    """Why there is no interval; None if there is one."""


def bca_interval(
    estimate: float,
    resamples: Float64[np.ndarray, " resample"],
    leave_one_out: Sequence[Float64[np.ndarray, " _left_out"]],
    *,
    confidence_level: float = 0.95,
) -> Interval:
    """The BCa interval of a figure: `bca_intervals` of one row."""
    rows = np.array([estimate], np.float64), resamples[None], [sample[None] for sample in leave_one_out]
    return bca_intervals(*rows, confidence_level=confidence_level)[0]


def bca_intervals(
    estimates: Float64[np.ndarray, " figure"],
    resamples: Float64[np.ndarray, "figure resample"],
    leave_one_out: Sequence[Float64[np.ndarray, "figure _left_out"]],
    *,
    confidence_level: float = 0.95,
) -> list[Interval]:
    """The BCa interval of each of some figures.

    Args:
        estimates: The figures of all sequences; nan if one does not exist.
        resamples: Their values in each resample; nan where one does not exist.
        leave_one_out: For each independent sample, the figures without each of its members (the jackknife).
        confidence_level: Between 0 and 1.

    Returns:
        The intervals, or the reason why there is none: fewer than two sequences, a figure that does not exist,
        resamples that are all or nearly all the same, or nearly all on one side of the estimate.
    """
    n_resamples = resamples.shape[1]
    is_known = ~np.isnan(resamples)
    n_known = is_known.sum(axis=1)
    found: dict[int, Interval] = {}
    # Rows with as many values are taken together, which are nearly always all of them.
    for n in np.unique(n_known):
        rows = np.flatnonzero(n_known == n)
        values = resamples[rows] if n == n_resamples else resamples[rows][is_known[rows]].reshape(len(rows), n)
        alike = _Rows(estimates[rows], values, [sample[rows] for sample in leave_one_out])
        found |= zip(rows.tolist(), _intervals(alike, n_resamples, confidence_level), strict=True)
    return [found[row] for row in range(len(estimates))]


class _Rows(NamedTuple):
    """Figures with the same number of values each, none of them nan."""

    estimates: Float64[np.ndarray, " figure"]
    values: Float64[np.ndarray, "figure value"]
    leave_one_out: list[Float64[np.ndarray, "figure _left_out"]]


def _intervals(rows: _Rows, n_resamples: int, confidence_level: float) -> list[Interval]:
    n = rows.values.shape[1]
    reasons = _undefined(rows, n_resamples)
    if n < 2:
        return [Interval(None, None, None, None, None, n, reason) for reason in reasons]
    estimates = rows.estimates[:, None]
    rounding = ROUNDING * np.abs(estimates)
    below = (rows.values < estimates - rounding).mean(axis=1)
    above = (rows.values > estimates + rounding).mean(axis=1)
    spread = np.where(_all_alike(rows.values), 0.0, rows.values.std(axis=1, ddof=1))
    skew = _acceleration(rows.leave_one_out) if None in reasons else np.zeros(len(reasons))
    ends = _ends(rows.values, reasons, (below, above), skew, confidence_level)
    columns = (ends[:, 0], ends[:, 1], spread, below, above)
    told = zip(*(column.tolist() for column in columns), reasons, np.isnan(rows.estimates), strict=True)
    return [
        Interval(None, None, None, None, None, n, reason)
        if is_absent
        else Interval(*((low, high) if reason is None else (None, None)), error, under, over, n, reason)
        for low, high, error, under, over, reason, is_absent in told
    ]


def _ends(
    values: Float64[np.ndarray, "figure value"],
    reasons: list[str | None],
    sides: tuple[Float64[np.ndarray, " figure"], Float64[np.ndarray, " figure"]],
    skew: Float64[np.ndarray, " figure"],
    confidence_level: float,
) -> Float64[np.ndarray, "figure end"]:
    """The ends of each interval; where there is none, its reason is added to the reasons."""
    below, above = sides
    tail = _NORMAL.inv_cdf((1 - confidence_level) / 2)
    chosen, levels = [], []
    for row, reason in enumerate(reasons):
        if reason is not None:
            continue
        bias = _NORMAL.inv_cdf(float(below[row] + 1 - above[row]) / 2)
        shifted = bias + tail, bias - tail
        if any(skew[row] * end >= 1 for end in shifted):
            reasons[row] = "the resamples are too skewed for an interval"
            continue
        chosen.append(row)
        levels.append([_NORMAL.cdf(bias + end / (1 - float(skew[row]) * end)) for end in shifted])
    ends = np.full((len(reasons), 2), np.nan)
    ends[chosen] = _quantiles(values[chosen], np.array(levels, np.float64).reshape(-1, 2))
    for row in np.array(chosen, np.int64)[_all_alike(ends[chosen])]:
        reasons[row] = f"only {below[row] + above[row]:.1%} of the resamples give another figure: too few for a width"
    return ends


def _undefined(rows: _Rows, n_resamples: int) -> list[str | None]:
    """Why each row has no interval."""
    estimates, values, leave_one_out = rows
    n = values.shape[1]
    if min(sample.shape[1] for sample in leave_one_out) < 2:
        reason = "fewer than two sequences: there is nothing to resample"
    elif n < max(2, LEAST_DEFINED * n_resamples):
        reason = f"the figure does not exist in {1 - n / n_resamples:.0%} of the resamples"
    else:
        reason = None
    reasons: list[str | None] = [reason] * len(estimates)
    if reason is None:
        is_alike = _all_alike(values)
        is_missing = np.any([np.isnan(sample).any(axis=1) for sample in leave_one_out], axis=0)
        sides = {"below": values < estimates[:, None], "above": values > estimates[:, None]}
        shares = {side: is_there.mean(axis=1) for side, is_there in sides.items()}
        for row in range(len(estimates)):
            of_row = {side: float(share[row]) for side, share in shares.items()}
            reasons[row] = _why(bool(is_missing[row]), bool(is_alike[row]), of_row)
    absent = "the figure does not exist: there is nothing to take it over"
    return [absent if is_absent else why for is_absent, why in zip(np.isnan(estimates), reasons, strict=True)]


def _why(is_missing: bool, is_alike: bool, shares: dict[str, float]) -> str | None:
    if is_missing:
        return "without one of the sequences the figure does not exist"
    if is_alike:
        return "all resamples give the same figure"
    for side, share in shares.items():
        if share > MOST_ONE_SIDED:
            return (
                f"{share:.1%} of the resamples lie {side} the estimate: sequences drawn twice do not stand for new ones"
            )
    return None


def _all_alike(values: Float64[np.ndarray, "figure value"]) -> Bool[np.ndarray, " figure"]:
    # The order of a sum moves its last digits, which is no difference.
    return np.ptp(values, axis=1) <= ROUNDING * np.abs(values).max(axis=1)


def _quantiles(
    values: Float64[np.ndarray, "figure value"], levels: Float64[np.ndarray, "figure end"]
) -> Float64[np.ndarray, "figure end"]:
    """`np.quantile` of each row at its own levels."""
    ordered = np.sort(values, axis=1)
    place = levels * (values.shape[1] - 1)
    before: Int64[np.ndarray, "figure end"] = np.floor(place).astype(np.int64)
    after = np.minimum(before + 1, values.shape[1] - 1)
    low, high = (np.take_along_axis(ordered, at, axis=1) for at in (before, after))
    share = place - before
    # As numpy interpolates, from the nearer of the two.
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))


def _acceleration(leave_one_out: Sequence[Float64[np.ndarray, "figure _left_out"]]) -> Float64[np.ndarray, " figure"]:
    """How fast a figure's standard error changes with it, from the jackknife; 0 if leaving one out changes nothing."""
    cubes, squares = np.zeros(len(leave_one_out[0])), np.zeros(len(leave_one_out[0]))
    for sample in leave_one_out:
        n = sample.shape[1]
        influence = (n - 1) * (sample.mean(axis=1, keepdims=True) - sample)
        influence[_all_alike(sample)] = 0
        cubes += (influence**3).sum(axis=1) / n**3
        squares += (influence**2).sum(axis=1) / n**2
    return np.divide(cubes, squares**1.5 * 6, out=np.zeros_like(cubes), where=squares > 0)
