# Run a model over its tokens and count, at each tap and layer, what reaches each magnitude: the only stage that wants a
# GPU. Its tables answer any threshold from the floor up, so that it need not run again when one changes.
#
# INPUTS   resources/models/{model}/, results/{model}/tokens.arrow
# OUTPUTS  results/{model}/outliers/  layer_*.arrow, any_layer.arrow, sites, peaks, sequences, run.json


rule record_outliers:
    input:
        model="resources/models/{model}",
        tokens="results/{model}/tokens.arrow",
    output:
        outliers=directory("results/{model}/outliers"),
    log:
        "logs/record_outliers/{model}.log",
    benchmark:
        "logs/benchmarks/record_outliers/{model}.tsv"
    threads: workflow.cores
    params:
        taps=STUDY["record_outliers"]["taps"],
        floor=STUDY["record_outliers"]["floor"],
        n_peaks=STUDY["record_outliers"]["n_peaks"],
        dtype=STUDY["record_outliers"]["dtype"],
        revision=REVISIONS["record_outliers"],
    message:
        "Recording the outliers of {wildcards.model}"
    script:
        "../scripts/record_outliers.py"
