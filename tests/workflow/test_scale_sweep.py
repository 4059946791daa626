"""Both sweeps on a tiny configuration: what they leave, what a change of a key reruns, and mistakes before any work."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
import yaml
from PIL import Image

from outlier_moe.definitions.presets import presets
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.scale_sweep.classifiers import classifier_of, train_classifier, try_learning_rates
from outlier_moe.scale_sweep.figures import metrics_of_run
from outlier_moe.scale_sweep.study import chosen_sweep
from outlier_moe.tables.recording import read_recording
from tests.workflow.study_folder import ROOT, StudyFolder, make_study

# Each job costs some seconds of starting a process: as few as show that every rule works.
SUMMARY = "results/scale_sweep/summary.parquet"
LM_SUMMARY = "results/lm_scale_sweep/summary.parquet"
PICTURES = ("performance", "ranks", "sparsity", "outliers", "dynamics")
# Its first step leaves weights whose squares no float32 can hold.
DIVERGING_RATE = 1e30


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    shipped = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    sweep = shipped["scale_sweep"] | {"scales": ["w8"], "optimizers": ["muon"], "seeds": [0], "n_steps": 4}
    sweep |= {"multiples": [30.0], "n_checkpoints": 2, "n_evaluated": 16, "n_recorded": 2}
    sweep["sizes"] |= {name: {"d_model": d, "n_layers": 2, "n_heads": 2} for name, d in (("w8", 8), ("w12", 12))}
    lm = shipped["lm_scale_sweep"] | {"d_models": [16], "d_head": 8, "n_layers": 2, "optimizers": ["adamw", "sgd"]}
    lm |= {"n_steps": 4, "n_checkpoints": 2, "n_evaluated": 2, "n_recorded": 2}
    lm["learning_rates"] |= {"sgd": DIVERGING_RATE}
    upcycle = shipped["upcycle"]
    upcycle["text"] |= {"corpus": "small", "held_out_fraction": 0.5}
    upcycle["model"] |= {"vocab_size": 280, "sequence_length": 16}
    folder = make_study(
        tmp_path_factory.mktemp("sweeps") / "study",
        {"tiny": "gpt2"},
        scale_sweep_preset="laptop",
        scale_sweep=sweep,
        lm_scale_sweep=lm,
        upcycle=upcycle,
    )
    words = "the quick brown fox jumps over the lazy dog that does not mind it at all".split()
    for document in range(4):
        (folder.path / f"words{document}.txt").write_text(" ".join(words[document:] * 9))
    registry = yaml.safe_load((folder.path / "config/models.yaml").read_text())
    registry["corpora"]["small"]["source"]["paths"] = ["words*.txt"]
    (folder.path / "config/models.yaml").write_text(yaml.safe_dump(registry, sort_keys=False))
    folder.snakemake("scale_sweep", "lm_scale_sweep")
    return folder


def test_every_run_has_its_metrics_and_every_scale_its_line(study: StudyFolder) -> None:
    metrics = pl.read_parquet(study.path / "results/scale_sweep/w8/muon/seed0/metrics.parquet")
    assert metrics["step"].unique().sort().to_list() == [0, 1, 4]
    found = set(metrics["metric"])
    assert {"weight_effective_rank_share", "loss_nats", "accuracy", "n_systematic", "max_median_ratio", "peak"} <= found
    summary = pl.read_parquet(study.path / SUMMARY)
    assert summary.select("scale", "optimizer", "n_seeds", "n_diverged").rows() == [("w8", "muon", 1, 0)]
    assert json.loads((study.path / "results/scale_sweep/summary.json").read_text()) == json.loads(summary.write_json())
    figures = pl.read_parquet(study.path / "results/scale_sweep/figures.parquet")
    assert set(figures["moment"]) == {"start", "matched", "end"}


def test_more_scales_optimisers_and_seeds_are_answered(study: StudyFolder, tmp_path: Path) -> None:
    more = study.copied(tmp_path / "more")
    results = more.path / "results/scale_sweep"
    document = yaml.safe_load((more.path / "config/config.yaml").read_text())
    chosen = chosen_sweep(document)
    for scale, optimizer, seed in product(("w8", "w12"), ("adamw", "muon"), (0, 1)):
        run = results / scale / optimizer / f"seed{seed}/run"
        if not run.exists():
            # In this process, which has imported torch: jobs of their own would take a minute.
            of = classifier_of(chosen, results / "images", scale=scale, optimizer=optimizer)
            rates = results / scale / optimizer / "learning_rates.parquet"
            if not rates.exists():
                rates.parent.mkdir(parents=True, exist_ok=True)
                try_learning_rates(of, rates)
            train_classifier(of, rates, run, RecordOptions(floor=0.5, device="cpu"), seed=seed)
            table = metrics_of_run(run, presets(document), default="dettmers2022")
            table.write_parquet(run.parent / "metrics.parquet")
    change = "scale_sweep={scales: [w8, w12], optimizers: [adamw, muon], seeds: [0, 1]}"
    done = more.snakemake(SUMMARY, "--config", change)
    assert "rule train_classifier" not in done.stdout
    names = ("summary", "figures", "trends", "comparisons")
    tables = {name: pl.read_parquet(results / f"{name}.parquet") for name in names}
    assert tables["summary"].select("scale", "optimizer", "n_seeds").rows() == [
        (scale, optimizer, 2) for scale, optimizer in product(("w8", "w12"), ("adamw", "muon"))
    ]
    assert set(tables["trends"].filter(moment="end", figure="hoyer")["optimizer"]) == {"adamw", "muon"}
    assert tables["trends"].filter(moment="end")["slope"].is_not_null().all()
    pooled = tables["comparisons"].filter(scale="all", figure="weight_effective_rank", moment="end")
    assert pooled.select("n_seeds", "n_pairs").rows() == [(2, 4)]
    # In so few steps some runs never get below the loss that others start with.
    matched = tables["figures"].filter(moment="matched", figure="train_loss_nats")
    assert (matched["value"].is_null() == matched["reason"].is_not_null()).all()


def test_whatever_trains_on_a_node_leaves_what_the_next_goes_on_from() -> None:
    rules = (ROOT / "workflow/rules/scale_sweep.smk").read_text().split("\nrule ")
    training = [rule for rule in rules if "TRAINING_NODE" in rule]
    assert [rule.partition(":")[0] for rule in training if "resume=goes_on_from(" in rule] == [
        "try_learning_rates",
        "train_classifier",
        "try_language_model_rates",
        "train_language_model",
    ]
    assert len(training) == 4 and all("{optimizer}/.learning_rates.work" in training[at] for at in (0, 2))


def test_language_models_go_the_same_way(study: StudyFolder) -> None:
    summary = pl.read_parquet(study.path / LM_SUMMARY)
    assert summary.select("scale", "optimizer").rows() == [("d16", "adamw"), ("d16", "sgd")]
    assert summary.filter(optimizer="adamw")["kurtosis_of_feature_rms"].is_not_null().all()
    assert summary["test_accuracy"].null_count() == 2
    run = study.path / "results/lm_scale_sweep/d16/adamw/seed0/run"
    recording = read_recording(run / "recordings/step_00000004/outliers")
    assert set(recording.sites()["tap"].cast(pl.String)) == {"attn_in", "mlp_in", "residual", "residual_rms"}
    metrics = pl.read_parquet(run.parent / "metrics.parquet")
    assert {"q_proj", "k_proj", "v_proj"} <= set(metrics["place"]), "the fused projection is three matrices"


def test_a_run_that_diverges_is_a_result_of_a_sweep_that_ends(study: StudyFolder) -> None:
    runs = pl.read_parquet(study.path / "results/lm_scale_sweep/runs.parquet")
    columns = ("optimizer", "learning_rate", "diverged_at", "n_steps")
    assert runs.select(columns).rows() == [("adamw", 0.01, None, 4), ("sgd", DIVERGING_RATE, 1, 1)]
    summary = pl.read_parquet(study.path / LM_SUMMARY)
    assert summary.select("optimizer", "n_seeds", "n_diverged").rows() == [("adamw", 1, 0), ("sgd", 1, 1)]
    assert summary["train_loss_nats"].is_null().to_list() == [False, True]


@pytest.mark.parametrize(("sweep", "optimizers"), [("scale_sweep", {"muon"}), ("lm_scale_sweep", {"adamw", "sgd"})])
def test_every_picture_is_an_image_a_drawing_and_a_page(study: StudyFolder, sweep: str, optimizers: set[str]) -> None:
    folder = study.path / "results" / sweep / "plots"
    expected = {f"{picture}.{kind}" for picture, kind in product(PICTURES, ("png", "svg", "html"))}
    assert {path.name for path in folder.glob("[!.]*")} == expected
    for picture in PICTURES:
        drawing = ElementTree.parse(folder / f"{picture}.svg").getroot()
        assert optimizers <= set(drawing.itertext())
        _, chart = (folder / f"{picture}.html").read_text().split("vegaEmbed('#chart', ")
        assert all(f'"{optimizer}"' in chart for optimizer in optimizers)
        with Image.open(folder / f"{picture}.png") as image:
            assert image.format == "PNG"
            # Twice the size of the drawing, but for what rounding takes.
            assert image.size == pytest.approx([2 * float(drawing.attrib[side]) for side in ("width", "height")], abs=2)
            assert len(image.getcolors(image.width * image.height) or []) > 1, "an empty picture"


def test_of_several_rates_of_language_models_the_best_is_taken(study: StudyFolder, tmp_path: Path) -> None:
    # The demo's are as they are given: nothing is tried, and no job is started for it.
    assert not (study.path / "results/lm_scale_sweep/d16/adamw/learning_rates.parquet").exists()
    tuned = study.copied(tmp_path / "tuned")
    change = ["--config", "lm_scale_sweep={optimizers: [adamw], multiples: [0.001, 1.0]}"]
    stages = ("try_language_model_rates", "train_language_model", "measure_run", "summarise_sweep")
    assert tuned.planned(LM_SUMMARY, *change) == dict.fromkeys(stages, 1)
    tuned.snakemake(LM_SUMMARY, *change)
    tried = pl.read_parquet(tuned.path / "results/lm_scale_sweep/d16/adamw/learning_rates.parquet")
    assert tried["learning_rate"].to_list() == pytest.approx([1e-5, 1e-2])
    [line] = pl.read_parquet(tuned.path / LM_SUMMARY).to_dicts()
    assert line["learning_rate"] == tried.filter("is_chosen")["learning_rate"].item()
    assert line["grid_edge"] == "highest"
    assert tuned.planned(LM_SUMMARY, *change) == {}


@pytest.mark.parametrize(
    ("of_classifiers", "of_language_models", "again"),
    [
        (
            "{learning_rates: {base: {soap: 0.002, sgd: 0.2}}}",
            "{learning_rates: {soap: 0.2, muon: 0.002}, tuning_seed: 3, tuning_share: 0.5}",
            set(),
        ),
        # AdamW trains what Muon does not take.
        (
            "{learning_rates: {base: {adamw: 0.002}}}",
            "{learning_rates: {adamw: 0.002}}",
            {"try_learning_rates", "train_classifier", "train_language_model"},
        ),
        ("{learning_rates: {base: {muon: 0.02}}}", "{}", {"try_learning_rates", "train_classifier"}),
        ("{n_checkpoints: 1, n_recorded: 1}", "{}", {"train_classifier"}),
    ],
)
def test_only_what_decides_a_run_trains_it_again(
    study: StudyFolder, of_classifiers: str, of_language_models: str, again: set[str]
) -> None:
    changes = (f"scale_sweep={of_classifiers}", f"lm_scale_sweep={of_language_models}")
    after = {"measure_run", "summarise_sweep"} if again else set()
    assert set(study.planned(SUMMARY, LM_SUMMARY, "--config", *changes)) == again | after


def test_a_threshold_and_another_seed_train_nothing_again(study: StudyFolder) -> None:
    assert study.planned(SUMMARY, LM_SUMMARY) == {}
    assert study.planned(SUMMARY, "--config", "magnitude=2.0") == {"measure_run": 1, "summarise_sweep": 1}
    more = study.planned(SUMMARY, "--config", "scale_sweep={seeds: [0, 1]}")
    assert more == {"train_classifier": 1, "measure_run": 1, "summarise_sweep": 1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("scale_sweep_preset=quik", "quick"),
        ("scale_sweep={images: {source: idx, path: nowhere/idx}}", "scale_sweep.images.path"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(study: StudyFolder, change: str, says: str) -> None:
    done = study.snakemake("--dry-run", "scale_sweep", "--config", change, check=False)
    assert done.returncode != 0
    assert says in done.stdout


def test_one_target_of_the_shipped_study_takes_three_stages(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "study", {"tiny": "gpt2"})
    stages = {"prepare_images": 1, "try_learning_rates": 1, "train_classifier": 1, "measure_run": 1}
    assert folder.planned("results/scale_sweep/small/muon/seed0/metrics.parquet") == stages
    assert folder.planned("scale_sweep", "--config", "scale_sweep_preset=quick")["train_classifier"] == 27
