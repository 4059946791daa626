"""Charts as they are drawn: valid, with every name apart from the others, dense and MoE told apart twice."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest
import vl_convert

from outlier_moe.errors import StudyError
from outlier_moe.judging.count_recording import peaks_by_layer
from outlier_moe.judging.edge_counts import count_at_edges, shape_of
from outlier_moe.judging.edge_counts.coding import encode_counts
from outlier_moe.judging.filtering import Preset, systematic_features
from outlier_moe.plots import outlier_chart, save_chart
from outlier_moe.plots.experts import expert_load_chart, expert_peak_chart
from outlier_moe.plots.labels import text_width
from outlier_moe.plots.layers import feature_heatmap_chart, layer_profile_chart
from outlier_moe.plots.overview import of_preset
from outlier_moe.plots.positions import place_share_chart, position_profile_chart, with_place_kind
from outlier_moe.plots.quantities import FRACTIONS, SYSTEMATIC_FEATURES, TOTAL_PARAMETERS
from outlier_moe.plots.saving import themed
from outlier_moe.plots.scatter import dual_chart, perplexity_charts, scatter_chart, study_charts
from outlier_moe.plots.theme import CATEGORY, Theme
from outlier_moe.plots.thresholds import all_curves_chart, model_curves_chart, threshold_curve
from outlier_moe.tables.recording import Recording
from tests.recordings import made_up_activations, write_recording
from tests.unit.plots.comparisons import made_up_comparison

PRESET = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    activations = made_up_activations(n_layers=3, shape=(2, 60, 24), seed=0)
    return write_recording(tmp_path_factory.mktemp("model") / "outliers", activations)


def models(n: int = 23, **options: Any) -> pl.DataFrame:
    return of_preset(made_up_comparison(n, **options), "dettmers2022")


def intervals(comparison: pl.DataFrame) -> pl.DataFrame:
    parts = [
        comparison.select("model", low=pl.col(column) * 0.8, high=pl.col(column) * 1.2, figure=pl.lit(column))
        for column in ("n_systematic", "layer_fraction_mean")
    ]
    return pl.concat(parts, how="vertical_relaxed")


def names_of(svg: str) -> list[tuple[str, tuple[float, float, float, float]]]:
    """The text marks of a drawn chart, with the boxes they fill."""
    inside = svg.split("mark-text role-mark")[1:]
    found = re.findall(
        r'<text[^>]*text-anchor="middle"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)"[^>]*>([^<]*)<',
        "".join(part.split("</g>")[0] for part in inside),
    )
    boxes = []
    for x, y, text in found:
        # The transform stands on the baseline of a text whose middle is asked for: 0.3 of its size above.
        middle, half = float(y) - 0.3 * 11, text_width(text, 11.0) / 2
        boxes.append((text, (float(x) - half, middle - 5.5, float(x) + half, middle + 5.5)))
    return boxes


def drawn(chart: alt.TopLevelMixin) -> str:
    return vl_convert.vegalite_to_svg(themed(chart, "light"), vl_version="6.4")


@pytest.mark.parametrize("seed", range(3))
def test_names_of_a_whole_study_overlap_nowhere(seed: int) -> None:
    comparison = models(seed=seed)
    charts = [
        scatter_chart(comparison, x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES, intervals=intervals(comparison)),
        scatter_chart(comparison, x=TOTAL_PARAMETERS, y=FRACTIONS["layers-mean"], intervals=intervals(comparison)),
        dual_chart(comparison, size="active"),
    ]
    for chart in charts:
        names = names_of(drawn(chart))
        assert len(names) > 15
        for (one, a), (other, b) in combinations(names, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)


def every_chart(recording: Recording) -> dict[str, alt.TopLevelMixin]:
    comparison = models(6)
    counts = encode_counts(count_at_edges(recording, shape_of(PRESET)))  # type: ignore[arg-type]
    curve = threshold_curve(counts, PRESET)
    peaks = recording.peaks()
    return {
        "overview": outlier_chart(made_up_comparison(5), preset="dettmers2022"),
        **study_charts(comparison, intervals=intervals(comparison)),
        **perplexity_charts(comparison),
        "dual": dual_chart(comparison, size="total"),
        "curves": all_curves_chart({"one": curve}, {"one": "moe"}, magnitude=6.0),
        "own curves": model_curves_chart({("dettmers2022", "included"): curve}, magnitude=6.0),
        "peaks": layer_profile_chart(recording.sites(), figure="peak"),
        "kurtosis": layer_profile_chart(recording.sites(), figure="kurtosis"),
        "features": feature_heatmap_chart(peaks_by_layer(recording.layer_outliers()), [1, 3, 5], view="linear_inputs"),
        "positions": position_profile_chart(peaks, tap="residual"),
        "first": place_share_chart(peaks, place="first token"),
        "load": expert_load_chart(experts()[0]),
        "super experts": expert_peak_chart(experts()[1]),
        "delimiters": place_share_chart(peaks, place="delimiter"),
    }


def test_every_chart_is_valid_and_drawn_in_both_themes(recording: Recording) -> None:
    charts = every_chart(recording)
    assert len([name for name in charts if re.match(r"(total|active)-", name)]) == 8
    themes: list[Theme] = ["light", "dark"]
    for name, chart in charts.items():
        chart.to_dict(validate=True)
        for theme in themes:
            svg = vl_convert.vegalite_to_svg(themed(chart, theme), vl_version="6.4")
            assert "<path" in svg or "<rect" in svg, name


def experts(n_layers: int = 4, n_experts: int = 80) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `ExpertSummary` and `SuperExpert` of a model that never was."""
    random = np.random.default_rng(0)
    rows = [
        {
            "layer": layer,
            "expert": expert,
            "kind": "shared" if expert == n_experts - 1 else "routed",
            "n_tokens": int(random.integers(1, 900)),
            "n_outlier_tokens": 3,
            "peak": 700.0 if (layer, expert) == (1, 5) else float(random.uniform(1, 9)),
            "peak_feature": 7,
            "peak_position": 0,
            "is_super": (layer, expert) == (1, 5),
        }
        for layer in range(n_layers)
        for expert in range(n_experts)
    ]
    frame = pl.DataFrame(rows)
    return frame, frame


