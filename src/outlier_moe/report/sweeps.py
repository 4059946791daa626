"""The report's pictures and tables of the sweeps over optimisers and scales, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from outlier_moe.plots.sweep import sweep_charts
from outlier_moe.report.charts import Picture, PictureGroup
from outlier_moe.report.sweep_answers import answer_tables, caveats, standing_out
from outlier_moe.report.tables import Cell, Table, plain_table, sort_key
from outlier_moe.tables.sweeps import MOMENTS
from outlier_moe.tables.titles import SWEPT
from outlier_moe.terminal.figures import with_ends

Sweep = Mapping[str, pl.DataFrame]
"""The tables of `scale_sweep.summary.SweepTables`, by name."""

_TITLES = {
    "scale_sweep": "Optimisers and scales: image classifiers",
    "lm_scale_sweep": "Optimisers and scales: small language models",
}
_PICTURES = {
    "performance": (
        "Performance against size",
        "The loss at initialisation, in grey, is that of guessing. The time of a step is of the machine that trained,"
        " on a CPU the processor time of all threads.",
    ),
    "ranks": (
        "Rank against size",
        "Of weight matrices, of the residual stream, and of what the head reads. Effective ranks are shares of the"
        " largest rank there can be; stable ranks and participation ratios are numbers, and matrices grow with size.",
    ),
    "sparsity": ("Sparsity against size", "Behind the GELU, in three ways; near 0 is below 0.001."),
    "outliers": (
        "Outliers against size",
        "Of the residual stream, each the mean over the layers but for the largest; systematic features are counted by"
        " the default preset.",
    ),
    "dynamics": (
        "Over the steps",
        "At one scale, which can be chosen where there are several; the axes are the same for all. Dotted lines, if"
        " there are any, are runs that diverged; at a panel's edge they lie beyond it.",
    ),
}
_TABLES = {
    "summary": "a row per scale and optimiser: rates, and losses at the start and where they match",
    "figures": "every figure at initialisation, at matched training loss and at the end: the mean of the seeds [lowest "
    "to highest]; runs that diverged are left out",
    "trends": "slopes per doubling of the parameters; Kendall's tau with two-sided p-values by permutation of runs",
    "comparisons": "differences of optimisers, paired by seed; signed-rank tests of the pairs, two-sided",
    "runs": "every run",
}


def sweep_pictures(sweeps: Mapping[str, Sweep], study: Mapping[str, Any] | None = None) -> list[PictureGroup]:
    """A group of pictures for each sweep that was run.

    Args:
        sweeps: The tables of each.
        study: The study, which knows what was tried.
    """
    groups = []
    for name, tables in sweeps.items():
        charts = sweep_charts(figures=tables["figures"], dynamics=tables["dynamics"])
        if tables["runs"]["scale"].n_unique() == 1:
            # Against size there would be single marks.
            charts = {"dynamics": charts["dynamics"]}
        pictures = [
            Picture(f"{name}-{chart}", *_PICTURES[chart], of.to_dict(validate=False), is_wide=True)
            for chart, of in charts.items()
        ]
        groups.append(
            PictureGroup(
                _TITLES[name],
                _text(tables),
                pictures,
                statements=standing_out(tables),
                tables=answer_tables(name, tables),
                caveats=caveats(name, tables, study or {}),
            )
        )
    return groups


def sweep_tables(sweeps: Mapping[str, Sweep]) -> list[Table]:
    """The tables of each sweep, those first that are of figures and not of runs."""
    return [
        _shown(table, name, f"{_TITLES[name]}: {table}", f"{text[0].upper()}{text[1:]}.", tables)
        for name, tables in sweeps.items()
        for table, text in _TABLES.items()
        if not tables[table].is_empty()
    ]


def _shown(table: str, name: str, title: str, text: str, tables: Sweep) -> Table:
    if table == "figures":
        return _figures_table(f"{name}-figures", title, text, tables["figures"])
    frame = tables[table]
    if table == "summary":
        # Its figures stand in the next table, with the lowest and the highest seed.
        frame = frame.drop(name for name in frame.columns if name.removesuffix("_matched") in SWEPT)
    return plain_table(f"{name}-{table}", title, text, frame)


def _text(tables: Sweep) -> str:
    runs = tables["runs"]
    n_seeds, diverged = runs["seed"].n_unique(), runs.filter(pl.col("diverged_at").is_not_null())
    seeds = "one seed, no repetition" if n_seeds == 1 else f"{n_seeds} seeds"
    ended = "none diverged"
    if len(diverged):
        whose = diverged.select(pl.format("{} at {}", "optimizer", "scale").unique(maintain_order=True)).to_series()
        are = "is" if len(diverged) == 1 else "are"
        ended = f"{len(diverged)} diverged ({', '.join(whose)}) and {are} in no comparison"
    return (
        f"{len(runs)} runs ({seeds}), {ended}. Figures are of the end of training and of where training losses match."
    )


def _figures_table(name: str, title: str, text: str, figures: pl.DataFrame) -> Table:
    """Every figure of every scale and optimiser, its moments beside each other."""
    known = figures.filter(~pl.col("is_diverged"), pl.col("figure") != "learning_rate")
    means = known.drop_nulls("value").group_by("figure", "scale", "optimizer", "moment", maintain_order=True)
    found = means.agg(mean=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max(), n=pl.len())
    cells = {row[:4]: row[4:] for row in found.iter_rows()}
    # Sorted as pictures show them.
    order = {figure: place for place, figure in enumerate(SWEPT)}
    keys = sorted(dict.fromkeys(key[:3] for key in cells), key=lambda key: order[key[0]])
    heads = [("figure", False), ("scale", False), ("optimiser", False)]
    heads += [(words, True) for words in MOMENTS.values()]
    rows = [
        [
            Cell(SWEPT[figure].axis, f"{order[figure]:03}"),
            Cell(scale, scale),
            Cell(optimizer, optimizer),
            *(_mean_cell(cells.get((figure, scale, optimizer, moment))) for moment in MOMENTS),
        ]
        for figure, scale, optimizer in keys
    ]
    return Table(name, title, text, heads, rows)


def _mean_cell(found: tuple[float, float, float, int] | None) -> Cell:
    if found is None:
        return Cell("–", kind="number")
    mean, low, high, n = found
    shown = with_ends(mean, low, high, "significant")
    return Cell(shown.value, sort_key(mean), "number", "" if n == 1 else shown.interval)
