"""What a model's recording gives at every edge of the ladder at once, so that a threshold can be moved without it."""

from outlier_moe.edge_counts.counting import EdgeCounts, count_at_edges
from outlier_moe.edge_counts.figures import Figures, figures_at
from outlier_moe.edge_counts.files import read_edge_counts, write_edge_counts
from outlier_moe.presets import CountShape, shape_of

__all__ = [
    "CountShape",
    "EdgeCounts",
    "Figures",
    "count_at_edges",
    "figures_at",
    "read_edge_counts",
    "shape_of",
    "write_edge_counts",
]
