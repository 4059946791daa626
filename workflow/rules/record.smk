# Run a model over its tokens and count, at each tap and layer, what reaches each magnitude: the only stage that wants a
# GPU. Its tables answer any threshold from the floor up, so that it need not run again when one changes.
#
# INPUTS   resources/models/{model}/, results/{model}/tokens.arrow
# OUTPUTS  results/{model}/outliers/  layer_*.arrow, any_layer.arrow, sites, peaks, sequences, run.json
#
# Of a model on the hub, fetch_model has brought the configuration, the tokenizer, the index and each file's size and
# hash; the weights come here. Resident, all of them are downloaded into the hub's cache before the run; streamed, each
# file ahead of its layers: into the cache too, or, with record_outliers.evict, into results/{model}/.outliers.weights,
# where those of three layers are at a time. An interrupted run downloads what its unfinished layers need.
#
# With record_outliers.shards above 1 the sequences are recorded in that many parts, each by a job of its own, and the
# parts' tables are merged: the same tables, to the last bit where the same sequences go through the model together.
# Tables that are there keep the number of shards that they were made with.


localrules:
    merge_shards,


wildcard_constraints:
    shard=r"\d+",
    n_shards=r"\d+",


rule record_outliers:
    input:
        model="resources/models/{model}",
        tokens=tokens_to_record,
    output:
        outliers=directory("results/{model}/outliers"),
    log:
        "logs/record_outliers/{model}.log",
    benchmark:
        "logs/benchmarks/record_outliers/{model}.tsv"
    wildcard_constraints:
        model=one_of(model for model in REGISTRY.models if model not in SHARDED),
    # What a recording waits for, and the recording itself, go before all else.
    priority: 100
    threads: workflow.cores
    resources:
        **RECORDING_NODE,
        **RECORDING_TURN,
        **files_of_node(
            send=weights_to_send,
            resume=goes_on_from("results/{model}/.outliers.resume"),
        ),
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


rule record_shard:
    input:
        model="resources/models/{model}",
        tokens=tokens_to_record,
    output:
        outliers=temp(directory("results/{model}/shards/{shard}-of-{n_shards}")),
    log:
        "logs/record_shard/{model}-{shard}-of-{n_shards}.log",
    benchmark:
        "logs/benchmarks/record_shard/{model}-{shard}-of-{n_shards}.tsv"
    priority: 100
    threads: workflow.cores
    resources:
        **RECORDING_NODE,
        **RECORDING_TURN,
        **files_of_node(
            send=weights_to_send,
            resume=goes_on_from(
                "results/{model}/shards/.{shard}-of-{n_shards}.resume"
            ),
        ),
    params:
        taps=STUDY["record_outliers"]["taps"],
        floor=STUDY["record_outliers"]["floor"],
        n_peaks=STUDY["record_outliers"]["n_peaks"],
        dtype=STUDY["record_outliers"]["dtype"],
        revision=REVISIONS["record_outliers"],
    message:
        "Recording the outliers of {wildcards.model}, part {wildcards.shard} of {wildcards.n_shards}"
    script:
        "../scripts/record_outliers.py"


rule merge_shards:
    input:
        shards=shards_of,
    output:
        outliers=directory("results/{model}/outliers"),
    log:
        "logs/merge_shards/{model}.log",
    benchmark:
        "logs/benchmarks/merge_shards/{model}.tsv"
    wildcard_constraints:
        model=one_of(SHARDED),
    priority: 100
    params:
        revision=REVISIONS["merge_shards"],
    message:
        "Merging the shards of {wildcards.model}"
    script:
        "../scripts/merge_shards.py"
