"""The report's pictures, in groups, and those of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import altair as alt
import polars as pl

from outlier_moe.judging.filtering import Preset
from outlier_moe.plots.gallery import MOST_FEATURES, expert_charts, ranked_features
from outlier_moe.plots.layers import feature_heatmap_chart, layer_profile_chart
from outlier_moe.plots.overview import of_preset
from outlier_moe.plots.positions import place_share_chart, position_profile_chart
from outlier_moe.plots.quantities import SIZES, SYSTEMATIC_FEATURES
from outlier_moe.plots.scatter import dual_chart, perplexity_charts, scatter_chart, study_charts
from outlier_moe.plots.thresholds import all_curves_chart, model_curves_chart
from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.report.tables import Table
from outlier_moe.tables.files import read_table


class Picture(NamedTuple):
    """A chart and what is said about it."""

    id: str
    """Its name among its group's charts."""
    title: str
    """Its heading."""
    caption: str
    """What it shows."""
    spec: dict[str, Any]
    """The chart, in Vega-Lite."""
    is_wide: bool = False
    """Whether it takes a whole row."""


class PictureGroup(NamedTuple):
    """Pictures that belong together."""

    title: str
    """Their heading."""
    text: str
    """What they have in common."""
    pictures: list[Picture]
    """The pictures."""
    statements: Mapping[str, str] = MappingProxyType({})
    """What stands out, question by question."""
    tables: Sequence[Table] = ()
    """The numbers behind it."""
    caveats: Sequence[str] = ()
    """How far it can be trusted."""


def _spec(chart: alt.TopLevelMixin) -> dict[str, Any]:
    return chart.to_dict(validate=False)


def comparison_pictures(inputs: ReportInputs, contents: ReportContents) -> list[PictureGroup]:
    """The pictures of all models, by the study's default preset; the page itself places their names."""
    if not contents.models:
        return []
    preset = inputs.default_preset
    models = of_preset(contents.comparison, preset.name)
    hollow = of_preset(contents.comparison, preset.name, "excluded")
    intervals = inputs.statistics.get("intervals")
    if intervals is not None:
        intervals = intervals.filter(preset=preset.name, first_token="included")
    counts = {
        f"{size}-count": scatter_chart(
            models, x=SIZES[size], y=SYSTEMATIC_FEATURES, intervals=intervals, without_first=hollow, is_placed=False
        )
        for size in SIZES
    }
    thresholds = _thresholds(inputs, contents)
    if len(contents.models) == 1:
        # One mark in each of the others says nothing that a table does not.
        return [group for group in [thresholds] if group.pictures]
    groups = [
        PictureGroup(
            "How many, by size",
            "Distinct systematic features; hollow marks leave out each sequence's first token, where it matters.",
            [Picture(name, _title(name), "", _spec(chart)) for name, chart in counts.items()],
        ),
        PictureGroup(
            "How far they reach, by size",
            "The share of layers and of positions that a systematic feature affects: mean and median over a model's"
            " systematic features, against total and active parameters.",
            [
                Picture(name, _title(name), "", _spec(chart))
                for name, chart in study_charts(models, intervals=intervals, is_placed=False).items()
            ],
        ),
        PictureGroup(
            "Layers and positions together",
            "As in the paper that found them: filled marks are layers, hollow ones positions, each the mean over a"
            " model's systematic features; the wide bars are intervals.",
            [
                Picture(f"dual-{size}", _title(f"dual-{size}"), "", _spec(chart))
                for size, chart in (
                    (size, dual_chart(models, size=size, intervals=intervals, is_placed=False)) for size in SIZES
                )
            ],
        ),
        _perplexity(models, intervals),
        thresholds,
    ]
    return [group for group in groups if group.pictures]


def _perplexity(models: pl.DataFrame, intervals: pl.DataFrame | None) -> PictureGroup:
    known = models.filter(pl.col("perplexity").is_not_null())
    charts = perplexity_charts(known, intervals=intervals, is_placed=False) if len(known) else {}
    return PictureGroup(
        "Against perplexity",
        "Perplexity comes from the same pass over the same text; models with other tokenizers read it in other pieces,"
        " so that their perplexities compare only roughly.",
        [Picture(name, _title(name), "", _spec(chart)) for name, chart in charts.items()],
    )


