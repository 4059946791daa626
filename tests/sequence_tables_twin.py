"""What each sequence contributes to a preset's figures, from a recording's own rows: the twin of `stored_tables`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import polars as pl

from outlier_moe.definitions.presets import FirstToken, Preset
from outlier_moe.definitions.taps import View
from outlier_moe.judging.filtering import Hits, hits, massive_rows, without_first
from outlier_moe.judging.rule import is_massive
from outlier_moe.judging.sequence_tables import WORD, SequenceTables, ViewShape, table_arrays, view_shape
from outlier_moe.tables.recording import Recording


def sequence_tables(recording: Recording, presets: list[Preset]) -> Iterator[SequenceTables]:
    """The tables of each preset, first with the first token and then without it.

    Presets that share a view and a magnitude share the reading; one such group is in memory at a time.

    Raises:
        StudyError: If a view was not recorded, or a threshold is not on the recording's ladder.
    """
    groups: dict[tuple[str, View, float, float], list[Preset]] = {}
    for preset in presets:
        ratio = preset.median_ratio if preset.rule == "massive" else 0.0
        groups.setdefault((preset.rule, preset.view, preset.magnitude, ratio), []).append(preset)
    for alike in groups.values():
        preset = alike[0]
        shape = view_shape(recording, preset)
        found = _massive_hits(recording, preset) if preset.rule == "massive" else hits(recording, alike)[preset.view]
        for first_token in get_args(FirstToken):
            arrays = _arrays(found, shape, first_token, by_value=preset.rule == "massive")
            for each in alike:
                yield SequenceTables.of(each, first_token, shape, arrays)


def _massive_hits(recording: Recording, preset: Preset) -> Hits:
    """Peaks that are massive by the preset; without the first token they must be so by the later peak."""
    sites = (
        massive_rows(recording, preset)
        .with_columns(
            n=pl.lit(1, pl.Int64), first=~is_massive(pl.col("later_peak"), pl.col("median_magnitude"), preset)
        )
        .select("tap", "layer", "sequence", "feature", "peak", "later_peak", "n", "first")
        .collect()
    )
    return Hits(sites, sites.select("sequence", "feature", "n", "first").clear())


def _arrays(found: Hits, shape: ViewShape, first_token: FirstToken, *, by_value: bool) -> dict[str, np.ndarray]:
    """The arrays of `SequenceTables`; `by_value` says that `n` marks a row and counts nothing."""
    n_taps = len(shape.taps)
    arrays = table_arrays(shape)
    rows = without_first(found.sites.lazy(), first_token).collect()
    sequence = np.searchsorted(shape.sequences, rows["sequence"])
    feature = rows["feature"].to_numpy()
    layer = np.searchsorted(shape.layers, rows["layer"])
    tap = rows["tap"].cast(pl.String).replace_strict(shape.taps, range(n_taps), return_dtype=pl.Int64).to_numpy()
    bit = np.uint64(1) << (layer % WORD).astype(np.uint64)
    np.bitwise_or.at(arrays["sites"], (sequence, tap, layer // WORD, feature), bit)
    largest = rows["peak" if first_token == "included" else "later_peak"].to_numpy()
    np.maximum.at(arrays["peak"], (sequence, feature), largest)
    if not by_value:
        np.add.at(arrays["n_values"], (sequence, feature), rows["n"].to_numpy())
        union = without_first(found.any_site.lazy(), first_token).collect()
        at = np.searchsorted(shape.sequences, union["sequence"]), union["feature"].to_numpy()
        arrays["n_positions"][at] = union["n"]
    return arrays