def test_the_busiest_expert_comes_first_and_shared_ones_are_left_out() -> None:
    summary, _ = experts(n_experts=9)
    rows = json.loads(expert_load_chart(summary).to_dict()["data"]["values"])
    assert len(rows) == 4 * 8
    of_first = summary.filter(layer=0, kind="routed").sort("n_tokens", descending=True)
    shown = [row for row in rows if row["layer"] == 0]
    assert [int(row["experts"]) for row in shown] == of_first["expert"].to_list()
    assert shown[0]["relative"] == pytest.approx(of_first["n_tokens"][0] / of_first["n_tokens"].mean())


def test_many_experts_share_columns() -> None:
    summary, _ = experts(n_experts=200)
    rows = json.loads(expert_load_chart(summary).to_dict()["data"]["values"])
    assert len({row["rank"] for row in rows}) <= 64
    assert sum(row["n_tokens"] for row in rows) == summary.filter(kind="routed")["n_tokens"].sum()


def test_super_experts_are_named() -> None:
    _, held = experts()
    assert [name for name, _ in names_of(drawn(expert_peak_chart(held)))] == ["L1 E5"]


def test_layers_are_whole_numbers() -> None:
    svg = drawn(expert_peak_chart(experts(n_layers=3)[1]))
    labels = svg.split("role-axis-label", 1)[1].split("role-axis-title")[0]
    assert re.findall(r"<text[^>]*>([^<]*)<", labels) == ["0", "1", "2"]


def test_charts_of_nothing_are_drawn(recording: Recording) -> None:
    nothing = models(0)
    sites, peaks = recording.sites().head(0), recording.peaks().head(0)
    charts = [
        outlier_chart(made_up_comparison(0), preset="dettmers2022"),
        scatter_chart(nothing, x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES),
        dual_chart(nothing, size="total"),
        all_curves_chart({}, {}, magnitude=6.0),
        layer_profile_chart(sites, figure="peak"),
        position_profile_chart(peaks, tap="residual"),
        feature_heatmap_chart(peaks_by_layer(recording.layer_outliers()), [], view="linear_inputs"),
        expert_load_chart(experts()[0].head(0)),
        expert_peak_chart(experts()[1].head(0)),
    ]
    for chart in charts:
        assert drawn(chart).startswith("<svg")


def test_dense_and_moe_differ_in_shape_and_colour() -> None:
    svg = drawn(scatter_chart(models(8), x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES))
    marks = re.findall(r'<path aria-label="([^"]*)"[^>]*d="([^"]*)"[^>]*fill="([^"]*)"', svg)
    looks = {"dense": set(), "moe": set()}
    for label, path, fill in marks:
        looks["moe" if "kind: moe" in label else "dense"].add((re.sub(r"[-\d.,]", "", path), fill))
    assert looks["dense"] and looks["moe"]
    (dense,), (moe,) = looks["dense"], looks["moe"]
    assert dense[0] != moe[0] and dense[1] != moe[1]
    assert dense[1].lower() == CATEGORY["light"][0].lower()