def _thresholds(inputs: ReportInputs, contents: ReportContents) -> PictureGroup:
    preset = inputs.default_preset
    curves = {
        model.name: model.curves[preset.name, "included"]
        for model in contents.models
        if (preset.name, "included") in model.curves
    }
    kinds = {model.name: model.facts["kind"] for model in contents.models}
    text = (
        "Systematic features at every threshold of the ladder, exactly; each curve ends at the last edge that has"
        " one, with its model's name where there is room. The dashed line is the study's threshold."
    )
    if not curves:
        return PictureGroup("At every threshold", text, [])
    chart = all_curves_chart(curves, kinds, magnitude=preset.magnitude, is_placed=False)
    title = f"Systematic features of {'all models' if len(curves) > 1 else next(iter(curves))}"
    return PictureGroup("At every threshold", text, [Picture("thresholds", title, "", _spec(chart), is_wide=True)])


_WORDS = {
    "total": "total parameters",
    "active": "active parameters",
    "perplexity": "perplexity",
    "count": "features",
    "layers": "layers",
    "positions": "positions",
}


def _title(name: str) -> str:
    against, of, *kind = name.split("-")
    if against == "dual":
        return f"Layers and positions against {_WORDS[of]}"
    what = f"{_WORDS[of].capitalize()}, {kind[0]}" if kind else _WORDS[of].capitalize()
    return f"{what}, against {_WORDS[against]}"


def model_pictures(inputs: ReportInputs, model: ReportedModel) -> list[Picture]:
    """The pictures of one model."""
    preset = inputs.default_preset
    sites, peaks = model.recording.sites(), model.recording.peaks()
    taps = peaks["tap"].cast(pl.String).unique().to_list()
    tap = "residual" if "residual" in taps else min(taps, default="residual")
    pictures = [
        Picture(
            "layers-peak",
            "Largest activations, layer by layer",
            "The largest |x| at each tap: the median of the sequences, their range shaded.",
            _spec(layer_profile_chart(sites, figure="peak")),
        ),
        Picture(
            "layers-kurtosis",
            "How unevenly features share the energy",
            "Kurtosis of the features' RMS (He et al. 2024): 1 if all are alike, d_model if one has it all.",
            _spec(layer_profile_chart(sites, figure="kurtosis")),
        ),
        Picture(
            "thresholds",
            "Systematic features at every threshold",
            "By every preset that counts; dashed without each sequence's first token.",
            _spec(model_curves_chart(model.curves, magnitude=preset.magnitude)),
        ),
        Picture(
            "positions",
            "Where the largest activations lie",
            f"The largest peaks of the tap {tap}, by position and kind of token.",
            _spec(position_profile_chart(peaks, tap=tap)),
        ),
        Picture(
            "first-tokens",
            "At the first token",
            "Of the largest features of each site and sequence, those whose peak lies at the first token.",
            _spec(place_share_chart(peaks, place="first token")),
        ),
        Picture(
            "delimiters",
            "At delimiters",
            "The same for tokens of punctuation, line breaks and special tokens after the first position.",
            _spec(place_share_chart(peaks, place="delimiter")),
        ),
    ]
    heatmap = _heatmap(model, preset)
    return [*pictures, *_experts(inputs, model), *([heatmap] if heatmap else [])]


_OF_EXPERTS = {
    "expert-load": (
        "How the router loads its experts",
        "Tokens that each routed expert works on, of an equal share; the busiest of each layer first.",
    ),
    "expert-peaks": (
        "Super experts",
        "The largest |x| of each expert's own output; super experts by the rule of arXiv 2507.23279.",
    ),
}


def _experts(inputs: ReportInputs, model: ReportedModel) -> list[Picture]:
    """How loaded and how large a MoE model's experts are, if they were recorded."""
    held = inputs.statistics.get("super_experts")
    held = None if held is None else held.filter(model=model.name)
    held = None if held is None or held.is_empty() else held
    charts = expert_charts(model.recording, magnitude=inputs.study["magnitude"], held=held)
    return [Picture(name, *_OF_EXPERTS[name], _spec(chart)) for name, chart in charts.items()]


def _heatmap(model: ReportedModel, preset: Preset) -> Picture | None:
    ranked = ranked_features(model.features, preset)
    if not ranked:
        return None
    features = ranked[:MOST_FEATURES]
    peaks = read_table(model.files.layer_peaks)
    more = f"; {len(ranked) - len(features):,} more are not shown" if len(ranked) > len(features) else ""
    return Picture(
        "features",
        "Systematic features through the layers",
        f"The largest |x| of each feature ({preset.name}), those that affect most layers first{more}.",
        _spec(feature_heatmap_chart(peaks, features, view=preset.view, most=MOST_FEATURES)),
        is_wide=True,
    )
