"""Runs of a sweep held against each other where their training losses are alike, group by group.

Which loss that is depends on who is compared: the one that every run of the group reached. Of all optimisers of a scale
it is the slowest one's, and another one at each scale; so each two optimisers have one of their own, and so has each
optimiser whose figures are followed over the scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import polars as pl

from outlier_moe.scale_sweep.figures import SweptRun
from outlier_moe.scale_sweep.moments import at_moments, target_loss


class Curve(NamedTuple):
    """A run that did not diverge."""

    run: SweptRun
    """Its files."""
    steps: pl.DataFrame
    """Its figures at every checkpoint: `figures_over_steps`."""


def of_each_two(curves: Sequence[Curve]) -> list[pl.DataFrame]:
    """The runs of each two optimisers at each scale, at the loss that all of these reached: `matched_figures`."""
    tables = []
    for scale in _names(curve.run.scale for curve in curves):
        for two in combinations(_names(curve.run.optimizer for curve in curves), 2):
            # In the order of the two, which says what is subtracted.
            chosen = [
                curve for name in two for curve in curves if (curve.run.optimizer, curve.run.scale) == (name, scale)
            ]
            tables.append(matched_figures(chosen))
    return tables


def of_each_optimizer(curves: Sequence[Curve]) -> list[pl.DataFrame]:
    """The runs of each optimiser at all scales, at the loss that all of these reached: `matched_figures`."""
    names = _names(curve.run.optimizer for curve in curves)
    return [matched_figures([curve for curve in curves if curve.run.optimizer == name]) for name in names]


def _names(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


_COLUMNS = {
    "scale": pl.String,
    "n_parameters": pl.Int64,
    "optimizer": pl.String,
    "seed": pl.Int64,
    "figure": pl.String,
    "value": pl.Float64,
    "value_low": pl.Float64,
    "value_high": pl.Float64,
    "target_loss_nats": pl.Float64,
    "gap_steps": pl.Float64,
}


def matched_figures(curves: Sequence[Curve]) -> pl.DataFrame:
    """The figures of some runs at the training loss that all of them reached, as `answers` takes them.

    Returns:
        A row per run and figure: its value, the lower and the higher one of the two checkpoints that it is read
        between, the loss, and the steps between those checkpoints.
    """
    target = target_loss(curve.steps for curve in curves)
    rows = []
    for run, steps in curves:
        found = at_moments(steps, target)["matched"]
        key = {name: value for name, value in run.key.items() if name in _COLUMNS}
        rows += [
            key
            | {"figure": figure, "value": value, "value_low": found.lowest[figure], "value_high": found.highest[figure]}
            | {"target_loss_nats": target, "gap_steps": found.gap_steps}
            for figure, value in found.values.items()
        ]
    return pl.DataFrame(rows, schema=_COLUMNS).with_columns(moment=pl.lit("matched"))
