"""The comparison at a glance: how many outlier features, and how many of the layers and positions they affect."""

from __future__ import annotations

import altair as alt
import polars as pl

from outlier_moe.errors import StudyError, nearest
from outlier_moe.plots.quantities import FRACTIONS, SYSTEMATIC_FEATURES, TOTAL_PARAMETERS
from outlier_moe.plots.scatter import scatter_chart


def of_preset(models: pl.DataFrame, preset: str, first_token: str = "included") -> pl.DataFrame:
    """The rows of one preset, one a model.

    Raises:
        StudyError: If the comparison has no such preset.
    """
    known = models["preset"].unique().to_list()
    if len(models) and preset not in known:
        raise StudyError(
            "The comparison has no such preset.",
            key="compare_models.default_preset",
            got=preset,
            remedy=nearest(preset, known),
        )
    return models.filter(preset=preset, first_token=first_token)


def outlier_chart(models: pl.DataFrame, *, preset: str, intervals: pl.DataFrame | None = None) -> alt.HConcatChart:
    """How many outlier features each model has, and how many of the layers and positions they affect, by size.

    Args:
        models: The table `schemas.ModelComparison`.
        preset: The definition to show.
        intervals: The table `FigureInterval`, if there is one.

    Raises:
        StudyError: If the comparison has no such preset.
    """
    shown, hollow = of_preset(models, preset), of_preset(models, preset, "excluded")
    chosen = None if intervals is None else intervals.filter(preset=preset, first_token="included")
    panels = [
        scatter_chart(
            shown,
            x=TOTAL_PARAMETERS,
            y=quantity,
            intervals=chosen,
            without_first=hollow,
            width=300,
            height=280,
            prefix=f"{quantity.column}-",
        )
        for quantity in (SYSTEMATIC_FEATURES, FRACTIONS["layers-mean"], FRACTIONS["positions-mean"])
    ]
    text = f"preset {preset}; a mark a model; hollow: without each sequence's first token, where that differs"
    return alt.hconcat(*panels, title=alt.TitleParams("Outlier features", subtitle=text), spacing=28)
