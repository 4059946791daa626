# Put the models of the study side by side: one row per model and preset, and a picture.
#
# INPUTS   results/{model}/outliers/, results/{model}/systematic.parquet of every model
# OUTPUTS  results/comparison/models.parquet, outliers.png, outliers.html


rule compare_models:
    input:
        outliers=expand("results/{model}/outliers", model=MODELS),
        systematic=expand("results/{model}/systematic.parquet", model=MODELS),
    output:
        models="results/comparison/models.parquet",
    log:
        "logs/compare_models.log",
    benchmark:
        "logs/benchmarks/compare_models.tsv"
    params:
        models=MODELS,
        facts=[model_facts(entry) for entry in ENTRIES],
        presets=STUDY["filter_systematic"]["presets"],
        revision=REVISIONS["compare_models"],
    message:
        "Comparing {params.models}"
    script:
        "../scripts/compare_models.py"


rule plot_models:
    input:
        models="results/comparison/models.parquet",
    output:
        png="results/comparison/outliers.png",
        html="results/comparison/outliers.html",
    log:
        "logs/plot_models.log",
    benchmark:
        "logs/benchmarks/plot_models.tsv"
    params:
        preset=STUDY["compare_models"]["default_preset"],
        revision=REVISIONS["plot_models"],
    message:
        "Plotting the comparison"
    script:
        "../scripts/plot_models.py"
