"""The checkpoints of a run through the same stages as any other model: tokens, recording, filter, figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.config.registry import CheckpointSource, ModelEntry
from outlier_moe.judging.filtering import Preset, systematic_features
from outlier_moe.tables.recording import Recording, read_recording

RECORDED = "outliers"


def record_checkpoints(
    run: Path, text: Path, output: Path, options: Any, *, n_sequences: int, sequence_length: int
) -> None:
    """Fetch, tokenise and record every checkpoint of a run, on text that was never trained on.

    Args:
        run: The run's folder.
        text: The folder that `tokenize_training_text` wrote.
        output: The folder to write, with one for each checkpoint; it appears when it is whole.
        options: The `RecordOptions`.
        n_sequences: Sequences to record.
        sequence_length: Tokens of one.
    """
    # torch, which the filter does without.
    from outlier_moe.machine.model_bars import model_bars_hidden
    from outlier_moe.recording.record import record_outliers
    from outlier_moe.sources.models import fetch_model
    from outlier_moe.sources.tokenization import tokenize_corpus
    from outlier_moe.tables.whole_outputs import whole_directory
    from outlier_moe.training.text_stream import HELD_OUT_CORPUS
    from outlier_moe.upcycling.phases import checkpoint_steps

    with whole_directory(output) as partial, model_bars_hidden():
        for _, checkpoint in checkpoint_steps(run):
            folder = partial / checkpoint.name
            fetch_model(_entry(checkpoint), folder / "model")
            tokenize_corpus(
                text / HELD_OUT_CORPUS,
                folder / "model",
                folder / "tokens.arrow",
                n_sequences=n_sequences,
                sequence_length=sequence_length,
                bos="never",
            )
            record_outliers(folder / "model", folder / "tokens.arrow", folder / RECORDED, options)


def _entry(checkpoint: Path) -> ModelEntry:
    """A checkpoint as the registry would have it; what only the comparison of models reads is left empty."""
    return ModelEntry(
        id=checkpoint.name,
        source=CheckpointSource(checkpoint),
    )


def filter_checkpoints(recordings: Path, presets: Sequence[Preset]) -> pl.DataFrame:
    """The outlier figures of every checkpoint: one row per (step, tap), and one per (step, preset).

    The first kind has `peak` (the largest |x|), `kurtosis_of_feature_rms` and `excess_kurtosis` (of each layer the
    median over the sequences, and of these the mean); the second `n_systematic`, over all positions and without each
    sequence's first.

    Args:
        recordings: What `record_checkpoints` wrote.
        presets: The definitions of an outlier feature.
    """
    tables = []
    for folder in sorted(recordings.glob("step_*")):
        recording = read_recording(folder / RECORDED)
        step = int(folder.name.removeprefix("step_"))
        found = pl.concat([_sites(recording), _systematic(recording, presets)], how="diagonal")
        tables.append(found.select(pl.lit(step).alias("step"), pl.all()))
    return pl.concat(tables, how="diagonal")


def _sites(recording: Recording) -> pl.DataFrame:
    medians = pl.col("kurtosis_of_feature_rms", "excess_kurtosis").median()
    return (
        recording.sites()
        .with_columns(pl.col("tap").cast(pl.String))
        .group_by("tap", "layer")
        .agg(pl.col("top_magnitude").max().cast(pl.Float64).alias("peak"), medians)
        .group_by("tap")
        .agg(pl.col("peak").max(), pl.col("kurtosis_of_feature_rms", "excess_kurtosis").mean())
        .sort("tap")
    )


def _systematic(recording: Recording, presets: Sequence[Preset]) -> pl.DataFrame:
    table = systematic_features(recording, list(presets))
    counted = (
        table.filter("is_systematic")
        .group_by(pl.col("preset", "first_token").cast(pl.String))
        .agg(n_systematic=pl.len().cast(pl.Int64))
    )
    every = pl.DataFrame(
        [
            {"preset": preset.name, "first_token": first_token}
            for preset in presets
            for first_token in ("included", "excluded")
        ]
    )
    return every.join(counted, on=["preset", "first_token"], how="left").with_columns(
        pl.col("n_systematic").fill_null(0)
    )
