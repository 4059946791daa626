# Does the optimiser decide rank, sparsity, generalisation and outliers, and at every scale? Image classifiers (scale_sweep)
# and small language models (lm_scale_sweep) are trained and measured at every checkpoint.
#
#   prepare_images         -> try_learning_rates       -> train_classifier     -> measure_run -> summarise_sweep
#   tokenize_training_text -> try_language_model_rates -> train_language_model                -> plot_sweep
#
# Each (scale, optimizer, seed) is a job of its own, so that a cluster runs them side by side. A training job that is
# killed goes on from its last checkpoint, which lies beside its outputs. Learning rates are tried once per scale and
# optimizer; for language models only if there are several. A changed threshold makes the output of measure_run and of
# later stages again, and trains nothing.
#
# INPUTS   none (digits), the hub (cifar10) or scale_sweep.images.path (idx); results/upcycle/text
# OUTPUTS  results/scale_sweep/images/                                 the parts of the images
#          results/{sweep}/{scale}/{optimizer}/learning_rates.parquet
#          results/{sweep}/{scale}/{optimizer}/seed{seed}/run/         history, measures, recordings, model
#          results/{sweep}/{scale}/{optimizer}/seed{seed}/metrics.parquet
#          results/{sweep}/{summary,runs,figures,dynamics,trends,comparisons}.parquet, summary.json
#          results/{sweep}/plots/

from outlier_moe.scale_sweep.study import refuse_missing_images
from outlier_moe.study.study import FILE

SWEEP_PICTURES = ["performance", "ranks", "sparsity", "outliers", "dynamics"]

# The user's image files are checked here and are no input of a rule: with split images of another source in place,
# Snakemake would not notice that they are missing. Nodes get the split images only.
if not workflow.remote_exec:
    try:
        refuse_missing_images(SCALE_SWEEP, file=FILE)
    except StudyError as error:
        raise WorkflowError(str(error)) from None


wildcard_constraints:
    sweep=one_of(SWEEP_RUNS),
    scale=one_of(SCALE_SWEEP["sizes"]) + r"|d\d+",
    optimizer=one_of(OPTIMIZERS),


localrules:
    scale_sweep,
    lm_scale_sweep,
    prepare_images,
    measure_run,
    summarise_sweep,
    plot_sweep,


rule scale_sweep:
    input:
        "results/scale_sweep/summary.parquet",
        expand("results/scale_sweep/plots/{picture}.png", picture=SWEEP_PICTURES),


rule lm_scale_sweep:
    input:
        "results/lm_scale_sweep/summary.parquet",
        expand("results/lm_scale_sweep/plots/{picture}.png", picture=SWEEP_PICTURES),


rule prepare_images:
    output:
        images=directory("results/scale_sweep/images"),
    log:
        "logs/prepare_images.log",
    benchmark:
        "logs/benchmarks/prepare_images.tsv"
    params:
        images=SCALE_SWEEP["images"],
        revision=REVISIONS["prepare_images"],
    message:
        "Dividing the images of the scale sweep"
    script:
        "../scripts/prepare_images.py"


rule try_learning_rates:
    input:
        images="results/scale_sweep/images",
    output:
        rates="results/scale_sweep/{scale}/{optimizer}/learning_rates.parquet",
    log:
        "logs/try_learning_rates/{scale}-{optimizer}.log",
    benchmark:
        "logs/benchmarks/try_learning_rates/{scale}-{optimizer}.tsv"
    wildcard_constraints:
        scale=one_of(SCALE_SWEEP["sizes"]),
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        resume=goes_on_from(
            "results/scale_sweep/{scale}/{optimizer}/.learning_rates.work"
        ),
    params:
        sweep=classifier_grid,
        revision=REVISIONS["try_learning_rates"],
    message:
        "Trying learning rates of {wildcards.optimizer} at scale {wildcards.scale}"
    script:
        "../scripts/try_learning_rates.py"


rule train_classifier:
    input:
        images="results/scale_sweep/images",
        rates="results/scale_sweep/{scale}/{optimizer}/learning_rates.parquet",
    output:
        run=directory("results/scale_sweep/{scale}/{optimizer}/seed{seed}/run"),
    log:
        "logs/train_classifier/{scale}-{optimizer}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/train_classifier/{scale}-{optimizer}-seed{seed}.tsv"
    wildcard_constraints:
        scale=one_of(SCALE_SWEEP["sizes"]),
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        resume=goes_on_from(
            "results/scale_sweep/{scale}/{optimizer}/seed{seed}/.run.work"
        ),
    params:
        sweep=classifier_choices,
        taps=STUDY["record_outliers"]["taps"],
        floor=STUDY["record_outliers"]["floor"],
        n_peaks=STUDY["record_outliers"]["n_peaks"],
        revision=REVISIONS["train_classifier"],
    message:
        "Training a classifier: {wildcards.scale}, {wildcards.optimizer}, seed {wildcards.seed}"
    script:
        "../scripts/train_classifier.py"


