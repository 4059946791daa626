"""What the tables say, in sentences: each made from numbers, with their uncertainty and the n behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.inputs import ReportContents, ReportInputs
from outlier_moe.report.jumps import transition_findings
from outlier_moe.report.sentences import Finding, counted, have, of_all, percent, with_interval
from outlier_moe.report.tested import (
    dense_moe_findings,
    pair_findings,
    routing_findings,
    super_expert_findings,
    verification_findings,
)
from outlier_moe.statistics.degenerate import is_degenerate
from outlier_moe.statistics.intervals import SIMULATED
from outlier_moe.terminal.figures import plain

FEW = 30
"""Sequences from which on intervals come without a warning."""


class Intervals(NamedTuple):
    """The intervals that a statement may give."""

    ends: Mapping[tuple[str, str], tuple[float, float]]
    """Of each model's figure, where there is one."""
    level: float
    """Their confidence level."""

    def of(self, model: str, figure: str) -> tuple[float, float] | None:
        """The ends of one."""
        return self.ends.get((model, figure))


def findings(inputs: ReportInputs, contents: ReportContents) -> list[Finding]:
    """Everything that these models allow to be said, the most important first."""
    if not contents.models:
        return []
    preset = inputs.default_preset
    rows = contents.comparison.filter(preset=preset.name, first_token="included")
    intervals = _intervals(inputs, preset)
    found = [
        _how_many(rows, preset, intervals),
        _how_far(rows, preset, intervals),
        *(_over_models(rows, inputs) if len(rows) > 1 else []),
        *_first_tokens(contents.comparison, preset),
        *_massive(inputs, contents.comparison),
        *super_expert_findings(inputs.statistics.get("super_experts")),
        *routing_findings(inputs.statistics.get("outlier_routing")),
        *verification_findings(inputs.statistics.get("verification")),
        *_degenerate(inputs, contents.comparison),
        *_not_finite(rows),
        how_much_text(rows, inputs.statistics.get("intervals")),
    ]
    return [finding for finding in found if finding is not None]


def _over_models(rows: pl.DataFrame, inputs: ReportInputs) -> list[Finding]:
    """What takes several models; with one alone, what is left out says so once."""
    preset, kinds = inputs.default_preset, set(rows["kind"].cast(pl.String))
    of_kinds = [
        *_dense_and_moe(rows, preset),
        *dense_moe_findings(inputs.statistics.get("dense_moe"), preset),
        *pair_findings(inputs.statistics.get("pairs"), preset),
    ]
    return [
        *(of_kinds if len(kinds) > 1 else []),
        *transition_findings(inputs.statistics.get("phase_transitions"), preset),
    ]


def _intervals(inputs: ReportInputs, preset: Preset) -> Intervals:
    table = inputs.statistics.get("intervals")
    level = confidence_level(table)
    if table is None or level is None:
        return Intervals({}, 0.0)
    known = table.filter(pl.col("low").is_not_null(), preset=preset.name, first_token="included")
    rows = known.select("model", pl.col("figure").cast(pl.String), "low", "high").iter_rows()
    return Intervals({(model, figure): (low, high) for model, figure, low, high in rows}, level)


def confidence_level(intervals: pl.DataFrame | None) -> float | None:
    """The level that all intervals of a study were computed at; None without any.

    Args:
        intervals: `FigureInterval`, if there is one.
    """
    return None if intervals is None or intervals.is_empty() else float(intervals["confidence_level"][0])


def _basis(rows: pl.DataFrame, preset: Preset, intervals: Intervals | None = None) -> str:
    texts = ", ".join(
        f"{n} sequences of {tokens // n:,} tokens"
        for n, tokens in rows.select("n_sequences", "n_tokens").unique().sort("n_sequences", "n_tokens").iter_rows()
    )
    end = ""
    if intervals is not None and intervals.ends:
        end = f"; intervals: {percent(intervals.level)}, over resampled sequences"
    return f"n = {counted(len(rows), 'model')}, {texts}; preset {preset.name}{end}"


def _figure(row: Mapping[str, Any], figure: str, intervals: Intervals) -> str:
    """A model's figure, with its interval if there is one."""
    low, high = intervals.of(row["model"], figure) or (None, None)
    return with_interval(row[figure], low, high, "count" if figure == "n_systematic" else "percent_sign")


def _rule(preset: Preset) -> str:
    where = f"{preset.layer_fraction:.0%} of the layers and {preset.position_fraction:.0%} of the positions"
    return f"|x| ≥ {plain(preset.magnitude, 6)} in {where}"


