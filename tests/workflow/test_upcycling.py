"""The whole experiment on a tiny configuration: what it leaves, and what a change of a key reruns."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from outlier_moe.tables.recording import read_recording
from tests.workflow.study_folder import ROOT, StudyFolder, make_study

# The control is but for its rule what the others are; each arm costs a dozen seconds of starting processes.
ARMS = ["zero"]
SUMMARY = "results/upcycle/summary.parquet"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    section = yaml.safe_load((ROOT / "config/config.yaml").read_text())["upcycle"]
    section |= {"arms": ARMS}
    section["text"] |= {"corpus": "small", "held_out_fraction": 0.5}
    section["model"] |= {"vocab_size": 280, "d_model": 16, "n_layers": 2, "n_heads": 2, "sequence_length": 16}
    section["model"]["d_ff"] = {"simple": 32, "smollm": 24}
    section["training"] |= {"dense_steps": 4, "moe_steps": 4, "checkpoint_every": 2}
    section["evaluation"] |= {"n_held_out": 4, "n_recorded": 2, "n_new_tokens": 3}
    folder = make_study(tmp_path_factory.mktemp("upcycling") / "study", {"tiny": "gpt2"}, upcycle=section)
    words = "the quick brown fox jumps over a lazy dog that does not mind it at all".split()
    for document in range(4):
        (folder.path / f"words{document}.txt").write_text(" ".join(words[document:] * 9))
    registry = yaml.safe_load((folder.path / "config/models.yaml").read_text())
    registry["corpora"]["small"]["source"]["paths"] = ["words*.txt"]
    (folder.path / "config/models.yaml").write_text(yaml.safe_dump(registry, sort_keys=False))
    folder.snakemake(SUMMARY)
    return folder


def test_every_arm_has_its_row(study: StudyFolder) -> None:
    summary = pl.read_parquet(study.path / SUMMARY)
    assert summary["arm"].to_list() == ARMS
    assert summary["boundary_jump_nats"].abs().max() < 1e-4  # type: ignore[operator]
    assert summary["is_equivalent"].to_list() == [True]
    assert summary["n_dead"].to_list() == [6.0]
    assert summary["peak_final"].is_not_null().all()
    assert json.loads((study.path / "results/upcycle/summary.json").read_text()) == json.loads(summary.write_json())


def test_tables_hold_both_phases(study: StudyFolder) -> None:
    def table(name: str) -> pl.DataFrame:
        return pl.read_parquet(study.path / f"results/upcycle/{name}.parquet")

    assert table("checkpoints").filter(arm="zero")["step"].to_list() == [0, 2, 4, 4, 6, 8]
    assert set(table("history")["arm"]) == {"phase 1", *ARMS}
    assert len(table("history")) == 8
    assert set(table("outliers").drop_nulls("tap")["step"]) == {0, 2, 4, 6, 8}
    assert len(table("experts")) == 3 * 2 * 8
    samples = table("samples")
    assert set(samples.select("arm", "phase").iter_rows()) == {("phase 1", 1), *((arm, 2) for arm in ARMS)}
    assert (samples.group_by("arm").len()["len"] == samples["prompt"].n_unique()).all()
    assert (samples["continuation"].str.len_chars() > 0).all()


def test_checkpoints_are_recorded_like_any_model(study: StudyFolder) -> None:
    folder = study.path / "results/upcycle/simple/seed0/zero/phase2_recordings/step_00000004/outliers"
    recording = read_recording(folder)
    assert recording.run["experts"] == "grouped_mm"
    assert recording.run["source"]["kind"] == "checkpoint"
    routers, experts = recording.routers(), recording.experts()
    assert routers is not None and experts is not None
    assert routers["n_dead"].to_list() == [6] * len(routers)
    assert set(recording.sites()["tap"].cast(pl.String)) == {"attn_in", "mlp_in", "residual", "residual_rms"}


def test_nothing_is_left_to_do_and_a_threshold_trains_nothing(study: StudyFolder) -> None:
    assert study.planned(SUMMARY) == {}
    assert study.planned(SUMMARY, "--config", "magnitude=2.0") == {"filter_checkpoints": 1, "summarise_upcycling": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("upcycle={experts: {top_k: 9}}", "upcycle.experts.top_k"),
        ("upcycle={pairs: [simpel]}", "simple"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(study: StudyFolder, change: str, says: str) -> None:
    done = study.snakemake("--dry-run", "upcycle", "--config", change, check=False)
    assert done.returncode != 0
    assert says in done.stdout


def test_the_demo_has_the_experiment_and_other_sweeps_do_not(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", {"tiny": "gpt2"}, experiments=["upcycle"])
    registry = yaml.safe_load((folder.path / "config/models.yaml").read_text())
    registry["corpora"]["pydoc-topics"] = registry["corpora"]["small"]
    (folder.path / "config/models.yaml").write_text(yaml.safe_dump(registry, sort_keys=False))
    assert folder.planned()["train_moe"] == 4
    assert "train_moe" not in folder.planned("--config", "models=[tiny]")
