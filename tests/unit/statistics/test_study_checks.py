"""Each model of a study against what others published, whether or not the comparison speaks of it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from outlier_moe.statistics.study_checks import CheckedModel, checks_of_study
from outlier_moe.tables.schemas import JudgedFeature
from tests.unit.statistics.test_verification import SURVEYED, recording_of, survey_rows

MODEL = "olmoe-1b-7b"


@pytest.fixture
def model(tmp_path: Path) -> CheckedModel:
    """A model on the text of the survey."""
    recording = recording_of(tmp_path, {("attn_in", 0, 1): 9.0}, SURVEYED)
    (recording.directory / "run.json").write_text(json.dumps(recording.run))
    return CheckedModel(MODEL, recording.directory)


def verdict(model: CheckedModel, features: pl.DataFrame, *left_out: str) -> tuple[str, str]:
    checked = checks_of_study([model], features, presets=["survey2025"], magnitude=6.0, seed=0, left_out=left_out)
    row = checked.verification.filter(pl.col("claim").str.starts_with("49 (feature")).row(0, named=True)
    return row["verdict"], row["reason"]


def test_a_model_that_was_not_judged_is_not_held_against_counts(model: CheckedModel) -> None:
    nothing = JudgedFeature.create_empty().with_columns(model=pl.lit(""))
    assert verdict(model, nothing, MODEL) == ("not comparable", "no feature was judged by the preset survey2025")
    # Judged, and without a systematic feature.
    assert verdict(model, nothing, "another") == ("not reproduced", "0 here, 49 published; tolerance 12.2")


def test_a_model_on_another_text_than_most_has_its_own_features(model: CheckedModel) -> None:
    features = survey_rows(50).select(pl.lit(MODEL).alias("model"), *JudgedFeature.column_names())
    assert verdict(model, features, MODEL)[0] == "reproduced"
