"""The main job on the real SmolLM2-135M, short: what is known of its outlier features shows."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from outlier_moe.statistics.comparison import perplexity
from outlier_moe.tables.recording import Recording, read_recording
from tests.workflow.study_folder import ROOT, StudyFolder

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    path = tmp_path_factory.mktemp("smollm2")
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, path / name)
    shutil.copy(ROOT / "Snakefile", path)
    config = yaml.safe_load((path / "config/config.yaml").read_text())
    config["tokenize_corpus"] |= {"n_sequences": 2, "sequence_length": 256}
    config["experiments"] = []
    (path / "config/config.yaml").write_text(yaml.safe_dump(config))
    folder = StudyFolder(path)
    folder.snakemake("results/smollm2/systematic.parquet")
    return folder


@pytest.fixture(scope="module")
def recording(study: StudyFolder) -> Recording:
    return read_recording(study.path / "results/smollm2/outliers")


def systematic(path: Path, preset: str, first_token: str = "included") -> set[int]:
    table = pl.read_parquet(path / "results/smollm2/systematic.parquet")
    return set(table.filter(preset=preset, first_token=first_token, is_systematic=True)["feature"])


def test_the_residual_stream_is_degenerate_at_a_raw_magnitude_of_6(study: StudyFolder) -> None:
    assert len(systematic(study.path, "residual")) > 0.95 * 576


def test_feature_507_tops_the_residual_stream_at_the_first_token(recording: Recording) -> None:
    top = recording.peaks().filter(tap="residual").sort(pl.col("value").abs(), descending=True).row(0, named=True)
    assert (top["feature"], top["position"]) == (507, 0)
    assert abs(top["value"]) > 20_000
    later = recording.layer_outliers().filter(pl.col("tap") == "residual").select(pl.col("later_peak").max()).collect()
    assert later.item() < 2_000, "only a first token is that large"


def test_feature_247_is_the_systematic_one_of_the_attention_input(study: StudyFolder) -> None:
    assert systematic(study.path, "dettmers2022") == {247}
    assert systematic(study.path, "dettmers2022", "excluded") == {247}


def test_scale_free_features_are_few(study: StudyFolder) -> None:
    found = systematic(study.path, "scale_free")
    # Of the eight at full length, those far from every threshold.
    assert {247, 308, 507} <= found
    assert len(found) < 20


def test_the_model_predicts_the_text(recording: Recording) -> None:
    found = perplexity(recording)
    assert found is not None
    assert 3 < found < 40, "random weights give 49152"
    assert math.isfinite(found)


def test_the_tables_are_small_beside_the_activations(recording: Recording) -> None:
    n_values = 2 * 256 * 576 * 30 * 4
    assert sum(path.stat().st_size for path in recording.directory.iterdir()) < 0.05 * 4 * n_values
