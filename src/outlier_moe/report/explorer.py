"""What the page's sliders work on: each model's counts at every edge, and the stops that can be asked for."""

from __future__ import annotations

import json
import shlex
from typing import Any

import polars as pl

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.judging.edge_counts import shape_of
from outlier_moe.judging.filtering import Preset
from outlier_moe.plots.quantities import (
    ACTIVE_PARAMETERS,
    PERPLEXITY,
    SYSTEMATIC_FEATURES,
    TOTAL_PARAMETERS,
    quantity,
)
from outlier_moe.plots.scales import TICKS
from outlier_moe.plots.scatter import scatter_chart
from outlier_moe.plots.thresholds import all_curves_chart
from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.tables.titles import COMPARED

HORIZONTAL = [TOTAL_PARAMETERS, ACTIVE_PARAMETERS, PERPLEXITY]
ON_SLIDERS = [name for name, title in COMPARED.items() if title.has_slider]
VERTICAL = [quantity(name) for name in ON_SLIDERS]
COLUMNS = [{"name": name, "title": COMPARED[name].heading, "style": COMPARED[name].style} for name in ON_SLIDERS]


def explorer_study(inputs: ReportInputs, contents: ReportContents) -> dict[str, Any]:
    """All that the explorer needs beside the counts, as JSON."""
    thresholds = {name: inputs.study[name] for name in ("magnitude", "layer_fraction", "position_fraction")}
    return {
        "presets": [_preset(preset, inputs) for preset in inputs.presets],
        "default_preset": inputs.default_preset.name,
        "thresholds": thresholds,
        "stops": {
            "magnitude": _magnitudes(contents.models, thresholds["magnitude"]),
            "layers": _stops(contents.models, "least_layers", thresholds["layer_fraction"]),
            "positions": _stops(contents.models, "least_positions", thresholds["position_fraction"]),
        },
        "models": [
            {name: model.facts[name] for name in ("model", "kind", "family", "d_model", "perplexity")}
            | {name: model.facts[name] for name in ("total_params_b", "active_params_b")}
            for model in contents.models
        ],
        "fixed": _fixed(inputs, contents.comparison),
        "columns": COLUMNS,
        "quantities": {
            of.column: {"title": of.title, "scale": of.scale, "is_fraction": of.is_fraction}
            for of in [*HORIZONTAL, *VERTICAL]
        },
        "ticks": TICKS,
        "templates": {
            name: _with_legend(spec, {model.facts["kind"] for model in contents.models})
            for name, spec in (
                ("scatter", _scatter_template(contents.comparison.head(0))),
                ("curves", all_curves_chart({}, {}, magnitude=thresholds["magnitude"], height=340).to_dict()),
            )
        },
        "command": _command(inputs),
    }


def _with_legend(spec: dict[str, Any], kinds: set[str]) -> dict[str, Any]:
    """A picture whose legend has the study's kinds only."""
    for layer in spec["layer"]:
        for channel in ("color", "shape"):
            encoding = layer.get("encoding", {}).get(channel, {})
            if encoding.get("field") == "kind" and len(kinds) == 1:
                encoding["legend"]["values"] = list(kinds)
    return spec


def _command(inputs: ReportInputs) -> dict[str, Any]:
    """How the study was started, for a command that changes its thresholds alone."""
    files = ["--configfile", *map(shlex.quote, inputs.configfiles)] if inputs.configfiles else []
    # Snakemake reads values as YAML, which JSON is.
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in inputs.overrides.items()}
    return {"start": " ".join(["snakemake", *files]), "keys": {k: shlex.quote(f"{k}={v}") for k, v in told.items()}}


def _scatter_template(nothing: pl.DataFrame) -> dict[str, Any]:
    """A picture without marks; the page fills them in."""
    spec = scatter_chart(nothing, x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES, height=340).to_dict()
    # It says that there is nothing to see, which is true until then.
    return {name: value for name, value in spec.items() if name != "title"}


def _preset(preset: Preset, inputs: ReportInputs) -> dict[str, Any]:
    definition = inputs.study["filter_systematic"]["presets"][preset.name]
    shape = shape_of(preset)
    own = {name: definition.get(name) for name in ("magnitude", "layer_fraction", "position_fraction")}
    return {"name": preset.name, "rule": preset.rule, "shape": shape and shape.name, **own}


def _magnitudes(models: list[ReportedModel], study: float) -> list[float]:
    """The edges from the highest floor on, up to where no model has anything left."""
    if not models:
        return [study]
    floor = max(model.recording.run["floor"] for model in models)
    edges = Ladder(floor=floor).edges
    kept = [float(Ladder(floor=of.floor).edges[of.n_edges]) for model in models for of in model.ranges]
    last = max([*kept, study])
    return [float(edge) for edge in edges if edge <= last]


def _stops(models: list[ReportedModel], least: str, study: float) -> list[float]:
    """Every per cent from the least fraction that the counts answer, and the study's own."""
    lowest = max((getattr(of, least) for model in models for of in model.ranges), default=study)
    return sorted({percent / 100 for percent in range(1, 101) if percent / 100 >= lowest} | {study})


def _fixed(inputs: ReportInputs, comparison: pl.DataFrame) -> dict[str, Any]:
    """The figures of the presets that no slider moves: massive activations."""
    return {
        preset.name: {
            first_token: {
                row["model"]: {name: row[name] for name in ON_SLIDERS}
                for row in comparison.filter(preset=preset.name, first_token=first_token).iter_rows(named=True)
            }
            for first_token in ("included", "excluded")
        }
        for preset in inputs.presets
        if shape_of(preset) is None
    }
