"""Every figure of a model for each of many draws of its sequences, with replacement.

Sequences are the unit: positions inside one depend on each other. Each model is resampled once, by draws that depend on
the seed and the number of sequences alone, so that two models on the same tokens are paired by their resamples' order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from outlier_moe.definitions.taps import VIEWS, View
from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.sequence_tables import SequenceTables
from outlier_moe.statistics.resampled_figures import Figures, preset_figures, sequence_figures
from outlier_moe.tables.comparison import FIGURES, ModelResample
from outlier_moe.tables.recording import Recording

_KEY = ["preset", "first_token", "figure"]


@dataclass(frozen=True)
class BootstrapOptions:
    """How a model is resampled."""

    n_resamples: int = 2000
    """Draws of as many sequences as there are, with replacement."""
    seed: int = 0
    """Decides the draws."""


def drawn_weights(n_sequences: int, options: BootstrapOptions) -> Int64[np.ndarray, "draw sequence"]:
    """How often each sequence is in each resample."""
    random = np.random.default_rng(options.seed)
    drawn = random.integers(0, n_sequences, (options.n_resamples, n_sequences))
    flat = drawn + n_sequences * np.arange(options.n_resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.int64)


def text_sha256(run: dict[str, Any]) -> str:
    """What two recordings share if and only if their sequences hold the same tokens in the same order.

    Args:
        run: A recording's provenance.
    """
    tokens = run["tokens"]
    # Tokenizers that differ in name alone make the same tokens; where their hash was not noted, all else must agree.
    told = [tokens.get("tokens_sha256", tokens), run["n_sequences"], run["sequence_length"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def resample_model(
    recording: Recording,
    presets: list[Preset],
    *,
    model: str,
    tables: Iterable[SequenceTables],
    options: BootstrapOptions | None = None,
    known: Mapping[View, Figures] | None = None,
) -> pl.DataFrame:
    """Every figure of every preset for each draw of a model's sequences.

    Args:
        recording: The model's tables; nothing else is read, and nothing runs through the model.
        presets: The definitions to judge by.
        model: Its name.
        tables: The tables of these presets (`stored_tables`).
        options: How it is resampled.
        known: The figures of a view that no threshold moves, where they are at hand (`unmoved_figures`).

    Returns:
        The table `ModelResample`. Memory: some 40 bytes for each row of the tables that reaches a threshold, 80 for
        each sequence, feature and 64 layers, and 8 for each value in the result; all presets of a model of 28 layers,
        2048 features and 16 sequences stay below 0.2 GiB.

    Raises:
        StudyError: If a view was not recorded, or a threshold is not on the recording's ladder.
    """
    options = options or BootstrapOptions()
    sites = recording.sites()
    n_sequences = sites["sequence"].n_unique()
    weights = _weights(n_sequences, options)
    by_view = dict(known or {})
    views: set[View] = {preset.view for preset in presets}
    for view in views - set(by_view):
        of_view = sites.filter(pl.col("tap").is_in(VIEWS[view]))
        by_view[view] = sequence_figures(of_view, recording.sequences(), weights)
    rows: dict[tuple[str, str, str], Float64[np.ndarray, " draw"]] = {}
    for table in tables:
        figures = {**preset_figures(table, weights), **by_view[table.preset.view]}
        rows |= {(table.preset.name, table.first_token, name): figures[name] for name in FIGURES if name in figures}
    table = _table(rows, n_first=1 + (n_sequences if n_sequences > 1 else 0)).with_columns(
        model=pl.lit(model),
        n_sequences=pl.lit(n_sequences),
        seed=pl.lit(options.seed),
        corpus_sha256=pl.lit(recording.run["tokens"]["corpus_sha256"]),
        text_sha256=pl.lit(text_sha256(recording.run)),
    )
    return ModelResample.validate(table.select(ModelResample.column_names()), cast=True)


def _weights(n_sequences: int, options: BootstrapOptions) -> Int64[np.ndarray, "draw sequence"]:
    """All sequences, then all but each of them, then the resamples; the first alone if there is but one sequence."""
    whole = np.ones((1, n_sequences), np.int64)
    if n_sequences < 2:
        return whole
    return np.concatenate([whole, whole - np.eye(n_sequences, dtype=np.int64), drawn_weights(n_sequences, options)])


def _table(rows: Mapping[tuple[str, str, str], Float64[np.ndarray, " draw"]], *, n_first: int) -> pl.DataFrame:
    """The columns of `ModelResample` that differ by row; the first draws are that of all sequences, then the others."""
    values = np.stack(list(rows.values())) if rows else np.empty((0, n_first))
    keys = pl.DataFrame(list(rows), schema=dict.fromkeys(_KEY, pl.String), orient="row")
    return keys.with_columns(
        pl.Series("estimate", values[:, 0]).fill_nan(None),
        _lists("leave_one_out", values[:, 1:n_first]),
        _lists("resamples", values[:, n_first:]),
    )


def _lists(name: str, values: Float64[np.ndarray, "figure draw"]) -> pl.Series:
    """Rows as lists, null where there is no figure."""
    if not values.size:
        return pl.Series(name, [[] for _ in values], dtype=pl.List(pl.Float64))
    return pl.Series(name, values.ravel()).fill_nan(None).reshape(values.shape).arr.to_list()
