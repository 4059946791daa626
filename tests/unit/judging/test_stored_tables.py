"""Counts by sequence against the recording that they were made of, and what they judge against the filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import Preset, systematic_features
from outlier_moe.judging.judged import judged_features
from outlier_moe.judging.sequence_counts import SequenceCounts, write_sequence_counts
from outlier_moe.judging.stored_tables import stored_tables
from tests.recordings import made_up_activations, write_recording
from tests.sequence_tables_twin import sequence_tables

MASSIVE = Preset("sun2024", "massive", "residual", 50.0, median_ratio=20.0)
PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("low", "systematic", "linear_inputs", 3.0, layer_fraction=0.1, position_fraction=0.01),
    Preset("survey2025", "systematic", "linear_inputs", 3.5, layers="sites", unit="feature_sequence"),
    Preset("scale_free", "systematic", "residual_rms", 4.0),
    Preset("impossible", "systematic", "residual", 57344.0),
    MASSIVE,
]


@pytest.mark.parametrize("seed", range(3))
def test_stored_counts_judge_as_the_recording_does(tmp_path: Path, seed: int) -> None:
    activations = made_up_activations(n_layers=3, shape=(4, 30, 40), seed=seed)
    recording = write_recording(tmp_path / "outliers", activations)
    write_sequence_counts(recording, [MASSIVE], tmp_path / "counts")
    stored = list(stored_tables(recording, SequenceCounts(tmp_path / "counts"), PRESETS))
    plain = {(table.preset.name, table.first_token): table for table in sequence_tables(recording, PRESETS)}
    assert len(stored) == len(plain) == 2 * len(PRESETS)
    for table in stored:
        twin = plain[table.preset.name, table.first_token]
        assert (table.layers, table.positions, table.d_model) == (twin.layers, twin.positions, twin.d_model)
        for name in ("sites", "n_values", "n_positions", "peak"):
            assert np.array_equal(getattr(table, name), getattr(twin, name)), (table.preset.name, name)
    judged = judged_features(stored)
    filtered = systematic_features(recording, PRESETS).filter("is_systematic").select(judged.columns)
    assert len(judged) > 20
    assert judged.equals(filtered)


def test_counts_that_were_not_made_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="snakemake"):
        SequenceCounts(tmp_path / "counts").steps("", ["residual"])


@pytest.mark.parametrize("name", ("counts", "steps", "peaks", "massive"))
def test_a_cut_table_is_named(tmp_path: Path, name: str) -> None:
    activations = made_up_activations(n_layers=1, shape=(2, 8, 8), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    write_sequence_counts(recording, [MASSIVE], tmp_path / "counts")
    path = tmp_path / "counts" / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(StudyError, match=f"{name}.parquet"):
        list(stored_tables(recording, SequenceCounts(tmp_path / "counts"), PRESETS))
