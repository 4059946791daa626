"""A classifier's run: learning rates tried, everything measured at every checkpoint, kills and divergence survived."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn
from transformers import PreTrainedModel

from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.presets import Preset
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep import classifiers
from outlier_moe.scale_sweep.classifiers import Classifier, classifier_of, train_classifier, try_learning_rates
from outlier_moe.scale_sweep.figures import SweptRun, metrics_of_run
from outlier_moe.scale_sweep.measures import Row
from outlier_moe.scale_sweep.runs import step_time
from outlier_moe.scale_sweep.summary import summarise_sweep
from outlier_moe.tables.recording import read_recording
from outlier_moe.training import loop
from outlier_moe.training.steps import Batch
from outlier_moe.upcycling.checkpoint_recording import filter_checkpoints

RECORDING = RecordOptions(floor=0.5, device="cpu")


class Killed(BaseException):
    """What no handler catches."""


def _die(*args: Any, **options: Any) -> Any:
    raise Killed


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


# Each of the two rates is tried for two steps, with a state behind each.
@pytest.mark.parametrize(("dies_in", "all_taken"), [(3, [0, 1, 0, 0, 1]), (4, [0, 1, 0, 1, 1])])
def test_a_killed_grid_goes_on_in_the_one_folder_that_is_brought_back(
    dies_in: int,
    all_taken: list[int],
    classifier: Classifier,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, taken = loop._Run.step, []

    def noting(of: Any) -> dict[str, Any]:
        taken.append(of.n_done)
        return _die() if len(taken) == dies_in else plain(of)

    monkeypatch.setattr(loop._Run, "step", noting)
    with pytest.raises(Killed):
        try_learning_rates(classifier, tmp_path / "rates.parquet")
    assert [path.name for path in tmp_path.iterdir()] == [".rates.work"]
    try_learning_rates(classifier, tmp_path / "rates.parquet")
    assert taken == all_taken and [path.name for path in tmp_path.iterdir()] == ["rates.parquet"]
    assert_frame_equal(pl.read_parquet(tmp_path / "rates.parquet"), pl.read_parquet(run / "rates.parquet"))


def test_rates_that_hardly_differ_are_trials_of_their_own(classifier: Classifier, tmp_path: Path) -> None:
    alike = replace(classifier, sweep={**classifier.sweep, "multiples": [1.0, 1.0000001]})
    try_learning_rates(alike, tmp_path / "rates.parquet")
    table = pl.read_parquet(tmp_path / "rates.parquet")
    assert table["multiple"].to_list() == [1.0, 1.0000001] and table["validation_loss_nats"].null_count() == 0


def test_everything_is_measured_at_every_checkpoint(run: Path) -> None:
    measures = pl.read_parquet(run / "run/measures.parquet")
    assert measures["step"].unique().sort().to_list() == [0, 1, 6]
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


def test_as_many_images_to_train_on_are_evaluated_as_to_test_on_at_every_checkpoint(
    sweep: dict[str, Any], images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = classifiers.evaluated, []

    def noting(model: nn.Module, batch: Batch, part: str, *, chunk: int) -> list[Row]:
        seen.append((part, len(batch["labels"])))
        return plain(model, batch, part, chunk=chunk)

    monkeypatch.setattr(classifiers, "evaluated", noting)
    of = classifier_of(sweep | {"n_evaluated": 2000}, images, scale="w16", optimizer="sgd")
    train_classifier(of, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert seen == 3 * [("validation", 180), ("train", 270), ("test", 270)]


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
    assert outliers.filter(preset="own", first_token="included")["step"].to_list() == [0, 1, 6]
    assert outliers.filter(tap="residual")["kurtosis_of_feature_rms"].is_between(1, 16).all()


def test_a_killed_run_ends_as_an_uninterrupted_one(
    classifier: Classifier, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.fixture(scope="module")
def trained_only(classifier: Classifier, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed while its model was written, all of its steps done."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", _die)
        with pytest.raises(Killed):
            train_classifier(classifier, run / "rates.parquet", folder / "run", RECORDING, seed=0)
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "outlier_moe.scale_sweep.runs.pl.concat",
        "outlier_moe.scale_sweep.runs.shutil.copytree",
        "outlier_moe.scale_sweep.runs.shutil.copy2",
        "transformers.PreTrainedModel.save_pretrained",
        "outlier_moe.scale_sweep.runs.remove_whole",
        "outlier_moe.tables.whole_outputs.Path.rename",
    ],
)
def test_a_kill_behind_the_last_step_costs_no_step(
    place: str, classifier: Classifier, run: Path, trained_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained_only, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(loop._Run, "step", _die)
    with monkeypatch.context() as patch:
        patch.setattr(place, _die)
        with pytest.raises(Killed):
            train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    # As Snakemake does with what a killed job has made.
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    again, before = (pl.read_parquet(of / "run/measures.parquet") for of in (tmp_path, run))
    assert again.drop("value").equals(before.drop("value"))
    assert files_of(tmp_path / "run") == files_of(run / "run")


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_wider_grid_with_the_same_choice_costs_no_step(
    classifier: Classifier, run: Path, trained_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rate lies in its grid is written down, and is nothing that a run's state depends on."""
    shutil.copytree(trained_only, tmp_path, dirs_exist_ok=True)
    tried = pl.read_parquet(run / "rates.parquet")
    beyond = tried.filter(~pl.col("is_chosen")).with_columns(learning_rate=pl.lit(0.0), multiple=pl.lit(0.0))
    above = beyond.with_columns(learning_rate=pl.lit(9.0), multiple=pl.lit(9e9))
    pl.concat([beyond.head(1), tried, above.head(1)]).write_parquet(tmp_path / "wider.parquet")
    monkeypatch.setattr(loop._Run, "step", _die)
    train_classifier(classifier, tmp_path / "wider.parquet", tmp_path / "run", RECORDING, seed=0)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["optimizer_grid_edge"] is None != json.loads((run / "run/run.json").read_text())["optimizer_grid_edge"]


