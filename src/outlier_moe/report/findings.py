"""The dozen sentences that carry a study: each from a table's figures and verdicts, with the n behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.report.inputs import ReportContents, ReportInputs
from outlier_moe.report.sentences import Finding, counted, listed, percent, with_interval
from outlier_moe.report.tested import dense_and_moe, experts_of_outliers, jumps, published
from outlier_moe.statistics.degenerate import is_degenerate
from outlier_moe.statistics.intervals import SIMULATED
from outlier_moe.terminal.figures import plain

FEW = 30
"""Sequences from which on intervals come without a warning."""
MOST_NAMED = 5
"""Models that a sentence lists."""

Ends = Mapping[tuple[str, str], tuple[float, float]]
"""The interval of each model's figure, where there is one."""


def findings(inputs: ReportInputs, contents: ReportContents) -> list[Finding]:
    """What these models allow to be said, the most important first, and at most two caveats at the end."""
    if not contents.models:
        return []
    preset, tables = inputs.default_preset, inputs.statistics
    rows = contents.comparison.filter(preset=preset.name, first_token="included")
    intervals = of_preset(tables.get("intervals"), preset)
    ends = _ends(intervals)
    found = [
        _how_many(rows, preset, ends),
        _how_far(rows, ends),
        dense_and_moe(rows, of_preset(tables.get("dense_moe"), preset)),
        jumps(of_preset(tables.get("phase_transitions"), preset)),
        _first_tokens(contents.comparison.filter(preset=preset.name)),
        *_massive(inputs, contents.comparison),
        _super_experts(tables.get("super_experts")),
        experts_of_outliers(tables.get("outlier_routing")),
        published(tables.get("verification")),
        _outside_tests(contents.comparison),
        how_much_text(rows, confidence_level(intervals)),
    ]
    return [finding for finding in found if finding is not None]


def of_preset(table: pl.DataFrame | None, preset: Preset) -> pl.DataFrame | None:
    """The rows of a preset, first tokens included."""
    if table is None or table.is_empty():
        return None
    return table.filter(preset=preset.name, first_token="included")


def confidence_level(intervals: pl.DataFrame | None) -> float | None:
    """The level that all intervals of a study were computed at; None without any.

    Args:
        intervals: `FigureInterval`, if there is one.
    """
    return None if intervals is None or intervals.is_empty() else float(intervals["confidence_level"][0])


def _ends(intervals: pl.DataFrame | None) -> Ends:
    if intervals is None:
        return {}
    rows = intervals.drop_nulls("low").select("model", pl.col("figure").cast(pl.String), "low", "high").iter_rows()
    return {(model, figure): (low, high) for model, figure, low, high in rows}


def _figure(row: Mapping[str, Any], figure: str, ends: Ends) -> str:
    low, high = ends.get((row["model"], figure), (None, None))
    if figure == "n_systematic":
        return with_interval(row[figure], low, high, "count")
    return f"{with_interval(row[figure], low, high, 'percent')} %"


def _from_to(rows: pl.DataFrame, figure: str, ends: Ends) -> str:
    """The lowest and the highest value with their models; of one model its value."""
    ordered = rows.sort([figure, "model"]).rows(named=True)
    if len(ordered) == 1:
        return _figure(ordered[0], figure, ends)
    return " to ".join(f"{_figure(row, figure, ends)} in {row['model']}" for row in (ordered[0], ordered[-1]))


def _n_models(rows: pl.DataFrame) -> str:
    return f"n = {counted(rows['model'].n_unique(), 'model')}"


