"""What an implementation counts in one site's activations, and the figures that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8, UInt16, UInt32, UInt64

Scale = Literal["none", "token_rms"]
"""`token_rms` divides each token's values by their own root mean square first."""

# Central moments from sums of powers lose digits to cancellation where the mean is large beside the spread; below this
# share of the mean square the sums are taken again about the mean.
SMALLEST_VARIANCE_SHARE = 0.25


class SiteSketch(NamedTuple):
    """One site's activations: a row per (sequence, feature) that reaches the floor, and a summary per sequence.

    Rows are ordered by sequence, then feature. Values that are not finite are left out of every figure.
    """

    sequence: UInt16[np.ndarray, " row"]
    """Zero-based within the chunk."""
    feature: UInt32[np.ndarray, " row"]
    peak: Float32[np.ndarray, " row"]
    """The largest |x|."""
    peak_position: UInt16[np.ndarray, " row"]
    """The first position that has it."""
    peak_value: Float32[np.ndarray, " row"]
    """The x there, with its sign."""
    first_token_magnitude: Float32[np.ndarray, " row"]
    """|x| at position 0."""
    later_peak: Float32[np.ndarray, " row"]
    """The largest |x| over the positions from 1."""
    later_peak_position: UInt16[np.ndarray, " row"]
    """The first position that has it; 0 where `later_peak` is 0."""
    n_positions: UInt16[np.ndarray, " count"]
    """The rows' lists of counts, one after the other. Entry k of a list: positions with |x| >= `ladder.edges[k]`; it
    ends at the peak's edge."""
    offsets: Int64[np.ndarray, " bound"]
    """`n_positions[offsets[i] : offsets[i + 1]]` is the list of row i."""
    rms: Float64[np.ndarray, " sequence"]
    median_magnitude: Float32[np.ndarray, " sequence"]
    """The lower median of |x|, exact."""
    top_magnitude: Float32[np.ndarray, " sequence"]
    kurtosis_of_feature_rms: Float64[np.ndarray, " sequence"]
    """mean(m**2) / mean(m)**2 over the features' mean squares m (He et al. 2024, equation 1); nan if all are zero."""
    excess_kurtosis: Float64[np.ndarray, " sequence"]
    """mean((x - mean)**4) / variance**2 - 3 over all values; nan if the variance is zero."""
    n_nonfinite: UInt64[np.ndarray, " sequence"]
    n_features: int
    """Width of the site, with or without a row."""


class UnionSketch(NamedTuple):
    """The counts of the largest |x| over several sites: a row per (sequence, feature) that reaches the floor anywhere.

    Steps are the ladder's: k + 1 from `ladder.edges[k]` to the next edge, 0 below the floor.
    """

    sequence: UInt16[np.ndarray, " row"]
    feature: UInt32[np.ndarray, " row"]
    top_step: UInt8[np.ndarray, " row"]
    first_token_step: UInt8[np.ndarray, " row"]
    later_top_step: UInt8[np.ndarray, " row"]
    """The top step over the positions from 1."""
    n_positions: UInt16[np.ndarray, " count"]
    """The rows' lists of counts, one after the other. Entry k of a list: positions whose step is at least k + 1; it
    ends at the top step."""
    offsets: Int64[np.ndarray, " bound"]
    """`n_positions[offsets[i] : offsets[i + 1]]` is the list of row i."""


class Tally(NamedTuple):
    """What an implementation counts; everything else follows from it."""

    first: Float32[np.ndarray, "sequence feature"]
    """|x| at position 0; 0 where x is not finite."""
    later: Float32[np.ndarray, "sequence feature"]
    """The largest finite |x| over the positions from 1; 0 if there is none."""
    later_position: UInt16[np.ndarray, "sequence feature"]
    """The first position that has it; 0 where `later` is 0."""
    peak_value: Float32[np.ndarray, "sequence feature"]
    """x where |x| peaks first, with its sign."""
    top_step: UInt8[np.ndarray, "sequence feature"]
    """The largest step of the ladder."""
    n_positions: UInt16[np.ndarray, " count"]
    """For every sequence, every feature, every step from 1 to the top one: positions whose step is at least that."""
    sums: Float64[np.ndarray, "sequence power=4 feature"]
    """Sums over positions of x, x**2, x**3, x**4."""
    n_nonfinite: Int64[np.ndarray, "sequence feature"]
    median: Float32[np.ndarray, " sequence"]
    """The lower median of |x|; 0 if no value is finite."""


