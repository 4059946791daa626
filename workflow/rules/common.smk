# What the rules share: the validated study, the registry of models, and each stage's revision.
#
# INPUTS   config/config.yaml (and --config), config/models.yaml
# OUTPUTS  none

import re
from dataclasses import asdict
from functools import cache
from pathlib import Path

from outlier_moe.tables.contents import DigestMemo
from outlier_moe.errors import StudyError
from outlier_moe.planning.lengths import refuse_long_sequences
from outlier_moe.planning.workload import model_tokens
from outlier_moe.study.experiments import experiments_of
from outlier_moe.definitions.presets import (
    LEAST_LAYER_FRACTION,
    LEAST_POSITION_FRACTION,
    presets,
    shape_of,
)
from outlier_moe.config.registry import load_registry, refuse_contradiction
from outlier_moe.scale_sweep.study import OPTIMIZERS
from outlier_moe.definitions.sharding import shards_to_record
from outlier_moe.sources.local_files import local_state
from outlier_moe.study.study import validated_study
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# Raise a stage's number when its figures change: Snakemake reruns a rule when a parameter changes, not when a module
# in src/ does.
REVISIONS = {
    "fetch_model": 1,
    "fetch_corpus": 1,
    "tokenize_corpus": 1,
    "record_outliers": 2,
    "merge_shards": 1,
    "filter_systematic": 2,
    "count_at_edges": 2,
    "compare_models": 5,
    "plot_models": 1,
    "bootstrap_comparison": 3,
    "test_models": 4,
    "verify_models": 4,
    "bundle_vega": 1,
    "plot_comparison": 1,
    "plot_model": 2,
    "write_report": 6,
    "tokenize_training_text": 1,
    "train_dense": 1,
    "upcycle_dense": 1,
    "train_moe": 1,
    "summarise_upcycling": 2,
    "plot_upcycling": 1,
    "prepare_images": 2,
    "try_learning_rates": 2,
    "train_classifier": 6,
    "try_language_model_rates": 2,
    "train_language_model": 4,
    "summarise_sweep": 8,
    "plot_sweep": 4,
}


def load_study(overridden):
    """The study with its defaults, and the registry, or the mistake in either as Snakemake shows it."""
    schemas = Path(workflow.basedir) / "workflow/schemas"
    try:
        study = validated_study(overridden, schemas / "config.schema.yaml")
        registry = load_registry(
            Path("config/models.yaml"), schemas / "models.schema.yaml"
        )
        entries = registry.chosen(study["models"], sweep=study["sweep"])
        length = study["tokenize_corpus"]["sequence_length"]
        refuse_long_sequences(entries, length, Path("resources/models"))
        for entry in entries:
            refuse_contradiction(entry, Path("resources/models"))
        if study["corpus"] != "auto":
            registry.corpus(study["corpus"])
        if {"upcycle", "lm_scale_sweep"} & set(study["experiments"]):
            registry.corpus(study["upcycle"]["text"]["corpus"])
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    return study, registry, entries


STUDY, REGISTRY, CHOSEN = load_study(config)
# Scripts read from it what decides how a stage runs and not what it finds, which is no parameter of a rule.
config.update(STUDY)
ENTRIES = [entry for entry in CHOSEN if entry.unavailable is None]
MODELS = [entry.id for entry in ENTRIES]
PRESETS = presets(STUDY)
EXPERIMENTS = experiments_of(STUDY)
UPCYCLING_TABLES = (
    expand(
        "results/upcycle/{table}.parquet",
        table=["summary", "checkpoints", "outliers", "history", "experts", "samples"],
    )
    if "upcycle" in EXPERIMENTS
    else []
)
SWEEP_TABLES = {
    sweep: expand(
        "results/{sweep}/{table}.parquet",
        sweep=sweep,
        table=["summary", "runs", "figures", "dynamics", "trends", "comparisons"],
    )
    for sweep in ("scale_sweep", "lm_scale_sweep")
    if sweep in EXPERIMENTS
}
DEFAULT_PRESET = STUDY["compare_models"]["default_preset"]
# Every definition with the study's thresholds filled in: what judging features depends on.
JUDGED_BY = [asdict(preset) for preset in PRESETS]
# What of them decides which peaks are kept for massive activations; the fractions of layers and positions do not.
MASSIVE = [
    {key: preset[key] for key in ("name", "rule", "view", "magnitude", "median_ratio")}
    for preset in JUDGED_BY
    if preset["rule"] == "massive"
]
# Those whose figures are tested; each more of them makes all q-values larger.
TESTED_PRESETS = (
    [DEFAULT_PRESET]
    if STUDY["test_models"]["presets"] == "default"
    else [preset.name for preset in PRESETS]
)
for entry in CHOSEN:
    if entry.unavailable is not None:
        logger.warning(f"{entry.id} is left out: {entry.unavailable}")


