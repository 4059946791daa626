# Judge each feature of a model by every preset. A changed threshold makes this table, the comparison and what follows
# again, in seconds; it never records.
#
# INPUTS   results/{model}/outliers/
# OUTPUTS  results/{model}/systematic.parquet  one row per (preset, first token in or out, feature)


localrules:
    filter_systematic,


rule filter_systematic:
    input:
        outliers="results/{model}/outliers",
    output:
        systematic="results/{model}/systematic.parquet",
    log:
        "logs/filter_systematic/{model}.log",
    benchmark:
        "logs/benchmarks/filter_systematic/{model}.tsv"
    params:
        magnitude=STUDY["magnitude"],
        layer_fraction=STUDY["layer_fraction"],
        position_fraction=STUDY["position_fraction"],
        filter_systematic=STUDY["filter_systematic"],
        revision=REVISIONS["filter_systematic"],
    message:
        "Filtering the systematic features of {wildcards.model}"
    script:
        "../scripts/filter_systematic.py"
