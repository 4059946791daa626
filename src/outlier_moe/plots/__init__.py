"""Pictures of the comparison and of single models."""

from outlier_moe.plots.overview import outlier_chart
from outlier_moe.plots.saving import save_chart

__all__ = ["outlier_chart", "save_chart"]
