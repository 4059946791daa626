"""The plan of one model's recording: what it takes, what fits here, and what it costs to rent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from outlier_moe.architectures.lengths import Positions, length_for
from outlier_moe.architectures.positions import positions_of
from outlier_moe.config.cluster import Cluster
from outlier_moe.config.model_labels import agreed_labels
from outlier_moe.config.registry import ModelEntry
from outlier_moe.errors import StudyError
from outlier_moe.machine.devices import free_by_card
from outlier_moe.machine.host_memory import available_bytes
from outlier_moe.planning.configs import find_config
from outlier_moe.planning.effort import Effort, Node, cheapest_node, effort
from outlier_moe.planning.memory import Memory, resident_memory, streamed_memory
from outlier_moe.planning.modes import Mode
from outlier_moe.planning.sizes import ModelSizes, Portion, model_sizes
from outlier_moe.planning.workload import DeviceType, Workload, study_workload
from outlier_moe.sources.config_labels import config_labels
from outlier_moe.sources.hub_answers import HubAwayError

# For a model of which only the registry's figures are known: the fewest layers that published models of more than so
# many parameters have, and parts of a layer as wide as in most.
FEWEST_LAYERS = ((6e11, 60), (3e11, 48), (3e10, 32), (1e10, 24), (1e9, 16), (0, 12))
FEED_FORWARD_RATIO = 4
VOCABULARY = 2**17
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8 128x128 blocks": 8, "mxfp4": 4.25, "gguf q4_1": 32}


class Here(NamedTuple):
    """The machine that the plan is made on."""

    device: DeviceType
    """Where a model would run."""
    free_bytes: int
    """Memory of the system that is available."""
    free_by_card: tuple[int, ...]
    """Memory of each card that is free."""


@dataclass(frozen=True)
class ModelPlan:
    """What the recording of one model takes."""

    entry: ModelEntry
    """The model."""
    basis: str
    """What the plan is made from: `fetched`, `hub` or `folder`, a configuration from there; or `registry`."""
    note: str | None
    """Why the registry's figures are used."""
    workload: Workload
    """The study, with the length of this model's sequences."""
    caveat: str | None
    """A warning about the sequence length, if any."""
    hub_is_away: bool
    """Whether the hub did not answer."""
    sizes: ModelSizes
    """Its sizes."""
    stored_bytes: int
    """Bytes of its weights on disk."""
    effort: Effort
    """What is computed and moved."""
    here: dict[Mode, Memory]
    """Memory of each mode on this machine."""
    fits_here: tuple[Mode, ...]
    """The modes that fit into this machine's memory now."""
    rented: dict[Mode, Memory]
    """Memory of each mode on a node with an accelerator."""
    node: Node | None
    """The cheapest rented node; None if the model fits on none."""


def this_machine() -> Here:
    """The machine that the plan is made on, as it is now."""
    available = available_bytes()
    if torch.cuda.is_available():
        return Here("cuda", available, tuple(free_by_card()))
    return Here("mps" if torch.backends.mps.is_available() else "cpu", available, ())


def plan_models(
    entries: Iterable[ModelEntry],
    models_directory: Path,
    study: Mapping[str, Any],
    cluster: Cluster,
    here: Here,
    *,
    ask_hub: bool = True,
) -> Iterator[ModelPlan]:
    """The plans of a study's models; see `plan_model`. A hub that does not answer is not asked again."""
    for entry in entries:
        plan = plan_model(entry, models_directory, study_workload(study, entry), cluster, here, ask_hub=ask_hub)
        ask_hub = ask_hub and not plan.hub_is_away
        yield plan