rule try_language_model_rates:
    input:
        text="results/upcycle/text",
    output:
        rates="results/lm_scale_sweep/d{d_model}/{optimizer}/learning_rates.parquet",
    log:
        "logs/try_language_model_rates/d{d_model}-{optimizer}.log",
    benchmark:
        "logs/benchmarks/try_language_model_rates/d{d_model}-{optimizer}.tsv"
    wildcard_constraints:
        d_model=r"\d+",
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        resume=goes_on_from(
            "results/lm_scale_sweep/d{d_model}/{optimizer}/.learning_rates.work"
        ),
    params:
        sweep=language_model_grid,
        vocab_size=STUDY["upcycle"]["model"]["vocab_size"],
        sequence_length=STUDY["upcycle"]["model"]["sequence_length"],
        revision=REVISIONS["try_language_model_rates"],
    message:
        "Trying learning rates of {wildcards.optimizer} at d_model {wildcards.d_model}"
    script:
        "../scripts/try_language_model_rates.py"


rule train_language_model:
    input:
        text="results/upcycle/text",
        rates=language_model_rates,
    output:
        run=directory("results/lm_scale_sweep/d{d_model}/{optimizer}/seed{seed}/run"),
    log:
        "logs/train_language_model/d{d_model}-{optimizer}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/train_language_model/d{d_model}-{optimizer}-seed{seed}.tsv"
    wildcard_constraints:
        d_model=r"\d+",
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        resume=goes_on_from(
            "results/lm_scale_sweep/d{d_model}/{optimizer}/seed{seed}/.run.work"
        ),
    params:
        sweep=language_model_choices,
        vocab_size=STUDY["upcycle"]["model"]["vocab_size"],
        sequence_length=STUDY["upcycle"]["model"]["sequence_length"],
        taps=STUDY["record_outliers"]["taps"],
        floor=STUDY["record_outliers"]["floor"],
        n_peaks=STUDY["record_outliers"]["n_peaks"],
        revision=REVISIONS["train_language_model"],
    message:
        "Training a language model: d_model {wildcards.d_model}, {wildcards.optimizer}, seed {wildcards.seed}"
    script:
        "../scripts/train_language_model.py"


rule measure_run:
    input:
        run="results/{sweep}/{scale}/{optimizer}/seed{seed}/run",
    output:
        metrics="results/{sweep}/{scale}/{optimizer}/seed{seed}/metrics.parquet",
    log:
        "logs/measure_run/{sweep}-{scale}-{optimizer}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/measure_run/{sweep}-{scale}-{optimizer}-seed{seed}.tsv"
    params:
        magnitude=STUDY["magnitude"],
        layer_fraction=STUDY["layer_fraction"],
        position_fraction=STUDY["position_fraction"],
        filter_systematic=STUDY["filter_systematic"],
        preset=DEFAULT_PRESET,
        revision=REVISIONS["filter_systematic"],
    message:
        "Measuring the run of {wildcards.scale}, {wildcards.optimizer}, seed {wildcards.seed}"
    script:
        "../scripts/measure_run.py"


rule summarise_sweep:
    input:
        runs=sweep_folders,
        metrics=sweep_metrics,
    output:
        summary="results/{sweep}/summary.parquet",
        runs="results/{sweep}/runs.parquet",
        figures="results/{sweep}/figures.parquet",
        dynamics="results/{sweep}/dynamics.parquet",
        trends="results/{sweep}/trends.parquet",
        comparisons="results/{sweep}/comparisons.parquet",
        document="results/{sweep}/summary.json",
    log:
        "logs/summarise_sweep/{sweep}.log",
    benchmark:
        "logs/benchmarks/summarise_sweep/{sweep}.tsv"
    params:
        runs=sweep_runs,
        revision=REVISIONS["summarise_sweep"],
    message:
        "Summarising {wildcards.sweep}"
    script:
        "../scripts/summarise_sweep.py"


rule plot_sweep:
    input:
        dynamics="results/{sweep}/dynamics.parquet",
        figures="results/{sweep}/figures.parquet",
        vega="resources/vega.js",
    output:
        pictures=report(
            expand("results/{{sweep}}/plots/{picture}.png", picture=SWEEP_PICTURES),
            caption="../report/sweep.rst",
            category="Optimisers and scales",
            subcategory="{sweep}",
        ),
        others=expand(
            "results/{{sweep}}/plots/{picture}.{format}",
            picture=SWEEP_PICTURES,
            format=["svg", "html"],
        ),
    log:
        "logs/plot_sweep/{sweep}.log",
    benchmark:
        "logs/benchmarks/plot_sweep/{sweep}.tsv"
    params:
        revision=REVISIONS["plot_sweep"],
    message:
        "Plotting {wildcards.sweep}"
    script:
        "../scripts/plot_sweep.py"
