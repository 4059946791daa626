"""The report's tables: figures with their intervals, and where everything came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from outlier_moe.plots.positions import with_place_kind
from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.statistics.degenerate import MARK, MARKED, is_degenerate
from outlier_moe.tables.titles import COMPARED
from outlier_moe.terminal.figures import p_value, plain, with_ends
from outlier_moe.terminal.presentation import Column

MOST_PEAKS = 15


class Cell(NamedTuple):
    """One cell."""

    text: str
    """What it shows."""
    sort: str = ""
    """What it is sorted by."""
    kind: str = ""
    """Its classes in the page's style: number, wrap, token, kind."""
    interval: str = ""
    """An interval beside the figure."""


class Table(NamedTuple):
    """A table of the page."""

    id: str
    title: str
    text: str
    """What stands above it."""
    heads: list[tuple[str, bool]]
    """Headings, and whether numbers stand below."""
    rows: list[list[Cell]]
    is_stacked: bool = False
    """Whether a row is a list of its cells where the window is narrow."""


_SHOWN = (
    *("total_params_b", "active_params_b", "perplexity"),
    *(name for name, title in COMPARED.items() if title.has_slider),
    *("position_fraction_per_site_mean", "n_values"),
)
COMPARISON = {
    **{name: Column(name) for name in ("model", "kind", "family")},
    **{name: Column(COMPARED[name].heading, COMPARED[name].style) for name in _SHOWN},
}


def comparison_tables(inputs: ReportInputs, contents: ReportContents) -> list[Table]:
    """The comparison, a table for each preset, first tokens included and excluded."""
    intervals = inputs.statistics.get("intervals")
    known: Mapping[tuple[str, ...], tuple[float, float]] = {}
    if intervals is not None:
        columns = ["model", "preset", "first_token", "figure"]
        rows = intervals.filter(pl.col("low").is_not_null()).select(pl.col(columns).cast(pl.String), "low", "high")
        known = {row[:4]: row[4:] for row in rows.iter_rows()}
    names = [name for name in COMPARISON if name in contents.comparison.columns]
    tables = []
    for preset in inputs.presets:
        for first_token in ("included", "excluded"):
            rows = contents.comparison.filter(preset=preset.name, first_token=first_token)
            shown = [name for name in names if not rows[name].is_null().all()]
            if rows.is_empty():
                continue
            tables.append(
                Table(
                    id=f"{preset.name}-{first_token}",
                    title=f"{preset.name}, first tokens {first_token}",
                    text=MARKED if rows.select(is_degenerate().any()).item() else "",
                    heads=[(COMPARISON[name].title, COMPARISON[name].style != "text") for name in shown],
                    rows=[
                        [
                            _figure(row, name, known.get((row["model"], preset.name, first_token, name)))
                            for name in shown
                        ]
                        for row in rows.iter_rows(named=True)
                    ],
                )
            )
    return tables


def _figure(row: Mapping[str, Any], name: str, interval: tuple[float, float] | None) -> Cell:
    column, value = COMPARISON[name], row[name]
    mark = MARK if name == "n_systematic" and row.get("is_degenerate") else ""
    kind = name if name == "kind" else "" if column.style == "text" else "number"
    if value is None or interval is None or column.style == "text":
        return Cell(f"{column.written(value)}{mark}", "" if value is None else str(value), kind)
    shown = with_ends(value, *interval, column.style)
    return Cell(f"{shown.value}{mark}", str(value), kind, shown.interval)


LONG = 100
"""Rows from which on what is the same in all of them is said above them."""


def plain_table(name: str, title: str, text: str, frame: pl.DataFrame) -> Table:
    """A table without columns that are empty or constant."""
    shown = [
        column
        for column, dtype in frame.schema.items()
        if not isinstance(dtype, pl.List)
        and not frame[column].is_null().all()
        and column not in ("preset", "first_token")
    ]
    alike = [column for column in shown if len(frame) > LONG and frame[column].n_unique() == 1]
    if alike:
        shown = [column for column in shown if column not in alike]
        said = (f"{column.replace('_', ' ')} {frame[column][0]}" for column in alike)
        text = f"{text} In all rows: {', '.join(said)}."
    if "other" in shown:
        # Which two models a row speaks of, before what it says of them.
        shown.sort(key=lambda column: column not in ("model", "other"))
    is_number = {column: frame.schema[column].is_numeric() for column in shown}
    return Table(
        id=name,
        title=title,
        text=text,
        heads=[(column.replace("_", " "), is_number[column]) for column in shown],
        rows=[
            [_plain_cell(column, value, row, is_number[column]) for column, value in row.items()]
            for row in frame.select(shown).iter_rows(named=True)
        ],
    )


