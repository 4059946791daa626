"""The rules: when a feature is systematic, and when an activation is massive.

Each stands here once, for expressions of polars and for arrays alike. Where a rule has to be compiled
(`statistics.resample_kernels`) or runs in a browser (`report/assets/figures.js`), a test holds it to this module.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl

from outlier_moe.definitions.presets import Preset

Values = TypeVar("Values", pl.Expr, np.ndarray)


class Least(NamedTuple):
    """The fractions that a systematic feature reaches at least, where no preset says them."""

    layer_fraction: float
    """Of the layers."""
    position_fraction: float
    """Of the positions."""


def is_systematic(layer_fraction: Values, position_fraction: Values, least: Preset | Least) -> Values:
    """Whether a feature affects enough of the layers and enough of the positions.

    Source: Dettmers et al. 2022 (arXiv 2208.07339), section 3.

    Args:
        layer_fraction: Share of the layers (or sites) affected, 0 to 1, as correctly rounded quotients: a feature in
            7 of 28 layers reaches 0.25.
        position_fraction: Share of the positions affected at any site, 0 to 1.
        least: What both are held against.
    """
    return (layer_fraction >= least.layer_fraction) & (position_fraction >= least.position_fraction)


def is_massive(peak: Values, median_magnitude: Values, preset: Preset) -> Values:
    """Whether an activation is above a magnitude and at least a multiple of its hidden state's median.

    Source: Sun et al. 2024 (arXiv 2402.17762), section 2.

    Args:
        peak: |x|, in units of the hidden state.
        median_magnitude: The median |x| of the hidden state it lies in.
        preset: A definition whose rule is `massive`.
    """
    return (peak > preset.magnitude) & (peak >= preset.median_ratio * median_magnitude)
