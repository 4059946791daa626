"""Which features are systematic: the definitions of the literature, held against a recording's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from outlier_moe.definitions.presets import FIRST_TOKENS, FirstToken, Preset
from outlier_moe.definitions.taps import TAPS, VIEWS, View
from outlier_moe.errors import StudyError
from outlier_moe.judging.rule import is_massive, is_systematic
from outlier_moe.tables import schemas
from outlier_moe.tables.recording import Recording, explain_damage


class _Shape(NamedTuple):
    """The denominators of one view of a recording."""

    n_layers: int
    """Decoder layers with a site in the view."""
    n_sites: int
    """Sites of the view."""
    n_sequences: int
    """Sequences recorded."""
    n_positions: int
    """Positions of one sequence."""

    def layer_denominator(self, preset: Preset) -> int:
        return self.n_sites if preset.layers == "sites" else self.n_layers

    def position_denominator(self, preset: Preset, first_token: FirstToken) -> int:
        positions = self.n_positions - (first_token == "excluded")
        return positions * (1 if preset.unit == "feature_sequence" else self.n_sequences)


def systematic_features(recording: Recording, presets: list[Preset]) -> pl.DataFrame:
    """Every feature affected anywhere, by every preset, with and without each sequence's first token.

    Returns:
        The table `schemas.Systematic`.

    Raises:
        StudyError: If a threshold is not on the recording's ladder, a view was not recorded, or a table is damaged.
    """
    with explain_damage(recording):
        return _systematic_features(recording, presets)


def _systematic_features(recording: Recording, presets: list[Preset]) -> pl.DataFrame:
    shapes = {preset.name: _shape(recording, preset) for preset in presets}
    # Presets share what is read: the counts of all views at one magnitude.
    known = {
        magnitude: hits(recording, [each for each in presets if each.rule != "massive" and each.magnitude == magnitude])
        for magnitude in dict.fromkeys(preset.magnitude for preset in presets if preset.rule != "massive")
    }
    tables = []
    for preset in presets:
        shape = shapes[preset.name]
        if preset.rule == "massive":
            found = _massive_among(known, recording, preset)
            tables += [_massive(found, preset, shape, first_token) for first_token in FIRST_TOKENS]
        else:
            found_here = known[preset.magnitude][preset.view]
            tables += [_judged(found_here, preset, shape, first_token) for first_token in FIRST_TOKENS]
    order = ["preset", "first_token", "feature", "sequence"]
    columns = schemas.Systematic.column_names()
    tables = [table.select(pl.col(name) for name in columns if name in table.columns) for table in tables]
    table = pl.concat([schemas.Systematic.create_empty(), *tables], how="diagonal_relaxed").sort(order)
    return schemas.Systematic.validate(table, cast=True)


class Hits(NamedTuple):
    """What reaches one magnitude in one view; `n` counts positions, `first` says whether position 0 is among them."""

    sites: pl.DataFrame
    """Per (tap, layer, sequence, feature), in this order but layers first, with its peaks and where they lie; `site` is
    a number of the (tap, layer)."""
    any_site: pl.DataFrame
    """Per (sequence, feature): at any site of the view."""


def hits(recording: Recording, alike: list[Preset]) -> dict[View, Hits]:
    """What of a recording reaches the magnitude that some presets share, read once for all their views.

    Raises:
        StudyError: If the magnitude is not on the recording's ladder.
    """
    magnitude = alike[0].magnitude
    views: set[View] = {preset.view for preset in alike}
    edge = recording.ladder.index(
        magnitude, key=f"magnitude of the preset {alike[0].name}", file=str(recording.directory / "run.json")
    )
    reaching = pl.col("peak") >= magnitude
    counted = [
        pl.col("n_positions").list.get(edge, null_on_oob=True).cast(pl.UInt32).alias("n"),
        (pl.col("first_token_magnitude") >= magnitude).alias("first"),
    ]
    place = ["peak", "peak_position", "later_peak", "later_peak_position"]
    sites, any_site = pl.collect_all(
        [
            recording.layer_outliers()
            .filter(reaching, pl.col("tap").is_in([tap for view in views for tap in VIEWS[view]]))
            .select("tap", "layer", "sequence", "feature", *counted, *place, site=_site())
            .sort("site", "sequence", maintain_order=True),
            recording.any_layer_outliers()
            .filter(reaching, pl.col("view").is_in(views))
            .select("view", "sequence", "feature", *counted),
        ]
    )
    return {
        view: Hits(sites.filter(pl.col("tap").is_in(VIEWS[view])), any_site.filter(pl.col("view") == view).drop("view"))
        for view in views
    }


def _site() -> pl.Expr:
    """A number that grows with the layer, then the tap."""
    return pl.col("layer").cast(pl.UInt32) * len(TAPS) + pl.col("tap").to_physical()


def massive_rows(recording: Recording, preset: Preset) -> pl.LazyFrame:
    """Rows that are massive by Sun et al. 2024 (arXiv 2402.17762): above a magnitude and a multiple of the median.

    The first token counts; without it fewer rows may be massive, and no others.
    """
    return _massive_of(recording.layer_outliers(), recording, preset)


def _massive_of(rows: pl.LazyFrame, recording: Recording, preset: Preset) -> pl.LazyFrame:
    medians = recording.sites().lazy().select("tap", "layer", "sequence", "median_magnitude")
    return (
        rows.filter(pl.col("tap").is_in(VIEWS[preset.view]), pl.col("peak") > preset.magnitude)
        .join(medians, on=["tap", "layer", "sequence"], validate="m:1")
        .filter(_is_massive("peak", preset))
    )


def _massive_among(known: Mapping[float, dict[View, Hits]], recording: Recording, preset: Preset) -> pl.DataFrame:
    """The massive rows, from what was read for other presets if that has them all."""
    for magnitude, views in known.items():
        if magnitude <= preset.magnitude and preset.view in views:
            return _massive_of(views[preset.view].sites.lazy(), recording, preset).collect()
    return massive_rows(recording, preset).collect()


def _is_massive(peak: str, preset: Preset) -> pl.Expr:
    return is_massive(pl.col(peak), pl.col("median_magnitude"), preset)


def unanswered(recording: Recording, presets: list[Preset]) -> str | None:
    """Why a recording cannot be held against all of some presets; None if it can."""
    floor, taps = recording.run["floor"], recording.run["taps"]
    for preset in presets:
        if preset.magnitude < floor:
            return f"recorded from |x| >= {floor:g} on, and the preset {preset.name} asks for {preset.magnitude:g}"
        if not set(VIEWS[preset.view]) & set(taps):
            needed = " and ".join(VIEWS[preset.view])
            return f"recorded at {', '.join(taps)}, and the preset {preset.name} judges {needed}"
    return None


def view_sites(recording: Recording, preset: Preset) -> pl.DataFrame:
    """Rows of `schemas.Site` of a preset's view.

    Raises:
        StudyError: If the view was not recorded.
    """
    sites = recording.sites().filter(pl.col("tap").is_in(VIEWS[preset.view]))
    if sites.is_empty():
        raise StudyError(
            f"The preset {preset.name} judges a view that was not recorded.",
            file=recording.directory / "run.json",
            key="taps",
            expected=" and ".join(VIEWS[preset.view]),
            got=", ".join(recording.run["taps"]),
            remedy="Add the taps to record_outliers.taps (this records again), or take the preset out.",
        )
    return sites


def _shape(recording: Recording, preset: Preset) -> _Shape:
    sites = view_sites(recording, preset)
    return _Shape(
        n_layers=sites["layer"].n_unique(),
        n_sites=sites.select("tap", "layer").n_unique(),
        n_sequences=sites["sequence"].n_unique(),
        n_positions=int(sites["n_positions"][0]),
    )


def without_first(rows: pl.LazyFrame, first_token: FirstToken) -> pl.LazyFrame:
    """A table of `Hits`, with or without what only the first token reaches."""
    if first_token == "included":
        return rows
    return rows.with_columns(n=pl.col("n") - pl.col("first")).filter(pl.col("n") > 0)


def _peak_columns(first_token: FirstToken) -> dict[str, pl.Expr]:
    peak, position = ("peak", "peak_position") if first_token == "included" else ("later_peak", "later_peak_position")
    largest = pl.col(peak).arg_max()
    places = {"peak_tap": "tap", "peak_layer": "layer", "peak_sequence": "sequence", "peak_position": position}
    return {"peak": pl.col(peak).max()} | {name: pl.col(column).get(largest) for name, column in places.items()}


def fraction(part: pl.Series, whole: int) -> pl.Series:
    """Part of a whole, correctly rounded, so that 7 of 28 layers reach a threshold of 0.25.

    Polars multiplies by the reciprocal of a constant instead, which may miss the threshold by a unit in the last place.
    """
    return pl.Series(part.name, part.to_numpy() / whole)


def _judged(found: Hits, preset: Preset, shape: _Shape, first_token: FirstToken) -> pl.DataFrame:
    unit = ["feature"] if preset.unit == "feature" else ["feature", "sequence"]
    positions = shape.position_denominator(preset, first_token)
    # A feature has one row a site in each sequence.
    site = pl.len() if preset.unit == "feature_sequence" else pl.col("site").n_unique()
    over_sites = (
        without_first(found.sites.lazy(), first_token)
        .group_by(unit)
        .agg(
            n_values=pl.col("n").sum(),
            n_layers=site if preset.layers == "sites" else pl.col("layer").n_unique(),
            position_fraction_per_site=pl.col("n").sum() / (site * positions),
            **_peak_columns(first_token),
        )
    )
    over_union = without_first(found.any_site.lazy(), first_token).group_by(unit).agg(n_positions=pl.col("n").sum())
    counted = over_sites.join(over_union, on=unit, how="left", validate="1:1").collect()
    return counted.with_columns(
        fraction(counted["n_layers"], shape.layer_denominator(preset)).alias("layer_fraction"),
        fraction(counted["n_positions"], positions).alias("position_fraction"),
        preset=pl.lit(preset.name),
        first_token=pl.lit(first_token),
    ).with_columns(is_systematic=is_systematic(pl.col("layer_fraction"), pl.col("position_fraction"), preset))


def _massive(found: pl.DataFrame, preset: Preset, shape: _Shape, first_token: FirstToken) -> pl.DataFrame:
    judged = (
        found.lazy()
        .filter(_is_massive("peak" if first_token == "included" else "later_peak", preset))
        .sort("layer", "tap", "sequence", maintain_order=True)
        .group_by("feature")
        .agg(n_layers=pl.col("layer").n_unique(), **_peak_columns(first_token))
        .with_columns(preset=pl.lit(preset.name), first_token=pl.lit(first_token), is_systematic=pl.lit(True))
        .collect()
    )
    return judged.with_columns(fraction(judged["n_layers"], shape.n_layers).alias("layer_fraction"))
