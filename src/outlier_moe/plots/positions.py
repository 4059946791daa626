"""Where in the text the largest activations lie: at first tokens, at delimiters, elsewhere."""

from __future__ import annotations

from typing import Literal

import altair as alt
import numpy as np
import polars as pl

from outlier_moe.definitions.taps import TAPS, Tap
from outlier_moe.plots.layers import LAYER, tap_colour, tap_dashes
from outlier_moe.plots.marks import logarithmic, named, position, sized
from outlier_moe.plots.scales import domain_of

PlaceKind = Literal["first token", "delimiter", "other"]
PLACE_KINDS: list[PlaceKind] = ["first token", "delimiter", "other"]
# What a token says beside spaces: punctuation, brackets, quotation marks, or a special token such as <|im_end|>.
_DELIMITER = r"^\s*([\p{P}\p{S}]+|<[^<>\s]+>)?\s*$"
MOST_PEAKS = 400


def with_place_kind(peaks: pl.DataFrame) -> pl.DataFrame:
    """The table `schemas.Peak` with the kind of token each peak lies at.

    A delimiter is a token of nothing but spaces, line breaks, punctuation and signs, or one in angle brackets.
    """
    kind = (
        pl.when(pl.col("position") == 0)
        .then(pl.lit("first token"))
        .when(pl.col("text").str.contains(_DELIMITER))
        .then(pl.lit("delimiter"))
        .otherwise(pl.lit("other"))
    )
    return peaks.with_columns(place=kind)


def place_share_chart(
    peaks: pl.DataFrame, *, place: Literal["first token", "delimiter"], width: int = 460, height: int = 200
) -> alt.Chart:
    """The share of the largest features of every tap and layer whose peak lies at one kind of token.

    Args:
        peaks: The table `schemas.Peak`.
        place: The kind of token.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    rows = (
        with_place_kind(peaks)
        .group_by(pl.col("tap").cast(pl.String), "layer")
        .agg(share=100 * (pl.col("place") == place).mean(), n=pl.len())
        .sort("tap", "layer")
        .rows(named=True)
    )
    taps: list[Tap] = [tap for tap in TAPS if any(row["tap"] == tap for row in rows)]
    title = "first token" if place == "first token" else "delimiters"
    chart = (
        alt.Chart(named(rows, "shares"))
        .mark_line(strokeWidth=1.75, point=alt.OverlayMarkDef(size=22))
        .encode(
            x=alt.X("layer:Q", title=LAYER, scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("share:Q", title=f"peaks at the {title} (%)", scale=alt.Scale(domain=[0, 100])),
            color=tap_colour(taps),
            strokeDash=tap_dashes(taps),
            tooltip=[
                alt.Tooltip("tap:N"),
                alt.Tooltip("layer:Q"),
                alt.Tooltip("share:Q", format=".1f"),
                alt.Tooltip("n:Q", title="peaks"),
            ],
        )
    )
    return sized(chart, width=width, height=height)


def position_profile_chart(
    peaks: pl.DataFrame, *, tap: str, most: int = MOST_PEAKS, width: int = 460, height: int = 280
) -> alt.Chart:
    """The largest peaks of one tap by their position in the sequence, and the kind of token there.

    Args:
        peaks: The table `schemas.Peak`.
        tap: Where the activations were read.
        most: Peaks beyond so many are left out, the smallest first.
        width: Pixels between the axis' ends.
        height: Pixels between the axis' ends.
    """
    rows = (
        with_place_kind(peaks)
        .filter(pl.col("tap").cast(pl.String) == tap)
        .select(
            "place",
            "layer",
            "sequence",
            "position",
            "feature",
            "text",
            size=pl.col("value").abs().cast(pl.Float64),
        )
        .filter(pl.col("size") > 0)
        .sort(["size", "layer", "sequence", "feature"], descending=[True, False, False, False])
        .head(most)
        .rows(named=True)
    )
    # Wide enough to tell the first position from the rest, where all peaks lie there.
    across = domain_of(np.array([0, 100, *(row["position"] for row in rows)], np.float64), "symlog", room=0.03)
    chart = (
        alt.Chart(named(rows, "peaks"))
        .mark_point(size=34, filled=True, opacity=0.65)
        .encode(
            x=position(alt.X, "position", "position in the sequence (the first is 0)", "symlog", across),
            y=logarithmic(alt.Y, "size", "peak |x|", [row["size"] for row in rows]),
            color=alt.Color("place:N", title=None, scale=alt.Scale(domain=PLACE_KINDS)),
            shape=alt.Shape("place:N", title=None, scale=alt.Scale(domain=PLACE_KINDS)),
            tooltip=[
                alt.Tooltip("text:N", title="token"),
                *(alt.Tooltip(f"{name}:Q") for name in ("feature", "layer", "sequence", "position")),
                alt.Tooltip("size:Q", title="|x|", format=",.4~r"),
            ],
        )
    )
    return sized(chart, width=width, height=height)
