"""The compiled loop over draws of sequences: what all of them together affect, and the figures that follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt64
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

GROUP = 4
"""Sequences whose subsets' unions are made once, so that a draw takes one for each group of them; `_add` has four."""


class Drawn(NamedTuple):
    """The sums over the sequences of one draw."""

    sites: UInt64[np.ndarray, "word feature"]
    """Their union."""
    sums: Int32[np.ndarray, "kind=2 feature"] | Int64[np.ndarray, "kind=2 feature"]
    """Outlier values, and positions affected."""
    peak: Float32[np.ndarray, " feature"]
    """The largest |x|."""


LAST = np.iinfo(np.int64).max
"""Stands behind every number."""


class Keys(NamedTuple):
    """Sort keys of each systematic feature of a draw; `LAST` or infinite for all others."""

    layers: Int64[np.ndarray, " feature"]
    """Layers affected."""
    positions: Int64[np.ndarray, " feature"]
    """Positions affected."""
    per_site: Float64[np.ndarray, " feature"]
    """The share of the positions at an affected site, on average."""
    peak: Int64[np.ndarray, " feature"]
    """The bits of the largest |x|."""


class Sums(NamedTuple):
    """The systematic features of a draw together."""

    n: int
    """How many there are."""
    n_layers: int
    n_positions: int
    n_values: int
    """Outlier values."""
    per_site: float


def _compiled(function: Callable) -> Callable:
    """Compile a function for threads that hold no lock of the interpreter."""
    # What a checker of types has wrapped around the function cannot be compiled.
    return njit(nogil=True, cache=True, error_model="numpy")(inspect.unwrap(function))


def _summing(function: Callable) -> Callable:
    """The same where sums of fractions may be taken in any order, so that they too take vector instructions."""
    exactly = {"nogil": True, "cache": True, "error_model": "numpy"}
    return njit(**exactly, fastmath={"reassoc", "nsz"})(inspect.unwrap(function))


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
    unions: UInt64[np.ndarray, "group subset word feature"],
    largest: Float32[np.ndarray, "group subset feature"],
    counts: Int32[np.ndarray, "padded kind=2 feature"] | Int64[np.ndarray, "padded kind=2 feature"],
    drawn: Drawn,
) -> None:
    """Put the sequences of one draw together: sites by union, values and positions by sum, peaks by the largest."""
    sites, sums, peak = drawn
    sums[:] = 0
    for group in range(len(unions)):
        first, subset = group * GROUP, 0
        for s in range(first, min(first + GROUP, len(weights))):
            if weights[s] != 0:
                subset |= 1 << (s - first)
        if subset != 0:
            _add(weights, first, counts, sums)
        union, top = unions[group, subset], largest[group, subset]
        if group == 0:
            sites[:] = union
            peak[:] = top
            continue
        for word in range(len(sites)):
            into, bits = sites[word], union[word]
            for f in range(len(bits)):
                into[f] |= bits[f]
        for f in range(len(peak)):
            peak[f] = top[f] if top[f] > peak[f] else peak[f]


@_compiled
def _add(
    weights: Int64[np.ndarray, " sequence"],
    first: int,
    counts: Int32[np.ndarray, "padded kind=2 feature"] | Int64[np.ndarray, "padded kind=2 feature"],
    sums: Int32[np.ndarray, "kind=2 feature"] | Int64[np.ndarray, "kind=2 feature"],
) -> None:
    """Add the counts of a group's sequences, each as often as it is drawn: one walk over the sums for all of them."""
    n = len(weights)
    number = counts.dtype.type
    weight_a, weight_b = number(weights[first]), number(weights[first + 1] if first + 1 < n else 0)
    weight_c = number(weights[first + 2] if first + 2 < n else 0)
    weight_d = number(weights[first + 3] if first + 3 < n else 0)
    for kind in range(len(sums)):
        into = sums[kind]
        a, b, c, d = counts[first, kind], counts[first + 1, kind], counts[first + 2, kind], counts[first + 3, kind]
        for f in range(len(into)):
            into[f] += weight_a * a[f] + weight_b * b[f] + weight_c * c[f] + weight_d * d[f]


