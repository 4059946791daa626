"""The tests of a whole study: over its models, and of each model against what others published."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from outlier_moe.ladder import Ladder
from outlier_moe.recording_files import Recording, read_recording
from outlier_moe.schemas.checked import OutlierRouting, SuperExpert, Verification
from outlier_moe.statistics.dense_moe import DenseMoeOptions, compare_dense_moe
from outlier_moe.statistics.phase_transition import phase_transitions
from outlier_moe.statistics.routing import outlier_routing
from outlier_moe.statistics.super_experts import forming_layers, super_experts
from outlier_moe.statistics.transition import TransitionOptions
from outlier_moe.statistics.verification import verify

log = logging.getLogger(__name__)


class StudyTests(NamedTuple):
    """The tables of `tests_of_study`, named as their files."""

    dense_moe: pl.DataFrame
    """`RankTestResult`."""
    pairs: pl.DataFrame
    """`MatchedPair`."""
    groups: pl.DataFrame
    """`GroupSummary`."""
    phase_transitions: pl.DataFrame
    """`PhaseTransition`."""
    trends: pl.DataFrame
    """`TrendComparison`."""


def tests_of_study(models: pl.DataFrame, resamples: pl.DataFrame, *, presets: list[str], seed: int) -> StudyTests:
    """Dense against MoE, and whether anything jumps.

    Args:
        models: The table `ModelComparison`.
        resamples: The table `ModelResample` of these presets.
        presets: Names of the presets whose figures are tested. Each more of them makes all q-values larger.
        seed: Decides all random draws.
    """
    chosen = models.filter(pl.col("preset").is_in(presets))
    compared = compare_dense_moe(chosen, options=DenseMoeOptions(seed=seed))
    found = phase_transitions(chosen, resamples=resamples, options=TransitionOptions(seed=seed))
    for table in (compared.tests, found.transitions):
        reasons = table["reason"].drop_nulls().value_counts(sort=True)
        for reason, n in reasons.iter_rows():
            log.warning("%d tests were not made: %s", n, reason)
    return StudyTests(compared.tests, compared.pairs, compared.groups, found.transitions, found.trends)


class StudyChecks(NamedTuple):
    """The tables of `checks_of_study`, named as their files."""

    verification: pl.DataFrame
    """`Verification`: every published figure of every model."""
    super_experts: pl.DataFrame
    """`SuperExpert`, with the column `model`."""
    outlier_routing: pl.DataFrame
    """`OutlierRouting`."""


@dataclass(frozen=True)
class CheckedModel:
    """One model, to be held against what others published of it."""

    name: str
    """Its id."""
    outliers: Path
    """Its recording."""
    revision: str = "main"
    """The revision that the registry asks of the hub."""


def checks_of_study(
    models: list[CheckedModel], features: pl.DataFrame, *, presets: list[str], magnitude: float, seed: int
) -> StudyChecks:
    """Hold every model against what others published of it, and look at its experts.

    Args:
        models: The models.
        features: The table `JudgedFeature`, with the column `model`.
        presets: Names of the presets that they were judged by.
        magnitude: The |x| from which a token is an outlier token.
        seed: Decides all random draws.
    """
    verified: list[pl.DataFrame] = [Verification.create_empty()]
    supers: list[pl.DataFrame] = [SuperExpert.create_empty().select(pl.lit("").alias("model"), pl.all())]
    routed: list[pl.DataFrame] = [OutlierRouting.create_empty()]
    for model in models:
        recording = read_recording(model.outliers)
        experts = recording.experts()
        of_model = features.filter(model=model.name)
        verified.append(
            verify(recording, of_model, model=model.name, experts=experts, revision=model.revision, presets=presets)
        )
        if experts is not None:
            supers.append(_super_experts(model.name, recording, experts))
            least = _reachable(model.name, recording.ladder, magnitude)
            routed.append(
                outlier_routing(experts, ladder=recording.ladder, magnitude=least, model=model.name, seed=seed)
            )
    return StudyChecks(pl.concat(verified), pl.concat(supers), pl.concat(routed))


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