_ENDS = {
    **{estimate: (estimate, "low", "high") for estimate in ("estimate", "effect", "difference", "slope")},
    "location": ("location", "location_low", "location_high"),
}
"""Columns of estimates, each with its interval's."""


def _plain_cell(column: str, value: object, row: Mapping[str, Any], is_number: bool) -> Cell:
    if value is None:
        return Cell("–", kind="number" if is_number else "")
    for names in _ENDS.values():
        numbers = [row.get(name) for name in names]
        if column in names and all(isinstance(number, float) and math.isfinite(number) for number in numbers):
            shown = with_ends(*numbers, "significant")  # type: ignore[arg-type]
            return Cell(shown[names.index(column)], sort_key(value), "number")
    if isinstance(value, float) and column.endswith(("p_value", "q_value")):
        return Cell(p_value(value).removeprefix("= "), sort_key(value), "number")
    if isinstance(value, float):
        return Cell(plain(value), sort_key(value), "number")
    text = str(value)
    return Cell(text, text, "number" if is_number else "wrap" if len(text) > 40 else "")


def sort_key(value: object) -> str:
    """The number that a value is sorted by; infinite values sort as the largest."""
    return "Infinity" if value == math.inf else str(value)


def peaks_table(model: ReportedModel) -> Table:
    """A model's largest activations, with the tokens they lie at."""
    peaks = with_place_kind(model.recording.peaks())
    size = pl.col("value").abs()
    rows = peaks.sort([size, "tap", "layer", "sequence"], descending=[True, False, False, False]).head(MOST_PEAKS)
    heads = ["|x|", "tap", "layer", "feature", "sequence", "position", "token", "at"]
    return Table(
        id=f"peaks-{model.name}",
        title="Largest activations",
        text="Over all recorded taps, first tokens included.",
        heads=[(head, head not in ("tap", "token", "at")) for head in heads],
        rows=[
            [
                Cell(f"{abs(row['value']):,.1f}", str(abs(row["value"])), "number"),
                Cell(row["tap"], row["tap"]),
                *(Cell(str(row[name]), str(row[name]), "number") for name in heads[2:6]),
                Cell(row["text"].replace("\n", "↵") or "∅", row["text"], "token"),
                Cell(row["place"], row["place"]),
            ]
            for row in rows.iter_rows(named=True)
        ],
    )


def text_name(run: Mapping[str, Any]) -> str:
    """A recording's text: its name in the registry, and the hash of what was read.

    Args:
        run: run.json.
    """
    name = (run["tokens"].get("corpus") or {}).get("corpus")
    sha256 = run["tokens"]["corpus_sha256"][:12]
    return f"{name} ({sha256})" if name else sha256


def provenance_table(models: list[ReportedModel]) -> Table:
    """Where every model's figures came from."""
    rows = []
    for model in models:
        run = model.recording.run
        versions, source = run.get("versions", {}), run.get("source", {})
        where = source.get("repo") or source.get("package") or source.get("path") or source.get("kind")
        revision = str(source.get("revision") or source.get("version") or "")[:12]
        row = {
            "model": model.name,
            "source": f"{where}@{revision}" if where and revision else where,
            **{name: run.get(name) for name in ("dtype", "device", "mode")},
            "text": text_name(run),
            "sequences": f"{run['n_sequences']} × {run['sequence_length']}",
            "floor": plain(run["floor"], 6),
            **{library: versions.get(library) for library in ("transformers", "torch")},
            "time (s)": f"{run['time_run_s']:.0f}" if "time_run_s" in run else None,
        }
        rows.append({name: None if value is None else str(value) for name, value in row.items()})
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return plain_table("provenance-table", "Where the figures come from", "", frame)


def run_documents(models: list[ReportedModel]) -> list[tuple[str, str]]:
    """Each model's run.json, for reading."""
    return [(model.name, json.dumps(model.recording.run, indent=1)) for model in models]
