"""outlier_moe: outlier features in dense and Mixture-of-Experts transformers.

fetch -> tokenize -> record -> count -+-> filter: each model's systematic.parquet
                   (the GPU)          +-> compare -> intervals, tests, verification -> report
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


# For --software-deployment-method apptainer only. Otherwise rules run in the environment that snakemake runs in.
container: "docker://python:3.11-bookworm"


include: "workflow/rules/common.smk"
include: "workflow/rules/sweep_choices.smk"
include: "workflow/rules/nodes.smk"
include: "workflow/rules/keeping.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/tokenize.smk"
include: "workflow/rules/record.smk"
include: "workflow/rules/filter.smk"
include: "workflow/rules/count.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/upcycle.smk"
include: "workflow/rules/scale_sweep.smk"
include: "workflow/rules/messages.smk"


localrules:
    all,
    plots,


rule all:
    input:
        "results/report/index.html",
        "results/comparison/models.parquet",
        "results/comparison/outliers.png",
        "results/comparison/outliers.html",
        "results/comparison/plots/thresholds.png",
        expand("results/{model}/systematic.parquet", model=MODELS),
        rules.upcycle.input if "upcycle" in EXPERIMENTS else [],
        rules.scale_sweep.input if "scale_sweep" in EXPERIMENTS else [],
        rules.lm_scale_sweep.input if "lm_scale_sweep" in EXPERIMENTS else [],


# Not made by `snakemake` alone, since the report already shows these pictures.
rule plots:
    input:
        rules.all.input,
        expand("results/{model}/plots", model=MODELS),