@_compiled
def _count_layers(
    drawn_sites: UInt64[np.ndarray, "word feature"],
    n_taps: int,
    layers: Int32[np.ndarray, " feature"],
    n_sites: Int32[np.ndarray, " feature"],
) -> None:
    """The decoder layers (bits of any tap) and the sites (bits of all taps) of each feature."""
    words_per_tap = drawn_sites.shape[0] // n_taps
    layers[:] = 0
    n_sites[:] = 0
    union = np.empty(len(layers), np.uint64)
    for word in range(words_per_tap):
        union[:] = 0
        # Features innermost: only innermost loops are turned into vector instructions.
        for tap in range(n_taps):
            bits = drawn_sites[tap * words_per_tap + word]
            for f in range(len(layers)):
                n_sites[f] += np.int32(_ones(bits[f]))
                union[f] |= bits[f]
        for f in range(len(layers)):
            layers[f] += np.int32(_ones(union[f]))


@_compiled
def _find_middle(keys: Int64[np.ndarray, " feature"], n: int, near: Int64[np.ndarray, "end=2"]) -> tuple[int, int]:
    """The two middle ones of the n smallest of some whole numbers; one and the same if n is odd.

    By halving the range that they lie in: what is below a number is counted by vector instructions, and the range is
    small from the start where they lie in much the same place one draw after the other.

    Args:
        keys: The numbers; what is no number of the draw is `LAST`.
        n: How many others there are.
        near: The middle and the width of where to look; those for the next draw are left there.
    """
    rank = (n - 1) // 2
    low, high = near[0] - near[1], near[0] + near[1]
    n_low, n_high = 0, 0
    for f in range(len(keys)):
        n_low += keys[f] <= low
        n_high += keys[f] <= high
    if n_low <= rank < n_high:
        near[1] -= near[1] // 8
    else:
        low, high = (-1, low) if n_low > rank else (high, LAST - 1)
        near[1] += near[1] + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        n_upto, largest, smallest = _around(keys, middle)
        if n_upto > rank:
            high = largest
        else:
            low = smallest - 1
    near[0] = high
    n_upto, _, following = _around(keys, high)
    return high, high if n % 2 or n_upto > n // 2 else following


@_compiled
def _around(keys: Int64[np.ndarray, " feature"], key: int) -> tuple[int, int, int]:
    """How many values are at most a number, the largest of these, and the smallest of the others."""
    n_upto, largest, smallest = 0, -1, LAST
    # Written so that it is turned into vector instructions, as loops over values, `max` and `min` are not.
    for f in range(len(keys)):
        other = keys[f]
        n_upto += other <= key
        below = other if other <= key else -1
        above = LAST if other <= key else other
        largest = below if below > largest else largest
        smallest = above if above < smallest else smallest
    return n_upto, largest, smallest


@_summing
def _choose(
    drawn: Drawn,
    layers: Int32[np.ndarray, " feature"],
    n_sites: Int32[np.ndarray, " feature"],
    limits: tuple[int, int, int],
    keys: Keys,
) -> Sums:
    """Fill in the keys of each systematic feature of a draw.

    Args:
        drawn: The draw.
        layers: Layers that each feature affects, of those that the preset counts.
        n_sites: Sites that it affects.
        limits: The least layers and positions of a systematic feature, and the positions drawn.
        keys: Where it goes.
    """
    least_layers, least_positions, positions = limits
    bits = drawn.peak.view(np.int32)
    n, n_layers, n_positions, n_values, per_site = 0, 0, 0, 0, 0.0
    for f in range(len(layers)):
        affected, reached, values, peak = layers[f], drawn.sums[1, f], drawn.sums[0, f], bits[f]
        share = values / (float(n_sites[f]) * positions)
        is_chosen = (affected >= least_layers) & (reached >= least_positions)
        keys.layers[f] = affected if is_chosen else LAST
        keys.positions[f] = reached if is_chosen else LAST
        keys.peak[f] = peak if is_chosen else LAST
        keys.per_site[f] = share if is_chosen else np.inf
        n += is_chosen
        n_layers += affected if is_chosen else 0
        n_positions += reached if is_chosen else 0
        n_values += values if is_chosen else 0
        per_site += share if is_chosen else 0.0
    return Sums(n, n_layers, n_positions, n_values, per_site)


