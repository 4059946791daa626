"""How every picture looks: one style, light and dark, in colours that all common kinds of colour vision keep apart."""

from __future__ import annotations

from typing import Any, Literal

Theme = Literal["light", "dark"]

# Liberation Sans has Arial's widths, which the placement of labels reckons with.
FONT = "Arial, 'Liberation Sans', Helvetica, sans-serif"

# Okabe and Ito's colours; on a dark ground their lighter ones. The first two are dense and MoE, in every picture.
CATEGORY: dict[Theme, list[str]] = {
    "light": ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F6000", "#56B4E9", "#000000"],
    "dark": ["#56B4E9", "#F0913A", "#3DCBA0", "#E3A0C6", "#F0E442", "#8FB4FF", "#FFFFFF"],
}
SYMBOLS = ["circle", "diamond", "triangle-up", "square"]
INK: dict[Theme, dict[str, str]] = {
    "light": {"ground": "#ffffff", "text": "#1b2330", "muted": "#5b6675", "grid": "#e6e9ee", "line": "#b9c1cc"},
    "dark": {"ground": "#10151d", "text": "#e8ecf2", "muted": "#9aa5b4", "grid": "#232b37", "line": "#465163"},
}
# A scale that grows evenly in lightness for every kind of colour vision.
HEAT: dict[Theme, list[str]] = {
    "light": ["#f3f6f4", "#cfe1d6", "#93c3b4", "#4d9aa0", "#2b6c8b", "#1f3f70", "#190f3d"],
    "dark": ["#161d2a", "#1f3f70", "#2b6c8b", "#4d9aa0", "#93c3b4", "#cfe1d6", "#fbfdf3"],
}

LABEL_SIZE = 11.0


def theme_config(theme: Theme) -> dict[str, Any]:
    """The Vega-Lite configuration of a theme."""
    ink = INK[theme]
    text = {"labelColor": ink["muted"], "titleColor": ink["text"], "labelFontSize": 11, "titleFontSize": 12}
    return {
        "background": ink["ground"],
        "font": FONT,
        "axis": {
            **text,
            "titleFontWeight": "normal",
            "grid": True,
            "gridColor": ink["grid"],
            "domain": False,
            "tickColor": ink["line"],
            "tickSize": 4,
            "labelPadding": 4,
            "titlePadding": 8,
        },
        "legend": {
            **text,
            "titleFontWeight": "normal",
            "symbolSize": 80,
            "symbolOpacity": 1,
            "symbolStrokeWidth": 2,
            "orient": "top",
            "titleOrient": "left",
        },
        "title": {
            "anchor": "start",
            "color": ink["text"],
            "fontSize": 13,
            "fontWeight": 600,
            "subtitleColor": ink["muted"],
            "subtitleFontSize": 11,
            "subtitlePadding": 4,
            "offset": 10,
        },
        "header": {"labelColor": ink["text"], "titleColor": ink["text"], "labelFontSize": 12},
        "view": {"stroke": None},
        "text": {"color": ink["text"], "fontSize": LABEL_SIZE},
        "rule": {"color": ink["line"]},
        "range": {"category": CATEGORY[theme], "symbol": SYMBOLS, "heatmap": HEAT[theme], "ramp": HEAT[theme]},
    }
