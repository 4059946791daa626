"""How a model's figures move with the number of sequences they are taken from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, pairwise

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from outlier_moe.definitions.taps import VIEWS, View
from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.sequence_tables import SequenceTables
from outlier_moe.statistics.resampled_figures import preset_figures, sequence_figures
from outlier_moe.tables.comparison import FIGURES, Stability
from outlier_moe.tables.recording import Recording

SIZES = (1, 2, 4, 8, 16)

MOST_CHOICES = 500
"""Choices of some of a model's sequences that stand for all of them."""


def choices(n_sequences: int, size: int, *, most: int, seed: int) -> Int64[np.ndarray, "choice sequence"]:
    """All choices of `size` sequences (1 where a sequence is taken), or `most` random ones if there are more."""
    n_all = math.comb(n_sequences, size)
    if n_all <= most:
        chosen = np.array(list(combinations(range(n_sequences), size)), np.int64).reshape(n_all, size)
    else:
        random = np.random.default_rng([seed, size])
        chosen = np.argsort(random.random((most, n_sequences)), axis=1)[:, :size]
    weights = np.zeros((len(chosen), n_sequences), np.int64)
    np.put_along_axis(weights, chosen, 1, axis=1)
    return weights


def stability(
    recording: Recording,
    presets: list[Preset],
    *,
    model: str,
    tables: Iterable[SequenceTables],
    sizes: tuple[int, ...] = SIZES,
    most_choices: int = MOST_CHOICES,
    seed: int = 0,
) -> pl.DataFrame:
    """Each figure of 1, 2, 4, 8, 16 of a model's sequences: its mean and spread over the choices of them.

    Args:
        recording: The model's tables.
        presets: The definitions to judge by.
        model: Its name.
        tables: The tables of these presets (`stored_tables`).
        sizes: How many sequences to take; those above what was recorded are left out, and all that were are added.
        most_choices: Where there are more choices, so many random ones (one may come twice) stand for all.
        seed: Decides them.

    Returns:
        The table `Stability`.
    """
    sites, sequences = recording.sites(), recording.sequences()
    n_sequences = sites["sequence"].n_unique()
    taken = sorted({size for size in sizes if size < n_sequences} | {n_sequences})
    parts = [choices(n_sequences, size, most=most_choices, seed=seed) for size in taken]
    weights = np.concatenate(parts)
    bounds = np.cumsum([0, *map(len, parts)])
    views: set[View] = {preset.view for preset in presets}
    by_view = {
        view: sequence_figures(sites.filter(pl.col("tap").is_in(VIEWS[view])), sequences, weights) for view in views
    }
    rows = []
    for table in tables:
        figures = {**preset_figures(table, weights), **by_view[table.preset.view]}
        names = [name for name in FIGURES if name in figures]
        values = np.stack([figures[name] for name in names])
        spreads = [_spreads(values[:, first:stop]) for first, stop in pairwise(bounds)]
        for name, of_sizes in zip(names, zip(*spreads, strict=True), strict=True):
            key = {"preset": table.preset.name, "first_token": table.first_token, "figure": name}
            for size, spread in zip(taken, of_sizes, strict=True):
                exhaustive = math.comb(n_sequences, size) <= most_choices
                rows.append({**key, "n_sequences": size, "is_exhaustive": exhaustive, **spread})
    found = pl.DataFrame(rows, infer_schema_length=None).with_columns(model=pl.lit(model))
    return Stability.validate(found.select(Stability.column_names()), cast=True)


_Spread = dict[str, float | int | str | None]


def _spreads(values: Float64[np.ndarray, "figure choice"]) -> list[_Spread]:
    """What is said of the choices of one size, figure by figure."""
    is_known = ~np.isnan(values)
    if is_known.all():
        return _spreads_of(values, values.shape[1])
    return [_spreads_of(row[known][None], len(row))[0] for row, known in zip(values, is_known, strict=True)]


def _spreads_of(values: Float64[np.ndarray, "figure choice"], n_choices: int) -> list[_Spread]:
    n = values.shape[1]
    names = ("mean", "standard_deviation", "smallest", "largest")
    if not n:
        nothing = {**dict.fromkeys(names), "n_choices": 0, "reason": "the figure exists for none of the choices"}
        return [nothing] * len(values)
    reason = None if n == n_choices else f"{n_choices - n} choices do not have the figure"
    deviations = values.std(axis=1, ddof=1).tolist() if n > 1 else [None] * len(values)
    columns = values.mean(axis=1).tolist(), deviations, values.min(axis=1).tolist(), values.max(axis=1).tolist()
    return [
        {**dict(zip(names, row, strict=True)), "n_choices": n, "reason": reason} for row in zip(*columns, strict=True)
    ]