def plan_model(
    entry: ModelEntry,
    models_directory: Path,
    workload: Workload,
    cluster: Cluster,
    here: Here,
    *,
    ask_hub: bool = True,
) -> ModelPlan:
    """The plan of one model: from its configuration, or if that cannot be had from the registry's figures.

    Args:
        entry: The model.
        models_directory: The folder with a folder for each fetched model.
        workload: The study.
        cluster: What can be rented.
        here: This machine.
        ask_hub: Whether the hub is asked for a configuration that is not here; otherwise its cache has to do.

    Raises:
        StudyError: If the entry contradicts the configuration, or there is neither that nor a figure.
    """
    note, hub_is_away, labels = None, False, None
    try:
        found = find_config(entry, models_directory, ask_hub=ask_hub)
        labels = config_labels(found.config, trust_remote_code=entry.trust_remote_code)
        sizes = model_sizes(found.config, dtype=workload.dtype, trust_remote_code=entry.trust_remote_code)
        basis, stored_bytes = found.place, found.stored_bytes or sizes.stored_bytes
        trusted = entry.trust_remote_code
        positions = positions_of(found.config, longer_than=workload.sequence_length, trust_remote_code=trusted)
    except StudyError as error:
        positions = Positions(entry.max_positions, is_table=entry.max_positions is not None)
        note, hub_is_away = " ".join(filter(None, [error.problem, error.remedy])), isinstance(error, HubAwayError)
        sizes = registry_sizes(entry, workload, because=note)
        basis, stored_bytes = "registry", sizes.stored_bytes
    shortens = entry.sequence_length == "model"
    length = length_for(workload.sequence_length, positions, shortens=shortens, model=entry.id)
    workload = replace(workload, sequence_length=length.n_tokens)
    if labels is not None:
        agreed_labels(entry.labels, labels, model=entry.id, place="its config.json")
    done = effort(sizes, workload)._replace(read_bytes=stored_bytes)
    shard = workload.of_one_shard()
    memory = mode_memory(sizes, shard, device=here.device)
    rented = mode_memory(sizes, shard, device="cuda")
    return ModelPlan(
        entry=entry,
        basis=basis,
        note=note,
        workload=workload,
        caveat=length.note,
        hub_is_away=hub_is_away,
        sizes=sizes,
        stored_bytes=stored_bytes,
        effort=done,
        here=memory,
        fits_here=fitting_modes(memory, sizes, here),
        rented=rented,
        node=cheapest_node(sizes, rented, done, cluster),
    )


def mode_memory(sizes: ModelSizes, workload: Workload, *, device: DeviceType) -> dict[Mode, Memory]:
    """Memory of each possible mode: quantised models are streamed only."""
    streamed = streamed_memory(sizes, workload, device=device)
    if sizes.is_quantized:
        return {"streamed": streamed}
    return {"resident": resident_memory(sizes, workload, device=device), "streamed": streamed}


def fitting_modes(memory: dict[Mode, Memory], sizes: ModelSizes, here: Here) -> tuple[Mode, ...]:
    """The modes that fit into this machine's memory now."""
    return tuple(mode for mode, need in memory.items() if _fits_here(mode, need, sizes, here))


def _fits_here(mode: Mode, need: Memory, sizes: ModelSizes, here: Here) -> bool:
    if need.process.total > here.free_bytes:
        return False
    if need.device is None:
        return True
    room = sum(here.free_by_card) if mode == "resident" else max(here.free_by_card)
    # Of a model that is spread over cards each leaves room for a layer that does not divide.
    unused = (len(here.free_by_card) - 1) * max(layer.computed for layer in sizes.layers) if mode == "resident" else 0
    return need.device.total + unused <= room


def registry_sizes(entry: ModelEntry, workload: Workload, *, because: str | None = None) -> ModelSizes:
    """Sizes from the registry's figures: parameters and the checkpoint's format; the rest is what most models have.

    Raises:
        StudyError: If it has none.
    """
    if entry.total_params_b is None or entry.active_params_b is None:
        raise StudyError(
            "Nothing is known of a model's size.",
            file="config/models.yaml",
            key=f"models.{entry.id}",
            expected="a configuration that can be read, or total_params_b and active_params_b",
            got=because,
            remedy=f"Run: snakemake resources/models/{entry.id} or say both.",
        )
    n_parameters, n_working = round(entry.total_params_b * 1e9), round(entry.active_params_b * 1e9)
    said = entry.checkpoint_format or "bfloat16"
    is_quantized = "fp8" in said or "mxfp4" in said
    plain = said if said in ("float32", "float16") else "float32" if said.startswith("gguf") else "bfloat16"
    dtype = plain if workload.dtype == "checkpoint" else workload.dtype
    itemsize = getattr(torch, dtype).itemsize
    n_layers = next(n_layers for above, n_layers in FEWEST_LAYERS if n_parameters > above)
    # Of a dense model: four matrices of attention and two or three of the feed-forward part in each layer.
    d_model = round(math.sqrt(n_working / n_layers / (4 + 2 * FEED_FORWARD_RATIO)))
    n_outside = min(2 * VOCABULARY * d_model, n_parameters // 2)
    in_layer = (n_parameters - n_outside) // n_layers
    layer = Portion(math.ceil(in_layer * BITS[said] / 8), in_layer * itemsize, in_layer * itemsize * is_quantized)
    outside = n_outside * itemsize
    return ModelSizes(
        dtype=dtype,
        itemsize=itemsize,
        n_parameters=n_parameters,
        n_working=n_working,
        layers=(layer,) * n_layers,
        rest=Portion(outside, outside, 0),
        towers=Portion(0, 0, 0),
        d_model=d_model,
        vocabulary=VOCABULARY,
        mixer_width=4 * d_model,
        feed_forward_width=3 * FEED_FORWARD_RATIO * d_model * (entry.top_k or 1),
        n_scores=0,
        attention_width=d_model,
        is_quantized=is_quantized,
        has_experts=entry.kind == "moe",
    )
