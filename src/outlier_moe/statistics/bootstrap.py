"""Confidence intervals of a model's figures and of the difference of two models, from resampled sequences.

Sequences are the unit: positions inside one depend on each other. Each model is resampled once, by draws that depend on
the seed and the number of sequences alone, so that two models on the same tokens are paired by their resamples' order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from outlier_moe.errors import StudyError
from outlier_moe.filtering import Preset
from outlier_moe.recording_files import Recording
from outlier_moe.schemas.comparison import (
    FIGURES,
    SEQUENCE_FIGURES,
    FigureDifference,
    FigureInterval,
    ModelResample,
)
from outlier_moe.statistics.intervals import Interval, bca_intervals
from outlier_moe.statistics.resampled_figures import Figures, preset_figures, sequence_figures
from outlier_moe.statistics.sequence_tables import SequenceTables, sequence_tables
from outlier_moe.taps import VIEWS, View

_KEY = ["preset", "first_token", "figure"]
_INTERVAL = {
    **dict.fromkeys(("low", "high", "standard_error", "share_below", "share_above"), pl.Float64),
    "n_resamples": pl.Int64,
    "reason": pl.String,
}
"""The columns of `Interval`."""


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
    known: Mapping[View, Figures] | None = None,
) -> pl.DataFrame:
    """Every figure of every preset for each draw of a model's sequences.

    Args:
        recording: The model's tables; nothing else is read, and nothing runs through the model.
        presets: The definitions to judge by.
        model: Its name.
        options: How it is resampled.
        tables: The tables of these presets, where they are at hand (`stored_tables`); else the recording is read.
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
    for table in sequence_tables(recording, presets) if tables is None else tables:
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


def unmoved_figures(resamples: pl.DataFrame) -> Figures:
    """The figures that no threshold moves, as `resample_model` has them before they are put in a table.

    Args:
        resamples: The rows of one model and preset in `ModelResample`.
    """
    rows = resamples.filter(pl.col("figure").is_in(SEQUENCE_FIGURES), pl.col("first_token") == "included")
    of = _Resampled.of(rows)
    values = np.concatenate([of.estimates[:, None], of.leave_one_out, of.resamples], axis=1)
    return dict(zip(rows["figure"].to_list(), values, strict=True))


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


@dataclass(frozen=True)
class _Resampled:
    """The rows of one model's `ModelResample`, as arrays; nan where there is no figure."""

    facts: pl.DataFrame
    """Their other columns."""
    estimates: Float64[np.ndarray, " figure"]
    resamples: Float64[np.ndarray, "figure draw"]
    leave_one_out: Float64[np.ndarray, "figure sequence"]

    @classmethod
    def of(cls, table: pl.DataFrame) -> _Resampled:
        lists = [_array(table[name]) for name in ("resamples", "leave_one_out")]
        estimates = table["estimate"].fill_null(np.nan).to_numpy()
        return cls(table.drop("estimate", "resamples", "leave_one_out"), estimates, *lists)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What is the same for all rows of a model: its name, its text, how it was resampled."""
        return self.facts.drop(_KEY).row(0, named=True)

    def rows(self, chosen: pl.DataFrame) -> _Resampled:
        """Those of some keys, in that order."""
        at = chosen.join(self.facts.with_row_index("_row"), on=_KEY, how="left", maintain_order="left")["_row"]
        index = at.to_numpy()
        return _Resampled(self.facts[at], self.estimates[index], self.resamples[index], self.leave_one_out[index])


def _array(lists: pl.Series) -> Float64[np.ndarray, "figure draw"]:
    """The lists of `_lists`, which are of one length."""
    values = lists.explode(empty_as_null=False).cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values.reshape(len(lists), -1) if len(lists) else values.reshape(0, 0)


def bootstrap_comparison(resamples: pl.DataFrame, *, confidence_level: float = 0.95) -> pl.DataFrame:
    """A BCa interval for every figure of the comparison.

    Args:
        resamples: The tables of `resample_model`, one after the other.
        confidence_level: Between 0 and 1.

    Returns:
        The table `FigureInterval`.
    """
    tables = []
    for _, table in resamples.group_by("model", maintain_order=True):
        of = _Resampled.of(table)
        intervals = bca_intervals(of.estimates, of.resamples, [of.leave_one_out], confidence_level=confidence_level)
        tables.append(_with_intervals(of.facts, of.estimates, intervals))
    return _validated(tables, FigureInterval, confidence_level)


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
    by_model = {str(key[0]): _Resampled.of(table) for key, table in resamples.group_by("model", maintain_order=True)}
    differences = []
    for model, other in combinations(by_model, 2) if pairs is None else pairs:
        for name in (model, other):
            if name not in by_model:
                raise StudyError("A model has no resamples.", key="pairs", expected=", ".join(by_model), got=name)
        one, another = _sharing(by_model[model], by_model[other])
        if len(one.facts):
            differences.append(_difference(one, another, confidence_level))
    if not differences:
        return _validated([], FigureDifference, confidence_level)
    # Put together once: hundreds of small tables take longer than what is in them.
    facts, estimates, intervals, pairing = zip(*differences, strict=True)
    columns = pl.DataFrame([pair for pair, of in zip(pairing, facts, strict=True) for _ in range(len(of))])
    table = _with_intervals(pl.concat(facts), np.concatenate(estimates), list(chain.from_iterable(intervals)))
    return _validated([table.with_columns(*columns)], FigureDifference, confidence_level)


def _sharing(one: _Resampled, other: _Resampled) -> tuple[_Resampled, _Resampled]:
    """The rows of the figures that both have."""
    keys, others = one.facts.select(_KEY), other.facts.select(_KEY)
    if keys.equals(others):
        return one, other
    shared = keys.join(others, on=_KEY, how="semi", maintain_order="left")
    return one.rows(shared), other.rows(shared)


class _Difference(NamedTuple):
    """The rows of one pair of models."""

    facts: pl.DataFrame
    """What is known of the first model's rows."""
    estimates: Float64[np.ndarray, " figure"]
    intervals: list[Interval]
    pairing: dict[str, Any]
    """What is the same for all: the other model, and how the two were paired."""


