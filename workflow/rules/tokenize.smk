# Turn a text into the study's sequences of tokens: documents joined by end-of-text, cut to n_sequences x sequence_length.
# Two models with the same tokenizer share the work.
#
# INPUTS   resources/models/{model}/, resources/corpora/{corpus}.parquet
# OUTPUTS  results/{model}/tokens.arrow  sequence, position, token


localrules:
    tokenize_corpus,


rule tokenize_corpus:
    input:
        model="resources/models/{model}",
        corpus=corpus_file,
    output:
        tokens="results/{model}/tokens.arrow",
    log:
        "logs/tokenize_corpus/{model}.log",
    benchmark:
        "logs/benchmarks/tokenize_corpus/{model}.tsv"
    priority: 100
    resources:
        **RECORDING_TURN,
    params:
        options=options_of_tokens,
        revision=REVISIONS["tokenize_corpus"],
    message:
        "Tokenising {input.corpus} for {wildcards.model}"
    script:
        "../scripts/tokenize_corpus.py"
