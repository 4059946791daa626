"""Confidence intervals of a model's figures and of the difference of two models, from resampled sequences.

Sequences are the unit: positions inside one depend on each other. Each model is resampled once, by draws that depend on
the seed and the number of sequences alone, so that two models on the same tokens are paired by their resamples' order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from outlier_moe.errors import StudyError
from outlier_moe.filtering import Preset
from outlier_moe.recording_files import Recording
from outlier_moe.schemas.comparison import FIGURES, FigureDifference, FigureInterval, ModelResample
from outlier_moe.statistics.intervals import bca_interval
from outlier_moe.statistics.resampled_figures import Figures, preset_figures, sequence_figures
from outlier_moe.statistics.sequence_tables import SequenceTables, sequence_tables
from outlier_moe.taps import VIEWS, View

_KEY = ["preset", "first_token", "figure"]


@dataclass(frozen=True)
class BootstrapOptions:
    """How a model is resampled."""

    n_resamples: int = 10_000
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
    options: BootstrapOptions | None = None,
    tables: Iterable[SequenceTables] | None = None,
) -> pl.DataFrame:
    """Every figure of every preset for each draw of a model's sequences.

    Args:
        recording: The model's tables; nothing else is read, and nothing runs through the model.
        presets: The definitions to judge by.
        model: Its name.
        options: How it is resampled.
        tables: The tables of these presets, where they are at hand (`stored_tables`); else the recording is read.

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
    views: set[View] = {preset.view for preset in presets}
    by_view = {
        view: sequence_figures(sites.filter(pl.col("tap").is_in(VIEWS[view])), recording.sequences(), weights)
        for view in views
    }
    rows = [
        _rows(tables, {**preset_figures(tables, weights), **by_view[tables.preset.view]})
        for tables in (sequence_tables(recording, presets) if tables is None else tables)
    ]
    table = pl.concat([ModelResample.create_empty().drop("model"), *rows], how="diagonal_relaxed").with_columns(
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


def _rows(tables: SequenceTables, figures: Figures) -> pl.DataFrame:
    """One row a figure; its first value is that of all sequences, then come those that leave one out."""
    n_first = 1 + (tables.n_sequences if tables.n_sequences > 1 else 0)
    names = [name for name in FIGURES if name in figures]
    return pl.DataFrame(
        {
            "preset": tables.preset.name,
            "first_token": tables.first_token,
            "figure": names,
            "estimate": [figures[name][0] for name in names],
            "resamples": _lists([figures[name][n_first:] for name in names]),
            "leave_one_out": _lists([figures[name][1:n_first] for name in names]),
        },
    ).with_columns(pl.col("estimate").fill_nan(None))


def _lists(rows: list[Float64[np.ndarray, " draw"]]) -> pl.Series:
    """Rows of one length as lists, null where there is no figure."""
    if not rows or not len(rows[0]):
        return pl.Series([[] for _ in rows], dtype=pl.List(pl.Float64))
    together = pl.Series(np.concatenate(rows)).fill_nan(None)
    return together.reshape((len(rows), len(rows[0]))).arr.to_list()


def _arrays(lists: pl.Series) -> list[Float64[np.ndarray, " draw"]]:
    """The lists of `_lists`."""
    ends = np.cumsum(lists.list.len().to_numpy().astype(np.int64))
    return np.split(lists.explode(empty_as_null=False).cast(pl.Float64).fill_null(np.nan).to_numpy(), ends[:-1])


class _Resampled(NamedTuple):
    """One row of `ModelResample`, as arrays; nan where there is no figure."""

    facts: dict[str, Any]
    estimate: float
    resamples: Float64[np.ndarray, " draw"]
    leave_one_out: Float64[np.ndarray, " sequence"]


def _resampled(table: pl.DataFrame) -> dict[tuple[str, ...], _Resampled]:
    """The rows of one model by (preset, first_token, figure)."""
    lists = table.select("resamples", "leave_one_out")
    rows = {}
    of_rows = zip(*(_arrays(lists[name]) for name in lists.columns), strict=True)
    for facts, arrays in zip(table.drop(lists.columns).iter_rows(named=True), of_rows, strict=True):
        estimate = np.nan if facts["estimate"] is None else facts["estimate"]
        rows[tuple(facts[name] for name in _KEY)] = _Resampled(facts, estimate, *arrays)
    return rows


def bootstrap_comparison(resamples: pl.DataFrame, *, confidence_level: float = 0.95) -> pl.DataFrame:
    """A BCa interval for every figure of the comparison.

    Args:
        resamples: The tables of `resample_model`, one after the other.
        confidence_level: Between 0 and 1.

    Returns:
        The table `FigureInterval`.
    """
    rows = []
    for _, table in resamples.group_by("model", maintain_order=True):
        for row in _resampled(table).values():
            interval = bca_interval(row.estimate, row.resamples, [row.leave_one_out], confidence_level=confidence_level)
            rows.append({**row.facts, **interval._asdict(), "confidence_level": confidence_level})
    return _validated(rows, FigureInterval)


def bootstrap_differences(
    resamples: pl.DataFrame, *, pairs: list[tuple[str, str]] | None = None, confidence_level: float = 0.95
) -> pl.DataFrame:
    """The difference of two models in every figure that both have, with its BCa interval.

    Where sequence i holds the same tokens for both models (same text, tokenizer, lengths), each resample draws the same
    sequences for both. Elsewhere their words differ, so that the two are resampled independently: the interval is wider
    and still right. Models on different texts are refused.

    Args:
        resamples: The tables of `resample_model`, one after the other.
        pairs: The models to compare; by default each with each.
        confidence_level: Between 0 and 1.

    Returns:
        The table `FigureDifference`.

    Raises:
        StudyError: If a pair was recorded on different texts, or a model has no resamples.
    """
    by_model = {str(key[0]): _resampled(table) for key, table in resamples.group_by("model", maintain_order=True)}
    rows = []
    for model, other in combinations(by_model, 2) if pairs is None else pairs:
        for name in (model, other):
            if name not in by_model:
                raise StudyError("A model has no resamples.", key="pairs", expected=", ".join(by_model), got=name)
        shared = [key for key in by_model[model] if key in by_model[other]]
        rows += [_difference(by_model[model][key], by_model[other][key], confidence_level) for key in shared]
    return _validated(rows, FigureDifference)


def _difference(first: _Resampled, second: _Resampled, confidence_level: float) -> dict[str, Any]:
    _refuse_other_text(first.facts, second.facts)
    unpaired = _why_unpaired(first, second)
    estimate = first.estimate - second.estimate
    if unpaired is None:
        drawn, left_out = first.resamples - second.resamples, [first.leave_one_out - second.leave_one_out]
    else:
        n = min(len(first.resamples), len(second.resamples))
        # One seed draws the same numbers for both; in another order they are independent.
        shuffled = np.random.default_rng(first.facts["seed"]).permutation(second.resamples)
        drawn = first.resamples[:n] - shuffled[:n]
        left_out = [first.leave_one_out - second.estimate, first.estimate - second.leave_one_out]
    return {
        **first.facts,
        **bca_interval(estimate, drawn, left_out, confidence_level=confidence_level)._asdict(),
        "other": second.facts["model"],
        "n_sequences_other": second.facts["n_sequences"],
        "estimate": None if np.isnan(estimate) else estimate,
        "is_paired": unpaired is None,
        "pairing": unpaired or "resample i draws the same sequences of tokens for both",
        "confidence_level": confidence_level,
    }


def _refuse_other_text(first: dict[str, Any], second: dict[str, Any]) -> None:
    if first["corpus_sha256"] != second["corpus_sha256"]:
        raise StudyError(
            "Models that were recorded on different texts have no difference to speak of.",
            key="corpus",
            expected="one text for both",
            got=", ".join(f"{facts['model']}: sha256 {facts['corpus_sha256'][:12]}" for facts in (first, second)),
            remedy="Record both on one (--config corpus=ID), or leave the pair out.",
        )


def _why_unpaired(first: _Resampled, second: _Resampled) -> str | None:
    if first.facts["text_sha256"] != second.facts["text_sha256"]:
        return "resampled independently: sequence i does not hold the same tokens (another tokenizer or length)"
    if first.facts["seed"] != second.facts["seed"] or len(first.resamples) != len(second.resamples):
        return "resampled independently: the two were drawn by another seed or another number of times"
    return None


def _validated(rows: list[dict[str, Any]], schema: type[FigureInterval] | type[FigureDifference]) -> pl.DataFrame:
    table = pl.DataFrame(rows, infer_schema_length=None) if rows else schema.create_empty()
    return schema.validate(table.select(schema.column_names()), cast=True)