def n_shards_of(model):
    """The number of parts in which a model's sequences are recorded."""
    tokens = model_tokens(STUDY, REGISTRY.model(model))
    options = STUDY["record_outliers"]
    return shards_to_record(Path(f"results/{model}/outliers"), tokens, options)


# Models whose sequences are recorded in several parts, and in how many.
SHARDED = {
    model: n_shards for model in REGISTRY.models if (n_shards := n_shards_of(model)) > 1
}


def one_of(names):
    """The pattern of some names; of none, one that nothing matches."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def shards_of(wildcards):
    """The recordings of the parts of a model's sequences."""
    return expand(
        "results/{model}/shards/{shard}-of-{n_shards}",
        model=wildcards.model,
        shard=range(1, SHARDED[wildcards.model] + 1),
        n_shards=SHARDED[wildcards.model],
    )


wildcard_constraints:
    model="|".join(re.escape(model) for model in REGISTRY.models),
    corpus="|".join(re.escape(corpus) for corpus in REGISTRY.corpora),


# Of record_outliers what decides figures; the rest says where and how a model runs, which makes no page anew.
OF_FIGURES = ("taps", "floor", "n_peaks", "dtype")


def kept_overrides():
    """The keys of --config that a command for other thresholds has to repeat."""
    kept_keys = dict(workflow.config_settings.config)
    if isinstance(section := kept_keys.pop("record_outliers", None), dict):
        kept = {key: section[key] for key in OF_FIGURES if key in section}
        kept_keys |= {"record_outliers": kept} if kept else {}
    return kept_keys


def corpus_of(wildcards):
    """The text that a model is studied on."""
    if STUDY["corpus"] != "auto":
        return STUDY["corpus"]
    return REGISTRY.model(wildcards.model).corpus


def options_of_tokens(wildcards):
    """How a text becomes a model's tokens; `shortens` marks a model that may need shorter sequences than the study's."""
    entry = REGISTRY.model(wildcards.model)
    options = model_tokens(STUDY, entry)
    is_long_enough = (entry.max_positions or 0) >= options["sequence_length"]
    # Added only where it has an effect: another parameter would make the tokens, and so the recording, again.
    if entry.sequence_length == "study" or is_long_enough:
        return options
    return options | {"shortens": True}


def corpus_file(wildcards):
    """The fetched text that a model is studied on."""
    return f"resources/corpora/{corpus_of(wildcards)}.parquet"


# Of this machine's files that the study reads: by what they hold, so that a copy of the study is the same study.
DIGESTS = DigestMemo(Path("resources/.digests.json"))


def available(model):
    """The registry's entry of a model that can be had."""
    entry = REGISTRY.model(model)
    if entry.unavailable is not None:
        error = StudyError(
            "A model cannot be had.",
            file=REGISTRY.file,
            key=f"models.{model}.unavailable",
            got=entry.unavailable,
            remedy="Take another model, or give the entry a source.",
        )
        raise WorkflowError(str(error))
    return entry


def model_source(wildcards):
    """Where a model comes from; a change of it, of its files here or of its leave fetches the model again."""
    entry = available(wildcards.model)
    leave = " with its code" if entry.trust_remote_code else ""
    return f"{entry.source!r}{leave} {local_state(entry.source, DIGESTS)}".strip()


def corpus_source(wildcards):
    """Where a text comes from and how much of it; a change of either, or of its files here, fetches it again."""
    entry = REGISTRY.corpus(wildcards.corpus)
    return f"{entry!r} {local_state(entry.source, DIGESTS)}".strip()


def model_facts(entry):
    """What the registry says of a model; what it leaves out is None, and comes from the recording."""
    return {
        "model": entry.id,
        **entry.labels,
        "routing": entry.routing,
        "release_date": entry.release_date,
    }


def model_revision(entry):
    """The revision of a model's repository that the registry asks for; published figures are of main."""
    return "main" if entry.copy_of else getattr(entry.source, "revision", "main")