def site_sketch(
    tally: Tally,
    *,
    n_positions: int,
    central_sums: Callable[[int, np.float32], Float64[np.ndarray, " power=4"]],
) -> SiteSketch:
    """The rows and the summary that follow from a tally.

    Args:
        tally: What an implementation counted in the chunk.
        n_positions: Positions of each sequence.
        central_sums: Sums over all finite values of one sequence of (x - centre)**1 to 4, for a given centre.
    """
    at = np.nonzero(tally.top_step)
    first, later = tally.first[at], tally.later[at]
    finite = n_positions - tally.n_nonfinite
    summaries = [
        _summary(sums, counts, lambda centre, s=s: central_sums(s, centre))
        for s, (sums, counts) in enumerate(zip(tally.sums, finite, strict=True))
    ]
    rms, feature_kurtosis, excess_kurtosis = np.array(summaries).reshape(-1, 3).T
    return SiteSketch(
        sequence=at[0].astype(np.uint16),
        feature=at[1].astype(np.uint32),
        peak=np.maximum(first, later),
        peak_position=np.where(first >= later, np.uint16(0), tally.later_position[at]),
        peak_value=tally.peak_value[at],
        first_token_magnitude=first,
        later_peak=later,
        later_peak_position=tally.later_position[at],
        n_positions=tally.n_positions,
        offsets=_offsets(tally.top_step[at]),
        rms=rms,
        median_magnitude=tally.median,
        top_magnitude=np.maximum(tally.first.max(axis=1), tally.later.max(axis=1)),
        kurtosis_of_feature_rms=feature_kurtosis,
        excess_kurtosis=excess_kurtosis,
        n_nonfinite=tally.n_nonfinite.sum(axis=1).astype(np.uint64),
        n_features=tally.first.shape[1],
    )


def union_sketch(
    top: UInt8[np.ndarray, "sequence feature"],
    first: UInt8[np.ndarray, "sequence feature"],
    later: UInt8[np.ndarray, "sequence feature"],
    n_positions: UInt16[np.ndarray, " count"],
) -> UnionSketch:
    """The rows of a union: from each feature's top step, that at position 0, the top one after, and the counts."""
    at = np.nonzero(top)
    return UnionSketch(
        sequence=at[0].astype(np.uint16),
        feature=at[1].astype(np.uint32),
        top_step=top[at],
        first_token_step=first[at],
        later_top_step=later[at],
        n_positions=n_positions,
        offsets=_offsets(top[at]),
    )


def _offsets(lengths: UInt8[np.ndarray, " row"]) -> Int64[np.ndarray, " bound"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _summary(
    sums: Float64[np.ndarray, "power=4 feature"],
    n_finite: Int64[np.ndarray, " feature"],
    central_sums: Callable[[np.float32], Float64[np.ndarray, " power=4"]],
) -> tuple[float, float, float]:
    """RMS, kurtosis of the features' RMS and excess kurtosis of one sequence."""
    n = int(n_finite.sum())
    if n == 0:
        return 0.0, math.nan, math.nan
    moments = sums.sum(axis=1) / n
    mean, mean_square = float(moments[0]), float(moments[1])
    if mean_square == 0:
        return 0.0, math.nan, math.nan
    if mean_square - mean**2 < SMALLEST_VARIANCE_SHARE * mean_square:
        # Rounded to float32, the mean is never further from the true mean than the values themselves are on average,
        # and equals them if they are all the same.
        moments = central_sums(np.float32(mean)) / n
    seen = n_finite > 0
    return math.sqrt(mean_square), _kurtosis_of_rms(sums[1][seen] / n_finite[seen]), _excess_kurtosis(moments)


def _kurtosis_of_rms(mean_square: Float64[np.ndarray, " feature"]) -> float:
    """1 if all features' mean squares are alike, their number if one feature holds all the energy."""
    return float(len(mean_square) * np.square(mean_square).sum() / mean_square.sum() ** 2)


def _excess_kurtosis(moments: Float64[np.ndarray, " power=4"]) -> float:
    """Excess kurtosis from the mean powers about any centre; nan if the variance is zero."""
    m1, m2, m3, m4 = (float(moment) for moment in moments)
    variance = m2 - m1**2
    if variance <= 0:
        return math.nan
    return (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3
