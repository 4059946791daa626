# Run a model over its tokens and count at each tap and layer what reaches each magnitude. Apart from training this is the
# only stage that uses a GPU. Its tables answer any threshold from the floor up.
#
# INPUTS   resources/models/{model}/, results/{model}/tokens.arrow
# OUTPUTS  results/{model}/outliers/  layer_*.arrow, any_layer.arrow, sites, peaks, sequences, run.json
#
# The weights of a model on the hub are downloaded here; fetch_model has brought everything else. A resident run downloads
# all of them first, into the hub's cache. A streamed run downloads each file just before its layers, into the cache too.
# With record_outliers.evict it uses results/{model}/.outliers.weights instead, and keeps the files of three layers at a
# time. An interrupted run downloads what its unfinished layers need.
#
# With record_outliers.shards above 1 the sequences are recorded in that many parts, each by its own job, and the parts'
# tables are merged. The result is the same, bit for bit if the same sequences go through the model together. Existing
# tables keep the number of shards they were made with.
#
# Where recordings run on other machines, one that is kept in results/{model}/recordings/ is taken up on this one.


localrules:
    merge_shards,
    take_up_recording,
    take_up_shard,


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
        model=one_of(model for model in ON_NODES if model not in SHARDED),
    # Recordings take longest, so they and what they wait for run first.
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
        **RECORDED_WITH,
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
    wildcard_constraints:
        model=one_of(ON_NODES),
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
        **RECORDED_WITH,
    message:
        "Recording the outliers of {wildcards.model}, part {wildcards.shard} of {wildcards.n_shards}"
    script:
        "../scripts/record_outliers.py"


rule take_up_recording:
    input:
        model="resources/models/{model}",
        tokens="results/{model}/tokens.arrow",
    output:
        outliers=directory("results/{model}/outliers"),
    log:
        "logs/record_outliers/{model}.log",
    wildcard_constraints:
        model=one_of(model for model in HERE if model not in SHARDED),
    priority: 100
    params:
        **RECORDED_WITH,
    message:
        "Taking up the kept recording of {wildcards.model}"
    script:
        "../scripts/record_outliers.py"


rule take_up_shard:
    input:
        model="resources/models/{model}",
        tokens="results/{model}/tokens.arrow",
    output:
        outliers=temp(directory("results/{model}/shards/{shard}-of-{n_shards}")),
    log:
        "logs/record_shard/{model}-{shard}-of-{n_shards}.log",
    wildcard_constraints:
        model=one_of(HERE),
    priority: 100
    params:
        **RECORDED_WITH,
    message:
        "Taking up the kept recording of {wildcards.model}, part {wildcards.shard} of {wildcards.n_shards}"
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
