"""The page itself: everything it shows is inside it, and every string that came from outside is escaped."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from outlier_moe import __version__
from outlier_moe.plots.labels import RULES
from outlier_moe.plots.theme import CATEGORY, INK, Theme, theme_config
from outlier_moe.report.charts import Picture, comparison_pictures, model_pictures
from outlier_moe.report.explorer import COLUMNS, HORIZONTAL, VERTICAL, explorer_study
from outlier_moe.report.findings import confidence_level, findings
from outlier_moe.report.first_look import first_look
from outlier_moe.report.inputs import ReportContents, ReportInputs, read_contents
from outlier_moe.report.sentences import percent
from outlier_moe.report.statistics_tables import routing_table, statistics_tables
from outlier_moe.report.sweeps import sweep_pictures, sweep_tables
from outlier_moe.report.tables import comparison_tables, peaks_table, provenance_table, run_documents
from outlier_moe.report.upcycling import upcycling_pictures
from outlier_moe.terminal.figures import plain

ASSETS = files("outlier_moe.report") / "assets"
SCRIPTS = ("decode.js", "figures.js", "labels.js", "charts.js", "explorer.js", "explorer_views.js", "page.js")


def write_report(inputs: ReportInputs, path: Path, *, vega_bundle: str) -> None:
    """Write the report as one file that needs no network.

    Args:
        inputs: What it is made of.
        path: Where to.
        vega_bundle: Vega, Vega-Lite and Vega-Embed as one script: `plots.saving.bundled`.
    """
    contents = read_contents(inputs)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"plain": plain, "percent": percent}
    template = page.from_string((ASSETS / "report.html.j2").read_text())
    # The tests check every kind of chart against Vega-Lite's schema; for hundreds of charts that takes seconds.
    with debug_mode(False):
        groups = [
            *comparison_pictures(inputs, contents),
            *upcycling_pictures(inputs.upcycling),
            *sweep_pictures(inputs.sweeps, inputs.study),
        ]
        of_models = {model.name: model_pictures(inputs, model) for model in contents.models}
    text = template.render(
        version=__version__,
        css=Markup(_style()),
        bundle=Markup(vega_bundle),
        script=Markup(_script()),
        themes=as_json({theme: theme_config(theme) | {"background": None} for theme in get_args(Theme)}),
        label_rules=as_json(RULES._asdict()),
        study=as_json(explorer_study(inputs, contents)),
        counts=_counts(contents),
        blobs={
            "charts/study": _blob([picture for group in groups for picture in group.pictures]),
            **{f"charts/{name}": _blob(pictures) for name, pictures in of_models.items()},
        },
        inputs=inputs,
        title=_title(contents),
        facts=_facts(contents),
        first_look=first_look(inputs, contents) if contents.models else None,
        kinds=sorted({model.facts["kind"] for model in contents.models}),
        models=contents.models,
        findings=findings(inputs, contents),
        left_out=contents.left_out,
        level=percent(level) if (level := confidence_level(inputs.statistics.get("intervals"))) else None,
        groups=groups,
        model_pictures=of_models,
        peaks={model.name: peaks_table(model) for model in contents.models},
        routing={model.name: routing_table(inputs, model) for model in contents.models},
        comparison=comparison_tables(inputs, contents),
        statistics=statistics_tables(inputs, contents) + sweep_tables(inputs.sweeps),
        provenance=provenance_table(contents.models),
        runs=run_documents(contents.models),
        columns=COLUMNS,
        horizontal=HORIZONTAL,
        vertical=VERTICAL,
    )
    path.write_text(text)


def as_json(value: Any) -> Markup:
    """A value as JSON that can stand inside a script: no string in it can end the script."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _blob(pictures: list[Picture]) -> str:
    document = json.dumps({picture.id: picture.spec for picture in pictures}, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(document.encode(), 6)).decode()


def _counts(contents: ReportContents) -> dict[str, Markup]:
    return {
        f"counts/{model.name}/{shape}": as_json(document)
        for model in contents.models
        for shape, document in model.counts_documents.items()
    }


def _script() -> str:
    parts = [(ASSETS / name).read_text() for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();"


def _style() -> str:
    def variables(theme: Theme) -> str:
        ink = {**INK[theme], "dense": CATEGORY[theme][0], "moe": CATEGORY[theme][1], **_SURFACES[theme]}
        return " ".join(f"--{name}: {colour};" for name, colour in ink.items())

    template = Environment(undefined=StrictUndefined).from_string((ASSETS / "report.css").read_text())
    return template.render(light=variables("light"), dark=variables("dark"))


_SURFACES: dict[Theme, dict[str, str]] = {
    "light": {"card": "#ffffff", "page": "#f6f7f9", "warn": "#8a5a00", "warn-soft": "#fdf5e3"},
    "dark": {"card": "#151b24", "page": "#0d1117", "warn": "#e5b45a", "warn-soft": "#231d10"},
}


_KINDS = (("dense", "dense"), ("moe", "Mixture-of-Experts"))


def _title(contents: ReportContents) -> str:
    """What the page is of: a model, models of one kind, or both kinds."""
    kinds = Counter(model.facts["kind"] for model in contents.models)
    match len(contents.models), len(kinds):
        case (0, _):
            return "Outlier features"
        case (1, _):
            return f"Outlier features of {contents.models[0].name}"
        case (n, 1):
            return f"Outlier features of {n} {dict(_KINDS)[next(iter(kinds))]} models"
        case _:
            return "Outlier features, dense against Mixture-of-Experts"


def parameter_unit(largest_b: float) -> tuple[str, int]:
    """The word before `parameters` in which the largest model is read best, and how many of it are a billion."""
    units = (("billion ", 1, 1.0), ("million ", 10**3, 1e-3), ("", 10**9, 0.0))
    return next((word, of_billion) for word, of_billion, least in units if largest_b >= least)


def _facts(contents: ReportContents) -> list[tuple[str, str]]:
    """The study in a few numbers, for the head of the page."""
    if not contents.models:
        return []
    kinds = Counter(model.facts["kind"] for model in contents.models)
    sizes = sorted(model.facts["total_params_b"] for model in contents.models)
    tokens = sorted({model.facts["n_tokens"] for model in contents.models})
    unit, n_of_unit = parameter_unit(sizes[-1])
    ends = [plain(size * n_of_unit) for size in dict.fromkeys([sizes[0], sizes[-1]])]
    return [
        *((str(kinds[kind]), f"{name} model{'' if kinds[kind] == 1 else 's'}") for kind, name in _KINDS if kinds[kind]),
        (" – ".join(ends), f"{unit}parameters"),
        (
            " – ".join(f"{n:,}" for n in dict.fromkeys([tokens[0], tokens[-1]])),
            "tokens each" if len(contents.models) > 1 else "tokens",
        ),
    ]