def _how_many(rows: pl.DataFrame, preset: Preset, intervals: Intervals) -> Finding:
    ranked = rows.sort(["n_systematic", "model"], descending=[True, False]).rows(named=True)

    def told(row: dict[str, Any]) -> str:
        share = f"{row['d_model_share']:.1%} of its {row['d_model']:,}"
        return f"{_figure(row, 'n_systematic', intervals)} in {row['model']} ({share})"

    if len(rows) == 1:
        text = f"Features with {_rule(preset)}: {told(ranked[0])}."
        return Finding("How many", text, _basis(rows, preset, intervals))
    with_some = [row for row in ranked if row["n_systematic"]]
    if not with_some:
        text = f"None of {len(rows)} models has a feature with {_rule(preset)}."
        return Finding("How many", text, _basis(rows, preset))
    median = plain(float(rows["n_systematic"].median() or 0))  # type: ignore[arg-type]
    text = (
        f"{of_all(len(with_some), len(ranked))} {have(len(ranked))} features with {_rule(preset)}: from"
        f" {told(ranked[-1])} to {told(ranked[0])}; the median model has {median}."
    )
    return Finding("How many", text, _basis(rows, preset, intervals))


def _how_far(rows: pl.DataFrame, preset: Preset, intervals: Intervals) -> Finding | None:
    known = rows.filter(pl.col("layer_fraction_mean").is_not_null(), pl.col("position_fraction_mean").is_not_null())
    if known.is_empty():
        return None
    if len(known) == 1:
        return _how_far_alone(known, preset, intervals)
    parts = []
    for figure, noun in (("layer_fraction_mean", "layers"), ("position_fraction_mean", "positions")):
        ends = known.sort([figure, "model"]).rows(named=True)
        told = [f"{_figure(row, figure, intervals)} in {row['model']}" for row in (ends[0], ends[-1])]
        parts.append(f"{' to '.join(told)} of the {noun}")
    text = f"On average over a model's systematic features, one affects {', and '.join(parts)}."
    return Finding("How far they reach", text, _basis(known, preset, intervals))


def _how_far_alone(rows: pl.DataFrame, preset: Preset, intervals: Intervals) -> Finding:
    row = rows.row(0, named=True)
    told = [
        f"{_figure(row, figure, intervals)} of the {noun}"
        for figure, noun in (("layer_fraction_mean", "layers"), ("position_fraction_mean", "positions"))
    ]
    subject = "This feature" if row["n_systematic"] == 1 else "On average such a feature"
    text = f"{subject} affects {' and '.join(told)} of {row['model']}."
    return Finding("How far they reach", text, _basis(rows, preset, intervals))


def _dense_and_moe(rows: pl.DataFrame, preset: Preset) -> list[Finding]:
    """Medians side by side; the tests of `compare_dense_moe` speak for themselves."""
    kinds = {kind: rows.filter(kind=kind) for kind in ("dense", "moe")}
    if any(part.is_empty() for part in kinds.values()):
        return []
    names = {"dense": "dense", "moe": "MoE"}

    def told(column: str, form: Callable[[float], str]) -> str:
        medians = {kind: part.select(pl.col(column).cast(pl.Float64).median()).item() for kind, part in kinds.items()}
        return " against ".join(
            f"{'none' if median is None else form(median)} ({names[kind]})" for kind, median in medians.items()
        )

    layers, positions = (told(f"{of}_fraction_mean", "{:.0%}".format) for of in ("layer", "position"))
    text = (
        f"The median model has {told('n_systematic', plain)} systematic features, which affect on average {layers} of"
        f" the layers and {positions} of the positions. Models of one kind differ in size and family too: medians alone"
        " do not say what sparsity does."
    )
    sizes = " and ".join(f"{len(part)} {names[kind]}" for kind, part in kinds.items())
    return [Finding("Dense against MoE", text, f"n = {sizes} models; preset {preset.name}")]


