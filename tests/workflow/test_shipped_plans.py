"""Every shipped sweep, overlay and profile plans, and a mistake in the study is named before anything runs."""

from __future__ import annotations

import re
import shutil
from itertools import chain
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser
from snakemake.utils import update_config

from outlier_moe.scale_sweep.study import IDX_FILES
from outlier_moe.study.experiments import training_jobs
from outlier_moe.study.study import validated_study
from tests.documents import commands
from tests.workflow.study_folder import ROOT, StudyFolder

LOCAL = re.compile(r"^localrules:\n((?:    \w+,\n)+)", re.MULTILINE)
RULE = re.compile(r"^rule (\w+):\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)
OVERLAYS = {path.name for path in (ROOT / "config").glob("*.yaml")} - {"config.yaml", "models.yaml", "cluster.yaml"}
COMMAND = re.compile(r"^#   snakemake (\w+) (--configfile config/config.yaml config/\S+)$", re.MULTILINE)
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


@pytest.mark.parametrize("experiments", [["upcycle", "lm_scale_sweep"], ["scale_sweep"]])
def test_the_price_of_training_counts_the_jobs_that_train(shipped: StudyFolder, experiments: list[str]) -> None:
    chosen = {"experiments": experiments, "scale_sweep_preset": "laptop"}
    jobs = shipped.planned("--config", f"experiments=[{','.join(experiments)}]", "scale_sweep_preset=laptop")
    document = yaml.safe_load((shipped.path / "config/config.yaml").read_text()) | chosen
    study = validated_study(document, shipped.path / "workflow/schemas/config.schema.yaml")
    counted = training_jobs(study)
    assert list(counted) == experiments
    assert sum(counted.values()) == n_training(jobs) > 0
    assert training_jobs(study | {"sweep": "full"}) == training_jobs(study | {"models": ["mixtral"]}) == {}


@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
def test_every_overlay_plans_by_the_command_that_it_opens_with(
    shipped: StudyFolder, overlay: str, tmp_path: Path
) -> None:
    text = (shipped.path / "config" / overlay).read_text()
    command = COMMAND.search(text)
    assert command is not None and command[2].endswith(f"config/{overlay}")
    target, configured = command[1], command[2].split()
    # Debian's package may not be here: a plan asks for the names of its files alone.
    for name in chain.from_iterable(IDX_FILES.values()):
        (tmp_path / name).touch()
    images = ["--config", f"scale_sweep={{images: {{path: {tmp_path}}}}}"] if "images:" in text else []
    jobs = shipped.planned(target, *configured, *images)
    document = yaml.safe_load((shipped.path / "config/config.yaml").read_text())
    update_config(document, yaml.safe_load(text))
    study = validated_study(document | {"experiments": [target]}, shipped.path / "workflow/schemas/config.schema.yaml")
    assert training_jobs(study) == {target: n_training(jobs)}
    assert jobs[target] == 1


def n_training(jobs: dict[str, int]) -> int:
    """How many of some jobs train, or belong to what trains."""
    texts = [path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")]
    training = {name for text in texts for name, body in RULE.findall(text) if "**TRAINING_NODE" in body}
    return sum(n for rule, n in jobs.items() if rule in training)


def test_every_target_of_the_documents_plans(shipped: StudyFolder) -> None:
    runs = [each.words for each in commands() if each.program == "snakemake" and "--configfile" not in each.words]
    parsed = [get_argument_parser().parse_args(words[1:]).targets for words in runs]
    targets = {target.replace("/mine/", "/mixtral/") for each in parsed for target in each}
    assert {"plots", "upcycle", "results/mixtral/systematic.parquet"} <= targets
    assert shipped.planned(*sorted(targets))["plots"] == 1


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


def test_every_rule_runs_here_or_asks_for_a_node() -> None:
    texts = [path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")]
    texts.append((ROOT / "Snakefile").read_text())
    here = {name for text in texts for names in LOCAL.findall(text) for name in names.split(",")}
    rules = {name: body for text in texts for name, body in RULE.findall(text)}
    on_nodes = {name for name, body in rules.items() if "**RECORDING_NODE" in body or "**TRAINING_NODE" in body}
    assert {"record_outliers", "record_shard", "train_dense", "train_classifier"} <= on_nodes
    assert not on_nodes & {name.strip() for name in here}
    assert rules.keys() - on_nodes == {name.strip() for name in here if name.strip()}
