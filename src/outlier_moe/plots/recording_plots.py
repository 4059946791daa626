"""The pictures of one recording, for a notebook."""

from __future__ import annotations

import altair as alt

from outlier_moe.definitions.presets import DEFAULT_PRESET, preset_named
from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError
from outlier_moe.judging.count_recording import peaks_by_layer
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.plots.gallery import expert_charts, ranked_features
from outlier_moe.plots.layers import SiteFigure, feature_heatmap_chart, layer_profile_chart
from outlier_moe.plots.positions import position_profile_chart
from outlier_moe.tables.recording import Recording


class RecordingPlots:
    """The pictures of one recording. A notebook shows a chart; `chart.save("layers.svg")` keeps one."""

    def __init__(self, tables: Recording, *, keeps: object = None) -> None:
        self._tables = tables
        # Whoever removes the tables when it goes.
        self._keeps = keeps

    def layers(self, figure: SiteFigure = "peak") -> alt.TopLevelMixin:
        """The largest |x|, or the kurtosis of the features' RMS, of every tap through the layers."""
        if figure not in ("peak", "kurtosis"):
            raise StudyError("There is no such figure.", key="figure", expected="peak or kurtosis", got=figure)
        return layer_profile_chart(self._tables.sites(), figure=figure)

    def features(self, preset: str = DEFAULT_PRESET, *, magnitude: float | None = None) -> alt.TopLevelMixin:
        """The systematic features of a definition, at its own magnitude or another, layer by layer."""
        chosen, tables = preset_named(preset, magnitude=magnitude), self._tables
        found = systematic_features(tables, [chosen]).filter("is_systematic")
        peaks = peaks_by_layer(tables.layer_outliers())
        return feature_heatmap_chart(peaks, ranked_features(found, chosen), view=chosen.view)

    def positions(self, tap: Tap | None = None) -> alt.TopLevelMixin:
        """Where in the text the largest activations of a tap lie: of the residual stream, if it was recorded."""
        taps = self._tables.run["taps"]
        shown: Tap = tap or ("residual" if "residual" in taps else taps[0])
        if shown not in taps:
            raise StudyError("The tap was not recorded.", key="tap", expected=" or ".join(taps), got=shown)
        return position_profile_chart(self._tables.peaks(), tap=shown)

    def experts(self, magnitude: float = 6.0) -> alt.TopLevelMixin:
        """How the tokens, and the outlier tokens, are spread over the experts."""
        charts = expert_charts(self._tables, magnitude=magnitude)
        if not charts:
            raise StudyError("A dense model has no experts.", key="experts", got=self._tables.run["model"])
        return charts["expert-load"]
