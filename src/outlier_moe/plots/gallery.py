"""All pictures of a comparison, and of one model, by name: what the workflow writes as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import altair as alt
import polars as pl

from outlier_moe.judging.edge_counts import read_edge_counts, shape_of
from outlier_moe.judging.experts import summarise_experts
from outlier_moe.judging.filtering import Preset
from outlier_moe.plots.experts import expert_load_chart, expert_peak_chart
from outlier_moe.plots.layers import feature_heatmap_chart, layer_profile_chart
from outlier_moe.plots.overview import of_preset
from outlier_moe.plots.positions import place_share_chart, position_profile_chart
from outlier_moe.plots.quantities import SIZES, SYSTEMATIC_FEATURES
from outlier_moe.plots.saving import save_chart
from outlier_moe.plots.scatter import dual_chart, perplexity_charts, scatter_chart, study_charts
from outlier_moe.plots.thresholds import all_curves_chart, model_curves_chart, threshold_curve
from outlier_moe.statistics.super_experts import forming_layers, super_experts
from outlier_moe.tables.recording import Recording

MOST_FEATURES = 40


def comparison_charts(
    models: pl.DataFrame,
    *,
    preset: Preset,
    intervals: pl.DataFrame | None = None,
    edge_counts: Mapping[str, Path] | None = None,
) -> dict[str, alt.TopLevelMixin]:
    """The pictures of all models by one preset.

    Args:
        models: The table `schemas.ModelComparison`.
        preset: The definition to show.
        intervals: The table `FigureInterval`, if there is one.
        edge_counts: Each model's counts at every edge; without them there are no threshold curves.
    """
    shown, hollow = of_preset(models, preset.name), of_preset(models, preset.name, "excluded")
    chosen = None if intervals is None else intervals.filter(preset=preset.name, first_token="included")
    charts: dict[str, alt.TopLevelMixin] = {
        f"{size}-count": scatter_chart(
            shown, x=SIZES[size], y=SYSTEMATIC_FEATURES, intervals=chosen, without_first=hollow
        )
        for size in SIZES
    }
    charts |= study_charts(shown, intervals=chosen)
    charts |= perplexity_charts(shown, intervals=chosen)
    charts |= {f"{size}-dual": dual_chart(shown, size=size, intervals=chosen) for size in SIZES}
    shape = shape_of(preset)
    kinds = dict(shown.select("model", "kind").iter_rows())
    curves = {}
    # The comparison may have left out some of them.
    for model, path in ((model, path) for model, path in (edge_counts or {}).items() if model in kinds):
        counts = read_edge_counts(path)
        if shape in counts and shape is not None:
            curves[model] = threshold_curve(counts[shape], preset)
    return {**charts, "thresholds": all_curves_chart(curves, kinds, magnitude=preset.magnitude)}


def model_charts(
    recording: Recording,
    *,
    systematic: pl.DataFrame,
    layer_peaks: pl.DataFrame,
    edge_counts: Path,
    presets: list[Preset],
    default: Preset,
) -> dict[str, alt.TopLevelMixin]:
    """The pictures of one model.

    Args:
        recording: Its tables.
        systematic: The table `schemas.Systematic`.
        layer_peaks: The table of `peaks_by_layer`.
        edge_counts: Its counts at every edge.
        presets: The definitions whose threshold curves are shown.
        default: The definition whose features are shown layer by layer.
    """
    sites, peaks = recording.sites(), recording.peaks()
    taps = peaks["tap"].cast(pl.String).unique().to_list()
    counts = read_edge_counts(edge_counts)
    curves = {
        (preset.name, first_token): threshold_curve(counts[shape], preset, first_token=first_token)
        for preset in presets
        for first_token in ("included", "excluded")
        if (shape := shape_of(preset)) is not None and shape in counts
    }
    charts: dict[str, alt.TopLevelMixin] = {
        "layers-peak": layer_profile_chart(sites, figure="peak"),
        "layers-kurtosis": layer_profile_chart(sites, figure="kurtosis"),
        "thresholds": model_curves_chart(curves, magnitude=default.magnitude),
        "positions": position_profile_chart(peaks, tap="residual" if "residual" in taps else min(taps, default="")),
        "first-tokens": place_share_chart(peaks, place="first token"),
        "delimiters": place_share_chart(peaks, place="delimiter"),
        "features": feature_heatmap_chart(
            layer_peaks,
            ranked_features(systematic.filter("is_systematic"), default),
            view=default.view,
            most=MOST_FEATURES,
        ),
    }
    return charts | expert_charts(recording, magnitude=default.magnitude)


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
