"""The compiled loop over draws of sequences: what all of them together affect, and the figures that follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt64
from numba import njit

POOLED = (
    "n_systematic",
    "layer_fraction_mean",
    "layer_fraction_median",
    "position_fraction_mean",
    "position_fraction_median",
    "position_fraction_per_site_mean",
    "position_fraction_per_site_median",
    "peak_median",
    "peak_largest",
    "n_values",
)
"""What a column of `pooled_figures` holds."""

# So many that few values share one, and few enough for the first cache.
_BINS = 1024


def _compiled(function: Callable) -> Callable:
    """Compile a function for threads that hold no lock of the interpreter."""
    # What a checker of types has wrapped around the function cannot be compiled.
    return njit(nogil=True, cache=True, error_model="numpy")(inspect.unwrap(function))


@_compiled
def _ones(word: np.uint64) -> np.int64:
    """How many bits are set; numba has no instruction for it, and this form is turned into vector instructions."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@_compiled
def _pool(
    weights: Int64[np.ndarray, " sequence"],
    sites: UInt64[np.ndarray, "sequence word feature"],
    n_values: Int64[np.ndarray, "sequence feature"],
    n_positions: Int64[np.ndarray, "sequence feature"],
    peak: Float32[np.ndarray, "sequence feature"],
    drawn_sites: UInt64[np.ndarray, "word feature"],
    drawn_counts: Int64[np.ndarray, "kind=2 feature"],
    drawn_peak: Float32[np.ndarray, " feature"],
) -> None:
    """Put the sequences of one draw together: sites by union, values and positions by sum, peaks by the largest."""
    drawn_sites[:] = np.uint64(0)
    drawn_counts[:] = 0
    drawn_peak[:] = np.float32(0)
    for s in range(len(weights)):
        weight = weights[s]
        if weight == 0:
            continue
        for word in range(sites.shape[1]):
            into, bits = drawn_sites[word], sites[s, word]
            for f in range(len(bits)):
                into[f] |= bits[f]
        values, value = drawn_counts[0], n_values[s]
        positions, position = drawn_counts[1], n_positions[s]
        largest = peak[s]
        for f in range(len(value)):
            values[f] += weight * value[f]
            positions[f] += weight * position[f]
            drawn_peak[f] = max(drawn_peak[f], largest[f])


@_compiled
def _count_layers(
    drawn_sites: UInt64[np.ndarray, "word feature"],
    n_taps: int,
    layers: Int64[np.ndarray, " feature"],
    n_sites: Int64[np.ndarray, " feature"],
) -> None:
    """The decoder layers (bits of any tap) and the sites (bits of all taps) of each feature."""
    words_per_tap = drawn_sites.shape[0] // n_taps
    layers[:] = 0
    n_sites[:] = 0
    for word in range(words_per_tap):
        for f in range(len(layers)):
            union = np.uint64(0)
            for tap in range(n_taps):
                bits = drawn_sites[tap * words_per_tap + word, f]
                n_sites[f] += _ones(bits)
                union |= bits
            layers[f] += _ones(union)


@_compiled
def _median_of_counts(n_with: Int64[np.ndarray, " count"], n: int) -> float:
    """The median of n whole numbers, given how many have each value; numbers that are nearly all alike sort slowly."""
    seen, below = 0, -1
    for value in range(len(n_with)):
        seen += n_with[value]
        if below < 0 and seen > (n - 1) // 2:
            below = value
        if seen > n // 2:
            return (below + value) / 2
    return np.nan