def _difference(first: _Resampled, second: _Resampled, confidence_level: float) -> _Difference:
    facts, others = first.shared, second.shared
    _refuse_other_text(facts, others)
    unpaired = _why_unpaired(first, second)
    estimates = first.estimates - second.estimates
    if unpaired is None:
        drawn, left_out = first.resamples - second.resamples, [first.leave_one_out - second.leave_one_out]
    else:
        n = min(first.resamples.shape[1], second.resamples.shape[1])
        # One seed draws the same numbers for both; in another order they are independent.
        order = np.random.default_rng(facts["seed"]).permutation(second.resamples.shape[1])
        drawn = first.resamples[:, :n] - second.resamples[:, order[:n]]
        left_out = [
            first.leave_one_out - second.estimates[:, None],
            first.estimates[:, None] - second.leave_one_out,
        ]
    pairing = {
        "other": others["model"],
        "n_sequences_other": others["n_sequences"],
        "is_paired": unpaired is None,
        "pairing": unpaired or "resample i draws the same sequences of tokens for both",
    }
    intervals = bca_intervals(estimates, drawn, left_out, confidence_level=confidence_level)
    return _Difference(first.facts, estimates, intervals, pairing)


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
    facts, others = first.shared, second.shared
    if facts["text_sha256"] != others["text_sha256"]:
        return "resampled independently: sequence i does not hold the same tokens (another tokenizer or length)"
    if facts["seed"] != others["seed"] or first.resamples.shape[1] != second.resamples.shape[1]:
        return "resampled independently: the two were drawn by another seed or another number of times"
    return None


def _with_intervals(
    facts: pl.DataFrame, estimates: Float64[np.ndarray, " figure"], intervals: list[Interval]
) -> pl.DataFrame:
    columns = pl.DataFrame(intervals, schema=_INTERVAL, orient="row")
    return facts.with_columns(pl.Series("estimate", estimates).fill_nan(None), *columns)


def _validated(
    tables: list[pl.DataFrame], schema: type[FigureInterval] | type[FigureDifference], confidence_level: float
) -> pl.DataFrame:
    columns = schema.column_names()
    table = pl.concat(tables).with_columns(confidence_level=confidence_level) if tables else schema.create_empty()
    return schema.validate(table.select(columns), cast=True)
