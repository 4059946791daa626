"""The models of a study side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe import schemas
from outlier_moe.errors import StudyError
from outlier_moe.filtering import Preset, fraction
from outlier_moe.recording_files import Recording, read_recording


@dataclass(frozen=True)
class ComparedModel:
    """One model with its tables."""

    facts: Mapping[str, Any]
    """What the registry knows of it: `model`, `kind`, `family`, parameters, experts."""
    outliers: Path
    """Its recording."""
    systematic: Path
    """Its systematic features."""


def compare_models(models: list[ComparedModel], presets: list[Preset]) -> pl.DataFrame:
    """One row per (model, preset, first token in or out), in the order given.

    Args:
        models: The models and their tables.
        presets: The presets they were judged by.

    Returns:
        The table `schemas.ModelComparison`.

    Raises:
        StudyError: If a table cannot be read, or models were recorded on different texts.
    """
    recordings = [read_recording(model.outliers) for model in models]
    _refuse_mixed_texts(recordings)
    tables = [_rows(model, recording, presets) for model, recording in zip(models, recordings, strict=True)]
    table = pl.concat([schemas.ModelComparison.create_empty(), *tables], how="diagonal_relaxed")
    return schemas.ModelComparison.validate(table.select(schemas.ModelComparison.column_names()), cast=True)


def _refuse_mixed_texts(recordings: list[Recording]) -> None:
    texts = {rec.directory.parent.name: rec.run["tokens"]["corpus_sha256"] for rec in recordings}
    if len(set(texts.values())) > 1:
        raise StudyError(
            "Models that were recorded on different texts cannot be compared.",
            key="corpus",
            expected="one text for all",
            got=", ".join(f"{model}: sha256 {text[:12]}" for model, text in texts.items()),
            remedy="Record all on one (--config corpus=ID), or compare fewer (--config 'models=[...]').",
        )


def perplexity(recording: Recording) -> float | None:
    """The exponential of the mean next-token loss over all sequences; None if a loss is missing."""
    losses = recording.sequences()["loss_nats"]
    if losses.is_empty() or losses.has_nulls():
        return None
    return math.exp(float(losses.mean()))  # type: ignore[arg-type]


def _rows(model: ComparedModel, recording: Recording, presets: list[Preset]) -> pl.DataFrame:
    run = recording.run
    fractions = ["layer_fraction", "position_fraction", "position_fraction_per_site"]
    figures = (
        pl.scan_parquet(model.systematic)
        .filter("is_systematic")
        .group_by("preset", "first_token")
        .agg(
            *[pl.col(name).mean().name.suffix("_mean") for name in fractions],
            *[pl.col(name).median().name.suffix("_median") for name in fractions],
            n_systematic=pl.col("feature").n_unique(),
            n_pairs=pl.len(),
            peak_median=pl.col("peak").median(),
            peak_largest=pl.col("peak").max(),
            n_values=pl.when(pl.col("n_values").is_not_null().any()).then(pl.col("n_values").sum()),
        )
    )
    # A preset that finds nothing has a row as well.
    grid = pl.LazyFrame(
        [
            {"preset": preset.name, "first_token": first_token, "counts_pairs": preset.unit == "feature_sequence"}
            for preset in presets
            for first_token in schemas.first_token_enum.categories
        ],
        schema_overrides={"first_token": schemas.first_token_enum},
    )
    rows = (
        grid.join(figures, on=["preset", "first_token"], how="left", maintain_order="left")
        .with_columns(
            pl.col("n_systematic").fill_null(0),
            n_pairs=pl.when("counts_pairs").then(pl.col("n_pairs").fill_null(0)),
        )
        .with_columns(
            **{key: pl.lit(value) for key, value in model.facts.items()},
            **{key: pl.lit(run[key]) for key in ("d_model", "n_layers", "n_sequences", "floor")},
            perplexity=pl.lit(perplexity(recording), pl.Float64),
            n_tokens=pl.lit(run["n_sequences"] * run["sequence_length"]),
            corpus_sha256=pl.lit(run["tokens"]["corpus_sha256"]),
            n_nonfinite=pl.lit(recording.sites()["n_nonfinite"].sum()),
        )
        .collect()
    )
    return rows.with_columns(fraction(rows["n_systematic"], run["d_model"]).alias("d_model_share"))
