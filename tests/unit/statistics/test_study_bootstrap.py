"""The intervals of a study, and the resamples that are kept from one threshold to the next."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from outlier_moe.definitions.presets import Preset
from outlier_moe.judging.sequence_counts import write_sequence_counts
from outlier_moe.statistics.bootstrap import BootstrapOptions
from outlier_moe.statistics.study_bootstrap import StudyBootstrap, StudyFiles, bootstrap_study
from tests.recordings import made_up_activations, write_recording

MASSIVE = Preset("sun2024", "massive", "residual", 50.0, median_ratio=20.0)
PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence"),
    Preset("residual", "systematic", "residual", 6.0),
    MASSIVE,
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyFiles]:
    folder, files = tmp_path_factory.mktemp("models"), {}
    for seed, name in enumerate(("one", "two")):
        activations = made_up_activations(n_layers=2, shape=(4, 12, 16), seed=seed)
        files[name] = StudyFiles(folder / name / "outliers", folder / name / "counts")
        recording = write_recording(files[name].outliers, activations)
        write_sequence_counts(recording, [MASSIVE], files[name].counts)
    return files


def bootstrapped(
    models: dict[str, StudyFiles], presets: list[Preset], kept: Path, *, n_resamples: int = 40
) -> StudyBootstrap:
    return bootstrap_study(
        models,
        presets,
        closely=["dettmers2022"],
        options=BootstrapOptions(n_resamples=n_resamples),
        confidence_level=0.95,
        kept=kept,
    )


def at(magnitude: float) -> list[Preset]:
    return [preset if preset.rule == "massive" else replace(preset, magnitude=magnitude) for preset in PRESETS]


def assert_same(found: StudyBootstrap, expected: StudyBootstrap) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_frame_equal(one, other, check_exact=True)


def test_kept_resamples_change_nothing(
    models: dict[str, StudyFiles], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = bootstrapped(models, at(6.0), tmp_path / "kept")
    with caplog.at_level(logging.INFO):
        moved = bootstrapped(models, at(5.0), tmp_path / "kept")
    # Massive activations have a magnitude of their own.
    assert caplog.text.count("by 3 of 4 presets") == 2
    assert not moved.intervals.equals(first.intervals)
    assert_same(moved, bootstrapped(models, at(5.0), tmp_path / "other"))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert_same(bootstrapped(models, at(5.0), tmp_path / "kept"), moved)
    assert caplog.text.count("by 0 of 4 presets") == 2


def test_other_options_or_counts_are_resampled_again(models: dict[str, StudyFiles], tmp_path: Path) -> None:
    bootstrapped(models, at(6.0), tmp_path / "kept")
    more = bootstrapped(models, at(6.0), tmp_path / "kept", n_resamples=50)
    assert more.resamples["resamples"].list.len().unique().to_list() == [50]
    other = {"one": models["two"], "two": models["one"]}
    assert_same(bootstrapped(other, at(6.0), tmp_path / "kept"), bootstrapped(other, at(6.0), tmp_path / "fresh"))


def test_a_cut_file_of_kept_resamples_is_made_again(models: dict[str, StudyFiles], tmp_path: Path) -> None:
    whole = bootstrapped(models, at(6.0), tmp_path / "kept")
    path = tmp_path / "kept" / "one.parquet"
    path.write_bytes(path.read_bytes()[:-80])
    assert_same(bootstrapped(models, at(6.0), tmp_path / "kept"), whole)
    assert pl.read_parquet(path)["model"].unique().to_list() == ["one"]


def test_a_recording_that_lacks_a_threshold_is_left_out(
    models: dict[str, StudyFiles], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = bootstrapped(models, [*at(6.0), Preset("low", "systematic", "residual", 2.0)], tmp_path)
    assert [len(table) for table in found] == [0, 0, 0, 0]
    assert caplog.text.count("is not resampled: recorded from |x| >= 3 on") == 2


def test_models_on_other_text_have_no_difference(models: dict[str, StudyFiles], tmp_path: Path) -> None:
    """Texts of another number or length of sequences affect more or fewer layers, whatever the models."""
    longer = StudyFiles(tmp_path / "outliers", tmp_path / "counts")
    activations = made_up_activations(n_layers=2, shape=(5, 12, 16), seed=2)
    write_sequence_counts(write_recording(longer.outliers, activations), [MASSIVE], longer.counts)
    found = bootstrapped({**models, "longer": longer}, at(6.0), tmp_path / "kept")
    assert set(found.intervals["model"]) == {"one", "two", "longer"}
    assert found.differences.select("model", "other").unique().rows() == [("one", "two")]


def test_rows_are_those_of_the_presets_in_their_order(models: dict[str, StudyFiles], tmp_path: Path) -> None:
    found = bootstrapped(models, at(6.0), tmp_path)
    of_one = found.intervals.filter(model="one")
    assert of_one["preset"].unique(maintain_order=True).to_list() == [preset.name for preset in PRESETS]
    assert set(found.resamples["preset"]) == {"dettmers2022"}
    assert set(found.differences["model"]) == {"one"}
