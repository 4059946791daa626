"""A whole study of tiny models: what it leaves, what a change of a key reruns, and what a mistake says."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pytest

from outlier_moe.definitions.presets import presets
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.study.study import validated_study
from outlier_moe.tables import checked, comparison, schemas, tested
from outlier_moe.tables.recording import read_recording
from tests.faults.kill_study import KilledStudy, differences, killed_and_finished, tables
from tests.swept_tables import made_up_sweep
from tests.workflow.study_folder import ROOT, StudyFolder, make_study

MODELS = {"tiny.llama": "llama", "tiny-gpt2": "gpt2", "tiny-mixtral": "mixtral"}
THRESHOLD_STAGES = {
    "filter_systematic",
    "compare_models",
    "plot_models",
    "bootstrap_comparison",
    "test_models",
    "verify_models",
    "plot_comparison",
    "write_report",
    "all",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = make_study(
        # By the default preset alone all features of such small models are systematic, which leaves them out of tests.
        tmp_path_factory.mktemp("study") / "study",
        MODELS,
        test_models={"presets": "all"},
    )
    folder.snakemake()
    return folder


def test_every_model_has_its_tables(study: StudyFolder) -> None:
    for model in MODELS:
        recording = read_recording(study.path / "results" / model / "outliers")
        schemas.LayerOutlier.validate(recording.layer_outliers().collect())
        schemas.AnyLayerOutlier.validate(recording.any_layer_outliers().collect())
        assert len(recording.sites()) == 3 * 4 * 3, "3 layers, 4 taps, 3 sequences"
        assert recording.run["model"] == model
        assert recording.run["mode"] == "resident"
        assert recording.run["peak_memory_bytes"]["process"] > 0


def test_tables_of_streamed_shards_equal_those_of_one_resident_run(study: StudyFolder, tmp_path: Path) -> None:
    streamed = study.copied(tmp_path / "streamed")
    folder = "results/tiny-mixtral/outliers"
    shutil.rmtree(streamed.path / folder)
    shutil.rmtree(streamed.path / "results/tiny-mixtral/recordings")
    streamed.snakemake(folder, "--config", "record_outliers={mode: streamed, shards: 2}")
    ours, theirs = study.path / folder, streamed.path / folder
    assert [shard["mode"] for shard in read_recording(theirs).run["shards"]] == ["streamed"] * 2
    assert not any((theirs.parent / "shards").glob("[!.]*")), "merged shards are not kept"
    assert streamed.planned(folder) == {}, "tables that are there keep their number of shards"
    tables = {path.name for path in ours.iterdir() if path.suffix in (".arrow", ".parquet")}
    assert {"experts.parquet", "routers.parquet"} < tables
    assert tables == {path.name for path in theirs.iterdir() if path.suffix in (".arrow", ".parquet")}
    for name in tables:
        read = pl.read_ipc if name.endswith(".arrow") else pl.read_parquet
        assert read(ours / name).equals(read(theirs / name)), name


def test_systematic_tables_are_what_the_function_gives(study: StudyFolder) -> None:
    import yaml

    config = yaml.safe_load((study.path / "config/config.yaml").read_text())
    chosen = presets(validated_study(config, study.path / "workflow/schemas/config.schema.yaml"))
    for model in MODELS:
        table = systematic_features(read_recording(study.path / "results" / model / "outliers"), chosen)
        assert table.equals(pl.read_parquet(study.path / "results" / model / "systematic.parquet"))


def test_the_comparison_has_every_model_and_its_picture(study: StudyFolder) -> None:
    table = schemas.ModelComparison.validate(pl.read_parquet(study.path / "results/comparison/models.parquet"))
    assert table["model"].unique(maintain_order=True).to_list() == list(MODELS)
    assert (study.path / "results/comparison/outliers.png").read_bytes().startswith(b"\x89PNG")
    page = (study.path / "results/comparison/outliers.html").read_text()
    assert "tiny.llama" in page
    assert "cdn.jsdelivr" not in page, "the page must open offline"


TABLES: dict[str, type[dy.Schema]] = {
    "features": schemas.JudgedFeature,
    "left_out": comparison.LeftOut,
    "intervals": comparison.FigureInterval,
    "differences": comparison.FigureDifference,
    "stability": comparison.Stability,
    "resamples": comparison.ModelResample,
    "dense_moe": tested.RankTestResult,
    "pairs": tested.MatchedPair,
    "groups": tested.GroupSummary,
    "phase_transitions": tested.PhaseTransition,
    "trends": tested.TrendComparison,
    "verification": checked.Verification,
    "super_experts": checked.SuperExpert,
    "outlier_routing": checked.OutlierRouting,
    "expert_routing": checked.ExpertRouting,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_statistics_have_their_columns(study: StudyFolder, name: str) -> None:
    table = pl.read_parquet(study.path / f"results/comparison/{name}.parquet")
    names = TABLES[name].column_names()
    assert set(names) <= set(table.columns)
    if name not in ("features", "super_experts"):
        TABLES[name].validate(table.select(names))
    # Nothing was published of tiny models, and none of them is on another text.
    assert len(table) > 0 or name in ("left_out", "verification")


def test_the_statistics_speak_of_the_comparison(study: StudyFolder) -> None:
    folder = study.path / "results/comparison"
    models, intervals = (pl.read_parquet(folder / f"{name}.parquet") for name in ("models", "intervals"))
    key = ["model", "preset", "first_token"]
    counts = intervals.filter(figure="n_systematic").join(models, on=key, validate="1:1")
    assert len(counts) == len(models)
    assert (counts["estimate"] == counts["n_systematic"]).all()
    known = intervals.drop_nulls("low")
    assert len(known) > 0
    assert (known["low"] <= known["high"]).all()
    pairs = pl.read_parquet(folder / "pairs.parquet")
    assert set(pairs["moe"]) == {"tiny-mixtral"}
    assert set(pairs["dense"]) <= {"tiny.llama", "tiny-gpt2"}
    differences = pl.read_parquet(folder / "differences.parquet")
    assert len(differences.select("model", "other").unique()) == 3, "each two of three models"
    experts = pl.read_parquet(folder / "super_experts.parquet")
    assert set(experts["model"]) == {"tiny-mixtral"}


def test_the_features_are_those_of_each_models_own_table(study: StudyFolder) -> None:
    together = pl.read_parquet(study.path / "results/comparison/features.parquet")
    columns = schemas.JudgedFeature.column_names()
    for model in MODELS:
        own = pl.read_parquet(study.path / "results" / model / "systematic.parquet").filter("is_systematic")
        assert together.filter(model=model).select(columns).equals(own.select(columns)), model


def test_the_report_has_a_section_of_a_sweep(study: StudyFolder, tmp_path: Path) -> None:
    """Its tables are there: to train for them would take most of a minute."""
    swept = study.copied(tmp_path / "swept")
    page, folder = swept.path / "results/report/index.html", swept.path / "results/scale_sweep"
    section, picture = "Optimisers and scales: image classifiers", "scale_sweep-dynamics"
    before = page.read_text()
    folder.mkdir()
    tables = made_up_sweep(tmp_path / "runs", n_seeds=2, diverges=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    swept.snakemake("results/report/index.html", "--config", "experiments=[scale_sweep]")
    assert {path.stem for path in folder.iterdir()} == set(tables), "nothing is trained"
    after = page.read_text()
    assert [text in of for of in (before, after) for text in (section, picture)] == [False, False, True, True]


def test_snakemake_makes_a_report_of_its_own(study: StudyFolder) -> None:
    """Each picture stands in its category with its caption; a model's own pictures too, once they are asked for."""
    pictures = "results/tiny-mixtral/plots"
    study.snakemake(pictures)
    names = {path.name for path in (study.path / pictures).iterdir()}
    assert {f"expert-{what}.{kind}" for what in ("load", "peaks") for kind in ("png", "svg", "html")} < names
    study.snakemake("all", pictures, "--report", "report.zip")
    with zipfile.ZipFile(study.path / "report.zip") as packed:
        page = packed.read("report/report.html").decode()
        files = {Path(name).name for name in packed.namelist()}
    categories, results = (script_of(page, name) for name in ("categories", "results"))
    assert set(categories) == {"Report", "Against size", "Against perplexity", "Thresholds", "Model by model"}
    assert set(categories["Model by model"]) == {"tiny-mixtral"}
    listed = [path for of in categories.values() for paths in of.values() for path in paths]
    assert len(listed) == 19 + sum(name.endswith(".png") for name in names)
    assert {Path(path).name for path in listed} <= files
    assert all(results[path]["caption"].startswith("<p>") for path in listed)


