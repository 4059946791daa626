"""Every preset against a plain reading of its definition on the activations themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlier_moe.definitions.taps import VIEWS
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import FirstToken, Preset, fraction, systematic_features
from tests.recordings import Activations, made_up_activations, write_recording

DETTMERS = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)
SURVEY = Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence")
RESIDUAL = Preset("residual", "systematic", "residual", 6.0)
SCALE_FREE = Preset("scale_free", "systematic", "residual_rms", 3.0)
SITES_POOLED = Preset("sites_pooled", "systematic", "linear_inputs", 6.0, layers="sites")
LAYERS_ALONE = Preset("layers_alone", "systematic", "linear_inputs", 4.5, unit="feature_sequence")
SUN = Preset("sun2024", "massive", "residual", 100.0, median_ratio=50.0)
PRESETS = [DETTMERS, SURVEY, RESIDUAL, SCALE_FREE, SITES_POOLED, LAYERS_ALONE, SUN]


def magnitudes(activations: Activations, preset: Preset) -> dict[tuple[str, int], np.ndarray]:
    """|x| at each site of the preset's view."""
    found = {}
    for (tap, layer), x in activations.items():
        if tap in VIEWS[preset.view]:
            found[tap, layer] = np.abs(x)
        if tap == "residual" and preset.view == "residual_rms":
            rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)).astype(np.float32)
            found["residual_rms", layer] = np.abs(x / rms)
    return found


def plain_systematic(activations: Activations, preset: Preset, first_token: FirstToken) -> dict[object, tuple]:
    """(feature, sequence or None) -> (layer fraction, position fraction, per site, values, peak, is systematic)."""
    sites = magnitudes(activations, preset)
    if first_token == "excluded":
        sites = {site: x[:, 1:] for site, x in sites.items()}
    n_sequences, _, n_features = next(iter(sites.values())).shape
    alone = preset.unit == "feature_sequence"
    rows: dict[object, tuple] = {}
    for group in [[s] for s in range(n_sequences)] if alone else [list(range(n_sequences))]:
        for feature in range(n_features):
            reached = {site: x[group, :, feature] >= preset.magnitude for site, x in sites.items()}
            affected = [site for site in sites if reached[site].any()]
            if not affected:
                continue
            if preset.layers == "sites":
                layer_fraction = len(affected) / len(sites)
            else:
                layer_fraction = len({layer for _, layer in affected}) / len({layer for _, layer in sites})
            union = np.any([reached[site] for site in sites], axis=0)
            rows[feature, group[0] if alone else None] = (
                layer_fraction,
                union.mean(),
                np.mean([reached[site].mean() for site in affected]),
                sum(int(reached[site].sum()) for site in sites),
                max(x[group, :, feature].max() for x in sites.values()),
                layer_fraction >= preset.layer_fraction and union.mean() >= preset.position_fraction,
            )
    return rows


