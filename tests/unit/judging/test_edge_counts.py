"""Figures from the stored counts against the filter's own, from the floor to beyond the last edge kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Int64

from outlier_moe.errors import StudyError
from outlier_moe.judging.edge_counts import count_at_edges, figures_at, read_edge_counts, shape_of, write_edge_counts
from outlier_moe.judging.edge_counts.coding import packed, staircases, unpacked
from outlier_moe.judging.filtering import FirstToken, Preset, systematic_features
from outlier_moe.tables.recording import Recording
from tests.recordings import made_up_activations, write_recording

PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence"),
    Preset("residual", "systematic", "residual", 6.0),
    Preset("scale_free", "systematic", "residual_rms", 6.0),
    Preset("sites_pooled", "systematic", "linear_inputs", 6.0, layers="sites"),
    Preset("layers_alone", "systematic", "linear_inputs", 6.0, unit="feature_sequence"),
]
FRACTIONS = [(0.05, 0.01), (0.25, 0.06), (0.75, 0.06), (0.5, 0.5)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    activations = made_up_activations(n_layers=4, shape=(3, 120, 60), seed=3)
    return write_recording(tmp_path_factory.mktemp("model") / "outliers", activations)


def filtered(systematic: pl.DataFrame, preset: Preset, first_token: FirstToken) -> dict[str, object]:
    """The comparison's figures, from the filter's table."""
    rows = systematic.filter("is_systematic", preset=preset.name, first_token=first_token)
    pairs = preset.unit == "feature_sequence"
    return {
        "n_systematic": rows["feature"].n_unique(),
        "n_pairs": len(rows) if pairs else None,
        "layer_fraction_mean": rows["layer_fraction"].mean(),
        "layer_fraction_median": rows["layer_fraction"].median(),
        "position_fraction_mean": rows["position_fraction"].mean(),
        "position_fraction_median": rows["position_fraction"].median(),
        "peak_median": None if pairs else rows["peak"].median(),
        "peak_largest": None if pairs else rows["peak"].max(),
    }


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_figures_equal_the_filter_across_the_ladder(recording: Recording, preset: Preset, tmp_path: Path) -> None:
    path = tmp_path / "edge_counts.json"
    shape = shape_of(preset)
    assert shape is not None
    write_edge_counts(recording, [shape], path, least_layers=0.05, least_positions=0.01)
    counts = read_edge_counts(path)[shape]
    assert counts.n_edges > 8
    for edge in {0, 1, 7, 8, counts.n_edges // 2, counts.n_edges - 1, counts.n_edges, counts.n_edges + 1}:
        presets = [
            replace(
                preset,
                name=f"{layers} {positions}",
                magnitude=float(recording.ladder.edges[edge]),
                layer_fraction=layers,
                position_fraction=positions,
            )
            for layers, positions in FRACTIONS
        ]
        systematic = systematic_features(recording, presets)
        for chosen in presets:
            for first_token in ("included", "excluded"):
                figures = figures_at(
                    counts,
                    edge,
                    layer_fraction=chosen.layer_fraction,
                    position_fraction=chosen.position_fraction,
                    first_token=first_token,
                )
                assert figures._asdict() == pytest.approx(filtered(systematic, chosen, first_token)), (edge, chosen)


def test_pooled_features_are_named_with_their_peaks(recording: Recording, tmp_path: Path) -> None:
    preset = PRESETS[0]
    shape = shape_of(preset)
    assert shape is not None
    write_edge_counts(recording, [shape], tmp_path / "counts.json", least_layers=0.05, least_positions=0.01)
    counts = read_edge_counts(tmp_path / "counts.json")[shape]
    edge = recording.ladder.index(preset.magnitude)
    expected = {
        row["feature"]: (row["layer_fraction"], row["position_fraction"], row["peak"])
        for row in systematic_features(recording, [preset])
        .filter("is_systematic", first_token="excluded")
        .iter_rows(named=True)
    }
    layers, positions = (values[1] for values in counts.at(edge))
    found = {
        int(feature): (n_layers / counts.whole_layers, n_positions / counts.whole_positions[1], peak)
        for feature, n_layers, n_positions, peak in zip(counts.feature, layers, positions, counts.peak[1], strict=False)
        if n_layers / counts.whole_layers >= 0.25 and n_positions / counts.whole_positions[1] >= 0.06
    }
    assert found == expected


def test_nothing_above_the_floor_gives_no_edges(tmp_path: Path) -> None:
    noise = made_up_activations(n_layers=2, shape=(2, 9, 8), seed=0)
    silent = write_recording(tmp_path / "outliers", {site: np.zeros_like(x) for site, x in noise.items()})
    for preset in PRESETS:
        shape = shape_of(preset)
        assert shape is not None
        write_edge_counts(silent, [shape], tmp_path / "counts.json", least_layers=0.05, least_positions=0.01)
        counts = read_edge_counts(tmp_path / "counts.json")[shape]
        for edge in (0, 5):
            figures = figures_at(counts, edge, layer_fraction=0.25, position_fraction=0.06, first_token="included")
            assert figures.n_systematic == 0
            assert figures.layer_fraction_mean is None


@given(
    points=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30),
    least=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
@settings(deadline=None)
def test_signs_of_the_staircases_sum_to_distinct_features(
    points: list[tuple[int, int, int]], least: tuple[int, int]
) -> None:
    feature, layers, positions = (np.array(column, np.int64) for column in zip(*points, strict=True))
    found = staircases(feature, layers, positions)
    beyond = (found.n_layers >= least[0]) & (found.n_positions >= least[1])
    distinct = {f for f, n_layers, n_positions in points if n_layers >= least[0] and n_positions >= least[1]}
    assert found.sign[beyond].sum() == len(distinct)


@given(
    streams=st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.lists(st.integers(0, 2**40), max_size=20).map(lambda values: np.array(values, np.int64)),
        min_size=1,
    )
)
@settings(deadline=None)
def test_packed_streams_are_read_back(streams: dict[str, Int64[np.ndarray, " _length"]]) -> None:
    found = unpacked(json.loads(json.dumps(packed(streams))))
    assert found.keys() == streams.keys()
    for name, values in streams.items():
        assert found[name].tolist() == values.tolist()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "edge_counts.json"
    path.write_text('{"format": 99}')
    with pytest.raises(StudyError, match="another format"):
        read_edge_counts(path)
    path.write_text('{"format"')
    with pytest.raises(StudyError, match="cannot be read"):
        read_edge_counts(path)


def test_what_is_kept_reaches_the_least_fractions(recording: Recording) -> None:
    shape = shape_of(PRESETS[0])
    assert shape is not None
    counts = count_at_edges(recording, shape, least_layers=0.5, least_positions=0.25)
    assert (counts.n_kept > 0).all()
    assert len(counts.feature) < 60
