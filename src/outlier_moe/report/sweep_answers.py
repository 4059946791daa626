"""The answers of a sweep: tables of differences and trends, the findings, and the caveats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.report.sentences import listed
from outlier_moe.report.tables import Cell, Table, sort_key
from outlier_moe.scale_sweep.study import ALL_SCALES, chosen_sweep
from outlier_moe.statistics.significance import LEVEL
from outlier_moe.tables.sweeps import MOMENTS, Moment
from outlier_moe.tables.titles import SWEPT
from outlier_moe.terminal.figures import plain, with_ends

COMPARED_AT: tuple[Moment, ...] = ("end", "matched")
"""Runs are compared after training: at the start they differ by their seeds alone."""

NEARLY_THE_START = 0.05
"""Share of the loss at the start below which what it has fallen by is next to nothing."""

_SHOWN = ["who", "figure", "moment", "estimate", "low", "high", "p_value", "q_value", "verdict"]
_ORDER = {figure: place for place, figure in enumerate(SWEPT)}


def differences(comparisons: pl.DataFrame) -> pl.DataFrame:
    """How each two optimisers differ in each figure: over all scales where there are several.

    Args:
        comparisons: `SweepComparison`.

    Returns:
        Columns `who`, `figure`, `moment`, `estimate`, `low`, `high`, `p_value`, `q_value`, `verdict`.
    """
    is_pooled = pl.col("scale") == ALL_SCALES
    chosen = comparisons.filter(is_pooled | ~is_pooled.any().over("optimizer", "other", "figure", "moment"))
    whose = pl.format("{} less {}", "optimizer", "other")
    return _ordered(chosen.with_columns(who=whose, estimate="difference"))


def slopes(trends: pl.DataFrame) -> pl.DataFrame:
    """How each figure goes with size, optimiser by optimiser: the columns of `differences`.

    Args:
        trends: `SweepTrend`.
    """
    return _ordered(trends.drop_nulls("slope").with_columns(who="optimizer", estimate="slope"))


def _ordered(answers: pl.DataFrame) -> pl.DataFrame:
    """The figures in the order of the pictures."""
    return answers.select(_SHOWN).sort(pl.col("figure").replace_strict(_ORDER), maintain_order=True)


def standing_out(tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    """The finding for each tested question, at both moments or at one.

    Args:
        tables: Those of `scale_sweep.summary.SweepTables`, by name.
    """
    differ = _found(differences(tables["comparisons"]), {"higher": "higher", "lower": "lower"})
    go = _found(slopes(tables["trends"]), {"higher": "rising", "lower": "falling"})
    return differ | {f"{who} with size": text for who, text in go.items()}


def _found(answers: pl.DataFrame, words: Mapping[str, str]) -> dict[str, str]:
    said = {}
    for (who,), rows in answers.drop_nulls("q_value").group_by("who", maintain_order=True):
        found = rows.filter(pl.col("verdict").is_in(["higher", "lower"]))
        moments = found.group_by("figure", "verdict", maintain_order=True).agg(pl.col("moment").sort())
        figures = moments.group_by("moment", "verdict", maintain_order=True).agg("figure")
        parts = [
            f"{listed(map(MOMENTS.__getitem__, when))} {words[verdict]}: {listed(SWEPT[name].words for name in names)}"
            for when, verdict, names in figures.rows()
        ]
        n, least = rows["figure"].n_unique(), plain(rows["q_value"].min(), 2)  # type: ignore[arg-type]
        said[str(who)] = "; ".join(parts) or f"nothing stands out of {n} figures; the least q is {least}"
    return said


def answer_tables(name: str, tables: Mapping[str, pl.DataFrame]) -> list[Table]:
    """The answers, a row per figure and question, both moments beside each other.

    Args:
        name: What the tables' names begin with.
        tables: Those of `scale_sweep.summary.SweepTables`, by name.
    """
    paired = "The first less the second, paired by seed, over all scales, with intervals of 95 %."
    doubled = "Change per doubling of the parameters, with intervals of 95 %; p and q of Kendall's tau."
    asked = [
        ("differences", "How optimisers differ", paired, differences(tables["comparisons"])),
        ("slopes", "How figures go with size", doubled, slopes(tables["trends"])),
    ]
    return [
        _table(f"{name}-{kind}", title, text, answers) for kind, title, text, answers in asked if not answers.is_empty()
    ]


def _table(name: str, title: str, text: str, answers: pl.DataFrame) -> Table:
    is_tested = answers["q_value"].count() > 0
    if is_tested:
        text += f" In bold what has q ≤ {LEVEL:g} over all tests of its family, which take runs as independent."
    shown = 3 if is_tested else 1
    heads = [("figure", False), ("optimisers" if name.endswith("differences") else "optimiser", False)]
    heads += [(head, True) for moment in COMPARED_AT for head in (f"estimate {MOMENTS[moment]}", "p", "q")[:shown]]
    rows = [
        [
            Cell(SWEPT[str(figure)].words, f"{_ORDER[str(figure)]:03}"),
            Cell(str(who), str(who)),
            *(cell for moment in COMPARED_AT for cell in _cells(of.filter(moment=moment).to_dicts())[:shown]),
        ]
        for (figure, who), of in answers.group_by("figure", "who", maintain_order=True)
    ]
    return Table(name, title, text, heads, rows)


def _cells(rows: list[dict[str, Any]]) -> list[Cell]:
    """The estimate with its interval, p and q at one moment."""
    if not rows:
        return [Cell("–", kind="number")] * 3
    [row] = rows
    kind = "number strong" if row["verdict"] in ("higher", "lower") else "number"
    if row["low"] is None:
        estimate = Cell(plain(row["estimate"], 3, signed=True), sort_key(row["estimate"]), kind)
    else:
        shown = with_ends(row["estimate"], row["low"], row["high"], "significant", signed=True)
        estimate = Cell(shown.value, sort_key(row["estimate"]), kind, shown.interval)
    tests = [(row["p_value"], "number"), (row["q_value"], kind)]
    return [estimate, *(Cell(plain(of, 2), "" if of is None else sort_key(of), kind) for of, kind in tests)]


def caveats(name: str, tables: Mapping[str, pl.DataFrame], study: Mapping[str, Any]) -> list[str]:
    """Caveats of a sweep: its learning rates, and a matched loss near the start.

    Args:
        name: The sweep.
        tables: Those of `scale_sweep.summary.SweepTables`, by name.
        study: The study, which knows what was tried.
    """
    return [*_rates(name, tables["summary"], study), *_near_the_start(tables)]


def _rates(name: str, summary: pl.DataFrame, study: Mapping[str, Any]) -> list[str]:
    section = chosen_sweep(study) if name == "scale_sweep" and "scale_sweep_preset" in study else study.get(name, {})
    if len(section.get("multiples", [])) < 2 and not summary["grid_edge"].count():
        return ["No other learning rates were tried: optimisers may differ by how well theirs suits them."]
    marks = {"lowest": "at its lowest", "highest": "at its highest", "all diverged": "where all diverged"}
    at_edge = [
        f"{row['optimizer']} at {row['scale']} ({marks[row['grid_edge']]}, {plain(row['learning_rate'], 2)})"
        for row in summary.drop_nulls("grid_edge").rows(named=True)
    ]
    moving = summary.group_by("optimizer", maintain_order=True).agg(pl.col("learning_rate").n_unique())
    differing = moving.filter(pl.col("learning_rate") > 1)["optimizer"].to_list()
    said = [f"the best may lie beyond the grid tried for {', '.join(at_edge)}"] if at_edge else []
    if differing:
        said.append(f"the rates of {listed(differing)} differ between scales: what goes with size may go with the rate")
    return [f"Learning rates: {'; '.join(said)}."] if said else []


def _near_the_start(tables: Mapping[str, pl.DataFrame]) -> list[str]:
    """Scales at which models have learnt next to nothing at the matched loss."""
    start = tables["summary"].group_by("scale").agg(start=pl.col("start_loss_nats").mean())
    is_near = pl.col("start") - pl.col("target_loss_nats") <= NEARLY_THE_START * pl.col("start")
    of_all = tables["summary"].join(start, on="scale", maintain_order="left").filter(is_near)
    pairs = tables["comparisons"].filter(moment="matched").join(start, on="scale", maintain_order="left")
    near = [
        *of_all["scale"].unique(maintain_order=True),
        *pairs.filter(is_near)
        .select(pl.format("{} and {} at {}", "optimizer", "other", "scale").unique(maintain_order=True))
        .to_series(),
    ]
    if not near:
        return []
    within = f"within {100 * NEARLY_THE_START:g} % of the loss at the start"
    return [f"At matched loss, models have learnt next to nothing ({within}): {', '.join(near)}."]
