"""The definitions behind the tables that commands show: columns for programs, a line for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from outlier_moe.errors import StudyError
from outlier_moe.tables.files import made_again, table_facts
from outlier_moe.terminal.figures import plain
from outlier_moe.terminal.presentation import show_note

# A preset's thresholds have the names of figures of a table, of which they are the least.
NAMES = {
    "rule": "rule",
    "view": "view",
    "magnitude": "magnitude",
    "layers": "layers_counted",
    "unit": "unit_counted",
    "layer_fraction": "least_layer_fraction",
    "position_fraction": "least_position_fraction",
    "median_ratio": "least_median_ratio",
}
_SCHEMA = {name: pl.Float64 if name.startswith(("least", "magnitude")) else pl.String for name in NAMES.values()}


def definitions_of(path: Path) -> dict[str, dict[str, Any]]:
    """The presets that a table says it was judged by, by name; none for one that does not say so."""
    with suppress(OSError, pl.exceptions.PolarsError, StudyError, ValueError):
        return {preset["name"]: preset for preset in table_facts(path).get("presets", [])}
    return {}


def with_definitions(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """A table with the definition that each row was judged by, if its file says it.

    Args:
        table: It has the column `preset`.
        path: Its file.
    """
    rows = [
        {"preset": name, **{new: preset[old] for old, new in NAMES.items() if old in preset}}
        for name, preset in definitions_of(path).items()
    ]
    if not rows:
        return table
    known = pl.DataFrame(rows, schema={"preset": pl.String, **_SCHEMA})
    return table.with_columns(pl.col("preset").cast(pl.String)).join(
        known, on="preset", how="left", maintain_order="left"
    )


def tell_definitions(path: Path, presets: Iterable[str]) -> None:
    """Say beneath a table for people what its presets are."""
    known = definitions_of(path)
    for name in dict.fromkeys(presets):
        if name in known:
            show_note(f"{name}: {_in_words(known[name])}")


def _in_words(preset: dict[str, Any]) -> str:
    if preset["rule"] == "massive":
        ratio = plain(preset["median_ratio"], 6)
        return f"|x| > {plain(preset['magnitude'], 6)} and {ratio} times the median, {preset['view']}"
    layers = preset["layers"].replace("_", " ")
    return (
        f"|x| >= {plain(preset['magnitude'], 6)} in {plain(preset['layer_fraction'], 3)} of the {layers} "
        f"and {plain(preset['position_fraction'], 3)} of the positions, {preset['view']}"
    )


def tell_differences(path: Path, others: Iterable[Path]) -> None:
    """Say on standard error if tables of one study were judged by different definitions.

    Args:
        path: The table that is shown.
        others: Others of the same study, whether they exist or not.
    """
    own = definitions_of(path)
    if not own:
        sys.stderr.write(f"{path} does not say its thresholds: it is of an earlier version. {made_again(path)}\n")
        return
    for other in others:
        different = [
            f"{name} {key} {preset[key]} there, {own[name][key]} here"
            for name, preset in definitions_of(other).items()
            if name in own
            for key in NAMES
            if preset.get(key) != own[name].get(key)
        ]
        if different:
            more = f" and {len(different) - 2} more" if len(different) > 2 else ""
            told = "; ".join(different[:2]) + more
            sys.stderr.write(f"{other} was judged by other definitions than {path}: {told}. Run: snakemake\n")