@_compiled
def _fill(
    figures: Float64[np.ndarray, " figure"],
    keys: Keys,
    sums: Sums,
    wholes: tuple[int, int],
    near: Int64[np.ndarray, "kind=4 end=2"],
) -> None:
    """The figures of one draw, in the order of `POOLED`; `wholes` are the layers and positions of all."""
    n, (layers, positions) = sums.n, wholes
    figures[0] = n
    figures[9] = sums.n_values
    if n == 0:
        return
    figures[1] = sums.n_layers / (n * layers)
    low, high = _find_middle(keys.layers, n, near[0])
    figures[2] = (low + high) / 2 / layers
    figures[3] = sums.n_positions / (n * positions)
    low, high = _find_middle(keys.positions, n, near[1])
    figures[4] = (low / positions + high / positions) / 2
    figures[5] = sums.per_site / n
    # Positive numbers are in the order of their bits.
    shares = np.array(_find_middle(keys.per_site.view(np.int64), n, near[2])).view(np.float64)
    figures[6] = (shares[0] + shares[1]) / 2
    low, high = _find_middle(keys.peak, n, near[3])
    _, largest, _ = _around(keys.peak, LAST - 1)
    peaks = np.array([low, high, largest], np.int32).view(np.float32).astype(np.float64)
    figures[7] = (peaks[0] + peaks[1]) / 2
    figures[8] = peaks[2]


@_compiled
def _least(least_fraction: float, whole: int) -> int:
    """The smallest number that makes at least a fraction of a whole, and at least 1."""
    number = max(int(least_fraction * whole) - 1, 1)
    while number / whole < least_fraction:
        number += 1
    return number


@_compiled
def pooled_figures(
    weights: Int64[np.ndarray, "draw sequence"],
    unions: UInt64[np.ndarray, "group subset word feature"],
    largest: Float32[np.ndarray, "group subset feature"],
    counts: Int32[np.ndarray, "padded kind=2 feature"] | Int64[np.ndarray, "padded kind=2 feature"],
    n_taps: int,
    by_site: bool,
    wholes: tuple[int, int],
    least: tuple[float, float],
    figures: Float64[np.ndarray, "draw figure"],
) -> None:
    """Fill in the figures of each draw; those of no feature stay as they were.

    Args:
        weights: How often each sequence is drawn.
        unions: Bits of the layers, tap after tap, of every subset of each group of sequences.
        largest: The largest |x| of the same subsets.
        counts: Outlier values, and positions affected at any site, by sequence; rows of zeros fill the last group.
        n_taps: Taps of the view.
        by_site: Whether the layer fraction is taken over sites.
        wholes: What it is taken over, and the positions of one sequence.
        least: The least layer fraction and position fraction of a systematic feature.
        figures: Where the figures go, in the order of `POOLED`.
    """
    n_features = counts.shape[2]
    drawn = Drawn(
        np.empty(unions.shape[2:], np.uint64),
        np.empty(counts.shape[1:], counts.dtype),
        np.empty(n_features, np.float32),
    )
    layers, n_sites = np.empty(n_features, np.int32), np.empty(n_features, np.int32)
    whole_numbers = np.empty((3, n_features), np.int64)
    keys = Keys(whole_numbers[0], whole_numbers[1], np.empty(n_features, np.float64), whole_numbers[2])
    near = np.zeros((4, 2), np.int64)
    for draw in range(len(weights)):
        _pool(weights[draw], unions, largest, counts, drawn)
        _count_layers(drawn.sites, n_taps, layers, n_sites)
        positions = wholes[1] * weights[draw].sum()
        limits = (_least(least[0], wholes[0]), 0 if least[1] <= 0 else _least(least[1], positions), positions)
        sums = _choose(drawn, n_sites if by_site else layers, n_sites, limits, keys)
        _fill(figures[draw], keys, sums, (wholes[0], positions), near)
