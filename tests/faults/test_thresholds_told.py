"""Tables and commands say by which thresholds features were judged, and if tables beside each other differ in them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from outlier_moe.cli import main
from outlier_moe.definitions.presets import Preset, definition_facts
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from outlier_moe.tables.files import write_table
from tests.recordings import made_up_activations, write_recording
from tests.unit.statistics.test_comparison import FACTS

PRESET = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    activations = made_up_activations(n_layers=3, shape=(3, 30, 40), seed=0)
    recording = write_recording(tmp_path / "one/outliers", activations)
    systematic = systematic_features(recording, [PRESET])
    write_table(systematic, tmp_path / "one/systematic.parquet", definition_facts([PRESET]))
    compared = ComparedModel({"model": "one", **FACTS}, recording, systematic.filter("is_systematic"))
    (tmp_path / "comparison").mkdir()
    models = compare_models([compared], [PRESET]).models
    write_table(models, tmp_path / "comparison/models.parquet", definition_facts([PRESET]))
    return tmp_path


@pytest.mark.parametrize("command", [["show"], ["top", "one"], ["compare", "--include-dense"]])
def test_programs_get_the_definition_in_every_row(
    results: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    expected = {
        "rule": "systematic",
        "view": "linear_inputs",
        "magnitude": 6.0,
        "layers_counted": "decoder_layers",
        "unit_counted": "feature",
        "least_layer_fraction": 0.25,
        "least_position_fraction": 0.06,
        "least_median_ratio": 1000.0,
    }
    assert main([*command, "--results", str(results), "--format", "json"]) == 0
    printed = capsys.readouterr()
    for row in json.loads(printed.out):
        assert expected.items() <= row.items()
    assert "other definitions" not in printed.err
    assert main([*command, "--results", str(results), "--format", "csv"]) == 0
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        assert (row["magnitude"], row["least_layer_fraction"], row["view"]) == ("6.0", "0.25", "linear_inputs")


@pytest.mark.parametrize("command", [["show"], ["top", "one"], ["compare", "--include-dense"]])
def test_people_get_it_in_a_line(results: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "--results", str(results)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dettmers2022: |x|")]
    assert all(word in line for word in ("6", "0.25", "0.06", "linear_inputs"))


@pytest.mark.parametrize("command", [["show"], ["top", "one"], ["compare", "--include-dense"]])
def test_tables_of_different_thresholds_are_told(
    results: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    path = results / "one/systematic.parquet"
    changed = definition_facts([replace(PRESET, magnitude=8.0, position_fraction=0.1)])
    write_table(pl.read_parquet(path), path, changed)
    assert main([*command, "--results", str(results)]) == 0
    told = capsys.readouterr().err
    assert "other definitions" in told and "magnitude" in told and "systematic.parquet" in told


def test_a_table_that_says_nothing_of_its_thresholds_is_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "comparison/models.parquet"
    pl.read_parquet(path).write_parquet(path)
    assert main(["show", "--results", str(results), "--format", "csv"]) == 0
    assert "does not say its thresholds" in capsys.readouterr().err
