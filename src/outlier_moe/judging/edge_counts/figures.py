"""The comparison's figures at any threshold, from the counts at every edge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from outlier_moe.definitions.presets import FirstToken
from outlier_moe.judging.edge_counts.coding import StoredCounts
from outlier_moe.judging.rule import Least, is_systematic


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


class Counted(NamedTuple):
    """How many are systematic at one edge."""

    n_systematic: int
    """Distinct features."""
    n_pairs: int | None
    """(feature, sequence) pairs, where each sequence is judged alone."""


def counted_at(
    counts: StoredCounts, edge: int, *, layer_fraction: float, position_fraction: float, first_token: FirstToken
) -> Counted:
    """The counts of `figures_at`, without its figures; the arguments are the same."""
    side = 0 if first_token == "included" else 1
    least = Least(layer_fraction, position_fraction)
    layers, positions = counts.at(edge)
    n = int(_reaches(counts, side, layers[side], positions[side], least).sum())
    if counts.shape.unit == "feature":
        return Counted(n, None)
    corners = counts.staircases(edge, side)
    return Counted(int(corners.sign[_reaches(counts, side, corners.n_layers, corners.n_positions, least)].sum()), n)


def _reaches(
    counts: StoredCounts,
    side: int,
    n_layers: Int64[np.ndarray, " _n"],
    n_positions: Int64[np.ndarray, " _n"],
    least: Least,
) -> Bool[np.ndarray, " _n"]:
    return is_systematic(n_layers / counts.whole_layers, n_positions / counts.whole_positions[side], least)


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
    found = _reaches(counts, side, layers, positions, Least(layer_fraction, position_fraction))
    counted = counted_at(
        counts, edge, layer_fraction=layer_fraction, position_fraction=position_fraction, first_token=first_token
    )
    is_pooled = counts.shape.unit == "feature"
    peaks = counts.peak[side, : len(found)][found] if is_pooled else np.empty(0, np.float32)
    layer_mean, layer_median = _mean_and_median(layers[found], counts.whole_layers)
    position_mean, position_median = _mean_and_median(positions[found], counts.whole_positions[side])
    return Figures(
        n_systematic=counted.n_systematic,
        n_pairs=counted.n_pairs,
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
