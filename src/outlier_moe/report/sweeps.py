"""The report's pictures and tables of the sweeps over optimisers and scales, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from outlier_moe.plots.sweep import PANELS, sweep_charts
from outlier_moe.report.charts import Picture, PictureGroup
from outlier_moe.report.tables import Table, plain_table
from outlier_moe.scale_sweep.study import ALL_SCALES

Sweep = Mapping[str, pl.DataFrame]
"""The tables of `scale_sweep.summary.SweepTables`, by name."""

_TITLES = {
    "scale_sweep": "Optimisers and scales: image classifiers",
    "lm_scale_sweep": "Optimisers and scales: small language models",
}
_PICTURES = {
    "performance": (
        "Performance against size",
        "Means of the seeds: solid at the end, dashed at matched loss; crosses are runs that diverged.",
    ),
    "ranks": ("Rank against size", "Of weight matrices, of the residual stream, and of what the head reads."),
    "sparsity": ("Sparsity against size", "Behind the GELU, in three ways; near 0 is below 0.001."),
    "outliers": ("Outliers against size", "Of the residual stream, each the mean over the layers but for the largest."),
    "dynamics": ("Over the steps", "At the largest scale, the mean of the seeds."),
}
_ANSWERS = ("weight_effective_rank", "hoyer", "generalisation_gap_nats", "kurtosis_of_feature_rms", "step_time_s")
"""The figures whose trends and differences the text says."""
_TABLES = {
    "summary": "means of the seeds at the end, and at matched training loss",
    "trends": "slopes per doubling of the parameters; Kendall's tau with two-sided p-values by permutation of runs",
    "comparisons": "differences of optimisers, paired by seed; signed-rank tests of the pairs, two-sided",
    "runs": "every run",
}


def sweep_pictures(sweeps: Mapping[str, Sweep]) -> list[PictureGroup]:
    """A group of pictures for each sweep that was run."""
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
        groups.append(PictureGroup(_TITLES[name], _text(tables), pictures))
    return groups


def sweep_tables(sweeps: Mapping[str, Sweep]) -> list[Table]:
    """The tables of each sweep, those first that are of figures and not of runs."""
    return [
        plain_table(f"{name}-{table}", f"{_TITLES[name]}: {table}", f"{text[0].upper()}{text[1:]}.", tables[table])
        for name, tables in sweeps.items()
        for table, text in _TABLES.items()
        if not tables[table].is_empty()
    ]


def _text(tables: Sweep) -> str:
    runs = tables["runs"]
    n_seeds, n_diverged = runs["seed"].n_unique(), runs["diverged_at"].count()
    seeds = "one seed, no repetition" if n_seeds == 1 else f"{n_seeds} seeds"
    ended = "none diverged" if not n_diverged else f"{n_diverged} diverged and are in no comparison"
    parts = [f"{len(runs)} runs ({seeds}), {ended}."]
    parts += _edges(tables["summary"])
    parts += _matched(tables["summary"])
    if n_seeds > 1:
        parts.append("Intervals of 95 % are over resampled seeds, and so few seeds make them rough.")
        parts += _unit(tables)
    for figure in _ANSWERS:
        said = [*_trends(tables["trends"], figure), *_differences(tables["comparisons"], figure)]
        if said:
            title = _TITLE_OF[figure]
            parts.append(f"{title[0].upper()}{title[1:]}: {'; '.join(said)}.")
    return " ".join(parts)


def _edges(summary: pl.DataFrame) -> list[str]:
    """Whose learning rate is not known to be the best, for it lies at the edge of what was tried."""
    rows = summary.filter(pl.col("grid_edge").is_not_null()).iter_rows(named=True)
    said = [
        f"{row['optimizer']} at {row['scale']} (the {row['grid_edge']}, {row['learning_rate']:.2g})" for row in rows
    ]
    if not said:
        return []
    return [f"At the edge of the grid of learning rates, so that a better one may lie beyond: {', '.join(said)}."]


def _matched(summary: pl.DataFrame) -> list[str]:
    """Where figures at matched loss are read, and from how far apart."""
    known = summary.drop_nulls("step_matched")
    if known.is_empty():
        return []
    steps, gaps = known["step_matched"].to_list(), known["gap_steps_matched"].to_list()
    said = f"The matched loss of a scale is reached after {min(steps):.3g} to {max(steps):.3g} steps (means of seeds)"
    if any(gaps):
        said += f", and figures there lie on a line between two checkpoints, up to {max(gaps):.3g} steps apart"
    missing = sum(summary.select(pl.col("n_seeds") - pl.col("n_diverged") - pl.col("n_matched")).to_series().to_list())
    return [f"{said}; {missing} runs start at or below it and have none." if missing else f"{said}."]


def _unit(tables: Sweep) -> list[str]:
    """What the tests of all scales together count as one observation."""
    comparisons, n_scales = tables["comparisons"], tables["runs"]["scale"].n_unique()
    pooled = comparisons.filter(scale=ALL_SCALES) if len(comparisons) else comparisons
    if pooled.is_empty():
        return []
    n_pairs, n_seeds = max(pooled["n_pairs"].to_list()), max(pooled["n_seeds"].to_list())
    return [
        f"Differences over all scales are tested by {n_pairs} pairs ({n_seeds} seeds at {n_scales} scales) and trends "
        "by single runs, all taken as independent; of whole seeds (the table's p_value_of_seeds) no p-value below "
        f"{min(1.0, 2 / 2**n_seeds):.2g} can come."
    ]


_TITLE_OF = {figure: title for panels in PANELS.values() for figure, title in panels.items()}


def _trends(trends: pl.DataFrame, figure: str) -> list[str]:
    if trends.is_empty():
        return []
    rows = trends.filter(figure=figure, moment="end").filter(pl.col("slope").is_not_null())
    return [
        f"{row['optimizer']} {row['slope']:+.3g} per doubling of the parameters{_interval(row)}"
        for row in rows.iter_rows(named=True)
    ]


def _differences(comparisons: pl.DataFrame, figure: str) -> list[str]:
    if comparisons.is_empty():
        return []
    said = []
    for moment, where in (("end", "at the end"), ("matched", "at matched loss")):
        rows = comparisons.filter(figure=figure, moment=moment)
        pooled = rows.filter(scale=ALL_SCALES)
        said += [
            f"{row['optimizer']} less {row['other']} {row['difference']:+.3g} {where}{_interval(row)}"
            for row in (pooled if len(pooled) else rows).iter_rows(named=True)
        ]
    return said


def _interval(row: Mapping[str, object]) -> str:
    """An interval and a q-value, as far as there are any."""
    parts = []
    if row["low"] is not None:
        parts.append(f"{row['low']:.3g} to {row['high']:.3g}")
    if row["q_value"] is not None:
        parts.append(f"q = {row['q_value']:.2g}")
    return f" ({', '.join(parts)})" if parts else ""
