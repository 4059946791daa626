"""What each figure is called on axes, in headings and in sentences, and how it is written: the one place for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

ScaleKind = Literal["linear", "log", "symlog"]
Style = Literal["text", "count", "percent", "magnitude", "decimal"]


class Title(NamedTuple):
    """How people read one figure."""

    words: str
    unit: str = ""
    """What follows the words on an axis."""
    head: str = ""
    """A shorter heading of a column; without it the axis' title."""
    style: Style = "decimal"
    """How its values are written; `percent` takes fractions."""
    spread: ScaleKind = "linear"
    """How its axis is spread."""
    is_resampled: bool = False
    """Whether the comparison has intervals of it."""
    has_slider: bool = False
    """Whether the report's sliders give it at any threshold."""

    @property
    def axis(self) -> str:
        """The words with the unit."""
        return f"{self.words}{self.unit}"

    @property
    def heading(self) -> str:
        """What stands above a column."""
        return self.head or self.axis


def _affected(what: str, kind: str, *, has_slider: bool = True) -> Title:
    """A share of layers or positions, the mean or median over systematic features."""
    words = what.replace(" ", " affected ", 1) if " " in what else f"{what} affected"
    return Title(f"{words}, {kind}", " (%)", f"{what}, {kind} (%)", "percent", "linear", True, has_slider)


COMPARED: Mapping[str, Title] = {
    "total_params_b": Title("total parameters", " (billions)", "total (B)", spread="log"),
    "active_params_b": Title("active parameters", " (billions)", "active (B)", spread="log"),
    "n_systematic": Title("systematic features", "", "", "count", "symlog", True, True),
    "n_pairs": Title("(feature, sequence) pairs", "", "", "count", "symlog", True, True),
    "d_model_share": Title("share of the features", " (%)", "of d_model (%)", "percent", "linear", True, True),
    "n_values": Title("outlier values", "", "", "count", "symlog", True),
    "layer_fraction_mean": _affected("layers", "mean"),
    "layer_fraction_median": _affected("layers", "median"),
    "position_fraction_mean": _affected("positions", "mean"),
    "position_fraction_median": _affected("positions", "median"),
    "position_fraction_per_site_mean": _affected("positions per site", "mean", has_slider=False),
    "position_fraction_per_site_median": _affected("positions per site", "median", has_slider=False),
    "peak_median": Title("median peak of these features", "", "", "magnitude", "log", True),
    "peak_largest": Title("largest |x| of these features", "", "", "magnitude", "log", True, True),
    "perplexity": Title("perplexity", spread="log", is_resampled=True),
    "kurtosis_of_feature_rms_mean": Title("kurtosis of feature RMS, mean", is_resampled=True),
    "kurtosis_of_feature_rms_median": Title("kurtosis of feature RMS, median", is_resampled=True),
    "excess_kurtosis_mean": Title("excess kurtosis, mean", is_resampled=True),
    "excess_kurtosis_median": Title("excess kurtosis, median", is_resampled=True),
}
"""The figures of `ModelComparison`."""

SWEPT: Mapping[str, Title] = {
    "train_loss_nats": Title("training loss (nats)"),
    "test_loss_nats": Title("test loss (nats)"),
    "test_accuracy": Title("test accuracy", " (share)"),
    "generalisation_gap_nats": Title("generalisation gap (nats)"),
    "step_time_s": Title("time of a step", " (s, of this machine)"),
    "weight_effective_rank": Title("effective rank of weights", " / min(m, n)"),
    "weight_stable_rank": Title("stable rank of weights"),
    "weight_participation_ratio": Title("participation ratio of weights"),
    "feature_effective_rank": Title("effective rank of the residual stream", " / min(m, n)"),
    "feature_stable_rank": Title("stable rank of the residual stream"),
    "feature_participation_ratio": Title("participation ratio of the residual stream"),
    "head_effective_rank": Title("effective rank of what the head reads", " / min(m, n)"),
    "share_nonpositive": Title("activations at or below 0", " (share)"),
    "share_near_zero": Title("activations near 0", " (share)"),
    "hoyer": Title("Hoyer's sparseness", " (0 to 1)"),
    "kurtosis_of_feature_rms": Title("kurtosis of feature RMS"),
    "excess_kurtosis": Title("excess kurtosis"),
    "max_median_ratio": Title("largest |x| / median"),
    "peak": Title("largest |x|"),
    "n_systematic": COMPARED["n_systematic"],
    "validation_loss_nats": Title("validation loss (nats)"),
    "train_accuracy": Title("training accuracy", " (share)"),
    "validation_accuracy": Title("validation accuracy", " (share)"),
    "generalisation_gap_accuracy": Title("generalisation gap (accuracy)"),
}
"""The figures of the sweeps and of the experiment dense -> MoE, in the order of their pictures."""
