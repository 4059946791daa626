"""The comparison's figures at any threshold, from the counts at every edge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from outlier_moe.edge_counts.coding import StoredCounts
from outlier_moe.filtering import FirstToken


class Figures(NamedTuple):
    """What a model's systematic features come to, named as in `schemas.ModelComparison`; None where there is none."""

    n_systematic: int
    """Distinct features."""
    n_pairs: int | None
    """(feature, sequence) pairs, where each sequence is judged alone."""
    layer_fraction_mean: float | None
    layer_fraction_median: float | None
    position_fraction_mean: float | None
    position_fraction_median: float | None
    peak_median: float | None
    """None too where each sequence is judged alone: the pairs' peaks are not stored."""
    peak_largest: float | None


def figures_at(
    counts: StoredCounts, edge: int, *, layer_fraction: float, position_fraction: float, first_token: FirstToken
) -> Figures:
    """The figures at one edge and two fractions, equal to those of `filter_systematic` and `compare_models`.

    Args:
        counts: The counts of one preset's shape.
        edge: Index of the magnitude on the ladder, from the recording's floor.
        layer_fraction: Least fraction of the layers.
        position_fraction: Least fraction of the positions.
        first_token: Whether each sequence's first token counts.
    """
    side = 0 if first_token == "included" else 1
    layers, positions = (values[side] for values in counts.at(edge))

    def reaches(n_layers: Int64[np.ndarray, " _n"], n_positions: Int64[np.ndarray, " _n"]) -> Bool[np.ndarray, " _n"]:
        enough = n_layers / counts.whole_layers >= layer_fraction
        return enough & (n_positions / counts.whole_positions[side] >= position_fraction)

    found = reaches(layers, positions)
    n = int(found.sum())
    pooled = counts.shape.unit == "feature"
    if pooled:
        n_systematic, peaks = n, counts.peak[side, : len(found)][found]
    else:
        corners = counts.staircases(edge, side)
        n_systematic = int(corners.sign[reaches(corners.n_layers, corners.n_positions)].sum())
        peaks = np.empty(0, np.float32)
    layer_mean, layer_median = _mean_and_median(layers[found], counts.whole_layers)
    position_mean, position_median = _mean_and_median(positions[found], counts.whole_positions[side])
    return Figures(
        n_systematic=n_systematic,
        n_pairs=None if pooled else n,
        layer_fraction_mean=layer_mean,
        layer_fraction_median=layer_median,
        position_fraction_mean=position_mean,
        position_fraction_median=position_median,
        peak_median=_median(peaks),
        peak_largest=float(peaks.max()) if len(peaks) else None,
    )


def _mean_and_median(counts: Int64[np.ndarray, " _n"], whole: int) -> tuple[float | None, float | None]:
    if not len(counts):
        return None, None
    return float(counts.sum() / (len(counts) * whole)), float(np.median(counts / whole))


def _median(values: Float32[np.ndarray, " _n"]) -> float | None:
    return float(np.median(values)) if len(values) else None