def script_of(page: str, name: str) -> dict[str, Any]:
    """What one of the scripts of Snakemake's report sets its name to."""
    script = page.split(f'<script id="{name}">')[1]
    return json.JSONDecoder().raw_decode(script.split("= ", 1)[1])[0]


def test_a_misspelt_target_names_the_nearest(study: StudyFolder) -> None:
    done = study.snakemake("-n", "results/tiny.lama/systematic.parquet", check=False)
    assert done.returncode != 0
    assert "'results/tiny.llama/systematic.parquet'" in done.stdout
    assert "MissingRuleException" not in done.stdout


def test_a_mistake_at_planning_is_told_alone(study: StudyFolder) -> None:
    done = study.snakemake("-n", "--config", "magnitud=3", check=False)
    assert done.returncode != 0
    assert "'magnitude'" in done.stdout
    assert not any(inside in done.stdout for inside in ("common.smk", "WorkflowError", "Traceback"))


def test_a_run_ends_by_naming_its_results(study: StudyFolder) -> None:
    printed = study.snakemake("results/tiny-gpt2/systematic.parquet").stdout
    for path in ("results/report/index.html", "results/tiny-gpt2/systematic.parquet"):
        assert path in printed.split("Nothing to be done")[1]


def test_nothing_is_left_to_do_afterwards(study: StudyFolder) -> None:
    assert study.planned() == {}