def plain_massive(activations: Activations, preset: Preset, first_token: FirstToken) -> dict[object, tuple]:
    """feature -> (layer fraction, peak) by Sun et al. 2024."""
    sites = magnitudes(activations, preset)
    rows: dict[object, tuple] = {}
    for feature in range(next(iter(sites.values())).shape[-1]):
        layers, peaks = set(), []
        for (_, layer), x in sites.items():
            for sequence in x:
                median = np.sort(sequence, axis=None)[(sequence.size - 1) // 2]
                seen = sequence[1:, feature] if first_token == "excluded" else sequence[:, feature]
                if seen.max() > preset.magnitude and seen.max() >= preset.median_ratio * median:
                    layers.add(layer)
                    peaks.append(seen.max())
        if layers:
            rows[feature] = (len(layers) / len(sites), max(peaks))
    return rows


def check_against_plain(table: pl.DataFrame, activations: Activations, preset: Preset, first_token: FirstToken) -> None:
    rows = table.filter(preset=preset.name, first_token=first_token)
    if preset.rule == "massive":
        found: dict[object, tuple] = {
            r["feature"]: (r["layer_fraction"], r["peak"]) for r in rows.iter_rows(named=True)
        }
        expected = plain_massive(activations, preset, first_token)
    else:
        found = _found(rows)
        expected = plain_systematic(activations, preset, first_token)
    assert found.keys() == expected.keys()
    for key, figures in expected.items():
        assert found[key] == pytest.approx(figures), key


def _found(rows: pl.DataFrame) -> dict[object, tuple]:
    return {
        (r["feature"], r["sequence"]): (
            *(r[name] for name in ("layer_fraction", "position_fraction", "position_fraction_per_site", "n_values")),
            r["peak"],
            r["is_systematic"],
        )
        for r in rows.iter_rows(named=True)
    }


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_all_presets_equal_their_plain_definitions(tmp_path: Path, chunk: int) -> None:
    activations = made_up_activations(n_layers=4, shape=(3, 50, 70), seed=0)
    table = systematic_features(write_recording(tmp_path / "outliers", activations, chunk=chunk), PRESETS)
    for preset in PRESETS:
        for first_token in ("included", "excluded"):
            check_against_plain(table, activations, preset, first_token)
    counted = table.filter("is_systematic").group_by("preset").len()
    assert set(counted["preset"]) == {preset.name for preset in PRESETS}, "a preset that finds nothing tests nothing"


@given(
    seed=st.integers(0, 2**16),
    n_layers=st.integers(1, 4),
    n_sequences=st.integers(1, 3),
    n_positions=st.integers(2, 20),
    edge=st.sampled_from([3.0, 3.25, 6.0, 11.0, 104.0]),
    layer_fraction=st.sampled_from([0.01, 0.25, 0.5, 1.0]),
    position_fraction=st.sampled_from([0.001, 0.06, 0.5]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_thresholds_equal_the_plain_definitions(
    tmp_path: Path,
    seed: int,
    n_layers: int,
    n_sequences: int,
    n_positions: int,
    edge: float,
    layer_fraction: float,
    position_fraction: float,
) -> None:
    activations = made_up_activations(n_layers=n_layers, shape=(n_sequences, n_positions, 9), seed=seed)
    chosen = [
        replace(preset, magnitude=edge, layer_fraction=layer_fraction, position_fraction=position_fraction)
        for preset in PRESETS
    ]
    table = systematic_features(write_recording(tmp_path / "outliers", activations), chosen)
    for preset in chosen:
        for first_token in ("included", "excluded"):
            check_against_plain(table, activations, preset, first_token)


def test_the_peak_says_where_it_is(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=3, shape=(2, 20, 16), seed=1)
    table = systematic_features(write_recording(tmp_path / "outliers", activations), [RESIDUAL])
    for row in table.iter_rows(named=True):
        x = activations[row["peak_tap"], row["peak_layer"]]
        assert abs(x[row["peak_sequence"], row["peak_position"], row["feature"]]) == np.float32(row["peak"])


@pytest.mark.parametrize("n_layers", range(1, 40))
def test_a_fraction_that_equals_the_threshold_reaches_it(n_layers: int) -> None:
    affected = pl.Series(range(n_layers + 1))
    for k in range(n_layers + 1):
        assert (fraction(affected, n_layers) >= k / n_layers).to_list() == [n >= k for n in range(n_layers + 1)]


def test_a_threshold_off_the_ladder_is_refused(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=1, shape=(1, 8, 8), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    with pytest.raises(StudyError, match="nearest edges are 6.5 and 7"):
        systematic_features(recording, [replace(DETTMERS, magnitude=6.7)])
    with pytest.raises(StudyError, match="an edge from 3 .the floor recorded"):
        systematic_features(recording, [replace(DETTMERS, magnitude=2.5)])


def test_a_view_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=1, shape=(1, 8, 8), seed=0, taps=("residual",))
    with pytest.raises(StudyError, match="attn_in and mlp_in"):
        systematic_features(write_recording(tmp_path / "outliers", activations), [DETTMERS])


def test_a_truncated_table_is_named(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(1, 8, 8), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    table = recording.directory / "layer_01.arrow"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(StudyError, match="layer_01.arrow"):
        systematic_features(recording, [DETTMERS])


@pytest.mark.parametrize("name", ["layer_01.arrow", "any_layer.arrow"])
def test_damage_inside_a_table_is_told(tmp_path: Path, name: str) -> None:
    recording = write_recording(tmp_path / "outliers", made_up_activations(n_layers=2, shape=(2, 64, 64), seed=0))
    table = recording.directory / name
    whole = table.read_bytes()
    # Its beginning and its end are what opening it looks at.
    middle = len(whole) // 2
    table.write_bytes(whole[: middle - 400] + bytes(800) + whole[middle + 400 :])
    with pytest.raises(StudyError, match="damaged"):
        systematic_features(recording, [DETTMERS])


def test_all_zero_states_give_an_empty_table(tmp_path: Path) -> None:
    noise = made_up_activations(n_layers=1, shape=(2, 8, 8), seed=0)
    activations = {site: np.zeros_like(x) for site, x in noise.items()}
    recording = write_recording(tmp_path / "outliers", activations)
    assert systematic_features(recording, PRESETS).is_empty()
    assert recording.sites()["excess_kurtosis"].null_count() == len(recording.sites())
