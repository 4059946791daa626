"""Pictures as files: PNG and SVG in either theme, and pages that open offline and answer the pointer."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from outlier_moe.plots.theme import Theme, theme_config

PIXELS_PER_INCH = 144
VEGA_LITE = "6.4"
_NAMELESS = "outlier_moe"


def themed(chart: alt.TopLevelMixin, theme: Theme) -> str:
    """A chart's specification in a theme."""
    spec = chart.to_dict()
    return json.dumps({**spec, "config": {**spec.get("config", {}), **theme_config(theme)}})


def save_chart(
    chart: alt.TopLevelMixin,
    paths: Mapping[str, str | Path],
    *,
    theme: Theme = "light",
    vega_bundle: str | None = None,
) -> None:
    """Write a chart to files.

    Args:
        chart: The chart.
        paths: Where to, by kind: `png` (twice the pixels of a screen), `svg`, `html`.
        theme: Its look.
        vega_bundle: The script of `bundled`, which takes seconds to make; made here if a page asks for it.
    """
    spec = themed(chart, theme)
    if "png" in paths:
        Path(paths["png"]).write_bytes(vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, ppi=PIXELS_PER_INCH))
    if "svg" in paths:
        Path(paths["svg"]).write_text(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))
    if "html" in paths:
        Path(paths["html"]).write_text(page(spec, bundled() if vega_bundle is None else vega_bundle))


@cache
def bundled() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, so that a page needs no network."""
    # The stub forgets that the snippet is optional.
    return vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]


def _name_of(spec: Mapping[str, Any]) -> str:
    """What a chart is called: by its title, or by those of its parts."""
    title = spec.get("title")
    text = title.get("text") if isinstance(title, dict) else title
    if text:
        return " ".join(text) if isinstance(text, list) else str(text)
    parts = [part for key in ("hconcat", "vconcat", "concat", "layer") for part in spec.get(key, [])]
    if "spec" in spec:
        parts.append(spec["spec"])
    names = [name for part in parts if (name := _name_of(part)) != _NAMELESS]
    return "; ".join(dict.fromkeys(names)) or _NAMELESS


def page(spec: str, vega_bundle: str) -> str:
    """A page with one chart that is drawn without a network."""
    # Nothing that came from a model may end the script.
    safe = spec.replace("<", "\\u003c")
    name = html.escape(_name_of(json.loads(spec)), quote=True)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<script>{vega_bundle}</script>\n"
        f'<div id="chart" role="figure" aria-label="{name}"></div>\n'
        f"<script>vegaEmbed('#chart', {safe}, {{mode: 'vega-lite', renderer: 'svg', "
        "actions: {export: true, source: false, compiled: false, editor: false}})</script>\n</html>\n"
    )
