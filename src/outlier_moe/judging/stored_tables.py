"""The tables of a preset, each sequence by itself, from a model's stored counts: no threshold reads its recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import polars as pl

from outlier_moe.definitions.taps import View
from outlier_moe.judging.filtering import FirstToken, Preset
from outlier_moe.judging.rule import is_massive
from outlier_moe.judging.sequence_counts import SequenceCounts, Side
from outlier_moe.judging.sequence_tables import WORD, SequenceTables, ViewShape, table_arrays, view_shape
from outlier_moe.tables.recording import Recording

_SIDES: dict[FirstToken, Side] = {"included": "", "excluded": "later_"}


def stored_tables(recording: Recording, counts: SequenceCounts, presets: list[Preset]) -> Iterator[SequenceTables]:
    """The tables of each preset, first with the first token and then without it; equal to `sequence_tables`.

    Args:
        recording: The recording; of its tables only those of sites are read.
        counts: Its counts by sequence.
        presets: The definitions.

    Raises:
        StudyError: If a view was not recorded, or a threshold is not on the recording's ladder.
    """
    shapes: dict[View, ViewShape] = {}
    for alike in _sharing(presets):
        preset = alike[0]
        if preset.view not in shapes:
            shapes[preset.view] = view_shape(recording, preset)
        shape = shapes[preset.view]
        for first_token in get_args(FirstToken):
            if preset.rule == "massive":
                arrays = _massive(counts, shape, preset, _SIDES[first_token])
            else:
                arrays = _counted(recording, counts, shape, preset, _SIDES[first_token])
            for one in alike:
                yield SequenceTables.of(one, first_token, shape, arrays)


def _sharing(presets: list[Preset]) -> list[list[Preset]]:
    """Presets that are judged by the same counts."""
    groups: dict[tuple[str, View, float, float], list[Preset]] = {}
    for preset in presets:
        ratio = preset.median_ratio if preset.rule == "massive" else 0.0
        groups.setdefault((preset.rule, preset.view, preset.magnitude, ratio), []).append(preset)
    return list(groups.values())


def _counted(
    recording: Recording, counts: SequenceCounts, shape: ViewShape, preset: Preset, side: Side
) -> dict[str, np.ndarray]:
    edge = recording.ladder.index(
        preset.magnitude, key=f"magnitude of the preset {preset.name}", file=str(recording.directory / "run.json")
    )
    arrays = table_arrays(shape)
    counted = counts.counts(preset.view, edge)
    at = np.searchsorted(shape.sequences, counted.sequence), counted.feature
    arrays["n_positions"][at] = counted.n_positions[side]
    arrays["n_values"][at] = counted.n_values[side]
    peaks = counts.peaks(preset.view)
    # In its own precision, in which the threshold is exact.
    reaches = peaks.peak[side] >= np.float32(preset.magnitude)
    at = np.searchsorted(shape.sequences, peaks.sequence[reaches]), peaks.feature[reaches]
    arrays["peak"][at] = peaks.peak[side][reaches]
    for (tap, layer), step in counts.steps(side, shape.taps).items():
        place = shape.layers.index(layer)
        words = arrays["sites"][:, shape.taps.index(tap), place // WORD]
        words |= (step[shape.sequences] > edge).astype(np.uint64) << np.uint64(place % WORD)
    return arrays


def _massive(counts: SequenceCounts, shape: ViewShape, preset: Preset, side: Side) -> dict[str, np.ndarray]:
    rows = counts.massive().filter(
        pl.col("tap").is_in(shape.taps), is_massive(pl.col(f"{side}peak"), pl.col("median_magnitude"), preset)
    )
    arrays = table_arrays(shape)
    sequence = np.searchsorted(shape.sequences, rows["sequence"].to_numpy())
    feature = rows["feature"].to_numpy()
    place = np.searchsorted(shape.layers, rows["layer"].to_numpy())
    tap = np.array([shape.taps.index(name) for name in rows["tap"].cast(pl.String).to_list()], np.int64)
    bit = np.uint64(1) << (place % WORD).astype(np.uint64)
    np.bitwise_or.at(arrays["sites"], (sequence, tap, place // WORD, feature), bit)
    np.maximum.at(arrays["peak"], (sequence, feature), rows[f"{side}peak"].to_numpy())
    return arrays
