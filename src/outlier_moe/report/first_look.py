"""The page's first table: of each model its largest outlier feature, where it is, and what it does to a scale."""

from __future__ import annotations

from typing import Any

import polars as pl

from outlier_moe.definitions.presets import Preset
from outlier_moe.definitions.taps import VIEWS
from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.report.tables import Cell, Table
from outlier_moe.tables.files import read_table
from outlier_moe.terminal.figures import plain

INT8_STEPS = 127
"""Steps from 0 to the largest |x| that one int8 scale has."""

_HEADS = {
    "model": False,
    "feature": True,
    "|x|": True,
    "read at": False,
    "token": False,
    "layers (%)": True,
    "positions (%)": True,
    "|x| / median there": True,
    "one int8 scale there": False,
    "systematic features": True,
}


def first_look(inputs: ReportInputs, contents: ReportContents) -> Table:
    """Which feature, where, and whether it matters: a row a model, by the study's default preset."""
    preset = inputs.default_preset
    return Table(
        id="first-look",
        title="Which feature, where, does it matter?",
        text=(
            f"Each model's largest systematic feature by {preset.name}, first tokens included. Layers, positions and"
            f" features count from 0. One int8 scale for a site has a step of its largest |x| / {INT8_STEPS}: values"
            " below half a step become 0."
        ),
        heads=list(_HEADS.items()),
        rows=[_row(model, preset) for model in contents.models],
        is_stacked=True,
    )


def _row(model: ReportedModel, preset: Preset) -> list[Cell]:
    features = model.features.filter(preset=preset.name, first_token="included").sort(
        ["peak", "feature"], descending=[True, False]
    )
    name = Cell(model.name, model.name)
    if features.is_empty():
        return [name, Cell("none", "", "number"), *[Cell("–")] * (len(_HEADS) - 3), Cell("0", "0", "number")]
    row = features.row(0, named=True)
    shown = [Cell(plain(row["peak"]), str(row["peak"]), "number")]
    where = _where(model, preset, row["feature"])
    shown += [Cell("–"), Cell("–")] if where is None else [_site(where), _token(model, where)]
    shown += [_percent(row["layer_fraction"]), _percent(row["position_fraction"])]
    count = features["feature"].n_unique()
    feature = str(row["feature"])
    return [
        name,
        Cell(feature, feature, "number"),
        *shown,
        *([Cell("–"), Cell("–")] if where is None else _scale(model, where)),
        Cell(f"{count:,}", str(count), "number"),
    ]


def _percent(share: float | None) -> Cell:
    return Cell("–", "", "number") if share is None else Cell(f"{100 * share:.1f}", str(share), "number")


def _where(model: ReportedModel, preset: Preset, feature: int) -> dict[str, Any] | None:
    """The tap and layer of a feature's largest |x| in the preset's view."""
    rows = (
        read_table(model.files.layer_peaks)
        .with_columns(pl.col("tap").cast(pl.String))
        .filter(pl.col("tap").is_in(VIEWS[preset.view]), feature=feature)
        .sort(["peak", "layer", "tap"], descending=[True, False, False])
    )
    return None if rows.is_empty() else rows.row(0, named=True)


def _site(where: dict[str, Any]) -> Cell:
    text = f"{where['tap']}, layer {where['layer']}"
    return Cell(text, text)


def _token(model: ReportedModel, where: dict[str, Any]) -> Cell:
    """The token at which the peak lies, if it is among the site's recorded peaks."""
    key = {name: where[name] for name in ("layer", "feature")}
    peaks = model.recording.peaks().filter(pl.col("tap").cast(pl.String) == where["tap"], **key)
    peaks = peaks.sort(pl.col("value").abs(), descending=True)
    if peaks.is_empty():
        return Cell("–")
    row = peaks.row(0, named=True)
    text = row["text"].replace("\n", "↵") or "∅"
    return Cell(f"{text} at position {row['position']}", text)


def _scale(model: ReportedModel, where: dict[str, Any]) -> list[Cell]:
    """The largest |x| of the site beside its median, and what one scale for both leaves of the median."""
    sites = model.recording.sites().filter(pl.col("tap").cast(pl.String) == where["tap"], layer=where["layer"])
    median = float(sites["median_magnitude"].cast(pl.Float64).median() or 0.0)  # type: ignore[arg-type]
    if not median:
        return [Cell("–", kind="number"), Cell("–")]
    largest = float(sites["top_magnitude"].max() or 0.0)  # type: ignore[arg-type]
    steps = INT8_STEPS * median / largest
    text = "most values become 0" if steps < 0.5 else f"the median is {plain(steps, 2)} steps"
    ratio = where["peak"] / median
    return [Cell(plain(ratio, 3), str(ratio), "number"), Cell(text, str(steps))]
