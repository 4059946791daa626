"""Each model of a study against what others published of it, and its experts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.statistics.routing import expert_routing, outlier_routing
from outlier_moe.statistics.super_experts import forming_layers, super_experts
from outlier_moe.statistics.verification import verify
from outlier_moe.tables.checked import ExpertRouting, OutlierRouting, SuperExpert, Verification
from outlier_moe.tables.recording import Recording, read_recording

log = logging.getLogger(__name__)


class StudyChecks(NamedTuple):
    """The tables of `checks_of_study`, named as their files."""

    verification: pl.DataFrame
    """`Verification`: every published figure of every model."""
    super_experts: pl.DataFrame
    """`SuperExpert`, with the column `model`."""
    outlier_routing: pl.DataFrame
    """`OutlierRouting`."""
    expert_routing: pl.DataFrame
    """`ExpertRouting`."""


@dataclass(frozen=True)
class CheckedModel:
    """One model, to be held against what others published of it."""

    name: str
    """Its id."""
    outliers: Path
    """Its recording."""
    revision: str = "main"
    """The revision that the registry asks of the hub."""
    copy_of: str | None = None
    """The hub's repository of which it is a copy."""
    published_id: str | None = None
    """The id by which published figures know it, if not its own."""


def checks_of_study(
    models: list[CheckedModel],
    features: pl.DataFrame,
    *,
    presets: list[str],
    magnitude: float,
    seed: int,
    left_out: Collection[str] = (),
) -> StudyChecks:
    """Hold every model against what others published of it, and look at its experts.

    Args:
        models: The models.
        features: The table `JudgedFeature`, with the column `model`.
        presets: Names of the presets that they were judged by.
        magnitude: The |x| from which a token is an outlier token.
        seed: Decides all random draws.
        left_out: Names of those that the comparison left out: without features such a model was not judged.
    """
    nothing = SuperExpert.create_empty().select(pl.lit("").alias("model"), pl.all())
    verified: list[pl.DataFrame] = [Verification.create_empty()]
    of_experts: list[tuple[pl.DataFrame, ...]] = [
        (nothing, OutlierRouting.create_empty(), ExpertRouting.create_empty())
    ]
    for model in models:
        recording = read_recording(model.outliers)
        experts, routers = recording.experts(), recording.routers()
        of_model = features.filter(model=model.name)
        by = [] if model.name in left_out and of_model.is_empty() else presets
        verified.append(
            verify(
                recording,
                of_model,
                model=model.name,
                experts=experts,
                revision=model.revision,
                copy_of=model.copy_of,
                published_id=model.published_id,
                presets=by,
            )
        )
        if experts is not None and routers is not None:
            ladder = recording.ladder
            least = _reachable(model.name, ladder, magnitude)
            routed = outlier_routing(experts, ladder=ladder, magnitude=least, model=model.name, seed=seed)
            by_expert = expert_routing(experts, routers, ladder=ladder, magnitude=least, model=model.name)
            of_experts.append((_super_experts(model.name, recording, experts), routed, by_expert))
    return StudyChecks(pl.concat(verified), *map(pl.concat, zip(*of_experts, strict=True)))


def _super_experts(name: str, recording: Recording, experts: pl.DataFrame) -> pl.DataFrame:
    found = super_experts(experts, forming_layers(recording))
    if found.reason is not None:
        log.warning("%s has no super experts: %s", name, found.reason)
    return found.experts.select(pl.lit(name).alias("model"), pl.all())


def _reachable(name: str, ladder: Ladder, magnitude: float) -> float:
    if magnitude >= ladder.floor:
        return magnitude
    log.warning("%s: outlier tokens are those that reach its floor of %g, not %g", name, ladder.floor, magnitude)
    return ladder.floor
