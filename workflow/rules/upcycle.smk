# The transition from dense to Mixture of Experts, as an experiment: train a dense model, make it a mixture in several
# ways (arms), prove that the mixture computes the same, train on, and record every checkpoint like any other model.
#
#   tokenize_training_text -> train_dense -> upcycle_dense -> train_moe (and train_control)
#   -> record_checkpoints -> filter_checkpoints -> summarise_upcycling -> plot_upcycling
#
# Each pair of models, seed and arm is trained by jobs of its own, so that a cluster runs them side by side. A training
# job that is killed goes on from its last checkpoint, which lies beside its outputs. Steps that are shorter than the start
# of torch share a process: an arm is made and proven in one, and all runs of a seed are recorded in one.
#
# INPUTS   resources/corpora/{corpus}.parquet
# OUTPUTS  results/upcycle/text/                            tokenizer, train.npy, held_out.npy
#          results/upcycle/{pair}/seed{seed}/dense_model/   the dense model, and phase1/ with history and checkpoints
#          results/upcycle/{pair}/seed{seed}/{arm}/         moe_model_init/, equivalence.json, moe_model_final/, phase2/
#          results/upcycle/{summary,checkpoints,outliers,history,experts,samples}.parquet, summary.json
#          results/upcycle/plots/                           loss, expert load and outlier figures, with the boundary

UPCYCLE = STUDY["upcycle"]
UPCYCLE_RUNS = [
    (pair, seed, arm)
    for pair in UPCYCLE["pairs"]
    for seed in UPCYCLE["seeds"]
    for arm in UPCYCLE["arms"]
]
# The folders of trained models, for each pair and seed.
UPCYCLE_PHASES = ["phase1", *(f"{arm}/phase2" for arm in UPCYCLE["arms"])]
UPCYCLE_PICTURES = ["losses", "expert-load", "peaks", "kurtosis"]


wildcard_constraints:
    pair=one_of(["simple", "smollm"]),
    seed=r"\d+",
    arm=one_of(["dense", "zero", "router_noise", "drop", "virtual_group"]),
    phase="dense|phase1|phase2",


localrules:
    upcycle,
    tokenize_training_text,
    upcycle_dense,
    filter_checkpoints,
    summarise_upcycling,
    plot_upcycling,


rule upcycle:
    input:
        "results/upcycle/summary.parquet",
        expand("results/upcycle/plots/{picture}.png", picture=UPCYCLE_PICTURES),


rule tokenize_training_text:
    input:
        corpus=f"resources/corpora/{UPCYCLE['text']['corpus']}.parquet",
    output:
        text=directory("results/upcycle/text"),
    log:
        "logs/tokenize_training_text.log",
    benchmark:
        "logs/benchmarks/tokenize_training_text.tsv"
    params:
        text=UPCYCLE["text"],
        vocab_size=UPCYCLE["model"]["vocab_size"],
        sequence_length=UPCYCLE["model"]["sequence_length"],
        revision=REVISIONS["tokenize_training_text"],
    message:
        "Tokenising the text that models are trained on"
    script:
        "../scripts/tokenize_training_text.py"


rule train_dense:
    input:
        text="results/upcycle/text",
    output:
        model=directory("results/upcycle/{pair}/seed{seed}/dense_model"),
        run=directory("results/upcycle/{pair}/seed{seed}/phase1"),
    log:
        "logs/train_dense/{pair}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/train_dense/{pair}-seed{seed}.tsv"
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        **files_of_node(
            resume=goes_on_from("results/upcycle/{pair}/seed{seed}/.phase1.work")
        ),
    params:
        model=UPCYCLE["model"],
        training=UPCYCLE["training"],
        evaluation=UPCYCLE["evaluation"],
        revision=REVISIONS["train_dense"],
    message:
        "Training the dense model of {wildcards.pair}, seed {wildcards.seed}"
    script:
        "../scripts/train_dense.py"


