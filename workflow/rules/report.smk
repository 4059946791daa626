# Pictures as files, and the report: one page that opens offline. The script that draws is bundled once.
#
# INPUTS   results/{model}/outliers/, edge_counts.json, layer_peaks.parquet, results/comparison/*.parquet
# OUTPUTS  results/report/index.html        everything in one file: findings, sliders, pictures, tables, provenance
#          results/comparison/plots/        each picture of all models as png, svg, and a page with tooltips
#          results/{model}/plots/           each picture of one model (`snakemake plots`)

FRACTIONS = [
    f"{of}-{kind}" for of in ("layers", "positions") for kind in ("mean", "median")
]


localrules:
    bundle_vega,
    plot_comparison,
    plot_model,
    write_report,


rule bundle_vega:
    output:
        script="resources/vega.js",
    log:
        "logs/bundle_vega.log",
    benchmark:
        "logs/benchmarks/bundle_vega.tsv"
    params:
        revision=REVISIONS["bundle_vega"],
    message:
        "Bundling the scripts that draw in a browser"
    script:
        "../scripts/bundle_vega.py"


rule plot_comparison:
    input:
        models="results/comparison/models.parquet",
        edge_counts=expand("results/{model}/edge_counts.json", model=MODELS),
        intervals="results/comparison/intervals.parquet",
        vega="resources/vega.js",
    output:
        size=report(
            expand(
                "results/comparison/plots/{against}-{figure}.png",
                against=["total", "active"],
                figure=["count", "dual", *FRACTIONS],
            ),
            caption="../report/size.rst",
            category="Against size",
        ),
        perplexity=report(
            expand(
                "results/comparison/plots/perplexity-{figure}.png",
                figure=["count", *FRACTIONS],
            ),
            caption="../report/perplexity.rst",
            category="Against perplexity",
        ),
        thresholds=report(
            "results/comparison/plots/thresholds.png",
            caption="../report/thresholds.rst",
            category="Thresholds",
        ),
        others=expand(
            "results/comparison/plots/{picture}.{format}",
            picture=[
                "thresholds",
                *expand(
                    "{against}-{figure}",
                    against=["total", "active"],
                    figure=["count", "dual", *FRACTIONS],
                ),
                *expand("perplexity-{figure}", figure=["count", *FRACTIONS]),
            ],
            format=["svg", "html"],
        ),
    log:
        "logs/plot_comparison.log",
    benchmark:
        "logs/benchmarks/plot_comparison.tsv"
    params:
        models=MODELS,
        preset=DEFAULT_PRESET,
        presets=JUDGED_BY,
        revision=REVISIONS["plot_comparison"],
    message:
        "Plotting the comparison"
    script:
        "../scripts/plot_comparison.py"


rule plot_model:
    input:
        outliers="results/{model}/outliers",
        systematic="results/{model}/systematic.parquet",
        edge_counts="results/{model}/edge_counts.json",
        layer_peaks="results/{model}/layer_peaks.parquet",
        vega="resources/vega.js",
    output:
        plots=report(
            directory("results/{model}/plots"),
            patterns=["{picture}.png"],
            caption="../report/model.rst",
            category="Model by model",
            subcategory="{model}",
            labels={"picture": "{picture}"},
        ),
    log:
        "logs/plot_model/{model}.log",
    benchmark:
        "logs/benchmarks/plot_model/{model}.tsv"
    params:
        preset=DEFAULT_PRESET,
        revision=REVISIONS["plot_model"],
    message:
        "Plotting {wildcards.model}"
    script:
        "../scripts/plot_model.py"


rule write_report:
    input:
        **SWEEP_TABLES,
        models="results/comparison/models.parquet",
        outliers=expand("results/{model}/outliers", model=MODELS),
        features="results/comparison/features.parquet",
        left_out="results/comparison/left_out.parquet",
        edge_counts=expand("results/{model}/edge_counts.json", model=MODELS),
        layer_peaks=expand("results/{model}/layer_peaks.parquet", model=MODELS),
        statistics=STATISTICS,
        upcycling=UPCYCLING_TABLES,
        vega="resources/vega.js",
    output:
        page=report(
            "results/report/index.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "logs/write_report.log",
    benchmark:
        "logs/benchmarks/write_report.tsv"
    priority: 10
    params:
        models=MODELS,
        skipped={entry.id: entry.unavailable for entry in CHOSEN if entry.unavailable},
        presets=JUDGED_BY,
        sweeps=list(SWEEP_TABLES),
        overrides=kept_overrides(),
        configfiles=[
            os.path.relpath(path) for path in workflow.config_settings.configfiles
        ],
        revision=REVISIONS["write_report"],
    message:
        "Writing the report"
    script:
        "../scripts/write_report.py"
