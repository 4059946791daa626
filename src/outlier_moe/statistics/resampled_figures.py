"""The figures of the comparison for any draw of a model's sequences, many draws at a time.

A draw says how often each sequence takes part. What pooling does is kept exactly: a layer is affected if it is in any
sequence drawn, a position fraction is the sum over the sequences drawn, each as often as it is drawn.

Memory: some 80 bytes for each sequence, feature and 64 layers, and 8 bytes for each draw and figure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64, Shaped

from outlier_moe.judging.rule import is_systematic
from outlier_moe.judging.sequence_tables import SequenceTables, layers_affected
from outlier_moe.statistics.comparison import LARGEST_LOSS
from outlier_moe.statistics.resample_kernels import GROUP, POOLED, pooled_figures

Weights = Int64[np.ndarray, "draw sequence"]
Figures = Mapping[str, Float64[np.ndarray, " draw"]]
"""A value for each draw; nan where the figure does not exist: a mean over no feature, say."""

MASSIVE_FIGURES = (
    "n_systematic",
    "d_model_share",
    "layer_fraction_mean",
    "layer_fraction_median",
    "peak_median",
    "peak_largest",
)
"""What exists where features are judged by their peaks alone."""

_BLOCK = 256


def preset_figures(tables: SequenceTables, weights: Weights) -> Figures:
    """The figures of each draw's systematic features, named as in `ModelComparison`."""
    tables = tables.candidates()
    figures = _paired(tables, weights) if tables.preset.unit == "feature_sequence" else _pooled(tables, weights)
    figures["d_model_share"] = figures["n_systematic"] / tables.d_model
    if tables.preset.rule == "massive":
        return {name: values for name, values in figures.items() if name in MASSIVE_FIGURES}
    return figures


