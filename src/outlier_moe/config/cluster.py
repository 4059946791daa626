"""The tiers of rented nodes: what config/cluster.yaml says, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outlier_moe.config.yaml_files import load_validated
from outlier_moe.errors import StudyError, nearest


@dataclass(frozen=True)
class Accelerator:
    """A card."""

    name: str
    """SkyPilot's name of the card."""
    memory_gib: float | int
    """Memory of the card, in GiB."""
    bfloat16_tflops: float | int
    """Dense bfloat16 operations a second, in 10**12."""
    bandwidth_gb_s: float | int
    """Bandwidth of its memory, in 10**9 bytes a second."""
    price_per_hour: float | int
    """Dollars on demand."""


@dataclass(frozen=True)
class Tier:
    """A kind of node."""

    name: str
    accelerators: tuple[Accelerator, ...]
    """Cards that are acceptable, any of them."""
    count: int
    """Number of cards in the node."""
    host_memory_gib: float | int
    """Host memory, in GiB."""
    largest_disk_gb: float | int
    """The largest disk to ask for, in 10**9 bytes."""
    spot: bool
    """Whether the node may be taken away."""
    idle_minutes: int
    """Minutes without a job after which it ends itself."""
    max_price_per_hour: float | int
    """Dollars an hour beyond which it is not rented."""

    @property
    def resource(self) -> str:
        """The alternatives as SkyPilot writes them, such as `A100-80GB:1,H100-SXM:1`."""
        return ",".join(f"{accelerator.name}:{self.count}" for accelerator in self.accelerators)


@dataclass(frozen=True)
class Cluster:
    """The nodes that can be rented, and the figures that times are estimated from."""

    file: Path
    tiers: tuple[Tier, ...]
    """Kinds of node by name, from small to large."""
    max_price_total: float | int
    """Dollars beyond which nothing is rented."""
    training_tier: Tier
    """The tier of training jobs."""
    training_minutes: int
    """Minutes assumed for one training job."""
    setup_minutes: float | int
    """Minutes from asking for a node to the start of its job."""
    network_gb_s: float | int
    """What a node downloads, in 10**9 bytes a second."""
    utilisation: float | int
    """The share of a card's operations that a recording reaches."""
    disk_margin_gb: float | int
    """Disk in addition to the checkpoint, in 10**9 bytes."""


def load_cluster(path: Path, schema_path: Path) -> Cluster:
    """The tiers of a file.

    Raises:
        StudyError: If the file cannot be read, breaks its schema, or a tier names a card that is not described.
    """
    document = load_validated(path, schema_path)
    known = {name: Accelerator(name, **figures) for name, figures in document.pop("accelerators").items()}
    tiers = []
    for name, keys in document.pop("tiers").items():
        accelerators = _named(keys.pop("accelerators"), known, path, key=f"tiers.{name}.accelerators")
        tier = Tier(name, accelerators, **keys)
        _refuse_unaffordable(tier, path)
        tiers.append(tier)
    by_name = {tier.name: tier for tier in tiers}
    training = document.pop("training_tier")
    if training not in by_name:
        remedy = f"Add it to tiers, or {nearest(training, by_name)}"
        raise StudyError("There is no such tier.", file=path, key="training_tier", got=training, remedy=remedy)
    return Cluster(file=path, tiers=tuple(tiers), training_tier=by_name[training], **document)


def refuse_larger_cap(cluster: Cluster, cap: float | None) -> None:
    """Refuse a run whose price cap is above that of the file, or missing.

    Args:
        cluster: What can be rented.
        cap: The dollars that the run's executor stops at; None if it does not.

    Raises:
        StudyError: If they are more.
    """
    if cap is None or cap > cluster.max_price_total:
        raise StudyError(
            "A run may cost more than all nodes of one may.",
            file=cluster.file,
            key="max_price_total",
            expected=f"a run of at most ${cluster.max_price_total:g}",
            got="one without a limit" if cap is None else f"one of up to ${cap:g}",
            remedy="Raise it in that file, which profiles/runpod takes it from, or give the run less.",
        )


def _named(names: list[str], known: Mapping[str, Accelerator], path: Path, *, key: str) -> tuple[Accelerator, ...]:
    for name in names:
        if name not in known:
            remedy = f"Describe it under accelerators, or {nearest(name, known)}"
            raise StudyError("A tier names a card that is not described.", file=path, key=key, got=name, remedy=remedy)
    return tuple(known[name] for name in names)


def _refuse_unaffordable(tier: Tier, path: Path) -> None:
    cheapest = tier.count * min(accelerator.price_per_hour for accelerator in tier.accelerators)
    if cheapest > tier.max_price_per_hour:
        raise StudyError(
            "A tier costs more than it may.",
            file=path,
            key=f"tiers.{tier.name}.max_price_per_hour",
            expected=f"at least {cheapest:g}, the price of the cheapest of its nodes",
            got=tier.max_price_per_hour,
        )
