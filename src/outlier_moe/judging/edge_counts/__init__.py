"""What a model's recording gives at every edge of the ladder at once, so that a threshold can be moved without it."""

from outlier_moe.definitions.presets import CountShape, shape_of
from outlier_moe.judging.edge_counts.counting import EdgeCounts, count_at_edges
from outlier_moe.judging.edge_counts.figures import Figures, figures_at
from outlier_moe.judging.edge_counts.files import read_edge_counts, write_edge_counts

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