def _how_many(rows: pl.DataFrame, preset: Preset, ends: Ends) -> Finding:
    where = f"{percent(preset.layer_fraction)} of the layers and {percent(preset.position_fraction)} of the positions"
    text = (
        f"Features with |x| ≥ {plain(preset.magnitude, 6)} in at least {where}: {_from_to(rows, 'n_systematic', ends)}"
    )
    row = rows.row(0, named=True)
    text += f" of {row['d_model']:,}." if len(rows) == 1 else f"; the median model has {_median(rows)}."
    texts = rows.select("n_sequences", pl.col("n_tokens") // pl.col("n_sequences")).unique().sort(pl.all())
    sizes = ", ".join(f"{n} sequences of {length:,} tokens" for n, length in texts.iter_rows())
    over = "; intervals over resampled sequences" if ends else ""
    return Finding("How many", text, f"{_n_models(rows)}, {sizes}; preset {preset.name}{over}")


def _median(rows: pl.DataFrame) -> str:
    return plain(float(rows["n_systematic"].median() or 0))  # type: ignore[arg-type]


def _how_far(rows: pl.DataFrame, ends: Ends) -> Finding | None:
    known = rows.drop_nulls(["layer_fraction_mean", "position_fraction_mean"])
    if known.is_empty():
        return None
    layers, positions = (_from_to(known, f"{of}_fraction_mean", ends) for of in ("layer", "position"))
    text = f"On average over a model's systematic features, one affects {layers} of the layers"
    return Finding("How far they reach", f"{text}, and {positions} of the positions.", _n_models(known))


def _first_tokens(rows: pl.DataFrame) -> Finding | None:
    counts = rows.pivot("first_token", index="model", values="n_systematic")
    if len(counts.columns) < 3:
        return None
    lost = pl.col("included").cast(pl.Int64) - pl.col("excluded").cast(pl.Int64)
    changed = counts.filter(lost != 0).sort([lost.abs(), "model"], descending=[True, False])
    text = "Without each sequence's first token, where attention sinks sit, "
    if changed.is_empty():
        text += f"the count of {counted(len(counts), 'model')} stays the same."
    else:
        model, included, excluded = changed.select("model", "included", "excluded").row(0)
        text += f"the count changes in {len(changed)} of {counted(len(counts), 'model')}, most in {model}:"
        text += f" from {included:,} to {excluded:,}."
    return Finding("First tokens", text, f"{_n_models(rows)}; preset {rows['preset'][0]}")


def _massive(inputs: ReportInputs, comparison: pl.DataFrame) -> list[Finding]:
    found = []
    for preset in (preset for preset in inputs.presets if preset.rule == "massive"):
        rows = comparison.filter(preset=preset.name, first_token="included")
        if rows.is_empty():
            continue
        some = rows.filter(pl.col("n_systematic") > 0).sort(["peak_largest", "model"], descending=[True, False])
        rule = f"|x| > {plain(preset.magnitude, 6)} and {plain(preset.median_ratio, 6)} times the median"
        text = f"{len(some)} of {counted(len(rows), 'model')} with massive activations at {preset.view} ({rule})"
        if len(some):
            text += f"; the largest is {plain(some['peak_largest'][0])}, in {some['model'][0]}"
        found.append(Finding("Massive activations", f"{text}.", f"{_n_models(rows)}; preset {preset.name}"))
    return found


def _super_experts(table: pl.DataFrame | None) -> Finding | None:
    """Which experts make the massive activations."""
    if table is None or table.is_empty():
        return None
    found = table.filter("is_super").sort(["model", "peak"], descending=[False, True])
    details = []
    for (model,), rows in found.group_by("model", maintain_order=True):
        named = [f"L{r['layer']} E{r['expert']} ({r['peak']:,.0f})" for r in rows.head(3).iter_rows(named=True)]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        details.append(f"{model}: {', '.join(named)}{more}")
    models = counted(table["model"].n_unique(), "model")
    text = f"{len(details)} of {models} with super experts: few that make the massive activations."
    return Finding("Super experts", text, f"n = {counted(len(table), 'expert')} of {models}", details=tuple(details))


def _outside_tests(comparison: pl.DataFrame) -> Finding | None:
    """Definitions that mark nearly all features of a model, and models with values that are no numbers."""
    rows = comparison.filter(first_token="included")
    marked = rows.filter(is_degenerate()).sort("preset", "model")
    said = [
        f"the preset {preset} marks (nearly) every feature of {_named(of['model'].to_list(), rows['model'].n_unique())}"
        for (preset,), of in marked.group_by("preset", maintain_order=True)
    ]
    broken = rows.filter(pl.col("n_nonfinite") > 0).unique("model", maintain_order=True)
    said += [
        f"{n:,} activations of {model} are NaN or infinite" for model, n in broken.select("model", "n_nonfinite").rows()
    ]
    if not said:
        return None
    text = "; ".join(said)
    return Finding("In no test", f"{text[0].upper()}{text[1:]}: these are in no test.", _n_models(rows), is_caveat=True)


def _named(models: list[str], n_all: int) -> str:
    """The models; of many the first."""
    if len(models) == n_all > 1:
        return f"all {n_all} models"
    return listed(models) if len(models) <= MOST_NAMED else f"{', '.join(models[:MOST_NAMED])} and others"


def how_much_text(rows: pl.DataFrame, level: float | None) -> Finding:
    """How far intervals over so few sequences can be trusted.

    Args:
        rows: The models' rows of the comparison by one preset.
        level: Of the intervals, if there are any.
    """
    ends = sorted({int(n) for n in rows["n_sequences"]})
    n = " to ".join(map(str, dict.fromkeys([ends[0], ends[-1]])))
    text = f"Each model read {n} sequence{'' if n == '1' else 's'}: nothing here speaks of another kind of text."
    if level is not None and ends[-1] < FEW:
        text += " Intervals from so few are too narrow"
        for known in SIMULATED:
            if (n, level) == (str(known.n_sequences), known.confidence_level):
                held = f"{100 * known.least:.0f} to {100 * known.most:.0f} %"
                text += f": those of {percent(level)} held the true value in {held} of simulated texts"
        text += "; layers affected and largest values can only grow with more text."
    return Finding("How much text", text, _n_models(rows), is_caveat=True)
