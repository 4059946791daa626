"""A classifier's run: learning rates tried, everything measured at every checkpoint, kills and divergence survived."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from outlier_moe.presets import Preset
from outlier_moe.recording.options import RecordOptions
from outlier_moe.recording_files import read_recording
from outlier_moe.scale_sweep.classifiers import (
    Classifier,
    chosen_rate,
    classifier_of,
    grid_edge,
    train_classifier,
    try_learning_rates,
)
from outlier_moe.training import loop
from outlier_moe.upcycling.checkpoint_recording import filter_checkpoints

RECORDING = RecordOptions(floor=0.5, device="cpu")


@pytest.fixture(scope="module")
def classifier(sweep: dict[str, Any], images: Path) -> Classifier:
    return classifier_of(sweep, images, scale="w16", optimizer="muon")


@pytest.fixture(scope="module")
def run(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    try_learning_rates(classifier, folder / "rates.parquet")
    train_classifier(classifier, folder / "rates.parquet", folder / "run", RECORDING, seed=0)
    return folder


def test_the_best_rate_on_validation_is_chosen(run: Path) -> None:
    table = pl.read_parquet(run / "rates.parquet")
    # The linear rule: 0.01 at a batch of 4096.
    assert table["learning_rate"].to_list() == pytest.approx([0.01 * 64 / 4096, 30 * 0.01 * 64 / 4096])
    best = table.sort("validation_loss_nats").row(0, named=True)
    assert table.filter("is_chosen")["multiple"].to_list() == [best["multiple"]]
    facts = json.loads((run / "run/run.json").read_text())
    assert facts["optimizer_lr"] == best["learning_rate"]
    # Of a grid of two each is at an end.
    assert facts["optimizer_grid_edge"] == ("lowest" if best["multiple"] == 1 else "highest")
    assert facts["optimizer_adamw_lr"] == pytest.approx(best["learning_rate"] / 10)
    assert not list(run.glob(".*"))


def test_a_rate_that_diverges_is_never_chosen_and_if_all_do_the_lowest_is() -> None:
    losses = pl.DataFrame({"validation_loss_nats": [2.0, None, 1.0]})
    assert chosen_rate(losses) == 2
    assert (
        chosen_rate(pl.DataFrame({"validation_loss_nats": [None, None]}, schema={"validation_loss_nats": pl.Float64}))
        == 0
    )


@pytest.mark.parametrize(
    ("chosen", "edge"),
    [([True, False, False], "lowest"), ([False, True, False], None), ([False, False, True], "highest"), ([True], None)],
)
def test_a_rate_at_the_edge_of_its_grid_is_known(chosen: list[bool], edge: str | None) -> None:
    assert grid_edge(pl.DataFrame({"is_chosen": chosen})) == edge


def test_everything_is_measured_at_every_checkpoint(run: Path) -> None:
    measures = pl.read_parquet(run / "run/measures.parquet")
    assert measures["step"].unique().sort().to_list() == [0, 3, 6]
    per_step = measures.group_by("step").agg(pl.len())["len"].unique()
    assert len(per_step) == 1
    found = set(measures.select("metric", "place").unique().rows())
    for place in ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"):
        assert ("weight_effective_rank_share", place) in found
    assert {("loss_nats", part) for part in ("train", "validation", "test")} <= found
    assert {("feature_stable_rank", "residual"), ("feature_stable_rank", "head")} <= found
    assert {("activation_hoyer", "ffn"), ("generalisation_gap_nats", "test")} <= found
    assert measures["value"].is_not_null().all()
    shares = measures.filter(pl.col("metric").str.ends_with("share"), pl.col("metric").str.contains("rank"))
    assert shares["value"].is_between(0, 1 + 1e-9).all()


def test_gaps_are_those_of_test_and_training_images(run: Path) -> None:
    last = pl.read_parquet(run / "run/measures.parquet").filter(step=6)
    value = {
        row[:2]: row[2] for row in last.filter(pl.col("layer").is_null()).select("metric", "place", "value").rows()
    }
    loss_gap = value["loss_nats", "test"] - value["loss_nats", "train"]
    assert value["generalisation_gap_nats", "test"] == pytest.approx(loss_gap)
    accuracy_gap = value["accuracy", "train"] - value["accuracy", "test"]
    assert value["generalisation_gap_accuracy", "test"] == pytest.approx(accuracy_gap)


def test_checkpoints_are_recorded_with_the_tables_of_any_model(run: Path) -> None:
    recording = read_recording(run / "run/recordings/step_00000006/outliers")
    assert len(recording.sites()) == 4 * 2 * 3
    assert recording.sites()["n_positions"].unique().to_list() == [17]
    assert set(recording.peaks()["text"]) <= {
        "class token",
        *(f"row {r}, column {c}" for r in range(4) for c in range(4)),
    }
    presets = [Preset("own", "systematic", "residual", 0.5)]
    outliers = filter_checkpoints(run / "run/recordings", presets)
    assert outliers.filter(preset="own", first_token="included")["step"].to_list() == [0, 3, 6]
    assert outliers.filter(tap="residual")["kurtosis_of_feature_rms"].is_between(1, 16).all()


def test_a_killed_run_ends_as_an_uninterrupted_one(
    classifier: Classifier, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    plain = loop._Run.step

    def dying(of: Any) -> dict[str, Any]:
        if of.n_done == 4:
            raise Killed
        return plain(of)

    monkeypatch.setattr(loop._Run, "step", dying)
    with pytest.raises(Killed):
        train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    name = "run/model/model.safetensors"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()
    times = pl.col("metric") != "time_s"
    again, before = (pl.read_parquet(of / "run/measures.parquet").filter(times) for of in (tmp_path, run))
    assert again.equals(before)


def test_a_diverged_run_is_a_result(sweep: dict[str, Any], images: Path, run: Path, tmp_path: Path) -> None:
    wild = {**sweep, "learning_rates": {**sweep["learning_rates"], "base": dict.fromkeys(["sgd", "adamw"], 1e38)}}
    wild["training"] = {**sweep["training"], "max_gradient_norm": None, "warmup_fraction": 0.0}
    classifier = classifier_of(wild, images, scale="w16", optimizer="sgd")
    rates = tmp_path / "rates.parquet"
    try_learning_rates(classifier, rates)
    tried = pl.read_parquet(rates)
    assert tried["validation_loss_nats"].null_count() == 2
    assert tried["is_chosen"].to_list() == [True, False]
    train_classifier(classifier, rates, tmp_path / "run", RECORDING, seed=0)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["diverged_at"] is not None
    assert pl.read_parquet(tmp_path / "run/measures.parquet").filter(step=0)["value"].is_not_null().all()
