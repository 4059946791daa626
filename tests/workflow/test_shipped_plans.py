"""Every shipped sweep and profile plans, and a mistake in the study is named before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.workflow.study_folder import ROOT, StudyFolder

STAGES = {"fetch_corpus", "fetch_model", "tokenize_corpus", "record_outliers", "filter_systematic"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    path = tmp_path_factory.mktemp("shipped")
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, path / name)
    shutil.copy(ROOT / "Snakefile", path)
    return StudyFolder(path)


def test_one_target_plans_the_stages_of_its_model_alone(shipped: StudyFolder) -> None:
    assert shipped.planned("results/mixtral/systematic.parquet") == dict.fromkeys(STAGES, 1)


@pytest.mark.parametrize("sweep", ["demo", "moe", "full"])
def test_every_sweep_plans(shipped: StudyFolder, sweep: str) -> None:
    registry = yaml.safe_load((shipped.path / "config/models.yaml").read_text())["models"]
    wanted = [model for model, entry in registry.items() if sweep in entry["sweeps"] and "unavailable" not in entry]
    jobs = shipped.planned("--config", f"sweep={sweep}")
    assert jobs["record_outliers"] == len(wanted) > 0


def test_chosen_models_take_the_place_of_the_sweep(shipped: StudyFolder) -> None:
    jobs = shipped.planned("--config", "models=[mixtral,qwen3-8b]")
    assert jobs["record_outliers"] == 2
    assert jobs["fetch_corpus"] == 1


def test_a_model_that_was_never_published_is_skipped_with_its_reason(shipped: StudyFolder) -> None:
    printed = shipped.snakemake("--dry-run", "--config", "sweep=dense").stdout
    assert "gemma-3-7b is left out: Gemma 3 was published with" in printed
    alone = shipped.snakemake("--dry-run", "--config", "models=[gemma-3-7b]", check=False)
    assert alone.returncode != 0
    assert "a 7B model never was" in alone.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("magnitud=5", "Did you mean 'magnitude'?"),
        ("magnitude=5.1", "The nearest edges are 5 and 5.5."),
        ("models=[mixtrl]", "Did you mean 'mixtral'?"),
        ("corpus=fineweb", "Did you mean 'fineweb-edu'?"),
        ("record_outliers={floor: 7}", "an edge from 7 (the floor recorded)"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(shipped: StudyFolder, change: str, says: str) -> None:
    done = shipped.snakemake("--dry-run", "--config", change, check=False)
    assert done.returncode != 0
    assert says in done.stdout
    assert not Path(shipped.path / "results").exists()
