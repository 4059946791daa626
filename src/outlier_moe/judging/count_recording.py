"""Counting a recording once, at every threshold, and the largest activations layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from outlier_moe.judging.edge_counts import CountShape, write_edge_counts
from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.sequence_counts import write_sequence_counts
from outlier_moe.tables.files import write_table
from outlier_moe.tables.recording import explain_damage, read_recording


class CountFiles(NamedTuple):
    """Where the counts of a recording go."""

    edge_counts: Path
    """What the report's sliders work on."""
    sequence_counts: Path
    """The folder of what each sequence counts."""
    layer_peaks: Path
    """The table of `peaks_by_layer`."""


def count_recording(
    outliers: Path,
    files: CountFiles,
    *,
    shapes: list[CountShape],
    massive: list[Preset],
    least_layers: float,
    least_positions: float,
) -> None:
    """Count a recording at every edge of its ladder, as a whole and by sequence.

    Args:
        outliers: The recording.
        files: Where to.
        shapes: What is counted as a whole.
        massive: The presets that judge by peaks alone.
        least_layers: The least layer fraction that will be asked of the counts as a whole.
        least_positions: The least position fraction.
    """
    recording = read_recording(outliers)
    least = {"least_layers": least_layers, "least_positions": least_positions}
    with explain_damage(recording):
        write_edge_counts(recording, shapes, files.edge_counts, **least)
        write_sequence_counts(recording, massive, files.sequence_counts)
        write_table(peaks_by_layer(recording.layer_outliers()), files.layer_peaks, recording.ladder.facts)


def peaks_by_layer(rows: pl.LazyFrame) -> pl.DataFrame:
    """The largest |x| of each feature at each tap and layer, over the sequences.

    Args:
        rows: Rows of `schemas.LayerOutlier`.

    Returns:
        Columns `tap`, `layer`, `feature`, `peak`.
    """
    return rows.group_by("tap", "layer", "feature").agg(pl.col("peak").max()).sort("tap", "layer", "feature").collect()
