"""The tests of a whole study, over its models."""

from __future__ import annotations

import logging
from typing import NamedTuple

import polars as pl

from outlier_moe.statistics.degenerate import with_degenerate
from outlier_moe.statistics.dense_moe import DenseMoeOptions, compare_dense_moe
from outlier_moe.statistics.phase_transition import phase_transitions
from outlier_moe.statistics.transition import TransitionOptions

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

    A model with activations that are NaN or infinite is in no test: all that comes after one of those counts as zero.
    Nor is a model in tests by a preset that marks nearly all of its features.

    Args:
        models: The table `ModelComparison`.
        resamples: The table `ModelResample` of these presets.
        presets: Names of the presets whose figures are tested. Each more of them makes all q-values larger.
        seed: Decides all random draws.
    """
    for model in models.filter(pl.col("n_nonfinite") > 0)["model"].unique(maintain_order=True):
        log.warning("%s is in no test: some of its activations are NaN or infinite", model)
    chosen = with_degenerate(models).filter(pl.col("preset").is_in(presets), pl.col("n_nonfinite") == 0)
    degenerate = chosen.filter("is_degenerate").unique(["model", "preset"], maintain_order=True)
    for model, preset in degenerate.select("model", "preset").iter_rows():
        log.warning("%s is in no test by %s, which marks (nearly) every feature of it", model, preset)
    chosen = chosen.filter(~pl.col("is_degenerate"))
    compared = compare_dense_moe(chosen, options=DenseMoeOptions(seed=seed))
    found = phase_transitions(chosen, resamples=resamples, options=TransitionOptions(seed=seed))
    for table in (compared.tests, found.transitions):
        reasons = table["reason"].drop_nulls().value_counts(sort=True)
        for reason, n in reasons.iter_rows():
            log.warning("%d tests were not made: %s", n, reason)
    return StudyTests(compared.tests, compared.pairs, compared.groups, found.transitions, found.trends)