def test_intervals_are_drawn_where_there_are_any() -> None:
    comparison = models(5)
    known = intervals(comparison).with_columns(
        low=pl.when(pl.col("model") == comparison["model"][0]).then(None).otherwise("low")
    )
    spec = scatter_chart(comparison, x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES, intervals=known).to_dict()
    rows = json.loads(spec["layer"][0]["data"]["values"])
    assert [row["low"] is None for row in rows] == [True, False, False, False, False]
    assert rows[1]["low"] == pytest.approx(0.8 * rows[1]["y"])


def test_models_without_a_figure_are_left_out() -> None:
    comparison = models(4).with_columns(
        perplexity=pl.when(pl.col("model") == pl.col("model").first()).then(None).otherwise("perplexity")
    )
    for chart in perplexity_charts(comparison).values():
        rows = json.loads(chart.to_dict()["layer"][0]["data"]["values"])
        assert comparison["model"][0] not in {row["model"] for row in rows}


def test_the_curve_is_the_filters_count_at_every_edge(recording: Recording) -> None:
    counts = encode_counts(count_at_edges(recording, shape_of(PRESET)))  # type: ignore[arg-type]
    curve = threshold_curve(counts, PRESET, first_token="excluded")
    assert curve["n_systematic"][-1] == 0
    for magnitude, n in curve.select("magnitude", "n_systematic").iter_rows():
        judged = systematic_features(recording, [Preset("any", "systematic", "linear_inputs", magnitude)])
        assert len(judged.filter("is_systematic", first_token="excluded")) == n


def test_tokens_are_told_apart() -> None:
    texts = [" the", "\n", ".", " ,", "<|im_end|>", "word.", "", "…", "<", "a<b"]
    peaks = pl.DataFrame({"text": texts, "position": [1] * len(texts)})
    found = with_place_kind(peaks)["place"].to_list()
    assert found == [
        "other",
        "delimiter",
        "delimiter",
        "delimiter",
        "delimiter",
        "other",
        "delimiter",
        "delimiter",
        "delimiter",
        "other",
    ]
    assert with_place_kind(pl.DataFrame({"text": ["."], "position": [0]}))["place"].to_list() == ["first token"]


def test_the_largest_peak_over_the_sequences(recording: Recording) -> None:
    rows = recording.layer_outliers().collect()
    for tap, layer, feature, peak in peaks_by_layer(recording.layer_outliers()).sample(20, seed=0).iter_rows():
        assert rows.filter(tap=tap, layer=layer, feature=feature)["peak"].max() == peak


def test_the_heat_map_keeps_the_order_and_the_limit(recording: Recording) -> None:
    peaks = peaks_by_layer(recording.layer_outliers())
    spec = feature_heatmap_chart(peaks, [5, 1, 3, 2], view="linear_inputs", most=3).to_dict()
    assert spec["encoding"]["y"]["sort"] == [5, 1, 3]
    assert {row["feature"] for row in json.loads(spec["data"]["values"])} <= {5, 1, 3}


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(StudyError, match="no such preset"):
        outlier_chart(made_up_comparison(2), preset="dettmers")


def test_files_are_written(tmp_path: Path) -> None:
    chart = scatter_chart(models(3), x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES)
    paths = {kind: tmp_path / f"chart.{kind}" for kind in ("png", "svg", "html")}
    save_chart(chart, paths)
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    assert paths["svg"].read_text().startswith("<svg")
    page = paths["html"].read_text()
    assert "https://cdn" not in page.split("vegaEmbed('#chart'")[1]
    assert np.all([row in page for row in models(3)["model"]])


def test_a_page_and_its_chart_have_a_name(tmp_path: Path) -> None:
    chart = alt.Chart(pl.DataFrame({"x": [1]})).mark_point().encode(x="x")
    titled = alt.hconcat(chart.properties(title='Features "of" <a>'), chart.properties(title="Peaks"))
    save_chart(titled, {"html": tmp_path / "page.html"}, vega_bundle="")
    name = "Features &quot;of&quot; &lt;a&gt;; Peaks"
    page = (tmp_path / "page.html").read_text()
    assert f"<title>{name}</title>" in page and f'aria-label="{name}"' in page


def test_a_name_cannot_end_the_script_of_a_page(tmp_path: Path) -> None:
    hostile = models(2).with_columns(model=pl.lit("</script><script>alert(1)</script>"))
    save_chart(scatter_chart(hostile, x=TOTAL_PARAMETERS, y=SYSTEMATIC_FEATURES), {"html": tmp_path / "chart.html"})
    assert "</script><script>alert" not in (tmp_path / "chart.html").read_text()
