"""What can stand on an axis: the column it comes from, what it is called, and how it is spread."""

from __future__ import annotations

from dataclasses import dataclass

from outlier_moe.plots.scales import ScaleKind


@dataclass(frozen=True)
class Quantity:
    """A figure of the comparison on an axis."""

    column: str
    """Its column in `schemas.ModelComparison`."""
    title: str
    """Its name, with the unit."""
    scale: ScaleKind = "linear"
    """How values are spread."""
    is_fraction: bool = False
    """Whether it is shown in per cent, from 0 to 100."""


TOTAL_PARAMETERS = Quantity("total_params_b", "total parameters (billions)", "log")
ACTIVE_PARAMETERS = Quantity("active_params_b", "active parameters (billions)", "log")
PERPLEXITY = Quantity("perplexity", "perplexity", "log")
SYSTEMATIC_FEATURES = Quantity("n_systematic", "systematic features", "symlog")

SIZES = {"total": TOTAL_PARAMETERS, "active": ACTIVE_PARAMETERS}
FRACTIONS = {
    "layers-mean": Quantity("layer_fraction_mean", "layers affected, mean (%)", is_fraction=True),
    "layers-median": Quantity("layer_fraction_median", "layers affected, median (%)", is_fraction=True),
    "positions-mean": Quantity("position_fraction_mean", "positions affected, mean (%)", is_fraction=True),
    "positions-median": Quantity("position_fraction_median", "positions affected, median (%)", is_fraction=True),
}
