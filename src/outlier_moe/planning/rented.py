"""The nodes that a run's recordings ask for, as `outlier-moe plan` chooses them.

The plan is made by a process of its own: it builds models on the meta device with torch and transformers, which the
process that watches over rented nodes does without.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from outlier_moe.config.cluster import Cluster
from outlier_moe.errors import StudyError

# Nodes of one kind take each other's jobs, if their disks are alike too.
DISK_STEP_GB = 100
# A plan from the registry's figures guesses, and the first minutes of a node vary.
SLACK = 1.5


class NodeNeeds(NamedTuple):
    """What a recording asks of a node, in the words of Snakemake's resources."""

    tier: str
    """The tier's name."""
    accelerators: str
    """Alternatives, as SkyPilot writes them."""
    gpu: int
    """Cards, as Slurm counts them."""
    mem_mb: int
    """Memory beside the cards, in 10**6 bytes."""
    disk_gb: int
    """Disk, in 10**9 bytes."""
    spot: str
    """Whether the node may be taken away: true or false."""
    idle_minutes: int
    """Minutes without a job after which it ends itself."""
    max_price_per_hour: float
    """Dollars an hour beyond which it is not rented."""
    runtime: int
    """Minutes that the job is going to take, with slack."""

    def __str__(self) -> str:
        cards = " or ".join(self.accelerators.split(","))
        spot = ", spot" if self.spot == "true" else ""
        return f"{self.tier} ({cards}, {self.disk_gb} GB{spot}), at most {self.runtime} min"


def plan_nodes(models: Iterable[str], study: Mapping[str, Any]) -> dict[str, NodeNeeds]:
    """The node of each model; no network is asked.

    Args:
        models: Ids of the registry.
        study: The validated study.

    Raises:
        StudyError: If the plan fails, or a model fits on no tier.
    """
    command = [sys.executable, "-m", "outlier_moe", "plan", "--no-hub", "--format", "json"]
    done = subprocess.run(
        [*command, "--config", "/dev/stdin", *models], input=yaml.safe_dump(dict(study)), capture_output=True, text=True
    )
    if done.returncode:
        raise StudyError("The nodes of a run could not be planned.", got=done.stderr.strip())
    return {row["model"]: _needs(row) for row in json.loads(done.stdout)}


def training_node(cluster: Cluster) -> NodeNeeds:
    """The node of a training job."""
    tier = cluster.training_tier
    return NodeNeeds(
        tier=tier.name,
        accelerators=tier.resource,
        gpu=tier.count,
        mem_mb=math.ceil(tier.host_memory_gib * 1000),
        disk_gb=DISK_STEP_GB,
        spot=str(tier.spot).lower(),
        idle_minutes=tier.idle_minutes,
        max_price_per_hour=float(tier.max_price_per_hour),
        runtime=cluster.training_minutes,
    )


def _needs(row: Mapping[str, Any]) -> NodeNeeds:
    if row["tier"] is None:
        raise StudyError(
            "A model fits on no node.",
            file="config/cluster.yaml",
            key="tiers",
            got=row["model"],
            remedy="Add a tier with more memory, or a larger max_price_per_hour.",
        )
    host_bytes = row[f"{row['mode']}_host_bytes"]
    return NodeNeeds(
        tier=row["tier"],
        accelerators=row["accelerators"],
        gpu=row["n_gpus"],
        mem_mb=math.ceil(SLACK * host_bytes / 10**6),
        disk_gb=DISK_STEP_GB * math.ceil(row["disk_gb"] / DISK_STEP_GB),
        spot=str(row["spot"]).lower(),
        idle_minutes=row["idle_minutes"],
        max_price_per_hour=float(row["max_price_per_hour"]),
        runtime=math.ceil(SLACK * row["time_s"] / 60),
    )
