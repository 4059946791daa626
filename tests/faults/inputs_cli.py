"""Wrong arguments, targets, keys of --config, registries and tiers, as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from outlier_moe.config.cluster import load_cluster
from outlier_moe.planning.targets import rule_of_many, unknown_target
from tests.faults.wrong_inputs import ROOT, SCHEMAS, Answer, WrongInput, called, command, registered, studied

SHIPPED = ("--registry", str(ROOT / "config/models.yaml"), "--registry-schema", str(SCHEMAS / "models.schema.yaml"))
CHECK = (*SHIPPED, "--config", str(ROOT / "config/config.yaml"), "--schemas", str(SCHEMAS))
PLAN = (
    *("--config", str(ROOT / "config/config.yaml"), "--registry", str(ROOT / "config/models.yaml")),
    *("--cluster", str(ROOT / "config/cluster.yaml"), "--schemas", str(SCHEMAS), "--no-hub"),
)
MODEL = r"{model,smollm2|mixtral}"
OUTPUTS = {
    "all": [],
    "record_outliers": [f"results/{MODEL}/outliers"],
    "filter_systematic": [f"results/{MODEL}/systematic.parquet"],
    "write_report": ["results/report/index.html"],
    "measure_run": [r"results/{sweep,scale_sweep}/{scale,small|large}/{optimizer,adamw|muon}/seed{seed,\d+}/run"],
    "scale_sweep": [],
}


def asked(*argv: str) -> Callable[[Path], Answer]:
    """Ask the command line."""
    return lambda folder: command(*argv)


def target(name: str) -> Callable[[Path], Answer]:
    """Ask for a target that no rule makes."""
    return lambda folder: Answer(True, str(unknown_target(name, OUTPUTS, ["smollm2", "mixtral"])))


def tiers(**changed: Any) -> Callable[[Path], Answer]:
    """Ask for the shipped tiers with some keys set."""

    def ask_for(folder: Path) -> Answer:
        document = yaml.safe_load((ROOT / "config/cluster.yaml").read_text()) | changed
        (folder / "cluster.yaml").write_text(yaml.safe_dump(document))
        return called(load_cluster, folder / "cluster.yaml", SCHEMAS / "cluster.schema.yaml")

    return ask_for


def with_file(name: str, content: str, *argv: str) -> Callable[[Path], Answer]:
    """Ask the command line where a file has the wrong content."""

    def ask_for(folder: Path) -> Answer:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return command(*argv)

    return ask_for


def rule_with_wildcards(folder: Path) -> Answer:
    return Answer(True, str(rule_of_many("record_outliers", OUTPUTS["record_outliers"])))


def no_registry(folder: Path) -> Answer:
    return command("models", "--registry", str(folder / "nowhere.yaml"), *SHIPPED[2:])


def several_mistakes(folder: Path) -> Answer:
    return studied(magnitud=6.0, sweeps="demo", tokenize_corpus={"n_sequence": 3})(folder)


CASES = [
    WrongInput("command: a misspelt one", asked("comparee"), ("did you mean 'compare'",)),
    WrongInput("command: none", asked(), ("COMMAND",)),
    WrongInput("command: a misspelt option", asked("compare", "--modles", "a"), ("did you mean '--models'",)),
    WrongInput("command: a misspelt format", asked("compare", "--format", "markdwn"), ("did you mean 'markdown'",)),
    WrongInput("command: a format of another command", asked("show", "--format", "latex"), ("latex", "csv")),
    WrongInput("command: no model for top", asked("top"), ("MODEL",)),
    WrongInput("command: no model for check", asked("check"), ("MODEL",)),
    WrongInput("command: a word where -n wants a number", asked("top", "smollm2", "-n", "ten"), ("-n", "ten")),
    WrongInput("command: -n 0", asked("top", "smollm2", "-n", "0"), ("-n", "from 1 up")),
    WrongInput("command: -n below 0", asked("top", "smollm2", "-n=-3"), ("-n", "-3")),
    WrongInput("command: a misspelt sweep", asked("sweep", "lm_scale_swep"), ("did you mean 'lm_scale_sweep'",)),
    WrongInput("command: a shell that has no completion", asked("completion", "bsh"), ("did you mean 'bash'",)),
    WrongInput("show: no results", asked("show"), ("models.parquet", "snakemake")),
    WrongInput("show: results that are nowhere", asked("show", "--results", "reslts"), ("reslts", "snakemake")),
    WrongInput(
        "show: a text in the place of a table",
        with_file("results/comparison/models.parquet", "nothing of the kind", "show"),
        ("models.parquet", "snakemake"),
    ),
    WrongInput(
        "top: a cut table",
        with_file("results/smollm2/systematic.parquet", "PAR1", "top", "smollm2"),
        ("systematic.parquet", "snakemake"),
    ),
    WrongInput("top: a misspelt model", asked("top", "smolm2", *SHIPPED), ("did you mean 'smollm2'",)),
    WrongInput("top: experts of a dense model", asked("top", "smollm2", "--experts", *SHIPPED), ("is dense", "top")),
    WrongInput("top: experts of an unknown model", asked("top", "mixtrl", "--experts", *SHIPPED), ("'mixtral'",)),
    WrongInput("top: experts that are not recorded", asked("top", "mixtral", "--experts", *SHIPPED), ("snakemake",)),
    WrongInput("compare: no results", asked("compare"), ("models.parquet", "snakemake")),
    WrongInput("verify: a misspelt model", asked("verify", "smolm2", *SHIPPED), ("did you mean 'smollm2'",)),
    WrongInput("verify: a model that is not recorded", asked("verify", "smollm2", *SHIPPED), ("smollm2", "snakemake")),
    WrongInput("sweep: no results", asked("sweep"), ("summary.parquet", "snakemake scale_sweep")),
    WrongInput("upcycling: no results", asked("upcycling"), ("summary.parquet", "snakemake upcycle")),
    WrongInput("models: no registry", no_registry, ("nowhere.yaml", "YAML file")),
    WrongInput("check: a misspelt model", asked("check", "mixtrall", *CHECK), ("did you mean 'mixtral'",)),
    WrongInput("check: a folder that is nowhere", asked("check", "./nowhere", *CHECK), ("./nowhere", "a folder")),
    WrongInput("check: an empty folder", asked("check", ".", *CHECK), ("refused", "safetensors")),
    WrongInput(
        "check: a gguf file that is none", with_file("a.gguf", "x" * 64, "check", "a.gguf", *CHECK), ("a.gguf",)
    ),
    WrongInput("plan: a misspelt model", asked("plan", "mixtrall", *PLAN), ("did you mean 'mixtral'",)),
    WrongInput("plan: a misspelt sweep", asked("plan", "--sweep", "densee", *PLAN), ("did you mean 'dense'",)),
    WrongInput("plan: models and a sweep", asked("plan", "mixtral", "--sweep", "moe", *PLAN), ("--sweep", "either")),
    WrongInput("plan: no study", asked("plan", *PLAN[2:]), ("config/config.yaml", "YAML file")),
    WrongInput("target: a misspelt model", target("results/mixtrall/systematic.parquet"), ("mean 'results/mixtral/",)),
    WrongInput("target: a misspelt table", target("results/mixtral/systemtic.parquet"), ("/systematic.parquet'",)),
    WrongInput("target: a misspelt folder", target("reslts/report/index.html"), ("'results/report/index.html'",)),
    WrongInput("target: a misspelt scale", target("results/scale_sweep/lrge/adamw/seed0/run"), ("/large/adamw/",)),
    WrongInput("target: a misspelt optimiser", target("results/scale_sweep/small/adam/seed1/run"), ("/adamw/seed1",)),
    WrongInput("target: a misspelt rule", target("scale_swep"), ("did you mean 'scale_sweep'",)),
    WrongInput("target: a model's name", target("mixtral"), ("results/mixtral/systematic.parquet",)),
    WrongInput("target: a file inside a result", target("results/smollm2/outliers/run.json"), ("smollm2/outliers",)),
    WrongInput("target: a folder above results", target("results/report"), ("results/report/index.html",)),
    WrongInput("target: nothing of the kind", target("qqqq"), ("--list-target-rules",)),
    WrongInput("target: a rule of many files", rule_with_wildcards, ("results/MODEL/outliers",)),
    WrongInput("config: several mistakes at once", several_mistakes, ("magnitud", "sweeps", "n_sequence")),
    WrongInput("config: a text where a number stands", studied(layer_fraction="a lot"), ("layer_fraction", "a lot")),
    WrongInput("config: a share above 1", studied(position_fraction=6), ("position_fraction", "at most 1")),
    WrongInput("config: a list where a name stands", studied(sweep=["demo", "moe"]), ("sweep",)),
    WrongInput("config: a name where a list stands", studied(models="mixtral"), ("models", "a list")),
    WrongInput("config: null where a mapping stands", studied(record_outliers=None), ("record_outliers", "mapping")),
    WrongInput("config: true for a number", studied(magnitude=True), ("magnitude", "number")),
    WrongInput("config: a misspelt experiment", studied(experiments=["upcycel"]), ("did you mean 'upcycle'",)),
    WrongInput("config: a misspelt tap", studied(record_outliers={"taps": ["residul"]}), ("did you mean 'residual'",)),
    WrongInput("config: a misspelt mode", studied(record_outliers={"mode": "streamd"}), ("did you mean 'streamed'",)),
    WrongInput("registry: a list", registered(["smollm2"]), ("models.yaml", "mapping")),
    WrongInput("registry: no YAML", registered("models: [\n"), ("models.yaml", "YAML")),
    WrongInput("tiers: a misspelt key", tiers(max_price_totl=3), ("did you mean 'max_price_total'",)),
    WrongInput("tiers: a price below 0", tiers(max_price_total=-1), ("max_price_total", "-1")),
    WrongInput("tiers: training on a tier that is not there", tiers(training_tier="smaller"), ("training_tier",)),
]