rule upcycle_dense:
    input:
        dense="results/upcycle/{pair}/seed{seed}/dense_model",
        text="results/upcycle/text",
    output:
        moe=directory("results/upcycle/{pair}/seed{seed}/{arm}/moe_model_init"),
        proof="results/upcycle/{pair}/seed{seed}/{arm}/equivalence.json",
    log:
        "logs/upcycle_dense/{pair}-seed{seed}-{arm}.log",
    benchmark:
        "logs/benchmarks/upcycle_dense/{pair}-seed{seed}-{arm}.tsv"
    wildcard_constraints:
        arm=one_of(["zero", "router_noise", "drop", "virtual_group"]),
    params:
        model=UPCYCLE["model"],
        experts=UPCYCLE["experts"],
        revision=REVISIONS["upcycle_dense"],
    message:
        "Making the dense {wildcards.pair} a mixture of experts, and proving it: {wildcards.arm}, seed {wildcards.seed}"
    script:
        "../scripts/upcycle_dense.py"


rule train_moe:
    input:
        start="results/upcycle/{pair}/seed{seed}/{arm}/moe_model_init",
        proof="results/upcycle/{pair}/seed{seed}/{arm}/equivalence.json",
        text="results/upcycle/text",
    output:
        model=directory("results/upcycle/{pair}/seed{seed}/{arm}/moe_model_final"),
        run=directory("results/upcycle/{pair}/seed{seed}/{arm}/phase2"),
    log:
        "logs/train_moe/{pair}-seed{seed}-{arm}.log",
    benchmark:
        "logs/benchmarks/train_moe/{pair}-seed{seed}-{arm}.tsv"
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        **files_of_node(
            resume=goes_on_from("results/upcycle/{pair}/seed{seed}/{arm}/.phase2.work")
        ),
    params:
        model=UPCYCLE["model"],
        experts=UPCYCLE["experts"],
        training=UPCYCLE["training"],
        evaluation=UPCYCLE["evaluation"],
        revision=REVISIONS["train_moe"],
    message:
        "Training on: {wildcards.arm} of {wildcards.pair}, seed {wildcards.seed}"
    script:
        "../scripts/train_moe.py"


rule train_control:
    input:
        start="results/upcycle/{pair}/seed{seed}/dense_model",
        text="results/upcycle/text",
    output:
        model=directory("results/upcycle/{pair}/seed{seed}/{arm}/dense_model_final"),
        run=directory("results/upcycle/{pair}/seed{seed}/{arm}/phase2"),
    log:
        "logs/train_control/{pair}-seed{seed}-{arm}.log",
    benchmark:
        "logs/benchmarks/train_control/{pair}-seed{seed}-{arm}.tsv"
    wildcard_constraints:
        arm="dense",
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
        **files_of_node(
            resume=goes_on_from("results/upcycle/{pair}/seed{seed}/{arm}/.phase2.work")
        ),
    params:
        model=UPCYCLE["model"],
        experts=UPCYCLE["experts"],
        training=UPCYCLE["training"],
        evaluation=UPCYCLE["evaluation"],
        revision=REVISIONS["train_moe"],
    message:
        "Training on: the dense model of {wildcards.pair}, seed {wildcards.seed}, as it is"
    script:
        "../scripts/train_moe.py"


rule record_checkpoints:
    input:
        runs=expand(
            "results/upcycle/{{pair}}/seed{{seed}}/{phase}", phase=UPCYCLE_PHASES
        ),
        text="results/upcycle/text",
    output:
        recordings=[
            directory(f"results/upcycle/{{pair}}/seed{{seed}}/{phase}_recordings")
            for phase in UPCYCLE_PHASES
        ],
    log:
        "logs/record_checkpoints/{pair}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/record_checkpoints/{pair}-seed{seed}.tsv"
    resources:
        **TRAINING_NODE,
        **TRAINING_TURN,
    params:
        n_sequences=UPCYCLE["evaluation"]["n_recorded"],
        sequence_length=UPCYCLE["model"]["sequence_length"],
        taps=STUDY["record_outliers"]["taps"],
        floor=STUDY["record_outliers"]["floor"],
        n_peaks=STUDY["record_outliers"]["n_peaks"],
        revision=REVISIONS["record_outliers"],
    message:
        "Recording the outliers of all checkpoints of {wildcards.pair}, seed {wildcards.seed}"
    script:
        "../scripts/record_checkpoints.py"


