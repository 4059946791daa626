# The statistics of the comparison: intervals from resampled sequences, tests over the models, and each model held against
# published figures. Of a recording only sites and experts are read.
#
# INPUTS   results/{model}/outliers/, results/{model}/sequence_counts/, results/comparison/*.parquet
# OUTPUTS  results/comparison/intervals.parquet, differences.parquet, stability.parquet, resamples.parquet
#          results/comparison/dense_moe.parquet, pairs.parquet, groups.parquet
#          results/comparison/phase_transitions.parquet, trends.parquet
#          results/comparison/verification.parquet, super_experts.parquet, outlier_routing.parquet,
#          expert_routing.parquet
#          resources/resamples/{model}.parquet  each model's last resamples, used again if nothing changed

# The tables that the report takes in.
STATISTICS = expand(
    "results/comparison/{table}.parquet",
    table=[
        "intervals",
        "differences",
        "stability",
        "dense_moe",
        "pairs",
        "groups",
        "phase_transitions",
        "trends",
        "verification",
        "super_experts",
        "outlier_routing",
        "expert_routing",
    ],
)


localrules:
    bootstrap_comparison,
    test_models,
    verify_models,


rule bootstrap_comparison:
    input:
        outliers=expand("results/{model}/outliers", model=MODELS),
        counts=expand("results/{model}/sequence_counts", model=MODELS),
    output:
        intervals="results/comparison/intervals.parquet",
        differences="results/comparison/differences.parquet",
        stability="results/comparison/stability.parquet",
        resamples="results/comparison/resamples.parquet",
    log:
        "logs/bootstrap_comparison.log",
    benchmark:
        "logs/benchmarks/bootstrap_comparison.tsv"
    priority: 20
    params:
        models=MODELS,
        presets=JUDGED_BY,
        closely=TESTED_PRESETS,
        options=STUDY["bootstrap_comparison"],
        revision=REVISIONS["bootstrap_comparison"],
    message:
        "Resampling the sequences of {params.models}"
    script:
        "../scripts/bootstrap_comparison.py"


rule test_models:
    input:
        models="results/comparison/models.parquet",
        resamples="results/comparison/resamples.parquet",
    output:
        dense_moe="results/comparison/dense_moe.parquet",
        pairs="results/comparison/pairs.parquet",
        groups="results/comparison/groups.parquet",
        phase_transitions="results/comparison/phase_transitions.parquet",
        trends="results/comparison/trends.parquet",
    log:
        "logs/test_models.log",
    benchmark:
        "logs/benchmarks/test_models.tsv"
    priority: 10
    params:
        presets=TESTED_PRESETS,
        seed=STUDY["test_models"]["seed"],
        revision=REVISIONS["test_models"],
    message:
        "Testing dense models against MoE models, and figures for a jump"
    script:
        "../scripts/test_models.py"


rule verify_models:
    input:
        outliers=expand("results/{model}/outliers", model=MODELS),
        features="results/comparison/features.parquet",
        left_out="results/comparison/left_out.parquet",
    output:
        verification="results/comparison/verification.parquet",
        super_experts="results/comparison/super_experts.parquet",
        outlier_routing="results/comparison/outlier_routing.parquet",
        expert_routing="results/comparison/expert_routing.parquet",
    log:
        "logs/verify_models.log",
    benchmark:
        "logs/benchmarks/verify_models.tsv"
    priority: 10
    params:
        models=MODELS,
        revisions=[model_revision(entry) for entry in ENTRIES],
        copies=[entry.copy_of for entry in ENTRIES],
        published=[REGISTRY.published_id(entry) for entry in ENTRIES],
        presets=[preset.name for preset in PRESETS],
        magnitude=STUDY["magnitude"],
        seed=STUDY["test_models"]["seed"],
        revision=REVISIONS["verify_models"],
    message:
        "Holding the models against what others published"
    script:
        "../scripts/verify_models.py"