@_compiled
def _median(values: Float64[np.ndarray, " feature"], n_in_bin: Int64[np.ndarray, " bin"]) -> float:
    """The median of some values: those that could be it are found by counting, and only they are sorted."""
    n, low, high = len(values), values.min(), values.max()
    scale = (len(n_in_bin) - 1) / (high - low)
    if not np.isfinite(scale):
        return (low + high) / 2 if low == high else np.median(values)
    n_in_bin[:] = 0
    for value in values:
        n_in_bin[int((value - low) * scale)] += 1
    first, n_before, n_seen = 0, 0, n_in_bin[0]
    while n_seen <= (n - 1) // 2:
        n_before = n_seen
        first += 1
        n_seen += n_in_bin[first]
    last = first
    while n_seen <= n // 2:
        last += 1
        n_seen += n_in_bin[last]
    inside = np.empty(n_seen - n_before, np.float64)
    n_inside = 0
    for value in values:
        if first <= int((value - low) * scale) <= last:
            inside[n_inside] = value
            n_inside += 1
    inside.sort()
    return (inside[(n - 1) // 2 - n_before] + inside[n // 2 - n_before]) / 2


@_compiled
def pooled_figures(
    weights: Int64[np.ndarray, "draw sequence"],
    sites: UInt64[np.ndarray, "sequence word feature"],
    n_values: Int64[np.ndarray, "sequence feature"],
    n_positions: Int64[np.ndarray, "sequence feature"],
    peak: Float32[np.ndarray, "sequence feature"],
    n_taps: int,
    by_site: bool,
    whole_layers: int,
    whole_positions: int,
    least_layers: float,
    least_positions: float,
    figures: Float64[np.ndarray, "draw figure"],
) -> None:
    """Fill in the figures of each draw; those of no feature stay as they were.

    Args:
        weights: How often each sequence is drawn.
        sites: Bits of the layers, tap after tap.
        n_values: Outlier values.
        n_positions: Positions affected at any site.
        peak: Largest |x|.
        n_taps: Taps of the view.
        by_site: Whether the layer fraction is taken over sites.
        whole_layers: What it is taken over.
        whole_positions: Positions of one sequence.
        least_layers: Least layer fraction of a systematic feature.
        least_positions: Least position fraction of a systematic feature.
        figures: Where the figures go, in the order of `POOLED`.
    """
    n_words, n_features = sites.shape[1:]
    drawn_sites = np.empty((n_words, n_features), np.uint64)
    drawn_counts = np.empty((2, n_features), np.int64)
    drawn_peak = np.empty(n_features, np.float32)
    layers, n_sites = np.empty(n_features, np.int64), np.empty(n_features, np.int64)
    found = np.empty((3, n_features), np.float64)
    n_with, n_in_bin = np.empty(whole_layers + 1, np.int64), np.empty(_BINS, np.int64)
    for draw in range(len(weights)):
        _pool(weights[draw], sites, n_values, n_positions, peak, drawn_sites, drawn_counts, drawn_peak)
        _count_layers(drawn_sites, n_taps, layers, n_sites)
        positions = float(whole_positions * weights[draw].sum())
        n, values, sum_layers = 0, 0, 0
        n_with[:] = 0
        for f in range(n_features):
            affected = n_sites[f] if by_site else layers[f]
            position_fraction = drawn_counts[1, f] / positions
            if affected / whole_layers < least_layers or position_fraction < least_positions or affected == 0:
                continue
            found[0, n] = position_fraction
            found[1, n] = drawn_counts[0, f] / (n_sites[f] * positions)
            found[2, n] = drawn_peak[f]
            n_with[affected] += 1
            sum_layers += affected
            values += drawn_counts[0, f]
            n += 1
        figures[draw, 0] = n
        figures[draw, 9] = values
        if n:
            figures[draw, 1] = sum_layers / (n * whole_layers)
            figures[draw, 2] = _median_of_counts(n_with, n) / whole_layers
            for k in range(2):
                figures[draw, 3 + 2 * k] = found[k, :n].mean()
                figures[draw, 4 + 2 * k] = _median(found[k, :n], n_in_bin)
            figures[draw, 7] = _median(found[2, :n], n_in_bin)
            figures[draw, 8] = found[2, :n].max()
