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
from outlier_moe.config.cluster import load_cluster, refuse_larger_cap
from outlier_moe.planning.lengths import refuse_long_sequences
from outlier_moe.planning.rented import NodeNeeds, plan_nodes, training_node
from outlier_moe.study.experiments import experiments_of
from outlier_moe.definitions.presets import (
    LEAST_LAYER_FRACTION,
    LEAST_POSITION_FRACTION,
    presets,
    shape_of,
)
from outlier_moe.config.registry import load_registry, refuse_contradiction
from outlier_moe.scale_sweep.study import OPTIMIZERS, chosen_sweep, rates_of
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


# Models whose sequences are recorded in several parts, and in how many.
SHARDED = {
    model: n_shards
    for model in REGISTRY.models
    if (n_shards := shards_to_record(Path(f"results/{model}/outliers"), STUDY)) > 1
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


# The sweeps over optimisers and scales, with what the preset gives, and the runs of each.
SCALE_SWEEP = chosen_sweep(STUDY)
LM_SCALE_SWEEP = STUDY["lm_scale_sweep"]
SWEEP_RUNS = {
    "scale_sweep": [
        (scale, optimizer, seed)
        for scale in SCALE_SWEEP["scales"]
        for optimizer in SCALE_SWEEP["optimizers"]
        for seed in SCALE_SWEEP["seeds"]
    ],
    "lm_scale_sweep": [
        (f"d{d_model}", optimizer, seed)
        for d_model in LM_SCALE_SWEEP["d_models"]
        for optimizer in LM_SCALE_SWEEP["optimizers"]
        for seed in LM_SCALE_SWEEP["seeds"]
    ],
}
# Of a sweep's choices: which runs there are, and on which images, which are an input; how learning rates are chosen;
# and what is measured along the way. The first decide no run's figures, the second none but through the chosen rate,
# and the third not which rate that is.
OF_SWEEP = ["scales", "d_models", "optimizers", "seeds", "images"]
OF_GRID = ["multiples", "tuning_share", "tuning_seed"]
OF_MEASURES = ["n_checkpoints", "n_recorded"]


def without(section, keys):
    """A section without some of its keys."""
    return {key: section[key] for key in section if key not in keys}


def whole_batches(sweep):
    """How the runs of a sweep are trained, whatever the parts of their batches: scripts read those of the study."""
    return without(sweep["training"], ["n_accumulate"])


def rates_of_run(rates, wildcards):
    """Of the rates of all optimisers those that a run is trained at."""
    return {name: rates[name] for name in rates_of(wildcards.optimizer)}


def of_classifier(wildcards):
    """A classifier's section: of scales and rates its own alone."""
    scale, rates = wildcards.scale, SCALE_SWEEP["learning_rates"]
    return without(SCALE_SWEEP, OF_SWEEP) | {
        "training": whole_batches(SCALE_SWEEP),
        "sizes": {scale: SCALE_SWEEP["sizes"][scale]},
        "learning_rates": rates | {"base": rates_of_run(rates["base"], wildcards)},
    }


def classifier_grid(wildcards):
    """What decides which learning rate of a classifier is chosen."""
    return without(of_classifier(wildcards), OF_MEASURES)


def classifier_choices(wildcards):
    """What decides a classifier's figures, once its rate is chosen."""
    return without(of_classifier(wildcards), OF_GRID)


def of_language_model(wildcards):
    """A language model's section: of the rates its own alone."""
    rates = rates_of_run(LM_SCALE_SWEEP["learning_rates"], wildcards)
    return without(LM_SCALE_SWEEP, OF_SWEEP) | {
        "training": whole_batches(LM_SCALE_SWEEP),
        "learning_rates": rates,
    }


def language_model_grid(wildcards):
    """What decides which learning rate of a language model is chosen."""
    return without(of_language_model(wildcards), OF_MEASURES)


def language_model_choices(wildcards):
    """What decides a language model's figures, once its rate is chosen: there may be but one."""
    chosen = of_language_model(wildcards)
    return without(chosen, OF_GRID if has_grid() else OF_GRID[1:])


def has_grid():
    """Whether learning rates of language models are tried: one is taken as it is."""
    return len(LM_SCALE_SWEEP["multiples"]) > 1


def language_model_rates(wildcards):
    """The table of the learning rates that were tried, if any are."""
    folder = f"results/lm_scale_sweep/d{wildcards.d_model}/{wildcards.optimizer}"
    return f"{folder}/learning_rates.parquet" if has_grid() else []


def sweep_runs(wildcards):
    """The runs of a sweep."""
    return SWEEP_RUNS[wildcards.sweep]


def sweep_folders(wildcards):
    """The folders of a sweep's runs."""
    return [
        f"results/{wildcards.sweep}/{scale}/{optimizer}/seed{seed}/run"
        for scale, optimizer, seed in sweep_runs(wildcards)
    ]


def sweep_metrics(wildcards):
    """The measures of a sweep's runs."""
    return [
        f"results/{wildcards.sweep}/{scale}/{optimizer}/seed{seed}/metrics.parquet"
        for scale, optimizer, seed in sweep_runs(wildcards)
    ]


# Of record_outliers what decides figures; the rest says where and how a model runs, which makes no page anew.
OF_FIGURES = ("taps", "floor", "n_peaks", "dtype")


def told_overrides():
    """The keys of --config that a command for other thresholds has to repeat."""
    told = dict(workflow.config_settings.config)
    if isinstance(section := told.pop("record_outliers", None), dict):
        kept = {key: section[key] for key in OF_FIGURES if key in section}
        told |= {"record_outliers": kept} if kept else {}
    return told


def corpus_of(wildcards):
    """The text that a model is studied on."""
    if STUDY["corpus"] != "auto":
        return STUDY["corpus"]
    return REGISTRY.model(wildcards.model).corpus


def options_of_tokens(wildcards):
    """How a text becomes a model's tokens; a word more for those that may be shorter than the study's."""
    entry, options = REGISTRY.model(wildcards.model), STUDY["tokenize_corpus"]
    is_long_enough = (entry.max_positions or 0) >= options["sequence_length"]
    # Said only where it decides anything: another parameter would make the tokens, and their recording, again.
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


# Whether jobs go to other machines: `jobs` is given, as in profiles/runpod and profiles/slurm, and this is none of them.
ELSEWHERE = workflow.resource_settings.nodes is not None and not workflow.remote_exec


@cache
def rentable():
    """What config/cluster.yaml says, once no run may cost more; a dry run has no executor that could be asked."""
    schema = Path(workflow.basedir) / "workflow/schemas/cluster.schema.yaml"
    executor = workflow.executor_settings
    try:
        cluster = load_cluster(Path("config/cluster.yaml"), schema)
        if hasattr(executor, "max_price_total"):
            refuse_larger_cap(cluster, executor.max_price_total)
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    return cluster


@cache
def nodes_to_record_on(models):
    """The node of each of some models; says which, as rules with a message of their own show no resources."""
    rentable()
    try:
        nodes = plan_nodes(models, STUDY)
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    logger.info("Nodes to record on, by config/cluster.yaml:")
    for model, node in nodes.items():
        logger.info(f"  {model}: {node}")
    return nodes


@cache
def models_to_record():
    """The models of this run, when the first of their nodes is asked for: the jobs are known then."""
    wanted = {
        job.wildcards.model for job in workflow.dag.jobs if job.rule.name in RECORDING
    }
    return tuple(model for model in REGISTRY.models if model in wanted)


def recording_node(wildcards):
    """The node of a model: of all that are recorded, planned at once."""
    together = models_to_record()
    alone = (wildcards.model,)
    return nodes_to_record_on(together if wildcards.model in together else alone)[
        wildcards.model
    ]


@cache
def node_to_train_on():
    """The node of all training."""
    return training_node(rentable())


def node_resources(find):
    """The resources of rules that run on a node; none on this machine, where nothing is planned."""

    def resource(name):
        return lambda wildcards: getattr(find(wildcards), name)

    return {name: resource(name) for name in NodeNeeds._fields} if ELSEWHERE else {}


RECORDING_NODE = node_resources(recording_node)
TRAINING_NODE = node_resources(lambda wildcards: node_to_train_on())


# A recording takes all cores, and jobs of one core that follow each other would never leave them all free: it would wait
# for the last experiment. So training takes turns: while a recording of this run is left, it asks for more than what
# the jobs of models on their way to the recording leave over.
TURNS = 1000
RECORDING = ("record_outliers", "record_shard")


def turns_to_train(wildcards):
    """The turns of a job that trains: all of them until the recordings of this run are made."""
    left = any(job.rule.name in RECORDING for job in workflow.dag.needrun_jobs())
    return TURNS if left else 1


# On other machines no job takes cores from another.
if ELSEWHERE or workflow.remote_exec:
    RECORDING_TURN, TRAINING_TURN = {}, {}
else:
    workflow.register_resource("turns", TURNS)
    RECORDING_TURN, TRAINING_TURN = {"turns": 1}, {"turns": turns_to_train}


def weights_to_send(wildcards):
    """The folder of a model's weights, if they lie in this machine's folders."""
    source = REGISTRY.model(wildcards.model).source
    # What a GGUF file was converted to is in the model's own folder.
    return "" if source.kind == "gguf" else str(getattr(source, "path", ""))


def files_of_node(**paths):
    """Resources that name files which go to a node, or come back from one that failed, beside inputs and outputs."""
    return paths if ELSEWHERE else {}


def goes_on_from(pattern):
    """What a killed job goes on from, beside its output: an executor brings it back, and to the next node."""
    return lambda wildcards: pattern.format(**wildcards)
