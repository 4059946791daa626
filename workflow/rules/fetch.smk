# Fetch each model's configuration and tokenizer (its weights too, unless they come from the hub), and each text. A text is
# cut to a fixed number of characters, so that all tokenizers see the same documents.
#
# INPUTS   config/models.yaml
# OUTPUTS  resources/models/{model}/          config.json, tokenizer, source.json
#          resources/corpora/{corpus}.parquet  document, text


localrules:
    fetch_model,
    fetch_corpus,


rule fetch_model:
    output:
        model=directory("resources/models/{model}"),
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        "logs/benchmarks/fetch_model/{model}.tsv"
    priority: 100
    resources:
        **RECORDING_TURN,
    params:
        source=model_source,
        revision=REVISIONS["fetch_model"],
    message:
        "Fetching {wildcards.model}"
    script:
        "../scripts/fetch_model.py"


rule fetch_corpus:
    output:
        corpus="resources/corpora/{corpus}.parquet",
    log:
        "logs/fetch_corpus/{corpus}.log",
    benchmark:
        "logs/benchmarks/fetch_corpus/{corpus}.tsv"
    priority: 100
    resources:
        **RECORDING_TURN,
    params:
        source=corpus_source,
        revision=REVISIONS["fetch_corpus"],
    message:
        "Fetching the text {wildcards.corpus}"
    script:
        "../scripts/fetch_corpus.py"