@pytest.mark.parametrize("forgets", [False, True])
def test_a_copy_whose_times_are_lost_reruns_nothing(study: StudyFolder, tmp_path: Path, forgets: bool) -> None:
    shutil.copytree(study.path, tmp_path / "copy", copy_function=shutil.copyfile, symlinks=True)
    copy = StudyFolder(tmp_path / "copy")
    # Inputs last, so that all are newer than what was made from them.
    paths = [path for folder in ("results", "resources") for path in sorted((copy.path / folder).rglob("*"))]
    for number, path in enumerate(paths):
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    if forgets:
        shutil.rmtree(copy.path / ".snakemake")
    assert copy.planned() == {}
    changed = copy.planned("--config", "magnitude=1.5")
    assert changed["filter_systematic"] == len(MODELS), "a change is noticed in a copy too"
    assert "record_outliers" not in changed


def test_a_study_that_is_killed_comes_to_the_same_tables(study: StudyFolder, tmp_path: Path) -> None:
    """Twice, at moments of a fixed seed; `tests/faults/kill_study.py` does it as often as one likes."""
    killed = study.copied(tmp_path / "killed")
    model = killed.path / "results/tiny-mixtral"
    expected = {name: table for name, table in tables(killed.path).items() if "tiny-mixtral" in name}
    for path in (model / "outliers", model / "recordings"):
        shutil.rmtree(path)
    (model / "systematic.parquet").unlink()
    again = KilledStudy(killed.path, ["results/tiny-mixtral/systematic.parquet"])
    kinds = ["SIGKILL to a job", "SIGKILL to snakemake"]
    try:
        lines, wrong = killed_and_finished(again, kinds, None, 2.0, random.Random(0))
    finally:
        again.end()
    assert not wrong, (lines, wrong)
    ours = {name: table for name, table in tables(killed.path).items() if "tiny-mixtral" in name}
    assert differences(ours, expected) == []


def test_changed_thresholds_rerun_no_recording(study: StudyFolder) -> None:
    jobs = study.planned("--config", "magnitude=2.0", "layer_fraction=0.5", "position_fraction=0.1")
    assert jobs["filter_systematic"] == len(MODELS)
    assert set(jobs) <= THRESHOLD_STAGES


@pytest.mark.parametrize("change", ["record_outliers={floor: 0.25}", "record_outliers={n_peaks: 2}"])
def test_what_is_recorded_reruns_the_recording_alone(study: StudyFolder, change: str) -> None:
    jobs = study.planned("--config", change)
    assert jobs["record_outliers"] == len(MODELS)
    assert set(jobs) <= THRESHOLD_STAGES | {"record_outliers", "count_at_edges"}


def test_another_number_of_sequences_tokenises_and_records_again(study: StudyFolder) -> None:
    jobs = study.planned("--config", "tokenize_corpus={n_sequences: 2}")
    assert jobs["tokenize_corpus"] == jobs["record_outliers"] == len(MODELS)
    assert "fetch_model" not in jobs


