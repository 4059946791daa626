"""What can stand on an axis: the column it comes from, what it is called, and how it is spread."""

from __future__ import annotations

from dataclasses import dataclass

from outlier_moe.tables.titles import COMPARED, ScaleKind


@dataclass(frozen=True)
class Quantity:
    """A figure of the comparison on an axis."""

    column: str
    """Its column in `ModelComparison`."""
    title: str
    """Its name, with the unit."""
    scale: ScaleKind = "linear"
    """How values are spread."""
    is_fraction: bool = False
    """Whether it is shown in per cent, from 0 to 100."""


def quantity(column: str) -> Quantity:
    """A figure on an axis, as `tables.titles` has it."""
    title = COMPARED[column]
    return Quantity(column, title.axis, title.spread, title.style == "percent")


TOTAL_PARAMETERS, ACTIVE_PARAMETERS = quantity("total_params_b"), quantity("active_params_b")
PERPLEXITY, SYSTEMATIC_FEATURES = quantity("perplexity"), quantity("n_systematic")

SIZES = {"total": TOTAL_PARAMETERS, "active": ACTIVE_PARAMETERS}
FRACTIONS = {
    f"{of}s-{kind}": quantity(f"{of}_fraction_{kind}") for of in ("layer", "position") for kind in ("mean", "median")
}
