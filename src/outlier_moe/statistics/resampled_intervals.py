"""Confidence intervals of a model's figures and of the difference of two models, from their resamples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64

from outlier_moe.errors import StudyError
from outlier_moe.statistics.intervals import Interval, bca_intervals
from outlier_moe.statistics.resampled_figures import Figures
from outlier_moe.tables.comparison import SEQUENCE_FIGURES, FigureDifference, FigureInterval

_KEY = ["preset", "first_token", "figure"]
_INTERVAL = {
    **dict.fromkeys(("low", "high", "standard_error", "share_below", "share_above"), pl.Float64),
    "n_resamples": pl.Int64,
    "reason": pl.String,
}
"""The columns of `Interval`."""


@dataclass(frozen=True)
class _Resampled:
    """The rows of one model's `ModelResample`, as arrays; nan where there is no figure."""

    facts: pl.DataFrame
    """Their other columns."""
    estimates: Float64[np.ndarray, " figure"]
    resamples: Float64[np.ndarray, "figure draw"]
    leave_one_out: Float64[np.ndarray, "figure sequence"]

    @classmethod
    def of(cls, table: pl.DataFrame) -> _Resampled:
        lists = [_array(table[name]) for name in ("resamples", "leave_one_out")]
        estimates = table["estimate"].fill_null(np.nan).to_numpy()
        return cls(table.drop("estimate", "resamples", "leave_one_out"), estimates, *lists)

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What is the same for all rows of a model: its name, its text, how it was resampled."""
        return self.facts.drop(_KEY).row(0, named=True)

    def rows(self, chosen: pl.DataFrame) -> _Resampled:
        """Those of some keys, in that order."""
        at = chosen.join(self.facts.with_row_index("_row"), on=_KEY, how="left", maintain_order="left")["_row"]
        index = at.to_numpy()
        return _Resampled(self.facts[at], self.estimates[index], self.resamples[index], self.leave_one_out[index])


def _array(lists: pl.Series) -> Float64[np.ndarray, "figure draw"]:
    """The lists of `_lists`, which are of one length."""
    values = lists.explode(empty_as_null=False).cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values.reshape(len(lists), -1) if len(lists) else values.reshape(0, 0)


def bootstrap_comparison(resamples: pl.DataFrame, *, confidence_level: float = 0.95) -> pl.DataFrame:
    """A BCa interval for every figure of the comparison.

    Args:
        resamples: The tables of `resample_model`, one after the other.
        confidence_level: Between 0 and 1.

    Returns:
        The table `FigureInterval`.
    """
    tables = []
    for _, table in resamples.group_by("model", maintain_order=True):
        of = _Resampled.of(table)
        intervals = bca_intervals(of.estimates, of.resamples, [of.leave_one_out], confidence_level=confidence_level)
        tables.append(_with_intervals(of.facts, of.estimates, intervals))
    return _validated(tables, FigureInterval, confidence_level)


def bootstrap_differences(
    resamples: pl.DataFrame, *, pairs: list[tuple[str, str]] | None = None, confidence_level: float = 0.95
) -> pl.DataFrame:
    """The difference of two models in every figure that both have, with its BCa interval.

    Where sequence i holds the same tokens for both models (same text, tokenizer, lengths), each resample draws the same
    sequences for both. Elsewhere their words differ, so that the two are resampled independently: the interval is wider
    and still right. Models on different texts are refused.

    Args:
        resamples: The tables of `resample_model`, one after the other.
        pairs: The models to compare; by default each with each.
        confidence_level: Between 0 and 1.

    Returns:
        The table `FigureDifference`.

    Raises:
        StudyError: If a pair was recorded on different texts, or a model has no resamples.
    """
    by_model = {str(key[0]): _Resampled.of(table) for key, table in resamples.group_by("model", maintain_order=True)}
    differences = []
    for model, other in combinations(by_model, 2) if pairs is None else pairs:
        for name in (model, other):
            if name not in by_model:
                raise StudyError("A model has no resamples.", key="pairs", expected=", ".join(by_model), got=name)
        one, another = _sharing(by_model[model], by_model[other])
        if len(one.facts):
            differences.append(_difference(one, another, confidence_level))
    if not differences:
        return _validated([], FigureDifference, confidence_level)
    # Put together once: hundreds of small tables take longer than what is in them.
    facts, estimates, intervals, pairing = zip(*differences, strict=True)
    columns = pl.DataFrame([pair for pair, of in zip(pairing, facts, strict=True) for _ in range(len(of))])
    table = _with_intervals(pl.concat(facts), np.concatenate(estimates), list(chain.from_iterable(intervals)))
    return _validated([table.with_columns(*columns)], FigureDifference, confidence_level)


def _sharing(one: _Resampled, other: _Resampled) -> tuple[_Resampled, _Resampled]:
    """The rows of the figures that both have."""
    keys, others = one.facts.select(_KEY), other.facts.select(_KEY)
    if keys.equals(others):
        return one, other
    shared = keys.join(others, on=_KEY, how="semi", maintain_order="left")
    return one.rows(shared), other.rows(shared)


class _Difference(NamedTuple):
    """The rows of one pair of models."""

    facts: pl.DataFrame
    """What is known of the first model's rows."""
    estimates: Float64[np.ndarray, " figure"]
    intervals: list[Interval]
    pairing: dict[str, Any]
    """What is the same for all: the other model, and how the two were paired."""


