"""What a recording computes and moves, and its time and price on a rented node."""

from __future__ import annotations

from typing import NamedTuple

from outlier_moe.config.cluster import Accelerator, Cluster, Tier
from outlier_moe.planning.memory import Memory
from outlier_moe.planning.modes import Mode
from outlier_moe.planning.sizes import ModelSizes
from outlier_moe.planning.workload import Workload

# What the sketch moves for each value on an accelerator: its float32, bit pattern, step, place in a histogram, four
# powers in float64, and three passes for the median. Not measured on a GPU yet.
SKETCH_BYTES_PER_VALUE = 400
GIB, GB = 2**30, 10**9
# Shards that are on the disk at once where they are deleted after use: of the current layer and of those ahead.
SHARDS_ON_DISK_GB = 60


class Effort(NamedTuple):
    """What a recording computes and moves."""

    flops: float
    """Operations of the forward pass, a multiplication and an addition counting two."""
    n_values: int
    """Activations that are counted."""
    read_bytes: int
    """Bytes of the checkpoint, each read once."""


class Node(NamedTuple):
    """A rented node that can do it, and what it costs there."""

    tier: Tier
    """The kind of node."""
    accelerator: Accelerator
    """The card with the lowest total price."""
    mode: Mode
    """How the model runs there."""
    disk_gb: float
    """The disk to ask for, in 10**9 bytes."""
    evict: bool
    """Whether shards are deleted after use, since the disk is too small for all."""
    time_s: float
    """Seconds from asking for the node to the last table."""
    price: float
    """Dollars, on demand."""


def effort(sizes: ModelSizes, workload: Workload) -> Effort:
    """What a study computes and moves for a model."""
    n_layers = len(sizes.layers)
    matrices = 2 * (sizes.n_working + sizes.vocabulary * sizes.d_model)
    # Scores and their product with the values; without a matrix of scores only the half below the diagonal is computed.
    pairs = workload.sequence_length * (1.0 if sizes.n_scores else 0.5)
    attention = 4 * n_layers * sizes.attention_width * pairs
    return Effort(
        flops=float(workload.n_tokens * (matrices + attention)),
        n_values=workload.n_tokens * sizes.d_model * n_layers * len(workload.taps),
        read_bytes=sizes.stored_bytes,
    )


def cheapest_node(sizes: ModelSizes, memory: dict[Mode, Memory], done: Effort, cluster: Cluster) -> Node | None:
    """The node on which a recording costs least; None if it fits on none.

    Args:
        sizes: The model.
        memory: What each mode that the model can run in takes on an accelerator.
        done: What is computed and moved.
        cluster: The nodes there are.
    """
    nodes = [
        node_on(done, tier, accelerator, mode, cluster)
        for tier in cluster.tiers
        for accelerator in tier.accelerators
        for mode, need in memory.items()
        if accelerator.price_per_hour * tier.count <= tier.max_price_per_hour and _fits(sizes, need, mode, tier)
    ]
    possible = [node for node in nodes if node is not None]
    return min(possible, key=lambda node: node.price, default=None)


def _fits(sizes: ModelSizes, need: Memory, mode: Mode, tier: Tier) -> bool:
    """Whether every card of a tier has room; of several cards, each keeps room for one undivided layer."""
    assert need.device is not None
    room = min(accelerator.memory_gib for accelerator in tier.accelerators) * GIB
    n_cards = tier.count if mode == "resident" else 1
    share = need.device.weights / n_cards + (max(layer.computed for layer in sizes.layers) if n_cards > 1 else 0)
    on_card = share + need.device.total - need.device.weights
    return on_card <= room and need.process.total <= tier.host_memory_gib * GIB


def node_on(done: Effort, tier: Tier, accelerator: Accelerator, mode: Mode, cluster: Cluster) -> Node | None:
    """A node with its disk, time and price; None if the disk is too small for a whole model.

    Args:
        done: What is computed and moved.
        tier: The kind of node.
        accelerator: Its card.
        mode: How the model runs.
        cluster: What time is reckoned with.
    """
    whole_gb = done.read_bytes / GB + cluster.disk_margin_gb
    evict = whole_gb > tier.largest_disk_gb
    if evict and mode == "resident":
        return None
    download_s = done.read_bytes / GB / cluster.network_gb_s
    # A model that is spread over several cards runs on one of them at a time.
    compute_s = done.flops / (accelerator.bfloat16_tflops * 1e12 * cluster.utilisation)
    sketch_s = done.n_values * SKETCH_BYTES_PER_VALUE / (accelerator.bandwidth_gb_s * GB)
    busy_s = compute_s + sketch_s
    # A streamed model computes while the next shards come.
    time_s = 60 * cluster.setup_minutes + (max(download_s, busy_s) if mode == "streamed" else download_s + busy_s)
    return Node(
        tier,
        accelerator,
        mode,
        disk_gb=SHARDS_ON_DISK_GB + cluster.disk_margin_gb if evict else whole_gb,
        evict=evict,
        time_s=time_s,
        price=time_s / 3600 * tier.count * accelerator.price_per_hour,
    )