def test_a_kept_recording_starts_no_node(study: StudyFolder, tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_skypilot")
    copy = study.copied(tmp_path / "copy")
    shutil.copy(ROOT / "config/cluster.yaml", copy.path / "config")
    for name in ("outliers", "tokens.arrow"):
        shutil.move(copy.path / "results/tiny-mixtral" / name, tmp_path / name)
    elsewhere = ["results/tiny-mixtral/outliers", "--executor", "skypilot", "--jobs", "2"]
    here = {"tokenize_corpus": 1}
    assert copy.planned(*elsewhere) == here | {"take_up_recording": 1}
    in_shards = copy.planned(*elsewhere, "--config", "record_outliers={shards: 2}")
    assert in_shards == here | {"take_up_shard": 2, "merge_shards": 1}
    (copy.path / "text.txt").write_text("Quite another text, of which no recording is kept. " * 60)
    assert copy.planned(*elsewhere) == here | {"fetch_corpus": 1, "record_outliers": 1}


def test_edited_files_of_this_machine_are_fetched_again(study: StudyFolder, tmp_path: Path) -> None:
    edited = study.copied(tmp_path / "edited")
    (edited.path / "text.txt").write_text((edited.path / "text.txt").read_text().upper())
    weights = edited.path / "checkpoints/tiny-gpt2/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    jobs = edited.planned()
    assert jobs["fetch_corpus"] == jobs["fetch_model"] == 1
    assert jobs["record_outliers"] == len(MODELS)


def test_where_and_how_a_model_runs_reruns_nothing(study: StudyFolder) -> None:
    assert study.planned("--config", "record_outliers={chunk: 2, device: cpu, shards: 3}") == {}


def test_a_rerun_at_another_threshold_gives_its_figures(study: StudyFolder, tmp_path: Path) -> None:
    changed = study.copied(tmp_path / "changed")
    target = "results/tiny-gpt2/systematic.parquet"
    before = pl.read_parquet(changed.path / target)
    changed.snakemake(target, "--config", "magnitude=2.0")
    after = pl.read_parquet(changed.path / target)
    changed.snakemake(target)
    assert not after.equals(before)
    assert after.filter(preset="dettmers2022")["peak"].min() >= 2.0  # type: ignore[operator]
    assert pl.read_parquet(changed.path / target).equals(before)


def test_a_failed_stage_says_why_and_keeps_the_others(study: StudyFolder, tmp_path: Path) -> None:
    broken = study.copied(tmp_path / "broken")
    table = broken.path / "results/tiny-gpt2/outliers/any_layer.arrow"
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    done = broken.snakemake("--forcerun", "filter_systematic", "--keep-going", check=False)
    assert done.returncode != 0
    assert "A table is damaged." in done.stdout or "cannot be read" in done.stdout
    assert "any_layer.arrow" in done.stdout
    for inside in ("Traceback", "RuleException", "CalledProcessError", "WorkflowError", "Exiting because"):
        assert inside not in done.stdout
    assert "logs/filter_systematic/tiny-gpt2.log" in done.stdout
    assert (broken.path / "results/tiny.llama/systematic.parquet").exists()


def test_a_corpus_that_is_too_short_says_so(study: StudyFolder, tmp_path: Path) -> None:
    short = study.copied(tmp_path / "short")
    target = "results/tiny-gpt2/systematic.parquet"
    done = short.snakemake(target, "--config", "tokenize_corpus={n_sequences: 5000}", check=False)
    assert done.returncode != 0
    assert "A corpus is too short." in done.stdout
    assert "n_sequences" in done.stdout
    assert read_recording(short.path / "results/tiny-gpt2/outliers").run["n_sequences"] == 3, "what was done is lost"


def test_provenance_says_what_was_run(study: StudyFolder) -> None:
    run = json.loads((study.path / "results/tiny-mixtral/outliers/run.json").read_text())
    assert run["floor"] == 0.5
    assert run["dtype"] == "float32"
    assert run["n_sequences"] == 3
    assert run["versions"]["torch"].startswith("2.")
    assert len(run["tokens"]["tokens_sha256"]) == 64
    assert run["source"]["kind"] == "directory"
