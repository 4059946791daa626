"""The report's pictures, in groups, and those of each model: those of `plots.gallery`, with what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from outlier_moe.plots.gallery import MOST_FEATURES, comparison_charts, model_charts, ranked_features, shown_tap
from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.report.tables import Table
from outlier_moe.tables.files import read_table


class Picture(NamedTuple):
    """A chart and what is said about it."""

    id: str
    """Its name among its group's charts."""
    title: str
    caption: str
    """What it shows."""
    spec: dict[str, Any]
    """The chart, in Vega-Lite."""
    is_wide: bool = False
    """Whether it takes a whole row."""


class PictureGroup(NamedTuple):
    """Pictures that belong together."""

    title: str
    text: str
    """What they have in common."""
    pictures: list[Picture]
    statements: Mapping[str, str] = MappingProxyType({})
    """What stands out, question by question."""
    tables: Sequence[Table] = ()
    """The numbers behind it."""
    caveats: Sequence[str] = ()
    """What changes how they are read."""


_AFFECTED = [f"{of}-{kind}" for of in ("layers", "positions") for kind in ("mean", "median")]
_GROUPS = {
    "How many, by size": (
        "Distinct systematic features; hollow marks leave out each sequence's first token, where it matters.",
        ("total-count", "active-count"),
    ),
    "How far they reach, by size": (
        "The share of layers and of positions that a systematic feature affects: mean and median over a model's"
        " systematic features, against total and active parameters.",
        tuple(f"{x}-{of}" for x in ("total", "active") for of in _AFFECTED),
    ),
    "Layers and positions together": (
        "As in the paper that found them: filled marks are layers, hollow ones positions, each the mean over a"
        " model's systematic features; the wide bars are intervals.",
        ("total-dual", "active-dual"),
    ),
    "Against perplexity": (
        "Perplexity comes from the same pass over the same text; models with other tokenizers read it in other pieces,"
        " so that their perplexities compare only roughly.",
        tuple(f"perplexity-{of}" for of in ("count", *_AFFECTED)),
    ),
    "At every threshold": (
        "Systematic features at every threshold of the ladder, exactly; each curve ends at the last edge that has one,"
        " with its model's name where there is room. The dashed line is the study's threshold.",
        ("thresholds",),
    ),
}
_WORDS = {
    "total": "total parameters",
    "active": "active parameters",
    "perplexity": "perplexity",
    "count": "features",
    "dual": "layers and positions",
}


def comparison_pictures(inputs: ReportInputs, contents: ReportContents) -> list[PictureGroup]:
    """The pictures of all models, by the study's default preset; the page itself places their names."""
    models = contents.models
    if not models:
        return []
    curves = {model.name: model.curves for model in models}
    intervals = inputs.statistics.get("intervals")
    charts = comparison_charts(
        contents.comparison, preset=inputs.default_preset, intervals=intervals, curves=curves, is_placed=False
    )
    left_out = set()
    if contents.comparison["perplexity"].is_null().all():
        left_out.add("Against perplexity")
    if not any((inputs.default_preset.name, "included") in of for of in curves.values()):
        left_out.add("At every threshold")
    if len(models) == 1:
        # One mark in each of the others says nothing that a table does not.
        left_out |= _GROUPS.keys() - {"At every threshold"}
    return [
        PictureGroup(
            title,
            text,
            [
                Picture(name, _title(name), "", charts[name].to_dict(validate=False), is_wide=name == "thresholds")
                for name in names
            ],
        )
        for title, (text, names) in _GROUPS.items()
        if title not in left_out
    ]


def _title(name: str) -> str:
    if name == "thresholds":
        return "Systematic features"
    against, of, *kind = name.split("-")
    return f"{', '.join([_WORDS.get(of, of).capitalize(), *kind])}, against {_WORDS[against]}"


_OF_MODEL = {
    "layers-peak": (
        "Largest activations, layer by layer",
        "The largest |x| at each tap: the median of the sequences, their range shaded.",
    ),
    "layers-kurtosis": (
        "How unevenly features share the energy",
        "Kurtosis of the features' RMS (He et al. 2024): 1 if all are alike, d_model if one has it all.",
    ),
    "thresholds": (
        "Systematic features at every threshold",
        "By every preset that counts; dashed without each sequence's first token.",
    ),
    "positions": (
        "Where the largest activations lie",
        "The largest peaks of the tap {tap}, by position and kind of token.",
    ),
    "first-tokens": (
        "At the first token",
        "Of the largest features of each site and sequence, those whose peak lies at the first token.",
    ),
    "delimiters": (
        "At delimiters",
        "The same for tokens of punctuation, line breaks and special tokens after the first position.",
    ),
    "expert-load": (
        "How the router loads its experts",
        "Tokens that each routed expert works on, of an equal share; the busiest of each layer first.",
    ),
    "expert-peaks": (
        "Super experts",
        "The largest |x| of each expert's own output; super experts by the rule of arXiv 2507.23279.",
    ),
    "features": (
        "Systematic features through the layers",
        "The largest |x| of each feature ({preset}), those that affect most layers first; {n} more are not shown.",
    ),
}


def model_pictures(inputs: ReportInputs, model: ReportedModel) -> list[Picture]:
    """The pictures of one model."""
    preset = inputs.default_preset
    held = inputs.statistics.get("super_experts")
    held = None if held is None else held.filter(model=model.name)
    charts = model_charts(
        model.recording,
        features=model.features,
        layer_peaks=read_table(model.files.layer_peaks),
        curves=model.curves,
        preset=preset,
        held=None if held is None or held.is_empty() else held,
    )
    n_features = len(ranked_features(model.features, preset))
    if not n_features:
        del charts["features"]
    facts = {
        "tap": shown_tap(model.recording.peaks()),
        "preset": preset.name,
        "n": f"{max(0, n_features - MOST_FEATURES):,}",
    }
    pictures = []
    for name, chart in charts.items():
        title, caption = _OF_MODEL[name]
        spec = chart.to_dict(validate=False)
        pictures.append(Picture(name, title, caption.format(**facts), spec, is_wide=name == "features"))
    return pictures
