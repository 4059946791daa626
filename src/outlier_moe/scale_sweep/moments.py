"""The moments at which runs are compared: the start, the end, and where their training losses are alike.

A loss that a run passes between two checkpoints is matched on the line between them. A figure that bends between the
two bends the same way for every seed, so that the line errs to one side, which no interval over seeds tells. Therefore
the values of both checkpoints are kept beside: if the figure goes one way between them, its value lies within.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.scale_sweep.figures import TARGET
from outlier_moe.tables.sweeps import Moment


def target_loss(runs: Iterable[pl.DataFrame]) -> float | None:
    """The training loss that every run reached: the highest of their lowest.

    A run that never goes below its own start does not count: all others would be matched before they have learnt.

    Args:
        runs: What `figures_over_steps` gave for each run that did not diverge.
    """
    return max((loss for run in runs if (loss := _lowest_loss(run)) is not None), default=None)


def _lowest_loss(run: pl.DataFrame) -> float | None:
    """The lowest training loss; None of a run that never goes below its own start."""
    first, *later = run[TARGET].to_list()
    reached = [loss for loss in later if loss is not None and (first is None or loss < first)]
    return min(reached, default=None)


class AtMoment(NamedTuple):
    """A run's figures at a moment."""

    values: Mapping[str, float | None]
    """Each figure; None where it does not exist."""
    lowest: Mapping[str, float | None]
    highest: Mapping[str, float | None]
    """The lower and the higher of each figure's values at the two checkpoints that it is read between; at a checkpoint
    both are the value."""
    step: float | None
    """The steps done; between two checkpoints where the loss is matched there."""
    gap_steps: float | None = 0.0
    """The steps between those two. 0 at a checkpoint."""
    reason: str | None = None
    """Why the run has no such moment."""


def at_moments(over_steps: pl.DataFrame, target: float | None) -> dict[Moment, AtMoment]:
    """A run's figures at the start, when its training loss first is the target, and at the end.

    Args:
        over_steps: What `figures_over_steps` gave.
        target: The loss; a run that never reaches it, or starts below it, has no figures there.
    """
    rows = over_steps.with_columns(pl.col("step").cast(pl.Float64)).to_dicts()
    return {"start": _measured(rows[0]), "matched": _matched(rows, target), "end": _end(rows)}


def _end(rows: Sequence[Mapping[str, Any]]) -> AtMoment:
    """The last checkpoint; of a run that diverged the last whose loss was a number."""
    for row in reversed(rows):
        if row[TARGET] is not None:
            return _measured(row)
    return _measured(rows[-1])._replace(reason="the training loss was no number at any checkpoint")


def _measured(row: Mapping[str, float | None]) -> AtMoment:
    values = _figures(row)
    return AtMoment(values, values, values, row["step"])


def _figures(row: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value for name, value in row.items() if name != "step"}


def _matched(rows: Sequence[Mapping[str, Any]], target: float | None) -> AtMoment:
    none = dict.fromkeys(_figures(rows[0]))
    nothing = AtMoment(none, none, none, None, None)
    if target is None:
        return nothing._replace(reason="every run of the scale diverged or stayed at its start")
    if rows[0][TARGET] is not None and rows[0][TARGET] <= target:
        # The figures there would be those of another loss.
        return nothing._replace(reason="the training loss is the matched one or below from the start")
    for before, after in pairwise(rows):
        if before[TARGET] is None or after[TARGET] is None:
            break
        if after[TARGET] <= target:
            return _measured(after) if after[TARGET] == target else _between(before, after, target)
    return nothing._replace(reason="the matched training loss is never reached")


def _between(before: Mapping[str, Any], after: Mapping[str, Any], target: float) -> AtMoment:
    share = (before[TARGET] - target) / (before[TARGET] - after[TARGET])
    both = {name: (value, after[name]) for name, value in before.items()}
    line = {name: None if None in two else two[0] + share * (two[1] - two[0]) for name, two in both.items()}
    lowest, highest = ({name: None if None in two else end(two) for name, two in both.items()} for end in (min, max))
    # The loss itself is no guess.
    values, lowest, highest = (_figures(row | {TARGET: target}) for row in (line, lowest, highest))
    return AtMoment(values, lowest, highest, line["step"], after["step"] - before["step"])
