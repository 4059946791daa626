"""All pictures of a comparison, and of one model, by name: what the workflow writes as files and the report shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import altair as alt
import polars as pl

from outlier_moe.definitions.presets import Preset
from outlier_moe.judging.experts import summarise_experts
from outlier_moe.plots.experts import expert_load_chart, expert_peak_chart
from outlier_moe.plots.layers import feature_heatmap_chart, layer_profile_chart
from outlier_moe.plots.overview import of_preset
from outlier_moe.plots.positions import place_share_chart, position_profile_chart
from outlier_moe.plots.quantities import SIZES, SYSTEMATIC_FEATURES
from outlier_moe.plots.saving import save_chart
from outlier_moe.plots.scatter import dual_chart, perplexity_charts, scatter_chart, study_charts
from outlier_moe.plots.thresholds import Curves, all_curves_chart, model_curves_chart
from outlier_moe.statistics.super_experts import forming_layers, super_experts
from outlier_moe.tables.recording import Recording

MOST_FEATURES = 40


def comparison_charts(
    models: pl.DataFrame,
    *,
    preset: Preset,
    intervals: pl.DataFrame | None = None,
    curves: Mapping[str, Curves] | None = None,
    is_placed: bool = True,
) -> dict[str, alt.TopLevelMixin]:
    """The pictures of all models by one preset.

    Args:
        models: The table `ModelComparison`.
        preset: The definition to show.
        intervals: The table `FigureInterval`, if there is one.
        curves: Each model's threshold curves; the comparison may have left out some of the models.
        is_placed: Whether names have their places; a page that gives them anew for its width (`usermeta`) needs none.
    """
    shown, hollow = of_preset(models, preset.name), of_preset(models, preset.name, "excluded")
    chosen = None if intervals is None else intervals.filter(preset=preset.name, first_token="included")
    kinds = dict(shown.select("model", "kind").iter_rows())
    key = (preset.name, "included")
    known = {model: of[key] for model, of in (curves or {}).items() if model in kinds and key in of}
    charts: dict[str, alt.TopLevelMixin] = {
        f"{size}-count": scatter_chart(
            shown, x=x, y=SYSTEMATIC_FEATURES, intervals=chosen, without_first=hollow, is_placed=is_placed
        )
        for size, x in SIZES.items()
    }
    charts |= study_charts(shown, intervals=chosen, is_placed=is_placed)
    charts |= {f"{size}-dual": dual_chart(shown, size=size, intervals=chosen, is_placed=is_placed) for size in SIZES}
    charts |= perplexity_charts(shown, intervals=chosen, is_placed=is_placed)
    return charts | {"thresholds": all_curves_chart(known, kinds, magnitude=preset.magnitude, is_placed=is_placed)}


def model_charts(
    recording: Recording,
    *,
    features: pl.DataFrame,
    layer_peaks: pl.DataFrame,
    curves: Curves,
    preset: Preset,
    held: pl.DataFrame | None = None,
) -> dict[str, alt.TopLevelMixin]:
    """The pictures of one model.

    Args:
        recording: Its tables.
        features: Its systematic features: rows of `JudgedFeature` or `Systematic`.
        layer_peaks: The table of `peaks_by_layer`.
        curves: Its threshold curves.
        preset: The definition whose features are shown layer by layer.
        held: Its rows of `SuperExpert`, if they are there already.
    """
    sites, peaks = recording.sites(), recording.peaks()
    ranked = ranked_features(features, preset)
    charts: dict[str, alt.TopLevelMixin] = {
        "layers-peak": layer_profile_chart(sites, figure="peak"),
        "layers-kurtosis": layer_profile_chart(sites, figure="kurtosis"),
        "thresholds": model_curves_chart(curves, magnitude=preset.magnitude),
        "positions": position_profile_chart(peaks, tap=shown_tap(peaks)),
        "first-tokens": place_share_chart(peaks, place="first token"),
        "delimiters": place_share_chart(peaks, place="delimiter"),
    }
    heatmap = feature_heatmap_chart(layer_peaks, ranked, view=preset.view, most=MOST_FEATURES)
    return charts | expert_charts(recording, magnitude=preset.magnitude, held=held) | {"features": heatmap}


def shown_tap(peaks: pl.DataFrame) -> str:
    """The tap whose largest activations are shown: the residual stream where it was recorded."""
    taps = peaks["tap"].cast(pl.String).unique().to_list()
    return "residual" if "residual" in taps else min(taps, default="residual")


def ranked_features(features: pl.DataFrame, preset: Preset) -> list[int]:
    """The systematic features of a preset, those that affect most layers first, then the largest.

    Args:
        features: Rows of `schemas.JudgedFeature`.
        preset: The preset.
    """
    return (
        features.filter(preset=preset.name, first_token="included")
        .group_by("feature")
        .agg(pl.col("peak", "layer_fraction").max())
        .sort(["layer_fraction", "peak", "feature"], descending=[True, True, False])["feature"]
        .to_list()
    )


def expert_charts(
    recording: Recording, *, magnitude: float, held: pl.DataFrame | None = None
) -> dict[str, alt.TopLevelMixin]:
    """How the experts of a model are loaded, and how large what they put out is, if they were recorded.

    Args:
        recording: The model's tables.
        magnitude: The |x| from which a token is an outlier token.
        held: Its rows of `SuperExpert`, if they are there already.
    """
    experts, routers = recording.experts(), recording.routers()
    if experts is None or routers is None:
        return {}
    ladder = recording.ladder
    summary = summarise_experts(
        experts.lazy(), routers.lazy(), ladder=ladder, magnitude=max(magnitude, ladder.floor)
    ).collect()
    if held is None:
        held = super_experts(experts, forming_layers(recording)).experts
    return {"expert-load": expert_load_chart(summary), "expert-peaks": expert_peak_chart(held)}


def save_charts(charts: Mapping[str, alt.TopLevelMixin], paths: Iterable[str | Path], *, vega_bundle: str) -> None:
    """Write each chart to the files that are named after it.

    Args:
        charts: The charts, by name.
        paths: Where to: the stem is a chart's name, the suffix `.png`, `.svg` or `.html`.
        vega_bundle: The script of `plots.saving.bundled`.
    """
    by_chart: dict[str, dict[str, Path]] = {}
    for path in map(Path, paths):
        by_chart.setdefault(path.stem, {})[path.suffix[1:]] = path
    for name, files in by_chart.items():
        save_chart(charts[name], files, vega_bundle=vega_bundle)
