"""What the pictures of a sweep show, and how their axes are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from outlier_moe.tables.titles import ScaleKind

OPTIMIZERS = ["sgd", "adamw", "muon", "shampoo", "soap", "ademamix"]
PANELS: Mapping[str, Sequence[str]] = {
    "performance": (
        "train_loss_nats",
        "test_loss_nats",
        "test_accuracy",
        "generalisation_gap_nats",
        "step_time_s",
    ),
    "ranks": (
        "weight_effective_rank",
        "weight_stable_rank",
        "weight_participation_ratio",
        "feature_effective_rank",
        "feature_stable_rank",
        "feature_participation_ratio",
        "head_effective_rank",
    ),
    "sparsity": ("share_nonpositive", "share_near_zero", "hoyer"),
    "outliers": ("kurtosis_of_feature_rms", "excess_kurtosis", "max_median_ratio", "peak", "n_systematic"),
}
"""The figures of each picture against size."""
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