rule filter_checkpoints:
    input:
        recordings=expand(
            "results/upcycle/{{pair}}/seed{{seed}}/{phase}_recordings",
            phase=UPCYCLE_PHASES,
        ),
    output:
        outliers=expand(
            "results/upcycle/{{pair}}/seed{{seed}}/{phase}_outliers.parquet",
            phase=UPCYCLE_PHASES,
        ),
    log:
        "logs/filter_checkpoints/{pair}-seed{seed}.log",
    benchmark:
        "logs/benchmarks/filter_checkpoints/{pair}-seed{seed}.tsv"
    params:
        magnitude=STUDY["magnitude"],
        layer_fraction=STUDY["layer_fraction"],
        position_fraction=STUDY["position_fraction"],
        filter_systematic=STUDY["filter_systematic"],
        revision=REVISIONS["filter_systematic"],
    message:
        "Filtering the systematic features of all checkpoints of {wildcards.pair}, seed {wildcards.seed}"
    script:
        "../scripts/filter_checkpoints.py"


rule summarise_upcycling:
    input:
        dense_runs=[f"results/upcycle/{p}/seed{s}/phase1" for p, s, _ in UPCYCLE_RUNS],
        arm_runs=[
            f"results/upcycle/{p}/seed{s}/{arm}/phase2" for p, s, arm in UPCYCLE_RUNS
        ],
        dense_outliers=[
            f"results/upcycle/{p}/seed{s}/phase1_outliers.parquet"
            for p, s, _ in UPCYCLE_RUNS
        ],
        arm_outliers=[
            f"results/upcycle/{p}/seed{s}/{arm}/phase2_outliers.parquet"
            for p, s, arm in UPCYCLE_RUNS
        ],
        proofs=[
            f"results/upcycle/{p}/seed{s}/{arm}/equivalence.json"
            for p, s, arm in UPCYCLE_RUNS
            if arm != "dense"
        ],
    output:
        summary="results/upcycle/summary.parquet",
        document="results/upcycle/summary.json",
        checkpoints="results/upcycle/checkpoints.parquet",
        outliers="results/upcycle/outliers.parquet",
        history="results/upcycle/history.parquet",
        experts="results/upcycle/experts.parquet",
        samples="results/upcycle/samples.parquet",
    log:
        "logs/summarise_upcycling.log",
    benchmark:
        "logs/benchmarks/summarise_upcycling.tsv"
    params:
        runs=UPCYCLE_RUNS,
        preset=DEFAULT_PRESET,
        revision=REVISIONS["summarise_upcycling"],
    message:
        "Summarising the upcycling experiment"
    script:
        "../scripts/summarise_upcycling.py"


rule plot_upcycling:
    input:
        checkpoints="results/upcycle/checkpoints.parquet",
        outliers="results/upcycle/outliers.parquet",
        history="results/upcycle/history.parquet",
        experts="results/upcycle/experts.parquet",
        vega="resources/vega.js",
    output:
        pictures=report(
            expand("results/upcycle/plots/{picture}.png", picture=UPCYCLE_PICTURES),
            caption="../report/upcycle.rst",
            category="Dense to MoE",
        ),
        others=expand(
            "results/upcycle/plots/{picture}.{format}",
            picture=UPCYCLE_PICTURES,
            format=["svg", "html"],
        ),
    log:
        "logs/plot_upcycling.log",
    benchmark:
        "logs/benchmarks/plot_upcycling.tsv"
    params:
        revision=REVISIONS["plot_upcycling"],
    message:
        "Plotting the upcycling experiment"
    script:
        "../scripts/plot_upcycling.py"
