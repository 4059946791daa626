# Put the models of the study side by side: one row per model and preset, and a picture.
#
# Features are judged here from each model's counts, without waiting for filter_systematic, whose tables have the same
# features and more columns.
#
# INPUTS   results/{model}/outliers/, results/{model}/sequence_counts/ of every model
# OUTPUTS  results/comparison/models.parquet    one row per (model, preset, first token in or out)
#          results/comparison/features.parquet  every systematic feature of every model
#          results/comparison/left_out.parquet  models that no comparison may speak of, and why
#          results/comparison/outliers.png, outliers.html


localrules:
    compare_models,
    plot_models,


rule compare_models:
    input:
        outliers=expand("results/{model}/outliers", model=MODELS),
        counts=expand("results/{model}/sequence_counts", model=MODELS),
    output:
        models="results/comparison/models.parquet",
        features="results/comparison/features.parquet",
        left_out="results/comparison/left_out.parquet",
    log:
        "logs/compare_models.log",
    benchmark:
        "logs/benchmarks/compare_models.tsv"
    # The report waits for this, so it runs before the pictures and tables of single models.
    priority: 10
    params:
        models=MODELS,
        facts=[model_facts(entry) for entry in ENTRIES],
        presets=JUDGED_BY,
        revision=REVISIONS["compare_models"],
    message:
        "Comparing {params.models}"
    script:
        "../scripts/compare_models.py"


rule plot_models:
    input:
        models="results/comparison/models.parquet",
        vega="resources/vega.js",
    output:
        png="results/comparison/outliers.png",
        html="results/comparison/outliers.html",
    log:
        "logs/plot_models.log",
    benchmark:
        "logs/benchmarks/plot_models.tsv"
    params:
        preset=DEFAULT_PRESET,
        revision=REVISIONS["plot_models"],
    message:
        "Plotting the comparison"
    script:
        "../scripts/plot_models.py"