def test_a_kill_while_a_runs_folder_is_removed_starts_it_anew(
    classifier: Classifier, run: Path, trained_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained_only, tmp_path, dirs_exist_ok=True)
    plain = shutil.rmtree

    def half(path: Path, **options: Any) -> None:
        if Path(path).name.endswith(".gone") and Path(path).exists():
            plain(path / "visits")
            raise Killed
        plain(path, **options)

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(Killed):
        train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run")
    train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert pl.read_parquet(tmp_path / "run/measures.parquet")["step"].unique().to_list() == [0, 1, 6]


def test_memory_that_runs_out_beside_training_changes_no_measure(
    classifier: Classifier, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def tight(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2 and not torch.is_grad_enabled():
            limits.append(len(args[0]))
            raise torch.OutOfMemoryError("no more")

    plain = find_structure

    def watched(model: PreTrainedModel) -> Any:
        structure = plain(model)
        # Behind the second layer, where the meters have seen some of it.
        structure.layers[1].register_forward_pre_hook(tight)
        return structure

    monkeypatch.setattr("outlier_moe.scale_sweep.runs.find_structure", watched)
    train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert limits == [20, 20, 16, 8, 4], "halved from the 64 of a batch, and never again"
    again, before = (
        pl.read_parquet(of / "run/measures.parquet").filter(pl.col("metric") != "time_s") for of in (tmp_path, run)
    )
    assert_frame_equal(again, before, rel_tol=1e-4, abs_tol=1e-6)


def test_features_are_those_of_held_out_images_whatever_is_recorded(
    sweep: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    rates = tmp_path / "rates.parquet"
    found = []
    for n_recorded in (1, 3):
        chosen = sweep | {"n_recorded": n_recorded, "multiples": [1.0], "n_steps": 1, "n_checkpoints": 1}
        of = classifier_of(chosen, images, scale="w16", optimizer="sgd")
        try_learning_rates(of, rates)
        train_classifier(of, rates, tmp_path / str(n_recorded), RECORDING, seed=0)
        table = pl.read_parquet(tmp_path / str(n_recorded) / "measures.parquet")
        found.append(table.filter(pl.col("metric").str.contains("feature_|activation_")))
    assert_frame_equal(*found)
    rows = found[0].filter(metric="feature_n_rows", step=0)
    # Eight for each of the 16 features, of the 17 positions of 20 images; the head reads one position of each.
    assert rows.select("place", "value").rows() == [("residual", 128.0), ("residual", 128.0), ("head", 20.0)]


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_loss_that_is_no_number_on_any_part_is_a_run_that_diverged(
    part: str, sweep: dict[str, Any], images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = classifiers.evaluated

    def infinite(model: nn.Module, batch: Batch, of: str, *, chunk: int) -> list[Row]:
        rows = plain(model, batch, of, chunk=chunk)
        return [row._replace(value=math.inf) if (of, row.metric) == (part, "loss_nats") else row for row in rows]

    monkeypatch.setattr(classifiers, "evaluated", infinite)
    short = sweep | {"n_steps": 1, "n_checkpoints": 1}
    of = classifier_of(short, images, scale="w16", optimizer="muon")
    train_classifier(of, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    assert json.loads((tmp_path / "run/run.json").read_text())["diverged_at"] == 1


def test_a_layer_whose_gelu_is_dead_is_in_all_tables(
    sweep: dict[str, Any], images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = classifiers.new_vit

    def dead(*args: Any, **options: Any) -> Any:
        model = plain(*args, **options)
        nn.init.zeros_(model.get_parameter("vit.layers.1.mlp.fc1.weight"))
        nn.init.constant_(model.get_parameter("vit.layers.1.mlp.fc1.bias"), -100.0)
        return model

    monkeypatch.setattr(classifiers, "new_vit", dead)
    of = classifier_of(sweep, images, scale="w16", optimizer="sgd")
    train_classifier(of, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    measures = pl.read_parquet(tmp_path / "run/measures.parquet")
    sparseness = measures.filter(metric="activation_hoyer").sort("step", "layer")
    assert sparseness["value"].is_null().to_list() == 3 * [False, True]
    presets = [Preset("own", "systematic", "residual", 0.5)]
    metrics_of_run(tmp_path / "run", presets, default="own").write_parquet(tmp_path / "metrics.parquet")
    tables = summarise_sweep([SweptRun("w16", "sgd", 0, tmp_path / "run", tmp_path / "metrics.parquet")])
    # The mean of the layers that have one.
    assert tables.dynamics["hoyer"].to_list() == sparseness.filter(layer=0)["value"].to_list()


def test_the_time_of_a_step_counts_the_long_ones(run: Path) -> None:
    history = pl.read_parquet(run / "run/training_history.parquet")
    facts = json.loads((run / "run/run.json").read_text())
    assert facts["step_time_s"] == pytest.approx(sum(history["processor_time_s"][2:]) / 4)


def test_the_cost_of_a_step_is_by_the_clock_where_no_other_is_known() -> None:
    times = {"time_s": [9.0, 9.0, 2.0, 4.0, 6.0], "processor_time_s": [9.0, 9.0, None, 2.0, 3.0]}
    history, cpu = pl.DataFrame(times), torch.device("cpu")
    assert step_time(history, cpu) == 2.5
    assert step_time(history, torch.device("cuda")) == 4
    # A job of an older version was killed behind step 3, or behind its last.
    assert step_time(history[:3], cpu) == step_time(history[:3].drop("processor_time_s"), cpu) == 2
    assert step_time(history[:1], cpu) == 9


def test_what_a_job_sets_up_when_it_goes_on_is_no_cost_of_a_step() -> None:
    times = [9.0, 9.0, 2.0, 7.0, 7.0, 4.0]
    history = pl.DataFrame({"step_of_job": [0, 1, 2, 0, 1, 2], "time_s": times, "processor_time_s": times})
    assert step_time(history, torch.device("cpu")) == 3
    # The first job was one of an older version.
    older = history.with_columns(step_of_job=pl.Series([None, None, None, 0, 1, 2]))
    assert step_time(older, torch.device("cpu")) == 3


def test_a_run_goes_on_from_steps_that_know_no_processor_time(
    classifier: Classifier, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop._Run.step

    def as_before(of: Any) -> dict[str, Any]:
        row = plain(of) if of.n_done < 4 else _die()
        return {name: value for name, value in row.items() if name not in ("step_of_job", "processor_time_s")}

    monkeypatch.setattr(loop._Run, "step", as_before)
    with pytest.raises(Killed):
        train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    monkeypatch.undo()
    train_classifier(classifier, run / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    history = pl.read_parquet(tmp_path / "run/training_history.parquet")
    assert history["processor_time_s"].is_null().to_list() == 3 * [True] + 3 * [False]
    facts = json.loads((tmp_path / "run/run.json").read_text())
    # The first two of the second job do not count.
    assert facts["step_time_s"] == pytest.approx(history["processor_time_s"][5])


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
    measures = pl.read_parquet(tmp_path / "run/measures.parquet")
    assert measures.filter(step=0)["value"].is_not_null().all()
    without_loss = measures.filter(pl.col("value").is_null(), metric="loss_nats").select("step", "place")
    assert len(without_loss)
    assert measures.filter(metric="accuracy").join(without_loss, on=["step", "place"])["value"].is_null().all()