def in_blocks(function: Callable[[slice], None], n: int) -> None:
    """Call a function that holds no lock on ranges of n draws, on all processors."""
    slices = [slice(first, min(first + _BLOCK, n)) for first in range(0, n, _BLOCK)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for _ in threads.map(function, slices):
            pass


def _pooled(tables: SequenceTables, weights: Weights) -> dict[str, Float64[np.ndarray, " draw"]]:
    preset = tables.preset
    is_massive = preset.rule == "massive"
    n_sequences, n_taps, n_words, n_features = tables.sites.shape
    sites = tables.sites.reshape(n_sequences, n_taps * n_words, n_features)
    unions, largest = _of_subsets(sites, np.bitwise_or), _of_subsets(tables.peak, np.maximum)
    counts = _counts(tables, int(weights.sum(axis=1).max()))
    wholes = (tables.layers, tables.positions)
    least = (0.0, 0.0) if is_massive else (preset.layer_fraction, preset.position_fraction)
    figures = np.full((len(weights), len(POOLED)), np.nan)

    def fill(chosen: slice) -> None:
        by_site = preset.layers == "sites"
        pooled_figures(weights[chosen], unions, largest, counts, n_taps, by_site, wholes, least, figures[chosen])

    in_blocks(fill, len(weights))
    return dict(zip(POOLED, figures.T.copy(), strict=True))


def _of_subsets(
    values: Shaped[np.ndarray, "sequence ..."], together: np.ufunc
) -> Shaped[np.ndarray, "group subset ..."]:
    """What the sequences of every subset of each group of sequences come to; subsets by their bits."""
    n_groups = -(-len(values) // GROUP)
    found = np.zeros((n_groups, 1 << GROUP, *values.shape[1:]), values.dtype)
    for group in range(n_groups):
        for subset in range(1, 1 << GROUP):
            last = subset.bit_length() - 1
            sequence = group * GROUP + last
            if sequence < len(values):
                together(found[group, subset ^ (1 << last)], values[sequence], out=found[group, subset])
    return found


def _counts(tables: SequenceTables, most_drawn: int) -> Shaped[np.ndarray, "padded kind=2 feature"]:
    """Values and positions of every sequence, in the smallest integers that hold the sums of any draw.

    Sequences without counts fill the last group.
    """
    counts = np.stack([tables.n_values, tables.n_positions], axis=1)
    is_small = int(counts.max(initial=0)) * most_drawn < np.iinfo(np.int32).max
    padded = np.zeros((-(-len(counts) // GROUP) * GROUP, *counts.shape[1:]), np.int32 if is_small else np.int64)
    padded[: len(counts)] = counts
    return padded


def _paired(tables: SequenceTables, weights: Weights) -> dict[str, Float64[np.ndarray, " draw"]]:
    """Figures of (feature, sequence) pairs, which do not depend on what else is drawn: only how often they count."""
    preset = tables.preset
    n_sequences, n_features = tables.peak.shape
    layers = layers_affected(tables.sites, preset)
    n_sites = np.bitwise_count(tables.sites).sum(axis=(1, 2), dtype=np.int64)
    layer_fraction = layers / tables.layers
    position_fraction = tables.n_positions / tables.positions
    sequence, feature = np.nonzero(is_systematic(layer_fraction, position_fraction, preset))
    at = (sequence, feature)
    quantities = {
        "layer_fraction": layer_fraction[at],
        "position_fraction": position_fraction[at],
        "position_fraction_per_site": tables.n_values[at] / (n_sites[at] * tables.positions),
        "peak": tables.peak[at].astype(np.float64),
    }
    per_sequence = np.bincount(sequence, minlength=n_sequences)
    n_pairs = weights @ per_sequence
    figures = {
        "n_systematic": _distinct(weights, sequence, feature, n_features),
        "n_pairs": n_pairs.astype(np.float64),
        "n_values": (weights @ _sums(sequence, tables.n_values[at], n_sequences)).astype(np.float64),
    }
    for name, values in quantities.items():
        total = weights @ _sums(sequence, values, n_sequences)
        mean = np.divide(total, n_pairs, out=np.full(len(weights), np.nan), where=n_pairs > 0)
        figures |= {f"{name}_mean": mean, f"{name}_median": _medians(weights, sequence, values)}
    del figures["peak_mean"]
    largest = np.zeros(n_sequences)
    np.maximum.at(largest, sequence, quantities["peak"])
    drawn = np.where(weights > 0, largest, 0).max(axis=1)
    return figures | {"peak_largest": np.where(n_pairs > 0, drawn, np.nan)}


def _sums(
    sequence: Int64[np.ndarray, " pair"], values: Float64[np.ndarray, " pair"] | Int64[np.ndarray, " pair"], n: int
) -> Float64[np.ndarray, " sequence"] | Int64[np.ndarray, " sequence"]:
    sums = np.zeros(n, values.dtype)
    np.add.at(sums, sequence, values)
    return sums


def _distinct(
    weights: Weights, sequence: Int64[np.ndarray, " pair"], feature: Int64[np.ndarray, " pair"], n_features: int
) -> Float64[np.ndarray, " draw"]:
    """How many features have a pair in any sequence drawn."""
    has_pair = np.zeros((weights.shape[1], n_features), bool)
    has_pair[sequence, feature] = True
    packed = np.packbits(has_pair, axis=1)
    union = np.zeros((len(weights), packed.shape[1]), np.uint8)
    for drawn, bits in zip(weights.T > 0, packed, strict=True):
        union[drawn] |= bits
    return np.bitwise_count(union).sum(axis=1).astype(np.float64)


def _medians(
    weights: Weights, sequence: Int64[np.ndarray, " pair"], values: Float64[np.ndarray, " pair"]
) -> Float64[np.ndarray, " draw"]:
    """The median of the pairs drawn, each counted as often as its sequence is; nan where there is none."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    n_sequences = weights.shape[1]
    # How many of each sequence's pairs are among the first k in order: a draw's count of them is one product.
    among_first = np.zeros((len(order) + 1, n_sequences), np.int32)
    among_first[np.arange(1, len(order) + 1), sequence[order]] = 1
    np.cumsum(among_first, axis=0, out=among_first)
    n_pairs = weights @ among_first[-1]
    halves = []
    for rank in ((n_pairs - 1) // 2, n_pairs // 2):
        low, high = np.zeros(len(weights), np.int64), np.full(len(weights), max(len(order) - 1, 0))
        while (low < high).any():
            middle = (low + high) // 2
            reached = np.einsum("ds,ds->d", weights, among_first[np.minimum(middle + 1, len(order))]) > rank
            low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
            low = np.minimum(low, high)
        halves.append(ranked[low] if len(ranked) else np.full(len(weights), np.nan))
    return np.where(n_pairs > 0, (halves[0] + halves[1]) / 2, np.nan)


def sequence_figures(sites: pl.DataFrame, sequences: pl.DataFrame, weights: Weights) -> Figures:
    """Perplexity and kurtosis of each draw.

    A site's kurtosis is the mean over the sequences that have one; `_mean` and `_median` are over sites.

    Args:
        sites: The rows of `schemas.Site` of the taps looked at.
        sequences: The table `schemas.Sequence`.
        weights: How often each sequence is drawn, in ascending order of the sequences.
    """
    # Losses that are missing leave the perplexity out, as the comparison does.
    losses = sequences.sort("sequence")["loss_nats"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    complete = len(losses) == weights.shape[1] and bool((losses < LARGEST_LOSS).all())
    figures = {"perplexity": np.exp(weights @ losses / weights.sum(axis=1))} if complete else {}
    site = sites.select(pl.struct("tap", "layer").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    sequence = sites.select(pl.col("sequence").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    for name in ("kurtosis_of_feature_rms", "excess_kurtosis"):
        by_site = np.full((int(site.max(initial=-1)) + 1, weights.shape[1]), np.nan)
        by_site[site, sequence] = sites[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        figures |= _over_sites(name, by_site, weights)
    absent = {"perplexity": np.full(len(weights), np.nan)}
    return absent | figures


def _over_sites(name: str, by_site: Float64[np.ndarray, "site sequence"], weights: Weights) -> Figures:
    known = np.isfinite(by_site)
    if known.all():
        per_site = weights @ by_site.T / weights.sum(axis=1, keepdims=True)
        # Sorting so few values with vector instructions is several times as fast as selecting the middle ones.
        ordered, n_sites = np.sort(per_site, axis=1), per_site.shape[1]
        middle = (ordered[:, (n_sites - 1) // 2] + ordered[:, n_sites // 2]) / 2
        return {f"{name}_mean": per_site.mean(axis=1), f"{name}_median": middle}
    n_known = weights @ known.T.astype(np.int64)
    total = weights @ np.where(known, by_site, 0).T
    per_site = np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0)
    exists = (n_known > 0).any(axis=1)
    mean, median = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    mean[exists] = np.nanmean(per_site[exists], axis=1)
    median[exists] = np.nanmedian(per_site[exists], axis=1)
    return {f"{name}_mean": mean, f"{name}_median": median}
