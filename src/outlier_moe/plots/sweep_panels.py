"""What the pictures of a sweep show, what its figures are called, and how their axes are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from outlier_moe.plots.scales import ScaleKind

OPTIMIZERS = ["sgd", "adamw", "muon", "shampoo", "soap", "ademamix"]
PANELS: Mapping[str, Mapping[str, str]] = {
    "performance": {
        "train_loss_nats": "training loss (nats)",
        "test_loss_nats": "test loss (nats)",
        "test_accuracy": "test accuracy (share)",
        "generalisation_gap_nats": "generalisation gap (nats)",
        "step_time_s": "time of a step (s, of this machine)",
    },
    "ranks": {
        "weight_effective_rank": "effective rank of weights / min(m, n)",
        "weight_stable_rank": "stable rank of weights",
        "weight_participation_ratio": "participation ratio of weights",
        "feature_effective_rank": "effective rank of the residual stream / min(m, n)",
        "feature_stable_rank": "stable rank of the residual stream",
        "feature_participation_ratio": "participation ratio of the residual stream",
        "head_effective_rank": "effective rank of what the head reads / min(m, n)",
    },
    "sparsity": {
        "share_nonpositive": "activations at or below 0 (share)",
        "share_near_zero": "activations near 0 (share)",
        "hoyer": "Hoyer's sparseness (0 to 1)",
    },
    "outliers": {
        "kurtosis_of_feature_rms": "kurtosis of feature RMS",
        "excess_kurtosis": "excess kurtosis",
        "max_median_ratio": "largest |x| / median",
        "peak": "largest |x|",
        "n_systematic": "systematic features (number)",
    },
}
"""The figures of each picture against size, with what their axes are called."""
DYNAMICS = (
    "train_loss_nats",
    "test_loss_nats",
    "generalisation_gap_nats",
    "test_accuracy",
    "weight_effective_rank",
    "feature_effective_rank",
    "head_effective_rank",
    "hoyer",
    "kurtosis_of_feature_rms",
    "max_median_ratio",
    "peak",
    "n_systematic",
)
"""The figures that are shown over the steps."""
TITLES: Mapping[str, str] = {
    **{figure: title for panels in PANELS.values() for figure, title in panels.items()},
    "validation_loss_nats": "validation loss (nats)",
    "train_accuracy": "training accuracy (share)",
    "validation_accuracy": "validation accuracy (share)",
    "generalisation_gap_accuracy": "generalisation gap (accuracy)",
}
"""What each figure is called."""

COUNTS = {"n_systematic"}
"""Figures that are whole numbers from 0 on."""
SPREADING = {*PANELS["outliers"], "share_near_zero", "step_time_s"}
"""Figures that may differ by orders of magnitude between optimisers."""
LEAST_SPREAD = 3.0
"""The ratio of the largest to the smallest value from which they are shown on a logarithmic axis."""
LEAST_SYMLOG = 5.0
"""The largest value from which those that may be 0 are."""


def axis_kind(figure: str, values: Sequence[float]) -> ScaleKind:
    """How a figure's axis is spread, so that none of its values lies on its edge for the size of another."""
    if figure not in SPREADING or not len(values):
        return "linear"
    low, high = float(np.min(values)), float(np.max(values))
    if low > 0:
        return "log" if high > LEAST_SPREAD * low else "linear"
    return "symlog" if high > LEAST_SYMLOG else "linear"


def short_title(figure: str) -> str:
    """What a sentence calls a figure."""
    title = TITLES.get(figure, figure.replace("_", " "))
    for unit in (" (share)", " (number)", " (0 to 1)", " (s, of this machine)", " / min(m, n)"):
        title = title.removesuffix(unit)
    return title