def _first_tokens(comparison: pl.DataFrame, preset: Preset) -> list[Finding]:
    chosen = comparison.filter(preset=preset.name).select("model", "first_token", "n_systematic", "peak_largest")
    both = chosen.filter(first_token="included").join(
        chosen.filter(first_token="excluded"), on="model", suffix="_later"
    )
    if both.is_empty():
        return []
    change = both.with_columns(lost=pl.col("n_systematic").cast(pl.Int64) - pl.col("n_systematic_later").cast(pl.Int64))
    changed = change.filter(pl.col("lost") != 0).sort([pl.col("lost").abs(), "model"], descending=[True, False])
    if changed.is_empty():
        text = "Without each sequence's first token, where attention sinks sit, every count stays the same."
    else:
        row = changed.row(0, named=True)
        text = (
            "Without each sequence's first token, where attention sinks sit, the count changes in"
            f" {of_all(len(changed), len(both)).lower()}, most in {row['model']}: from {row['n_systematic']:,} to"
            f" {row['n_systematic_later']:,}."
        )
    return [Finding("First tokens", text, f"n = {counted(len(both), 'model')}; preset {preset.name}")]


def _massive(inputs: ReportInputs, comparison: pl.DataFrame) -> list[Finding]:
    found = []
    for preset in inputs.presets:
        rows = comparison.filter(preset=preset.name, first_token="included")
        if preset.rule != "massive" or rows.is_empty():
            continue
        some = rows.filter(pl.col("n_systematic") > 0).sort(["peak_largest", "model"], descending=[True, False])
        rule = f"|x| > {plain(preset.magnitude, 6)} and {plain(preset.median_ratio, 6)} times the median"
        text = f"{of_all(len(some), len(rows))} {have(len(rows))} massive activations ({rule})."
        if len(some):
            row = some.row(0, named=True)
            where = f"at {preset.view}, first tokens included"
            text += f" The largest of them ({where}) is {plain(row['peak_largest'])}, in {row['model']}."
        found.append(Finding("Massive activations", text, f"n = {counted(len(rows), 'model')}; preset {preset.name}"))
    return found


def _degenerate(inputs: ReportInputs, comparison: pl.DataFrame) -> list[Finding]:
    """Presets that mark nearly all features of a model, which is why there are others."""
    found = []
    for preset in inputs.presets:
        rows = comparison.filter(preset=preset.name, first_token="included")
        most = rows.filter(is_degenerate()).sort(["d_model_share", "model"], descending=[True, False])
        if most.is_empty():
            continue
        each = ", ".join(
            f"{row['model']} ({row['n_systematic']:,} of {row['d_model']:,})" for row in most.rows(named=True)
        )
        text = f"{preset.name} marks (nearly) every feature of {each}: these are in no test by it."
        found.append(Finding("Where a definition says nothing", text, f"n = {counted(len(rows), 'model')}", True))
    return found


def _not_finite(rows: pl.DataFrame) -> list[Finding]:
    some = rows.filter(pl.col("n_nonfinite") > 0)
    if some.is_empty():
        return []
    told = ", ".join(f"{n:,} in {model}" for model, n in some.select("model", "n_nonfinite").iter_rows())
    text = f"Some activations are NaN or infinite, and in no figure: {told}. Their models are in no test."
    return [Finding("Not finite", text, f"n = {counted(len(rows), 'model')}", True)]


def how_much_text(rows: pl.DataFrame, intervals: pl.DataFrame | None) -> Finding:
    """How far intervals over so few sequences can be trusted, and what no interval speaks of.

    Args:
        rows: The models' rows of the comparison by one preset.
        intervals: `FigureInterval`, if there is one.
    """
    least, most = int(rows["n_sequences"].min() or 0), int(rows["n_sequences"].max() or 0)  # type: ignore[arg-type]
    n = f"{least}" if least == most else f"{least} to {most}"
    text = (
        f"Each model read {n} sequence{'' if n == '1' else 's'}: intervals and tests speak of other sequences of the"
        " same kind of text, and of nothing beyond it."
    )
    level = confidence_level(intervals)
    if level is None:
        text += " No intervals were computed for this report."
    elif most < FEW:
        text += f" From so few, an interval is too narrow: {_coverage(n, level)}"
        text += " The layers that a feature affects, and largest values, can only grow with more text."
    return Finding("How much text", text, f"n = {counted(len(rows), 'model')}", True)


def _coverage(n: str, level: float) -> str:
    """What simulations found, of such intervals alone."""
    if (n, level) != (str(SIMULATED.n_sequences), SIMULATED.confidence_level):
        return f"by how much was not simulated for {n} at {percent(level)}."
    held = f"{SIMULATED.least:.0%} to {SIMULATED.most:.0%}".replace("%", " %")
    return (
        f"in simulated texts of {n} sequences, intervals of {percent(level)} held what such texts give on average in"
        f" {held} of the cases, least often for counts where each feature varies by itself."
    )
