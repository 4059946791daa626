# Where jobs run: the nodes that recordings and training need, and which jobs wait for each other on this machine.
#
# INPUTS   config/cluster.yaml, profiles/{runpod,slurm}
# OUTPUTS  none

from outlier_moe.config.cluster import load_cluster, refuse_larger_cap
from outlier_moe.planning.rented import NodeNeeds, plan_nodes, training_node

# Whether jobs go to other machines: `jobs` is given, as in profiles/runpod and profiles/slurm, and this is no such job.
ELSEWHERE = workflow.resource_settings.nodes is not None and not workflow.remote_exec


@cache
def rentable():
    """What config/cluster.yaml says, once no run may cost more; a dry run has no executor that could be asked."""
    schema = Path(workflow.basedir) / "workflow/schemas/cluster.schema.yaml"
    executor = workflow.executor_settings
    try:
        cluster = load_cluster(Path("config/cluster.yaml"), schema)
        if hasattr(executor, "max_price_total"):
            refuse_larger_cap(cluster, executor.max_price_total)
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    return cluster


@cache
def nodes_to_record_on(models):
    """The node of each of some models; says which, as rules with a message of their own show no resources."""
    rentable()
    try:
        nodes = plan_nodes(models, STUDY)
    except StudyError as error:
        raise WorkflowError(str(error)) from None
    logger.info("Nodes to record on, by config/cluster.yaml:")
    for model, node in nodes.items():
        logger.info(f"  {model}: {node}")
    return nodes


# What decides a recording's figures.
RECORDED_WITH = dict(
    taps=STUDY["record_outliers"]["taps"],
    floor=STUDY["record_outliers"]["floor"],
    n_peaks=STUDY["record_outliers"]["n_peaks"],
    dtype=STUDY["record_outliers"]["dtype"],
    revision=REVISIONS["record_outliers"],
)


def is_kept(model):
    """Whether a model's recording is kept and needs no node."""
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.recording.kept_recordings import KeptRecordings
    from outlier_moe.recording.take_ups import AskedTokens, will_take_up

    folder, options = Path("results") / model, model_tokens(
        STUDY, REGISTRY.model(model)
    )
    if not any(folder.glob("recordings/*.json")):
        return False
    wanted = dict(RECORDED_WITH)
    kept = KeptRecordings(
        folder / "recordings", revision=wanted.pop("revision"), digests=DIGESTS
    )
    chosen = STUDY["corpus"]
    text = REGISTRY.corpus(REGISTRY.model(model).corpus if chosen == "auto" else chosen)
    asked = AskedTokens(
        text, options["n_sequences"], options["sequence_length"], options["bos"]
    )
    return will_take_up(
        kept,
        Path("resources/models") / model,
        folder / "tokens.arrow",
        asked,
        RecordOptions(**wanted | {"taps": tuple(wanted["taps"])}),
    )


TAKEN_UP = (
    {model for model in REGISTRY.models if is_kept(model)}
    if ELSEWHERE and workflow.is_main_process
    else set()
)
# A job of its own is told its rule; what is kept may have changed since it was planned.
ON_NODES = [model for model in REGISTRY.models if model not in TAKEN_UP]
HERE = TAKEN_UP if workflow.is_main_process else REGISTRY.models


# The models whose recordings this run asks for: each is noted as its job is made, before any job's resources are.
ASKED_FOR = set()


def tokens_to_record(wildcards):
    """The tokens that a model is recorded on."""
    ASKED_FOR.add(wildcards.model)
    return f"results/{wildcards.model}/tokens.arrow"


def recording_node(wildcards):
    """The node of a model: of all that are recorded, planned at once."""
    together = tuple(model for model in REGISTRY.models if model in ASKED_FOR)
    return nodes_to_record_on(together)[wildcards.model]


def training_node_of(wildcards):
    """The node of all training."""
    return training_node(rentable())


def node_resources(find):
    """The resources of rules that run on a node; none on this machine, where nothing is planned."""

    def needed(name):
        def resource(wildcards):
            return getattr(find(wildcards), name)

        return resource

    return {name: needed(name) for name in NodeNeeds._fields} if ELSEWHERE else {}


RECORDING_NODE = node_resources(recording_node)
TRAINING_NODE = node_resources(training_node_of)


# A recording takes all cores, and jobs of one core that follow each other would never leave them all free: it would wait
# for the last experiment. So training takes turns: while a recording of this run is left, it asks for more than what
# the jobs of models on their way to the recording leave over.
TURNS = 1000


def turns_to_train(wildcards):
    """The turns of a job that trains: all of them until every model of this run has a recording."""
    recordings = [Path(f"results/{model}/outliers") for model in ASKED_FOR]
    return 1 if all(recording.exists() for recording in recordings) else TURNS


# On other machines no job takes cores from another.
if ELSEWHERE or workflow.remote_exec:
    RECORDING_TURN, TRAINING_TURN = {}, {}
else:
    workflow.register_resource("turns", TURNS)
    RECORDING_TURN, TRAINING_TURN = {"turns": 1}, {"turns": turns_to_train}


def weights_to_send(wildcards):
    """The folder of a model's weights, if they lie in this machine's folders."""
    source = REGISTRY.model(wildcards.model).source
    # What a GGUF file was converted to is in the model's own folder.
    return "" if source.kind == "gguf" else str(getattr(source, "path", ""))


def files_of_node(**paths):
    """Resources that name files which go to a node, or come back from one that failed, beside inputs and outputs."""
    return paths if ELSEWHERE else {}


def goes_on_from(pattern):
    """What a killed job goes on from, beside its output: an executor brings it back, and to the next node."""

    def folder(wildcards):
        return pattern.format(**wildcards)

    return folder