def _difference(first: _Resampled, second: _Resampled, confidence_level: float) -> _Difference:
    facts, others = first.shared, second.shared
    _refuse_other_text(facts, others)
    unpaired = _why_unpaired(first, second)
    estimates = first.estimates - second.estimates
    if unpaired is None:
        drawn, left_out = first.resamples - second.resamples, [first.leave_one_out - second.leave_one_out]
    else:
        n = min(first.resamples.shape[1], second.resamples.shape[1])
        # One seed draws the same numbers for both; in another order they are independent.
        order = np.random.default_rng(facts["seed"]).permutation(second.resamples.shape[1])
        drawn = first.resamples[:, :n] - second.resamples[:, order[:n]]
        left_out = [
            first.leave_one_out - second.estimates[:, None],
            first.estimates[:, None] - second.leave_one_out,
        ]
    pairing = {
        "other": others["model"],
        "n_sequences_other": others["n_sequences"],
        "is_paired": unpaired is None,
        "pairing": unpaired or "resample i draws the same sequences of tokens for both",
    }
    intervals = bca_intervals(estimates, drawn, left_out, confidence_level=confidence_level)
    return _Difference(first.facts, estimates, intervals, pairing)


def _refuse_other_text(first: dict[str, Any], second: dict[str, Any]) -> None:
    if first["corpus_sha256"] != second["corpus_sha256"]:
        raise StudyError(
            "Models that were recorded on different texts have no difference to speak of.",
            key="corpus",
            expected="one text for both",
            got=", ".join(f"{facts['model']}: sha256 {facts['corpus_sha256'][:12]}" for facts in (first, second)),
            remedy="Record both on one (--config corpus=ID), or leave the pair out.",
        )


def _why_unpaired(first: _Resampled, second: _Resampled) -> str | None:
    facts, others = first.shared, second.shared
    if facts["text_sha256"] != others["text_sha256"]:
        return "resampled independently: sequence i does not hold the same tokens (another tokenizer or length)"
    if facts["seed"] != others["seed"] or first.resamples.shape[1] != second.resamples.shape[1]:
        return "resampled independently: the two were drawn by another seed or another number of times"
    return None


def _with_intervals(
    facts: pl.DataFrame, estimates: Float64[np.ndarray, " figure"], intervals: list[Interval]
) -> pl.DataFrame:
    columns = pl.DataFrame(intervals, schema=_INTERVAL, orient="row")
    return facts.with_columns(pl.Series("estimate", estimates).fill_nan(None), *columns)


def _validated(
    tables: list[pl.DataFrame], schema: type[FigureInterval] | type[FigureDifference], confidence_level: float
) -> pl.DataFrame:
    columns = schema.column_names()
    table = pl.concat(tables).with_columns(confidence_level=confidence_level) if tables else schema.create_empty()
    return schema.validate(table.select(columns), cast=True)


def unmoved_figures(resamples: pl.DataFrame) -> Figures:
    """The figures that no threshold moves, as `resample_model` has them before they are put in a table.

    Args:
        resamples: The rows of one model and preset in `ModelResample`.
    """
    rows = resamples.filter(pl.col("figure").is_in(SEQUENCE_FIGURES), pl.col("first_token") == "included")
    of = _Resampled.of(rows)
    values = np.concatenate([of.estimates[:, None], of.leave_one_out, of.resamples], axis=1)
    return dict(zip(rows["figure"].to_list(), values, strict=True))
